"""How the shards of a cluster are dealt into coding groups, and which deaths each group tolerates."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ecrec.errors import ConfigurationError
from ecrec.protocol.client import GROUPS_MAX
from ecrec.protocol.loss import undecodable
from ecrec.protocol.messages import DOWN, UP, Member
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX, CodeSpec, Placement

DEFAULT_CODE = "4+1"

ON_DATA_LOSS = STOP, REINITIALISE = ("stop", "reinitialise")
"""What happens when more servers die than the code tolerates: training stops with an error, or goes on with the lost
rows at their initial records."""

RESTORE = "restore"
"""The same of a cluster whose launcher owns all processes: it begins anew with the newest checkpoint."""
ON_DATA_LOSS_OF_RUNS = (*ON_DATA_LOSS, RESTORE)

POSSIBLE_SHOWN = 2
"""Numbers of shards that an error names, on each side of the one that is impossible."""


@dataclass(frozen=True, slots=True)
class Groups:
    """``count`` coding groups of ``n`` shards each; shard ``s`` of all is in group ``s // n``."""

    count: int
    n: int

    @property
    def shards(self) -> int:
        """Of all groups."""
        return self.count * self.n

    def of(self, shard: int) -> int:
        """The group of a shard."""
        return shard // self.n

    def members(self, group: int) -> range:
        """The shards of a group."""
        return range(group * self.n, (group + 1) * self.n)

    def __str__(self) -> str:
        return f"{self.count} groups of {self.n} shards" if self.count > 1 else f"one group of {self.n} shards"


def deal(shards: int, groups: int | None = None, code: CodeSpec | None = None) -> Groups:
    """Deal ``shards`` (the number of all) into ``groups`` groups of equal size.

    Without ``groups``: one group of up to 16 shards; of more, as few groups as possible, with at most 16 shards each
    and room for a stripe of ``code`` (default: 4+1). Raises ConfigurationError, with numbers that are possible, when
    there is no such deal, and when ``code`` does not fit a group.
    """
    if shards < 1:
        raise ConfigurationError(f"{shards} shards: expected at least 1")
    if groups is None:
        count = _fewest(shards, _smallest(code))
        if count is None:
            raise ConfigurationError(_no_deal(shards, _smallest(code)))
    else:
        count = groups
        _check_count(shards, count)
    dealt = Groups(count, shards // count)
    if code is not None:
        try:
            Placement(dealt.n).check(code)
        except ConfigurationError as error:
            raise ConfigurationError(f"{dealt}: {error}" if count > 1 else str(error)) from error
    return dealt


def _smallest(code: CodeSpec | None) -> int:
    code = CodeSpec.parse(DEFAULT_CODE) if code is None else code
    return code.k + code.r


def _fewest(shards: int, smallest: int) -> int | None:
    """The fewest groups of equal size with ``smallest`` to 16 shards each; None if there are none."""
    if shards <= SHARDS_IN_GROUP_MAX:
        return 1
    first = -(-shards // SHARDS_IN_GROUP_MAX)
    last = min(GROUPS_MAX, shards // max(1, smallest))
    return next((count for count in range(first, last + 1) if shards % count == 0), None)


def _no_deal(shards: int, smallest: int) -> str:
    if smallest > SHARDS_IN_GROUP_MAX:
        return f"a stripe of {smallest} rows needs as many shards, and a coding group has at most {SHARDS_IN_GROUP_MAX}"
    most = GROUPS_MAX * SHARDS_IN_GROUP_MAX
    if shards > most:
        return f"{shards} shards: at most {most} are possible, {GROUPS_MAX} groups of {SHARDS_IN_GROUP_MAX}"

    def possible(numbers: range) -> Iterator[int]:
        return (number for number in numbers if _fewest(number, smallest) is not None)

    below = [number for number, _ in zip(possible(range(shards - 1, 0, -1)), range(POSSIBLE_SHOWN), strict=False)]
    above = [number for number, _ in zip(possible(range(shards + 1, most + 1)), range(POSSIBLE_SHOWN), strict=False)]
    names = [str(number) for number in [*reversed(below), *above]]
    return (
        f"{shards} shards cannot be dealt into groups of equal size with {smallest} to {SHARDS_IN_GROUP_MAX} shards; "
        f"possible are {', '.join(names[:-1])} and {names[-1]}, for example"
    )


def _check_count(shards: int, count: int) -> None:
    if not 1 <= count <= GROUPS_MAX:
        raise ConfigurationError(f"{count} groups: expected 1 to {GROUPS_MAX}")
    if shards % count:
        less = shards - shards % count
        possible = f"{less} or {less + count}" if less else f"{count}"
        raise ConfigurationError(
            f"{shards} shards in {count} groups: groups have the same size, and the shards of all are counted; "
            f"expected a multiple of {count}, for example {possible}"
        )
    if shards // count > SHARDS_IN_GROUP_MAX:
        raise ConfigurationError(
            f"{shards} shards in {count} groups: that is {shards // count} in each, and a coding group has at most "
            f"{SHARDS_IN_GROUP_MAX}; expected at least {-(-shards // SHARDS_IN_GROUP_MAX)} groups"
        )


class Tolerance:
    """Which deaths lose data: of each group on its own, stripe by stripe.

    A stripe tolerates r deaths among the k + r shards that hold it. A group with more shards than that may lose more
    than r of them at a time, where they share no stripe.
    """

    def __init__(self, groups: Groups, code: CodeSpec) -> None:
        self.groups = groups
        self.code = code
        """Of the tables. Replicated modules (1 + r) lie on fewer shards a stripe, and tolerate whatever these do."""
        self._placement = Placement(groups.n)
        self._placement.add(code)

    def broken(self, gone: Collection[int]) -> set[int]:
        """Groups that lose data when these shards are gone at the same time."""
        return {group for group in {self.groups.of(shard) for shard in gone} if self._is_broken(group, gone)}

    def _is_broken(self, group: int, gone: Collection[int]) -> bool:
        states = (DOWN if shard in gone else UP for shard in self.groups.members(group))
        members = [Member(number, 1, state, "") for number, state in enumerate(states)]
        return bool(undecodable(self._placement, members))
