"""Somebody asks that a process of a shard ends: it is told so, and asks to leave itself (docs/operations.md).

A part of the `SchedulerMachine`. Nothing of it is persisted: who asks repeats it until the process has left.
"""

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission
from ecrec.protocol.context import Context
from ecrec.protocol.messages import DOWN, SHARD, Address


class Drains:
    """The part of a `SchedulerMachine` that passes on who is to end."""

    def __init__(self, context: Context, admission: Admission) -> None:
        self.context = context
        self.admission = admission
        self._told: dict[str, bool] = {}
        """Processes without a place that are to end, or (True) to stay, and have not been told."""

    def on_drain(self, source: Address, message: m.Drain) -> None:
        """A tool asks that a process ends, or that it stays after all."""
        refusal = self._of_member(message) if message.epoch else self._of_process(message)
        self.context.send(source, m.Refused(message.request, refusal) if refusal else m.Draining(message.request))

    def _of_member(self, message: m.Drain) -> str:
        """Tell a member; else why not."""
        context = self.context
        found = context.place_of(Address(SHARD, message.shard, message.epoch))
        if found is None:
            return f"there is no shard {message.shard}"
        number, shard, place = found
        if place.epoch != message.epoch or place.state == DOWN:
            return f"shard {message.shard} (epoch {message.epoch}) is not here any more"
        told = m.ToldToLeave(place.process, message.stays, message.off_host)
        context.send(context.address_of(number, shard), told)
        return ""

    def _of_process(self, message: m.Drain) -> str:
        """The same of a process without a place, which can be told something just after it was heard."""
        candidates = self.admission.candidates
        if message.process not in candidates:
            return f"no process {message.process} waits for a place"
        self._told = {process: stays for process, stays in self._told.items() if process in candidates}
        self._told[message.process] = message.stays
        return ""

    def on_register(self, source: Address, process: str) -> None:
        """A process without a place was heard."""
        stays = self._told.pop(process, None)
        if stays is not None:
            self.context.send(source, m.ToldToLeave(process, stays))
