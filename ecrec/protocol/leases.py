"""Who trains on what: splits of data sets leased to workers, and handed on when a worker dies (docs/protocol.md).

A part of the `SchedulerMachine`. How far a worker is stands in the shards' watermarks, raised with each of its pushes;
the scheduler asks nobody, it reads the heartbeats. A life of a worker that is over is *fenced* by a view. When every
shard has confirmed that view and all that it has of that life is durable, nothing of it can be added or undone any
more: only then does what is left of its splits go to others.
"""

from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.events import Note, Send
from ecrec.protocol.messages import DOWN, WORKER, Address

if TYPE_CHECKING:
    from ecrec.protocol.scheduler import SchedulerMachine

DATASETS_MAX = 1024
NAME_MAX = 256
EXAMPLES_MAX = 1 << 48
"""Of all passes of a data set."""
SPLIT_EXAMPLES_MAX = (1 << m.CURSOR_BITS) - 1
LEASES_MAX = (1 << (63 - m.CURSOR_BITS)) - 1
"""Leases in a cluster's life: their numbers are the upper bits of a cursor."""
LEASES_AHEAD_MAX = 2
"""Leases of a worker that it has not pushed to the end: the one that it trains on, and the next."""


class Lease(msgspec.Struct):
    """Examples first <= i < last of a data set, in the hands of one life of a worker."""

    number: int
    dataset: int
    first: int
    last: int
    worker: int
    epoch: int
    request: int
    handed_on: bool
    done: int = 0
    """Examples that the worker has said are done and durable. Shards know more."""


class Fence(msgspec.Struct):
    """A life of a worker that is over and whose splits wait to be handed on."""

    worker: int
    epoch: int
    views: list[int]
    """Number of the view that says so, by group; 0 for a group that has not started."""


class DatasetState(msgspec.Struct):
    """A data set, and what has become of its examples: next is the first that was never leased."""

    dataset: m.Dataset
    next: int = 0
    returned: list[tuple[int, int]] = []
    """first, last of what is left of dead workers' splits."""
    trained: int = 0
    repeated: int = 0
    splits: int = 0
    handed_on: int = 0
    deaths: int = 0


class LeaseState(msgspec.Struct):
    """All of it that must survive a restart of the scheduler."""

    datasets: list[DatasetState] = []
    leases: list[Lease] = []
    """That are out, in order of their numbers."""
    fences: list[Fence] = []
    fenced: dict[int, int] = {}
    """Worker -> newest epoch of it that was fenced."""
    asked: dict[int, tuple[int, int]] = {}
    """Worker -> its epoch and the last request that was granted: one that comes late must not be granted twice."""
    number: int = 0
    """Of the newest lease."""

    def check(self, groups: int) -> None:
        """Raise ConfigurationError for a state that contradicts itself."""
        known = range(len(self.datasets))
        fine = all(lease.dataset in known and 0 <= lease.first < lease.last for lease in self.leases)
        if not fine or any(len(fence.views) != groups for fence in self.fences):
            raise ConfigurationError(
                f"scheduler state: {len(self.leases)} leases and {len(self.fences)} fences do not fit "
                f"{len(known)} data sets and {groups} group(s)"
            )


