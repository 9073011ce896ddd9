"""One run: what the processes of a world do, what is checked on the way, and the faults of the plan.

This file is long because all that happens in a run is checked where it happens: every event, message and effect passes
through `Cluster`, and a check that stood elsewhere could be passed by.
"""

import copy
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ecrec._native import Capture
from ecrec.errors import ConfigurationError
from ecrec.protocol import events as e
from ecrec.protocol import invariants
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import SCHEDULER, SHARD, TOOL, WORKER, Address
from ecrec.protocol.node_core import NodeCore
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.wire import Envelope
from simulation.checkpoints import Checkpoints, is_manifest
from simulation.coverage import GHOST_READ, HEARTBEAT_IN_PAUSE, PAUSED, Coverage, Watch, Witness
from simulation.faults import Faults
from simulation.flips import FLIPPED, Flips
from simulation.leases import LeasingWorker, check_examples
from simulation.network import Link, Parcel, Process
from simulation.plan import BARRIER, Plan
from simulation.rows import RowsOf, gather, sections_of
from simulation.story import LivenessError, Story, ViolationError
from simulation.strangers import Strange, is_strange
from simulation.workload import Oracle, ScrubTool, Worker
from simulation.world import World

LOOK_MS = 10.0
"""How often the run looks whether it has come to its end."""

START_MS_MAX = 20_000.0
"""The cluster must be formed and its tables ready within so much simulated time, faults or not."""

VALIDATE_EVERY = 8
"""All invariants of a machine are checked after one event of so many, those that cost little after each: an eighth of
the time of a run. One seed of four (`Plan.validate`) has all checked after each event, which costs a third."""

CHATTER = (m.ShardStatus, m.WorkerStatus, m.Views, m.Register)
"""Messages that never stop."""

EVENT_TIMEOUTS, WORK_TIMEOUTS = 1.5, 2.0
"""In pauses of one event, and of all events of a process, so many time-outs of a heartbeat pass at most: longer than a
shard may be silent, shorter than what others wait for."""

ASKED_AGAIN_MAX = 20
"""A worker asks for a refused checkpoint again so often, in all of a run."""

MESSAGES_MAX = 60_000
"""A run has some thousands; one that has so many goes round in circles."""


class MachineError(Exception):
    """A machine raised; the traceback is in the text."""


class EndedError(Exception):
    """A process died in the middle of what it did."""


class _Machine:
    """What the node of a process runs: its machine, with checkers around it."""

    def __init__(self, cluster: "Cluster", process: Process) -> None:
        self._cluster = cluster
        self._process = process

    @property
    def address(self) -> Address:
        address: Address = self._process.machine.address
        return address

    def takes_from(self, source: Address) -> bool:
        real = getattr(self._process.machine, "takes_from", None)
        return real is None or bool(real(source))

    def while_busy(self, now_ms: float) -> list[e.Effect]:
        effects: list[e.Effect] = self._process.machine.while_busy(now_ms)
        return effects

    def read_until(self, at_ms: float) -> None:
        self._process.machine.read_until(at_ms)

    def handle(self, event: e.Event, now_ms: float) -> list[e.Effect]:
        process = self._process
        assert isinstance(process.core, Node)
        try:
            return self._cluster.machine_takes(process, event, now_ms, process.core.arriving)
        except EndedError:
            raise
        except ViolationError as error:
            process.error = error
            raise
        except Exception as error:
            if isinstance(error.__cause__, EndedError):  # in a pause
                raise error.__cause__ from None
            if isinstance(error.__cause__, ViolationError):  # a checker's, raised in the middle of a machine
                process.error = error.__cause__
                raise
            # The node blames some errors on the sender and goes on; here nobody sends what a machine may raise at.
            what = type(event.message).__name__ if isinstance(event, e.Received) else type(event).__name__
            process.error = MachineError(f"{process.label} raised at {what}:\n{traceback.format_exc()}")
            process.error.__cause__ = error
            raise


class Node(NodeCore):
    """The node of a simulated process: the real one, over simulated links, watched."""

    def __init__(self, cluster: "Cluster", process: Process) -> None:
        grace_ms = cluster.plan.config.reconnect_grace_ms if process.role == SCHEDULER else None
        super().__init__(_Machine(cluster, process), _Port(cluster, process), grace_ms, cluster.term)
        self._cluster = cluster
        self._process = process
        self.arriving: Parcel | None = None
        """What `arrived` was called with last."""
        self.sending: Any = None
        if process.role == SHARD:
            process.machine.listen(partial(cluster.pauses, process))

    def arrived(self, frames: Any, now_ms: float) -> None:
        self.arriving = frames
        super().arrived(frames, now_ms)
        self.arriving = None

    def _take(self, envelope: Envelope, frames: Any, now_ms: float) -> bool:
        taken = super()._take(envelope, frames, now_ms)
        stream = self.streams._in.get(envelope.source)
        if not taken and envelope.message is not None and stream is not None and envelope.sequence <= stream.ack:
            self._cluster.coverage.faults["delivered again after a reconnect, and dropped"] += 1
        return taken

    def _is_mine(self, envelope: Envelope, frames: Any, now_ms: float) -> bool:
        kept = len(self.held)
        is_mine = super()._is_mine(envelope, frames, now_ms)
        if len(self.held) > kept:
            self._cluster.coverage.faults["message kept for an incarnation to come"] += 1
        return is_mine

    def _takes_from(self, source: Address) -> bool:
        takes = super()._takes_from(source)
        if not takes:
            self._cluster.coverage.faults["message left with a peer for want of room"] += 1
        return takes

    def carry_out(self, effect: e.Effect, now_ms: float) -> None:
        self._cluster.before_effect(self._process, effect)
        if isinstance(effect, e.Disconnect) and not self._cluster.network.cut_on_disconnect:
            return
        self.sending = effect.message if isinstance(effect, e.Send) else None
        super().carry_out(effect, now_ms)
        self.sending = None


