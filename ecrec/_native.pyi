"""The compiled core (``src/cpp``, bound in ``bindings/``).

Conventions, everywhere below:

* Arrays are C-contiguous numpy arrays of exactly the stated dtype; anything else is a ``TypeError``.
  Sizes and ids are checked before the first byte is changed; a bad one is a ``ValueError`` (or
  ``IndexError`` for an id out of range) that says what, where and what was expected.
* Calls that touch many bytes release the GIL. One thread at a time may use a `Store` and the `Window`, `RowBuffer` and
  `Capture` objects made of it; another one gets a ``RuntimeError`` that says so, whatever it called.
* ``n`` is the number of shards of the coding group. Stripe ``g`` of a table with code (k, r) has slot
  ``j`` on shard ``(g + j) % n``; slots ``0..k-1`` are data, ``k..k+r-1`` parity.
* *class id* = ``code_index * n + g % n`` where ``code_index`` numbers the different (k, r, generator)
  of a store in order of their first table. All stripes of a class have the same members. At most 64 classes.
* *position* of a stripe in its class: ``table_offset + g // n``, where ``table_offset`` is the sum of
  ``ceil(stripes / n)`` over the earlier tables of the same code. A class is scanned in order of position.
* *key* = ``table_index << 48 | g``: a stripe of a table, uint64. With a shard it names one record.
* *rows blob* (``records``): the records of some keys, one after the other, each ``record_bytes(table)`` long.
* A *section list* names rows of several tables: ``tables`` int32[m], ``counts`` int64[m], ``rows`` int64[sum(counts)]
  (global row ids of the tables, section after section).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]

__version__: Final[str]

# ------------------------------------------------------------------ kernels
def kernels() -> list[str]:
    """Names of the kernels that this CPU and operating system can run, fastest first; the last is ``scalar``."""

def compiled_kernels() -> list[str]:
    """Names of all kernels in this build, fastest first."""

def kernel() -> str:
    """Name of the kernel in use."""

def use_kernel(name: str) -> None:
    """Force a kernel. ``ValueError`` if the name is unknown or this machine cannot run it."""

def prefetch() -> str:
    """The cache that rows are fetched into before their turn: ``"L1"`` or ``"L2"``, which this CPU's maker decides."""

def use_prefetch(cache: str) -> None:
    """Fetch rows into ``"L1"`` or ``"L2"``; not while an operation runs. It changes the speed of some, no result.

    ``ValueError`` for another name.
    """

def threads() -> int:
    """How many threads bulk operations use, the caller's among them; 1 to begin with."""

def use_threads(count: int) -> int:
    """Divide bulk operations over ``count`` threads, 1 to 256. No bit of a result depends on it.

    Returns how many there are: fewer where the operating system does not let so many start (a limit on threads or
    memory). Waits for an operation that runs. A child of ``os.fork`` begins with 1.

    Divided are, from 256 KiB for each thread on: encode, fold, fold_rows, reconstruct, gather, apply, the folding of
    windows, and pooling forward and backward.
    """

def crc32c(data: Any, value: int = 0) -> int:
    """CRC-32C of a contiguous buffer; behind what ``value`` is the checksum of, if it is given."""

def crc32c_by_table(data: Any, value: int = 0) -> int:
    """`crc32c`, byte by byte: the oracle."""

def crc32c_in_use() -> str:
    """What `crc32c` is computed by: ``sse4.2``, ``armv8`` or ``table``."""

def kernel_functions() -> dict[str, int]:
    """Addresses of ``encode``, ``fold`` and ``fold_rows`` of the kernel in use (``src/cpp/kernels/operations.hpp``).

    For native callers, such as ``ecrec/bench/kernels.py``: these functions check nothing.
    """

def prepare_coefficients(values: U8) -> U8:
    """uint8[values.size, size of a prepared coefficient]: what the functions of `kernel_functions` take."""

