"""A shard that is to leave is copied to its successor while it serves on (docs/protocol.md, "Succession").

A part of the `ShardMachine`: the one that leaves, and the members of its group that halt for it. The successor's part
is ``successor.py``, the scheduler's is ``successions.py``.
"""

from ecrec._native import Copying
from ecrec.protocol import messages as m
from ecrec.protocol.departure import Departure
from ecrec.protocol.events import Connect, Connection, Disconnect, Received, Send
from ecrec.protocol.messages import SCHEDULER_ADDRESS, SHARD, Address
from ecrec.protocol.peer import Peer
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.share import Share
from ecrec.protocol.transitions import (
    ALL_COPIED,
    ALL_SENT,
    COPYING,
    ENDING,
    GIVEN_UP_COPY,
    HALTING,
    HANDOVER,
    LEVEL,
    LITTLE_LEFT,
    NEAR,
    NOT_COPIED,
    SUCCESSOR_NAMED,
    TOLD_TO_HALT,
)
from ecrec.protocol.windows import Windows

WAITS = (m.Snap, m.CorrectParity)
"""What waits while the group is halted: it would close a window, or change a parity row behind the copy."""


class Handover:
    """The part of a `ShardMachine` that hands its place over, and halts while another one does."""

    def __init__(self, context: ShardContext, windows: Windows, departure: Departure) -> None:
        self.context = context
        self.windows = windows
        self.departure = departure
        self.state = NOT_COPIED
        """Mine (`transitions.HANDOVER`)."""
        self.succession: m.Succession | None = None
        """The one of my group that goes on."""
        self.share = Share()
        self._copying: Copying | None = None
        self._tables = 0
        """So many were told to the successor."""
        self._sent = 0
        """Number of the last message to it,"""
        self._acked = 0
        """of the last one that it has,"""
        self._acked_ms = 0.0
        """and when it said so, or something was sent after a pause, in the time that I was awake."""
        self._first_bytes = self._sent_bytes = 0
        self._sent_ms = 0.0
        self._halted: dict[int, int] = {}
        """Member that has halted -> its last window."""
        self._failure = ""
        self._is_refused = False
        self._said_ms = -1e18
        self._halts_for: Peer | None = None
        """The member for which I halt, and which waits for my word."""
        self._waiting: list[Received] = []
        """Messages that wait until the group goes on."""

    # ------------------------------------------------------------------ views
    @property
    def successor(self) -> Address:
        """Of my successor."""
        assert self.succession is not None
        return Address(SHARD, self.context.base + self.context.shard, self.succession.epoch)

    def on_succession(self, view: m.Succession) -> None:
        """Somebody is to succeed a member."""
        context = self.context
        self.over()
        self.succession = view
        if view.shard != context.shard:
            return
        self.step(SUCCESSOR_NAMED)
        self._tables = self._sent = self._acked = self._sent_bytes = 0
        self._acked_ms, self._failure, self._is_refused = context.awake_ms, "", False
        context.effects.append(Connect(self.successor, view.endpoint))
        try:
            self._copying = Copying(context.store)
            self._first_bytes = self._copying.nbytes
        except (RuntimeError, MemoryError) as error:
            self._failure = str(error)
        self._tell()

    def on_over(self, view: m.SuccessionOver) -> None:
        self.over()

    def over(self) -> None:
        """It was given up, or the group has changed: all goes on as before."""
        context = self.context
        if self.state != NOT_COPIED:
            self.step(GIVEN_UP_COPY)
            context.effects.append(Disconnect(self.successor))
            self._close()
        self.succession = self._halts_for = None
        self._halted.clear()
        context.halted = False

    def step(self, happening: str) -> None:
        context = self.context
        before, self.state = self.state, HANDOVER.after(self.state, happening)
        context.story.tell(context.now_ms, f"succession: {before} -> {self.state}: {happening}")

    def _close(self) -> None:
        if self._copying is not None:
            self._copying.close()
        self._copying = None

    # ------------------------------------------------------------------ messages that wait
    def defers(self, event: Received) -> bool:
        """Keep a message until the group goes on, if it must wait."""
        if not self.context.halted or not isinstance(event.message, WAITS):
            return False
        self._waiting.append(event)
        return True

    def take_waiting(self) -> list[Received]:
        """Those that wait no longer."""
        if self.context.halted:
            return []
        waiting, self._waiting = self._waiting, []
        return waiting

    # ------------------------------------------------------------------ the members
    def on_halt(self, peer: Peer, message: m.Halt, frames: m.Frames) -> None:
        """A member is to be succeeded: nothing more is applied here, so that its copy lacks no window of mine."""
        context = self.context
        context.checked()
        # trap: of a succession that was given up meanwhile; nobody would ever end the halt
        if not self._is_current(message.since, peer.shard):
            return
        self._halts_for = peer
        self._halt()

    def _is_current(self, since: int, shard: int) -> bool:
        return self.succession is not None and (self.succession.number, self.succession.shard) == (since, shard)

    def _halt(self) -> None:
        """Apply no more pushes; what is open is the last window."""
        context = self.context
        if context.has_open():
            self.windows.close()
        else:
            self.windows.acknowledge_all()
        context.halted = True

    def _say_halted(self) -> None:
        """trap: only when all members have all windows: the successor could undo none of them at a settlement."""
        context, peer = self.context, self._halts_for
        if peer is not None and self.succession is not None and not context.unstable:
            self._halts_for = None
            context.send(peer, m.Halted(self.succession.number, context.window_number - 1))

    def on_halted(self, peer: Peer, message: m.Halted, frames: m.Frames) -> None:
        if not self._is_current(message.since, self.context.shard) or self.state != HALTING:
            return
        if message.window != (peer.received or 0):
            raise ValueError(f"shard {peer.shard} has halted at window {message.window}, I have {peer.received}")
        self.context.checked()
        self._halted[peer.shard] = message.window

    # ------------------------------------------------------------------ the one that leaves
    def on_halt_now(self, message: m.HaltNow) -> None:
        """The scheduler says that the group may halt."""
        context = self.context
        if self.state != NEAR or not self._is_current(message.since, context.shard):
            return
        context.checked()
        self.step(TOLD_TO_HALT)
        self._halt()
        for peer in context.others():
            context.send(peer, m.Halt(message.since))

    def on_copied(self, message: m.Copied) -> None:
        """The successor has taken something."""
        context = self.context
        context.checked()
        if not self._is_current(message.since, context.shard):
            return
        self._acked, self._acked_ms = max(self._acked, message.number), context.awake_ms
        self.share.ended(context.now_ms - self._sent_ms, context.config, context.now_ms)
        if message.refusal:
            self._is_refused = True
            self._fail(f"its successor cannot hold what it has: {message.refusal}")
        elif self.state == ENDING and self._acked == self._sent:
            self.step(ALL_COPIED)
            self._tell()

    def on_connection(self, event: Connection) -> bool:
        """Whether it is the one to my successor."""
        if self.state == NOT_COPIED or event.address != self.successor:
            return False
        if not event.up:
            self._fail("the connection to its successor broke")
        return True

    def _fail(self, failure: str) -> None:
        if not self._failure:
            self._failure = failure
            self._tell()

    def advance(self) -> None:
        """Copy what may be, halt, or tell that the successor is level."""
        self._say_halted()
        if self.state in (COPYING, NEAR, HALTING) and not self._failure:
            self._copy()

    def _copy(self) -> None:
        context, copying, config = self.context, self._copying, self.context.config
        assert copying is not None and self.succession is not None
        if self.state == COPYING and self._is_near(copying):
            self.step(LITTLE_LEFT)
            self._tell()
        while self._sent - self._acked < config.succession_copies_in_flight_max:
            if self.state == HALTING and self._has_halted() and not copying.rows:
                self._end()
                return
            shares = context.shares_time() and self.state != HALTING
            if (shares and self._sent > self._acked) or self.share.waits(shares, context.now_ms):
                return
            keys, records = copying.take(min(config.succession_bytes, config.frame_bytes_max))
            tables = context.tables[self._tables :]
            if not keys.size and not tables and self._sent:
                return
            self._tables += len(tables)
            self._sent_bytes += records.nbytes
            self._send(m.Copy(self.succession.number, self._sent + 1, tables), (keys, records))
            if self.state == COPYING and self._is_near(copying):
                self.step(LITTLE_LEFT)
                self._tell()

    def _is_near(self, copying: Copying) -> bool:
        config = self.context.config
        if not self._sent:
            return False
        enough = self._sent_bytes > config.succession_passes_max * max(self._first_bytes, 1)
        return copying.nbytes <= config.succession_left_bytes_max or enough

    def _has_halted(self) -> bool:
        """Nothing changes any more: no window of any member is in flight."""
        context = self.context
        return not context.unstable and all(peer.shard in self._halted for peer in context.others())

    def _end(self) -> None:
        """All is sent: where the successor goes on."""
        context, succession = self.context, self.succession
        assert succession is not None
        received = {peer.shard: peer.received or 0 for peer in context.others()}
        watermarks = {peer.shard: peer.watermarks_received() for peer in context.others()}
        self.step(ALL_SENT)
        self._send(m.CopyEnd(succession.number, self._sent + 1, received, watermarks), ())

    def _send(self, message: m.Copy | m.CopyEnd, frames: m.Frames) -> None:
        context = self.context
        if self._sent == self._acked:
            self._acked_ms = context.awake_ms
        self._sent, self._sent_ms = message.number, context.now_ms
        context.effects.append(Send(self.successor, message, frames))

    def on_tick(self) -> None:
        """Say again how far it is, and give up a successor that does not answer."""
        context = self.context
        if self.state == NOT_COPIED:
            return
        if self._sent > self._acked and context.awake_ms - self._acked_ms > context.config.link_timeout_ms:
            self._fail(f"its successor has not answered for {context.config.link_timeout_ms} ms")
        if context.now_ms - self._said_ms >= context.config.heartbeat_ms:
            self._tell()

    def _tell(self) -> None:
        """Say to the scheduler how far it is."""
        context = self.context
        assert self.succession is not None
        self._said_ms = context.now_ms
        left = self._copying.nbytes if self._copying is not None else 0
        level = self.state == LEVEL
        told = m.Handover(
            context.process, self.succession.number, is_near=self.state == NEAR, is_level=level,
            window=context.window_number - 1 if level else 0, watermarks=dict(context.watermarks) if level else {},
            halts=self.state in (HALTING, ENDING, LEVEL), failure=self._failure[:1000], is_refused=self._is_refused,
            left_bytes=left,
        )  # fmt: skip
        context.effects.append(Send(SCHEDULER_ADDRESS, told))

    @property
    def resume_ms(self) -> float | None:
        """When the next rows may be copied; None while something else is waited for."""
        may = self.state in (COPYING, NEAR) and self._sent == self._acked and not self._failure
        return self.share.resume_ms if may else None
