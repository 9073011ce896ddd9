"""Checkpoints, one rule at a time: when one begins, whom it waits for, where it cuts, what of the shards ends it."""

from typing import Any

import msgspec
import pytest
from cluster import table
from parts import Parts, worker

from ecrec.errors import CheckpointError, CheckpointVersionError, ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Client, forget_ms
from ecrec.protocol.checkpoints import Checkpoints
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import FileWritten, WriteFile
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.leases import Leases
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, TOOL, Address
from ecrec.protocol.saved import STATE_BYTES_MAX, Manifest, checkpoint_number, decode, with_checksum
from ecrec.protocol.state import Claim, DatasetState, Lease, Succeeding, Told, encode_state, read_state
from ecrec.protocol.transitions import ASKED, COMPLETE, GIVEN_UP, NO_CHECKPOINT, WRITING

ASKER = Address(TOOL, 7, 0)
TIMEOUT_MS = ProtocolConfig().heartbeat_timeout_ms
FORGET_MS = forget_ms(ProtocolConfig())
MANIFEST, STATE = "checkpoint-000001/manifest.json", "checkpoint-000001/state.safetensors"


class Scheduler(Parts):
    """Two shards with a table, and workers 0 and 1 in their first lives, which were heard just now."""

    def __init__(self, workers: dict[int, int] | None = None, **more: Any) -> None:
        workers = {0: 1, 1: 1} if workers is None else workers
        super().__init__(workers=workers, **more)
        self.state.tables = [table(code="1+1")]
        self.leases = Leases(self.context, self.announcer)
        self.initial = InitialValues(self.context, self.announcer, self.leases)
        self.checkpoints = Checkpoints(self.context, self.members, self.announcer, self.leases, self.initial)
        self.saving = self.state.saving
        self.clients = [client(worker(number, epoch)) for number, epoch in workers.items()]
        self.checkpoints.on_tick(0.0)

    def save(self, request: int = 1, source: Address = ASKER, url: str = "sim://x", **fields: Any) -> Any:
        """The answer to who asks for a checkpoint: its number, or why there is none."""
        self.checkpoints.on_save(source, m.Save(request, url, 1.0, **fields), self.clients)
        (answer,) = self.sent()
        assert answer.request == request
        return answer.checkpoint if isinstance(answer, m.SaveBegun) else answer.reason

    def tells(self, number: int, epoch: int = 1, **fields: Any) -> None:
        """A worker's heartbeat."""
        status = m.WorkerStatus("w", [], {}, checkpoint=1, pushed=dict.fromkeys(range(2), 3))
        self.checkpoints.heard_worker(worker(number, epoch), msgspec.structs.replace(status, **fields))

    def advance(self) -> list[WriteFile]:
        """Do what has become possible; the files that are to be written then."""
        self.context.effects.clear()
        self.checkpoints.advance(self.clients)
        return [effect for effect in self.context.effects if isinstance(effect, WriteFile)]

    def cut(self, **fields: Any) -> m.CheckpointCut:
        """Ask, and let all tell: the cut."""
        assert self.save(**fields) == 1
        for each in self.clients:
            self.tells(each.address.id, each.epoch)
        self.advance()
        assert self.saving.state == WRITING
        return self.cuts()[0]

    def cuts(self) -> list[m.CheckpointCut]:
        return [group.views[-1] for group in self.state.groups if isinstance(group.views[-1], m.CheckpointCut)]

    def saved(self, shard: int, *fields: Any, group: int = 0, **more: Any) -> None:
        """What a shard has written of checkpoint 1: rows and bytes, bytes of the index."""
        self.says(group, shard, saved=m.Saved(1, *fields, **more), checkpoint=1)

    def all_saved(self, **more: Any) -> None:
        for shard in range(2):
            self.saved(shard, 5, 100, 20, **more)

    def writes(self, name: str, checkpoint: int = 1, crc32c: int = 9, error: str = "") -> None:
        self.checkpoints.on_written(FileWritten(checkpoint, name, 50, crc32c, error))


