"""Parity rows of a replacement: the data members send their touched coded rows again, class by class.

Seeds travel in the windows like deltas and merge with them; what tells them apart is only the class's round, which
the sender announces in its stream (`Window.begins`). Both sides stand here: the seeder (tasks to peers) and the one
who is seeded (rounds and who has finished).
"""

from ecrec.protocol import messages as m
from ecrec.protocol.messages import NOT_WHOLE
from ecrec.protocol.peer import Peer
from ecrec.protocol.repair import Repairs
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.share import Share
from ecrec.protocol.transitions import TOLD
from ecrec.protocol.wanted import Wanted

ALL_CLASSES = 2**64 - 1
UNLIMITED = 2**64 - 1


class Seeding:
    """The part of a `ShardMachine` that seeds others and is seeded."""

    def __init__(self, context: ShardContext, repairs: Repairs) -> None:
        self.context = context
        self.repairs = repairs
        self.tasks: dict[tuple[int, int], bool] = {}
        """(peer, class) that I have yet to seed -> whether the peer has asked for it. Deltas of rows that are not yet
        seeded are held back."""
        self.rounds: dict[int, int] = {}
        """My parity class -> round of seeding."""
        self.done: dict[int, set[int]] = {}
        """My parity class -> data members that have seeded it, all classes while I recover."""
        self.share = Share()
        """Of what I seed."""
        self._window = 0
        """The last window with seeds whose time is not yet counted; 0: none."""
        self._since_ms = 0.0
        """When it was seeded into."""
        self._blocked: dict[int, Wanted] = {}
        """Class of mine -> rows that I lack, and for which the seeding of it waits."""

    # ------------------------------------------------------------------ being seeded
    def begin(self) -> None:
        """I am a replacement: nothing is seeded."""
        for class_id in self.context.placement.parity_classes(self.context.shard):
            self.rounds[class_id], self.done[class_id] = 0, set()

    def ask_all(self) -> None:
        for class_id in self.done:
            self._ask(class_id)

    def _ask(self, class_id: int, since: int = 0) -> None:
        context = self.context
        for shard in context.placement.classes[class_id].data:
            peer = context.peers[shard]
            if peer.running:
                context.send(peer, m.Reseed(class_id, self.rounds[class_id], since))

    def table_added(self) -> None:
        """Parity of a new code is zero, and so are its data: nothing to seed."""
        context = self.context
        if context.state in NOT_WHOLE:
            for class_id in context.placement.parity_classes(context.shard):
                if class_id not in self.done:
                    self.rounds[class_id] = 0
                    self.done[class_id] = set(context.placement.classes[class_id].data)

    def _unfinished(self, class_id: int) -> bool:
        return not self.done[class_id].issuperset(self.context.placement.classes[class_id].data)

    def incomplete(self) -> int:
        """Number of my parity classes that are not fully seeded."""
        return sum(map(self._unfinished, self.done))

    def share_done(self) -> float:
        """The part of my parity that is seeded, from 0 to 1: for people."""
        wanted = {class_id: self.context.placement.classes[class_id].data for class_id in self.done}
        done = sum(len(self.done[class_id].intersection(data)) for class_id, data in wanted.items())
        return done / max(1, sum(map(len, wanted.values()))) if wanted else 1.0

    def complete(self) -> bool:
        return not any(map(self._unfinished, self.done))

    def wanted_from(self, shard: int) -> dict[int, int]:
        """Classes that this data member has yet to seed -> round."""
        data_of = self.context.placement.classes
        return {c: self.rounds[c] for c, done in self.done.items() if shard in data_of[c].data and shard not in done}

    def accepted(self, shard: int, rounds: dict[int, int]) -> int:
        """Bits of the classes whose deltas and seeds from a peer count, by the rounds that it announced."""
        if self.context.state not in NOT_WHOLE:
            return ALL_CLASSES
        mask = ALL_CLASSES
        for class_id, done in self.done.items():
            if shard not in done and rounds.get(class_id) != self.rounds[class_id]:
                mask &= ~(1 << class_id)
        return mask

    def accepted_ends(self, peer: Peer, ends: list[int]) -> list[int]:
        return [c for c in ends if c in self.done and peer.rounds.get(c) == self.rounds[c]]

    def seeded(self, class_id: int, shard: int) -> None:
        """trap: called when the window with the end of the seed is stable, not before."""
        if class_id in self.done:
            self.done[class_id].add(shard)

    def start_over(self) -> None:
        """trap: somebody was settled; classes not fully seeded begin again under a new round."""
        context = self.context
        if context.state not in NOT_WHOLE:
            return
        for class_id in self.done:
            if self._unfinished(class_id):
                self._begin_round(class_id)
                self._ask(class_id)

    def _begin_round(self, class_id: int) -> None:
        context = self.context
        self.rounds[class_id] = self.rounds.get(class_id, 0) + 1
        self.done[class_id] = set()
        context.store.wipe_parity(class_id)
        for peer in context.peers.values():  # what was wiped can not be undone
            for undo in peer.undo:
                undo.class_mask &= ~(1 << class_id)
                undo.ends = [c for c in undo.ends if c != class_id]

    def reinitialise(self, lost: set[int]) -> None:
        """Data rows of these classes are no longer what their parity was made of: all parity of theirs begins anew.

        trap: also that of shards which are whole, and of classes that were fully seeded.
        """
        context = self.context
        for peer in context.others():
            for class_id in lost:
                stripe = context.placement.classes[class_id]
                if context.shard in stripe.data and peer.shard in stripe.parity:
                    self.tasks[peer.shard, class_id] = False
                    context.buffers.set_limit(peer.shard, class_id, 0)
                    context.buffers.buffer(peer.shard).remove_class(class_id)
                    peer.begins.pop(class_id, None)
                    peer.ends = [c for c in peer.ends if c != class_id]
        for class_id in sorted(lost.intersection(context.placement.parity_classes(context.shard))):
            self._begin_round(class_id)
            self._ask(class_id, context.view)

    # ------------------------------------------------------------------ seeding others
    def hold_back(self, peer: Peer) -> None:
        """A recovering peer has joined: no row of a class whose parity it holds until it asks."""
        context = self.context
        for stripe in context.placement.classes:
            if context.shard in stripe.data and peer.shard in stripe.parity:
                self.tasks[peer.shard, stripe.class_id] = False
                context.buffers.set_limit(peer.shard, stripe.class_id, 0)

    def _check(self, peer: Peer, class_id: int) -> None:
        """Raise ValueError for a class of which I hold no data or the peer no parity."""
        classes, shard = self.context.placement.classes, self.context.shard
        known = 0 <= class_id < len(classes)
        if not known or shard not in classes[class_id].data or peer.shard not in classes[class_id].parity:
            raise ValueError(f"shard {peer.shard} asks to seed class {class_id}, which is not for us two")

    def on_joined(self, peer: Peer, message: m.Joined, frames: m.Frames) -> None:
        """It was recovering when I came back, and says which of its classes still lack my rows."""
        for class_id in message.rounds:
            self._check(peer, class_id)
        self.context.checked()
        peer.step_stream(TOLD)
        for shard, class_id in list(self.tasks):
            if shard == peer.shard and class_id not in message.rounds:
                self._finish(shard, class_id)
        for class_id, round_ in message.rounds.items():
            self.on_reseed(peer, m.Reseed(class_id, round_), ())

    def on_reseed(self, peer: Peer, message: m.Reseed, frames: m.Frames) -> None:
        """Seed a class from its start; what stands in the open window for it is of the old round."""
        context, class_id = self.context, message.class_id
        self._check(peer, class_id)
        context.checked()
        # A round can be heard of twice, by Reseed and by Joined; rows that are sent twice cancel each other.
        if message.round <= peer.seeding.get(class_id, -1):
            return
        peer.seeding[class_id] = message.round
        self.tasks[peer.shard, class_id] = True
        context.buffers.set_limit(peer.shard, class_id, 0)
        context.buffers.buffer(peer.shard).remove_class(class_id)
        peer.begins[class_id] = message.round
        context.announces = True
        peer.ends = [c for c in peer.ends if c != class_id]

    def forget(self, shard: int) -> None:
        """The peer died."""
        for key in [key for key in self.tasks if key[0] == shard]:
            del self.tasks[key]

    def whole(self, shard: int) -> None:
        for peer, class_id in [key for key in self.tasks if key[0] == shard]:
            self._finish(peer, class_id)

    def _finish(self, shard: int, class_id: int) -> None:
        del self.tasks[shard, class_id]
        self.context.buffers.set_limit(shard, class_id, UNLIMITED)

    def advance(self) -> None:
        """Add a chunk of rows for each peer being seeded, if the open window can soon go out."""
        context = self.context
        if not self.tasks or len(context.unstable) >= context.config.windows_in_flight_max:
            return
        if self._window and context.stable >= self._window:
            self.share.ended(context.now_ms - self._since_ms, context.config, context.now_ms)
            self._window = 0
        shares_time = context.shares_time()
        if (shares_time and self._window) or self.share.waits(shares_time, context.now_ms):
            return
        served: set[int] = set()
        for (shard, class_id), asked in list(self.tasks.items()):
            peer = context.peers[shard]
            if not asked or shard in served or not peer.joined or peer.state not in NOT_WHOLE:
                continue
            config = context.config
            room = config.frame_bytes_max - context.buffers.buffer(shard).nbytes
            if room < config.seed_bytes_max and context.buffers.buffer(shard).nbytes:
                served.add(shard)  # with the next window: this one is so full that it closes now
                continue
            bytes_max = min(config.seed_bytes_max, room)
            if class_id in self._blocked:
                if self.repairs.lacks(self._blocked[class_id]):
                    continue
                del self._blocked[class_id]
            rows_max = context.rows_at_once(config.seed_rows_max)
            finished, blocked = context.store.seed(context.buffers, shard, class_id, rows_max, bytes_max)
            if blocked.size:
                self._blocked[class_id] = Wanted(context.store, blocked)
                self.repairs.ask(self._blocked[class_id])
                continue
            context.open_seeds = True
            self._window, self._since_ms = context.window_number, context.now_ms
            if finished:
                del self.tasks[shard, class_id]
                peer.ends.append(class_id)
                context.announces = True
            served.add(shard)
