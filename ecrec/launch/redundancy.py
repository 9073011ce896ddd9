"""How many more deaths each coding group of a running cluster tolerates."""

from ecrec.protocol.loss import has_data, has_parity
from ecrec.protocol.messages import DOWN, RESEEDING, ClusterState, Member
from ecrec.protocol.placement import Placement


def redundancy(state: ClusterState) -> list[int | None]:
    """How many more shards each group can lose without losing data, whichever they are. None without tables; negative
    where data is lost already."""
    placement = Placement(state.n)
    for table in state.tables:
        placement.add(table.code)
    if not placement.classes:
        return [None] * state.groups
    # Which classes are reseeded is not said: none of that parity counts.
    everything = [stripe.class_id for stripe in placement.classes]
    members = {
        shard.shard: Member(shard.shard, shard.epoch, shard.state, "", everything if shard.state == RESEEDING else [])
        for shard in state.shards
    }
    gone = Member(-1, 0, DOWN, "")
    left: list[int | None] = []
    for group in range(state.groups):
        of_group = [members.get(group * state.n + shard, gone) for shard in range(state.n)]
        left.append(
            min(
                sum(has_data(of_group[shard]) for shard in stripe.data)
                + sum(has_parity(of_group[shard], stripe.class_id) for shard in stripe.parity)
                - len(stripe.data)
                for stripe in placement.classes
            )
        )
    return left
