"""States of clusters as a scheduler tells them, for the tests of the live page."""

from typing import Any

from ecrec.protocol.messages import ClusterState, Dataset, DatasetFigures, HistoryEntry, ShardFigures, Waiting
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec

HOSTILE = "<img src=x onerror=\"document.title='taken'\"> </script><script>document.title='taken'</script>"
WHOLE_MS = 1_000_000.0
"""The scheduler's clock in `state`."""


def table(name: str = "C1", code: str = "4+1") -> TableSpec:
    return TableSpec(name, 50_000, 16, CodeSpec.parse(code), OptimizerSpec("sgd", (0.1,)), "zeros")


def shard(number: int, state: str = "up", epoch: int = 1, **figures: float) -> ShardFigures:
    known = {"data_rows_touched": 16_700.0, "data_bytes_touched": 2e6, "parity_bytes_touched": 4e5, **figures}
    return ShardFigures(number, epoch, state, f"tcp://10.0.0.{number}:7071", 31.0, {}, {}, known)


def state(**changes: Any) -> ClusterState:
    """Five whole shards of code 4+1, a worker and a spare; ``changes``: other fields."""
    fields: dict[str, Any] = {
        "request": 1, "n": 5, "groups": 1, "views": [9], "shards": [shard(number) for number in range(5)],
        "workers": {0: worker(1000)}, "tables": [table()], "history": [], "spares": 1, "lost": "",
        "datasets": [DatasetFigures(Dataset("train", 80_000, 80_000, 512), 20_000, 64, 17, 1, 1, 3)],
        "waiting": [Waiting("tcp://10.0.0.9:7071", -1, True, True)], "cluster": "c0ffee0123456789", "now_ms": WHOLE_MS,
    }  # fmt: skip
    return ClusterState(**{**fields, **changes})


def worker(examples: float, **figures: float) -> dict[str, float]:
    counted = {"steps": examples / 10, "examples": examples, "bytes_pulled": 100 * examples, "bytes_pushed": examples}
    return {**counted, "waited_s": 0.5, "longest_pause_s": 0.25, "loss": 0.5, "auc": 0.75, **figures}


def death(begin_ms: float, number: int = 2, epoch: int = 1, *, until: str = "whole") -> list[HistoryEntry]:
    """A shard that was last heard at ``begin_ms``, until the event of this name."""
    entries = [
        HistoryEntry(begin_ms + 200, "down", number, epoch, "its connection is closed", begin_ms),
        HistoryEntry(begin_ms + 240, "settled", number, epoch),
        HistoryEntry(begin_ms + 300, "up", number, epoch + 1),
        HistoryEntry(begin_ms + 4_200, "whole", number, epoch + 1, "", begin_ms + 3_000),
    ]
    return entries[: [entry.event for entry in entries].index(until) + 1]
