"""Views: numbers them, and sends them to members, workers and tools until they are confirmed (docs/protocol.md).

A part of the `SchedulerMachine`. What is sent may be lost: a heartbeat shows which views are missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import ge

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.context import Context, differences
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN, Address
from ecrec.protocol.state import Group, encode_copy, members_of
from ecrec.protocol.story import describe


def forget_ms(config: ProtocolConfig) -> float:
    """A worker or tool that was silent for longer is not heard again."""
    return float(max(10 * config.heartbeat_timeout_ms, config.lease_timeout_ms))


@dataclass(slots=True)
class Client:
    """A worker or tool that was heard of."""

    address: Address
    """Where to answer it: under epoch 0 until it knows its epoch."""
    epoch: int
    views: list[int]
    sent_views: list[int]
    sent_ms: list[float]
    """When views of each group were last sent to it."""
    heard_ms: float
    figures: dict[str, float]
    unheard: dict[int, int] = field(default_factory=dict)
    """Shards that do not answer it -> for how many milliseconds."""
    confirmed: list[int] | None = None
    """`views`, if these are all that there were"""
    confirmed_of: int = 0
    """when so many had been made."""


class Announcer:
    """The part of a `SchedulerMachine` that tells everybody the views."""

    def __init__(self, context: Context, members: Members) -> None:
        self.context = context
        self.members = members
        self._copied: dict[tuple[int, int], tuple[int, float]] = {}
        """Place -> serial of the state that its shard was last sent a copy of, and when."""
        self._views = 0
        """How many views were made,"""
        self._confirmed: dict[int, int] = {}
        """and group -> the newest one that all running members have confirmed: nobody is looked at before there is
        another. Every change of the members is a view."""

    # ------------------------------------------------------------------ new views
    def next_view(self, group: Group) -> int:
        """The number of a new view, which `add` takes."""
        group.view += 1
        self._views += 1
        self.context.changed()
        return group.view

    def add(self, group: Group, view: m.AnyView) -> None:
        group.views.append(view)
        context = self.context
        number = next(i for i, each in enumerate(context.state.groups) if each is group)
        context.story.tell(context.now_ms, f"group {number}: view {describe(view)}")
        del group.views[: -self.context.config.views_kept_max]
        self.context.changed()

    def fence_worker(self, worker: int, epoch: int) -> list[int]:
        """Tell all groups that a life of a worker is over. By group, the number of the view; 0 for one that has not
        started."""
        views = []
        for group in self.context.state.groups:
            if group.view:
                self.add(group, m.WorkerFenced(self.next_view(group), worker, epoch))
            views.append(group.view)
        return views

    def configure(self) -> None:
        """Started with other limits and timeouts than the members were told: all are told the new ones."""
        context = self.context
        if context.state.config == context.config:
            return
        if context.state.config is not None:
            context.note("warning", f"other timings: {differences(context.state.config, context.config)}")
        context.state.config = context.config
        context.changed()
        for group in context.state.groups:
            if group.view:
                self.add(group, m.Configured(self.next_view(group), context.config))

    def since(self, group: Group, view: int) -> list[m.AnyView] | None:
        """Views after the given one; None if they are no longer kept."""
        if view >= group.view:
            return []
        if not group.views or group.views[0].number > view + 1:
            return None
        return group.views[view + 1 - group.views[0].number :]

    # ------------------------------------------------------------------ to members, workers and tools
    def send(self, clients: Iterable[Client]) -> None:
        """New views go out at once; views that were sent, and are not confirmed, again after a while."""
        context = self.context
        for number, group in enumerate(context.state.groups):
            if group.view == self._confirmed.get(number, 0):
                continue
            confirmed = group.view
            for shard, place in enumerate(group.places):
                contact = self.members.get(number, shard)
                if place.state == DOWN:
                    continue
                if contact is None or place.start is None:
                    confirmed = 0
                    continue
                if contact.view >= group.view:
                    continue
                confirmed = 0
                stale = context.now_ms - contact.sent_ms >= context.config.view_resend_ms
                base = contact.view if stale else max(contact.view, contact.sent_view)
                if base >= group.view:
                    continue
                views: list[m.AnyView] = []
                if base < place.start.number:
                    views, base = [place.start], place.start.number
                following = self.since(group, base)
                if following is None:
                    continue
                contact.sent_view, contact.sent_ms = group.view, context.now_ms
                told = m.Views(number, views + following, context.next_origin)
                context.send(context.address_of(number, shard), told)
            self._confirmed[number] = confirmed
        for client in clients:
            if client.views is not client.confirmed or client.confirmed_of != self._views:
                self._send_client(client)

    def _send_client(self, client: Client) -> None:
        context = self.context
        if all(map(ge, client.views, (group.view for group in context.state.groups))):
            client.confirmed, client.confirmed_of = client.views, self._views
            return
        for number, group in enumerate(context.state.groups):
            stale = context.now_ms - client.sent_ms[number] >= context.config.view_resend_ms
            base = client.views[number] if stale else max(client.views[number], client.sent_views[number])
            if not group.view or base >= group.view:
                continue
            views = self.since(group, base) if base > 0 and client.address.epoch else None
            if views is None:
                views = [self._snapshot(number, client.epoch)]
            client.sent_views[number], client.sent_ms[number] = group.view, context.now_ms
            context.send(client.address, m.Views(number, views, context.next_origin))

    def _snapshot(self, number: int, epoch: int) -> m.FullView:
        """The present view for a worker or tool."""
        state = self.context.state
        group = state.groups[number]
        return m.FullView(
            group.view, number, len(state.groups), state.n, -1, epoch, False, 0, {}, members_of(group), state.tables,
            [], group.lost, self.context.config, [], group.damaged, checkpoint=state.saving.number,
        )  # fmt: skip

    def copied(self, number: int, shard: int) -> int:
        """Serial of the state that a shard was last sent a copy of; 0 if it was sent none."""
        return self._copied.get((number, shard), (0, 0.0))[0]

    def copied_everywhere(self) -> int:
        """Every shard that runs has told that it keeps a copy of a state of this serial or a later one."""
        places = [
            (number, shard)
            for number, group in enumerate(self.context.state.groups)
            for shard, place in enumerate(group.places)
            if place.state != DOWN
        ]
        return min((self._kept(*place) for place in places), default=0)

    def _kept(self, number: int, shard: int) -> int:
        """Serial of the copy that a shard says it keeps; 0: none of this history."""
        status = self.members.status(number, shard)
        if status is None or status.origin.generation != self.context.state.generation:
            return 0
        return status.copied

    def send_copy(self, shard: Address) -> None:
        """Give a shard that was just heard the newest state to keep, from time to time."""
        context, key = self.context, divmod(shard.id, self.context.state.n)
        serial, sent_ms = self._copied.get(key, (-1, -1e18))
        # One that got lost is sent again: who does not keep the newest state may hear nothing at all.
        if (
            min(serial, self._kept(*key)) >= context.state.serial
            or context.now_ms - sent_ms < context.config.state_copy_ms
        ):
            return
        self._copied[key] = context.state.serial, context.now_ms
        context.send(shard, m.StateCopy(context.origin), (encode_copy(context.state),))
