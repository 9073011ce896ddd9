"""Splits of the data that a worker leases: which it holds, how far it is in them, and how far that is durable.

A part of the `ClientMachine`.
"""

from collections import deque
from typing import NamedTuple

from ecrec.errors import RefusedError
from ecrec.protocol.events import Effect, Send
from ecrec.protocol.leases import LEASES_AHEAD_MAX, TOLD_MAX
from ecrec.protocol.messages import CURSOR_BITS, SCHEDULER_ADDRESS, Dataset, HeldLease, Leased, LeaseSplit, NoSplit

DONE_TOLD_MAX = TOLD_MAX // 2
"""Leases that are done and may be in no copy of the state: what a worker finishes in half a second, many times over."""


class SplitLease(NamedTuple):
    """Examples first <= i < last of a data set, leased to this worker."""

    lease: int
    first: int
    last: int


class ClientLeases:
    """The part of a `ClientMachine` that leases splits."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.leases: deque[SplitLease] = deque()
        """Those whose examples are not all pushed, in order."""
        self.cursor = 0
        """How far they are done, and durable on all shards."""
        self.finished: set[Dataset] = set()
        """Data sets whose examples are all trained on."""
        self.refusal = ""
        """Why the scheduler refused the split that was last asked for; empty if it did not."""
        self.answers = 0
        """Answers of the scheduler; those that bring no split count, too."""
        self.held: deque[HeldLease] = deque()
        """Those whose examples are not all durable, in order."""
        self._granted: deque[tuple[int, HeldLease]] = deque(maxlen=DONE_TOLD_MAX)
        """(serial of a state that knows of it, lease) of all that may be in no copy of the scheduler's state, in
        order."""
        self.answered = 0
        """Number of the newest request that was answered with a lease."""
        self._newest = 0
        self._done = 0
        """Examples of the first lease that are pushed."""
        self._asking: tuple[int, Dataset] | None = None
        self._asked_ms = 0.0
        self._cursors: deque[tuple[int, int]] = deque()
        """(number of pushes of this life, cursor after them), as long as they are not durable."""

    # ------------------------------------------------------------------ what a session may ask
    @property
    def examples_left(self) -> int | None:
        """Of the first lease that is not pushed to its end; None without one."""
        if not self.leases:
            return None
        return self.leases[0].last - self.leases[0].first - self._done

    @property
    def asking(self) -> bool:
        """A split is asked for; the scheduler has neither given nor refused one, nor said that all are trained on."""
        return self._asking is not None

    @property
    def asked_dataset(self) -> Dataset | None:
        """Whose split is asked for; None while none is."""
        return self._asking[1] if self._asking is not None else None

    @property
    def dataset(self) -> Dataset | None:
        """Whose split the first lease is that is not pushed to its end; None without one."""
        return next((held.dataset for held in self.held if self.leases and held.lease == self.leases[0].lease), None)

    def told(self) -> list[HeldLease]:
        """What a scheduler is told whose state was lost (`WorkerCensus`)."""
        return [*(lease for _, lease in self._granted if lease.is_done(self.cursor)), *self.held]

    @property
    def waits(self) -> bool:
        """Examples were pushed, and are not durable everywhere."""
        return bool(self._cursors)

    # ------------------------------------------------------------------ a split is asked for
    def check_ask(self, pushes_in_flight_max: int) -> None:
        """Raise RuntimeError while an earlier split is asked for, RefusedError while as many are held as one worker
        gets."""
        if self._asking is not None:
            raise RuntimeError(f"worker {self.worker} already waits for a split of {self._asking[1].name!r}")
        held_max = pushes_in_flight_max + LEASES_AHEAD_MAX
        if len(self.held) >= held_max:
            # trap: refused by the scheduler, a late copy of the request could be granted, and nobody would know
            raise RefusedError(f"worker {self.worker} holds {held_max} splits: train on them first")

    def ask(self, asked: LeaseSplit) -> list[Effect]:
        self._asking, self._asked_ms, self.refusal = (asked.request, asked.dataset), 0.0, ""
        return [Send(SCHEDULER_ADDRESS, asked)]

    def on_tick(self, now_ms: float, again_ms: float) -> list[Effect]:
        """Ask again if there was no answer for ``again_ms``."""
        if self._asking is None or now_ms - self._asked_ms < again_ms:
            return []
        self._asked_ms = now_ms
        return [Send(SCHEDULER_ADDRESS, LeaseSplit(*self._asking, self.cursor))]

    def check(self, message: Leased) -> None:
        """Raise ValueError for a lease that cannot be the next one."""
        asked = self._asking is not None and message.request == self._asking[0]
        if asked and not (self._newest < message.lease and 0 <= message.first < message.last):
            raise ValueError(
                f"lease {message.lease} of examples {message.first} to {message.last}, after lease {self._newest}"
            )

    def on_answer(self, message: Leased) -> None:
        if self._asking is None or message.request != self._asking[0]:
            return
        self.answers += 1
        self.answered, dataset = self._asking
        self._asking = None
        self._newest = message.lease
        held = HeldLease(dataset, message.lease, message.first, message.last, message.request)
        self.leases.append(SplitLease(message.lease, message.first, message.last))
        self.held.append(held)
        self._granted.append((message.origin.serial, held))
        while self._granted and self._granted[0][0] <= message.copied:
            self._granted.popleft()

    def on_adopted(self, serial: int) -> None:
        """All that was told is in the state of this serial, the first one of a new generation that I hear of. trap:
        copies of earlier ones of that generation have serials like those of the one before, and know nothing of it."""
        self._granted = deque(((serial, lease) for _, lease in self._granted), maxlen=DONE_TOLD_MAX)

    def on_none(self, message: NoSplit) -> None:
        if self._asking is None or message.request != self._asking[0]:
            return
        self.answers += 1
        if message.finished:
            self.finished.add(self._asking[1])
            self._asking = None

    def on_refused(self, request: int, reason: str) -> None:
        if self._asking is not None and request == self._asking[0]:
            self._asking, self.refusal = None, reason
            self.answers += 1

    # ------------------------------------------------------------------ pushes
    def advance(self, examples: int, pushes: int) -> int:
        """Take the examples of this life's push number ``pushes`` off the first lease.

        Returns the cursor after them, 0 where they are of no lease. Raises ValueError if it has not so many left.
        """
        if not examples or not self.leases:
            return 0
        lease = self.leases[0]
        size, left = lease.last - lease.first, self.examples_left or 0
        if not 0 < examples <= left:
            raise ValueError(
                f"a push of {examples} examples, but {left} are left of the split {lease.first} to {lease.last}: a "
                "batch must not reach into the next split"
            )
        self._done = done = self._done + examples
        if done == size:
            self.leases.popleft()
            self._done = 0
        cursor = (lease.lease << CURSOR_BITS) + done
        self._cursors.append((pushes, cursor))
        return cursor

    def durable(self, pushes: int) -> None:
        """So many pushes of this life are durable on all shards: what is behind their cursor is done."""
        while self._cursors and self._cursors[0][0] <= pushes:
            self.cursor = self._cursors.popleft()[1]
        while self.held and self.held[0].is_done(self.cursor):
            self.held.popleft()
