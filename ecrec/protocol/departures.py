"""Members that were told to end, and wait until the others are whole (docs/protocol.md, "Who is told to end").

A part of the `SchedulerMachine`. It keeps the requests; ``deaths.py`` grants them. They are not persisted: a member
repeats its request until it is answered.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ecrec.protocol import messages as m
from ecrec.protocol.context import Context
from ecrec.protocol.loss import has_data
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN, UP, Address
from ecrec.protocol.state import Group, members_of

GRANTED = "it was told to end"


@dataclass(slots=True)
class Request:
    """A member that wants to leave."""

    epoch: int
    since_ms: float
    heard_ms: float
    """When it asked last."""
    clear_ms: float | None = None
    """Since when nothing speaks against it without a break."""
    reason: str = ""
    """What does; empty before that is known."""
    off_host: bool = False
    """Its successor is to be on another host."""


class Departures:
    """The part of a `SchedulerMachine` that knows who wants to leave."""

    def __init__(self, context: Context, members: Members) -> None:
        self.context = context
        self.members = members
        self._requests: dict[tuple[int, int], Request] = {}
        """(group, shard in the group) -> request."""

    def on_leave(self, source: Address, message: m.Leave) -> None:
        """A member asks to leave, maybe again."""
        context = self.context
        found = context.place_of(source)
        if found is None or source.epoch < 1:
            return
        number, shard, place = found
        if source.epoch < place.epoch or (source.epoch == place.epoch and place.state == DOWN):
            context.fence_off(source, f"{source} is down: nothing of it is needed any more")
            return
        # Only the member may say that it leaves; an answer to anybody else would reach it.
        if source.epoch != place.epoch or message.process != place.process:
            return
        if message.stays:
            if self._requests.pop((number, shard), None) is not None:
                context.note("info", f"{source} stays after all")
            return
        request = self._requests.get((number, shard))
        if request is None or request.epoch != source.epoch:
            request = self._requests[number, shard] = Request(source.epoch, context.now_ms, context.now_ms)
            context.note("info", f"{source} was told to end, and asks to leave")
        request.heard_ms, request.off_host = context.now_ms, message.off_host
        if request.reason:
            context.send(source, m.LeaveWaits(request.reason))

    def grant(
        self, number: int, group: Group, doubted: Mapping[int, str], tolerates: Callable[[Collection[int]], bool]
    ) -> int | None:
        """The member of a group that may leave now, if one may: all others live, and nothing is lost with it.

        ``doubted``: members that may be dead -> why. ``tolerates(shards)``: nothing of these is lost if all are down.
        """
        for shard in self.asking(number, group):
            key = number, shard
            request = self._requests[key]
            if group.lost:  # nothing that it holds can be gone on with
                del self._requests[key]
                return shard
            reason = "" if tolerates({shard, *doubted}) else self._missing(number, group, shard, doubted)
            if reason and not request.reason:
                name = self.context.address_of(number, shard)
                self.context.note("info", f"{name} was told to end, and waits: {reason}")
            request.reason = reason
            if reason:
                request.clear_ms = None
            elif request.clear_ms is None:
                request.clear_ms = self.context.now_ms
            # trap: one that died just now is missed by nobody yet; who is heard after the question lived then
            elif self._all_heard(number, group, {shard, *doubted}, request.clear_ms):
                del self._requests[key]
                return shard
        return None

    def asking(self, number: int, group: Group) -> list[int]:
        """Members of a group that ask to leave, the first one first; those that ask no more are forgotten."""
        mine = [(shard, request) for (of, shard), request in self._requests.items() if of == number]
        asking = []
        for shard, request in sorted(mine, key=lambda item: item[1].since_ms):
            place = group.places[shard]
            over = place.state == DOWN or place.epoch != request.epoch
            if over or self.context.now_ms - request.heard_ms > self.context.config.heartbeat_timeout_ms:
                del self._requests[number, shard]
            else:
                asking.append(shard)
        return asking

    def is_off_host(self, number: int, shard: int) -> bool:
        """Whether the successor of one that asks is to be on another host."""
        request = self._requests.get((number, shard))
        return request is not None and request.off_host

    def wait(self, number: int, shard: int, reason: str) -> None:
        """Tell one that asks why it waits, with its next word."""
        request = self._requests.get((number, shard))
        if request is not None:
            request.reason, request.clear_ms = reason, None

    def stood_still(self) -> None:
        """It was the scheduler that stood still: who was heard before says nothing of now."""
        for request in self._requests.values():
            request.clear_ms = None

    def _all_heard(self, number: int, group: Group, but: Collection[int], since_ms: float) -> bool:
        """Whether all members that have rows of their own, but for some, were heard since then."""
        asked = [member.shard for member in members_of(group) if has_data(member) and member.shard not in but]
        contacts = [self.members.get(number, shard) for shard in asked]
        return all(contact is not None and contact.heard_ms > since_ms for contact in contacts)

    def _missing(self, number: int, group: Group, leaver: int, doubted: Mapping[int, str]) -> str:
        """Why a member is not let go, for people."""
        base = number * self.context.state.n
        missing = []
        for shard, place in enumerate(group.places):
            if shard != leaver and (shard in doubted or place.state != UP):
                missing.append(f"shard {base + shard} {doubted.get(shard) or f'is {place.state}'}")
        if missing:
            return f"data would be lost with it: {', '.join(missing)}"
        return "data would be lost with it: a table has no parity (r = 0)"

    def waiting(self) -> dict[int, str]:
        """Shard, numbered over all groups, that waits to leave -> why; for people."""
        n = self.context.state.n
        return {
            number * n + shard: request.reason or "the others are asked whether they live"
            for (number, shard), request in sorted(self._requests.items())
        }
