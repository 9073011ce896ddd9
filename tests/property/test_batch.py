"""The batch helpers against numpy and plain loops."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecrec import _native
from ecrec.store.reference import F32, Table

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
Bools = NDArray[np.bool_]
BagCase = tuple[list[list[list[int]]], list[int], list[bool], int, int, int]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[Table]]:
    """(ids of each feature, table of each feature, tables)."""
    shards, groups = draw(st.integers(1, 16)), draw(st.integers(1, 5))
    tables = [
        Table(
            draw(st.integers(1, 1 << draw(st.sampled_from([2, 8, 40])))),
            4,
            draw(st.integers(1, shards)),
            0,
            shards=shards,
            groups=groups,
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    features = draw(st.lists(st.integers(0, len(tables) - 1), max_size=6))
    ids = [draw(st.lists(st.integers(0, tables[table].rows - 1), max_size=30)) for table in features]
    return ids, features, tables


@given(batches())
def test_plan_batch_finds_the_distinct_rows_and_their_shards(
    batch: tuple[list[list[int]], list[int], list[Table]],
) -> None:
    ids, features, tables = batch
    shards, groups = tables[0].shards, tables[0].groups
    flat = np.array([each for part in ids for each in part], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in ids])]).astype(np.int64)
    rows, counts, inverse = _native.plan_batch(
        flat,
        starts,
        np.array(features, dtype=np.int32),
        np.array([table.rows for table in tables], dtype=np.int64),
        np.array([table.k for table in tables], dtype=np.int32),
        shards,
        groups,
    )
    assert [str(each.dtype) for each in (rows, counts, inverse)] == ["int64", "int64", "int32"]
    assert counts.shape == (groups * shards, len(tables)) and counts.sum() == len(rows)
    expected = []
    for shard in range(groups * shards):
        for index, table in enumerate(tables):
            seen: dict[int, None] = {}
            for part, at in zip(ids, features, strict=True):
                if at == index:
                    seen |= dict.fromkeys(part)
            mine = [row for row in seen if table.shard_of(row) == (shard // shards, shard % shards)]
            assert counts[shard, index] == len(mine)
            expected += [(index, row) for row in mine]
    assert rows.tolist() == [row for _, row in expected]
    table_of_id = np.repeat(np.array(features, dtype=np.int64), [len(part) for part in ids])
    assert [expected[place] for place in inverse] == list(zip(table_of_id.tolist(), flat.tolist(), strict=True))


@given(batches(), st.data())
def test_first_elsewhere_finds_the_first_row_that_its_shard_has_not(
    batch: tuple[list[list[int]], list[int], list[Table]], data: st.DataObject
) -> None:
    ids, features, tables = batch
    shards, groups = tables[0].shards, tables[0].groups
    shard = data.draw(st.integers(0, groups * shards - 1))

    def is_there(index: int, row: int) -> bool:
        table = tables[index]
        return 0 <= row < table.rows and table.shard_of(row) == (shard // shards, shard % shards)

    there = [(index, [row for row in part if is_there(index, row)]) for part, index in zip(ids, features, strict=True)]
    flat = [(index, row) for index, part in there for row in part]
    if flat and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(flat) - 1))
        limit = tables[flat[at][0]].rows
        other = data.draw(st.sampled_from([limit, limit - 1, -1, -(1 << 63), (1 << 63) - 1, 0, flat[at][1] + 1]))
        flat[at] = flat[at][0], other
    found = _native.first_elsewhere(
        np.array([row for _, row in flat], np.int64),
        np.array([index for index, _ in there], np.int64),
        np.array([len(part) for _, part in there], np.int64),
        np.array([table.rows for table in tables], np.int64),
        np.array([table.k for table in tables], np.int64),
        shard,
        shards,
        groups,
    )
    assert found == next((at for at, each in enumerate(flat) if not is_there(*each)), -1)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 20), max_size=200))
def test_unique_inverse_is_numpys_in_order_of_first_occurrence(ids: list[int]) -> None:
    array = np.array(ids, dtype=np.int64)
    distinct, inverse = _native.unique_inverse(array)
    expected, first = np.unique(array, return_index=True)
    assert distinct.tolist() == expected[np.argsort(first)].tolist()
    assert distinct[inverse].tolist() == ids


@st.composite
def bags(draw: st.DrawFn) -> BagCase:
    """(rows of each feature's bags, dims, mean, rows a feature, batch, seed); no row is of two features."""
    features, batch, rows = draw(st.integers(0, 4)), draw(st.integers(0, 6) | st.just(19)), draw(st.integers(1, 5))
    dims = [draw(st.sampled_from([1, 3, 4, 16, 19])) for _ in range(features)]
    if draw(st.booleans()):
        dims = dims[:1] * features
    mean = [draw(st.booleans()) for _ in range(features)]
    sizes = st.sampled_from(draw(st.sampled_from([[0, 1, 1, 1, 2, 5, 20], [0, 1, 1, 2], [1]])))
    content = [
        [[draw(st.integers(0, rows - 1)) for _ in range(draw(sizes))] for _ in range(batch)] for _ in range(features)
    ]
    return content, dims, mean, rows, batch, draw(st.integers(0, 1 << 32))


def pool_arguments(
    case: BagCase,
) -> tuple[tuple[I64, I32, I64, I32, int, Bools], int, I64]:
    """What pool_forward and pool_backward share, the number of floats, and where row ``f * rows + row`` begins."""
    content, dims, mean, rows, batch, seed = case
    sizes = np.repeat(np.array(dims, dtype=np.int64), rows)
    # Rows of a feature do not lie one behind the other, as in the answers of several shards. Some floats are of no row.
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    place = np.argsort(order)
    ends = np.cumsum(sizes[order] + rng.choice([0, 0, 0, 2], len(sizes)))
    offsets = (ends - sizes[order]).astype(np.int64)
    flat = [place[f * rows + row] for f, feature in enumerate(content) for bag in feature for row in bag]
    lengths = [len(bag) for feature in content for bag in feature]
    return (
        (
            offsets,
            np.array(flat, dtype=np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array(dims, dtype=np.int32),
            batch,
            np.array(mean, dtype=np.bool_),
        ),
        (int(ends[-1]) if len(ends) else 0),
        offsets[place],
    )


@given(bags())
def test_pool_forward_is_the_plain_loop(kernel: str, case: BagCase) -> None:
    content, dims, mean, rows, batch, seed = case
    shared, floats, offsets = pool_arguments(case)
    values = np.random.default_rng(seed).standard_normal(floats).astype(np.float32)
    out = np.full((batch, sum(dims)), np.nan, dtype=np.float32)
    _native.pool_forward(values, *shared, out)
    column = 0
    for f, dim in enumerate(dims):
        for b, bag in enumerate(content[f]):
            expected = np.zeros(dim, dtype=np.float32)
            for i, row in enumerate(bag):
                vector = values[offsets[f * rows + row] :][:dim]
                expected = expected + vector if i else vector.copy()
            if mean[f] and bag:
                expected = expected / np.float32(len(bag))
            assert out[b, column : column + dim].tobytes() == expected.tobytes()
        column += dim


@given(bags())
def test_pool_backward_is_the_plain_loop(kernel: str, case: BagCase) -> None:
    content, dims, mean, rows, batch, seed = case
    shared, floats, offsets = pool_arguments(case)
    grad_out = np.random.default_rng(seed).standard_normal((batch, sum(dims))).astype(np.float32)
    gradients = np.full(floats, np.nan, dtype=np.float32)
    _native.pool_backward(grad_out, *shared, gradients)
    expected = np.zeros(floats, dtype=np.float32)
    column = 0
    for f, dim in enumerate(dims):
        for b, bag in enumerate(content[f]):
            share = grad_out[b, column : column + dim]
            if mean[f] and bag:
                share = share / np.float32(len(bag))
            for row in bag:
                expected[offsets[f * rows + row] :][:dim] += share
        column += dim
    assert gradients.tobytes() == expected.tobytes()


@given(bags())
def test_weighted_pooling_is_the_plain_loop(kernel: str, case: BagCase) -> None:
    content, dims, mean, rows, batch, seed = case
    shared, floats, offsets = pool_arguments(case)
    rng = np.random.default_rng(seed)
    values, grad_out, weights = (
        rng.standard_normal(shape).astype(np.float32) for shape in (floats, (batch, sum(dims)), len(shared[1]))
    )
    out, of_rows, of_weights = (np.full_like(like, np.nan) for like in (grad_out, values, weights))
    _native.pool_forward(values, *shared, out, weights)
    _native.pool_backward(grad_out, *shared, of_rows, weights)
    _native.pool_backward_weights(grad_out, values, *shared, of_weights)
    expected_out, expected_rows, expected_weights = map(np.zeros_like, (out, of_rows, of_weights))
    column = i = 0
    for f, dim in enumerate(dims):
        for b, bag in enumerate(content[f]):
            pooled, given_gradient = expected_out[b, column : column + dim], grad_out[b, column : column + dim]
            divisor = np.float32(len(bag)) if mean[f] and bag else np.float32(1)
            for at, row in enumerate(bag):
                vector = slice(offsets[f * rows + row], offsets[f * rows + row] + dim)
                pooled[:] = pooled + values[vector] * weights[i] if at else values[vector] * weights[i]
                expected_rows[vector] += given_gradient * (weights[i] / divisor)
                expected_weights[i] = (given_gradient.astype(np.float64) @ values[vector].astype(np.float64)) / divisor
                i += 1
            pooled /= divisor
        column += dim
    assert out.tobytes() == expected_out.tobytes()
    if floats:
        np.testing.assert_array_equal(of_rows, expected_rows)
    np.testing.assert_allclose(of_weights, expected_weights, rtol=1e-4, atol=1e-5)


HOSTILE = st.sampled_from([-1, 0, 1, 2, 3, 4, 7, 1 << 31, 1 << 61, 1 << 62, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63)])
SMALL = st.integers(-1, 9)
HOSTILE_I32 = st.sampled_from([-1, 0, 1, 2, 4, (1 << 31) - 1, -(1 << 31)])


@st.composite
def hostile_bags(draw: st.DrawFn) -> tuple[tuple[I64, I32, I64, I32, int, Bools], int, int]:
    """Arguments of pooling that fit each other in some places only, the floats of all rows and those of the output."""
    features = draw(st.integers(0, 3))
    batch = draw(st.sampled_from([0, 1, 2]) | HOSTILE)
    dims = draw(st.lists(st.integers(1, 4) | HOSTILE_I32, min_size=features, max_size=features))
    wrapped = (features * batch + 1) % (1 << 64)
    offsets = draw(st.lists(SMALL | HOSTILE, max_size=4))
    if draw(st.booleans()):
        offsets = sorted(offsets)
    bags_drawn = min(max(wrapped - 1, 0), 7)
    lengths = draw(st.lists(st.integers(0, 2), min_size=bags_drawn, max_size=bags_drawn))
    bag_offsets = [0, *np.cumsum(lengths).tolist()]
    if draw(st.integers(0, 4)) == 0:
        bag_offsets[draw(st.integers(0, len(bag_offsets) - 1))] = draw(SMALL | HOSTILE)
    rows = st.integers(0, max(len(offsets) - 1, 0)) | HOSTILE_I32
    count = max(bag_offsets[-1], 0) if bag_offsets[-1] < 20 else 0
    inverse = draw(st.lists(rows, min_size=count, max_size=count))
    pooled = (batch * sum(dims)) % (1 << 64)
    return (
        (
            np.array(offsets, np.int64), np.array(inverse, np.int32), np.array(bag_offsets, np.int64),
            np.array(dims, np.int32), batch, np.zeros(features, np.bool_),
        ),
        draw(st.integers(0, 12)),
        pooled if pooled < 64 else draw(st.integers(0, 8)),
    )  # fmt: skip


@settings(max_examples=400)
@given(hostile_bags())
def test_pooling_refuses_hostile_arguments_or_writes_every_float(
    case: tuple[tuple[I64, I32, I64, I32, int, Bools], int, int],
) -> None:
    shared, floats, pooled = case
    guard = 32
    given_pooled, given_values = np.ones(pooled, np.float32), np.ones(floats, np.float32)
    weights = np.ones(len(shared[1]), np.float32)
    calls = (
        (pooled, lambda out: _native.pool_forward(given_values, *shared, out)),
        (pooled, lambda out: _native.pool_forward(given_values, *shared, out, weights)),
        (floats, lambda out: _native.pool_backward(given_pooled, *shared, out)),
        (floats, lambda out: _native.pool_backward(given_pooled, *shared, out, weights)),
        (len(weights), lambda out: _native.pool_backward_weights(given_pooled, given_values, *shared, out)),
    )
    for i, (size, call) in enumerate(calls):
        whole = np.full(size + 2 * guard, np.nan, np.float32)
        written = whole[guard : guard + size]
        try:
            call(written)
        except (ValueError, IndexError):
            assert np.isnan(whole).all()
            continue
        assert not np.isnan(written).any()
        assert np.isnan(whole[:guard]).all() and np.isnan(whole[guard + size :]).all()
        if i == 2:
            ids = np.repeat(np.repeat(shared[3], shared[4]), np.diff(shared[2])) if len(shared[3]) else np.zeros(0)
            assert written.sum() == ids.sum()


pushes = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=8)), max_size=4), max_size=4
)


