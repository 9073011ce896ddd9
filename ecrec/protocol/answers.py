"""What the scheduler tells people who ask for the state of the cluster (`ecrec status`)."""

from collections.abc import Iterable

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission
from ecrec.protocol.announcer import Client
from ecrec.protocol.context import Context
from ecrec.protocol.leases import Leases
from ecrec.protocol.members import Members
from ecrec.protocol.messages import WORKER


def cluster_state(
    request: int, context: Context, members: Members, clients: Iterable[Client], admission: Admission, leases: Leases,
    suspected: dict[int, str], leaving: dict[int, str],
    unheard: dict[int, dict[int, int]], saving: m.SavingFigures | None,
) -> m.ClusterState:  # fmt: skip
    """All that is known of the cluster now."""
    state = context.state
    shards = []
    for number, group in enumerate(state.groups):
        for shard, place in enumerate(group.places):
            contact, status = members.get(number, shard), members.status(number, shard)
            shards.append(
                m.ShardFigures(
                    number * state.n + shard,
                    place.epoch,
                    place.state,
                    place.endpoint,
                    context.now_ms - contact.heard_ms if contact else -1.0,
                    status.watermarks if status else {},
                    status.durable if status else {},
                    status.figures if status else {},
                )
            )
    workers = {c.address.id: c.figures for c in clients if c.address.role == WORKER}
    lost = "; ".join(group.lost for group in state.groups if group.lost)
    return m.ClusterState(
        request, state.n, len(state.groups), [group.view for group in state.groups], shards, workers, state.tables,
        state.history, admission.spares, lost, state.losses, state.rows_reinitialised, state.updates_damaged,
        leases.figures(), leases.fenced(), suspected,
        admission.waiting(), leaving, unheard, saving, state.saving.complete, state.cluster,
        state.saving.restored, state.saving.bases, context.now_ms,
    )  # fmt: skip