class _Port:
    """The way out of a simulated process."""

    def __init__(self, cluster: "Cluster", process: Process) -> None:
        self._cluster = cluster
        self._process = process

    def connect(self, address: Address, endpoint: str, watched: bool) -> bool:
        links, target = self._process.links, self._cluster.endpoints[endpoint]
        is_new = links.get(address) is not target
        links[address] = target
        if is_new:
            self._cluster.faults.connects(self._process, address)
        return is_new

    def disconnect(self, address: Address) -> None:
        self._process.links.pop(address, None)

    def is_connected(self, address: Address) -> bool:
        return address in self._process.links

    def remember(self, address: Address, route: bytes) -> None:
        if route:
            self._process.routes[address] = self._cluster.processes[route.decode()]

    def send(self, to: Address, parts: Sequence[Any]) -> bool:
        assert isinstance(self._process.core, Node)
        return self._cluster.send(self._process, to, parts, self._process.core.sending)

    def answer(self, route: bytes, parts: Sequence[Any]) -> bool:
        if self._cluster.flips.strike:  # the version of one was damaged
            return False
        if is_strange(route):
            self._cluster.coverage.faults["stranger of another version is told so"] += 1
            return True
        raise ViolationError(f"{self._process.label} refuses a message as unreadable")

    def persist(self, state: bytes) -> None:
        self._cluster.persist(self._process, state)

    def write_file(self, effect: e.WriteFile) -> None:
        self._cluster.write_file(self._process, effect)

    def note(self, level: str, text: str) -> None:
        cluster, process = self._cluster, self._process
        cluster.story.add(cluster.now_ms, level, process.label, "", text)
        if level == "error" and not cluster.record.lost:
            raise ViolationError(f"{process.label} reports an error: {text}", [process.address.id])

    def complain(self, kind: str, text: str, now_ms: float) -> None:
        counted = {"deposed": "message of a deposed scheduler dropped", "ignored": "stranger is ignored"}
        if kind in counted:
            self._cluster.coverage.faults[counted[kind]] += 1
        self._cluster.note(f"complains: {text}", self._process.label)


SOMEBODY = Address(TOOL, 1 << 20, 0)
"""Whose question changes nothing."""


class Ending(NamedTuple):
    """What a run was."""

    digest: str
    """Hash of every event."""
    data: tuple[bytes, ...]
    """Records of every shard at the end; empty after lost data."""
    deaths: int
    pushes: int
    pulls: int
    messages: int
    rows_checked: int
    lost: bool
    reinitialised: int
    simulated_ms: float
    scrubs: int
    coverage: Coverage