def client(address: Address, epoch: int | None = None, heard_ms: float = 0.0) -> Client:
    return Client(address, address.epoch if epoch is None else epoch, [1], [-1], [-1e18], heard_ms, {})


# ------------------------------------------------------------------ who asks
def test_who_asks_again_is_told_the_same_and_anybody_else_waits_until_it_ends() -> None:
    scheduler = Scheduler()
    assert scheduler.save() == 1 and scheduler.changed()
    view = scheduler.state.groups[0].view
    assert scheduler.save() == 1 and not scheduler.changed() and scheduler.state.groups[0].view == view
    for request, source in ((2, ASKER), (1, Address(TOOL, 8, 0))):
        assert "checkpoint 1 to sim://x is being written: wait until it ends" in scheduler.save(request, source)
    scheduler.checkpoints.give_up("so")
    assert scheduler.save() == 2, "who was started again counts its requests from the first one"


def test_a_cluster_without_tables_has_nothing_to_write() -> None:
    scheduler = Scheduler()
    scheduler.state.tables = []
    assert scheduler.save() == "there are no tables yet"
    assert scheduler.saving.state == NO_CHECKPOINT and not scheduler.changed()


@pytest.mark.parametrize(
    ("number", "after", "begins"),
    [
        (0, 0, 1),
        (4, 9, 10),
        (9, 4, 10),
        (0, m.CHECKPOINTS_MAX - 1, m.CHECKPOINTS_MAX),
        (m.CHECKPOINTS_MAX - 1, 0, m.CHECKPOINTS_MAX),
        (0, m.CHECKPOINTS_MAX, 0),
        (m.CHECKPOINTS_MAX, 0, 0),
    ],
)
def test_a_checkpoint_is_numbered_behind_all_that_are_known_and_at_its_url(
    number: int, after: int, begins: int
) -> None:
    scheduler = Scheduler()
    scheduler.saving.number = number
    answer = scheduler.save(after=after)
    assert answer == (begins or f"checkpoint {m.CHECKPOINTS_MAX} was the last one that can be numbered")


@pytest.mark.parametrize(("characters", "fits"), [(0, False), (1, True), (2048, True), (2049, False)])
def test_a_url_has_so_many_characters(characters: int, fits: bool) -> None:
    answer = Scheduler().save(url="x" * characters)
    assert answer == 1 if fits else f"the URL has {characters} characters; expected 1 to 2048" in answer


@pytest.mark.parametrize(("nbytes", "fits"), [(STATE_BYTES_MAX, True), (STATE_BYTES_MAX + 1, False)])
def test_a_users_state_has_so_many_bytes(nbytes: int, fits: bool) -> None:
    answer = Scheduler().save(state=bytes(nbytes))
    assert answer == 1 if fits else "at most 67,108,864 are possible" in answer


@pytest.mark.parametrize(
    ("disturbed", "why"),
    [
        ("all rows are lost", "all rows are lost; a checkpoint is written when all shards are whole"),
        (DOWN, "shard 3 is down; a checkpoint is written when all shards are whole"),
        (RECOVERING, "shard 3 is recovering; a checkpoint is written when all shards are whole"),
        (RESEEDING, "shard 3 is reseeding; a checkpoint is written when all shards are whole"),
    ],
)
def test_a_checkpoint_begins_while_all_are_whole_and_ends_when_one_is_not(disturbed: str, why: str) -> None:
    for begins_first in (False, True):
        scheduler = Scheduler(groups=2)
        if begins_first:
            assert scheduler.save() == 1
        if " " in disturbed:
            scheduler.state.groups[1].lost = disturbed
        else:
            scheduler.state.groups[1].places[1].state = disturbed
        if begins_first:
            scheduler.advance()
            assert scheduler.saving.state == GIVEN_UP and scheduler.saving.error == why.partition(";")[0]
        else:
            assert why in scheduler.save()


@pytest.mark.parametrize("halts", [False, True])
def test_a_checkpoint_does_not_begin_while_a_group_halts_for_a_successor(halts: bool) -> None:
    scheduler = Scheduler(groups=2)
    scheduler.state.groups[1].succeeding = Succeeding(1, 2, "spare", "inproc://spare", 1, halts)
    assert scheduler.save() == ("shard 3 is handed over just now: ask again" if halts else 1)


