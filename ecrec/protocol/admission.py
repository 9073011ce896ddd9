"""Processes that want a place: who of them may have one.

A part of the `SchedulerMachine`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ecrec.protocol import messages as m
from ecrec.protocol.context import Context
from ecrec.protocol.events import Connect, Disconnect
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN, SHARD, Address
from ecrec.protocol.suspicion import Suspicions

REACH_ADVICE = "give --advertise HOST, a name or address of its host, and open its port to the others"

CANDIDATES_MAX = 4096
"""Processes that wait for a place; bounds what invented ones can cost until they are forgotten."""


def host_of(endpoint: str) -> str:
    """The host in an endpoint, as it is written there."""
    return endpoint.rpartition("://")[2].rpartition(":")[0]


@dataclass(slots=True)
class Candidate:
    """A shard's process without a place."""

    endpoint: str
    wanted: int
    heard_ms: float
    since_ms: float
    knock: int
    """Number of the `Knock` at its endpoint."""
    is_reached: bool = False

    @property
    def address(self) -> Address:
        """Of the connection that is made to find out whether it is reached; no member has such a number."""
        return Address(SHARD, -1 - self.knock, 0)


class Admission:
    """The part of a `SchedulerMachine` that keeps the processes without a place."""

    def __init__(self, context: Context, members: Members) -> None:
        self.context = context
        self.members = members
        self.candidates: dict[str, Candidate] = {}
        self._knocks = 0

    def on_register(self, source: Address, message: m.Register, suspicions: Sequence[Suspicions]) -> None:
        shards = self.context.state.n * len(self.context.state.groups)
        if not -1 <= message.shard < shards:
            reason = f"there is no shard {message.shard}: the cluster has 0 to {shards - 1}"
            self.context.fence_off(source, reason)
            return
        self.context.checked()
        for number, group in enumerate(self.context.state.groups):
            for shard, place in enumerate(group.places):
                if place.process == message.process and place.state != DOWN:
                    self.members.seen(number, shard)
                    return  # placed, and its full view is sent again
        if self._is_taken(source, message, suspicions):
            self._drop(message.process)
            return
        known = self.candidates.get(message.process)
        if known is not None and known.endpoint != message.endpoint:
            self._drop(message.process)
            known = None
        if known is None and len(self.candidates) >= CANDIDATES_MAX:
            self.context.note("warning", f"{CANDIDATES_MAX} processes wait for a place: ignored one more")
            return
        now_ms = self.context.now_ms
        if known is None:
            self._knocks += 1
            known = Candidate(message.endpoint, message.shard, now_ms, now_ms, self._knocks)
            self.candidates[message.process] = known
            self.context.effects.append(Connect(known.address, known.endpoint))
        known.heard_ms, known.wanted = now_ms, message.shard
        self._reach(source, message, known)

    def _reach(self, source: Address, message: m.Register, candidate: Candidate) -> None:
        """Find out whether others find the process at its endpoint: it says the number that it was told there."""
        if candidate.is_reached:
            return
        if message.reached == candidate.knock:
            candidate.is_reached = True
            self.context.effects.append(Disconnect(candidate.address))
        elif self.context.now_ms - candidate.since_ms > self.context.config.reach_timeout_ms:
            self._drop(message.process)
            self.context.fence_off(source, f"the scheduler cannot reach it at {candidate.endpoint}; {REACH_ADVICE}")
            self.context.note(
                "warning", f"process {message.process} gets no place: it is not reached at {candidate.endpoint}"
            )
        else:
            self.context.send(candidate.address, m.Knock(message.process, candidate.knock))

    def _drop(self, process: str) -> None:
        candidate = self.candidates.pop(process, None)
        if candidate is not None and not candidate.is_reached:
            self.context.effects.append(Disconnect(candidate.address))

    def _is_spare(self, candidate: Candidate) -> bool:
        """Whether it takes any place: the one that it was started for is another's."""
        if candidate.wanted == -1:
            return True
        group, shard = divmod(candidate.wanted, self.context.state.n)
        return self.context.state.groups[group].places[shard].state != DOWN

    def _is_taken(self, source: Address, message: m.Register, suspicions: Sequence[Suspicions]) -> bool:
        """Whether a member runs at the endpoint of a process that wants a place: it waits until that one is down.

        Either it took the place of one that is dead, or two processes say that they are reached there: the one that
        is heard stays.
        """
        for number, group in enumerate(self.context.state.groups):
            for shard, place in enumerate(group.places):
                if place.endpoint != message.endpoint or place.state == DOWN:
                    continue
                known, address = suspicions[number], self.context.address_of(number, shard)
                if known.claimed(shard, message.process, self.context.now_ms):
                    text = f"process {message.process} registers at {message.endpoint}, where {address} is"
                    self.context.note("warning", f"{text} (process {place.process}): it waits until that one is down")
                contact = self.members.get(number, shard)
                if contact is not None and known.both_live(shard, message.process, contact.heard_ms):
                    reason = (
                        f"{address} (process {place.process}) lives, and is reached at {message.endpoint} too: give "
                        "each process an address of its own (--advertise)"
                    )
                    self.context.fence_off(source, reason)
                return True
        return False

    def _is_free(self, process: str, chosen: Collection[str] = ()) -> bool:
        """It is reached at its endpoint, and no member and none of those chosen is."""
        if not self.candidates[process].is_reached:
            return False
        endpoint = self.candidates[process].endpoint
        running = any(
            place.endpoint == endpoint and place.state != DOWN
            for group in self.context.state.groups
            for place in group.places
        )
        return not running and all(self.candidates[other].endpoint != endpoint for other in chosen)

    def choose(self, shard: int, spares: int, not_on: str = "", but: Collection[str] = ()) -> str | None:
        """A process for this shard (over all groups): one that wants just it, else a spare, if any is left for it.

        Of spares, rather one that was started as such than one whose place is another's. None ``not_on`` a host, and
        none of those of ``but``.
        """
        free = [process for process in self.candidates if process not in but and self._is_free(process)]
        if not_on:
            free = [process for process in free if host_of(self.candidates[process].endpoint) != not_on]
        for process in free:
            if self.candidates[process].wanted == shard:
                return process
        if spares <= 0:
            return None
        others = [process for process in free if self._is_spare(self.candidates[process])]
        return min(others, key=lambda process: self.candidates[process].wanted != -1, default=None)

    def choose_all(self, number: int) -> list[str] | None:
        """A process for every place of a new group; None while there are too few.

        Of two that want the same place the first one gets it, and the other is a spare.
        """
        n = self.context.state.n
        chosen = [""] * n
        for process, candidate in self.candidates.items():
            group, shard = divmod(candidate.wanted, n)
            if group == number and not chosen[shard] and self._is_free(process, list(filter(None, chosen))):
                chosen[shard] = process
        wishes = {self.candidates[process].wanted for process in chosen if process}
        spares = [
            p for p, c in self.candidates.items() if p not in chosen and (self._is_spare(c) or c.wanted in wishes)
        ]
        spares.sort(key=lambda process: self.candidates[process].wanted != -1)
        for shard, process in enumerate(chosen):
            if not process:
                taken = list(filter(None, chosen))
                spare = next((p for p in spares if self._is_free(p, taken)), "")
                if not spare:
                    return None
                spares.remove(spare)
                chosen[shard] = spare
        return chosen

    def take(self, process: str) -> Candidate:
        """It gets a place."""
        return self.candidates.pop(process)

    @property
    def spares(self) -> int:
        """Processes that take any place."""
        return sum(each.is_reached and self._is_spare(each) for each in self.candidates.values())

    def can_replace(self, number: int, shards: Collection[int]) -> bool:
        """For the place of each of these members of a group there is a process that waits."""
        base, reached = number * self.context.state.n, [e for e in self.candidates.values() if e.is_reached]
        left = set(shards).difference(each.wanted - base for each in reached)
        # One that waits for its own place is nobody else's spare.
        others = [each for each in reached if each.wanted - base not in shards and self._is_spare(each)]
        return len(left) <= len(others)

    def waiting(self) -> list[m.Waiting]:
        """For people."""
        return [
            m.Waiting(each.endpoint, each.wanted, self._is_spare(each), each.is_reached, process)
            for process, each in self.candidates.items()
        ]

    def on_tick(self) -> None:
        """Forget those that are silent."""
        for process, candidate in list(self.candidates.items()):
            if self.context.now_ms - candidate.heard_ms > self.context.config.heartbeat_timeout_ms:
                self._drop(process)
