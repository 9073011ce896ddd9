"""Views: what a shard does when members die, are settled, come back and become whole (docs/protocol.md)."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ecrec._native import Store
from ecrec._native import Window as WindowBuffers
from ecrec.protocol import messages as m
from ecrec.protocol.departure import Departure
from ecrec.protocol.events import BAD_CONTENT, LEFT, Connect, Disconnect, Send, Stop
from ecrec.protocol.handover import Handover
from ecrec.protocol.messages import DOWN, NOT_WHOLE, RECOVERING, RESEEDING, SCHEDULER_ADDRESS, SHARD, UP, Address
from ecrec.protocol.peer import Peer
from ecrec.protocol.peer_windows import PeerWindows
from ecrec.protocol.placement import CLASSES_MAX, SHARDS_IN_GROUP_MAX, Placement
from ecrec.protocol.repair import Repairs
from ecrec.protocol.saver import Saver
from ecrec.protocol.scrub import Scrubs
from ecrec.protocol.seeding import Seeding
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.story import describe
from ecrec.protocol.successor import Successor
from ecrec.protocol.table_memory import add_table
from ecrec.protocol.transitions import (
    BECAME_WHOLE,
    CUT,
    DIED,
    GIVEN_COPIED,
    GIVEN_DEAD,
    GIVEN_NEW,
    JOIN,
    JOIN_BLIND,
    LOST_PARITY,
    LOST_PARITY_EARLY,
    NO_STREAM,
    PLACE,
    REPLACED,
    SETTLED,
    STREAM_ENDS,
    SUCCEEDED,
    UNSETTLED,
)
from ecrec.protocol.windows import Windows

UNLIMITED = 2**64 - 1
CONCERN_NO_CLASS = (
    m.WorkerFenced, m.Configured, m.Adopted, m.CheckpointAsked, m.CheckpointCut, m.CheckpointOver, m.Succession,
    m.SuccessionOver,
)  # fmt: skip
"""Views with which no member changes, and no stripe."""
END_A_SUCCESSION = (m.ShardDown, m.Reinitialise, m.DataLost, m.Adopted)


class Membership:
    """The part of a `ShardMachine` that follows the views. Holds what has been reported and is not yet settled."""

    def __init__(
        self,
        context: ShardContext,
        windows: Windows,
        peer_windows: PeerWindows,
        repairs: Repairs,
        scrubs: Scrubs,
        seeding: Seeding,
        departure: Departure,
        saver: Saver,
        handover: Handover,
        successor: Successor,
    ) -> None:
        self.context = context
        self.windows = windows
        self.peer_windows = peer_windows
        self.repairs = repairs
        self.scrubs = scrubs
        self.seeding = seeding
        self.departure = departure
        self.saver = saver
        self.handover = handover
        self.successor = successor
        self.reports: dict[int, m.Report] = {}
        self._first = 0
        """Number of my first view."""
        self._concerned: dict[int, int] = {}
        """Class -> number of the last view that concerned it, if it was not my first one."""
        self.start: m.FullView | None = None
        """What I was started with,"""
        self.recent: deque[m.AnyView] = deque(maxlen=m.VIEWS_TOLD_MAX)
        """and the newest views since: what a scheduler that lost its state is told."""
        self.prepared = 0
        """Number of the last `PrepareTable`,"""
        self.refusal = ""
        """why it cannot be done,"""
        self._reserved: Store | None = None
        """and else what it needs: a store of the table alone."""
        self._apply: dict[type, Any] = {
            m.ShardDown: self._on_down,
            m.Settle: self._on_settle,
            m.ShardUp: self._on_up,
            m.ShardWhole: self._on_whole,
            m.Succession: self.handover.on_succession,
            m.SuccessionOver: self.handover.on_over,
            m.Succeeded: self._on_succeeded,
            m.TableAdded: self._on_table,
            m.WorkerFenced: self._on_worker_fenced,
            m.DataLost: self._on_lost,
            m.Reinitialise: self._on_reinitialise,
            m.Configured: self._on_configured,
            m.Adopted: self._on_adopted,
            m.CheckpointAsked: self.saver.on_asked,
            m.CheckpointCut: self.saver.on_cut,
            m.CheckpointOver: self.saver.on_over,
        }

    def on_views(self, message: m.Views, release_held: Callable[[], None]) -> None:
        """Take the views in order; one that is known is skipped, what follows a gap waits for a resend.

        ``release_held()`` takes the messages that waited for a view; it is called after each.

        Raises ValueError for views that cannot be; none of them is taken then.
        """
        context = self.context
        self._check(message.views)
        if context.state and message.origin.generation > context.origin.generation:
            # trap: views of a history that was given up have the numbers of others
            new = [view for view in message.views if view.number > context.view]
            adopted = [view for view in new if isinstance(view, m.Adopted)]
            if not adopted or new[0].number != context.view + 1:
                return
        for view in message.views:
            if isinstance(view, m.FullView):
                if not context.state and self._place(view, message.origin):
                    release_held()
                continue
            if not context.state or view.number <= context.view:
                continue
            if view.number != context.view + 1:
                return
            context.checked()
            context.view = view.number
            self.recent.append(view)
            context.story.tell(context.now_ms, f"view {describe(view)}")
            context.status_due = context.pulls_due = True
            # trap: a repair does not outlive a view that concerns its class
            classes = self._classes_of(view)
            self._concerned.update(dict.fromkeys(classes, view.number))
            self.repairs.forget(classes)
            self.scrubs.forget(classes)
            if isinstance(view, END_A_SUCCESSION):
                self.handover.over()
            self._apply[type(view)](view)
            context.hear_origin(message.origin)
            release_held()
            if any(isinstance(effect, Stop) for effect in context.effects):
                return

    def _classes_of(self, view: m.AnyView) -> set[int]:
        """Classes whose repairs and scrubs the view can concern: whose members change, or whose stripes become more."""
        classes, placement = self.context.placement.classes, self.context.placement
        if isinstance(view, CONCERN_NO_CLASS):
            return set()
        if isinstance(view, m.TableAdded):
            return {s.class_id for s in classes if placement.code_of(s.class_id) == view.table.code}
        if isinstance(view, m.ShardDown | m.Settle | m.ShardUp | m.ShardWhole | m.Succeeded):
            return {s.class_id for s in classes if view.shard in s.data or view.shard in s.parity}
        return {s.class_id for s in classes}

    def is_over(self, view: int, message: Any) -> bool:
        """Whether a view that concerns the class has come since the one that a message of a repair or scrub names.

        trap: then both ends forget it, and numbers of requests begin again with each incarnation.
        """
        class_id = message.stripes.class_id if hasattr(message, "stripes") else message.class_id
        return view < self._concerned.get(class_id, self._first)

    def _check(self, views: Sequence[m.AnyView]) -> None:
        placement = self.context.placement
        n = placement.n if placement else 0
        for view in views:
            if isinstance(view, m.FullView):
                if self.context.state:
                    continue
                n = view.n
                shards = [view.shard, *(member.shard for member in view.unsettled)]
                listed = sorted(member.shard for member in view.members)
                for member in view.members:
                    PLACE.check(member.state)
                if not 1 <= n <= SHARDS_IN_GROUP_MAX or listed != list(range(n)) or view.window < 0:
                    raise ValueError(f"FullView: {len(view.members)} members, window {view.window}, in a group of {n}")
            elif isinstance(view, m.CheckpointCut):
                if placement:
                    self.saver.check(view)
                continue
            elif isinstance(view, (m.TableAdded, m.DataLost, *CONCERN_NO_CLASS)):
                continue
            elif isinstance(view, m.Reinitialise):
                classes = placement.classes if placement else []
                if any(not 0 <= class_id < len(classes) for class_id in view.classes):
                    raise ValueError(f"Reinitialise: classes {view.classes[:CLASSES_MAX]}, there are {len(classes)}")
                continue
            else:
                shards = [view.shard]
            for shard in shards:
                if n and not 0 <= shard < n:
                    raise ValueError(f"{type(view).__name__} of shard {shard}, in a group of {n}")

    # ------------------------------------------------------------------ the first view
    def _place(self, start: m.FullView, origin: m.Origin) -> bool:
        """Become an incarnation: a fresh one, or the replacement of a dead one. False: it cannot be."""
        context = self.context
        placement, end = Placement(start.n), self.successor.end
        if start.succeeds and self.successor.is_for(start) and self.successor.store is not None:
            store, copied = self.successor.store, len(self.successor.tables)
        elif start.succeeds:  # the scheduler gives it to nobody else
            reason = f"was to succeed shard {start.group * start.n + start.shard}, and has not copied it"
            context.effects += [Send(SCHEDULER_ADDRESS, m.Unfit(context.process, reason)), Stop(reason)]
            return False
        else:
            store, copied = Store(start.shard, start.n, start.group, start.groups), 0
        try:
            for number, table in enumerate(start.tables):
                placement.add(table.code)
                if number >= copied:
                    add_table(store, table, recovered=not start.recovering)
        except (RuntimeError, MemoryError) as error:
            reason = f"cannot hold the tables of shard {start.group * start.n + start.shard}: {error}"
            context.effects += [Send(SCHEDULER_ADDRESS, m.Unfit(context.process, reason)), Stop(reason)]
            return False
        context.checked()
        self.successor.drop(start.succeeds)
        self.start, context.origin = start, origin
        context.config = start.config
        context.group, context.shard, context.epoch, context.view = start.group, start.shard, start.epoch, start.number
        context.base = start.group * start.n
        context.address = Address(SHARD, context.base + start.shard, start.epoch)
        context.placement, context.store = placement, store
        store.on_pause(context.pause_of_store())
        context.dims = [table.dim for table in start.tables]
        context.tables, context.groups = list(start.tables), start.groups
        self._first = start.number
        context.buffers = WindowBuffers(context.store)
        context.step(GIVEN_DEAD if start.recovering else GIVEN_COPIED if start.succeeds else GIVEN_NEW)
        context.watermarks, context.durable = dict(start.watermarks), dict(start.watermarks)
        context.fenced = dict(start.fenced)
        self.saver.over = start.checkpoint
        context.window_number, context.stable = start.window + 1, start.window
        for member in start.members:
            stream = SETTLED if member.state == DOWN else NO_STREAM
            peer = Peer(
                member.shard, member.epoch, member.state, member.endpoint, stream, reseeding=set(member.reseeding)
            )
            peer.heard_awake_ms = context.awake_ms
            context.peers[member.shard] = peer
            if peer.shard != start.shard and peer.running:
                context.effects.append(Connect(self._address(peer), peer.endpoint))
        for member in start.unsettled:
            # it died before I was: I have nothing of its stream
            context.peers[member.shard].stream = UNSETTLED
            self.reports[member.shard] = m.Report(member.shard, member.epoch, -1, {})
        if start.recovering:
            self.repairs.begin(set(start.reinitialised))
            self.seeding.begin()
            for peer in context.others():
                self.join(peer, restarted=True)
            self.seeding.ask_all()
        else:
            for peer in context.others():
                peer.step_stream(JOIN)
                peer.received = 0
                if start.succeeds and end is not None:
                    # trap: should it die before I hear from it, the cut is no later than what I was given
                    peer.received, peer.watermarks = end.received[peer.shard], dict(end.watermarks[peer.shard])
                self._limit(peer, UNLIMITED)
        context.status_due = True
        return True

    def _address(self, peer: Peer) -> Address:
        return Address(SHARD, self.context.base + peer.shard, peer.epoch)

    def _limit(self, peer: Peer, position: int) -> None:
        for class_id in range(CLASSES_MAX):
            self.context.buffers.set_limit(peer.shard, class_id, position)

    # ------------------------------------------------------------------ streams begin
    def join(self, peer: Peer, restarted: bool) -> None:
        """Begin my stream to a peer. ``restarted``: it is I who am new."""
        context = self.context
        self.windows.close()  # nothing older than the Join reaches it
        # trap: until a recovering peer says what it wants seeded, my deltas to it would be wrong
        peer.step_stream(JOIN_BLIND if restarted and peer.state in NOT_WHOLE else JOIN)
        peer.begins, peer.ends = {}, []
        context.send(peer, m.Join(context.window_number - 1, dict(context.watermarks), restarted))
        self._limit(peer, UNLIMITED)
        if peer.state != UP:
            self.seeding.hold_back(peer)

    def on_join(self, peer: Peer, message: m.Join, frames: m.Frames) -> None:
        context = self.context
        context.checked()
        if message.ask:
            context.send(peer, m.Joined(self.seeding.wanted_from(peer.shard)))
        peer.received = message.window
        peer.undo.clear()
        peer.watermarks = dict(message.watermarks)

    # ------------------------------------------------------------------ views
    def _on_down(self, view: m.ShardDown) -> None:
        context = self.context
        peer = context.peers[view.shard]
        if view.shard == context.shard:
            reason = f"declared dead as shard {context.base + context.shard}, epoch {view.epoch}"
            context.effects.append(self.departure.ended(reason))
            return
        context.effects.append(Disconnect(self._address(peer)))
        peer.step(DIED)
        peer.step_stream(STREAM_ENDS)
        peer.begins, peer.ends = {}, []
        peer.reseeding.clear()
        self.seeding.forget(peer.shard)
        self._limit(peer, 0)
        context.buffers.buffer(peer.shard).take()
        # trap: the watermarks belong to the report of the window, and are told with it
        window = -1 if peer.received is None else peer.received
        self.reports[peer.shard] = m.Report(peer.shard, peer.epoch, window, peer.watermarks_received())
        for unstable in context.unstable.values():
            unstable.waiting.discard(peer.shard)
        self.windows.settle()

    def _on_settle(self, view: m.Settle) -> None:
        """Undo what I folded beyond the cut; what is at or below it is final."""
        context = self.context
        peer = context.peers[view.shard]
        peer.step_stream(CUT)
        self.reports.pop(view.shard, None)
        if peer.received is not None:
            while peer.undo and peer.undo[-1].number > view.window:
                undo = peer.undo.pop()
                if undo.keys.size:
                    context.store.fold(peer.shard, undo.class_mask, undo.keys, undo.records)
            self.peer_windows.commit(peer, view.window)
            peer.received = None
        self.seeding.start_over()

    def _on_up(self, view: m.ShardUp) -> None:
        context = self.context
        if view.shard == context.shard:
            reason = f"another process is shard {context.base + context.shard}, epoch {view.epoch}"
            context.effects.append(self.departure.ended(reason))
            return
        dead = context.peers[view.shard]
        peer = Peer(view.shard, view.epoch, PLACE.after(dead.state, REPLACED), view.endpoint)
        peer.held, peer.held_bytes = dead.held, dead.held_bytes
        peer.heard_awake_ms = context.awake_ms
        context.peers[view.shard] = peer
        # trap: should it die before I hear from it, the cut is the one it started from
        peer.received, peer.watermarks = view.window, dict(view.watermarks)
        context.effects.append(Connect(self._address(peer), view.endpoint))
        self.join(peer, restarted=False)

    def _on_succeeded(self, view: m.Succeeded) -> None:
        """Another process has what the incarnation before had, and all go on from where they halted."""
        context = self.context
        if view.shard == context.shard:
            reason = (
                f"another process is shard {context.base + context.shard} now, epoch {view.epoch}, and has all rows"
            )
            context.effects.append(Stop(reason, LEFT))
            return
        left = context.peers[view.shard]
        context.effects.append(Disconnect(self._address(left)))
        peer = Peer(view.shard, view.epoch, PLACE.after(left.state, SUCCEEDED), view.endpoint)
        peer.held, peer.held_bytes = left.held, left.held_bytes
        peer.heard_awake_ms = context.awake_ms
        context.peers[view.shard] = peer
        peer.step_stream(JOIN)
        peer.received, peer.watermarks = view.window, dict(view.watermarks)
        context.effects.append(Connect(self._address(peer), view.endpoint))
        self.handover.over()

    def _on_whole(self, view: m.ShardWhole) -> None:
        context = self.context
        peer = context.peers[view.shard]
        peer.step(BECAME_WHOLE)
        peer.reseeding.clear()
        self.seeding.whole(peer.shard)

    def on_prepare(self, message: m.PrepareTable) -> None:
        """Reserve what a table needs, or say why that cannot be; what was reserved before is given back first."""
        context, table = self.context, message.table
        if not context.state or message.number <= self.prepared:
            return
        context.checked()
        self.prepared, self.refusal, self._reserved = message.number, "", None
        context.status_due = True
        if table is None:
            return
        try:
            store = Store(context.shard, context.placement.n, context.group, context.groups)
            add_table(store, table, recovered=True)
            self._reserved = store
        except (*BAD_CONTENT, RuntimeError, MemoryError) as error:
            self.refusal = (
                f"cannot hold {table.rows:,} rows of {table.dim} floats with code {table.code} and "
                f"{table.optimizer.name}: {error or 'out of memory'}"
            )
            context.note("warning", f"table {table.name!r}: {self.refusal}")

    def _on_table(self, view: m.TableAdded) -> None:
        context = self.context
        self._reserved = None  # just in time for the table itself
        try:
            add_table(context.store, view.table, recovered=True)
        except (*BAD_CONTENT, RuntimeError, MemoryError) as error:
            # The scheduler checks what can be checked; without the table every later one would have another number.
            context.effects.append(Stop(f"cannot hold table {view.table.name!r}: {error}"))
            return
        was_coded = context.coded()
        context.placement.add(view.table.code)
        context.dims.append(view.table.dim)
        context.tables.append(view.table)
        if context.coded() and not was_coded:
            self.windows.first_coded()
        self.seeding.table_added()

    def _on_worker_fenced(self, view: m.WorkerFenced) -> None:
        self.context.fence_worker(view.worker, view.epoch)

    def _on_configured(self, view: m.Configured) -> None:
        context = self.context
        was_coded = context.coded()
        context.config = view.config
        if context.coded() and not was_coded:
            self.windows.first_coded()

    def _on_adopted(self, view: m.Adopted) -> None:
        context = self.context
        # trap: copies and serials of a history that was given up may have the numbers of this one
        context.origin = m.Origin(context.origin.cluster, view.generation)
        context.copied = 0
        context.note("warning", f"the scheduler's state was made again (generation {view.generation})")

    def tell(self) -> None:
        """A scheduler asks for all that I know of my cluster."""
        context = self.context
        if self.start is None:
            return
        census = m.ShardCensus(
            context.process, context.endpoint, context.origin, context.copied, self.start, list(self.recent)
        )
        context.reply(SCHEDULER_ADDRESS, census, (context.copy,))

    def _on_lost(self, view: m.DataLost) -> None:
        self.context.note("error", view.reason)

    def _on_reinitialise(self, view: m.Reinitialise) -> None:
        """More died than the code tolerates: what cannot be decoded begins again at its initial records."""
        context = self.context
        lost = set(view.classes)
        for peer in context.peers.values():
            parity = {c for c in lost if peer.shard in context.placement.classes[c].parity}
            if parity and peer.has_data:
                peer.step(LOST_PARITY)
                peer.reseeding |= parity
        if context.state == RECOVERING:
            self.repairs.reinitialise(lost)
        elif lost.intersection(context.placement.parity_classes(context.shard)):
            # trap: an earlier heartbeat said that this shard is whole; that is no longer true
            known_whole = context.peers[context.shard].state == RESEEDING
            context.step(LOST_PARITY if known_whole else LOST_PARITY_EARLY)
        self.seeding.reinitialise(lost)
        context.note("warning", view.reason)
