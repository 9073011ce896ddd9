"""What a shard knows of another one."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ecrec.protocol import arrays
from ecrec.protocol.events import Received
from ecrec.protocol.messages import DOWN, RESEEDING, UP
from ecrec.protocol.transitions import (
    JOINED,
    JOINED_BLIND,
    LINK,
    LINKED,
    NEVER_LINKED,
    NO_STREAM,
    PLACE,
    SEVERED,
    STREAM,
    UNSETTLED,
)


@dataclass(slots=True)
class Undo:
    """A folded window that its sender may not have made stable: folding it again undoes it."""

    number: int
    class_mask: int
    """Classes that were folded; the others were skipped."""
    keys: Any
    records: Any
    watermarks: dict[int, int]
    ends: list[int]


@dataclass(slots=True)
class Peer:
    """A place in the group, seen from another shard. Changed by views and by the peer's stream."""

    shard: int
    epoch: int
    state: str
    endpoint: str

    stream: str = NO_STREAM
    """How far our streams are (`transitions.STREAM`)."""
    received: int | None = None
    """Number of its last window that I have; None while its stream has not begun."""
    ack_due: bool = False
    """Its last window is not acknowledged."""
    broken: bool = False
    """Something in its stream did not fit: nothing more is taken from this incarnation."""
    watermarks: dict[int, int] = field(default_factory=dict)
    """Its watermarks at the last window that left the undo records."""
    undo: deque[Undo] = field(default_factory=deque)
    rounds: dict[int, int] = field(default_factory=dict)
    """Class -> round of seeding that its stream has announced."""
    held: list[Received] = field(default_factory=list)
    """Messages that wait for a view, in order."""
    held_bytes: int = 0
    """Of their frames."""

    seeding: dict[int, int] = field(default_factory=dict)
    """Class -> newest round in which it asked me for my rows."""
    begins: dict[int, int] = field(default_factory=dict)
    """For my open window to it: classes whose seeding begins -> round."""
    ends: list[int] = field(default_factory=list)
    """For my open window to it: classes whose seeding is complete."""

    heard_ms: float | None = None
    """When it was last heard; None: never."""
    heard_awake_ms: float = 0.0
    """The same in the time that I was awake; if it was never heard, when I first knew of this incarnation."""
    link: str = NEVER_LINKED
    """The connection to it (`transitions.LINK`)."""
    pings: int = 0
    """How often it was asked for a sign of life since it was heard,"""
    pinged_ms: float = -1e18
    """and when it was asked last."""

    reseeding: set[int] = field(default_factory=set)
    """Classes whose parity rows on it are seeded anew, after rows of theirs were re-initialised."""

    def step(self, happening: str) -> None:
        self.state = PLACE.after(self.state, happening)

    def step_stream(self, happening: str) -> None:
        self.stream = STREAM.after(self.stream, happening)

    def step_link(self, happening: str) -> None:
        self.link = LINK.after(self.link, happening)

    def hold(self, event: Received) -> None:
        """Keep a message until a view comes."""
        self.held.append(event)
        self.held_bytes += arrays.frames_bytes(event.frames)

    @property
    def running(self) -> bool:
        return self.state != DOWN

    @property
    def joined(self) -> bool:
        """My windows go to it."""
        return self.stream in (JOINED, JOINED_BLIND)

    @property
    def is_joined_blind(self) -> bool:
        """It was recovering when I came back, and has yet to say which classes it wants seeded."""
        return self.stream == JOINED_BLIND

    @property
    def unsettled(self) -> bool:
        """Down, and the cut is not announced: parities may differ by its windows."""
        return self.stream == UNSETTLED

    @property
    def linked(self) -> bool:
        """The connection to it is established."""
        return self.link == LINKED

    @property
    def severed(self) -> bool:
        """It was established, and is closed."""
        return self.link == SEVERED

    @property
    def has_data(self) -> bool:
        """All its data rows are there."""
        return self.state in (UP, RESEEDING)

    def has_parity(self, class_id: int) -> bool:
        """Its parity rows of the class fit the data."""
        return self.state == UP or (self.state == RESEEDING and class_id not in self.reseeding)

    def watermarks_received(self) -> dict[int, int]:
        """Its watermarks at the last window that I have."""
        watermarks = dict(self.watermarks)
        for undo in self.undo:
            watermarks.update(undo.watermarks)
        return watermarks
