"""Who trains on what: splits of data sets leased to workers, and handed on when a worker dies (docs/protocol.md).

A part of the `SchedulerMachine`. How far a worker is stands in the shards' watermarks, raised with each of its pushes;
the scheduler asks nobody, it reads the heartbeats. A life of a worker that is over is *fenced* by a view. When every
shard has confirmed that view and all that it has of that life is durable, nothing of it can be added or undone any
more: only then does what is left of its splits go to others.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.context import Context
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN, Address
from ecrec.protocol.saved import SavedLease
from ecrec.protocol.state import DatasetState, Fence, Lease, LeaseState

DATASETS_MAX = 1024
NAME_MAX = 256
EXAMPLES_MAX = 1 << 48
"""Of all passes of a data set."""
UNTOLD_MAX = 1 << 16
"""Splits of a data set that may have been granted after the state was copied: bounds what a worker can invent."""
TOLD_MAX = 1 << 12
"""Leases that a worker tells to a scheduler whose state was lost."""
LEASES_AHEAD_MAX = 2
"""Leases of a worker that it has not pushed to the end: the one that it trains on, and the next."""


class Leases:
    """The part of a `SchedulerMachine` that keeps the leases."""

    def __init__(self, context: Context, announcer: Announcer) -> None:
        self.context = context
        self.announcer = announcer
        self._held: defaultdict[tuple[int, int], list[Lease]] = defaultdict(list)
        """The leases of the state by (worker, epoch): each heartbeat looks them up."""
        for lease in self.state.leases:
            self._held[lease.worker, lease.epoch].append(lease)
        self._heard_ms: dict[int, float] = {}
        """When a worker with leases was last heard of."""
        self._unheard_ms: dict[int, float] = {}
        """Time for which those who are to tell their leases were silent."""

    @property
    def state(self) -> LeaseState:
        return self.context.state.leases

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
    def on_lease_split(
        self, source: Address, message: m.LeaseSplit, is_met: bool = True, may_grant: bool = True
    ) -> None:
        """Grant a split, if there is one. Where it is not ``may_grant``, the worker asks again.

        ``is_met``: a heartbeat of it came since the scheduler started.
        """
        state = self.state
        epoch = source.epoch
        if not self.context.is_of_worker(source, "lease splits"):
            return
        if source.id in state.unheard or not is_met:
            # trap: its cursor may be in a split that it has yet to tell, or that only a newer state knows
            self.context.send(source, m.NoSplit(message.request, False))
            return
        if not self.heard(source, epoch, message.cursor):
            return
        if message.request <= self._asked(source.id, epoch):
            for lease in self.held(source.id, epoch):
                if lease.request == message.request:
                    self._grant(source, lease)
            return
        try:
            index = self._index(message.dataset)
            # Of those that are pushed to the end, each has at least one push that is not durable.
            held, held_max = self.held(source.id, epoch), self.context.config.pushes_in_flight_max + LEASES_AHEAD_MAX
            if len(held) >= held_max:
                raise ConfigurationError(f"worker {source.id} holds {held_max} splits: train on them first")
            if state.number >= m.LEASES_MAX:
                raise ConfigurationError(
                    f"{m.LEASES_MAX} splits were leased, more cannot be numbered: a new cluster can"
                )
        except ConfigurationError as error:
            self.context.send(source, m.Refused(message.request, str(error)))
            return
        dataset = state.datasets[index]
        waits = any(fence.worker == source.id for fence in state.fences)  # its cursor is still the old life's
        split = None if waits or state.unheard or not may_grant else self._take(dataset)
        if split is None:
            self.context.send(source, m.NoSplit(message.request, self._finished(index)))
            return
        first, last, handed_on = split
        state.number += 1
        dataset.splits += 1
        dataset.handed_on += handed_on
        lease = Lease(state.number, index, first, last, source.id, epoch, message.request, handed_on)
        state.leases.append(lease)
        self._held[source.id, epoch].append(lease)
        state.asked[source.id] = epoch, message.request
        self._heard_ms[source.id] = self.context.now_ms
        self.context.changed()
        self._grant(source, lease)

    def _asked(self, worker: int, epoch: int) -> int:
        """The newest request of this life that was granted."""
        asked_epoch, asked = self.state.asked.get(worker, (0, 0))
        return asked if asked_epoch == epoch else 0

    def _grant(self, source: Address, lease: Lease) -> None:
        self.context.send(
            source,
            m.Leased(
                lease.request, lease.number, lease.first, lease.last, self.context.next_origin,
                self.announcer.copied_everywhere(),
            ),
        )  # fmt: skip

    def _index(self, dataset: m.Dataset) -> int:
        """Number of a data set, which is new or known and equal. ConfigurationError for one that cannot be."""
        known = self.state.datasets
        for index, other in enumerate(known):
            if other.dataset.name == dataset.name:
                if other.restored and dataset.examples == other.dataset.examples and dataset.end >= other.next:
                    self._check(dataset)
                    other.dataset, other.restored = dataset, False
                    self.context.changed()
                if other.dataset != dataset:
                    raise ConfigurationError(f"data set {dataset.name!r} exists as {other.dataset}, not as {dataset}")
                return index
        if len(known) >= DATASETS_MAX:
            raise ConfigurationError(f"data set {dataset.name!r}: there are {DATASETS_MAX} data sets already")
        self._check(dataset)
        known.append(DatasetState(dataset))
        self.context.changed()
        return len(known) - 1

    def _check(self, dataset: m.Dataset) -> None:
        """Raise ConfigurationError for an invalid data set."""
        if not 1 <= len(dataset.name) <= NAME_MAX:
            raise ConfigurationError(f"data set name {dataset.name[:300]!r}: expected 1 to {NAME_MAX} characters")
        if not (1 <= dataset.examples <= EXAMPLES_MAX and 0 <= dataset.end <= EXAMPLES_MAX):
            raise ConfigurationError(
                f"data set {dataset.name!r}: {dataset.examples} examples, {dataset.end} over all passes; expected 1 "
                f"and 0 to {EXAMPLES_MAX}"
            )
        if not 1 <= dataset.split_examples <= m.SPLIT_EXAMPLES_MAX:
            raise ConfigurationError(
                f"data set {dataset.name!r}: {dataset.split_examples} examples a split; expected 1 to "
                f"{m.SPLIT_EXAMPLES_MAX}"
            )
        whole, rest = divmod(dataset.end, dataset.examples)
        splits = whole * -(-dataset.examples // dataset.split_examples) + -(-rest // dataset.split_examples)
        if self.state.number + splits > m.LEASES_MAX // 2:  # the other half is for those that are handed on
            raise ConfigurationError(
                f"data set {dataset.name!r}: {splits} splits are too many: make them larger than "
                f"{dataset.split_examples} examples"
            )

    def _take(self, state: DatasetState) -> tuple[int, int, bool] | None:
        """The next split (first, last) of a data set, and whether a worker had it before."""
        if state.returned:
            state.returned.sort()
            return *state.returned.pop(0), True
        if state.next >= state.dataset.end:
            return None
        return *_cut_off(state), False

    def _finished(self, index: int) -> bool:
        state = self.state.datasets[index]
        out = any(lease.dataset == index for lease in self.state.leases)
        return state.next >= state.dataset.end and not state.returned and not out

    # ------------------------------------------------------------------ workers report
    def heard(self, source: Address, epoch: int, cursor: int) -> bool:
        """A worker says how far it is: its leases are renewed, those behind its cursor are done.

        False for a cursor that cannot be; the worker is fenced then.
        """
        self._heard_ms[source.id] = self.context.now_ms
        number, done = cursor >> m.CURSOR_BITS, cursor % (1 << m.CURSOR_BITS)
        held = self.held(source.id, epoch)
        sizes = {lease.number: lease.last - lease.first for lease in held}
        if cursor < 0 or (held and number >= held[0].number and done > sizes.get(number, -1)):
            reason = (
                f"its cursor says that {done} examples of lease {number} are done; it holds (lease: examples) {sizes}"
            )
            self.context.fence_off(source, reason)
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
                self.context.changed()
        return True

    # ------------------------------------------------------------------ workers die
    def fenced(self) -> dict[int, int]:
        """Worker -> newest epoch of it that is over, fenced or replaced; for shards that start."""
        over = {worker: epoch - 1 for worker, (epoch, _) in self.context.state.workers.items() if epoch > 1}
        return {**over, **{w: max(epoch, over.get(w, 0)) for w, epoch in self.state.fenced.items()}}

    def fence(self, worker: int, epoch: int, reason: str, may_hold: bool = False) -> None:
        """A life of a worker is over. Does nothing where it has no lease, unless it may have one that is not known."""
        if not (self.held(worker, epoch) or may_hold) or self.state.is_fenced(worker, epoch):
            return
        self._is_heard(worker)
        self.state.fenced[worker] = epoch
        self.state.fences.append(Fence(worker, epoch, self.announcer.fence_worker(worker, epoch), may_hold))
        self.context.note("warning", f"worker {worker} (epoch {epoch}) is fenced: {reason}")
        self.context.changed()

    def end(self, worker: int, epoch: int) -> None:
        """A life of a worker is over, and all shards are told: nothing that comes late of it is taken."""
        if self.held(worker, epoch):
            self.fence(worker, epoch, "it is not heard any more")
        else:
            self.state.fenced[worker] = epoch
            self.announcer.fence_worker(worker, epoch)
            self.context.changed()

    def over(self, worker: int, epoch: int) -> None:
        """A life of a worker is over, whether it has a lease or not."""
        self.state.fenced[worker] = max(epoch, self.state.fenced.get(worker, 0))

    def on_tick(self, pause_ms: float) -> None:
        """Fence the workers with leases that are silent; ``pause_ms``: in which the scheduler itself stood still."""
        timeout_ms = self.context.config.lease_timeout_ms
        for worker, epoch in sorted(self._held):
            heard_ms = self._heard_ms.setdefault(worker, self.context.now_ms) + pause_ms
            self._heard_ms[worker] = heard_ms
            silent_ms = self.context.now_ms - heard_ms
            if silent_ms > timeout_ms:
                self.fence(worker, epoch, f"silent for {silent_ms:.0f} ms, {timeout_ms} are allowed")
        for worker in self._heard_ms.keys() - {worker for worker, _ in self._held}:
            del self._heard_ms[worker]
        for worker in list(self.state.unheard):
            since_ms = self._unheard_ms.setdefault(worker, self.context.now_ms) + pause_ms
            self._unheard_ms[worker] = since_ms
            if self.context.now_ms - since_ms > timeout_ms:
                epoch, _ = self.context.state.workers.get(worker, (0, ""))
                self.fence(worker, epoch, "it has not told which splits it holds", may_hold=True)
                self._is_heard(worker)

    def advance(self, members: Members) -> None:
        """Hand on the splits of fenced workers of which everything is known."""
        for fence in list(self.state.fences):
            cursors = self._cursors(fence, members)
            if cursors is not None:
                self.state.fences.remove(fence)
                self._hand_on(fence, min(cursors), max(cursors))
                self.context.changed()

    def _cursors(self, fence: Fence, members: Members) -> list[int] | None:
        """The worker's cursor on every shard, once all are final."""
        key = m.cursor_key(fence.worker)
        cursors = []
        for number, group in enumerate(self.context.state.groups):
            for shard, place in enumerate(group.places):
                contact = members.get(number, shard)
                status = contact.status if contact is not None else None
                # trap: the view that a heartbeat names may be of another history
                if place.state == DOWN or contact is None or status is None or contact.view < fence.views[number]:
                    return None
                cursor = status.watermarks.get(key, 0)
                if status.durable.get(key, 0) != cursor:
                    return None  # it can still be undone
                cursors.append(cursor)
        return cursors

    def _hand_on(self, fence: Fence, everywhere: int, somewhere: int) -> None:
        """Up to ``everywhere`` all shards have the pushes; from there to ``somewhere`` only some of them have."""
        held = self.held(fence.worker, fence.epoch)
        self._count_unknown(fence, held, somewhere)
        for lease in held:
            state = self.state.datasets[lease.dataset]
            trained = max(trained_of(lease, everywhere), lease.done)
            state.trained += trained
            state.repeated += max(0, trained_of(lease, somewhere) - trained)
            if lease.first + trained < lease.last:
                state.returned.append((lease.first + trained, lease.last))
            self._remove(lease)
        for index in {lease.dataset for lease in held}:
            self.state.datasets[index].deaths += 1

    def _count_unknown(self, fence: Fence, held: list[Lease], somewhere: int) -> None:
        """Examples of a split that nobody alive knows were trained on, and will be again."""
        number, done = somewhere >> m.CURSOR_BITS, somewhere % (1 << m.CURSOR_BITS)
        if not (fence.untold and done and number > self.state.known) or number in [lease.number for lease in held]:
            return
        self.context.note(
            "warning", f"lease {number} of worker {fence.worker} is not known: {done} examples are trained on again"
        )
        if len(self.state.datasets) == 1:
            self.state.datasets[0].repeated += done

    # ------------------------------------------------------------------ a state that was made again
    @property
    def unheard(self) -> list[int]:
        return self.state.unheard

    def adopted(self) -> None:
        """The state was made again: of splits that were granted after it was copied only their workers know."""
        self.state.known = self.state.number
        over = self.state.fenced
        workers = self.context.state.workers.items()
        self.state.unheard = sorted(worker for worker, (epoch, _) in workers if epoch > over.get(worker, 0))

    def expect(self, worker: int) -> None:
        """A life of a worker that no copy of the state knew: it may hold splits."""
        if worker not in self.state.unheard:
            self.state.unheard = sorted([*self.state.unheard, worker])
            self.context.changed()

    def _is_heard(self, worker: int) -> None:
        if worker in self.state.unheard:
            self.state.unheard.remove(worker)
            self._unheard_ms.pop(worker, None)
            self.context.changed()

    def adopt(self, source: Address, census: m.WorkerCensus) -> bool:
        """Take a worker's word for the splits that it holds. False if they contradict what is known: it is fenced."""
        state, asked = self.state, self._asked(source.id, source.epoch)
        for dataset in state.datasets:
            dataset.returned.sort()
        for held in census.leases[: TOLD_MAX + 1]:
            if held.request <= asked:
                continue  # the state knows what it was granted then, and what has become of it
            try:
                if len(census.leases) > TOLD_MAX:
                    raise ConfigurationError(f"it tells of {len(census.leases)}, at most {TOLD_MAX} are taken")
                index = self._take_told(held)
            except ConfigurationError as error:
                reason = f"it tells of lease {held.lease} of {held.dataset.name[:300]!r}: {error}"
                self.context.fence_off(source, reason)
                self.fence(source.id, source.epoch, reason, may_hold=True)
                return False
            state.datasets[index].splits += 1
            lease = Lease(held.lease, index, held.first, held.last, source.id, source.epoch, held.request, False)
            state.leases.append(lease)
            state.leases.sort(key=lambda lease: lease.number)
            self._held[source.id, source.epoch].append(lease)
            self._held[source.id, source.epoch].sort(key=lambda lease: lease.number)
        # trap: what it was granted and has not heard of is said again, and not passed over
        state.asked[source.id] = source.epoch, max(asked, census.asked)
        self._is_heard(source.id)
        self.context.changed()
        return self.heard(source, source.epoch, census.cursor)

    def _take_told(self, held: m.HeldLease) -> int:
        """Give the examples of a lease that no copy knew to whom tells of it; the number of the data set.
        ConfigurationError if nobody can have been given them so."""
        if not 0 < held.lease <= m.LEASES_MAX // 2:
            raise ConfigurationError(f"leases are numbered from 1 to {m.LEASES_MAX // 2}")
        self.state.number = max(self.state.number, held.lease)
        index = self._index(held.dataset)
        if not 0 <= held.first < held.last <= held.dataset.end or not self._withdraw(index, held):
            raise ConfigurationError(f"examples {held.first} to {held.last} are another's, or trained on")
        return index

    def _withdraw(self, index: int, held: m.HeldLease) -> bool:
        """Take examples out of those that nobody has; False if they are not among them."""
        state = self.state.datasets[index]
        if (held.first - state.next) // state.dataset.split_examples + len(state.returned) > UNTOLD_MAX:
            return False
        while state.next <= held.first:
            # Granted too, and not told of yet; or to one who is dead. What is told of may be the rest of such a split.
            state.returned.append(_cut_off(state))
        at = bisect_right(state.returned, (held.first, EXAMPLES_MAX)) - 1
        if at < 0 or held.last > state.returned[at][1]:
            return False
        first, last = state.returned[at]
        rest = ((first, held.first), (held.last, last))
        state.returned[at : at + 1] = [part for part in rest if part[0] < part[1]]
        return True

    def raise_number(self, watermarks: dict[int, int], in_doubt: bool) -> None:
        """Numbers of leases that a shard has heard of are not given again, though the state may not know them."""
        if self.state.unheard or in_doubt:
            cursors = [number for key, number in watermarks.items() if key >= m.WORKERS_MAX]
            newest = max(cursors, default=0) >> m.CURSOR_BITS
            if newest > self.state.number:
                self.state.number = newest
                self.context.changed()

    # ------------------------------------------------------------------ checkpoints
    def restore_refusal(self, datasets: Sequence[m.RestoredDataset]) -> str:
        """Why the cluster cannot go on with these data sets; empty if it can."""
        if self._as_restored() == list(datasets):
            return ""  # asked again
        if self.state.datasets:
            known = ", ".join(repr(d.dataset.name) for d in self.state.datasets[:8])
            return f"this cluster has data sets of its own ({known}): restore into one that was just started"
        names = [d.dataset.name for d in datasets]
        if len(set(names)) < len(names):
            return "two of the data sets have one name"
        for d in datasets:
            try:
                self._check(d.dataset)
            except ConfigurationError as error:
                return str(error)
            pieces = sorted(d.returned)
            ends = [last for _, last in pieces]
            apart = all(first >= before for (first, _), before in zip(pieces[1:], ends, strict=False))
            fits = all(first < last <= d.next for first, last in pieces) and d.next <= d.dataset.end
            if not (apart and fits):
                return f"data set {d.dataset.name[:300]!r}: what is left of it does not fit {d.dataset.end} examples"
            left = sum(last - first for first, last in pieces)
            if d.trained + left != d.next:
                return (
                    f"data set {d.dataset.name[:300]!r}: {d.trained} examples trained and {left} to be handed on are "
                    f"not the {d.next} that were leased"
                )
        return ""

    def restore(self, datasets: Sequence[m.RestoredDataset]) -> None:
        """Go on with these data sets."""
        if self._as_restored() == list(datasets):
            return
        self.state.datasets = [
            DatasetState(d.dataset, d.next, list(d.returned), d.trained, d.repeated, restored=True) for d in datasets
        ]
        self.context.changed()

    def _as_restored(self) -> list[m.RestoredDataset]:
        return [
            m.RestoredDataset(d.dataset, d.next, list(d.returned), d.trained, d.repeated) for d in self.state.datasets
        ]

    # ------------------------------------------------------------------ for people
    def figures(self) -> list[m.DatasetFigures]:
        figures = []
        for index, d in enumerate(self.state.datasets):
            out = [lease for lease in self.state.leases if lease.dataset == index]
            trained = d.trained + sum(lease.done for lease in out)
            figures.append(m.DatasetFigures(d.dataset, trained, d.repeated, d.splits, d.handed_on, d.deaths, len(out)))
        return figures


def _cut_off(state: DatasetState) -> tuple[int, int]:
    """The next split (first, last) of what was never leased."""
    dataset, first = state.dataset, state.next
    end_of_pass = (first // dataset.examples + 1) * dataset.examples
    state.next = min(first + dataset.split_examples, end_of_pass, dataset.end)
    return first, state.next


def trained_of(lease: Lease | SavedLease, cursor: int) -> int:
    """Examples of a lease that lie at or below a cursor."""
    number, done = cursor >> m.CURSOR_BITS, cursor % (1 << m.CURSOR_BITS)
    size = lease.last - lease.first
    if number != lease.number:
        return size if number > lease.number else 0
    return min(done, size)
