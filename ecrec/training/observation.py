"""What a session measures of its training, written to files while it goes on.

The script's thread adds a few numbers a step; a thread of the observation makes lines of them, and writes.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from ecrec.errors import ConfigurationError
from ecrec.training.connection import Connection
from ecrec.training.metrics import Window, WindowFigures
from ecrec.training.observed_files import EventFiles, JsonLines, Line, TraceFile, own_file
from ecrec.training.spans import STEPS_MAX, Spans

WINDOW_EXAMPLES = 100_000
"""Examples of the window for AUC and normalized entropy, where nothing else is said."""

EVERY_S = 1.0
"""Seconds between two lines, where nothing else is said."""

EVERY_S_MIN = 0.1
"""Lines more often would cost the training something."""

WINDOW_SHARE = 0.002
"""The metrics of the window take at most this share of the time of one core. Those of 100,000 examples take some 10 ms:
they come every five seconds or so."""

CLOSE_S = 10.0
"""At its end an observation waits at most this long for a disk that hangs."""

TRACE_STEPS = 100
"""Steps of a trace, where nothing else is said."""

log = logging.getLogger(__name__)


class _Lines(Protocol):
    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


class _Count(NamedTuple):
    """What a session has done, at a moment of the monotonic clock."""

    at: float
    steps: int
    examples: int
    waited_s: float


class Observation:
    """What `Session.observe` gives: a context manager that has its last line written at the end.

    ``window``: rows that were predicted before they were trained on, the last so many. ``warnings``: what could not be
    written, once a file; the log has them too.
    """

    def __init__(
        self,
        connection: Connection,
        report: Callable[..., None],
        rank: int,
        world_size: int,
        *,
        metrics: str | Path | None,
        tensorboard: str | Path | None,
        trace: str | Path | None,
        trace_steps: int,
        first_step: int,
        window_examples: int,
        every_s: float,
    ) -> None:
        """See `Session.observe`. Raises ConfigurationError as that does; nothing is observed then."""
        if not EVERY_S_MIN <= every_s < math.inf:
            raise ConfigurationError(f"observe: every_s is {every_s}, expected at least {EVERY_S_MIN}")
        if first_step < 0:
            raise ConfigurationError(f"observe: first_step is {first_step}, expected at least 0")
        if not 1 <= trace_steps <= STEPS_MAX:
            raise ConfigurationError(f"observe: trace_steps is {trace_steps}, expected 1 to {STEPS_MAX}")
        if window_examples < 1:
            raise ConfigurationError(f"observe: window_examples is {window_examples}, expected at least 1")
        self.window = Window(window_examples)
        self.warnings: list[str] = []
        self._connection = connection
        self._report = report
        self._rank = rank
        self._first_step = first_step
        self._every_s = every_s
        self._lock = threading.Lock()
        """Of what the script's thread adds."""
        self._loss = self._weight = 0.0
        """Of the examples since the last line."""
        self._weighed = connection.figures.examples
        """Examples of the session up to which the loss was told."""
        self._last = self._count()
        """When the last line was made."""
        self._fresh: WindowFigures | None = None
        """The metrics of the window, until they are reported."""
        self._due_s = -math.inf
        """The metrics of the window are not computed before."""
        self._stopped = threading.Event()
        self._files: list[_Lines] = []
        self._trace: TraceFile | None = None
        self._spans: Spans | None = None
        try:
            self._open(metrics, tensorboard, trace, trace_steps, world_size)
        except ConfigurationError:
            self._close_files()
            raise
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="ecrec-observation", daemon=True
        )
        self._thread.start()

    def _open(
        self,
        metrics: str | Path | None,
        tensorboard: str | Path | None,
        trace: str | Path | None,
        trace_steps: int,
        world_size: int,
    ) -> None:
        epoch = self._connection.machine.epoch
        if metrics is not None:
            self._files.append(JsonLines(Path(metrics), self._warn))
        if tensorboard is not None:
            directory = Path(tensorboard) / f"worker-{self._rank}"
            self._files.append(EventFiles(directory, self._first_step + 1, self._warn))
        if trace is not None:
            self._trace = TraceFile(own_file(Path(trace), self._rank, world_size, epoch), self._warn)
            self._spans = self._connection.spans = Spans(trace_steps, self._rank, epoch, os.getpid())

    def step(self, loss: Any, labels: Any = None, logits: Any = None) -> None:
        """Behind `Session.push`: the mean ``loss`` of its examples, a number or a tensor of one; and, for the window,
        their ``labels``, 0 or 1, and ``logits``, both [n], as tensors or arrays. Has `Session.report` show it, and the
        metrics of the window when these are new.

        Rows whose logits are not numbers are left out of the window; the loss shows them. Raises ConfigurationError for
        labels and logits that are none.
        """
        examples = self._connection.figures.examples - self._weighed
        self._weighed += examples
        value = float(loss.item() if hasattr(loss, "item") else loss)
        with self._lock:
            self._loss += value * (examples or 1)
            self._weight += examples or 1
            if labels is not None:
                self._add(_array(labels), _array(logits))
            fresh, self._fresh = self._fresh, None
        if fresh is None:
            self._report(loss=value)
        else:
            self._report(loss=value, auc=fresh.auc, normalized_entropy=fresh.normalized_entropy)

    def _add(self, labels: Any, logits: Any) -> None:
        try:
            self.window.add(labels, logits)
        except ValueError as error:
            if getattr(labels, "shape", None) == getattr(logits, "shape", 0) and (bad := logits != logits).any():
                return self._add(labels[~bad], logits[~bad])
            raise ConfigurationError(f"observation.step: {error}") from error

    @property
    def is_open(self) -> bool:
        """It was not closed."""
        return self._thread is not None

    def close(self) -> None:
        """Write the last line, and end. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._connection.pid:
            return
        self._stopped.set()
        thread.join(CLOSE_S)
        if thread.is_alive():
            self._warn(f"what was measured last is not written: its disk has not answered for {CLOSE_S:.0f} s")

    def __enter__(self) -> "Observation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopped.wait(self._every_s)
            try:
                self._write(is_last)
            except Exception as error:
                self._warn(f"an error inside ecrec, no more is measured, and training goes on: {error!r}")
                break
        self._close_files()

    def _write(self, is_last: bool) -> None:
        line = self._line(is_last)
        for file in self._files:
            file.write(line)
        if self._trace is None or self._spans is None:
            return
        is_over = is_last or self._spans.is_over
        self._trace.write(self._spans.take())
        if is_over:
            self._connection.spans = None
            self._trace.close()
            self._trace = None

    def _count(self) -> "_Count":
        figures, now = self._connection.figures, time.monotonic()
        return _Count(now, figures.steps, figures.examples, self._connection.waited_s(now))

    def _line(self, is_last: bool) -> Line:
        machine = self._connection.machine
        with self._lock:
            loss = self._loss / self._weight if self._weight else None
            self._loss = self._weight = 0.0
        before, now = self._last, self._count()
        self._last = now
        seconds = max(now.at - before.at, 1e-9)
        window = self._window_figures(now.at, is_last)
        return Line(
            time_s=time.time(),
            worker=self._rank,
            epoch=machine.epoch,
            step=self._first_step + now.steps,
            seconds=seconds,
            examples_per_s=(now.examples - before.examples) / seconds,
            waiting=(now.waited_s - before.waited_s) / seconds,
            loss=loss,
            auc=window.auc,
            logloss=window.logloss,
            normalized_entropy=window.normalized_entropy,
            window_examples=window.examples,
            steps=now.steps - before.steps,
            examples=now.examples - before.examples,
            waited_s=now.waited_s,
            deaths=machine.deaths,
            recoveries=machine.recoveries,
        )

    def _window_figures(self, now: float, is_last: bool) -> WindowFigures:
        if now < self._due_s and not is_last:
            return WindowFigures()
        with self._lock:
            window = self.window.copy()
        begin = time.thread_time()
        figures = window.figures()
        self._due_s = now + (time.thread_time() - begin) / WINDOW_SHARE
        with self._lock:
            self._fresh = figures
        return figures

    def _close_files(self) -> None:
        for file in self._files:
            file.close()
        if self._trace is not None:
            self._trace.close()
        self._files, self._trace = [], None
        self._connection.spans = None

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning("%s", text)


def _array(values: Any) -> Any:
    """Of a tensor, on whatever device; an array as it is."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else values
