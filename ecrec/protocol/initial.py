"""First values: of each table that workers may give them, one life of one worker writes them, once (docs/protocol.md).

A part of the `SchedulerMachine`. That a table was ever written is a property of the table: it stands in the state,
where neither a worker that is started again nor a second script can mistake it. Tables that are not listed count as
written, so that a state that was rebuilt from less than everything never has trained weights overwritten.
"""

from typing import NamedTuple

from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.context import Context
from ecrec.protocol.leases import Leases
from ecrec.protocol.members import Members
from ecrec.protocol.messages import Address
from ecrec.protocol.state import Claim, InitialState


class Failure(NamedTuple):
    """A worker could not make the first values of a table. Those that wait for them are told for
    ``lease_timeout_ms``, or until it has been started again or another one writes them."""

    worker: int
    reason: str
    at_ms: float


FAILURE_MAX = 1000
"""Characters of a worker's reason that are remembered and handed on."""


class InitialValues:
    """The part of a `SchedulerMachine` that knows which tables have their first values."""

    def __init__(self, context: Context, announcer: Announcer, leases: Leases) -> None:
        self.context = context
        self.announcer = announcer
        self.leases = leases
        self._heard_ms: dict[int, float] = {}
        """When a worker that writes was last heard of."""
        self._failures: dict[int, Failure] = {}
        """Table -> why nobody writes it. Not in the state: after a restart of the scheduler those that wait wait on."""

    @property
    def state(self) -> InitialState:
        return self.context.state.initial

    def on_initialise(self, source: Address, message: m.InitialiseTable) -> None:
        context, state, table = self.context, self.state, message.table
        if not context.is_of_worker(source, "initialise tables"):
            return
        if table >= len(context.state.tables):
            reason = f"there is no table {table}: they are 0 to {len(context.state.tables) - 1}"
            self.context.send(source, m.Refused(message.request, reason))
            return
        if table in state.unsure:
            # trap: to write them could undo training, not to could train from zeros
            name = context.state.tables[table].name
            self.context.send(source, m.Refused(message.request, (
                f"table {name!r} was to get its first values when the scheduler's state was lost, and nobody knows "
                "whether it has them: make it under another name"
            )))  # fmt: skip
            return
        claim = state.claims.get(table)
        if message.failure and table in state.fresh:
            self._failures[table] = Failure(source.id, message.failure[:FAILURE_MAX], context.now_ms)
        elif message.claim:
            self._failures.pop(table, None)
        elif claim is None and (failure := self._failures.get(table)) is not None:
            # trap: a worker that cannot make them never asks to write them, and the others would wait for ever
            self.context.send(source, m.Refused(message.request, (
                f"worker {failure.worker} could not make them: {failure.reason}"
            )))  # fmt: skip
            return
        if claim is not None and (claim.worker, claim.epoch) == (source.id, source.epoch):
            self._heard_ms[source.id] = context.now_ms
            if message.done and not claim.views:
                state.fresh.remove(table)
                del state.claims[table]
                context.changed()
        elif claim is not None and claim.worker == source.id:
            self._end(claim, "has been started again")
        elif claim is None and table in state.fresh and message.claim:
            state.claims[table] = Claim(source.id, source.epoch)
            self._heard_ms[source.id] = context.now_ms
            context.changed()
        self.context.send(source, m.TableInitial(message.request, table, self._answer(table, source)))

    def _answer(self, table: int, source: Address) -> str:
        if table not in self.state.fresh:
            return m.WRITTEN
        claim = self.state.claims.get(table)
        mine = claim is not None and (claim.worker, claim.epoch, claim.views) == (source.id, source.epoch, [])
        return m.WRITE if mine else m.WAIT

    def heard(self, source: Address) -> None:
        """A heartbeat of a worker's present life."""
        if source.id in self._heard_ms:
            self._heard_ms[source.id] = self.context.now_ms

    def ended(self, worker: int, epoch: int) -> None:
        """A life of a worker is over."""
        for table in [table for table, failure in self._failures.items() if failure.worker == worker]:
            del self._failures[table]
        for claim in self.state.claims.values():
            if claim.worker == worker and claim.epoch <= epoch:
                self._end(claim, "has been started again")

    def on_tick(self, pause_ms: float) -> None:
        """Give up those that are silent; ``pause_ms``: in which the scheduler itself stood still."""
        context, claims = self.context, self.state.claims
        timeout_ms = context.config.lease_timeout_ms
        for claim in claims.values():
            heard_ms = self._heard_ms.setdefault(claim.worker, context.now_ms) + pause_ms
            self._heard_ms[claim.worker] = heard_ms
            if context.now_ms - heard_ms > timeout_ms:
                self._end(claim, f"was silent for {context.now_ms - heard_ms:.0f} ms, {timeout_ms} are allowed")
        for table, failure in list(self._failures.items()):
            if context.now_ms - failure.at_ms > timeout_ms:
                del self._failures[table]
        for worker in self._heard_ms.keys() - {claim.worker for claim in claims.values()}:
            del self._heard_ms[worker]

    def advance(self, members: Members) -> None:
        """Free the tables of those whose end all shards have confirmed.

        A replacement of a shard that is down starts with the list of who is fenced.
        """
        for table, claim in list(self.state.claims.items()):
            if claim.views and all(members.confirm(number, view) for number, view in enumerate(claim.views)):
                del self.state.claims[table]
                self.context.changed()

    def _end(self, claim: Claim, reason: str) -> None:
        if claim.views:
            return
        self.leases.fence(claim.worker, claim.epoch, reason)
        self.leases.over(claim.worker, claim.epoch)
        claim.views = self.announcer.fence_worker(claim.worker, claim.epoch)
        text = f"worker {claim.worker} (epoch {claim.epoch}), which wrote first values of a table, {reason}"
        self.context.note("warning", text)
        self.context.changed()
