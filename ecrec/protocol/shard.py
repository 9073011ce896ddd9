"""The machine of one shard: whom each message is for, and in which order its parts act (docs/protocol.md).

Each part has one conversation, owns what it knows of it, and shares the rest with the others (``shard_context.py``):
workers' pushes and pulls stand in ``pushes.py`` and ``pulls.py``, windows in ``windows.py`` and ``peer_windows.py``,
what happens when shards die and come back in ``membership.py``, ``repair.py`` and ``seeding.py``, the scrub in
``scrub.py``, checkpoints in ``saver.py``, readers of changes in ``following.py``, what is said to the scheduler in
``heartbeats.py`` and ``departure.py``; a shard that leaves in ``handover.py``, who succeeds it in ``successor.py``.

This file is long because all that may happen to a shard comes in here, and in one order.
"""

from collections.abc import Callable
from typing import Any

from ecrec._native import Store
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.captures import Captures
from ecrec.protocol.config import NEVER_MS, ProtocolConfig
from ecrec.protocol.departure import Departure
from ecrec.protocol.events import (
    BAD_CONTENT,
    Connection,
    Effect,
    Event,
    FileWritten,
    HalfHandledError,
    Received,
    Tick,
    ToldToEnd,
    half_handled,
)
from ecrec.protocol.following import Following
from ecrec.protocol.handover import Handover
from ecrec.protocol.heartbeats import Heartbeats
from ecrec.protocol.membership import Membership
from ecrec.protocol.messages import NOT_WHOLE, RECOVERING, SCHEDULER, SHARD, UP, Address, is_my_scheduler
from ecrec.protocol.missing_rows import MissingRows
from ecrec.protocol.peer import Peer
from ecrec.protocol.peer_windows import PeerWindows
from ecrec.protocol.placement import Placement
from ecrec.protocol.pulls import Pulls
from ecrec.protocol.pushes import Pushes
from ecrec.protocol.repair import Repairs
from ecrec.protocol.saver import Saver
from ecrec.protocol.scrub import Scrubs
from ecrec.protocol.seeding import Seeding
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.shard_workers import ShardWorkers
from ecrec.protocol.successor import Successor
from ecrec.protocol.transitions import CLOSED, HAS_ALL, OPENED
from ecrec.protocol.windows import Windows

HELD_MAX = 4096
"""Messages of one peer that wait for a view; no more are taken from its stream until the view comes. It waits for
acknowledgements meanwhile, so that it sends little more than its windows in flight, and repairs asked again."""
EARLY_MAX = 4096
"""Messages to a process without a place, if `unplaced_bytes_max` has room for them. What a peer sends to one that is
being placed waits in the transport."""
STATE_COPY_BYTES_MAX = 64 << 20
"""Of a copy of the scheduler's state; a larger one is not kept. 1,000 deaths make some hundred kilobytes."""
TABLE_BITS = 48
"""A key is table << TABLE_BITS | stripe."""
PINGS_MAX = 256
"""To a peer that is not heard; each waits in its stream until it is acknowledged."""
PINGS_IN_LINK_TIMEOUT = 8
"""How often a peer that does not answer is asked for a sign of life within `link_timeout_ms`."""