def test_a_checkpoint_does_not_begin_while_first_values_are_written() -> None:
    scheduler = Scheduler()
    scheduler.initial.state.claims[0] = Claim(0, 1)
    assert scheduler.save() == "the first values of table 't' are being written: ask again"


@pytest.mark.parametrize(("silent_ms", "begins"), [(TIMEOUT_MS, True), (TIMEOUT_MS + 1, False)])
def test_a_checkpoint_does_not_begin_while_a_worker_is_silent_that_others_would_wait_for(
    silent_ms: float, begins: bool
) -> None:
    scheduler = Scheduler()
    scheduler.context.now_ms = silent_ms
    scheduler.clients[0].heard_ms = silent_ms
    assert scheduler.save() == (1 if begins else f"worker 1 has not been heard for {silent_ms} ms: ask again")
    if not begins:
        scheduler.checkpoints.left(worker(1))
        assert scheduler.save() == 1, "it has said that it ends"


def test_a_scheduler_that_was_just_started_takes_nobody_for_dead_whom_it_has_not_heard() -> None:
    scheduler = Scheduler()
    del scheduler.clients[1]
    for now_ms, begins in ((0.0, False), (FORGET_MS, False), (FORGET_MS + 1.0, True)):
        scheduler.context.now_ms = scheduler.clients[0].heard_ms = now_ms
        answer = scheduler.save()
        assert answer == (1 if begins else "worker 1 has not been heard since this scheduler began: ask again")
    scheduler.checkpoints.give_up("it stands still")
    scheduler.checkpoints.on_tick(500.0)
    assert "has not been heard since" in scheduler.save(2), "it listens anew"


def test_a_worker_that_is_silent_is_forgotten_after_ten_time_outs_and_not_while_it_may_hold_splits() -> None:
    config = ProtocolConfig(heartbeat_timeout_ms=800, lease_timeout_ms=15_000)
    assert forget_ms(config) == 15_000.0
    assert forget_ms(msgspec.structs.replace(config, lease_timeout_ms=7_000)) == 8_000.0


# ------------------------------------------------------------------ whom it waits for
def test_the_cut_waits_for_every_living_worker_and_for_nobody_else() -> None:
    scheduler = Scheduler({0: 1, 1: 3, 2: 2, 3: 0})
    scheduler.leases.state.fenced = {2: 2}
    assert scheduler.save() == 1
    scheduler.tells(0)
    scheduler.advance()
    assert scheduler.saving.state == ASKED, "worker 1 has not told"
    scheduler.tells(1, 3)
    scheduler.advance()
    (cut,) = scheduler.cuts()
    assert cut.pushes == {0: [3, 3], 1: [3, 3]} and cut.epochs == {0: 1, 1: 3}


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, True),
        ({"checkpoint": 0}, False),
        ({"pushed": {0: 3}}, False),  # a shard does not know of it, and may take pushes of the life before
        ({"pushed": {}}, False),
    ],
)
def test_a_worker_has_told_when_it_names_the_checkpoint_and_its_last_push_to_every_shard(
    fields: Any, counts: bool
) -> None:
    scheduler = Scheduler()
    scheduler.save()
    scheduler.tells(0, **fields)
    assert (0 in scheduler.saving.told) == counts


def test_the_first_word_of_a_worker_counts_and_none_behind_the_cut() -> None:
    scheduler = Scheduler({0: 1})
    scheduler.tells(0, checkpoint=0)
    assert scheduler.saving.told == {}, "nobody has asked"
    scheduler.save()
    scheduler.tells(0)
    scheduler.tells(0, pushed={0: 9, 1: 9})
    scheduler.advance()
    scheduler.tells(5)
    assert scheduler.saving.told == {0: Told(1, {0: 3, 1: 3})}


