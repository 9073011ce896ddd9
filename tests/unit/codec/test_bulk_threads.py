"""Bulk operations on several threads: the same bytes as on one."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from store_group import OPTIMIZERS

from ecrec import _native
from ecrec.codec import Code, threads, use_threads
from ecrec.store import Store, Window

ROWS = 3000
"""Of 256 floats: several times what a thread must have to do."""
DIM = 256


@pytest.fixture
def three_threads() -> Iterator[None]:
    use_threads(3)
    assert threads() == 3
    yield
    use_threads(1)


def on_one_and_three(run: Callable[[], list[bytes]]) -> None:
    """What `run` returns does not depend on the threads."""
    use_threads(1)
    alone = run()
    use_threads(3)
    try:
        assert run() == alone
    finally:
        use_threads(1)


@pytest.mark.parametrize("count", [0, -1, 257])
def test_a_number_of_threads_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 256 threads, got {count}"):
        use_threads(count)
    assert threads() == 1


@pytest.mark.parametrize("size", [1_000_003, 3 << 20])
def test_the_codec_gives_the_same_bytes(kernel: str, size: int) -> None:
    rng = np.random.default_rng(size)
    data = [rng.integers(0, 256, size, dtype=np.uint8) for _ in range(4)]
    code = Code(4, 2)

    def run() -> list[bytes]:
        parity = [np.zeros(size, np.uint8) for _ in range(2)]
        code.encode(data, parity)
        folded = parity[0].copy()
        code.fold(1, 2, data[1], folded)
        lost = [np.empty(size, np.uint8) for _ in range(2)]
        code.reconstruct([1, 2, 4, 5], [data[1], data[2], *parity], [0, 3], lost)
        assert lost[0].tobytes() == data[0].tobytes()
        return [array.tobytes() for array in (*parity, folded, *lost)]

    on_one_and_three(run)


def test_rows_that_are_folded_into_again_and_again_give_the_same_bytes(kernel: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (20_000, 272), dtype=np.uint8)
    indices = rng.integers(0, 50, len(x))

    def run() -> list[bytes]:
        parity = np.zeros((50, 272), np.uint8)
        Code(4, 2).fold_rows(1, 3, x, indices, parity)
        return [parity.tobytes()]

    on_one_and_three(run)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("r", [0, 1, 2])
def test_a_store_gives_the_same_records_windows_and_parity(optimizer: str, r: int) -> None:
    rng = np.random.default_rng(2)
    # shard 0 of n = 4: of a table with k = 2 the rows whose stripe and slot add up to it
    mine = np.array([row for row in range(20_000) if (row // 2 + row % 2) % 4 == 0])
    pushes = [rng.choice(mine, ROWS) for _ in range(2)]  # some rows twice in a push
    gradients = rng.standard_normal(ROWS * DIM).astype(np.float32)

    def run() -> list[bytes]:
        stores = [Store(shard, 4) for shard in range(4)]
        for store in stores:
            for seed in range(2):
                store.add_table(
                    20_000, DIM, 2, r, "cauchy", optimizer, OPTIMIZERS[optimizer], "uniform", seed, 0.1, 0.1
                )
        store, window = stores[0], Window(stores[0])
        for peer in range(1, 4):
            for class_id in range(4):
                window.set_limit(peer, class_id, Window.UNLIMITED)
        sections = np.array([0, 1], np.int32), np.array([ROWS - 1000, 1000])
        for rows in pushes:
            store.apply(*sections, rows, gradients, window)
        found = []
        for records in (False, True):
            out = np.empty(store.gather_bytes(*sections, records=records), np.uint8)
            store.gather(*sections, pushes[0], out, records=records)
            found.append(out.tobytes())
        for peer in range(1, 4):
            keys, records_sent = window.buffer(peer).take()
            stores[peer].fold(0, (1 << 64) - 1, keys, records_sent)
            found += [keys.tobytes(), records_sent.tobytes()]
            for class_id in range(4):
                try:
                    capture = _native.Capture(stores[peer], class_id, 0, stores[peer].class_size(class_id))
                except ValueError:  # holds no parity of it
                    continue
                found += [array.tobytes() for array in capture.take()]
        return found

    on_one_and_three(run)


@pytest.mark.parametrize("shared", [False, True], ids=["a table a feature", "one table"])
def test_pooling_gives_the_same_floats(kernel: str, shared: bool) -> None:
    rng = np.random.default_rng(3)
    features, batch, rows = 5, 700, 300
    lengths = rng.integers(0, 4, features * batch)
    bag_offsets = np.concatenate([[0], np.cumsum(lengths)])
    feature = np.repeat(np.arange(features), lengths.reshape(features, batch).sum(axis=1))
    inverse = (rng.integers(0, rows, len(feature)) + (0 if shared else rows * feature)).astype(np.int32)
    count = rows if shared else rows * features
    values = rng.standard_normal(count * DIM).astype(np.float32)
    arguments = (
        np.arange(0, count * DIM, DIM), inverse, bag_offsets, np.full(features, DIM, np.int32), batch,
        np.array([False, True, False, True, False]),
    )  # fmt: skip
    upstream = rng.standard_normal((batch, features * DIM)).astype(np.float32)

    def run() -> list[bytes]:
        pooled, gradients = np.empty_like(upstream), np.empty_like(values)
        _native.pool_forward(values, *arguments, pooled)
        _native.pool_backward(upstream, *arguments, gradients)
        return [pooled.tobytes(), gradients.tobytes()]

    on_one_and_three(run)


def test_a_second_caller_at_the_same_time_does_its_work_alone(three_threads: None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = [np.full(2 << 20, value, np.uint8) for value in (1, 2)]

    def encode(_: int) -> bytes:
        parity = [np.empty(2 << 20, np.uint8)]
        Code(2, 1).encode(data, parity)
        return parity[0].tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(encode, range(40))) == {bytes([3]) * (2 << 20)}
