"""What a machine is told (events) and what it wants done (effects)."""

from typing import NamedTuple, TypeAlias

from ecrec.protocol.messages import Address, Frames, Message

BAD_CONTENT = (ValueError, IndexError, OverflowError, TypeError)
"""What a machine's ``handle`` raises for a message that does not fit; it has done nothing of it then. It is what the
native store and the conversion to arrays raise."""


class Received(NamedTuple):
    """A message arrived. From a shard it arrives in order, without gaps, once."""

    source: Address
    message: Message
    frames: Frames = ()


class Tick(NamedTuple):
    """Time passed. Given every few tens of milliseconds."""


class Disconnected(NamedTuple):
    """The connection to a shard is closed and did not come back within the grace (scheduler only)."""

    address: Address


Event: TypeAlias = Received | Tick | Disconnected


class Send(NamedTuple):
    """Frames must not be changed any more by the sender, nor by the receiver."""

    to: Address
    message: Message
    frames: Frames = ()


class Connect(NamedTuple):
    """A shard's incarnation can be reached at this endpoint."""

    address: Address
    endpoint: str


class Disconnect(NamedTuple):
    """Nothing more will be sent to, nor taken from, this incarnation."""

    address: Address


class Persist(NamedTuple):
    """Write the scheduler's state to stable storage before any effect that follows in the list."""

    state: bytes


class Stop(NamedTuple):
    """This process must end."""

    reason: str


class Note(NamedTuple):
    """For the log: level is ``info``, ``warning`` or ``error``."""

    level: str
    text: str


class PullDone(NamedTuple):
    """All shards answered a pull (worker only): frames by shard, in order of the shards asked."""

    ticket: int
    answers: dict[int, Frames]


class Failed(NamedTuple):
    """The worker cannot go on: a refused push or pull, lost data, a stale epoch."""

    reason: str


Effect: TypeAlias = Send | Connect | Disconnect | Persist | Stop | Note | PullDone | Failed
