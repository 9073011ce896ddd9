from ecrec.errors import DataLostError
from ecrec.launch.rewind import Point
from ecrec.protocol.messages import HistoryEntry
from ecrec.train.lives import Life, all_kills, go_back, rewind_entries
from ecrec.train.report import FirstRow, KillDone, Step

TO = Point("runs/7", 3)
LOST = DataLostError("lost")


def life(began, steps, trained=0):
    made = Life(began, trained)
    for at in steps:
        made.stepped(Step(at, 0, 90, 10))
    return made


def test_what_is_repeated_is_what_came_after_the_cut():
    first = life(10.0, [11.0, 12.0, 13.0, 14.0])
    rewound = go_back([first], LOST, TO, cut=12.5, trained=200)
    assert (rewound.examples_repeated, rewound.seconds_repeated, rewound.stopped) == (200, 1.5, 14.0)
    second = life(20.0, [21.0, 22.0], trained=200)
    (entry,) = rewind_entries([rewound], [first, second])
    assert entry["seconds_stood_still"] == 7.0
    assert (entry["checkpoint"], entry["url"], entry["reason"]) == (3, "runs/7", "lost")


def test_going_back_twice_to_one_checkpoint_repeats_only_what_was_trained_since():
    first = life(10.0, [11.0, 12.0, 13.0, 14.0])
    go_back([first], LOST, TO, cut=12.5, trained=200)
    second = life(20.0, [21.0, 22.0, 23.0], trained=200)
    again = go_back([first, second], LOST, TO, cut=12.5, trained=200)
    assert (again.examples_repeated, again.seconds_repeated) == (300, 3.0)
    # and further back, where that one is damaged: what the first cluster had kept goes too
    third = life(30.0, [], trained=200)
    further = go_back([first, second, third], LOST, Point("runs/7", 2), cut=11.0, trained=100)
    assert (further.examples_repeated, further.seconds_repeated) == (100, 1.5)
    assert rewind_entries([again, further], [second, third, life(40.0, [])])[0]["seconds_stood_still"] is None


def test_kills_of_one_cluster_know_nothing_of_the_next():
    first, second = life(0.0, [1.0, 2.0]), life(10.0, [11.0, 12.0])
    first.kills.append(KillDone(1.5, 1, 1))
    first.history = [HistoryEntry(1600.0, "down", 1, 5)]
    second.history = [HistoryEntry(11000.0, "whole", 1, 6)]
    second.first_rows.append(FirstRow(11.0, 1, 7))
    (entry,) = all_kills([first, second])
    assert round(entry["detect_s"], 3) == 0.1
    assert entry["whole_s"] is None and entry["first_row_s"] is None
    assert first.deaths(first.history) == 1 and second.deaths(second.history) == 0
