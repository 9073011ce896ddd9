"""What happens to the other processes of a run: scheduler, workers, launcher; and the tools beside it."""

import json
import os
import signal
import subprocess
import sys

import psutil
from runs import SMALL, cluster, left_over, wait_until, words

LONG = (*SMALL, "--steps", "100000", "--epochs", "100000")


def ecrec(*arguments):
    command = [sys.executable, "-m", "ecrec.launch.cli", *arguments]
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
        if "ecrec.launch.train_worker" in child.cmdline() and child.environ()["RANK"] == "0"
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
    assert finished.code == 1, finished.story
    assert "bad.tsv, line 3" in finished.err.replace(":3", ", line 3"), finished.err
    assert "Traceback" not in finished.err.split("last lines")[0]
