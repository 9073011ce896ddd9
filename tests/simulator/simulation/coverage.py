"""What schedules reached: faults that struck, transitions of the machines, and the situations of the known traps.

A `Watch` puts itself between a shard's machine and its handlers: it counts what is really handled, in which state, and
looks just before whether the handler now meets a situation in which a trap could snap. The machines know nothing of it.

This file is long because it lists all that is to be reached.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages import RECOVERING, SCHEDULER, SHARD, WORKER, Address
from ecrec.protocol.placement import OPTIMIZERS, Placement
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.seeding import ALL_CLASSES
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.state import Group
from ecrec.protocol.transitions import HALTING, NEAR, NOT_COPIED
from simulation import tuning
from simulation.plan import Plan
from simulation.refusals import REFUSED

FAULTS_COUNTED = (
    "message delayed by a straggler", "message lost", "message delivered twice", "message overtook one of another link",
    "views held up", "connection broken", "connection made again", "delivered again after a reconnect, and dropped",
    "bit flipped in flight", "slow link", "slow shard", "stuck shard", "stalled shard, taken for dead",
    "stalled worker",
    "partition, one way, of two shards", "partition, one way, of two shards, until one is replaced",
    "partition, one way, of a worker and a shard", "partition, one way, from the scheduler",
    "partition, one way, from the scheduler, until it is replaced", "closed connection to a living shard",
    "closed connections to more living shards than the code tolerates", "scheduler that hears nobody",
    "more living shards silenced at once than the code tolerates", "living shard that acknowledges late",
    "registration under a living shard's endpoint", "rows without parity next to coded ones",
    "partition, one way, to the scheduler: taken for dead, and works on", "crash of a shard at a message",
    "crash of a shard at any time", "crash of a shard in a recovery", "crash of a recovering shard",
    "r simultaneous crashes, r > 1", "more than r simultaneous crashes", "crash of the scheduler at rest",
    "crash of the scheduler between two effects", "crash of the scheduler in a recovery",
    "scheduler that starts with an older state", "scheduler that starts with no state",
    "scheduler that starts with a damaged state",
    "scheduler that starts with a state that only workers know to be old",
    "scheduler that grants no split, for a worker knows more",
    "state that is old or gone, while splits are leased", "state that is old or gone, while first values wait",
    "copy of the scheduler's state that cannot be read",
    "outdated scheduler that refuses", "slow stable storage of the scheduler", "deposed scheduler that goes on sending",
    "message of a deposed scheduler dropped", "damaged parity row", "stays broken while the rest goes on: shards",
    "stays broken while the rest goes on: worker", "stays broken while the rest goes on: links",
    "crash of a worker", "two living processes of a worker", "process of a worker that yields to one that lives",
    "run of workers that failed and was started again",
    "run of workers after one of another size", "jump of a shard's clock", "jump of a worker's clock",
    "jump of the scheduler's clock", "crash of a shard in the middle of an event", *REFUSED,
    "server told to end", "server told to end in a recovery", "server told to end while it recovers",
    "more servers told to end at once than the code tolerates", "server that waited to leave",
    "checkpoint: complete", "checkpoint: given up", "checkpoint: refused", "checkpoint: a write fails",
    "checkpoint: an increment", "checkpoint: an increment of an increment",
    "checkpoint: an increment after one that was given up",
    "checkpoint: a base that is not the cluster's",
    "checkpoint: a write hangs", "checkpoint: rows kept aside", "checkpoint: a push waits for its cut",
    "checkpoint: with a user's state", "checkpoint: a barrier behind the cut of one of its workers",
    "shard handed over to a spare",
    "succession given up", "server let go without a spare", "crash of a successor",
    "crash of a successor that has everything", "leave withdrawn", "leave withdrawn while it is copied",
    "drain asked by a tool", "drain taken back by a tool", "a checkpoint goes on while a shard is near",
    "stranger sends what nobody takes", "stranger of another version is told so", "stranger is ignored",
    "message kept for an incarnation to come",
)  # fmt: skip
"""Every fault that is to happen; the runs count them under these names."""

FAULTS_RARE = (
    "checkpoint: an increment of which a shard wrote all", "a death while a shard is copied: copying",
    "a death while a shard is copied: near", "a death while a shard is copied: halting",
    "message left with a peer for want of room",
)  # fmt: skip
"""Not seen in 2,000 schedules, so not asked of them; reported. Scenarios of tests/unit/protocol have some of them."""

TRAPS = {
    "watermarks-with-report": "a report names watermarks that only the undo records know",
    "reporter-dies": "a survivor dies between its report and the decision of the cut",
    "reports-differ": "survivors have different last windows of the dead",
    "undone-beyond-the-cut": "a survivor undoes windows beyond the cut",
    "nothing-heard": "an incarnation dies, and a survivor has not heard of it since it came up",
    "younger-reporter": "a shard that came up after the dead one died reports next to others",
    "settle-confirmed": "a replacement waits until all have confirmed the settlement",
    "push-again": "a push that was applied comes again",
    "stable-before-durable": "a shard dies with applied pushes that are not stable",
    "pull-again": "an exact pull is asked again of another incarnation",
    "recovering-markers": "a recovering member sends a marker, with deltas in its open window",
    "repair-in-one-view": "a view comes while repairs are under way",
    "old-view-dropped": "a repair's message of an earlier view comes",
    "no-repair-unsettled": "a lost row is wanted between ShardDown and Settle",
    "held-behind-view": "windows come behind a message that waits for its view",
    "seed-stable": "the end of a seed is undone",
    "seed-starts-over": "a class that is partly seeded starts over",
    "wiped-not-undone": "undo records of a class that starts over lose it",
    "old-round-skipped": "a window carries rows of a class whose round is not the asked one",
    "round-once": "a round of seeding is heard of twice",
    "joined-before-push": "a push waits for Joined, of a peer that wants no more seeds of some class",
    "persist-first": "the scheduler dies between persisting and sending",
    "half-done": "a shard says that it lives in the middle of an event that brought a view",
    "fenced": "a message of a fenced incarnation arrives",
    "halted-windows": "windows come while the group of a shard that leaves halts",
    "halted-stable": "a member is asked to halt, and has windows that are not stable",
    "left-behind": "rows are left to be copied when the group halts",
    "late-halt": "a member is asked to halt for a succession that is over",
    "successor-reports": "a member dies before its successor of another one has heard of it",
    "too-many": "more shards die than the code tolerates",
}
"""Trap, as named in docs/protocol.md -> the situation in which it could snap."""

GHOST_READ = "a shard that was declared dead answers a pull"

SUCCESSION_VIEWS = ("Succession", "SuccessionOver", "Succeeded")
VIEWS = ("ShardDown", "Settle", "ShardUp", "ShardWhole", "TableAdded", "WorkerFenced", "Reinitialise")
CHECKPOINT_VIEWS = ("CheckpointAsked", "CheckpointCut", "CheckpointOver")
STAGES = ("nothing repaired yet", "repairs and seeds under way", "data here, seeds missing", "seeds here, data missing")
"""Where a recovering shard can stand when something dies."""


WINDOW_ROWS, CLASS_ID, SHARDS, DATA_MEMBERS, TABLE_ROWS, DIM = 1000, 32, 8, 4, 1000, 32
"""What a large window, class id, group, code, table and row has more than."""
REQUESTS = 8
KEY_TWICE = "window with a key twice"
LARGE_WINDOW = f"window of more than {WINDOW_ROWS} rows"
SEED_UNINDEXED = "seed into a window that has a key twice: it looks nothing up"
CLOSED_FULL = "window closed at its size, with as many in flight as may be"
PAUSED = "work in pieces: a pause in the middle of an event"
HEARTBEAT_IN_PAUSE = "heartbeat in the middle of an event"
MANY_REPAIRS = f"class repaired in more than {REQUESTS} ranges"
RATES = "pushes at other learning rates than the tables'"
SIZES = (
    KEY_TWICE, LARGE_WINDOW, SEED_UNINDEXED, CLOSED_FULL, MANY_REPAIRS, f"class id above {CLASS_ID}",
    f"more than {SHARDS} shards in a group", f"code with k above {DATA_MEMBERS}", "three groups",
    f"table of more than {TABLE_ROWS} rows", f"rows of more than {DIM} weights", "several native threads",
    "table without parity next to coded ones", RATES, PAUSED, HEARTBEAT_IN_PAUSE,
)  # fmt: skip
"""Sizes at which the store and the machines take other paths."""


@dataclass
class Coverage:
    """Counters, by name."""

    faults: Counter[str] = field(default_factory=Counter)
    transitions: Counter[str] = field(default_factory=Counter)
    traps: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    largest: dict[str, int] = field(default_factory=dict)
    """What was the largest of its kind, for people."""

    def add(self, other: "Coverage") -> None:
        self.faults.update(other.faults)
        self.transitions.update(other.transitions)
        self.traps.update(other.traps)
        self.sizes.update(other.sizes)
        for name, value in other.largest.items():
            self.saw(name, value)

    def saw(self, name: str, value: int) -> None:
        self.largest[name] = max(value, self.largest.get(name, 0))

    def began(self, plan: Plan) -> None:
        """Faults may strike a cluster of this plan from now on."""
        placement = Placement(plan.n)
        for table in plan.tables:
            placement.add(table.code)
            self.sizes[f"optimizer {table.optimizer.name}"] += 1
            self.saw("rows of a table", table.rows)
            self.saw("weights of a row", table.dim)
            self.saw("k", table.code.k)
        self.saw("shards in a group", plan.n)
        self.saw("groups", plan.groups)
        self.saw("classes", len(placement.classes))
        reached = {
            f"class id above {CLASS_ID}": len(placement.classes) > CLASS_ID + 1,
            f"more than {SHARDS} shards in a group": plan.n > SHARDS,
            f"code with k above {DATA_MEMBERS}": max(table.code.k for table in plan.tables) > DATA_MEMBERS,
            "three groups": plan.groups == 3,
            RATES: plan.rates,
            f"table of more than {TABLE_ROWS} rows": max(table.rows for table in plan.tables) > TABLE_ROWS,
            f"rows of more than {DIM} weights": max(table.dim for table in plan.tables) > DIM,
            "several native threads": plan.threads > 1,
            "table without parity next to coded ones": len({code.r > 0 for code in placement.codes}) > 1,
        }
        self.sizes.update(name for name, is_so in reached.items() if is_so)
        self.sizes.update(f"threshold {name} below its default" for name in plan.tuning)

    def missing(self) -> list[str]:
        """Faults, traps, transitions and sizes that were never seen."""
        wanted = (
            (self.faults, FAULTS_COUNTED), (self.traps, TRAPS), (self.transitions, transitions()),
            (self.sizes, sizes()),
        )  # fmt: skip
        return [name for counter, names in wanted for name in names if not counter[name]]

    def report(self) -> str:
        """For people: how often each was seen."""
        parts = (
            ("faults", self.faults, (*FAULTS_COUNTED, *FAULTS_RARE)),
            ("situations of traps", self.traps, list(TRAPS)),
            ("transitions", self.transitions, sorted({*transitions(), *self.transitions})),
            ("sizes", self.sizes, sizes()),
        )
        lines: list[str] = []
        for title, counter, names in parts:
            lines.append(f"{title}: {sum(1 for name in names if counter[name])} of {len(names)}")
            for name in names:
                meaning = f": {TRAPS[name]}" if name in TRAPS else ""
                lines.append(f"  {counter[name] or 'never':>9}  {name}{meaning}")
        lines.append("largest: " + ", ".join(f"{name} {value}" for name, value in sorted(self.largest.items())))
        return "\n".join(lines)


def thresholds() -> list[str]:
    """Thresholds of the native store that can be drawn below their defaults."""
    return [name for name, value in tuning.defaults().items() if value > 2]


def sizes() -> list[str]:
    """All sizes that are to be reached, thresholds of the native store among them."""
    optimizers = [f"optimizer {name}" for name in OPTIMIZERS]
    return [*SIZES, *optimizers, *(f"threshold {name} below its default" for name in thresholds())]


UNSAID = (m.Unfit, m.StoryQuery, m.Restore, m.AskChanges)
"""No process is without memory here (tests/unit/protocol/test_new_tables.py has some), nobody asks for stories or
changes (tests/unit/protocol/test_following.py), and checkpoints are brought into clusters of real processes
(tests/integration/test_checkpoint_processes.py)."""


def transitions() -> list[str]:
    """All that can happen to a machine: what it takes, by its state. Read from the machines' own tables."""
    shard, scheduler = ShardMachine("", ""), SchedulerMachine(1, 1, ProtocolConfig(), None)
    by_state: list[tuple[str, type]] = []
    for kind in [*shard._from_shards, *(kind for kind in shard._from_clients if kind not in UNSAID)]:
        by_state += [("up", kind), (RECOVERING, kind)]
    by_state = [pair for pair in by_state if pair not in IMPOSSIBLE]
    names = [f"shard {state}: {kind.__name__}" for state, kind in by_state]
    names += ["shard unplaced: FullView of a new group", "shard unplaced: FullView of a replacement"]
    names += [f"shard {state}: view {view}" for state in ("up", RECOVERING) for view in VIEWS]
    names += ["shard up: view DataLost", "shard: Fenced", "shard unplaced: FullView of a successor"]
    names += [f"{who}: view {view}" for who in ("shard up", "worker") for view in SUCCESSION_VIEWS]
    names += [f"shard up: view {view}" for view in CHECKPOINT_VIEWS]
    names += [f"worker: view {view}" for view in CHECKPOINT_VIEWS] + ["worker: SaveBegun"]
    names += [f"worker: view {view}" for view in (*VIEWS, "FullView", "DataLost")]
    names += [f"worker: {kind}" for kind in ("Welcome", "PushAck", "Rows", "TableReady", "Leased", "NoSplit")]
    names += [f"worker: {kind}" for kind in ("RunJoined", "RunOver", "TableInitial", "Refused", "PullRefused")]
    names += [f"scheduler: {kind.__name__}" for kind in scheduler._handlers if kind not in UNSAID]
    names.append(GHOST_READ)
    names += [f"a death, while a shard recovers: {stage}" for stage in STAGES]
    return names


