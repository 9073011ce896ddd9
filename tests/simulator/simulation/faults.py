"""Faults: when they strike, whom they may hit, and when they are over.

At most r shards of a group are not whole at the same time, unless the plan says otherwise: a shard counts as whole
only when the scheduler has announced it.

This file is long because each kind of fault is one `_strike_<name>`, and all share whom the others have hit already.
"""

import random
from collections import defaultdict

import numpy as np

from ecrec._native import Capture
from ecrec.protocol import events as e
from ecrec.protocol import messages as m
from ecrec.protocol.messages import SCHEDULER, SHARD, TOOL, WORKER, Address
from ecrec.protocol.placement import Placement
from ecrec.protocol.state import read_state
from ecrec.protocol.transitions import NOT_COPIED
from simulation import strangers
from simulation.network import Link, Process
from simulation.plan import PAUSE, Fault
from simulation.story import ViolationError, show_keys
from simulation.world import World

NEVER = 1 << 40
"""A count that no message reaches."""

RETRY_MS = 15.0
"""A fault that the code could not stand now is tried again after so long,"""
RETRIES_MAX = 40
"""at most so often."""

LINK_MS = 1.0
"""A connection is made, or known to be broken, after so long."""
CALM_TRIES_MAX = 400
"""What is to stay broken waits for all to be whole at most so often."""

AIMED_MS = 8_000.0
"""Aimed faults that did not find their message until then are given up."""

SERVICE_MS_MAX = 4.0
"""What a message costs a slow shard: with that it still gets through what the others send, but late."""

SILENCE_GAP_MS = 30.0
"""Those that are silenced together are within so long."""

LIVENESS_MS = 20_000.0
"""After the last fault everything must be whole and quiet within this."""


BARELY_TRIES = 30
"""With leases: so often a moment is waited for in which only workers know the newest state."""
LOOKS, LOOK_EVERY_MS = 200, 100.0
"""How often somebody looks at a scheduler whose state only workers know to be old."""
OLDER_THAN_WORKERS = "a state that only workers know to be old"
COPY_DAMAGED = "copy of the scheduler's state that cannot be read"

COPIES_DAMAGED_RATE = 0.4
"""Adoptions in which copies of the scheduler's state are damaged."""


