"""Captures of parity rows at one cut, and what is solved of them: what repairs and scrubs are made of.

A *capture* is a copy of parity rows at one consistent cut: taken at the first sign of a request, it follows later
deltas of each data member until that member's MARKER. The first surviving parity holder (the assembler) takes the known
coded rows out of the captures and solves for the lost ones (docs/protocol.md). Who asks for a repair, and waits for
it, is `repair.py`'s; the scrub stands in `scrub.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import xor
from typing import Any

import numpy as np

from ecrec._native import Capture, Code, RowBuffer, gf_invert_matrix, gf_multiply
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.arrays import NO_KEYS, NO_RECORDS
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT
from ecrec.protocol.messages import Stripes
from ecrec.protocol.peer import Peer
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.windows import Windows

TIMEOUT_FACTOR_MAX = 16
"""A holder that says nothing is waited for so many times longer, at most, before another one is asked."""


@dataclass(slots=True, eq=False)
class Assembly:
    """A request at a parity holder: the capture and what is still to come."""

    view: int
    stripes: Stripes
    capture: Capture | None
    """None: it was dropped, or put off. It stays only until all markers have come, which would open it again."""
    keys: Any
    at_ms: float
    """When it was last wanted."""
    marked: set[int] = field(default_factory=set)
    members: set[int] | None = None
    """Data members whose MARKER is needed; None while the request itself has not come."""
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

    @property
    def nbytes(self) -> int:
        """Of its capture, and of what others have sent for it."""
        assert self.capture is not None
        sent = (*self.rows.values(), *self.captures.values())
        return self.capture.nbytes + int(sum(keys.nbytes + records.nbytes for keys, records in sent))


class Captures:
    """The part of a `ShardMachine` that keeps captures, and gives what others need for theirs."""

    def __init__(self, context: ShardContext, windows: Windows) -> None:
        self.context = context
        self.windows = windows
        self.assemblies: dict[int, Assembly] = {}
        """By the number of the request."""
        self._unanswered: set[tuple[int, int]] = set()
        """(request, holder) that was told that it is wanted, and has not said that it knows."""
        self._requests = 0

    def new_request(self) -> int:
        self._requests += 1
        return (self.context.shard << 48) | self._requests

    def holders(self, class_id: int) -> list[Peer]:
        """Parity holders that are whole, in order of their slots."""
        peers = self.context.peers
        return [peers[p] for p in self.context.placement.classes[class_id].parity if peers[p].has_parity(class_id)]

    def code(self, class_id: int) -> Code:
        spec = self.context.placement.code_of(class_id)
        return Code(spec.k, spec.r, spec.generator)

    # ------------------------------------------------------------------ who waits for whom
    def want(self, holder: int, view: int, request: int, class_id: int) -> None:
        """Tell a holder that its answer is still wanted; not again before it has said that it knows."""
        if (request, holder) in self._unanswered:
            return
        self._unanswered.add((request, holder))
        self.context.send(self.context.peers[holder], m.RepairWanted(view, request, class_id))

    def knows(self, request: int, holder: Peer) -> None:
        """The holder says that it was told that its answer is wanted."""
        self._unanswered.discard((request, holder.shard))

    def on_wanted(self, peer: Peer, message: m.RepairWanted, frames: m.Frames) -> None:
        self.context.checked()
        assembly = self.assemblies.get(message.request)
        gone = assembly is None or assembly.capture is None
        if assembly is not None:
            assembly.at_ms = self.context.now_ms
        self._say(peer, message.view, message.request, message.class_id, gone)

    def _say(self, peer: Peer, view: int, request: int, class_id: int, gone: bool) -> None:
        self.context.send(peer, m.RepairWorking(view, request, class_id, gone))

    def lacks_one(self, request: int, holder: Peer) -> None:
        """A holder cannot give its capture for a request that I assemble."""
        assembly = self.assemblies.get(request)
        if assembly is not None and holder.shard in set(assembly.used).difference(assembly.captures):
            self.give_up(request)

    def forget(self, classes: set[int]) -> None:
        """trap: a capture does not outlive a view that concerns its class."""
        self.assemblies = {r: a for r, a in self.assemblies.items() if a.stripes.class_id not in classes}

    def forget_words(self, asked: set[int]) -> None:
        """Wait for no word of holders about requests that are over: neither in ``asked`` nor assembled here."""
        if self._unanswered:
            waiting = asked | self.assemblies.keys()
            self._unanswered = {key for key in self._unanswered if key[0] in waiting}

    def on_tick(self) -> None:
        """Tell the other holders that their captures are wanted, and drop what nobody waits for."""
        timeout_ms = self.context.config.repair_timeout_ms
        for request, assembly in list(self.assemblies.items()):
            if assembly.capture is None or assembly.members is None:
                continue  # one of which the request has not come is opened by a MARKER: the request follows it
            if self.context.now_ms - assembly.at_ms > 2 * TIMEOUT_FACTOR_MAX * timeout_ms:
                self.give_up(request)  # maybe somebody, here or there, waits for it after all
            elif self.context.now_ms - assembly.wanted_ms >= timeout_ms / 2:
                assembly.wanted_ms = self.context.now_ms
                for holder in assembly.used:
                    if holder != self.context.shard and holder not in assembly.captures:
                        self.want(holder, assembly.view, request, assembly.stripes.class_id)

    # ------------------------------------------------------------------ a parity holder
    def is_full(self) -> bool:
        """No capture more: the next one may have the bytes of a repair. One is always taken."""
        config = self.context.config
        taken = [assembly.nbytes for assembly in self.assemblies.values() if assembly.capture is not None]
        return bool(taken) and sum(taken) + config.repair_bytes_max > config.captures_bytes_max

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
        """Keep nothing of it, but for who has yet to send a MARKER: one that comes later must not open it again."""
        assembly = self.assemblies[request]
        assembly.capture = assembly.finish = assembly.fail = None
        assembly.rows.clear()
        assembly.captures.clear()
        if assembly.members is not None and assembly.members <= assembly.marked:
            del self.assemblies[request]

    def give_up(self, request: int) -> None:
        """It cannot be finished: the one that waits for it is told, and asks again."""
        fail = self.assemblies[request].fail
        self.drop(request)
        if fail is not None:
            fail()

    def fold_captures(self, peer: Peer, mask: int, keys: Any, records: Any) -> None:
        """A later delta belongs to the capture until its sender's MARKER."""
        for assembly in self.assemblies.values():
            if assembly.capture is None or peer.shard in assembly.marked:
                continue
            if mask >> assembly.stripes.class_id & 1:
                assembly.capture.fold(peer.shard, keys, records)

    def on_repair(self, peer: Peer, message: m.Repair, frames: m.Frames) -> None:
        """I am the assembler: capture, ask the members for markers, and the other holders I need for their captures."""
        context = self.context
        stripes, keys = message.stripes, arrays.keys(frames[0])
        check_stripes(context, stripes, keys, as_data=False)
        if peer.shard not in context.placement.classes[stripes.class_id].data:
            raise ValueError(f"shard {peer.shard} asks to repair class {stripes.class_id}, of which it holds no data")
        code = context.placement.code_of(stripes.class_id)
        # trap: a member that is itself recovering must send a marker too, its new deltas are in flight
        members = [p for p in self._members(stripes.class_id) if p.running and p.shard != peer.shard]
        full = [p.shard for p in members if p.has_data]
        # I am one of them: the rows come to me with the markers. Any other order gives the same rows.
        holders = sorted(self.holders(stripes.class_id), key=lambda p: p.shard != context.shard)
        holders = holders[: code.k - len(full)]
        if len(full) + len(holders) < code.k or holders[0].shard != context.shard:
            # It cannot be decoded in this view.
            context.checked()
            self._say(peer, message.view, message.request, stripes.class_id, gone=True)
            return
        if stripes.last:
            rows_max, bytes_max = context.rows_at_once(context.config.repair_rows_max), repair_bytes_max(context.config)
            last = context.store.span(stripes.class_id, stripes.first, stripes.last, rows_max, bytes_max)
            stripes = Stripes(stripes.class_id, stripes.first, last)
        assembly = self.open(message.request, message.view, stripes, keys)

        def fail() -> None:
            self._say(peer, message.view, message.request, stripes.class_id, gone=True)

        if assembly.capture is None:
            del self.assemblies[message.request]  # nobody has been asked for a marker
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
        check_stripes(self.context, message.stripes, keys, as_data=False)
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

    def on_marker(self, peer: Peer, message: m.Marker, frames: m.Frames) -> None:
        keys = arrays.keys(frames[0])
        check_stripes(self.context, message.stripes, keys, as_data=False)
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
        if assembly.finish is None:
            return  # the request has yet to come
        assert assembly.members is not None
        if not assembly.members <= assembly.marked:
            return
        if any(p not in assembly.captures for p in assembly.used if p != self.context.shard):
            return
        del self.assemblies[request]
        assembly.finish(assembly)

    def remainder(self, assembly: Assembly, holder: int, code: Code) -> RowBuffer:
        """The holder's capture less the rows of the full members: what the lost rows contribute."""
        stripe = self.context.placement.classes[assembly.stripes.class_id]
        row = code.coefficients[stripe.parity.index(holder)]
        rest = RowBuffer(self.context.store)
        rest.fold(1, *self._captured(assembly, holder))
        for member in assembly.full:
            rest.fold(int(row[stripe.data.index(member)]), *assembly.rows[member])
        return rest

    def _captured(self, assembly: Assembly, holder: int) -> tuple[Any, Any]:
        """Parity rows of a holder at the cut: keys, records. Mine are moved out."""
        if holder != self.context.shard:
            return assembly.captures[holder]
        assert assembly.capture is not None
        return assembly.capture.take()

    def _decode(self, peer: Peer, request: int, assembly: Assembly) -> None:
        """Solve for the peer's rows and send them to it, each once."""
        class_id = assembly.stripes.class_id
        try:
            keys, records = self._solve(peer, assembly)
        except BAD_CONTENT as error:
            # Of the members' rows one does not fit; the one that asked asks again.
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
        wanted = solution[unknown.index(stripe.data.index(peer.shard))].tolist()
        lost = RowBuffer(context.store)
        for holder, coefficient in zip(assembly.used, wanted, strict=True):
            lost.fold(coefficient, *self._captured(assembly, holder))
        for member in assembly.full:
            known = code.coefficients[equations, stripe.data.index(member)].tolist()
            lost.fold(reduce(xor, map(gf_multiply, wanted, known)), *assembly.rows[member])
        return lost.take_nonzero()

    # ------------------------------------------------------------------ a data member
    def on_snap(self, peer: Peer, message: m.Snap, frames: m.Frames) -> None:
        """Put my MARKER in the streams right behind the deltas that the coded rows contain."""
        context = self.context
        keys, stripes = arrays.keys(frames[0]), message.stripes
        check_stripes(context, stripes, keys, as_data=True)
        for shard in message.holders:
            if shard not in context.peers or shard == context.shard:
                raise ValueError(f"shard {shard} cannot get a MARKER from shard {context.shard}")
        rows: tuple[Any, Any] = NO_KEYS, NO_RECORDS
        if message.with_rows and stripes.last:
            rows = context.store.coded_rows(stripes.class_id, stripes.first, stripes.last)
        elif message.with_rows:
            rows = context.store.coded_rows_of(keys)
        context.checked()
        if context.has_open():
            self.windows.close()  # nothing is applied in between: the rows are those of the MARKER
        too_long = self._is_too_long(rows[1])
        for shard in message.holders:
            if context.peers[shard].running:
                is_for_peer = shard == peer.shard
                part = rows if is_for_peer and not too_long else (NO_KEYS, NO_RECORDS)
                marker = m.Marker(message.view, message.request, stripes, is_for_peer and too_long)
                context.send(context.peers[shard], marker, (keys, *part))


def check_stripes(context: ShardContext, stripes: Stripes, keys: Any, as_data: bool) -> None:
    """Raise ValueError or IndexError for stripes of which I hold no data (or no parity), or that there are not."""
    class_id = stripes.class_id
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


def repair_bytes_max(config: ProtocolConfig) -> int:
    """Of the records of one repair."""
    return min(config.repair_bytes_max, config.frame_bytes_max)
