"""Which states there are, and what leads from one to another. Whatever is not in a table is an error.

What a place of a group is, as the scheduler decides and all members follow (`PLACE`); what a shard is to itself, which
is ahead of that (`SHARD`); of a peer, how far its stream is (`STREAM`), and its connection (`LINK`); what a shard is to
a worker (`CHANNEL`); how far a checkpoint is (`CHECKPOINT`). The diagrams of docs/protocol.md are made from them:
``python -m ecrec.protocol.transitions``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, UP

UNPLACED = ""
"""Of a shard: its process has no place."""

# What happens to a place.
FORMED = "its group starts"
DIED = "declared down"
REPLACED = "a process takes the place"
BECAME_WHOLE = "reported whole"
LOST_PARITY = "rows begin again, and their parity with them"
SUCCEEDED = "its successor takes the place"

# What happens to a shard.
GIVEN_NEW = "gets a place of a new group"
GIVEN_DEAD = "gets the place of a dead shard"
GIVEN_COPIED = "gets the place of a shard that it has copied"
HAS_ALL = "has all rows and parity"
LOST_PARITY_EARLY = "the same, before it was known to be whole"

# A peer's stream.
NO_STREAM, JOINED, JOINED_BLIND, UNSETTLED, SETTLED = "none", "joined", "joined blind", "unsettled", "settled"
"""`JOINED`: my windows go to it. `JOINED_BLIND`: the same, but it recovers, and has yet to say what it wants seeded by
me, who have come back. `UNSETTLED`: it is down, and its cut is not announced: parities may differ by its windows.
`SETTLED`: it is down, and the cut is known."""
JOIN = "my stream to it begins"
JOIN_BLIND = "the same; it recovers, and I was replaced"
TOLD = "it says what it wants seeded"
STREAM_ENDS = "declared down"
CUT = "its cut is announced"

# A connection to a peer.
NEVER_LINKED, LINKED, SEVERED = "never linked", "linked", "severed"
OPENED = "opened"
CLOSED = "closed"


# A worker's conversation with a shard.
UNREACHED, MET, GREETED = "unreached", "met", "greeted"
"""`UNREACHED`: no incarnation runs, as far as is known. `MET`: one does, and does not know yet who asks. `GREETED`: it
may be sent pushes and pulls."""
FOUND = "an incarnation runs"
WELCOME = "it tells the watermark, or needs none"
REMET = "this life of the worker gets another epoch"
LEFT_BEHIND = "declared down, or replaced"


# A shard that is to leave, and is copied to its successor.
NOT_COPIED, COPYING, NEAR, HALTING, ENDING, LEVEL = "not copied", "copying", "near", "halting", "ending", "level"
"""`NEAR`: hardly anything is left. `HALTING`: no push is applied in the group, and members say which their last windows
were. `ENDING`: nothing changes any more, and the rest is on its way. `LEVEL`: the successor has everything."""
SUCCESSOR_NAMED = "a successor is named"
LITTLE_LEFT = "hardly anything is left"
TOLD_TO_HALT = "the scheduler says that the group may halt"
ALL_SENT = "all members have halted, and all is sent"
ALL_COPIED = "the successor has everything"
GIVEN_UP_COPY = "it is given up: a death, a view, the successor's end"


# A checkpoint.
NO_CHECKPOINT, ASKED, WRITING, COMPLETE, GIVEN_UP = "none", "asked", "writing", "complete", "given up"
"""`ASKED`: workers tell which pushes they have made. `WRITING`: the cut is announced, and shards write their rows."""
SAVE = "somebody asks for a checkpoint"
ALL_TOLD = "all workers have told, and the cut is announced"
WRITTEN = "the manifest is written"
DISTURBED = "a death, an error, or too long a wait"


class TransitionError(RuntimeError):
    """Something happened that cannot happen in this state: an error of the machine, which ends its process."""


class Transitions(NamedTuple):
    """What may happen in which state, and the state that follows."""

    title: str
    first: str
    steps: Mapping[tuple[str, str], str]

    def after(self, state: str, happening: str) -> str:
        """The state that follows. Raises TransitionError if there is none."""
        try:
            return self.steps[state, happening]
        except KeyError:
            raise TransitionError(f"{self.title}: {happening!r} cannot happen in state {state!r}") from None

    def check(self, state: str) -> str:
        """The state, if it is one. Raises ValueError."""
        if state not in self.steps.values():
            raise ValueError(f"{self.title}: {state[:40]!r} is no state")
        return state

    def diagram(self) -> str:
        """As a mermaid state diagram."""
        names = {state: state.replace(" ", "_") for state in self.steps.values()}
        lines = ["stateDiagram-v2", *([f"    [*] --> {names[self.first]}"] if self.first in names else [])]
        for (before, happening), after in self.steps.items():
            lines.append(f"    {names.get(before, '[*]')} --> {names[after]}: {happening}")
        return "\n".join(lines)


PLACE = Transitions("a place of a group", DOWN, {
    (DOWN, FORMED): UP,
    (UP, DIED): DOWN,
    (RECOVERING, DIED): DOWN,
    (RESEEDING, DIED): DOWN,
    (DOWN, REPLACED): RECOVERING,
    (UP, SUCCEEDED): UP,
    (RECOVERING, BECAME_WHOLE): UP,
    (RESEEDING, BECAME_WHOLE): UP,
    (UP, LOST_PARITY): RESEEDING,
    (RESEEDING, LOST_PARITY): RESEEDING,
})  # fmt: skip

SHARD = Transitions("a shard to itself", UNPLACED, {
    (UNPLACED, GIVEN_NEW): UP,
    (UNPLACED, GIVEN_DEAD): RECOVERING,
    (UNPLACED, GIVEN_COPIED): UP,
    (RECOVERING, HAS_ALL): UP,
    (RESEEDING, HAS_ALL): UP,
    (UP, LOST_PARITY): RESEEDING,
    (RESEEDING, LOST_PARITY): RESEEDING,
    (UP, LOST_PARITY_EARLY): RECOVERING,
})  # fmt: skip

STREAM = Transitions("a peer's stream", NO_STREAM, {
    (NO_STREAM, JOIN): JOINED,
    (NO_STREAM, JOIN_BLIND): JOINED_BLIND,
    (JOINED_BLIND, TOLD): JOINED,
    (JOINED, TOLD): JOINED,
    (JOINED, STREAM_ENDS): UNSETTLED,
    (JOINED_BLIND, STREAM_ENDS): UNSETTLED,
    (UNSETTLED, CUT): SETTLED,
})  # fmt: skip
"""A replacement is a new peer, whose stream begins anew."""

LINK = Transitions("a connection to a peer", NEVER_LINKED, {
    (NEVER_LINKED, OPENED): LINKED,
    (LINKED, CLOSED): SEVERED,
    (SEVERED, OPENED): LINKED,
    (LINKED, OPENED): LINKED,
    (SEVERED, CLOSED): SEVERED,
    (NEVER_LINKED, CLOSED): NEVER_LINKED,
})  # fmt: skip

CHANNEL = Transitions("a shard to a worker", UNREACHED, {
    (UNREACHED, FOUND): MET,
    (MET, WELCOME): GREETED,
    (GREETED, REMET): MET,
    (MET, LEFT_BEHIND): UNREACHED,
    (GREETED, LEFT_BEHIND): UNREACHED,
})  # fmt: skip

HANDOVER = Transitions("a shard that is succeeded", NOT_COPIED, {
    (NOT_COPIED, SUCCESSOR_NAMED): COPYING,
    (COPYING, LITTLE_LEFT): NEAR,
    (NEAR, TOLD_TO_HALT): HALTING,
    (HALTING, ALL_SENT): ENDING,
    (ENDING, ALL_COPIED): LEVEL,
    (COPYING, GIVEN_UP_COPY): NOT_COPIED,
    (NEAR, GIVEN_UP_COPY): NOT_COPIED,
    (HALTING, GIVEN_UP_COPY): NOT_COPIED,
    (ENDING, GIVEN_UP_COPY): NOT_COPIED,
    (LEVEL, GIVEN_UP_COPY): NOT_COPIED,
})  # fmt: skip
"""When its successor has the place, its process ends."""

CHECKPOINT = Transitions("a checkpoint", NO_CHECKPOINT, {
    (NO_CHECKPOINT, SAVE): ASKED,
    (ASKED, ALL_TOLD): WRITING,
    (WRITING, WRITTEN): COMPLETE,
    (ASKED, DISTURBED): GIVEN_UP,
    (WRITING, DISTURBED): GIVEN_UP,
    (COMPLETE, SAVE): ASKED,
    (GIVEN_UP, SAVE): ASKED,
})  # fmt: skip
"""The newest one; the next has another number."""

TABLES = (PLACE, SHARD, STREAM, LINK, CHANNEL, HANDOVER, CHECKPOINT)


def diagrams() -> str:
    """All tables, as docs/protocol.md shows them."""
    return "\n".join(f"### {t.title[0].upper()}{t.title[1:]}\n\n```mermaid\n{t.diagram()}\n```\n" for t in TABLES)


if __name__ == "__main__":
    print(diagrams())
