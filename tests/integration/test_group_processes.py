"""Several coding groups on real processes: each tolerates r deaths of its own, at the same time as the others.

The longer ones need ECREC_LONG_FAULTS=1. Many servers share few cores here: nothing is expected to be fast.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from runs import SMALL, Trainer, check_exact, left_over

import ecrec
from ecrec.launch.local.cluster import CLUSTER_FILE
from ecrec.launch.tools.verify import scrub

LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"

TWO_OF_FIVE = ("--shards", "10", "--groups", "2", "--code", "4+1", "--rows", "1000")

TIMEOUT_S = 300


def kills(*names):
    return [word for name in names for word in ("--kill", name)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The same training on one group, without kills: neither placement nor deaths have a say in the values."""
    trainer = Trainer(tmp_path_factory.mktemp("calm"))
    finished = trainer.run(*SMALL, "--rows", "1000", timeout_s=TIMEOUT_S)
    assert finished.code == 0, finished.story
    return finished.report


def test_kills_in_both_groups_at_once_and_again_change_nothing(trainer, calm):
    finished = trainer.run(
        *SMALL, *TWO_OF_FIVE, *kills("ps:2@8", "ps:7@8", "ps:0@15", "ps:9@15", "ps:4@20"), timeout_s=TIMEOUT_S
    )
    report = check_exact(finished, calm)
    assert [(kill["shard"], kill["step"]) for kill in report["kills"]] == [(2, 8), (7, 8), (0, 15), (9, 15), (4, 20)]
    assert [(group["kills"], group["deaths"]) for group in report["groups"]] == [(3, 3), (2, 2)], finished.story
    assert [group["shards"] for group in report["groups"]] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert report["losses"] == []
    assert (report["config"]["shards"], report["config"]["groups"]) == (10, 2)
    assert "2 groups of 5 shards" in finished.out


def test_a_group_that_loses_data_is_named_by_its_shards_and_the_other_by_none(trainer):
    finished = trainer.run(*SMALL, *TWO_OF_FIVE, *kills("ps:6@8", "ps:8@8"), timeout_s=TIMEOUT_S)
    assert finished.code == 3, finished.story
    assert "warning: killing 2 shards of group 1 at step 8 is more than the code tolerates" in finished.err
    assert "error: data lost: shards 6 (" in finished.err, finished.story
    assert "on shard 6" in finished.err and "on shard 8" in finished.err, finished.story
    assert not any(f"on shard {shard}" in finished.err for shard in range(5)), finished.story


def test_one_group_goes_on_from_initial_values_while_another_repairs_what_it_lost(trainer):
    # A dense part of 1+1 lies on neighbours: the two that die in group 1 are none.
    finished = trainer.run(
        *SMALL, *TWO_OF_FIVE, "--steps", "90", "--on-data-loss", "reinitialise",
        *kills("ps:6@70", "ps:8@70", "ps:2@70"), timeout_s=TIMEOUT_S,
    )  # fmt: skip
    assert finished.code == 0, finished.story
    report = finished.report
    assert report["steps"] == 90 and report["parity_ok"] is True, finished.story
    (loss,) = report["losses"]
    assert loss["group"] == 1 and {some["shard"] for some in loss["lost"]} == {6, 8}, finished.story
    assert [group["losses"] for group in report["groups"]] == [0, 1]
    assert report["rows_reinitialised"] == loss["rows"] > 0
    assert report["lost_updates"] == report["updates_damaged"], finished.story


def test_a_worker_dies_together_with_a_server_of_each_group(trainer):
    # The worker's splits are handed on only when the servers of both groups have given it up.
    finished = trainer.run(
        *SMALL, *TWO_OF_FIVE, "--steps", "60", "--workers", "2", "--kill", "worker:1@20", *kills("ps:3@20", "ps:5@20"),
        timeout_s=TIMEOUT_S,
    )  # fmt: skip
    assert finished.code == 0, finished.story
    report = finished.report
    assert report["worker_deaths"] == 1 and report["kills_not_done"] == [], finished.story
    assert report["lost_updates"] == 0 and report["parity_ok"] is True, finished.story
    assert report["examples_trained"] == 60 * 256, finished.story
    assert [group["deaths"] for group in report["groups"]] == [1, 1], finished.story


