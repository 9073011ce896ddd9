"""Messages between the scheduler and the members of the cluster: places, heartbeats, views.

Any may be lost; each is said again until it is answered or of no use.
"""

import msgspec

from ecrec.protocol.messages.checkpoints import CheckpointNumber, Saved
from ecrec.protocol.messages.common import Message, Number, NumberOrNone, Origin
from ecrec.protocol.messages.views import AnyView


class Register(Message, frozen=True):
    """A shard's process asks for a place: a given one, or (shard = -1) any that is free. Repeated until Views come."""

    process: str
    """Random name of this process."""
    endpoint: str
    shard: int
    reached: Number = 0
    """Number of the last `Knock` that came in at the endpoint."""
    since: Number = 0
    """View of the succession that it follows (`Succeed`)."""
    predecessor: str = ""
    """Random name of the process that it was started in place of,"""
    ended: str = ""
    """and how that one ended, as the launcher of both has seen."""


class Knock(Message, frozen=True):
    """From the scheduler, on a connection that it made, to a process without a place: whoever has this name says the
    number in its next Register. Then others reach it where it says that they do."""

    process: str
    number: Number


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What a survivor has of a dead incarnation: its last window (-1: nothing to say) and the watermarks at it."""

    shard: int
    epoch: Number
    window: NumberOrNone
    watermarks: dict[Number, Number]


class ShardStatus(Message, frozen=True):
    """A shard's heartbeat. ``view`` confirms all views up to it."""

    process: str
    view: Number
    whole: bool
    reports: list[Report]
    watermarks: dict[Number, Number]
    durable: dict[Number, Number]
    figures: dict[str, float]
    """For people: rows touched, bytes, rows still to repair, ..."""
    reinitialised: dict[Number, dict[Number, Number]] = {}
    """View -> table -> rows that were not yet repaired and became initial records."""
    late: dict[Number, Number] = {}
    """Member, by its number in the group -> milliseconds for which the sender has waited for it to acknowledge a
    window; from half of `link_timeout_ms` on."""
    unheard: list[int] = []
    """Members of which the sender, which has read all that came, heard nothing for `link_timeout_ms`."""
    broken: list[int] = []
    """Members whose messages the sender cannot follow."""
    prepared: Number = 0
    """Number of the last `PrepareTable` that it has done, or refuses with `refusal`."""
    refusal: str = ""
    heard: dict[Number, Number] = {}
    """Member -> milliseconds since the sender heard of its present incarnation."""
    linked: list[int] = []
    """Members to whose present incarnation the sender's connection is established."""
    severed: list[int] = []
    """Those to which it was established, and is closed."""
    origin: Origin = Origin()
    """What the sender knows of its scheduler."""
    copied: Number = 0
    """Serial of the copy of the scheduler's state that it keeps; 0: it has none."""
    saved: Saved | None = None
    """Of the checkpoint that is under way."""
    checkpoint: CheckpointNumber = 0
    """The newest one that it, or a push that waits at it, knows of."""
    age_ms: Number = 0
    """How long ago all this was so: in the middle of an event that takes long a shard says again what it said last."""


class WorkerStatus(Message, frozen=True):
    """A worker's or tool's heartbeat: the last view it knows of each group (-1: none).

    A process that has no epoch yet sends 0 in its address; the FullView that it gets names its epoch.
    """

    process: str
    views: list[NumberOrNone]
    figures: dict[str, float]
    cursor: Number = 0
    """How far its leases are done and durable; a heartbeat renews them all."""
    run: Number = 0
    """Its run, if it has one, and how many of its barriers there are durable on all shards."""
    run_done: Number = 0
    origin: Origin = Origin()
    run_size: Number = 0
    """Workers of that run: a scheduler whose state was lost may not know them."""
    waits: bool = False
    """It waits for the cluster, and is answered (`Suspected`)."""
    unheard: dict[Number, Number] = {}
    """Shard, numbered over all groups, that is said to run -> milliseconds for which it has not answered the sender."""
    checkpoint: CheckpointNumber = 0
    """The newest checkpoint that it has heard of,"""
    pushed: dict[Number, Number] = {}
    """and the last push that it made before, by shard, numbered over all groups; until it hears where the cut is. A
    shard is missing while it has not told the worker's watermark;"""
    run_pushed: tuple[Number, Number] = (0, 0)
    """and the run and sequence of its last push with a barrier before it."""
    leaves: bool = False
    """It ends, and all its pushes are durable. Said once; one that is not heard is missed later."""
    yields: bool = False
    """Of a process without an epoch: it wants none as long as another process is this worker, and lives."""


