"""Makes a lost or outdated state of the scheduler again, from what the members tell (docs/protocol.md).

Each shard keeps what it was started with, the newest views that it took, and a copy of the scheduler's state that is
at most some seconds old. The newest copy of all members, brought up to the newest view of each group by replaying the
views that it lacks, is the state as of the last view that anybody took: nothing that was decided and told is lost.
What members are to tell anyway (reports, watermarks, which process they are) comes with their heartbeats.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.census import check_census, check_state
from ecrec.protocol.events import BAD_CONTENT
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, SHARD, UP, Address
from ecrec.protocol.placement import Placement
from ecrec.protocol.state import Fence, Group, Place, Settlement, State, encode_state, leave_initial, read_state
from ecrec.protocol.tables import check_table
from ecrec.protocol.transitions import BECAME_WHOLE, DIED, LOST_PARITY, REPLACED, SUCCEEDED

ASKED_MAX = 4096
"""Members that are asked; more are invented ones."""
ABOUT_A_SHARD = (m.ShardDown, m.Settle, m.ShardUp, m.ShardWhole, m.Succession, m.Succeeded)


@dataclass(slots=True)
class Told:
    """The census of one shard."""

    address: Address
    census: m.ShardCensus
    copy: State | None
    """Its copy of the scheduler's state."""
    unreadable: str = ""
    """Why it has a copy that cannot be used."""

    @property
    def view(self) -> int:
        """The newest view that it took."""
        return self.census.views[-1].number if self.census.views else self.census.start.number


class HistoriesError(ConfigurationError):
    """Members have followed different schedulers: somebody must say whose history counts."""


