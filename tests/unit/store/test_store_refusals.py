"""What the store refuses: with a message that says what and where, and without having changed a byte."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from store_group import ALL_CLASSES, Group, key, keys_of, sections

from ecrec.protocol.placement import OptimizerSpec
from ecrec.store import Capture, RowBuffer, Store, Window
from ecrec.store.reference import Table

TABLE = Table(41, 4, 3, 1, optimizer="adagrad", hyper=(0.1, 1e-8), shards=5)
MINE, OTHER = 0, 1
"""Rows on shard 0 and on shard 1."""


@pytest.fixture
def group() -> Group:
    group = Group([TABLE, TABLE], 5)
    for shard in range(5):
        rows = group.rows_of(shard, 0)[:3]
        group.apply(shard, sections((0, rows)), np.ones(4 * len(rows), dtype=np.float32))
    group.exchange()
    return group


def floats(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


def i32(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def i64(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


ONES = floats(1, 1, 1, 1)

Case = tuple[Any, Any, type[Exception], str]

SECTIONS_REFUSED: list[Case] = [
    (sections((2, [MINE])), ONES, ValueError, "unknown table 2, the store has 2"),
    (sections((-1, [MINE])), ONES, ValueError, "unknown table -1"),
    (sections((0, [41])), ONES, IndexError, "row 41 of table 0 is out of range, the table has 41 rows"),
    (sections((0, [-1])), ONES, IndexError, "row -1 of table 0 is out of range"),
    (
        sections((1, [OTHER])),
        ONES,
        IndexError,
        "row 1 of table 1 is on shard 1 of group 0, not on shard 0 of group 0",
    ),
    ((i32(0), i64(1), i64(0, 0)), ONES, ValueError, r"the counts add up to \d rows, got \d"),
    ((i32(0), i64(2), i64(0)), ONES, ValueError, r"section \d counts 2 rows, but 1 of \d are left"),
    ((i32(0), i64(-1), i64()), ONES[:0], ValueError, r"section \d counts -1 rows"),
    ((i32(0, 0), i64(1), i64(0)), ONES, ValueError, r"got \d tables and \d counts, expected as many"),
]

VALUES_REFUSED: list[Case] = [
    (sections((0, [MINE])), ONES[:3], ValueError, "got 7 floats, expected 8"),
    (sections((0, [MINE])), floats(*[1] * 8), ValueError, "got 12 floats, expected 8"),
    (
        sections((0, [0, 15]), (1, [0])),
        floats(*[1] * 7, np.nan, *[1] * 4),
        ValueError,
        "row 15 of table 0 are not all finite",
    ),
    (
        sections((0, [0]), (1, [0, 15])),
        floats(*[1] * 4, np.inf, *[1] * 7),
        ValueError,
        "row 0 of table 1 are not all finite",
    ),
]


@pytest.mark.parametrize("operation", ["apply", "assign"])
@pytest.mark.parametrize(("listed", "values", "error", "message"), SECTIONS_REFUSED + VALUES_REFUSED)
def test_a_push_is_applied_as_a_whole_or_not_at_all(
    group: Group, operation: str, listed: Any, values: Any, error: type[Exception], message: str
) -> None:
    # The bad part stands behind a good one.
    whole = [np.concatenate([good, bad]) for good, bad in zip(sections((1, [MINE])), listed, strict=True)]
    store, window = group.stores[0], group.windows[0]
    with pytest.raises(error, match=message):
        getattr(store, operation)(*whole, np.concatenate([ONES, values]), window)
    assert window.rows() == 0
    group.check_rows(0)


@pytest.mark.parametrize("operation", ["gather", "missing", "keys"])
@pytest.mark.parametrize(("listed", "values", "error", "message"), SECTIONS_REFUSED)
def test_bad_sections_are_refused(
    group: Group, operation: str, listed: Any, values: Any, error: type[Exception], message: str
) -> None:
    out = [np.zeros(16, dtype=np.uint8)] if operation == "gather" else []
    with pytest.raises(error, match=message):
        getattr(group.stores[0], operation)(*listed, *out)


def test_gather_needs_exactly_the_bytes(group: Group) -> None:
    for size in (15, 17, 32):
        with pytest.raises(ValueError, match=f"out has {size} bytes, expected 16"):
            group.stores[0].gather(*sections((0, [0])), np.zeros(size, dtype=np.uint8))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (0, np.zeros(1, dtype=np.int64), "tables: expected dtype int32, got int64"),
        (1, np.zeros(1, dtype=np.int32), "counts: expected dtype int64"),
        (2, np.zeros(1, dtype=np.uint64), "rows: expected dtype int64"),
        (2, np.zeros(4, dtype=np.int64)[::2], "rows: expected a C-contiguous array"),
        (2, [0], "rows: expected a numpy array"),
        (3, np.zeros(4, dtype=np.float64), "gradients: expected dtype float32"),
        (
            3,
            np.frombuffer(bytes(17), dtype=np.uint8)[1:].view(np.float32),
            "gradients: expected an array aligned",
        ),
    ],
)
def test_arrays_of_another_kind_are_type_errors(group: Group, argument: int, value: Any, message: str) -> None:
    arguments: list[Any] = [*sections((0, [MINE])), ONES, None]
    arguments[argument] = value
    with pytest.raises(TypeError, match=message):
        group.stores[0].apply(*arguments)
    group.check_rows(0)


def test_a_window_of_another_store_is_refused(group: Group) -> None:
    with pytest.raises(ValueError, match="the window belongs to another store"):
        group.stores[0].apply(*sections((0, [MINE])), ONES, group.windows[1])
    with pytest.raises(ValueError, match="the window belongs to another store"):
        group.stores[0].seed(group.windows[1], 3, 0, 10)
    group.check_rows(0)


@pytest.mark.parametrize(
    ("source", "keys", "size", "error", "message"),
    [
        (0, keys_of((0, 0), (2, 0)), 64, ValueError, "key 1 names table 2, expected 0 to 1"),
        (
            0,
            keys_of((0, 0), (0, 14)),
            64,
            IndexError,
            "key 1 names stripe 14 of table 0, which has 14 stripes",
        ),
        (0, keys_of((0, 0)), 31, ValueError, "got 31 bytes of records for 1 keys, expected 32"),
        (0, keys_of((0, 0)), 64, ValueError, "got 64 bytes of records for 1 keys, expected 32"),
        (1, keys_of((0, 0), (0, 1)), 64, ValueError, "shard 3 holds no parity of stripe 1 of table 0"),
        (4, keys_of((0, 0)), 32, ValueError, "shard 4 has no data row in stripe 0 of table 0"),
        (5, keys_of((0, 0)), 32, ValueError, "shard 5 is not in the group, expected 0 to 4"),
        (-1, keys_of((0, 0)), 32, ValueError, "shard -1 is not in the group"),
    ],
)
def test_a_fold_is_refused_as_a_whole_even_where_masked(
    group: Group, source: int, keys: Any, size: int, error: type[Exception], message: str
) -> None:
    before = group.parity_rows(3)
    for mask in (ALL_CLASSES, 0):
        with pytest.raises(error, match=message):
            group.stores[3].fold(source, mask, keys, np.ones(size, dtype=np.uint8))
    assert group.parity_rows(3) == before


def test_a_row_that_the_short_last_stripe_lacks_is_never_written(group: Group) -> None:
    # Stripe 13 has rows 39 and 40 only; its third slot would be on shard (13 + 2) % 5 = 0, its parity on 1.
    short = keys_of((0, 13))
    with pytest.raises(ValueError, match="shard 0 has no data row in stripe 13 of table 0"):
        group.stores[1].fold(0, ALL_CLASSES, short, np.ones(32, dtype=np.uint8))
    replacement = group.new_store(0, recovered=False)
    two = keys_of((0, 0), (0, 13))
    with pytest.raises(ValueError, match="no data row in stripe 13 of table 0, but its coded value is not zero"):
        replacement.restore(two, np.ones(64, dtype=np.uint8))
    with pytest.raises(ValueError, match="mark_recovered_keys: shard 0 has no data row in stripe 13 of table 0"):
        replacement.mark_recovered_keys(two)
    assert replacement.next_missing(0, 0) == 0
    # Decoding gives zeros there, which are nothing to restore.
    replacement.restore(short, np.zeros(32, dtype=np.uint8))
    assert replacement.coded_rows_of(short)[0].size == 0
    # Positions 0 to 2 are of table 0; the row that position 2 lacks is not waited for.
    assert replacement.next_missing(3, 2) == 3


def test_a_row_that_is_not_recovered_is_not_served(group: Group) -> None:
    store = group.new_store(0, recovered=False)
    window = group.new_window(store)
    store.mark_recovered_keys(keys_of((0, 0)))
    listed = sections((0, [0, 15]))
    with pytest.raises(RuntimeError, match="apply: row 15 of table 0 is not recovered yet"):
        store.apply(*listed, np.ones(8, dtype=np.float32), window)
    with pytest.raises(RuntimeError, match="gather: row 15 of table 0 is not recovered yet"):
        store.gather(*listed, np.empty(32, dtype=np.uint8))
    assert window.rows() == 0 and store.memory()["data_rows_touched"] == 0
    assert store.missing(*sections((0, [15, 0, 15]), (1, [0]))).tolist() == [key(0, 5), key(1, 0)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.class_size(64), ValueError, "class id is 64, expected 0 to 63"),
        (lambda s: s.coded_rows(-1, 0, 1), ValueError, "class id is -1"),
        (lambda s: s.coded_rows(0, 2, 1), ValueError, "first position 2 is after the last, 1"),
        (lambda s: s.coded_rows(0, -1, 1), TypeError, "incompatible"),
        (lambda s: s.span(2, 1, 1, 5), ValueError, "span: shard 0|first position 1 is not before"),
        (lambda s: s.record_bytes(2), ValueError, "unknown table 2"),
        (lambda s: s.seed(Window(s), 3, 0, 0), ValueError, "rows_max is 0"),
        (lambda s: s.seed(Window(s), 4, 0, 1), ValueError, "shard 4 holds no parity of class 0"),
        (lambda s: Window(s).limit(5, 0), ValueError, "shard 5 is not in the group"),
        (lambda s: Window(s).set_limit(0, 64, 1), ValueError, "class id is 64"),
        (lambda s: Window(s).buffer(-1), ValueError, "shard -1 is not in the group"),
        (lambda s: Capture(s, 0, 0, 1), ValueError, "shard 0 holds no parity of class 0"),
        (lambda s: Capture(s, 9, 0, 1), ValueError, "class 9 is of no code, the store has 1"),
        (
            lambda s: Capture.of_keys(s, 2, keys_of((0, 3))),
            ValueError,
            "stripe 3 of table 0 is of class 3, expected",
        ),
        (
            lambda s: RowBuffer(s).fold(256, keys_of(), np.empty(0, np.uint8)),
            ValueError,
            "expected 0..255, got 256",
        ),
        (
            lambda s: RowBuffer(s).fold(1, keys_of((7, 0)), np.empty(0, np.uint8)),
            ValueError,
            "key 0 names table 7",
        ),
        (
            lambda s: s.positions(keys_of((0, 14))),
            IndexError,
            "key 0 names stripe 14 of table 0, which has 14",
        ),
        (
            lambda s: s.coded_rows_of(keys_of((0, 2))),
            ValueError,
            "shard 0 has no data row in stripe 2 of table 0",
        ),
        (lambda s: s.restore(keys_of((0, 0)), np.empty(31, np.uint8)), ValueError, "got 31 bytes of records"),
    ],
)
def test_other_misuse_is_refused(
    group: Group, call: Callable[[Store], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(group.stores[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows is 0, expected at least 1"),
        ({"rows": 1 << 62}, "are more than 2\\^46 bytes"),
        ({"dim": 0}, "dim is 0, expected 1 to"),
        ({"k": 0}, "k >= 1, r >= 0 and k \\+ r <= shards"),
        ({"r": -1}, "code \\(3, -1\\) does not fit 5 shards"),
        ({"k": 4, "r": 2}, "code \\(4, 2\\) does not fit 5 shards"),
        ({"generator": "vandermonde"}, "unknown generator 'vandermonde'"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion', expected one of sgd, momentum, .*, adam, .*ftrl"),
        ({"optimizer": "adam"}, "adam got 2 hyperparameters, expected \\[lr, beta1, beta2, eps\\]"),
        ({"optimizer": "ftrl", "hyper": (0.1, 1.0, float("inf"), 0.0)}, "l1 is inf, expected a finite float32"),
        ({"hyper": (0.1,)}, "adagrad got 1 hyperparameters, expected \\[lr, eps\\]"),
        ({"hyper": (float("nan"), 0.0)}, "lr is nan, expected a finite float32"),
        ({"init": "normal"}, "unknown init 'normal'"),
        ({"init_scale": 1e300}, "init_scale is 1e\\+300"),
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected a finite float32"),
        ({"weight_decay": -1.0}, "weight_decay is -1 and max_gradient 0, expected at least 0"),
        ({"max_gradient": -1.0}, "max_gradient -1, expected at least 0"),
        ({"weight_decay": 1e30, "decoupled": True, "hyper": (1e30, 0.0)}, "1 - lr \\* weight_decay is -1e\\+60"),
    ],
)
def test_tables_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    store = Store(0, 5)
    arguments: dict[str, Any] = {
        "rows": 41,
        "dim": 4,
        "k": 3,
        "r": 1,
        "generator": "cauchy",
        "optimizer": "adagrad",
        "hyper": (0.1, 1e-8),
        "init": "uniform",
        "init_seed": 1,
        "init_scale": 0.1,
        "init_state": 0.0,
    }
    with pytest.raises(ValueError, match=message):
        store.add_table(**arguments | change)
    assert store.tables == 0 and store.codes == []
    assert store.add_table(**arguments) == 0


def test_stores_that_cannot_be_are_refused() -> None:
    for arguments in ((0, 0), (0, 17), (5, 5), (-1, 5), (0, 5, 1, 1), (0, 5, 0, 0)):
        with pytest.raises(ValueError, match="expected"):
            Store(*arguments)


def test_more_codes_than_classes_are_refused() -> None:
    store = Store(0, 16)
    for k in range(1, 5):
        store.add_table(20, 4, k, 1, "cauchy", "sgd", [0.1], "zeros", 0, 0.0, 0.0)
    with pytest.raises(ValueError, match="5 different codes on 16 shards are more than 64 classes"):
        store.add_table(20, 4, 5, 1, "cauchy", "sgd", [0.1], "zeros", 0, 0.0, 0.0)


def test_buffers_and_captures_keep_their_store_alive() -> None:
    group = Group([TABLE], 5)
    window = group.windows.pop(0)
    store = group.stores.pop(0)
    store.apply(*sections((0, [0])), ONES, window)
    buffer = window.buffer(3)
    del group, store, window
    assert len(buffer) == 1 and buffer.nonzero().tolist() == [key(0, 0)]


@pytest.mark.parametrize(("table", "rates", "says"), [
    ({}, [0.1, 0.1], "got 2 learning rates, expected one for each of 1 tables"),
    ({}, [float("nan")], "learning rate nan of table 0, expected a finite one, not below 0"),
    ({}, [-0.1], "learning rate -0.1 of table 0"),
    ({}, [1e39], "learning rate 1e\\+39 of table 0"),
    ({"optimizer": "ftrl", "hyper": (0.1, 1.0, 0.0, 0.0)}, [0.0], "rate 0 of table 0, expected a positive one"),
    ({"optimizer": "ftrl", "hyper": (0.1, 1.0, 0.0, 0.0)}, [1e-60], "expected a positive one"),
    ({"weight_decay": 0.5, "decoupled": True}, [2.0], "with lr \\* weight_decay below 1"),
])  # fmt: skip
def test_learning_rates_at_which_no_step_can_be_taken_are_refused(
    table: dict[str, Any], rates: list[float], says: str
) -> None:
    group = Group([replace(TABLE, **table)], 5)
    listed = sections((0, [MINE]))
    before = group.stores[0].memory()["data_rows_touched"]
    with pytest.raises(ValueError, match=says):
        group.stores[0].apply(*listed, ONES, group.windows[0], rates)
    assert group.stores[0].memory()["data_rows_touched"] == before and not group.windows[0].rows()
    spec = OptimizerSpec(
        group.reference.tables[0].optimizer, group.reference.tables[0].hyper,
        group.reference.tables[0].weight_decay, group.reference.tables[0].decoupled,
    )  # fmt: skip
    assert len(rates) == 2 or spec.rate_error(rates[0]), "the protocol decides as the store does"


@pytest.mark.parametrize(
    ("tables", "counts", "text"),
    [
        (i32(0, 1), i64(1), "gather_bytes: got 2 tables and 1 counts"),
        (i32(0), i64(-1), "gather_bytes: section 0 counts -1 rows"),
        (i32(2), i64(1), "unknown table 2, the store has 2"),
    ],
)
def test_of_sections_that_cannot_be_no_bytes_are_counted(group: Group, tables: Any, counts: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        group.stores[0].gather_bytes(tables, counts)


@pytest.mark.parametrize("groups", [0, -1])
def test_a_store_of_no_group_is_refused(groups: int) -> None:
    with pytest.raises(ValueError, match=f"Store: groups is {groups}, expected at least 1"):
        Store(0, 1, 0, groups)