class Views(Message, frozen=True):
    group: int
    views: list[AnyView]
    origin: Origin = Origin()


class Probe(Message, frozen=True):
    """The scheduler asks a member whether it still hears some others, numbered in the group: its heartbeats say so."""

    shards: list[int]


class Fenced(Message, frozen=True):
    """You are not (or no longer) a member; stop."""

    reason: str
    origin: Origin = Origin()
    """Of the scheduler that says so. A member of another cluster, or one that knows a newer state, goes on."""


class Suspected(Message, frozen=True):
    """To workers and tools, with each heartbeat while it holds: whom they may wait for, and why nobody replaces it. To
    those that wait always, so that they know that the scheduler is there."""

    reasons: dict[Number, str]
    """Shard, numbered over all groups -> why it is suspected, but not declared down."""


class Unfit(Message, frozen=True):
    """A process that was given a place cannot take it, and ends."""

    process: str
    reason: str


class Leave(Message, frozen=True):
    """A member's process was told to end. Repeated until it is answered by `Fenced`: it may end."""

    process: str
    stays: bool = False
    """It was told since that it need not. Said once; one that is not heard is missed later."""
    off_host: bool = False
    """Its successor is to be on another host."""


class LeaveWaits(Message, frozen=True):
    """To a member that asked to leave: data would be lost with it now. It serves on."""

    reason: str


class Succeed(Message, frozen=True):
    """To a process without a place: copy all that a shard has, which is to leave. Repeated until it is over."""

    process: str
    since: Number
    """View that began the succession; 0: it follows none, or none any more."""
    group: Number = 0
    groups: Number = 1
    n: Number = 1
    shard: Number = 0
    """Its number in the group."""
    epoch: Number = 0
    """The one that the process would have,"""
    leaver: Number = 0
    """and the one of the shard that leaves,"""
    endpoint: str = ""
    """which is reached here."""


class Handover(Message, frozen=True):
    """How far a shard is that is to leave, and is copied. Repeated."""

    process: str
    since: Number
    is_near: bool = False
    """Hardly anything is left to be copied: it asks to halt (`HaltNow`)."""
    is_level: bool = False
    """Its successor has everything, and nothing changes any more."""
    window: Number = 0
    """Its last window,"""
    watermarks: dict[Number, Number] = {}
    """and the watermarks at it."""
    halts: bool = False
    """Its group has halted, or is about to."""
    failure: str = ""
    """It cannot be copied to this successor,"""
    is_refused: bool = False
    """which says so itself."""
    left_bytes: Number = 0


class HaltNow(Message, frozen=True):
    """Answer to a `Handover` that is near: halt the group, and let the successor have the rest."""

    since: Number


class ToldToLeave(Message, frozen=True):
    """Somebody asked (`Drain`) that this process ends, as if it had been told so itself; or ``stays``, that it does
    not."""

    process: str
    stays: bool = False
    off_host: bool = False


class Drain(Message, frozen=True):
    """A tool asks that a process of a shard ends, as if it had been told so itself; or ``stays``: that it does not.

    Repeated until the process has left; the scheduler passes it on, and keeps nothing of it.
    """

    request: Number
    shard: Number = 0
    """Over all groups,"""
    epoch: Number = 0
    """and the incarnation that is meant; 0: a process without a place, which has this name."""
    process: str = ""
    stays: bool = False
    off_host: bool = False
    """Its successor is to be on another host."""


class Draining(Message, frozen=True):
    """Answer to Drain: the process is told."""

    request: Number


class Refused(Message, frozen=True):
    request: Number
    reason: str
