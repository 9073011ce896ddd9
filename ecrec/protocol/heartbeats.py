"""What a shard's process says to the scheduler of itself: that it wants a place, and then its heartbeats."""

from collections.abc import Callable

import msgspec

from ecrec.protocol import messages as m
from ecrec.protocol.events import Effect, Send
from ecrec.protocol.membership import Membership
from ecrec.protocol.messages import NOT_WHOLE, SCHEDULER_ADDRESS, SHARD, UP, Address
from ecrec.protocol.repair import Repairs
from ecrec.protocol.saver import Saver
from ecrec.protocol.scrub import Scrubs
from ecrec.protocol.seeding import Seeding
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.successor import Successor
from ecrec.protocol.windows import Windows

FIGURES_MS = 500.0
"""How often the figures for people are counted anew; counting scans bitmaps."""


class Heartbeats:
    """The part of a `ShardMachine` that speaks for it. ``wanted``: the shard that the process wants to be; -1: any."""

    def __init__(
        self,
        context: ShardContext,
        wanted: int,
        windows: Windows,
        repairs: Repairs,
        scrubs: Scrubs,
        seeding: Seeding,
        membership: Membership,
        saver: Saver,
        successor: Successor,
    ) -> None:
        self.context = context
        self.wanted = wanted
        self.windows = windows
        self.repairs = repairs
        self.scrubs = scrubs
        self.seeding = seeding
        self.membership = membership
        self.saver = saver
        self.successor = successor
        self.resident_bytes: Callable[[], int] | None = None
        """Of this process, for people; None where it is no process."""
        self.predecessor: tuple[str, str] = "", ""
        """Of this process, and how it ended."""
        self.said_ms = -1e18
        """When the last heartbeat, or the wish for a place, was said."""
        self._said: m.ShardStatus | None = None
        """The last heartbeat,"""
        self._said_to: list[Address] = []
        """and the peers to which there was a connection then."""
        self._busy_ms = -1e18
        """When it was last said again, in the middle of an event."""
        self.read_ms: float | None = None
        """All that had arrived by then was handled; None where nothing waits outside of the machine."""
        self._reached = 0
        """Number of the scheduler's last `Knock`."""
        self._figures: dict[str, float] = {}
        self._figures_at_ms = -1e18

    def again(self, now_ms: float) -> list[Effect]:
        """What is to be sent in the middle of an event, so that nobody takes this shard for dead; mostly nothing.

        trap: the state in the middle of an event is nobody's. What was said last is said again, with its age: a view
        that is not yet followed to its end must not be confirmed, nor a push acknowledged.
        """
        said = self._said
        if said is None or now_ms - max(self.said_ms, self._busy_ms) < self.context.config.heartbeat_ms:
            return []
        self._busy_ms = now_ms
        again = msgspec.structs.replace(said, age_ms=int(now_ms - self.said_ms))
        return [Send(SCHEDULER_ADDRESS, again), *(Send(to, m.Ping(asks=False)) for to in self._said_to)]

    @property
    def listened_ms(self) -> float:
        """`awake_ms` up to when all that came was read. Who has unread messages knows of no silence since."""
        context = self.context
        return context.awake_ms - (0.0 if self.read_ms is None else max(0.0, context.now_ms - self.read_ms))

    def unheard(self) -> list[int]:
        """Members that said nothing to me for `link_timeout_ms`, as far as I have read what came."""
        context = self.context
        oldest_ms = self.listened_ms - context.config.link_timeout_ms
        return [peer.shard for peer in context.others() if peer.heard_awake_ms < oldest_ms]

    @property
    def figures(self) -> dict[str, float]:
        """Those of the last heartbeat; empty before the first."""
        return {} if self._said is None else self._said.figures

    @property
    def is_known(self) -> bool:
        """The scheduler has reached this process where it says that it is reached."""
        return self._reached > 0

    def on_knock(self, message: m.Knock) -> None:
        """The scheduler has reached me where I say that I am reached."""
        context = self.context
        if not context.state and message.process == context.process:
            context.checked()
            self._reached = message.number
            self.register()

    def register(self) -> None:
        context = self.context
        self.said_ms = context.now_ms
        context.effects.append(
            Send(
                SCHEDULER_ADDRESS,
                m.Register(
                    context.process,
                    context.endpoint,
                    self.wanted,
                    self._reached,
                    self.successor.since,
                    *self.predecessor,
                ),
            )
        )

    def send(self) -> None:
        context = self.context
        context.status_due = False
        if not context.state:
            return
        self.said_ms = context.now_ms
        if context.now_ms - self._figures_at_ms >= FIGURES_MS:
            self._figures_at_ms = context.now_ms
            self._figures = {name: float(value) for name, value in context.store.memory().items()}
            if self.resident_bytes is not None:
                self._figures["resident_bytes"] = float(self.resident_bytes())
        figures = dict(self._figures)
        figures["windows"] = float(context.window_number - 1)
        figures["parity_rows_corrected"] = float(self.scrubs.corrected)
        figures["classes_to_repair"] = float(len(self.repairs.incomplete))
        figures["classes_to_seed"] = float(self.seeding.incomplete())
        if context.state in NOT_WHOLE:
            figures["repair_done"], figures["seed_done"] = self.repairs.done(), self.seeding.share_done()
        running = context.others()
        read_ms = context.now_ms if self.read_ms is None else min(self.read_ms, context.now_ms)
        heard = {p.shard: int(max(0.0, read_ms - p.heard_ms)) for p in running if p.heard_ms is not None}
        status = m.ShardStatus(
            context.process, context.view, context.state == UP, list(self.membership.reports.values()),
            dict(context.watermarks), dict(context.durable), figures, dict(self.repairs.reinitialised),
            late=self.windows.late(), unheard=self.unheard(),
            broken=[p.shard for p in running if p.broken], heard=heard,
            linked=[p.shard for p in running if p.linked], severed=[p.shard for p in running if p.severed],
            prepared=self.membership.prepared, refusal=self.membership.refusal, origin=context.origin,
            copied=context.copied, saved=self.saver.saved(), checkpoint=self.saver.heard,
        )  # fmt: skip
        self._said = status
        self._said_to = [Address(SHARD, context.base + p.shard, p.epoch) for p in running if p.linked]
        context.effects.append(Send(SCHEDULER_ADDRESS, status))
