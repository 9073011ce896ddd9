from ecrec.launch.groups import Groups
from ecrec.protocol.messages import ClusterState, Dataset, DatasetFigures, HistoryEntry, Loss, LostRows
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.train.report import (
    FirstRow,
    KillDone,
    Step,
    data_figures,
    group_entries,
    kill_entries,
    longest_pause_s,
    loss_entries,
    lost_updates,
    throughput,
)


def steady(begin, end, every, worker=0, examples=100):
    count = round((end - begin) / every)
    return [Step(begin + every * (i + 1), worker, examples) for i in range(count)]


def test_times_are_counted_from_the_kill_and_from_the_notice():
    history = [
        HistoryEntry(9_000.0, "down", 2, 1),
        HistoryEntry(10_200.0, "down", 2, 2),
        HistoryEntry(10_300.0, "settled", 2, 2),
        HistoryEntry(10_700.0, "up", 2, 3),
        HistoryEntry(11_500.0, "whole", 2, 3),
    ]
    rows = [FirstRow(5.0, 2, 1), FirstRow(10.9, 2, 3), FirstRow(10.8, 2, 3), FirstRow(10.4, 1, 3)]
    (entry,) = kill_entries([KillDone(10.0, 2, 20)], [], history, rows)
    assert (entry["shard"], entry["step"]) == (2, 20)
    assert entry["detect_s"] == 10.2 - 10.0
    assert entry["first_row_s"] == 10.8 - 10.2
    assert entry["whole_s"] == 1.5


def test_throughput_is_of_the_steps_before_during_and_after():
    steps = steady(0.0, 10.0, 0.1) + steady(10.0, 14.0, 0.5) + steady(14.0, 24.0, 0.1)
    history = [HistoryEntry(10_500.0, "down", 1, 1), HistoryEntry(14_000.0, "whole", 1, 2)]
    (entry,) = kill_entries([KillDone(10.0, 1, 100)], steps, history, [])
    assert round(entry["throughput_before"]) == 1000
    assert round(entry["throughput_during"]) == 200
    assert round(entry["throughput_after"]) == 1000
    assert round(entry["longest_pause_s"], 6) == 0.5


def test_kills_of_one_step_share_their_calm_spans_and_later_kills_end_them():
    steps = steady(0.0, 20.0, 0.1)
    history = [
        HistoryEntry(5_500.0, "down", 1, 1),
        HistoryEntry(5_500.0, "down", 3, 1),
        HistoryEntry(6_000.0, "whole", 1, 2),
        HistoryEntry(7_000.0, "whole", 3, 2),
        HistoryEntry(8_500.0, "down", 1, 2),
        HistoryEntry(9_000.0, "whole", 1, 3),
    ]
    kills = [KillDone(5.0, 1, 50), KillDone(5.001, 3, 50), KillDone(8.0, 1, 80)]
    first, second, third = kill_entries(kills, steps, history, [])
    assert first["throughput_before"] == second["throughput_before"]
    assert round(first["throughput_after"]) == 1000
    assert (first["whole_s"], round(second["whole_s"], 3)) == (1.0, 1.999)
    assert third["detect_s"] == 0.5
    assert third["whole_s"] == 1.0
    assert round(third["throughput_before"]) == 1000


def test_a_second_death_while_recovering_leaves_no_calm_span_between():
    steps = steady(0.0, 20.0, 0.1)
    history = [
        HistoryEntry(5_200.0, "down", 1, 1),
        HistoryEntry(6_200.0, "down", 1, 2),
        HistoryEntry(9_000.0, "whole", 1, 3),
    ]
    first, second = kill_entries([KillDone(5.0, 1, 50), KillDone(6.0, 1, 60)], steps, history, [])
    assert second["throughput_before"] is None
    assert first["whole_s"] == 4.0
    assert second["whole_s"] == 3.0


def test_what_never_came_is_none():
    (entry,) = kill_entries([KillDone(10.0, 2, 20)], steady(0.0, 20.0, 1.0), [], [])
    assert entry["detect_s"] is entry["first_row_s"] is entry["whole_s"] is entry["throughput_after"] is None
    assert round(entry["throughput_during"]) == 100


def test_pauses_are_those_of_each_worker_that_overlap_the_span():
    steps = [Step(0.0, 0, 1), Step(3.0, 0, 1), Step(3.5, 0, 1), Step(1.0, 1, 1), Step(5.0, 1, 1)]
    assert longest_pause_s(steps, 2.0, 3.2) == 4.0
    assert longest_pause_s(steps, 3.1, 3.2) == 4.0
    assert longest_pause_s(steps[:3], 3.1, 3.2) == 0.5
    assert longest_pause_s([], 0.0, 1.0) is None


def test_an_empty_span_has_no_throughput():
    assert throughput([Step(1.0, 0, 5)], 2.0, 2.0) is None


def test_lost_updates_are_acknowledged_pushes_beyond_the_watermark():
    acked = {0: {0: 30, 1: 30}, 1: {0: 29, 1: 30}}
    assert lost_updates(acked, {0: {0: 30, 1: 29}, 1: {0: 31, 1: 30}}) == 0
    assert lost_updates(acked, {0: {0: 28, 1: 29}, 1: {0: 30}}) == 2 + 30


def test_losses_name_their_rows():
    tables = [TableSpec("C1", 100, 8, CodeSpec(2, 1), OptimizerSpec("sgd", (0.1,)), "zeros")]
    loss = Loss(5000.0, 0, 8, [LostRows(1, "C1", 20, [3, 8], 10)], 41, True)
    (entry,) = loss_entries(ClusterState(1, 5, 1, [9], [], {}, tables, [], 0, "", [loss], 20, 41))
    assert entry["lost"] == [{"table": "C1", "of": 100, "shard": 1, "rows": 20, "first": [3, 8], "step": 10}]
    assert entry["group"] == 0
    assert (entry["rows"], entry["updates"], entry["reinitialised"], entry["at_s"]) == (20, 41, True, 5.0)
    assert entry["text"].endswith(
        "20 rows were lost, and up to 41 updates in part: C1: 20 of 100 rows (every 10th from 3, 8 on shard 1)"
    )


def test_each_group_has_its_kills_deaths_and_losses():
    history = [
        HistoryEntry(float(at), event, shard, 1) for at, event, shard in [(1, "down", 2), (2, "up", 2), (3, "down", 3)]
    ]
    losses = [Loss(5.0, 1, 8, [], 41, True)]
    state = ClusterState(1, 3, 2, [9, 4], [], {}, [], history, 0, "", losses)
    kills = [KillDone(1.0, 2, 7), KillDone(2.0, 3, 7), KillDone(2.0, 5, 8)]
    entries = group_entries(Groups(2, 3), kills, history, state)
    assert entries == [
        {"group": 0, "shards": [0, 1, 2], "view": 9, "kills": 1, "deaths": 1, "losses": 0},
        {"group": 1, "shards": [3, 4, 5], "view": 4, "kills": 2, "deaths": 1, "losses": 1},
    ]


def test_the_figures_of_the_data_are_the_schedulers_or_what_was_pushed():
    one = DatasetFigures(Dataset("a", 10, 20, 5), 20, 3, 6, 2, 1, 0)
    two = DatasetFigures(Dataset("b", 10, 10, 5), 10, 0, 2, 0, 0, 0)
    assert data_figures([one, two], 99) == {
        "examples_trained": 30, "examples_repeated": 3, "splits": 8, "splits_handed_on": 2,
    }  # fmt: skip
    assert data_figures([], 99)["examples_trained"] == 99
