"""encode, fold, fold_rows and reconstruct on every kernel, against the plain version."""

import ctypes
import ctypes.util
import mmap
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecrec import _native, codec
from ecrec.codec import Code, reference
from ecrec.codec.reference import U8

GENERATORS = ("cauchy", "isal-cauchy")
LENGTHS = range(301)


def unaligned(rng: np.random.Generator, length: int, offset: int) -> U8:
    """Random bytes at the given distance from an aligned address."""
    return rng.integers(0, 256, length + offset + 64, dtype=np.uint8)[offset : offset + length]


def test_every_compiled_kernel_is_runnable_or_refused() -> None:
    assert codec.compiled_kernels()[-1] == "scalar"
    assert codec.kernels()[-1] == "scalar"
    assert set(codec.kernels()) <= set(codec.compiled_kernels())
    for name in codec.compiled_kernels():
        if name not in codec.kernels():
            with pytest.raises(ValueError, match="cannot run on this machine"):
                codec.use_kernel(name)
    before = codec.kernel()
    with pytest.raises(ValueError, match=r"kernel 'abacus' is unknown; this build has .*scalar"):
        codec.use_kernel("abacus")
    assert codec.kernel() == before


def test_the_cache_that_rows_are_fetched_into_is_chosen_by_name() -> None:
    before = codec.prefetch()
    try:
        for cache in ("L1", "L2"):
            codec.use_prefetch(cache)
            assert codec.prefetch() == cache
        with pytest.raises(ValueError, match="cache 'l2' is unknown, expected L1 or L2"):
            codec.use_prefetch("l2")
        assert codec.prefetch() == "L2"
    finally:
        codec.use_prefetch(before)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("k, r", [(1, 1), (2, 1), (4, 2), (5, 3), (10, 4), (3, 5), (2, 9), (7, 0)])
def test_encode_is_the_references_at_every_length(kernel: str, generator: str, k: int, r: int) -> None:
    rng = np.random.default_rng(k * 100 + r)
    code = Code(k, r, generator)
    for length in LENGTHS:
        data = [unaligned(rng, length, (3 * j + length) % 64) for j in range(k)]
        parity = [unaligned(rng, length, (5 * i + 1) % 64) for i in range(r)]
        code.encode(data, parity)
        expected = reference.encode(k, r, generator, np.stack(data))
        for i in range(r):
            assert np.array_equal(parity[i], expected[i]), (length, i)


def test_encode_writes_nothing_beside_its_parity(kernel: str) -> None:
    rng = np.random.default_rng(1)
    code = Code(3, 2)
    for length in LENGTHS:
        data = [unaligned(rng, length, 1) for _ in range(3)]
        frames = [np.full(length + 128, 0xA5, dtype=np.uint8) for _ in range(2)]
        code.encode(data, [frame[64 : 64 + length] for frame in frames])
        for frame in frames:
            assert (frame[:64] == 0xA5).all()
            assert (frame[64 + length :] == 0xA5).all()


def test_fold_of_every_coefficient_is_the_references(kernel: str) -> None:
    """The first parity of k = 128 has the inverses of 128..255 in it, the column of k = 1 all the others."""
    rng = np.random.default_rng(2)
    seen = {0}
    for code in (Code(128, 1, "isal-cauchy"), Code(1, 254, "isal-cauchy")):
        for i, j in np.ndindex(code.r, code.k):
            c = int(code.coefficients[i, j])
            seen.add(c)
            x = np.concatenate([np.arange(256, dtype=np.uint8), unaligned(rng, 13, 0)])
            before = unaligned(rng, x.size, 7)
            parity = before.copy()
            code.fold(i, j, x, parity)
            assert np.array_equal(parity, before ^ reference.PRODUCTS[c, x]), c
    assert seen == set(range(256))


def test_fold_is_the_references_at_every_length_and_offset(kernel: str) -> None:
    rng = np.random.default_rng(3)
    code = Code(4, 2)
    for i, j in [(0, 2), (1, 2)]:  # a coefficient of one, and another
        c = int(code.coefficients[i, j])
        for length in LENGTHS:
            x = unaligned(rng, length, length % 64)
            frame = unaligned(rng, length + 128, (length * 7) % 64)
            before = frame.copy()
            code.fold(i, j, x, frame[64 : 64 + length])
            before[64 : 64 + length] ^= reference.PRODUCTS[c, x]
            assert np.array_equal(frame, before), length


def test_folding_old_xor_new_keeps_the_parity_of_encode(kernel: str) -> None:
    rng = np.random.default_rng(4)
    code = Code(5, 3)
    data = [unaligned(rng, 272, 0) for _ in range(5)]
    parity = [np.empty(272, dtype=np.uint8) for _ in range(3)]
    code.encode(data, parity)
    for j in range(5):
        new = unaligned(rng, 272, 0)
        for i in range(3):
            code.fold(i, j, data[j] ^ new, parity[i])
        data[j] = new
    expected = [np.empty(272, dtype=np.uint8) for _ in range(3)]
    code.encode(data, expected)
    assert np.array_equal(parity, expected)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 31, 32, 48, 63, 64, 80, 272, 300])
def test_fold_rows_folds_each_row_also_where_an_index_repeats(kernel: str, length: int) -> None:
    rng = np.random.default_rng(length)
    code = Code(4, 2)
    for parity_index in (0, 1):
        c = int(code.coefficients[parity_index, 3])
        x = rng.integers(0, 256, (40, length), dtype=np.uint8)
        indices = rng.integers(0, 10, 40)
        indices[5:8] = 9
        parity = rng.integers(0, 256, (10, length), dtype=np.uint8)
        expected = parity.copy()
        for m, index in enumerate(indices):
            expected[index] ^= reference.PRODUCTS[c, x[m]]
        code.fold_rows(parity_index, 3, x, indices, parity)
        assert np.array_equal(parity, expected)


