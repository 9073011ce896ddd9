"""What a machine tells of its last events, to whom asks and in the error that ends it."""

from typing import Any

import pytest
from cluster import Cluster

from ecrec.protocol import messages as m
from ecrec.protocol.events import HalfHandledError, Note, Received, Send, Tick
from ecrec.protocol.story import EVENTS_MAX, LAST, Story, text

TOOL = m.Address(m.TOOL, 7, 0)


def asked(machine: Any, now_ms: float) -> list[str]:
    effects = machine.handle(Received(TOOL, m.StoryQuery(3)), now_ms)
    (told,) = [effect.message for effect in effects if isinstance(effect, Send) and effect.to == TOOL]
    assert isinstance(told, m.StoryTold) and told.request == 3
    return [event.text for event in told.events]


def test_a_death_can_be_read_in_the_stories_of_the_scheduler_a_survivor_and_the_replacement() -> None:
    cluster = Cluster(3)
    cluster.kill(1)
    cluster.declared(1)
    cluster.replace(1)
    cluster.settle_down(lambda: cluster.shard(1).state == m.UP)
    views = ["ShardDown(shard=1 epoch=1", "Settle(shard=1", "ShardUp(shard=1 epoch=2"]
    for machine in (cluster.scheduler, cluster.shard(0)):
        story = asked(machine, cluster.now_ms)
        at = [next(i for i, event in enumerate(story) if view in event) for view in views]
        assert at == sorted(at), story
    story = asked(cluster.shard(1), cluster.now_ms)
    assert any("without a place -> recovering" in event for event in story), story
    assert any("recovering -> up: has all rows and parity" in event for event in story), story


def test_what_it_warned_of_is_told_and_only_the_last_events_are_kept() -> None:
    machine = Cluster(3).shard(0)
    for number in range(EVENTS_MAX + 5):
        effects = machine.handle(Received(TOOL, m.ClusterQuery(number)), 1e6)
        assert any(isinstance(effect, Note) for effect in effects)
    story = asked(machine, 1e6)
    assert len(story) == EVENTS_MAX and all("dropped a ClusterQuery" in event for event in story)


def test_times_are_before_the_question_and_long_events_are_cut() -> None:
    story = Story()
    story.tell(1000.0, "x" * 10_000)
    (event,) = story.events(3500.0)
    assert event.before_ms == 2500.0 and len(event.text) < 1000
    assert text([event]).startswith("     2.500 s before  xxx")


def test_an_error_in_the_middle_of_an_event_brings_the_last_events(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(3)
    for machine in (cluster.shard(0), cluster.scheduler):

        def fails(*_: Any) -> None:
            raise KeyError("lost")

        monkeypatch.setattr(machine, "_on_tick", fails)
        with pytest.raises(HalfHandledError) as raised:
            machine.handle(Tick(), cluster.now_ms)
        assert 0 < raised.value.story.count("s before") <= LAST