@dataclass(slots=True)
class Adoption:
    """Collects what members tell until the state can be made again. ``since_ms``: when it began."""

    n: int
    groups: int
    since_ms: float
    _told: dict[str, dict[int, Told]] = field(default_factory=dict)
    """Cluster -> shard (over all groups) -> what its newest incarnation told."""
    _sizes: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """Cluster -> shard that names it -> groups and shards in a group that it knows."""
    _asked_ms: dict[tuple[str, Address], float] = field(default_factory=dict)
    _dropped: dict[Address, str] = field(default_factory=dict)
    """Members whose census could not be used -> why."""

    def asks(self, shard: Address, cluster: str, again_ms: float, now_ms: float) -> bool:
        """Whether a member that was just heard is to be asked, for the first time or again."""
        known = self._told.get(cluster, {}).get(shard.id)
        if (known is not None and known.address.epoch >= shard.epoch) or not self.is_place(shard):
            return False
        key = cluster, shard
        if now_ms - self._asked_ms.get(key, -1e18) < again_ms:
            return False
        if key not in self._asked_ms and len(self._asked_ms) >= ASKED_MAX:
            return False
        self._asked_ms[key] = now_ms
        return True

    def is_place(self, shard: Address) -> bool:
        return shard.role == SHARD and 0 <= shard.id < self.n * self.groups

    def take(self, source: Address, census: m.ShardCensus, copy: m.Frames) -> str:
        """Keep what a shard tells; returns what is wrong with it, or nothing."""
        cluster, start = census.origin.cluster, census.start
        if (cluster, source) not in self._asked_ms:
            return f"{source} was not asked"
        self._sizes.setdefault(cluster, {})[source.id] = start.groups, start.n
        if (start.n, start.groups) != (self.n, self.groups):
            return f"{source} is of cluster {cluster!r}, of {start.groups} group(s) of {start.n} shards"
        try:
            check_census(self.n, self.groups, source, census)
        except ConfigurationError as error:
            self._dropped[source] = str(error)
            return f"dropped what {source} tells: {error}"
        told = Told(source, census, None)
        try:
            told.copy = self._read(copy, census)
        except ConfigurationError as error:
            told.unreadable = str(error)
        some = self._told.setdefault(cluster, {})
        if source.id not in some or source.epoch >= some[source.id].address.epoch:
            some[source.id] = told
        return f"left out the copy of the state that {source} keeps: {told.unreadable}" if told.unreadable else ""

    def _read(self, copy: m.Frames, census: m.ShardCensus) -> State | None:
        """A member's copy of the state; None if it has none. Raises ConfigurationError."""
        raw = bytes(memoryview(copy[0])) if copy else b""
        if not raw:
            return None
        state = read_state(raw)
        if (state.n, len(state.groups)) != (self.n, self.groups):
            raise ConfigurationError(f"it is of {len(state.groups)} group(s) of {state.n} shards")
        check_state(state)
        return state

    # ------------------------------------------------------------------ is it enough?
    @property
    def cluster(self) -> str | None:
        """The cluster that most members name; None while there is none, or a tie."""
        leaders = self._leaders()
        return leaders[0] if len(leaders) == 1 else None

    def _leaders(self) -> list[str]:
        most = max((len(shards) for shards in self._sizes.values()), default=0)
        return sorted(cluster for cluster, shards in self._sizes.items() if len(shards) == most)

    @property
    def told(self) -> dict[int, Told]:
        """What was told by shards of the cluster that most members name."""
        cluster = self.cluster
        return {} if cluster is None else self._told.get(cluster, {})

    def strays(self) -> list[str]:
        """Members of other clusters that were heard, for people."""
        return [
            f"shard {shard} of cluster {cluster!r}"
            for cluster, shards in self._sizes.items()
            for shard in sorted(shards)
            if cluster != self.cluster
        ]

    @property
    def is_decided(self) -> bool:
        """All that is needed was told, or most members are of a cluster of other numbers."""
        cluster = self.cluster
        if cluster is None:
            return False
        sizes = self._sizes[cluster]
        if any(size != (self.groups, self.n) for size in sizes.values()):
            return 2 * len(sizes) > self.n * self.groups
        return bool(self.told) and not self.waits_for()

    def waits_for(self) -> list[str]:
        """Members that are said to run and have not told anything, and groups of which nobody has."""
        told, waiting = self.told, []
        for number in range(self.groups):
            members = self._members(told, number)
            if not members:
                if any(some.copy is not None and some.copy.groups[number].view for some in told.values()):
                    waiting.append(f"a shard of group {number}")
                continue
            newest = max(members, key=lambda some: some.view)
            running = {
                view.shard: (view.epoch, not isinstance(view, m.ShardDown))
                for view in newest.census.views
                if isinstance(view, m.ShardUp | m.ShardDown | m.Succeeded)
            }
            for member in newest.census.start.members:
                epoch, runs = running.get(member.shard, (member.epoch, member.state != DOWN))
                known = told.get(number * self.n + member.shard)
                if runs and (known is None or known.address.epoch < epoch):
                    waiting.append(f"shard {number * self.n + member.shard} (epoch {epoch})")
        return waiting

    def _members(self, told: dict[int, Told], group: int) -> list[Told]:
        """Of the newest generation, in order of their shards."""
        newest = max((some.census.origin.generation for some in told.values()), default=0)
        members = [told[shard] for shard in range(group * self.n, (group + 1) * self.n) if shard in told]
        return [some for some in members if some.census.origin.generation == newest]

    # ------------------------------------------------------------------ the state
    def state(self, stored: State | None) -> tuple[State, dict[int, Told], str]:
        """The state as of the newest view that anybody who told took, whom it was made of, and who was left out.

        ``stored``: an older one of the same cluster. Raises ConfigurationError, saying why, if it cannot be made.
        """
        self._check_told()
        told = self.told
        try:
            return self._made_of(told, stored), told, ""
        except HistoriesError:
            raise
        except ConfigurationError as error:
            # One that fits by itself and contradicts all others may be damaged.
            for left_out in told if len(told) > 2 else ():
                rest = {shard: some for shard, some in told.items() if shard != left_out}
                try:
                    return self._made_of(rest, stored), rest, f"dropped what {told[left_out].address} tells: {error}"
                except ConfigurationError:
                    continue
            raise

    def _check_told(self) -> None:
        """Raise ConfigurationError where no state can be made of what was told."""
        leaders = self._leaders()
        if len(leaders) > 1:
            names = " as of ".join(map(repr, leaders[:8]))
            raise ConfigurationError(
                f"as many members are of cluster {names}: end the others, or name their own scheduler to them"
            )
        for cluster in leaders:
            for groups, n in self._sizes[cluster].values():
                if (groups, n) != (self.groups, self.n):
                    raise ConfigurationError(
                        f"the living cluster has {groups} group(s) of {n} shards, not {self.groups} of {self.n}: "
                        "start the scheduler with its numbers"
                    )
        if not self.told:
            why = [f"{address} tells what cannot be: {reason}" for address, reason in self._dropped.items()]
            raise ConfigurationError("; ".join(why[:8]) or "no member that was heard has answered")
        unreadable = [f"{some.address}: {some.unreadable}" for some in self.told.values() if some.unreadable]
        if unreadable and not any(some.copy is not None for some in self.told.values()):
            # The views alone would do for the members, but nobody would know what is leased, and was trained on.
            raise ConfigurationError(f"no member's copy of the state can be read: {'; '.join(unreadable[:8])}")

    def _made_of(self, told: dict[int, Told], stored: State | None) -> State:
        try:
            state = self._make(told, stored)
            check_state(state)
            return read_state(encode_state(state))
        except ConfigurationError:
            raise
        except (*BAD_CONTENT, LookupError) as error:
            raise ConfigurationError(f"what the members tell does not fit: {type(error).__name__}: {error}") from error

    def _make(self, told: dict[int, Told], stored: State | None) -> State:
        (cluster,) = {some.census.origin.cluster for some in told.values()}
        origins = [some.census.origin for some in told.values()]
        copies = [some.copy for some in told.values() if some.copy is not None]
        if stored is not None:
            copies.append(stored)
        copies = [copy for copy in copies if copy.cluster == cluster]
        base = max(copies, key=lambda copy: (copy.generation, copy.serial), default=None)
        state = _from_starts(self.n, self.groups, told.values()) if base is None else read_state(encode_state(base))
        known = len(state.tables)
        for number in range(self.groups):
            members = self._members(told, number)
            if members:
                self._bring_up(state, number, members)
            elif state.groups[number].view:
                raise ConfigurationError(f"no shard of group {number} has answered: all that it held is lost")
        self._know_processes(state, told)
        _complete_fences(state)
        later = range(0 if base is None else known, len(state.tables))
        state.initial.unsure = sorted({*state.initial.unsure, *state.initial.fresh, *later})
        state.initial.fresh, state.initial.claims = [], {}
        state.new_tables.queue = []  # they are asked for again
        for group in state.groups:
            group.succeeding = None  # view `Adopted` says so to those who follow it
        state.cluster = cluster
        state.generation = max([state.generation, *(origin.generation for origin in origins)]) + 1
        state.serial = max([state.serial, *(origin.serial for origin in origins)]) + 1
        state.runs.foreign = state.runs.number = max(state.runs.number, state.generation << m.RUN_BITS)
        return state

    def _bring_up(self, state: State, number: int, members: list[Told]) -> None:
        """Replay what a group's members have heard after the state was written."""
        views: dict[int, m.AnyView] = {view.number: view for view in state.groups[number].views}
        for told in members:
            start = told.census.start
            if start.recovering or start.succeeds:  # it may be the only one that has heard of it
                kind = m.Succeeded if start.succeeds else m.ShardUp
                views.setdefault(start.number, kind(
                    start.number, start.shard, start.epoch, told.census.endpoint, start.window, start.watermarks
                ))  # fmt: skip
            for view in told.census.views:
                known = views.setdefault(view.number, view)
                # What a cut said of workers is left out once its checkpoint is over.
                both = isinstance(known, m.CheckpointCut) and isinstance(view, m.CheckpointCut)
                if known != view and not both:
                    raise HistoriesError(
                        f"view {view.number} of group {number} is {views[view.number]} to one member and {view} to "
                        f"{told.address}: they have followed different schedulers, and one history must be given up by "
                        "ending its members"
                    )
        newest = max(told.view for told in members)
        if any(view not in views for view in range(state.groups[number].view + 1, newest + 1)):
            # The copy is too old. The youngest member was started with all that was known then.
            youngest = max(members, key=lambda told: told.census.start.number)
            state.groups[number] = _group_of(state, youngest.census.start)
        group = state.groups[number]
        # Not all that are lacking: a number may be any that a member tells.
        first = next((view for view in range(group.view + 1, newest + 1) if view not in views), None)
        if first is not None:
            last = next(view for view in range(newest, group.view, -1) if view not in views)
            raise ConfigurationError(
                f"views {first} to {last} of group {number} are not known to any member that answered"
            )
        for view_number in range(group.view + 1, newest + 1):
            replay(state, number, views[view_number])
        first = group.view
        while first in views:
            first -= 1
        group.views = [views[view] for view in range(first + 1, group.view + 1)]
        assert len(group.table_views) <= len(state.tables)

    def _know_processes(self, state: State, told: dict[int, Told]) -> None:
        for number, group in enumerate(state.groups):
            for shard, place in enumerate(group.places):
                some = told.get(number * self.n + shard)
                if place.state == DOWN:
                    continue
                if some is not None and some.address.epoch == place.epoch:
                    place.process, place.endpoint = some.census.process, some.census.endpoint
                    place.start = some.census.start
                elif place.start is None:
                    place.start = _start_of(state, number, shard)
                # That it is whole counts again only from a heartbeat that confirms the new generation.
                place.weak_since = group.view + 1 if place.state != UP else place.weak_since
                place.losses_counted = 0 if some is not None else place.losses_counted