class Faults:
    """Strikes according to the plan, and keeps count of the dead."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan = world.plan
        self.rng = random.Random(self.plan.seed * 2 + 2)
        self._rng_copies = random.Random(self.plan.seed * 2 + 3)
        """Of its own, so that all else goes as it would without damaged copies."""
        self._rng_leaves = random.Random(self.plan.seed * 2 + 5)
        """Of its own for the same reason."""
        self._leaving: dict[Process, Fault] = {}
        """Servers that were told to end,"""
        self._stayed: set[Process] = set()
        """and those of them that were told that they need not."""
        self.began = False
        """The tables are there: faults may strike."""
        self.saves_until_ms = 0.0
        self.quiet = False
        self.quiet_at_ms = 0.0
        self.deadline_ms = 0.0
        self.deaths = 0
        self.must_lose = ""
        self.flipped: set[int] = set()
        """Keys of the stripes that have a damaged parity row."""
        self.gone: set[int] = set()
        """Workers that died for good."""
        self.unreplaced = 0
        """Shards that died for good."""
        self._flips = 0
        self._calm_tries = 0
        self._sick: Process | None = None
        """The shard whose links stay bad."""
        self.counts = world.coverage.faults
        self._isolated: dict[Process, float] = {}
        """Shards that the scheduler does not hear -> until when."""
        self._alone_until_ms = -1.0
        """The scheduler hears no shard until then,"""
        self._unreached_until_ms = -1.0
        """and reaches none."""
        self._silenced: dict[Process, float] = {}
        """Shards that nobody hears, and that hear nobody -> until when."""
        self._pending = 0
        self._aimed: dict[str, list[tuple[int, Fault]]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._at_risk: dict[tuple[int, int], float] = {}
        """Stalled incarnations that the scheduler may take for dead -> when it is clear that it did not."""
        self._crash_scheduler_at: float | None = None
        self._state_before: bytes | None = None
        """What was persisted before a scheduler lost its state."""
        self._newest_state: bytes | None = None
        self._waited_for_barely = 0
        """Of a scheduler that was started with another one, which it is to refuse."""
        self.torn: bytes | None = None
        """A damaged state with which the scheduler is started next."""
        self._placed_ms: dict[Process, float] = {}

    # ------------------------------------------------------------------ from the run
    def announced(self, group: int, view: m.View) -> None:
        """A view was sent for the first time."""
        base = group * self.plan.n
        if isinstance(view, m.TableAdded) and not self.began:
            # Only from here on is there something to lose.
            self._begin()
            self.world.begin_checkpoints()
            for at_ms in self.plan.scrubs_ms:
                self.world.post(self.world.now_ms + at_ms, self.world.start_tool)
        elif isinstance(view, m.ShardDown):
            shard = base + view.shard
            process = self.world.shards.get(shard)
            alive = process is not None and process.alive and process.address.epoch == view.epoch
            if alive and (shard, view.epoch) not in self._at_risk and process not in self._leaving:
                raise ViolationError(f"shard {shard} (epoch {view.epoch}) is declared dead and is not", [shard])
            if alive and process in self._leaving and (shard, view.epoch) not in self._at_risk:
                self._check_redundancy(shard)
        elif isinstance(view, m.SuccessionOver):
            self.counts["succession given up"] += 1
        elif isinstance(view, m.DataLost | m.Reinitialise) and not self.plan.too_many:
            raise ViolationError(f"said to be lost, with no more deaths than the code tolerates: {view.reason}")
        for kind, aimed in self._aimed.items():
            since = type(view).__name__
            self._aimed[kind] = [(self._counts[kind] + f.count if f.since == since else at, f) for at, f in aimed]
        # Before anybody has heard of it.
        self._strike_aimed(type(view).__name__, None, None)

    def _begin(self) -> None:
        self.began = True
        self.world.coverage.began(self.plan)
        now_ms = self.world.now_ms
        self.saves_until_ms = now_ms + self.plan.saves_ms
        codes = [bool(table.code.r) for table in self.plan.tables]
        self.counts["rows without parity next to coded ones"] += any(codes) and not all(codes)
        last_ms = 0.0
        for fault in self.plan.faults:
            if fault.message:
                at = NEVER if fault.since else self._counts[fault.message] + fault.count
                self._aimed[fault.message].append((at, fault))
            else:
                self._pending += 1
                self.world.post(now_ms + fault.at_ms, self._strike, fault, 0)
            last_ms = max(last_ms, fault.at_ms)
        self.world.post(now_ms + last_ms + 1.0, self._calm)

    def _calm(self) -> None:
        """The safety phase is over as soon as every fault has struck or given up: from now on nothing goes wrong."""
        if self._pending or self.world.scheduler is None or self._crash_scheduler_at is not None:
            self.world.post(self.world.now_ms + RETRY_MS, self._calm)
            return
        busy = any(not worker.finished for worker in self.world.workers)
        if self._aimed and busy and self.world.now_ms < AIMED_MS:
            self.world.post(self.world.now_ms + RETRY_MS, self._calm)
            return
        self._calm_tries += 1
        patient = self._calm_tries < CALM_TRIES_MAX and not self.world.record.lost
        if self.plan.broken and patient and not self._stay_broken():
            self.world.post(self.world.now_ms + RETRY_MS, self._calm)
            return
        self.quiet = True
        self._aimed.clear()
        self.world.calm_links()
        if self.world.tool:
            self.world.tool.stop()
        self.quiet_at_ms = self.world.now_ms
        self.deadline_ms = self.quiet_at_ms + LIVENESS_MS
        self.world.note("faults stop")

    # ------------------------------------------------------------------ what stays broken
    def _stay_broken(self) -> bool:
        """Something breaks for good, though the code tolerates it: the rest must go on."""
        world = self.world
        if self.plan.broken == "worker":
            number = self.rng.randrange(self.plan.workers)
            process = world.worker_process(number)
            if process is None:
                return False
            world.kill(process, "crash of a worker, for good")
            self.gone.add(number)
        elif self.plan.broken == "links":
            running = [p for p in world.shards.values() if p.alive]
            if not running:
                return False
            self._sick = self.rng.choice(running)
        else:
            if any(self._missed(group) for group in range(self.plan.groups)):
                return False
            for _ in range(self.rng.randint(1, self.plan.tolerance)):
                process = self._victim(Fault("crash"), None, None)
                if process is not None:
                    self.unreplaced += 1
                    self.deaths += 1
                    world.kill(process, "crash, for good")
                    self._notice(process, self.rng.random() < 0.5)
            if not self.unreplaced:
                return False
        self.counts[f"stays broken while the rest goes on: {self.plan.broken}"] += 1
        return True

    def damage_left(self) -> bool:
        """Some damaged parity row is not yet corrected. (The answer that says so may get lost.)"""
        corrected: int = sum(p.machine.scrubs.corrected for p in self.world.shards.values())
        return corrected < self._flips

    def absent(self) -> set[int]:
        """Shards that stay dead."""
        if not self.unreplaced:
            return set()
        return {shard for shard, process in self.world.shards.items() if not process.alive}

    def takes_newcomer(self) -> bool:
        """A process that would be started does not come: others than it was meant for could take its place."""
        return self.quiet and self.unreplaced > 0

    def stays_lossy(self, link: Link) -> bool:
        return self._sick is not None and self._sick in (link.source, link.to)

    def placed(self, process: Process) -> None:
        """A process has become an incarnation, and has sent nothing yet."""
        self._placed_ms[process] = self.world.now_ms
        self._strike_aimed("FullView", process, process)

    def delivered(self, kind: str, source: Process, to: Process) -> None:
        """A message was delivered: is a fault aimed at it?"""
        self._strike_aimed(kind, source, to)
        self._strike_aimed("any", source, to)

    def paused(self, process: Process) -> None:
        """The machine of a process is in the middle of an event."""
        self._strike_aimed(PAUSE, process, process)

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
        if self._crash_scheduler_at is None or process is not self.world.scheduler or not effects:
            return -1
        return self.rng.randrange(effects)

    # ------------------------------------------------------------------ striking
    def _strike(self, fault: Fault, tries: int, source: Process | None = None, to: Process | None = None) -> None:
        done = getattr(self, "_strike_" + fault.kind.replace("-", "_"))(fault, source, to)
        if not done and tries < RETRIES_MAX and not self.world.record.lost:
            self.world.post(self.world.now_ms + RETRY_MS, self._strike, fault, tries + 1)
        else:
            self._pending -= 1

    def _missed(self, group: int) -> set[int]:
        """Shards of a group that are not whole now."""
        n, record = self.plan.n, self.world.record
        out = set()
        for shard in range(group * n, group * n + n):
            process = self.world.shards.get(shard)
            there = process is not None and process.alive and process.address.epoch == record.epochs.get(shard, 0)
            if not there or not record.whole.get(shard):
                out.add(shard)
        return out

    def _given_up(self, group: int) -> set[int]:
        """Those that the scheduler may soon give up: of two that do not reach each other it is one; or let go."""
        n, epochs = self.plan.n, self.world.record.epochs
        shards = range(group * n, group * n + n)
        at_risk = {s for s in shards if self._at_risk.get((s, epochs.get(s, 0)), 0.0) > self.world.now_ms}
        # One that is copied is not let go without a successor before that is given up, and all others are whole.
        copied = self._succeeded(group)
        return at_risk.union(p.address.id for p in self.leavers() if p.address.id in shards and p.address.id != copied)

    def _succeeded(self, group: int) -> int | None:
        """The shard of a group that is copied to a successor, as the scheduler has it; while that is away, nobody."""
        if self.world.scheduler is None:
            return None
        succeeding = self.world.scheduler.machine.state.groups[group].succeeding
        return None if succeeding is None else group * self.plan.n + succeeding.shard

    def _check_redundancy(self, shard: int) -> None:
        """A living server that was told to end is let go, and its rows with it: only if nobody could succeed it."""
        scheduler = self.world.scheduler
        assert scheduler is not None
        machine, group = scheduler.machine, shard // self.plan.n
        groups = machine.state.groups
        wanted = sum(len(each.settlements) + (each.succeeding is not None) for each in groups if not each.lost)
        spares = machine.admission.spares - wanted + 1  # of the settlements, one is that of this shard itself
        hands_over = self.plan.config.hand_over and machine.state.tables and not groups[group].lost
        tries = machine.successions.tried(group, shard % self.plan.n)
        if tries >= self.plan.config.succession_tries_max:
            self.counts["server let go that could not be handed over"] += 1
        elif hands_over and spares > 0:
            raise ViolationError(f"shard {shard} is let go, and its copy with it, though a spare waits", [shard])
        self.counts["server let go without a spare"] += 1

    def leavers(self) -> list[Process]:
        """Servers that were told to end, and were not let go yet."""
        down = self.world.record.down
        there = [p for p in self._leaving if p.alive and (p.address.id, p.address.epoch) not in down]
        return [p for p in there if p not in self._stayed or p.machine.departure.is_asked]

    def _not_whole(self, group: int) -> set[int]:
        """Both."""
        return self._missed(group) | self._given_up(group)

    def _victim(self, fault: Fault, source: Process | None, to: Process | None) -> Process | None:
        """A running shard whose death the code tolerates, or None."""
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
            if (p := self.world.shards.get(s)) is not None
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
        whole = self.world.record.whole
        if not whole.get(address.id):
            self.counts["crash of a recovering shard"] += 1
        elif not all(whole.get(s) for s in self._group_of(address.id)):
            self.counts["crash of a shard in a recovery"] += 1
        self.world.kill(process, f"crash ({fault.message or 'at random'})")
        self._notice(process, fault.noticed)
        wanted = address.id if self.plan.named else -1
        self.world.post(self.world.now_ms + 0.1 + fault.lasts_ms, self.world.start_shard, wanted)

    def _group_of(self, shard: int) -> range:
        base = shard // self.plan.n * self.plan.n
        return range(base, base + self.plan.n)

    def _notice(self, process: Process, noticed: bool) -> None:
        """The scheduler sees the connection close, if it is the one that had it."""
        scheduler = self.world.scheduler
        if not noticed or scheduler is None or not process.address.epoch:
            return
        for other in [*self.world.shards.values(), scheduler]:
            if other is not process:
                self.world.post(self.world.now_ms + LINK_MS, self._link, other, process.address, False)

    def connects(self, process: Process, address: Address) -> None:
        """A server opens a connection to an incarnation of a shard; it is made if that one lives."""
        if process.role in (SHARD, SCHEDULER):
            self.world.post(self.world.now_ms + LINK_MS, self._link, process, address, True)

    def _link(self, process: Process, address: Address, up: bool) -> None:
        target = process.links.get(address)
        if not process.alive or (up and (target is None or not target.alive)):
            return
        if process.paused_until_ms > self.world.now_ms:
            self.world.post(process.paused_until_ms, self._link, process, address, up)
            return
        if up:
            self.world.linked(process, address)
        else:
            self.world.unlinked(process, address)

    def _strike_disconnect(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """The scheduler's connections to living shards close, and nothing else does."""
        scheduler, now_ms = self.world.scheduler, self.world.now_ms
        # Who has just been placed is not connected to everywhere: there is nobody to ask about it.
        settled_ms = now_ms - self.plan.config.heartbeat_timeout_ms
        some = [p for p in self.world.shards.values() if p.alive and self._placed_ms.get(p, now_ms) < settled_ms]
        if scheduler is None or not some:
            return False
        hit = self.rng.sample(some, min(fault.burst, len(some)))
        for process in hit:
            self._link(scheduler, process.address, False)
            # It comes back, but not within the grace.
            at_ms = now_ms + self.plan.config.reconnect_grace_ms + 2 * self.plan.tick_ms + self.rng.random() * 1000.0
            self.world.post(at_ms, self._link, scheduler, process.address, True)
        self.counts["closed connection to a living shard"] += 1
        if len(hit) > self.plan.tolerance:
            self.counts["closed connections to more living shards than the code tolerates"] += 1
        names = ", ".join(process.label for process in hit)
        self.world.note(f"loses its connections to {names}, which live", scheduler.label)
        return True

    def _strike_copy(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A process registers under the endpoint of a living shard, for less than it takes to be refused."""
        scheduler = self.world.scheduler
        running = [p for p in self.world.shards.values() if p.alive]
        if scheduler is None or not running:
            return False
        process = self.rng.choice(running)
        register = m.Register(f"copy of {process.name}", process.machine.endpoint, process.address.id)
        self.counts["registration under a living shard's endpoint"] += 1
        self.world.note(f"is registered at by another process, {register.process}", process.label)
        nobody = Address(SHARD, -1, 0)
        scheduler.routes.pop(nobody, None)  # an answer is not for another process without a place
        self.world.handle(scheduler, e.Received(nobody, register))
        return True

    def _strike_stranger(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """Somebody sends a server all that it must not take, some of it so often that it is ignored."""
        living = [p for p in self.world.processes.values() if p.alive and p.role in (SHARD, SCHEDULER)]
        if not living:
            return False
        process = living[fault.count % len(living)]
        self.world.note("is sent what nobody takes", process.label)
        for _ in range(fault.burst):
            for strange in strangers.messages(process, fault.count):
                self.world.arrives(process, strange)
        self.counts["stranger sends what nobody takes"] += 1
        return True

    def _strike_deaf(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A shard hears nothing of the scheduler, which hears it, for so long that it is replaced."""
        scheduler, process = self.world.scheduler, self._victim(fault, None, None)
        if scheduler is None or process is None or process not in self._placed_ms:
            return False
        until_ms = self.world.link(scheduler, process).cut_until_ms = self._put_at_risk(process, fault)
        config = self.plan.config
        begin_ms = self.world.now_ms + config.heartbeat_timeout_ms
        end_ms = begin_ms + config.view_timeout_ms + 2 * config.heartbeat_timeout_ms
        if config.view_timeout_ms and end_ms < until_ms:
            self.world.post(begin_ms, self._look_at_deaf, scheduler, process, end_ms)
        self.counts["partition, one way, from the scheduler, until it is replaced"] += 1
        self.world.note(f"hears nothing of the scheduler for {fault.lasts_ms:.1f} ms", process.label)
        return True

    def _strike_massacre(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """More deaths at once than a class of some table can stand."""
        group = self.rng.randrange(self.plan.groups)
        some = self.rng.sample(self.rng.choice(self._weakest()), self.plan.tolerance + 1)
        members = [group * self.plan.n + s for s in some]
        processes = [self.world.shards.get(s) for s in members]
        if any(p is None or not p.alive for p in processes) or self._not_whole(group) & set(members):
            return False
        self.must_lose = f"shards {members} at {self.world.now_ms:.3f} ms"
        self.counts["more than r simultaneous crashes"] += 1
        for process in processes:
            assert process is not None
            self._kill(process, fault)
        return True

    def _strike_leave(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """Servers are told to end, maybe more than the code tolerates: nobody leaves before nothing is lost with it."""
        rng, record, n = self._rng_leaves, self.world.record, self.plan.n
        shards = range(group := rng.randrange(self.plan.groups) * n, group + n)
        known = [p for s in shards if (p := self.world.shards.get(s)) is not None]
        here = [p for p in known if p.alive and p.address.epoch == record.epochs.get(p.address.id, 0)]
        # A death of which the scheduler cannot know yet, together with an end that it grants, may be one too many.
        dead = [p for p in known if p not in here and (p.address.id, p.address.epoch) not in record.down]
        at_risk = [p for p in here if self._at_risk.get((p.address.id, p.address.epoch), 0.0) > self.world.now_ms]
        free = [p for p in here if p not in self._leaving]
        if dead or at_risk or not free or len(known) < n:
            return False
        recovering = [p for p in free if not record.whole.get(p.address.id)]
        hit = rng.sample(free, min(fault.burst, len(free)))
        if fault.prefer_recovering and recovering:
            hit = [rng.choice(recovering)]
        missed = self._missed(group // n)
        for process in hit:
            self.counts["server told to end"] += 1
            self.counts["server told to end while it recovers"] += process in recovering
            self.counts["server told to end in a recovery"] += bool(missed - {process.address.id})
            self._leaving[process] = fault
            if fault.side == "drain":
                self._drain(process, stays=False)
                continue
            self.world.note("is told to end", process.label)
            self.world.handle(process, e.ToldToEnd())
        self.counts["more servers told to end at once than the code tolerates"] += len(hit) > self.plan.tolerance
        return True

    def _drain(self, process: Process, stays: bool) -> None:
        """A tool asks the scheduler that a server ends, or stays, until the server knows."""
        scheduler, address = self.world.scheduler, process.address
        gone = not process.alive or process.core.stopped or (address.id, address.epoch) in self.world.record.down
        if gone or (process in self._stayed) != stays or process.machine.departure.is_asked != stays:
            return
        if scheduler is not None and scheduler.alive:
            self.world.note(f"is to be told to {'stay' if stays else 'end'}", process.label)
            drain = m.Drain(1, address.id, address.epoch, stays=stays)
            self.counts["drain asked by a tool" if not stays else "drain taken back by a tool"] += 1
            self.world.handle(scheduler, e.Received(Address(TOOL, 7, 0), drain))
        self.world.post(self.world.now_ms + RETRY_MS, self._drain, process, stays)

    def _strike_stay(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A server that was told to end need not."""
        leavers = [p for p in self.leavers() if p.machine.departure.is_asked and p not in self._stayed]
        if not leavers:
            return False
        process = self._rng_leaves.choice(leavers)
        self.counts["leave withdrawn"] += 1
        self.counts["leave withdrawn while it is copied"] += process.machine.handover.state != NOT_COPIED
        self._stayed.add(process)
        self._drain(process, stays=True)
        return True

    def _strike_successor(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A process that copies a shard dies."""
        some = [p for p in self.world.processes.values() if p.alive and p.role == SHARD and not p.machine.state]
        some = [p for p in some if p.machine.successor.since]
        if not some:
            return False
        process = to if to in some else source if source in some else self._rng_leaves.choice(some)
        assert process is not None
        self.counts["crash of a successor"] += 1
        self.counts["crash of a successor that has everything"] += process.machine.successor.end is not None
        self.world.kill(process, f"crash of a successor ({fault.message or 'at random'})")
        self._notice(process, fault.noticed)
        self.world.post(self.world.now_ms + 0.1 + fault.lasts_ms, self.world.start_shard, -1)
        return True

    def _left(self, process: Process) -> None:
        """A server that was told to end has ended: the scheduler must have decided it."""
        self._stayed.discard(process)
        address = process.address
        state = read_state(self.world.persisted or b"")
        place = state.groups[address.id // self.plan.n].places[address.id % self.plan.n]
        if place.epoch == address.epoch and place.state != m.DOWN:
            raise ViolationError(f"{process.label} ends, and was not let go", [address.id])
        # One that is down in the state may hear so before anybody has sent the view: the scheduler died in between.
        if place.epoch != address.epoch and (address.id, address.epoch) not in self.world.record.down:
            self._check_succeeded(process)
        self.deaths += 1
        self.counts["server that waited to leave"] += bool(process.machine.departure._reason)
        wanted = address.id if self.plan.named else -1
        lasts_ms = self._leaving[process].lasts_ms
        self.world.post(self.world.now_ms + 0.1 + lasts_ms, self.world.start_shard, wanted)

    def _check_succeeded(self, process: Process) -> None:
        """One that was not let go ends because another process has its place, and all that it had."""
        address, record = process.address, self.world.record
        epoch = record.epochs.get(address.id, 0)
        if epoch <= address.epoch or (address.id, address.epoch) not in record.cuts:
            raise ViolationError(f"{process.label} ends, and nobody has succeeded it", [address.id])
        if self.plan.named:
            return
        other = self.world.shards.get(address.id)
        heirs = [p for p in self.world.processes.values() if p.address == Address(SHARD, address.id, epoch)]
        if not heirs and (other is None or other.address.epoch <= address.epoch):
            raise ViolationError(f"{process.label} ends, and no process has its rows", [address.id])

    def _look_at_deaf(self, scheduler: Process, process: Process, end_ms: float) -> None:
        """A member that is behind, with all others whole, must be replaced before the end."""
        address = process.address
        group = address.id // self.plan.n
        over = not scheduler.alive or not process.alive or (address.id, address.epoch) in self.world.record.down
        if over or self._missed(group) or process.machine.view >= scheduler.machine.state.groups[group].view:
            return
        if self.world.now_ms < end_ms:
            self.world.post(end_ms, self._look_at_deaf, scheduler, process, end_ms)
            return
        raise ViolationError(f"{process.label} confirms no view, and is not replaced", [address.id])

    def _strike_pause(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A process that gets no CPU for a while, too short to be taken for dead."""
        process = self.rng.choice([p for p in self.world.processes.values() if p.alive])
        if process.paused_until_ms <= self.world.now_ms:
            self.world.note(f"pauses for {fault.lasts_ms:.1f} ms", process.label)
            self.counts["stuck shard"] += process.role == SHARD
            process.paused_until_ms = self.world.now_ms + fault.lasts_ms
        return True

    def _strike_stall(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A pause so long that the scheduler takes the shard for dead; it comes back as a ghost of its incarnation."""
        process = self._victim(fault, None, None)
        if process is None or self.world.scheduler is None:
            return False
        process.paused_until_ms = self._put_at_risk(process, fault)
        self.world.note(f"stalls for {fault.lasts_ms:.1f} ms", process.label)
        self.counts["stalled shard, taken for dead"] += 1
        return True

    def _put_at_risk(self, process: Process, fault: Fault) -> float:
        """The scheduler may take it for dead: it will not hear of it until the time that is returned."""
        until_ms = self.world.now_ms + fault.lasts_ms
        # Long enough for a scheduler that was just restarted to give it the whole time-out again.
        over_ms = until_ms + 3 * self.plan.config.heartbeat_timeout_ms
        self._at_risk[process.address.id, process.address.epoch] = over_ms
        self.deaths += 1
        return until_ms

    def _strike_slow_pair(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """One direction between two shards becomes slow."""
        running = [p for p in self.world.shards.values() if p.alive]
        if len(running) < 2:
            return False
        a, b = self.rng.sample(running, 2)
        link = self.world.link(a, b)
        link.slow_until_ms = self.world.now_ms + fault.lasts_ms
        link.slow_ms = fault.lasts_ms * self.rng.random()
        self.counts["slow link"] += 1
        self.world.note(f"slow link to {b.label}: {link.slow_ms:.1f} ms for {fault.lasts_ms:.1f} ms", a.label)
        return True

    def _strike_worker_stall(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A worker stands still, maybe so long that it is given up; then it comes back as a ghost."""
        process = self.world.worker_process(self.rng.randrange(self.plan.workers))
        if process is not None and process.paused_until_ms <= self.world.now_ms:
            self.world.note(f"stalls for {fault.lasts_ms:.1f} ms", process.label)
            process.paused_until_ms = self.world.now_ms + fault.lasts_ms
            self.counts["stalled worker"] += 1
        return True

    def _strike_slow_shard(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A shard that takes its time over every message."""
        running = [p for p in self.world.shards.values() if p.alive]
        if not running:
            return False
        process = to if to in running else self.rng.choice(running)
        process.slow_until_ms = self.world.now_ms + fault.lasts_ms
        process.service_ms = self.rng.random() * SERVICE_MS_MAX
        self.counts["slow shard"] += 1
        self.world.note(f"is slow for {fault.lasts_ms:.1f} ms: {process.service_ms:.2f} ms a message", process.label)
        return True

    def _strike_partition(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """One direction between two processes is cut; the other is not."""
        world, scheduler = self.world, self.world.scheduler
        running = [p for p in world.shards.values() if p.alive]
        workers = [p for p in world.processes.values() if p.alive and p.role == WORKER]
        until_ms = world.now_ms + fault.lasts_ms
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
                    self._put_at_risk(end, fault)
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
            whole = [p for p in running if self.world.record.whole.get(p.address.id)]
            some = whole if fault.message and whole else running + workers
            ends, what = [scheduler, self.rng.choice(some)], "from the scheduler"
        else:
            process = self._victim(fault, None, None)
            if process is None:
                return False
            self._put_at_risk(process, fault)
            ends, what = [process, scheduler], "to the scheduler: taken for dead, and works on"
            self._isolated[process] = until_ms
        world.link(*ends).cut_until_ms = until_ms
        self.counts[f"partition, one way, {what}"] += 1
        world.note(f"cannot reach {ends[1].label} for {fault.lasts_ms:.1f} ms", ends[0].label)
        return True

    def cut_until_ms(self, process: Process, target: Process) -> float:
        """Nothing goes from one process to another one until then, not even if one has just been started."""
        cuts = [self._silenced.get(process, -1.0), self._silenced.get(target, -1.0)]
        if target.role == SCHEDULER:
            cuts.append(self._isolated.get(process, -1.0))
        if target.role == SCHEDULER and process.role == SHARD:
            cuts.append(self._alone_until_ms)
        if process.role == SCHEDULER and target.role == SHARD:
            cuts.append(self._unreached_until_ms)
        return max(cuts)

    def _cut_links(self) -> None:
        """Cut off those links that are there, too."""
        for (process, target), link in self.world.links.items():
            link.cut_until_ms = max(link.cut_until_ms, self.cut_until_ms(process, target))

    def _strike_isolate(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """The scheduler hears no shard, for longer than it waits with those that nobody hears; all live."""
        if self.world.scheduler is None:
            return False
        self._alone_until_ms = self.world.now_ms + fault.lasts_ms
        if fault.side == "both":
            self._unreached_until_ms = self._alone_until_ms
        self._cut_links()
        self._lasts(fault.lasts_ms)
        self.counts["scheduler that hears nobody"] += 1
        self.world.note(f"hears no shard for {fault.lasts_ms:.1f} ms", self.world.scheduler.label)
        return True

    def _strike_silence(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """More living shards than the code tolerates fall silent within some milliseconds, for everybody."""
        group = self.rng.randrange(self.plan.groups)
        stripe = self.rng.choice(self._weakest())
        some = [group * self.plan.n + s for s in self.rng.sample(stripe, self.plan.tolerance + 1)]
        others = [s for s in range(group * self.plan.n, (group + 1) * self.plan.n) if s not in some]
        some += self.rng.sample(others, min(len(others), max(0, fault.burst - len(some))))
        processes = [p for s in some if (p := self.world.shards.get(s)) is not None and p.alive]
        if len(processes) < len(some) or self._missed(group) or self.leavers() or self.world.scheduler is None:
            return False
        for process in processes:
            gap_ms = self.rng.random() * SILENCE_GAP_MS
            self.world.post(self.world.now_ms + gap_ms, self._silence, process, self.world.now_ms + fault.lasts_ms)
        self._lasts(fault.lasts_ms)
        self.counts["more living shards silenced at once than the code tolerates"] += 1
        return True

    def _silence(self, process: Process, until_ms: float) -> None:
        self._silenced[process] = until_ms
        self._cut_links()
        self.world.note(f"is cut off from everybody for {until_ms - self.world.now_ms:.1f} ms", process.label)

    def _weakest(self) -> list[tuple[int, ...]]:
        """Members of the stripes that tolerate the fewest deaths."""
        placement = Placement(self.plan.n)
        for table in self.plan.tables:
            placement.add(table.code)
        return [s.data + s.parity for s in placement.classes if len(s.parity) == self.plan.tolerance]

    def _strike_slow_reader(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A shard gets to what others sent it, windows too, later than a link may be silent; all else of it goes on."""
        some = [p for p in self.world.shards.values() if p.alive and self.world.record.whole.get(p.address.id)]
        if not some:
            return False
        process = self.rng.choice(some)
        process.behind_ms = self.plan.config.link_timeout_ms * (1.2 + 0.6 * self.rng.random())
        process.behind_until_ms = self.world.now_ms + fault.lasts_ms
        self._lasts(fault.lasts_ms + process.behind_ms)
        self.counts["living shard that acknowledges late"] += 1
        self.world.note(f"reads {process.behind_ms:.1f} ms late for {fault.lasts_ms:.1f} ms", process.label)
        return True

    def _lasts(self, ms: float) -> None:
        """Faults do not stop before this one is over."""
        self._pending += 1
        self.world.post(self.world.now_ms + ms, self._over)

    def _over(self) -> None:
        self._pending -= 1

    def _strike_clock(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A monotonic clock jumps ahead, as after a sleep of the machine. By its contract it never goes back."""
        if fault.side == "scheduler":
            some = [self.world.scheduler] if self.world.scheduler else []
        else:
            some = [p for p in self.world.processes.values() if p.alive and p.role in (SHARD, WORKER)]
        if not some:
            return False
        process = self.rng.choice(some)
        process.clock_ms += fault.lasts_ms
        self.counts[f"jump of {('a shard', 'a worker', 'the scheduler')[process.role]}'s clock"] += 1
        self.world.note(f"clock jumps by {fault.lasts_ms:.1f} ms", process.label)
        return True

    def _strike_worker(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A worker dies, with the pushes that it had in flight, and comes back as another process."""
        number = self.rng.randrange(self.plan.workers)
        process = self.world.worker_process(number)
        if process is None or self.world.workers[number].finished or process.machine.failed:
            return True
        self.world.kill(process, "crash of a worker")
        self.counts["crash of a worker"] += 1
        self.world.post(self.world.now_ms + 0.1 + fault.lasts_ms, self.world.start_worker, number)
        return True

    def _strike_worker_twice(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """Another process begins to be a worker whose process lives on and pushes."""
        number = self.rng.randrange(self.plan.workers)
        process = self.world.worker_process(number)
        if process is None or self.world.workers[number].finished or process.machine.failed:
            return True
        self.counts["two living processes of a worker"] += 1
        self.world.start_worker(number)
        return True

    def _strike_scheduler(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        if self.world.scheduler is None:
            return False
        self._crash_scheduler_at = fault.lasts_ms
        if self.rng.random() < 0.4:  # in the middle of what it does next, if it does anything soon
            self.world.post(self.world.now_ms + 200.0, self._crash_idle_scheduler)
        else:
            self.crash_scheduler("at rest")
        return True

    def _strike_depose(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """Another scheduler leads, from the state that was persisted; the old one has yet to notice."""
        old = self.world.scheduler
        if old is None or self._crash_scheduler_at is not None or not self.plan.terms:
            return False
        old.deposed = True
        self.counts["deposed scheduler that goes on sending"] += 1
        self.world.note("is deposed", old.label)
        self.world.start_scheduler()
        self.world.post(self.world.now_ms + fault.lasts_ms, self._end_of_lease, old)
        return True

    def _end_of_lease(self, old: Process) -> None:
        if old.alive:
            self.world.kill(old, "it does not lead any more")

    def _strike_old_state(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """The scheduler comes back with a state that was persisted earlier, as after a restored backup."""
        known = max((p.machine.context.origin.serial for p in self.world.shards.values() if p.alive), default=0)
        older = [state for state in self.world.states if read_state(state).serial < known]
        workers = (self.world.worker_process(number) for number in range(self.plan.workers))
        told = max((p.machine.origin.serial for p in workers if p is not None and p.alive), default=0)
        barely = [state for state in self.world.states if known <= read_state(state).serial < told]
        if barely and self._rng_copies.random() < 0.8:
            # No shard ends it: it grants no split any more.
            if not self._restart_with(self._rng_copies.choice(barely), fault, OLDER_THAN_WORKERS, adopts=True):
                return False
            # Of what it does not know, dead workers tell nothing either.
            self.world.record.adopted = True
            self._operator_looks(fault, LOOKS)
            return True
        if self.plan.leases is not None and self._waited_for_barely < BARELY_TRIES:
            self._waited_for_barely += 1
            return False
        return bool(older) and self._restart_with(self.rng.choice(older), fault, "an older state")

    def _operator_looks(self, fault: Fault, times: int) -> None:
        """Somebody reads that no split is granted, and starts the scheduler with no state, to adopt."""
        scheduler = self.world.scheduler
        outdated = scheduler is not None and scheduler.machine.rebuilding.is_outdated
        if outdated and self._restart_with(None, fault, "no state", adopts=True):
            self.counts["scheduler that grants no split, for a worker knows more"] += 1
        elif times:
            self.world.post(self.world.now_ms + LOOK_EVERY_MS, self._operator_looks, fault, times - 1)

    def _strike_lost_state(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """The scheduler comes back with an empty state."""
        return self._restart_with(None, fault, "no state")

    def _strike_torn_state(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """The scheduler comes back with a state that was cut short, or with a bit turned over."""
        state = self.world.persisted
        if not state:
            return False
        at = self.rng.randrange(len(state))
        turned = state[:at] + bytes([state[at] ^ 1 << self.rng.randrange(8)]) + state[at + 1 :]
        damaged = self.rng.choice((state[:at], turned))
        if not self._restart_with(damaged, fault, "a damaged state"):
            return False
        self.torn = damaged
        return True

    def refused_torn(self, reason: str) -> None:
        """The scheduler did not start with a damaged state: it is started with none, to adopt, or with the newest."""
        self.world.note(f"does not start: {reason}", "scheduler")
        self.torn, self._newest_state = None, None
        self.world.persisted = None if self.world.adopts else self._state_before
        self.world.post(self.world.now_ms + self.rng.random() * 50.0, self.world.start_scheduler)

    def _restart_with(self, state: bytes | None, fault: Fault, what: str, adopts: bool = False) -> bool:
        """It may make its state again (surely if it ``adopts``), or is to refuse; then it is started with the newest
        one."""
        world, scheduler = self.world, self.world.scheduler
        if scheduler is None or self._crash_scheduler_at is not None or scheduler.machine.rebuilding.adoption:
            return False
        groups = scheduler.machine.state.groups
        if any(not group.view for group in groups):
            return False
        # What nobody that lives has heard of is lost with the state, and may be decided otherwise.
        for number, group in enumerate(groups):
            for shard, place in enumerate(group.places):
                process = world.shards.get(number * self.plan.n + shard)
                there = process is not None and process.alive and process.address.epoch == place.epoch
                if place.state != m.DOWN and (not there or process.machine.view != group.view):  # type: ignore[union-attr]
                    return False
        world.adopts = self.rng.random() < 0.7 or adopts
        self._newest_state = None if world.adopts else world.persisted
        self._state_before = world.persisted
        if world.adopts and self._rng_copies.random() < COPIES_DAMAGED_RATE:
            self._damage_copies()
        self.counts["state that is old or gone, while splits are leased"] += bool(scheduler.machine.state.leases.leases)
        self.counts["state that is old or gone, while first values wait"] += bool(scheduler.machine.state.initial.fresh)
        self._crash_scheduler_at = fault.lasts_ms
        self.crash_scheduler("at rest")
        world.persisted = state
        self.counts[f"scheduler that starts with {what}"] += 1
        return True

    def _damage_copies(self) -> None:
        """Some shards' copies of the scheduler's state cannot be read; one at least can."""
        keepers = [p for p in self.world.shards.values() if p.alive and p.machine.context.copy]
        for process in keepers[1:] if self._rng_copies.random() < 0.5 else keepers[:-1]:
            process.machine.context.copy = b"damaged"
            self.counts[COPY_DAMAGED] += 1

    def _strike_flip_parity(self, fault: Fault, source: Process | None, to: Process | None) -> bool:
        """A bit of a parity row turns over where all are whole; a scrub is to find it and to correct it."""
        group = self.rng.randrange(self.plan.groups)
        if self._not_whole(group):
            return False
        process = self.world.shards[group * self.plan.n + self.rng.randrange(self.plan.n)]
        machine = process.machine
        for class_id in self.rng.sample(classes := machine.placement.parity_classes(machine.shard), len(classes)):
            keys, _ = Capture(machine.store, class_id, 0, machine.store.class_size(class_id)).take()
            fresh = [key for key in keys.tolist() if key not in self.flipped]
            if fresh:
                key = self.rng.choice(fresh)
                wrong = np.zeros(machine.store.record_bytes(key >> 48), np.uint8)
                wrong[self.rng.randrange(len(wrong))] = 1 << self.rng.randrange(8)
                data = machine.placement.classes[class_id].data[0]
                machine.store.fold(data, 2**64 - 1, np.array([key], np.uint64), wrong)
                self.flipped.add(key)
                self._flips += 1
                self.counts["damaged parity row"] += 1
                self.world.note(f"a bit of the parity of stripe {show_keys([key])} turns over", process.label)
                self.world.start_tool()
                return True
        return False

    def _crash_idle_scheduler(self) -> None:
        if self._crash_scheduler_at is not None:
            self.crash_scheduler("at rest")

    def crash_scheduler(self, why: str) -> None:
        scheduler, lasts_ms = self.world.scheduler, self._crash_scheduler_at
        assert scheduler is not None and lasts_ms is not None
        self._crash_scheduler_at = None
        self.counts[f"crash of the scheduler {why}"] += 1
        if not all(self.world.record.whole.values()):
            self.counts["crash of the scheduler in a recovery"] += 1
        self.world.kill(scheduler, f"crash {why}")
        self.world.post(self.world.now_ms + 0.1 + lasts_ms, self.world.start_scheduler)

    def stopped(self, process: Process, reason: str) -> None:
        """A machine asked its process to end: only one that was declared dead may."""
        address = process.address
        self.world.kill(process, f"stops: {reason}")
        if process.role == SCHEDULER and process.core.stop_kind == e.OUTDATED and self._newest_state is not None:
            self.counts["outdated scheduler that refuses"] += 1
            self.world.persisted, self._newest_state = self._newest_state, None
            self.world.post(self.world.now_ms + self.rng.random() * 50.0, self.world.start_scheduler)
            return
        if process.role == SCHEDULER and process.core.stop_kind == e.OUTDATED and self.counts[COPY_DAMAGED]:
            # Who had a copy that can be read is dead: it is started with the newest state, as its last words advise.
            self.world.persisted = self._state_before
            self.world.post(self.world.now_ms + self.rng.random() * 50.0, self.world.start_scheduler)
            return
        if process in self._leaving and (process.core.stop_kind == e.LEFT or process in self._stayed):
            self._left(process)
            return
        if process.role != SHARD or not address.epoch or (address.id, address.epoch) not in self.world.record.down:
            raise ViolationError(f"{process.label} stops, and was not declared dead: {reason}", [address.id])
        wanted = address.id if self.plan.named else -1
        self.world.post(self.world.now_ms + self.rng.random() * 50.0, self.world.start_shard, wanted)
