"""The scrub: all parity of a class against its data at one cut, while training goes on (docs/protocol.md).

It is made of the parts of a repair: captures that follow the deltas of each data member until its MARKER. The first
parity holder of a class leads. It takes the coded rows of all data members out of the captures of all parity holders;
what is left, the *syndromes*, is zero where all fits.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ecrec._native import Code, RowBuffer, gf_inverse, gf_multiply
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.arrays import NO_KEYS
from ecrec.protocol.captures import TIMEOUT_FACTOR_MAX, Assembly, Captures, check_stripes
from ecrec.protocol.events import BAD_CONTENT
from ecrec.protocol.messages import LOCATED, UNSURE, UP, Address, Stripes
from ecrec.protocol.peer import Peer
from ecrec.protocol.repair import KEY_BITS
from ecrec.protocol.shard_context import ShardContext

ALL_CLASSES = 2**64 - 1
SCRUBS_MAX = 64
"""Scrubs that a shard leads at a time; each keeps a copy of parity rows. `ecrec verify` asks for one at a time."""

STRIPES_STEP = 4
"""Where too much is wrong, a quarter is compared at a time; where nothing is, four times as much."""


class Syndromes(NamedTuple):
    """Stripes of one table that do not fit: keys uint64[m], syndromes uint8[r, m, record bytes]."""

    table: int
    keys: Any
    values: Any


class Findings(NamedTuple):
    """As the frames of `ScrubResult`."""

    keys: Any
    slots: Any
    verdicts: Any


class _Records(NamedTuple):
    """Records of many keys, in order of these: keys uint64[m], the offset and the size of each in ``blob``."""

    keys: Any
    starts: Any
    sizes: Any
    blob: Any

    def rows_of(self, first: int, at: Any) -> Any:
        """uint8[len(at), record bytes]: those of one table, which begin at ``first``."""
        size = int(self.sizes[first])
        return sliding_window_view(self.blob, size)[self.starts[first + at]]

    def select(self, wanted: Any) -> Any:
        """The records of ``wanted``, which are among the keys, as a blob in that order."""
        at = np.searchsorted(self.keys, wanted)
        parts = [
            self.rows_of(some[0], some - some[0]).reshape(-1)
            for some in np.split(at, np.flatnonzero(np.diff(self.sizes[at])) + 1)  # runs of records of one size
            if len(some)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


@dataclass(slots=True, eq=False)
class Running:
    """A scrub that I lead."""

    tool: Address
    request: int
    """The tool's newest number of it."""
    class_id: int
    first: int
    at_ms: float
    repair: bool
    view: int
    result: m.ScrubResult | None = None
    findings: Findings | None = None
    waiting: set[int] = field(default_factory=set)
    """Parity holders that have not yet confirmed their corrections."""


