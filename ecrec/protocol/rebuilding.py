"""Is this the newest state of the cluster that is heard? If not, this scheduler ends, or makes it again (`--adopt`).

A part of the `SchedulerMachine`: the conversation with the members. What their answers make is ``adoption.py``'s.
"""

from typing import NamedTuple

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.adoption import Adoption, Told
from ecrec.protocol.context import Context
from ecrec.protocol.events import OUTDATED, Event, Link, Received, Stop
from ecrec.protocol.messages import WORKER, Address
from ecrec.protocol.state import State

HEARD_IN_ADOPTION = (m.ShardStatus, m.ShardCensus, m.Register, m.StoryQuery)
"""All that a scheduler takes while it makes its state again; everything else is said again."""
HEARD_UNVERIFIED = (m.ShardStatus, m.Register, m.ClusterQuery, m.StoryQuery)
"""All that it takes while its state may turn out to be an older one."""


AHEAD_MAX = 1 << 12
"""Workers and tools of which is kept that they know a newer state."""
MET_MAX = 1 << 17
"""Workers and tools that are told from those that may know an older process of this scheduler."""
SAID_EVERY_MS = 10_000.0


class Rebuilt(NamedTuple):
    """A state that was made again, and what each shard told for it."""

    state: State
    told: dict[int, Told]


