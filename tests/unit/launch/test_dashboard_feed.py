"""What the live page is told: rates, series, the stories of deaths, and the cluster in one sentence."""

import json
import math
from typing import Any

import msgspec
import pytest
from dashboard_states import WHOLE_MS, death, shard, state, table, worker

from ecrec.launch.dashboard.deaths import own_clock, stories
from ecrec.launch.dashboard.feed import CLOCK_JUMP_S, EARLY_SHARE, RATE_S, SPAN_S, VERSION, WORKERS_MAX, Feed, verdict
from ecrec.launch.redundancy import redundancy
from ecrec.protocol.messages import ClusterState, HistoryEntry, SavingFigures

BEGIN_S = 1_700_000_000.0


def later(seconds: float, **changes: Any) -> ClusterState:
    return state(now_ms=WHOLE_MS + 1e3 * seconds, **changes)


def fed(*told: tuple[float, ClusterState]) -> Feed:
    feed = Feed("tcp://scheduler:7070")
    for seconds, each in told:
        feed.take(each, BEGIN_S + seconds)
    return feed


def document(feed: Feed, seconds: float = 0.0) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(msgspec.json.encode(feed.document(BEGIN_S + seconds)), parse_constant=pytest.fail)
    return out


# ------------------------------------------------------------------ the document
def test_before_the_scheduler_answers_the_page_says_so() -> None:
    told = document(fed())
    assert (told["version"], told["heard_at"], told["verdict"]["kind"]) == (VERSION, None, "unknown")


def test_the_document_has_the_cluster_and_when_it_was_heard() -> None:
    told = document(fed((0.0, later(0.0))), 7.5)
    assert (told["at"], told["heard_at"], told["source"]) == (BEGIN_S + 7.5, BEGIN_S, "tcp://scheduler:7070")
    assert told["groups"] == [{"group": 0, "shards": [0, 1, 2, 3, 4], "tolerates": 1, "view": 9}]
    first = told["shards"][0]
    assert (first["state"], first["epoch"], first["rows"], first["memory_bytes"]) == ("up", 1, 16_700.0, 2.4e6)
    assert (first["heard_s"], first["rows_repaired"], first["parity_seeded"]) == (0.031, None, None)
    assert told["spares"] == [{"endpoint": "tcp://10.0.0.9:7071", "reached": True}]
    assert told["datasets"] == [{"name": "train", "trained": 20_000, "end": 80_000, "repeated": 64}]
    assert told["tables"][0] == {"name": "C1", "rows": 50_000, "dim": 16, "code": "4+1", "optimizer": "sgd"}
    assert told["verdict"] == {"kind": "whole", "text": "All 5 servers are whole."} and told["deaths"] == []


def test_a_password_or_signature_of_a_checkpoint_is_not_on_the_page() -> None:
    saved = SavingFigures(3, "sftp://me:secret@host/runs?sig=secret", "complete")
    told = document(fed((0.0, later(0.0, saving=saved))))["checkpoint"]
    assert told == {"checkpoint": 3, "url": "sftp://***@host/runs?***", "state": "complete", "error": ""}


def test_a_shard_that_recovers_says_how_far_it_is() -> None:
    shards = [shard(0), shard(1, "recovering", 2, repair_done=0.62, seed_done=0.25), *map(shard, (2, 3, 4))]
    told = document(fed((0.0, later(0.0, shards=shards))))
    assert (told["shards"][1]["rows_repaired"], told["shards"][1]["parity_seeded"]) == (0.62, 0.25)
    assert told["groups"][0]["tolerates"] == 0 and told["now"]["shards_up"] == 4


def test_many_workers_are_counted_and_only_the_first_are_listed() -> None:
    workers = {number: worker(10) for number in range(WORKERS_MAX + 5)}
    told = document(fed((0.0, later(0.0, workers=workers))))
    assert len(told["workers"]) == WORKERS_MAX and told["workers_count"] == WORKERS_MAX + 5


def test_what_was_taken_does_not_change_with_the_scheduler() -> None:
    told = later(0.0, history=death(WHOLE_MS - 9_000.0))
    feed = fed((0.0, told))
    before = document(feed)
    told.history.clear()
    told.tables.append(table("new"))
    assert document(feed) == before and before["deaths"]


