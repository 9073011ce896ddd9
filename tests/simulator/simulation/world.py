"""What a run consists of: simulated time with its queue of events, processes, and the links between them.

The faults change a `World` and know no more of the run; `cluster.py` says what the processes in it do.
"""

import heapq
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from ecrec.protocol import events as e
from ecrec.protocol.messages import Address
from simulation.coverage import Coverage
from simulation.network import Link, Process
from simulation.plan import Plan
from simulation.record import Record
from simulation.story import Story
from simulation.strangers import Strange
from simulation.workload import ScrubTool, Worker

STATES_MAX = 64
"""States of the scheduler that are kept for a fault that brings an older one back."""


class World(ABC):
    """All of a run that faults may see and change."""

    def __init__(self, plan: Plan, story: Story) -> None:
        self.plan = plan
        self.story = story
        self.now_ms = 0.0
        self.coverage = Coverage()
        self.record = Record(plan)
        self.rng = random.Random(plan.seed * 2 + 1)
        self.processes: dict[str, Process] = {}
        self.endpoints: dict[str, Process] = {}
        self.shards: dict[int, Process] = {}
        """The process of each shard's newest incarnation."""
        self.scheduler: Process | None = None
        self.persisted: bytes | None = None
        self.adopts = False
        """Schedulers may make a state again that turns out to be an older one, or lost."""
        self.states: deque[bytes] = deque(maxlen=STATES_MAX)
        """What was persisted, the newest last."""
        self.workers: list[Worker] = []
        self.tool: ScrubTool | None = None
        self.links: dict[tuple[Process, Process], Link] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._posted = 0

    # ------------------------------------------------------------------ time
    def post(self, at_ms: float, what: Callable[..., None], *arguments: Any) -> None:
        self._posted += 1
        heapq.heappush(self._queue, (at_ms, self._posted, what, arguments))

    def note(self, text: str, who: str = "simulator") -> None:
        self.story.add(self.now_ms, "event", who, "", text)

    def step(self) -> None:
        """Let the next event happen."""
        at_ms, _, what, arguments = heapq.heappop(self._queue)
        self.now_ms = at_ms
        what(*arguments)

    # ------------------------------------------------------------------ processes
    def kill(self, process: Process, why: str) -> None:
        """The process is gone. Of what it sent, each link loses everything from some point on."""
        process.alive = False
        self.note(f"dies: {why}", process.label)
        for link in self.links.values():
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

    @abstractmethod
    def begin_checkpoints(self) -> None:
        """From now on workers ask for checkpoints, when the plan says so."""

    @abstractmethod
    def start_scheduler(self) -> None:
        """A new process of the scheduler, with the state that was persisted."""

    @abstractmethod
    def start_shard(self, wanted: int) -> None:
        """A new process that asks for a place."""

    @abstractmethod
    def start_worker(self, number: int) -> None:
        """A worker's process; where there was one before, it goes on with the operations that are left."""

    @abstractmethod
    def start_tool(self) -> None:
        """Begin a scrub, by the tool's process, which is made for the first one."""

    @abstractmethod
    def handle(self, process: Process, event: e.Event) -> None:
        """Give a machine an event that comes from nobody."""

    @abstractmethod
    def arrives(self, process: Process, strange: Strange) -> None:
        """Bytes of nobody in this world come to a process."""

    # ------------------------------------------------------------------ links
    @abstractmethod
    def link(self, process: Process, target: Process) -> Link:
        """The way from one process to another one, made when it is first asked for."""

    @abstractmethod
    def linked(self, process: Process, address: Address) -> None:
        """A connection that a process opened is made."""

    @abstractmethod
    def unlinked(self, process: Process, address: Address) -> None:
        """A process sees a connection that it made close."""

    def calm_links(self) -> None:
        """Faults stop: no link lags any more."""
        for link in self.links.values():
            link.lag_ms = link.slow_ms = 0.0
