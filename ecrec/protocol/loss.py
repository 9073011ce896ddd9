"""More deaths than the code tolerates: which stripes cannot be decoded, and which rows are lost with them.

Everything here follows from the placement and from who is whole; nobody has to be asked (docs/protocol.md).
"""

from collections.abc import Iterable, Sequence

from ecrec.protocol.messages import RESEEDING, UP, LostRows, Member
from ecrec.protocol.placement import Placement, TableSpec

NAMED_MAX = 8
"""Tables that a message names; `ecrec status` names all."""

LOST_ROWS_MAX = 4096
"""Entries of tables and shards that one loss keeps; there can be 65,535 tables."""


def has_data(member: Member) -> bool:
    """Its data rows are all there."""
    return member.state in (UP, RESEEDING)


def has_parity(member: Member, class_id: int) -> bool:
    """Its parity rows of the class fit the data."""
    return member.state == UP or (member.state == RESEEDING and class_id not in member.reseeding)


def undecodable(placement: Placement, members: Sequence[Member]) -> set[int]:
    """Classes of which data rows are missing that the other members cannot give. A member that recovers counts as
    lost until it is whole, also where some of its rows are there again."""
    found = set()
    for stripe in placement.classes:
        data = sum(has_data(members[shard]) for shard in stripe.data)
        parity = sum(has_parity(members[shard], stripe.class_id) for shard in stripe.parity)
        if data < len(stripe.data) and data + parity < len(stripe.data):
            found.add(stripe.class_id)
    return found


def margin(placement: Placement, members: Sequence[Member]) -> int:
    """How many more members the weakest stripe can lose, of those with parity; negative where too many are lost."""
    left = [
        sum(has_data(members[shard]) for shard in stripe.data)
        + sum(has_parity(members[shard], stripe.class_id) for shard in stripe.parity)
        - len(stripe.data)
        for stripe in placement.classes
        if stripe.parity
    ]
    return min(left, default=0)


def lost_rows(
    placement: Placement, tables: Sequence[TableSpec], classes: Iterable[int], shard: int, group: int, groups: int
) -> list[LostRows]:
    """Data rows of these classes on a shard (numbered in its group), by table; tables without any are left out."""
    n = placement.n
    wanted = set(classes)
    found = []
    for table in tables:
        k = table.code.k
        base = placement.codes.index(table.code) * n
        step = n * groups * k
        firsts = []
        rows = 0
        for slot in range(k):
            residue = (shard - slot) % n
            first = (residue * groups + group) * k + slot
            if base + residue in wanted and first < table.rows:
                firsts.append(first)
                rows += (table.rows - 1 - first) // step + 1
        if rows:
            found.append(LostRows(group * n + shard, table.name, rows, sorted(firsts), step))
    return found


def describe_rows(lost: Sequence[LostRows], tables: Sequence[TableSpec]) -> str:
    """``"t: 32 of 160 rows (12 to 144 by 20 on shard 3, ...)"``, table after table, as far as a message may go."""
    sizes = {table.name: table.rows for table in tables}
    by_table: dict[str, list[LostRows]] = {}
    for some in lost:
        by_table.setdefault(some.table, []).append(some)
    parts = []
    for name, entries in list(by_table.items())[:NAMED_MAX]:
        count = sum(some.rows for some in entries)
        where = ", ".join(describe_places(some) for some in entries)
        parts.append(f"{name}: {count:,} of {sizes.get(name, 0):,} rows ({where})")
    if len(by_table) > NAMED_MAX:
        parts.append(f"and {len(by_table) - NAMED_MAX} more tables")
    return "; ".join(parts)


def describe_places(lost: LostRows) -> str:
    """Which rows of the table these are, and where they were."""
    if not lost.first:
        return f"{lost.rows:,} not yet recovered on shard {lost.shard}"
    firsts = ", ".join(map(str, lost.first[:NAMED_MAX])) + (", ..." if len(lost.first) > NAMED_MAX else "")
    return f"every {lost.step:,}th from {firsts} on shard {lost.shard}"
