"""What happens to the other processes of a run: scheduler, workers, launcher; and the tools beside it."""

import gzip
import json
import os
import signal
import subprocess
import sys

import psutil
from runs import SMALL, cluster, left_over, wait_until, words

LONG = (*SMALL, "--steps", "100000", "--epochs", "100000")


def ecrec(*arguments):
    command = [sys.executable, "-m", "ecrec.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_restarted_scheduler_disturbs_nothing(trainer, undisturbed):
    run = trainer.start(*SMALL, "--kill", "ps:1@20")
    process, run_dir, _ = run
    words(process, "step 1/")
    before = cluster(run_dir)
    os.kill(before["pids"]["scheduler"], signal.SIGKILL)
    finished = trainer.finish(*run)
    assert finished.code == 0, finished.story
    assert cluster(run_dir)["pids"]["scheduler"] != before["pids"]["scheduler"]
    assert cluster(run_dir)["scheduler"] == before["scheduler"]
    report = finished.report
    assert [(kill["shard"], kill["step"]) for kill in report["kills"]] == [(1, 20)], finished.story
    assert report["model_digest"] == undisturbed()["model_digest"], finished.story
    assert report["lost_updates"] == 0
    assert report["parity_ok"] is True


def test_status_and_verify_beside_a_run_and_ctrl_c_ends_it_all(trainer):
    process, run_dir, _ = trainer.start(*LONG)
    try:
        words(process, "step 1/")
        endpoint = cluster(run_dir)["scheduler"]
        shown = ecrec("status", "--scheduler", endpoint)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count("up") >= 5, shown.stdout
        state = json.loads(ecrec("status", "--scheduler", endpoint, "--json").stdout)
        assert [shard["state"] for shard in state["shards"]] == ["up"] * 5
        command = [sys.executable, "-m", "ecrec.cli", "status", "--json", "--watch", "--every", "0.1"]
        with subprocess.Popen([*command, "--scheduler", endpoint], stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
            watching.kill()
        assert looks[0]["at"] < looks[2]["at"] and len(looks[2]["shards"]) == 5
        verified = ecrec("verify", "--scheduler", endpoint)
        assert verified.returncode == 0, verified.stderr
        assert "all parity fits" in verified.stdout
        figures = json.loads(ecrec("verify", "--scheduler", endpoint, "--json").stdout)
        assert figures["parity_ok"] is True
        assert figures["stripes_scrubbed"] > 100
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode not in (0, None)
        assert left_over(run_dir) == []
    finally:
        process.kill()
        process.communicate()


def test_a_killed_launcher_takes_everything_with_it(trainer):
    process, run_dir, _ = trainer.start(*LONG)
    words(process, "step 1/")
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(children) >= 7
    process.kill()
    process.communicate()
    wait_until(lambda: left_over(run_dir) == [])


def test_a_worker_that_may_not_die_shows_its_last_words_and_the_log(trainer):
    run = trainer.start(*LONG, "--workers", "2", "--sync")
    process, run_dir, _ = run
    words(process, "step 1/")
    worker = next(
        child
        for child in psutil.Process(process.pid).children()
        if "ecrec.train.worker" in child.cmdline() and child.environ()["RANK"] == "0"
    )
    worker.kill()
    finished = trainer.finish(*run)
    assert finished.code == 1, finished.story
    assert "worker 0 was ended by SIGKILL" in finished.err
    assert str(run_dir / "logs" / "worker-0.log") in finished.err
    assert finished.report is None


def test_a_bad_line_of_data_is_named(trainer, tmp_path):
    data = tmp_path / "bad.tsv"
    good = "\t".join(["1", *["2"] * 13, *["0a1b2c3d"] * 26])
    data.write_text(f"{good}\n{good}\nnot a row\n{good}\n")
    finished = trainer.run("--data", str(data), "--rows", "100", "--batch", "2", timeout_s=60)
    assert finished.code == 2, finished.story
    assert "bad.tsv, line 3: found 1 tab-separated fields" in finished.err, finished.err
    assert finished.err.strip().endswith("Rows that cannot be read are left out with --bad-rows skip")
    assert "Traceback" not in finished.err


def test_bad_rows_are_skipped_counted_once_and_reported(trainer, tmp_path):
    """Two files, one of them zipped, two workers, two passes, and one of the workers is killed."""
    good = "\t".join(["{}", *["2"] * 13, *["0a1b2c3d"] * 26])
    lines = [good.format(i % 2) for i in range(1200)]
    lines[7] = lines[700] = lines[1190] = "not a row"
    one, two = tmp_path / "one.tsv", tmp_path / "two.tsv.gz"
    one.write_text("\n".join(lines[:500]) + "\n")
    two.write_bytes(gzip.compress(("\n".join(lines[500:]) + "\n").encode()))
    finished = trainer.run(
        *("--data", str(one), "--data", str(two), "--bad-rows", "skip", "--workers", "2", "--epochs", "2"),
        *("--rows", "100", "--batch", "32", "--dim", "8", "--kill", "worker:1@10"),
    )
    assert finished.code == 0, finished.story
    report = finished.report
    assert report["bad_rows"] == 3 and "one.tsv, line 8: found 1 tab-separated" in report["bad_row"]
    assert report["examples_trained"] == 2 * 960, "bad rows count as done"
    assert "warning: 3 bad rows of the data were skipped, the first one: " in finished.err
    assert "two.tsv.gz, line 201" in finished.out
    assert json.loads((finished.run_dir / "config.json").read_text())["data_rows"] == [500, 700]
    assert report["lost_updates"] == 0 and report["parity_ok"] is True
    training = report["training"]
    assert training["examples"] > 0 and 0 < report["normalized_entropy"] < 2 and 0 < training["logloss"] < 2


def test_data_that_cannot_be_counted_ends_the_run(trainer, tmp_path):
    good = "\t".join(["1", *["2"] * 13, *["0a1b2c3d"] * 26]) + "\n"
    data = tmp_path / "cut.tsv.gz"
    data.write_bytes(gzip.compress(good.encode() * 5000)[:-20])
    finished = trainer.run("--data", str(data), timeout_s=60)
    assert finished.code == 2, finished.story
    assert "cut.tsv.gz, after line" in finished.err and "truncated gzip data" in finished.err
