"""What the batch helpers refuse, and what the message says."""

from typing import Any

import numpy as np
import pytest

from ecrec import _native


def i64(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def i32(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


PLAN: dict[str, Any] = {
    "ids": i64(0, 5, 9, 3),
    "starts": i64(0, 2, 4),
    "tables": i32(1, 0),
    "table_rows": i64(10, 6),
    "table_k": i32(2, 1),
    "shards": 3,
    "groups": 1,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"ids": i64(0, 6, 9, 3)},
            IndexError,
            "feature 0, position 1: id 6 is out of range, table 1 has 6 rows",
        ),
        (
            {"ids": i64(0, 5, 9, -1)},
            IndexError,
            "feature 1, position 1: id -1 is out of range, table 0 has 10 rows",
        ),
        ({"ids": i64(0, 5, -(1 << 63), 3)}, IndexError, "feature 1, position 0: id -9223372036854775808 is out"),
        ({"ids": i64(0, 5, 9, (1 << 63) - 1)}, IndexError, "feature 1, position 1: id 9223372036854775807 is out"),
        (
            {"ids": i64(0, 5, 10, 3), "table_rows": i64((1 << 63) - 1, 5)},
            IndexError,
            "feature 0, position 1: id 5 is out of range, table 1 has 5 rows",
        ),
        ({"table_rows": i64(10, 0)}, ValueError, "table_rows\\[1\\] is 0, expected at least 1"),
        ({"table_rows": i64(-1, 6)}, ValueError, "table_rows\\[0\\] is -1, expected at least 1"),
        ({"tables": i32(1, 2)}, ValueError, "feature 1 is in table 2, there are 2"),
        ({"tables": i32(1)}, ValueError, "got 3 starts for 1 features, expected 2"),
        ({"starts": i64(0, 2, 3)}, ValueError, "starts go from 0 to 3, expected 0 to 4"),
        ({"starts": i64(1, 2, 4)}, ValueError, "starts go from 1 to 4"),
        ({"starts": i64(0, 5, 4)}, ValueError, "starts\\[2\\] is 4, below the one before"),
        ({"table_k": i32(2)}, ValueError, "table_rows of 2 tables and table_k of 1"),
        ({"table_k": i32(2, 4)}, ValueError, "table_k\\[1\\] is 4, expected 1 to 3"),
        ({"table_k": i32(0, 1)}, ValueError, "table_k\\[0\\] is 0"),
        ({"shards": 0}, ValueError, "shards is 0"),
        ({"groups": 0}, ValueError, "groups is 0"),
        ({"groups": 1 << 30}, ValueError, "1073741824 groups of 3 shards are too many, expected at most 1048576"),
        (
            {"shards": (1 << 31) - 1, "groups": (1 << 31) - 1},
            ValueError,
            "2147483647 groups of 2147483647 shards are too many",
        ),
        (
            {"shards": 1 << 20, "table_rows": np.full(300, 9), "table_k": np.ones(300, np.int32)},
            ValueError,
            "counts of 1048576 shards and 300 tables are too many",
        ),
        ({"ids": i32(0, 5, 9, 3)}, TypeError, "ids: expected dtype int64, got int32"),
    ],
)
def test_plan_batch_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _native.plan_batch(**PLAN | change)


POOL: dict[str, Any] = {
    "value_offsets": i64(0, 2, 4),
    "inverse": i32(0, 1, 2, 0),
    "bag_offsets": i64(0, 1, 3, 3, 4),
    "dims": i32(2, 2),
    "batch": 2,
    "mean": np.zeros(2, dtype=np.bool_),
}


