"""Messages between the shards of a group, in numbered streams: windows, seeding, repair, corrections of a scrub.

Shards are numbered within their group.
"""

from typing import ClassVar

import msgspec

from ecrec.protocol.messages.common import Message, Number
from ecrec.protocol.placement import TableSpec


class Window(Message, frozen=True, gc=False):
    """Deltas of one shard. Frames: keys, records (the receiver's stripes only; may be empty)."""

    FRAMES: ClassVar[int] = 2
    number: Number
    stable: Number
    watermarks: dict[Number, Number]
    """Watermarks that this window raises: worker -> push, and `cursor_key` of the worker -> its cursor."""
    begins: dict[Number, Number]
    """Classes whose seeding begins before the rows of this window: class -> round."""
    ends: list[Number]
    """Classes whose seeding ends with this window."""
    ack: Number = 0
    """Acknowledges the receiver's windows up to this one."""


class WindowAck(Message, frozen=True, gc=False):
    """Acknowledges windows up to ``number`` where no window goes the other way soon."""

    number: Number


class Stable(Message, frozen=True, gc=False):
    number: Number


class Join(Message, frozen=True, gc=False):
    """First message of a stream. The next window is ``window`` + 1."""

    window: Number
    watermarks: dict[Number, Number]
    ask: bool
    """The sender has just been restarted: answer with Joined."""


class Joined(Message, frozen=True, gc=False):
    """Classes that the sender, still recovering, wants seeded by the receiver: class -> round."""

    rounds: dict[Number, Number]


class Reseed(Message, frozen=True, gc=False):
    class_id: Number
    round: Number
    since: Number = 0
    """View that began this round. trap: taken before it, rows would be seeded that the view re-initialises."""


class Stripes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some stripes of a class: positions first <= p < last, or, where last is 0, the keys of the first frame."""

    class_id: Number
    first: Number
    last: Number


class Repair(Message, frozen=True, gc=False):
    """The sender asks for its data rows of some stripes. Frames: keys.

    All messages of a repair name the view in which it was asked for (those of a scrub, in which it began).
    """

    FRAMES: ClassVar[int] = 1
    view: Number
    request: Number
    stripes: Stripes


class CaptureParity(Message, frozen=True, gc=False):
    """Assembler to another parity holder: capture, and ship the capture. Frames: keys."""

    FRAMES: ClassVar[int] = 1
    view: Number
    request: Number
    stripes: Stripes
    members: list[int]
    """Data members that will send a MARKER."""


class Snap(Message, frozen=True, gc=False):
    """Assembler to a data member: put a MARKER in the streams to ``holders``. Frames: keys."""

    FRAMES: ClassVar[int] = 1
    view: Number
    request: Number
    stripes: Stripes
    holders: list[int]
    with_rows: bool
    """The assembler wants the member's coded rows."""


class Marker(Message, frozen=True, gc=False):
    """Frames: keys of the stripes asked for, then keys, records: the member's coded rows, for the assembler alone."""

    FRAMES: ClassVar[int] = 3
    view: Number
    request: Number
    stripes: Stripes
    too_long: bool = False
    """The rows are left out: so many were touched since the assembler looked that no frame holds them."""


class Captured(Message, frozen=True, gc=False):
    """A parity holder's capture. Frames: keys, records."""

    FRAMES: ClassVar[int] = 2
    view: Number
    request: Number
    class_id: Number = 0


class Repaired(Message, frozen=True, gc=False):
    """Coded values of the receiver's lost rows; those of the stripes not named are zero.

    Frames: the keys asked for, then keys, records.
    """

    FRAMES: ClassVar[int] = 3
    view: Number
    request: Number
    stripes: Stripes


class CorrectParity(Message, frozen=True, gc=False):
    """Some parity rows of the receiver do not fit. Frames: keys, records: what is to be XORed into them.

    That commutes with all deltas that came since the cut at which it was found, and that come.
    """

    FRAMES: ClassVar[int] = 2
    view: Number
    request: Number
    class_id: Number


class ParityCorrected(Message, frozen=True, gc=False):
    """The parity rows named in `CorrectParity` are corrected."""

    view: Number
    request: Number
    class_id: Number = 0


class RepairWanted(Message, frozen=True, gc=False):
    """The one who asked for a repair (of an assembler) or a capture (of a parity holder) still waits for it."""

    view: Number
    request: Number
    class_id: Number


class RepairWorking(Message, frozen=True, gc=False):
    """Answer to RepairWanted: it is being worked on, or ``gone``: it will not come, ask again a little later."""

    view: Number
    request: Number
    class_id: Number
    gone: bool


class Copy(Message, frozen=True, gc=False):
    """A shard that is to leave, to its successor: some of its rows, as they are now. Frames: keys, records.

    ``since`` is the view that began the succession; late messages of an earlier one mean nothing.
    """

    FRAMES: ClassVar[int] = 2
    since: Number
    number: Number
    tables: list[TableSpec]
    """Those that were added since the last one; of the first one, all."""


class CopyEnd(Message, frozen=True, gc=False):
    """The leaver has sent everything, and nothing changes any more."""

    since: Number
    number: Number
    received: dict[Number, Number]
    """Member -> its last window that the sender has, and so the successor,"""
    watermarks: dict[Number, dict[Number, Number]]
    """and its watermarks at that window."""


class Copied(Message, frozen=True, gc=False):
    """The successor has all up to this number."""

    since: Number
    number: Number
    refusal: str = ""
    """Not empty: it cannot hold it."""


class Halt(Message, frozen=True, gc=False):
    """A shard that is to leave asks a member to apply no push, and to close no window, until it is succeeded."""

    since: Number


class Halted(Message, frozen=True, gc=False):
    """The sender has halted. ``window`` is its last window; every member has all of them."""

    since: Number
    window: Number


class Ping(Message, frozen=True, gc=False):
    """Nothing but a sign of life; with ``asks`` it asks for one."""

    asks: bool
