"""After any deaths that the code tolerates, the model is the one that a run without deaths gives, bit for
bit."""

import pytest
from runs import SMALL, check_exact


def check(finished, reference, deaths):
    """The run ended well, did what was asked, lost nothing and has the reference's model."""
    report = check_exact(finished, reference)
    assert [(kill["shard"], kill["step"]) for kill in report["kills"]] == deaths, finished.story
    assert report["steps"] == 30, finished.story
    for kill in report["kills"]:
        for name in ("detect_s", "whole_s"):
            assert kill[name] is not None, (name, finished.story)
            assert 0 < kill[name] < 30, (name, finished.story)


@pytest.mark.parametrize(
    ("options", "kills"),
    [
        (["--code", "4+1"], ["ps:2@8"]),
        (["--code", "3+2"], ["ps:1@8", "ps:3@8"]),
        (["--code", "1+1"], ["ps:0@8"]),
        (["--code", "2+1", "--shards", "3", "--transport", "tcp"], ["ps:1@8"]),
        (["--code", "4+1"], ["ps:2@5", "ps:2@6", "ps:2@7"]),
        (["--code", "4+1"], ["ps:2@5", "ps:4@6"]),
        (["--code", "4+1"], ["ps:2@30"]),
    ],
    ids=[
        "one",
        "two at once",
        "replicated",
        "three shards over ipc",
        "the same three times",
        "two in turn",
        "at the end",
    ],
)
def test_deaths_change_nothing(trainer, undisturbed, options, kills):
    finished = trainer.run(*SMALL, *options, *(word for kill in kills for word in ("--kill", kill)))
    deaths = [(int(kill[3]), int(kill[5:])) for kill in kills]
    # Neither the code nor the number of shards has a say in the values.
    check(finished, undisturbed(), deaths)


@pytest.mark.parametrize(
    ("optimizer", "dense"), [("sgd", "sgd"), ("adagrad", "adagrad"), ("adam", "adam"), ("ftrl", "nesterov")]
)
def test_the_state_of_optimizers_survives(trainer, undisturbed, optimizer, dense):
    rates = ("--lr", "0.05", "--dense-lr", "0.05") if optimizer == "sgd" else ()
    options = ("--optimizer", optimizer, "--dense-optimizer", dense, *rates)
    finished = trainer.run(*SMALL, *options, "--kill", "ps:3@8")
    check(finished, undisturbed(*options), [(3, 8)])
    assert finished.report["model_digest"] != undisturbed()["model_digest"]


def test_two_workers_in_step(trainer, undisturbed):
    options = ("--workers", "2", "--sync")
    finished = trainer.run(*SMALL, *options, "--kill", "ps:2@8")
    check(finished, undisturbed(*options), [(2, 8)])


def test_two_workers_running_freely_lose_nothing(trainer):
    finished = trainer.run(*SMALL, "--workers", "2", "--kill", "ps:2@8")
    assert finished.code == 0, finished.story
    assert finished.report["lost_updates"] == 0, finished.story
    assert finished.report["parity_ok"] is True, finished.story


def test_the_report_tells_how_long_each_thing_took(trainer):
    finished = trainer.run(*SMALL, "--kill", "ps:2@8")
    assert finished.code == 0, finished.story
    (kill,) = finished.report["kills"]
    assert 0 < kill["detect_s"] < 1.0, finished.story
    assert kill["first_row_s"] > 0, finished.story
    assert kill["whole_s"] > kill["detect_s"], finished.story
    assert kill["longest_pause_s"] > 0, finished.story
    for name in ("throughput_before", "throughput_during", "throughput_after"):
        assert kill[name] is None or kill[name] >= 0, finished.story
    for name in ("examples", "seconds", "examples_per_s", "logloss", "config", "versions", "machine"):
        assert finished.report[name], (name, finished.story)
    assert finished.report["config"]["kills"] == ["ps:2@8"]


def test_without_parity_a_death_is_lost_data_and_said(trainer):
    finished = trainer.run(*SMALL, "--code", "4+0", "--kill", "ps:2@8")
    assert finished.code == 3, finished.story
    assert finished.report is None
    assert "warning: killing 1 shard at step 8 is more than the code tolerates" in finished.err
    assert "error: data lost" in finished.err
    assert "code 4+0" in finished.err
    assert "Traceback" not in finished.err


def test_without_parity_there_is_no_claim_about_it(trainer, undisturbed):
    finished = trainer.run(*SMALL, "--code", "4+0")
    assert finished.code == 0, finished.story
    assert finished.report["parity_ok"] is None
    assert finished.report["model_digest"] == undisturbed()["model_digest"]
