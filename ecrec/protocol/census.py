"""What a scheduler that makes its state again takes from a member, and what it does not (`Adoption`).

A member may be of another cluster, damaged or hostile. What it tells is checked for itself before it is kept, and the
state that all of it makes is checked again, because members that are fine one by one may contradict each other.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.leases import EXAMPLES_MAX
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, UP, Address
from ecrec.protocol.placement import Placement, TableSpec
from ecrec.protocol.state import Group, LeaseState, State
from ecrec.protocol.tables import check_table

COUNT_MAX = m.NUMBER_MAX // 2
"""Of what is counted on from: the other half is for what comes."""


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ConfigurationError(what)


def check_census(n: int, groups: int, source: Address, census: m.ShardCensus) -> None:
    """Raise ConfigurationError, saying what is wrong, for a census of ``groups`` groups of ``n`` shards that cannot
    be."""
    start, views = census.start, census.views
    group, shard = divmod(source.id, n)
    mine = (start.group, start.shard, start.epoch) == (group, shard, source.epoch)
    _require(mine, f"it was started as shard {start.shard} of group {start.group}, epoch {start.epoch}")
    _require(1 <= start.epoch <= COUNT_MAX and 1 <= start.number <= COUNT_MAX, f"it was started by view {start.number}")
    _require(start.window <= COUNT_MAX, f"it was started with window {start.window}")
    origin = census.origin
    _require(max(origin.generation, origin.serial) <= COUNT_MAX, f"it knows state {origin.generation}.{origin.serial}")
    _require(origin.generation < 1 << (61 - m.RUN_BITS), f"it knows generation {origin.generation}")
    placement = check_tables(n, groups, start.tables)
    check_start(placement, start)
    numbers = [view.number for view in views]
    first = numbers[0] if numbers else start.number + 1
    _require(
        numbers == list(range(first, first + len(numbers))) and start.number < first <= COUNT_MAX,
        f"views {numbers[:8]} after its start with view {start.number}",
    )
    for view in views:
        member = getattr(view, "shard", 0)
        fits = not isinstance(view, m.FullView) and 0 <= member < n and getattr(view, "epoch", 0) <= COUNT_MAX
        _require(fits, f"a {type(view).__name__} of shard {member}")
        _require(getattr(view, "window", 0) <= COUNT_MAX, f"a {type(view).__name__} with window {view}")
        _require(getattr(view, "worker", 0) < m.WORKERS_MAX, f"a fence of worker {getattr(view, 'worker', 0)}")
        if isinstance(view, m.Adopted):
            _require(view.generation <= origin.generation, f"generation {view.generation} is newer than its own")


def check_tables(n: int, groups: int, tables: Sequence[TableSpec]) -> Placement:
    """The placement of the tables. Raises ConfigurationError for tables that no shard could hold."""
    placement = Placement(n)
    names: set[str] = set()
    for index, table in enumerate(tables):
        check_table(table, tables[:index], groups, placement)
        _require(table.name not in names, f"two tables {table.name!r}")
        names.add(table.name)
        placement.add(table.code)
    return placement


def check_start(placement: Placement, start: m.FullView) -> None:
    """Raise ConfigurationError for a view of a group's members that contradicts itself."""
    members = {member.shard: member for member in start.members}
    listed = sorted(member.shard for member in start.members)
    _require(listed == list(range(placement.n)), f"members {listed[:32]} in a group of {placement.n}")
    for member in start.members:
        _check_member(placement, member.shard, member.epoch, member.state, member.reseeding)
    mine = members[start.shard]
    state = RECOVERING if start.recovering else UP
    _require((mine.epoch, mine.state) == (start.epoch, state), f"it was itself {mine.state} in epoch {mine.epoch}")
    down = {member.shard for member in start.members if member.state == DOWN}
    unsettled = [member.shard for member in start.unsettled]
    cuts = [cut.shard for cut in start.cuts]
    _require(sorted([*unsettled, *cuts]) == sorted(down), f"{sorted(down)} are down, of {unsettled} and {cuts} is told")
    for entry in start.unsettled:
        _require(entry.epoch == members[entry.shard].epoch, f"shard {entry.shard} is down in epoch {entry.epoch}")
    for cut in start.cuts:
        _require(0 <= cut.window <= COUNT_MAX and cut.view <= start.number, f"cut {cut.window} of shard {cut.shard}")
        _check_classes(placement, cut.reinitialised)
    _check_classes(placement, start.reinitialised)
    for worker, epoch in start.fenced.items():
        _require(worker < m.WORKERS_MAX and epoch <= COUNT_MAX, f"epoch {epoch} of worker {worker} is over")


def _check_member(placement: Placement, shard: int, epoch: int, state: str, reseeding: list[int]) -> None:
    fits = 1 <= epoch <= COUNT_MAX and state in (UP, RECOVERING, RESEEDING, DOWN)
    _require(fits, f"shard {shard} is {state[:32]!r} in epoch {epoch}")
    _require(not reseeding or state == RESEEDING, f"shard {shard} is {state}, and reseeds {reseeding[:8]}")
    _check_classes(placement, reseeding)


def _check_classes(placement: Placement, classes: Iterable[int]) -> None:
    known = range(len(placement.classes))
    wrong = [class_id for class_id in classes if class_id not in known]
    _require(not wrong, f"classes {wrong[:8]}, there are {len(known)}")


