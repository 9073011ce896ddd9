"""From a death to its replacement: reports, the cut, its confirmation, a process for the place (docs/protocol.md).

A part of the `SchedulerMachine`. A new group starts here too.
"""

from collections.abc import Callable, Iterable

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.context import Context
from ecrec.protocol.loss import margin
from ecrec.protocol.losses import Losses
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN
from ecrec.protocol.state import Group, members_of
from ecrec.protocol.transitions import FORMED, REPLACED

Fenced = Callable[[], dict[int, int]]
"""Worker -> newest epoch of it that is over."""


class Settlements:
    """The part of a `SchedulerMachine` that settles deaths and replaces the dead."""

    def __init__(
        self, context: Context, members: Members, announcer: Announcer, admission: Admission, losses: Losses
    ) -> None:
        self.context = context
        self.members = members
        self.announcer = announcer
        self.admission = admission
        self.losses = losses

    # ------------------------------------------------------------------ reports
    @staticmethod
    def awaited(group: Group, reporter: str, reports: Iterable[m.Report]) -> list[m.Report]:
        """Those of a survivor's reports for which the cut of a dead shard waits. ``reporter``: ``"shard:epoch"``."""
        return [report for report in reports if _is_awaited(group, reporter, report)]

    def take(self, group: Group, reporter: str, reports: Iterable[m.Report]) -> None:
        """Keep reports that are `awaited`."""
        for report in reports:
            group.settlements[report.shard].reports[reporter] = report
            self.context.changed()

    # ------------------------------------------------------------------ what has become possible
    def by_risk(self) -> list[int]:
        """Groups, first the one that the fewest further deaths can harm: spares are its before they are others'."""
        groups = self.context.state.groups
        waiting = [number for number, group in enumerate(groups) if group.settlements]
        if len(waiting) > 1:
            waiting.sort(key=lambda number: self._margin(groups[number]))
        return waiting + [number for number, group in enumerate(groups) if not group.settlements]

    def _margin(self, group: Group) -> int:
        """How many more members some stripe with parity of the group can lose."""
        return margin(self.context.placement, members_of(group))

    def _spares_for(self, number: int) -> int:
        """Spares that are left for a group, after those that groups at more risk wait for."""
        spares = self.admission.spares
        groups = self.context.state.groups
        for other, group in enumerate(groups):
            if other == number or not group.settlements or group.lost:
                continue
            if self._margin(group) < self._margin(groups[number]):
                spares -= len(group.settlements)
        return spares

    def advance(self, number: int, fenced: Fenced) -> None:
        """Do what has become possible in a group: start, settle, re-initialise, replace."""
        group = self.context.state.groups[number]
        if not group.view:
            self._try_start(number, group, fenced)
            return
        for shard in list(group.settlements):
            self._try_settle(number, group, shard)
        if group.to_reinitialise:
            self.losses.try_reinitialise(number, group)
        for shard in list(group.settlements):
            self._try_replace(number, group, shard, fenced)

    def _try_start(self, number: int, group: Group, fenced: Fenced) -> None:
        """A new group starts when it has a process for every place."""
        chosen = self.admission.choose_all(number)
        if chosen is None:
            return
        context = self.context
        context.state.config = context.config
        view = self.announcer.next_view(group)
        group.table_views = [0] * len(context.state.tables)
        for place, process in zip(group.places, chosen, strict=True):
            candidate = self.admission.take(process)
            place.step(FORMED)
            place.epoch, place.process, place.endpoint = 1, process, candidate.endpoint
        for shard in range(context.state.n):
            self.start(number, shard, view, fenced, recovering=False, window=0, watermarks={})
            context.remember("up", number, shard, 1)

    def start(
        self, number: int, shard: int, view: int, fenced: Fenced, recovering: bool, window: int,
        watermarks: dict[int, int], reinitialised: Iterable[int] = (), succeeds: bool = False,
    ) -> None:  # fmt: skip
        """Write the FullView of a place and begin to talk to its process."""
        state = self.context.state
        group = state.groups[number]
        place = group.places[shard]
        members = members_of(group)
        unsettled = [members[s] for s, settlement in group.settlements.items() if settlement.view < 0]
        place.start = m.FullView(
            view, number, len(state.groups), state.n, shard, place.epoch, recovering, window, watermarks, members,
            list(state.tables), unsettled, "", self.context.config, list(reinitialised), list(group.damaged),
            fenced(), _cuts(group), self.context.state.saving.number, succeeds,
        )  # fmt: skip
        self.members.meet(number, shard)

    def _try_settle(self, number: int, group: Group, shard: int) -> None:
        """Every running shard has reported: the shortest report is the cut, and brings its watermarks."""
        settlement = group.settlements[shard]
        if settlement.view >= 0 or group.lost:
            return
        reports = []
        for survivor, place in enumerate(group.places):
            if place.state == DOWN:
                continue
            report = settlement.reports.get(f"{survivor}:{place.epoch}")
            if report is None:
                return
            if report.window >= 0:
                reports.append(report)
        if reports:
            cut = min(reports, key=lambda report: report.window)
            settlement.window, settlement.watermarks = cut.window, cut.watermarks
        elif group.to_reinitialise or self.context.state.losses:
            # Those who knew it are dead themselves: what it acknowledged cannot be told any more.
            group.to_reinitialise = group.to_reinitialise or self.context.placement.data_classes(shard)
            name = number * self.context.state.n + shard
            self.losses.lose(number, group, f"; nobody is left that knows what shard {name} applied")
            return
        else:  # nobody had heard of it: it goes on from where it started
            start = group.places[shard].start
            settlement.window, settlement.watermarks = (start.window, start.watermarks) if start else (0, {})
        view = settlement.view = self.announcer.next_view(group)
        self.announcer.add(group, m.Settle(view, shard, settlement.epoch, settlement.window, settlement.watermarks))
        self.context.remember("settled", number, shard, settlement.epoch)

    def _try_replace(self, number: int, group: Group, shard: int, fenced: Fenced) -> None:
        """All have confirmed the settlement: start a process that waits for a place, if there is one."""
        settlement = group.settlements[shard]
        if group.lost or group.to_reinitialise or not self.members.confirm_settled(number, group, shard):
            return
        process = self.admission.choose(number * self.context.state.n + shard, self._spares_for(number))
        if process is None:
            return
        candidate = self.admission.take(process)
        del group.settlements[shard]
        place = group.places[shard]
        place.step(REPLACED)
        place.epoch, place.process, place.endpoint = place.next_epoch, process, candidate.endpoint
        place.weak_since = place.losses_counted = 0
        view = self.announcer.next_view(group)
        window, watermarks = settlement.window, settlement.watermarks
        self.start(number, shard, view, fenced, True, window, watermarks, settlement.reinitialised)
        up = m.ShardUp(view, shard, place.epoch, place.endpoint, window, watermarks)
        self.announcer.add(group, up)
        self.context.remember("up", number, shard, place.epoch)


def _is_awaited(group: Group, reporter: str, report: m.Report) -> bool:
    """Whether the cut of a dead shard waits for what this survivor says of it."""
    settlement = group.settlements.get(report.shard)
    return (
        settlement is not None
        and settlement.epoch == report.epoch
        and settlement.view < 0
        and reporter not in settlement.reports
    )


def _cuts(group: Group) -> list[m.Cut]:
    return [
        m.Cut(shard, some.window, some.watermarks, some.view, some.reinitialised)
        for shard, some in group.settlements.items()
        if some.view >= 0
    ]