# ---------------------------------------------------------------------- views, read as changes of the state
def replay(state: State, number: int, view: m.AnyView) -> None:
    """Do to the state what its scheduler did when it decided this view of a group."""
    group = state.groups[number]
    placement = Placement(state.n)
    for table in state.tables:
        placement.add(table.code)
    group.view = view.number
    place = group.places[view.shard] if isinstance(view, ABOUT_A_SHARD) else Place()
    settlement = group.settlements.get(view.shard) if isinstance(view, ABOUT_A_SHARD) else None
    if isinstance(view, m.ShardDown):
        _fits(view, place.state != DOWN and view.epoch == place.epoch)
        place.step(DIED)
        place.reseeding = []
        group.settlements[view.shard] = Settlement(view.epoch)
    elif isinstance(view, m.Settle):
        _fits(view, settlement is not None and settlement.view < 0 and view.epoch == place.epoch)
        assert settlement is not None
        settlement.window, settlement.watermarks, settlement.view = view.window, dict(view.watermarks), view.number
    elif isinstance(view, m.ShardUp):
        _fits(view, settlement is not None and settlement.view >= 0 and view.epoch > place.epoch)
        del group.settlements[view.shard]
        place.step(REPLACED)
        place.epoch, place.process, place.endpoint = view.epoch, "", view.endpoint
        place.weak_since = place.losses_counted = 0
        place.start = None
    elif isinstance(view, m.Succession):
        _fits(view, place.state == UP and view.epoch > place.epoch)
        place.epochs = max(place.epochs, view.epoch)
    elif isinstance(view, m.Succeeded):
        _fits(view, place.state == UP and view.epoch > place.epoch)
        place.step(SUCCEEDED)
        place.epoch, place.process, place.endpoint = view.epoch, "", view.endpoint
        place.start = None
    elif isinstance(view, m.ShardWhole):
        _fits(view, place.state in m.NOT_WHOLE and view.epoch == place.epoch)
        place.step(BECAME_WHOLE)
        place.reseeding = []
    elif isinstance(view, m.TableAdded):
        _replay_table(state, group, placement, view)
    elif isinstance(view, m.WorkerFenced):
        _replay_fence(state, number, view)
    elif isinstance(view, m.DataLost):
        group.lost = view.reason
    elif isinstance(view, m.Reinitialise):
        _replay_reinitialise(group, placement, view)
    elif isinstance(view, m.Configured):
        state.config = view.config
    elif isinstance(view, m.CheckpointAsked | m.CheckpointCut | m.CheckpointOver):
        state.saving.number = max(state.saving.number, view.checkpoint)
    elif isinstance(view, m.Adopted):
        state.generation, group.adopted = max(state.generation, view.generation), view.number


