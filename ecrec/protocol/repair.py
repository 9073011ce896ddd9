"""Repair of the data rows of a replacement: what it lacks, whom it asks, and how long it waits (docs/protocol.md).

What the parity holders and the other data members do for it stands in `captures.py`.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.arrays import NO_KEYS
from ecrec.protocol.captures import TIMEOUT_FACTOR_MAX, Captures, check_stripes, repair_bytes_max
from ecrec.protocol.messages import RECOVERING, Stripes
from ecrec.protocol.peer import Peer
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.share import Share
from ecrec.protocol.wanted import RowsOfClass, Wanted

KEY_BITS = 48
OBSERVED_ROWS_MAX = 1 << 20
"""An observer of a shard that gives up rows is told of so many of each class at most. Counted are all."""


@dataclass(slots=True)
class Asked:
    """A repair that I wait for."""

    stripes: Stripes
    keys: Any
    background: bool
    view: int
    requests: dict[int, int] = field(default_factory=dict)
    """Number of the request -> parity holder that was asked; the last one is the newest."""
    asked_ms: float = 0.0
    """When the newest request was made."""
    heard_ms: float = 0.0
    """When one of them last said that it works on it; at first, when the newest was asked."""
    wanted_ms: float = 0.0
    """When they were last told that I wait."""
    tries: int = 0
    again_ms: float = 0.0
    """Without a request: when the next one is made."""


class Repairs:
    """The part of a `ShardMachine` that knows which data rows it lacks, and asks for them."""

    def __init__(self, context: ShardContext, captures: Captures) -> None:
        self.context = context
        self.captures = captures
        self.incomplete: set[int] = set()
        """My data classes with rows to repair."""
        self.asked: dict[int, Asked] = {}
        """By the number of the first request for it."""
        self._first_request: dict[int, int] = {}
        """Number of a request -> that of the first one for the same."""
        self.reinitialised: dict[int, dict[int, int]] = {}
        """View -> table -> rows that I lacked then and that became initial records."""
        self._answer_ms = 0.0
        """How long holders take to say the first word."""
        self._forgotten: Counter[int] = Counter()
        """Class -> how often what is asked of it was forgotten."""
        self.share = Share()
        """Of the sweep."""
        self._cursor: dict[int, int] = {}
        """Class of mine -> all rows before this position are here."""

    def begin(self, reinitialised: set[int]) -> None:
        """I am a replacement: everything is lost, and to be repaired but for the classes that nobody can."""
        context = self.context
        data = set(context.placement.data_classes(context.shard))
        for class_id in data & reinitialised:
            context.store.mark_recovered(class_id, 0, context.store.class_size(class_id))
        self.incomplete = data - reinitialised

    def reinitialise(self, lost: set[int]) -> None:
        """I recover, and nobody can give me my rows of these classes that I still lack: they begin anew, counted."""
        context = self.context
        counts: dict[int, int] = {}
        for class_id in sorted(lost & self.incomplete):
            if context.observer is not None:
                keys = context.store.missing_keys(class_id, 0, OBSERVED_ROWS_MAX)
                context.observer.reinitialised(context.address, context.view, keys)
            tables, rows = context.store.missing_counts(class_id)
            for table, count in zip(tables.tolist(), rows.tolist(), strict=True):
                counts[table] = counts.get(table, 0) + count
            context.store.mark_recovered(class_id, 0, context.store.class_size(class_id))
        self.incomplete -= lost
        if counts:
            self.reinitialised[context.view] = counts

    def complete(self) -> bool:
        return not self.incomplete

    def done(self) -> float:
        """The part of my rows that the sweep has passed, from 0 to 1: for people."""
        context = self.context
        sizes = {c: context.store.class_size(c) for c in context.placement.data_classes(context.shard)}
        left = sum(sizes[c] - self._cursor.get(c, 0) for c in self.incomplete)
        return 1.0 - left / max(1, sum(sizes.values()))

    def lacks(self, wanted: Wanted) -> bool:
        """Whether rows of it are not here; what of them is not asked for yet is now, as far as there is room."""
        if wanted.is_here(self.context.store):
            return False
        self.ask(wanted)
        return True

    def ask(self, wanted: Wanted) -> None:
        """Ask for rows that somebody waits for, except those already asked for by name."""
        for part in wanted.parts:
            # trap: between DOWN and SETTLE the parities of a stripe can differ
            if self.context.is_settled(part.class_id) and not self._ask_class(part):
                return  # the rest is asked for when one of these is answered

    def _ask_class(self, part: RowsOfClass) -> bool:
        """The same of one class; False if there is no room."""
        context = self.context
        if part.asking != self._forgotten[part.class_id]:
            part.asking, part.asked = self._forgotten[part.class_id], part.here
        while part.asked < len(part.keys):
            if sum(not a.background for a in self.asked.values()) >= context.config.repairs_wanted_max:
                return False
            keys = context.store.missing_of(part.keys[part.asked :], context.config.repair_rows_max)
            if not keys.size:
                part.asked = len(part.keys)
                break
            keys = self._first_of(keys)
            new = self._not_asked(part.class_id, keys)
            if new.size and not self._send(Asked(Stripes(part.class_id, 0, 0), new, False, context.view)):
                break  # there is no holder, and none before the next view
            part.asked = int(np.searchsorted(part.keys, keys[-1], "right"))
        return True

    def _first_of(self, keys: Any) -> Any:
        """As many of the first of them as one repair may have bytes; at least one row."""
        sizes = self.context.record_sizes()[(keys >> np.uint64(KEY_BITS)).astype(np.int64)]
        fits = int(np.searchsorted(np.cumsum(sizes), repair_bytes_max(self.context.config), "right"))
        return keys[: max(fits, 1)]

    def _not_asked(self, class_id: int, keys: Any) -> Any:
        """Those of a class's keys that are not asked for by name. All are ascending."""
        for asked in self.asked.values():
            if asked.background or asked.stripes.class_id != class_id or not keys.size:
                continue
            if asked.keys[0] <= keys[-1] and keys[0] <= asked.keys[-1]:
                at = np.searchsorted(asked.keys, keys).clip(max=len(asked.keys) - 1)
                keys = keys[asked.keys[at] != keys]
        return keys

    def sweep(self) -> None:
        """Ask for the next ranges of each class, several where there is room for more than one of each."""
        context = self.context
        if context.state != RECOVERING or not self.incomplete:
            return
        shares_time = context.shares_time()
        if self.share.waits(shares_time, context.now_ms):
            return
        busy = Counter(a.stripes.class_id for a in self.asked.values() if a.background)
        in_flight_max = context.config.repairs_in_flight_max
        if shares_time:
            in_flight_max = min(in_flight_max, context.config.foreground_repairs_max)
        of_class_max = max(1, in_flight_max // len(self.incomplete))
        for class_id in sorted(self.incomplete):
            if not context.is_settled(class_id):
                continue
            for parts in range(of_class_max - busy[class_id], 0, -1):
                if busy.total() >= in_flight_max:
                    return
                stripes = self._next_range(class_id, parts)
                if stripes is None or not self._send(Asked(stripes, NO_KEYS, True, context.view)):
                    break
                busy[class_id] += 1

    def _next_range(self, class_id: int, parts: int) -> Stripes | None:
        """The first of so many parts of what I miss of a class and is in no range that is asked for; None: nothing."""
        context = self.context
        first, last = self._next_missing(class_id), context.store.class_size(class_id)
        if first < 0:
            self.incomplete.discard(class_id)
            return None
        ranges = [a.stripes for a in self.asked.values() if a.background and a.stripes.class_id == class_id]
        for stripes in sorted(ranges, key=lambda stripes: stripes.first):
            if first < stripes.first:
                last = stripes.first
                break
            if first < stripes.last:
                first = context.store.next_missing(class_id, stripes.last)
            if first < 0:
                return None
        if last - first > context.config.repair_rows_max:  # else one repair may have all of it
            last = first + -(-(last - first) // parts)
        return Stripes(class_id, first, last)

    def _next_missing(self, class_id: int) -> int:
        """Position of my first row of a class that is not here; -1 if there is none."""
        first = self.context.store.next_missing(class_id, self._cursor.get(class_id, 0))
        self._cursor[class_id] = first if first >= 0 else self.context.store.class_size(class_id)
        return first

    def _send(self, asked: Asked) -> bool:
        """Ask the next parity holder that has not been asked; False if there is none."""
        context = self.context
        holders = [p for p in self.captures.holders(asked.stripes.class_id) if p.shard not in asked.requests.values()]
        if not holders:
            return False
        holder = holders[asked.tries % len(holders)]
        request = self.captures.new_request()
        first = self._first_request[next(iter(asked.requests))] if asked.requests else request
        self.asked[first] = asked
        self._first_request[request] = first
        asked.requests[request] = holder.shard
        asked.asked_ms = asked.heard_ms = asked.wanted_ms = context.now_ms
        context.send(holder, m.Repair(asked.view, request, asked.stripes), (asked.keys,))
        return True

    def on_repaired(self, peer: Peer, message: m.Repaired, frames: m.Frames) -> None:
        store, stripes = self.context.store, message.stripes
        asked_for, keys, records = arrays.keys(frames[0]), arrays.keys(frames[1]), arrays.records(frames[2])
        check_stripes(self.context, stripes, asked_for, as_data=True)
        # The answer of one that was too slow counts too: a lost row's value does not change within a view.
        asked = self.asked.get(self._first_request.get(message.request, 0))
        if asked is None:
            return
        mine = asked.stripes
        if (stripes.class_id, stripes.first, bool(stripes.last)) != (mine.class_id, mine.first, bool(mine.last)):
            raise ValueError(f"asked for {mine}, got {stripes}")
        store.restore(keys, records)  # all or nothing: it checks before it restores
        self.context.checked()
        self.context.pulls_due = True
        self._heard(asked)
        self._end(asked)
        if asked.background:
            self.share.ended(self.context.now_ms - asked.asked_ms, self.context.config, self.context.now_ms)
        if stripes.last:
            store.mark_recovered(stripes.class_id, stripes.first, stripes.last)
        else:
            store.mark_recovered_keys(asked.keys)
        if self._next_missing(stripes.class_id) < 0:
            self.incomplete.discard(stripes.class_id)

    def _heard(self, asked: Asked) -> None:
        """A first word came: the next silence is measured by how long it took."""
        if asked.heard_ms == asked.asked_ms:
            took_ms = self.context.now_ms - asked.asked_ms
            self._answer_ms = max(took_ms, 0.8 * self._answer_ms + 0.2 * took_ms)
        asked.heard_ms = self.context.now_ms

    def _end(self, asked: Asked) -> None:
        """Wait for it no more."""
        for request in asked.requests:
            self.asked.pop(self._first_request.pop(request), None)

    def on_working(self, peer: Peer, message: m.RepairWorking, frames: m.Frames) -> None:
        """Whom I asked works on it, or cannot give it: then it is asked for again after a pause."""
        self.context.checked()
        self.captures.knows(message.request, peer)
        asked = self.asked.get(self._first_request.get(message.request, 0))
        if asked is not None and asked.requests.get(message.request) == peer.shard:
            self._heard(asked)
            if message.gone:
                self._refused(asked, message.request)
        elif message.gone:
            self.captures.lacks_one(message.request, peer)

    def _refused(self, asked: Asked, request: int) -> None:
        first = self._first_request[request]
        if len(asked.requests) > 1:
            if request != first:
                del asked.requests[request], self._first_request[request]
            return
        self._end(asked)
        asked.requests.clear()
        asked.tries += 1
        # Not all in step: two that put each other off would do so again.
        pause_ms = self.context.config.repair_timeout_ms * (1 + self.context.shard / 16)
        asked.again_ms = self.context.now_ms + pause_ms
        self.asked[self.captures.new_request()] = asked

    # ------------------------------------------------------------------ requests come to an end
    def forget(self, classes: set[int]) -> None:
        """trap: a repair does not outlive a view that concerns its class; the replacement asks again."""
        self._forgotten.update(classes)
        self.captures.forget(classes)
        for first, asked in list(self.asked.items()):
            if asked.stripes.class_id in classes:
                self.asked.pop(first, None)
                self._end(asked)

    def on_tick(self) -> None:
        """Keep alive what I wait for, and ask another holder where one is silent."""
        self.captures.forget_words({request for asked in self.asked.values() for request in asked.requests})
        for first, asked in list(self.asked.items()):
            self._look_after(first, asked, self.context.config.repair_timeout_ms)
        self.captures.on_tick()

    def _look_after(self, first: int, asked: Asked, timeout_ms: float) -> None:
        now_ms = self.context.now_ms
        if not asked.requests:
            if now_ms >= asked.again_ms:
                del self.asked[first]
                if not self._send(asked):
                    asked.again_ms = now_ms + timeout_ms
                    self.asked[first] = asked
            return
        patience_ms = max(timeout_ms, 2 * self._answer_ms) * min(1 << asked.tries, TIMEOUT_FACTOR_MAX)
        if now_ms - asked.heard_ms > patience_ms:
            # Never the same one again: it has the request, or will have it, because streams lose nothing.
            asked.tries += 1
            if not self._send(asked):
                asked.heard_ms = now_ms
        if now_ms - asked.wanted_ms >= timeout_ms / 2:
            asked.wanted_ms = now_ms
            for request, holder in asked.requests.items():
                self.captures.want(holder, asked.view, request, asked.stripes.class_id)
