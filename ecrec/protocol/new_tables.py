"""Tables that are asked for: every running shard reserves what one needs before any has it (docs/protocol.md).

A part of the `SchedulerMachine`. A table is announced by a view, and a shard that cannot follow a view must end. So it
is asked beforehand: all shards of all groups prepare, and only when all have is the table announced; when one refuses,
those who asked for it are refused. It waits, too, while so many are not whole that its code would count its rows as
lost. One table is prepared at a time, the others wait in the order in which they came, which is thus the order of their
numbers on all shards. What shards are told is repeated until their heartbeats show it.
"""

from collections import OrderedDict
from typing import NamedTuple

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.context import Context
from ecrec.protocol.loss import undecodable
from ecrec.protocol.members import Members
from ecrec.protocol.messages import Address
from ecrec.protocol.placement import CodeSpec, Placement, TableSpec
from ecrec.protocol.state import NewTablesState, Preparing, members_of

REFUSALS_MAX = 4096
"""Refused requests that are remembered; copies of one come within milliseconds."""


class Decision(NamedTuple):
    """What has become of a table: it can be announced, or why not."""

    table: TableSpec
    refusal: str


class NewTables:
    """The part of a `SchedulerMachine` that has tables prepared."""

    def __init__(self, context: Context, members: Members) -> None:
        self.context = context
        self.members = members
        self._sent: dict[Address, tuple[int, float]] = {}
        """Shard -> number of the step that it was last told, and when."""
        self._refusals: OrderedDict[tuple[Address, int], str] = OrderedDict()
        """Requests that were refused, and why."""

    @property
    def state(self) -> NewTablesState:
        return self.context.state.new_tables

    def find(self, name: str) -> TableSpec | None:
        """A table of this name that is being prepared."""
        return next((waiting.table for waiting in self.state.queue if waiting.table.name == name), None)

    def tables(self) -> list[TableSpec]:
        """All that wait, in order."""
        return [waiting.table for waiting in self.state.queue]

    def refuse(self, source: Address, request: int, reason: str) -> None:
        """Refuse a request for a table, and every copy of it.

        trap: a copy that comes late, or because the answer was lost, would else have the table made after all, which
        then stands in the way of another one of its name.
        """
        self._refusals[source, request] = reason
        if len(self._refusals) > REFUSALS_MAX:
            self._refusals.popitem(last=False)
        self.context.send(source, m.Refused(request, reason))

    def refused(self, source: Address, request: int) -> str:
        """Why a request was refused; empty if it was not."""
        return self._refusals.get((source, request), "")

    def waits_for(self, prepared: int) -> bool:
        """Whether a shard that has come so far has yet to prepare a table."""
        queue = self.state.queue
        return bool(queue) and all(group.view for group in self.context.state.groups) and prepared < queue[0].number

    def add(self, table: TableSpec) -> None:
        self.state.queue.append(Preparing(self._next(), table))
        self.context.changed()

    def _next(self) -> int:
        self.state.number += 1
        return self.state.number

    def heard(self, prepared: int) -> None:
        """A shard says up to which step it has come. One ahead of this state is of a state that was lost: count on."""
        state = self.state
        if prepared > state.number:
            state.number = prepared
            for waiting in state.queue:
                waiting.number = self._next()
            state.release = 0 if state.queue else self._next()
            self.context.changed()

    def advance(self) -> Decision | None:
        """Tell the shards; what is decided about the first table of the queue, which is then out of it."""
        state = self.state
        if not state.queue:
            if state.release:
                self._tell(state.release, None)
            return None
        if not all(group.view for group in self.context.state.groups):
            return None  # nobody to ask yet
        first = state.queue[0]
        refusal = self._refusal(first)
        if refusal is None:
            self._tell(first.number, first.table)
            return None
        del state.queue[0]
        if refusal:
            self.context.note("warning", refusal)
        if refusal and not state.queue:
            state.release = self._next()
            self._tell(state.release, None)
        self.context.changed()
        return Decision(first.table, refusal)

    def give_up(self) -> None:
        """No table is prepared any more; what was prepared is given back."""
        if self.state.queue:
            self.state.queue.clear()
            self.state.release = self._next()
            self.context.changed()

    def _refusal(self, first: Preparing) -> str | None:
        """Empty: every running shard has prepared the table. None: some have yet to say."""
        try:
            self.context.placement.check(first.table.code)  # those before it may have brought other codes
        except ConfigurationError as error:
            return f"table {first.table.name!r}: {error}"
        done = True
        for shard, status in self.members.running():
            if status is None or status.prepared != first.number:
                done = False
            elif status.refusal:
                name = first.table.name
                return f"table {name!r} does not fit, nothing of it was made: shard {shard.id} {status.refusal}"
        return "" if done and not self._is_lost_already(first.table.code) else None

    def _is_lost_already(self, code: CodeSpec) -> bool:
        """With those that are not whole just now a stripe of the code counts as lost: the table waits for them.

        trap: so many deaths were tolerated, because there was no table of this code; the next one would be said to
        lose rows of a table that nobody has pushed to.
        """
        if code in self.context.placement.codes:
            return False
        placement = Placement(self.context.state.n)
        placement.add(code)
        return any(not group.lost and undecodable(placement, members_of(group)) for group in self.context.state.groups)

    def _tell(self, number: int, table: TableSpec | None) -> None:
        context = self.context
        running = list(self.members.running())
        for shard, status in running:
            # One that has prepared nothing has nothing to give back.
            if status is None or status.prepared >= number or (table is None and not status.prepared):
                continue
            sent, sent_ms = self._sent.get(shard, (0, 0.0))
            if sent != number or context.now_ms - sent_ms >= context.config.view_resend_ms:
                self._sent[shard] = number, context.now_ms
                context.send(shard, m.PrepareTable(number, table))
        if len(self._sent) > len(running):
            self._sent = {shard: self._sent[shard] for shard, _ in running if shard in self._sent}
