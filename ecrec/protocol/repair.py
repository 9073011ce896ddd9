"""Repair of the data rows of a replacement (docs/protocol.md). The scrub, in `scrub.py`, is made of the same parts.

A *capture* is a copy of parity rows at one consistent cut: taken at the first sign of a request, it follows later
deltas of each data member until that member's MARK. The first surviving parity holder (the assembler) takes the known
coded rows out of the captures and solves for the lost ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ecrec._native import Capture, Code, RowBuffer, gf_invert_matrix
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.arrays import NO_KEYS, NO_RECORDS
from ecrec.protocol.events import BAD_CONTENT
from ecrec.protocol.loss import lost_rows
from ecrec.protocol.messages import RECOVERING, Stripes
from ecrec.protocol.peer import Peer

if TYPE_CHECKING:
    from ecrec.protocol.shard import ShardMachine

TIMEOUT_FACTOR_MAX = 16
KEY_BITS = 48
ROWS_AT_ONCE = 1 << 20
"""Rows that are looked at together where the missing ones of a table are counted."""


@dataclass(slots=True)
class Asked:
    """A repair that I wait for."""

    stripes: Stripes
    keys: Any
    background: bool
    at_ms: float


@dataclass(slots=True, eq=False)
class Assembly:
    """A request at a parity holder: the capture and what is still to come."""

    stripes: Stripes
    capture: Capture
    keys: Any
    at_ms: float
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


class Repairs:
    """The part of a `ShardMachine` that asks for repairs and takes part in them."""

    def __init__(self, machine: "ShardMachine") -> None:
        self.machine = machine
        self.incomplete: set[int] = set()
        """My data classes with rows to repair."""
        self.asked: dict[int, Asked] = {}
        self.assemblies: dict[int, Assembly] = {}
        self.reinitialised: dict[int, dict[int, int]] = {}
        """View -> table -> rows that I lacked then and that became initial records."""
        self._requests = 0
        self._timeout_factor = 1
        """Doubles with each time-out, so that a slow network is not buried under repairs asked again."""

    # ------------------------------------------------------------------ asking
    def begin(self, reinitialised: set[int]) -> None:
        """I am a replacement: everything is lost, and to be repaired but for the classes that nobody can."""
        machine = self.machine
        data = set(machine.placement.data_classes(machine.shard))
        for class_id in data & reinitialised:
            machine.store.mark_recovered(class_id, 0, machine.store.class_size(class_id))
        self.incomplete = data - reinitialised

    def reinitialise(self, lost: set[int]) -> None:
        """I recover, and nobody can give me my rows of these classes that I still lack: they begin anew, counted."""
        machine = self.machine
        counts: dict[int, int] = {}
        for class_id in sorted(lost & self.incomplete):
            for keys in self._missing(class_id):
                if machine.observer is not None:
                    machine.observer.reinitialised(machine.address, machine.view, keys)
                tables, rows = np.unique(keys >> np.uint64(KEY_BITS), return_counts=True)
                for table, count in zip(tables.tolist(), rows.tolist(), strict=True):
                    counts[table] = counts.get(table, 0) + count
            machine.store.mark_recovered(class_id, 0, machine.store.class_size(class_id))
        self.incomplete -= lost
        if counts:
            self.reinitialised[machine.view] = counts

    def _missing(self, class_id: int) -> Iterator[Any]:
        """Keys of my rows of a class that are not there, chunk by chunk."""
        machine = self.machine
        groups = machine.membership.groups
        for table, spec in enumerate(machine.membership.tables):
            some = lost_rows(machine.placement, [spec], [class_id], machine.shard, machine.group, groups)
            for part in some:
                for first in part.first:
                    for begin in range(first, spec.rows, part.step * ROWS_AT_ONCE):
                        end = min(spec.rows, begin + part.step * ROWS_AT_ONCE)
                        rows = np.arange(begin, end, part.step, dtype=np.int64)
                        counts = np.array([len(rows)], np.int64)
                        yield machine.store.missing(np.array([table], np.int32), counts, rows)

    def complete(self) -> bool:
        return not self.incomplete

    def new_request(self) -> int:
        self._requests += 1
        return (self.machine.shard << 48) | self._requests

    def ask(self, keys: Any) -> None:
        """Ask for rows that somebody waits for, except those already asked for by name."""
        machine = self.machine
        if not machine.settled:
            return  # trap: between DOWN and SETTLE the parities of a stripe can differ
        pending = [a.keys for a in self.asked.values() if not a.background]
        if pending:
            keys = np.setdiff1d(keys, np.concatenate(pending))
        if not keys.size:
            return
        classes = machine.store.classes(keys)
        for class_id in np.unique(classes):
            wanted = keys[classes == class_id]
            for begin in range(0, len(wanted), machine.config.repair_rows_max):
                chunk = np.ascontiguousarray(wanted[begin : begin + machine.config.repair_rows_max])
                self._send(Stripes(int(class_id), 0, 0), chunk, background=False)

    def sweep(self) -> None:
        """Ask for the next range of each class of which nothing is asked."""
        machine = self.machine
        if machine.state != RECOVERING or not self.incomplete or not machine.settled:
            return
        busy = {a.stripes.class_id for a in self.asked.values() if a.background}
        for class_id in sorted(self.incomplete - busy):
            if len(busy) >= machine.config.repairs_in_flight_max:
                return
            first = machine.store.next_missing(class_id, 0)
            if first < 0:
                self.incomplete.discard(class_id)
                continue
            stripes = Stripes(class_id, first, machine.store.class_size(class_id))
            if self._send(stripes, NO_KEYS, background=True):
                busy.add(class_id)

    def _send(self, stripes: Stripes, keys: Any, background: bool) -> bool:
        """Ask the first surviving parity holder; False if there is none (a later view will tell of one)."""
        machine = self.machine
        holders = self._holders(stripes.class_id)
        if not holders:
            return False
        request = self.new_request()
        self.asked[request] = Asked(stripes, keys, background, machine.now_ms)
        machine.send(holders[0], m.Repair(machine.view, request, stripes), (keys,))
        return True

    def _holders(self, class_id: int) -> list[Peer]:
        """Parity holders that are whole, in order of their slots."""
        peers = self.machine.peers
        return [peers[p] for p in self.machine.placement.classes[class_id].parity if peers[p].has_parity(class_id)]

    def on_repaired(self, peer: Peer, message: m.Repaired, frames: m.Frames) -> None:
        store = self.machine.store
        self.check(message.stripes, arrays.keys(frames[0]), as_data=True)
        # late answers count too: a lost row's value does not change within a view
        asked, keys, records = arrays.keys(frames[0]), arrays.keys(frames[1]), arrays.records(frames[2])
        stripes = message.stripes
        if keys.size:
            store.restore(keys, records)
        self.asked.pop(message.request, None)
        self._timeout_factor = 1
        if stripes.last:
            store.mark_recovered(stripes.class_id, stripes.first, stripes.last)
        else:
            store.mark_recovered_keys(asked)
        if store.next_missing(stripes.class_id, 0) < 0:
            self.incomplete.discard(stripes.class_id)

    def check(self, stripes: Stripes, keys: Any, as_data: bool) -> None:
        """Raise ValueError or IndexError for stripes of which I hold no data (or no parity), or that there are not."""
        machine, class_id = self.machine, stripes.class_id
        classes = machine.placement.classes
        if not 0 <= class_id < len(classes):
            raise ValueError(f"there is no class {class_id}")
        members = classes[class_id].data if as_data else classes[class_id].parity
        if machine.shard not in members:
            raise ValueError(f"class {class_id} is not on shard {machine.shard}")
        if stripes.last:
            size = machine.store.class_size(class_id)
            if not 0 <= stripes.first < stripes.last <= size:
                raise ValueError(f"class {class_id} has stripes 0 to {size}, not {stripes.first} to {stripes.last}")
        elif keys.size and (machine.store.classes(keys) != class_id).any():
            raise ValueError(f"the keys of stripes are not all of class {class_id}")

    # ------------------------------------------------------------------ requests come to an end
    def forget_all(self) -> None:
        """trap: a repair lives within one view; the replacement asks again."""
        self.asked.clear()
        self._timeout_factor = 1
        self.assemblies.clear()

    def on_tick(self) -> None:
        machine = self.machine
        timeout_ms = machine.config.repair_timeout_ms * self._timeout_factor
        late = [r for r, a in self.asked.items() if machine.now_ms - a.at_ms > timeout_ms]
        for request in late:
            del self.asked[request]
        if late:
            self._timeout_factor = min(2 * self._timeout_factor, TIMEOUT_FACTOR_MAX)
        abandoned_ms = 2 * TIMEOUT_FACTOR_MAX * machine.config.repair_timeout_ms
        for request in [r for r, a in self.assemblies.items() if machine.now_ms - a.at_ms > abandoned_ms]:
            del self.assemblies[request]

    # ------------------------------------------------------------------ a parity holder
    def open(self, request: int, stripes: Stripes, keys: Any) -> Assembly:
        """The request's assembly; at its first sign the capture is taken."""
        assembly = self.assemblies.get(request)
        if assembly is None:
            store = self.machine.store
            if stripes.last:
                capture = Capture(store, stripes.class_id, stripes.first, stripes.last)
            else:
                capture = Capture.of_keys(store, stripes.class_id, keys)
            assembly = self.assemblies[request] = Assembly(stripes, capture, keys, self.machine.now_ms)
        return assembly

    def fold_captures(self, peer: Peer, mask: int, keys: Any, records: Any) -> None:
        """A later delta belongs to the capture until its sender's MARK."""
        for assembly in self.assemblies.values():
            if peer.shard not in assembly.marked and mask >> assembly.stripes.class_id & 1:
                assembly.capture.fold(peer.shard, keys, records)

    def on_repair(self, peer: Peer, message: m.Repair, frames: m.Frames) -> None:
        """I am the assembler: capture, ask the members to mark, and the other holders I need for their captures."""
        machine = self.machine
        stripes, keys = message.stripes, arrays.keys(frames[0])
        self.check(stripes, keys, as_data=False)
        if peer.shard not in machine.placement.classes[stripes.class_id].data:
            raise ValueError(f"shard {peer.shard} asks to repair class {stripes.class_id}, of which it holds no data")
        code = machine.placement.code_of(stripes.class_id)
        # trap: a member that is itself recovering must mark too, its new deltas are in flight
        members = [p for p in self._members(stripes.class_id) if p.running and p.shard != peer.shard]
        full = [p.shard for p in members if p.has_data]
        holders = self._holders(stripes.class_id)[: code.k - len(full)]
        if len(full) + len(holders) < code.k:
            return  # cannot be decoded in this view
        if stripes.last:
            last = machine.store.span(stripes.class_id, stripes.first, stripes.last, machine.config.repair_rows_max)
            stripes = Stripes(stripes.class_id, stripes.first, last)
        assembly = self.open(message.request, stripes, keys)
        assembly.members, assembly.full = {p.shard for p in members}, full
        assembly.used = [p.shard for p in holders]

        def finish(assembly: Assembly) -> None:
            self._decode(peer, message.request, assembly)

        assembly.finish = finish
        for holder in holders:
            if holder.shard != machine.shard:
                capture = m.CaptureParity(machine.view, message.request, stripes, [p.shard for p in members])
                machine.send(holder, capture, (keys,))
        for member in members:
            snap = m.Snap(machine.view, message.request, stripes, assembly.used, member.shard in full)
            machine.send(member, snap, (keys,))
        self.try_finish(message.request)

    def _members(self, class_id: int) -> list[Peer]:
        return [self.machine.peers[s] for s in self.machine.placement.classes[class_id].data]

    def on_capture_parity(self, peer: Peer, message: m.CaptureParity, frames: m.Frames) -> None:
        keys = arrays.keys(frames[0])
        self.check(message.stripes, keys, as_data=False)
        assembly = self.open(message.request, message.stripes, keys)
        assembly.members = set(message.members)

        def finish(assembly: Assembly) -> None:
            captured = m.Captured(self.machine.view, message.request)
            self.machine.send(peer, captured, assembly.capture.take())

        assembly.finish = finish
        self.try_finish(message.request)

    def on_mark(self, peer: Peer, message: m.Mark, frames: m.Frames) -> None:
        keys = arrays.keys(frames[0])
        self.check(message.stripes, keys, as_data=False)
        rows = arrays.keys(frames[1]), arrays.records(frames[2])
        assembly = self.open(message.request, message.stripes, keys)
        assembly.marked.add(peer.shard)
        assembly.rows[peer.shard] = rows
        self.try_finish(message.request)

    def on_captured(self, peer: Peer, message: m.Captured, frames: m.Frames) -> None:
        assembly = self.assemblies.get(message.request)
        if assembly is not None:
            assembly.captures[peer.shard] = arrays.keys(frames[0]), arrays.records(frames[1])
            self.try_finish(message.request)

    def try_finish(self, request: int) -> None:
        """Finish the request if all it needs is here."""
        assembly = self.assemblies[request]
        if assembly.finish is None or assembly.members is None or not assembly.members <= assembly.marked:
            return
        if any(p not in assembly.captures for p in assembly.used if p != self.machine.shard):
            return
        del self.assemblies[request]
        try:
            assembly.finish(assembly)
        except BAD_CONTENT as error:
            # Of the members' rows one does not fit; whoever asked asks again.
            self.machine.note("error", f"gave up a repair of class {assembly.stripes.class_id}: {error}")

    def remainder(self, assembly: Assembly, holder: int, code: Code) -> RowBuffer:
        """The holder's capture less the rows of the full members: what the lost rows contribute."""
        stripe = self.machine.placement.classes[assembly.stripes.class_id]
        row = code.coefficients[stripe.parity.index(holder)]
        if holder == self.machine.shard:
            keys, records = assembly.capture.take()
        else:
            keys, records = assembly.captures[holder]
        rest = RowBuffer(self.machine.store)
        rest.fold(1, keys, records)
        for member in assembly.full:
            rest.fold(int(row[stripe.data.index(member)]), *assembly.rows[member])
        return rest

    def code(self, class_id: int) -> Code:
        spec = self.machine.placement.code_of(class_id)
        return Code(spec.k, spec.r, spec.generator)

    def _decode(self, peer: Peer, request: int, assembly: Assembly) -> None:
        """Solve for the peer's rows and send them to it, each once."""
        machine = self.machine
        stripe = machine.placement.classes[assembly.stripes.class_id]
        code = self.code(assembly.stripes.class_id)
        unknown = [j for j, shard in enumerate(stripe.data) if shard not in assembly.full]
        equations = [stripe.parity.index(holder) for holder in assembly.used]
        solution = gf_invert_matrix(np.ascontiguousarray(code.coefficients[np.ix_(equations, unknown)]))
        wanted = solution[unknown.index(stripe.data.index(peer.shard))]
        lost = RowBuffer(machine.store)
        for holder, coefficient in zip(assembly.used, wanted, strict=True):
            lost.fold(int(coefficient), *self.remainder(assembly, holder, code).take())
        repaired = m.Repaired(machine.view, request, assembly.stripes)
        machine.send(peer, repaired, (assembly.keys, *lost.take()))

    # ------------------------------------------------------------------ a data member
    def on_snap(self, peer: Peer, message: m.Snap, frames: m.Frames) -> None:
        """Put my MARK in the streams right behind the deltas that the coded rows contain."""
        machine = self.machine
        keys, stripes = arrays.keys(frames[0]), message.stripes
        self.check(stripes, keys, as_data=True)
        for shard in message.holders:
            if shard not in machine.peers or shard == machine.shard:
                raise ValueError(f"shard {shard} cannot get a MARK from shard {machine.shard}")
        machine.close_window()
        rows: tuple[Any, Any] = NO_KEYS, NO_RECORDS
        if message.with_rows and stripes.last:
            rows = machine.store.coded_rows(stripes.class_id, stripes.first, stripes.last)
        elif message.with_rows:
            rows = machine.store.coded_rows_of(keys)
        mark = m.Mark(machine.view, message.request, stripes)
        for shard in message.holders:
            if machine.peers[shard].running:
                part = rows if shard == peer.shard else (NO_KEYS, NO_RECORDS)
                machine.send(machine.peers[shard], mark, (keys, *part))