# ------------------------------------------------------------------ files
def write_file(path: str, partial: str, buffers: Sequence[Any]) -> tuple[int, int]:
    """Write a file as a whole or not at all: buffers one after the other to ``partial``, which is renamed to ``path``.

    Missing folders are made; a file at ``path`` is replaced; all is durable on return. ``partial`` is in the folder of
    ``path``. Large files go past the page cache where the file system can. Returns bytes and CRC-32C. Raises OSError.
    """

class FileWriter:
    """Threads that do what `write_file` does; one of the lowest priority, one of ordinary priority for urgent files."""
    def submit(self, path: str, partial: str, absent: str, buffers: Sequence[Any], urgent: bool = False) -> int:
        """Have a file written behind others of its urgency; its number. Nothing is written if ``absent`` is there.

        Buffers are read until `take` has given the number. Raises RuntimeError if no thread can be started.
        """
    def take(self) -> list[tuple[int, int, int, int, str]]:
        """(number, bytes, CRC-32C, errno or 0, what it is of) of files that are done; EEXIST: ``absent`` is there."""
    def close(self) -> None:
        """Begin nothing more. What is being written is not waited for."""

# ------------------------------------------------------------------ codec
def gf_multiply(a: int, b: int) -> int: ...
def gf_inverse(a: int) -> int: ...
def gf_invert_matrix(matrix: U8) -> U8:
    """Inverse of a square matrix over GF(2^8), polynomial 0x11d. ``ValueError`` if singular."""

class Code:
    """A systematic (k, r) code over bytes. r may be 0. k + r <= 255.

    ``generator``: ``"cauchy"`` (first parity row and first column all ones) or ``"isal-cauchy"`` (the
    matrix of ISA-L's ``gf_gen_cauchy1_matrix``).
    """
    def __init__(self, k: int, r: int, generator: str = "cauchy") -> None: ...
    @property
    def k(self) -> int: ...
    @property
    def r(self) -> int: ...
    @property
    def generator(self) -> str: ...
    @property
    def coefficients(self) -> U8:
        """uint8[r, k], a copy."""
    def encode(self, data: Sequence[U8], parity: Sequence[U8]) -> None:
        """parity[i] = sum_j coefficients[i, j] * data[j]; k and r arrays of one length. Overlap of a parity with
        anything else is refused.
        """
    def fold(self, parity_index: int, data_index: int, x: U8, parity: U8) -> None:
        """parity ^= coefficients[parity_index, data_index] * x, in place."""
    def fold_rows(self, parity_index: int, data_index: int, x: U8, indices: I64, parity: U8) -> None:
        """parity[indices[m]] ^= coefficient * x[m]; x uint8[m, L], parity uint8[P, L]. An index may repeat."""
    def reconstruct(self, present: Sequence[int], blocks: Sequence[U8], lost: Sequence[int], out: Sequence[U8]) -> None:
        """From >= k present blocks (slot numbers 0..k+r-1) compute the lost ones (data or parity slots)."""
    def decode_matrix(self, present: Sequence[int], lost: Sequence[int]) -> U8:
        """uint8[len(lost), k] that maps the first k present blocks to the lost ones."""

# ------------------------------------------------------------------ store
def optimizers() -> dict[
    str, tuple[tuple[str, ...], tuple[tuple[str, bool, int, int], ...], bool, tuple[float, float]]
]:
    """The store's optimizers by name (``src/cpp/kernels/optimizers.hpp``).

    Of each: its hyper-parameters; the parts of a row's state in the order of its record (name, whether it has a float32
    for each weight, how many float32 and float64 it has besides); whether it divides by the learning rate, which then
    is not zero; and the usual learning rates of tables and of the dense part, 0 where it is not offered.
    """

def tuning() -> dict[str, int]:
    """The store's thresholds by name (``src/cpp/store/tuning.hpp`` says what each decides)."""

def set_tuning(**knobs: int) -> None:
    """Set some of the thresholds of `tuning`, for the whole process; not while another call runs.

    For tests and the simulator, which reach with few rows what a server reaches with many. No result depends on them,
    but for the order and number of rows in a `Window`, and refusals at ``buffer_rows_max`` and ``buffer_bytes_max``.
    ``ValueError`` for an unknown name or a value out of range; then none is set.
    """

