"""What happens in a run, written down as it comes: seconds of workers, progress, pauses, deaths."""

import bisect
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ecrec.reproduce.raw import RawWriter

STEPS_KEPT = 20_000
"""Steps whose times are known, for what is heard of a little later than it happened."""

PAUSE_S = 0.2
"""A longer time between two steps of a worker is an event."""


class _Second(NamedTuple):
    """A worker's steps in one second of the clock."""

    at: int
    steps: int
    examples: int
    loss: float
    """Sum over the steps."""
    waited_s: float
    longest_s: float


class Recorder:
    """Writes lines; keeps the *position*, which is the number of examples that the model, as it is now, has seen.

    A step adds to it. Where training goes back to a checkpoint, `back_to` sets it back, and what is repeated counts
    once. Times that come in are seconds of the monotonic clock.
    """

    def __init__(self, raw: RawWriter, now: Callable[[], float]) -> None:
        self._raw = raw
        self._now = now
        self.zero: float | None = None
        self.position = 0
        self.examples = 0
        """Of all steps, those that were lost or repeated too."""
        self.last_step: float | None = None
        self._seconds: dict[int, _Second] = {}
        self._last: dict[int, tuple[float, float]] = {}
        """Worker -> time of its last step, and how long it had waited in all by then."""
        self._steps: deque[tuple[float, int]] = deque(maxlen=STEPS_KEPT)
        """Time, and the position then."""
        self._goals: list[int] = []
        """Positions at deaths that are not reached again."""

    @property
    def has_begun(self) -> bool:
        return self.zero is not None

    @property
    def is_behind(self) -> bool:
        """It has gone back, and is not where it was before."""
        return bool(self._goals)

    def begin(self) -> None:
        """Start the clock. What was trained before is where everybody begins."""
        self.zero = self._now()
        self._seconds.clear()
        self._last = {worker: (self.zero, waited_s) for worker, (_, waited_s) in self._last.items()}
        self.examples = 0
        self.event("begin")

    def time(self, at: float | None = None) -> float:
        """Of the clock, for a time of the monotonic clock; now."""
        at = self._now() if at is None else at
        return round(at - self.zero, 6) if self.zero is not None else -1.0

    def event(self, event: str, at: float | None = None, **fields: Any) -> None:
        """``at``: when it happened, if not now. The position that the model had then goes with it."""
        position = self.position if at is None else self.position_at(at)
        self._raw.line("event", **{"t": self.time(at), "event": event, "position": position, **fields})

    def position_at(self, at: float) -> int:
        """At a time that is not long ago: that of the last step until then."""
        found = bisect.bisect_right(self._steps, (at, 1 << 62)) if self._steps and at < self._steps[-1][0] else -1
        return self.position if found < 0 else self._steps[max(0, found - 1)][1]

    def servers(self, **figures: float) -> None:
        """How the servers are, once a second."""
        self._raw.line("servers", t=self.time(), **figures)

    # ------------------------------------------------------------------ workers
    def step(self, worker: int, at: float, examples: int, loss: float, waited_s: float) -> None:
        """A worker has done a step; ``waited_s``: in all of its life."""
        before_at, before_waited = self._last.get(worker, (at, waited_s))
        self._last[worker] = at, waited_s
        self.last_step = at
        self.position += examples
        self.examples += examples
        self._steps.append((at, self.position))
        gap, waited = at - before_at, max(0.0, waited_s - before_waited)
        if not self.has_begun:
            return
        if gap >= PAUSE_S:
            self.event("pause", at, worker=worker, seconds=round(gap, 6))
        second = int(self.time(at) // 1)
        known = self._seconds.get(worker)
        if known is not None and known.at != second:
            self._write(worker, known)
            known = None
        steps, count, losses, so_far, longest = (
            (0, 0, 0.0, 0.0, 0.0) if known is None else (known.steps, known.examples, known.loss, *known[4:])
        )
        self._seconds[worker] = _Second(
            second, steps + 1, count + examples, losses + loss, so_far + waited, max(longest, gap)
        )
        while self._goals and self.position >= self._goals[0]:
            self.event("caught up", at, position=self._goals.pop(0))

    def forget_workers(self) -> None:
        """New processes begin to wait, and to step, anew; the time in which there were none is a pause."""
        last = max((at for at, _ in self._last.values()), default=None)
        if last is not None:
            self._last = {worker: (last, 0.0) for worker in self._last}

    def _write(self, worker: int, second: _Second) -> None:
        self._raw.line(
            "second", t=second.at, worker=worker, steps=second.steps, examples=second.examples,
            loss=round(second.loss / second.steps, 6), waited_s=round(second.waited_s, 6),
            longest_s=round(second.longest_s, 6),
        )  # fmt: skip

    def close(self) -> None:
        """Write the seconds that have begun."""
        for worker, second in sorted(self._seconds.items()):
            self._write(worker, second)
        self._seconds.clear()

    # ------------------------------------------------------------------ deaths
    def killed(self, at: float, shard: int, signal: str) -> None:
        self.event("kill", at, shard=shard, signal=signal)

    def back_to(self, position: int) -> None:
        """Data was lost: the model is what it was at this position."""
        lost = self.position - position
        # Where nothing is lost, it is recovered with its next step.
        self._goals.append(max(self.position, position + 1))
        self._goals.sort()
        self.position = position
        self._steps.clear()
        self.event("goes back", examples=lost)
