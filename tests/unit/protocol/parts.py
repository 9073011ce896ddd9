"""Parts of the scheduler alone: a context with a group that has begun, and what the parts want done."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ecrec.protocol.announcer import Announcer
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.context import Context
from ecrec.protocol.events import Send
from ecrec.protocol.members import Contact, Members
from ecrec.protocol.messages import UP, WORKER, Address, Origin
from ecrec.protocol.state import Group, Place, State


class Parts:
    """A context, members that were heard just now and have taken the newest view, and an announcer."""

    def __init__(self, n: int = 2, groups: int = 1, workers: Mapping[int, int] | None = None, **limits: Any) -> None:
        places = [[Place(1, UP, f"p{i}", f"inproc://p{i}") for i in range(n)] for _ in range(groups)]
        self.state = State(n, [Group(1, some) for some in places])
        self.state.workers = {worker: (epoch, f"w{worker}") for worker, epoch in (workers or {}).items()}
        self.context = Context(ProtocolConfig(**limits), self.state)
        self.members = Members(self.context)
        self.announcer = Announcer(self.context, self.members)
        for group in range(groups):
            for shard in range(n):
                self.members.contacts[group, shard] = Contact(0.0, 1)

    def says(self, group: int, shard: int, **status: Any) -> Contact:
        """What the last heartbeat of a member said."""
        contact = self.members.contacts[group, shard]
        contact.status = SimpleNamespace(**{"watermarks": {}, "durable": {}, "copied": 0, "origin": Origin(), **status})  # type: ignore[assignment]
        return contact

    def sent(self) -> list[Any]:
        """Messages since the last time."""
        messages = [effect.message for effect in self.context.effects if isinstance(effect, Send)]
        self.context.effects.clear()
        return messages

    def changed(self) -> bool:
        """Whether the state is to be persisted, since the last time."""
        changed, self.context.is_changed = self.context.is_changed, False
        return changed


def worker(number: int, epoch: int = 1) -> Address:
    return Address(WORKER, number, epoch)
