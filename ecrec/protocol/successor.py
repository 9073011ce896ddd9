"""A process without a place that copies a shard which is to leave (docs/protocol.md, "Succession").

A part of the `ShardMachine`, until the scheduler gives it the place. The other end is ``handover.py``.
"""

from ecrec._native import Store
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.events import BAD_CONTENT, Connect, Disconnect, Received
from ecrec.protocol.messages import SHARD, Address
from ecrec.protocol.placement import Placement, TableSpec
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.table_memory import add_table


class Successor:
    """The part of a `ShardMachine` that has no place yet, and copies another one."""

    def __init__(self, context: ShardContext) -> None:
        self.context = context
        self.told: m.Succeed | None = None
        """What it follows."""
        self.store: Store | None = None
        self.placement: Placement | None = None
        self.tables: list[TableSpec] = []
        self.end: m.CopyEnd | None = None
        """It has everything."""
        self._taken = 0
        self._refusal = ""
        self._given_up: list[Store] = []
        """What was copied in vain, until its memory has gone back."""

    @property
    def since(self) -> int:
        """View of the succession that it follows; 0 without one."""
        return self.told.since if self.told is not None else 0

    @property
    def address(self) -> Address | None:
        """The incarnation that it would be."""
        told = self.told
        return Address(SHARD, told.group * told.n + told.shard, told.epoch) if told is not None else None

    @property
    def leaver(self) -> Address | None:
        """Whom it copies."""
        told = self.told
        return Address(SHARD, told.group * told.n + told.shard, told.leaver) if told is not None else None

    def on_succeed(self, message: m.Succeed) -> None:
        """The scheduler says whom to copy; or nobody, any more."""
        context = self.context
        if message.process != context.process or message.since == self.since:
            return
        context.checked()
        self.drop()
        if not message.since:
            return
        self.told, self.placement = message, Placement(message.n)
        try:
            self.store = Store(message.shard, message.n, message.group, message.groups)
            self.store.on_pause(context.pause_of_store())
        except BAD_CONTENT as error:
            self._refusal = str(error)
        leaver = self.leaver
        assert leaver is not None
        context.effects.append(Connect(leaver, message.endpoint))
        context.story.tell(context.now_ms, f"copies {leaver}")

    def drop(self, succeeds: bool = False) -> None:
        """Follow nobody any more; what was copied is forgotten, or somebody else's now."""
        if self.leaver is not None:
            self.context.effects.append(Disconnect(self.leaver, for_good=succeeds))
        if self.store is not None and not succeeds:
            self.store.on_pause(None)
            self._given_up.append(self.store)
        self.told = self.store = self.placement = self.end = None
        self.tables, self._taken, self._refusal = [], 0, ""

    def on_tick(self) -> None:
        """Give back some memory of what was copied in vain: all at once it could take seconds."""
        if self._given_up and not self._given_up[-1].give_up():
            self._given_up.pop()

    def takes(self, event: Received) -> bool:
        """Whether it comes from the shard that is copied; then it is taken."""
        message = event.message
        if event.source != self.leaver or not isinstance(message, m.Copy | m.CopyEnd):
            return False
        if message.since != self.since or message.number != self._taken + 1 or self._refusal:
            return True
        try:
            if isinstance(message, m.Copy):
                self._copy(message, event.frames)
        except (*BAD_CONTENT, RuntimeError, MemoryError) as error:
            self._refusal = str(error) or "out of memory"
        self.context.checked()
        self._taken = message.number
        if isinstance(message, m.CopyEnd) and not self._refusal:
            self.end = message
        self.context.reply(event.source, m.Copied(message.since, message.number, self._refusal[:1000]))
        return True

    def _copy(self, message: m.Copy, frames: m.Frames) -> None:
        store, placement = self.store, self.placement
        assert store is not None and placement is not None
        for table in message.tables:
            placement.add(table.code)
            add_table(store, table, recovered=True)
            self.tables.append(table)
        keys, records = arrays.keys(frames[0]), arrays.records(frames[1])
        if keys.size:
            store.put(keys, records)

    def is_for(self, start: m.FullView) -> bool:
        """Whether this is the place that it was to get, and it has everything."""
        told = self.told
        return (
            start.succeeds
            and told is not None
            and self.end is not None
            and (told.group, told.shard, told.epoch) == (start.group, start.shard, start.epoch)
            and list(start.tables[: len(self.tables)]) == self.tables
        )
