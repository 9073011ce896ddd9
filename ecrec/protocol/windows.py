"""The windows of a shard: when the open one closes, which peers have the closed ones, and which pushes are durable."""

from ecrec.protocol import messages as m
from ecrec.protocol.config import NEVER_MS
from ecrec.protocol.messages import NOT_WHOLE
from ecrec.protocol.peer import Peer
from ecrec.protocol.shard_context import ShardContext, Unstable


class Windows:
    """The part of a `ShardMachine` that closes its windows, and acknowledges those of others."""

    def __init__(self, context: ShardContext) -> None:
        self.context = context
        self._acks_at_ms = NEVER_MS
        self._due_ms = NEVER_MS
        self._closed_ms = -1e18

    @property
    def deadline_ms(self) -> float:
        """When a Tick is wanted, if none comes before. Acknowledgements wait for an open window."""
        return self._acks_at_ms if self._due_ms == NEVER_MS else self._due_ms

    def on_tick(self) -> None:
        if self.context.now_ms >= self._acks_at_ms and self._due_ms == NEVER_MS:
            self.acknowledge_all()

    def close_if_due(self) -> None:
        """Close the window when it is its time, or note when that will be."""
        context = self.context
        self._due_ms = NEVER_MS
        if context.halted or not context.has_open():
            return
        config = context.config
        full = context.buffers.nbytes() >= config.window_bytes_max
        if len(context.unstable) >= config.windows_in_flight_max and not full:
            return
        due_ms = self._closed_ms + config.window_interval_ms
        hurry = full or context.announces or context.open_seeds or not context.coded()
        if hurry or context.now_ms >= due_ms or self._is_waited_for():
            self.close()
        else:
            self._due_ms = due_ms

    def _is_waited_for(self) -> bool:
        """A worker waits for its pushes in the open window, or will soon have too many in flight."""
        context = self.context
        pushes_max, watermarks = context.config.window_pushes_max, context.open_watermarks
        return any(
            count >= pushes_max or context.workers[worker].flush >= watermarks[worker]
            for worker, count in context.open_pushes.items()
        )

    def close(self) -> None:
        """Close the open window, empty or not, and send it to every running peer that has joined."""
        context = self.context
        watermarks, context.open_watermarks = context.open_watermarks, {}
        context.open_pushes.clear()
        if not context.coded():
            # Nobody else keeps anything of it. Windows are numbered from the first on that is sent.
            context.announces = context.open_seeds = False
            self._make_durable(watermarks)
            return
        targets = [p for p in context.others() if p.joined]
        size = 0
        for peer in targets:
            keys, records = context.buffers.buffer(peer.shard).take()
            size += keys.nbytes + records.nbytes
            received = peer.received or 0
            window = m.Window(context.window_number, context.stable, watermarks, peer.begins, peer.ends, received)
            peer.ack_due = False
            context.send(peer, window, (keys, records))
            peer.begins, peer.ends = {}, []
        self.acknowledge_all()
        context.announces = context.open_seeds = False
        self._closed_ms, self._due_ms = context.now_ms, NEVER_MS
        waiting = {peer.shard for peer in targets}
        context.unstable[context.window_number] = Unstable(waiting, watermarks, context.awake_ms, size)
        context.unstable_bytes += size
        context.window_number += 1
        self.settle()

    def settle(self) -> None:
        """Windows that every running peer has are stable; their pushes are durable."""
        context = self.context
        durable: dict[int, int] = {}
        stable = context.stable
        while stable + 1 in context.unstable and not context.unstable[stable + 1].waiting:
            stable += 1
            window = context.unstable.pop(stable)
            context.unstable_bytes -= window.nbytes
            durable.update(window.watermarks)
        if stable == context.stable:
            return
        context.stable = stable
        self._make_durable(durable)
        for peer in context.others():
            # it counts a class as seeded only when it knows that the seed is stable; no later window may come
            if peer.joined and peer.state in NOT_WHOLE:
                context.send(peer, m.Stable(stable))

    def _make_durable(self, watermarks: dict[int, int]) -> None:
        context = self.context
        for worker, number in watermarks.items():
            context.durable[worker] = number
            state = context.workers.get(worker)
            if state is not None:
                context.reply(state.address, m.PushAck(number))

    def first_coded(self) -> None:
        """From now on there are peers that keep something of mine: what was pushed before, they have yet to hear."""
        context = self.context
        context.open_watermarks, context.announces = dict(context.watermarks), True

    def on_ack(self, peer: Peer, message: m.WindowAck, frames: m.Frames) -> None:
        self.context.checked()
        self.acknowledged(peer, message.number)

    def acknowledged(self, peer: Peer, number: int) -> None:
        """The peer has my windows up to this one."""
        done = False
        for window, unstable in self.context.unstable.items():
            if window <= number and peer.shard in unstable.waiting:
                unstable.waiting.discard(peer.shard)
                done = True
        if done:
            self.settle()

    def late(self) -> dict[int, int]:
        """Members that have not acknowledged a window of mine for half of `link_timeout_ms` -> for how long."""
        context = self.context
        waits: dict[int, float] = {}
        for unstable in context.unstable.values():
            for shard in unstable.waiting:
                waits[shard] = max(waits.get(shard, 0.0), context.awake_ms - unstable.closed_ms)
        return {shard: int(ms) for shard, ms in sorted(waits.items()) if ms >= context.config.link_timeout_ms / 2}

    def _acknowledge(self, peer: Peer) -> None:
        if peer.ack_due and peer.received is not None:
            self.context.send(peer, m.WindowAck(peer.received))
        peer.ack_due = False

    def acknowledge_all(self) -> None:
        """What no window has taken along."""
        self._acks_at_ms = NEVER_MS
        for peer in self.context.others():
            self._acknowledge(peer)

    def must_acknowledge(self, peer: Peer) -> None:
        """A window of the peer is here: the next one of mine tells it so, or a message of its own a little later."""
        if peer.ack_due or self.context.halted:
            peer.ack_due = True
            self._acknowledge(peer)
        else:
            peer.ack_due = True
            self._acks_at_ms = min(self._acks_at_ms, self.context.now_ms + self.context.config.ack_delay_ms)
