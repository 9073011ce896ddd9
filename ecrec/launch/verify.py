"""Scrub a running cluster: every parity row against the data rows of its stripe, at consistent cuts."""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import numpy as np

from ecrec.errors import ClusterError, DataLostError
from ecrec.launch.environment import curve_keys
from ecrec.protocol.events import Connect, Disconnect, Effect, Event, Received, Send, Tick
from ecrec.protocol.messages import (
    DOWN,
    SHARD,
    TOOL,
    Address,
    ClusterQuery,
    ClusterState,
    Scrub,
    ScrubBusy,
    ScrubResult,
)
from ecrec.protocol.placement import Placement
from ecrec.transport.client_node import ClientNode, query

ROWS_MAX = 16_384
"""Stripes in one question: about 4 MB from each member at 64 floats a row."""

AGAIN_MS = 50.0
"""A shard that is busy (the membership changed, a member is not whole) is asked again after so long."""

SILENCE_MS = 3000.0
"""A question that was not answered for so long is asked again."""

STATE_MS = 500.0
"""How often the scheduler is asked who the shards are."""

NEWS_S = 0.5
"""It gets so long to answer, while the shards' answers wait."""

_PUMP_MS = 20.0
_KEY_BITS = 48


class BadStripe(NamedTuple):
    """A parity row that does not fit its data rows."""

    table: str
    stripe: int
    shard: int


class ScrubOutcome(NamedTuple):
    """What a scrub found."""

    stripes: int
    """Stripes that training touched, each counted once."""
    parity_rows: int
    """Parity rows compared: r of them for each such stripe."""
    bad: list[BadStripe]

    @property
    def ok(self) -> bool | None:
        """None where there was nothing to compare with: no stripe has parity."""
        if self.parity_rows == 0:
            return None
        return not self.bad


class _Job:
    """One parity holder's rows of one class, asked for chunk by chunk."""

    def __init__(self, shard: int, class_id: int, leads: bool) -> None:
        self.shard = shard
        self.class_id = class_id
        self.leads = leads
        """First holder of the class: it counts the stripes."""
        self.restart()

    def restart(self) -> None:
        self.first = 0
        self.rows = 0
        self.bad: list[int] = []
        self.request = 0
        self.asked_ms = 0.0
        self.done = False


class ScrubMachine:
    """Asks every parity holder for all its classes, one question at a time each; sans-I/O like its peers.

    A holder that is replaced meanwhile starts again from the beginning: its parity rows are other ones.
    """

    def __init__(self, state: ClusterState) -> None:
        self.address = Address(TOOL, secrets.randbelow(1 << 31), 0)
        self.refusal = ""
        """The last reason why a shard was busy."""
        self._tables = [table.name for table in state.tables]
        self._members: dict[int, Address] = {}
        self._requests = 0
        placement = Placement(state.n)
        for table in state.tables:
            placement.add(table.code)
        self._jobs = [
            _Job(group * state.n + shard, stripe.class_id, shard == stripe.parity[0])
            for group in range(state.groups)
            for stripe in placement.classes
            for shard in stripe.parity
        ]

    @property
    def done(self) -> bool:
        return all(job.done for job in self._jobs)

    @property
    def outcome(self) -> ScrubOutcome:
        """What was found so far."""
        bad = [
            BadStripe(self._tables[key >> _KEY_BITS], key & ((1 << _KEY_BITS) - 1), job.shard)
            for job in self._jobs
            for key in job.bad
        ]
        stripes = sum(job.rows for job in self._jobs if job.leads)
        return ScrubOutcome(stripes, sum(job.rows for job in self._jobs), bad)

    def update(self, state: ClusterState) -> list[Effect]:
        """Take news of the shards."""
        effects: list[Effect] = []
        for shard in state.shards:
            address = Address(SHARD, shard.shard, shard.epoch)
            known = self._members.get(shard.shard)
            if known == address and shard.state != DOWN:
                continue
            if known is not None:
                effects.append(Disconnect(known))
                del self._members[shard.shard]
            if shard.state != DOWN:
                effects.append(Connect(address, shard.endpoint))
                self._members[shard.shard] = address
            for job in self._jobs:
                if job.shard == shard.shard:
                    job.restart()
        return effects

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        if isinstance(event, Received):
            return self._on_received(event, now_ms)
        if isinstance(event, Tick):
            return self._ask(now_ms)
        return []

    def _on_received(self, event: Received, now_ms: float) -> list[Effect]:
        message = event.message
        if not isinstance(message, ScrubResult | ScrubBusy):
            return []
        job = next((job for job in self._jobs if job.request == message.request), None)
        if job is None or job.done:
            return []
        if isinstance(message, ScrubBusy):
            self.refusal = message.reason
            job.request = 0
            job.asked_ms = now_ms
            return []
        job.request = 0
        job.asked_ms = 0.0
        job.first = message.last
        job.rows += message.stripes
        job.bad += np.frombuffer(event.frames[0], np.uint64).tolist()
        job.done = message.last >= message.size
        return self._ask(now_ms)

    def _ask(self, now_ms: float) -> list[Effect]:
        effects: list[Effect] = []
        busy = {job.shard for job in self._jobs if job.request and now_ms - job.asked_ms < SILENCE_MS}
        for job in self._jobs:
            if job.done or job.shard in busy or job.shard not in self._members:
                continue
            if not job.request and now_ms - job.asked_ms < AGAIN_MS:
                continue
            busy.add(job.shard)
            self._requests += 1
            job.request = self._requests
            job.asked_ms = now_ms
            scrub = Scrub(job.request, job.class_id, job.first, ROWS_MAX)
            effects.append(Send(self._members[job.shard], scrub))
        return effects


