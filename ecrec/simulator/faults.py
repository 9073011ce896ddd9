"""Faults: when they strike, whom they may hit, and when they are over.

At most r shards of a group are not whole at the same time, unless the plan says otherwise: a shard counts as whole
only when the scheduler has announced it.
"""

import random
from collections import defaultdict
from typing import TYPE_CHECKING

from ecrec.protocol import events as e
from ecrec.protocol import messages as m
from ecrec.protocol.messages import SHARD, WORKER
from ecrec.protocol.placement import Placement
from ecrec.simulator.network import Process
from ecrec.simulator.plan import Fault
from ecrec.simulator.story import ViolationError

if TYPE_CHECKING:
    from ecrec.simulator.cluster import Cluster

NEVER = 1 << 40
"""A count that no message reaches."""

RETRY_MS = 15.0
"""A fault that the code could not stand now is tried again after so long,"""
RETRIES_MAX = 40
"""at most so often."""

AIMED_MS = 8_000.0
"""Aimed faults that did not find their message until then are given up."""

SERVICE_MS_MAX = 4.0
"""What a message costs a slow shard: with that it still gets through what the others send, but late."""

LIVENESS_MS = 20_000.0
"""After the last fault everything must be whole and quiet within this."""


class Faults:
    """Strikes according to the plan, and keeps count of the dead."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.plan = cluster.plan
        self.rng = random.Random(self.plan.seed * 2 + 2)
        self.began = False
        """The tables are there: faults may strike."""
        self.saves_until_ms = 0.0
        self.quiet = False
        self.quiet_at_ms = 0.0
        self.deadline_ms = 0.0
        self.deaths = 0
        self.must_lose = ""
        self.counts = cluster.coverage.faults
        self._isolated: dict[Process, float] = {}
        self._pending = 0
        self._aimed: dict[str, list[tuple[int, Fault]]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._doomed: dict[tuple[int, int], float] = {}
        """Stalled incarnations that the scheduler may take for dead -> when it is clear that it did not."""
        self._crash_scheduler_at: float | None = None

    # ------------------------------------------------------------------ from the run
    def announced(self, group: int, view: m.View) -> None:
        """A view was sent for the first time."""
        base = group * self.plan.n
        if isinstance(view, m.TableAdded) and not self.began:
            # Only from here on is there something to lose.
            self._begin()
            for at_ms in self.plan.scrubs_ms:
                self.cluster.post(self.cluster.now_ms + at_ms, self.cluster.start_tool)
        elif isinstance(view, m.ShardDown):
            shard = base + view.shard
            process = self.cluster.shards.get(shard)
            alive = process is not None and process.alive and process.address.epoch == view.epoch
            if alive and (shard, view.epoch) not in self._doomed:
                raise ViolationError(f"shard {shard} (epoch {view.epoch}) is declared dead and is not", [shard])
        elif isinstance(view, m.DataLost | m.Reinitialise) and not self.plan.too_many:
            raise ViolationError(f"said to be lost, with no more deaths than the code stands: {view.reason}")
        for kind, aimed in self._aimed.items():
            since = type(view).__name__
            self._aimed[kind] = [(self._counts[kind] + f.count if f.since == since else at, f) for at, f in aimed]
        # Before anybody has heard of it.
        self._strike_aimed(type(view).__name__, None, None)

    def _begin(self) -> None:
        self.began = True
        now_ms = self.cluster.now_ms
        self.saves_until_ms = now_ms + self.plan.saves_ms
        last_ms = 0.0
        for fault in self.plan.faults:
            if fault.message:
                at = NEVER if fault.since else self._counts[fault.message] + fault.count
                self._aimed[fault.message].append((at, fault))
            else:
                self._pending += 1
                self.cluster.post(now_ms + fault.at_ms, self._strike, fault, 0)
            last_ms = max(last_ms, fault.at_ms)
        self.cluster.post(now_ms + last_ms + 1.0, self._calm)

    def _calm(self) -> None:
        """The safety phase is over as soon as every fault has struck or given up: from now on nothing goes wrong."""
        if self._pending or self.cluster.scheduler is None or self._crash_scheduler_at is not None:
            self.cluster.post(self.cluster.now_ms + RETRY_MS, self._calm)
            return
        busy = any(not worker.finished for worker in self.cluster.workers)
        if self._aimed and busy and self.cluster.now_ms < AIMED_MS:
            self.cluster.post(self.cluster.now_ms + RETRY_MS, self._calm)
            return
        self.quiet = True
        self._aimed.clear()
        self.cluster.calm_links()
        if self.cluster.tool:
            self.cluster.tool.stop()
        self.quiet_at_ms = self.cluster.now_ms
        self.deadline_ms = self.quiet_at_ms + LIVENESS_MS
        self.cluster.note("faults stop")

    def placed(self, process: Process) -> None:
        """A process has become an incarnation, and has sent nothing yet."""
        self._strike_aimed("Start", process, process)

    def delivered(self, kind: str, source: Process, to: Process) -> None:
        """A message was delivered: is a fault aimed at it?"""
        self._strike_aimed(kind, source, to)
        self._strike_aimed("any", source, to)

    def _strike_aimed(self, kind: str, source: Process | None, to: Process | None) -> None:
        self._counts[kind] += 1
        aimed = self._aimed.get(kind)
        if not aimed or self.quiet:
            return
        for item in list(aimed):
            if self._counts[kind] >= item[0]:
                aimed.remove(item)
                if not aimed:
                    del self._aimed[kind]
                self._pending += 1
                self._strike(item[1], 0, source, to)

    def effects_before_crash(self, process: Process, effects: int) -> int:
        """Where in the list of a machine's effects a crash of the scheduler strikes; -1: it does not."""
        if self._crash_scheduler_at is None or process is not self.cluster.scheduler or not effects:
            return -1
        return self.rng.randrange(effects)

    # ------------------------------------------------------------------ striking
    def _strike(self, fault: Fault, tries: int, source: Process | None = None, to: Process | None = None) -> None:
        done = getattr(self, "_strike_" + fault.kind.replace("-", "_"))(fault, source, to)
        if not done and tries < RETRIES_MAX and not self.cluster.record.lost:
            self.cluster.post(self.cluster.now_ms + RETRY_MS, self._strike, fault, tries + 1)
        else:
            self._pending -= 1

    def _missed(self, group: int) -> set[int]:
        """Shards of a group that are not whole now."""
        n, record = self.plan.n, self.cluster.record
        out = set()
        for shard in range(group * n, group * n + n):
            process = self.cluster.shards.get(shard)
            there = process is not None and process.alive and process.address.epoch == record.epochs.get(shard, 0)
            if not there or not record.whole.get(shard):
                out.add(shard)
        return out

    def _given_up(self, group: int) -> set[int]:
        """Those that the scheduler may soon give up: of two that do not reach each other it is one."""
        n, epochs = self.plan.n, self.cluster.record.epochs
        shards = range(group * n, group * n + n)
        return {s for s in shards if self._doomed.get((s, epochs.get(s, 0)), 0.0) > self.cluster.now_ms}

    def _not_whole(self, group: int) -> set[int]:
        """Both."""
        return self._missed(group) | self._given_up(group)

    def _victim(self, fault: Fault, source: Process | None, to: Process | None) -> Process | None:
        """A running shard whose death the code stands, or None."""
        group = self.rng.randrange(self.plan.groups)
        at_hand = source if fault.side == "sender" else to if fault.side == "receiver" else None
        if at_hand is not None and at_hand.role == SHARD and at_hand.alive and at_hand.address.epoch:
            group = at_hand.address.id // self.plan.n
        else:
            at_hand = None
        missed = self._missed(group)
        gone = missed | self._given_up(group)
        n, tolerance = self.plan.n, self.plan.tolerance
        running = [
            p
            for s in range(group * n, group * n + n)
            if (p := self.cluster.shards.get(s)) is not None
            and p.alive
            and (s in missed or len(gone | {s}) <= tolerance or fault.beyond)
        ]
        if at_hand in running:
            return at_hand
        recovering = [p for p in running if p.address.id in gone]
        if fault.prefer_recovering and recovering:
            return self.rng.choice(recovering)
        return self.rng.choice(running) if running else None

    def _strike_crash(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        hit = 0
        for _ in range(fault.burst):
            process = self._victim(fault, source, to)
            if process is not None:
                hit += 1
                self.counts[f"crash of a shard at {'a message' if fault.message else 'any time'}"] += 1
                self._kill(process, fault)
        if hit > 1 and hit == self.plan.tolerance:
            self.counts["r simultaneous crashes, r > 1"] += 1
        return hit > 0

    def _kill(self, process: Process, fault: Fault) -> None:
        self.deaths += 1
        address = process.address
        whole = self.cluster.record.whole
        if not whole.get(address.id):
            self.counts["crash of a recovering shard"] += 1
        elif not all(whole.get(s) for s in self._group_of(address.id)):
            self.counts["crash of a shard in a recovery"] += 1
        self.cluster.kill(process, f"crash ({fault.message or 'at random'})")
        self._notice(process, fault.noticed)
        wanted = address.id if self.plan.named else -1
        self.cluster.post(self.cluster.now_ms + 0.1 + fault.lasts_ms, self.cluster.start_shard, wanted)

    def _group_of(self, shard: int) -> range:
        base = shard // self.plan.n * self.plan.n
        return range(base, base + self.plan.n)

    def _notice(self, process: Process, noticed: bool) -> None:
        """The scheduler sees the connection close, after the grace, if it is the one that had it."""
        scheduler = self.cluster.scheduler
        if not noticed or scheduler is None or not process.address.epoch:
            return
        at_ms = self.cluster.now_ms + self.plan.config.reconnect_grace_ms + self.rng.random() * 5.0
        self.cluster.post(at_ms, self._disconnected, scheduler, process)

    def _disconnected(self, scheduler: Process, process: Process) -> None:
        if scheduler.alive:
            self.cluster.handle(scheduler, e.Disconnected(process.address))

    def _strike_massacre(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """More deaths at once than a class of some table can stand."""
        group = self.rng.randrange(self.plan.groups)
        placement = Placement(self.plan.n)
        for table in self.plan.tables:
            placement.add(table.code)
        stripe = self.rng.choice([s for s in placement.classes if len(s.parity) == self.plan.tolerance])
        some = self.rng.sample(stripe.data + stripe.parity, self.plan.tolerance + 1)
        members = [group * self.plan.n + s for s in some]
        processes = [self.cluster.shards.get(s) for s in members]
        if any(p is None or not p.alive for p in processes) or self._not_whole(group) & set(members):
            return False
        self.must_lose = f"shards {members} at {self.cluster.now_ms:.3f} ms"
        self.counts["more than r simultaneous crashes"] += 1
        for process in processes:
            assert process is not None
            self._kill(process, fault)
        return True

    def _strike_pause(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A process that gets no CPU for a while, too short to be taken for dead."""
        process = self.rng.choice([p for p in self.cluster.processes.values() if p.alive])
        if process.paused_until_ms <= self.cluster.now_ms:
            self.cluster.note(f"pauses for {fault.lasts_ms:.1f} ms", process.label)
            self.counts["stuck shard"] += process.role == SHARD
            process.paused_until_ms = self.cluster.now_ms + fault.lasts_ms
        return True

    def _strike_stall(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A pause so long that the scheduler takes the shard for dead; it comes back as a ghost of its incarnation."""
        process = self._victim(fault, None, None)
        if process is None or self.cluster.scheduler is None:
            return False
        process.paused_until_ms = self._doom(process, fault)
        self.cluster.note(f"stalls for {fault.lasts_ms:.1f} ms", process.label)
        self.counts["stalled shard, taken for dead"] += 1
        return True

    def _doom(self, process: Process, fault: Fault) -> float:
        """The scheduler may take it for dead: it will not hear of it until the time that is returned."""
        until_ms = self.cluster.now_ms + fault.lasts_ms
        # Long enough for a scheduler that was just restarted to give it the whole time-out again.
        over_ms = until_ms + 3 * self.plan.config.heartbeat_timeout_ms
        self._doomed[process.address.id, process.address.epoch] = over_ms
        self.deaths += 1
        return until_ms

    def _strike_slow_pair(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """One direction between two shards becomes slow."""
        running = [p for p in self.cluster.shards.values() if p.alive]
        if len(running) < 2:
            return False
        a, b = self.rng.sample(running, 2)
        link = self.cluster.link(a, b)
        link.slow_until_ms = self.cluster.now_ms + fault.lasts_ms
        link.slow_ms = fault.lasts_ms * self.rng.random()
        self.counts["slow link"] += 1
        self.cluster.note(f"slow link to {b.label}: {link.slow_ms:.1f} ms for {fault.lasts_ms:.1f} ms", a.label)
        return True

    def _strike_worker_stall(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A worker stands still, maybe so long that it is given up; then it comes back as a ghost."""
        process = self.cluster.worker_process(self.rng.randrange(self.plan.workers))
        if process is not None and process.paused_until_ms <= self.cluster.now_ms:
            self.cluster.note(f"stalls for {fault.lasts_ms:.1f} ms", process.label)
            process.paused_until_ms = self.cluster.now_ms + fault.lasts_ms
            self.counts["stalled worker"] += 1
        return True

    def _strike_slow_shard(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A shard that takes its time over every message."""
        running = [p for p in self.cluster.shards.values() if p.alive]
        if not running:
            return False
        process = to if to in running else self.rng.choice(running)
        process.slow_until_ms = self.cluster.now_ms + fault.lasts_ms
        process.service_ms = self.rng.random() * SERVICE_MS_MAX
        self.counts["slow shard"] += 1
        self.cluster.note(f"is slow for {fault.lasts_ms:.1f} ms: {process.service_ms:.2f} ms a message", process.label)
        return True

    def _strike_partition(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """One direction between two processes is cut; the other is not."""
        cluster, scheduler = self.cluster, self.cluster.scheduler
        running = [p for p in cluster.shards.values() if p.alive]
        workers = [p for p in cluster.processes.values() if p.alive and p.role == WORKER]
        until_ms = cluster.now_ms + fault.lasts_ms
        if fault.side == "peers":
            if len(running) < 2:
                return False
            ends, what = self.rng.sample(running, 2), "of two shards"
            if source in running:
                ends = [source, ends[0] if ends[0] is not source else ends[1]]
            if fault.lasts_ms > self.plan.config.link_timeout_ms:
                group = ends[0].address.id // self.plan.n
                gone = self._not_whole(group)
                apart = group != ends[1].address.id // self.plan.n
                if apart or len(gone) >= self.plan.tolerance or gone & {end.address.id for end in ends}:
                    return False
                for end in ends:
                    self._doom(end, fault)
                self.deaths -= 1  # one of them is replaced
                what = "of two shards, until one is replaced"
        elif fault.side == "worker":
            if not running or not workers:
                return False
            ends, what = [self.rng.choice(workers), self.rng.choice(running)], "of a worker and a shard"
            self.rng.shuffle(ends)
        elif scheduler is None or not running:
            return False
        elif fault.side == "from-scheduler":
            # Aimed at a view, it hits one of those who repair and seed.
            whole = [p for p in running if self.cluster.record.whole.get(p.address.id)]
            some = whole if fault.message and whole else running + workers
            ends, what = [scheduler, self.rng.choice(some)], "from the scheduler"
        else:
            process = self._victim(fault, None, None)
            if process is None:
                return False
            self._doom(process, fault)
            ends, what = [process, scheduler], "to the scheduler: taken for dead, and works on"
            self._isolated[process] = until_ms
        cluster.link(*ends).cut_until_ms = until_ms
        self.counts[f"partition, one way, {what}"] += 1
        cluster.note(f"cannot reach {ends[1].label} for {fault.lasts_ms:.1f} ms", ends[0].label)
        return True

    def isolated_until_ms(self, process: Process) -> float:
        """No scheduler, not even one that has just been started, hears of the process until then."""
        return self._isolated.get(process, -1.0)

    def _strike_clock(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A monotonic clock jumps ahead, as after a sleep of the machine. By its contract it never goes back."""
        if fault.side == "scheduler":
            some = [self.cluster.scheduler] if self.cluster.scheduler else []
        else:
            some = [p for p in self.cluster.processes.values() if p.alive and p.role in (SHARD, WORKER)]
        if not some:
            return False
        process = self.rng.choice(some)
        process.clock_ms += fault.lasts_ms
        self.counts[f"jump of {('a shard', 'a worker', 'the scheduler')[process.role]}'s clock"] += 1
        self.cluster.note(f"clock jumps by {fault.lasts_ms:.1f} ms", process.label)
        return True

    def _strike_worker(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A worker dies, with the pushes that it had in flight, and comes back as another process."""
        number = self.rng.randrange(self.plan.workers)
        process = self.cluster.worker_process(number)
        if process is None or self.cluster.workers[number].finished or process.machine.failed:
            return True
        self.cluster.kill(process, "crash of a worker")
        self.counts["crash of a worker"] += 1
        self.cluster.post(self.cluster.now_ms + 0.1 + fault.lasts_ms, self.cluster.start_worker, number)
        return True

    def _strike_scheduler(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        if self.cluster.scheduler is None:
            return False
        self._crash_scheduler_at = fault.lasts_ms
        if self.rng.random() < 0.4:  # in the middle of what it does next, if it does anything soon
            self.cluster.post(self.cluster.now_ms + 200.0, self._crash_idle_scheduler)
        else:
            self.crash_scheduler("at rest")
        return True

    def _crash_idle_scheduler(self) -> None:
        if self._crash_scheduler_at is not None:
            self.crash_scheduler("at rest")

    def crash_scheduler(self, why: str) -> None:
        scheduler, lasts_ms = self.cluster.scheduler, self._crash_scheduler_at
        assert scheduler is not None and lasts_ms is not None
        self._crash_scheduler_at = None
        self.counts[f"crash of the scheduler {why}"] += 1
        if not all(self.cluster.record.whole.values()):
            self.counts["crash of the scheduler in a recovery"] += 1
        self.cluster.kill(scheduler, f"crash {why}")
        self.cluster.post(self.cluster.now_ms + 0.1 + lasts_ms, self.cluster.start_scheduler)

    def stopped(self, process: Process, reason: str) -> None:
        """A machine asked its process to end: only one that was declared dead may."""
        address = process.address
        self.cluster.kill(process, f"stops: {reason}")
        if process.role != SHARD or not address.epoch or (address.id, address.epoch) not in self.cluster.record.down:
            raise ViolationError(f"{process.label} stops, and was not declared dead: {reason}", [address.id])
        wanted = address.id if self.plan.named else -1
        self.cluster.post(self.cluster.now_ms + self.rng.random() * 50.0, self.cluster.start_shard, wanted)
