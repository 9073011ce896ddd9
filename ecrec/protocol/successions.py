"""Members that leave, and are succeeded: by whom, when the group halts, and when the place changes hands.

A part of the `SchedulerMachine` (docs/protocol.md, "Succession"). The member's part is ``handover.py``, its successor's
``successor.py``. Who leaves without a successor is decided in ``deaths.py``.
"""

from collections.abc import Mapping

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission, host_of
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.context import Context
from ecrec.protocol.departures import Departures
from ecrec.protocol.events import Disconnect
from ecrec.protocol.members import Members
from ecrec.protocol.messages import UP, Address
from ecrec.protocol.settlement import Fenced, Settlements
from ecrec.protocol.state import Group, Succeeding
from ecrec.protocol.transitions import SUCCEEDED

REFUSED_MAX = 64
"""Processes that could not succeed somebody, and are not asked again."""


class Successions:
    """The part of a `SchedulerMachine` that has members succeeded."""

    def __init__(
        self, context: Context, members: Members, announcer: Announcer, admission: Admission, settlements: Settlements
    ) -> None:
        self.context = context
        self.members = members
        self.announcer = announcer
        self.admission = admission
        self.settlements = settlements
        self._seen_ms: dict[int, float] = {}
        """Group -> when its leaver and successor were last both there, as far as this scheduler knows."""
        self._halted_ms: dict[int, float] = {}
        """Group -> when it may have halted."""
        self._again_ms: dict[int, float] = {}
        """Group -> when the next succession may begin."""
        self._failed: dict[tuple[int, int], tuple[int, int]] = {}
        """Group, member -> its epoch, and how often it could not be handed over."""
        self._refused: list[str] = []
        self._left_bytes: dict[int, int] = {}

    # ------------------------------------------------------------------ who is succeeded
    def leads(self, number: int, group: Group, departures: Departures, doubted: Mapping[int, str]) -> bool:
        """Whether a member of a group that asks to leave is succeeded, or will be; then nobody else of it leaves now.

        At each tick. Not one for which that was tried too often. ``doubted``: members that may be dead -> why.
        """
        asking = departures.asking(number, group)
        if group.succeeding is not None:
            self._look_after(number, group, asking)
        if group.lost or not self.context.state.tables or not self.context.config.hand_over:
            return group.succeeding is not None
        if group.succeeding is None:
            most = self.context.config.succession_tries_max
            may = [shard for shard in asking if self.tried(number, shard) < most]
            leaver = next((shard for shard in may if self._successor(number, group, shard, departures)), None)
            if leaver is None:
                return False
            if not self._why_not(number, group, doubted):
                self._begin(number, group, leaver, departures)
        for shard in asking:
            departures.wait(number, shard, self._reason(number, group, shard, doubted))
        return True

    def tried(self, number: int, shard: int) -> int:
        """How often a member could not be handed over."""
        epoch, tries = self._failed.get((number, shard), (0, 0))
        return tries if epoch == self.context.state.groups[number].places[shard].epoch else 0

    def _fail(self, number: int, group: Group, reason: str) -> None:
        assert group.succeeding is not None
        shard = group.succeeding.shard
        self._failed[number, shard] = group.places[shard].epoch, self.tried(number, shard) + 1
        self.give_up(number, group, reason)

    def _successor(self, number: int, group: Group, shard: int, departures: Departures) -> str | None:
        """A process for the place of a member, if one is left when all that are down are replaced."""
        groups = self.context.state.groups
        spares = self.admission.spares - sum(len(each.settlements) for each in groups if not each.lost)
        spares -= sum(each.succeeding is not None for each in groups)
        taken = {each.succeeding.process for each in groups if each.succeeding is not None}
        host = host_of(group.places[shard].endpoint) if departures.is_off_host(number, shard) else ""
        name = number * self.context.state.n + shard
        return self.admission.choose(name, spares, host, taken.union(self._refused))

    def _why_not(self, number: int, group: Group, doubted: Mapping[int, str]) -> str:
        """Why no succession can begin now."""
        base = number * self.context.state.n
        for shard, place in enumerate(group.places):
            if place.state != UP or shard in doubted:
                return f"shard {base + shard} {doubted.get(shard) or f'is {place.state}'}"
        if self.context.now_ms < self._again_ms.get(number, 0.0):
            return "the last succession was given up"
        return ""

    def _reason(self, number: int, group: Group, shard: int, doubted: Mapping[int, str]) -> str:
        """Why one that asks to leave is still here, for people."""
        base, succeeding = number * self.context.state.n, group.succeeding
        if succeeding is None:
            return f"a spare will take its place; it waits: {self._why_not(number, group, doubted)}"
        if succeeding.shard != shard:
            return f"waits until shard {base + succeeding.shard} is handed over"
        left = self._left_bytes.get(number)
        size = "" if left is None else f", {left / 1e6:,.1f} MB are left"
        return f"is copied to a spare at {succeeding.endpoint}{size}"

    # ------------------------------------------------------------------ one goes on
    def _begin(self, number: int, group: Group, shard: int, departures: Departures) -> None:
        process = self._successor(number, group, shard, departures)
        assert process is not None
        tried, most = 1 + self.tried(number, shard), self.context.config.succession_tries_max
        again = f", try {tried} of {most}" if tried > 1 else ""
        place, endpoint = group.places[shard], self.admission.candidates[process].endpoint
        place.epochs = place.next_epoch
        view = self.announcer.next_view(group)
        group.succeeding = Succeeding(shard, place.epochs, process, endpoint, view)
        self._seen_ms[number] = self.context.now_ms
        self._left_bytes.pop(number, None)
        self._halted_ms.pop(number, None)  # trap: of one that a death has ended
        self.announcer.add(group, m.Succession(view, shard, place.epochs, endpoint))
        self.context.note("info", f"{self.context.address_of(number, shard)} is copied to a spare at {endpoint}{again}")

    def _look_after(self, number: int, group: Group, asking: list[int]) -> None:
        """Give it up when one of both is gone, or when it halts the group for too long."""
        succeeding, now_ms, config = group.succeeding, self.context.now_ms, self.context.config
        assert succeeding is not None
        leaves, there = succeeding.shard in asking, succeeding.process in self.admission.candidates
        seen_ms = self._seen_ms.setdefault(number, now_ms)
        if leaves and there:
            self._seen_ms[number] = now_ms
        elif now_ms - seen_ms > config.heartbeat_timeout_ms:
            self.give_up(number, group, "the spare is gone" if leaves else "the shard stays")
            return
        if now_ms - self._halted_ms.get(number, now_ms) > config.succession_halt_timeout_ms:
            self._fail(number, group, f"it was not over {config.succession_halt_timeout_ms} ms after it halted")

    def stayed(self, number: int, shard: int) -> None:
        """A member that was to leave need not after all."""
        self._failed.pop((number, shard), None)
        group = self.context.state.groups[number]
        if group.succeeding is not None and group.succeeding.shard == shard:
            self.give_up(number, group, "the shard stays")

    def give_up(self, number: int, group: Group, reason: str) -> None:
        """The member that leaves keeps its place."""
        succeeding, context = group.succeeding, self.context
        assert succeeding is not None
        name = context.address_of(number, succeeding.shard)
        context.note("warning", f"{name} is not succeeded by the spare at {succeeding.endpoint}: {reason}")
        view = self.announcer.next_view(group)
        self.announcer.add(group, m.SuccessionOver(view, succeeding.shard, succeeding.epoch))
        self._again_ms[number] = context.now_ms + context.config.succession_again_ms
        self._end(number, group)

    def _end(self, number: int, group: Group) -> None:
        group.succeeding = None
        self.context.changed()

    # ------------------------------------------------------------------ what is heard
    def on_register(self, source: Address, message: m.Register) -> None:
        """A process without a place: does it know whom it is to succeed?"""
        context, state = self.context, self.context.state
        for number, group in enumerate(state.groups):
            succeeding = group.succeeding
            if succeeding is None or succeeding.process != message.process:
                continue
            if message.since != succeeding.view:
                place = group.places[succeeding.shard]
                context.send(
                    source,
                    m.Succeed(
                        message.process, succeeding.view, number, len(state.groups), state.n, succeeding.shard,
                        succeeding.epoch, place.epoch, place.endpoint,
                    ),
                )  # fmt: skip
            return
        placed = any(place.process == message.process for group in state.groups for place in group.places)
        if message.since and not placed:
            context.send(source, m.Succeed(message.process, 0))

    def on_handover(self, source: Address, message: m.Handover, fenced: Fenced) -> bool:
        """How far a member is that is copied. True: its place has changed hands."""
        found = self.context.place_of(source)
        if found is None:
            return False
        number, shard, place = found
        group = self.context.state.groups[number]
        succeeding = group.succeeding
        # trap: what it said of a succession that is over is late
        if succeeding is None or (succeeding.view, succeeding.shard) != (message.since, shard):
            return False
        if (place.epoch, place.process) != (source.epoch, message.process):
            return False
        self._left_bytes[number] = message.left_bytes
        if message.halts:
            self._halted_ms.setdefault(number, self.context.now_ms)
        if message.failure:
            if message.is_refused:
                self._refused = [*self._refused, succeeding.process][-REFUSED_MAX:]
                self.give_up(number, group, message.failure)
            else:
                self._fail(number, group, message.failure)
        elif message.is_level:
            return self._hand_over(number, group, message, fenced)
        elif message.is_near:
            if not succeeding.halts:
                succeeding.halts = True
                self.context.changed()
            if not self.context.state.saving.is_active:
                self._halted_ms.setdefault(number, self.context.now_ms)
                self.context.send(source, m.HaltNow(succeeding.view))
        return False

    def _hand_over(self, number: int, group: Group, message: m.Handover, fenced: Fenced) -> bool:
        """The successor has everything, and nothing changes: it has the place from now on."""
        context, succeeding = self.context, group.succeeding
        assert succeeding is not None
        known = self.admission.candidates.get(succeeding.process)
        if known is None or not known.is_reached:
            return False  # it is gone, or this scheduler was just started
        shard, place = succeeding.shard, group.places[succeeding.shard]
        left, candidate = context.address_of(number, shard), self.admission.take(succeeding.process)
        place.step(SUCCEEDED)
        place.epoch, place.process, place.endpoint = succeeding.epoch, succeeding.process, candidate.endpoint
        place.weak_since = place.losses_counted = 0
        view = self.announcer.next_view(group)
        context.fence_off(left, f"{left} has handed its place over")
        context.effects.append(Disconnect(left))
        self._end(number, group)
        self.settlements.start(number, shard, view, fenced, False, message.window, message.watermarks, succeeds=True)
        succeeded = m.Succeeded(view, shard, place.epoch, place.endpoint, message.window, message.watermarks)
        self.announcer.add(group, succeeded)
        context.remember("handed over", number, shard, place.epoch)
        return True
