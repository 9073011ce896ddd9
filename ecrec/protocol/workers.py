"""Heartbeats of workers and tools: which process a worker is, and that its life before is over (docs/protocol.md).

A part of the `SchedulerMachine`.
"""

from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Client, forget_ms
from ecrec.protocol.checkpoints import Checkpoints
from ecrec.protocol.context import Context
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.leases import Leases
from ecrec.protocol.messages import TOOL, WORKER, Address
from ecrec.protocol.runs import Runs

CLAIMS_MAX = 8
"""Processes of a worker that are remembered, so that a late heartbeat of an old one is known."""
CLIENTS_MAX = 1 << 17
"""Workers and tools that were heard of lately."""


class Workers:
    """The part of a `SchedulerMachine` that knows the workers and tools."""

    def __init__(
        self, context: Context, leases: Leases, runs: Runs, initial: InitialValues, checkpoints: Checkpoints
    ) -> None:
        self.context = context
        self.checkpoints = checkpoints
        self.leases = leases
        self.runs = runs
        self.initial = initial
        self.clients: dict[tuple[int, int], Client] = {}
        self._lives: dict[int, dict[str, float]] = {}
        """Worker -> its processes that were heard lately, and when."""
        self._asked: dict[tuple[int, str], float] = {}
        """Since when a process asks for the place of a worker, if no other lives."""
        self._since_ms: float | None = None
        """Since when I listen without a break,"""
        self._ticked_ms = 0.0
        """and when I last looked whether there was one."""
        self._left: dict[int, int] = {}
        """Worker -> epoch of the life of it that has said that it ends."""
        self._told: set[int] = set()
        """Workers of an earlier generation that have told their leases."""

    def on_status(self, source: Address, status: m.WorkerStatus) -> bool:
        """Whether the sender is one who is answered."""
        epoch = 1
        if source.role == WORKER and not 0 <= source.id < m.WORKERS_MAX:
            reason = f"there is no worker {source.id}: they are 0 to {m.WORKERS_MAX - 1}"
            self.context.fence_off(source, reason)
            return False
        if status.origin.cluster and not status.origin.is_of(self.context.origin):
            self.context.note("warning", f"{source} trains on another cluster, {status.origin.cluster!r}: ignored")
            return False
        views = list(status.views)
        self.context.checked()
        if self._is_earlier(status.origin) and source.epoch:
            if source.role == WORKER and not self._knows(source, status):
                return False
            views = []  # what it knows is of another history: it is told anew
        if len(self.clients) >= CLIENTS_MAX and (source.role, source.id) not in self.clients:
            return False
        if source.role == WORKER:
            if status.yields and not source.epoch and self._keeps_place(source, status.process):
                client = self.clients.get((source.role, source.id))
                if client is not None and client.address == source:
                    # trap: one that does not know its epoch yet has this address too, and views for it would reach
                    # the one that asks. It says itself that it is still there.
                    del self.clients[source.role, source.id]
                return False
            self.confirm(source)
            known, _ = self.context.state.workers.get(source.id, (0, ""))
            epoch = self._epoch_of(source, status.process)
            if epoch < known:
                self.context.fence_off(source, f"worker {source.id} has been started again (epoch {known})")
                return False
            if self.context.state.leases.is_fenced(source.id, epoch):
                reason = f"epoch {epoch} of worker {source.id} is over, and its splits are another's: start it again"
                self.context.fence_off(source, reason)
                return False
            self._is_heard(source.id, status.process)
            if source.epoch == epoch == known:
                self.leases.heard(source, epoch, status.cursor)
                self.runs.heard(source, epoch, status)
                self.initial.heard(source)
                self.checkpoints.heard_worker(source, status)
                if status.leaves:
                    self._left[source.id] = epoch
                    self.checkpoints.left(source)
                    # Nothing of it is on its way: what it holds is given to others at once.
                    self.leases.fence(source.id, epoch, "it has left")
                    self.forget(source.role, source.id)
                    return False
        elif source.role != TOOL:
            return False
        groups = len(self.context.state.groups)
        views = views[:groups] + [-1] * (groups - len(views))
        key = (source.role, source.id)
        client = self.clients.get(key)
        # Two lives of a worker that both have yet to hear of their epoch have the same address.
        if client is None or client.address != source or client.epoch != epoch:
            client = self.clients[key] = Client(
                source, epoch, views, [-1] * groups, [-1e18] * groups, self.context.now_ms, {}
            )
        client.views, client.heard_ms, client.figures = views, self.context.now_ms, status.figures
        shards = range(groups * self.context.state.n)
        client.unheard = {shard: ms for shard, ms in status.unheard.items() if shard in shards}
        return True

    def forget(self, role: int, number: int) -> None:
        """A worker or tool has ended: nothing is sent to it any more."""
        self.clients.pop((role, number), None)
        if role == WORKER:
            self._lives.pop(number, None)

    # ------------------------------------------------------------------ places that nobody is to be driven from
    def _keeps_place(self, source: Address, process: str) -> bool:
        """A process would be a worker unless another one is, and lives: whether it has to wait, or was refused."""
        now_ms, worker = self.context.now_ms, source.id
        known, _ = self.context.state.workers.get(worker, (0, ""))
        if any(claimant == process for _, claimant in self.context.state.claims.get(worker, ())):
            return False
        if self._since_ms is None:
            self._since_ms = now_ms
        others = [heard_ms for other, heard_ms in self._lives.get(worker, {}).items() if other != process]
        is_over = self.context.state.leases.is_fenced(worker, known) or self._left.get(worker, 0) == known
        if not others and is_over:
            self._asked.pop((worker, process), None)
            return False
        if len(self._asked) >= CLIENTS_MAX:
            return True
        asked_ms = self._asked.setdefault((worker, process), now_ms)
        # One that was just started, or stood still, has heard nobody, and all live.
        heard_ms = max([*others, self._since_ms])
        if others and max(others) >= asked_ms + self.context.config.worker_place_taken_ms:
            self.context.fence_off(source, f"worker {worker} is another process, and it lives")
            return True
        # After a pause of my own its question may come before the tick that tells me of that.
        paused = now_ms - self._ticked_ms > self.context.config.heartbeat_timeout_ms / 2
        if paused or now_ms - heard_ms <= self.context.config.worker_place_kept_ms:
            return True
        del self._asked[worker, process]
        return False

    def _is_heard(self, worker: int, process: str) -> None:
        lives = self._lives.setdefault(worker, {})
        lives[process] = self.context.now_ms
        if len(lives) > CLAIMS_MAX:
            del lives[min(lives, key=lives.__getitem__)]

    def unheard(self) -> dict[int, dict[int, int]]:
        """Shard, numbered over all groups -> worker that does not hear it -> for how many milliseconds."""
        out: dict[int, dict[int, int]] = {}
        for client in self.clients.values():
            fresh = self.context.now_ms - client.heard_ms <= self.context.config.heartbeat_timeout_ms
            if client.address.role == WORKER and fresh:
                for shard, ms in client.unheard.items():
                    out.setdefault(shard, {})[client.address.id] = ms
        return out

    def confirm(self, source: Address) -> None:
        """A process that names an epoch newer than its worker's has heard that it has it: the life before is over.

        trap: not before. The first heartbeat of a process that is dead by now may come after those of the next one.
        """
        known, _ = self.context.state.workers.get(source.id, (0, ""))
        claims = dict(self.context.state.claims.get(source.id, ()))
        if source.role == WORKER and source.epoch > known and source.epoch in claims:
            self.leases.fence(source.id, known, "it has been started again", source.id in self.leases.unheard)
            self.runs.ended(source.id, "has been started again")
            self.initial.ended(source.id, known)
            self.context.state.workers[source.id] = source.epoch, claims[source.epoch]
            self._lives.pop(source.id, None)
            self.context.changed()

    def _epoch_of(self, source: Address, process: str) -> int:
        """The epoch of a worker's process; one that is new gets the next. 0: it is none of the last ones."""
        known, known_process = self.context.state.workers.get(source.id, (0, ""))
        claims = self.context.state.claims.get(source.id) or ([(known, known_process)] if known else [])
        for epoch, claimant in claims:
            if claimant == process:
                return epoch
        if source.epoch:
            return 0
        epoch = max(epoch for epoch, _ in [*claims, (known, "")]) + 1
        # The one that lives must not be forgotten for those that only say that they do.
        kept = [claim for claim in claims if claim[0] != known][-(CLAIMS_MAX - 2) :]
        kept += [claim for claim in claims if claim[0] == known]
        self.context.state.claims[source.id] = sorted([*kept, (epoch, process)])
        self.context.changed()
        return epoch

    def on_tick(self, stood_still_ms: float) -> None:
        """Forget those that are silent. ``stood_still_ms``: in which the scheduler itself stood still."""
        self._ticked_ms = now_ms = self.context.now_ms
        if stood_still_ms or self._since_ms is None:
            self._since_ms = now_ms
        kept_ms = self.context.config.worker_place_kept_ms
        for worker, lives in list(self._lives.items()):
            self._lives[worker] = {process: ms for process, ms in lives.items() if now_ms - ms <= 2 * kept_ms}
            if not self._lives[worker]:
                del self._lives[worker]
        self._asked = {who: ms for who, ms in self._asked.items() if now_ms - ms <= 4 * kept_ms}
        for key, client in list(self.clients.items()):
            if self.context.now_ms - client.heard_ms > forget_ms(self.context.config):
                del self.clients[key]

    # ------------------------------------------------------------------ a state that was made again
    def _knows(self, source: Address, status: m.WorkerStatus) -> bool:
        """A worker that was there before the state was made again; False until it has told its leases."""
        epoch, process = self.context.state.workers.get(source.id, (0, ""))
        if source.epoch > epoch or (source.epoch == epoch and not process):
            if epoch and source.epoch > epoch:
                self.leases.fence(source.id, epoch, "it has been started again", source.id in self.leases.unheard)
            self.leases.expect(source.id)
            self.context.state.workers[source.id] = source.epoch, status.process
            self.context.state.claims[source.id] = [(source.epoch, status.process)]
            self.context.changed()
        elif (epoch, process) != (source.epoch, status.process):
            return True  # an earlier life, which is fenced like any other
        if source.id in self._told:
            return True
        self.context.send(source, m.Census(self.context.state.generation))
        return False

    def _is_earlier(self, origin: m.Origin) -> bool:
        """Whether somebody has followed the history that this one goes on from."""
        return origin.is_of(self.context.origin) and origin.generation < self.context.state.generation

    def on_census(self, source: Address, census: m.WorkerCensus) -> None:
        known = self.context.state.workers.get(source.id)
        if census.generation != self.context.state.generation:
            return  # trap: what it told another one; more may have been granted since
        if known != (source.epoch, census.process) or not self._is_earlier(census.origin) or source.id in self._told:
            return
        if self.context.state.leases.fences:
            return  # splits of the dead are given back first: one of them may be held by whom it was handed on to
        self.context.checked()
        if self.leases.adopt(source, census):
            self._told.add(source.id)
