"""Pulls at a shard: they wait until the push that they must see is applied and their rows are here."""

import numpy as np

from ecrec.protocol import messages as m
from ecrec.protocol.events import BAD_CONTENT
from ecrec.protocol.messages import WORKER, Address
from ecrec.protocol.missing_rows import MissingRows
from ecrec.protocol.queues import QueuedPull, sections_of
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.shard_workers import ShardWorkers

PULLS_WAITING_MAX = 1024
"""Pulls of one worker that wait for a push or for lost rows; a session has a few."""
PULLS_WAITING_ALL_MAX = 1 << 16
"""The same of all workers and tools, of which anybody can invent some."""


class Pulls:
    """The part of a `ShardMachine` that answers pulls."""

    def __init__(self, context: ShardContext, workers: ShardWorkers, lost: MissingRows) -> None:
        self.context = context
        self.workers = workers
        self.lost = lost

    def on_pull(self, source: Address, pull: m.Pull, frames: m.Frames) -> None:
        context = self.context
        if source.role == WORKER and self.workers.known(source) is None:
            return
        context.worked_ms = context.now_ms
        try:
            sections = sections_of(pull.sections, frames, values=False)
        except BAD_CONTENT as error:
            context.reply(source, m.PullRefused(pull.request, str(error)))
            return
        context.checked()
        if self.workers.is_behind(source, pull):
            return
        waiting = [q.pull.request for q in context.pulls if q.source == source]
        size, limit = sum(q.nbytes for q in context.pulls), context.config.pulls_waiting_bytes_max
        if len(waiting) >= PULLS_WAITING_MAX:
            context.reply(source, m.PullRefused(pull.request, f"{len(waiting)} pulls of this worker wait already"))
        elif len(context.pulls) >= PULLS_WAITING_ALL_MAX:
            context.reply(source, m.PullRefused(pull.request, f"{len(context.pulls)} pulls wait already"))
        elif pull.request in waiting:
            pass
        elif size and size + sum(s.rows.nbytes for s in sections) > limit:
            reason = f"{len(context.pulls)} pulls of {size} bytes of row ids wait already, {limit} bytes can: ask later"
            context.reply(source, m.PullRefused(pull.request, reason))
        else:
            context.pulls.append(QueuedPull(source, pull, sections))
            context.pulls_due = True

    def answer_due(self) -> None:
        """Answer the pulls whose push is applied and whose rows are here."""
        context = self.context
        context.pulls_due = False
        waiting: list[QueuedPull] = []
        for queued in context.pulls:
            after = queued.pull.after
            due = after <= context.watermarks.get(queued.source.id, 0) or queued.source.role != WORKER
            if not due or not self._answer(queued):
                waiting.append(queued)
        context.pulls = waiting

    def _answer(self, queued: QueuedPull) -> bool:
        context = self.context
        pull, store = queued.pull, context.store
        if self.lost.still_lacks([queued]):
            return False
        try:
            sizes = [store.gather_bytes(s.tables, s.counts, pull.records) for s in queued.sections]
            if sum(sizes) > context.config.answer_bytes_max:
                limit = context.config.answer_bytes_max
                raise ValueError(f"the answer would have {sum(sizes)} bytes, {limit} can be sent: ask for fewer rows")
            if self.lost.lacks(queued, queued.sections):
                return False
            answers = []
            for s, size in zip(queued.sections, sizes, strict=True):
                out = np.empty(size, np.uint8)
                store.gather(s.tables, s.counts, s.rows, out, pull.records)
                answers.append(out)
        except BAD_CONTENT as error:
            context.reply(queued.source, m.PullRefused(pull.request, str(error)))
            return True
        context.counts.pulls += 1
        context.counts.pulled_bytes += sum(sizes)
        context.reply(queued.source, m.Rows(pull.request), answers)
        return True