class Rebuilding:
    """The part of a `SchedulerMachine` that doubts its state. While it does, nothing is decided.

    ``is_new``: nobody was told anything of the state. ``may_adopt``: it may be made again.
    """

    def __init__(self, context: Context, is_new: bool, may_adopt: bool) -> None:
        self.context = context
        self.adoption: Adoption | None = None
        """While the state is made again."""
        self.unverified: set[tuple[int, int]] = set()
        """After a restart, members that may know that this state is an older one: until they were heard, or have had
        the time of a heartbeat, nobody is answered."""
        self._verify_until_ms = 0.0
        self._began = context.origin
        """The state with which this process began, or that it made,"""
        self._met: set[tuple[int, int]] = set()
        """and the workers and tools, by role and number, that were heard since: they may know what was persisted
        since."""
        self._is_outdated = False
        """Some worker knows of splits that this state does not."""
        self._said_ms = -1e18
        """When people were last told that for this no split is granted."""
        self._is_new = is_new
        self._has_adopted = False
        """Members of this state have told what it was made of."""
        self._heard_own = False
        self._stranger: tuple[Address, str, str] | None = None
        """The last member of another cluster that was heard, its cluster, and what it shows."""
        self._links: dict[int, Link] = {}
        self._ahead_of_it: set[Address] = set()
        self._may_adopt = may_adopt

    @property
    def is_over(self) -> bool:
        """The state is the newest one, as far as can be known."""
        return self.adoption is None and not self.unverified

    def hears(self, event: Event) -> bool:
        """Whether an event is to be taken before that is known."""
        if self.is_over:
            return True
        heard = HEARD_IN_ADOPTION if self.adoption is not None else HEARD_UNVERIFIED
        return isinstance(event, Received) and isinstance(event.message, heard)

    # ------------------------------------------------------------------ after a restart
    def verify(self, members: set[tuple[int, int]]) -> None:
        """These members have the time of a heartbeat to be heard of again, and so have workers."""
        self.unverified = members
        self._begin(self.context.origin)

    def _begin(self, origin: m.Origin) -> None:
        self._began = origin
        self._met.clear()
        self._verify_until_ms = self.context.now_ms + self.context.config.heartbeat_timeout_ms

    @property
    def may_grant(self) -> bool:
        """Whether splits may be granted: no worker knows more than the state, as far as can be known. Nobody else may
        have heard of the newest ones that were granted."""
        return self.context.now_ms >= self._verify_until_ms and not self._is_outdated

    @property
    def is_outdated(self) -> bool:
        """A worker knows of splits that the state does not: none is granted any more."""
        return self._is_outdated

    def has_met(self, worker: Address) -> bool:
        """Whether it was heard of since this process began, and knew no more than that."""
        return (worker.role, worker.id) in self._met

    def meet(self, source: Address) -> None:
        """A heartbeat of it was taken."""
        if len(self._met) < MET_MAX:
            self._met.add((source.role, source.id))

    def stood_still(self, ms: float) -> None:
        """This scheduler stood still for this many milliseconds: that time does not count as waiting."""
        self._verify_until_ms += ms

    def verified(self, member: tuple[int, int]) -> bool:
        """This member knows nothing that the state does not. True if it was the last one that was waited for."""
        waited = bool(self.unverified)
        self.unverified.discard(member)
        self._heard_own = True
        return waited and not self.unverified

    def on_tick(self) -> Rebuilt | None:
        """Wait no longer than is allowed: who was not heard by now is judged like any other."""
        if self.adoption is not None:
            return self._try_adopt()
        if self.context.now_ms < self._verify_until_ms:
            return None
        if self._stranger is not None and not self._heard_own:
            self._outdated(*self._stranger)
        else:
            self.unverified.clear()
        return None

    # ------------------------------------------------------------------ members
    def belongs(self, source: Address, status: m.ShardStatus, hears_own: bool) -> bool:
        """Whether a shard's heartbeat is for this state: of this cluster, and not ahead of it.

        One that is ahead shows that this state was lost or is an older one. To act on it would be to fence every
        healthy member: it is made again, if that is allowed, or this scheduler ends. ``hears_own``: members of this
        state were heard.
        """
        if source.epoch < 1:
            return False  # no life of a shard
        if self.adoption is not None:
            self.context.checked()
            again_ms, cluster = self.context.config.view_resend_ms, status.origin.cluster
            if self.adoption.asks(source, cluster, again_ms, self.context.now_ms):
                self.context.send(source, m.Census())
            return False
        if not status.origin.is_of(self.context.origin):
            theirs, ours = status.origin.cluster, self.context.state.cluster
            stranger = f"{source} belongs to cluster {theirs!r}, this state is of {ours!r}"
            if hears_own or self._has_adopted or self.unverified:
                # While its own may yet be heard, one of another cluster says nothing of this state.
                self._stranger = source, theirs, stranger
                self.context.note("warning", f"{stranger}: ignored; it names the wrong scheduler")
            else:
                self._outdated(source, theirs, stranger)
            return False
        ahead = self._ahead(source, status)
        if ahead:
            self._outdated(source, status.origin.cluster, ahead)
        return not ahead

    def _ahead(self, source: Address, status: m.ShardStatus) -> str:
        """What a heartbeat of this cluster knows that this state does not."""
        theirs, ours = status.origin, self.context.origin
        if newer := self._newer_state(source, theirs, ours):
            return newer
        found = self.context.place_of(source)
        if found is None or theirs.generation < ours.generation:
            return ""
        number, _, place = found
        view = self.context.state.groups[number].view
        if status.view > view:
            return f"{source} has taken view {status.view}, this state ends with {view}"
        if source.epoch > place.epoch:
            return f"{source} is newer than the newest that this state knows (epoch {place.epoch})"
        return ""

    def keeps(self, event: Link) -> bool:
        """Whether what became of a connection waits until the state is made: of each shard what was last heard of its
        newest life."""
        if self.adoption is None:
            return False
        address, known = event.address, self._links.get(event.address.id)
        is_place = self.adoption.is_place(address)
        if is_place and (known is None or address.epoch >= known.address.epoch):
            self._links[address.id] = event
        return True

    def take_links(self) -> list[Link]:
        """What `keeps` has kept."""
        links, self._links = list(self._links.values()), {}
        return links

    def serves(self, source: Address, origin: m.Origin) -> bool:
        """Whether a worker or tool is given anything: not one that is ahead of this state, which may then be an older
        one, and would grant splits, epochs and tables a second time. Nothing ends for its word, nor is the state made
        again: it is no server. But for that of a worker nobody is granted a split any more."""
        # trap: one that was not heard yet knows nothing of what was persisted since, whatever its serial is
        ours = self.context.origin if self.has_met(source) else self._began
        newer = self._newer_state(source, origin, ours) if origin.is_of(ours) else ""
        is_worker = source.role == WORKER and source.epoch > 0 and source.id in range(m.WORKERS_MAX)
        if self._is_outdated and is_worker:
            self._say_outdated()
        if self.adoption is not None or not newer:
            self._ahead_of_it.discard(source)
            return True
        self._is_outdated |= is_worker
        if len(self._ahead_of_it) < AHEAD_MAX:
            self._ahead_of_it.add(source)
        self.context.note(
            "warning",
            f"{newer}: it is given nothing; if that is so, start the scheduler with its newest state, or with none and "
            "--adopt",
        )
        return False

    def _say_outdated(self) -> None:
        if self.context.now_ms - self._said_ms >= SAID_EVERY_MS:
            self._said_ms = self.context.now_ms
            self.context.note(
                "warning",
                "no split is granted: a worker knows of splits that this state does not; start the scheduler with its "
                "newest state, or with none and --adopt",
            )

    def _newer_state(self, source: Address, theirs: m.Origin, ours: m.Origin) -> str:
        """Which state of this cluster somebody knows that is newer than ours; empty if none."""
        if (theirs.generation, theirs.serial) <= (ours.generation, ours.serial):
            return ""
        return f"{source} knows state {theirs.generation}.{theirs.serial}, this is {ours.generation}.{ours.serial}"

    def is_ahead(self, source: Address) -> bool:
        """Whether its last heartbeat was."""
        return source in self._ahead_of_it

    def _outdated(self, source: Address, cluster: str, evidence: str) -> None:
        what = "is not of this cluster" if self._is_new else "is older than its cluster"
        text = f"the scheduler's state {what}: {evidence}"
        self.context.checked()
        if self._may_adopt:
            self.context.note("warning", f"{text}; making it again from what the members tell")
            self.adoption = Adoption(self.context.state.n, len(self.context.state.groups), self.context.now_ms)
            self.unverified.clear()
            if self.adoption.asks(source, cluster, 0.0, self.context.now_ms):
                self.context.send(source, m.Census())
            return
        self.context.effects.append(
            Stop(
                f"{text}; nothing was done. Start the scheduler with the newest state, or, if that is lost, with "
                "--adopt, which makes it again from what the members tell",
                OUTDATED,
            )
        )

    def on_census(self, source: Address, census: m.ShardCensus, frames: m.Frames) -> Rebuilt | None:
        """A shard tells what it knows; the state, once that is enough."""
        if self.adoption is None:
            return None
        self.context.checked()
        wrong = self.adoption.take(source, census, frames)
        if wrong:
            self.context.note("warning", wrong)
        return self._try_adopt() if self.adoption.is_decided else None

    def _try_adopt(self) -> Rebuilt | None:
        """The state that the members' answers make; without some of them after a while."""
        context, adoption = self.context, self.adoption
        assert adoption is not None
        waited_ms = context.now_ms - adoption.since_ms
        if not adoption.is_decided and waited_ms < context.config.adopt_timeout_ms:
            return None
        missing = ", ".join(adoption.waits_for())
        if missing:
            context.note("warning", f"adopting without what {missing} know: no answer in {waited_ms:.0f} ms")
        try:
            state, told, left_out = adoption.state(None if self._is_new else context.state)
        except ConfigurationError as error:
            context.effects.append(Stop(f"the state cannot be made again: {error}", OUTDATED))
            return None
        if left_out:
            context.note("warning", left_out)
        for stray in adoption.strays():
            context.note("warning", f"{stray} is ignored; it names the wrong scheduler")
        self.adoption = None
        self._is_new, self._has_adopted = False, True
        # trap: a worker that joined after the last copy is in no state, and may hold splits
        self._begin(m.Origin(state.cluster, state.generation, state.serial))
        return Rebuilt(state, told)
