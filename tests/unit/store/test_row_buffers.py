"""Row buffers whose rows were in part appended and in part looked up."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_group import Group, keys_of, sections, tuned

from ecrec._native import gf_multiply
from ecrec.store import RowBuffer
from ecrec.store.reference import KEY_STRIPE_BITS, Table

HERE = Path(__file__).parents[2]
CALL_S = 30
"""A native call that never returns cannot be interrupted: it runs in a process of its own, for at most this time."""

SEED_A_WINDOW_OF_APPENDED_ROWS = """
import numpy as np
from store_group import Group, sections
from ecrec.store import Window
from ecrec.store.reference import Table

group = Group([Table(40_000, 4, 2, 1, shards=3)], 3)
store, window = group.stores[0], Window(group.stores[0])
rows = np.arange(0, 40_000, 6)  # slot 0 of stripes 0, 3, ...: class 0, whose parity is on shard 2
window.set_limit(2, 0, 3_000)
ones = np.ones(4 * 2_000, np.float32)
store.apply(*sections((0, rows[:16])), ones[:64], window)
window.buffer(2).take()  # none came again: rows are no longer looked up
store.apply(*sections((0, rows[:1_000])), ones[:4_000], window)
store.apply(*sections((0, rows[3_000:5_000])), ones, None)
assert store.seed(window, 2, 0, 4_096)[0]
keys, records = window.buffer(2).take()
assert len(keys) == 3_000 and len(records) == 3_000 * 16, len(keys)
"""


def test_a_window_of_appended_rows_is_seeded() -> None:
    """The rows outnumber the slots of the index when the first of them is looked up."""
    subprocess.run([sys.executable, "-c", SEED_A_WINDOW_OF_APPENDED_ROWS], cwd=HERE, timeout=CALL_S, check=True)


APPENDED_THEN_LOOKED_UP = """
import numpy as np
from store_group import Group, sections
from ecrec.store import Window
from ecrec.store.reference import Table

