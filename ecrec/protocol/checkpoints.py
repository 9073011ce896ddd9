"""Checkpoints: when one begins, where it cuts, and when it is complete (docs/protocol.md, "Checkpoints").

A part of the `SchedulerMachine`. The shards' part is ``saver.py``. What is here is persisted, so that a scheduler that
is started again goes on; one whose state was made again gives up what was under way.
"""

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from ecrec._native import __version__
from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Announcer, Client, forget_ms
from ecrec.protocol.config import NEVER_MS
from ecrec.protocol.context import Context
from ecrec.protocol.events import FileWritten, WriteFile
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.leases import Leases
from ecrec.protocol.members import Members
from ecrec.protocol.messages import UP, WORKER, Address
from ecrec.protocol.saved import (
    MANIFEST,
    STATE,
    STATE_BYTES_MAX,
    IndexFile,
    Manifest,
    SavedDataset,
    SavedLease,
    StateFile,
    checkpoint_folder,
    encode,
    index_name,
    version_of,
)
from ecrec.protocol.state import Told
from ecrec.protocol.transitions import ALL_TOLD, ASKED, COMPLETE, DISTURBED, SAVE, WRITING, WRITTEN
from ecrec.urls import shown


class Life(NamedTuple):
    """The present life of a worker."""

    epoch: int
    silent_ms: float
    is_forgotten: bool
    """It has left, or was silent so long that it is not known any more: a checkpoint does not wait for it."""