PLACED: dict[str, Any] = {
    "rows": i64(0, 2, 4),
    "tables": i64(1, 0),
    "counts": i64(2, 1),
    "table_rows": i64(10, 6),
    "table_k": i64(1, 2),
    "shard": 0,
    "shards": 1,
    "groups": 1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": 0}, "shard 0 of 1 groups of 0"),
        ({"groups": 0}, "shard 0 of 0 groups of 1"),
        ({"shard": -1}, "shard -1 of 1 groups of 1"),
        ({"counts": i64(3)}, "as many counts as tables"),
        ({"table_k": i64(1)}, "as many k as sizes of tables"),
        ({"tables": i64(2, 0)}, "2 rows of table 2"),
        ({"tables": i64(-1, 0)}, "2 rows of table -1"),
        ({"counts": i64(2, 2)}, "2 rows of table 0"),
        ({"counts": i64(-1, 2)}, "-1 rows of table 1"),
        ({"counts": i64(1, 1)}, "counts add up to 2, there are 3 rows"),
        ({"table_k": i64(0, 2)}, "1 rows of table 0"),
    ],
)
def test_first_elsewhere_refuses_what_does_not_fit_together(change: dict[str, Any], message: str) -> None:
    assert _native.first_elsewhere(**PLACED) == -1
    with pytest.raises(ValueError, match=message):
        _native.first_elsewhere(**PLACED | change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inverse": i32(0, 1, 3, 0)}, IndexError, "inverse\\[2\\] is 3, there are 3 rows"),
        ({"inverse": i32(0, 1, -1, 0)}, IndexError, "inverse\\[2\\] is -1"),
        ({"value_offsets": i64(0, 2, 5)}, ValueError, "row 2 of feature 0 is at offset 5 of 6 floats and has 2"),
        ({"value_offsets": i64(0, 2, 7)}, ValueError, "value_offsets\\[2\\] is 7, there are 6 floats"),
        ({"value_offsets": i64(0, 2, -1)}, ValueError, "value_offsets\\[2\\] is -1, below the one before, 2"),
        ({"value_offsets": i64(-2, 0, 2)}, ValueError, "value_offsets\\[0\\] is -2, expected at least 0"),
        ({"value_offsets": i64(2, 0, 4)}, ValueError, "value_offsets\\[1\\] is 0, below the one before, 2"),
        (
            {"value_offsets": i64(0, 1, 4)},
            ValueError,
            "row 0 of feature 0 is at offset 0 and has 2 floats, but row 1 begins at 1",
        ),
        (
            {"value_offsets": i64(0, 2, 2)},
            ValueError,
            "row 1 of feature 0 is at offset 2 and has 2 floats, but row 2 begins at 2",
        ),
        ({"bag_offsets": i64(0, 1, 3, 4)}, ValueError, "got 4 bag_offsets, expected 2 \\* 2 \\+ 1"),
        ({"bag_offsets": i64(0, 1, 3, 3, 5)}, ValueError, "bag_offsets go from 0 to 5, there are 4 ids"),
        ({"bag_offsets": i64(-1, 1, 3, 3, 4)}, ValueError, "bag_offsets go from -1"),
        ({"bag_offsets": i64(0, 4, 3, 3, 4)}, ValueError, "bag_offsets\\[2\\] is 3, below the one before"),
        ({"dims": i32(2, 0)}, ValueError, "dims\\[1\\] is 0"),
        ({"dims": i32(2, 1)}, ValueError, "got 8 pooled floats, expected 2 \\* 3"),
        ({"mean": np.zeros(1, dtype=np.bool_)}, ValueError, "mean of 1 features, expected 2"),
        ({"batch": -1}, ValueError, "batch is -1"),
        ({"weights": np.ones(3, np.float32)}, ValueError, "got 3 weights, there are 4 ids"),
        # 4 * 2^62 is 0 in 64 bits, and 2^61 * 8 too.
        (
            {"batch": 1 << 62, "dims": i32(1, 1, 1, 1), "mean": np.zeros(4, np.bool_), "bag_offsets": i64(0)},
            ValueError,
            "got 1 bag_offsets, expected 4 \\* 4611686018427387904 \\+ 1",
        ),
        (
            {"batch": 1 << 63 >> 1, "dims": i32(), "mean": np.zeros(0, np.bool_), "bag_offsets": i64(0)},
            ValueError,
            "got 8 pooled floats, expected 4611686018427387904 \\* 0",
        ),
    ],
)
def test_pooling_refuses_before_it_writes(change: dict[str, Any], error: type[Exception], message: str) -> None:
    floats, pooled = np.ones(6, dtype=np.float32), np.ones((2, 4), dtype=np.float32)
    with pytest.raises(error, match=message):
        _native.pool_forward(values=floats, out=pooled, **POOL | change)
    with pytest.raises(error, match=message):
        _native.pool_backward(grad_out=pooled, gradients=floats, **POOL | change)
    if "weights" not in change:
        with pytest.raises(error, match=message):
            _native.pool_backward_weights(grad_out=pooled, values=floats, gradients=floats.copy(), **POOL | change)
    assert (floats == 1).all() and (pooled == 1).all()


