"""What a machine is told (events) and what it wants done (effects)."""

from typing import NamedTuple, TypeAlias

from ecrec.protocol.messages import Address, Frames, Message

BAD_CONTENT = (ValueError, IndexError, OverflowError, TypeError)
"""What a machine's ``handle`` raises for a message that does not fit; it has done nothing of it then. It is what the
native store and the conversion to arrays raise."""


class HalfHandledError(Exception):
    """A machine raised after its state had moved: the effects it had gathered are lost, and nothing it holds counts.

    The process must end. Of a shard that is a death like others, which the code tolerates; a scheduler is started
    again with the state that it persisted last.
    """

    story = ""
    """What the machine went through last, one event a line."""


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


class Connection(NamedTuple):
    """The connection to a shard was made (``up``) or broke, just now; told to shards and to the scheduler."""

    address: Address
    up: bool


class ToldToEnd(NamedTuple):
    """This process is to end, without loss (shard only): not before the scheduler lets it go."""


class FileWritten(NamedTuple):
    """A `WriteFile` is done: the file is on stable storage, or there is none."""

    checkpoint: int
    name: str
    nbytes: int
    crc32c: int
    error: str
    """Why it could not be written; empty if it was."""


Link: TypeAlias = Disconnected | Connection
"""What became of a connection."""

Event: TypeAlias = Received | Tick | Disconnected | Connection | ToldToEnd | FileWritten


def half_handled(who: Address, event: Event, error: Exception, story: str = "") -> HalfHandledError:
    """What a machine raises for an error in the middle of an event."""
    what = type(event.message).__name__ if isinstance(event, Received) else type(event).__name__
    text = f"{who} stopped in the middle of a {what}: {type(error).__name__}: {error}"
    broken = error if isinstance(error, HalfHandledError) else HalfHandledError(text)
    broken.story = story
    return broken


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
    """Nothing more will be sent to, nor taken from, this incarnation.

    Not ``for_good``: for now, by a process that was to succeed it, and may yet become its peer.
    """

    address: Address
    for_good: bool = True


class Persist(NamedTuple):
    """Write the scheduler's state to stable storage before any effect that follows in the list."""

    state: bytes


class WriteFile(NamedTuple):
    """Write a file of a checkpoint, as a whole or not at all, meanwhile; `FileWritten` follows."""

    checkpoint: int
    url: str
    name: str
    """Relative to the URL, with slashes."""
    buffers: Frames
    """Its bytes; they are not changed any more."""
    urgent: bool = False
    """Something waits for it. What is not urgent takes only what the host has to spare, and may be overtaken."""


FENCED, OUTDATED, LEFT, LEFT_EARLY, NO_SCHEDULER = "fenced", "outdated", "left", "left early", "no scheduler"
"""Why a process ends: the cluster wants it to; it is a scheduler whose state is older than its cluster, or another
cluster's; it was told to end, and nothing is lost with it; it was told to end, and data may be lost with it; no
scheduler has answered it."""


class Stop(NamedTuple):
    """This process must end."""

    reason: str
    kind: str = FENCED


class Note(NamedTuple):
    """For the log: level is ``info``, ``warning`` or ``error``."""

    level: str
    text: str


class PullDone(NamedTuple):
    """All shards answered a pull (worker only): frames by shard, in order of the shards asked."""

    ticket: int
    answers: dict[int, Frames]


class PullFailed(NamedTuple):
    """A shard refused its part of a pull (worker only). That pull is over; everything else goes on."""

    ticket: int
    reason: str


class Failed(NamedTuple):
    """The session is over (worker only); `ClientMachine` says of which failures it is."""

    reason: str


Result: TypeAlias = PullDone | PullFailed | Failed
"""For the session."""

Effect: TypeAlias = Send | Connect | Disconnect | Persist | WriteFile | Stop | Note | Result
