"""Any sequence of calls on the stores of one group, compared with a plain model after each.

`World` is the group: pushes, windows that are taken, folded, undone and become stable, seeds, captures with marks, a
shard that dies and is put together again. The model holds what each member has sent to each peer and what of it is
folded, as coded values of the plain store, so that it says what must lie in every window, parity row and capture.

`run` reads a sequence from bytes; every string of bytes is one. Used by tests/property/test_store_sequences.py
(hypothesis shrinks it), tests/fuzz (target ``store``) and tests/sanitize.sh.

This file is long because the model, and each call on it and on the stores, stand side by side.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from simulation import tuning
from store_group import ALL_CLASSES, KEY_STRIPE_BITS, U8, U64, Group, random_tables, sections

from ecrec import _native
from ecrec.codec import Code
from ecrec.codec.reference import PRODUCTS
from ecrec.store import Capture, RowBuffer, Store, Window

STEPS_MAX = 60
HEAD_BYTES = 4
STEP_BYTES = 4
IN_FLIGHT_MAX = 4
"""Windows of a member that are not stable."""

Rows = dict[int, U8]
"""Key -> record; a row that is not there is zero."""


@contextlib.contextmanager
def small_thresholds(rng: np.random.Generator) -> Iterator[None]:
    """The store's thresholds drawn small; each as it was afterwards."""
    before = tuning.defaults()
    try:
        for name in before:
            if rng.random() < 0.7:
                with contextlib.suppress(ValueError):  # a value that this knob does not take
                    _native.set_tuning(**{name: int(rng.choice([1, 2, 4, 8, 64]))})
        yield
    finally:
        _native.set_tuning(**before)


def xor_into(rows: Rows, added: Rows) -> None:
    for key, record in added.items():
        rows[key] = rows[key] ^ record if key in rows else record


def without_zeros(rows: Rows) -> dict[int, bytes]:
    return {key: record.tobytes() for key, record in rows.items() if record.any()}


def merged(store: Store, keys: U64, records: U8) -> Rows:
    """What a blob adds to each row; a key may be there twice."""
    rows: Rows = {}
    at = 0
    for key in keys.tolist():
        size = store.record_bytes(key >> KEY_STRIPE_BITS)
        xor_into(rows, {key: records[at : at + size].copy()})
        at += size
    assert at == len(records)
    return rows


@dataclass
class Sent:
    """A window of one member to one peer."""

    number: int
    blob: tuple[U64, U8]
    rows: Rows
    mask: int = ALL_CLASSES
    folded: bool = False


@dataclass
class Marked:
    """A capture that waits for the windows up to each member's mark."""

    peer: int
    class_id: int
    first: int
    last: int
    keys: list[int] | None
    capture: Capture
    marks: dict[int, int] = field(default_factory=dict)
    rows: dict[int, Rows] = field(default_factory=dict)
    """Member -> its coded rows at its mark."""


