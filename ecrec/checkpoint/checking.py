"""Checkpoints, checked byte by byte, and old ones removed."""

from collections.abc import Callable
from typing import NamedTuple

from ecrec.checkpoint.files import Folder, is_partial
from ecrec.checkpoint.parts import PartOf
from ecrec.checkpoint.reading import Checkpoint, Info, State, checkpoints, open_checkpoint
from ecrec.errors import CheckpointError, ConfigurationError, FileMissingError
from ecrec.protocol.saved import MANIFEST, STATE, checkpoint_folder

Progress = Callable[[int, int], None]
"""Is told how many bytes are done, and of how many."""


def no_progress(done: int, total: int) -> None:
    """For callers who do not want to know."""


class Problem(NamedTuple):
    """Something that a check found."""

    text: str
    """Begins with the name of the file."""
    is_damage: bool = True
    """False: the checkpoint can be read all the same."""


class Checked(NamedTuple):
    """What a check did."""

    number: int | None
    """None: there is no checkpoint that can be read."""
    files: int
    nbytes: int
    rows: int
    problems: list[Problem]

    @property
    def is_whole(self) -> bool:
        return not any(problem.is_damage for problem in self.problems)


def check(url: str, number: int | None = None, progress: Progress = no_progress) -> Checked:
    """Read every file of a checkpoint, by default of the newest complete one, and compare it with what it must be.

    Found is all that is wrong, not only the first thing; of one part, the first thing. Newer checkpoints that are not
    complete, and files that are not of the checkpoint, are named too.
    Raises ConfigurationError for a bad URL, FileMissingError where there is no checkpoint, or none of that
    number.
    """
    try:
        checkpoint = open_checkpoint(url, number)
    except FileMissingError:
        raise
    except CheckpointError as error:
        return Checked(None, 0, 0, 0, [Problem(str(error))])
    problems = [Problem(*_newer(checkpoint, info)) for info in checkpoint.newer if not info.is_complete]
    checking = _Checking(checkpoint, problems, progress)
    checking.state()
    for entry in checkpoint.manifest.indexes:
        checking.shard(entry.shard)
    for link in [checkpoint, *checkpoint.bases]:
        number = link.manifest.checkpoint
        problems += _others(link.folder, checking.expected[number], checking.unknown[number])
    return Checked(checkpoint.manifest.checkpoint, checking.files, checking.done, checking.rows, problems)


class _Checking:
    """The files of a checkpoint and of its bases, read shard by shard."""

    def __init__(self, checkpoint: Checkpoint, problems: list[Problem], progress: Progress) -> None:
        self._checkpoint, self._problems, self._progress = checkpoint, problems, progress
        links = [checkpoint, *checkpoint.bases]
        entries = [
            link.manifest.indexes[shard]
            for shard in range(len(checkpoint.manifest.indexes))
            for link in checkpoint.links(shard)
        ]
        self._total = sum(entry.nbytes + entry.part_bytes for entry in entries)
        self.files, self.done, self.rows = len(links), 0, 0
        self.expected = {
            link.manifest.checkpoint: {MANIFEST, STATE} if link.manifest.state is not None else {MANIFEST}
            for link in links
        }
        """By checkpoint, the files that it has;"""
        self.unknown: dict[int, set[str]] = {link.manifest.checkpoint: set() for link in links}
        """and the folders of shards of which nobody knows what they have."""

    def state(self) -> None:
        """Check a user's own state, which no base has a part in."""
        saved = self._checkpoint.manifest.state
        if saved is None:
            return
        self._total += saved.nbytes
        try:
            self._checkpoint.state()
            self.files += 1
        except CheckpointError as error:
            self._problems.append(Problem(str(error)))
        self._add(saved.nbytes)

    def _add(self, nbytes: int) -> None:
        self.done += nbytes
        self._progress(self.done, self._total)

    def shard(self, shard: int) -> None:
        """Check what a shard wrote."""
        checkpoint = self._checkpoint
        links: list[Checkpoint] = []
        tables: set[int] = set()
        needed = checkpoint.links(shard)
        for link in [checkpoint, *checkpoint.bases]:
            entry, number = link.manifest.indexes[shard], link.manifest.checkpoint
            self.expected[number].add(entry.name)
            if link not in needed:  # newer ones have all of this shard
                self.unknown[number].add(entry.name.partition("/")[0])
                continue
            try:
                parts = link.index(shard).parts
            except CheckpointError as error:
                self._problems.append(Problem(str(error)))
                self.unknown[number].add(entry.name.partition("/")[0])
                self._add(entry.nbytes + entry.part_bytes)
                continue
            links.append(link)
            self.expected[number].update(PartOf(shard, part).name for part in parts)
            tables.update(part.table for part in parts)
            self.files += 1
            self._add(entry.nbytes)
        # A table's parts one after the other: there may be many tables, and each has a bitmap.
        for table in sorted(tables):
            self._table(table, shard, links, is_whole=links == needed)

    def _table(self, table: int, shard: int, links: list[Checkpoint], is_whole: bool) -> None:
        newer, found = self._checkpoint.rows_in_links(table, links, shard) if links else None, 0
        for link in links:
            own = link.rows_seen(table, shard)
            for each in link.own_parts(table, shard):
                try:
                    for numbers, _ in link.rows_of(each, own):
                        self.rows += len(numbers)
                        found += len(numbers) if newer is None else int(newer.add_new(numbers).sum())
                    self.files += 1
                except CheckpointError as error:
                    self._problems.append(Problem(str(error)))
                    is_whole = False
                self._add(each.part.nbytes)
        if is_whole:
            try:
                self._checkpoint.check_found(table, shard, found)
            except CheckpointError as error:
                self._problems.append(Problem(str(error)))


