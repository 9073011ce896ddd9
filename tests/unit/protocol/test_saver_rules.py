"""A shard's part of a checkpoint, one rule at a time: which pushes wait, when the cut is reached, what is written."""

from typing import Any

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table, written

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import FileWritten, Note, WriteFile
from ecrec.protocol.messages import WORKER, Address, Push
from ecrec.protocol.queues import QueuedPush, WorkerState
from ecrec.protocol.saved import ShardIndex
from ecrec.protocol.saver import Saver
from ecrec.protocol.shard_context import ShardContext

URL = "sim://x"
CONFIG = ProtocolConfig(
    checkpoint_told_timeout_ms=100, checkpoint_cut_timeout_ms=200, checkpoint_part_bytes=1000,
    checkpoint_kept_bytes_max=500, checkpoint_parts_in_flight_max=2, checkpoint_bytes_per_s=1_000_000,
)  # fmt: skip
LIMIT_MS = 100 + 2 * 200


class Shard:
    """Shard 0 of three, which has heard of no worker yet."""

    def __init__(self) -> None:
        cluster, spec = Cluster(3, CONFIG), table(code="2+1")
        cluster.create(spec)
        cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
        cluster.drain()
        self.cluster = cluster
        self.context: ShardContext = cluster.shard(0).context
        self.context.watermarks, self.context.workers, self.context.fenced = {}, {}, {}
        self.context.worked_ms, self.context.effects = -1e18, []
        self.saver = Saver(self.context)

    def files(self) -> list[WriteFile]:
        """That are to be written since the last time."""
        found = [effect for effect in self.context.effects if isinstance(effect, WriteFile)]
        self.context.effects = []
        return found

    def notes(self) -> list[str]:
        return [effect.text for effect in self.context.effects if isinstance(effect, Note)]

    def reached(self, cut: m.CheckpointCut | None = None) -> Saver:
        """A cut that is reached at once."""
        self.saver.on_cut(cut or at({}))
        assert self.saver.begin_if_reached()
        return self.saver


def at(pushes: dict[int, int], checkpoint: int = 1, barriers: Any = None, **more: Any) -> m.CheckpointCut:
    """The cut of workers in their second lives behind these pushes to shard 0."""
    last = {worker: [number, 9, 9] for worker, number in pushes.items()}
    url, epochs = more.pop("url", URL), more.pop("epochs", dict.fromkeys(pushes, 2))
    return m.CheckpointCut(9, checkpoint, url, last, epochs, barriers or {}, **more)


def push(number: int, checkpoint: int = 1, worker: int = 0, epoch: int = 2, **more: Any) -> QueuedPush:
    one = Push(epoch, number, more.pop("barrier", 0), False, [], checkpoint=checkpoint, **more)
    return QueuedPush(worker, number, one, (), Address(WORKER, worker, epoch))


# ------------------------------------------------------------------ which pushes wait
def test_pushes_behind_the_cut_wait_and_those_before_it_do_not() -> None:
    shard = Shard()
    saver = shard.saver
    assert not saver.holds(push(1, 0)) and saver.heard == 0, "it names no checkpoint"
    assert saver.holds(push(1)) and saver.heard == 1, "where the cut is is not known yet"
    saver.on_cut(at({0: 5}))
    assert [saver.holds(push(number)) for number in (4, 5, 6)] == [False, False, True]
    assert saver.holds(push(3, epoch=3)), "numbers of another life say nothing"
    assert saver.holds(push(3, worker=7)), "it was no part of the cut"
    assert saver.holds(push(3, 2)) and saver.heard == 2, "that is behind the next one, too"
    saver.on_over(m.CheckpointOver(10, 1))
    assert not saver.holds(push(6)) and saver.holds(push(6, 2))


def test_a_push_that_others_of_its_barrier_need_does_not_wait() -> None:
    shard = Shard()
    saver = shard.saver
    saver.on_cut(at({0: 5, 1: 5}, barriers={1: (7, 3)}))
    assert saver.holds(push(6)) and not saver.holds(push(6, worker=1))
    for other in (push(6, worker=1), push(6, worker=1, barrier=2, run=8, sequence=3),
                  push(6, worker=1, barrier=2, run=7, sequence=2)):  # fmt: skip
        saver.applied([other])
        assert not saver.holds(push(7, worker=1)), "it has not come up to the barrier"
    saver.applied([push(7, worker=1, barrier=2, run=7, sequence=3)])
    assert saver.holds(push(8, worker=1))


