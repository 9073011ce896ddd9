"""The checkers. They stand outside of the machines, keep their own record, and believe nobody.

The record of a shard is its *lineage*: every push that any incarnation applied, with its window, less what a SETTLE
cut off. A replay of it on a store of its own gives the rows that the shard must have.

This file is long because all checks are about that one record, and read what the others have written into it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ecrec import _native
from ecrec.protocol import messages as m
from ecrec.protocol.messages import Address
from ecrec.protocol.placement import Placement, TableSpec
from simulation.plan import Plan
from simulation.rows import Applied, Layout, RowsOf, add_table, apply_entry, gather, sections_of
from simulation.story import ViolationError, show_keys


class Entry(NamedTuple):
    """Pushes that were applied as one: a single one, or those of a barrier, in order of the workers."""

    epoch: int
    window: int
    pushes: list[Applied]


class Record:
    """The lineage of every shard, what was acknowledged, and what the scheduler announced."""

    def __init__(self, plan: Plan) -> None:
        self.refused: Counter[str] = Counter()
        """What was refused, for the coverage."""
        self.plan = plan
        self.layout = Layout(plan.n, plan.groups)
        self.tables: list[TableSpec] = []
        """By index: all groups get them in the same order."""
        self.dims: list[int] = []
        self._tables_seen = [0] * plan.groups
        self.lineage: dict[int, list[Entry]] = defaultdict(list)
        self.watermarks: dict[int, dict[int, int]] = defaultdict(dict)
        self.acked: dict[tuple[int, int], int] = defaultdict(int)
        self.epochs: dict[int, int] = {}
        """Shard -> the epoch whose pushes count."""
        self.cuts: dict[tuple[int, int], int] = {}
        """Settled incarnation -> cut."""
        self.whole: dict[int, bool] = {}
        self.down: dict[tuple[int, int], int] = {}
        """Incarnation that was declared dead -> number of that view."""
        self._lives: dict[tuple[int, int], tuple[list[Entry], list[Entry]]] = {}
        """Incarnation -> the lineage that it began with, and all that it applied, beyond its cut too."""
        self.undone = 0
        """Entries that a cut took back."""
        self.lost = ""
        self.adopted = False
        """The scheduler's state was made again."""
        self.damaged = False
        """Classes were re-initialised, though perhaps without a row in them."""
        self.set_back: list[tuple[int, int, int]] = []
        """(shard, epoch, key) of every row that was set back to its initial record; the epoch is that of who did it, or
        0 where it was lost with a dead incarnation."""
        self._classes_lost: dict[tuple[int, int], set[int]] = {}
        """(group, view) -> classes that the view re-initialises."""
        self._set_back: dict[int, set[int]] = defaultdict(set)
        """Dead shard -> classes set back since it died, or that it never had rows of."""
        self._born: dict[tuple[int, int], int] = {}
        """Incarnation -> number of the view that made it."""
        self._views: dict[tuple[int, int], m.View] = {}
        self._starts: dict[tuple[int, int], m.FullView] = {}
        self._shadows: dict[int, tuple[Any, int]] = {}
        self._pushed: dict[tuple[int, int, int, int], list[bytes]] = {}
        self.examples: dict[tuple[int, int, int, int], range] = {}
        """(worker, epoch, shard, push) -> what was trained on for it, where it was leased."""
        self.first_values: dict[tuple[int, int, int, int], int] = {}
        """(worker, epoch, shard, push) -> table of which it wrote the first values."""
        self.fenced: set[tuple[int, int]] = set()
        """Lives of workers that are announced to be over."""
        self.pushes_applied = 0
        self.rows_checked = 0
        self.on_snapshot: Callable[[Address, int, dict[int, int]], None] = lambda *_: None
        """Called when a shard takes a snapshot for a checkpoint."""
        self.on_cut: Callable[[m.CheckpointCut], None] = lambda _: None
        """Called when the cut of a checkpoint is announced, for each group."""

    # ------------------------------------------------------------------ what the machines tell
    def applied(self, shard: Address, window: int, pushes: Sequence[Any]) -> None:
        """The observer of every `ShardMachine`."""
        some = [Applied(p.worker, p.number, p.push, [bytes(frame) for frame in p.frames]) for p in pushes]
        who, epoch = shard.id, shard.epoch
        for p in some:
            self._check_content(who, p)
        self._lives[who, epoch][1].append(Entry(epoch, window, some))
        cut = self.cuts.get((who, epoch))
        if cut is not None:
            if window <= cut:
                raise ViolationError(f"settled {shard} applies to window {window}, at or below its cut {cut}", [who])
            return
        if self.epochs.get(who) != epoch:
            raise ViolationError(f"{shard} applies a push, but epoch {self.epochs.get(who)} was announced", [who])
        last = self.lineage[who][-1].window if self.lineage[who] else 0
        if window < last:
            raise ViolationError(f"{shard}: window {window} was opened after {last}", [who])
        watermarks = self.watermarks[who]
        for p in some:
            life = self._life_before(who, p.worker)
            if p.push.worker_epoch < life:
                raise ViolationError(
                    f"{shard} applies push {p.number} of worker {p.worker}'s life {p.push.worker_epoch}, and has "
                    f"applied one of life {life}", [who],
                )  # fmt: skip
            if p.number != watermarks.get(p.worker, 0) + 1:
                raise ViolationError(
                    f"exactly once, in order: {shard} applies push {p.number} of worker {p.worker} after push "
                    f"{watermarks.get(p.worker, 0)}", [who],
                )  # fmt: skip
            watermarks[p.worker] = p.number
            if p.push.cursor:
                watermarks[m.cursor_key(p.worker)] = p.push.cursor
        if len({(p.push.run, p.push.sequence, p.push.assign) for p in some}) > 1:
            raise ViolationError(f"{shard} applies pushes of different runs, barriers or kinds as one", [who])
        if some[0].push.barrier > 1 and [p.worker for p in some] != list(range(some[0].push.barrier)):
            raise ViolationError(f"{shard} applies a barrier of workers {[p.worker for p in some]}", [who])
        if len({p.push.barrier for p in some}) > 1 or (some[0].push.barrier <= 1 and len(some) > 1):
            raise ViolationError(f"{shard} applies pushes of different barriers as one", [who])
        self.lineage[who].append(Entry(epoch, window, some))
        self.pushes_applied += len(some)

    def snapshot(self, shard: Address, checkpoint: int, watermarks: dict[int, int]) -> None:
        """The observer of every `ShardMachine`."""
        self.on_snapshot(shard, checkpoint, watermarks)

    def _life_before(self, shard: int, worker: int) -> int:
        """The life of a worker whose push is the last one of it in a lineage; 0 without one."""
        for entry in reversed(self.lineage[shard]):
            for p in entry.pushes:
                if p.worker == worker:
                    return int(p.push.worker_epoch)
        return 0

    def _life_of(self, shard: int, worker: int, number: int) -> int:
        """The life of a worker that made the push of this number in a lineage; 0 without one."""
        for entry in reversed(self.lineage[shard]):
            for p in entry.pushes:
                if p.worker == worker and p.number <= number:
                    return int(p.push.worker_epoch) if p.number == number else 0
        return 0

    def made(
        self, worker: int, epoch: int, shard: int, number: int, frames: Sequence[Any], examples: range = range(0)
    ) -> None:
        """A worker made a push for a shard, of these examples if it leases them."""
        if examples:
            self.examples[worker, epoch, shard, number] = examples
        self._pushed[worker, epoch, shard, number] = [bytes(np.ascontiguousarray(f)) for f in frames]

    def _check_content(self, shard: int, p: Applied) -> None:
        if self._pushed.get((p.worker, p.push.worker_epoch, shard, p.number)) != p.frames:
            raise ViolationError(f"shard {shard}: push {p.number} of worker {p.worker} was made otherwise", [shard])

    def acknowledged(self, shard: Address, to: Address, durable: int) -> None:
        """A shard tells a life of a worker that its pushes up to ``durable`` are safe."""
        who, worker = shard.id, to.id
        if durable > self.watermarks[who].get(worker, 0):
            raise ViolationError(
                f"{shard} acknowledges push {durable} of worker {worker} as durable, but its lineage ends with "
                f"{self.watermarks[who].get(worker, 0)}", [who],
            )  # fmt: skip
        life = self._life_of(who, worker, durable)
        if life > to.epoch:
            raise ViolationError(
                f"{shard} tells life {to.epoch} of worker {worker} that push {durable}, of life {life}, is durable",
                [who],
            )
        self.acked[who, worker] = max(self.acked[who, worker], durable)

    # ------------------------------------------------------------------ what the scheduler announces
    def announced(self, group: int, view: m.View) -> list[m.View]:
        """A view was sent; returns it if it is new. One number means one view, whoever is told and however often."""
        if isinstance(view, m.FullView):
            if view.lost and not self.lost:
                self.lost = view.lost
                return [m.DataLost(view.number, view.lost)]
            if view.shard < 0:
                return []
            shard = group * self.plan.n + view.shard
            known = self._starts.get((shard, view.epoch))
            if known is None:
                self._starts[shard, view.epoch] = view
                self._born.setdefault((shard, view.epoch), view.number)
                self._start(shard, view)
                return [view]
            if (known.window, known.watermarks, known.recovering) != (view.window, view.watermarks, view.recovering):
                raise ViolationError(f"shard {shard} epoch {view.epoch} is started as {known} and as {view}", [shard])
            return []
        earlier = self._views.get((group, view.number))
        if earlier is not None:
            if isinstance(view, m.CheckpointCut) and isinstance(earlier, m.CheckpointCut) and not view.epochs:
                return []  # what it said of workers is left out once the checkpoint is over
            if earlier != view:
                raise ViolationError(f"view {view.number} of group {group} is {earlier} to one and {view} to another")
            return []
        self._views[group, view.number] = view
        base = group * self.plan.n
        if isinstance(view, m.Settle):
            self._settle(base + view.shard, view)
        elif isinstance(view, m.ShardUp):
            self._born.setdefault((base + view.shard, view.epoch), view.number)
            self._up(base + view.shard, view.epoch, view.window, view.watermarks)
        elif isinstance(view, m.Succeeded):
            self._born.setdefault((base + view.shard, view.epoch), view.number)
            self._succeeded(base + view.shard, view.epoch, view.window, view.watermarks)
        elif isinstance(view, m.ShardDown):
            self.whole[base + view.shard] = False
            self.down[base + view.shard, view.epoch] = view.number
            self._set_back.pop(base + view.shard, None)
        elif isinstance(view, m.ShardWhole):
            if self.epochs[base + view.shard] == view.epoch and (base + view.shard, view.epoch) not in self.down:
                self.whole[base + view.shard] = True
        elif isinstance(view, m.TableAdded):
            self._table(group, view.table)
        elif isinstance(view, m.WorkerFenced):
            self.fenced.add((view.worker, view.epoch))
        elif isinstance(view, m.CheckpointCut):
            self.on_cut(view)
        elif isinstance(view, m.Adopted):
            self.adopted = True
        elif isinstance(view, m.DataLost):
            self.lost = view.reason
        elif isinstance(view, m.Reinitialise):
            self._reinitialise(group, view)
        return [view]

    # ------------------------------------------------------------------ more deaths than the code tolerates
    def _reinitialise(self, group: int, view: m.Reinitialise) -> None:
        """All rows of these classes that dead shards held are initial ones from here on."""
        self.damaged = True
        lost = self._classes_lost[group, view.number] = set(view.classes)
        for shard in range(group * self.plan.n, (group + 1) * self.plan.n):
            # Its replacement may have heard of its place before anybody heard of this view.
            epoch = max((e for (who, e), born in self._born.items() if who == shard and born < view.number), default=0)
            if (shard, epoch) in self.down:
                classes = lost - self._set_back[shard]
                self._set_back[shard] |= lost
                self._set_to_initial(shard, 0, {key for key in self._keys_on(shard) if self._class_of(key) in classes})
            elif any(shard in self._parity_of(group, class_id) for class_id in lost):
                self.whole[shard] = False

    def reinitialised(self, shard: Address, view: int, keys: Any) -> None:
        """A shard that recovers gives up rows that it still lacked."""
        lost = self._classes_lost.get((shard.id // self.plan.n, view), set())
        wrong = [key for key in keys.tolist() if self._class_of(key) not in lost or key not in self._keys_on(shard.id)]
        if wrong:
            raise ViolationError(f"{shard} re-initialises rows that view {view} does not name", [shard.id], wrong)
        self._set_to_initial(shard.id, shard.epoch, set(keys.tolist()))

    def _set_to_initial(self, shard: int, epoch: int, keys: set[int]) -> None:
        """What was done to these rows so far is undone: the lineage goes on without it."""
        self.set_back += [(shard, epoch, key) for key in sorted(keys)]
        if keys:
            self.lineage[shard] = self._all_without(self.lineage[shard], keys)
            self._shadows.pop(shard, None)
        if keys and epoch:  # rows that it never had: no answer of that life can have shown them
            base, applied = self._lives[shard, epoch]
            self._lives[shard, epoch] = self._all_without(base, keys), self._all_without(applied, keys)

    def _all_without(self, entries: list[Entry], keys: set[int]) -> list[Entry]:
        return [entry._replace(pushes=[self._without(p, keys) for p in entry.pushes]) for entry in entries]

    def _without(self, p: Applied, keys: set[int]) -> Applied:
        sections, frames = [], []
        for part in sections_of(p.push.sections, p.frames, True):
            counts, rows, values = [], [], []
            at = value_at = 0
            for table, count in zip(part.tables.tolist(), part.counts.tolist(), strict=True):
                dim = self.dims[table]
                some = part.rows[at : at + count]
                stays = np.array([self._key(table, row) not in keys for row in some.tolist()], np.bool_)
                counts.append(int(stays.sum()))
                rows.append(some[stays])
                values.append(part.values[value_at : value_at + count * dim].reshape(count, dim)[stays].reshape(-1))
                at, value_at = at + count, value_at + count * dim
            sections.append(m.Section(part.tables.tolist(), counts))
            frames += [
                np.concatenate([*rows, np.zeros(0, np.int64)]).tobytes(),
                np.concatenate([*values, np.zeros(0, np.float32)]).tobytes(),
            ]
        return p._replace(push=msgspec.structs.replace(p.push, sections=sections), frames=frames)

    def _key(self, table: int, row: int) -> int:
        return table << 48 | row // self.tables[table].code.k // self.plan.groups

    def _keys_on(self, shard: int) -> set[int]:
        rows = self.layout.rows_on(shard, self.tables)
        tables = np.repeat(rows.tables, rows.counts).tolist()
        return {self._key(table, row) for table, row in zip(tables, rows.rows.tolist(), strict=True)}

    def _class_of(self, key: int) -> int:
        codes = list(dict.fromkeys(table.code for table in self.tables))
        code = codes.index(self.tables[key >> 48].code)
        return code * self.plan.n + (key & (1 << 48) - 1) % self.plan.n

    def _parity_of(self, group: int, class_id: int) -> list[int]:
        codes = list(dict.fromkeys(table.code for table in self.tables))
        code = codes[class_id // self.plan.n]
        slots = range(code.k, code.k + code.r)
        return [group * self.plan.n + (class_id + slot) % self.plan.n for slot in slots]

    def check_counted(self, rows: int) -> None:
        """The scheduler has counted all rows that were set back, those perhaps not that their shard took with it before
        it could tell."""
        heard = sum(not epoch or self.epochs[shard] == epoch for shard, epoch, _ in self.set_back)
        if not heard <= rows <= len(self.set_back):
            raise ViolationError(f"{rows} rows are said to be re-initialised, and {len(self.set_back)} were")

    def _start(self, shard: int, view: m.FullView) -> None:
        if view.recovering:
            self._up(shard, view.epoch, view.window, view.watermarks)
        elif view.succeeds:
            self._succeeded(shard, view.epoch, view.window, view.watermarks)
        elif shard in self.epochs:
            raise ViolationError(f"shard {shard} starts as new, after epoch {self.epochs[shard]}", [shard])
        else:
            self.epochs[shard] = view.epoch
            self.whole[shard] = True
            self._lives[shard, view.epoch] = [], []

    def _table(self, group: int, table: TableSpec) -> None:
        index = self._tables_seen[group]
        self._tables_seen[group] += 1
        if index < len(self.tables):
            if self.tables[index] != table:
                raise ViolationError(f"table {index} is {self.tables[index].name}, and {table.name} in another group")
            return
        new_code = all(table.code != other.code for other in self.tables)
        self.tables.append(table)
        self.dims.append(table.dim)
        for shard in range(self.plan.n * self.plan.groups):
            if new_code and (shard, self.epochs.get(shard, 0)) in self.down:  # it never had rows of it
                code = len({other.code for other in self.tables}) - 1
                slots = range(table.code.k)
                self._set_back[shard] |= {code * self.plan.n + (shard - slot) % self.plan.n for slot in slots}
        for shadow, _ in self._shadows.values():
            add_table(shadow, table)

    def _settle(self, shard: int, view: m.Settle) -> None:
        """Cut the lineage; nothing that was acknowledged may be above the cut."""
        lineage = self.lineage[shard]
        self.cuts[shard, view.epoch] = view.window
        kept = [e for e in lineage if e.window <= view.window]
        undone = lineage[len(kept) :]
        self.lineage[shard] = kept
        watermarks: dict[int, int] = {}
        for entry in kept:
            for p in entry.pushes:
                watermarks[p.worker] = p.number
                if p.push.cursor:
                    watermarks[m.cursor_key(p.worker)] = p.push.cursor
        self.watermarks[shard] = watermarks
        for (who, worker), number in self.acked.items():
            if who == shard and number > watermarks.get(worker, 0):
                raise ViolationError(
                    f"acknowledged push {number} of worker {worker} is lost: SETTLE(shard {shard}, epoch {view.epoch}, "
                    f"window {view.window}) goes back to push {watermarks.get(worker, 0)}", [shard],
                )  # fmt: skip
        self.undone += len(undone)
        if undone:
            self._shadows.pop(shard, None)

    def _up(self, shard: int, epoch: int, window: int, watermarks: dict[int, int]) -> None:
        if self.epochs.get(shard) == epoch:
            return
        before = self.epochs.get(shard, 0)
        cut = self.cuts.get((shard, before))
        if cut is None:
            raise ViolationError(f"shard {shard} starts in epoch {epoch}, but epoch {before} was not settled", [shard])
        if window != cut:
            raise ViolationError(f"shard {shard} starts from window {window}, its cut is {cut}", [shard])
        known = {worker: number for worker, number in watermarks.items() if number}
        if known != self.watermarks[shard]:
            raise ViolationError(
                f"shard {shard} epoch {epoch} starts with watermarks {known}; the lineage up to its cut {cut} has "
                f"{self.watermarks[shard]}", [shard],
            )  # fmt: skip
        self.epochs[shard] = epoch
        self.whole[shard] = False
        self._lives[shard, epoch] = list(self.lineage[shard]), []

    def _succeeded(self, shard: int, epoch: int, window: int, watermarks: dict[int, int]) -> None:
        """Another process goes on with all that a shard had: nothing is undone, and it is whole all the time."""
        if self.epochs.get(shard) == epoch:
            return
        before = self.epochs[shard]
        if (shard, before) in self.down or not self.whole[shard]:
            raise ViolationError(f"shard {shard} epoch {before} is succeeded, and was not whole", [shard])
        entries = self.lineage[shard]
        if entries and entries[-1].window > window:
            raise ViolationError(
                f"shard {shard} is succeeded at window {window}, and has applied to {entries[-1].window}",
                [shard],
            )
        known = {worker: number for worker, number in watermarks.items() if number}
        if known != self.watermarks[shard]:
            raise ViolationError(
                f"shard {shard} is succeeded with watermarks {known}; its lineage has {self.watermarks[shard]}", [shard]
            )
        self.cuts[shard, before] = window
        self.epochs[shard] = epoch
        self._lives[shard, epoch] = list(entries), []

    # ------------------------------------------------------------------ replay
    def new_store(self, shard: int) -> Any:
        store = _native.Store(shard % self.plan.n, self.plan.n, shard // self.plan.n, self.plan.groups)
        for table in self.tables:
            add_table(store, table)
        return store

    def shadow(self, shard: int, upto: int | None = None) -> Any:
        """A store with the lineage of a shard so far (or at least its first ``upto`` entries)."""
        store, done = self._shadows.get(shard) or (self.new_store(shard), 0)
        lineage = self.lineage[shard]
        for entry in lineage[done:upto]:
            apply_entry(store, entry.pushes, self.tables)
            done += 1
        self._shadows[shard] = (store, done)
        return store

    def current(self, shard: Address) -> bool:
        """This incarnation is the one whose pushes count."""
        return self.epochs.get(shard.id) == shard.epoch and (shard.id, shard.epoch) not in self.cuts

    def check_rows(
        self, shard: Address, before: int, pull: m.Pull, worker: int, sections: Sequence[RowsOf], got: Any
    ) -> None:
        """Rows that a shard gave away must be those of its lineage.

        One call of its machine may apply pushes and answer pulls in turn; ``before`` is the length of the lineage when
        it began. The answer must fit a point in it at which the push that the pull waits for is applied.
        """
        who = shard.id
        lineage = self.lineage[who]
        answer = [bytes(frame) for frame in got]
        store = self.shadow(who, before)
        while gather(store, sections, pull.records) != answer:
            done = self._shadows[who][1]
            if done == len(lineage):
                raise ViolationError(f"{shard}: rows of pull {pull.request} differ from a replay of its lineage", [who])
            self.shadow(who, done + 1)
        if pull.after > self.watermarks[who].get(worker, 0):
            raise ViolationError(f"{shard} answers a pull after push {pull.after} of worker {worker} too early", [who])
        self.rows_checked += sum(len(s.rows) for s in sections)

    def check_rows_of_ghost(self, shard: Address, pull: m.Pull, sections: Sequence[RowsOf], got: Any) -> None:
        """Rows that an incarnation gave away after it was declared dead: such as it had at some point of its own life.

        Workers may take them, as long as they know nothing of its death; a row that never was is still an error.
        """
        base, applied = self._lives[shard.id, shard.epoch]
        answer = [bytes(frame) for frame in got]
        store = self.new_store(shard.id)
        for number, entry in enumerate([*base, *applied]):
            if number >= len(base) and gather(store, sections, pull.records) == answer:
                break
            apply_entry(store, entry.pushes, self.tables)
        else:
            if gather(store, sections, pull.records) != answer:
                raise ViolationError(f"{shard}, a ghost: rows of pull {pull.request} never were", [shard.id])
        self.rows_checked += sum(len(s.rows) for s in sections)

    def check_keys(self, shard: Address, store: Any, keys: Any) -> None:
        """Data rows of these keys, just repaired, must be those of the lineage. Those still lost are left out."""
        where = zip(store.classes(keys).tolist(), store.positions(keys).tolist(), strict=True)
        here = [store.next_missing(class_id, position) != position for class_id, position in where]
        keys = keys[np.array(here, np.bool_)]
        for one, other in zip(store.coded_rows_of(keys), self.shadow(shard.id).coded_rows_of(keys), strict=True):
            if not np.array_equal(one, other):
                self._compare_keys(shard, store, keys)
        self.rows_checked += len(keys)

    def _compare_keys(self, shard: Address, store: Any, keys: Any) -> None:
        """Row by row: a row that is touched in one and not in the other can still have coded value zero."""
        for key in keys:
            one, other = (
                (lambda rows: bytes(rows[1]) if len(rows[0]) else b"")(s.coded_rows_of(np.array([key], np.uint64)))
                for s in (store, self.shadow(shard.id))
            )
            if one.rstrip(b"\0") != other.rstrip(b"\0"):
                raise ViolationError(
                    f"{shard}: the repaired row {show_keys([key])} is {one.hex() or 'untouched'}, "
                    f"the lineage has {other.hex() or 'untouched'}", [shard.id], [key],
                )  # fmt: skip

    # ------------------------------------------------------------------ at the end
    def check_first_values(self) -> None:
        """Of each table the first values come before all else on every shard, and the last to write them wrote all."""
        writers: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for shard, lineage in self.lineage.items():
            last: dict[int, tuple[int, int]] = {}
            trained: set[int] = set()
            for p in (p for entry in lineage for p in entry.pushes):
                first = self.first_values.get((p.worker, p.push.worker_epoch, shard, p.number))
                if first is None:
                    trained |= {table for section in p.push.sections for table in section.tables}
                elif p.push.sections:
                    last[first] = p.worker, p.push.worker_epoch
                    if first in trained:
                        raise ViolationError(f"shard {shard}: first values of table {first} over trained ones", [shard])
            for table, writer in last.items():
                writers[table].add(writer)
        for table, some in writers.items():
            if len(some) > 1:
                raise ViolationError(f"first values of table {table} are of several lives of workers: {sorted(some)}")

    def check_data(self, shard: Address, store: Any) -> None:
        """Every data row of a shard, byte by byte, against a replay on a fresh store."""
        fresh = self.new_store(shard.id)
        for entry in self.lineage[shard.id]:
            apply_entry(fresh, entry.pushes, self.tables)
        rows = self.layout.rows_on(shard.id, self.tables)
        got, expected = gather(store, [rows], True)[0], gather(fresh, [rows], True)[0]
        if got != expected:
            at, names = 0, []
            row_at = 0
            for table, count in enumerate(rows.counts.tolist()):
                size = store.record_bytes(table)
                for row in rows.rows[row_at : row_at + count].tolist():
                    if got[at : at + size] != expected[at : at + size]:
                        spec = self.tables[table]
                        names.append((table, row, table << 48 | row // spec.code.k // self.plan.groups))
                    at += size
                row_at += count
            raise ViolationError(
                f"{shard}: rows (table, row) {[name[:2] for name in names]} differ from the replay of its lineage",
                [shard.id], [name[2] for name in names],
            )  # fmt: skip
        self.rows_checked += len(rows.rows)

    def check_parity(self, group: int, stores: Sequence[Any], absent: Collection[int] = ()) -> None:
        """Parity of every stripe of a group = encode(coded data), but for that of ``absent`` members."""
        placement = Placement(self.plan.n)
        for table in self.tables:
            placement.add(table.code)
        sizes = [stores[0].record_bytes(t) for t in range(len(self.tables))]
        for stripe in placement.classes:
            spec = placement.code_of(stripe.class_id)
            if not spec.r:
                continue
            end = stores[0].class_size(stripe.class_id)
            data = [_by_key(stores[j].coded_rows(stripe.class_id, 0, end), sizes) for j in stripe.data]
            captures = [_native.Capture(stores[p], stripe.class_id, 0, end) for p in stripe.parity]
            parity = [_by_key(capture.take(), sizes) for capture in captures]
            keys = sorted(set().union(*data, *parity))
            if not keys:
                continue
            zeros = {key: bytes(sizes[key >> 48]) for key in keys}
            blocks = [np.frombuffer(b"".join(d.get(key, zeros[key]) for key in keys), np.uint8) for d in data]
            encoded = [np.zeros(len(blocks[0]), np.uint8) for _ in parity]
            _native.Code(spec.k, spec.r, spec.generator).encode(blocks, encoded)
            for holder, have, want in zip(stripe.parity, parity, encoded, strict=True):
                if holder in absent:
                    continue
                at = 0
                for key in keys:
                    size = sizes[key >> 48]
                    if have.get(key, zeros[key]) != want[at : at + size].tobytes():
                        shards = [group * self.plan.n + s for s in stripe.data + stripe.parity]
                        raise ViolationError(
                            f"parity of stripe {show_keys([key])} (class {stripe.class_id}) on shard "
                            f"{group * self.plan.n + holder} is {have.get(key, b'').hex() or 'untouched'}, that of the "
                            f"data of shards {shards[: spec.k]} is {want[at : at + size].tobytes().hex()}",
                            shards, [key],
                        )  # fmt: skip
                    at += size
            self.rows_checked += len(keys) * spec.r


def _by_key(rows: tuple[Any, Any], sizes: Sequence[int]) -> dict[int, bytes]:
    keys, records = rows
    out, at, blob = {}, 0, records.tobytes()
    for key in keys.tolist():
        out[key] = blob[at : at + sizes[key >> 48]]
        at += sizes[key >> 48]
    return out