class RowBuffer:
    """Sparse rows of one store's tables: key -> record, merged by XOR. Used for deltas, captures, decoding.

    The buffer of a `Window` may hold a key several times: its record is what these add up to by XOR. ``RuntimeError``
    for more rows or bytes than ``buffer_rows_max`` and ``buffer_bytes_max`` of `tuning`; nothing is changed then.
    """
    def __init__(self, store: Store) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes of records held."""
    def fold(self, coefficient: int, keys: U64, records: U8) -> None:
        """self[key] ^= coefficient * record (a key that is absent is zero)."""
    def nonzero(self) -> U64:
        """Keys whose record is not all zero, each once, in order of insertion."""
    def remove_class(self, class_id: int) -> None:
        """Forget the rows of one class. The others keep their order; rows that come later may repeat a key until
        `take`."""
    def take(self) -> tuple[U64, U8]:
        """(keys, records) in order of insertion, moved out without a copy; the buffer is empty afterwards."""
    def take_nonzero(self) -> tuple[U64, U8]:
        """The same without the rows that are all zero, each key once."""

class Window:
    """The open window of a shard: one `RowBuffer` a peer, and what may be written to it.

    ``limit(peer, class_id)``: `Store.apply` writes the delta of a stripe to a peer only if the stripe's position is
    below the limit. A new Window has limit 0 everywhere; ``UNLIMITED`` is 2**64 - 1.
    """

    UNLIMITED: Final[int]
    def __init__(self, store: Store) -> None: ...
    def limit(self, peer: int, class_id: int) -> int: ...
    def set_limit(self, peer: int, class_id: int, position: int) -> None:
        """Also allowed for classes of codes that no table has yet (class_id < 64)."""
    def buffer(self, peer: int) -> RowBuffer:
        """The live buffer of a peer (a view, not a copy)."""
    def rows(self) -> int:
        """Rows in all buffers."""
    def nbytes(self) -> int: ...

class Capture:
    """A copy of this shard's parity rows of some stripes of one class at one cut (docs/protocol.md).

    Holds either all positions first <= p < last of the class, of which only touched parity rows are stored, or given
    keys.
    """
    def __init__(self, store: Store, class_id: int, first: int, last: int) -> None:
        """Range capture: copies the touched parity rows of the range."""
    @staticmethod
    def of_keys(store: Store, class_id: int, keys: U64) -> Capture: ...
    def fold(self, source: int, keys: U64, records: U8) -> None:
        """Fold later deltas of data member ``source``; keys outside of the capture are skipped."""
    @property
    def nbytes(self) -> int:
        """Of what `take` would give."""
    def take(self) -> tuple[U64, U8]:
        """(keys, records) of what is stored, moved out."""

class Snapshot:
    """The touched data rows of a store as they are when this is made, copied out bit by bit while pushes change them.

    A push that changes a row which was not copied out keeps its old record aside first. `take` hands out what is kept
    before it reads on. Tables that are added later are not in it. ``columns``: of each table, the bytes of a record
    that belong to each column, in order, without padding. ``changed``: only rows that changed between these two marks
    (`Store.mark_changes`), of which the second is of now. ValueError for columns that do not fit, and for marks that
    the store does not have; RuntimeError while rows of the store are missing, and while it has another snapshot;
    `Store.restore` is refused meanwhile.
    """
    def __init__(
        self, store: Store, columns: Sequence[Sequence[int]], changed: tuple[int, int] | None = None
    ) -> None: ...
    @property
    def rows(self) -> int:
        """Rows that it has in all."""
    @property
    def taken(self) -> int:
        """Rows that were handed out."""
    @property
    def kept_bytes(self) -> int:
        """Of old records that wait to be handed out."""
    def take(self, bytes_max: int) -> tuple[int, int, U8]:
        """(table, number of rows, bytes) of the next rows of one table: their ids as int64, then each column of all of
        them. At most ``bytes_max`` bytes, but one row at least; no rows: all were handed out. Each row comes once."""
    def close(self) -> None:
        """The store goes on without it; it has no more rows."""

class Changes:
    """Which rows of a store changed between two marks (`Store.changes_between`)."""

class Copying:
    """The rows of a store, data and parity, that another one does not have as they are: all that are touched at first,
    then those that have changed since they were handed out.

    When nothing is left, and the store changes no more, a store into which all was put (`Store.put`), in order, has the
    same rows. Tables that are added later are in it too. RuntimeError while rows of the store are missing, and while
    there is another one of it; `Store.restore`, `Store.wipe_parity` and `Store.put` are refused meanwhile.
    """
    def __init__(self, store: Store) -> None: ...
    @property
    def rows(self) -> int:
        """Rows that are left to be handed out,"""
    @property
    def nbytes(self) -> int:
        """and bytes of their records."""
    def take(self, bytes_max: int) -> tuple[U64, U8]:
        """Keys and whole records of the next rows: at most ``bytes_max`` bytes, but one row at least; none: nothing is
        left. A stripe has at most one row on a shard, so that its key names a data row or a parity row."""
    def close(self) -> None:
        """The store goes on without it; nothing is left."""

class Store:
    """All tables of one shard: data rows, parity rows, and the bitmaps *touched* and *recovered*.

    A record is dim float32 weights, then the optimizer's float32 state, then zero padding to a multiple of 16 bytes.
    Memory is reserved, not touched: an untouched row's record is its initial record, computed when asked for.
    """
    def __init__(self, shard: int, shards: int, group: int = 0, groups: int = 1) -> None:
        """Shard ``shard`` (0..n-1 in its group) of ``shards`` = n <= 16; stripe s of a table is stripe s // groups of
        group s % groups.
        """
    def add_table(
        self,
        rows: int,
        dim: int,
        k: int,
        r: int,
        generator: str,
        optimizer: str,
        hyper: Sequence[float],
        init: str,
        init_seed: int,
        init_scale: float,
        init_state: float,
        recovered: bool = True,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        max_gradient: float = 0.0,
    ) -> int:
        """Add a table, return its index (0, 1, ...).

        optimizer, hyper: a name of `optimizers` and its hyper-parameters in that order. Each is rounded to float32 (of
        betas 1 - beta is), and only has to be finite.
        init: ``"zeros"`` or ``"uniform"`` in [-init_scale, init_scale). init_state: where the state starts that an
        optimizer says (Adagrad's sums, FTRL's n); all other starts at zero. Before each step of a row its gradient is
        cut off to [-max_gradient, max_gradient] (0: it is not); then gradient += weight_decay * weights, or, if
        decoupled, weights *= 1 - lr * weight_decay.
        recovered=False: every data row of it counts as lost until restored (a replacement's store).
        """
    def on_pause(self, pause: Callable[[int], None] | None) -> None:
        """Have ``pause(work)`` called in the middle of long calls, of this store and of what is made of it: once so
        much is done as the knob ``pause_bytes`` says (2 MiB), 0.2 to 3 ms of work, counted on from call to call. None:
        no more.

        Work is counted in bytes, not timed: two runs pause at the same places, and what is computed does not depend on
        it. ``work``: what was done since the last pause, which may be more by one piece that is done in one go.
        ``pause`` may use no object of the store. What it raises ends the call half done: nothing that the store holds
        may be used any more then. It is kept as long as the store.
        """
    @property
    def tables(self) -> int: ...
    def record_bytes(self, table: int) -> int: ...
    def class_size(self, class_id: int) -> int:
        """Number of positions of the class (of all tables of its code); 0 for a class of no code."""
    @property
    def codes(self) -> list[tuple[int, int, str]]:
        """(k, r, generator) by code index."""
    def memory(self) -> dict[str, int]:
        """``data_rows_touched``, ``parity_rows_touched``, ``data_bytes_reserved``, ``parity_bytes_reserved``,
        ``data_bytes_touched``, ``parity_bytes_touched``.
        """

    def touched_rows(self) -> I64:
        """By table, how many data rows were ever touched."""
    def changes_between(self, since: int, until: int) -> Changes:
        """Which rows changed between two marks. Raises ValueError for marks that are not there."""
    def next_rows(
        self, changes: Changes | None, table: int, slot: int, quotient: int, bytes_max: int
    ) -> tuple[int, I64, tuple[int, int, int], bool]:
        """(table, rows, next place, whether these are the last ones): some of the rows of changes, or of all touched
        rows (None), from a place on, all of one table; at most ``bytes_max`` bytes with weights, one row at least."""
    def mark_changes(self) -> int:
        """A new mark: the store notes which rows change from now on, until the mark is dropped. Marks rise.

        A row that changes costs one bit. Where there is no memory for that, all marks are dropped (`has_mark`).
        """
    def has_mark(self, mark: int) -> bool: ...
    def drop_mark(self, mark: int) -> None:
        """Nobody needs a mark any more; what changed since stays noted for those who have earlier ones."""

    def give_up(self) -> bool:
        """End a store that may be large: from the first call on it has no tables, and each gives back some of their
        memory (``dropped_bytes_max`` of `tuning`). False when nothing is left. To delete it at once takes the system a
        second for each 10 GB or so. ``RuntimeError`` while a window, capture, snapshot or copy of it is there."""

    def use_huge_pages(self, extents: int) -> bool:
        """Look at the next ``extents`` of 2 MiB of all tables, in turn, and move those of which at least three quarters
        of the pages are touched into huge pages (Linux 6.1). About 0.2 ms for one that is moved.
        False: all were looked at and none was moved, or the system cannot do it. What it cannot do at the moment (no
        huge page is free) stays small until a later look. Parts without a touched row are passed over.

        Pages are small at first, so that a touched row costs no 2 MiB, and a first push does not wait for them.
        """

    # -- rows for workers
    def gather(self, tables: I32, counts: I64, rows: I64, out: U8, records: bool = False) -> None:
        """Write the rows' weights (or whole records) to ``out``, section after section. Does not touch them.

        Raises ``IndexError`` for an id out of the table's range or not on this shard, ``RuntimeError`` for a row not
        recovered.
        """
    def gather_bytes(self, tables: I32, counts: I64, records: bool = False) -> int:
        """Bytes that `gather` needs for such sections."""
    def distinct(self, keys: U64, known: U64) -> U64:
        """Each of the keys once, in order of first occurrence, without those that are in ``known``. Any numbers do; the
        store gives the pauses alone, which sorting them would not have.
        """
    def missing(self, tables: I32, counts: I64, rows: I64) -> U64:
        """Distinct keys of those rows that are not yet recovered (empty when nothing is lost)."""
    def check(self, tables: I32, counts: I64, rows: I64, values: F32) -> None:
        """Raise what `apply` or `assign` would raise for these arguments; change nothing."""
    def apply(
        self,
        tables: I32,
        counts: I64,
        rows: I64,
        gradients: F32,
        window: Window | None,
        rates: Sequence[float] = ...,
    ) -> None:
        """One optimizer step on each row, in order, writing deltas into ``window`` in the same pass.

        ``gradients``: float32[sum(counts[i] * dim(tables[i]))], section after section. ``rates``: a learning rate for
        each of ``tables``, which replaces the table's own in this step; or none.
        ValueError for a gradient that is not finite (says table and row), and for a rate at which no step can be taken:
        not finite, below 0, 0 for FTRL, or with a decoupled weight decay at least 1 / weight_decay. Nothing is applied
        unless all is valid.
        """
    def assign(self, tables: I32, counts: I64, rows: I64, values: F32, window: Window | None) -> None:
        """Set weights (state is kept); otherwise like `apply`."""
    def assign_records(self, tables: I32, counts: I64, rows: I64, records: F32, window: Window | None) -> None:
        """Set weights and state: ``records`` are whole records without padding, in the order of `add_table`, as float32
        (the last two numbers of Adam's state are float64 in the place of four). Otherwise like `apply`; only weights
        have to be finite.
        """

    # -- parity
    def fold(self, source: int, class_mask: int, keys: U64, records: U8) -> None:
        """parity ^= coefficient(source) * record for each key whose class bit is set in class_mask; other keys are
        skipped.

        Everything is validated first, skipped keys too: this shard holds a parity of the stripe, ``source`` a data
        row of it.
        """
    def wipe_parity(self, class_id: int) -> None:
        """All parity rows of the class back to zero, untouched. Takes no time in proportion to their number."""

    # -- recovery
    def coded_rows(self, class_id: int, first: int, last: int) -> tuple[U64, U8]:
        """Coded values (record XOR initial record) of this shard's touched data rows in first <= position < last, in
        order of position.
        """
    def coded_rows_of(self, keys: U64) -> tuple[U64, U8]:
        """The same of those of the given keys that are touched."""
    def seed(self, window: Window, peer: int, class_id: int, rows_max: int, bytes_max: int = ...) -> tuple[bool, U64]:
        """Go on from ``window.limit(peer, class_id)``: write up to rows_max touched coded rows, of at most bytes_max
        bytes (at least one row), to the peer's buffer and advance the limit.

        Returns (finished, blocked): finished means that the limit was set to UNLIMITED; blocked are keys of not yet
        recovered
        rows that stop it (up to rows_max of them; the limit then stands before the first).
        """
    def put(self, keys: U64, records: U8) -> None:
        """Rows that `Copying.take` handed out, of a store of the same shard: these are their records from now on."""
    def restore(self, keys: U64, coded: U8) -> None:
        """Set data rows to initial record XOR coded value and mark them recovered; a row already recovered is left
        alone.
        """
    def mark_recovered(self, class_id: int, first: int, last: int) -> None:
        """Rows of the range that are not yet recovered are at their initial value: mark them."""
    def mark_recovered_keys(self, keys: U64) -> None: ...
    def next_missing(self, class_id: int, first: int) -> int:
        """Smallest position >= first of a data row of mine not yet recovered; -1 if none."""
    def missing_counts(self, class_id: int) -> tuple[I32, I64]:
        """(tables, counts): how many of my rows of the class are not yet recovered; only tables that have some."""
    def missing_of(self, keys: U64, rows_max: int) -> U64:
        """Those of the keys whose rows of mine are not yet recovered, in order; it stops at rows_max of them."""
    def missing_keys(self, class_id: int, first: int, rows_max: int) -> U64:
        """Keys of those at position >= first, at most rows_max, in order of position."""
    def span(self, class_id: int, first: int, last: int, rows_max: int, bytes_max: int = ...) -> int:
        """Largest end <= last such that first..end has at most rows_max touched parity rows of mine, of at most
        bytes_max bytes (at least first + 1, and one such row).
        """
    def positions(self, keys: U64) -> U64:
        """Position of each key in its class."""
    def classes(self, keys: U64) -> U8:
        """Class id of each key."""
    def keys(self, tables: I32, counts: I64, rows: I64) -> U64:
        """Key of each row (checks that it is on this shard)."""

# ------------------------------------------------------------------ batch helpers (worker side)
def plan_batch(
    ids: I64, starts: I64, tables: I32, table_rows: I64, table_k: I32, shards: int, groups: int = 1
) -> tuple[I64, I64, I32]:
    """Distinct rows of a batch and where they live.

    ids[starts[f]:starts[f + 1]] are the row ids of feature f, in table tables[f] (index into table_rows and table_k).
    Returns (rows int64[U], counts int64[groups * shards, T], inverse int32[N]): the distinct (table, row) pairs,
    ordered by
    shard (group * shards + shard in group), then table, then first occurrence; how many each (shard, table) has; and
    for
    each id its place among rows. IndexError names feature, position, id and the table's rows.
    """

def pool_forward(
    values: F32,
    value_offsets: I64,
    inverse: I32,
    bag_offsets: I64,
    dims: I32,
    batch: int,
    mean: NDArray[np.bool_],
    out: F32,
    weights: F32 | None = None,
) -> None:
    """out float32[batch, sum(dims)]: for feature f and sample b the sum (or mean) of the rows of its bag.

    Bag (f, b) = inverse[bag_offsets[f * batch + b] : bag_offsets[f * batch + b + 1]]; row u is
    values[value_offsets[u] : value_offsets[u] + dims[f]]. An empty bag gives zeros. ``weights``: of each id; its row is
    multiplied by it, and a mean still divides by the number of ids. ValueError for offsets that are out of range,
    fall, or make rows overlap.
    """

def pool_backward(
    grad_out: F32,
    value_offsets: I64,
    inverse: I32,
    bag_offsets: I64,
    dims: I32,
    batch: int,
    mean: NDArray[np.bool_],
    gradients: F32,
    weights: F32 | None = None,
) -> None:
    """gradients (same shape as ``values`` above) = sum over each row's occurrences, added in the order of the ids.
    Overwrites. ``weights`` are those of the forward pass.
    """

def pool_backward_weights(
    grad_out: F32,
    values: F32,
    value_offsets: I64,
    inverse: I32,
    bag_offsets: I64,
    dims: I32,
    batch: int,
    mean: NDArray[np.bool_],
    gradients: F32,
) -> None:
    """gradients (one for each id) = those of the ids' weights: the dot product of the id's row and its bag's gradient,
    for a mean divided by the number of ids. Overwrites.
    """

def sum_sections(
    sections: Sequence[tuple[I32, I64, I64, F32]], dims: I32, store: Store | None = None
) -> tuple[I32, I64, I64, F32]:
    """Sum several pushes into one: (tables, counts, rows, gradients) each, dims by table index.

    Pauses as calls of ``store`` do, whose rows need not be these.

    Rows of the result are distinct per table, ordered by table, then first occurrence; each row's gradients are added
    in the order given.
    """

def segment_sum(values: F32, inverse: I64, segments: int) -> F32:
    """float32[segments, dim]: out[inverse[i]] += values[i] in order of i; values float32[N, dim]."""

def unique_inverse(ids: I64) -> tuple[I64, I64]:
    """(distinct ids in order of first occurrence, inverse)."""

def first_elsewhere(
    rows: I64, tables: I64, counts: I64, table_rows: I64, table_k: I64, shard: int, shards: int, groups: int = 1
) -> int:
    """Index of the first row that its table has not, or that does not lie on the shard; -1 if there is none.

    rows int64[N]: those of ``tables``, so many of each as ``counts`` says; ``table_rows`` and ``table_k`` by table.
    """

def first_nonfinite(values: F32) -> int:
    """Index of the first value that is infinite or not a number; -1 if there is none."""

def use_zmq(functions: dict[str, int], copied_below: int, frames_max: int) -> None:
    """Name the library whose sockets ``send_frames`` and ``receive_frames`` get, by the addresses of its functions.

    Frames of fewer bytes than ``copied_below`` are copied, larger ones are not. ``frames_max``: of a message that
    arrives.
    """

def send_frames(socket: int, route: bytes | None, frames: Sequence[Any]) -> int:
    """Send buffers as one message, without waiting; ``route`` before them, on a ROUTER. ``socket``: its address.

    Returns 0, or the errno of what is in the way; a negative one if a part of the message was taken: then the socket
    must be closed, or what is sent next is the other part. Nothing is sent if it raises. A large buffer must not change
    until ZeroMQ has sent it; it is kept alive until then.
    """

def receive_frames(socket: int, routed: bool) -> tuple[bytes, list[Any], str, str, int] | None:
    """The next message, if there is one: its route (of a ROUTER), frames, user id and address of the peer, and the
    descriptor of its connection (of a ROUTER, else -1).

    The first frame is bytes, or, if it is large, an array as the others are: uint8 in memory aligned to 8 bytes. Frames
    beyond ``frames_max`` are dropped. If it raises, the whole message is gone, and the next call takes the next one.
    """

def release_sent() -> None:
    """Let go of the buffers that are sent by now, as `send_frames` and `receive_frames` do."""
