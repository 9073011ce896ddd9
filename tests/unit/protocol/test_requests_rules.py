"""What a client asks of shards, one check at a time: each limit is the largest that is sent."""

from typing import Any

import numpy as np
import pytest
from cluster import table

from ecrec.errors import GradientError, RefusedError
from ecrec.protocol import wire
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import OptimizerSpec, TableSpec
from ecrec.protocol.requests import Requests

SMALL, WIDE = table("small", rows=24, dim=2, code="2+1"), table("wide", rows=24, dim=8, code="1+1")
N = 3


def checks(groups: int = 1, n: int = N, pending: Any = None, **limits: Any) -> Requests:
    return Requests(n, groups, ProtocolConfig(**limits), {0: SMALL, 2: WIDE}, pending or {1: "pending"})


def rows_on(shard: int, spec: TableSpec, n: int = N, groups: int = 1) -> list[int]:
    """Rows of a table that lie on a shard, by the words of docs/protocol.md."""
    found = []
    for row in range(spec.rows):
        stripe, slot = divmod(row, spec.code.k)
        if stripe % groups * n + (stripe // groups + slot) % n == shard:
            found.append(row)
    return found


def ids(rows: list[int]) -> Any:
    return np.array(rows, np.int64)


def gradients(*counts: tuple[int, TableSpec], value: float = 1.0) -> Any:
    return np.full(sum(count * spec.dim for count, spec in counts), value, np.float32)


def push(some: Requests, rows: list[int], *, shard: int = 0, barrier: int = 0, assign: bool = False, values: Any = None,
         index: int = 0) -> tuple[list[Section], Any]:  # fmt: skip
    """The part of a shard of a push of these rows of one table, as it is sent."""
    spec = {0: SMALL, 2: WIDE}.get(index, SMALL)
    values = gradients((len(rows), spec)) if values is None else values
    given = ([Section([index], [len(rows)])], [ids(rows), values])
    return some.push({shard: given}, barrier, assign)[shard]


# ------------------------------------------------------------------ where rows lie
@pytest.mark.parametrize(("n", "groups"), [(1, 1), (3, 1), (3, 2), (1, 3)])
def test_rows_are_taken_on_the_shard_that_holds_them_and_on_no_other(n: int, groups: int) -> None:
    code = "1+0" if n == 1 else "2+1"
    spec = table("small", rows=24, dim=2, code=code)
    some = Requests(n, groups, ProtocolConfig(), {0: spec}, {})
    for shard in range(n * groups):
        mine = rows_on(shard, spec, n, groups)
        some.pull({shard: ([Section([0], [len(mine)])], [ids(mine)])}, False)
        for row in set(range(spec.rows)) - set(mine):
            with pytest.raises(RefusedError, match=f"row {row} of table 'small' is not on shard {shard}"):
                some.pull({shard: ([Section([0], [2])], [ids([mine[0], row])])}, False)


@pytest.mark.parametrize("row", [-1, 24, 1 << 40])
@pytest.mark.parametrize("n", [1, 3])
def test_rows_that_are_not_there_are_refused(row: int, n: int) -> None:
    spec = table("small", rows=24, dim=2, code="1+0" if n == 1 else "2+1")
    some = Requests(n, 1, ProtocolConfig(), {0: spec}, {})
    with pytest.raises(RefusedError, match=f"there is no row {row} of table 'small': they are 0 to 23"):
        some.pull({0: ([Section([0], [2])], [ids([0, row])])}, False)


def test_several_tables_of_a_section_are_told_apart() -> None:
    some = checks()
    first, second = rows_on(1, SMALL)[:2], rows_on(1, WIDE)[:3]
    some.pull({1: ([Section([0, 2], [2, 3])], [ids(first + second)])}, False)
    with pytest.raises(RefusedError, match="of table 'wide' is not on shard 1"):
        some.pull({1: ([Section([0, 2], [2, 1])], [ids([*first, rows_on(0, WIDE)[0]])])}, False)
    some.pull({1: ([Section([], [])], [ids([])])}, False)
    some.pull({1: ([Section([0, 2], [0, 1])], [ids(second[:1])])}, False)


@pytest.mark.parametrize(("shard", "fits"), [(-1, False), (0, True), (5, True), (6, False)])
def test_a_shard_that_is_not_there_is_asked_nothing(shard: int, fits: bool) -> None:
    asked = {shard: ([Section([0], [0])], [ids([])])}
    if fits:
        checks(groups=2).pull(asked, False)
    else:
        with pytest.raises(RefusedError, match=f"names shard {shard}: they are 0 to 5"):
            checks(groups=2).pull(asked, False)


# ------------------------------------------------------------------ whole records
def whole(*counts: tuple[int, TableSpec]) -> Any:
    return np.zeros(
        sum(count * (spec.dim + spec.optimizer.state_floats(spec.dim)) for count, spec in counts), np.float32
    )


def test_whole_records_come_in_one_section_of_one_table() -> None:
    small, wide = ids(rows_on(0, SMALL)[:2]), ids(rows_on(0, WIDE)[:1])
    one = ([Section([0], [2])], [small, whole((2, SMALL))])
    checks().records({0: one})
    both = np.concatenate([small, wide])
    for sections, frames in (
        ([Section([0, 2], [2, 1])], [both, whole((2, SMALL), (1, WIDE))]),
        ([Section([0], [2]), Section([2], [1])], [small, whole((2, SMALL)), wide, whole((1, WIDE))]),
    ):
        with pytest.raises(RefusedError, match="whole records of tables 'small', 'wide'; expected one section of one"):
            checks().records({0: (sections, frames)})
    with pytest.raises(RefusedError, match=r"whole records of table.*; expected one section of one"):
        checks().records({0: ([], [])})


def test_weights_of_whole_records_are_numbers() -> None:
    spec = table("adam", rows=24, dim=2, code="2+1", optimizer=OptimizerSpec("adam", (0.1, 0.9, 0.999, 1e-8)))
    some = Requests(N, 1, ProtocolConfig(), {0: spec}, {})
    rows = ids(rows_on(0, spec)[:2])
    for at in (0, 1):
        values = whole((2, spec))
        values[at * len(values) // 2] = np.nan
        with pytest.raises(GradientError):
            some.records({0: ([Section([0], [2])], [rows, values])})


def test_values_of_whole_records_are_as_long_as_a_frame_of_a_request_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, values = ids(rows_on(0, WIDE)[:2]), whole((2, WIDE))
    assert values.nbytes > rows.nbytes
    for limit, fits in ((values.nbytes, True), (values.nbytes - 1, False)):
        monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", limit)
        given = {0: ([Section([2], [2])], [rows, values])}
        if fits:
            checks().records(given)
        else:
            with pytest.raises(RefusedError, match=f"a frame of it has {values.nbytes} bytes, and {limit} can be sent"):
                checks().records(given)


def test_whole_records_of_a_push_fit_a_frame_to_a_peer() -> None:
    """As what parity holders are sent of it does: a shard that took it could tell nobody."""
    rows = ids(rows_on(0, SMALL)[:2])
    given = {0: ([Section([0], [2])], [rows, whole((2, SMALL))])}
    deltas = 2 * SMALL.record_bytes
    checks(frame_bytes_max=deltas).records(given)
    with pytest.raises(RefusedError, match="deltas"):
        checks(frame_bytes_max=deltas - 1).records(given)


# ------------------------------------------------------------------ what a section must be
@pytest.mark.parametrize(
    ("section", "frames", "why"),
    [
        (Section([1], [0]), [ids([])], "table 'pending' may not be on all shards yet"),
        (Section([3], [0]), [ids([])], "there is no table 3"),
        (Section([0], [1]), [], "1 sections need 1 frames, it has 0"),
        (Section([0], [1]), [ids([0]), ids([0])], "1 sections need 1 frames, it has 2"),
        (Section([0, 2], [1]), [ids([0])], "expected a count for each table"),
        (Section([0], [2]), [ids([0])], "expected a count for each table"),
        (Section([0, 2], [-1, 2]), [ids([0])], "expected a count for each table"),
        (Section([0], [1]), [np.array([0], np.int32)], "row ids of section 0 are int32, contiguous; expected int64"),
        (Section([0], [2]), [np.zeros(4, np.int64)[::2]], "are int64, not contiguous"),
        (Section([0], [1]), [b"1234567"], "row ids of section 0: "),
        (Section([0], [1]), [3], "row ids of section 0: "),
    ],
)
def test_a_section_that_cannot_be_is_refused_with_the_reason(section: Section, frames: Any, why: str) -> None:
    with pytest.raises(RefusedError, match="nothing of it was sent") as raised:
        checks().pull({0: ([section], frames)}, False)
    assert why in str(raised.value)


def test_bytes_are_as_good_as_arrays() -> None:
    checks().pull({0: ([Section([0], [1])], [ids([0]).tobytes()])}, False)


@pytest.mark.parametrize("count", [1, 3])
def test_a_push_has_a_value_for_each_column_of_each_row(count: int) -> None:
    with pytest.raises(RefusedError, match=f"has {count} values, expected 2"):
        push(checks(), [0], values=np.ones(count, np.float32))


def test_for_people_tables_that_are_not_known_have_no_name() -> None:
    assert checks().table_names([Section([0, 7, 2], [])]) == "tables 'small', 'wide'"


# ------------------------------------------------------------------ values
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_its_place(value: float) -> None:
    some, mine = checks(), rows_on(0, SMALL)[:3]
    values = gradients((3, SMALL))
    values[3] = value
    with pytest.raises(GradientError, match=f"the gradient of table 'small', row {mine[1]}, column 1 is"):
        push(some, mine, values=values)


LIMIT = float(np.finfo(np.float32).max) / 4


@pytest.mark.parametrize(
    ("value", "barrier", "assign", "fits"),
    [
        (3.0 * LIMIT, 0, False, True),
        (3.0 * LIMIT, 1, False, True),
        (LIMIT, 2, False, True),
        (-LIMIT, 2, False, True),
        (np.nextafter(np.float32(LIMIT), np.float32(np.inf)), 2, False, False),
        (-2.0 * LIMIT, 2, False, False),
        (2.0 * LIMIT, 2, True, True),
        (LIMIT / 2, 4, False, True),
        (LIMIT, 4, False, False),
    ],
)
def test_gradients_that_could_add_up_to_infinity_in_a_barrier_are_refused(
    value: float, barrier: int, assign: bool, fits: bool
) -> None:
    values = np.array([1.0, value], np.float32)
    if fits:
        push(checks(), [0], barrier=barrier, assign=assign, values=values)
    else:
        with pytest.raises(RefusedError, match=f"summed with those of {barrier} workers it may be infinite"):
            push(checks(), [0], barrier=barrier, assign=assign, values=values)
    push(checks(), [], barrier=2)


# ------------------------------------------------------------------ learning rates
@pytest.mark.parametrize(
    ("rates", "assign", "why"),
    [
        ({}, True, ""),
        ({0: 0.5}, False, ""),
        ({0: 0.5}, True, "a push that sets weights takes no learning rates"),
        ({1: 0.5}, False, "table 1, which is not on all shards"),
        ({0: -0.5}, False, "table 'small': learning rate -0.5"),
    ],
)
def test_learning_rates_that_no_shard_takes_are_refused(rates: dict[int, float], assign: bool, why: str) -> None:
    if not why:
        checks().rates(rates, assign)
        return
    with pytest.raises(RefusedError) as raised:
        checks().rates(rates, assign)
    assert why in str(raised.value)


# ------------------------------------------------------------------ what is too long
def test_an_answer_is_as_long_as_a_frame_may_be_and_no_longer() -> None:
    mine = rows_on(0, SMALL)[:3]
    asked = {0: ([Section([0], [3])], [ids(mine)])}
    for records, size in ((False, 3 * 8), (True, 3 * SMALL.record_bytes)):
        checks(answer_bytes_max=size).pull(asked, records)
        with pytest.raises(RefusedError, match=f"its answer would have {size} bytes, and {size - 1} can be sent"):
            checks(answer_bytes_max=size - 1).pull(asked, records)
    both = {0: ([Section([0], [3]), Section([2], [1])], [ids(mine), ids([0])])}
    checks(answer_bytes_max=56).pull(both, False)
    with pytest.raises(RefusedError, match="its answer would have 56 bytes"):
        checks(answer_bytes_max=55).pull(both, False)


def test_row_ids_of_a_pull_are_as_long_as_a_frame_of_a_request_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of all its sections."""
    mine = rows_on(0, SMALL)[:3]
    sections, frames = [Section([0], [1]), Section([0], [3])], [ids(mine[:1]), ids(mine)]
    for order in ((0, 1), (1, 0)):
        asked = {0: ([sections[i] for i in order], [frames[i] for i in order])}
        monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", 24)
        checks().pull(asked, False)
        monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", 23)
        with pytest.raises(RefusedError, match="a frame of its row ids has 24 bytes, and 23 can be sent"):
            checks().pull(asked, False)


def test_a_request_has_as_many_frames_as_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ([Section([0], [1])] * 3, [ids([0])] * 3)
    monkeypatch.setattr(wire, "FRAMES_MAX", 3)
    checks().pull({0: asked}, False)
    monkeypatch.setattr(wire, "FRAMES_MAX", 2)
    with pytest.raises(RefusedError, match="it has 3 frames, and 2 can be sent"):
        checks().pull({0: asked}, False)


def test_deltas_of_a_push_fit_a_frame_to_a_peer() -> None:
    mine = rows_on(0, SMALL)[:3]
    size = 3 * SMALL.record_bytes
    push(checks(frame_bytes_max=size), mine)
    with pytest.raises(RefusedError, match=f"could have {size} bytes for one peer, and {size - 1} can be sent"):
        push(checks(frame_bytes_max=size - 1), mine)


def test_deltas_of_a_barrier_are_those_of_all_its_workers_but_of_no_more_rows_than_there_are() -> None:
    """Of 24 rows in 12 stripes a shard of three has 8 at most."""
    mine = rows_on(0, SMALL)[:3]
    for workers, rows in ((2, 6), (3, 8), (9, 8)):
        size = rows * SMALL.record_bytes
        push(checks(frame_bytes_max=size), mine, barrier=workers)
        with pytest.raises(RefusedError, match=f"its deltas of {workers} workers .* could have {size} bytes"):
            push(checks(frame_bytes_max=size - 1), mine, barrier=workers)


def pieces(limit: int, count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each section of a push of so many wide rows, where a frame may have so many bytes."""
    monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", limit)
    mine = rows_on(0, WIDE)[:count]
    values = np.arange(count * WIDE.dim, dtype=np.float32)
    sections, frames = push(checks(), mine, values=values, index=2)
    assert np.concatenate(frames[0::2]).tolist() == mine and np.concatenate(frames[1::2]).tolist() == values.tolist()
    assert [section.counts for section in sections] == [[len(some)] for some in frames[0::2]]
    return [len(some) for some in frames[0::2]]


def test_a_section_that_is_too_long_for_a_frame_becomes_several_of_the_same_push(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row has 32 bytes of values, and 8 of its number."""
    for limit, expected in ((128, [4]), (127, [2, 2]), (64, [2, 2]), (63, [1, 1, 1, 1]), (31, [1, 1, 1, 1])):
        assert pieces(limit, 4, monkeypatch) == expected, limit
    assert pieces(64, 3, monkeypatch) == [1, 2] and pieces(64, 5, monkeypatch) == [2, 1, 2]


def test_only_what_is_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rows_on(0, WIDE)[:1], rows_on(0, WIDE)[1:4]
    monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", 64)
    for parts in ((first, second), (second, first)):
        sections = [Section([2], [len(rows)]) for rows in parts]
        frames = [frame for rows in parts for frame in (ids(rows), gradients((len(rows), WIDE)))]
        sent, _ = checks().push({0: (sections, frames)}, 0, False)[0]
        assert sorted(section.counts[0] for section in sent) == [1, 1, 2]
        monkeypatch.setattr(wire, "FRAMES_MAX", 5)
        with pytest.raises(RefusedError, match="it has 6 frames, and 5 can be sent"):
            checks().push({0: (sections, frames)}, 0, False)
        monkeypatch.setattr(wire, "FRAMES_MAX", 6)
        checks().push({0: (sections, frames)}, 0, False)
        monkeypatch.setattr(wire, "FRAMES_MAX", 4096)


def test_a_section_of_several_tables_is_cut_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    small, wide = rows_on(0, SMALL)[:3], rows_on(0, WIDE)[:2]
    values = np.arange(3 * 2 + 2 * 8, dtype=np.float32)
    monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", 72)
    sent, frames = checks().push({0: ([Section([0, 2], [3, 2])], [ids(small + wide), values])}, 0, False)[0]
    assert [(section.tables, section.counts) for section in sent] == [([0], [2]), ([0, 2], [1, 2])]
    assert np.concatenate(frames[1::2]).tolist() == values.tolist()