def test_what_a_life_before_has_told_is_not_where_the_present_one_is_cut() -> None:
    scheduler = Scheduler({0: 1})
    scheduler.save()
    scheduler.tells(0, pushed={0: 8, 1: 8})
    scheduler.state.workers[0] = 2, "w0"
    scheduler.advance()
    assert scheduler.saving.state == ASKED and scheduler.saving.told == {}
    scheduler.tells(0, 2)
    scheduler.advance()
    assert scheduler.cuts()[0].pushes == {0: [3, 3]} and scheduler.cuts()[0].epochs == {0: 2}


def test_a_worker_that_has_told_and_ends_is_no_part_of_the_cut() -> None:
    """Others of its run would wait for pushes of it that will never come."""
    scheduler = Scheduler()
    scheduler.save()
    for number, sequence in ((0, 5), (1, 4)):
        scheduler.tells(number, run_pushed=(7, sequence))
    scheduler.checkpoints.left(worker(1))
    scheduler.advance()
    (cut,) = scheduler.cuts()
    assert cut.pushes.keys() == {0} and cut.barriers == {}
    assert scheduler.leases.state.is_fenced(1, 1) and not scheduler.leases.state.is_fenced(0, 1)


def test_of_workers_of_a_run_those_that_are_behind_come_up_to_the_last_barrier() -> None:
    scheduler = Scheduler(dict.fromkeys(range(6), 1))
    scheduler.save()
    for number, run in enumerate([(7, 5), (7, 4), (8, 9), (8, 9), (0, 0), (8, 2)]):
        scheduler.tells(number, run_pushed=run)
    scheduler.advance()
    assert scheduler.cuts()[0].barriers == {1: (7, 5), 5: (8, 9)}


def test_a_late_heartbeat_of_a_dead_process_makes_the_living_one_neither_heard_nor_forgotten() -> None:
    """It stands where that of the living one stood."""
    scheduler = Scheduler({0: 1, 1: 2})
    scheduler.context.now_ms = FORGET_MS + 1.0
    for late in (client(worker(1), 1), client(worker(1, 0), 2), client(worker(1), 2)):
        scheduler.clients = [client(worker(0), 1, FORGET_MS), late]
        late.heard_ms = FORGET_MS
        assert scheduler.save() == "worker 1 has not been heard since this scheduler began: ask again"
    scheduler.clients[1] = client(Address(TOOL, 1, 2), 2, FORGET_MS)
    assert scheduler.save() == 1, "a tool of that number is no worker"
    scheduler.tells(0)
    scheduler.advance()
    assert scheduler.cuts()[0].pushes.keys() == {0}


def test_a_checkpoint_that_somebody_has_heard_of_is_not_begun_again() -> None:
    for by_shard in (False, True):
        scheduler = Scheduler()
        for heard, number in ((0, 0), (1, 1), (1, 1), (5, 5), (4, 5)):
            scheduler.changed()
            before = scheduler.saving.number
            if by_shard:
                scheduler.checkpoints.heard_shard(scheduler.says(0, 0, checkpoint=heard).status)  # type: ignore[arg-type]
            else:
                scheduler.tells(0, checkpoint=heard)
            assert scheduler.saving.number == number and scheduler.changed() == (number > before)
        assert isinstance(scheduler.state.groups[0].views[-1], m.CheckpointOver)
        assert scheduler.save() == 6


def test_one_that_another_scheduler_has_begun_ends_that_which_is_under_way() -> None:
    scheduler = Scheduler()
    scheduler.save()
    scheduler.tells(0, checkpoint=2)
    assert scheduler.saving.state == GIVEN_UP and scheduler.saving.number == 2
    assert "checkpoint 2 was asked for by a scheduler whose state is lost" in scheduler.saving.error


# ------------------------------------------------------------------ what the shards write
def test_a_shard_that_cannot_write_ends_the_checkpoint_though_all_have_written() -> None:
    scheduler = Scheduler()
    scheduler.cut()
    scheduler.saved(0, 5, 100, 20)
    scheduler.saved(1, 5, 100, 20, error="the disk is full")
    assert scheduler.advance() == []
    assert scheduler.saving.state == GIVEN_UP and scheduler.saving.error == "shard 1: the disk is full"


