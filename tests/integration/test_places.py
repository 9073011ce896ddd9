"""Who gets a place: processes that are reached, and those whose own place another one took."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import DEADLINE_S, SHARDS, Processes

from ecrec.exit_codes import ExitCode
from ecrec.protocol.messages import UP


class Places(Processes):
    def unreached_spare(self) -> tuple[subprocess.Popen[str], str]:
        """Start a spare that everybody is told a closed port of; returns it, and its endpoint as told."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            told = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        process = self.proxied_shard(told, "--scheduler", self.endpoint, "--bind", self.bind(), "--spare")
        return process, told


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    with contextlib.closing(Places(tmp_path, "tcp")) as made:
        yield made


def test_a_spare_that_nobody_reaches_gets_no_place_and_stands_in_nobodys_way(places: Places) -> None:
    places.scheduler()
    shards = places.all_shards()
    spare, told = places.unreached_spare()
    state = places.wait(lambda state: [each.endpoint for each in state.waiting] == [told])
    assert state.spares == 0 and not state.waiting[0].is_reached
    shards[1].kill()
    places.wait(lambda state: state.shards[1].state != UP)
    places.shard("--spare")
    state = places.wait(lambda state: all(shard.state == UP for shard in state.shards))
    assert [shard.epoch for shard in state.shards] == [1, 2, 1, 1, 1]
    assert state.shards[1].endpoint != told
    assert [(each.endpoint, each.is_reached) for each in state.waiting] == [(told, False)]
    assert spare.wait(DEADLINE_S) == ExitCode.REPLACED
    assert f"the scheduler cannot reach it at {told}" in places.logs()


def test_the_command_of_a_place_that_a_spare_has_taken_serves_as_a_spare(places: Places) -> None:
    places.scheduler()
    shards = places.all_shards()
    places.shard("--spare")
    places.wait(lambda state: state.spares == 1)
    shards[2].kill()
    places.wait(lambda state: state.shards[2].state == UP and state.shards[2].epoch == 2)
    places.shard("--shard", "2")
    state = places.wait(lambda state: state.spares == 1)
    assert [(each.wanted, each.is_spare) for each in state.waiting] == [(2, True)]
    shards[0].kill()
    state = places.wait(lambda state: state.shards[0].state == UP and state.shards[0].epoch == 2)
    assert [shard.epoch for shard in state.shards] == [2, 1, 2, 1, 1] and len(state.shards) == SHARDS
