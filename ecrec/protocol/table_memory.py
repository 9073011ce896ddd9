"""A table of the cluster, in a shard's store."""

from ecrec._native import Store
from ecrec.protocol.placement import TableSpec


def add_table(store: Store, table: TableSpec, recovered: bool) -> None:
    """Raises one of BAD_CONTENT for a table that cannot be, RuntimeError for one that does not fit into memory."""
    optimizer = table.optimizer
    store.add_table(
        table.rows, table.dim, table.code.k, table.code.r, table.code.generator, optimizer.name,
        list(optimizer.hyper), table.init, table.init_seed, table.init_scale, table.init_state, recovered,
        optimizer.weight_decay, optimizer.decoupled, optimizer.max_gradient,
    )  # fmt: skip