class ShardMachine:
    """One process of a shard: unplaced until the scheduler's FullView, then one incarnation to its end.

    ``wanted`` is the shard (over all groups) that this process wants to be; -1 makes it a spare. ``leave_timeout_ms``:
    the longest time, after it was told to end, that it waits to be let go; 0: no limit.
    """

    def __init__(self, process: str, endpoint: str, wanted: int = -1, leave_timeout_ms: float = 0.0) -> None:
        self.context = ShardContext(process, endpoint)
        self.early: list[Received] = []
        """Messages that came before my place."""
        self.early_bytes = 0
        self._huge_pages_due_ms = -1e18
        context = self.context
        self.windows = Windows(context)
        self.captures = Captures(context, self.windows)
        self.repairs = Repairs(context, self.captures)
        self.scrubs = Scrubs(context, self.captures)
        self.seeding = Seeding(context, self.repairs)
        self.peer_windows = PeerWindows(context, self.windows, self.captures, self.seeding)
        self.departure = Departure(process, leave_timeout_ms or NEVER_MS)
        self.saver = Saver(context)
        self.handover = Handover(context, self.windows, self.departure)
        self.successor = Successor(context)
        self.membership = Membership(
            context,
            self.windows,
            self.peer_windows,
            self.repairs,
            self.scrubs,
            self.seeding,
            self.departure,
            self.saver,
            self.handover,
            self.successor,
        )
        self.heartbeats = Heartbeats(
            context, wanted, self.windows, self.repairs, self.scrubs, self.seeding, self.membership, self.saver,
            self.successor,
        )  # fmt: skip
        lost = MissingRows(context, self.repairs)
        self.workers = ShardWorkers(context)
        self.pushes = Pushes(context, self.workers, self.windows, lost, self.saver)
        self.pulls = Pulls(context, self.workers, lost)
        self.following = Following(context)
        self._from_shards: dict[type, Callable[[Peer, Any, m.Frames], None]] = {
            m.Window: self.peer_windows.on_window,
            m.WindowAck: self.windows.on_ack,
            m.Stable: self.peer_windows.on_stable,
            m.Join: self.membership.on_join,
            m.Joined: self.seeding.on_joined,
            m.Reseed: self.seeding.on_reseed,
            m.Repair: self.captures.on_repair,
            m.CaptureParity: self.captures.on_capture_parity,
            m.Snap: self.captures.on_snap,
            m.Marker: self.captures.on_marker,
            m.Captured: self.captures.on_captured,
            m.Repaired: self.repairs.on_repaired,
            m.CorrectParity: self.scrubs.on_correct_parity,
            m.ParityCorrected: self.scrubs.on_parity_corrected,
            m.Ping: self._on_ping,
            m.RepairWanted: self.captures.on_wanted,
            m.RepairWorking: self.repairs.on_working,
            m.Halt: self.handover.on_halt,
            m.Halted: self.handover.on_halted,
        }
        self._from_clients: dict[type, Callable[[Address, Any, m.Frames], None]] = {
            m.Hello: self.workers.on_hello,
            m.Push: self.pushes.on_push,
            m.Flush: self.workers.on_flush,
            m.Pull: self.pulls.on_pull,
            m.Scrub: self.scrubs.on_scrub,
            m.AskChanges: self.following.on_ask,
            m.StoryQuery: self._on_story_query,
        }

    # ------------------------------------------------------------------ what others see of it
    @property
    def process(self) -> str:
        return self.context.process

    @property
    def endpoint(self) -> str:
        return self.context.endpoint

    @property
    def config(self) -> ProtocolConfig:
        return self.context.config

    @property
    def address(self) -> Address:
        """Without a place: of the incarnation that it is to be, if it copies one that leaves."""
        following = self.successor.address
        return self.context.address if following is None else following

    @property
    def shard(self) -> int:
        """Its number in its group; -1 without a place."""
        return self.context.shard

    @property
    def state(self) -> str:
        """Empty without a place; else as `transitions.SHARD` has it."""
        return self.context.state

    @property
    def view(self) -> int:
        """Number of the last view that it has followed."""
        return self.context.view

    @property
    def placement(self) -> Placement:
        return self.context.placement

    @property
    def store(self) -> Store:
        return self.context.store

    @property
    def peers(self) -> dict[int, Peer]:
        return self.context.peers

    @property
    def watermarks(self) -> dict[int, int]:
        """Worker -> its last push that is applied."""
        return self.context.watermarks

    @property
    def durable(self) -> dict[int, int]:
        """Worker -> its last push that is durable."""
        return self.context.durable

    # ------------------------------------------------------------------ the one way in
    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Take one event; return what is to be done, in order.

        Raises one of BAD_CONTENT for a message of a server that does not fit; nothing of it is done then. It is missing
        in that server's stream, so of a peer nothing more is taken, and the two accuse each other. Workers and tools
        are answered with a refusal. Raises HalfHandledError for whatever is raised once the state has moved: the
        process must end.
        """
        context = self.context
        context.awake_ms += min(max(now_ms - context.now_ms, 0.0), float(context.config.heartbeat_ms))
        context.now_ms = now_ms
        context.effects = []
        context.is_acting = False
        try:
            self._take(event)
        except MemoryError:
            raise
        except Exception as error:
            if not context.is_acting and not isinstance(error, HalfHandledError):
                raise
            raise half_handled(context.address, event, error, context.story.last(now_ms)) from error
        effects, context.effects = context.effects, []
        return effects

    def while_busy(self, now_ms: float) -> list[Effect]:
        """What is to be sent in the middle of an event, so that nobody takes this shard for dead; mostly nothing."""
        return self.heartbeats.again(now_ms)

    def listen(self, pause: Callable[[], None]) -> None:
        """Have ``pause()`` called in the middle of an event that takes long; it may call `while_busy`, nothing else."""
        self.context.on_pause = pause

    def read_until(self, at_ms: float) -> None:
        """All that had arrived at this process by then was handled: what a peer said later may still wait."""
        self.heartbeats.read_ms = at_ms

    def _take(self, event: Event) -> None:
        context = self.context
        if isinstance(event, Tick):
            context.checked()
            self._on_tick()
        elif isinstance(event, Received):
            self._on_received(event)
        elif isinstance(event, Connection):
            context.checked()
            self._on_connection(event)
        elif isinstance(event, FileWritten):
            context.checked()
            self.saver.on_written(event)
        elif isinstance(event, ToldToEnd):
            context.checked()
            context.effects += self.departure.begin(str(context.address), bool(context.state), context.now_ms)
        context.checked()
        if context.state:
            self.advance()
        if context.status_due:
            self.heartbeats.send()

    def takes_from(self, source: Address) -> bool:
        """False while so much of a peer waits for a view that the transport is to leave the rest with it."""
        context = self.context
        if not context.state:
            return self._has_room_early() or source == self.successor.leaver
        peer = context.peers.get(source.id - context.base)
        if peer is None or (peer.broken and source.epoch == peer.epoch):
            return peer is None
        return not self._is_full(peer)

    def _has_room_early(self) -> bool:
        return len(self.early) < EARLY_MAX and self.early_bytes < self.context.config.unplaced_bytes_max

    def _is_full(self, peer: Peer) -> bool:
        return len(peer.held) >= HELD_MAX or peer.held_bytes >= self.context.config.held_bytes_max

    def _hold(self, peer: Peer, event: Received) -> None:
        """Keep a message until a view comes; say so once when the peer is given no more room."""
        context = self.context
        was_full = self._is_full(peer)
        peer.hold(event)
        if self._is_full(peer) and not was_full:
            context.note(
                "warning",
                f"{event.source} is ahead of view {context.view}: {len(peer.held)} messages of it wait for the next "
                f"one, {peer.held_bytes} bytes; the rest stays with it until that view comes",
            )

    # ------------------------------------------------------------------ whom a message is for
    def _on_received(self, event: Received) -> None:
        context = self.context
        role = event.source.role
        if role == SCHEDULER:
            self._on_scheduler(event.message, event.frames)
        elif role == SHARD:
            self._on_shard(event)
        elif context.state:
            handler = self._from_clients.get(type(event.message))
            if handler is None:
                kind = type(event.message).__name__
                context.note("warning", f"{event.source}: dropped a {kind}, which a shard does not take")
            else:
                handler(event.source, event.message, event.frames)

    def _on_scheduler(self, message: m.Message, frames: m.Frames) -> None:
        context = self.context
        if isinstance(message, m.Census):
            self.membership.tell()
        elif isinstance(message, m.Probe):
            self._on_probe(message)
        elif isinstance(message, m.Knock):
            self.heartbeats.on_knock(message)
        elif isinstance(message, m.PrepareTable):
            self.membership.on_prepare(message)
        elif isinstance(message, m.LeaveWaits):
            self.departure.answered(message, context.now_ms)
        elif isinstance(message, m.HaltNow):
            self.handover.on_halt_now(message)
        elif isinstance(message, m.Succeed):
            if not context.state:
                self.successor.on_succeed(message)
                early, self.early, self.early_bytes = self.early, [], 0
                for event in early:  # of the shard that is copied, which may have heard of it first
                    self._on_shard(event)
        elif isinstance(message, m.ToldToLeave):
            self._on_told_to_leave(message)
        elif not isinstance(message, m.Views | m.Fenced | m.StateCopy):
            context.note("warning", f"the scheduler: dropped a {type(message).__name__}, which a shard does not take")
        elif context.state and not is_my_scheduler(message, context.origin):
            # trap: one with an older state, or of another cluster, takes every healthy member for a dead one
            context.note("warning", f"dropped a {type(message).__name__} of a scheduler of {message.origin}: not mine")
        elif isinstance(message, m.Views):
            self.membership.on_views(message, self.release_held)
        elif isinstance(message, m.Fenced):
            context.effects.append(self.departure.ended(f"fenced by the scheduler: {message.reason}"))
        elif context.state:
            self._keep_copy(message.origin, frames[0])

    def _on_told_to_leave(self, message: m.ToldToLeave) -> None:
        """Somebody asked the scheduler that this process ends, or that it stays after all."""
        context = self.context
        if message.process != context.process:
            return
        context.checked()
        if message.stays:
            context.effects += self.departure.stay()
        else:
            self.departure.off_host = message.off_host
            context.effects += self.departure.begin(str(context.address), bool(context.state), context.now_ms)

    def _keep_copy(self, origin: m.Origin, frame: Any) -> None:
        """Keep the scheduler's state, if it is newer than what I keep."""
        context = self.context
        if origin.serial >= context.copied and len(frame) <= STATE_COPY_BYTES_MAX:
            copy = bytes(memoryview(frame))
            context.checked()
            context.copy, context.copied = copy, origin.serial
            context.hear_origin(origin)

    def _on_connection(self, event: Connection) -> None:
        context = self.context
        if self.handover.on_connection(event):
            return
        peer = context.peers.get(event.address.id - context.base)
        if peer is None or peer.epoch != event.address.epoch:
            return
        peer.step_link(OPENED if event.up else CLOSED)
        context.story.tell(context.now_ms, f"connection to {event.address}: {peer.link}")
        if not event.up:
            context.status_due = True  # the scheduler, whose own connection may be closed too, waits for just that

    def _on_story_query(self, source: Address, message: m.StoryQuery, frames: m.Frames) -> None:
        context = self.context
        context.reply(source, m.StoryTold(message.request, context.process, context.story.events(context.now_ms)))

    def _on_probe(self, message: m.Probe) -> None:
        """Ask those that were not heard just now for a sign of life; those that do not answer less often."""
        context = self.context
        context.checked()
        config = context.config
        for shard in message.shards:
            peer = context.peers.get(shard)
            if peer is None or peer.shard == context.shard or not peer.running or peer.pings >= PINGS_MAX:
                continue
            pause_ms = config.link_timeout_ms / PINGS_IN_LINK_TIMEOUT if peer.pings else config.heartbeat_ms
            if context.now_ms - max(peer.pinged_ms, peer.heard_ms or -NEVER_MS) >= pause_ms:
                peer.pings, peer.pinged_ms = peer.pings + 1, context.now_ms
                context.send(peer, m.Ping(asks=True))

    def _on_ping(self, peer: Peer, message: m.Ping, frames: m.Frames) -> None:
        if message.asks:
            self.context.send(peer, m.Ping(asks=False))

    # ------------------------------------------------------------------ peers
    def _on_shard(self, event: Received) -> None:
        """Take a peer's message, or hold it until its view is here, and then all that comes behind it."""
        context = self.context
        source = event.source
        if not context.state:
            if self.successor.takes(event):
                return
            if self._has_room_early():
                nbytes = arrays.frames_bytes(event.frames)
                context.checked()
                self.early.append(event)
                self.early_bytes += nbytes
            return
        if isinstance(event.message, m.Copied):
            if source.id == context.base + context.shard:
                self.handover.on_copied(event.message)
            return
        peer = context.peers.get(source.id - context.base)
        handler = self._from_shards.get(type(event.message))
        if peer is None or handler is None or peer.shard == context.shard:
            kind = type(event.message).__name__
            context.note("warning", f"{source}: dropped a {kind}, which is not a peer's or not from a member")
            return
        if source.epoch == peer.epoch:
            peer.heard_ms, peer.heard_awake_ms, peer.pings = context.now_ms, context.awake_ms, 0
        try:
            self._take_of_peer(peer, event, handler)
        except Exception:
            # Left out it is a hole in the stream: what follows means nothing without it.
            peer.broken = True
            context.status_due = True
            raise

    def _take_of_peer(self, peer: Peer, event: Received, handler: Callable[[Peer, Any, m.Frames], None]) -> None:
        context = self.context
        source = event.source
        if source.epoch > peer.epoch or (peer.held and peer.held[-1].source.epoch == source.epoch):
            self._hold(peer, event)
            return
        if source.epoch < peer.epoch or not peer.running or peer.broken or self.handover.defers(event):
            return
        view = getattr(event.message, "view", None)
        if view is not None and self.membership.is_over(view, event.message):
            return
        if (view is not None and view > context.view) or self._is_ahead(event):
            self._hold(peer, event)
        else:
            handler(peer, event.message, event.frames)

    def _is_ahead(self, event: Received) -> bool:
        """Whether a message waits for a view: a seed that is asked for in one, or rows of a table that it brings.

        A worker that pushes before all shards have a table must not make a hole in the streams between them.
        """
        context = self.context
        if isinstance(event.message, m.Reseed | m.Halt):
            return event.message.since > context.view
        if not isinstance(event.message, m.Window):
            return False
        keys = arrays.keys(event.frames[0])
        return bool(keys.size) and int(keys.max()) >> TABLE_BITS >= context.store.tables

    def release_held(self) -> None:
        """A view came: what waited for one is taken again, in order."""
        for peer in self.context.peers.values():
            held, peer.held, peer.held_bytes = peer.held, [], 0
            for event in held:
                self._take_late(event)
        early, self.early, self.early_bytes = self.early, [], 0
        for event in [*early, *self.handover.take_waiting()]:
            self._take_late(event)

    def _take_late(self, event: Received) -> None:
        """Take what waited. Of a peer of which something does not fit nothing more is taken."""
        context = self.context
        context.is_acting = False
        try:
            self._on_shard(event)
        except Exception as error:
            if context.is_acting or not isinstance(error, BAD_CONTENT):
                context.is_acting = True
                raise
            kind = type(event.message).__name__
            context.note(
                "error", f"{event.source}: took nothing more from it since a {kind} that does not fit: {error}"
            )
        context.is_acting = True

    # ------------------------------------------------------------------ what has become possible
    def advance(self) -> None:
        """Do what has become possible: answer, apply, seed, close the window."""
        context = self.context
        if context.pulls_due and context.pulls:
            self.pulls.answer_due()
        while self.pushes.apply_queued() or self.saver.begin_if_reached():
            if context.pulls:
                self.pulls.answer_due()
            self.windows.close_if_due()
        self.saver.advance()
        self.following.answer_due()
        self.handover.advance()
        if self.seeding.tasks:
            self.seeding.advance()
        if context.state in NOT_WHOLE:
            self.repairs.sweep()
            self.windows.close_if_due()
            self.check_whole()
        else:
            self.windows.close_if_due()

    @property
    def deadline_ms(self) -> float:
        """When a Tick is wanted, if none comes before. Acknowledgements wait for an open window."""
        # It is asked after each message.
        context = self.context
        said_ms = self.heartbeats.said_ms
        due_ms = min(self.windows.deadline_ms, self.saver.deadline_ms, said_ms + context.config.heartbeat_ms)
        if context.state == RECOVERING and context.now_ms < self.repairs.share.resume_ms < due_ms:
            due_ms = self.repairs.share.resume_ms
        if self.seeding.tasks and context.now_ms < self.seeding.share.resume_ms < due_ms:
            due_ms = self.seeding.share.resume_ms
        at_ms = self.handover.resume_ms
        return at_ms if at_ms is not None and context.now_ms < at_ms < due_ms else due_ms

    def check_whole(self) -> None:
        """All data rows here and all classes seeded: the group can lose r shards again."""
        context = self.context
        if context.state in NOT_WHOLE and self.repairs.complete() and self.seeding.complete():
            context.step(HAS_ALL)
            self.repairs.asked.clear()  # rows that another answer brought
            context.status_due = True
            context.note("info", f"shard {context.base + context.shard} is whole again")

    def _on_tick(self) -> None:
        context = self.context
        self.successor.on_tick()
        if not context.state:
            context.status_due = False
            if context.now_ms - self.heartbeats.said_ms >= context.config.heartbeat_ms:
                self.heartbeats.register()
            return
        self.repairs.on_tick()
        self.scrubs.on_tick()
        context.effects += self.departure.on_tick(context.config, context.now_ms)
        self.windows.on_tick()
        self.handover.on_tick()
        if context.now_ms - self.heartbeats.said_ms >= context.config.heartbeat_ms:
            context.status_due = True
        self._use_huge_pages()

    def _use_huge_pages(self) -> None:
        """Move a little of the tables to huge pages, if nobody waits for anything and all shards are whole."""
        context = self.context
        whole = (
            context.state == UP
            and not context.halted
            and all(p.state == UP for p in context.peers.values() if p.shard != context.shard)
        )
        if not whole or context.now_ms < self._huge_pages_due_ms:
            return
        if context.pulls or self.seeding.tasks or any(w.queue for w in context.workers.values()):
            return
        config = context.config
        goes_on = context.store.use_huge_pages(config.huge_pages_extents)
        self._huge_pages_due_ms = context.now_ms + (
            config.huge_pages_interval_ms if goes_on else config.huge_pages_pause_ms
        )
