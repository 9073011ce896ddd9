"""Which pushes are applied as one, and when workers disagree about it (docs/protocol.md).

A part of the `ShardMachine`. A shard decides from the heads of the workers' queues alone, and all shards must decide
alike, whatever order messages came in. They do, because every worker sends the same heads to all shards in the same
order, and a head with a barrier can go in one way only: with those of its own run, each of which waits for it in turn.
Heads that contradict each other can thus never be applied, on no shard, and it does not matter which shard says so
first, nor whether another one ever hears of both.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

from ecrec.protocol import messages as m
from ecrec.protocol.queues import QueuedPush, WorkerState

BROKEN_RUNS_MAX = 256
"""Runs that ended in a disagreement and are remembered, so that those of their workers that come late are told too."""


class DisagreementError(Exception):
    """Pushes that wait for each other and can never be applied; ``pushes`` are all that wait in their run."""

    def __init__(self, reason: str, pushes: list[QueuedPush]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pushes = pushes


class Barriers:
    """The part of a `ShardMachine` that matches pushes."""

    def __init__(self) -> None:
        self._broken: dict[int, str] = {}

    def refusal(self, worker: int, push: m.Push) -> str:
        """Why a push can never be applied; empty if it perhaps can."""
        if push.barrier <= 1:
            return ""
        if push.barrier > m.WORKERS_MAX or worker >= push.barrier or not push.run or not push.sequence:
            return (
                f"a barrier of {push.barrier} workers, run {push.run}, sequence {push.sequence}, from worker {worker}; "
                f"expected a worker below the number of workers, at most {m.WORKERS_MAX} of them, and both from 1"
            )
        return self._broken.get(push.run, "")

    def batch(self, head: QueuedPush, workers: Mapping[int, WorkerState]) -> list[QueuedPush] | None:
        """The pushes that are applied together with this one; None while one of them is not here.

        Raises DisagreementError, once for each run.
        """
        push = head.push
        if push.barrier <= 1:
            return [head]
        heads = {
            worker: state.queue[0]
            for worker, state in workers.items()
            if state.queue and state.queue[0].push.run == push.run and state.queue[0].push.barrier > 1
        }
        for other in heads.values():
            # Each waits for the other: what is not so may still go away.
            if other.worker < push.barrier and head.worker < other.push.barrier:
                differences = _differences(head, other)
                if differences:
                    self._break(push.run, f"run {push.run}: {differences}; nothing of it was applied", heads)
        if len(heads) < push.barrier:
            return None
        return [heads[worker] for worker in range(push.barrier)] if max(heads) < push.barrier else None

    def _break(self, run: int, reason: str, heads: Mapping[int, QueuedPush]) -> NoReturn:
        self._broken[run] = reason
        for oldest in list(self._broken)[:-BROKEN_RUNS_MAX]:
            del self._broken[oldest]
        raise DisagreementError(reason, list(heads.values()))


def _differences(one: QueuedPush, other: QueuedPush) -> str:
    """How two pushes of a barrier contradict each other; empty if they do not."""
    a, b = (one, other) if one.worker < other.worker else (other, one)

    def text(what: str, of_a: object, of_b: object) -> str:
        one, other = (f"worker {p.worker} (its push {p.number})" for p in (a, b))
        return f"{what} of {one} {of_a}, that of {other} {of_b}"

    pairs: Iterable[tuple[str, object, object]] = (
        (f"barrier {a.push.sequence}", _kind(a.push), _kind(b.push)),
        ("barrier size", a.push.barrier, b.push.barrier),
        *_rates(a.push, b.push),
        ("barrier", f"is number {a.push.sequence}", f"is number {b.push.sequence}"),
    )
    return "; ".join(text(*pair) for pair in pairs if pair[1] != pair[2])


def _rates(a: m.Push, b: m.Push) -> Iterator[tuple[str, object, object]]:
    """The first table that one of two pushes takes at another learning rate than the other."""
    for table in sorted({*a.rates, *b.rates}):
        if a.rates.get(table) != b.rates.get(table):
            own = "its own"
            yield f"learning rate of table {table}", f"is {a.rates.get(table, own)}", f"is {b.rates.get(table, own)}"
            return


def _kind(push: m.Push) -> str:
    if push.records:
        return "sets whole records"
    return "sets weights" if push.assign else "steps with gradients"
