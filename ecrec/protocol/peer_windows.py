"""Windows of peers: folded as they come, kept so that they can be undone, final when every peer has them."""

from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.captures import Captures
from ecrec.protocol.peer import Peer, Undo
from ecrec.protocol.placement import CLASSES_MAX
from ecrec.protocol.seeding import Seeding
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.windows import Windows


class PeerWindows:
    """The part of a `ShardMachine` that takes the windows of its peers."""

    def __init__(self, context: ShardContext, windows: Windows, captures: Captures, seeding: Seeding) -> None:
        self.context = context
        self.windows = windows
        self.captures = captures
        self.seeding = seeding

    def on_window(self, peer: Peer, window: m.Window, frames: m.Frames) -> None:
        if peer.received is None or window.number != peer.received + 1:
            raise ValueError(f"window {window.number} after {peer.received}: the stream has a gap")
        keys, records = arrays.keys(frames[0]), arrays.records(frames[1])
        if any(not 0 <= class_id < CLASSES_MAX for class_id in window.begins):
            raise ValueError(f"window {window.number} begins classes {sorted(window.begins)}")
        rounds = {**peer.rounds, **window.begins}
        mask = self.seeding.accepted(peer.shard, rounds)
        if keys.size or records.size:
            self.context.store.fold(peer.shard, mask, keys, records)  # all or nothing: it checks before it folds
        self.context.checked()
        if keys.size:
            self.captures.fold_captures(peer, mask, keys, records)
        peer.received, peer.rounds = window.number, rounds
        ends = self.seeding.accepted_ends(peer, window.ends)
        peer.undo.append(Undo(window.number, mask, keys, records, window.watermarks, ends))
        self.windows.must_acknowledge(peer)
        self.windows.acknowledged(peer, window.ack)
        self.commit(peer, window.stable)

    def on_stable(self, peer: Peer, message: m.Stable, frames: m.Frames) -> None:
        self.context.checked()
        self.commit(peer, message.number)

    def commit(self, peer: Peer, stable: int) -> None:
        """What every peer holds is final. Only now do its watermarks and the ends of its seeds count."""
        while peer.undo and peer.undo[0].number <= stable:
            undo = peer.undo.popleft()
            peer.watermarks.update(undo.watermarks)
            for class_id in undo.ends:
                self.seeding.seeded(class_id, peer.shard)