@pytest.mark.parametrize("is_cut", [False, True])
def test_pushes_wait_so_long_and_no_longer_for_a_checkpoint_whose_scheduler_says_nothing(is_cut: bool) -> None:
    shard = Shard()
    saver, context = shard.saver, shard.context
    if is_cut:
        saver.on_cut(at({0: 5, 1: 9}))
    began_ms = context.awake_ms
    for waited_ms, waits in ((0, True), (LIMIT_MS, True), (LIMIT_MS + 1, False)):
        context.awake_ms = began_ms + waited_ms
        assert saver.holds(push(6)) == waits
    assert any(f"pushes have waited for it for {LIMIT_MS} ms" in text for text in shard.notes())
    assert saver.saved() is None
    saver.on_cut(at({0: 5}))
    assert not saver.begin_if_reached() and saver.saved() is None, "it is never complete"
    assert saver.holds(push(6, 2)), "for the next one they wait anew"


# ------------------------------------------------------------------ when the cut is reached
def test_the_cut_is_reached_when_all_its_pushes_are_applied_and_once() -> None:
    shard = Shard()
    saver, watermarks = shard.saver, shard.context.watermarks
    assert not saver.begin_if_reached()
    saver.on_cut(at({0: 5, 1: 3}))
    for worker, number, is_reached in ((0, 5, False), (1, 2, False), (1, 3, True), (1, 4, False)):
        watermarks[worker] = number
        assert saver.begin_if_reached() == is_reached
        assert (saver.saved() is not None) == (number >= 3 and worker == 1)


@pytest.mark.parametrize(
    ("known", "fenced", "is_over"), [(2, 0, False), (3, 0, True), (0, 1, False), (0, 2, True), (0, 3, True)]
)
def test_for_pushes_of_a_life_that_is_over_nobody_waits(known: int, fenced: int, is_over: bool) -> None:
    shard = Shard()
    if known:
        shard.context.workers = {0: WorkerState(Address(WORKER, 0, known))}
    shard.context.fenced = {0: fenced}
    shard.saver.on_cut(at({0: 5}))
    assert shard.saver.begin_if_reached() == is_over


def test_the_cut_waits_for_those_that_come_up_to_a_barrier() -> None:
    shard = Shard()
    saver = shard.saver
    shard.context.watermarks = {0: 5, 1: 5}
    saver.on_cut(at({0: 5, 1: 5}, barriers={1: (7, 3)}))
    assert not saver.begin_if_reached()
    saver.applied([push(6, worker=1, barrier=2, run=7, sequence=3)])
    assert saver.begin_if_reached()


def test_who_has_come_up_to_a_barrier_has_done_so_for_one_checkpoint() -> None:
    shard = Shard()
    saver = shard.saver
    shard.context.watermarks = {0: 5, 1: 5}
    saver.on_cut(at({0: 5, 1: 5}, barriers={1: (7, 3)}))
    saver.applied([push(6, worker=1, barrier=2, run=7, sequence=3)])
    saver.on_over(m.CheckpointOver(10, 1))
    saver.on_cut(at({0: 5, 1: 5}, 2, barriers={1: (7, 9)}))
    assert not saver.begin_if_reached()


@pytest.mark.parametrize(("epoch", "stamp", "is_stranger"), [(2, 0, True), (2, 1, False), (1, 0, False)])
def test_a_life_that_has_pushed_and_was_not_asked_ends_the_checkpoint(
    epoch: int, stamp: int, is_stranger: bool
) -> None:
    """Other shards may have had more of its pushes."""
    shard = Shard()
    shard.context.fenced = {7: 1}
    shard.saver.applied([push(3, stamp, worker=7, epoch=epoch)])
    saver = shard.reached()
    saved = saver.saved()
    reason = "worker 7 has pushed, and the scheduler knew nothing of this life of it at the cut"
    assert saved is not None and saved.error == (reason if is_stranger else "")


