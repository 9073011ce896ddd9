"""Pushes at a shard: queued in each worker's order, matched at barriers, and applied once."""

from collections.abc import Mapping

import numpy as np

from ecrec._native import sum_sections
from ecrec.protocol import messages as m
from ecrec.protocol.barriers import Barriers, DisagreementError
from ecrec.protocol.events import BAD_CONTENT, HalfHandledError
from ecrec.protocol.messages import Address
from ecrec.protocol.missing_rows import MissingRows
from ecrec.protocol.queues import QueuedPush, SectionArrays, WorkerState, sections_of
from ecrec.protocol.saver import Saver
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.shard_workers import ShardWorkers
from ecrec.protocol.windows import Windows


class Pushes:
    """The part of a `ShardMachine` that takes pushes."""

    def __init__(
        self, context: ShardContext, workers: ShardWorkers, windows: Windows, lost: MissingRows, saver: Saver
    ) -> None:
        self.context = context
        self.workers = workers
        self.windows = windows
        self.lost = lost
        self.saver = saver
        self.barriers = Barriers()

    def on_push(self, source: Address, push: m.Push, frames: m.Frames) -> None:
        context = self.context
        worker = self.workers.known(source)
        if worker is None:
            return
        context.worked_ms = context.now_ms
        watermark = context.watermarks.get(source.id, 0)
        if push.number <= watermark:
            context.reply(source, m.PushAck(context.durable.get(source.id, 0)))
            return
        if refusal := self.barriers.refusal(source.id, push):
            worker.queue.clear()
            context.reply(source, m.PushRefused(push.number, refusal, nowhere=True))
            return
        if self.workers.is_behind(source, push):
            return
        last = worker.queue[-1].number if worker.queue else watermark
        # A worker never has more on the way; what it would lose here it sends again.
        if (
            push.number == last + 1
            and len(worker.queue) < context.config.pushes_in_flight_max
            and self._has_room(worker)
        ):
            worker.queue.append(QueuedPush(source.id, push.number, push, frames, source))

    def _has_room(self, worker: WorkerState) -> bool:
        """Whether one more push of the worker may wait.

        Its first one always may: a push that fits a frame is applied some time, and a barrier needs one of each worker.
        """
        if not worker.queue:
            return True
        context = self.context
        if worker.queue.nbytes >= context.config.push_queue_bytes_max:
            return False
        return sum(each.queue.nbytes for each in context.workers.values()) < context.config.push_queues_bytes_max

    def apply_queued(self) -> bool:
        """Apply what waits, in each worker's order, as far as its rows are here. True if anything was applied."""
        context = self.context
        waiting = [worker for worker in context.workers.values() if worker.queue]
        if not waiting or context.halted or any(p.is_joined_blind for p in context.peers.values()):
            return False
        done = False
        for worker in waiting:
            while worker.queue and context.unstable_bytes < context.config.unstable_bytes_max:
                if self.saver.holds(worker.queue[0]):
                    break
                batch = self._batch(worker.queue[0])
                if batch is None or any(map(self.saver.holds, batch)) or not self._apply(batch):
                    break
                done = True
        return done

    def _batch(self, head: QueuedPush) -> list[QueuedPush] | None:
        """The pushes that are applied together with this one; None while one of them is not here."""
        try:
            return self.barriers.batch(head, self.context.workers)
        except DisagreementError as error:
            self._refuse(error.pushes, error.reason, nowhere=True)
            return None

    def _refuse(self, pushes: list[QueuedPush], reason: str, nowhere: bool) -> None:
        """Take nothing of these pushes, nor of what their workers sent behind them, which a hole would be before."""
        context = self.context
        for p in pushes:
            context.workers[p.worker].queue.clear()
            context.counts.refused_pushes += 1
            context.reply(p.source, m.PushRefused(p.number, reason, nowhere))

    def _apply(self, batch: list[QueuedPush]) -> bool:
        """Apply pushes as one, or ask for the rows they wait for and return False."""
        context = self.context
        if self.lost.still_lacks(batch):
            return False
        try:
            for p in batch:
                self._check_cursor(p)
                self._check_rates(p.push)
            parts = [sections_of(p.push.sections, p.frames, values=True) for p in batch]
            if any([self.lost.lacks(p, part) for p, part in zip(batch, parts, strict=True)]):
                return False
            self._apply_sections(batch, parts)
        except BAD_CONTENT as error:
            self._refuse(batch, str(error), nowhere=False)
            return False
        for p in batch:
            context.workers[p.worker].queue.popleft()
            context.watermarks[p.worker] = context.open_watermarks[p.worker] = p.number
            context.open_pushes[p.worker] += 1
            context.counts.pushes += 1
            context.counts.pushed_bytes += p.nbytes
            if p.push.cursor:
                key = m.cursor_key(p.worker)
                context.watermarks[key] = context.open_watermarks[key] = p.push.cursor
        self.saver.applied(batch)
        if context.observer is not None:
            context.observer.applied(context.address, context.window_number, batch)
        return True

    def _check_cursor(self, p: QueuedPush) -> None:
        """Raise ValueError for a cursor that cannot follow the one of the push before."""
        before = self.context.watermarks.get(m.cursor_key(p.worker), 0)
        if p.push.cursor and not before < p.push.cursor <= m.NUMBER_MAX:
            raise ValueError(
                f"the cursor goes from lease {before >> m.CURSOR_BITS}, {before % (1 << m.CURSOR_BITS)} examples done, "
                f"to lease {p.push.cursor >> m.CURSOR_BITS}, {p.push.cursor % (1 << m.CURSOR_BITS)} done; it only rises"
            )

    def _check_rates(self, push: m.Push) -> None:
        """Raise ValueError for learning rates at which no step can be taken."""
        context = self.context
        if push.rates and push.assign:
            raise ValueError("learning rates of a push that sets weights")
        for table, rate in push.rates.items():
            if table >= len(context.tables):
                raise ValueError(f"a learning rate of table {table}: there are {len(context.tables)}")
            if error := context.tables[table].optimizer.rate_error(rate):
                raise ValueError(f"table {context.tables[table].name!r}: {error}")

    def _apply_sections(self, batch: list[QueuedPush], parts: list[list[SectionArrays]]) -> None:
        """All sections or none: the first checks itself before it is applied, the others are checked before that."""
        context = self.context
        assign, records = batch[0].push.assign, batch[0].push.records
        sections = [s for part in parts for s in part]
        if records and (not assign or len(sections) > 1):
            raise ValueError(f"whole records in {len(sections)} sections, assign is {assign}; expected one, to assign")
        if len(parts) > 1 and not assign:
            parts_in_order = [(s.tables, s.counts, s.rows, s.values) for s in sections]
            sections = [SectionArrays(*sum_sections(parts_in_order, np.array(context.dims, np.int32), context.store))]
        buffers = context.buffers if context.coded() else None
        if buffers is not None:
            self._make_room(sections)
        for s in sections[1:]:
            context.store.check(s.tables, s.counts, s.rows, s.values)
        rates, stepped = batch[0].push.rates, False
        try:
            for s in sections:
                if records:
                    context.store.assign_records(s.tables, s.counts, s.rows, s.values, buffers)
                elif assign:
                    context.store.assign(s.tables, s.counts, s.rows, s.values, buffers)
                else:
                    context.store.apply(s.tables, s.counts, s.rows, s.values, buffers, self._rates_of(s, rates))
                stepped = True
        except BAD_CONTENT as error:
            if not stepped:
                raise
            raise HalfHandledError(f"{context.address} applied a part of a push: {error}") from error

    def _rates_of(self, section: SectionArrays, rates: Mapping[int, float]) -> list[float]:
        """A learning rate for each table of a section; none where all are the tables' own."""
        if not rates:
            return []
        return [rates.get(table, self.context.tables[table].optimizer.hyper[0]) for table in section.tables.tolist()]

    def _make_room(self, sections: list[SectionArrays]) -> None:
        """Close the open window if deltas of these rows could make a frame of it too long.

        Raises ValueError if they could not even be sent alone. A peer gets at most one delta of each row, and a record
        is at least twice as long as its key.
        """
        context = self.context
        sizes, limit = context.record_sizes(), context.config.frame_bytes_max
        size = sum(int(np.dot(sizes[s.tables], s.counts)) for s in sections)
        if size > limit:
            raise ValueError(
                f"its deltas would have up to {size} bytes for one peer (weights and optimizer state of each row), "
                f"and {limit} can be sent: push fewer rows at a time"
            )
        if context.buffers.nbytes() + size > limit:
            self.windows.close()
