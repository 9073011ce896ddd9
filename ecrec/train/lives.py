"""The clusters of a run, one after the other: what happened in each, and what was lost with it."""

from collections.abc import Sequence
from typing import Any

from ecrec.errors import EcrecError
from ecrec.launch.rewind import Point, Rewound
from ecrec.protocol.messages import HistoryEntry
from ecrec.train.report import FirstRow, KillDone, Step, kill_entries
from ecrec.train.resizing import ResizeDueError
from ecrec.urls import shown


class Life:
    """One cluster of a run, from its start until it loses data, or training is done."""

    def __init__(self, began: float, trained: int = 0, steps_before: int = 0) -> None:
        self.began = began
        """Seconds of the monotonic clock."""
        self.trained = trained
        """Examples of the data set that were trained on when it began."""
        self.steps_before = steps_before
        """Steps of the run that are in what it began with."""
        self.steps: list[Step] = []
        self.steps_of_first = 0
        """Of worker 0."""
        self.first_rows: list[FirstRow] = []
        self.kills: list[KillDone] = []
        self.history: Sequence[HistoryEntry] = ()
        """What the scheduler remembers at its end."""
        self.kept_until = began
        """What it trained later was undone; seconds of the monotonic clock."""

    def stepped(self, step: Step) -> None:
        self.steps.append(step)
        self.steps_of_first += step.worker == 0
        self.kept_until = max(self.kept_until, step.at)

    def deaths(self, history: Sequence[HistoryEntry]) -> int:
        """Deaths since the first kill."""
        begin_ms = self.kills[0].at * 1e3 if self.kills else 0.0
        return sum(entry.event == "down" and entry.at_ms >= begin_ms for entry in history)

    @property
    def done(self) -> int:
        """Examples of the data set that are trained on, rows that were skipped included."""
        return self.trained + sum(step.examples + step.skipped for step in self.steps)


def go_back(lives: Sequence[Life], why: EcrecError, to: Point, cut: float, trained: int) -> Rewound:
    """What of all ``lives`` is undone by going back to a checkpoint of the moment ``cut`` (seconds of the monotonic
    clock) that has ``trained`` examples."""
    seconds = 0.0
    stopped = lives[-1].kept_until
    for life in lives:
        kept = min(life.kept_until, max(cut, life.began))
        seconds += life.kept_until - kept
        life.kept_until = kept
    repeated = max(0, lives[-1].done - trained)
    return Rewound(str(why), to, repeated, seconds, stopped, isinstance(why, ResizeDueError))


def rewind_entries(rewinds: Sequence[Rewound], lives: Sequence[Life]) -> list[dict[str, Any]]:
    """One entry for each time that the run went back; ``lives`` has one more than there are rewinds.

    ``seconds_stood_still`` is from the last step before to the first one after; None where there was none.
    """
    entries = []
    for number, rewound in enumerate(rewinds):
        first = min((step.at for step in lives[number + 1].steps), default=None)
        entries.append(
            {
                "reason": rewound.reason,
                "resized": rewound.resized,
                "checkpoint": rewound.to.number,
                "url": shown(rewound.to.url),
                "examples_repeated": rewound.examples_repeated,
                "seconds_repeated": rewound.seconds_repeated,
                "seconds_stood_still": None if first is None else first - rewound.stopped,
            }
        )
    return entries


def all_kills(lives: Sequence[Life]) -> list[dict[str, Any]]:
    """`kill_entries` of each life: epochs and deaths of one say nothing of another."""
    return [entry for life in lives for entry in kill_entries(life.kills, life.steps, life.history, life.first_rows)]
