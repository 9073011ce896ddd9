"""Views: what a shard does when members die, are settled, come back and become whole (docs/protocol.md)."""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ecrec._native import Store
from ecrec._native import Window as WindowBuffers
from ecrec.protocol import messages as m
from ecrec.protocol.events import BAD_CONTENT, Connect, Disconnect, Send, Stop
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, SCHEDULER_ADDRESS, SEEDED, SHARD, UP, Address
from ecrec.protocol.peer import Peer
from ecrec.protocol.placement import CLASSES_MAX, SHARDS_IN_GROUP_MAX, Placement, TableSpec

if TYPE_CHECKING:
    from ecrec.protocol.shard import ShardMachine

UNLIMITED = 2**64 - 1


def add_table(store: Store, table: TableSpec, recovered: bool) -> None:
    """Raises one of BAD_CONTENT for a table that cannot be, RuntimeError for one that does not fit into memory."""
    optimizer = table.optimizer
    store.add_table(
        table.rows, table.dim, table.code.k, table.code.r, table.code.generator, optimizer.name,
        list(optimizer.hyper), table.init, table.init_seed, table.init_scale, table.init_state, recovered,
    )  # fmt: skip


class Membership:
    """The part of a `ShardMachine` that follows the views. Holds what has been reported and is not yet settled."""

    def __init__(self, machine: "ShardMachine") -> None:
        self.machine = machine
        self.reports: dict[int, m.Report] = {}
        self.tables: list[TableSpec] = []
        self._first = 0
        """Number of my first view."""
        self._concerned: dict[int, int] = {}
        """Class -> number of the last view that concerned it, if it was not my first one."""
        self.groups = 1
        self.start: m.Start | None = None
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
            m.TableAdded: self._on_table,
            m.WorkerFenced: self._on_worker_fenced,
            m.DataLost: self._on_lost,
            m.Reinitialise: self._on_reinitialise,
            m.Configured: self._on_configured,
            m.Adopted: self._on_adopted,
        }

    def on_views(self, message: m.Views) -> None:
        """Take the views in order; one that is known is skipped, what follows a gap waits for a resend.

        Raises ValueError for views that cannot be; none of them is taken then.
        """
        machine = self.machine
        self._check(message.views)
        if machine.state and message.origin.generation > machine.origin.generation:
            # trap: views of a history that was given up have the numbers of others
            new = [view for view in message.views if view.number > machine.view]
            adopted = [view for view in new if isinstance(view, m.Adopted)]
            if not adopted or new[0].number != machine.view + 1:
                return
        for view in message.views:
            if isinstance(view, m.Start):
                if not machine.state:
                    self._place(view, message.origin)
                continue
            if not machine.state or view.number <= machine.view:
                continue
            if view.number != machine.view + 1:
                return
            machine.checked()
            machine.view = view.number
            self.recent.append(view)
            machine.hear_origin(message.origin)
            machine.status_due = machine.pulls_due = True
            # trap: a repair does not outlive a view that concerns its class
            classes = self._classes_of(view)
            self._concerned.update(dict.fromkeys(classes, view.number))
            machine.repairs.forget(classes)
            machine.scrubs.forget(classes)
            self._apply[type(view)](view)
            machine.release_held()
            if any(isinstance(effect, Stop) for effect in machine.effects):
                return

    def _classes_of(self, view: m.AnyView) -> set[int]:
        """Classes whose repairs and scrubs the view can concern: whose members change, or whose stripes become more."""
        classes, placement = self.machine.placement.classes, self.machine.placement
        if isinstance(view, m.WorkerFenced | m.Configured | m.Adopted):
            return set()
        if isinstance(view, m.TableAdded):
            return {s.class_id for s in classes if placement.code_of(s.class_id) == view.table.code}
        if isinstance(view, m.ShardDown | m.Settle | m.ShardUp | m.ShardWhole):
            return {s.class_id for s in classes if view.shard in s.data or view.shard in s.parity}
        return {s.class_id for s in classes}

    def is_over(self, view: int, message: Any) -> bool:
        """Whether a view that concerns the class has come since the one that a message of a repair or scrub names.

        trap: then both ends forget it, and numbers of requests begin again with each incarnation.
        """
        class_id = message.stripes.class_id if hasattr(message, "stripes") else message.class_id
        return view < self._concerned.get(class_id, self._first)

    def _check(self, views: Sequence[m.AnyView]) -> None:
        placement = self.machine.placement
        n = placement.n if placement else 0
        for view in views:
            if isinstance(view, m.Start):
                if self.machine.state:
                    continue
                n = view.n
                shards = [view.shard, *(member.shard for member in view.unsettled)]
                listed = sorted(member.shard for member in view.members)
                if not 1 <= n <= SHARDS_IN_GROUP_MAX or listed != list(range(n)) or view.window < 0:
                    raise ValueError(f"Start: {len(view.members)} members, window {view.window}, in a group of {n}")
            elif isinstance(view, m.TableAdded | m.WorkerFenced | m.DataLost | m.Configured | m.Adopted):
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
    def _place(self, start: m.Start, origin: m.Origin) -> None:
        """Become an incarnation: a fresh one, or the replacement of a dead one."""
        machine = self.machine
        placement = Placement(start.n)
        store = Store(start.shard, start.n, start.group, start.groups)
        try:
            for table in start.tables:
                placement.add(table.code)
                add_table(store, table, recovered=not start.recovering)
        except (RuntimeError, MemoryError) as error:
            reason = f"cannot hold the tables of shard {start.group * start.n + start.shard}: {error}"
            machine.effects += [Send(SCHEDULER_ADDRESS, m.Unfit(machine.process, reason)), Stop(reason)]
            return
        machine.checked()
        self.start, machine.origin = start, origin
        machine.config = start.config
        machine.group, machine.shard, machine.epoch, machine.view = start.group, start.shard, start.epoch, start.number
        machine.base = start.group * start.n
        machine.address = Address(SHARD, machine.base + start.shard, start.epoch)
        machine.placement, machine.store = placement, store
        store.on_pause(machine.pause_of_store())
        machine.dims = [table.dim for table in start.tables]
        self.tables, self.groups = list(start.tables), start.groups
        self._first = start.number
        machine.buffers = WindowBuffers(machine.store)
        machine.state = RECOVERING if start.recovering else UP
        machine.marks, machine.durable = dict(start.marks), dict(start.marks)
        machine.fenced = dict(start.fenced)
        machine.window_number, machine.stable = start.window + 1, start.window
        for member in start.members:
            peer = Peer(member.shard, member.epoch, member.state, member.endpoint, reseeding=set(member.reseeding))
            peer.heard_awake_ms = machine.awake_ms
            machine.peers[member.shard] = peer
            if peer.shard != start.shard and peer.running:
                machine.effects.append(Connect(self._address(peer), peer.endpoint))
        for member in start.unsettled:
            # it died before I was: I have nothing of its stream
            peer = machine.peers[member.shard]
            peer.settling = peer.unsettled = True
            self.reports[member.shard] = m.Report(member.shard, member.epoch, -1, {})
        for member in start.members:
            if member.state == DOWN:
                machine.peers[member.shard].settling = True
        if start.recovering:
            machine.repairs.begin(set(start.reinitialised))
            machine.seeding.begin()
            for peer in machine.others():
                self.join(peer, restarted=True)
            machine.seeding.ask_all()
        else:
            for peer in machine.others():
                peer.joined, peer.received = True, 0
                self._limit(peer, UNLIMITED)
        machine.status_due = True
        machine.release_held()

    def _address(self, peer: Peer) -> Address:
        return Address(SHARD, self.machine.base + peer.shard, peer.epoch)

    def _limit(self, peer: Peer, position: int) -> None:
        for class_id in range(CLASSES_MAX):
            self.machine.buffers.set_limit(peer.shard, class_id, position)

    # ------------------------------------------------------------------ streams begin
    def join(self, peer: Peer, restarted: bool) -> None:
        """Begin my stream to a peer. ``restarted``: it is I who am new."""
        machine = self.machine
        machine.close_window()  # nothing older than the Join reaches it
        peer.joined = True
        # trap: until a recovering peer says what it wants seeded, my deltas to it would be wrong
        peer.awaits_joined = restarted and peer.state in SEEDED
        peer.begins, peer.ends = {}, []
        machine.send(peer, m.Join(machine.window_number - 1, dict(machine.marks), restarted))
        self._limit(peer, UNLIMITED)
        if peer.state != UP:
            machine.seeding.hold_back(peer)

    def on_join(self, peer: Peer, message: m.Join, frames: m.Frames) -> None:
        machine = self.machine
        machine.checked()
        if message.ask:
            machine.send(peer, m.Joined(machine.seeding.wanted_from(peer.shard)))
        peer.received = message.window
        peer.undo.clear()
        peer.marks = dict(message.marks)

    # ------------------------------------------------------------------ views
    def _on_down(self, view: m.ShardDown) -> None:
        machine = self.machine
        peer = machine.peers[view.shard]
        if view.shard == machine.shard:
            reason = f"declared dead as shard {machine.base + machine.shard}, epoch {view.epoch}"
            machine.effects.append(machine.departure.ended(reason))
            return
        machine.effects.append(Disconnect(self._address(peer)))
        peer.state = DOWN
        peer.settling = peer.unsettled = True
        peer.joined = peer.awaits_joined = False
        peer.begins, peer.ends = {}, []
        peer.reseeding.clear()
        machine.seeding.forget(peer.shard)
        self._limit(peer, 0)
        machine.buffers.buffer(peer.shard).take()
        # trap: the watermarks belong to the report of the window, and are told with it
        window = -1 if peer.received is None else peer.received
        self.reports[peer.shard] = m.Report(peer.shard, peer.epoch, window, peer.marks_received())
        for unstable in machine.unstable.values():
            unstable.waiting.discard(peer.shard)
        machine.settle_windows()

    def _on_settle(self, view: m.Settle) -> None:
        """Undo what I folded beyond the cut; what is at or below it is final."""
        machine = self.machine
        peer = machine.peers[view.shard]
        peer.unsettled = False
        self.reports.pop(view.shard, None)
        if peer.received is not None:
            while peer.undo and peer.undo[-1].number > view.window:
                undo = peer.undo.pop()
                if undo.keys.size:
                    machine.store.fold(peer.shard, undo.class_mask, undo.keys, undo.records)
            machine.commit_undo(peer, view.window)
            peer.received = None
        machine.seeding.start_over()

    def _on_up(self, view: m.ShardUp) -> None:
        machine = self.machine
        if view.shard == machine.shard:
            reason = f"another process is shard {machine.base + machine.shard}, epoch {view.epoch}"
            machine.effects.append(machine.departure.ended(reason))
            return
        peer = Peer(view.shard, view.epoch, RECOVERING, view.endpoint)
        peer.held, peer.held_bytes = machine.peers[view.shard].held, machine.peers[view.shard].held_bytes
        peer.heard_awake_ms = machine.awake_ms
        machine.peers[view.shard] = peer
        # trap: should it die before I hear from it, the cut is the one it started from
        peer.received, peer.marks = view.window, dict(view.marks)
        machine.effects.append(Connect(self._address(peer), view.endpoint))
        self.join(peer, restarted=False)

    def _on_whole(self, view: m.ShardWhole) -> None:
        machine = self.machine
        peer = machine.peers[view.shard]
        peer.state = UP
        peer.reseeding.clear()
        machine.seeding.whole(peer.shard)

    def on_prepare(self, message: m.PrepareTable) -> None:
        """Reserve what a table needs, or say why that cannot be; what was reserved before is given back first."""
        machine, table = self.machine, message.table
        if not machine.state or message.number <= self.prepared:
            return
        machine.checked()
        self.prepared, self.refusal, self._reserved = message.number, "", None
        machine.status_due = True
        if table is None:
            return
        try:
            store = Store(machine.shard, machine.placement.n, machine.group, self.groups)
            add_table(store, table, recovered=True)
            self._reserved = store
        except (*BAD_CONTENT, RuntimeError, MemoryError) as error:
            self.refusal = (
                f"cannot hold {table.rows:,} rows of {table.dim} floats with code {table.code} and "
                f"{table.optimizer.name}: {error or 'out of memory'}"
            )
            machine.note("warning", f"table {table.name!r}: {self.refusal}")

    def _on_table(self, view: m.TableAdded) -> None:
        machine = self.machine
        self._reserved = None  # just in time for the table itself
        try:
            add_table(machine.store, view.table, recovered=True)
        except (*BAD_CONTENT, RuntimeError, MemoryError) as error:
            # The scheduler checks what can be checked; without the table every later one would have another number.
            machine.effects.append(Stop(f"cannot hold table {view.table.name!r}: {error}"))
            return
        was_coded = machine.coded()
        machine.placement.add(view.table.code)
        machine.dims.append(view.table.dim)
        self.tables.append(view.table)
        if machine.coded() and not was_coded:
            machine.first_coded()
        machine.seeding.table_added()

    def _on_worker_fenced(self, view: m.WorkerFenced) -> None:
        self.machine.fence_worker(view.worker, view.epoch)

    def _on_configured(self, view: m.Configured) -> None:
        machine = self.machine
        was_coded = machine.coded()
        machine.config = view.config
        if machine.coded() and not was_coded:
            machine.first_coded()

    def _on_adopted(self, view: m.Adopted) -> None:
        machine = self.machine
        machine.origin = m.Origin(machine.origin.cluster, view.generation, machine.origin.serial)
        machine.note("warning", f"the scheduler's state was made again (generation {view.generation})")

    def tell(self) -> None:
        """A scheduler asks for all that I know of my cluster."""
        machine = self.machine
        if self.start is None:
            return
        census = m.ShardCensus(
            machine.process, machine.endpoint, machine.origin, machine.copied, self.start, list(self.recent)
        )
        machine.reply(SCHEDULER_ADDRESS, census, (machine.copy,))

    def _on_lost(self, view: m.DataLost) -> None:
        self.machine.note("error", view.reason)

    def _on_reinitialise(self, view: m.Reinitialise) -> None:
        """More died than the code stands: what cannot be decoded begins again at its initial records."""
        machine = self.machine
        lost = set(view.classes)
        for peer in machine.peers.values():
            parity = {c for c in lost if peer.shard in machine.placement.classes[c].parity}
            if parity and peer.has_data:
                peer.state = RESEEDING
                peer.reseeding |= parity
        if machine.state == RECOVERING:
            machine.repairs.reinitialise(lost)
        elif lost.intersection(machine.placement.parity_classes(machine.shard)):
            # trap: what I reported before, that I am whole, is no longer so
            machine.state = machine.peers[machine.shard].state
        machine.seeding.reinitialise(lost)
        machine.note("warning", view.reason)
