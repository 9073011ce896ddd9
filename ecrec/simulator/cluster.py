"""One run: processes, simulated time, a queue of events, and the faults of the plan."""

import heapq
import random
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ecrec._native import Capture
from ecrec.protocol import events as e
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import SCHEDULER, SHARD, TOOL, WORKER, Address
from ecrec.protocol.scheduler import SchedulerMachine, read_state
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.stream import Numbered
from ecrec.simulator.coverage import GHOST_READ, Coverage, Watch, Witness
from ecrec.simulator.faults import Faults
from ecrec.simulator.leases import LeasingWorker, check_examples
from ecrec.simulator.network import Link, Packet, Parcel, Process
from ecrec.simulator.plan import Plan
from ecrec.simulator.record import Record, RowsOf, gather, sections_of
from ecrec.simulator.story import LivenessError, Story, ViolationError
from ecrec.simulator.workload import Oracle, ScrubTool, Worker

LOOK_MS = 10.0
"""How often the run looks whether it has come to its end."""

START_MS_MAX = 20_000.0
"""The cluster must be formed and its tables ready within so much simulated time, faults or not."""

CHATTER = (m.ShardStatus, m.WorkerStatus, m.Views, m.Register)
"""Messages that never stop."""

MESSAGES_MAX = 60_000
"""A run has some thousands; one that has so many goes round in circles."""


class MachineError(Exception):
    """A machine raised; the traceback is in the text."""


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