def test_the_manifest_is_written_once_when_every_index_is() -> None:
    scheduler = Scheduler()
    scheduler.cut()
    scheduler.saved(0, 5, 100, 20)
    scheduler.saved(1, 5, 100)
    assert scheduler.advance() == []
    scheduler.saved(1, 5, 100, 20)
    (file,) = scheduler.advance()
    assert (file.checkpoint, file.name) == (1, MANIFEST)
    assert scheduler.advance() == []


def test_shards_that_have_not_reached_the_cut_in_time_are_named() -> None:
    scheduler = Scheduler(checkpoint_cut_timeout_ms=400)
    scheduler.cut()
    scheduler.saved(0, 5, 100)
    for now_ms, state in ((400.0, WRITING), (401.0, GIVEN_UP)):
        scheduler.context.now_ms = now_ms
        scheduler.advance()
        assert scheduler.saving.state == state
    assert scheduler.saving.error == "shard 1 lacks pushes that workers have made, for 400 ms"


def manifest(file: WriteFile) -> Manifest:
    (data,) = file.buffers
    return msgspec.json.decode(bytes(data), type=Manifest)


def test_a_manifest_has_of_each_data_set_its_own_splits_and_names_the_base_of_any_shard() -> None:
    scheduler = Scheduler()
    scheduler.leases.state.datasets = [DatasetState(m.Dataset(name, 50, 50, 5), next=20) for name in "de"]
    scheduler.leases.state.leases = [
        Lease(number, dataset, 5 * number, 5 * number + 5, 0, 1, 1, False)
        for number, dataset in ((1, 0), (2, 1), (3, 0))
    ]
    scheduler.cut()
    scheduler.saved(0, 5, 100, 20)
    scheduler.saved(1, 5, 100, 20, base=3)
    (file,) = scheduler.advance()
    found = manifest(file)
    assert [[lease.number for lease in each.leases] for each in found.datasets] == [[1, 3], [2]]
    assert (found.base, found.version) == (3, 2), "one that reads only whole checkpoints must not take it for one"
    assert found.workers == [0, 1]


# ------------------------------------------------------------------ what is written
def test_only_a_manifest_of_the_checkpoint_that_is_written_completes_it() -> None:
    scheduler = Scheduler()
    scheduler.writes(MANIFEST)
    assert scheduler.saving.state == NO_CHECKPOINT
    scheduler.save()
    scheduler.writes(MANIFEST)
    assert scheduler.saving.state == ASKED, "the cut is not made: it cannot be of this one"
    scheduler.tells(0)
    scheduler.tells(1)
    scheduler.advance()
    for late in ("", "an old error"):
        scheduler.writes(MANIFEST, checkpoint=2, error=late)
    assert scheduler.saving.state == WRITING
    scheduler.all_saved(base=0)
    scheduler.writes(MANIFEST)
    assert scheduler.saving.state == COMPLETE
    scheduler.writes(MANIFEST, error="late")
    assert scheduler.saving.state == COMPLETE and not scheduler.saving.error
    assert isinstance(over := scheduler.state.groups[0].views[-1], m.CheckpointOver) and over.is_complete


def test_a_file_that_cannot_be_written_ends_the_checkpoint_and_nothing_of_it_is_kept() -> None:
    for name in (MANIFEST, STATE):
        scheduler = Scheduler()
        scheduler.cut(state=b"mine")
        scheduler.changed()
        scheduler.writes(name, error="the disk is full")
        assert scheduler.saving.state == GIVEN_UP and scheduler.saving.error == f"{name}: the disk is full"
        assert scheduler.saving.state_file is None and scheduler.saving.complete is None and scheduler.changed()


def test_the_manifest_waits_for_the_users_state() -> None:
    scheduler = Scheduler()
    scheduler.cut(state=b"mine")
    scheduler.all_saved()
    assert scheduler.advance() == []
    scheduler.writes(STATE)
    (file,) = scheduler.advance()
    assert manifest(file).state is not None