def _fits(view: m.AnyView, fits: bool) -> None:
    """Raise ConfigurationError for a view that cannot follow those before it."""
    if not fits:
        raise ConfigurationError(f"view {view.number}, {view}, cannot follow those before it")


def _replay_table(state: State, group: Group, placement: Placement, view: m.TableAdded) -> None:
    index = len(group.table_views)
    group.table_views.append(view.number)
    if index < len(state.tables):
        if state.tables[index] != view.table:
            raise ConfigurationError(
                f"table {index} is {state.tables[index].name!r} in one group and {view.table.name!r} in another"
            )
    else:
        check_table(view.table, state.tables, len(state.groups), placement)
        _fits(view, all(table.name != view.table.name for table in state.tables))
        state.tables.append(view.table)
    if view.table.code not in placement.codes:
        placement.add(view.table.code)
        leave_initial(group, placement, view.table.code)


def _replay_fence(state: State, number: int, view: m.WorkerFenced) -> None:
    leases = state.leases
    leases.fenced[view.worker] = max(view.epoch, leases.fenced.get(view.worker, 0))
    fence = next((f for f in leases.fences if (f.worker, f.epoch) == (view.worker, view.epoch)), None)
    if fence is None and any((held.worker, held.epoch) == (view.worker, view.epoch) for held in leases.leases):
        fence = Fence(view.worker, view.epoch, [0] * len(state.groups))
        leases.fences.append(fence)
    if fence is not None:
        fence.views[number] = view.number


