"""Runs: which lives of workers push in barriers together (docs/protocol.md).

A part of the `SchedulerMachine`. Shards see queues of pushes and nothing else; that two pushes belong together, and
that one will never have its partner, can only be known where all workers report. A run is given to one life of each
worker, by a number that is never used again, when all of them have asked for a run of the same size. It is over for
all with the first of them that ends, whatever the reason.
"""

from dataclasses import dataclass

from ecrec.protocol import messages as m
from ecrec.protocol.context import Context
from ecrec.protocol.messages import Address
from ecrec.protocol.state import Run, RunMember, RunState

RUNS_MAX = 4096
"""Runs of which a worker is still heard; more are refused. A worker that is silent is out of its run soon."""
MISSING_NAMED_MAX = 8
"""Workers named, of those that have not asked for a run yet."""


@dataclass(slots=True)
class _Asking:
    """A worker that waits for the others of its run."""

    source: Address
    request: int
    size: int
    first_ms: float
    heard_ms: float


class Runs:
    """The part of a `SchedulerMachine` that keeps the runs."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._of: dict[int, Run] = {}
        """Worker -> the run that it is in."""
        for run in self.state.runs:
            self._of.update({worker: run for worker, member in enumerate(run.members) if not member.gone})
        self._asking: dict[int, _Asking] = {}
        self._refused: dict[int, tuple[int, int, str]] = {}
        """Worker -> epoch and number of its newest request that was refused, and why."""
        self._by_size: dict[int, set[int]] = {}
        """Size of a run -> workers that ask for one."""
        self._heard_ms: dict[int, float] = {}
        self._done: dict[int, int] = {}
        """Worker in a run -> its barriers that it has said are durable everywhere."""
        self._looked_ms = -1e18

    @property
    def state(self) -> RunState:
        return self.context.state.runs

    # ------------------------------------------------------------------ workers ask
    def on_join(self, source: Address, message: m.JoinRun) -> None:
        worker, now_ms = source.id, self.context.now_ms
        if not self.context.is_of_worker(source, "join a run"):
            return
        if not 2 <= message.size <= m.WORKERS_MAX or worker >= message.size:
            reason = f"worker {worker} in a run of {message.size}: expected a number below it, and 2 to {m.WORKERS_MAX}"
            self.context.send(source, m.Refused(message.request, reason))
            return
        epoch, request, reason = self._refused.get(worker, (0, 0, ""))
        if epoch == source.epoch and message.request <= request:
            # trap: a late copy would begin a run with a worker that has given it up
            self.context.send(source, m.Refused(message.request, reason))
            return
        run = self._of.get(worker)
        if run is not None:
            member = run.members[worker]
            if not member.epoch and message.size == len(run.members) and not message.run and source.epoch == 1:
                # It never heard that the run has begun, before the state was lost. An earlier life may have: that one's
                # pushes would be waited for.
                member.epoch, member.request = source.epoch, message.request
                self._heard_ms[worker] = now_ms
                self.context.changed()
            if member.epoch == source.epoch and message.request <= member.request:
                if message.request == member.request:
                    self.context.send(source, m.RunJoined(message.request, run.number))
                return
            done = message.done if message.run == run.number else self._done.get(worker, 0)
            self._end(run, worker, f"has left run {run.number}", done)
        known = self._asking.get(worker)
        if known is None or known.source.epoch != source.epoch or known.request < message.request:
            self._forget(worker)
            known = self._asking[worker] = _Asking(source, message.request, message.size, now_ms, now_ms)
            self._by_size.setdefault(message.size, set()).add(worker)
        elif known.request > message.request or known.size != message.size:
            return  # an older request, or one that is not what it was
        known.heard_ms = self._heard_ms[worker] = now_ms
        if self._refuse_if_they_differ(worker, known):
            return
        if len(self._by_size[message.size]) == message.size:
            self._begin(message.size)
            return
        there = self._by_size[message.size]
        missing: list[int] = []
        for other in range(message.size):
            if other not in there:
                missing.append(other)
                if len(missing) == MISSING_NAMED_MAX:
                    break
        self.context.send(source, m.RunJoined(message.request, 0, missing))

    def _begin(self, size: int) -> None:
        """All have asked: the run begins, and is known to the state before anybody hears of it."""
        state = self.state
        asking = [self._asking[worker] for worker in range(size)]
        if len(state.runs) >= RUNS_MAX:
            for worker in range(size):
                self._refuse(worker, f"{RUNS_MAX} runs go on already")
            return
        state.number += 1
        run = Run(state.number, [RunMember(one.source.epoch, one.request) for one in asking])
        state.runs.append(run)
        self.context.changed()
        for worker, one in enumerate(asking):
            self._forget(worker)
            self._of[worker], self._done[worker] = run, 0
            self._heard_ms[worker] = self.context.now_ms
            self.context.send(one.source, m.RunJoined(one.request, run.number))
        self.context.note("info", f"run {run.number} of {size} workers begins")

    def _refuse_if_they_differ(self, worker: int, asking: _Asking) -> bool:
        """Refuse a worker whose run another one of it contradicts for some time: what is left of a run that has just
        ended must not."""
        patience_ms = self.context.config.heartbeat_timeout_ms

        def lasts(heard_ms: float, since_ms: float) -> bool:
            return heard_ms - max(asking.first_ms, since_ms) > patience_ms

        for size, workers in self._by_size.items():
            if size == asking.size:
                continue
            for other in workers:
                theirs = self._asking[other]
                if other < asking.size and lasts(theirs.heard_ms, theirs.first_ms):
                    reason = _differ(worker, asking.size, other, f"waits for one of {size} workers")
                    self._refuse(worker, reason)
                    if worker < size:
                        self._refuse(other, reason)
                    return True
        for other, run in self._of.items():
            size = len(run.members)
            if other == worker or other >= asking.size or size == asking.size or run.over:
                continue
            if lasts(self._heard_ms.get(other, 0.0), 0.0):
                where = f"is in run {run.number} of {size} workers, which goes on"
                self._refuse(worker, _differ(worker, asking.size, other, where))
                return True
        return False

    def _refuse(self, worker: int, reason: str) -> None:
        one = self._asking[worker]
        self._forget(worker)
        self._refused[worker] = one.source.epoch, one.request, reason
        self.context.send(one.source, m.Refused(one.request, reason))

    def _forget(self, worker: int) -> None:
        """It asks no longer."""
        one = self._asking.pop(worker, None)
        if one is not None:
            some = self._by_size[one.size]
            some.discard(worker)
            if not some:
                del self._by_size[one.size]

    # ------------------------------------------------------------------ workers report, leave and die
    def heard(self, source: Address, epoch: int, status: m.WorkerStatus) -> None:
        """A heartbeat of a worker's present life."""
        worker = source.id
        self._take_up(worker, status)
        run = self._of.get(worker)
        if run is not None and not run.members[worker].epoch:
            if not status.run and epoch == 1:
                return  # it may yet ask for it, as it did before the state was lost
            if status.run != run.number:
                self._end(run, worker, f"is not in run {run.number} any more", 0)
                return
            run.members[worker].epoch = epoch
            self.context.changed()
        if run is not None and run.members[worker].epoch == epoch:
            self._heard_ms[worker] = self.context.now_ms
            if status.run == run.number:
                self._done[worker] = max(status.run_done, self._done.get(worker, 0))
                if run.over:
                    self.context.send(source, m.RunOver(run.number, run.done, run.over))
                return
        if status.run:
            # One that was given up, and lives: it may be the only one left that does not know.
            over = next((run for run in self.state.runs if run.number == status.run), None)
            done, reason = (over.done, over.over) if over else (0, "all of its workers were given up: start them again")
            self.context.send(source, m.RunOver(status.run, done, reason))

    def _take_up(self, worker: int, status: m.WorkerStatus) -> None:
        """A worker names a run that began before the state was lost, and is in no copy of it: keep it like any other.

        trap: else nobody would end it for the others when one of its workers dies. Who of them still lives is not
        known, so that each has the time-out to be heard of.
        """
        number, size = status.run, status.run_size
        if not 0 < number <= self.state.foreign or any(run.number == number for run in self.state.runs):
            return
        if not worker < size <= m.WORKERS_MAX or size < 2 or len(self.state.runs) >= RUNS_MAX:
            return
        run = Run(number, [RunMember(0, 0) for _ in range(size)])
        self.state.runs.append(run)
        self.context.changed()
        self.context.note("info", f"run {number} of {size} workers is taken up, as worker {worker} tells it")
        newer = []
        for other in range(size):
            known = self._of.get(other)
            if known is not None and known.number > number:
                newer.append((other, known))
                continue
            if known is not None:
                self._end(known, other, f"is in run {number}", self._done.get(other, 0))
            self._of[other], self._done[other], self._heard_ms[other] = run, 0, self.context.now_ms
        for other, known in newer:
            run.members[other].gone = True
            run.over = f"worker {other} is in run {known.number}: start all workers of run {number} again"

    def on_leave(self, source: Address, message: m.LeaveRun) -> None:
        run = self._of.get(source.id)
        if run is not None and run.number == message.run and run.members[source.id].epoch == source.epoch:
            self._end(run, source.id, f"has left run {run.number}", message.done)
        self.context.send(source, m.RunOver(message.run, message.done, f"worker {source.id} has left it"))

    def ended(self, worker: int, reason: str) -> None:
        """The present life of a worker is over."""
        self._forget(worker)
        run = self._of.get(worker)
        if run is not None:
            self._end(run, worker, reason, self._done.get(worker, 0))

    def _end(self, run: Run, worker: int, reason: str, done: int) -> None:
        member = run.members[worker]
        member.gone = True
        self._of.pop(worker, None)
        if not run.over or done < run.done:
            run.done = done
            run.over = (
                f"worker {worker} (epoch {member.epoch}) {reason}, {done} of its barriers are durable: a run of "
                f"{len(run.members)} workers ends with any of them; start all of them again"
            )
        if all(member.gone for member in run.members):
            self.state.runs.remove(run)
        self.context.changed()

    def on_tick(self, pause_ms: float) -> None:
        """End what is silent. ``pause_ms``: in which the scheduler itself stood still."""
        context = self.context
        for worker in self._heard_ms if pause_ms else ():
            self._heard_ms[worker] += pause_ms
        if context.now_ms - self._looked_ms < context.config.heartbeat_ms:
            return
        self._looked_ms = context.now_ms
        for worker in [*self._asking, *self._of]:
            silent_ms = context.now_ms - self._heard_ms.setdefault(worker, context.now_ms)
            if silent_ms > context.config.lease_timeout_ms:
                self.ended(worker, f"was silent for {silent_ms:.0f} ms, {context.config.lease_timeout_ms} are allowed")
        for worker in self._heard_ms.keys() - self._of.keys() - self._asking.keys():
            del self._heard_ms[worker]
            self._done.pop(worker, None)


def _differ(worker: int, size: int, other: int, where: str) -> str:
    return (
        f"worker {worker} asks for a run of {size} workers, but worker {other} {where}: start all with one world_size"
    )