def test_of_each_url_the_newest_complete_checkpoint_is_known_and_of_so_many_urls() -> None:
    scheduler = Scheduler()
    for request, url in enumerate(["sim://0", "sim://1", "sim://0", "sim://2", "sim://3", "sim://4"], 1):
        scheduler.save(request, url=url)
        for number in range(2):
            scheduler.tells(number, checkpoint=request)
        scheduler.advance()
        scheduler.writes(f"checkpoint-{request:06d}/manifest.json", request, crc32c=request)
        if request == 3:
            assert [base.checkpoint for base in scheduler.saving.bases] == [2, 3]
    assert [(base.checkpoint, base.url, base.crc32c) for base in scheduler.saving.bases] == [
        (3, "sim://0", 3), (4, "sim://2", 4), (5, "sim://3", 5), (6, "sim://4", 6),
    ]  # fmt: skip


# ------------------------------------------------------------------ for people
def test_figures_are_those_of_the_newest_checkpoint_if_there_was_one() -> None:
    scheduler = Scheduler()
    assert scheduler.checkpoints.figures() is None
    scheduler.cut()
    scheduler.saved(0, 5, 100, 20, base=0)
    scheduler.saved(1, 6, 70, base=3)
    assert scheduler.checkpoints.figures() == m.SavingFigures(1, "sim://x", WRITING, 1, 11, 170, "", 3)
    scheduler.checkpoints.give_up("so")
    assert scheduler.checkpoints.figures() == m.SavingFigures(1, "sim://x", GIVEN_UP, 0, 0, 0, "so", 0)


# ------------------------------------------------------------------ what is kept
def test_a_state_whose_checkpoint_cannot_be_is_refused() -> None:
    scheduler = Scheduler()
    scheduler.state.groups[0].table_views = [1]
    for state, fits in ((NO_CHECKPOINT, True), (WRITING, True), (COMPLETE, True), ("asleep", False)):
        scheduler.saving.state = state
        if fits:
            assert read_state(encode_state(scheduler.state)).saving.state == state
        else:
            with pytest.raises(ConfigurationError, match="a checkpoint is 'asleep', which is no state"):
                read_state(encode_state(scheduler.state))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("checkpoint-000012", 12), ("checkpoint-1234567", 1234567), ("checkpoint-" + 18 * "9", 10**18 - 1),
        ("checkpoint-" + 19 * "9", None), ("checkpoint-12", None), ("checkpoint-0000012", None), ("checkpoint-", None),
        ("checkpoint-00001\u0662", None), ("checkpoint-00001\u00b2", None), ("checkpoint--00001", None),
        ("checkpoint-00001a", None), ("other", None),
    ],
)  # fmt: skip
def test_only_a_folder_that_a_checkpoint_could_have_is_one(name: str, number: int | None) -> None:
    assert checkpoint_number(name) == number


def test_a_manifest_of_another_version_or_that_was_damaged_is_refused() -> None:
    scheduler = Scheduler()
    scheduler.cut()
    scheduler.all_saved()
    (file,) = scheduler.advance()
    data = bytes(file.buffers[0])
    assert decode(data, Manifest, "m").checkpoint == 1
    text = data.removesuffix(b"}").rpartition(b",\n")[0] + b"\n}"
    assert decode(with_checksum(text), Manifest, "m").checkpoint == 1
    for versions, said in ((b'"version": 3', "version 3"), (b'"virsion": 1', "no version")):
        other = with_checksum(text.replace(b'"version": 1', versions))
        with pytest.raises(CheckpointVersionError, match=f"m: it has {said} of the format"):
            decode(other, Manifest, "m")
    for damaged in (text, data.replace(b'"sim', b'"tim'), data.replace(b'"checkpoint": 1', b'"checkpoint": 2'),
                    data + b" ", data[:-3] + b"0\n}"):  # fmt: skip
        if damaged != data:
            with pytest.raises(CheckpointError, match="m: damaged: its checksum, the last field, does not fit"):
                decode(damaged, Manifest, "m")
    for junk in (data[:-20], b"", b"[1]", b"\xff"):
        with pytest.raises(CheckpointError, match="m: damaged"):
            decode(junk, Manifest, "m")