def _complete_fences(state: State) -> None:
    """A life that is fenced in one group is over in all: the others are told, too."""
    for fence in state.leases.fences:
        for number, group in enumerate(state.groups):
            if group.view and not fence.views[number]:
                group.view += 1
                group.views.append(m.WorkerFenced(group.view, fence.worker, fence.epoch))
                fence.views[number] = group.view


def _replay_reinitialise(group: Group, placement: Placement, view: m.Reinitialise) -> None:
    lost = set(view.classes)
    _fits(view, lost <= {stripe.class_id for stripe in placement.classes})
    group.to_reinitialise = []
    group.damaged = sorted({*group.damaged, *view.damaged})
    for shard, place in enumerate(group.places):
        if place.state == DOWN:
            settlement = group.settlements[shard]
            data = lost.intersection(placement.data_classes(shard))
            settlement.reinitialised = sorted(data.union(settlement.reinitialised))
            continue
        place.weak_since = view.number
        parity = lost.intersection(placement.parity_classes(shard))
        if parity and place.state in (UP, RESEEDING):
            place.step(LOST_PARITY)
            place.reseeding = sorted(parity.union(place.reseeding))


# ---------------------------------------------------------------------- without a copy
def _from_starts(n: int, groups: int, told: Iterable[Told]) -> State:
    """A state of which nothing is known yet but the tables and what the members were started with."""
    youngest = max(told, key=lambda some: len(some.census.start.tables))
    state = State(n, [Group(places=[Place() for _ in range(n)]) for _ in range(groups)])
    state.tables = list(youngest.census.start.tables)
    state.config = youngest.census.start.config
    return state


def _group_of(state: State, start: m.FullView) -> Group:
    """A group as it was when a member was started."""
    group = Group(view=start.number, lost=start.lost, damaged=list(start.damaged))
    group.table_views = [start.number] * len(start.tables)
    for member in sorted(start.members, key=lambda member: member.shard):
        group.places.append(
            Place(member.epoch, member.state, "", member.endpoint, None, list(member.reseeding), start.number)
        )
    unsettled = {member.shard for member in start.unsettled}
    cuts = {cut.shard: cut for cut in start.cuts}
    for shard, place in enumerate(group.places):
        if place.state != DOWN:
            continue
        settlement = group.settlements[shard] = Settlement(place.epoch)
        cut = cuts.get(shard)
        if cut is not None:
            settlement.window, settlement.watermarks = cut.window, dict(cut.watermarks)
            settlement.view, settlement.reinitialised = cut.view, list(cut.reinitialised)
        elif shard not in unsettled:
            raise ConfigurationError(f"nobody that answered knows the cut of shard {start.group * state.n + shard}")
    for worker, epoch in start.fenced.items():
        state.leases.fenced[worker] = max(epoch, state.leases.fenced.get(worker, 0))
        known, process = state.workers.get(worker, (0, ""))
        state.workers[worker] = (max(known, epoch), process if known >= epoch else "")
    return group


def _start_of(state: State, number: int, shard: int) -> m.FullView:
    """What a member was started with that has told nothing: only its number is ever looked at. It is below all views
    that are kept, so that the member can be told these, and has confirmed none of them."""
    group, place = state.groups[number], state.groups[number].places[shard]
    first = group.views[0].number - 1 if group.views else group.view
    members = [m.Member(i, p.epoch, p.state, p.endpoint, list(p.reseeding)) for i, p in enumerate(group.places)]
    assert state.config is not None
    return m.FullView(
        first, number, len(state.groups), state.n, shard, place.epoch, place.state == RECOVERING, 0, {}, members,
        list(state.tables), [], "", state.config, checkpoint=state.saving.number,
    )  # fmt: skip
