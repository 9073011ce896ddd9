"""Tables as a worker or tool asks for them, and whether they have their first values.

A part of the `ClientMachine`.
"""

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Effect, Send
from ecrec.protocol.messages import (
    SCHEDULER_ADDRESS,
    WAIT,
    WRITTEN,
    CreateTable,
    InitialiseTable,
    TableInitial,
    TableReady,
)
from ecrec.protocol.placement import TABLES_MAX, TableSpec
from ecrec.protocol.requests import Requests


class ClientTables:
    """The part of a `ClientMachine` that knows the tables."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, TableSpec]] = {}
        """Name -> (index, spec); a table may be used when it is `ready`."""
        self.refusals: dict[str, str] = {}
        """Name -> why the scheduler refused the table that was last asked for under it."""
        self.initial_refusals: dict[int, str] = {}
        """Table -> why it would not say whether the table has its first values."""
        self.damaged: set[str] = set()
        """Replicated tables of which rows were lost in all copies, and begin anew."""
        self._seen: list[int] = [0]
        """Tables that the views of each group have announced."""
        self._creating: dict[str, tuple[int, TableSpec]] = {}
        self._created: set[str] = set()
        self.quiet_ms = 0.0
        """Time since tables were last asked for, while somebody pumped."""
        self._initial: dict[int, str] = {}
        """Table -> what the scheduler last said of its first values."""
        self._initialising: dict[int, InitialiseTable] = {}
        """Table -> the question that is repeated."""
        self._initialising_ms = 0.0
        self._checks: Requests | None = None
        """Made anew when a table or a limit changes."""

    def ready(self, name: str) -> bool:
        """Every running shard has the table."""
        return name in self._created

    def creating(self, name: str) -> bool:
        """A table is asked for under this name, and the scheduler has neither made nor refused it."""
        return name in self._creating

    def initial(self, table: int) -> str:
        """What the scheduler last said of a table's first values: `WRITTEN`, `WRITE` or `WAIT`."""
        return self._initial.get(table, WAIT)

    @property
    def initial_asked(self) -> bool:
        """Whether first values of a table are asked for, or a failure to make some was not heard yet."""
        return bool(self._initialising)

    def checks(self, n: int, groups: int, config: ProtocolConfig) -> Requests:
        """What checks pushes and pulls, for these tables."""
        if self._checks is None:
            ready = {index: spec for name, (index, spec) in self.known.items() if name in self._created}
            pending = {index: name for name, (index, _) in self.known.items() if name not in self._created}
            self._checks = Requests(n, groups, config, ready, pending)
        return self._checks

    def changed(self) -> None:
        """A limit, or who the shards are."""
        self._checks = None

    # ------------------------------------------------------------------ asked for
    def create(self, asked: CreateTable) -> list[Effect]:
        """Ask for a table, unless it is asked for or there already."""
        spec = asked.table
        known = self._creating.get(spec.name)
        if known is not None and known[1] == spec:
            return []
        self._creating.pop(spec.name, None)
        self.refusals.pop(spec.name, None)
        if spec.name in self._created and self.known[spec.name][1] == spec:
            return []
        self._creating[spec.name] = (asked.request, spec)
        return [Send(SCHEDULER_ADDRESS, asked)]

    def ask_initial(self, asked: InitialiseTable) -> list[Effect]:
        self.initial_refusals.pop(asked.table, None)
        self._initialising[asked.table] = asked
        return [Send(SCHEDULER_ADDRESS, asked)]

    def on_tick(self, now_ms: float, config: ProtocolConfig) -> list[Effect]:
        """Ask again what was not answered."""
        effects: list[Effect] = []
        if self._creating and self.quiet_ms >= config.resend_ms:
            self.quiet_ms = 0.0
            effects += [Send(SCHEDULER_ADDRESS, CreateTable(*asked)) for asked in self._creating.values()]
        if self._initialising and now_ms - self._initialising_ms >= config.heartbeat_ms:
            self._initialising_ms = now_ms
            effects += [Send(SCHEDULER_ADDRESS, asked) for asked in self._initialising.values()]
        return effects

    # ------------------------------------------------------------------ answers
    def check_ready(self, message: TableReady) -> None:
        """Raise ValueError for a number that no table has."""
        names = [name for name, (request, _) in self._creating.items() if request == message.request]
        if names and message.index >= TABLES_MAX:
            raise ValueError(f"table {names[0]!r} has number {message.index}, at most {TABLES_MAX - 1} is possible")

    def on_ready(self, message: TableReady) -> None:
        for name, (request, spec) in list(self._creating.items()):
            if request == message.request:
                del self._creating[name]
                self.known[name] = (message.index, spec)
                self._created.add(name)
                self._checks = None

    def on_initial(self, message: TableInitial) -> None:
        asked = self._initialising.get(message.table)
        if asked is not None and asked.request == message.request:
            self._initial[message.table] = message.state
            if message.state == WRITTEN or asked.failure:
                del self._initialising[message.table]

    def on_refused(self, request: int, reason: str) -> None:
        for table in [table for table, asked in self._initialising.items() if asked.request == request]:
            del self._initialising[table]
            self.initial_refusals[table] = reason
        for name in [name for name, asked in self._creating.items() if asked[0] == request]:
            del self._creating[name]
            self.refusals[name] = reason

    # ------------------------------------------------------------------ views
    def begin(self, groups: int) -> None:
        """So many groups will announce their tables."""
        self._seen = [0] * groups

    def start(self, group: int, tables: list[TableSpec], damaged: list[str]) -> None:
        """A group's tables at its first view."""
        self._checks = None
        self.damaged.update(damaged)
        self._seen[group] = len(tables)
        for index, table in enumerate(tables):
            self.known[table.name] = (index, table)

    def added(self, group: int, table: TableSpec) -> None:
        """A view of a group announces a table."""
        self.known[table.name] = (self._seen[group], table)
        self._seen[group] += 1
        self._checks = None