def test_fold_rows_of_no_rows_changes_nothing(kernel: str) -> None:
    parity = np.ones((3, 16), dtype=np.uint8)
    Code(2, 1).fold_rows(0, 0, np.zeros((0, 16), dtype=np.uint8), np.zeros(0, dtype=np.int64), parity)
    assert (parity == 1).all()


@st.composite
def codeword_and_losses(draw: st.DrawFn) -> tuple[int, int, str, int, list[int], list[int], int]:
    k = draw(st.integers(1, 16))
    r = draw(st.integers(0, 8))
    order = draw(st.permutations(range(k + r)))
    lost = order[: draw(st.integers(0, r))]
    present = [slot for slot in order if slot not in lost]
    present = present[: draw(st.integers(k, len(present)))]
    length = draw(st.integers(0, 400))
    return k, r, draw(st.sampled_from(GENERATORS)), length, present, lost, draw(st.integers(0, 2**32))


@given(codeword_and_losses())
def test_any_lost_slots_come_back_from_any_k_present(
    kernel: str, case: tuple[int, int, str, int, list[int], list[int], int]
) -> None:
    k, r, generator, length, present, lost, seed = case
    rng = np.random.default_rng(seed)
    code = Code(k, r, generator)
    word = [unaligned(rng, length, seed % 64) for _ in range(k + r)]
    code.encode(word[:k], word[k:])
    out = [unaligned(rng, length, 3) for _ in lost]
    code.reconstruct(present, [word[slot] for slot in present], lost, out)
    for slot, block in zip(lost, out, strict=True):
        assert np.array_equal(block, word[slot])
    blocks = np.stack([word[slot] for slot in present])
    expected = reference.reconstruct(k, r, generator, present, blocks, lost)
    assert np.array_equal(np.array(out, dtype=np.uint8).reshape(expected.shape), expected)


class GuardedPages:
    """Two pages between two that fault on any access."""

    def __init__(self) -> None:
        self._page = mmap.PAGESIZE
        self._memory = mmap.mmap(-1, 4 * self._page)
        self.bytes = np.frombuffer(self._memory, dtype=np.uint8)[self._page : 3 * self._page]
        self._protect(0, 0)
        self._protect(3, 0)

    def _protect(self, page: int, protection: int) -> None:
        libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
        base = self.bytes.ctypes.data - self._page
        if libc.mprotect(ctypes.c_void_p(base + page * self._page), ctypes.c_size_t(self._page), protection):
            raise OSError(ctypes.get_errno(), "mprotect")

    def last(self, length: int) -> U8:
        """The last bytes before the guard."""
        return self.bytes[self.bytes.size - length :]

    def first(self, length: int) -> U8:
        """The first bytes after the guard."""
        return self.bytes[:length]

    def open(self) -> None:
        self._protect(0, mmap.PROT_READ | mmap.PROT_WRITE)
        self._protect(3, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.fixture
def pages() -> Iterator[list[GuardedPages]]:
    made = [GuardedPages() for _ in range(5)]
    yield made
    for each in made:
        each.open()


@pytest.mark.parametrize("end", ["last", "first"])
def test_no_kernel_reads_or_writes_outside_of_its_buffers(kernel: str, pages: list[GuardedPages], end: str) -> None:
    """A byte too far is a segmentation fault."""
    code = Code(3, 2)
    rng = np.random.default_rng(5)
    for length in (*range(0, 140), 255, 256, 257, 272, 300):
        blocks: list[U8] = [getattr(each, end)(length) for each in pages]
        for block in blocks:
            block[:] = rng.integers(0, 256, length, dtype=np.uint8)
        code.encode(blocks[:3], blocks[3:])
        expected = reference.encode(3, 2, "cauchy", np.stack(blocks[:3]))
        assert np.array_equal(np.stack(blocks[3:]), expected), length
        for i in range(2):
            code.fold(i, 1, blocks[1], blocks[3 + i])
            code.fold_rows(i, 1, blocks[1][None], np.zeros(1, dtype=np.int64), blocks[3 + i][None])
        assert np.array_equal(np.stack(blocks[3:]), expected), length
        code.reconstruct([4, 1, 2], [blocks[4], blocks[1], blocks[2]], [3], [blocks[0]])
        assert np.array_equal(blocks[0], expected[0]), length


def test_a_forced_kernel_is_the_code_that_runs() -> None:
    """Each kernel has functions of its own, and forcing one changes which of them a call goes to."""
    before = codec.kernel()
    addresses: dict[str, dict[str, int]] = {}
    for name in codec.kernels():
        codec.use_kernel(name)
        assert codec.kernel() == name
        addresses[name] = _native.kernel_functions()
    codec.use_kernel(before)
    for function in ("encode", "fold", "fold_rows"):
        assert len({of[function] for of in addresses.values()}) == len(addresses), function


def test_prepared_coefficients_are_what_a_native_fold_takes(kernel: str) -> None:
    function = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    fold = function(_native.kernel_functions()["fold"])
    values = np.array([1, 2, 0x53, 0xFF], dtype=np.uint8)
    prepared = _native.prepare_coefficients(values)
    assert prepared.shape[0] == values.size
    x = np.arange(300, dtype=np.uint8)
    for value, coefficient in zip(values, prepared, strict=True):
        target = np.zeros(300, dtype=np.uint8)
        fold(300, coefficient.ctypes.data, x.ctypes.data, target.ctypes.data)
        assert np.array_equal(target, reference.PRODUCTS[value, x])