def test_pool_backward_refuses_a_row_of_two_widths() -> None:
    change = {"dims": i32(2, 1), "value_offsets": i64(0, 2, 4)}
    with pytest.raises(ValueError, match="row 0 has 2 floats in one feature and 1 in feature 1"):
        _native.pool_backward(
            grad_out=np.ones((2, 3), dtype=np.float32),
            gradients=np.ones(6, dtype=np.float32),
            **POOL | change,
        )


def test_pooling_refuses_overlap() -> None:
    floats = np.ones(14, dtype=np.float32)
    with pytest.raises(ValueError, match="values and out overlap"):
        _native.pool_forward(values=floats[:6], out=floats[5:13], **POOL)


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        (
            (i32(2), i64(1), i64(0), np.ones(2, np.float32)),
            ValueError,
            "sections\\[1\\] names table 2, there are 2",
        ),
        ((i32(0), i64(2), i64(0), np.ones(2, np.float32)), ValueError, "counts 2 rows in section 0, but 1"),
        ((i32(0), i64(1), i64(0, 1), np.ones(2, np.float32)), ValueError, "add up to 1 rows, got 2"),
        (
            (i32(0), i64(1), i64(0), np.ones(3, np.float32)),
            ValueError,
            "has 3 floats of gradients, expected 2",
        ),
        ((i32(0), i64(), i64(0), np.ones(2, np.float32)), ValueError, "has 1 tables and 0 counts"),
        (
            (i32(0), i64(1), i64(0)),
            TypeError,
            "sections\\[1\\]: expected \\(tables, counts, rows, gradients\\)",
        ),
        (
            (i64(0), i64(1), i64(0), np.ones(2, np.float32)),
            TypeError,
            "sections\\[1\\] tables: expected dtype int32",
        ),
    ],
)
def test_sum_sections_refuses(section: Any, error: type[Exception], message: str) -> None:
    good = (i32(0), i64(1), i64(0), np.ones(2, np.float32))
    with pytest.raises(error, match=message):
        _native.sum_sections([good, section], i32(2, 3))


def test_segment_sum_refuses_a_segment_that_is_not_there() -> None:
    values = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(IndexError, match="inverse\\[1\\] is 2, there are 2 segments"):
        _native.segment_sum(values, i64(0, 2), 2)
    with pytest.raises(ValueError, match="inverse: expected 2 elements, got 1"):
        _native.segment_sum(values, i64(0), 2)
    with pytest.raises(ValueError, match="segments: 4611686018427387904 of 3 floats do not fit into memory"):
        _native.segment_sum(values, i64(0, 1), 1 << 62)


def test_pooling_of_no_features_takes_no_time_for_a_large_batch() -> None:
    none = {"dims": i32(), "mean": np.zeros(0, np.bool_), "bag_offsets": i64(0), "batch": 1 << 62}
    gradients, pooled = np.ones(6, np.float32), np.zeros(0, np.float32)
    _native.pool_backward(grad_out=pooled, gradients=gradients, **POOL | none)
    _native.pool_forward(values=gradients, out=pooled, **POOL | none)
    assert (gradients == 0).all()