def test_another_cut_ends_the_checkpoint_that_was_written() -> None:
    shard, snapshot = with_rows()
    shard.saver.advance()
    shard.saver.on_cut(at({0: 5}, 2))
    assert snapshot.is_closed and shard.saver.saved() is None and shard.saver._in_flight == 0


@pytest.mark.parametrize(
    "wrong", [{"epochs": {}}, {"epochs": {0: 2, 1: 2}}, {"barriers": {1: (7, 3)}}, {"pushes": [5]}]
)
def test_a_cut_that_cannot_be_is_refused(wrong: Any) -> None:
    saver = Shard().saver
    cut = at({0: 5})
    saver.check(cut)
    if "pushes" in wrong:
        wrong = {"pushes": {0: wrong["pushes"]}}
    with pytest.raises(ValueError, match="CheckpointCut 1: its workers do not fit, or not 3 shards"):
        saver.check(msgspec.structs.replace(cut, **wrong))


def test_the_newest_checkpoint_that_was_heard_of_is_told() -> None:
    """A scheduler whose state was lost would ask for one of its number again."""
    saver = Shard().saver
    for view, heard in (
        (m.CheckpointAsked(1, 5), 5), (m.CheckpointAsked(2, 4), 5), (at({}, 6), 6), (at({}, 4), 6),
        (m.CheckpointOver(3, 5), 6), (m.CheckpointOver(4, 8), 8),
    ):  # fmt: skip
        act: Any = {m.CheckpointAsked: saver.on_asked, m.CheckpointCut: saver.on_cut, m.CheckpointOver: saver.on_over}
        act[type(view)](view)
        assert saver.heard == heard


# ------------------------------------------------------------------ what is noted for the next one
def complete(shard: Shard, checkpoint: int, **more: Any) -> None:
    shard.reached(at({}, checkpoint, **more))
    shard.saver.on_over(m.CheckpointOver(10 + checkpoint, checkpoint, is_complete=True))
    assert shard.saver.saved() is None


def test_changes_are_noted_only_once_somebody_has_asked_for_that() -> None:
    shard = Shard()
    complete(shard, 1)
    assert shard.saver._bases == {}
    complete(shard, 2, incremental=True)
    base = shard.saver._bases[URL]
    assert base.checkpoint == 2 and shard.context.store.has_mark(base.mark)


def test_of_a_checkpoint_that_is_given_up_nothing_is_kept() -> None:
    shard = Shard()
    complete(shard, 1, incremental=True)
    saver, store = shard.saver, shard.context.store
    base, next_mark = saver._bases[URL], store.mark_changes() + 1
    shard.reached(at({}, 2, incremental=True))
    assert saver.saved() is not None and store.has_mark(next_mark)
    saver.on_over(m.CheckpointOver(12, 2))
    assert saver.saved() is None and not store.has_mark(next_mark)
    assert saver._bases == {URL: base} and store.has_mark(base.mark), "what changed since then stays noted"


def test_only_so_many_bases_are_kept_and_of_each_url_the_newest() -> None:
    shard = Shard()
    marks = []
    for number in range(m.BASES_MAX + 2):
        url = "sim://0" if number == 1 else f"sim://{number}"
        complete(shard, number + 1, incremental=True, url=url)
        marks.append(shard.saver._bases[url].mark)
    kept = [shard.context.store.has_mark(mark) for mark in marks]
    assert kept == [False, False] + [True] * m.BASES_MAX and len(shard.saver._bases) == m.BASES_MAX


# ------------------------------------------------------------------ what is written
class Snapshot:
    """Rows without end, of which so many bytes are kept."""

    def __init__(self, kept_bytes: int) -> None:
        self.kept_bytes, self.asked, self.is_closed = kept_bytes, list[int](), False

    def take(self, nbytes: int) -> Any:
        self.asked.append(nbytes)
        return 0, 1, np.zeros(nbytes, np.uint8)

    def close(self) -> None:
        self.is_closed = True


def with_rows(kept_bytes: int = 0, **fields: Any) -> tuple[Shard, Snapshot]:
    shard, snapshot = Shard(), Snapshot(kept_bytes)
    shard.reached(at({}, **fields))
    shard.saver._snapshot = snapshot  # type: ignore[assignment]
    return shard, snapshot


