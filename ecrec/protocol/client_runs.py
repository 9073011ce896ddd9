"""The run in which a worker pushes in barriers together with others.

A part of the `ClientMachine`.
"""

from collections import deque

from ecrec.protocol.events import Effect, Send
from ecrec.protocol.messages import SCHEDULER_ADDRESS, JoinRun, LeaveRun, RunJoined, RunOver


class ClientRuns:
    """The part of a `ClientMachine` that joins runs and leaves them."""

    def __init__(self) -> None:
        self.run = 0
        """The run in which pushes with a barrier are made; 0: none yet."""
        self.size = 0
        """Workers of it."""
        self.missing: list[int] = []
        """Workers that have not asked for the run that this one waits for: the first few."""
        self.refusal = ""
        """Why the scheduler refused the run that was last asked for; empty if it did not."""
        self.done = 0
        """Pushes in the run that are durable on all shards,"""
        self._pushes = 0
        """of those that were made."""
        self._over: tuple[int, str] | None = None
        """How many of them can be complete at all, and why no more."""
        self._joining: tuple[int, int] | None = None
        """Request, size."""
        self._asked_ms = 0.0
        self._barriers: deque[tuple[int, int]] = deque()
        """(number of pushes of this life, pushes of the run among them), as long as they are not durable."""
        self._leaving: LeaveRun | None = None
        self._left = (0, 0)
        """The run that is left for the one that is asked for, and how many of its barriers are durable."""

    @property
    def leaving(self) -> bool:
        """The scheduler has not answered that this worker has left its run."""
        return self._leaving is not None

    @property
    def joining(self) -> bool:
        """A run is asked for, and others have not asked for it yet."""
        return self._joining is not None

    @property
    def waits(self) -> bool:
        """Pushes with a barrier are not durable everywhere."""
        return bool(self._barriers)

    @property
    def pushed(self) -> tuple[int, int]:
        """The run, and how many pushes with a barrier were made in it."""
        return (self.run, self._pushes) if self.run else (0, 0)

    # ------------------------------------------------------------------ asked for
    def asks_for(self, size: int) -> bool:
        """A run of so many is asked for already."""
        return self._joining is not None and self._joining[1] == size

    def join(self, request: int, size: int) -> list[Effect]:
        """Ask for a run; the one before is left."""
        self._joining, self._asked_ms = (request, size), 0.0
        self._left = (self.run, self.done)
        self.run, self.size, self.missing, self.refusal = 0, size, [], ""
        self._barriers.clear()
        return [Send(SCHEDULER_ADDRESS, JoinRun(request, size, *self._left))]

    def leave(self) -> list[Effect]:
        if not self.run:
            return []
        self._leaving, self.run = LeaveRun(self.run, self.done), 0
        return [Send(SCHEDULER_ADDRESS, self._leaving)]

    def on_heartbeat(self) -> list[Effect]:
        return [Send(SCHEDULER_ADDRESS, self._leaving)] if self._leaving is not None else []

    def on_tick(self, now_ms: float, again_ms: float) -> list[Effect]:
        """Ask again if there was no answer for ``again_ms``."""
        if self._joining is None or now_ms - self._asked_ms < again_ms:
            return []
        self._asked_ms = now_ms
        return [Send(SCHEDULER_ADDRESS, JoinRun(*self._joining, *self._left))]

    def on_joined(self, message: RunJoined) -> None:
        if self._joining is None or message.request != self._joining[0]:
            return
        self.missing = list(message.missing)
        if message.run:
            self.run, self._joining, self.missing = message.run, None, []
            self._pushes, self.done, self._over = 0, 0, None

    def on_over(self, message: RunOver) -> None:
        if self._leaving is not None and message.run == self._leaving.run:
            self._leaving = None
        if message.run == self.run and (self._over is None or message.done < self._over[0]):
            self._over = message.done, message.reason

    def on_refused(self, request: int, reason: str) -> None:
        if self._joining is not None and request == self._joining[0]:
            self._joining, self.missing, self.refusal = None, [], reason

    # ------------------------------------------------------------------ pushes
    def why_no_push(self, barrier: int) -> str:
        """Why no push with this barrier can be made; empty if one can."""
        if barrier > 1 and not (self.run and self.size == barrier):
            return f"a barrier of {barrier} workers needs a run of so many; it is in run {self.run} of {self.size}"
        return ""

    def push(self, pushes: int) -> tuple[int, int]:
        """(run, number in it) of a push with a barrier, which is this life's push number ``pushes``."""
        self._pushes += 1
        self._barriers.append((pushes, self._pushes))
        return self.run, self._pushes

    def durable(self, pushes: int) -> None:
        """So many pushes of this life are durable on all shards."""
        while self._barriers and self._barriers[0][0] <= pushes:
            self.done = self._barriers.popleft()[1]

    def broken(self) -> str:
        """Why a push that was made will never have its partners; empty if it may have."""
        if self._over is None or not self.run:
            return ""
        done, reason = self._over
        if self._pushes <= max(done, self.done):
            return ""
        return f"push {self._pushes} of run {self.run} is never applied: {reason}"