group = Group([Table(6_000, 4, 2, 1, shards=3)], 3)
store, window = group.stores[0], Window(group.stores[0])
rows = np.arange(0, 6_000, 6)
window.set_limit(2, 0, Window.UNLIMITED)
gradients = np.ones(4_000, np.float32)
store.apply(*sections((0, rows)), gradients, window)
keys, records = window.buffer(2).take()
store.apply(*sections((0, rows)), gradients, window)  # appended
buffer = window.buffer(2)
buffer.fold(1, keys, records)  # looked up: each is there
taken, both = buffer.take()
assert len(taken) == 1_000
coded = store.coded_rows(0, 0, 1_000)
assert (taken == coded[0]).all() and (both == coded[1]).all()
store.apply(*sections((0, rows), (0, rows)), np.ones(8_000, np.float32), window)
assert len(buffer) == 2_000 and buffer.nonzero().tolist() == coded[0].tolist()
buffer.remove_class(1)  # of which there is none
assert len(buffer) == 2_000 and buffer.nonzero().tolist() == coded[0].tolist()
buffer.remove_class(0)
assert len(buffer) == 0 and buffer.nbytes == 0
"""


def test_what_was_appended_is_found_where_it_lies() -> None:
    """An appended row has no place until something is looked up; a key may be there twice."""
    subprocess.run([sys.executable, "-c", APPENDED_THEN_LOOKED_UP], cwd=HERE, timeout=CALL_S, check=True)


def windows_alike(looked_up: bool) -> list[Any]:
    """(store, window, what pushes more) twice, with the same rows of two codes, several classes and record sizes."""
    tables = [Table(400, 4, 2, 1, shards=5), Table(300, 7, 3, 2, shards=5), Table(200, 1, 2, 1, shards=5)]
    twins = []
    for _ in range(2):
        group = Group(tables, 5)
        store, window = group.stores[0], group.windows[0]
        rng = np.random.default_rng(8)

        def push(store: Any = store, window: Any = window, group: Any = group, rng: Any = rng) -> None:
            listed, gradients = group.random_push(rng, 0, 40)
            store.apply(*listed, gradients, window)

        if not looked_up:  # none of a large window comes again: rows are appended from the next one on
            for table in range(3):
                rows = group.rows_of(0, table)
                store.apply(*sections((table, rows)), np.ones(len(rows) * tables[table].dim, np.float32), window)
            for peer in range(1, 5):
                window.buffer(peer).take()
        for _ in range(12):
            push()
        twins.append((store, window, push))
    return twins


@pytest.mark.parametrize("looked_up", [True, False], ids=["looked up", "appended"])
def test_what_is_left_of_a_class_that_is_removed_is_byte_for_byte_what_was_there(looked_up: bool) -> None:
    with tuned({"lookup_judged_rows_min": 1}):
        for class_id in range(10):
            (store, window, _), (_, plain, _) = windows_alike(looked_up)
            removed = 0
            for peer in range(1, 5):
                buffer = window.buffer(peer)
                buffer.remove_class(class_id)
                keys, records = plain.buffer(peer).take()
                sizes = np.array([store.record_bytes(each >> KEY_STRIPE_BITS) for each in keys.tolist()], np.int64)
                stays = store.classes(keys) != class_id
                removed += int((~stays).sum())
                left = records[np.repeat(stays, sizes)]
                assert (len(buffer), buffer.nbytes) == (int(stays.sum()), len(left))
                found = buffer.take()
                assert found[0].tolist() == keys[stays].tolist() and found[1].tobytes() == left.tobytes()
            assert bool(removed) == any((class_id + slot) % 5 == 0 for slot in range(2 if class_id < 5 else 3))


@pytest.mark.parametrize("looked_up", [True, False], ids=["looked up", "appended"])
def test_rows_that_come_after_a_class_was_removed_add_up(looked_up: bool) -> None:
    """In the same window, where they may repeat a key, and in the next one."""
    with tuned({"lookup_judged_rows_min": 1}):
        (store, window, push), (_, plain, push_plain) = windows_alike(looked_up)
        before = [plain.buffer(peer).take() for peer in range(1, 5)]
        for peer in range(1, 5):
            window.buffer(peer).remove_class(0)
        for _ in range(2):
            push(), push_plain()
            for peer, (keys, records) in zip(range(1, 5), before, strict=True):
                wanted = RowBuffer(store)
                wanted.fold(1, keys, records)
                wanted.remove_class(0)
                wanted.fold(1, *plain.buffer(peer).take())
                buffer = window.buffer(peer)
                assert sorted(buffer.nonzero().tolist()) == sorted(wanted.nonzero().tolist())
                wanted.fold(1, *buffer.take())
                assert wanted.nonzero().size == 0
            before = [(keys[:0], records[:0]) for keys, records in before]


def push_of(group: Group, rows: int) -> Any:
    return *sections((0, group.rows_of(0, 0)[:rows])), np.ones(4 * rows, dtype=np.float32)


@pytest.mark.parametrize("knobs", [{"buffer_rows_max": 20}, {"buffer_bytes_max": 20 * 16}])
def test_more_than_a_window_can_number_is_refused_before_anything_is_changed(knobs: dict[str, int]) -> None:
    group = Group([Table(300, 4, 2, 1, shards=3)], 3)
    store, window = group.stores[0], group.windows[0]
    with tuned(knobs):
        store.apply(*push_of(group, 15), window)
        rows, before = window.rows(), store.coded_rows(0, 0, 50)[1].tobytes()
        with pytest.raises(RuntimeError, match=r"do not fit a buffer that holds .* take what it holds first"):
            store.apply(*push_of(group, 16), window)
        assert window.rows() == rows and store.coded_rows(0, 0, 50)[1].tobytes() == before
        listed, weights = sections((0, [0])), np.zeros(4, dtype=np.float32)
        store.apply(*push_of(group, 40), None)
        buffer = RowBuffer(store)
        with pytest.raises(RuntimeError, match=r"RowBuffer\.fold: 21 rows of 336 bytes do not fit"):
            buffer.fold(1, keys_of(*[(0, 3 * i) for i in range(21)]), np.ones(21 * 16, dtype=np.uint8))
        assert len(buffer) == 0
        # Seeding stops where the buffer is full, and goes on when it was taken.
        for peer in range(3):
            window.buffer(peer).take()
        window.set_limit(2, 0, 0)
        seeded: list[int] = []
        finished = False
        while not finished:
            finished = store.seed(window, 2, 0, 4096)[0]
            seeded += window.buffer(2).take()[0].tolist()
        assert seeded == store.coded_rows(0, 0, 50)[0].tolist()
        window.buffer(2).fold(1, keys_of(*[(0, 3 * i) for i in range(20)]), np.ones(20 * 16, dtype=np.uint8))
        window.set_limit(2, 0, 0)
        with pytest.raises(RuntimeError, match="seed: 1 rows of 16 bytes do not fit"):
            store.seed(window, 2, 0, 4096)
        assert window.limit(2, 0) == 0
        with pytest.raises(RuntimeError, match="assign"):
            store.assign(*listed, weights, window)


def test_bytes_of_sections_that_exceed_64_bits_are_refused() -> None:
    store = Group([Table(300, 4, 2, 1, shards=3)], 3).stores[0]
    with pytest.raises(ValueError, match=r"gather_bytes: .* rows of section 1 exceed 2\^64 bytes"):
        store.gather_bytes(np.array([0, 0], np.int32), np.array([1, 1 << 61], np.int64))


@pytest.mark.parametrize("code", [(2, 1), (3, 2)])
@pytest.mark.parametrize("coefficient", [1, 2, 255])
def test_rows_add_up_in_whatever_order_they_are_folded(code: tuple[int, int], coefficient: int) -> None:
    """In order they are found by the place of the one before, out of order by a look-up: records of two lengths."""
    store = Group([Table(900, 4, *code, shards=5), Table(900, 8, *code, shards=5)], 5).stores[0]
    rng = np.random.default_rng(coefficient)
    all_keys = np.concatenate(
        [np.arange(100, dtype=np.uint64) + np.uint64(table << KEY_STRIPE_BITS) for table in (0, 1)]
    )
    for _ in range(40):
        buffer, expected = RowBuffer(store), dict[int, int]()
        for times in range(4):
            keys = np.sort(rng.choice(all_keys, rng.integers(0, 120), replace=rng.random() < 0.2))
            if rng.random() < 0.3:
                keys = rng.permutation(keys)
            factor = 0 if rng.random() < 0.1 else coefficient if times % 2 else 1
            records = [rng.integers(0, 256, store.record_bytes(int(key) >> KEY_STRIPE_BITS), np.uint8) for key in keys]
            buffer.fold(factor, keys, np.concatenate([np.zeros(0, np.uint8), *records]))
            for key, record in zip(keys.tolist(), records, strict=True):
                product = bytes(gf_multiply(factor, byte) for byte in record.tolist())
                if factor:
                    expected[key] = expected.get(key, 0) ^ int.from_bytes(product, "little")
        keys, records = buffer.take()
        assert sorted(keys.tolist()) == sorted(expected)
        place = 0
        for key in keys.tolist():
            size = store.record_bytes(key >> KEY_STRIPE_BITS)
            assert int.from_bytes(records[place : place + size].tobytes(), "little") == expected[key]
            place += size
        assert place == len(records)


def test_rows_that_repeat_are_added_up_before_those_of_zeros_are_left_out() -> None:
    """While rows are not looked up a key may be there twice: what is taken has each once."""
    group = Group([Table(300, 4, 2, 1, shards=3)], 3)
    store, window = group.stores[0], group.windows[0]
    rows = group.rows_of(0, 0)[::2]
    window.set_limit(1, 1, 0)
    listed, ones = sections((0, rows)), np.ones(4 * len(rows), np.float32)
    with tuned({"lookup_judged_rows_min": 1}):
        store.apply(*listed, ones, window)
        for peer in range(3):
            window.buffer(peer).take()  # nothing came again: no row is looked up for a while
        before = {class_id: store.coded_rows(class_id, 0, 300) for class_id in (0, 2)}
        for _ in range(2):
            store.apply(*listed, ones, window)
        repeated = 0
        for peer in range(3):
            buffer, plain = window.buffer(peer), RowBuffer(store)
            keys, records = buffer.take_nonzero()
            repeated += len(keys)
            assert len(set(keys.tolist())) == len(keys)
            plain.fold(1, keys, records)
            assert sorted(plain.nonzero().tolist()) == sorted(keys.tolist())
        assert repeated and before


@pytest.mark.parametrize("before", [0, 1, 39, 40])
def test_values_of_an_index_begin_again_before_their_number_overflows(before: int) -> None:
    """2^32 rows after the first one; `before` of them are left when the last window begins."""
    store = Group([Table(900, 4, 2, 1, shards=3)], 3).stores[0]
    with tuned({"index_values_first": (1 << 32) - 41 - before}):
        buffer = RowBuffer(store)
    rng = np.random.default_rng(before)
    for count in (before, 40, 40, 40):
        keys = 3 * rng.choice(60, size=count).astype(np.uint64)
        records = rng.integers(0, 256, (count, 16), np.uint8)
        expected: dict[int, Any] = {}
        for key, record in zip(keys.tolist(), records, strict=True):
            buffer.fold(1, np.array([key], np.uint64), record)
            expected[key] = expected.get(key, np.zeros(16, np.uint8)) ^ record
        found, folded = buffer.take()
        assert dict(zip(found.tolist(), folded.reshape(-1, 16).tolist(), strict=True)) == {
            key: record.tolist() for key, record in expected.items() if record.any()
        }
