"""A coding group in one process: real machines, first-in-first-out channels; a test that says what happens next.

The simulator explores schedules; this is for scenarios that a test spells out.
"""

from collections import defaultdict, deque
from typing import Any

import numpy as np

from ecrec._native import Capture, Code, RowBuffer, crc32c
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    Connect,
    Connection,
    Disconnected,
    Effect,
    Event,
    Failed,
    FileWritten,
    Persist,
    PullDone,
    PullFailed,
    Received,
    Send,
    Stop,
    Tick,
    WriteFile,
)
from ecrec.protocol.messages import DOWN, SCHEDULER, SHARD, TOOL, UP, Address, Section
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine

SGD = OptimizerSpec("sgd", (0.5,))
STEPS_MAX = 200_000


def table(
    name: str = "t", rows: int = 40, dim: int = 4, code: str = "4+1", optimizer: OptimizerSpec = SGD
) -> TableSpec:
    """A small table."""
    return TableSpec(name, rows, dim, CodeSpec.parse(code), optimizer, "uniform", 1, 0.1, 0.0)


def written(effect: WriteFile) -> FileWritten:
    """What a storage that works tells of a file."""
    data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in effect.buffers)
    return FileWritten(effect.checkpoint, effect.name, len(data), crc32c(data), "")


def register_at(
    scheduler: SchedulerMachine, process: str, endpoint: str, wanted: int, now_ms: float = 0.0
) -> list[Effect]:
    """A process asks for a place, and is reached where it says. What the scheduler does then."""
    source = Address(SHARD, -1, 0)
    effects = scheduler.handle(Received(source, m.Register(process, endpoint, wanted)), now_ms)
    knocks = [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, m.Knock)]
    for knock in knocks:
        effects += scheduler.handle(Received(source, m.Register(process, endpoint, wanted, knock.number)), now_ms)
    return effects