class Checkpoints:
    """The part of a `SchedulerMachine` that has checkpoints written."""

    def __init__(
        self, context: Context, members: Members, announcer: Announcer, leases: Leases, initial: InitialValues
    ) -> None:
        self.context = context
        self.members = members
        self.announcer = announcer
        self.leases = leases
        self.initial = initial
        self._left: dict[int, int] = {}
        """Worker -> epoch of the life of it that has said that it ends."""
        self._since_ms: float | None = None
        """Since when it listens to workers without a break."""
        self._request: tuple[Address, int] | None = None
        """Who asked for the one that is under way, so that asking again is no second one."""
        self._began_ms: float | None = None
        """When it was asked for; None in a scheduler that was started since."""
        self._moved_ms = -NEVER_MS
        """When it last went on."""
        self._cut_ms: float | None = None
        """Since when shards may know of the newest cut, as far as this scheduler knows."""
        self._progress: tuple[int, int] = (0, 0)
        self._is_writing = False
        """The manifest is being written."""
        self._writes_state = False
        """A user's own state was given to this scheduler, which has it written."""

    # ------------------------------------------------------------------ requests
    def on_save(self, source: Address, message: m.Save, clients: Collection[Client]) -> None:
        """Somebody asks for a checkpoint, maybe again."""
        context, saving = self.context, self.context.state.saving
        if saving.is_active and self._request == (source, message.request):
            context.send(source, m.SaveBegun(message.request, saving.number))
            return
        reason = self._why_not(message, clients)
        if reason:
            context.send(source, m.Refused(message.request, reason))
            return
        saving.step(SAVE)
        saving.number = max(saving.number, message.after) + 1
        saving.url, saving.time_s, saving.told, saving.error = message.url, message.time_s, {}, ""
        saving.has_state, saving.state_file, self._writes_state = bool(message.state), None, bool(message.state)
        if message.state:
            name = f"{checkpoint_folder(saving.number)}/{STATE}"
            context.effects.append(WriteFile(saving.number, saving.url, name, (message.state,)))
        saving.incremental, saving.base, saving.base_crc32c = message.incremental, 0, 0
        saving.bytes_per_s = message.bytes_per_s
        if message.incremental and self._knows_base(message):
            saving.base, saving.base_crc32c = message.base, message.base_crc32c
        self._request, self._began_ms, self._moved_ms = (source, message.request), context.now_ms, context.now_ms
        for group in context.state.groups:
            self.announcer.add(group, m.CheckpointAsked(self.announcer.next_view(group), saving.number))
        context.note("info", f"checkpoint {saving.number} to {shown(saving.url)} begins: {source} asked for it")
        context.changed()
        context.send(source, m.SaveBegun(message.request, saving.number))

    def _knows_base(self, message: m.Save) -> bool:
        """Whether what is taken for the base is what this cluster wrote.

        trap: the checkpoint of that number at the URL may be that of another cluster.
        """
        asked = m.CheckpointBase(message.base, message.url, message.base_crc32c)
        return asked in self.context.state.saving.bases

    def _why_not(self, message: m.Save, clients: Collection[Client]) -> str:
        state, saving = self.context.state, self.context.state.saving
        if max(saving.number, message.after) >= m.CHECKPOINTS_MAX:
            return f"checkpoint {max(saving.number, message.after)} was the last one that can be numbered"
        if not message.url or len(message.url) > m.URL_CHARACTERS_MAX:
            return f"the URL has {len(message.url)} characters; expected 1 to {m.URL_CHARACTERS_MAX}"
        if len(message.state) > STATE_BYTES_MAX:
            return f"the state has {len(message.state):,} bytes; at most {STATE_BYTES_MAX:,} are possible"
        if saving.is_active:
            return f"checkpoint {saving.number} to {shown(saving.url)} is being written: wait until it ends"
        if not state.tables:
            return "there are no tables yet"
        if disturbed := self._disturbed():
            return f"{disturbed}; a checkpoint is written when all shards are whole: ask again"
        for number, group in enumerate(state.groups):
            # trap: the one that leaves waits for checkpoints to end; back to back they would keep it for ever
            if group.succeeding is not None and group.succeeding.halts:
                return f"shard {number * state.n + group.succeeding.shard} is handed over just now: ask again"
        if self.initial.state.claims:
            names = ", ".join(repr(state.tables[table].name) for table in sorted(self.initial.state.claims))
            return f"the first values of table {names} are being written: ask again"
        for worker, life in sorted(self._lives(clients).items()):
            # Others would wait for it.
            if life.silent_ms > self.context.config.heartbeat_timeout_ms and not life.is_forgotten:
                since = f"for {life.silent_ms:.0f} ms" if life.silent_ms < NEVER_MS else "since this scheduler began"
                return f"worker {worker} has not been heard {since}: ask again"
        return ""

    def _disturbed(self) -> str:
        """Why no checkpoint can be written now; empty if one can."""
        for number, group in enumerate(self.context.state.groups):
            if group.lost:
                return group.lost
            for shard, place in enumerate(group.places):
                if place.state != UP:
                    return f"shard {number * self.context.state.n + shard} is {place.state}"
        return ""

    # ------------------------------------------------------------------ what is heard
    def heard_worker(self, source: Address, status: m.WorkerStatus) -> None:
        """The heartbeat of the present life of a worker."""
        state, saving = self.context.state, self.context.state.saving
        self._outrun(status.checkpoint)
        if saving.state != ASKED or status.checkpoint != saving.number or source.id in saving.told:
            return
        # trap: a shard that does not know of this life may still take pushes of the one before
        if len(status.pushed) == state.n * len(state.groups):
            saving.told[source.id] = Told(source.epoch, status.pushed, *status.run_pushed)

    def left(self, worker: Address) -> None:
        """A life of a worker has ended, with all its pushes durable."""
        self._left[worker.id] = worker.epoch
        self.context.state.saving.told.pop(worker.id, None)

    def heard_shard(self, status: m.ShardStatus) -> None:
        self._outrun(status.checkpoint)

    def _outrun(self, checkpoint: int) -> None:
        """Somebody has heard of a checkpoint that I know nothing of.

        trap: a scheduler whose state was lost, and made again from an older copy, would ask for one of that number
        again, and nobody would stop for it; and pushes that name it would wait for ever.
        """
        saving = self.context.state.saving
        if checkpoint <= saving.number:
            return
        if saving.is_active:
            self.give_up(f"checkpoint {checkpoint} was asked for by a scheduler whose state is lost")
        saving.number = checkpoint
        self._announce_end()

    # ------------------------------------------------------------------ how it goes on
    def on_tick(self, stood_still_ms: float) -> None:
        """``stood_still_ms``: in which the scheduler itself stood still, and heard nobody."""
        if stood_still_ms or self._since_ms is None:
            self._since_ms = self.context.now_ms

    def advance(self, clients: Collection[Client]) -> None:
        """Do what has become possible."""
        saving = self.context.state.saving
        if not saving.is_active:
            return
        if disturbed := self._disturbed():
            self.give_up(disturbed)
        elif saving.state == ASKED and self._began_ms is None:
            self.give_up("the scheduler was started again before the cut")
        elif saving.state == ASKED:
            self._await_workers(clients)
        else:
            self._await_shards()

    def _await_workers(self, clients: Collection[Client]) -> None:
        context, saving = self.context, self.context.state.saving
        lives = self._lives(clients)
        for worker, told in list(saving.told.items()):
            if worker not in lives or lives[worker].epoch != told.epoch:
                del saving.told[worker]  # another life of it begins, whose pushes all come after the cut
        missing = sorted(w for w, life in lives.items() if w not in saving.told and not life.is_forgotten)
        if not missing:
            self._cut(lives)
        elif context.now_ms - self._moved_ms > context.config.checkpoint_told_timeout_ms:
            names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            timeout_ms = context.config.checkpoint_told_timeout_ms
            self.give_up(f"worker {names} has not told its last push for {timeout_ms} ms: is it still there?")

    def _lives(self, clients: Collection[Client]) -> dict[int, Life]:
        """Worker -> its present life, of all that are not over."""
        context = self.context
        heard = {c.address.id: c for c in clients if c.address.role == WORKER and c.address.epoch == c.epoch}
        # trap: a late heartbeat of a dead process stands where that of the living one stood
        known = {c.address.id for c in clients if c.address.role == WORKER}
        # trap: a scheduler that was just started has heard nobody, and all live
        if self._since_ms is None:
            self._since_ms = context.now_ms
        long = context.now_ms - self._since_ms > forget_ms(context.config)
        lives = {}
        for worker, (epoch, _) in context.state.workers.items():
            if epoch and not context.state.leases.is_fenced(worker, epoch):
                client = heard.get(worker)
                is_heard = client is not None and client.epoch == epoch
                silent_ms = context.now_ms - client.heard_ms if is_heard and client is not None else NEVER_MS
                has_left = self._left.get(worker) == epoch
                lives[worker] = Life(epoch, silent_ms, is_forgotten=has_left or (worker not in known and long))
        return lives

    def _cut(self, lives: dict[int, Life]) -> None:
        context, saving, state = self.context, self.context.state.saving, self.context.state
        for worker, life in sorted(lives.items()):
            # trap: of one that was forgotten pushes may come late, to some shards before the cut and to others after it
            if life.is_forgotten:
                context.note("warning", f"worker {worker} (epoch {life.epoch}) is not heard any more: its life is over")
                self.leases.end(worker, life.epoch)
        sequences = {run: max(t.sequence for t in saving.told.values() if t.run == run)
                     for run in {t.run for t in saving.told.values()}}  # fmt: skip
        barriers = {
            worker: (told.run, sequences[told.run])
            for worker, told in saving.told.items()
            if told.run and told.sequence < sequences[told.run]
        }
        saving.step(ALL_TOLD)
        saving.datasets = [
            msgspec.structs.replace(each, returned=list(each.returned)) for each in state.leases.datasets
        ]
        saving.leases = [msgspec.structs.replace(lease) for lease in state.leases.leases]
        unsure = state.initial.unsure
        saving.fresh, saving.tables = sorted({*state.initial.fresh, *unsure}), len(state.tables)
        epochs = {worker: told.epoch for worker, told in saving.told.items()}
        each = -(-saving.bytes_per_s // (state.n * len(state.groups)))
        for number, group in enumerate(state.groups):
            shards = range(number * state.n, (number + 1) * state.n)
            pushes = {worker: [told.pushes.get(shard, 0) for shard in shards] for worker, told in saving.told.items()}
            view = m.CheckpointCut(
                self.announcer.next_view(group), saving.number, saving.url, pushes, epochs, barriers,
                saving.incremental, saving.base, each,
            )  # fmt: skip
            self.announcer.add(group, view)
        self._moved_ms = self._cut_ms = context.now_ms
        context.changed()

    def _await_shards(self) -> None:
        context, saving = self.context, self.context.state.saving
        saved = self._saved()
        for shard, each in sorted(saved.items()):
            if each.error:
                self.give_up(f"shard {shard}: {each.error}")
                return
        total = len(context.state.groups) * context.state.n
        progress = (len(saved), sum(each.nbytes + each.index_bytes for each in saved.values()))
        if progress != self._progress or self._moved_ms < 0:
            self._progress, self._moved_ms = progress, context.now_ms
        if self._cut_ms is None:
            self._cut_ms = context.now_ms
        waited_ms, config = context.now_ms - self._moved_ms, context.config
        # trap: what other shards write meanwhile is no reason to let pushes wait for longer
        if len(saved) < total and context.now_ms - self._cut_ms > config.checkpoint_cut_timeout_ms:
            names = ", ".join(str(shard) for shard in range(total) if shard not in saved)
            limit_ms = config.checkpoint_cut_timeout_ms
            self.give_up(f"shard {names} lacks pushes that workers have made, for {limit_ms} ms")
        elif waited_ms > config.checkpoint_stall_timeout_ms:
            self.give_up(f"nothing was written for {waited_ms / 1e3:.0f} s: does {shown(saving.url)} answer?")
        elif self._lacks_state() and not self._writes_state:
            # trap: what was to be written was known to the scheduler before this one alone
            self.give_up("the scheduler was started again before the user's state was written")
        elif self._lacks_state():
            pass  # it is being written
        elif len(saved) == total and all(each.index_bytes for each in saved.values()) and not self._is_writing:
            self._is_writing = True
            name = f"{checkpoint_folder(saving.number)}/{MANIFEST}"
            manifest = (encode(self._manifest(saved)),)
            context.effects.append(WriteFile(saving.number, saving.url, name, manifest, urgent=True))

    def _lacks_state(self) -> bool:
        """A user's own state belongs to the checkpoint, and is not written yet."""
        saving = self.context.state.saving
        return saving.has_state and saving.state_file is None

    def _saved(self) -> dict[int, m.Saved]:
        """Shard, numbered over all groups -> what it has written of this checkpoint, if it has begun."""
        state = self.context.state
        found = {}
        for number in range(len(state.groups)):
            for shard in range(state.n):
                status = self.members.status(number, shard)
                if status is not None and status.saved is not None and status.saved.checkpoint == state.saving.number:
                    found[number * state.n + shard] = status.saved
        return found

    def _manifest(self, saved: dict[int, m.Saved]) -> Manifest:
        context, state, saving = self.context, self.context.state, self.context.state.saving
        began_ms = context.now_ms if self._began_ms is None else self._began_ms
        indexes = [
            IndexFile(shard, index_name(shard), each.index_bytes, each.index_crc32c, each.rows,
                      each.nbytes, each.base)
            for shard, each in sorted(saved.items())
        ]  # fmt: skip
        datasets = [
            SavedDataset(
                d.dataset.name, d.dataset.examples, d.dataset.end, d.dataset.split_examples, d.next, d.returned,
                [SavedLease(lease.number, lease.worker, lease.first, lease.last, lease.done)
                 for lease in saving.leases if lease.dataset == index],
                d.trained, d.repeated,
            )
            for index, d in enumerate(saving.datasets)
        ]  # fmt: skip
        # trap: a worker that pushes behind the cut, up to a barrier in it, may do so to a table that came since
        fresh = sorted({*saving.fresh, *range(saving.tables, len(state.tables))})
        base = max(each.base for each in indexes)
        return Manifest(
            version_of(base), saving.number, state.cluster, __version__, saving.time_s,
            (context.now_ms - began_ms) / 1e3, state.n, len(state.groups), state.tables, indexes, datasets,
            sorted(saving.told), fresh, saving.state_file, base, saving.base_crc32c if base else 0,
        )  # fmt: skip

    def on_written(self, event: FileWritten) -> None:
        """The manifest, or a user's state, is written, or cannot be."""
        context, saving = self.context, self.context.state.saving
        if not saving.is_active or event.checkpoint != saving.number:
            return
        if event.error:
            self.give_up(f"{event.name}: {event.error}")
            return
        if event.name.endswith(f"/{STATE}"):
            saving.state_file = StateFile(event.nbytes, event.crc32c)
            context.changed()
            return
        if saving.state != WRITING:
            return
        saving.complete = self.figures(COMPLETE)
        others = [base for base in saving.bases if base.url != saving.url]
        saving.bases = [*others[1 - m.BASES_MAX :], m.CheckpointBase(saving.number, saving.url, event.crc32c)]
        self._end(WRITTEN)
        context.note("info", f"checkpoint {saving.number} to {shown(saving.url)} is complete")

    def give_up(self, reason: str) -> None:
        """The checkpoint that is under way ends without a manifest."""
        saving = self.context.state.saving
        saving.error = reason[:1000]
        self._end(DISTURBED)
        self.context.note("warning", f"checkpoint {saving.number} to {shown(saving.url)} is given up: {reason}")

    def _end(self, happening: str) -> None:
        saving = self.context.state.saving
        saving.step(happening)
        saving.told, saving.datasets, saving.leases, saving.fresh = {}, [], [], []
        saving.has_state, saving.state_file, self._writes_state = False, None, False
        self._is_writing, self._began_ms, self._moved_ms, self._progress = False, None, -NEVER_MS, (0, 0)
        self._announce_end(is_complete=happening == WRITTEN)

    def _announce_end(self, is_complete: bool = False) -> None:
        context = self.context
        for group in context.state.groups:
            # What was said of its workers is needed no more, and is kept and written with every state.
            group.views = [
                _without_workers(view) if isinstance(view, m.CheckpointCut) else view for view in group.views
            ]
            if group.view:
                view = m.CheckpointOver(self.announcer.next_view(group), context.state.saving.number, is_complete)
                self.announcer.add(group, view)
        context.changed()

    def adopted(self) -> None:
        """The state was made again: what it says of a checkpoint may be long over."""
        saving = self.context.state.saving
        if saving.is_active:
            self.give_up("the scheduler's state was lost")
        elif saving.number:
            self._announce_end()  # it may have been asked for after the state was copied

    # ------------------------------------------------------------------ for people
    def figures(self, state: str = "") -> m.SavingFigures | None:
        """Of the newest checkpoint; None before there was one."""
        saving = self.context.state.saving
        if not saving.url:
            return None
        saved = self._saved() if saving.is_active else {}
        done = sum(1 for each in saved.values() if each.index_bytes)
        return m.SavingFigures(
            saving.number, saving.url, state or saving.state, done, sum(each.rows for each in saved.values()),
            sum(each.nbytes for each in saved.values()), saving.error,
            max((each.base for each in saved.values()), default=0),
        )  # fmt: skip


def _without_workers(view: m.CheckpointCut) -> m.CheckpointCut:
    """For members that hear of the cut together with its end."""
    return msgspec.structs.replace(view, pushes={}, epochs={}, barriers={})
