"""A shard's part of a checkpoint: it waits for the cut, copies its rows out, and has them written.

A part of the `ShardMachine` (docs/protocol.md, "Checkpoints"). The scheduler's part is ``checkpoints.py``; what the
files look like is ``saved.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ecrec._native import Snapshot
from ecrec.protocol import messages as m
from ecrec.protocol.config import NEVER_MS
from ecrec.protocol.events import FileWritten, WriteFile
from ecrec.protocol.queues import QueuedPush
from ecrec.protocol.saved import (
    INDEX,
    Part,
    ShardIndex,
    checkpoint_folder,
    columns_of,
    encode,
    part_header,
    part_name,
    shard_folder,
    version_of,
)
from ecrec.protocol.shard_context import ShardContext


class Base(NamedTuple):
    """A complete checkpoint, and the mark of its cut (`Store.mark_changes`)."""

    checkpoint: int
    mark: int


class Saver:
    """The part of a `ShardMachine` that takes part in checkpoints."""

    def __init__(self, context: ShardContext) -> None:
        self.context = context
        self.over = 0
        """The newest checkpoint whose cut is behind me, or that is over: pushes that name it wait for nothing."""
        self._heard = 0
        """The newest one that I or a push that waits know of."""
        self._cut: m.CheckpointCut | None = None
        """Of the one that is under way, from its view to its end."""
        self._passed: set[int] = set()
        """Workers whose push with a barrier (`CheckpointCut.barriers`) is applied."""
        self._lives: dict[int, tuple[int, int]] = {}
        """Worker -> its life that pushed last, and the checkpoint that this push names."""
        self._held: tuple[int, float] = (0, 0.0)
        """The checkpoint that pushes wait for, and since when, in time in which this process was awake."""
        self._snapshot: Snapshot | None = None
        self._in_flight = 0
        """Files that are being written."""
        self._parts: list[Part] = []
        self._made: dict[str, Part] = {}
        """Parts that are being written."""
        self._watermarks: dict[int, int] = {}
        self._nbytes = self._rows = self._number = 0
        self._index_bytes = self._index_crc32c = 0
        self._error = ""
        self._bases: dict[str, Base] = {}
        """URL -> the newest complete checkpoint there, if what changes since is noted."""
        self._mark = 0
        """Of the cut of the one that is under way; 0: nothing is noted."""
        self._base = 0
        """The parts have what changed since this checkpoint; 0: all rows."""
        self._touched: list[int] = []
        self._paced_ms = self._shared_ms = 0.0
        """When the next part may be copied out by the rate that was asked for, by the one that leaves workers time,"""
        self.resume_ms = NEVER_MS
        """and by both as it is now."""

    # ------------------------------------------------------------------ pushes
    def holds(self, push: QueuedPush) -> bool:
        """Whether a push comes after a cut that I have not reached."""
        stamp = push.push.checkpoint
        if stamp <= self.over:
            return False
        self._heard = max(self._heard, stamp)
        if self._is_too_late(stamp):
            return False
        cut = self._cut
        if cut is None or cut.checkpoint != stamp:
            return True
        # trap: numbers of another life of the worker go on from what this shard has, and say nothing
        if push.push.worker_epoch != cut.epochs.get(push.worker):
            return True
        if push.number <= cut.pushes[push.worker][self.context.shard]:
            return False
        # trap: another worker's push with this barrier is in the checkpoint, and waits for this one
        return push.worker not in cut.barriers or push.worker in self._passed

    def _is_too_late(self, stamp: int) -> bool:
        """Give up waiting for a checkpoint whose scheduler does not say that it is over: it may be gone for long."""
        context = self.context
        if self._held[0] != stamp:
            self._held = stamp, context.awake_ms
        limit_ms = context.config.checkpoint_told_timeout_ms + 2 * context.config.checkpoint_cut_timeout_ms
        if context.awake_ms - self._held[1] <= limit_ms:
            return False
        context.note(
            "warning", f"checkpoint {stamp}: pushes have waited for it for {limit_ms} ms, and go on without it"
        )
        self._forget()
        self.over = stamp  # a cut of it that is announced after all is not taken, so that it is never complete
        return True

    def applied(self, pushes: Sequence[QueuedPush]) -> None:
        """These pushes are applied."""
        for each in pushes:
            self._lives[each.worker] = each.push.worker_epoch, each.push.checkpoint
        if self._cut is None or not self._cut.barriers:
            return
        for each in pushes:
            run, sequence = self._cut.barriers.get(each.worker, (0, 0))
            if each.push.barrier > 1 and each.push.run == run and each.push.sequence >= sequence:
                self._passed.add(each.worker)

    def begin_if_reached(self) -> bool:
        """Take the snapshot if all pushes of the cut are applied; True if that was so now."""
        cut = self._cut
        if cut is None or cut.checkpoint <= self.over or not self._is_reached(cut):
            return False
        context = self.context
        self.over = cut.checkpoint
        self._watermarks = dict(context.watermarks)
        self.resume_ms = self._paced_ms = self._shared_ms = context.now_ms
        context.status_due = True
        if strangers := self._strangers(cut):
            self._fail(
                f"worker {strangers[0]} has pushed, and the scheduler knew nothing of this life of it at the cut"
            )
            return True
        try:
            self._take_snapshot(cut)
        except (RuntimeError, MemoryError) as error:
            self._fail(str(error))
        if context.observer is not None:
            context.observer.snapshot(context.address, cut.checkpoint, self._watermarks)
        context.story.tell(context.now_ms, f"checkpoint {cut.checkpoint}: its cut is reached")
        return True

    def _take_snapshot(self, cut: m.CheckpointCut) -> None:
        """Of all rows, or of those that changed since the base, if I have noted which these are."""
        context = self.context
        store = context.store
        if cut.incremental or self._bases:
            self._mark = store.mark_changes()
        changed = None
        base = self._base_at(cut.url)
        # trap: a replacement has noted nothing, and a scheduler with an older state may name an older base
        if base is not None and base.checkpoint == cut.base:
            self._base, changed = base.checkpoint, (base.mark, self._mark)
        columns = [[column.nbytes for column in columns_of(t.dim, t.optimizer)] for t in context.tables]
        self._touched = store.touched_rows().tolist()
        self._snapshot = Snapshot(store, columns, changed)

    def _base_at(self, url: str) -> Base | None:
        base = self._bases.get(url)
        return base if base is not None and self.context.store.has_mark(base.mark) else None

    def _keep_as_base(self, cut: m.CheckpointCut) -> None:
        """A checkpoint is complete: the next one at its URL may have what changes since its cut."""
        if not self._mark:
            return
        store = self.context.store
        old = [self._bases.pop(cut.url)] if cut.url in self._bases else []
        self._bases[cut.url] = Base(cut.checkpoint, self._mark)
        self._mark = 0
        while len(self._bases) > m.BASES_MAX:
            old.append(self._bases.pop(next(iter(self._bases))))
        for base in old:
            store.drop_mark(base.mark)

    def _strangers(self, cut: m.CheckpointCut) -> list[int]:
        """Workers of which pushes are applied that do not name the checkpoint, by a life that was not asked.

        trap: all that the scheduler heard of it may have been lost. Other shards may have had more of its pushes.
        """
        return [
            worker
            for worker, (epoch, stamp) in self._lives.items()
            if epoch > max(cut.epochs.get(worker, 0), self.context.fenced.get(worker, 0)) and stamp < cut.checkpoint
        ]

    def _is_reached(self, cut: m.CheckpointCut) -> bool:
        context = self.context
        for worker, last in cut.pushes.items():
            known = context.workers.get(worker)
            newer = known is not None and known.address.epoch > cut.epochs[worker]
            if newer or context.fenced.get(worker, 0) >= cut.epochs[worker]:
                continue  # that life is over: what it has not sent does not come
            if context.watermarks.get(worker, 0) < last[context.shard]:
                return False
            if worker in cut.barriers and worker not in self._passed:
                return False
        return True

    # ------------------------------------------------------------------ views
    def check(self, view: m.CheckpointCut) -> None:
        """Raise ValueError for a cut that cannot be."""
        n = self.context.placement.n
        known = view.pushes.keys() == view.epochs.keys() and view.barriers.keys() <= view.pushes.keys()
        if not known or any(len(last) != n for last in view.pushes.values()):
            raise ValueError(f"CheckpointCut {view.checkpoint}: its workers do not fit, or not {n} shards")

    def on_asked(self, view: m.CheckpointAsked) -> None:
        self._heard = max(self._heard, view.checkpoint)

    def on_cut(self, view: m.CheckpointCut) -> None:
        """The cut of a checkpoint is known."""
        self._forget()
        self._heard = max(self._heard, view.checkpoint)
        if view.checkpoint > self.over:
            self._cut = view

    def on_over(self, view: m.CheckpointOver) -> None:
        """A checkpoint is complete, or given up."""
        self.over = max(self.over, view.checkpoint)
        self._heard = max(self._heard, view.checkpoint)
        if self._cut is not None and self._cut.checkpoint <= view.checkpoint:
            if view.is_complete and self._cut.checkpoint == view.checkpoint:
                self._keep_as_base(self._cut)
            self._forget()

    def _forget(self) -> None:
        self._close()
        if self._mark:
            # trap: what changed before the cut is in no checkpoint, and stays noted with what changed since
            self.context.store.drop_mark(self._mark)
        self._mark = self._base = 0
        self._cut = None
        self._passed.clear()
        self._parts, self._made, self._watermarks = [], {}, {}
        self._nbytes = self._rows = self._number = self._in_flight = 0
        self._index_bytes = self._index_crc32c = 0
        self._error = ""

    def _close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
        self._snapshot = None
        self.resume_ms = NEVER_MS

    def _fail(self, reason: str) -> None:
        self._error = reason
        self._close()
        self.context.status_due = True
        self.context.note("warning", f"checkpoint {self._cut.checkpoint if self._cut else 0}: {reason}")

    # ------------------------------------------------------------------ files
    def advance(self) -> None:
        """Copy out what may be, and have it written."""
        context, snapshot = self.context, self._snapshot
        if snapshot is None:
            return
        assert self._cut is not None
        config = context.config
        kept, limit = snapshot.kept_bytes, config.checkpoint_kept_bytes_max
        if kept > 2 * limit:
            self._fail(
                f"{kept:,} bytes of old rows wait to be written, {2 * limit:,} may (checkpoint_kept_bytes_max): the "
                "storage is slower than the training; write it less often, or to a faster one"
            )
            return
        pace = self._cut.bytes_per_s
        part_bytes = min(config.checkpoint_part_bytes, max(1, pace)) if pace else config.checkpoint_part_bytes
        while self._in_flight < config.checkpoint_parts_in_flight_max:
            shares = context.now_ms - context.worked_ms <= config.foreground_ms
            self.resume_ms = max(self._paced_ms, self._shared_ms if shares else 0.0)
            if context.now_ms < self.resume_ms and snapshot.kept_bytes <= limit:
                return
            table, rows, data = snapshot.take(part_bytes)
            if not rows:
                self._close()
                self._finish()
                return
            self._shared_ms = context.now_ms + 1000.0 * data.nbytes / config.checkpoint_bytes_per_s
            self._paced_ms = context.now_ms + (1000.0 * data.nbytes / pace if pace else 0.0)
            spec = context.tables[table]
            header = part_header(spec.name, rows, columns_of(spec.dim, spec.optimizer))
            self._number += 1
            name = part_name(self._number)
            self._made[name] = Part(name, table, rows, len(header) + data.nbytes, 0)
            self._write(name, (header, data), urgent=snapshot.kept_bytes > limit)

    def _write(self, name: str, buffers: m.Frames, urgent: bool) -> None:
        assert self._cut is not None
        context, cut = self.context, self._cut
        path = f"{checkpoint_folder(cut.checkpoint)}/{shard_folder(context.base + context.shard)}/{name}"
        self._in_flight += 1
        context.effects.append(WriteFile(cut.checkpoint, cut.url, path, buffers, urgent))

    def _finish(self) -> None:
        """All rows are copied out: when all parts are written, so is the index."""
        if self._in_flight or self._snapshot is not None or self._error:
            return
        context = self.context
        assert self._cut is not None
        shard = context.base + context.shard
        base = self._base
        index = ShardIndex(
            version_of(base), self._cut.checkpoint, shard, self._watermarks, self._parts, base, self._touched
        )
        self._write(INDEX, (encode(index),), urgent=True)

    def on_written(self, event: FileWritten) -> None:
        """A file is written, or cannot be."""
        if self._cut is None or event.checkpoint != self._cut.checkpoint or event.checkpoint > self.over:
            return
        self._in_flight -= 1
        name = event.name.rpartition("/")[2]
        part = self._made.pop(name, None)
        if event.error:
            if not self._error:
                self._fail(f"{event.name}: {event.error}")
        elif part is not None:
            part.nbytes, part.crc32c = event.nbytes, event.crc32c
            self._parts.append(part)
            self._nbytes += part.nbytes
            self._rows += part.rows
            self._finish()
        else:
            self._index_bytes, self._index_crc32c = event.nbytes, event.crc32c
            self.context.status_due = True

    # ------------------------------------------------------------------ the scheduler
    @property
    def heard(self) -> int:
        """The newest checkpoint that I, or a push that waits, know of."""
        return self._heard

    def saved(self) -> m.Saved | None:
        """What is written of the one that is under way; None before its cut is reached."""
        if self._cut is None or self._cut.checkpoint > self.over:
            return None
        return m.Saved(
            self._cut.checkpoint, self._rows, self._nbytes, self._index_bytes, self._index_crc32c, self._error[:1000],
            self._base,
        )  # fmt: skip

    @property
    def deadline_ms(self) -> float:
        """When the next part may be copied out; never while something else is waited for."""
        may = self._snapshot is not None and self._in_flight < self.context.config.checkpoint_parts_in_flight_max
        return self.resume_ms if may else NEVER_MS