class Cluster:
    """n shards, a scheduler and one worker; channels are queues between processes."""

    def __init__(self, n: int, config: ProtocolConfig | None = None, cluster: str = "") -> None:
        self.n = n
        self.now_ms = 0.0
        self.config = config or ProtocolConfig()
        self.scheduler = SchedulerMachine(n, 1, self.config, None, cluster)
        self.state = b""
        self.machines: dict[str, Any] = {"scheduler": self.scheduler}
        self.files: list[tuple[str, WriteFile]] = []
        """Files of checkpoints that processes want written, and who: a test gives what became of them."""
        self.where: dict[Address, str] = {Address(SCHEDULER, 0, 0): "scheduler"}
        self.channels: dict[tuple[str, str], deque[Received]] = defaultdict(deque)
        self.blocked: set[tuple[str, str]] = set()
        self.stopped: dict[str, str] = {}
        self.failed: list[str] = []
        self.done: dict[int, dict[int, m.Frames]] = {}
        self.refused: dict[int, str] = {}
        """Pulls that were refused, and why."""
        self.tool_answers: list[tuple[m.Message, m.Frames]] = []
        self._processes = 0
        self.shards: dict[int, str] = {i: self.start(i) for i in range(n)}
        self.client = ClientMachine(0, "worker-0")
        self.machines["worker-0"] = self.client
        self.settle_down(lambda: self.client.ready)

    # ------------------------------------------------------------------ processes
    def start(self, wanted: int) -> str:
        """Start a process that wants to be a shard."""
        name = self.next_process
        self._processes += 1
        self.machines[name] = ShardMachine(name, f"inproc://{name}", wanted)
        return name

    @property
    def next_process(self) -> str:
        """Name of the process that will be started next."""
        return f"process-{self._processes + 1}"

    def kill(self, shard: int, keep: int = 0) -> None:
        """Kill the shard's process; of each of its channels the first ``keep`` messages still arrive."""
        name = self.shards[shard]
        address = self.machines.pop(name).address
        for (source, _), queue in self.channels.items():
            if source == name:
                while len(queue) > keep:
                    queue.pop()
        self.give("scheduler", Disconnected(address))

    def declared(self, *shards: int) -> None:
        """Wait until the scheduler has declared these down."""
        self.settle_down(lambda: all(self.scheduler.state.groups[0].places[shard].state == DOWN for shard in shards))

    def replace(self, shard: int) -> ShardMachine:
        """Start another process for a dead shard and wait until it is placed."""
        self.shards[shard] = self.start(shard)
        machine = self.machines[self.shards[shard]]
        self.settle_down(lambda: machine.state != "")
        return machine

    def shard(self, shard: int) -> ShardMachine:
        return self.machines[self.shards[shard]]

    # ------------------------------------------------------------------ events
    def give(self, name: str, event: Event) -> None:
        if isinstance(event, Disconnected) and all(each.address != event.address for each in self.machines.values()):
            # The process is dead: its peers see the connection close, too.
            for peer, each in self.machines.items():
                if isinstance(each, ShardMachine):
                    self.channels[peer, peer].append(Connection(event.address, up=False))
        machine = self.machines.get(name)
        if machine is not None:
            self.carry_out(name, machine, machine.handle(event, self.now_ms))

    def carry_out(self, name: str, machine: Any, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.send(name, machine, effect)
            elif isinstance(effect, Connect) and isinstance(machine, ShardMachine) and self._runs(effect.endpoint):
                self.channels[name, name].append(Connection(effect.address, up=True))
            elif isinstance(effect, Persist):
                self.state = effect.state
            elif isinstance(effect, Stop):
                self.stopped[name] = effect.reason
                self.machines.pop(name, None)
            elif isinstance(effect, PullDone):
                self.done[effect.ticket] = effect.answers
            elif isinstance(effect, PullFailed):
                self.refused[effect.ticket] = effect.reason
            elif isinstance(effect, WriteFile):
                self.files.append((name, effect))
            elif isinstance(effect, Failed):
                self.failed.append(effect.reason)

    def send(self, name: str, machine: Any, effect: Send) -> None:
        source = getattr(machine, "address", Address(SCHEDULER, 0, 0))
        self.where[source] = name
        if effect.to.role == TOOL:
            self.tool_answers.append((effect.message, effect.frames))
            return
        target = self.where.get(effect.to)
        if effect.to.role == SHARD and target is None:
            target = next((p for p, x in self.machines.items() if self._endpoint(x, effect.to)), None)
        if target is not None:
            frames = [bytes(memoryview(f)) for f in effect.frames]
            self.channels[name, target].append(Received(source, effect.message, frames))

    def _runs(self, endpoint: str) -> bool:
        return any(isinstance(e, ShardMachine) and e.endpoint == endpoint for e in self.machines.values())

    def _endpoint(self, machine: Any, address: Address) -> bool:
        if not isinstance(machine, ShardMachine):
            return False
        if address.id < 0:  # of a process without a place
            found = [e for e in self.scheduler.admission.candidates.values() if e.address == address]
            return bool(found) and found[0].endpoint == machine.endpoint
        group, shard = divmod(address.id, self.n)
        place, succeeding = (
            self.scheduler.state.groups[group].places[shard],
            self.scheduler.state.groups[group].succeeding,
        )
        if succeeding is not None and (succeeding.shard, succeeding.epoch) == (shard, address.epoch):
            return succeeding.process == machine.process
        return place.epoch == address.epoch and place.process == machine.process

    def deliver(self) -> bool:
        """Deliver one message of every channel that is not blocked; False if there was none."""
        moved = False
        for key in list(self.channels):
            queue = self.channels[key]
            if queue and key not in self.blocked:
                moved = True
                self.give(key[1], queue.popleft())
        return moved

    def tick(self, ms: float = 20.0) -> None:
        self.now_ms += ms
        for name in list(self.machines):
            self.give(name, Tick())

    def run(self) -> None:
        """Deliver all there is."""
        for _ in range(STEPS_MAX):
            if not self.deliver():
                return
        raise AssertionError("the cluster does not come to rest")

    def settle_down(self, condition: Any, ticks: int = 500) -> None:
        """Let time pass until the condition holds."""
        for _ in range(ticks):
            self.run()
            if condition():
                return
            self.tick()
        raise AssertionError("the condition did not come true in time")

    # ------------------------------------------------------------------ the worker
    def create(self, spec: TableSpec) -> None:
        self.carry_out("worker-0", self.client, self.client.create_table(spec))
        self.settle_down(lambda: self.client.table_ready(spec.name))

    def by_shard(self, spec: TableSpec, rows: Any) -> dict[int, Any]:
        """Rows of a table by the shard that holds them."""
        rows = np.asarray(rows, np.int64)
        shards = (rows // spec.code.k + rows % spec.code.k) % self.n
        return {s: rows[shards == s] for s in range(self.n) if (shards == s).any()}

    def push(self, spec: TableSpec, gradients: dict[int, float]) -> None:
        """Push one gradient (the same for all columns) for each row."""
        index = self.client.tables[spec.name][0]
        parts = {}
        for shard, rows in self.by_shard(spec, sorted(gradients)).items():
            values = np.repeat(np.array([gradients[int(i)] for i in rows], np.float32), spec.dim)
            parts[shard] = [Section([index], [len(rows)])], (rows, values)
        self.carry_out("worker-0", self.client, self.client.push(parts))

    def pull(self, spec: TableSpec, rows: Any, exact: bool = True) -> int:
        index = self.client.tables[spec.name][0]
        parts = {s: ([Section([index], [len(r)])], (r,)) for s, r in self.by_shard(spec, rows).items()}
        ticket, effects = self.client.pull(parts, exact=exact)
        self.carry_out("worker-0", self.client, effects)
        return ticket

    def read(self, spec: TableSpec) -> np.ndarray:
        """All weights of a table, in order of rows; float32[rows, dim]."""
        ticket = self.pull(spec, range(spec.rows))
        self.settle_down(lambda: ticket in self.done)
        out = np.empty((spec.rows, spec.dim), np.float32)
        by_shard = self.by_shard(spec, range(spec.rows))
        for shard, frames in self.done[ticket].items():
            out[by_shard[shard]] = np.frombuffer(frames[0], np.float32).reshape(-1, spec.dim)
        return out

    def drain(self) -> None:
        """Wait until all pushes are durable and all shards whole."""
        self.settle_down(lambda: self.client.pushed == self.client.acked and self.whole())

    def whole(self) -> bool:
        return all(p.state == UP for g in self.scheduler.state.groups for p in g.places)

    # ------------------------------------------------------------------ checks
    def scrub(self) -> None:
        """Parity of every stripe equals encode(data): rows of all members add up to zero."""
        placement = self.shard(0).placement
        for stripe in placement.classes:
            spec = placement.code_of(stripe.class_id)
            coefficients = Code(spec.k, spec.r, spec.generator).coefficients
            for i, holder in enumerate(stripe.parity):
                store = self.shard(holder).store
                size = store.class_size(stripe.class_id)
                rest = RowBuffer(store)
                if size:
                    rest.fold(1, *Capture(store, stripe.class_id, 0, size).take())
                for j, member in enumerate(stripe.data):
                    rest.fold(int(coefficients[i, j]), *self.shard(member).store.coded_rows(stripe.class_id, 0, size))
                assert rest.nonzero().size == 0, f"class {stripe.class_id}: parity {i} on shard {holder} is wrong"