class World:
    """One group and its model. Each method is one step; what it picks is drawn from a generator of its own seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n = n = int(rng.integers(2, 7))
        groups = int(rng.choice([1, 1, 2]))
        rows_max = int(rng.choice([8, 40, 40, 300])) * groups
        tables = random_tables(rng, n, groups, int(rng.integers(1, 4)), rows_max)
        self.group = Group(tables, n, int(rng.integers(groups)), groups)
        self.tables = self.group.reference.tables
        self.codes = self.group.stores[0].codes
        self.coefficients = [Code(*code).coefficients for code in self.codes]
        self.initial: dict[tuple[int, int], U8] = {}
        self.number = [0] * n
        self.stable = [0] * n
        """Per member: the last window taken, and the last that will never be undone."""
        self.in_flight: dict[tuple[int, int], list[Sent]] = {(s, p): [] for s in range(n) for p in range(n) if s != p}
        self.sent: dict[tuple[int, int], Rows] = {pair: {} for pair in self.in_flight}
        self.folded: dict[tuple[int, int], Rows] = {pair: {} for pair in self.in_flight}
        self.snapshots: list[dict[int, dict[tuple[int, int], U8]]] = [{0: {}} for _ in range(n)]
        self.tasks: set[tuple[int, int, int]] = set()
        """(member, peer, class) that the member has yet to seed."""
        self.seeds_unstable = False
        self.missing: set[tuple[int, int]] = set()
        """(table, row) of the shard that was lost last."""
        self.lost = -1
        self.captures: list[Marked] = []

    # ------------------------------------------------------------------ the model
    def members(self, class_id: int) -> tuple[list[int], list[int]]:
        """Data and parity shards of a class, by slot."""
        k, r, _ = self.codes[class_id // self.n]
        shards = [(class_id % self.n + slot) % self.n for slot in range(k + r)]
        return shards[:k], shards[k:]

    def classes(self) -> Iterator[int]:
        yield from range(len(self.codes) * self.n)

    def class_of(self, key: int) -> int:
        table = self.tables[key >> KEY_STRIPE_BITS]
        code = self.codes.index((table.k, table.r, table.generator))
        return code * self.n + (key & ((1 << KEY_STRIPE_BITS) - 1)) % self.n

    def position_of(self, key: int) -> int:
        index, stripe = key >> KEY_STRIPE_BITS, key & ((1 << KEY_STRIPE_BITS) - 1)
        mine = self.tables[index]
        earlier = (t for t in self.tables[:index] if (t.k, t.r, t.generator) == (mine.k, mine.r, mine.generator))
        return sum(-(-table.stripes(self.group.group) // self.n) for table in earlier) + stripe // self.n

    def coded_rows(self, shard: int) -> Rows:
        """Coded values of the rows that a shard has, by key, but for those that are zero."""
        found: Rows = {}
        for (index, row), record in self.group.reference._records.items():
            table = self.tables[index]
            lacks = shard == self.lost and (index, row) in self.missing
            if table.shard_of(row) != (self.group.group, shard) or lacks:
                continue
            if (index, row) not in self.initial:
                self.initial[index, row] = table.initial_record(row)
            coded = record ^ self.initial[index, row]
            if coded.any():
                found[index << KEY_STRIPE_BITS | table.stripe_of(row)[1]] = coded
        return found

    def owed(self, shard: int, peer: int) -> Rows:
        """What the peer must have been sent of the shard's rows: those whose parity it holds, below the limit."""
        window = self.group.windows[shard]
        missing_keys = {t << KEY_STRIPE_BITS | self.tables[t].stripe_of(row)[1] for t, row in self.missing}
        owed: Rows = {}
        for key, coded in self.coded_rows(shard).items():
            class_id = self.class_of(key)
            if peer in self.members(class_id)[1] and self.position_of(key) < window.limit(peer, class_id):
                owed[key] = coded
        if shard == self.lost:  # what it lacks was sent by its earlier life
            owed |= {key: row for key, row in self.sent[shard, peer].items() if key in missing_keys}
        return owed

    def check_parity(self, peer: int) -> None:
        """Each parity row of a shard is the encoding of what is folded."""
        expected: Rows = {}
        for shard in range(self.n):
            if shard == peer:
                continue
            for key, record in self.folded[shard, peer].items():
                class_id = self.class_of(key)
                data, parity = self.members(class_id)
                c = self.coefficients[class_id // self.n][parity.index(peer), data.index(shard)]
                xor_into(expected, {key: PRODUCTS[c, record]})
        assert self.group.parity_rows(peer) == without_zeros(expected), f"parity of shard {peer}"

    # ------------------------------------------------------------------ steps: pushes
    def push(self, rng: np.random.Generator, assigns: bool = False) -> None:
        """Rows of one shard; one that lacks a row of them refuses all."""
        shard = int(rng.integers(self.n))
        listed, values = self.group.random_push(rng, shard, int(rng.choice([2, 8, 30])))
        if rng.random() < 0.1:
            values[:] = 0
        store, window = self.group.stores[shard], self.group.windows[shard]
        call = store.assign if assigns else store.apply
        at, lacks = 0, False
        for table, count in zip(listed[0].tolist(), listed[1].tolist(), strict=True):
            rows = listed[2][at : at + count].tolist()
            lacks |= shard == self.lost and any((table, row) in self.missing for row in rows)
            at += count
        if lacks:
            before = window.rows()
            assert store.missing(*listed).size > 0
            refused(RuntimeError, lambda: call(*listed, values, window))
            assert window.rows() == before
            return
        assert store.missing(*listed).size == 0
        call(*listed, values, window)
        at = row_at = 0
        for table, count in zip(listed[0].tolist(), listed[1].tolist(), strict=True):
            dim = self.tables[table].dim
            change = self.group.reference.assign if assigns else self.group.reference.apply
            for row in listed[2][row_at : row_at + count].tolist():
                change(table, row, values[at : at + dim])
                at += dim
            row_at += count

    def assign(self, rng: np.random.Generator) -> None:
        self.push(rng, assigns=True)

    def read(self, rng: np.random.Generator) -> None:
        """Every row of a shard is the plain store's."""
        shard = int(rng.integers(self.n))
        if shard != self.lost:
            self.group.check_rows(shard)
        self.group.stores[shard].use_huge_pages(int(rng.integers(4)))

    # ------------------------------------------------------------------ steps: windows
    def take(self, rng: np.random.Generator) -> None:
        self._take(int(rng.integers(self.n)))

    def _take(self, shard: int) -> None:
        """Close the window of a member; in it is what its peers lack, and nothing else."""
        while self.number[shard] - self.stable[shard] >= IN_FLIGHT_MAX:
            self._make_stable(shard, self.stable[shard] + 1)
        self.number[shard] += 1
        rows = {
            (index, row): record
            for (index, row), record in self.group.reference._records.items()
            if self.tables[index].shard_of(row) == (self.group.group, shard)
        }
        self.snapshots[shard][self.number[shard]] = rows
        for peer in range(self.n):
            buffer = self.group.windows[shard].buffer(peer)
            if peer == shard:
                assert len(buffer) == 0
                continue
            size = len(buffer)
            blob = buffer.take()
            assert (len(blob[0]), len(buffer), buffer.nbytes) == (size, 0, 0)
            taken = merged(self.group.stores[shard], *blob)
            owed = self.owed(shard, peer)
            lacking = dict(owed)
            xor_into(lacking, self.sent[shard, peer])
            assert without_zeros(taken) == without_zeros(lacking), f"window of shard {shard} to {peer}"
            self.sent[shard, peer] = owed
            self.in_flight[shard, peer].append(Sent(self.number[shard], blob, taken))

    def fold(self, rng: np.random.Generator) -> None:
        """The oldest window of a member that a peer has not folded yet."""
        waiting = [pair for pair, sent in self.in_flight.items() if any(not each.folded for each in sent)]
        if waiting:
            self._fold_next(*waiting[int(rng.integers(len(waiting)))])

    def _fold_next(self, shard: int, peer: int) -> None:
        sent = next(each for each in self.in_flight[shard, peer] if not each.folded)
        self._fold(shard, peer, sent)
        for marked in self.captures:
            if marked.peer == peer and sent.number <= marked.marks.get(shard, 1 << 62):
                if shard in self.members(marked.class_id)[0]:
                    marked.capture.fold(shard, *sent.blob)
                elif any(self.class_of(key) == marked.class_id for key in sent.rows):
                    raise AssertionError(f"shard {shard} has no data row of class {marked.class_id}")
        self._finish_captures()

    def _fold(self, shard: int, peer: int, sent: Sent) -> None:
        """Folded for the second time it is undone."""
        self.group.stores[peer].fold(shard, sent.mask, *sent.blob)
        counted = {key: row for key, row in sent.rows.items() if sent.mask >> self.class_of(key) & 1}
        xor_into(self.folded[shard, peer], counted)
        sent.folded = not sent.folded
        self.check_parity(peer)

    def undo(self, rng: np.random.Generator) -> None:
        """The last windows that a peer folded of a member, newest first; captures do not outlive that."""
        folded = [pair for pair, sent in self.in_flight.items() if any(each.folded for each in sent)]
        if not folded:
            return
        self.captures.clear()
        pair = folded[int(rng.integers(len(folded)))]
        done = [each for each in self.in_flight[pair] if each.folded]
        before = self.group.parity_rows(pair[1])
        undone = done[len(done) - int(rng.integers(1, len(done) + 1)) :][::-1]
        for sent in undone:
            self._fold(*pair, sent)
        if rng.random() < 0.5:
            for sent in undone[::-1]:
                self._fold(*pair, sent)
            assert self.group.parity_rows(pair[1]) == before

    def make_stable(self, rng: np.random.Generator) -> None:
        shard = int(rng.integers(self.n))
        self._make_stable(shard, int(rng.integers(self.stable[shard], self.number[shard] + 1)))

    def _make_stable(self, shard: int, number: int) -> None:
        """All peers have folded the windows of a member up to one, and forget how to undo them."""
        for peer in range(self.n):
            if peer == shard:
                continue
            sent = self.in_flight[shard, peer]
            while any(each.number <= number and not each.folded for each in sent):
                self._fold_next(shard, peer)
            self.in_flight[shard, peer] = [each for each in sent if each.number > number]
        self.stable[shard] = max(number, self.stable[shard])
        kept = self.snapshots[shard]
        self.snapshots[shard] = {each: rows for each, rows in kept.items() if each >= self.stable[shard]}

    def flush(self) -> None:
        """Nothing is in flight."""
        for shard in range(self.n):
            self._take(shard)
            self._make_stable(shard, self.number[shard])
        self.seeds_unstable = bool(self.tasks) and self.seeds_unstable

    # ------------------------------------------------------------------ steps: seeding
    def wipe(self, rng: np.random.Generator) -> None:
        """A parity holder loses a class, or begins one anew that is not seeded yet."""
        held = [(peer, c) for c in self.classes() for peer in self.members(c)[1]]
        begun = {(peer, c) for _, peer, c in self.tasks}
        held = [each for each in held if each in begun or not self.missing or self.codes[each[1] // self.n][1] > 1]
        # What the lost shard lacks must stay decodable: one other parity is complete.
        held = [e for e in held if not self.missing or any(self.is_seeded(p, e[1]) for p in self.others(e))]
        if held:
            self._begin_round(*held[int(rng.integers(len(held)))])

    def others(self, held: tuple[int, int]) -> list[int]:
        return [peer for peer in self.members(held[1])[1] if peer not in (held[0], self.lost)]

    def is_seeded(self, peer: int, class_id: int) -> bool:
        return not any(task[1:] == (peer, class_id) for task in self.tasks)

    def _begin_round(self, peer: int, class_id: int) -> None:
        self.group.stores[peer].wipe_parity(class_id)
        self.captures = [each for each in self.captures if (each.peer, each.class_id) != (peer, class_id)]
        for shard in self.members(class_id)[0]:
            window = self.group.windows[shard]
            window.set_limit(peer, class_id, 0)
            window.buffer(peer).remove_class(class_id)
            for rows in (self.sent[shard, peer], self.folded[shard, peer]):
                for key in [key for key in rows if self.class_of(key) == class_id]:
                    del rows[key]
            for sent in self.in_flight[shard, peer]:
                sent.mask &= ~(1 << class_id)
            self.tasks.add((shard, peer, class_id))
        self.check_parity(peer)

    def seed(self, rng: np.random.Generator) -> None:
        if self.tasks:
            self._seed(*sorted(self.tasks)[int(rng.integers(len(self.tasks)))], int(rng.choice([1, 2, 7, 1 << 40])))

    def _seed(self, shard: int, peer: int, class_id: int, rows_max: int) -> None:
        store, window = self.group.stores[shard], self.group.windows[shard]
        before, limit = len(window.buffer(peer)), window.limit(peer, class_id)
        finished, blocked = store.seed(window, peer, class_id, rows_max)
        self.seeds_unstable = True
        after = window.limit(peer, class_id)
        assert after >= limit and finished == (after == Window.UNLIMITED)
        assert len(window.buffer(peer)) - before <= rows_max
        lacking = [
            index << KEY_STRIPE_BITS | self.tables[index].stripe_of(row)[1]
            for index, row in self.missing
            if shard == self.lost
        ]
        lacking = [key for key in lacking if self.class_of(key) == class_id and self.position_of(key) >= after]
        assert set(blocked.tolist()) <= set(lacking)
        if blocked.size:
            assert after == min(map(self.position_of, lacking))
        if finished:
            assert not lacking
            self.tasks.remove((shard, peer, class_id))

    # ------------------------------------------------------------------ steps: captures
    def capture(self, rng: np.random.Generator) -> None:
        """A parity holder copies its rows of a range, or of some keys, of a class."""
        held = [(peer, c) for c in self.classes() for peer in self.members(c)[1] if self.is_seeded(peer, c)]
        if not held or len(self.captures) > 3 or self.seeds_unstable:
            return
        peer, class_id = held[int(rng.integers(len(held)))]
        store = self.group.stores[peer]
        size = store.class_size(class_id)
        first, last = sorted(rng.integers(0, size + 1, 2).tolist())
        keys = None
        if rng.random() < 0.5:
            stripes = [
                index << KEY_STRIPE_BITS | stripe
                for index, table in enumerate(self.tables)
                for stripe in range(table.stripes(self.group.group))
            ]
            keys = [key for key in stripes if self.class_of(key) == class_id and rng.random() < 0.5]
            capture = Capture.of_keys(store, class_id, np.array(keys, np.uint64))
        else:
            capture = Capture(store, class_id, first, last)
        self.captures.append(Marked(peer, class_id, first, last, keys, capture))
        if rng.random() < 0.3:
            while any(each.capture is capture for each in self.captures):
                self.mark(rng)

    def mark(self, rng: np.random.Generator) -> None:
        """A data member closes its window and says what its coded rows are there."""
        todo = [(each, s) for each in self.captures for s in self.members(each.class_id)[0] if s not in each.marks]
        if not todo:
            for shard, peer in self.in_flight:
                while any(not sent.folded for sent in self.in_flight[shard, peer]):
                    self._fold_next(shard, peer)
            return
        marked, shard = todo[int(rng.integers(len(todo)))]
        self._take(shard)
        if not any(each is marked for each in self.captures):
            return
        marked.marks[shard] = self.number[shard]
        store = self.group.stores[shard]
        if marked.keys is None:
            blob = store.coded_rows(marked.class_id, marked.first, marked.last)
        else:
            blob = store.coded_rows_of(np.array(marked.keys, np.uint64))
        marked.rows[shard] = merged(store, *blob)
        expected = {key: row for key, row in self.coded_rows(shard).items() if self._holds(marked, key)}
        assert without_zeros(marked.rows[shard]) == without_zeros(expected)
        if shard == self.lost:  # the parity has what it lacks, too
            marked.rows[shard] = {k: r for k, r in self.sent[shard, marked.peer].items() if self._holds(marked, k)}
        self._finish_captures()

    def _holds(self, marked: Marked, key: int) -> bool:
        if self.class_of(key) != marked.class_id:
            return False
        if marked.keys is not None:
            return key in marked.keys
        return marked.first <= self.position_of(key) < marked.last

    def _finish_captures(self) -> None:
        """With all marks, and what was sent before them, a capture is the parity of the marked rows."""
        left = []
        for marked in self.captures:
            data, parity = self.members(marked.class_id)
            waits = [
                shard
                for shard in data
                if shard not in marked.marks
                or any(
                    sent.number <= marked.marks[shard] and not sent.folded
                    for sent in self.in_flight[shard, marked.peer]
                )
            ]
            if waits:
                left.append(marked)
                continue
            expected: Rows = {}
            for slot, shard in enumerate(data):
                c = self.coefficients[marked.class_id // self.n][parity.index(marked.peer), slot]
                xor_into(expected, {key: PRODUCTS[c, row] for key, row in marked.rows[shard].items()})
            found = merged(self.group.stores[marked.peer], *marked.capture.take())
            assert without_zeros(found) == without_zeros(expected), "a capture at its cut"
        self.captures = left

    # ------------------------------------------------------------------ steps: a death
    def die(self, rng: np.random.Generator) -> None:
        """A shard goes back to a cut, is undone beyond it, and starts with nothing; its parity is to be seeded."""
        if self.tasks or self.missing:
            return
        if self.seeds_unstable:
            self.flush()
        shard = int(rng.integers(self.n))
        self.captures.clear()
        cut = int(rng.integers(self.stable[shard], self.number[shard] + 1))
        for peer in range(self.n):
            if peer == shard:
                continue
            for sent in self.in_flight[shard, peer][::-1]:
                if (sent.number <= cut) != sent.folded:
                    self._fold(shard, peer, sent)
                if sent.number > cut:
                    xor_into(self.sent[shard, peer], sent.rows)
            self.in_flight[shard, peer] = []
        reference = self.group.reference
        for index, row in list(reference._records):
            if self.tables[index].shard_of(row) == (self.group.group, shard):
                del reference._records[index, row]
        reference._records.update(self.snapshots[shard][cut])
        self.number[shard] = self.stable[shard] = cut
        self.snapshots[shard] = {cut: self.snapshots[shard][cut]}
        self.lost = shard
        self.missing = {(index, row) for index in range(len(self.tables)) for row in self.group.rows_of(shard, index)}
        self.group.stores[shard] = store = self.group.new_store(shard, recovered=False)
        self.group.windows[shard] = self.group.new_window(store)
        for member in range(self.n):
            if member != shard:
                self.folded[member, shard] = {}
        for class_id in self.classes():
            data, parity = self.members(class_id)
            if shard in parity:
                self._begin_round(shard, class_id)
            elif shard in data and not parity:  # nothing can give these rows
                for index, row in list(self.missing):
                    if self.class_of(index << KEY_STRIPE_BITS | self.tables[index].stripe_of(row)[1]) == class_id:
                        self.missing.discard((index, row))
                        reference._records.pop((index, row), None)
                store.mark_recovered(class_id, 0, store.class_size(class_id))

    def repair(self, rng: np.random.Generator) -> None:
        """Some positions of a class come back to the lost shard, decoded from parity and the other members."""
        if not self.missing:
            return
        store = self.group.stores[self.lost]
        wanting = [c for c in self.classes() if store.next_missing(c, 0) >= 0]
        class_id = wanting[int(rng.integers(len(wanting)))]
        first = store.next_missing(class_id, 0)
        self._repair(class_id, first, min(store.class_size(class_id), first + int(rng.choice([1, 3, 1 << 30]))))

    def _repair(self, class_id: int, first: int, last: int) -> None:
        self.flush()
        data, parity = self.members(class_id)
        shard, slot = self.lost, data.index(self.lost)
        store = self.group.stores[shard]
        known = [s for s in range(len(data)) if s != slot]
        holder = next(p for p in parity if p != shard and self.is_seeded(p, class_id))
        present = [*known, len(data) + parity.index(holder)]
        k, r, generator = self.codes[class_id // self.n]
        matrix = Code(k, r, generator).decode_matrix(present, [slot])
        decoded = RowBuffer(store)
        for column, each in enumerate(present):
            if each < len(data):
                blob = self.group.stores[data[each]].coded_rows(class_id, first, last)
            else:
                blob = Capture(self.group.stores[holder], class_id, first, last).take()
            decoded.fold(int(matrix[0, column]), *blob)
        # What the lost shard has already is in the parity, too: only what it lacks is decoded where it has rows.
        keys, coded = decoded.take()
        store.restore(keys, coded)
        store.mark_recovered(class_id, first, last)
        for index, row in list(self.missing):
            key = index << KEY_STRIPE_BITS | self.tables[index].stripe_of(row)[1]
            if self.class_of(key) == class_id and first <= self.position_of(key) < last:
                self.missing.discard((index, row))
        expected = {
            key: row
            for key, row in self.coded_rows(shard).items()
            if self.class_of(key) == class_id and first <= self.position_of(key) < last
        }
        found = merged(store, *store.coded_rows(class_id, first, last))
        assert without_zeros(found) == without_zeros(expected), f"repaired rows of class {class_id}"
        left = [self.position_of(t << KEY_STRIPE_BITS | self.tables[t].stripe_of(row)[1]) for t, row in self.missing
                if self.class_of(t << KEY_STRIPE_BITS | self.tables[t].stripe_of(row)[1]) == class_id]  # fmt: skip
        assert store.next_missing(class_id, 0) == min(left, default=-1)

    # ------------------------------------------------------------------ steps: bad calls
    def bad_call(self, rng: np.random.Generator) -> None:
        """Refused, and nothing changes: the next comparison would see it."""
        shard = int(rng.integers(self.n))
        store, window = self.group.stores[shard], self.group.windows[shard]
        rows = window.rows()
        stray = np.array([int(rng.integers(1 << 62))], np.uint64)
        one = np.zeros(16, np.uint8)
        beyond = sections((0, [self.tables[0].rows]))
        other = self.group.windows[(shard + 1) % self.n]
        calls: list[Callable[[], Any]] = [
            lambda: store.fold((shard + 1) % self.n, ALL_CLASSES, stray, one),
            lambda: store.fold(self.n, ALL_CLASSES, stray[:0], one[:0]),
            lambda: store.apply(*beyond, np.zeros(self.tables[0].dim, np.float32), window),
            lambda: store.apply(*sections((0, [])), np.zeros(1, np.float32), window),
            lambda: store.apply(*sections((0, [])), np.zeros(0, np.float32), other),
            lambda: store.restore(stray, one),
            lambda: store.seed(window, shard, 0, 0),
            lambda: store.wipe_parity(64),
            lambda: store.coded_rows(0, 1, 0),
            lambda: window.buffer(0).fold(1, stray, one),
            lambda: window.buffer(self.n),
            lambda: Capture(store, 64, 0, 1),
        ]
        refused((ValueError, IndexError), calls[int(rng.integers(len(calls)))])
        assert window.rows() == rows

    # ------------------------------------------------------------------ the end
    def finish(self) -> None:
        """Everything is repaired, seeded and folded: all parity is that of the plain store's rows, and all rows are."""
        while self.missing:
            store = self.group.stores[self.lost]
            class_id = next(c for c in self.classes() if store.next_missing(c, 0) >= 0)
            self._repair(class_id, 0, store.class_size(class_id))
        while self.tasks:
            self._seed(*min(self.tasks), 1 << 40)
        self.flush()
        self.group.check_parity()
        for shard in range(self.n):
            self.group.check_rows(shard)


STEPS: dict[str, Callable[[World, np.random.Generator], None]] = {
    name: getattr(World, name)
    for name in (
        "push", "assign", "read", "take", "fold", "undo", "make_stable",
        "wipe", "seed", "capture", "mark", "die", "repair", "bad_call",
    )
}  # fmt: skip
OFTEN = ["push", "push", "push", "take", "fold", "fold", "seed", "mark", *STEPS]
"""What a byte picks from."""


def refused(errors: type[Exception] | tuple[type[Exception], ...], call: Callable[[], Any]) -> None:
    try:
        call()
    except errors:
        return
    raise AssertionError("it was not refused")


def run(data: bytes) -> dict[str, int]:
    """Run a sequence: four bytes say the group, each four more a step. Returns how often each step was taken."""
    seed = int.from_bytes(data[:HEAD_BYTES], "little")
    taken: dict[str, int] = {}
    with small_thresholds(np.random.default_rng([seed, 1])):
        world = World(seed)
        for at in range(HEAD_BYTES, min(len(data), HEAD_BYTES + STEP_BYTES * STEPS_MAX), STEP_BYTES):
            name = OFTEN[data[at] % len(OFTEN)]
            STEPS[name](world, np.random.default_rng([int.from_bytes(data[at + 1 : at + STEP_BYTES], "little"), at]))
            taken[name] = taken.get(name, 0) + 1
        world.finish()
    return taken