CORRECTIONS = (m.CorrectParity, m.ParityCorrected)
FOR_HOLDERS = (m.Repair, m.CaptureParity, m.Marker, m.Captured, m.RepairWanted)
IMPOSSIBLE = {(RECOVERING, kind) for kind in (*FOR_HOLDERS, *CORRECTIONS, m.Halt, m.Halted)}
"""Only shards that are whole are asked for parity, in the view that says so."""


class Watch:
    """Stands between one shard's machine and its handlers."""

    def __init__(self, coverage: Coverage, machine: ShardMachine) -> None:
        self.coverage = coverage
        self.machine = machine
        self._heard: set[tuple[int, int]] = set()
        """(shard, epoch) of which a Join came,"""
        self._windows: set[tuple[int, int]] = set()
        """or a window."""
        self._seeded: set[int] = set()
        """Peers into whose part of the open window rows were seeded behind others."""
        self._repairs: Counter[int] = Counter()
        """Ranges of each class that were asked for."""
        self._extra: dict[type, Callable[..., None]] = {
            m.Window: self._window,
            m.Join: self._join,
            m.Joined: self._joined,
            m.Snap: self._snap,
            m.ShardDown: self._down,
            m.Settle: self._settle,
            m.Halt: self._halt,
        }
        machine.seeding.on_reseed = self._around_reseed(machine.seeding.on_reseed)  # type: ignore[method-assign]
        machine._from_shards[m.Reseed] = machine.seeding.on_reseed
        for table in (machine._from_shards, machine._from_clients, machine.membership._apply):
            for kind, handler in table.items():
                table[kind] = self._around(kind, handler)
        machine._on_shard = self._around_arrival(machine._on_shard)  # type: ignore[method-assign,assignment]
        machine.seeding.start_over = self._before(machine.seeding.start_over, self._start_over)  # type: ignore[method-assign]
        machine.repairs.forget = self._before(machine.repairs.forget, self._forget)  # type: ignore[method-assign]
        machine.repairs.ask = self._before(machine.repairs.ask, self._ask)  # type: ignore[method-assign]
        machine.seeding.advance = self._around_seeding(machine.seeding.advance)  # type: ignore[method-assign]
        machine.windows.close = self._before(machine.windows.close, self._close)  # type: ignore[method-assign]
        machine.context.send = self._before(machine.context.send, self._send)  # type: ignore[method-assign]
        machine.handover.on_halt_now = self._before(machine.handover.on_halt_now, self._halt_now)  # type: ignore[method-assign]
        machine.saver.holds = self._around_holds(machine.saver.holds)  # type: ignore[method-assign,assignment]
        machine.saver.advance = self._before(machine.saver.advance, self._save)  # type: ignore[method-assign]

    def _around_holds(self, holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def watched(push: Any) -> bool:
            cut = self.machine.saver._cut
            if holds(push):
                self.coverage.faults["checkpoint: a push waits for its cut"] += 1
                return True
            if cut is not None and push.worker in cut.barriers and push.push.checkpoint == cut.checkpoint:
                self.coverage.faults["checkpoint: a barrier behind the cut of one of its workers"] += 1
            return False

        return watched

    # ------------------------------------------------------------------ a succession
    def _halt(self, peer: Any, message: m.Halt, frames: Any) -> None:
        handover = self.machine.handover
        if not handover._is_current(message.since, peer.shard):
            self.trap("late-halt")
        elif self.machine.context.unstable or self.machine.context.has_open():
            self.trap("halted-stable")

    def _halt_now(self, message: m.HaltNow) -> None:
        copying = self.machine.handover._copying
        if self.machine.handover.state == NEAR and copying is not None and copying.rows:
            self.trap("left-behind")

    def _save(self) -> None:
        snapshot = self.machine.saver._snapshot
        if snapshot is not None and snapshot.kept_bytes:
            self.coverage.faults["checkpoint: rows kept aside"] += 1

    def _around(self, kind: type, handler: Callable[..., None]) -> Callable[..., None]:
        look, name, machine = self._extra.get(kind), kind.__name__, self.machine
        if issubclass(kind, m.View):
            name = f"view {name}"
        transitions = self.coverage.transitions

        def handle(*arguments: Any) -> None:
            transitions[f"shard {machine.state}: {name}"] += 1
            if look is not None:
                look(*arguments)
            if kind is m.Push:
                self._push(arguments[0], arguments[1])
            handler(*arguments)

        return handle

    @staticmethod
    def _before(real: Callable[..., Any], look: Callable[..., None]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            look(*arguments)
            return real(*arguments)

        return call

    def trap(self, name: str) -> None:
        assert name in TRAPS, name
        self.coverage.traps[name] += 1

    # ------------------------------------------------------------------ sizes
    def _around_seeding(self, real: Callable[[], None]) -> Callable[[], None]:
        def advance() -> None:
            buffers = self.machine.context.buffers
            before = {shard: len(buffers.buffer(shard)) for shard, _ in self.machine.seeding.tasks}
            real()
            self._seeded.update(shard for shard, rows in before.items() if 0 < rows < len(buffers.buffer(shard)))

        return advance

    def _close(self) -> None:
        machine = self.machine
        full = machine.context.buffers.nbytes() >= machine.config.window_bytes_max
        if full and len(machine.context.unstable) >= machine.config.windows_in_flight_max:
            self.coverage.sizes[CLOSED_FULL] += 1

    def _send(self, peer: Any, message: m.Message, frames: m.Frames = ()) -> None:
        sizes = self.coverage.sizes
        if isinstance(message, m.Window):
            keys = arrays.keys(frames[0])
            self.coverage.saw("rows of a window", len(keys))
            sizes[LARGE_WINDOW] += len(keys) > WINDOW_ROWS
            twice = len(keys) - len(np.unique(keys)) if len(keys) > 1 else 0
            self.coverage.saw("keys twice in a window", twice)
            sizes[KEY_TWICE] += twice > 0
            sizes[SEED_UNINDEXED] += twice > 0 and peer.shard in self._seeded
            self._seeded.discard(peer.shard)
        elif isinstance(message, m.Repair) and message.stripes.last:
            self._repairs[message.stripes.class_id] += 1
            sizes[MANY_REPAIRS] += self._repairs[message.stripes.class_id] == REQUESTS + 1

    # ------------------------------------------------------------------ what comes in
    def _around_arrival(self, real: Callable[[Any], None]) -> Callable[[Any], None]:
        machine = self.machine
        is_over = machine.membership.is_over

        def on_shard(event: Any) -> None:
            source = event.source
            peer = machine.peers.get(source.id - machine.context.base) if machine.state else None
            if peer is None or peer.shard == machine.shard:
                real(event)
                return
            held, state = len(peer.held), (source.epoch < peer.epoch or not peer.running)
            view = getattr(event.message, "view", None)
            if state and source.epoch <= peer.epoch:
                self.trap("fenced")
            elif source.epoch == peer.epoch and view is not None and not held and is_over(view, event.message):
                self.trap("old-view-dropped")
            real(event)
            behind = isinstance(event.message, m.Window) and source.epoch == peer.epoch
            if behind and held and len(peer.held) > held and getattr(peer.held[0].message, "view", -1) > machine.view:
                self.trap("held-behind-view")

        return on_shard

    def _window(self, peer: Any, window: m.Window, frames: Any) -> None:
        machine = self.machine
        self._windows.add((peer.shard, peer.epoch))
        if machine.handover.state == HALTING:
            self.trap("halted-windows")
        if machine.state != RECOVERING or not len(frames[0]):
            return
        mask = machine.seeding.accepted(peer.shard, {**peer.rounds, **window.begins})
        if mask != ALL_CLASSES:
            classes = machine.store.classes(arrays.keys(frames[0])).tolist()
            if any(not mask >> class_id & 1 for class_id in classes):
                self.trap("old-round-skipped")

    def _join(self, peer: Any, message: m.Join, frames: Any) -> None:
        self._heard.add((peer.shard, peer.epoch))

    def _push(self, source: Address, push: m.Push) -> None:
        if push.number <= self.machine.watermarks.get(source.id, 0):
            self.trap("push-again")

    # ------------------------------------------------------------------ a death
    def _down(self, view: m.ShardDown) -> None:
        machine = self.machine
        if machine.handover.state != NOT_COPIED:
            self.coverage.faults[f"a death while a shard is copied: {machine.handover.state}"] += 1
        if view.shard == machine.shard:
            return
        start = machine.membership.start
        if start is not None and start.succeeds and (view.shard, view.epoch) not in self._windows:
            self.trap("successor-reports")
        peer = machine.peers[view.shard]
        if peer.epoch > 1 and peer.received is not None and (peer.shard, peer.epoch) not in self._heard:
            self.trap("nothing-heard")
        if any(undo.watermarks for undo in peer.undo):
            self.trap("watermarks-with-report")
        if machine.state == RECOVERING:
            self.coverage.transitions[f"a death, while a shard recovers: {stage(machine)}"] += 1

    def _settle(self, view: m.Settle) -> None:
        undone = [undo for undo in self.machine.peers[view.shard].undo if undo.number > view.window]
        if any(undo.keys.size for undo in undone):
            self.trap("undone-beyond-the-cut")
        if any(undo.ends for undo in undone):
            self.trap("seed-stable")

    # ------------------------------------------------------------------ repair
    def _snap(self, peer: Any, message: m.Snap, frames: Any) -> None:
        if self.machine.state == RECOVERING and self.machine.context.buffers.rows():
            self.trap("recovering-markers")

    def _forget(self, classes: set[int]) -> None:
        under_way = [asked.stripes for asked in self.machine.repairs.asked.values()]
        under_way += [assembly.stripes for assembly in self.machine.captures.assemblies.values()]
        if any(stripes.class_id in classes for stripes in under_way):
            self.trap("repair-in-one-view")

    def _ask(self, keys: Any) -> None:
        if not self.machine.context.settled:
            self.trap("no-repair-unsettled")

    # ------------------------------------------------------------------ seeding
    def _start_over(self) -> None:
        machine = self.machine
        if machine.state != RECOVERING:
            return
        unfinished = [c for c in machine.seeding.done if machine.seeding._unfinished(c)]
        if any(machine.seeding.done[class_id] for class_id in unfinished):
            self.trap("seed-starts-over")
        mask = sum(1 << class_id for class_id in unfinished)
        if any(undo.class_mask & mask and undo.keys.size for p in machine.peers.values() for undo in p.undo):
            self.trap("wiped-not-undone")

    def _around_reseed(self, real: Callable[..., None]) -> Callable[..., None]:
        def on_reseed(peer: Any, message: m.Reseed, frames: Any) -> None:
            if message.round <= peer.seeding.get(message.class_id, -1):
                self.trap("round-once")
            real(peer, message, frames)

        return on_reseed

    def _joined(self, peer: Any, message: m.Joined, frames: Any) -> None:
        machine = self.machine
        finished = [c for shard, c in machine.seeding.tasks if shard == peer.shard and c not in message.rounds]
        if peer.is_joined_blind and finished and any(worker.queue for worker in machine.context.workers.values()):
            self.trap("joined-before-push")


def stage(machine: ShardMachine) -> str:
    """One of `STAGES`."""
    data_here = machine.repairs.complete()
    if machine.seeding.complete():
        return STAGES[3]
    if data_here:
        return STAGES[2]
    touched = any(machine.seeding.done.values()) or len(machine.repairs.incomplete) < len(
        machine.placement.data_classes(machine.shard)
    )
    return STAGES[1] if touched else STAGES[0]


class Witness:
    """Watches what is not a shard's: the scheduler's decisions, workers, and what processes are told."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self._pulled: dict[tuple[Any, int, int], int] = {}
        """(worker's machine, request, shard) -> epoch asked."""

    def announced(self, scheduler: SchedulerMachine, number: int, view: m.View) -> None:
        """A view is sent for the first time."""
        group = scheduler.state.groups[number]
        traps = self.coverage.traps
        if isinstance(view, m.Settle):
            settlement = group.settlements.get(view.shard)
            windows = {report.window for report in settlement.reports.values()} if settlement else set()
            if len(windows - {-1}) > 1:
                traps["reports-differ"] += 1
            if -1 in windows and len(windows) > 1:
                traps["younger-reporter"] += 1
            if settlement and not self._confirmed(scheduler, number, group, settlement.view):
                traps["settle-confirmed"] += 1
        elif isinstance(view, m.ShardDown):
            for shard, settlement in group.settlements.items():
                if shard != view.shard and settlement.view < 0 and f"{view.shard}:{view.epoch}" in settlement.reports:
                    traps["reporter-dies"] += 1
        elif isinstance(view, m.DataLost):
            traps["too-many"] += 1

    @staticmethod
    def _confirmed(scheduler: SchedulerMachine, number: int, group: Group, view: int) -> bool:
        return scheduler.members.confirm(number, view)

    def sent(self, machine: ClientMachine, to: Address, message: Any) -> None:
        """A worker sends something to a shard."""
        if isinstance(message, m.Pull) and message.after:
            key = (machine, message.request, to.id)
            if self._pulled.setdefault(key, to.epoch) != to.epoch:
                self.coverage.traps["pull-again"] += 1
                self._pulled[key] = to.epoch

    def took(self, role: int, machine: Any, message: Any) -> None:
        """A worker, the scheduler or an unplaced shard is about to take a message."""
        transitions, kind = self.coverage.transitions, type(message).__name__
        if role == SCHEDULER:
            transitions[f"scheduler: {kind}"] += 1
            if isinstance(message, m.Handover) and message.is_near and machine.state.saving.is_active:
                self.coverage.faults["a checkpoint goes on while a shard is near"] += 1
        elif role == WORKER:
            if isinstance(message, m.Views):
                for view in message.views:
                    transitions[f"worker: view {type(view).__name__}"] += 1
            else:
                transitions[f"worker: {kind}"] += 1
        elif role == SHARD and isinstance(message, m.Fenced):
            transitions["shard: Fenced"] += 1
        elif role == SHARD and isinstance(message, m.Views) and not machine.state:
            self._placed(message.views)

    def _placed(self, views: Sequence[m.AnyView]) -> None:
        starts = [view for view in views if isinstance(view, m.FullView)]
        if starts:
            what = "a replacement" if starts[0].recovering else "a successor" if starts[0].succeeds else "a new group"
            self.coverage.transitions[f"shard unplaced: FullView of {what}"] += 1