def _newer(checkpoint: Checkpoint, info: Info) -> tuple[str, bool]:
    text = f"{checkpoint_folder(info.number)}, newer than {checkpoint.manifest.checkpoint}, is {info.state.value}"
    return f"{text}: {info.problem}", info.state is not State.UNFINISHED


def _others(folder: Folder, expected: set[str], unknown_shards: set[str]) -> list[Problem]:
    """Files that are not of the checkpoint. Where an index is damaged, nobody knows."""
    problems = []
    try:
        names = []
        for entry in folder.list():
            if not entry.is_folder:
                names.append(entry.name)
            elif entry.name not in unknown_shards:
                inside = folder.list(entry.name)
                names += [f"{entry.name}/{each.name}{'/' if each.is_folder else ''}" for each in inside]
    except CheckpointError as error:
        return [Problem(str(error))]
    for name in names:
        if name not in expected:
            what = "left by a writer that was killed" if is_partial(name) else "not of this checkpoint"
            problems.append(Problem(f"{folder.path(name)}: {what}; it is not read", is_damage=False))
    return problems


class Pruned(NamedTuple):
    """What `prune` did with a checkpoint."""

    info: Info
    is_removed: bool
    why: str


def prune(url: str, keep: int, broken: bool = False) -> list[Pruned]:
    """Remove all but the newest ``keep`` complete checkpoints, and unfinished or damaged ones that are older than the
    newest complete one. Nothing else is touched: checkpoints of another version, and those whose manifest cannot be
    read this time, stay. Newer unfinished ones may be being written; ``broken``: they are removed too.

    What it removes stops being complete first: its manifest goes before its parts.
    Raises ConfigurationError for ``keep`` below 1, CheckpointError for a file that cannot be removed.
    """
    if keep < 1:
        raise ConfigurationError(f"keep is {keep}; expected at least 1: the newest complete one is never removed")
    folder = Folder(url)
    found = checkpoints(url)
    complete = [info.number for info in found if info.is_complete]
    kept, newest = set(complete[-keep:]), max(complete, default=-1)
    needed = _needed(found, kept)
    done = []
    for info in reversed(found):  # a base after those that need it
        if info.is_complete and info.number not in kept and info.number in needed:
            decision = (False, needed[info.number])
        elif info.is_complete:
            decision = (info.number not in kept, "old" if info.number not in kept else "kept")
        elif info.state in (State.UNFINISHED, State.DAMAGED, State.BASE_LOST):
            is_older = info.number < newest
            why = info.state.value if is_older or broken else f"{info.state.value}; it may be being written"
            decision = (is_older or broken, why)
        else:
            decision = (False, info.state.value)
        if decision[0]:
            name = checkpoint_folder(info.number)
            if info.state is not State.UNFINISHED:
                folder.within(name).remove(MANIFEST)
            folder.remove_tree(name)
        done.append(Pruned(info, *decision))
    return done[::-1]


def _needed(found: list[Info], kept: set[int]) -> dict[int, str]:
    """Why checkpoints stay that are not among those to keep: others that stay have only what changed since."""
    by_number = {info.number: info for info in found}
    needed: dict[int, str] = {}
    for info in found:
        if info.state in (State.OTHER_VERSION, State.UNREADABLE):  # trap: it may have any of them as its base
            why = f"checkpoint {info.number} may need it: its manifest cannot be read"
            needed.update(dict.fromkeys((number for number in by_number if number < info.number), why))
        while info.number in kept | needed.keys() and info.base in by_number and info.base not in needed:
            needed[info.base] = f"checkpoint {info.number} has only what changed since"
            info = by_number[info.base]
    return needed
