"""The story of each death, out of the history that the scheduler keeps: what happened when, until all was whole."""

from collections.abc import Sequence
from typing import Any

from ecrec.protocol.messages import HistoryEntry

HEARD, NOTICED, SETTLED, REPLACED, ROWS, WHOLE = "heard", "noticed", "settled", "replaced", "rows", "whole"
AGAIN, LOST, REINITIALISED = "again", "lost", "reinitialised"
"""Steps of a story. `HEARD`: the last sign of life. `NOTICED`: declared down. `SETTLED`: the others agreed on what it
had applied. `REPLACED`: another process has its place. `ROWS`: that process has all rows. `WHOLE`: and all parity.
`AGAIN`: that process died as well, which is a story of its own. `LOST`: the data of its group is lost. `REINITIALISED`:
lost rows began anew."""

ENDS = (WHOLE, AGAIN, LOST)

_STEPS = {"settled": SETTLED, "up": REPLACED, "whole": WHOLE, "reinitialised": REINITIALISED}


def own_clock(history: Sequence[HistoryEntry], now_ms: float) -> int:
    """The first entry that is dated by the clock of ``now_ms``, in milliseconds.

    A monotonic clock begins anew when its host does, and each host has its own: times before such a change say nothing.
    Such a change shows where the clock goes back; one that goes forward cannot be told from time that passed.
    """
    later_ms = now_ms
    for number in reversed(range(len(history))):
        if history[number].at_ms > later_ms:
            return number + 1
        later_ms = history[number].at_ms
    return 0


def stories(history: Sequence[HistoryEntry], n: int, now_ms: float, offset_s: float) -> list[dict[str, Any]]:
    """One for each death, in order. ``n``: shards of a group. ``offset_s``: added to seconds of the history's clock, it
    gives seconds since 1970.

    A story has ``shard``, ``group``, ``epoch``, ``reason``, ``ended`` (one of `ENDS`; empty while it goes on) and
    ``steps``, each with its name and ``at``, in seconds since 1970, None where that is not known.
    """
    first = own_clock(history, now_ms)
    told: list[dict[str, Any]] = []
    going: dict[int, dict[str, Any]] = {}

    def add(story: dict[str, Any], step: str, at_ms: float, number: int) -> None:
        at = at_ms / 1e3 + offset_s if number >= first and at_ms >= 0 else None
        story["steps"].append({"step": step, "at": at})
        if step in ENDS:
            story["ended"] = step
            going.pop(story["shard"], None)

    for number, entry in enumerate(history):
        story = going.get(entry.shard)
        if entry.event == "down":
            if story is not None:
                add(story, AGAIN, entry.at_ms, number)
            story = going[entry.shard] = {
                "shard": entry.shard, "group": entry.shard // n, "epoch": entry.epoch, "reason": entry.reason,
                "ended": "", "steps": [],
            }  # fmt: skip
            told.append(story)
            if entry.since_ms >= 0:
                add(story, HEARD, entry.since_ms, number)
            add(story, NOTICED, entry.at_ms, number)
        elif entry.event == "lost":
            for each in [each for each in going.values() if each["group"] == entry.shard // n]:
                add(each, LOST, entry.at_ms, number)
        elif story is not None and entry.event in _STEPS:
            if entry.event == "whole" and entry.since_ms >= 0:
                add(story, ROWS, entry.since_ms, number)
            add(story, _STEPS[entry.event], entry.at_ms, number)
    return told