class Cluster:
    """Everything that a plan sets going. `run` plays it to the end or raises what a checker found."""

    def __init__(self, plan: Plan, story: Story) -> None:
        self.plan = plan
        self.story = story
        self.now_ms = 0.0
        self.coverage = Coverage()
        self.witness = Witness(self.coverage)
        self.record = Record(plan)
        self.network = plan.network
        self.rng = random.Random(plan.seed * 2 + 1)
        self.processes: dict[str, Process] = {}
        self.endpoints: dict[str, Process] = {}
        self.shards: dict[int, Process] = {}
        """The process of each shard's newest incarnation."""
        self.scheduler: Process | None = None
        self.persisted: bytes | None = None
        self.oracle = Oracle(plan, self.record.layout) if plan.deterministic else None
        self.workers: list[Worker] = []
        self.tool: ScrubTool | None = None
        self.messages = 0
        self.ended = False
        self._links: dict[tuple[Process, Process], Link] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._posted = 0
        self._sent = 0
        self._newest: dict[Process, int] = {}
        """Number of the newest parcel that arrived at a process."""
        self._made = 0
        self._pulls: dict[tuple[str, Address, int], tuple[m.Pull, list[RowsOf]]] = {}
        self.faults = Faults(self)

    # ------------------------------------------------------------------ time
    def post(self, at_ms: float, what: Callable[..., None], *arguments: Any) -> None:
        self._posted += 1
        heapq.heappush(self._queue, (at_ms, self._posted, what, arguments))

    def note(self, text: str, who: str = "simulator") -> None:
        self.story.add(self.now_ms, "event", who, "", text)

    def run(self) -> Ending:
        """Play the plan. Raises ViolationError, LivenessError or MachineError."""
        self.start_scheduler()
        for shard in range(self.plan.n * self.plan.groups + self.plan.spares):
            self.start_shard(shard if self.plan.named else -1)
        for number in range(self.plan.workers):
            self.start_worker(number)
        self.post(LOOK_MS, self._look)
        while not self.ended:
            at_ms, _, what, arguments = heapq.heappop(self._queue)
            self.now_ms = at_ms
            what(*arguments)
        return self._end()

    def _look(self) -> None:
        """Is it over? If not, is it late?"""
        self.post(self.now_ms + LOOK_MS, self._look)
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
                raise ViolationError(f"more died than the code stands, and nobody said so: {self.faults.must_lose}")
            self.ended = True
        elif self.now_ms > self.faults.deadline_ms:
            since_ms = self.now_ms - self.faults.quiet_at_ms
            raise LivenessError(f"{since_ms:.0f} ms after the last fault:\n{self.waits()}", self._not_whole())

    def _not_whole(self) -> list[int]:
        return [s for s, p in self.shards.items() if not p.alive or p.machine.state != m.UP]

    def _whole_and_quiet(self) -> bool:
        if self.scheduler is None or not all(w.finished for w in self.workers):
            return False
        if len(self.shards) < self.plan.n * self.plan.groups or self._not_whole():
            return False
        if not all(self.record.whole.values()):
            return False
        for link in self._links.values():
            for parcel in link.queue:
                if parcel.packet and not isinstance(parcel.packet.message, CHATTER):
                    return False
        return not any(
            process.streams.out(peer).unacknowledged
            for process in self.shards.values()
            for peer in process.connected
            if not process.streams.is_old(peer)
        )

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
                f"window {machine.window_number}, stable {machine.stable}, waits for {_unstable(machine)}, "
                f"announced whole {self.record.whole.get(shard)}, peers {_peers(machine)}, {_work(machine)}"
            )
        for process in self.processes.values():
            if process.alive and process.role == SHARD and process.address.epoch == 0:
                lines.append(f"  {process.name}: waits for a place")
        for link in self._links.values():
            if link.queue:
                kinds = [type(p.packet.message).__name__ if p.packet else "ack" for p in link.queue]
                lines.append(f"  on the way {link.source.label} > {link.to.label}: {kinds[:8]}")
        return "\n".join(lines)

    def _end(self) -> Ending:
        self.coverage.traps["stable-before-durable"] += self.record.undone
        data: list[bytes] = []
        if not self.record.lost:
            self.check_everything()
            data = [self._data(shard) for shard in sorted(self.shards)]
        return Ending(
            self.story.digest, tuple(data), self.faults.deaths, self.record.pushes_applied,
            sum(w.pulls_done for w in self.workers), self.messages, self.record.rows_checked, bool(self.record.lost),
            len(self.record.set_back), self.now_ms, self.tool.chunks if self.tool else 0, self.coverage,
        )  # fmt: skip

    def check_everything(self) -> None:
        """The checks at rest: data, parity, and, where the schedule must not matter, the oracle."""
        for process in self.shards.values():
            self.record.check_data(process.address, process.machine.store)
        for group in range(self.plan.groups):
            stores = [self.shards[group * self.plan.n + s].machine.store for s in range(self.plan.n)]
            self.record.check_parity(group, stores)
        for worker in self.workers:
            for shard, pushed in worker.machine.pushed.items():
                if self.record.watermarks[shard].get(worker.number, 0) != pushed:
                    raise ViolationError(
                        f"worker {worker.number} made {pushed} pushes to shard {shard}, its lineage ends with "
                        f"{self.record.watermarks[shard].get(worker.number, 0)}", [shard],
                    )  # fmt: skip
        if self.scheduler is not None:
            self.record.check_counted(self.scheduler.machine.state.rows_reinitialised)
        if self.plan.leases is not None:
            assert self.scheduler is not None
            check_examples(self.plan, self.record, self.scheduler.machine.leases.figures())
        if self.oracle is not None and not self.record.set_back:
            for shard in self.shards:
                if self._data(shard) != self.oracle.records(shard):
                    raise ViolationError(f"shard {shard} ends with other rows than a run without faults", [shard])

    def _data(self, shard: int) -> bytes:
        """All records of a shard, in the plan's order of tables."""
        index = {table.name: i for i, table in enumerate(self.record.tables)}
        rows = self.record.layout.rows_on(shard, self.plan.tables)
        order = np.array([index[table.name] for table in self.plan.tables], np.int32)
        return gather(self.shards[shard].machine.store, [rows._replace(tables=order)], True)[0]

    # ------------------------------------------------------------------ processes
    def _add(self, name: str, role: int, machine: Any) -> Process:
        process = Process(name, role, machine, self.rng.randrange(1_000_000))
        self.processes[name] = process
        process.address = getattr(machine, "address", Address(SCHEDULER, 0, 0))
        self.post(self.now_ms + self.rng.random() * self.plan.tick_ms, self._tick, process)
        return process

    def start_scheduler(self) -> None:
        machine = SchedulerMachine(self.plan.n, self.plan.groups, self.plan.config, self.persisted)
        self._made += 1
        self.scheduler = self._add(f"scheduler.{self._made}", SCHEDULER, machine)
        self.note("starts", self.scheduler.label)

    def start_shard(self, wanted: int) -> None:
        """A new process that asks for a place."""
        if self.ended:
            return
        self._made += 1
        name = f"p{self._made}"
        machine = ShardMachine(name, f"sim://{name}", wanted)
        machine.observer = self.record
        Watch(self.coverage, machine)
        self.endpoints[machine.endpoint] = self._add(name, SHARD, machine)
        self.note(f"starts, wants shard {wanted}", name)

    def start_worker(self, number: int) -> None:
        """A worker's process; where there was one before, it goes on with the operations that are left."""
        self._made += 1
        name = f"w{number}.{self._made}"
        machine = ClientMachine(number, name)
        self._add(name, WORKER, machine)
        if number == len(self.workers):
            kind = LeasingWorker if self.plan.leases else Worker
            self.workers.append(kind(self.plan, number, machine, self.record, self.oracle))
        else:
            self.workers[number].restart(machine)
            self.note(f"is worker {number} again", name)

    def start_tool(self) -> None:
        """Begin a scrub, by the tool's process, which is made for the first one."""
        if self.faults.quiet:
            return
        if self.tool is None:
            self.tool = ScrubTool(self.plan)
            self._add("tool", TOOL, self.tool)
        self.tool.begin()

    def kill(self, process: Process, why: str) -> None:
        """The process is gone. Of what it sent, each link loses everything from some point on."""
        process.alive = False
        self.note(f"dies: {why}", process.label)
        for link in self._links.values():
            if link.to is process:
                link.queue.clear()
            elif link.source is process:
                keep = self.rng.randint(0, len(link.queue))
                while len(link.queue) > keep:
                    link.queue.pop()
        if process is self.scheduler:
            self.scheduler = None

    def worker_process(self, number: int) -> Process | None:
        """The living process of a worker."""
        machine = self.workers[number].machine
        return next((p for p in self.processes.values() if p.machine is machine and p.alive), None)

    # ------------------------------------------------------------------ machines
    def _tick(self, process: Process) -> None:
        if not process.alive:
            return
        if process.paused_until_ms > self.now_ms:
            self.post(process.paused_until_ms, self._tick, process)
            return
        self.handle(process, e.Tick())
        if process.alive and process.role == SHARD and self.network.streams:
            self._tick_streams(process)
        self.post(self.now_ms + self.plan.tick_ms, self._tick, process)

    def handle(self, process: Process, event: e.Event) -> None:
        """Give a machine an event and do what it wants done."""
        machine = process.machine
        if process.role == SHARD:
            process.lineage_before = len(self.record.lineage[process.address.id])
        try:
            effects = machine.handle(event, self.now_ms + process.clock_ms)
            if self.plan.validate and hasattr(machine, "validate_state"):
                machine.validate_state()
        except ViolationError:
            raise
        except Exception as error:
            what = type(event.message).__name__ if isinstance(event, e.Received) else type(event).__name__
            raise MachineError(f"{process.label} raised at {what}:\n{traceback.format_exc()}") from error
        if process.role == SHARD:
            self._look_at_shard(process)
        self._carry_out(process, effects)
        if process.held and process.address.epoch:
            held, process.held = process.held, []
            for link, parcel in held:
                self._arrive(link, parcel)
        if process.role == WORKER and process.alive:
            self._advance_worker(process)

    def _look_at_shard(self, process: Process) -> None:
        machine = process.machine
        address = machine.address
        if address != process.address:
            process.address = address
            process.marks = dict(machine.marks)
            process.streams.reset()
            self.shards[address.id] = process
            self.note(f"is {address}", process.name)
            self.faults.placed(process)
        if machine.marks != process.marks:
            for worker, mark in process.marks.items():
                now = machine.marks.get(worker, -1)
                if now < mark:
                    raise ViolationError(f"{address}: worker {worker}'s mark fell from {mark} to {now}", [address.id])
            process.marks = dict(machine.marks)

    def _advance_worker(self, process: Process) -> None:
        worker = self.workers[process.machine.worker]
        saves = self.now_ms < self.faults.saves_until_ms and all(self.record.whole.values())
        effects = worker.advance(self.now_ms, saves)
        self._carry_out(process, effects)
        if worker.machine.failed_kind == "fenced" and self._is_over(worker.number, worker.machine.epoch):
            self.kill(process, "it was given up")
            self.post(self.now_ms + 0.1 + self.rng.random() * 50.0, self.start_worker, worker.number)
        elif worker.machine.failed and not self.record.lost:
            raise ViolationError(f"worker {worker.number} cannot go on: {worker.machine.failed}")

    def _is_over(self, worker: int, epoch: int) -> bool:
        """A life of a worker is announced to be over, or the scheduler has heard of another process of it.

        That may be one that died before: its heartbeats can be late.
        """
        if (worker, epoch) in self.record.fenced:
            return True
        return self.persisted is not None and read_state(self.persisted).workers.get(worker, (0, ""))[0] > epoch

    def _carry_out(self, process: Process, effects: Sequence[e.Effect]) -> None:
        stop_after = self.faults.effects_before_crash(process, len(effects))
        for number, effect in enumerate(effects):
            if number == stop_after:
                if number and isinstance(effects[number - 1], e.Persist):
                    self.coverage.traps["persist-first"] += 1
                self.faults.crash_scheduler("between two effects")
                return
            if isinstance(effect, e.Send):
                self._send(process, effect)
            elif isinstance(effect, e.Connect):
                self._connect(process, effect)
            elif isinstance(effect, e.Disconnect):
                process.refused.add(effect.address)
                process.streams.fenced(effect.address)
            elif isinstance(effect, e.Persist):
                self.persisted = effect.state
            elif isinstance(effect, e.Stop):
                self.faults.stopped(process, effect.reason)
                return
            elif isinstance(effect, e.Note):
                self.story.add(self.now_ms, effect.level, process.label, "", effect.text)
                if effect.level == "error" and not self.record.lost:
                    raise ViolationError(f"{process.label} reports an error: {effect.text}", [process.address.id])
            elif isinstance(effect, e.PullDone):
                self.workers[process.machine.worker].took(effect)
            else:
                self.note(f"failed: {effect.reason}", process.label)

    def _connect(self, process: Process, effect: e.Connect) -> None:
        address = effect.address
        process.routes[address] = self.endpoints[effect.endpoint]
        if process.role == SHARD and self.network.streams and address not in process.connected:
            process.connected.add(address)
            process.streams.connected(address)
            for numbered in process.streams.reconnected(address, self.now_ms):
                self._resend(process, address, numbered)

    # ------------------------------------------------------------------ sending
    def _send(self, process: Process, effect: e.Send) -> None:
        to, message = effect.to, effect.message
        source = process.machine.address if process.role != SCHEDULER else process.address
        self._check_sent(process, source, effect)
        try:
            packed = wire.pack(message, effect.frames)
        except Exception as error:
            raise MachineError(f"{process.label} sends {message} to {to}:\n{traceback.format_exc()}") from error
        packed = wire.Packed(packed.body, [bytes(frame) for frame in packed.frames])
        packet = Packet(source, to, packed, message)
        target = self.scheduler if to.role == SCHEDULER else process.routes.get(to)
        if source.role == SHARD and to.role == SHARD and self.network.streams:
            if not process.streams.is_old(to):
                self._resend(process, to, Numbered(process.streams.out(to).append(packet, self.now_ms), packet))
        elif target is not None and target.alive:
            self._transmit(process, target, Parcel(source, packet, 0, 0))

    def link(self, process: Process, target: Process) -> Link:
        link = self._links.get((process, target))
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
            if target.role == SCHEDULER:
                link.cut_until_ms = self.faults.isolated_until_ms(process)
            self._links[process, target] = link
        return link

    def calm_links(self) -> None:
        """Faults stop: no link lags any more. (A repair that takes longer than its time-outs never ends.)"""
        for link in self._links.values():
            link.lag_ms = link.slow_ms = 0.0

    def _transmit(self, process: Process, target: Process, parcel: Parcel) -> None:
        link = self.link(process, target)
        stream = parcel.packet is None or parcel.sequence > 0
        was_broken = link.broken
        counts = self.coverage.faults
        copies = 1 if self.faults.quiet else link.copies(self.now_ms, self.network, self.rng, stream)
        if copies == 0:
            if not stream:
                counts["message lost"] += 1
            elif not was_broken:  # a connection breaks as a whole, and somebody notices
                counts["connection broken"] += 1
                self._notice_break(link, parcel.source)
            return
        if stream and link.broken:
            return  # between the break and the new connection nothing passes
        if copies > 1:
            counts["message delivered twice"] += 1
        self._sent += 1
        parcel = parcel._replace(sent=self._sent)
        views = parcel.packet is not None and isinstance(parcel.packet.message, m.Views)
        for _ in range(copies):
            link.queue.append(parcel)
            self.post(link.delay_ms(self.now_ms, self.network, self.rng, counts, views), self._deliver, link)

    def _notice_break(self, link: Link, source: Address) -> None:
        over_ms = self.now_ms if self.faults.quiet else max(self.now_ms, link.outage_until_ms, link.cut_until_ms)
        self.post(over_ms + self.rng.random() * 5.0, self._reconnect, link, source)

    def _reconnect(self, link: Link, source: Address) -> None:
        if not self.faults.quiet and self.now_ms < link.cut_until_ms:  # a partition began meanwhile
            self._notice_break(link, source)
            return
        link.broken = False
        self.coverage.faults["connection made again"] += 1
        if not link.source.alive or not link.to.alive:
            return
        peer = link.to.address
        for numbered in link.source.streams.reconnected(peer, self.now_ms):
            self._resend(link.source, peer, numbered)

    def _resend(self, process: Process, peer: Address, numbered: Numbered[Packet]) -> None:
        target = process.routes.get(peer)
        if target is not None and target.alive and peer in process.connected:
            parcel = Parcel(numbered.item.source, numbered.item, numbered.sequence, process.streams.ack_for(peer))
            self._transmit(process, target, parcel)

    def _tick_streams(self, process: Process) -> None:
        streams = process.streams
        for peer, due in streams.resends_due(self.now_ms):
            for numbered in due:
                self._resend(process, peer, numbered)
        for peer in streams.acks_due():
            target = process.routes.get(peer)
            ack = streams.ack_for(peer)
            if target is not None and target.alive and peer in process.connected:
                self._transmit(process, target, Parcel(process.address, None, 0, ack))

    # ------------------------------------------------------------------ arriving
    def _deliver(self, link: Link) -> None:
        process = link.to
        if not link.queue or not process.alive:
            return
        free_ms = max(process.paused_until_ms, process.busy_until_ms)
        if free_ms > self.now_ms:
            self.post(free_ms, self._deliver, link)
            return
        if self.now_ms < process.slow_until_ms and not self.faults.quiet:
            process.busy_until_ms = self.now_ms + process.service_ms
        parcel = link.queue.popleft()
        newest = self._newest.get(process, 0)
        if parcel.sent < newest:
            self.coverage.faults["message overtook one of another link"] += 1
        else:
            self._newest[process] = parcel.sent
        self._arrive(link, parcel)

    def _arrive(self, link: Link, parcel: Parcel) -> None:
        process, source, packet = link.to, parcel.source, parcel.packet
        if not process.alive:
            return
        if process.role == SHARD and source.role != SCHEDULER and packet and packet.to != process.address:
            if process.address.epoch == 0 and packet.to.role == SHARD:
                process.held.append((link, parcel))
            return
        if source in process.refused and self.network.cut_on_disconnect and process.role != SCHEDULER:
            return
        process.routes[source] = link.source
        if process.role == SHARD and source.role == SHARD and self.network.streams:
            streams = process.streams
            streams.acknowledge(source, parcel.ack, self.now_ms)
            if packet is None:
                return
            if not streams.take(source, parcel.sequence):
                stream = streams._in.get(source)
                if stream is not None and parcel.sequence <= stream.ack:
                    self.coverage.faults["delivered again after a reconnect, and dropped"] += 1
                return
        assert packet is not None
        envelope = wire.decode(wire.seal(packet.packed, source, packet.to))
        self.messages += 1
        packed = packet.packed
        names = link.source.label, process.label
        self.story.add(self.now_ms, "message", *names, packet.message, packed.frames, packed.body)
        assert envelope.message is not None
        if isinstance(packet.message, m.Pull):
            self._pulls[process.name, source, packet.message.request] = (
                packet.message, sections_of(packet.message.sections, packet.packed.frames, False),
            )  # fmt: skip
        self.witness.took(process.role, process.machine, packet.message)
        before = self._fingerprint(process) if self._is_fenced(process, source) else None
        self.handle(process, e.Received(source, envelope.message, envelope.frames))
        if before is not None and process.alive and self._fingerprint(process) != before:
            raise ViolationError(
                f"{process.label} took a {type(packet.message).__name__} of {source}, which is fenced, and changed",
                [source.id],
            )
        if isinstance(packet.message, m.Repaired) and self.record.current(process.address):
            self._check_repaired(process, packet.packed.frames)
        self.faults.delivered(type(packet.message).__name__, link.source, process)

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
        elif process.role == SHARD:
            if isinstance(message, m.PushAck | m.Welcome):
                self.record.acknowledged(source, to.id, message.durable)
            elif isinstance(message, m.Rows):
                pull, sections = self._pulls[process.name, to, message.request]
                if self.record.current(source):
                    self.record.check_rows(source, process.lineage_before, pull, to.id, sections, effect.frames)
                else:
                    self.coverage.transitions[GHOST_READ] += 1
                    self.record.check_rows_of_ghost(source, pull, sections, effect.frames)

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
        return dict(machine.marks), dict(machine.durable), received, rows

    def _check_repaired(self, process: Process, frames: Sequence[Any]) -> None:
        """Rows that came in a repair, now that they were taken."""
        store = process.machine.store
        for frame in frames[:2]:
            keys = np.frombuffer(frame, np.uint64)
            if len(keys):
                self.record.check_keys(process.address, store, keys)


def _unstable(machine: Any) -> dict[int, list[int]]:
    return {number: sorted(window.waiting) for number, window in machine.unstable.items()}


def _peers(machine: Any) -> str:
    return " ".join(
        f"{p.shard}.{p.epoch}:{p.state}{'/unsettled' if p.unsettled else ''}"
        f"{'/awaits Joined' if p.awaits_joined else ''}"
        f"{f'/{len(p.held)} held' if p.held else ''}"
        for p in machine.peers.values()
    )


def _work(machine: Any) -> str:
    wanted = {class_id: sorted(done) for class_id, done in machine.seeding.done.items()}
    queues = {w: [q.number for q in state.queue] for w, state in machine.workers.items() if state.queue}
    pulls = [(str(q.source), q.pull.request, q.pull.after) for q in machine.pulls]
    return f"seeded by class {wanted}, seeds {machine.seeding.tasks}, queues {queues}, pulls {pulls}"
