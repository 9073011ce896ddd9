"""What the parts of a `SchedulerMachine` share: the persisted state, and what one event makes of it.

The state is written before anything that depends on it is said: a part that changes it says so (`changed`), and the
machine puts a `Persist` before all effects of the event.
"""

from typing import Any

import msgspec

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Effect, Note, Send
from ecrec.protocol.messages import SCHEDULER, SHARD, WORKER, Address
from ecrec.protocol.placement import Placement
from ecrec.protocol.state import Place, State
from ecrec.protocol.story import Story

HISTORY_MAX = 1_000
REASON_CHARACTERS_MAX = 300


class Context:
    """The state, the time, and the effects of the event that is being handled."""

    def __init__(self, config: ProtocolConfig, state: State) -> None:
        self.config = config
        self.now_ms = 0.0
        self.effects: list[Effect] = []
        self.story = Story()
        self.is_changed = False
        """The state must be persisted before anything else is said."""
        self.serial_before = 0
        """Of the state before the event."""
        self.is_acting = False
        """The event has passed its checks, and the state moves."""
        self.address = Address(SCHEDULER, 0, 0)
        self.begin_with(state)

    def begin_with(self, state: State) -> None:
        """Go on with another state."""
        self.state = state
        self.placement = Placement(state.n)
        for table in state.tables:
            self.placement.add(table.code)

    @property
    def origin(self) -> m.Origin:
        return m.Origin(self.state.cluster, self.state.generation, self.state.serial)

    @property
    def next_origin(self) -> m.Origin:
        """That of the state as it will be persisted before anything of this event is said."""
        origin = self.origin
        if not self.is_changed:
            return origin
        return msgspec.structs.replace(origin, serial=max(origin.serial, self.serial_before + 1))

    def checked(self) -> None:
        """The event fits; from here on the state moves, and whatever is raised ends the process."""
        self.is_acting = True

    def changed(self) -> None:
        self.is_changed = True

    # ------------------------------------------------------------------ effects
    def send(self, to: Address, message: m.Message, frames: m.Frames = ()) -> None:
        self.effects.append(Send(to, message, frames))

    def note(self, level: str, text: str) -> None:
        self.effects.append(Note(level, text))
        self.story.tell(self.now_ms, text)

    def fence_off(self, to: Address, reason: str) -> None:
        """Tell a process that it is not, or no longer, a member, and has to end."""
        self.send(to, m.Fenced(reason, self.origin))

    def is_of_worker(self, source: Address, may: str) -> bool:
        """Whether a request counts: it is of a worker's present life. One that is over is told so (``may``: what it
        wanted to do).

        trap: once the state was made again, a life that is newer than all that are known need not be over: nobody may
        have known it. Until its heartbeat comes it asks again.
        """
        known, _ = self.state.workers.get(source.id, (0, ""))
        if source.role == WORKER and not self.state.leases.is_fenced(source.id, source.epoch):
            if source.epoch > known and self.state.generation:
                return False
            if 0 < source.epoch == known:
                return True
        self.fence_off(source, f"{source} is not, or no longer, a worker that may {may}")
        return False

    def remember(
        self, event: str, group: int, shard: int, epoch: int, reason: str = "", since_ms: float = -1.0
    ) -> None:
        """Put it into the history, for people."""
        shard += group * self.state.n
        entry = m.HistoryEntry(self.now_ms, event, shard, epoch, reason[:REASON_CHARACTERS_MAX], since_ms)
        self.state.history.append(entry)
        del self.state.history[:-HISTORY_MAX]
        self.note("info", f"shard {shard} (epoch {epoch}): {event}")
        self.changed()

    def explain(self, event: str, shard: int, epoch: int, what: str) -> None:
        """Add to the reason of an event of the history, if it is still there. ``shard``: numbered over all groups."""
        for i, entry in enumerate(self.state.history):
            if (entry.event, entry.shard, entry.epoch) == (event, shard, epoch):
                reason = f"{entry.reason}; {what}"[:REASON_CHARACTERS_MAX]
                self.state.history[i] = msgspec.structs.replace(entry, reason=reason)
                self.changed()

    # ------------------------------------------------------------------ places
    def address_of(self, group: int, shard: int) -> Address:
        """Of the newest incarnation."""
        place = self.state.groups[group].places[shard]
        return Address(SHARD, group * self.state.n + shard, place.epoch)

    def place_of(self, address: Address) -> tuple[int, int, Place] | None:
        """Group, number in the group and place of a shard, whatever its epoch; None if there is no such shard."""
        group, shard = divmod(address.id, self.state.n)
        if not 0 <= group < len(self.state.groups):
            return None
        return group, shard, self.state.groups[group].places[shard]


def differences(ours: Any, theirs: Any) -> str:
    """What differs between two structs of one type, for people."""
    pairs = ((name, getattr(ours, name), getattr(theirs, name)) for name in ours.__struct_fields__)
    return ", ".join(f"{name} is {a}, not {b}" for name, a, b in pairs if a != b)