# ---------------------------------------------------------------------- a whole state
def check_state(state: State) -> None:
    """Raise ConfigurationError for a state that no scheduler could have come to.

    More than `read_state` asks of the scheduler's own file: it is of others.
    """
    placement = check_tables(state.n, len(state.groups), state.tables)
    _require(0 <= state.generation <= COUNT_MAX and 0 <= state.serial <= COUNT_MAX, f"state {state.serial}")
    for number, group in enumerate(state.groups):
        try:
            _check_group(placement, group)
        except ConfigurationError as error:
            raise ConfigurationError(f"group {number}: {error}") from error
    placed = [p.process for group in state.groups for p in group.places if p.state != DOWN and p.process]
    _require(len(placed) == len(set(placed)), "a process has two places")
    for worker, (epoch, _) in state.workers.items():
        _require(0 <= worker < m.WORKERS_MAX and 0 <= epoch <= COUNT_MAX, f"epoch {epoch} of worker {worker}")
    for worker, claims in state.claims.items():
        fits = 0 <= worker < m.WORKERS_MAX and bool(claims) and all(0 < epoch <= COUNT_MAX for epoch, _ in claims)
        _require(fits, f"claims {claims[:4]} of worker {worker}")
    _check_runs(state)
    _check_leases(state.leases)
    tables = range(len(state.tables))
    _require(all(table in tables for table in state.initial.unsure), f"first values of {state.initial.unsure[:8]}")
    _require(0 <= state.new_tables.number <= COUNT_MAX, f"step {state.new_tables.number} of tables")
    counts = state.rows_reinitialised, state.updates_damaged
    _require(all(0 <= count <= m.NUMBER_MAX for count in counts), f"{counts} rows and updates were lost")


def _check_group(placement: Placement, group: Group) -> None:
    numbers = [view.number for view in group.views]
    down = {shard for shard, place in enumerate(group.places) if place.state == DOWN}
    if not group.view:
        _require(
            len(down) == placement.n and not numbers and not group.settlements, "it has not started, and has views"
        )
        return
    first = group.view - len(numbers) + 1
    _require(numbers == list(range(first, group.view + 1)) and first > 0, f"views {numbers[:8]} up to {group.view}")
    _require(group.view <= COUNT_MAX and 0 <= group.adopted <= group.view, f"view {group.view}")
    _require(all(0 <= view <= group.view for view in group.table_views), f"tables of views {group.table_views[:8]}")
    _require(down == set(group.settlements), f"{sorted(down)} are down, {sorted(group.settlements)} are settled")
    _check_classes(placement, group.to_reinitialise)
    for shard, place in enumerate(group.places):
        _check_member(placement, shard, place.epoch, place.state, place.reseeding)
        started = 0 if place.start is None else place.start.number
        _require(started <= group.view, f"shard {shard} is started by view {started} of {group.view}")
    for shard, settlement in group.settlements.items():
        _require(settlement.epoch == group.places[shard].epoch, f"epoch {settlement.epoch} of {shard} is settled")
        decided = 0 <= settlement.window <= COUNT_MAX and 0 < settlement.view <= group.view
        _require(decided or settlement.view == -1, f"shard {shard} is settled by view {settlement.view}")
        _check_classes(placement, settlement.reinitialised)


def _check_runs(state: State) -> None:
    for run in state.runs.runs:
        fits = 0 < run.number <= state.runs.number and 2 <= len(run.members) <= m.WORKERS_MAX
        _require(fits, f"run {run.number} of {len(run.members)} workers, the newest is {state.runs.number}")
    _require(0 <= state.runs.number <= COUNT_MAX, f"the newest run is {state.runs.number}")
    numbers = [run.number for run in state.runs.runs]
    _require(len(set(numbers)) == len(numbers), f"runs {numbers[:8]}")


def _check_leases(leases: LeaseState) -> None:
    numbers = [lease.number for lease in leases.leases]
    _require(numbers == sorted(set(numbers)), f"leases {numbers[:8]}")
    _require(not numbers or 0 < numbers[0] <= numbers[-1] <= leases.number, f"leases {numbers[:8]} of {leases.number}")
    for lease in leases.leases:
        _require(0 <= lease.done <= lease.last - lease.first and 0 <= lease.worker < m.WORKERS_MAX, f"{lease}")
    for index, data in enumerate(leases.datasets):
        name, known = data.dataset.name[:300], data.dataset
        sizes = 1 <= known.examples <= EXAMPLES_MAX and 0 <= known.end <= EXAMPLES_MAX
        _require(sizes and 1 <= known.split_examples <= m.SPLIT_EXAMPLES_MAX, f"data set {name!r}: {known}")
        out = [(lease.first, lease.last) for lease in leases.leases if lease.dataset == index]
        parts = sorted([*data.returned, *out])
        apart = all(last <= first for (_, last), (first, _) in pairwise(parts))
        inside = all(0 <= first < last <= data.next for first, last in parts) and data.next <= known.end
        counted = data.trained + sum(last - first for first, last in parts) == data.next
        _require(
            apart and inside and counted, f"data set {name!r}: {data.trained} trained, {parts[:8]} out of {data.next}"
        )
    known_names = [data.dataset.name for data in leases.datasets]
    _require(len(set(known_names)) == len(known_names), "two data sets of one name")