def test_a_session_of_two_groups_and_its_tools_know_all_shards(tmp_path):
    pytest.importorskip("torch")
    from test_train_sessions import TRAINING

    names = {}
    exec(TRAINING, names)

    def run(name, at_step, **shards):
        run_dir = tmp_path / name
        with ecrec.local_cluster(**shards, run_dir=str(run_dir)) as session:
            outcome = names["train"](session, 12, lambda step: at_step(step, run_dir))
            endpoint = json.loads((run_dir / CLUSTER_FILE).read_text())["scheduler"]
            outcomes.append((session.shards, scrub(endpoint, 120), status(endpoint)))
        assert left_over(run_dir) == []
        return outcome

    def kill(step, run_dir):
        if step == 5:
            pids = json.loads((run_dir / CLUSTER_FILE).read_text())["pids"]
            for name in ("ps 1", "ps 3"):
                os.kill(pids[name], signal.SIGKILL)

    outcomes = []
    calm = run("calm", lambda step, run_dir: None, shards=3, code="2+1")
    assert run("broken", kill, shards=6, groups=2, code="2+1") == calm
    shards, scrubbed, state = outcomes[1]
    assert shards == 6
    assert scrubbed.ok is True and scrubbed.stripes == outcomes[0][1].stripes
    assert len(state["shards"]) == 6 and state["groups"] == 2 and state["n"] == 3
    assert len(state["redundancy"]) == 2
    assert [shard["epoch"] for shard in state["shards"]] == [1, 2, 1, 2, 1, 1]


def status(endpoint):
    command = [sys.executable, "-m", "ecrec.cli", "status", "--scheduler", endpoint, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def test_shards_that_cannot_be_dealt_are_refused_before_anything_starts(trainer):
    finished = trainer.run(*SMALL, "--shards", "17")
    assert finished.code == 2, finished.story
    assert "--shards 17 --code 4+1: 17 shards cannot be dealt" in finished.err
    assert "possible are 15, 16, 18 and 20" in finished.err
    assert not finished.run_dir.exists()


@pytest.mark.skipif(not LONG, reason="eighteen servers on few cores: ECREC_LONG_FAULTS=1")
def test_more_than_sixteen_shards_are_dealt_by_themselves_and_start_on_few_cores(trainer, calm):
    finished = trainer.run(
        *SMALL, "--shards", "18", "--rows", "1000", *kills("ps:3@8", "ps:12@8"), timeout_s=2 * TIMEOUT_S
    )
    report = check_exact(finished, calm)
    assert report["config"]["groups"] == 2
    assert [group["shards"][-1] for group in report["groups"]] == [8, 17]
    assert report["deaths"] == 2, finished.story


@pytest.mark.skipif(not LONG, reason="takes minutes: ECREC_LONG_FAULTS=1")
@pytest.mark.parametrize(("code", "spares"), [("4+1", "2"), ("3+2", "4")])
def test_random_kills_in_several_groups_for_minutes_change_nothing(trainer, code, spares):
    options = (*SMALL, *TWO_OF_FIVE, "--code", code, "--steps", "500")
    calm = trainer.run(*options, timeout_s=2 * TIMEOUT_S)
    assert calm.code == 0, calm.story
    finished = trainer.run(*options, "--spares", spares, "--chaos-kill-every", "2s", timeout_s=2 * TIMEOUT_S)
    report = check_exact(finished, calm.report)
    assert len(report["kills"]) >= 5, finished.story
    assert report["deaths"] == len(report["kills"]), finished.story
    assert all(group["kills"] for group in report["groups"]), finished.story
    steps = [kill["step"] for kill in report["kills"]]
    assert len(set(steps)) < len(steps), "no two at once"
