"""The machine of a scrub: it asks the shards for every class, chunk by chunk (docs/protocol.md, "Scrub")."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ecrec.protocol.events import Connect, Disconnect, Effect, Event, Received, Send, Tick
from ecrec.protocol.messages import (
    DOWN,
    LOCATED,
    SHARD,
    Address,
    ClusterState,
    Frames,
    Scrub,
    ScrubBusy,
    ScrubResult,
)
from ecrec.protocol.placement import Placement
from ecrec.protocol.tables import spec_bytes

ROWS_MAX = 16_384
"""Stripes in one question: about 4 MB from each member at 64 floats a row."""

QUESTION_S = 0.25
"""With a rate, a question asks for what may be read in this time, so that the load is even."""

AGAIN_MS = 50.0
"""A shard that is busy (the membership changed, a member is not whole) is asked again after this time."""

SILENCE_MS = 3000.0
"""A question that was not answered for this long is asked again."""

_KEY_BITS = 48


class BadStripe(NamedTuple):
    """A stripe whose parity rows do not fit its data rows."""

    table: str
    stripe: int
    shard: int
    """Of the row that is wrong."""
    slot: int
    """In the stripe, data rows first."""
    row: int | None
    """The data row that is wrong; None if it is a parity row."""
    parity: int | None
    """Which parity row of the stripe is wrong; None if it is a data row."""
    located: bool
    """The other members agree on it. Else nobody can tell which is wrong, and the data rows count as right."""
    repaired: bool


class ScrubOutcome(NamedTuple):
    """What a scrub found."""

    stripes: int
    """Stripes that training touched, each counted once."""
    parity_rows: int
    """Parity rows compared: r of them for each such stripe."""
    bad: list[BadStripe]
    bytes_read: int = 0
    restarts: int = 0
    """Classes that were begun again, because a parity holder of theirs was replaced."""

    @property
    def ok(self) -> bool | None:
        """Nothing was wrong; None where there was nothing to compare with: no stripe has parity."""
        if self.bad:
            return False
        return True if self.parity_rows else None

    @property
    def unrepaired(self) -> list[BadStripe]:
        return [stripe for stripe in self.bad if not stripe.repaired]


class _Job:
    """One class of a group, asked for chunk by chunk of the shard that leads its scrub."""

    def __init__(self, shard: int, class_id: int, parity: Sequence[int], stripe_bytes: float) -> None:
        self.shard = shard
        self.class_id = class_id
        self.parity = parity
        """Shards that hold it, over all groups."""
        self.stripe_bytes = stripe_bytes
        """At most, of all its members."""
        self.bad: list[BadStripe] = []
        self.restarts = 0
        self._begin()

    def _begin(self) -> None:
        self.first = 0
        self.stripes = 0
        self.parity_rows = 0
        self.bytes_read = 0
        self.request = 0
        self.asked_ms = 0.0
        self.done = False

    def restart(self) -> None:
        """A parity holder is another one, with parity of its own."""
        self.restarts += bool(self.first)
        self.bad = [stripe for stripe in self.bad if stripe.repaired]
        self._begin()


class ScrubMachine:
    """Asks for all classes, one question at a time of each shard; sans-I/O like its peers.

    A class of which a parity holder is replaced meanwhile is begun again: its parity rows are other ones. With
    ``rate_mb_s`` there is one question at a time, and a pause after it that keeps to the rate.
    """

    def __init__(
        self, address: Address, state: ClusterState, repair: bool = False, rate_mb_s: float | None = None
    ) -> None:
        self.address = address
        self.refusal = ""
        """The last reason why a shard was busy."""
        self._repair = repair
        self._bytes_per_ms = None if rate_mb_s is None else rate_mb_s * 1e3
        self._free_at_ms = 0.0
        self._asked_ms = 0.0
        self._tables = list(state.tables)
        self._n, self._groups = state.n, state.groups
        self._members: dict[int, Address] = {}
        self._requests = 0
        placement = Placement(state.n)
        for table in state.tables:
            placement.add(table.code)
        widest = {
            code: max(spec_bytes(table) / table.rows for table in state.tables if table.code == code)
            for code in placement.codes
        }
        self._jobs = []
        for group in range(state.groups):
            for stripe in placement.classes:
                code = placement.code_of(stripe.class_id)
                parity = [group * state.n + shard for shard in stripe.parity]
                if parity:
                    self._jobs.append(_Job(parity[0], stripe.class_id, parity, widest[code] * (code.k + code.r)))

    @property
    def done(self) -> bool:
        return all(job.done for job in self._jobs)

    @property
    def is_empty(self) -> bool:
        """No table has parity."""
        return not self._jobs

    @property
    def waits_for(self) -> str:
        """Why nothing more can be asked at the moment, or what was refused last; empty if neither."""
        leaders = sorted({job.shard for job in self._jobs if not job.done})
        if missing := [str(shard) for shard in leaders if shard not in self._members]:
            return f"shard{'s' * (len(missing) > 1)} {', '.join(missing)} down"
        return self.refusal

    @property
    def outcome(self) -> ScrubOutcome:
        """What was found so far."""
        jobs = self._jobs
        return ScrubOutcome(
            sum(job.stripes for job in jobs), sum(job.parity_rows for job in jobs),
            [stripe for job in jobs for stripe in job.bad], sum(job.bytes_read for job in jobs),
            sum(job.restarts for job in jobs),
        )  # fmt: skip

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
                if shard.shard in job.parity:
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
            self._pay_for(message.bytes_read)
            return []
        job.request = 0
        job.asked_ms = 0.0
        job.first = message.last
        job.stripes += message.stripes
        job.parity_rows += message.parity_rows
        job.bytes_read += message.bytes_read
        job.bad += self._bad(job, message, event.frames)
        job.done = message.last >= message.size
        self._pay_for(message.bytes_read)
        return self._ask(now_ms)

    def _pay_for(self, bytes_read: int) -> None:
        """Ask nothing before the rate allows for so many bytes."""
        if self._bytes_per_ms is not None:
            self._free_at_ms = max(self._free_at_ms, self._asked_ms) + bytes_read / self._bytes_per_ms

    def _bad(self, job: _Job, message: ScrubResult, frames: Frames) -> list[BadStripe]:
        found = []
        types = (np.uint64, np.uint8, np.uint8)
        columns = [np.frombuffer(frame, dtype) for frame, dtype in zip(frames, types, strict=True)]
        for key, slot, verdict in zip(*(column.tolist() for column in columns), strict=True):
            table = self._tables[key >> _KEY_BITS]
            within = key & ((1 << _KEY_BITS) - 1)
            group = job.shard // self._n
            stripe = within * self._groups + group
            parity = slot - table.code.k if slot >= table.code.k else None
            found.append(
                BadStripe(
                    table.name, stripe, group * self._n + (within + slot) % self._n, slot,
                    stripe * table.code.k + slot if parity is None else None, parity, verdict == LOCATED,
                    message.repaired and parity is not None,
                )
            )  # fmt: skip
        return found

    def _ask(self, now_ms: float) -> list[Effect]:
        effects: list[Effect] = []
        busy = {job.shard for job in self._jobs if job.request and now_ms - job.asked_ms < SILENCE_MS}
        for job in self._jobs:
            if job.done or job.shard in busy or job.shard not in self._members:
                continue
            if not job.request and now_ms - job.asked_ms < AGAIN_MS:
                continue
            if self._bytes_per_ms is not None and (busy or now_ms < self._free_at_ms):
                break
            busy.add(job.shard)
            self._requests += 1
            job.request = self._requests
            job.asked_ms = self._asked_ms = now_ms
            scrub = Scrub(job.request, job.class_id, job.first, self._rows(job), self._repair)
            effects.append(Send(self._members[job.shard], scrub))
        return effects

    def _rows(self, job: _Job) -> int:
        if self._bytes_per_ms is None:
            return ROWS_MAX
        return int(min(ROWS_MAX, max(1.0, self._bytes_per_ms * QUESTION_S * 1e3 / job.stripe_bytes)))
