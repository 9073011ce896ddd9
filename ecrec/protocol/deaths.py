"""Which members are declared down, and what follows at once (docs/protocol.md, "Who is declared down").

A part of the `SchedulerMachine`. It gathers what is known of the members; ``suspicion.py`` decides.
"""

from collections.abc import Callable, Collection, Mapping

from ecrec.protocol import messages as m
from ecrec.protocol.admission import REACH_ADVICE, Admission
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.config import NEVER_MS
from ecrec.protocol.context import Context
from ecrec.protocol.departures import GRANTED, Departures
from ecrec.protocol.events import Connection, Disconnect, Link
from ecrec.protocol.evidence import Decision, Sign, Word
from ecrec.protocol.loss import undecodable
from ecrec.protocol.losses import Losses
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN, RECOVERING, UP, Address
from ecrec.protocol.placement import shards_of
from ecrec.protocol.state import Group, Settlement, members_of
from ecrec.protocol.successions import Successions
from ecrec.protocol.suspicion import Suspicions
from ecrec.protocol.transitions import DIED

DIED_MAX = 64
"""Processes whose ends may still be described."""


class Deaths:
    """The part of a `SchedulerMachine` that declares members down."""

    def __init__(
        self, context: Context, members: Members, announcer: Announcer, losses: Losses, admission: Admission,
        successions: Successions,
    ) -> None:  # fmt: skip
        self.context = context
        self.members = members
        self.announcer = announcer
        self.losses = losses
        self.admission = admission
        self.successions = successions
        self.suspicions = [Suspicions(context.config, i * context.state.n) for i in range(len(context.state.groups))]
        self.departures = Departures(context, members)
        self._unheard: dict[int, set[int]] = {}
        """Shards -> workers that did not hear them at the last tick."""
        self._died: dict[str, tuple[int, int]] = {}
        """Process -> shard, numbered over all groups, and epoch: of the last ones whose end nobody has described."""
        self._asked_ms = -NEVER_MS
        """When peers of such a shard were asked about it last."""
        self._unreached_ms: list[dict[tuple[int, int], float]] = [{} for _ in context.state.groups]
        """Of each group: replacements (shard, epoch) that no member is connected to -> since when."""

    def on_link(self, event: Link) -> None:
        """Something became of a connection."""
        if isinstance(event, Connection):
            self.on_connection(event)
        else:
            self.on_disconnected(event.address)

    def on_disconnected(self, address: Address) -> None:
        found = self.context.place_of(address)
        if found is not None and found[2].epoch == address.epoch and found[2].state != DOWN:
            # Judged at the next Tick, which knows whether it was the scheduler that stood still.
            self.suspicions[found[0]].closed(found[1], self.context.now_ms)

    def on_connection(self, event: Connection) -> None:
        found = self.context.place_of(event.address)
        if found is None or found[2].epoch != event.address.epoch:
            return
        if event.up:
            self.suspicions[found[0]].made(found[1])
        else:
            self.suspicions[found[0]].broke(found[1], self.context.now_ms)

    def on_tick(
        self, stood_still_ms: float, waits_for: Callable[[int], bool], unheard: Mapping[int, Mapping[int, int]]
    ) -> None:
        """Declare down who is. ``stood_still_ms``: in which the scheduler itself stood still.

        ``waits_for(prepared)``: a table waits for a member that has prepared up to this number. ``unheard``: shard ->
        worker that does not hear it -> for how long.
        """
        if stood_still_ms:
            self.departures.stood_still()
            for suspicions in self.suspicions:
                suspicions.stood_still(stood_still_ms, self.context.now_ms)
        for number in range(len(self.context.state.groups)):
            self._judge(number, waits_for)
        self._ask_about(unheard)

    def _ask_about(self, unheard: Mapping[int, Mapping[int, int]]) -> None:
        """Workers do not hear a shard: its peers are to find out whether they do. Words of workers end nobody."""
        context, n = self.context, self.context.state.n
        for shard, workers in unheard.items():
            for worker in sorted(workers.keys() - self._unheard.get(shard, set())):
                name = context.address_of(*divmod(shard, n))
                context.note("warning", f"worker {worker} has not heard {name} for {workers[worker]} ms; its peers are "
                             "asked whether they hear it")  # fmt: skip
        self._unheard = {shard: set(workers) for shard, workers in unheard.items()}
        if not unheard or context.now_ms - self._asked_ms < context.config.view_resend_ms:
            return
        self._asked_ms = context.now_ms
        for number, group in enumerate(context.state.groups):
            about = sorted(s % n for s in unheard if s // n == number and group.places[s % n].state != DOWN)
            for shard, place in enumerate(group.places):
                if about and place.state != DOWN:
                    context.send(context.address_of(number, shard), m.Probe(about))

    def _judge(self, number: int, waits_for: Callable[[int], bool]) -> None:
        """Declare down who is, by the one decision (`Suspicions.decide`)."""
        group, suspicions = self.context.state.groups[number], self.suspicions[number]
        if not group.view:
            return
        signs = self._signs(number, group, waits_for)
        decision = suspicions.decide(
            self.context.now_ms, group.view, signs, lambda: self._words(number, group),
            lambda shards, uncoded: self._tolerates(group, shards, uncoded),
            lambda shards: self.admission.can_replace(number, shards),
        )  # fmt: skip
        for verdict in decision.down:
            if verdict.must_stop:
                reason = f"{self.context.address_of(number, verdict.shard)} is replaced: {verdict.reason}"
                self.context.fence_off(self.context.address_of(number, verdict.shard), reason)
            self._down(number, verdict.shard, verdict.reason)
        self._tell_of_suspects(number, group, decision)
        for shard in self._unreached(number, group):
            address, timeout_ms = self.context.address_of(number, shard), self.context.config.reach_timeout_ms
            reason = f"no other member has reached it at {group.places[shard].endpoint} for {timeout_ms} ms"
            self.context.fence_off(address, f"{address} is replaced: {reason}; {REACH_ADVICE}")
            self._down(number, shard, reason)
        self._let_go(number, group, suspicions.doubted(self.context.now_ms, signs))

    def _let_go(self, number: int, group: Group, doubted: dict[int, str]) -> None:
        """Members that were told to end are succeeded; without a spare, those are down at once without whom nothing is
        lost."""
        if self.successions.leads(number, group, self.departures, doubted):
            return
        while True:
            doubted = {shard: why for shard, why in doubted.items() if group.places[shard].state != DOWN}
            shard = self.departures.grant(number, group, doubted, lambda some: self._tolerates(group, some, True))
            if shard is None:
                return
            address = self.context.address_of(number, shard)
            if self.admission.can_replace(number, [shard]):
                then = "a spare takes its place"
            elif group.lost:
                then = "its cluster has lost data, and does not go on"
            else:
                then = "no spare waits: workers that need its rows wait until another server is started"
                self.context.note("warning", f"{address} leaves, and {then}")
            self.context.fence_off(address, f"{address} {GRANTED}; {then}")
            self._down(number, shard, GRANTED)

    def _unreached(self, number: int, group: Group) -> list[int]:
        """Replacements that hold a place and are reached by nobody: another process could serve there."""
        config, now_ms = self.context.config, self.context.now_ms
        unreached = []
        for shard, place in enumerate(group.places):
            status = self.members.status(number, shard)
            if place.state != RECOVERING or place.start is None or status is None:
                continue
            others = [
                contact.status
                for other in range(self.context.state.n)
                if other != shard
                and (contact := self.members.get(number, other)) is not None
                and contact.status is not None
                and contact.status.view >= place.start.number
                and now_ms - contact.heard_ms <= config.heartbeat_timeout_ms
            ]
            if others and not any(shard in other.linked for other in others):
                unreached.append((shard, place.epoch))
        self._unreached_ms[number] = {key: self._unreached_ms[number].get(key, now_ms) for key in unreached}
        return [
            shard
            for (shard, _), since_ms in self._unreached_ms[number].items()
            if now_ms - since_ms > config.reach_timeout_ms and self._tolerates(group, {shard}, True)
        ]

    def _tell_of_suspects(self, number: int, group: Group, decision: Decision) -> None:
        """In the log, and to those who may have heard of the suspects."""
        new, over = self.suspicions[number].news(decision.held, self.context.now_ms)
        for entry in new:
            address = self.context.address_of(number, entry.shard)
            self.context.note("warning", f"{address} is suspected, not declared down: {entry.reason}")
        for shard in over:
            if group.places[shard].state != DOWN:
                self.context.note("info", f"{self.context.address_of(number, shard)} is suspected no more")
        for shard, about in decision.ask.items():
            if group.places[shard].state != DOWN:
                self.context.send(self.context.address_of(number, shard), m.Probe(sorted(about)))

    def suspected(self) -> dict[int, str]:
        """Shard, numbered over all groups -> why it is suspected, and not declared down."""
        return {each.base + shard: reason for each in self.suspicions for shard, reason in each.held.items()}

    def blocking(self) -> dict[int, str]:
        """Suspects that others have waited for longer than `blocked_timeout_ms` -> why; their waiters are told."""
        found = ((each.base, each.blocking(self.context.now_ms)) for each in self.suspicions)
        return {base + shard: reason for base, held in found for shard, reason in held.items()}

    def _signs(self, number: int, group: Group, waits_for: Callable[[int], bool]) -> list[Sign]:
        signs = []
        for shard, place in enumerate(group.places):
            contact = self.members.get(number, shard)
            if place.state == DOWN or contact is None:
                continue
            base = max(contact.view, place.start.number) if place.start else contact.view
            outrun = self.announcer.since(group, base) is None
            prepared = contact.status.prepared if contact.status else 0
            status = contact.status
            unprepared = status is not None and waits_for(prepared)
            # After a loss nobody is replaced, and nobody waits.
            complains = status is not None and not group.lost and bool(status.late or status.broken)
            lags = status is not None and status.origin.serial < self.announcer.copied(number, shard)
            signs.append(
                Sign(shard, self.context.now_ms - contact.heard_ms, contact.view, outrun, prepared, unprepared,
                     met=status is not None, whole=place.state == UP, complains=complains, lags=lags)
            )  # fmt: skip
        return signs

    def _words(self, number: int, group: Group) -> list[Word]:
        """What the running members said of each other in their last heartbeats."""
        words = []
        for shard, place in enumerate(group.places):
            contact = self.members.get(number, shard)
            if place.state == DOWN or contact is None or contact.status is None:
                continue
            # trap: one that says again what it said last lives, and knows nothing new of others
            status, age_ms = contact.status, self.context.now_ms - contact.heard_ms + contact.status.age_ms
            for other, about in enumerate(group.places):
                if other == shard or about.state == DOWN or about.start is None:
                    continue
                # What it says of an incarnation before this one counts no more.
                knows = status.view >= about.start.number
                heard_ms = float(status.heard.get(other, NEVER_MS)) if knows else NEVER_MS
                words.append(
                    Word(shard, other, age_ms, heard_ms, knows and other in status.linked, knows,
                         status.late.get(other, 0), other in status.unheard, other in status.broken,
                         knows and other in status.severed)
                )  # fmt: skip
        return words

    def _tolerates(self, group: Group, shards: Collection[int], uncoded: bool) -> bool:
        """No stripe that one of these members is in is lost if all of them are down; before there are tables, none is.

        With ``uncoded`` rows without parity count, unless they may begin again at any death. Without, they do not where
        there are others: their users have accepted it.
        """
        if not self.context.state.tables:
            return True
        members = members_of(group)
        gone = [m.Member(e.shard, e.epoch, DOWN, "") if e.shard in shards else e for e in members]
        # Those already lost count too: a member that recovers has some rows of theirs.
        placement = self.context.placement
        lost = {c for c in undecodable(placement, gone) if set(shards_of(placement, c)).intersection(shards)}
        coded = any(code.r for code in placement.codes)
        if coded and (self.context.config.reinitialise_lost or not uncoded):
            lost = {c for c in lost if placement.code_of(c).r}
        return not lost

    def _down(self, number: int, shard: int, reason: str) -> None:
        group = self.context.state.groups[number]
        place = group.places[shard]
        self.context.note("warning", f"{self.context.address_of(number, shard)} is down: {reason}")
        self.context.effects.append(Disconnect(self.context.address_of(number, shard)))
        contact = self.members.get(number, shard)
        heard_ms = contact.heard_ms if contact is not None else -1.0
        place.step(DIED)
        place.reseeding = []
        group.succeeding = None  # view `ShardDown` says so
        self.suspicions[number].forget(shard)
        self.members.forget(number, shard)
        self.announcer.add(group, m.ShardDown(self.announcer.next_view(group), shard, place.epoch))
        group.settlements[shard] = Settlement(place.epoch)
        self.context.remember("down", number, shard, place.epoch, reason, heard_ms)
        if place.process:
            self._died[place.process] = number * self.context.state.n + shard, place.epoch
        if len(self._died) > DIED_MAX:
            del self._died[next(iter(self._died))]
        self.losses.check(number, group, shard)

    def on_unfit(self, message: m.Unfit) -> None:
        """A process ends, and says why: its death need not be waited for."""
        if (found := self._running(message.process)) is not None:
            self._down(*found, f"its process ends: {message.reason}")

    def on_ended(self, process: str, how: str) -> None:
        """A process has ended, and who started it says how: that it is down need not be found out. For people, too."""
        if process and (found := self._running(process)) is not None:
            self._down(*found, f"its process {how}")
            self._died.pop(process)
        elif (died := self._died.pop(process, None)) is not None:
            self.context.explain("down", *died, f"its process {how}")

    def _running(self, process: str) -> tuple[int, int] | None:
        """Group and number in it of the shard that a process is."""
        for number, group in enumerate(self.context.state.groups):
            for shard, place in enumerate(group.places):
                if place.process == process and place.state != DOWN:
                    return number, shard
        return None