# ------------------------------------------------------------------ rates and series
def test_rates_are_those_of_the_last_seconds_and_of_all_workers() -> None:
    told = [(float(second), later(second, workers={0: worker(100 * second), 3: worker(50 * second)}))
            for second in range(20)]  # fmt: skip
    now = document(fed(*told))["now"]
    assert now["examples_per_s"] == pytest.approx(150) and now["pulled_bytes_per_s"] == pytest.approx(15_000)
    assert now["pushed_bytes_per_s"] == pytest.approx(150) and (now["loss"], now["auc"]) == (0.5, 0.75)
    still = [(20.0 + second, later(20.0 + second, workers={0: worker(1900), 3: worker(950)})) for second in range(12)]
    assert RATE_S < 12 and document(fed(*told, *still))["now"]["examples_per_s"] == 0


def test_a_gap_in_which_nobody_was_asked_is_no_burst() -> None:
    told = [(0.0, later(0, workers={0: worker(0)})), (1.0, later(1, workers={0: worker(100)}))]
    after = (101.0, later(101, workers={0: worker(10_100)}))
    assert document(fed(*told, after))["now"]["examples_per_s"] == pytest.approx(100)


def test_a_worker_that_was_started_again_counts_from_zero() -> None:
    told = [(0.0, later(0, workers={0: worker(9_000)})), (1.0, later(1, workers={0: worker(9_100)}))]
    again = (2.0, later(2, workers={0: worker(60)}))
    assert document(fed(*told, again))["now"]["examples_per_s"] == pytest.approx((100 + 60) / 2)


def test_what_nobody_reports_is_none_and_never_a_number_that_json_lacks() -> None:
    told = document(fed((0.0, later(0, workers={0: worker(1, loss=math.nan, auc=math.inf)}))))
    assert (told["now"]["loss"], told["now"]["auc"], told["now"]["examples_per_s"]) == (None, None, None)
    assert document(fed((0.0, later(0, workers={}))))["now"]["examples_per_s"] is None


def test_the_series_has_a_point_a_second_of_the_last_minutes() -> None:
    feed = fed(*((second / 4, later(second / 4)) for second in range(4 * 700)))
    series = document(feed)["series"]
    assert {len(column) for column in series.values()} == {len(series["at"])}
    assert SPAN_S <= len(series["at"]) <= SPAN_S / EARLY_SHARE
    assert series["at"][-1] - series["at"][0] == pytest.approx(SPAN_S, abs=2)
    assert set(series["shards_up"]) == {5.0}


def test_a_clock_that_is_set_back_begins_the_series_anew() -> None:
    feed = fed((0.0, later(0)), (1.0, later(1)), (-3600.0, later(2)), (-3599.0, later(3)))
    assert document(feed, -3599.0)["series"]["at"] == [BEGIN_S - 3600, BEGIN_S - 3599]


# ------------------------------------------------------------------ deaths
def steps(story: dict[str, Any]) -> list[tuple[str, float | None]]:
    return [(step["step"], None if step["at"] is None else round(step["at"], 3)) for step in story["steps"]]


def test_a_death_is_told_from_the_last_sign_of_life_until_all_is_whole() -> None:
    beside = [HistoryEntry(0.0, "up", number, 1) for number in range(5)]
    (story,) = stories([*beside, *death(10_000.0)], 5, 20_000.0, 0.0)
    assert (story["shard"], story["group"], story["epoch"], story["ended"]) == (2, 0, 1, "whole")
    assert story["reason"] == "its connection is closed"
    assert steps(story) == [
        ("heard", 10.0), ("noticed", 10.2), ("settled", 10.24), ("replaced", 10.3), ("rows", 13.0), ("whole", 14.2)
    ]  # fmt: skip


def test_a_death_goes_on_until_its_replacement_is_whole_or_dies() -> None:
    (going,) = stories(death(10_000.0, until="up"), 5, 20_000.0, 0.0)
    assert going["ended"] == "" and steps(going)[-1] == ("replaced", 10.3)
    first, second = stories([*death(10_000.0, until="up"), *death(11_000.0, epoch=2)], 5, 20_000.0, 0.0)
    assert (first["ended"], second["ended"], second["epoch"]) == ("again", "whole", 2)
    assert steps(first)[-1] == ("again", 11.2)


