"""Requests for tables: what a table must be, and who waits for which (docs/protocol.md).

A part of the `SchedulerMachine`.
"""

from collections.abc import Sequence

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.context import Context, differences
from ecrec.protocol.members import Members
from ecrec.protocol.messages import Address
from ecrec.protocol.new_tables import NewTables
from ecrec.protocol.placement import TABLES_MAX, Placement, TableSpec
from ecrec.protocol.state import leave_initial

TABLE_BYTES_MAX = 1 << 46
"""Of one table, and of all on a shard: half of a process's address space. The native store has the same limit."""
FLOAT32_MAX = 3.4028234663852886e38
TEXT_MAX = 4096
"""Characters of what workers say of a table."""
CREATING_MAX = 1 << 16
"""Requests for tables that are not everywhere yet; clients that wait repeat them."""


class Tables:
    """The part of a `SchedulerMachine` that makes tables."""

    def __init__(self, context: Context, members: Members, announcer: Announcer) -> None:
        self.context = context
        self.members = members
        self.announcer = announcer
        self.preparing = NewTables(context, members)
        self.creating: dict[tuple[Address, int], int | str] = {}
        """Requests for tables: the index, or, where it is still being prepared, the name."""

    def on_create(self, source: Address, message: m.CreateTable) -> None:
        if refusal := self.preparing.refused(source, message.request):
            self.context.checked()
            self.preparing.refuse(source, message.request, refusal)
            return
        spec = message.table
        tables = self.context.state.tables
        known = next((i for i, table in enumerate(tables) if table.name == spec.name), None)
        there = tables[known] if known is not None else self.preparing.find(spec.name)
        if there is not None and there != spec:
            reason = f"table {spec.name!r} exists with other properties: {differences(there, spec)}"
            self.context.checked()
            self.preparing.refuse(source, message.request, reason)
            return
        if there is None:
            try:
                others = [*self.context.state.tables, *self.preparing.tables()]
                check_table(spec, others, len(self.context.state.groups), self.context.placement)
            except ConfigurationError as error:
                self.context.checked()
                self.preparing.refuse(source, message.request, str(error))
                return
        self.context.checked()
        if there is None:
            self.preparing.add(spec)
        if known is not None and self._is_ready(known):
            self.context.send(source, m.TableReady(message.request, known))
        elif len(self.creating) < CREATING_MAX:
            self.creating[source, message.request] = spec.name if known is None else known

    def refuse_all(self, reason: str) -> None:
        """Somebody who cannot be replaced keeps all tables from being made: tell those who wait for them."""
        for (client, request), table in self.creating.items():
            made = ", which is there but not yet on all shards" if isinstance(table, int) else ""
            name = table if isinstance(table, str) else self.context.state.tables[table].name
            self.preparing.refuse(client, request, f"table {name!r}{made}: {reason}")
        self.creating.clear()
        self.preparing.give_up()

    def announce(self, spec: TableSpec, refusal: str) -> None:
        """Every running shard can hold the table: now all get it. Or one cannot: nobody does."""
        asked = [key for key, name in self.creating.items() if name == spec.name]
        if refusal:
            for client, request in asked:
                del self.creating[client, request]
                self.preparing.refuse(client, request, refusal)
            return
        index = len(self.context.state.tables)
        self.context.state.tables.append(spec)
        self.creating.update(dict.fromkeys(asked, index))
        self.context.state.initial.fresh.append(index)
        new_code = spec.code not in self.context.placement.codes
        self.context.placement.add(spec.code)
        for group in self.context.state.groups:
            if new_code:
                leave_initial(group, self.context.placement, spec.code)
            number = self.announcer.next_view(group)
            self.announcer.add(group, m.TableAdded(number, spec))
            group.table_views.append(number)

    def _is_ready(self, index: int) -> bool:
        """Every running shard has confirmed the view that added the table."""
        return all(
            group.view and self.members.confirm(number, max(1, group.table_views[index]))
            for number, group in enumerate(self.context.state.groups)
        )

    def advance(self) -> None:
        """Have tables prepared, and announce those that all shards can hold."""
        while (decision := self.preparing.advance()) is not None:
            self.announce(decision.table, decision.refusal)

    def answer(self) -> None:
        """Tell those who asked for tables that are everywhere now."""
        for (client, request), index in list(self.creating.items()):
            if isinstance(index, int) and self._is_ready(index):
                del self.creating[client, request]
                self.context.send(client, m.TableReady(request, index))


def spec_bytes(spec: TableSpec) -> float:
    """Most bytes that all rows of a table can have, optimizer state and padding included."""
    return spec.rows * (4.0 * (spec.dim + spec.optimizer.state_floats(spec.dim)) + 16)


def check_table(spec: TableSpec, others: Sequence[TableSpec], groups: int, placement: Placement) -> None:
    """Raise ConfigurationError for a table that no shard could hold next to these others."""
    if len(others) >= TABLES_MAX:
        raise ConfigurationError(f"table {spec.name!r}: there are {TABLES_MAX} tables already")
    if not spec.name or len(spec.name) > 256:
        raise ConfigurationError(f"table name {spec.name[:300]!r}: expected 1 to 256 characters")
    if (longest := max(map(len, (spec.pooling, spec.features, spec.first_values)))) > TEXT_MAX:
        raise ConfigurationError(
            f"table {spec.name!r}: a description of {longest} characters (pooling, features, first_values), at most "
            f"{TEXT_MAX} are possible"
        )
    if not 1 <= spec.rows < 2**47:
        raise ConfigurationError(f"table {spec.name!r}: {spec.rows} rows; expected 1 to 2**47")
    if not 1 <= spec.dim <= 65_536:
        raise ConfigurationError(f"table {spec.name!r}: dimension {spec.dim}; expected 1 to 65536")
    try:
        spec.optimizer.check()
    except ConfigurationError as error:
        raise ConfigurationError(f"table {spec.name!r}: {error}") from error
    # A shard reserves address space for at most all rows of its group, state and parity included.
    largest = max(spec_bytes(spec), sum(map(spec_bytes, [*others, spec])) / groups)
    if largest > TABLE_BYTES_MAX:
        raise ConfigurationError(
            f"table {spec.name!r}: with it a shard could need {largest:.3g} bytes of address space, "
            f"{TABLE_BYTES_MAX} are possible"
        )
    optimizer = spec.optimizer
    numbers = [*optimizer.hyper, optimizer.weight_decay, optimizer.max_gradient, spec.init_scale, spec.init_state]
    if any(not abs(number) <= FLOAT32_MAX for number in numbers) or not 0 <= spec.init_seed < 2**64:
        raise ConfigurationError(
            f"table {spec.name!r}: hyper-parameters, scale and state {numbers}, seed {spec.init_seed}; expected "
            "finite float32 numbers and a seed from 0 to 2**64 - 1"
        )
    if spec.code.generator not in ("cauchy", "isal-cauchy"):
        raise ConfigurationError(f"table {spec.name!r}: generator {spec.code.generator!r} is unknown")
    if spec.init not in ("zeros", "uniform"):
        raise ConfigurationError(f"table {spec.name!r}: init {spec.init!r}; expected zeros or uniform")
    try:
        placement.check(spec.code)
    except ConfigurationError as error:
        raise ConfigurationError(f"table {spec.name!r}: {error}") from error
