"""Readers that follow what changes at a shard: which rows they get, and when.

A part of the `ShardMachine` (docs/protocol.md, "Changes for readers"). Nothing is copied aside for a reader, so that a
push costs no more than noting which rows it changes: a row is read as it is when it is sent, and is sent again with the
next changes if it has changed meanwhile.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ecrec._native import Changes
from ecrec.protocol import messages as m
from ecrec.protocol.messages import UP, Address
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX
from ecrec.protocol.shard_context import ShardContext


@dataclass(slots=True)
class _Reader:
    """What one reader has, and what it is being sent."""

    since: int
    """Mark up to which it has everything; 0: it has nothing."""
    until: int
    changes: Changes | None
    """Between the two; None: all touched rows are sent."""


@dataclass(slots=True)
class _Answer:
    """Rows that were read, and are not all durable yet."""

    to: Address
    message: m.Changed
    frames: tuple[Any, Any]
    watermarks: dict[int, int]


NO_ROWS = np.zeros(0, np.int64), np.zeros(0, np.float32)


class Following:
    """The part of a `ShardMachine` that tells readers what changed."""

    def __init__(self, context: ShardContext) -> None:
        self.context = context
        self._readers: dict[int, _Reader] = {}
        """The last ones are those that were heard last."""
        self._waiting: dict[int, _Answer] = {}
        """Reader -> its answer, until that is durable."""

    def on_ask(self, source: Address, message: m.AskChanges, frames: m.Frames) -> None:
        context = self.context
        context.checked()
        table, slot, _ = message.place
        if context.state == UP and (table > context.store.tables or slot > SHARDS_IN_GROUP_MAX):
            context.reply(source, m.Changed(message.request, 0, reason="there is no such place"), NO_ROWS)
            return
        if context.state != UP:
            reason = f"shard {context.base + context.shard} is {context.state}"
            context.reply(source, m.Changed(message.request, 0, reason=reason), NO_ROWS)
            return
        waiting = self._waiting.get(message.reader)
        if waiting is not None and (waiting.to, waiting.message.request) == (source, message.request):
            return  # it asks again for what is not durable yet
        reason = ""
        if not message.until:
            reason = self._begin(message)
        reader = self._readers.pop(message.reader, None)
        goes_on = message.until and message.epoch == context.epoch
        if reader is None or (message.until and not (goes_on and message.until == reader.until)):
            if reader is not None:
                self._readers[message.reader] = reader
            context.reply(source, m.Changed(message.request, 0, reason="this reader is not known any more"), NO_ROWS)
            return
        self._readers[message.reader] = reader
        self._read(source, message, reader, reason)

    def _begin(self, message: m.AskChanges) -> str:
        """Find out what a reader lacks; returns why it gets all rows, empty if it does not."""
        context, store = self.context, self.context.store
        old = self._readers.pop(message.reader, None)
        marks = set() if old is None else {old.since, old.until} - {0}
        since, reason = 0, ""
        if not message.since:
            reason = "the reader has nothing yet"
        elif message.epoch != context.epoch:
            # trap: a mark of another incarnation may have the number of one of mine
            reason = f"shard {context.base + context.shard} was replaced"
        elif message.since in marks and store.has_mark(message.since):
            since = message.since
        else:
            reason = "what changed since then was not kept"
        until = store.mark_changes()
        changes = store.changes_between(since, until) if since else None
        for mark in marks - {since}:
            store.drop_mark(mark)
        self._readers[message.reader] = _Reader(since, until, changes)
        while len(self._readers) > context.config.changes_readers_max:
            self._forget(next(iter(self._readers)))
        return reason

    def _forget(self, reader: int) -> None:
        gone = self._readers.pop(reader)
        self._waiting.pop(reader, None)
        for mark in {gone.since, gone.until} - {0}:
            self.context.store.drop_mark(mark)

    def _read(self, source: Address, message: m.AskChanges, reader: _Reader, reason: str) -> None:
        """Read the next rows. trap: what is read may still be undone with this shard: it is sent when it is durable."""
        context, store = self.context, self.context.store
        bytes_max = context.config.changes_chunk_bytes
        table, rows, place, is_last = store.next_rows(reader.changes, *message.place, bytes_max)
        tables, counts = np.array([table], np.int32), np.array([len(rows)], np.int64)
        weights = np.zeros(0, np.uint8)
        if len(rows):
            weights = np.empty(store.gather_bytes(tables, counts), np.uint8)
            store.gather(tables, counts, rows, weights)
        answer = m.Changed(
            message.request, reader.until, table, place, is_last, is_all=reader.changes is None, reason=reason
        )
        self._waiting[message.reader] = _Answer(
            source, answer, (rows, weights.view(np.float32)), dict(context.watermarks)
        )  # fmt: skip
        self.answer_due()

    def answer_due(self) -> None:
        """Send what is durable by now."""
        durable = self.context.durable
        for reader, answer in list(self._waiting.items()):
            if all(durable.get(key, 0) >= mark for key, mark in answer.watermarks.items()):
                del self._waiting[reader]
                self.context.reply(answer.to, answer.message, answer.frames)