def cluster_state(endpoint: str, timeout_s: float = 3.0, curve_dir: str | None = None) -> ClusterState:
    """What the scheduler knows. ``curve_dir``: of keys, else as `curve_keys` finds it.

    Raises ClusterError when it does not answer in time, ConfigurationError for keys that cannot be used.
    """
    question = ClusterQuery(secrets.randbelow(1 << 31))
    return cast(ClusterState, query(endpoint, question, timeout_s * 1e3, curve_keys(curve_dir)))


def scrub(
    endpoint: str,
    timeout_s: float,
    meanwhile: Callable[[], None] = lambda: None,
    curve_dir: str | None = None,
) -> ScrubOutcome:
    """Compare all parity with all data of the running cluster. ``curve_dir``: as of `cluster_state`.

    ``meanwhile`` is called every few tens of milliseconds. Raises ClusterError when no chunk is finished for
    ``timeout_s`` seconds, DataLostError when data was lost.
    """
    state = _intact(cluster_state(endpoint, curve_dir=curve_dir))
    machine = ScrubMachine(state)
    with ClientNode(endpoint, machine, curve_keys(curve_dir)) as node:
        node.perform(machine.update(state))
        asked = moved = time.monotonic()
        seen = machine.outcome
        while not machine.done:
            node.pump(_PUMP_MS)
            now = time.monotonic()
            meanwhile()
            outcome = machine.outcome
            if outcome != seen:
                seen, moved = outcome, now
            if now - moved > timeout_s:
                reason = f": {machine.refusal}" if machine.refusal else ""
                raise ClusterError(f"the scrub did not go on for {timeout_s:.0f} s{reason}")
            if now - asked > STATE_MS / 1e3:
                asked = now
                try:
                    state = cluster_state(endpoint, NEWS_S, curve_dir)
                except ClusterError:
                    continue  # a scheduler that restarts is no reason to give up: the shards answer without it
                node.perform(machine.update(_intact(state)))
    return machine.outcome


def _intact(state: ClusterState) -> ClusterState:
    if state.lost:
        raise DataLostError(f"there is nothing to compare: {state.lost}")
    return state


def describe_bad(bad: Sequence[BadStripe], most: int = 10) -> Iterable[str]:
    """One line for each bad stripe, up to a number of them."""
    for stripe in bad[:most]:
        yield f"table {stripe.table}, stripe {stripe.stripe}: the parity on shard {stripe.shard} does not fit"
    if len(bad) > most:
        yield f"and {len(bad) - most} more"
