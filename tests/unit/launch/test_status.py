import io

from rich.console import Console

from ecrec.launch.redundancy import redundancy
from ecrec.launch.tools.status import bytes_text, plain, render
from ecrec.protocol.messages import (
    ClusterState,
    Dataset,
    DatasetFigures,
    HistoryEntry,
    Loss,
    LostRows,
    ShardFigures,
)
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec


def shown(state):
    out = Console(file=io.StringIO(), width=140)
    out.print(render(state))
    return " ".join(out.file.getvalue().split())


def test_shards_workers_tables_and_events_are_shown():
    figures = {"data_rows_touched": 12345.0, "data_bytes_touched": 3 * 2.0**20, "classes_to_repair": 2.0}
    figures["resident_bytes"] = 5 * 2.0**20
    state = ClusterState(
        1, 2, 1, [9],
        [
            ShardFigures(0, 1, "up", "tcp://h:1", 31.0, {0: 5}, {0: 5}, figures),
            ShardFigures(1, 4, "recovering", "tcp://h:2", 7.0, {}, {}, {}),
        ],
        {0: {"steps": 120.0}},
        [TableSpec("C1", 1000, 8, CodeSpec(1, 1), OptimizerSpec("sgd", (0.1,)), "zeros")],
        [HistoryEntry(1000.0, "down", 1, 3), HistoryEntry(1500.0, "up", 1, 4)],
        1,
        "",
        now_ms=3500.0,
    )  # fmt: skip
    text = shown(state)
    for words in (
        "12,345",
        "3.0 MiB",
        "5.0 MiB",
        "shard 0 is not whole: 2 classes to repair",
        "recovering",
        "31 ms",
        "tcp://h:2",
        "1 spare",
        "view 9; can lose 0 more",
    ):
        assert words in text
    for words in ("1,000 rows, code 1+1", "120", "2.50 s 1 3 down", "2.00 s 1 4 up"):
        assert words in text


def test_nothing_but_an_endpoint_is_cut_off_at_80_columns():
    figures = {"data_rows_touched": 123456789.0, "data_bytes_touched": 2.0**34, "resident_bytes": 2.0**34}
    shards = [ShardFigures(i, 12, "recovering", f"tcp://a-host-with-a-name:{i}", -1.0, {}, {}, figures) for i in (3, 9)]
    worker = {"steps": 1e5, "examples": 2e8, "bytes_pulled": 2.0**40, "longest_pause_s": 0.25, "waited_s": 17.5}
    state = ClusterState(1, 16, 1, [9], shards, {0: worker}, [], [HistoryEntry(1.0, "down", 3, 12, "why " * 40)], 0, "")
    out = Console(file=io.StringIO(), width=80)
    out.print(render(state))
    lines = out.file.getvalue().splitlines()
    assert sum(line.split()[:1] in (["3"], ["9"]) for line in lines) == 2, "a line each"
    for line in lines:
        assert "…" not in line.partition("tcp://")[0], line
    assert "-1 ms" not in out.file.getvalue()
    assert "0.25 s" in out.file.getvalue() and "1.0 TiB" in out.file.getvalue()


def test_lost_data_comes_first():
    state = ClusterState(1, 2, 1, [9], [], {}, [], [], 0, "shards 1 and 2 are gone")
    assert shown(state).startswith("DATA LOST: shards 1 and 2 are gone")


def test_lost_rows_are_listed():
    lost = [LostRows(1, "C1", 200, [3, 8], 10), LostRows(2, "C1", 7, [], 0)]
    tables = [TableSpec("C1", 1000, 8, CodeSpec(2, 1), OptimizerSpec("sgd", (0.1,)), "zeros")]
    state = ClusterState(
        1, 5, 1, [9], [], {}, tables, [], 0, "", [Loss(5.0, 0, 8, lost, 41, True)], 207, 41
    )  # fmt: skip
    text = shown(state)
    assert text.startswith("DATA LOST: 207 rows re-initialised, up to 41 updates lost in part")
    assert "C1 1 200 1,000 every 10th from 3, 8 re-initialised" in text
    assert "C1 2 7 1,000 7 not yet recovered re-initialised" in text


def test_how_far_the_data_is():
    data = [DatasetFigures(Dataset("train", 1000, 2000, 100), 1500, 64, 17, 1, 1, 3)]
    text = shown(ClusterState(1, 2, 1, [9], [], {}, [], [], 0, "", datasets=data))
    assert "data train: 1,500 of 2,000 examples trained on, 64 of them again; 3 splits leased" in text


def test_bytes():
    assert [bytes_text(b) for b in (0, 1536, 5 * 2.0**30, 2.0**50)] == [
        "0 B",
        "1.5 KiB",
        "5.0 GiB",
        "1024.0 TiB",
    ]


def test_for_programs_every_field_has_its_name():
    state = ClusterState(
        1,
        2,
        1,
        [9],
        [ShardFigures(0, 1, "up", "e", 1.0, {3: 5}, {}, {})],
        {},
        [TableSpec("C1", 1000, 8, CodeSpec(1, 1), OptimizerSpec("sgd", (0.1,)), "zeros")],
        [HistoryEntry(1.0, "up", 0, 1)],
        0,
        "",
    )
    shown = plain(state)
    assert shown["shards"][0]["watermarks"] == {"3": 5}
    assert shown["tables"][0]["optimizer"]["hyper"] == [0.1]
    assert shown["history"] == [{"at_ms": 1.0, "event": "up", "shard": 0, "epoch": 1, "reason": "", "since_ms": -1.0}]


def groups_of_three(tables, **changes):
    states = {shard: "up" for shard in range(6)} | {int(name[1:]): state for name, state in changes.items()}
    shards = [ShardFigures(shard, 1, state, "e", 1.0, {}, {}, {}) for shard, state in states.items()]
    return ClusterState(1, 3, 2, [4, 9], shards, {}, tables, [], 1, "")


def table(code):
    return TableSpec(f"t{code}", 1000, 8, CodeSpec.parse(code), OptimizerSpec("sgd", (0.1,)), "zeros")


def test_redundancy_is_that_of_each_group_and_of_its_weakest_stripe():
    assert redundancy(groups_of_three([])) == [None, None]
    tables = [table("1+2"), table("2+1")]
    assert redundancy(groups_of_three(tables)) == [1, 1]
    assert redundancy(groups_of_three(tables, s4="recovering")) == [1, 0]
    assert redundancy(groups_of_three(tables, s0="down", s2="recovering")) == [-1, 1]
    assert redundancy(groups_of_three(tables[:1], s0="down", s2="down")) == [0, 2]
    assert redundancy(groups_of_three(tables[:1], s0="reseeding")) == [1, 2], "its data count, its parity does not"
    assert redundancy(groups_of_three([table("3+0")])) == [0, 0]


def test_groups_are_shown_with_what_they_can_still_lose():
    text = shown(groups_of_three([table("2+1")], s1="recovering"))
    assert "0 0 to 2 2 of 3 4 can lose 0 more" in text
    assert "1 3 to 5 3 of 3 9 can lose 1 more" in text
    assert "6 in 2 groups of 3, 1 spare" in text
    assert "data is lost" in shown(groups_of_three([table("2+1")], s1="down", s2="down"))
    assert "no tables yet" in shown(groups_of_three([]))
