"""Who may speak to a shard as a worker: which life of it counts, and what it has seen that this shard has not."""

from ecrec.protocol import messages as m
from ecrec.protocol.messages import WORKER, Address
from ecrec.protocol.queues import WorkerState
from ecrec.protocol.shard_context import ShardContext


class ShardWorkers:
    """The part of a `ShardMachine` that knows its workers."""

    def __init__(self, context: ShardContext) -> None:
        self.context = context

    def on_hello(self, source: Address, message: m.Hello, frames: m.Frames) -> None:
        context = self.context
        if self.known(source) is not None:
            watermark = context.watermarks.get(source.id, 0)
            context.reply(source, m.Welcome(watermark, context.durable.get(source.id, 0)))

    def known(self, source: Address) -> WorkerState | None:
        """The worker's state; None for what is none and (with a refusal) for a process that a newer one replaced."""
        context = self.context
        if source.role != WORKER:
            return None
        context.checked()
        worker = context.workers.get(source.id)
        if source.epoch <= context.fenced.get(source.id, 0):
            context.reply(source, m.Fenced(f"epoch {source.epoch} of worker {source.id} is over"))
            return None
        if worker is None:
            if not 0 <= source.id < m.WORKERS_MAX:
                context.reply(source, m.Fenced(f"there is no worker {source.id}: they are 0 to {m.WORKERS_MAX - 1}"))
                return None
            worker = context.workers[source.id] = WorkerState(source)
        elif source.epoch < worker.address.epoch:
            context.reply(source, m.Fenced(f"worker {source.id} has been started again (epoch {worker.address.epoch})"))
            return None
        elif source.epoch > worker.address.epoch:
            worker.address = source
            worker.queue.clear()
        return worker

    def is_behind(self, source: Address, request: m.Push | m.Pull) -> bool:
        """Whether a view is missing here that the sender of a push or pull has; then it is dropped, and sent again.

        A shard that was declared dead and does not know it is not waited for with a new table. trap: it must neither
        refuse what it cannot know, nor call a push durable of which it keeps the only copy: as long as it knows of no
        table, that a coded one may have come does not show.
        """
        context = self.context
        tables = [table for section in request.sections for table in section.tables]
        newest = max(tables, default=-1)
        known = request.tables if isinstance(request, m.Push) else 0
        # Where the worker knows of no table either, there is nothing to keep but its number.
        if newest < context.store.tables and (context.store.tables or not known or context.coded()):
            return False
        what = f"names table {newest}" if tables else f"is of one that knows {known} tables"
        context.note(
            "warning",
            f"dropped a {type(request).__name__} of {source}: it {what}, and the views up to {context.view} tell of "
            f"{context.store.tables} tables",
        )
        return True

    def on_flush(self, source: Address, message: m.Flush, frames: m.Frames) -> None:
        worker = self.known(source)
        if worker is not None:
            worker.flush = message.number