class Cluster(World):
    """Everything that a plan sets going. `run` plays it to the end or raises what a checker found."""

    def __init__(self, plan: Plan, story: Story) -> None:
        super().__init__(plan, story)
        self.witness = Witness(self.coverage)
        self.network = plan.network
        self.flips = Flips(plan.network.flip_rate, plan.seed)
        self.term = 0
        self.oracle = Oracle(plan, self.record.layout) if plan.deterministic else None
        self.messages = 0
        self.ended = False
        self._sent = 0
        self._newest: dict[Process, int] = {}
        """Number of the newest parcel that arrived at a process."""
        self._made = 0
        self._pulls: dict[tuple[str, Address, int], tuple[m.Pull, list[RowsOf]]] = {}
        self.checkpoints = Checkpoints(plan, self.record, self._count, self._newest_life)
        self.record.on_snapshot, self.record.on_cut = self.checkpoints.snapshot, self.checkpoints.announced
        self._checkpoints_due: deque[float] = deque()
        """When workers are to ask for the next ones,"""
        self._asked_again = 0
        """and how often one asked again what was refused."""
        self.faults = Faults(self)

    def run(self) -> Ending:
        """Play the plan. Raises ViolationError, LivenessError or MachineError."""
        self.start_scheduler()
        for shard in range(self.plan.n * self.plan.groups + self.plan.spares):
            self.start_shard(shard if self.plan.named else -1)
        for number in range(self.plan.workers):
            self.start_worker(number)
        self.post(LOOK_MS, self._look)
        while not self.ended:
            self.step()
        return self._end()

    def _look(self) -> None:
        """Is it over? If not, is it late?"""
        self.post(self.now_ms + LOOK_MS, self._look)
        if self.plan.mode == BARRIER:
            self._launch()
        if self.record.lost and all(w.machine.failed for w in self.workers):
            self.ended = True
            return
        if not self.faults.began:
            if self.now_ms > START_MS_MAX:
                raise LivenessError(f"the cluster does not start: {self.waits()}")
            return
        if self.messages > MESSAGES_MAX:
            raise LivenessError(f"no end after {self.messages} messages:\n{self.waits()}", self._not_whole())
        if not self.faults.quiet:
            return
        if self._whole_and_quiet():
            if self.faults.must_lose and not self.record.lost and not self.record.damaged:
                raise ViolationError(f"more died than the code tolerates, and nobody said so: {self.faults.must_lose}")
            self.ended = True
        elif self.now_ms > self.faults.deadline_ms:
            since_ms = self.now_ms - self.faults.quiet_at_ms
            raise LivenessError(f"{since_ms:.0f} ms after the last fault:\n{self.waits()}", self._not_whole())

    def _launch(self) -> None:
        """As a launcher does: when a run has failed, start its workers again, when it is done those of the next one."""
        workers = self.workers
        if len(workers) < self.plan.workers or any(w.machine.failed_kind not in ("", "run") for w in workers):
            return
        run, runs = workers[0].run, self.plan.worker_runs()
        part = [w for w in workers if w.takes_part]
        failed = [w for w in part if w.machine.failed]
        if any(self.worker_process(w.number) is None for w in part):
            return  # one died, and will be started
        if failed and all(w.machine.failed or w.run_done or not w.machine.runs.run for w in part):
            self._align()
            for worker in failed:
                self.coverage.faults["run of workers that failed and was started again"] += 1
                self._restart_worker(worker.number, "its run is over")
        elif run + 1 < len(runs) and not failed and all(w.run_done for w in part):
            steps = max(w.steps for w in part)
            for worker in workers:
                worker.begin_run(run + 1, steps)
            self.coverage.faults["run of workers after one of another size"] += runs[run] != runs[run + 1]
            for worker in workers[: runs[run + 1]]:
                self._restart_worker(worker.number, "its run is done")

    def _align(self) -> None:
        """Let all workers of the present run go on with the same operation, unless one is in the middle of it.

        Some had made more operations of their own than others; a barrier needs the same of all. Where all of a run die,
        nobody fails who could be noticed.
        """
        part = [w for w in self.workers if w.takes_part]
        for worker in part:
            machine = worker.machine
            if machine.runs.run and not machine.failed and not worker.run_done and self.worker_process(worker.number):
                return
        reached = max((w.next for w in part), default=0)
        for worker in part:
            worker.next = reached

    def _restart_worker(self, number: int, why: str) -> None:
        process = self.worker_process(number)
        assert process is not None, number
        self.kill(process, why)
        self.start_worker(number)

    def _not_whole(self) -> list[int]:
        return [s for s, p in self.shards.items() if not p.alive or p.machine.state != m.UP]

    def _whole_and_quiet(self) -> bool:
        if self.scheduler is None or not self._workers_done():
            return False
        if self.scheduler.machine.state.saving.is_active:
            return False
        absent = self.faults.absent()
        if not absent and self.faults.leavers():
            return False  # with all whole, they are let go one after the other
        if len(self.shards) < self.plan.n * self.plan.groups or not absent.issuperset(self._not_whole()):
            return False
        if not all(is_whole or shard in absent for shard, is_whole in self.record.whole.items()):
            return False
        if any((shard, self.record.epochs[shard]) not in self.record.cuts for shard in absent):
            return False
        if any(not process.machine.context.settled for shard, process in self.shards.items() if shard not in absent):
            return False  # a cut is decided, and some have yet to undo what is beyond it
        if self.faults.damage_left():
            return False
        for link in self.links.values():
            for parcel in link.queue:
                if not (parcel.only_acknowledges or isinstance(parcel.message, CHATTER)):
                    return False
        return not any(
            process.core.streams.out(peer).unacknowledged
            for process in self.shards.values()
            if process.alive
            for peer in process.links
            if peer.role == SHARD
            and peer.id not in absent | {process.address.id}
            and not process.core.streams.is_old(peer)
        )

    def _workers_done(self) -> bool:
        """All have done what they can do while some shards, or one of them, stay dead."""
        absent = self.faults.absent()
        workers = [worker for worker in self.workers if worker.number not in self.faults.gone]
        if not absent:
            return all(worker.finished for worker in workers)
        # First values that are not durable because a shard is dead are waited for by all workers.
        writes = any(worker.initialising and not worker.machine.durable for worker in workers)
        for worker in workers:
            machine = worker.machine
            if machine.failed:
                return False
            unwelcomed = {shard for shard, known in machine._shards.items() if not known.welcomed}
            if not machine.ready and unwelcomed and unwelcomed <= absent:
                continue  # a new life begins when every shard has told what it has of the one before
            if not machine.ready:
                return False
            if any(machine.acked[shard] < pushed for shard, pushed in machine.pushed.items() if shard not in absent):
                return False
            if any(absent.isdisjoint(shards) for shards, _ in worker.open_pulls.values()):
                return False
            blocked = worker.open_pulls or not machine.can_push or (worker.initialising and writes)
            if not (worker.finished or blocked or worker.next == len(worker.operations) or self.plan.leases):
                return False
        return True

    def waits(self) -> str:
        """Who waits for what, for people."""
        lines = [f"  scheduler: {'up' if self.scheduler else 'down'}; lost: {self.record.lost or 'no'}"]
        for worker in self.workers:
            if not worker.finished:
                lines.append(f"  worker {worker.number}: {worker.waits_for()}")
        for shard, process in sorted(self.shards.items()):
            machine = process.machine
            lines.append(
                f"  {process.label}: {'running' if process.alive else 'dead'}, {machine.state}, view {machine.view}, "
                f"window {machine.context.window_number}, stable {machine.context.stable}, "
                f"waits for {_unstable(machine)}, "
                f"announced whole {self.record.whole.get(shard)}, peers {_peers(machine)}, {_work(machine)}"
            )
        for process in self.processes.values():
            if process.alive and process.role == SHARD and process.address.epoch == 0:
                lines.append(f"  {process.name}: waits for a place")
        for link in self.links.values():
            if link.queue:
                kinds = ["ack" if p.only_acknowledges else type(p.message).__name__ for p in link.queue]
                lines.append(f"  on the way {link.source.label} > {link.to.label}: {kinds[:8]}")
        return "\n".join(lines)

    def _end(self) -> Ending:
        self.coverage.traps["stable-before-durable"] += self.record.undone
        if self.scheduler is not None and self.scheduler.machine.state.saving.error:
            self._count("checkpoint: given up")
        self.coverage.faults.update(self.record.refused)
        data: list[bytes] = []
        if not self.record.lost:
            self.check_everything()
            data = [self._data(shard) for shard in sorted(self.shards) if shard not in self.faults.absent()]
        return Ending(
            self.story.digest, tuple(data), self.faults.deaths, self.record.pushes_applied,
            sum(w.pulls_done for w in self.workers), self.messages, self.record.rows_checked, bool(self.record.lost),
            len(self.record.set_back), self.now_ms, self.tool.chunks if self.tool else 0, self.coverage,
        )  # fmt: skip

    def check_everything(self) -> None:
        """The checks at rest: data, parity, and, where the schedule must not matter, the oracle."""
        absent = self.faults.absent()
        for shard, process in self.shards.items():
            if shard not in absent:
                self.record.check_data(process.address, process.machine.store)
        for group in range(self.plan.groups):
            members = range(group * self.plan.n, (group + 1) * self.plan.n)
            # Of a dead shard the parity of others must fit what it was cut off at.
            stores = [self.record.shadow(s) if s in absent else self.shards[s].machine.store for s in members]
            self.record.check_parity(group, stores, {s % self.plan.n for s in absent.intersection(members)})
        self.record.check_first_values()
        for worker in self.workers:
            if worker.number in self.faults.gone:
                continue
            for shard, pushed in worker.machine.pushed.items():
                if shard not in absent and self.record.watermarks[shard].get(worker.number, 0) != pushed:
                    raise ViolationError(
                        f"worker {worker.number} made {pushed} pushes to shard {shard}, its lineage ends with "
                        f"{self.record.watermarks[shard].get(worker.number, 0)}", [shard],
                    )  # fmt: skip
        if self.scheduler is not None:
            self.record.check_counted(self.scheduler.machine.state.rows_reinitialised)
        if self.plan.leases is not None and not absent:
            assert self.scheduler is not None
            check_examples(self.plan, self.record, self.scheduler.machine.leases.figures())
        if self.oracle is not None and not self.record.set_back and not absent:
            for shard in self.shards:
                if self._data(shard) != self.oracle.records(shard):
                    raise ViolationError(f"shard {shard} ends with other rows than a run without faults", [shard])

    def _data(self, shard: int) -> bytes:
        """All records of a shard, in the plan's order of tables. A late one need not be there where something stays
        broken: the worker that would have made it waits."""
        index = {table.name: i for i, table in enumerate(self.record.tables)}
        made = [table for table in self.plan.tables if table.name in index or not self.plan.broken]
        rows = self.record.layout.rows_on(shard, made)
        order = np.array([index[table.name] for table in made], np.int32)
        return gather(self.shards[shard].machine.store, [rows._replace(tables=order)], True)[0]

    # ------------------------------------------------------------------ processes
    def _add(self, name: str, role: int, machine: Any) -> Process:
        process = Process(name, role, machine, self.rng.randrange(1_000_000))
        self.processes[name] = process
        process.address = machine.address
        process.core = Node(self, process)
        self.post(self.now_ms + self.rng.random() * self.plan.tick_ms, self._tick, process)
        return process

    def start_scheduler(self) -> None:
        plan, torn = self.plan, self.faults.torn
        try:
            machine = SchedulerMachine(
                plan.n, plan.groups, plan.config, self.persisted, f"cluster {self._made}", adopt=self.adopts
            )
        except ConfigurationError as error:
            if torn is None or self.persisted is not torn:
                raise
            self.faults.refused_torn(str(error))
            return
        if torn is not None:
            raise ViolationError("a scheduler started with a damaged state")
        self.term += self.plan.terms
        self._made += 1
        self.scheduler = self._add(f"scheduler.{self._made}", SCHEDULER, machine)
        self.note("starts", self.scheduler.label)

    def start_shard(self, wanted: int) -> None:
        """A new process that asks for a place."""
        if self.ended or self.faults.takes_newcomer():
            return
        self._made += 1
        name = f"p{self._made}"
        machine = ShardMachine(name, f"sim://{name}", wanted)
        machine.context.observer = self.record
        Watch(self.coverage, machine)
        self.endpoints[machine.endpoint] = self._add(name, SHARD, machine)
        self.note(f"starts, wants shard {wanted}", name)

    def start_worker(self, number: int) -> None:
        """A worker's process; where there was one before, it goes on with the operations that are left."""
        self._made += 1
        name = f"w{number}.{self._made}"
        machine = ClientMachine(number, name, yields=self.plan.yields)
        process = self._add(name, WORKER, machine)
        if number == len(self.workers):
            kind = LeasingWorker if self.plan.leases else Worker
            self.workers.append(kind(self.plan, number, machine, self.record, self.oracle))
        else:
            before = self.workers[number]
            if any(other.alive and other.driver is before for other in self.processes.values()):
                # The process of the earlier life goes on, with a driver of its own.
                self.workers[number] = copy.copy(before)
                self.workers[number].open_pulls = {}
            self.workers[number].restart(machine)
            if self.plan.mode == BARRIER:
                self._align()
            self.note(f"is worker {number} again", name)
        process.driver = self.workers[number]

    def start_tool(self) -> None:
        """Begin a scrub, by the tool's process, which is made for the first one."""
        if self.faults.quiet and not self.faults.damage_left():
            return
        if self.tool is None:
            self.tool = ScrubTool(self.plan, self.faults.flipped, self.faults.damage_left)
            self._add("tool", TOOL, self.tool)
        self.tool.begin()

    def persist(self, process: Process, state: bytes) -> None:
        """Write the scheduler's state. While that takes time, it does nothing else, and nothing leaves it."""
        if process.deposed:
            self.kill(process, "it does not lead any more")
            raise EndedError
        self.persisted = state
        self.states.append(state)
        if self.plan.persist_ms and not self.faults.quiet:
            process.sends_from_ms = self.now_ms + self.rng.random() * self.plan.persist_ms
            process.paused_until_ms = max(process.paused_until_ms, process.sends_from_ms)
            self.coverage.faults["slow stable storage of the scheduler"] += 1

    # ------------------------------------------------------------------ checkpoints
    def _newest_life(self, worker: int) -> int:
        machines = (p.machine for p in self.processes.values() if p.role == WORKER)
        return max(int(machine.epoch) for machine in machines if machine.worker == worker)

    def _count(self, what: str) -> None:
        self.coverage.faults[what] += 1

    def begin_checkpoints(self) -> None:
        self._checkpoints_due.extend(self.now_ms + at_ms for at_ms in self.plan.checkpoints_ms)

    def write_file(self, process: Process, effect: e.WriteFile) -> None:
        """A process writes a file of a checkpoint; what became of it is told later, if the process still lives."""
        written = self.checkpoints.write(effect, self.faults.quiet)
        if written is not None:
            delay_ms, event = written
            self.post(self.now_ms + delay_ms, self._file_written, process, effect, event)

    def _file_written(self, process: Process, effect: e.WriteFile, event: e.FileWritten) -> None:
        if is_manifest(effect) and not event.error:
            self.checkpoints.check(effect.checkpoint)
        if process.alive:
            free_ms = max(process.paused_until_ms, process.works_until_ms)
            if free_ms > self.now_ms:
                self.post(free_ms, self.handle, process, event)
            else:
                self.handle(process, event)

    def _ask_for_checkpoint(self, process: Process) -> None:
        """A worker asks for one that is due, and again for a while if it is refused."""
        saves, due = process.machine.saves, self._checkpoints_due
        if saves.refusal:
            self._count("checkpoint: refused")
            saves.refusal = ""
            if self._asked_again < ASKED_AGAIN_MAX:
                self._asked_again += 1
                due.appendleft(self.now_ms + 30.0)
        ready = process.machine.ready and not process.machine.failed and not saves.asking
        if due and self.now_ms >= due[0] and ready and not self.faults.quiet:
            due.popleft()
            time_s, state = self.checkpoints.asked_at(self.now_ms / 1e3, process.machine.worker)
            effects = process.machine.save(
                *self.checkpoints.request(time_s, state), bytes_per_s=self.checkpoints.pace()
            )
            process.core.perform(effects, self.now_ms + process.clock_ms)

    # ------------------------------------------------------------------ machines
    def _tick(self, process: Process) -> None:
        if not process.alive:
            return
        free_ms = max(process.paused_until_ms, process.works_until_ms)
        if free_ms > self.now_ms:
            self.post(free_ms, self._tick, process)
            return
        self._enter(process, process.core.tick)
        self.post(self.now_ms + self.plan.tick_ms, self._tick, process)

    def handle(self, process: Process, event: e.Event) -> None:
        """Give a machine an event that comes from nobody."""
        self._enter(process, lambda now_ms: process.core.handle(event, now_ms))

    def linked(self, process: Process, address: Address) -> None:
        """A connection that a process opened is made."""
        if process.alive and address in process.links:
            self._enter(process, partial(process.core.linked, address, False))

    def unlinked(self, process: Process, address: Address) -> None:
        """A process sees a connection that it made close."""
        if process.alive and address in process.links:
            self._enter(process, lambda now_ms: process.core.unlinked(address, now_ms))

    def arrives(self, process: Process, strange: Strange) -> None:
        if process.alive:
            self._enter(process, partial(process.core.arrived, strange))

    def _enter(self, process: Process, call: Callable[[float], None]) -> None:
        """Let a process do something, and look at what came of it."""
        process.spent_ms = 0.0
        if process.behind_ms:
            process.core.read_until(process.read_ms(self.now_ms) + process.clock_ms)
        try:
            call(self.now_ms + process.clock_ms)
        except EndedError:
            return
        except ViolationError:
            raise
        except Exception as error:
            if isinstance(error.__cause__, EndedError):  # in a pause of the machine
                return
            if process.error is None:  # not by the machine
                raise MachineError(f"{process.label}:\n{traceback.format_exc()}") from error
        if process.error is not None:
            raise process.error
        process.works_until_ms, process.spent_ms = self._sends_at(process), 0.0
        taken, process.taken = process.taken, []
        for event, source in taken:
            # Behind the answers that its machine gave meanwhile, which may be of an earlier state.
            if isinstance(event.message, m.Repaired) and self.record.current(process.address):
                self._check_repaired(process, event.frames)
            self.faults.delivered(type(event.message).__name__, source, process)
        if not process.alive:
            return
        if process.core.stopped:
            self.faults.stopped(process, process.core.stopped)
            return
        self._take_results(process)
        if process.role == WORKER and process.alive:
            self._advance_worker(process)

    def _take_results(self, process: Process) -> None:
        results, process.core.results = process.core.results, []
        for result in results:
            if isinstance(result, e.PullDone):
                process.driver.took(result)
            elif isinstance(result, e.PullFailed):
                self.note(f"refused: {result.reason}", process.label)
                process.driver.refused(result)
            else:
                self.note(f"failed: {result.reason}", process.label)

    def machine_takes(self, process: Process, event: e.Event, now_ms: float, parcel: Parcel | None) -> list[e.Effect]:
        """The machine of a process takes an event, from its node."""
        machine, what = process.machine, type(event).__name__
        fenced = False
        before: Any = None
        if isinstance(event, e.Received) and parcel is not None:
            what = type(event.message).__name__
            self._before_message(process, event, parcel)
            fenced = self._is_fenced(process, event.source)
            before = self._fingerprint(process) if fenced else None
        twin = copy.deepcopy(machine) if fenced and process.role == SCHEDULER else None
        if process.role == SHARD:
            process.lineage_before = len(self.record.lineage[process.address.id])
        process.handles, process.view_before = True, getattr(machine, "view", -1)
        try:
            effects: list[e.Effect] = machine.handle(event, now_ms)
        finally:
            process.handles = False
        stops = any(isinstance(effect, e.Stop) for effect in effects)
        if not stops:
            self._validate(process)
        if isinstance(event, e.Received):
            changed = fenced and self._fingerprint(process) != before
            persisted = [effect.state for effect in effects if fenced and isinstance(effect, e.Persist)]
            if persisted and twin is not None:
                # What was due anyway is decided at the next event, whosever it is.
                due = twin.handle(e.Received(SOMEBODY, m.StoryQuery(1)), now_ms)
                persisted = [] if persisted == [x.state for x in due if isinstance(x, e.Persist)] else persisted
            if changed or persisted:
                raise ViolationError(
                    f"{process.label} took a {what} of {event.source}, which is fenced, and changed", [event.source.id]
                )
        if process.role == SHARD:
            self._look_at_shard(process)
        process.stop_after = self.faults.effects_before_crash(process, len(effects))
        return effects

    def pauses(self, process: Process) -> None:
        """The machine of a process pauses in its work. Checkers, too, make its store work."""
        if not process.handles:
            return
        self.coverage.sizes[PAUSED] += 1
        self.faults.paused(process)
        if not process.alive:
            self.coverage.faults["crash of a shard in the middle of an event"] += 1
            raise EndedError
        timeout_ms = self.plan.config.heartbeat_timeout_ms
        room = process.spent_ms < EVENT_TIMEOUTS * timeout_ms and process.worked_ms < WORK_TIMEOUTS * timeout_ms
        if room and not self.faults.quiet:
            process.spent_ms += self.plan.pause_ms
            process.worked_ms += self.plan.pause_ms
        process.core.while_busy(self.now_ms + process.clock_ms + process.spent_ms)

    def _sends_at(self, process: Process) -> float:
        """When what it sends now leaves it."""
        return max(self.now_ms, process.works_until_ms) + process.spent_ms

    def _validate(self, process: Process) -> None:
        """Check the invariants of a machine that has just taken an event."""
        process.events += 1
        if self.plan.validate or process.events % VALIDATE_EVERY == 0:
            if process.role != TOOL:
                invariants.check(process.machine)
        elif process.role == SHARD:
            invariants.check_pushes(process.machine)

    def _before_message(self, process: Process, event: e.Received, parcel: Parcel) -> None:
        message = event.message
        self.messages += 1
        self.story.add(
            self.now_ms, "message", parcel.source.label, process.label, message, event.frames, parcel.parts[0]
        )
        if isinstance(message, m.Pull):
            self._pulls[process.name, event.source, message.request] = (
                message, sections_of(message.sections, event.frames, False),
            )  # fmt: skip
        self.witness.took(process.role, process.machine, message)
        process.taken.append((event, parcel.source))

    def before_effect(self, process: Process, effect: e.Effect) -> None:
        """A node is about to carry out an effect."""
        if process.stop_after == 0:
            if process.persisted_last:
                self.coverage.traps["persist-first"] += 1
            self.faults.crash_scheduler("between two effects")
            raise EndedError
        process.stop_after -= 1
        process.persisted_last = isinstance(effect, e.Persist)
        if isinstance(effect, e.Send):
            source = process.machine.address if process.role != SCHEDULER else process.address
            self._check_sent(process, source, effect)

    def _look_at_shard(self, process: Process) -> None:
        machine = process.machine
        address = machine.address
        if not machine.state and address != process.address:
            process.address = address  # it copies one that leaves, or does so no more
            self.note(f"would be {address}", process.name)
        elif machine.state and not process.placed:
            process.placed = True
            process.address = address
            process.watermarks = dict(machine.watermarks)
            self.shards[address.id] = process
            self.note(f"is {address}", process.name)
            self.faults.placed(process)
            if not process.alive:
                raise EndedError
        if machine.watermarks != process.watermarks:
            for worker, mark in process.watermarks.items():
                now = machine.watermarks.get(worker, -1)
                if now < mark:
                    raise ViolationError(f"{address}: worker {worker}'s mark fell from {mark} to {now}", [address.id])
            process.watermarks = dict(machine.watermarks)

    def _check_copy(self, shard: int, endpoint: str) -> None:
        """A place changes hands: bit by bit the new process has what the one before has, which changes no more."""
        left, successor = self.shards[shard].machine, self.endpoints[endpoint].machine.successor
        end = successor.end
        if end is None:
            raise ViolationError(f"shard {shard} is handed over, and its successor has not everything", [shard])
        mine, its = _rows_and_parity(left, successor.store), _rows_and_parity(left, left.store)
        peers = [peer for peer in left.peers.values() if peer.shard != left.shard]
        mine |= {"windows": end.received, "watermarks": {s: dict(each) for s, each in end.watermarks.items()}}
        its |= {
            "windows": {p.shard: p.received or 0 for p in peers},
            "watermarks": {p.shard: p.watermarks_received() for p in peers},
        }
        if mine != its:
            what = [name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name)]
            raise ViolationError(f"the successor of {left.address} differs from it in {what}", [shard])
        self.coverage.faults["shard handed over to a spare"] += 1

    def _advance_worker(self, process: Process) -> None:
        worker: Worker = process.driver
        saves = self.now_ms < self.faults.saves_until_ms and all(self.record.whole.values())
        process.core.perform(worker.advance(self.now_ms, saves), self.now_ms + process.clock_ms)
        self._ask_for_checkpoint(process)
        self._take_results(process)
        if worker.machine.failed_kind in ("fenced", "taken") and worker is self.workers[worker.number]:
            self._hand_over(process)
        if worker is not self.workers[worker.number]:
            if worker.machine.failed:
                self.kill(process, "another process is this worker")
            return
        if worker.machine.failed_kind == "fenced" and (worker.number, worker.machine.epoch) in self.record.fenced:
            self.kill(process, "it was given up")
            self.post(self.now_ms + 0.1 + self.rng.random() * 50.0, self.start_worker, worker.number)
        elif worker.machine.failed_kind == "taken":
            self.kill(process, "another process was this worker, and lived")
            self.post(self.now_ms + 0.1 + self.rng.random() * 50.0, self.start_worker, worker.number)
        elif worker.machine.failed_kind == "run" and not self.plan.deterministic:
            pass  # `_launch` starts it again
        elif worker.machine.failed and not self.record.lost:
            raise ViolationError(f"worker {worker.number} cannot go on: {worker.machine.failed}")

    def _hand_over(self, process: Process) -> None:
        """Of two processes of a worker that both began before the scheduler heard of either, the worker is the one that
        it heard of last: it cannot know which was started first."""
        number, epoch = process.driver.number, process.machine.epoch
        for other in self.processes.values():
            is_newer = other.role == WORKER and other.driver.number == number and other.machine.epoch > epoch
            if is_newer and other.alive and not other.machine.failed:
                other.driver.take_over(process.driver)
                self.workers[number] = other.driver
                outlived = process.machine.failed_kind == "fenced"
                what = "outlived by one that was started before it" if outlived else "that yields to one that lives"
                self.coverage.faults[f"process of a worker {what}"] += 1

    # ------------------------------------------------------------------ sending
    def send(self, process: Process, to: Address, parts: Sequence[Any], message: Any) -> bool:
        """Put what a node sends into the link: by its own connection, or back to where it heard of the receiver."""
        target = self.scheduler if to.role == SCHEDULER else process.links.get(to)
        route = process.name.encode() if target is not None else b""
        if target is None:
            target = process.routes.get(to)
        if target is None or not target.alive:
            return bool(route)
        stream = process.role == SHARD and to.role == SHARD
        parcel = Parcel(process, route, [bytes(part) for part in parts], message, stream)
        self._transmit(process, target, parcel)
        return True

    def link(self, process: Process, target: Process) -> Link:
        link = self.links.get((process, target))
        if link is None:
            between_shards = process.role == SHARD and target.role == SHARD
            link = Link(process, target, ideal=between_shards and not self.network.streams)
            # Heartbeats must come in time; between shards nothing has to. One that has just come up is heard well by
            # most, so that it recovers, and now and then by some other very late.
            newcomer = between_shards and max(process.address.epoch, target.address.epoch) > 1
            if self.faults.quiet:
                pass
            elif newcomer and self.rng.random() < self.network.lag_rate / 3:
                link.lag_ms = self.rng.random() * self.network.lag_max_ms * 8.0
            elif self.rng.random() < self.network.lag_rate / (3 if newcomer else 1):
                link.lag_ms = self.rng.random() * self.network.lag_max_ms * (3.0 if between_shards else 1.0)
            link.cut_until_ms = self.faults.cut_until_ms(process, target)
            self.links[process, target] = link
        return link

    def _transmit(self, process: Process, target: Process, parcel: Parcel) -> None:
        link = self.link(process, target)
        was_broken = link.broken
        counts = self.coverage.faults
        link.due_ms = max(link.due_ms, process.sends_from_ms)
        calm = self.faults.quiet and not self.faults.stays_lossy(link)
        at_ms = self._sends_at(process)
        copies = 1 if calm else link.copies(at_ms, self.network, self.rng, parcel.stream)
        if copies == 0:
            if not parcel.stream:
                counts["message lost"] += 1
            elif not was_broken:  # a connection breaks as a whole, and somebody notices
                counts["connection broken"] += 1
                self._notice_break(link)
            return
        if parcel.stream and link.broken:
            return  # between the break and the new connection nothing passes
        if copies > 1:
            counts["message delivered twice"] += 1
        self._sent += 1
        parcel = parcel._replace(sent=self._sent)
        views = isinstance(parcel.message, m.Views)
        for _ in range(copies):
            link.queue.append(parcel)
            self.post(link.delay_ms(at_ms, self.network, self.rng, counts, views), self._deliver, link)

    def _notice_break(self, link: Link) -> None:
        over_ms = self.now_ms if self.faults.quiet else max(self.now_ms, link.outage_until_ms, link.cut_until_ms)
        self.post(over_ms + self.rng.random() * 5.0, self._reconnect, link)

    def _reconnect(self, link: Link) -> None:
        if not self.faults.quiet and self.now_ms < link.cut_until_ms:  # a partition began meanwhile
            self._notice_break(link)
            return
        link.broken = False
        self.coverage.faults["connection made again"] += 1
        process = link.source
        if not process.alive or not link.to.alive:
            return
        for address in [address for address, target in process.links.items() if target is link.to]:
            self._enter(process, partial(process.core.linked, address, True))

    # ------------------------------------------------------------------ arriving
    def _deliver(self, link: Link, waited: bool = False) -> None:
        process = link.to
        if not link.queue or not process.alive:
            return
        if self.now_ms < process.behind_until_ms and link.source.role == SHARD and not waited:
            self.post(self.now_ms + process.behind_ms, self._deliver, link, True)
            return
        free_ms = max(process.paused_until_ms, process.busy_until_ms, process.works_until_ms)
        if free_ms > self.now_ms:
            self.post(free_ms, self._deliver, link, waited)
            return
        if self.now_ms < process.slow_until_ms and not self.faults.quiet:
            process.busy_until_ms = self.now_ms + process.service_ms
        parcel = link.queue.popleft()
        newest = self._newest.get(process, 0)
        if parcel.sent < newest:
            self.coverage.faults["message overtook one of another link"] += 1
        else:
            self._newest[process] = parcel.sent
        if not parcel.route and link.source.role != SCHEDULER and link.source not in process.links.values():
            return  # it came on a connection that the receiver has closed
        if parcel.stream and self.network.streams and not self.faults.quiet:
            damaged = self.flips.damaged(parcel)
            if damaged is not None:
                self.coverage.faults[FLIPPED] += 1
                parcel = parcel._replace(parts=damaged)
        self._enter(process, partial(process.core.arrived, parcel))

    # ------------------------------------------------------------------ what is checked on the way
    def _check_sent(self, process: Process, source: Address, effect: e.Send) -> None:
        message, to = effect.message, effect.to
        if process.role == WORKER:
            self.witness.sent(process.machine, to, message)
        elif process.role == SCHEDULER:
            if isinstance(message, m.Views):
                for view in message.views:
                    for new in self.record.announced(message.group, view):
                        self.witness.announced(process.machine, message.group, new)
                        self.faults.announced(message.group, new)
                        if isinstance(new, m.Succeeded):
                            self._check_copy(message.group * self.plan.n + new.shard, new.endpoint)
        elif process.role == SHARD:
            if process.handles:
                self._check_sent_in_a_pause(process, message)
            if isinstance(message, m.PushAck | m.Welcome):
                self.record.acknowledged(source, to, message.durable)
            elif isinstance(message, m.Rows):
                pull, sections = self._pulls[process.name, to, message.request]
                if self.record.current(source):
                    self.record.check_rows(source, process.lineage_before, pull, to.id, sections, effect.frames)
                else:
                    self.coverage.transitions[GHOST_READ] += 1
                    self.record.check_rows_of_ghost(source, pull, sections, effect.frames)

    def _check_sent_in_a_pause(self, process: Process, message: Any) -> None:
        """In the middle of an event nothing of it is told."""
        if isinstance(message, m.Ping):
            return
        shard = process.machine.address.id
        if not isinstance(message, m.ShardStatus):
            raise ViolationError(f"{process.label} sends a {type(message).__name__} in the middle of an event", [shard])
        self.coverage.sizes[HEARTBEAT_IN_PAUSE] += 1
        if process.machine.view != process.view_before:
            self.coverage.traps["half-done"] += 1
        if message.view > process.view_before or any(
            number > process.watermarks.get(worker, 0) for worker, number in message.watermarks.items()
        ):
            raise ViolationError(f"{process.label} tells of an event in the middle of it", [shard])

    def _is_fenced(self, process: Process, source: Address) -> bool:
        """The source was declared dead, and this process knows it."""
        view = self.record.down.get((source.id, source.epoch)) if source.role == SHARD else None
        if view is None:
            return False
        machine = process.machine
        if process.role == SHARD:
            return bool(machine.state) and machine.view >= view
        if process.role == WORKER:
            group = source.id // self.plan.n
            return group < len(machine._views) and machine._views[group] >= view
        return process.role == SCHEDULER

    def _fingerprint(self, process: Process) -> Any:
        """All of a process that somebody else's message could change for others."""
        machine = process.machine
        if process.role == WORKER:
            return machine.acked, sum(len(ticket.answers) for ticket in machine._tickets.values())
        if process.role == SCHEDULER:
            return self.persisted
        received = [(peer.shard, peer.received, len(peer.undo)) for peer in machine.peers.values()]
        rows = []
        for stripe in machine.placement.classes:
            end = machine.store.class_size(stripe.class_id)
            if machine.shard in stripe.data:
                rows += [part.tobytes() for part in machine.store.coded_rows(stripe.class_id, 0, end)]
            elif machine.shard in stripe.parity:
                rows += [part.tobytes() for part in Capture(machine.store, stripe.class_id, 0, end).take()]
        return dict(machine.watermarks), dict(machine.durable), received, rows

    def _check_repaired(self, process: Process, frames: Sequence[Any]) -> None:
        """Rows that came in a repair, now that they were taken."""
        store = process.machine.store
        for frame in frames[:2]:
            keys = np.frombuffer(frame, np.uint64)
            if len(keys):
                self.record.check_keys(process.address, store, keys)