@given(pushes, st.integers(0, 1 << 32))
def test_sum_sections_adds_each_row_in_the_order_given(
    kernel: str, listed: Sequence[Sequence[tuple[int, list[int]]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dims = [1, 4, 17, 32]
    expected: list[dict[int, F32]] = [{} for _ in dims]
    sections = []
    for push in listed:
        gradients = []
        for table, rows in push:
            for row in rows:
                gradient = rng.standard_normal(dims[table]).astype(np.float32)
                gradients.append(gradient)
                before = expected[table].get(row)
                expected[table][row] = gradient if before is None else before + gradient
        sections.append(
            (
                np.array([table for table, _ in push], dtype=np.int32),
                np.array([len(rows) for _, rows in push], dtype=np.int64),
                np.array([row for _, rows in push for row in rows], dtype=np.int64),
                np.concatenate([np.empty(0, dtype=np.float32), *gradients]),
            )
        )
    tables, counts, rows_out, gradients_out = _native.sum_sections(sections, np.array(dims, dtype=np.int32))
    assert tables.tolist() == [table for table, rows in enumerate(expected) if rows]
    assert counts.tolist() == [len(rows) for rows in expected if rows]
    assert rows_out.tolist() == [row for rows in expected for row in rows]
    assert gradients_out.tobytes() == b"".join(each.tobytes() for rows in expected for each in rows.values())


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 20), st.integers(0, 1 << 32))
def test_segment_sum_is_numpys_add_at(kernel: str, inverse: list[int], dim: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((len(inverse), dim)).astype(np.float32)
    index: I64 = np.array(inverse, dtype=np.int64)
    expected = np.zeros((7, dim), dtype=np.float32)
    np.add.at(expected, index, values)
    found = _native.segment_sum(values, index, 7)
    assert found.shape == (7, dim) and found.tobytes() == expected.tobytes()
