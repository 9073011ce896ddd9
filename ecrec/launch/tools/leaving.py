"""Servers that are to leave: one, those of a host, or all of them in turn (docs/operations.md, "Stopping a server")."""

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ecrec.errors import ClusterError, ConfigurationError, DataLostError, RefusedError
from ecrec.launch.environment import curve_keys
from ecrec.launch.tools.verify import cluster_state
from ecrec.protocol.admission import host_of
from ecrec.protocol.messages import DOWN, UP, ClusterState, Drain, ShardFigures
from ecrec.transport.client_node import query

POLL_S = 0.2
ASK_S = 1.0
"""How often a server that has not heard it is told again."""
QUERY_MS = 3000.0
TIMEOUT_S = 600.0
"""For one server: longer than a copy or a recovery takes."""

Say = Callable[[str], None]


class Server(NamedTuple):
    """A process that is to leave."""

    name: str
    shard: int = -1
    epoch: int = 0
    process: str = ""
    """Of one without a place."""
    off_host: bool = False


class Leaving:
    """Has servers leave. ``say`` is told how it goes, ``timeout_s`` is for each of them."""

    def __init__(self, endpoint: str, say: Say, timeout_s: float = TIMEOUT_S, curve_dir: str | None = None) -> None:
        self._endpoint = endpoint
        self._say = say
        self._timeout_s = timeout_s
        self._curve_dir = curve_dir

    # ------------------------------------------------------------------ commands
    def drain(self, names: Sequence[str]) -> None:
        """Have these servers leave, one after the other: ``ps:3``, or ``host:NAME`` for all of a host.

        Raises ConfigurationError for a name of nobody, ClusterError for one that has not left in time.
        """
        for server in self._named(names):
            self._leave(server)

    def withdraw(self, names: Sequence[str]) -> None:
        """Have servers stay that were to leave. Those that have left already are named."""
        for server in self._named(names):
            self._until(server, self._stays, f"{server.name} has not answered", stays=True)

    def restart(self) -> None:
        """Have all servers leave, spares first and then one place after the other, each replaced by what starts anew.

        What starts the new process is the service manager of each host: this waits for it.
        Raises ClusterError when one does not leave, or no new one comes, in time.
        """
        state = self._state()
        old = _spares(state)
        places = [_server(shard) for shard in state.shards if shard.state != DOWN]
        if not old:
            self._say("no spare waits: each server is missing until it is started again, and recovers")
        for number, process in enumerate(sorted(old), 1):
            self._leave(Server(f"spare {number} of {len(old)}", process=process))
            self._ready(len(old), "the spare")
        for number, server in enumerate(places, 1):
            self._ready(len(old), "a spare")
            if any(each.shard == server.shard and each.epoch == server.epoch for each in self._state().shards):
                self._leave(server)
            else:
                self._say(f"{server.name} is another process already")
            self._ready(len(old), "the new process")
            self._say(f"{number} of {len(places)} places are restarted")

    # ------------------------------------------------------------------ one server
    def _leave(self, server: Server) -> None:
        began = time.monotonic()
        state = self._until(server, self._has_left, f"{server.name} has not left")
        place = next((shard for shard in state.shards if shard.shard == server.shard), None)
        took = f"{server.name} has left after {time.monotonic() - began:.1f} s"
        if place is None:
            self._say(took)
        elif place.state == UP:
            self._say(f"{took}; {place.endpoint} has its place")
        elif place.state == DOWN:
            self._say(f"{took}; nobody has its place: start a server, workers that need its rows wait")
        else:
            self._say(f"{took}; {place.endpoint} has its place, and is {place.state}")

    def _has_left(self, server: Server, state: ClusterState) -> bool:
        if server.process:
            return all(each.process != server.process for each in state.waiting)
        return not any(s.shard == server.shard and s.epoch == server.epoch and s.state != DOWN for s in state.shards)

    def _stays(self, server: Server, state: ClusterState) -> bool:
        return self._has_left(server, state) or server.shard not in state.leaving

    def _until(
        self, server: Server, is_done: Callable[[Server, ClusterState], bool], failure: str, stays: bool = False
    ) -> ClusterState:
        """Tell a server again and again, until it is done."""
        end, told, said = time.monotonic() + self._timeout_s, 0.0, ""
        while True:
            if time.monotonic() - told >= ASK_S:
                told = time.monotonic()
                self._tell(server, stays)
            state = self._state()
            if is_done(server, state):
                return state
            why = state.leaving.get(server.shard, "")
            if why.partition(",")[0] != said.partition(",")[0]:
                self._say(f"{server.name}: {why}")
                said = why
            if time.monotonic() > end:
                advice = "" if stays else "; it leaves as soon as it can: --withdraw takes that back"
                raise ClusterError(f"{failure} within {self._timeout_s:.0f} s{': ' if why else ''}{why}{advice}")
            time.sleep(POLL_S)

    def _tell(self, server: Server, stays: bool) -> None:
        request = secrets.randbelow(1 << 31)
        drain = Drain(request, max(server.shard, 0), server.epoch, server.process, stays, server.off_host)
        with contextlib.suppress(RefusedError):  # it has left; the state says so
            query(self._endpoint, drain, QUERY_MS, curve_keys(self._curve_dir))

    # ------------------------------------------------------------------ the cluster
    def _state(self) -> ClusterState:
        state = cluster_state(self._endpoint, self._timeout_s, self._curve_dir)
        if state.lost:
            raise DataLostError(f"the cluster does not go on: {state.lost}")
        return state

    def _ready(self, spares: int, what: str) -> None:
        """Wait until all places are whole, and as many spares wait as before."""
        end, said = time.monotonic() + self._timeout_s, False
        while True:
            state = self._state()
            missing = [f"ps:{shard.shard} is {shard.state}" for shard in state.shards if shard.state != UP]
            if state.spares < spares:
                missing.append(f"{state.spares} of {spares} spares wait")
            if not missing:
                return
            if time.monotonic() > end:
                advice = "does the service manager start a server that has ended with exit code 0 (Restart=always)?"
                raise ClusterError(f"not whole within {self._timeout_s:.0f} s: {', '.join(missing)}; {advice}")
            if not said:
                said = True
                self._say(f"waits for {what}: {', '.join(missing)}")
            time.sleep(POLL_S)

    def _named(self, names: Sequence[str]) -> list[Server]:
        """The servers of these names. Raises ConfigurationError."""
        state, found = self._state(), []
        shards = {shard.shard: shard for shard in state.shards if shard.state != DOWN}
        for name in names:
            kind, _, value = name.partition(":")
            if kind == "ps" and value.isascii() and value.isdigit() and int(value) in shards:
                some = [_server(shards[int(value)])]
            elif kind == "host" and value:
                on = [shard for shard in shards.values() if host_of(shard.endpoint) == value]
                some = [_server(shard)._replace(off_host=True) for shard in on]
                waiting = [each for each in state.waiting if host_of(each.endpoint) == value]
                some += [Server(f"the spare at {each.endpoint}", process=each.process) for each in waiting]
            else:
                some = []
            if not some:
                hosts = sorted({host_of(shard.endpoint) for shard in shards.values()})
                raise ConfigurationError(
                    f"{name}: no such server; expected ps:SHARD, of {min(shards, default=0)} to "
                    f"{max(shards, default=0)}, or host:NAME, as `ecrec status` shows them: {', '.join(hosts[:8])}"
                )
            found += [server for server in some if server not in found]
        # Spares of a host first: they must not succeed its servers.
        return sorted(found, key=lambda server: not server.process)


def _server(shard: ShardFigures) -> Server:
    return Server(f"ps:{shard.shard}", shard.shard, shard.epoch)


def _spares(state: ClusterState) -> set[str]:
    return {each.process for each in state.waiting if each.is_spare and each.is_reached}
