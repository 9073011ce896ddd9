"""More deaths than the code tolerates: what is lost, how it is said, and how training goes on (docs/protocol.md).

A part of the `SchedulerMachine`. ``loss.py`` has the arithmetic.
"""

from collections.abc import Iterable

from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.context import Context
from ecrec.protocol.loss import LOST_ROWS_MAX, describe_rows, has_data, lost_rows, undecodable
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, UP
from ecrec.protocol.placement import shards_of
from ecrec.protocol.state import Group, Place, Settlement, members_of
from ecrec.protocol.transitions import LOST_PARITY

LOSSES_MAX = 16
"""Losses that are kept with their rows; all are counted."""


class Losses:
    """The part of a `SchedulerMachine` that notices lost data."""

    def __init__(self, context: Context, members: Members, announcer: Announcer) -> None:
        self.context = context
        self.members = members
        self.announcer = announcer

    def check(self, number: int, group: Group, shard: int) -> None:
        """The death of this shard may be one too many for some stripes: stop, or remember to re-initialise them."""
        lost = {c for c in self.undecodable(group) if shard in shards_of(self.context.placement, c)}
        if not lost or group.lost:
            return
        group.to_reinitialise = sorted(lost.union(group.to_reinitialise))
        self.context.changed()
        if not self.context.config.reinitialise_lost:
            self.lose(number, group, "")
        elif not any(code.r for code in self.context.placement.codes):
            self.lose(number, group, "; it cannot go on, because without parity nobody knows what they had applied")
        elif all(place.state == DOWN for place in group.places):
            self.lose(number, group, "; it cannot go on, because nobody is left that knows what they had applied")

    def undecodable(self, group: Group) -> set[int]:
        return undecodable(self.context.placement, members_of(group))

    def lose(self, number: int, group: Group, why: str) -> None:
        """Say what is lost, and replace nobody."""
        lost, updates = self._lost(number, group, group.to_reinitialise)
        gone = [s for s, place in enumerate(group.places) if place.state != UP]
        names = ", ".join(f"{number * self.context.state.n + s} ({group.places[s].state})" for s in gone)
        weakest = min((self.context.placement.code_of(c) for c in group.to_reinitialise), key=lambda code: code.r)
        rows, tables = sum(some.rows for some in lost), len({some.table for some in lost})
        most = "up to " if any(group.places[s].state == RECOVERING for s in gone) else ""
        group.lost = (
            f"data lost: shards {names} are not whole, and code {weakest} tolerates {weakest.r} such shard(s) in a "
            f"stripe; {most}{rows:,} rows of {tables} table(s) are gone: "
            f"{describe_rows(lost, self.context.state.tables)}{why}"
        )
        view = self.announcer.next_view(group)
        self._add_loss(number, view, lost, updates)
        self.announcer.add(group, m.DataLost(view, group.lost))
        self.context.remember("lost", number, gone[-1], group.places[gone[-1]].epoch)

    def _lost(
        self, number: int, group: Group, classes: Iterable[int], known: bool = False
    ) -> tuple[list[m.LostRows], int]:
        """Rows of these classes that are not there, and how many updates may be lost with them.

        Of a shard that recovers, all count: it alone knows which of them it has. With ``known`` they are left out, and
        so are rows that were re-initialised since their shard died.
        """
        rows: list[m.LostRows] = []
        updates = 0
        for shard, member in enumerate(members_of(group)):
            if has_data(member) or (known and member.state != DOWN):
                continue
            settlement = group.settlements.get(shard)
            before = settlement.reinitialised if settlement and known else []
            some = lost_rows(
                self.context.placement, self.context.state.tables, set(classes).difference(before), shard, number,
                len(self.context.state.groups),
            )  # fmt: skip
            rows += some
            if some:
                updates += self._applied(number, shard, settlement)
        return rows, updates

    def _applied(self, number: int, shard: int, settlement: Settlement | None) -> int:
        """Pushes that a shard had applied, as far as is known here."""
        if settlement is not None and settlement.view >= 0:
            return m.pushes_of(settlement.watermarks)
        if settlement is not None:
            return max((m.pushes_of(report.watermarks) for report in settlement.reports.values()), default=0)
        status = self.members.status(number, shard)
        return m.pushes_of(status.watermarks) if status else 0

    def _add_loss(
        self, number: int, view: int, rows: list[m.LostRows], updates: int, reinitialised: bool = False
    ) -> None:
        updates = min(m.NUMBER_MAX, updates)
        loss = m.Loss(self.context.now_ms, number, view, rows[:LOST_ROWS_MAX], updates, reinitialised)
        self.context.state.losses.append(loss)
        del self.context.state.losses[:-LOSSES_MAX]
        if reinitialised:
            # What members count is bounded by the wire, and so must be its sum: the state could not be written.
            self.context.state.rows_reinitialised = min(
                m.NUMBER_MAX, self.context.state.rows_reinitialised + sum(some.rows for some in rows)
            )
            self.context.state.updates_damaged = min(m.NUMBER_MAX, self.context.state.updates_damaged + updates)
        self.context.changed()

    def try_reinitialise(self, number: int, group: Group) -> None:
        """All deaths are settled and all survivors know: what is still undecodable begins anew."""
        if group.lost or not all(self.members.confirm_settled(number, group, shard) for shard in group.settlements):
            return
        # Who was recovering may have become whole since.
        lost = sorted(self.undecodable(group).intersection(group.to_reinitialise))
        group.to_reinitialise = []
        self.context.changed()
        if not lost:
            return
        replicated = {table.name for table in self.context.state.tables if table.code.k == 1}
        damaged = sorted(replicated.intersection(some.table for some in self._lost(number, group, lost)[0]))
        group.damaged = sorted({*group.damaged, *damaged})
        rows, updates = self._lost(number, group, lost, known=True)
        view = self.announcer.next_view(group)
        for shard, place in enumerate(group.places):
            if place.state == DOWN:
                settlement = group.settlements[shard]
                data = set(self.context.placement.data_classes(shard)).intersection(lost)
                settlement.reinitialised = sorted(data.union(settlement.reinitialised))
                if any(some.shard == number * self.context.state.n + shard for some in rows):
                    self.context.remember("reinitialised", number, shard, place.epoch)
                continue
            place.weak_since = view
            parity = set(self.context.placement.parity_classes(shard)).intersection(lost)
            if parity and place.state in (UP, RESEEDING):
                place.step(LOST_PARITY)
                place.reseeding = sorted(parity.union(place.reseeding))
        if rows:
            self._add_loss(number, view, rows, updates, reinitialised=True)
        count = sum(some.rows for some in rows)
        reason = (
            f"more deaths than the code tolerates: {count:,} rows begin again at their initial records, and up to "
            f"{updates:,} updates are lost in part: {describe_rows(rows, self.context.state.tables)}"
        )
        self.context.note("warning", reason)
        self.announcer.add(group, m.Reinitialise(view, lost, reason, damaged))

    def rows_of(self, number: int, shard: int, tables: dict[int, int]) -> list[m.LostRows]:
        """Rows of a shard, as it counts them by table; counts that cannot be are left out."""
        known = self.context.state.tables
        return [
            m.LostRows(number * self.context.state.n + shard, known[table].name, count, [], 0)
            for table, count in tables.items()
            if table < len(known) and 0 < count <= known[table].rows
        ]

    def count(
        self, number: int, shard: int, place: Place, view: int, rows: list[m.LostRows], status: m.ShardStatus
    ) -> None:
        """A shard that recovered when rows were re-initialised says how many of its own are among them."""
        place.losses_counted = view
        self._add_loss(number, view, rows, m.pushes_of(status.watermarks), reinitialised=True)
        self.context.remember("reinitialised", number, shard, place.epoch)
        self.context.note("warning", f"re-initialised too: {describe_rows(rows, self.context.state.tables)}")
