"""Pauses in the work of the store: where they come, what they may do, and that nothing that is computed sees them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from store_group import ALL_CLASSES, OPTIMIZERS, tuned

from ecrec._native import Capture, RowBuffer, Store, Window, sum_sections

SHARDS, K, R = 5, 3, 2
DIM = 16
ROW_WORK = 16
"""Bytes of work that any look at a row counts at least (src/cpp/threads/pauses.hpp)."""
PIECE_BYTES = 2 << 20
"""No piece of work that is done in one go is larger: a huge page."""


def make_store(shard: int, optimizer: str = "adagrad", recovered: bool = True, rows: int = 60_000) -> Any:
    store = Store(shard, SHARDS)
    hyper = list(OPTIMIZERS[optimizer])
    store.add_table(rows, DIM, K, R, "cauchy", optimizer, hyper, "uniform", 3, 0.1, 0.5, recovered)
    return store


def open_window(store: Any) -> Any:
    window = Window(store)
    for peer in range(1, SHARDS):
        for class_id in range(SHARDS):
            window.set_limit(peer, class_id, Window.UNLIMITED)
    return window


def rows_of(shard: int, count: int, seed: int = 1) -> Any:
    """Distinct rows of a shard, int64[count]."""
    ids = np.arange(60_000, dtype=np.int64)
    mine = ids[(ids // K + ids % K) % SHARDS == shard]
    return np.ascontiguousarray(np.random.default_rng(seed).permutation(mine)[:count])


def section(rows: Any) -> tuple[Any, Any, Any]:
    return np.zeros(1, np.int32), np.array([len(rows)], np.int64), rows


def gradients_of(rows: Any, seed: int = 2) -> Any:
    return np.random.default_rng(seed).standard_normal(len(rows) * DIM, np.float32)


def everything(pause: Callable[[int], None] | None, optimizer: str, count: int) -> list[bytes]:
    """The bytes of all that calls of a store give, one after the other; ``pause``: for each store."""
    out: list[bytes] = []

    def keep(*arrays: Any) -> None:
        out.extend(a.tobytes() for a in arrays)

    store, window, rows = make_store(0, optimizer), None, rows_of(0, count)
    store.on_pause(pause)
    window = open_window(store)
    twice = np.concatenate([rows, rows[: count // 2], rows[:1]])  # in one push, and in different pieces of it
    for push in (rows, twice, rows[::-1].copy()):
        store.apply(*section(push), gradients_of(push), window)
        taken = [window.buffer(peer).take() for peer in range(1, SHARDS)]
        for frames in taken:
            keep(*frames)
    store.assign(*section(rows), gradients_of(rows), window)
    window.buffer(3).remove_class(1)
    taken = [window.buffer(peer).take() for peer in range(1, SHARDS)]
    for records in (False, True):
        got = np.empty(store.gather_bytes(*section(twice)[:2], records), np.uint8)
        store.gather(*section(twice), got, records)
        keep(got)
    keep(store.keys(*section(rows)), store.classes(store.keys(*section(rows))))
    for class_id in range(SHARDS):
        keep(*store.coded_rows(class_id, 0, store.class_size(class_id)))
    peer = int(np.argmax([len(keys) for keys, _ in taken])) + 1
    keys, deltas = taken[peer - 1]
    holder = make_store(peer, optimizer)
    holder.on_pause(pause)
    holder.fold(0, ALL_CLASSES, keys, deltas)
    class_id = int(holder.classes(keys)[0])
    capture = Capture(holder, class_id, 0, holder.class_size(class_id))
    capture.fold(0, keys, deltas)
    keep(*capture.take())
    mine = keys[holder.classes(keys) == class_id]
    keep(*Capture.of_keys(holder, class_id, np.ascontiguousarray(mine)).take())
    holder.fold(0, 1 << class_id, keys, deltas)  # undoes it
    keep(*Capture(holder, class_id, 0, holder.class_size(class_id)).take())
    buffer = RowBuffer(holder)
    buffer.fold(7, keys, deltas)
    keep(buffer.nonzero(), *buffer.take())
    lost = make_store(0, optimizer, recovered=False)
    lost.on_pause(pause)
    missing = lost.missing(*section(rows))
    keep(missing)
    coded = store.coded_rows_of(missing)
    keep(*coded)
    lost.restore(*coded)
    lost.mark_recovered_keys(missing)
    got = np.empty(lost.gather_bytes(*section(rows)[:2], True), np.uint8)
    lost.gather(*section(rows), got, True)
    keep(got, lost.missing_keys(0, 0, 100))
    parts = [(*section(push), gradients_of(push)) for push in (rows, twice)]
    keep(*sum_sections(parts, np.array([DIM], np.int32), store))
    to_peer = open_window(store)
    to_peer.set_limit(peer, 0, 0)
    seeded = next(c for c in range(SHARDS) if (peer - c) % SHARDS >= K and (0 - c) % SHARDS < K)
    to_peer.set_limit(peer, seeded, 0)
    store.seed(to_peer, peer, seeded, 1 << 20)
    keep(*to_peer.buffer(peer).take())
    return out


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pause_bytes", [1, 5_000])
def test_work_in_pieces_gives_the_bytes_of_work_in_one_go(optimizer: str, pause_bytes: int) -> None:
    pauses: list[int] = []
    whole = everything(None, optimizer, 400)
    with tuned({"pause_bytes": pause_bytes}):
        assert everything(pauses.append, optimizer, 400) == whole
    assert len(pauses) > 400


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pauses_come_at_the_same_places_each_time_and_from_one_thread(threads: int) -> None:
    seen: list[list[int]] = [[], []]
    with tuned({"pause_bytes": 20_000, "thread_grain_bytes": 500}, threads):
        for pauses in seen:
            everything(pauses.append, "adagrad", 2_000)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 100


CALLS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "apply": lambda of: lambda: of.store.apply(*section(of.rows), of.gradients, of.window),
    "apply again": lambda of: lambda: of.store.apply(*section(of.rows), of.gradients, of.window),
    "assign": lambda of: lambda: of.store.assign(*section(of.rows), of.gradients, None),
    "check": lambda of: lambda: of.store.check(*section(of.rows), of.gradients),
    "gather": lambda of: lambda: of.store.gather(*section(of.rows), np.empty(4 * len(of.gradients), np.uint8)),
    "keys": lambda of: lambda: of.store.keys(*section(of.rows)),
    "classes": lambda of: lambda: of.store.classes(of.keys),
    "coded_rows_of": lambda of: lambda: of.store.coded_rows_of(of.keys),
    "fold": lambda of: lambda: of.holder.fold(0, ALL_CLASSES, *of.blob),
    "Capture": lambda of: lambda: Capture(of.holder, of.class_id, 0, of.holder.class_size(of.class_id)),
    "Capture.of_keys": lambda of: lambda: Capture.of_keys(of.holder, of.class_id, of.of_class),
    "Capture.fold": lambda of: lambda: of.capture.fold(0, *of.blob),
    "RowBuffer.fold": lambda of: lambda: of.buffer.fold(1, *of.blob),
    "RowBuffer.nonzero": lambda of: of.buffer.nonzero,
    "RowBuffer.remove_class": lambda of: lambda: of.buffer.remove_class(0),
    "missing": lambda of: lambda: of.lost.missing(*section(of.rows)),
    "distinct": lambda of: lambda: of.store.distinct(of.keys, of.keys[:100].copy()),
    "restore": lambda of: lambda: of.lost.restore(*of.coded),
    "mark_recovered_keys": lambda of: lambda: of.lost.mark_recovered_keys(of.keys),
    "sum_sections": lambda of: (
        lambda: sum_sections([(*section(of.rows), of.gradients)] * 2, np.array([DIM], np.int32), of.store)
    ),
}
"""In this order, each on what those before it left."""


class Objects:
    """What `CALLS` use."""

    def __init__(self, count: int, pause: Callable[[int], None]) -> None:
        self.store = make_store(0)
        self.rows, self.window = rows_of(0, count), open_window(self.store)
        self.gradients = gradients_of(self.rows)
        self.keys = self.store.keys(*section(self.rows))
        other, window = make_store(0), None
        window = open_window(other)
        other.apply(*section(self.rows), self.gradients, window)
        taken = [window.buffer(peer).take() for peer in range(1, SHARDS)]
        peer = int(np.argmax([len(keys) for keys, _ in taken])) + 1
        self.blob, self.coded = taken[peer - 1], other.coded_rows_of(self.keys)
        self.holder, self.lost = make_store(peer), make_store(0, recovered=False)
        self.class_id = int(self.holder.classes(self.blob[0])[0])
        self.of_class = np.ascontiguousarray(self.blob[0][self.holder.classes(self.blob[0]) == self.class_id])
        self.capture = Capture(self.holder, self.class_id, 0, self.holder.class_size(self.class_id))
        self.buffer = RowBuffer(self.holder)
        for store in (self.store, self.holder, self.lost):
            store.on_pause(pause)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_call_does_more_than_so_much_work_without_a_pause(threads: int) -> None:
    """Counted, not timed: work of all rows is told, and no more of it at once than fits a pause and one piece."""
    work: list[int] = []
    budget, count = 20_000, 10_000
    with tuned({"pause_bytes": budget}, threads):
        of = Objects(count, work.append)
        for name, make in CALLS.items():
            call = make(of)
            work.clear()
            call()
            assert sum(work) + budget >= ROW_WORK * len(of.of_class), f"{name} counts {sum(work)} bytes of work"
            assert max(work) <= budget + PIECE_BYTES, f"{name} does {max(work)} bytes of work in one go"


def test_an_index_grows_in_pieces() -> None:
    """Of a million keys the slots have 16 MiB; they are made, and the keys put into them, a piece at a time."""
    store, work = make_store(1), []
    keys = np.arange(1 << 20, dtype=np.uint64)
    store.on_pause(work.append)
    with tuned({"pause_bytes": 1}):
        assert (store.distinct(keys, keys[:0]) == keys).all()
    slots, row_work = 2 * 8 << 20, 64
    assert sum(work) > slots + 2 * row_work * len(keys)
    assert max(work) <= PIECE_BYTES


@pytest.mark.parametrize("count", [0, 1, 50, 5000])
def test_distinct_is_what_a_dictionary_says(count: int) -> None:
    rng = np.random.default_rng(count)
    keys, known = (rng.integers(0, 2 * count + 1, size).astype(np.uint64) for size in (count, count // 3))
    expected = [key for key in dict.fromkeys(keys.tolist()) if key not in set(known.tolist())]
    assert make_store(0).distinct(keys, known).tolist() == expected


def test_what_a_pause_raises_ends_the_call_and_the_store_can_be_given_up() -> None:
    class StopError(Exception):
        pass

    def stop_at(number: int) -> Callable[[int], None]:
        left = [number]

        def pause(work: int) -> None:
            left[0] -= 1
            if left[0] <= 0:
                raise StopError

        return pause

    with tuned({"pause_bytes": 300, "index_slots_min": 2}):
        for name, make in CALLS.items():
            for number in (1, 2, 3, 10, 100):
                of = Objects(500, lambda work: None)
                before = list(CALLS)[: list(CALLS).index(name)]
                if name.startswith("RowBuffer"):
                    [CALLS[some](of)() for some in before if some == "RowBuffer.fold"]
                for store in (of.store, of.holder, of.lost):
                    store.on_pause(stop_at(number))
                try:
                    make(of)()
                except StopError:
                    continue
                finally:
                    for store in (of.store, of.holder, of.lost):
                        store.on_pause(None)


def test_a_pause_may_not_use_the_store_and_may_use_others() -> None:
    store, other = make_store(0), make_store(0)
    rows, refused = rows_of(0, 50), []

    def pause(work: int) -> None:
        other.gather(*section(rows), np.empty(50 * DIM * 4, np.uint8))
        try:
            store.memory()
        except RuntimeError as error:
            refused.append(str(error))

    store.on_pause(pause)
    with tuned({"pause_bytes": 1000}):
        store.apply(*section(rows), gradients_of(rows), None)
    assert refused
    assert all("in use" in text for text in refused)
    assert store.memory()["data_rows_touched"] == 50


def test_nobody_is_told_any_more() -> None:
    store, rows, work = make_store(0), rows_of(0, 50), []
    store.on_pause(work.append)
    store.on_pause(None)
    with tuned({"pause_bytes": 1}):
        store.apply(*section(rows), gradients_of(rows), None)
    assert not work


def test_work_counts_on_from_call_to_call() -> None:
    store, rows, work = make_store(0), rows_of(0, 1), []
    store.on_pause(work.append)
    with tuned({"pause_bytes": 100_000}):
        for _ in range(1000):
            store.apply(*section(rows), gradients_of(rows), None)
    assert 1 < len(work) < 100
