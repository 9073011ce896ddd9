"""What the scheduler last heard of each running shard.

A part of the `SchedulerMachine`. A heartbeat's view confirms all views up to it: that is how a settlement, a fence or
a table is confirmed by everybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ecrec.protocol import messages as m
from ecrec.protocol.context import Context
from ecrec.protocol.events import Connect
from ecrec.protocol.messages import DOWN, Address
from ecrec.protocol.state import Group


@dataclass(slots=True)
class Contact:
    """What the last heartbeat of a member said, and when views were last sent to it."""

    heard_ms: float
    view: int = -1
    sent_view: int = -1
    sent_ms: float = -1e18
    status: m.ShardStatus | None = None
    repaired_ms: float = -1.0
    """When the first heartbeat came that said that no row is missing; -1: none has said so."""


class Members:
    """The part of a `SchedulerMachine` that knows how far each running shard is."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.contacts: dict[tuple[int, int], Contact] = {}
        """(group, shard in the group) -> contact, of those that are not down."""

    def meet(self, number: int, shard: int) -> None:
        """A process has this place: begin to talk to it."""
        context = self.context
        self.contacts[number, shard] = Contact(context.now_ms)
        place = context.state.groups[number].places[shard]
        context.effects.append(Connect(context.address_of(number, shard), place.endpoint))

    def meet_all(self) -> None:
        """Begin anew with all that the state says are not down."""
        self.contacts.clear()
        for number, group in enumerate(self.context.state.groups):
            for shard, place in enumerate(group.places):
                if place.state != DOWN:
                    self.meet(number, shard)

    def seen(self, number: int, shard: int) -> Contact:
        """A member was heard just now."""
        contact = self.contacts.setdefault((number, shard), Contact(self.context.now_ms))
        contact.heard_ms = self.context.now_ms
        return contact

    def forget(self, number: int, shard: int) -> None:
        self.contacts.pop((number, shard), None)

    def stood_still(self, pause_ms: float) -> None:
        """It was the scheduler that stood still: who was heard since is not silent for longer than since then."""
        for contact in self.contacts.values():
            contact.heard_ms = min(contact.heard_ms + pause_ms, self.context.now_ms)

    def get(self, number: int, shard: int) -> Contact | None:
        return self.contacts.get((number, shard))

    def status(self, number: int, shard: int) -> m.ShardStatus | None:
        """The last heartbeat of a member, if it was heard of at all."""
        contact = self.contacts.get((number, shard))
        return contact.status if contact is not None else None

    @property
    def any_heard(self) -> bool:
        """Whether any member's heartbeat came."""
        return any(contact.status is not None for contact in self.contacts.values())

    def confirm(self, number: int, view: int) -> bool:
        """Whether every running member of a group has taken this view."""
        for shard, place in enumerate(self.context.state.groups[number].places):
            contact = self.contacts.get((number, shard))
            if place.state != DOWN and (contact is None or contact.view < view):
                return False
        return True

    def confirm_settled(self, number: int, group: Group, shard: int) -> bool:
        """The death of this shard is settled, and every running one has confirmed it."""
        view = group.settlements[shard].view
        return view >= 0 and self.confirm(number, view)

    def running(self) -> Iterator[tuple[Address, m.ShardStatus | None]]:
        """Members of all groups that are not down, with their last heartbeats."""
        for number, group in enumerate(self.context.state.groups):
            for shard, place in enumerate(group.places):
                if place.state != DOWN:
                    yield self.context.address_of(number, shard), self.status(number, shard)