def _rows_and_parity(machine: Any, store: Any) -> dict[str, Any]:
    """All that a store has of a shard's rows and parity."""
    found: dict[str, Any] = {}
    for stripe in machine.placement.classes:
        is_data = machine.shard in stripe.data
        if not is_data and machine.shard not in stripe.parity:
            continue
        name = f"{'data' if is_data else 'parity'} of class {stripe.class_id}"
        if stripe.class_id // machine.placement.n >= len(store.codes):  # of a table that came since: nobody touched it
            found[name] = [b"", b""]
            continue
        end = store.class_size(stripe.class_id)
        parts = store.coded_rows(stripe.class_id, 0, end) if is_data else Capture(store, stripe.class_id, 0, end).take()
        found[name] = [part.tobytes() for part in parts]
    return found


def _unstable(machine: Any) -> dict[int, list[int]]:
    return {number: sorted(window.waiting) for number, window in machine.context.unstable.items()}


def _peers(machine: Any) -> str:
    return " ".join(
        f"{p.shard}.{p.epoch}:{p.state}{'/unsettled' if p.unsettled else ''}"
        f"{'/awaits Joined' if p.is_joined_blind else ''}"
        f"{f'/{len(p.held)} held' if p.held else ''}"
        for p in machine.peers.values()
    )


def _work(machine: Any) -> str:
    wanted = {class_id: sorted(done) for class_id, done in machine.seeding.done.items()}
    queues = {w: [q.number for q in state.queue] for w, state in machine.context.workers.items() if state.queue}
    pulls = [(str(q.source), q.pull.request, q.pull.after) for q in machine.context.pulls]
    return f"seeded by class {wanted}, seeds {machine.seeding.tasks}, queues {queues}, pulls {pulls}"