class Leases:
    """The part of a `SchedulerMachine` that keeps the leases."""

    def __init__(self, machine: "SchedulerMachine") -> None:
        self.machine = machine
        self._held: defaultdict[tuple[int, int], list[Lease]] = defaultdict(list)
        """The leases of the state by (worker, epoch): each heartbeat looks them up."""
        for lease in self.state.leases:
            self._held[lease.worker, lease.epoch].append(lease)
        self._heard_ms: dict[int, float] = {}
        """When a worker with leases was last heard of."""

    @property
    def state(self) -> LeaseState:
        return self.machine.state.leases

    def held(self, worker: int, epoch: int) -> list[Lease]:
        """Leases of a life of a worker, in order."""
        return list(self._held.get((worker, epoch), ()))

    def _remove(self, lease: Lease) -> None:
        self.state.leases.remove(lease)
        some = self._held[lease.worker, lease.epoch]
        some.remove(lease)
        if not some:
            del self._held[lease.worker, lease.epoch]

    # ------------------------------------------------------------------ workers ask
    def on_lease_split(self, source: Address, message: m.LeaseSplit) -> None:
        state = self.state
        epoch, _ = self.machine.state.workers.get(source.id, (0, ""))
        if source.role != WORKER or source.epoch != epoch or not epoch or self.is_fenced(source.id, epoch):
            self._send(source, m.Fenced(f"{source} is not, or no longer, a worker that may lease splits"))
            return
        if not self.heard(source, epoch, message.cursor):
            return
        asked_epoch, asked = state.asked.get(source.id, (0, 0))
        if asked_epoch == epoch and message.request <= asked:
            for lease in self.held(source.id, epoch):
                if lease.request == message.request:
                    self._send(source, m.Leased(lease.request, lease.number, lease.first, lease.last))
            return
        try:
            index = self._index(message.dataset)
            # Of those that are pushed to the end, each has at least one push that is not durable.
            held, held_max = self.held(source.id, epoch), self.machine.config.pushes_in_flight_max + LEASES_AHEAD_MAX
            if len(held) >= held_max:
                raise ConfigurationError(f"worker {source.id} holds {held_max} splits: train on them first")
        except ConfigurationError as error:
            self._send(source, m.Refused(message.request, str(error)))
            return
        dataset = state.datasets[index]
        waits = any(fence.worker == source.id for fence in state.fences)  # its cursor is still the old life's
        split = None if waits else self._take(dataset)
        if split is None:
            self._send(source, m.NoSplit(message.request, self._finished(index)))
            return
        first, last, handed_on = split
        state.number += 1
        dataset.splits += 1
        dataset.handed_on += handed_on
        lease = Lease(state.number, index, first, last, source.id, epoch, message.request, handed_on)
        state.leases.append(lease)
        self._held[source.id, epoch].append(lease)
        state.asked[source.id] = epoch, message.request
        self._heard_ms[source.id] = self.machine.now_ms
        self.machine.changed()
        self._send(source, m.Leased(message.request, lease.number, first, last))

    def _index(self, dataset: m.Dataset) -> int:
        """Number of a data set, which is new or known and equal. ConfigurationError for one that cannot be."""
        known = self.state.datasets
        for index, other in enumerate(known):
            if other.dataset.name == dataset.name:
                if other.dataset != dataset:
                    raise ConfigurationError(f"data set {dataset.name!r} exists as {other.dataset}, not as {dataset}")
                return index
        if len(known) >= DATASETS_MAX:
            raise ConfigurationError(f"data set {dataset.name!r}: there are {DATASETS_MAX} data sets already")
        if not 1 <= len(dataset.name) <= NAME_MAX:
            raise ConfigurationError(f"data set name {dataset.name[:300]!r}: expected 1 to {NAME_MAX} characters")
        if not (1 <= dataset.examples <= EXAMPLES_MAX and 0 <= dataset.end <= EXAMPLES_MAX):
            raise ConfigurationError(
                f"data set {dataset.name!r}: {dataset.examples} examples, {dataset.end} over all passes; expected 1 "
                f"and 0 to {EXAMPLES_MAX}"
            )
        if not 1 <= dataset.split_examples <= SPLIT_EXAMPLES_MAX:
            raise ConfigurationError(
                f"data set {dataset.name!r}: {dataset.split_examples} examples a split; expected 1 to "
                f"{SPLIT_EXAMPLES_MAX}"
            )
        whole, rest = divmod(dataset.end, dataset.examples)
        splits = whole * -(-dataset.examples // dataset.split_examples) + -(-rest // dataset.split_examples)
        if self.state.number + splits > LEASES_MAX // 2:  # the other half is for those that are handed on
            raise ConfigurationError(
                f"data set {dataset.name!r}: {splits} splits are too many: make them larger than "
                f"{dataset.split_examples} examples"
            )
        known.append(DatasetState(dataset))
        self.machine.changed()
        return len(known) - 1

    def _take(self, state: DatasetState) -> tuple[int, int, bool] | None:
        """The next split (first, last) of a data set, and whether a worker had it before."""
        if state.returned:
            state.returned.sort()
            return *state.returned.pop(0), True
        dataset, first = state.dataset, state.next
        if first >= dataset.end or self.state.number >= LEASES_MAX:
            return None
        end_of_pass = (first // dataset.examples + 1) * dataset.examples
        state.next = min(first + dataset.split_examples, end_of_pass, dataset.end)
        return first, state.next, False

    def _finished(self, index: int) -> bool:
        state = self.state.datasets[index]
        out = any(lease.dataset == index for lease in self.state.leases)
        return state.next >= state.dataset.end and not state.returned and not out

    # ------------------------------------------------------------------ workers report
    def heard(self, source: Address, epoch: int, cursor: int) -> bool:
        """A worker says how far it is: its leases are renewed, those behind its cursor are done.

        False for a cursor that cannot be; the worker is fenced then.
        """
        self._heard_ms[source.id] = self.machine.now_ms
        number, done = cursor >> m.CURSOR_BITS, cursor % (1 << m.CURSOR_BITS)
        held = self.held(source.id, epoch)
        sizes = {lease.number: lease.last - lease.first for lease in held}
        if cursor < 0 or (held and number >= held[0].number and done > sizes.get(number, -1)):
            reason = (
                f"its cursor says that {done} examples of lease {number} are done; it holds (lease: examples) {sizes}"
            )
            self._send(source, m.Fenced(reason))
            self.fence(source.id, epoch, reason)
            return False
        for lease in held:
            size = sizes[lease.number]
            if lease.number > number:
                break
            # A heartbeat that was held up may know less than one before it.
            lease.done = size if lease.number < number else max(done, lease.done)
            if lease.done == size:
                self._remove(lease)
                self.state.datasets[lease.dataset].trained += size
                self.machine.changed()
        return True

    # ------------------------------------------------------------------ workers die
    def is_fenced(self, worker: int, epoch: int) -> bool:
        return epoch <= self.state.fenced.get(worker, 0)

    def fenced(self) -> dict[int, int]:
        """Worker -> newest epoch of it that is over, fenced or replaced; for shards that start."""
        over = {worker: epoch - 1 for worker, (epoch, _) in self.machine.state.workers.items() if epoch > 1}
        return {**over, **{w: max(epoch, over.get(w, 0)) for w, epoch in self.state.fenced.items()}}

    def fence(self, worker: int, epoch: int, reason: str) -> None:
        """A life of a worker is over. Does nothing where it has no lease."""
        if not self.held(worker, epoch) or self.is_fenced(worker, epoch):
            return
        machine = self.machine
        self.state.fenced[worker] = epoch
        views = [machine.announce_fence(group, worker, epoch) for group in machine.state.groups]
        self.state.fences.append(Fence(worker, epoch, views))
        machine.effects.append(Note("warning", f"worker {worker} (epoch {epoch}) is fenced: {reason}"))
        machine.changed()

    def on_tick(self, pause_ms: float) -> None:
        """Fence the workers with leases that are silent; ``pause_ms``: in which the scheduler itself stood still."""
        timeout_ms = self.machine.config.lease_timeout_ms
        for worker, epoch in sorted(self._held):
            heard_ms = self._heard_ms.setdefault(worker, self.machine.now_ms) + pause_ms
            self._heard_ms[worker] = heard_ms
            silent_ms = self.machine.now_ms - heard_ms
            if silent_ms > timeout_ms:
                self.fence(worker, epoch, f"silent for {silent_ms:.0f} ms, {timeout_ms} are allowed")
        for worker in self._heard_ms.keys() - {worker for worker, _ in self._held}:
            del self._heard_ms[worker]

    def advance(self) -> None:
        """Hand on the splits of fenced workers of which everything is known."""
        for fence in list(self.state.fences):
            cursors = self._cursors(fence)
            if cursors is not None:
                self.state.fences.remove(fence)
                self._hand_on(fence, min(cursors), max(cursors))
                self.machine.changed()

    def _cursors(self, fence: Fence) -> list[int] | None:
        """The worker's cursor on every shard, once all are final."""
        key = m.cursor_key(fence.worker)
        cursors = []
        for number, group in enumerate(self.machine.state.groups):
            for shard, place in enumerate(group.places):
                contact = self.machine.contacts.get((number, shard))
                status = contact.status if contact is not None else None
                if place.state == DOWN or status is None or status.view < fence.views[number]:
                    return None
                cursor = status.marks.get(key, 0)
                if status.durable.get(key, 0) != cursor:
                    return None  # it can still be undone
                cursors.append(cursor)
        return cursors

    def _hand_on(self, fence: Fence, everywhere: int, somewhere: int) -> None:
        """Up to ``everywhere`` all shards have the pushes; from there to ``somewhere`` only some of them have."""
        held = self.held(fence.worker, fence.epoch)
        for lease in held:
            state = self.state.datasets[lease.dataset]
            trained = max(_done(lease, everywhere), lease.done)
            state.trained += trained
            state.repeated += max(0, _done(lease, somewhere) - trained)
            if lease.first + trained < lease.last:
                state.returned.append((lease.first + trained, lease.last))
            self._remove(lease)
        for index in {lease.dataset for lease in held}:
            self.state.datasets[index].deaths += 1

    # ------------------------------------------------------------------ for people
    def figures(self) -> list[m.DatasetFigures]:
        figures = []
        for index, d in enumerate(self.state.datasets):
            out = [lease for lease in self.state.leases if lease.dataset == index]
            trained = d.trained + sum(lease.done for lease in out)
            figures.append(m.DatasetFigures(d.dataset, trained, d.repeated, d.splits, d.handed_on, d.deaths, len(out)))
        return figures

    def _send(self, to: Address, message: m.Message) -> None:
        self.machine.effects.append(Send(to, message))


def _done(lease: Lease, cursor: int) -> int:
    """Examples of a lease that lie at or below a cursor."""
    number, done = cursor >> m.CURSOR_BITS, cursor % (1 << m.CURSOR_BITS)
    size = lease.last - lease.first
    if number != lease.number:
        return size if number > lease.number else 0
    return min(done, size)
