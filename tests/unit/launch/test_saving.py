"""What people are told while no checkpoint can be begun."""

from pathlib import Path

import pytest

import ecrec.checkpoint.saving as checkpoint_saving
from ecrec.checkpoint.saving import save_checkpoint
from ecrec.errors import CheckpointError, RefusedError
from ecrec.launch import saving
from ecrec.launch.saving import SaysWaiting


def test_the_reason_is_said_after_a_moment_and_then_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now_s = 100.0
    monkeypatch.setattr(saving.time, "monotonic", lambda: now_s)
    waits = SaysWaiting(said.append)
    for now_s, count in ((100.5, 0), (101.0, 1), (110.9, 1), (111.0, 2)):  # noqa: B007
        waits("shard 0 is down; a checkpoint is written when all shards are whole: ask again")
        assert len(said) == count
    assert said[0] == (
        "no checkpoint yet: shard 0 is down; a checkpoint is written when all shards are whole; trying again"
    )


def test_why_none_can_be_begun_is_told_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: object) -> None:
        raise RefusedError("shard 0 is down; a checkpoint is written when all shards are whole: ask again")

    monkeypatch.setattr(checkpoint_saving, "query", refused)
    monkeypatch.setattr(checkpoint_saving, "POLL_S", 0.01)
    why: list[str] = []
    with pytest.raises(CheckpointError, match=r"no checkpoint is complete at .*: shard 0 is down"):
        save_checkpoint("tcp://nowhere:1", str(tmp_path), 0.2, waits=why.append)
    assert len(why) > 1 and set(why) == {str(RefusedError(why[0]))}
