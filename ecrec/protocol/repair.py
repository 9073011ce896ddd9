"""Repair of the data rows of a replacement (docs/protocol.md). The scrub, in `scrub.py`, is made of the same parts.

A *capture* is a copy of parity rows at one consistent cut: taken at the first sign of a request, it follows later
deltas of each data member until that member's MARK. The first surviving parity holder (the assembler) takes the known
coded rows out of the captures and solves for the lost ones.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecrec._native import Capture, Code, RowBuffer, gf_invert_matrix
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.arrays import NO_KEYS, NO_RECORDS
from ecrec.protocol.events import BAD_CONTENT
from ecrec.protocol.messages import RECOVERING, Stripes
from ecrec.protocol.peer import Peer
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.share import Share
from ecrec.protocol.wanted import RowsOfClass, Wanted
from ecrec.protocol.windows import Windows

TIMEOUT_FACTOR_MAX = 16
"""A holder that says nothing is waited for so many times longer, at most, before another one is asked."""
KEY_BITS = 48
OBSERVED_ROWS_MAX = 1 << 20
"""An observer of a shard that gives up rows is told of so many of each class at most. Counted are all."""


@dataclass(slots=True)
class Asked:
    """A repair that I wait for."""

    stripes: Stripes
    keys: Any
    background: bool
    view: int
    requests: dict[int, int] = field(default_factory=dict)
    """Number of the request -> parity holder that was asked; the last one is the newest."""
    asked_ms: float = 0.0
    """When the newest request was made."""
    heard_ms: float = 0.0
    """When one of them last said that it works on it; at first, when the newest was asked."""
    wanted_ms: float = 0.0
    """When they were last told that I wait."""
    tries: int = 0
    again_ms: float = 0.0
    """Without a request: when the next one is made."""


@dataclass(slots=True, eq=False)
class Assembly:
    """A request at a parity holder: the capture and what is still to come."""

    view: int
    stripes: Stripes
    capture: Capture | None
    """None: it was dropped, or put off. It stays only until all marks have come, which would open it again."""
    keys: Any
    at_ms: float
    """When it was last wanted."""
    marked: set[int] = field(default_factory=set)
    members: set[int] | None = None
    """Data members whose MARK is needed; None while the request itself has not come."""
    full: list[int] = field(default_factory=list)
    """Data members that send their coded rows."""
    rows: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """Data member -> keys, records."""
    used: list[int] = field(default_factory=list)
    """Parity holders whose captures are solved together."""
    captures: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    finish: Callable[["Assembly"], None] | None = None
    fail: Callable[[], None] | None = None
    """Tells who waits for it that it will not come."""
    wanted_ms: float = 0.0
    """When the other holders were last told that it is wanted."""


class Repairs:
    """The part of a `ShardMachine` that asks for repairs and takes part in them."""

    def __init__(self, context: ShardContext, windows: Windows) -> None:
        self.context = context
        self.windows = windows
        self.incomplete: set[int] = set()
        """My data classes with rows to repair."""
        self.asked: dict[int, Asked] = {}
        """By the number of the first request for it."""
        self._first_request: dict[int, int] = {}
        """Number of a request -> that of the first one for the same."""
        self.assemblies: dict[int, Assembly] = {}
        self.reinitialised: dict[int, dict[int, int]] = {}
        """View -> table -> rows that I lacked then and that became initial records."""
        self._unanswered: set[tuple[int, int]] = set()
        """(request, holder) that was told that it is wanted, and has not said that it knows."""
        self._requests = 0
        self._answer_ms = 0.0
        """How long holders take to say the first word."""
        self._forgotten: Counter[int] = Counter()
        """Class -> how often what is asked of it was forgotten."""
        self.share = Share()
        """Of the sweep."""
        self._cursor: dict[int, int] = {}
        """Class of mine -> all rows before this position are here."""

    # ------------------------------------------------------------------ asking
    def begin(self, reinitialised: set[int]) -> None:
        """I am a replacement: everything is lost, and to be repaired but for the classes that nobody can."""
        context = self.context
        data = set(context.placement.data_classes(context.shard))
        for class_id in data & reinitialised:
            context.store.mark_recovered(class_id, 0, context.store.class_size(class_id))
        self.incomplete = data - reinitialised

    def reinitialise(self, lost: set[int]) -> None:
        """I recover, and nobody can give me my rows of these classes that I still lack: they begin anew, counted."""
        context = self.context
        counts: dict[int, int] = {}
        for class_id in sorted(lost & self.incomplete):
            if context.observer is not None:
                keys = context.store.missing_keys(class_id, 0, OBSERVED_ROWS_MAX)
                context.observer.reinitialised(context.address, context.view, keys)
            tables, rows = context.store.missing_counts(class_id)
            for table, count in zip(tables.tolist(), rows.tolist(), strict=True):
                counts[table] = counts.get(table, 0) + count
            context.store.mark_recovered(class_id, 0, context.store.class_size(class_id))
        self.incomplete -= lost
        if counts:
            self.reinitialised[context.view] = counts

    def complete(self) -> bool:
        return not self.incomplete

    def new_request(self) -> int:
        self._requests += 1
        return (self.context.shard << 48) | self._requests

    def lacks(self, wanted: Wanted) -> bool:
        """Whether rows of it are not here; what of them is not asked for yet is now, as far as there is room."""
        if wanted.is_here(self.context.store):
            return False
        self.ask(wanted)
        return True

    def ask(self, wanted: Wanted) -> None:
        """Ask for rows that somebody waits for, except those already asked for by name."""
        for part in wanted.parts:
            # trap: between DOWN and SETTLE the parities of a stripe can differ
            if self.context.is_settled(part.class_id) and not self._ask_class(part):
                return  # the rest is asked for when one of these is answered

    def _ask_class(self, part: RowsOfClass) -> bool:
        """The same of one class; False if there is no room."""
        context = self.context
        if part.asking != self._forgotten[part.class_id]:
            part.asking, part.asked = self._forgotten[part.class_id], part.here
        while part.asked < len(part.keys):
            if sum(not a.background for a in self.asked.values()) >= context.config.repairs_wanted_max:
                return False
            keys = context.store.missing_of(part.keys[part.asked :], context.config.repair_rows_max)
            if not keys.size:
                part.asked = len(part.keys)
                break
            keys = self._first_of(keys)
            new = self._not_asked(part.class_id, keys)
            if new.size and not self._send(Asked(Stripes(part.class_id, 0, 0), new, False, context.view)):
                break  # there is no holder, and none before the next view
            part.asked = int(np.searchsorted(part.keys, keys[-1], "right"))
        return True

    def _first_of(self, keys: Any) -> Any:
        """As many of the first of them as one repair may have bytes; at least one row."""
        sizes = self.context.record_sizes()[(keys >> np.uint64(KEY_BITS)).astype(np.int64)]
        fits = int(np.searchsorted(np.cumsum(sizes), self._bytes_max(), "right"))
        return keys[: max(fits, 1)]

    def _not_asked(self, class_id: int, keys: Any) -> Any:
        """Those of a class's keys that are not asked for by name. All are ascending."""
        for asked in self.asked.values():
            if asked.background or asked.stripes.class_id != class_id or not keys.size:
                continue
            if asked.keys[0] <= keys[-1] and keys[0] <= asked.keys[-1]:
                at = np.searchsorted(asked.keys, keys).clip(max=len(asked.keys) - 1)
                keys = keys[asked.keys[at] != keys]
        return keys

    def _bytes_max(self) -> int:
        return min(self.context.config.repair_bytes_max, self.context.config.frame_bytes_max)

    def sweep(self) -> None:
        """Ask for the next range of each class of which nothing is asked."""
        context = self.context
        if context.state != RECOVERING or not self.incomplete:
            return
        if self.share.waits(context.worked_ms, context.config, context.now_ms):
            return
        busy = {a.stripes.class_id for a in self.asked.values() if a.background}
        in_flight_max = context.config.repairs_in_flight_max
        if context.shares_time():
            in_flight_max = min(in_flight_max, context.config.foreground_repairs_max)
        for class_id in sorted(self.incomplete - busy):
            if len(busy) >= in_flight_max:
                return
            if not context.is_settled(class_id):
                continue
            first = self._next_missing(class_id)
            if first < 0:
                self.incomplete.discard(class_id)
                continue
            stripes = Stripes(class_id, first, context.store.class_size(class_id))
            if self._send(Asked(stripes, NO_KEYS, True, context.view)):
                busy.add(class_id)

    def _next_missing(self, class_id: int) -> int:
        """Position of my first row of a class that is not here; -1 if there is none."""
        first = self.context.store.next_missing(class_id, self._cursor.get(class_id, 0))
        self._cursor[class_id] = first if first >= 0 else self.context.store.class_size(class_id)
        return first

    def _send(self, asked: Asked) -> bool:
        """Ask the next parity holder that has not been asked; False if there is none."""
        context = self.context
        holders = [p for p in self._holders(asked.stripes.class_id) if p.shard not in asked.requests.values()]
        if not holders:
            return False
        holder = holders[asked.tries % len(holders)]
        request = self.new_request()
        first = self._first_request[next(iter(asked.requests))] if asked.requests else request
        self.asked[first] = asked
        self._first_request[request] = first
        asked.requests[request] = holder.shard
        asked.asked_ms = asked.heard_ms = asked.wanted_ms = context.now_ms
        context.send(holder, m.Repair(asked.view, request, asked.stripes), (asked.keys,))
        return True

    def _holders(self, class_id: int) -> list[Peer]:
        """Parity holders that are whole, in order of their slots."""
        peers = self.context.peers
        return [peers[p] for p in self.context.placement.classes[class_id].parity if peers[p].has_parity(class_id)]

    def on_repaired(self, peer: Peer, message: m.Repaired, frames: m.Frames) -> None:
        store, stripes = self.context.store, message.stripes
        asked_for, keys, records = arrays.keys(frames[0]), arrays.keys(frames[1]), arrays.records(frames[2])
        self.check(stripes, asked_for, as_data=True)
        # The answer of one that was too slow counts too: a lost row's value does not change within a view.
        asked = self.asked.get(self._first_request.get(message.request, 0))
        if asked is None:
            return
        mine = asked.stripes
        if (stripes.class_id, stripes.first, bool(stripes.last)) != (mine.class_id, mine.first, bool(mine.last)):
            raise ValueError(f"asked for {mine}, got {stripes}")
        store.restore(keys, records)  # all or nothing: it checks before it restores
        self.context.checked()
        self.context.pulls_due = True
        self._heard(asked)
        self._end(asked)
        if asked.background:
            self.share.ended(self.context.now_ms - asked.asked_ms, self.context.config, self.context.now_ms)
        if stripes.last:
            store.mark_recovered(stripes.class_id, stripes.first, stripes.last)
        else:
            store.mark_recovered_keys(asked.keys)
        if self._next_missing(stripes.class_id) < 0:
            self.incomplete.discard(stripes.class_id)

    def _heard(self, asked: Asked) -> None:
        """A first word came: the next silence is measured by how long it took."""
        if asked.heard_ms == asked.asked_ms:
            took_ms = self.context.now_ms - asked.asked_ms
            self._answer_ms = max(took_ms, 0.8 * self._answer_ms + 0.2 * took_ms)
        asked.heard_ms = self.context.now_ms

    def _end(self, asked: Asked) -> None:
        """Wait for it no more."""
        for request in asked.requests:
            self.asked.pop(self._first_request.pop(request), None)

    def on_working(self, peer: Peer, message: m.RepairWorking, frames: m.Frames) -> None:
        """Whom I asked works on it, or cannot give it: then it is asked for again after a pause."""
        self.context.checked()
        self._unanswered.discard((message.request, peer.shard))
        asked = self.asked.get(self._first_request.get(message.request, 0))
        assembly = self.assemblies.get(message.request)
        if asked is not None and asked.requests.get(message.request) == peer.shard:
            self._heard(asked)
            if message.gone:
                self._refused(asked, message.request)
        elif assembly is not None and message.gone and peer.shard in set(assembly.used).difference(assembly.captures):
            self.give_up(message.request)

    def _refused(self, asked: Asked, request: int) -> None:
        first = self._first_request[request]
        if len(asked.requests) > 1:
            if request != first:
                del asked.requests[request], self._first_request[request]
            return
        self._end(asked)
        asked.requests.clear()
        asked.tries += 1
        # Not all in step: two that put each other off would do so again.
        pause_ms = self.context.config.repair_timeout_ms * (1 + self.context.shard / 16)
        asked.again_ms = self.context.now_ms + pause_ms
        self.asked[self.new_request()] = asked

    def check(self, stripes: Stripes, keys: Any, as_data: bool) -> None:
        """Raise ValueError or IndexError for stripes of which I hold no data (or no parity), or that there are not."""
        context, class_id = self.context, stripes.class_id
        classes = context.placement.classes
        if not 0 <= class_id < len(classes):
            raise ValueError(f"there is no class {class_id}")
        members = classes[class_id].data if as_data else classes[class_id].parity
        if context.shard not in members:
            raise ValueError(f"class {class_id} is not on shard {context.shard}")
        if stripes.last:
            size = context.store.class_size(class_id)
            if not 0 <= stripes.first < stripes.last <= size:
                raise ValueError(f"class {class_id} has stripes 0 to {size}, not {stripes.first} to {stripes.last}")
        elif keys.size and (context.store.classes(keys) != class_id).any():
            raise ValueError(f"the keys of stripes are not all of class {class_id}")

    # ------------------------------------------------------------------ requests come to an end
    def forget(self, classes: set[int]) -> None:
        """trap: a repair does not outlive a view that concerns its class; the replacement asks again."""
        self._forgotten.update(classes)
        self.assemblies = {r: a for r, a in self.assemblies.items() if a.stripes.class_id not in classes}
        for first, asked in list(self.asked.items()):
            if asked.stripes.class_id in classes:
                self.asked.pop(first, None)
                self._end(asked)

    def on_tick(self) -> None:
        """Keep alive what I wait for, ask another holder where one is silent, drop what nobody waits for."""
        timeout_ms = self.context.config.repair_timeout_ms
        if self._unanswered:
            waiting = {request for asked in self.asked.values() for request in asked.requests} | self.assemblies.keys()
            self._unanswered = {key for key in self._unanswered if key[0] in waiting}
        for first, asked in list(self.asked.items()):
            self._look_after(first, asked, timeout_ms)
        for request, assembly in list(self.assemblies.items()):
            if assembly.capture is None or assembly.members is None:
                continue  # one of which the request has not come is opened by a MARK: the request follows it
            if self.context.now_ms - assembly.at_ms > 2 * TIMEOUT_FACTOR_MAX * timeout_ms:
                self.give_up(request)  # maybe somebody, here or there, waits for it after all
            elif self.context.now_ms - assembly.wanted_ms >= timeout_ms / 2:
                assembly.wanted_ms = self.context.now_ms
                for holder in assembly.used:
                    if holder != self.context.shard and holder not in assembly.captures:
                        self._want(holder, assembly.view, request, assembly.stripes.class_id)

    def _look_after(self, first: int, asked: Asked, timeout_ms: float) -> None:
        now_ms = self.context.now_ms
        if not asked.requests:
            if now_ms >= asked.again_ms:
                del self.asked[first]
                if not self._send(asked):
                    asked.again_ms = now_ms + timeout_ms
                    self.asked[first] = asked
            return
        patience_ms = max(timeout_ms, 2 * self._answer_ms) * min(1 << asked.tries, TIMEOUT_FACTOR_MAX)
        if now_ms - asked.heard_ms > patience_ms:
            # Never the same one again: it has the request, or will have it, because streams lose nothing.
            asked.tries += 1
            if not self._send(asked):
                asked.heard_ms = now_ms
        if now_ms - asked.wanted_ms >= timeout_ms / 2:
            asked.wanted_ms = now_ms
            for request, holder in asked.requests.items():
                self._want(holder, asked.view, request, asked.stripes.class_id)

    def _want(self, holder: int, view: int, request: int, class_id: int) -> None:
        """Tell a holder that its answer is still wanted; not again before it has said that it knows."""
        if (request, holder) in self._unanswered:
            return
        self._unanswered.add((request, holder))
        self.context.send(self.context.peers[holder], m.RepairWanted(view, request, class_id))

    def on_wanted(self, peer: Peer, message: m.RepairWanted, frames: m.Frames) -> None:
        self.context.checked()
        assembly = self.assemblies.get(message.request)
        gone = assembly is None or assembly.capture is None
        if assembly is not None:
            assembly.at_ms = self.context.now_ms
        self._say(peer, message.view, message.request, message.class_id, gone)

    def _say(self, peer: Peer, view: int, request: int, class_id: int, gone: bool) -> None:
        self.context.send(peer, m.RepairWorking(view, request, class_id, gone))

    # ------------------------------------------------------------------ a parity holder
    def is_full(self) -> bool:
        """No capture more: each may have the bytes of a repair. One is always taken."""
        config = self.context.config
        captures = sum(a.capture is not None for a in self.assemblies.values())
        return captures > 0 and (captures + 1) * config.repair_bytes_max > config.captures_bytes_max

    def open(self, request: int, view: int, stripes: Stripes, keys: Any) -> Assembly:
        """The request's assembly; at its first sign the capture is taken, if there is room."""
        assembly = self.assemblies.get(request)
        if assembly is None:
            store = self.context.store
            if self.is_full():
                capture = None
            elif stripes.last:
                capture = Capture(store, stripes.class_id, stripes.first, stripes.last)
            else:
                capture = Capture.of_keys(store, stripes.class_id, keys)
            assembly = Assembly(view, stripes, capture, keys, self.context.now_ms, wanted_ms=self.context.now_ms)
        self.context.checked()
        self.assemblies[request] = assembly
        return assembly

    def drop(self, request: int) -> None:
        """Keep nothing of it, but for who has yet to mark: a MARK that comes later must not open it again."""
        assembly = self.assemblies[request]
        assembly.capture = assembly.finish = assembly.fail = None
        assembly.rows.clear()
        assembly.captures.clear()
        if assembly.members is not None and assembly.members <= assembly.marked:
            del self.assemblies[request]

    def give_up(self, request: int) -> None:
        """It cannot be finished: whoever waits for it is told, and asks again."""
        fail = self.assemblies[request].fail
        self.drop(request)
        if fail is not None:
            fail()

    def fold_captures(self, peer: Peer, mask: int, keys: Any, records: Any) -> None:
        """A later delta belongs to the capture until its sender's MARK."""
        for assembly in self.assemblies.values():
            if assembly.capture is None or peer.shard in assembly.marked:
                continue
            if mask >> assembly.stripes.class_id & 1:
                assembly.capture.fold(peer.shard, keys, records)

    def on_repair(self, peer: Peer, message: m.Repair, frames: m.Frames) -> None:
        """I am the assembler: capture, ask the members to mark, and the other holders I need for their captures."""
        context = self.context
        stripes, keys = message.stripes, arrays.keys(frames[0])
        self.check(stripes, keys, as_data=False)
        if peer.shard not in context.placement.classes[stripes.class_id].data:
            raise ValueError(f"shard {peer.shard} asks to repair class {stripes.class_id}, of which it holds no data")
        code = context.placement.code_of(stripes.class_id)
        # trap: a member that is itself recovering must mark too, its new deltas are in flight
        members = [p for p in self._members(stripes.class_id) if p.running and p.shard != peer.shard]
        full = [p.shard for p in members if p.has_data]
        # I am one of them: the rows come to me with the marks. Any other order gives the same rows.
        holders = sorted(self._holders(stripes.class_id), key=lambda p: p.shard != context.shard)
        holders = holders[: code.k - len(full)]
        if len(full) + len(holders) < code.k or holders[0].shard != context.shard:
            # It cannot be decoded in this view.
            context.checked()
            self._say(peer, message.view, message.request, stripes.class_id, gone=True)
            return
        if stripes.last:
            rows_max = context.rows_at_once(context.config.repair_rows_max)
            last = context.store.span(stripes.class_id, stripes.first, stripes.last, rows_max, self._bytes_max())
            stripes = Stripes(stripes.class_id, stripes.first, last)
        assembly = self.open(message.request, message.view, stripes, keys)

        def fail() -> None:
            self._say(peer, message.view, message.request, stripes.class_id, gone=True)

        if assembly.capture is None:
            del self.assemblies[message.request]  # nobody has been asked to mark
            fail()
            return
        assembly.members, assembly.full = {p.shard for p in members}, full
        assembly.used = [p.shard for p in holders]
        assembly.at_ms, assembly.fail = context.now_ms, fail

        def finish(assembly: Assembly) -> None:
            self._decode(peer, message.request, assembly)

        assembly.finish = finish
        for holder in holders:
            if holder.shard != context.shard:
                capture = m.CaptureParity(message.view, message.request, stripes, [p.shard for p in members])
                context.send(holder, capture, (keys,))
        for member in members:
            snap = m.Snap(message.view, message.request, stripes, assembly.used, member.shard in full)
            context.send(member, snap, (keys,))
        self.try_finish(message.request)

    def _members(self, class_id: int) -> list[Peer]:
        return [self.context.peers[s] for s in self.context.placement.classes[class_id].data]

    def on_capture_parity(self, peer: Peer, message: m.CaptureParity, frames: m.Frames) -> None:
        keys = arrays.keys(frames[0])
        self.check(message.stripes, keys, as_data=False)
        assembly = self.open(message.request, message.view, message.stripes, keys)
        assembly.members, assembly.at_ms = set(message.members), self.context.now_ms
        if assembly.capture is None:
            self._say(peer, message.view, message.request, message.stripes.class_id, gone=True)
            self.drop(message.request)
            return

        def fail() -> None:
            self._say(peer, message.view, message.request, message.stripes.class_id, gone=True)

        def finish(assembly: Assembly) -> None:
            assert assembly.capture is not None
            keys, records = assembly.capture.take()
            if self._is_too_long(records):
                fail()
                return
            captured = m.Captured(message.view, message.request, message.stripes.class_id)
            self.context.send(peer, captured, (keys, records))

        assembly.finish, assembly.fail = finish, fail
        self.try_finish(message.request)

    def _is_too_long(self, records: Any) -> bool:
        """So many rows were touched since the stripes were chosen that no frame holds their records."""
        return bool(records.nbytes > self.context.config.frame_bytes_max)

    def on_mark(self, peer: Peer, message: m.Mark, frames: m.Frames) -> None:
        keys = arrays.keys(frames[0])
        self.check(message.stripes, keys, as_data=False)
        rows = arrays.keys(frames[1]), arrays.records(frames[2])
        assembly = self.open(message.request, message.view, message.stripes, keys)
        assembly.marked.add(peer.shard)
        if assembly.capture is None:
            self.drop(message.request)
        elif message.too_long:
            self.give_up(message.request)
        else:
            assembly.rows[peer.shard] = rows
            self.try_finish(message.request)

    def on_captured(self, peer: Peer, message: m.Captured, frames: m.Frames) -> None:
        captured = arrays.keys(frames[0]), arrays.records(frames[1])
        self.context.checked()
        assembly = self.assemblies.get(message.request)
        if assembly is not None and assembly.capture is not None:
            assembly.captures[peer.shard] = captured
            self.try_finish(message.request)

    def try_finish(self, request: int) -> None:
        """Finish the request if all it needs is here."""
        assembly = self.assemblies[request]
        if assembly.finish is None or assembly.members is None or not assembly.members <= assembly.marked:
            return
        if any(p not in assembly.captures for p in assembly.used if p != self.context.shard):
            return
        del self.assemblies[request]
        assembly.finish(assembly)

    def remainder(self, assembly: Assembly, holder: int, code: Code) -> RowBuffer:
        """The holder's capture less the rows of the full members: what the lost rows contribute."""
        stripe = self.context.placement.classes[assembly.stripes.class_id]
        row = code.coefficients[stripe.parity.index(holder)]
        if holder == self.context.shard:
            assert assembly.capture is not None
            keys, records = assembly.capture.take()
        else:
            keys, records = assembly.captures[holder]
        rest = RowBuffer(self.context.store)
        rest.fold(1, keys, records)
        for member in assembly.full:
            rest.fold(int(row[stripe.data.index(member)]), *assembly.rows[member])
        return rest

    def code(self, class_id: int) -> Code:
        spec = self.context.placement.code_of(class_id)
        return Code(spec.k, spec.r, spec.generator)

    def _decode(self, peer: Peer, request: int, assembly: Assembly) -> None:
        """Solve for the peer's rows and send them to it, each once."""
        class_id = assembly.stripes.class_id
        try:
            keys, records = self._solve(peer, assembly)
        except BAD_CONTENT as error:
            # Of the members' rows one does not fit; whoever asked asks again.
            self.context.note("error", f"gave up a repair of class {class_id}: {error}")
            self._say(peer, assembly.view, request, class_id, gone=True)
            return
        if self._is_too_long(records):
            self._say(peer, assembly.view, request, class_id, gone=True)
            return
        repaired = m.Repaired(assembly.view, request, assembly.stripes)
        self.context.send(peer, repaired, (assembly.keys, keys, records))

    def _solve(self, peer: Peer, assembly: Assembly) -> tuple[Any, Any]:
        """Coded values of the peer's rows that are not zero, as those of untouched rows are: keys, records."""
        context = self.context
        stripe = context.placement.classes[assembly.stripes.class_id]
        code = self.code(assembly.stripes.class_id)
        unknown = [j for j, shard in enumerate(stripe.data) if shard not in assembly.full]
        equations = [stripe.parity.index(holder) for holder in assembly.used]
        solution = gf_invert_matrix(np.ascontiguousarray(code.coefficients[np.ix_(equations, unknown)]))
        wanted = solution[unknown.index(stripe.data.index(peer.shard))]
        lost = RowBuffer(context.store)
        for holder, coefficient in zip(assembly.used, wanted, strict=True):
            lost.fold(int(coefficient), *self.remainder(assembly, holder, code).take())
        return lost.take_nonzero()

    # ------------------------------------------------------------------ a data member
    def on_snap(self, peer: Peer, message: m.Snap, frames: m.Frames) -> None:
        """Put my MARK in the streams right behind the deltas that the coded rows contain."""
        context = self.context
        keys, stripes = arrays.keys(frames[0]), message.stripes
        self.check(stripes, keys, as_data=True)
        for shard in message.holders:
            if shard not in context.peers or shard == context.shard:
                raise ValueError(f"shard {shard} cannot get a MARK from shard {context.shard}")
        rows: tuple[Any, Any] = NO_KEYS, NO_RECORDS
        if message.with_rows and stripes.last:
            rows = context.store.coded_rows(stripes.class_id, stripes.first, stripes.last)
        elif message.with_rows:
            rows = context.store.coded_rows_of(keys)
        context.checked()
        if context.has_open():
            self.windows.close()  # nothing is applied in between: the rows are those of the MARK
        too_long = self._is_too_long(rows[1])
        for shard in message.holders:
            if context.peers[shard].running:
                is_for_peer = shard == peer.shard
                part = rows if is_for_peer and not too_long else (NO_KEYS, NO_RECORDS)
                mark = m.Mark(message.view, message.request, stripes, is_for_peer and too_long)
                context.send(context.peers[shard], mark, (keys, *part))