class Scrubs:
    """The part of a `ShardMachine` that leads scrubs, and corrects its own parity when another leads."""

    def __init__(self, context: ShardContext, captures: Captures) -> None:
        self.context = context
        self.captures = captures
        self.running: dict[int, Running] = {}
        """Request -> the scrub; one of a class at a time, so that no syndrome is corrected twice."""
        self.corrected = 0
        """Parity rows that were wrong here, in all."""
        self._fewer: dict[tuple[int, int], int] = {}
        """(class, first) -> so many stripes, touched or not, are compared from there: of more too many are wrong."""

    # ------------------------------------------------------------------ a tool asks
    def on_scrub(self, tool: Address, message: m.Scrub, frames: m.Frames) -> None:
        context, class_id = self.context, message.class_id
        classes = context.placement.classes
        if not 0 <= class_id < len(classes) or classes[class_id].parity[:1] != (context.shard,):
            self._busy(tool, message.request, f"this shard does not lead the scrub of class {class_id}")
            return
        size = context.store.class_size(class_id)
        first = min(max(message.first, 0), size)
        known = next((running for running in self.running.values() if running.class_id == class_id), None)
        if known is not None:
            if (known.tool, known.first, known.repair) == (tool, first, message.repair):
                known.request = message.request  # it lost patience, and is told when it is done
            else:
                self._busy(tool, message.request, "another scrub of these stripes goes on")
            return
        if len(self.running) >= SCRUBS_MAX or self.captures.is_full():
            self._busy(tool, message.request, f"{len(self.running)} scrubs are under way here")
            return
        stripe = classes[class_id]
        members = [context.peers[shard] for shard in stripe.data + stripe.parity]
        if context.state != UP or not context.settled or any(p.state != UP for p in members):
            self._busy(tool, message.request, "a member of these stripes is not whole")
            return
        if first == size:
            result = m.ScrubResult(message.request, class_id, size, size, 0, 0, 0, message.repair)
            context.reply(tool, result, _nothing())
            return
        config = context.config
        rows_max = min(max(1, message.rows_max), config.scrub_rows_max)
        bytes_max = min(config.scrub_bytes_max, config.frame_bytes_max)
        # trap: what was touched here says nothing of what was touched at others, or should have been here
        stripes = self._fewer.get((class_id, first), size)
        last = context.store.span(class_id, first, min(size, first + stripes), rows_max, bytes_max)
        context.checked()
        request = self.captures.new_request()
        self.running[request] = Running(
            tool, message.request, class_id, first, context.now_ms, message.repair, context.view
        )
        self._begin(request, Stripes(class_id, first, last))

    def _busy(self, tool: Address, request: int, reason: str, bytes_read: int = 0) -> None:
        self.context.reply(tool, m.ScrubBusy(request, reason, bytes_read))

    def _begin(self, request: int, stripes: Stripes) -> None:
        """Capture here and on the other parity holders, and have all data members send a marker."""
        context = self.context
        stripe = context.placement.classes[stripes.class_id]
        assembly = self.captures.open(request, context.view, stripes, NO_KEYS)
        assembly.full, assembly.used = list(stripe.data), list(stripe.parity)
        assembly.members = set(stripe.data)

        def finish(assembly: Assembly) -> None:
            try:
                taken = self._compare(request, assembly)
            except BAD_CONTENT as error:
                context.note("error", f"gave up a scrub of class {stripes.class_id}: {error}")
                self._give_up(request, "a member's rows do not fit; ask again")
                return
            if isinstance(taken, int):
                self._compare_fewer(stripes, (stripes.last - stripes.first) // STRIPES_STEP)
                self._give_up(request, "more rows are wrong than are judged at a time; ask again, for fewer", taken)
                return
            self._finish(request, taken)

        assembly.finish = finish
        assembly.fail = lambda: self._give_up(request, "a member put it off; ask again")
        for holder in stripe.parity[1:]:
            capture = m.CaptureParity(context.view, request, stripes, list(stripe.data))
            context.send(context.peers[holder], capture, (NO_KEYS,))
        for member in stripe.data:
            snap = m.Snap(context.view, request, stripes, list(stripe.parity), True)
            context.send(context.peers[member], snap, (NO_KEYS,))

    # ------------------------------------------------------------------ the cut is complete
    def _compare(self, request: int, assembly: Assembly) -> list[_Records] | int:
        """Find what does not fit; the syndromes by parity holder. If it is more than is judged at a time, the bytes
        that were read. Raises BAD_CONTENT if rows do not fit."""
        context = self.context
        running = self.running[request]
        stripe = context.placement.classes[running.class_id]
        code = self.captures.code(running.class_id)
        read = sum(rows.nbytes for _, rows in (*assembly.rows.values(), *assembly.captures.values()))
        rests = [self.captures.remainder(assembly, holder, code) for holder in stripe.parity]
        parity_rows, bad = sum(map(len, rests)), [rest.nonzero() for rest in rests]
        store, stripes_compared = context.store, assembly.stripes.last - assembly.stripes.first
        wrong_bytes = max(int(_record_sizes(store, keys).sum()) for keys in bad)
        if wrong_bytes > context.config.scrub_wrong_bytes_max and stripes_compared > 1:
            return int(read)
        if self._fewer.pop((running.class_id, running.first), 0):
            # What follows is about as wrong, or fits.
            then = Stripes(running.class_id, assembly.stripes.last, assembly.stripes.last)
            self._compare_fewer(then, stripes_compared * (1 if wrong_bytes else STRIPES_STEP))
        taken = [_in_order(store, *rest.take()) for rest in rests]
        read += taken[0].blob.nbytes  # my own capture
        stripes = len(store.distinct(np.concatenate([each.keys for each in taken]), NO_KEYS))
        found = [self._judge(some, code) for some in _by_table(bad, taken)]
        running.findings = Findings(*(np.concatenate(parts) for parts in zip(_nothing(), *found, strict=True)))
        running.result = m.ScrubResult(
            running.request, running.class_id, assembly.stripes.last, context.store.class_size(running.class_id),
            stripes, parity_rows, read, running.repair,
        )  # fmt: skip
        return taken

    def _compare_fewer(self, stripes: Stripes, count: int) -> None:
        """From the first of these on, when it is asked for again. trap: not whatever is asked for next: two tools would
        take turns in making it too much for each other."""
        known = self._fewer.pop((stripes.class_id, stripes.first), count)
        self._fewer[stripes.class_id, stripes.first] = max(1, min(count, known))
        if len(self._fewer) > SCRUBS_MAX:
            del self._fewer[next(iter(self._fewer))]

    def _finish(self, request: int, taken: list[_Records]) -> None:
        """Answer the tool, or first have what does not fit corrected."""
        running = self.running[request]
        assert running.findings is not None
        if running.repair and len(running.findings.keys):
            self._correct(request, running, self.captures.code(running.class_id), taken)
        self._answer(request, running)

    def _judge(self, some: Syndromes, code: Code) -> Findings:
        """Which member of each stripe is wrong, as far as the parity can tell.

        With e added to data row j the syndromes are coefficients[i, j] * e, with e added to parity row i all others are
        zero: r >= 2 tell one wrong member from another. With r = 1, or where more are wrong, they cannot, and the data
        rows count as right, because they are what training uses.
        """
        nonzero = some.values.any(axis=2)
        count = nonzero.sum(axis=0)
        data_row = np.full(len(some.keys), -1)
        if code.r > 1:
            ratios = _ratios(code)
            # The first two parity rows name the only member that it can be, by one byte that is wrong in it.
            one = np.arange(len(some.keys)), (some.values[0] != 0).argmax(axis=1)
            rows = self._row_exists(some)
            for j in range(code.k):
                maybe = (count == code.r) & rows[j]
                maybe &= _products(ratios[1][j])[some.values[0][one]] == some.values[1][one]
                (which,) = np.nonzero(maybe)
                first = some.values[0][which]
                fits = np.ones(len(which), np.bool_)
                for i in range(1, code.r):
                    fits &= (_products(ratios[i][j])[first] == some.values[i][which]).all(axis=1)
                data_row[which[fits]] = j
        in_data = data_row >= 0
        parity, which = np.nonzero(nonzero & ~in_data)
        sure = (count[which] == 1) & (code.r > 1)
        return Findings(
            np.concatenate([some.keys[in_data], some.keys[which]]),
            np.concatenate([data_row[in_data], code.k + parity]).astype(np.uint8),
            np.where(np.concatenate([np.ones(int(in_data.sum()), np.bool_), sure]), LOCATED, UNSURE).astype(np.uint8),
        )

    def _row_exists(self, some: Syndromes) -> Any:
        """bool[k, m]: the last stripe of a table may have fewer than k rows."""
        spec = self.context.tables[some.table]
        stripes = (some.keys & np.uint64((1 << KEY_BITS) - 1)).astype(np.int64)
        first = (stripes * self.context.groups + self.context.group) * spec.code.k
        return first[None, :] + np.arange(spec.code.k)[:, None] < spec.rows

    # ------------------------------------------------------------------ corrections
    def _correct(self, request: int, running: Running, code: Code, taken: list[_Records]) -> None:
        context = self.context
        assert running.findings is not None
        keys, slots, _ = running.findings
        for i, holder in enumerate(context.placement.classes[running.class_id].parity):
            wrong = keys[slots == code.k + i]
            if not len(wrong):
                continue
            rows = wrong, taken[i].select(wrong)
            if holder == context.shard:
                self._add_to_parity(running.class_id, *rows)
            else:
                running.waiting.add(holder)
                correct = m.CorrectParity(running.view, request, running.class_id)
                context.send(context.peers[holder], correct, rows)

    def _add_to_parity(self, class_id: int, keys: Any, records: Any) -> None:
        """XOR into my parity rows. The store takes data rows, which it multiplies by the coefficient."""
        context = self.context
        stripe = context.placement.classes[class_id]
        coefficient = self.captures.code(class_id).coefficients[stripe.parity.index(context.shard), 0]
        scaled = RowBuffer(context.store)
        scaled.fold(gf_inverse(int(coefficient)), keys, records)
        context.store.fold(stripe.data[0], ALL_CLASSES, *scaled.take())
        context.checked()
        self.corrected += len(keys)
        named = ", ".join(f"{key >> KEY_BITS}:{key & (1 << KEY_BITS) - 1}" for key in keys[:8].tolist())
        context.note(
            "warning", f"a scrub corrected {len(keys)} parity rows of class {class_id}: (table:stripe) {named}"
        )

    def on_correct_parity(self, peer: Peer, message: m.CorrectParity, frames: m.Frames) -> None:
        context = self.context
        keys = arrays.keys(frames[0])
        check_stripes(context, Stripes(message.class_id, 0, 0), keys, as_data=False)
        if context.placement.classes[message.class_id].parity[0] != peer.shard:
            raise ValueError(f"shard {peer.shard} corrects class {message.class_id}, whose scrub it does not lead")
        self._add_to_parity(message.class_id, keys, arrays.records(frames[1]))
        context.send(peer, m.ParityCorrected(message.view, message.request, message.class_id))

    def on_parity_corrected(self, peer: Peer, message: m.ParityCorrected, frames: m.Frames) -> None:
        self.context.checked()
        running = self.running.get(message.request)
        if running is not None and peer.shard in running.waiting:
            running.waiting.discard(peer.shard)
            self._answer(message.request, running)

    # ------------------------------------------------------------------ the end
    def _answer(self, request: int, running: Running) -> None:
        if running.waiting or running.result is None or running.findings is None:
            return
        del self.running[request]
        self.context.reply(running.tool, _renumbered(running.result, running.request), running.findings)

    def _give_up(self, request: int, reason: str, bytes_read: int = 0) -> None:
        running = self.running.pop(request)
        self._busy(running.tool, running.request, reason, bytes_read)

    def forget(self, classes: set[int]) -> None:
        """trap: a scrub does not outlive a view that concerns its class, as a repair does not."""
        for request, running in list(self.running.items()):
            if running.class_id in classes:
                self._give_up(request, "the membership changed; ask again")

    def on_tick(self) -> None:
        context = self.context
        abandoned_ms = TIMEOUT_FACTOR_MAX * context.config.repair_timeout_ms
        for request, running in list(self.running.items()):
            # trap: one that waits for corrections only ends with its view: a second one could correct them again
            if not running.waiting and context.now_ms - running.at_ms > abandoned_ms:
                self.captures.drop(request)
                self._give_up(request, "a member did not answer; ask again")


def _nothing() -> Findings:
    return Findings(np.zeros(0, np.uint64), np.zeros(0, np.uint8), np.zeros(0, np.uint8))


def _renumbered(result: m.ScrubResult, request: int) -> m.ScrubResult:
    return m.ScrubResult(
        request, result.class_id, result.last, result.size, result.stripes, result.parity_rows, result.bytes_read,
        result.repaired,
    )  # fmt: skip


@functools.cache
def _products(factor: int) -> Any:
    """Products of a factor in GF(2^8) with each byte, uint8[256]."""
    return np.array([gf_multiply(factor, byte) for byte in range(256)], np.uint8)


def _ratios(code: Code) -> list[list[int]]:
    """[r][k]: what an error of a data row does to syndrome i, divided by what it does to the first."""
    inverse = [gf_inverse(int(factor)) for factor in code.coefficients[0]]
    return [[gf_multiply(int(factor), i) for factor, i in zip(row, inverse, strict=True)] for row in code.coefficients]


def _record_sizes(store: Any, keys: Any) -> Any:
    """Bytes of the record of each key."""
    tables = (keys >> np.uint64(KEY_BITS)).astype(np.int64)
    return np.array([store.record_bytes(table) for table in range(store.tables)], np.int64)[tables]


def _in_order(store: Any, keys: Any, blob: Any) -> _Records:
    sizes, order = _record_sizes(store, keys), np.argsort(keys)
    starts = np.cumsum(sizes) - sizes
    return _Records(keys[order], starts[order], sizes[order], blob)


def _by_table(bad: list[Any], taken: list[_Records]) -> Iterator[Syndromes]:
    """The stripes that are bad for any parity holder, with all their syndromes, table by table."""
    keys = np.unique(np.concatenate(bad))
    tables = keys >> np.uint64(KEY_BITS)
    for table in np.unique(tables).tolist():
        low, high = np.uint64(table << KEY_BITS), np.uint64(table + 1 << KEY_BITS)
        some = keys[slice(*np.searchsorted(keys, [low, high]))]
        holders = [(each, *np.searchsorted(each.keys, [low, high]).tolist()) for each in taken]
        size = next(int(each.sizes[first]) for each, first, last in holders if first < last)
        values = np.zeros((len(taken), len(some), size), np.uint8)
        for i, (each, first, last) in enumerate(holders):
            if first < last:
                at = np.minimum(np.searchsorted(each.keys[first:last], some), last - first - 1)
                here = each.keys[first + at] == some
                values[i, here] = each.rows_of(first, at[here])
        yield Syndromes(table, some, values)