@pytest.mark.parametrize(("kept", "goes_on"), [(1000, True), (1001, False)])
def test_a_checkpoint_that_keeps_too_many_old_rows_ends(kept: int, goes_on: bool) -> None:
    shard, snapshot = with_rows(kept)
    shard.saver.advance()
    saved = shard.saver.saved()
    assert saved is not None and ("1,001 bytes of old rows wait to be written, 1,000 may" in saved.error) != goes_on
    assert snapshot.is_closed != goes_on and bool(shard.files()) == goes_on


@pytest.mark.parametrize(("pace", "part"), [(0, 1000), (400, 400), (1, 1), (5000, 1000)])
def test_a_part_is_as_long_as_one_may_be_and_no_longer_than_what_may_be_written_in_a_second(
    pace: int, part: int
) -> None:
    shard, snapshot = with_rows(bytes_per_s=pace)
    shard.saver.advance()
    assert snapshot.asked[0] == part


def test_the_next_part_waits_for_the_rate_unless_too_many_old_rows_are_kept() -> None:
    shard, snapshot = with_rows(bytes_per_s=500)
    saver, context = shard.saver, shard.context
    saver.advance()
    assert len(snapshot.asked) == 1 and saver.deadline_ms == context.now_ms + 1000.0
    for later_ms, kept, parts in ((999.0, 500, 1), (0.0, 501, 2)):
        context.now_ms += later_ms
        snapshot.kept_bytes = kept
        saver.advance()
        assert len(snapshot.asked) == parts
    saver.on_written(written(shard.files()[0]))
    snapshot.kept_bytes = 0
    context.now_ms = saver._paced_ms
    saver.advance()
    assert len(snapshot.asked) == 3, "its time has come"


def test_no_more_parts_are_in_flight_than_may_be() -> None:
    shard, _ = with_rows()
    for _ in range(3):
        shard.saver.advance()
    files = shard.files()
    assert [file.name.rpartition("/")[2] for file in files] == ["part-000001.safetensors", "part-000002.safetensors"]
    shard.saver.on_written(written(files[0]))
    shard.saver.advance()
    assert len(shard.files()) == 1


def test_the_index_is_written_when_all_parts_are_and_once() -> None:
    shard = Shard()
    saver = shard.reached()
    saver.advance()
    parts = shard.files()
    while parts:
        assert not any("index" in part.name for part in parts)
        for part in parts[:-1]:
            saver.on_written(written(part))
            saver.advance()
        more = shard.files()
        saver.on_written(written(parts[-1]))
        saver.advance()
        parts = more + shard.files()
        if any("index" in part.name for part in parts):
            break
    (index,) = parts
    saved = saver.saved()
    assert saved is not None and not saved.index_bytes and saved.rows
    found = msgspec.json.decode(bytes(index.buffers[0]), type=ShardIndex)
    assert sum(part.rows for part in found.parts) == saved.rows and all(part.rows for part in found.parts)
    saver.on_written(written(index))
    saver.advance()
    saved = saver.saved()
    assert saved is not None and saved.index_bytes and shard.files() == []


def test_a_part_that_cannot_be_written_ends_it_and_no_index_follows_those_that_are() -> None:
    shard, snapshot = with_rows()
    saver = shard.saver
    saver.advance()
    first, second = shard.files()
    saver.on_written(FileWritten(1, first.name, 0, 0, "the disk is full"))
    assert snapshot.is_closed
    saver.on_written(written(second))
    saver.advance()
    saved = saver.saved()
    assert saved is not None and saved.error == f"{first.name}: the disk is full" and shard.files() == []


def test_what_became_of_files_of_another_checkpoint_says_nothing() -> None:
    shard, _ = with_rows()
    saver = shard.saver
    saver.advance()
    first, _ = shard.files()
    for checkpoint in (0, 2):
        saver.on_written(FileWritten(checkpoint, first.name, 9, 9, "the disk is full"))
        saved = saver.saved()
        assert saved is not None and not saved.error and not saved.rows
    saver.on_over(m.CheckpointOver(10, 1))
    saver.on_written(written(first))
    saver.on_cut(at({0: 5}, 2))
    saver.on_written(FileWritten(2, first.name, 9, 9, "an answer before its cut"))
    assert saver.saved() is None and saver._in_flight == 0 and not saver._error
