"""What is known of the members of a group, and what follows from it: the words between `Deaths` and `Suspicions`."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple


class Sign(NamedTuple):
    """What the scheduler knows of a running member. Times are milliseconds until now."""

    shard: int
    silent_ms: float
    """Since the scheduler heard of it."""
    view: int
    """The last view that it confirmed."""
    outrun: bool = False
    """The views after that one are no longer kept: it can never catch up."""
    prepared: int = 0
    """Number of the last table that it has prepared."""
    unprepared: bool = False
    """A table waits for it to prepare."""
    met: bool = True
    """It was heard since this scheduler was started."""
    whole: bool = True
    complains: bool = False
    """Its last word says that something is wrong with a link between it and a peer."""
    lags: bool = False
    """It has not heard of a state that it was sent a copy of."""


class Word(NamedTuple):
    """What a peer said in its last heartbeat about a member."""

    speaker: int
    about: int
    age_ms: float
    """Since the heartbeat came."""
    heard_ms: float
    """Since the peer heard of the member; `NEVER_MS` if it has not."""
    linked: bool
    """The connection of the peer to the member is established."""
    knows: bool = True
    """The peer knows of this incarnation."""
    late_ms: float = 0.0
    """So long the peer has waited for it to acknowledge a window."""
    unheard: bool = False
    """The peer has read all that came, and heard nothing of it for `link_timeout_ms`."""
    broken: bool = False
    """The peer cannot follow its stream."""
    severed: bool = False
    """The connection of the peer to the member was established, and is closed."""


class Verdict(NamedTuple):
    """A member is down."""

    shard: int
    reason: str
    must_stop: bool = False
    """It is heard, and is to be told at once."""


class Held(NamedTuple):
    """A member is suspected, and not declared down: data would be lost with it, or somebody still hears it."""

    shard: int
    reason: str
    blocks: bool = True
    """Views that it does not confirm are waited for."""


@dataclass(slots=True)
class Decision:
    """What follows from the signs."""

    down: list[Verdict] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    ask: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Member -> members that it is to ask for a sign of life."""
