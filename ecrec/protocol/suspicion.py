"""Which suspects of a group are declared down, and why: the one place that weighs evidence (docs/protocol.md).

A part of the `SchedulerMachine`. It keeps what speaks against members, takes what is known of them as arguments, and
returns decisions with their reasons; it does nothing itself. To declare a member down that the code does not tolerate
is to declare data lost. Silence alone is no reason for that: a scheduler that is cut off hears nobody, and all live. It
needs more time, nobody who still hears the member, and somebody who is heard and says that it does not.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ecrec.protocol.config import NEVER_MS, ProtocolConfig
from ecrec.protocol.evidence import Decision, Held, Sign, Verdict, Word

LATE_HEARTBEATS = 3
"""Who was not heard for so many heartbeats may be about to fall silent with the others."""


@dataclass(slots=True)
class Charge:
    """What speaks against an incarnation while its connection is closed."""

    since_ms: float
    """When it was brought up."""
    broken_ms: float
    """When the connection broke, as far as known."""
    reason: str
    heard: bool = False
    """It was heard since: that its connection is closed means less."""


@dataclass(slots=True)
class Claim:
    """A process that registers under the endpoint of a running member."""

    process: str
    since_ms: float
    heard_ms: float
    """When it registered last."""


Tolerates = Callable[[Collection[int], bool], bool]
"""``tolerates(shards, uncoded)``: nothing of these members is lost if all of them are down. With ``uncoded``, rows
without parity count as well."""

Replaceable = Callable[[Collection[int]], bool]
"""``replaceable(shards)``: for each of these places a process waits that wants it."""


class Suspicions:
    """The suspicions of one group."""

    def __init__(self, config: ProtocolConfig, base: int = 0) -> None:
        self.config = config
        self.base = base
        """Number of the group's first shard over all groups, for reasons."""
        self.held: dict[int, str] = {}
        """Members that are suspected and not declared down -> why. For people."""
        self._blocking: dict[int, float] = {}
        """Those of them for which others wait -> since when."""
        self._closed: dict[int, Charge] = {}
        self._broken_ms: dict[int, float] = {}
        """When the scheduler's connection to a member broke last."""
        self._open_ms: dict[int, float] = {}
        """The same of connections that are not there again."""
        self._claims: dict[int, Claim] = {}
        self._behind: dict[int, tuple[tuple[int, int], float]] = {}
        """Member -> the view that it confirmed and the table that it had prepared when it was found behind, and when
        that was."""
        self._lags: dict[int, float] = {}
        """Members that do not say that they have heard of the newest state -> since when."""
        self._asked_ms = -NEVER_MS
        self._suspects: dict[int, float] = {}
        """Members that seemed dead at the last decision, and were not declared down -> since when."""
        self._unknown: set[int] = set()
        """Those of them that no peer had heard of lately."""
        self._cleared_ms = -NEVER_MS
        """When one of those was heard again: what cut it off may have cut off the others, and end for them too."""
        self._missed: dict[int, float] = {}
        """Suspects that somebody who is heard misses -> since when without a break."""
        self._newcomers_ms = NEVER_MS
        """Since when a process waits for the place of each suspect, without a break."""
        self._apart: dict[tuple[int, int], float] = {}
        """(accuser, accused) of links that do not work -> since when that is said without a break."""

    @property
    def _late_ms(self) -> float:
        """Who was not heard for longer may be about to fall silent."""
        return min(self.config.heartbeat_timeout_ms / 2, LATE_HEARTBEATS * self.config.heartbeat_ms)

    # ------------------------------------------------------------------ what speaks against a member
    def closed(self, shard: int, now_ms: float) -> None:
        """Its connection is closed and did not come back within the grace."""
        broken_ms = now_ms - self.config.reconnect_grace_ms
        self._closed.setdefault(shard, Charge(now_ms, broken_ms, "its connection is closed"))

    def broke(self, shard: int, now_ms: float) -> None:
        """Its connection broke just now; it may be back in a moment."""
        self._broken_ms[shard] = self._open_ms[shard] = now_ms

    def made(self, shard: int) -> None:
        """Its connection is there again."""
        self._open_ms.pop(shard, None)
        self._closed.pop(shard, None)

    def claimed(self, shard: int, process: str, now_ms: float) -> bool:
        """Another process registered under its endpoint. True if that is news."""
        claim = self._claims.get(shard)
        if claim is not None and claim.process == process:
            claim.heard_ms = now_ms
            return False
        self._claims[shard] = Claim(process, now_ms, now_ms)
        return True

    def both_live(self, shard: int, process: str, heard_ms: float) -> bool:
        """The member was heard long after that process registered under its endpoint: none replaced the other."""
        claim = self._claims.get(shard)
        known = claim is not None and claim.process == process
        return known and claim is not None and heard_ms - claim.since_ms > self.config.heartbeat_timeout_ms

    def forget(self, shard: int) -> None:
        """It is down, or another incarnation."""
        for table in (self._closed, self._broken_ms, self._open_ms, self._claims, self._behind, self._lags,
                      self.held, self._blocking, self._missed):  # fmt: skip
            table.pop(shard, None)
        self._apart = {pair: since_ms for pair, since_ms in self._apart.items() if shard not in pair}

    def stood_still(self, pause_ms: float, now_ms: float) -> None:
        """It was the scheduler that stood still: in that time nothing could be heard, nor confirmed.

        What was brought up since, before anybody knew of the pause, is as old as it was.
        """
        for charge in self._closed.values():
            charge.since_ms = min(charge.since_ms + pause_ms, now_ms)
        for claim in self._claims.values():
            claim.since_ms = min(claim.since_ms + pause_ms, now_ms)
            claim.heard_ms = min(claim.heard_ms + pause_ms, now_ms)

        def later(times: dict[Any, float]) -> dict[Any, float]:
            return {key: min(at_ms + pause_ms, now_ms) for key, at_ms in times.items()}

        self._broken_ms, self._open_ms = later(self._broken_ms), later(self._open_ms)
        self._missed, self._apart, self._blocking = later(self._missed), later(self._apart), later(self._blocking)
        self._lags = later(self._lags)
        self._newcomers_ms += pause_ms
        self._behind = {shard: (view, min(at_ms + pause_ms, now_ms)) for shard, (view, at_ms) in self._behind.items()}

    # ------------------------------------------------------------------ the decision
    def decide(
        self,
        now_ms: float,
        newest_view: int,
        signs: Collection[Sign],
        hear: Callable[[], Collection[Word]],
        tolerates: Tolerates,
        replaceable: Replaceable,
    ) -> Decision:
        """Who is down now. ``hear()`` returns the words of running members, about running members."""
        config, decision = self.config, Decision()
        heard = {sign.shard: now_ms - sign.silent_ms for sign in signs}
        for shard, charge in self._closed.items():
            charge.heard = charge.heard or heard.get(shard, now_ms) > charge.since_ms
        for shard in [s for s, c in self._claims.items() if now_ms - c.heard_ms > config.heartbeat_timeout_ms]:
            del self._claims[shard]
        doubts = self._closed or any(s.complains or s.silent_ms > config.heartbeat_timeout_ms for s in signs)
        words = hear() if doubts else []
        suspects = self._decide_silent(now_ms, heard, signs, words, tolerates, replaceable, decision)
        rest = [sign for sign in signs if sign.shard not in suspects]
        self._decide_unfit(now_ms, newest_view, rest, suspects, tolerates, decision)
        out = suspects.union(verdict.shard for verdict in decision.down)
        self._decide_apart(now_ms, [sign for sign in rest if sign.shard not in out], words, out, tolerates, decision)
        if decision.ask and now_ms - self._asked_ms < config.view_resend_ms:
            decision.ask.clear()
        elif decision.ask:
            self._asked_ms = now_ms
        return decision

    def _decide_silent(
        self, now_ms: float, heard: Mapping[int, float], signs: Collection[Sign], words: Collection[Word],
        tolerates: Tolerates, replaceable: Replaceable, decision: Decision,
    ) -> set[int]:  # fmt: skip
        """Members that seem dead: those that are, and those that are suspected. Returns both."""
        config = self.config
        ages = self._ages(words)
        dead = {s.shard: reason for s in signs if (reason := self._is_dead(s, signs, words, now_ms))}
        silent = {
            s.shard: f"silent for {s.silent_ms:.0f} ms, {config.heartbeat_timeout_ms} are allowed"
            for s in signs
            if s.silent_ms > config.heartbeat_timeout_ms and s.shard not in dead
        }
        suspects = {**dead, **silent}
        # Half a time-out: who is dead was heard by its peers about as long ago as by the scheduler.
        half_ms = config.heartbeat_timeout_ms / 2
        # trap: what is known of one suspect says nothing of the others, which may be dead as well
        unknown = {shard for shard in suspects if ages.get(shard, NEVER_MS) > half_ms}
        # And the peers have been asked: in an idle group none of them hears of another.
        asked = {shard for shard in suspects if now_ms - self._suspects.get(shard, now_ms) > half_ms}
        # trap: who looks for a scheduler that was just started, and serves meanwhile, may find it last of all
        awaited = {
            s.shard for s in signs
            if s.shard in silent and not s.met and s.silent_ms <= config.heartbeat_timeout_many_ms
            and not (s.shard in asked and ages.get(s.shard, NEVER_MS) > config.heartbeat_timeout_ms)
        }  # fmt: skip
        overdue = {shard: reason for shard, reason in suspects.items() if shard not in awaited}
        unheard = {shard: reason for shard, reason in overdue.items() if shard in silent.keys() & unknown & asked}
        # trap: what cut several off ends for one after the other, and their peers may be the first to hear them
        found = self._unknown & suspects.keys() - unknown
        self._unknown = unknown
        if found or self._suspects.keys() & heard.keys() - suspects.keys():
            self._cleared_ms = now_ms
        cleared = now_ms - self._cleared_ms <= config.heartbeat_timeout_ms
        shaky = self._shaky(now_ms, heard, words, signs) - suspects.keys() | unknown
        if not (suspects and replaceable(suspects.keys() - self._claims.keys())):
            self._newcomers_ms = NEVER_MS
        elif self._newcomers_ms == NEVER_MS:
            self._newcomers_ms = now_ms
        # Of a group of which nobody is heard nobody is known to be dead, not even if nothing would be lost.
        alone = len(suspects) == len(signs) and now_ms - self._newcomers_ms <= config.heartbeat_timeout_ms
        gone: dict[int, str] = {}
        for some, counts_uncoded in ((overdue, True), ({**dead, **unheard}, True), (dead, False)):
            if some and not (cleared or alone) and tolerates(shaky.union(some), counts_uncoded):
                gone = some
                break
        decision.down += [Verdict(shard, reason) for shard, reason in sorted(gone.items())]
        for shard, reason in sorted(suspects.items()):
            if shard in gone:
                continue
            waited_ms = min(now_ms - heard[shard], ages.get(shard, NEVER_MS))
            doubt = self._doubt(shard, shard in dead, suspects, signs, words, now_ms)
            if certain := self._is_certain(shard, waited_ms, now_ms):
                decision.down.append(Verdict(shard, f"{reason}; {certain}"))
                continue
            heard_by = f", but a peer heard of it {ages[shard]:.0f} ms ago" if shard in ages else ""
            why = "another suspect has just been heard again" if cleared else f"data would be lost with it{doubt}"
            if shard in awaited:
                why = "this scheduler was just started, which it may not have found yet"
            if alone:
                why = "nobody of its group is heard: it may be the scheduler that is cut off"
            decision.held.append(Held(shard, f"{reason}{heard_by}; {why}"))
            for sign in signs:
                decision.ask[sign.shard].add(shard)
        down = {verdict.shard for verdict in decision.down}
        self._suspects = {shard: self._suspects.get(shard, now_ms) for shard in suspects if shard not in down}
        self._missed = {shard: since_ms for shard, since_ms in self._missed.items() if shard in suspects}
        return set(suspects)

    def _doubt(
        self, shard: int, is_dead: bool, suspects: Collection[int], signs: Collection[Sign], words: Iterable[Word],
        now_ms: float,
    ) -> str:  # fmt: skip
        """Why it may be the scheduler that is cut off, and not this member; empty while somebody misses it."""
        fresh_ms = self.config.heartbeat_timeout_ms
        witnessed = any(
            w.about == shard and w.knows and w.age_ms <= fresh_ms and w.speaker not in suspects for w in words
        )
        # Its connections closed, at both ends that are heard: that no cut network does. Silence alone it makes.
        outnumbered = not is_dead and 2 * len(suspects) > len(signs)
        if (witnessed and not outnumbered) or (is_dead and shard in self._claims):
            self._missed.setdefault(shard, now_ms)
            return ""
        self._missed.pop(shard, None)
        if not witnessed:
            return "; nobody is heard who misses it: it may be the scheduler that is cut off"
        return "; more are silent than heard: it may be the scheduler that is cut off"

    def _is_certain(self, shard: int, waited_ms: float, now_ms: float) -> str:
        """Why a suspect is down though data is lost with it; empty while it is not."""
        config = self.config
        patience_ms = max(config.heartbeat_timeout_ms, config.heartbeat_timeout_many_ms)
        # What ends a cut may bring one member back before another: those who are heard first have yet to ask for it.
        missed_ms = now_ms - self._missed.get(shard, now_ms)
        if waited_ms > patience_ms and missed_ms > patience_ms / 2:
            return f"nobody has heard of it for {patience_ms} ms"
        if min(waited_ms, now_ms - self._newcomers_ms) > config.isolated_timeout_ms:
            return f"for {config.isolated_timeout_ms} ms others have waited for all silent places, and nobody heard it"
        return ""

    def _is_dead(self, sign: Sign, signs: Collection[Sign], words: Iterable[Word], now_ms: float) -> str:
        """Why there is no process any more, as far as connections tell; empty if they do not."""
        charge, claim = self._closed.get(sign.shard), self._claims.get(sign.shard)
        # Heard since, it may be busy: some heartbeats must be missing.
        least_ms = self.config.reconnect_grace_ms + (3 * self.config.heartbeat_ms if charge and charge.heard else 0)
        if charge is not None and sign.silent_ms >= least_ms:
            fresh = [w for w in words if w.about == sign.shard and w.age_ms < now_ms - charge.broken_ms]
            # trap: who has just been placed is not connected yet, and that says nothing
            severed = any(word.severed for word in fresh) or len(signs) == 1
            if severed and not any(word.linked for word in fresh):
                return charge.reason
        # The connection is back where it was, but may be the other process's.
        broke = self._broken_ms.get(sign.shard, -NEVER_MS) > now_ms - sign.silent_ms - self.config.heartbeat_ms
        if claim is not None and broke and sign.silent_ms > self.config.heartbeat_timeout_ms / 2:
            return f"its connection broke, and process {claim.process} listens at its endpoint"
        return ""

    def _shaky(
        self, now_ms: float, heard: Mapping[int, float], words: Iterable[Word], signs: Iterable[Sign]
    ) -> set[int]:
        """Members that may be dead like the suspects: not heard for a while, or whose connection broke too.

        trap: the time-outs, and graces, of what began together do not end at one tick.
        """
        shaky = {sign.shard for sign in signs if sign.silent_ms > self._late_ms}
        for shard, broken_ms in self._open_ms.items():
            unheard = heard.get(shard, NEVER_MS) <= broken_ms + self.config.heartbeat_ms
            linked = any(word.linked for word in words if word.about == shard and word.age_ms < now_ms - broken_ms)
            if unheard and not linked:
                shaky.add(shard)
        return shaky

    @staticmethod
    def _ages(words: Iterable[Word]) -> dict[int, float]:
        """Member -> milliseconds since any peer heard of it."""
        ages: dict[int, float] = {}
        for word in words:
            age_ms = word.heard_ms + word.age_ms
            if age_ms < ages.get(word.about, NEVER_MS):
                ages[word.about] = age_ms
        return ages

    def _decide_unfit(
        self, now_ms: float, newest_view: int, signs: Collection[Sign], out: set[int], tolerates: Tolerates,
        decision: Decision,
    ) -> None:  # fmt: skip
        """Members that are heard, but confirm no view: all that waits for a confirmation waits for them."""
        config = self.config
        timeout_ms = config.view_timeout_ms or config.link_timeout_ms
        unfit: dict[int, str] = {}
        stuck_ms: dict[int, float] = {}
        outrun = {sign.shard for sign in signs if sign.outrun}
        # trap: while it was silent it could not confirm what it may not have been told; the time counts anew
        self._behind = {shard: known for shard, known in self._behind.items() if shard not in out}
        self._lags = {sign.shard: self._lags.get(sign.shard, now_ms) for sign in signs if sign.lags}
        # trap: those that are behind for less time than the first may be deaf for the same reason
        behind = {shard for shard, since_ms in self._lags.items() if now_ms - since_ms > config.heartbeat_timeout_ms}
        for sign in signs:
            if sign.view >= newest_view and not sign.unprepared:
                self._behind.pop(sign.shard, None)
                continue
            done = sign.view, sign.prepared
            before, since_ms = self._behind.get(sign.shard, ((-2, -2), now_ms))
            if before != done:
                _, since_ms = self._behind[sign.shard] = done, now_ms
            stuck_ms[sign.shard] = now_ms - since_ms
            if stuck_ms[sign.shard] > config.heartbeat_timeout_ms:
                behind.add(sign.shard)
            if sign.shard in outrun:
                unfit[sign.shard] = f"it confirmed view {sign.view}, and views are kept from a later one on"
            elif stuck_ms[sign.shard] > timeout_ms:
                lacks = f"the newest is {newest_view}" if sign.view < newest_view else "a table waits for it to prepare"
                unfit[sign.shard] = (
                    f"it is heard, but has confirmed no view after {sign.view} for {timeout_ms} ms; {lacks}"
                )
        if not unfit:
            return
        losing = out | behind | unfit.keys()
        much_ms = timeout_ms + config.heartbeat_timeout_many_ms
        patient = max(stuck_ms[shard] for shard in unfit) > much_ms
        if tolerates(losing, True) or (patient and tolerates(losing, False)):
            decision.down += [Verdict(shard, reason, must_stop=True) for shard, reason in sorted(unfit.items())]
            return
        for shard, reason in sorted(unfit.items()):
            if shard in outrun and stuck_ms[shard] > much_ms:
                decision.down.append(Verdict(shard, reason, must_stop=True))
            else:
                decision.held.append(Held(shard, f"{reason}; data would be lost with it"))

    def _decide_apart(
        self, now_ms: float, signs: Collection[Sign], words: Iterable[Word], out: set[int], tolerates: Tolerates,
        decision: Decision,
    ) -> None:  # fmt: skip
        """Of members that do not reach each other, though all are heard, one is to be replaced.

        Not one that is silent here too: it is that one which is dead, and given up in its own time.
        """
        config = self.config
        # trap: one that was not heard yet, after a restart, may have been dead for long
        present = {sign.shard for sign in signs if sign.met}
        # What is said of an incarnation before this one counts no more.
        said = {(w.speaker, w.about): w for w in words if w.knows and {w.speaker, w.about} <= present}
        accused: dict[tuple[int, int], str] = {}
        for (speaker, about), word in said.items():
            back = said.get((about, speaker))
            if word.late_ms > config.link_timeout_ms / 2:
                decision.ask[speaker].add(about)
                decision.ask[about].add(speaker)
            if word.broken:
                accused[speaker, about] = "cannot follow each other's messages"
            elif word.late_ms > config.link_timeout_ms and (word.unheard or (back is not None and back.unheard)):
                accused[speaker, about] = f"have not heard each other for {config.link_timeout_ms} ms"
            elif word.late_ms > config.stuck_timeout_ms:
                accused[speaker, about] = f"hear each other, but acknowledged nothing for {config.stuck_timeout_ms} ms"
        self._apart = {pair: self._apart.get(pair, now_ms) for pair in accused}
        # trap: one that stood still is heard here again before it is heard by its peers, whose last words accuse it
        lasting = {
            pair for pair, since_ms in self._apart.items()
            if said[pair].broken or now_ms - since_ms > config.heartbeat_timeout_ms
        }  # fmt: skip
        victim = cut_off(lasting, {sign.shard for sign in signs if sign.whole})
        if victim is None:
            return
        pairs = sorted(pair for pair in lasting if victim in pair)
        names = ", ".join(str(self.base + shard) for shard in sorted({a if b == victim else b for a, b in pairs}))
        reason = f"it and shard(s) {names} {accused[pairs[0]]}"
        patient = now_ms - min(self._apart[pair] for pair in pairs) > config.heartbeat_timeout_many_ms
        if tolerates(out | {victim}, True) or (patient and tolerates(out | {victim}, False)):
            decision.down.append(Verdict(victim, reason))
        else:
            decision.held.append(Held(victim, f"{reason}; data would be lost with it", blocks=False))

    def doubted(self, now_ms: float, signs: Collection[Sign]) -> dict[int, str]:
        """Members that may be dead, and are not declared down -> what speaks against them, for people."""
        out: dict[int, str] = {}
        for sign in signs:
            broken_ms = self._open_ms.get(sign.shard, -NEVER_MS)
            if not sign.met:
                out[sign.shard] = "was not heard since the scheduler was started"
            elif sign.shard in self.held:
                out[sign.shard] = "is suspected to be dead"
            elif sign.silent_ms > self._late_ms:
                out[sign.shard] = f"was not heard for {sign.silent_ms:.0f} ms"
            elif sign.shard in self._closed or now_ms - sign.silent_ms <= broken_ms + self.config.heartbeat_ms:
                out[sign.shard] = "has a broken connection"
        return out

    def blocking(self, now_ms: float) -> dict[int, str]:
        """Members that others have waited for, for `blocked_timeout_ms`, though nobody may replace them -> why."""
        limit_ms = self.config.blocked_timeout_ms
        return {s: self.held[s] for s, since_ms in self._blocking.items() if now_ms - since_ms > limit_ms}

    def news(self, held: Collection[Held], now_ms: float) -> tuple[list[Held], list[int]]:
        """Take over who is held now; return those for whom that is new, and those for whom it is over."""
        now = {entry.shard: entry.reason for entry in held}
        self._blocking = {e.shard: self._blocking.get(e.shard, now_ms) for e in held if e.blocks}
        new = [Held(shard, reason) for shard, reason in now.items() if shard not in self.held]
        over = [shard for shard in self.held if shard not in now]
        self.held = now
        return new, over


def cut_off(accusations: set[tuple[int, int]], whole: set[int]) -> int | None:
    """Whom to replace, given who has not heard whom (accuser, accused), and who is whole; None if nobody is missed.

    The one with whom most have lost touch; among equals rather one that is not whole, then the one that more accuse.
    """
    if not accusations:
        return None

    def rank(shard: int) -> tuple[int, bool, int, int]:
        partners = {a if b == shard else b for a, b in accusations if shard in (a, b)}
        accusers = sum(accused == shard for _, accused in accusations)
        return len(partners), shard not in whole, accusers, shard

    return max({shard for pair in accusations for shard in pair}, key=rank)