def test_deaths_at_the_same_time_are_two_stories_and_a_loss_ends_those_of_its_group() -> None:
    both = sorted([*death(10_000.0, 1), *death(10_050.0, 6)], key=lambda entry: entry.at_ms)
    assert [(story["shard"], story["ended"]) for story in stories(both, 5, 2e4, 0.0)] == [(1, "whole"), (6, "whole")]
    gone = [*death(10_000.0, 1, until="down"), *death(10_001.0, 3, until="down"), *death(10_002.0, 7, until="down")]
    told = stories([*gone, HistoryEntry(10_300.0, "lost", 3, 1)], 5, 2e4, 0.0)
    assert [(story["shard"], story["ended"]) for story in told] == [(1, "lost"), (3, "lost"), (7, "")]


def test_the_history_of_an_earlier_version_has_no_last_sign_of_life() -> None:
    old = [msgspec.structs.replace(entry, since_ms=-1.0) for entry in death(10_000.0)]
    assert [step for step, _ in steps(stories(old, 5, 2e4, 0.0)[0])] == ["noticed", "settled", "replaced", "whole"]


def test_times_by_the_clock_of_a_host_that_was_started_again_are_not_known() -> None:
    history = [*death(5_000_000.0, 1), *death(3_000.0, 2)]
    assert own_clock(history, 9_000.0) == 4 and own_clock(history[4:], 9_000.0) == 0
    before, after = stories(history, 5, 9_000.0, 0.0)
    assert {at for _, at in steps(before)} == {None} and None not in {at for _, at in steps(after)}
    assert own_clock(death(5_000.0), 1_000.0) == 4, "all of it is of before"


def test_times_of_day_come_from_the_quickest_answer_and_follow_a_clock_that_is_set() -> None:
    history = death(WHOLE_MS - 10_000.0)
    feed = fed((0.3, later(0, history=history)), (1.0, later(1, history=history)), (2.4, later(2, history=history)))
    assert document(feed)["deaths"][0]["steps"][0]["at"] == pytest.approx(BEGIN_S - 10)
    feed.take(later(3, history=history), BEGIN_S + 3 + 2 * CLOCK_JUMP_S)
    assert document(feed)["deaths"][0]["steps"][0]["at"] == pytest.approx(BEGIN_S - 10 + 2 * CLOCK_JUMP_S)


# ------------------------------------------------------------------ in one sentence
@pytest.mark.parametrize(("changes", "kind", "words"), [
    ({}, "whole", "All 5 servers are whole."),
    ({"shards": [shard(i, "down" if i == 2 else "up") for i in range(5)]}, "reduced",
     "ps 2 is down. Training goes on. Another death would lose data."),
    ({"shards": [shard(i, "recovering" if i == 2 else "up") for i in range(5)], "tables": [table("a", "3+2")]},
     "reduced", "ps 2 is recovering. Training goes on. Another death is tolerated."),
    ({"shards": [shard(i, "down" if i < 2 else "up") for i in range(5)], "workers": {}}, "reduced",
     "ps 0 is down, ps 1 is down. More servers are missing than the code tolerates."),
    ({"shards": [shard(i, "down", 0) for i in range(5)], "tables": []}, "forming",
     "The cluster waits for its servers: 1 of 5 servers is there."),
    ({"lost": "shards 1 and 2 are gone"}, "lost", "Data is lost, and training has stopped: shards 1 and 2 are gone."),
    ({"rows_reinitialised": 1207}, "reduced", "1,207 rows were lost before, and began anew"),
    ({"suspected": {3: "silent"}}, "reduced", "ps 3 is suspected, not declared down"),
    ({"shards": [shard(i, "down") for i in range(5)], "tables": []}, "reduced",
     "ps 0 is down, ps 1 is down, ps 2 is down, ps 3 is down, and 1 more are not whole."),
])  # fmt: skip
def test_the_cluster_is_told_in_one_sentence(changes: dict[str, Any], kind: str, words: str) -> None:
    each = state(**changes)
    told = verdict(each, redundancy(each))
    assert told["kind"] == kind and words in told["text"]


def test_the_sentence_names_the_group_that_has_nothing_left() -> None:
    shards = [shard(i, "recovering" if i == 7 else "up") for i in range(10)]
    each = state(groups=2, views=[9, 4], shards=shards)
    assert verdict(each, redundancy(each))["text"].endswith("Another death in group 1 would lose data.")
    assert [group["tolerates"] for group in document(fed((0.0, each)))["groups"]] == [1, 0]
