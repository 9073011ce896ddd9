"""A whole cluster in one process: the real machines, queues in place of sockets, and a clock that only runs when asked.

Sessions of several workers may each run in a thread: one lock is held while messages move.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    Connect,
    Connection,
    Disconnected,
    Effect,
    Failed,
    PullDone,
    PullFailed,
    Received,
    Send,
    Tick,
)
from ecrec.protocol.messages import SCHEDULER, SHARD, TOOL, UP, WORKER, Address
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine
from ecrec.training.session import Session

TICK_MS = 20.0
LEASE_TIMEOUT_MS = 24 * 3_600_000
"""Of a worker. Its thread may be at its model while others, which wait, let hours pass."""


class InProcessCluster:
    """Shards are killed with `kill`; each dead one is replaced at once."""

    def __init__(self, n: int = 3, groups: int = 1, config: ProtocolConfig | None = None) -> None:
        self.n = n
        self.lock = threading.Lock()
        config = config or ProtocolConfig(lease_timeout_ms=LEASE_TIMEOUT_MS)
        self.scheduler = SchedulerMachine(n, groups, config, None)
        self.machines: dict[str, Any] = {"scheduler": self.scheduler}
        self.results: dict[str, list[PullDone | PullFailed | Failed]] = defaultdict(list)
        self.channels: dict[tuple[str, str], deque[Received]] = defaultdict(deque)
        self.now_ms = 0.0
        self.started = 0
        for shard in range(n * groups):
            self._start_shard(shard)

    def session(self, **options: Any) -> Session:
        """A session of a new worker process, or of one that reads; other options are those of `Session`."""
        role = TOOL if options.pop("read_only", False) else WORKER
        name = f"worker-{options.get('rank', 0)}-{self.started}"
        self.started += 1
        machine = ClientMachine(options.get("rank", 0) if role == WORKER else self.started, name, role)
        with self.lock:
            self.machines[name] = machine
        return Session(machine, _Node(self, name), wait_timeout_ms=20_000.0, **options).start()

    def kill(self, shard: int) -> None:
        """Kill the shard's process, lose what is on its way to it, and start another one."""
        with self.lock:
            name = next(
                name
                for name, machine in self.machines.items()
                if isinstance(machine, ShardMachine) and machine.address.id == shard
            )
            address = self.machines.pop(name).address
            for (_, target), queue in self.channels.items():
                if target == name:
                    queue.clear()
            self._carry_out("scheduler", self.scheduler.handle(Disconnected(address), self.now_ms))
            self._start_shard(shard)

    def whole(self) -> bool:
        """Every shard is up and has repaired all of its rows."""
        return all(place.state == UP for group in self.scheduler.state.groups for place in group.places)

    def step(self, mine: str) -> None:
        """Deliver a message of every channel; let time pass if there is none.

        Of the workers only ``mine``, the caller, is given anything: other threads may be looking at theirs.
        """
        moved = False
        for key in list(self.channels):
            queue = self.channels[key]
            if queue and self._may_give(key[1], mine):
                moved = True
                self._give(key[1], queue.popleft())
        if not moved:
            self.now_ms += TICK_MS
            for name in list(self.machines):
                if self._may_give(name, mine):
                    self._give(name, Tick())

    def _may_give(self, name: str, mine: str) -> bool:
        return name == mine or not isinstance(self.machines.get(name), ClientMachine)

    def _start_shard(self, shard: int) -> None:
        name = f"process-{self.started}"
        self.started += 1
        self.machines[name] = ShardMachine(name, f"inproc://{name}", shard)

    def _give(self, name: str, event: Any) -> None:
        machine = self.machines.get(name)
        if machine is not None:
            self._carry_out(name, machine.handle(event, self.now_ms))

    def _carry_out(self, name: str, effects: Sequence[Effect]) -> None:
        source = getattr(self.machines[name], "address", Address(SCHEDULER, 0, 0))
        for effect in effects:
            if isinstance(effect, Send):
                target = self._find(effect.to)
                if target is not None:
                    frames = [bytes(memoryview(frame)) for frame in effect.frames]
                    self.channels[name, target].append(Received(source, effect.message, frames))
            elif isinstance(effect, Connect) and isinstance(self.machines[name], ShardMachine):
                self.channels[name, name].append(Connection(effect.address, up=True))
            elif isinstance(effect, PullDone | PullFailed | Failed):
                self.results[name].append(effect)

    def _find(self, to: Address) -> str | None:
        if to.role == SCHEDULER:
            return "scheduler"
        for name, machine in self.machines.items():
            address = getattr(machine, "address", None)
            if address == to or (to.role == SHARD and self._will_be(machine, to)):
                return name
            if to.role in (WORKER, TOOL) and address is not None and (address.role, address.id) == (to.role, to.id):
                return name
        return None

    def _will_be(self, machine: Any, to: Address) -> bool:
        """A process that has not yet been told which shard it is, or has no place."""
        if not isinstance(machine, ShardMachine):
            return False
        if to.id < 0:
            known = self.scheduler.admission.candidates.get(machine.process)
            return known is not None and known.address == to
        group, shard = divmod(to.id, self.n)
        place = self.scheduler.state.groups[group].places[shard]
        return (place.epoch, place.process) == (to.epoch, machine.process)


class _Node:
    """The transport of one session."""

    def __init__(self, cluster: InProcessCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def perform(self, effects: Sequence[Effect]) -> None:
        with self.cluster.lock:
            self.cluster._carry_out(self.name, effects)

    def pump(self, timeout_ms: float) -> list[PullDone | PullFailed | Failed]:
        # One that waits in a loop would have the interpreter to itself: each torch call of another thread gives it up,
        # and gets it back only when the switch interval is over.
        time.sleep(0)
        with self.cluster.lock:
            self.cluster.step(self.name)
            return self.cluster.results.pop(self.name, [])

    def scheduler_trouble(self) -> str:
        return "it is stopped"

    def close(self) -> None:
        with self.cluster.lock:
            self.cluster.machines.pop(self.name, None)


def in_threads(workers: Sequence[Callable[[], Any]], timeout_s: float = 60.0) -> list[Any]:
    """Run workers at the same time; returns what they return, raises what one raises."""
    results: list[Any] = [None] * len(workers)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = workers[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
        assert not thread.is_alive(), "a worker does not end"
    if errors:
        raise errors[0]
    return results
