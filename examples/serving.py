"""A process that follows a training run, and answers predictions with rows that are a few seconds old at most.

    python examples/serving.py SCHEDULER TABLE --seconds 2

It reads lines of row ids from stdin, and writes for each line the sum of the rows' weights and their age in seconds.
Put your model in place of `predict`. It never slows training: it is no worker, and no push waits for it.
"""

import argparse
import sys
import threading
import time

import numpy as np

import ecrec
from ecrec.checkpoint.rows import initial_rows
from ecrec.errors import EcrecError
from ecrec.training import Resent


class Copy:
    """The weights of one table, as they were when it was last brought up to date."""

    def __init__(self, endpoint: str, table: str, seconds: float) -> None:
        self.seconds = seconds
        self.error: Exception | None = None
        self.as_of = 0.0  # nothing here is older than that
        self._session = ecrec.connect(endpoint, read_only=True)
        self._spec = self._session.machine.tables[table][1]
        self._weights = initial_rows(self._spec, np.arange(self._spec.rows))["weights"].copy()
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        self._session.close()

    def _follow(self) -> None:
        token = None
        try:
            while not self._ends.is_set():
                began = time.monotonic()
                changes = self._session.changes(since=token)
                for change in changes:
                    with self._lock:
                        self._apply(change)
                token, self.as_of = changes.token, began
                self._ends.wait(max(0.0, began + self.seconds / 4 - time.monotonic()))
        except EcrecError as error:
            self.error = error

    def _apply(self, change: object) -> None:
        if isinstance(change, Resent):  # a server was replaced, or it is the first time: what comes is all
            rows = change.rows_of(self._spec)
            self._weights[rows] = initial_rows(self._spec, rows)["weights"]
        elif change.table == self._spec.name:
            self._weights[change.rows] = change.weights

    def rows(self, ids: list[int]) -> tuple[np.ndarray, float]:
        """Weights of rows, and how old they are at most. Waits, or raises, rather than give older ones than it may."""
        end = time.monotonic() + 60
        while time.monotonic() - self.as_of > self.seconds:
            if self.error or time.monotonic() > end:
                raise SystemExit(f"rows are older than {self.seconds} s: {self.error or 'the cluster does not answer'}")
            time.sleep(0.01)
        with self._lock:
            return self._weights[ids], time.monotonic() - self.as_of


def predict(rows: np.ndarray) -> float:
    return float(rows.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scheduler")
    parser.add_argument("table")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    copy = Copy(options.scheduler, options.table, options.seconds)
    try:
        for line in sys.stdin:
            rows, age = copy.rows([int(word) for word in line.split()])
            print(f"{predict(rows):.9g} {age:.3f}", flush=True)
    finally:
        copy.close()


if __name__ == "__main__":
    main()
