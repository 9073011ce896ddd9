"""Weights of others, brought into the tables of a cluster: a warm start."""

import os
import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import numpy as np

from ecrec._native import first_nonfinite
from ecrec.checkpoint.filling import TABLE
from ecrec.checkpoint.restore import Progress, Restoring
from ecrec.checkpoint.sources import Source, open_sources
from ecrec.errors import ConfigurationError, GradientError
from ecrec.protocol.messages import ClusterQuery, ClusterState
from ecrec.protocol.placement import TableSpec
from ecrec.transport.client_node import query
from ecrec.transport.curve import CurveKeys

PATTERNS = (f"{TABLE}.weight", f"embedding_bags.{TABLE}.weight", f"embeddings.{TABLE}.weight")
"""What the weights of a table may be called, where nothing else is said; also behind the names of outer modules."""


class Taken(NamedTuple):
    """A tensor that becomes the weights of a table."""

    name: str
    source: Source
    spec: TableSpec


class Imported(NamedTuple):
    """What an import brought."""

    tables: dict[str, str]
    """Table -> the tensor that it got."""
    rows: int
    nbytes: int
    differences: list[str]
    """What is not as it should be, where what fits was taken."""
    unused: list[str]
    """Tensors that no table took."""


def import_weights(
    endpoint: str,
    path: str | os.PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    pattern: str | None = None,
    partial: bool = False,
    timeout_s: float = 60.0,
    keys: CurveKeys | None = None,
    meanwhile: Callable[[Progress], None] = lambda _: None,
) -> Imported:
    """Set the weights of all embedding tables of a cluster, which nobody trains yet, to those of files.

    ``path``: as of `open_sources`. The state of the optimizers stays. A table's tensor is the one that ``names``
    (tensor -> table) gives it, or that is called as ``pattern`` says, with ``{table}`` in it; by default as one of
    `PATTERNS`. Tables without a tensor, tensors of another shape and names that are not there are an error that names
    all of them; with ``partial`` what fits is taken. Parameters of replicated modules are none of it: load them into
    the module, and `ReplicatedModule.assign`. Memory stays bounded.
    Raises ConfigurationError for what does not fit, GradientError for weights that are not finite, both before anything
    is changed; RefusedError where data sets were begun; CheckpointError for files that are damaged.
    """
    if pattern is not None and TABLE not in pattern:
        raise ConfigurationError(f"pattern {pattern!r}: expected {TABLE} in it, for example {PATTERNS[0]!r}")
    sources = open_sources(path)
    state = cast(ClusterState, query(endpoint, ClusterQuery(secrets.randbelow(1 << 31)), keys=keys))
    tables = [spec for spec in state.tables if not spec.is_module]
    if not tables:
        raise ConfigurationError("this cluster has no embedding tables yet: make the model first")
    taken, differences = match(sources, tables, names or {}, pattern)
    unused = sorted(sources.keys() - {each.name for each in taken})
    if (differences and not partial) or not taken:
        others = f"\n  no table took: {', '.join(unused[:50])}" if unused else ""
        listed = "\n  ".join(differences)
        raise ConfigurationError(
            f"{path} does not fit the tables of this cluster; nothing was changed:\n  {listed}{others}"
        )
    for each in taken:
        _check_finite(each)
    progress = _Importing(endpoint, timeout_s, keys, meanwhile, sum(each.spec.rows for each in taken)).bring(taken)
    brought = {each.spec.name: each.name for each in taken}
    return Imported(brought, progress.rows, progress.nbytes, differences, unused)


def match(
    sources: Mapping[str, Source], tables: list[TableSpec], names: Mapping[str, str], pattern: str | None
) -> tuple[list[Taken], list[str]]:
    """The tensor of each table, and all that is in the way."""
    differences = [f"tensor {name!r} of --map: is not in the file" for name in sorted(names.keys() - sources.keys())]
    known = {spec.name for spec in tables}
    differences += [
        f"table {table!r} of --map: is not in the cluster" for table in sorted(set(names.values()) - known)
    ]  # fmt: skip
    taken = []
    for spec in tables:
        found = _tensors_of(spec.name, sources, names, pattern)
        if not found:
            differences.append(f"table {spec.name!r}: no tensor is of it")
        elif len(found) > 1:
            differences.append(f"table {spec.name!r}: several tensors may be of it: {', '.join(found[:8])}; give --map")
        elif sources[found[0]].shape != (spec.rows, spec.dim):
            there = " x ".join(map(str, sources[found[0]].shape))
            differences.append(f"table {spec.name!r}: {found[0]} is {there}, expected {spec.rows} x {spec.dim}")
        else:
            taken.append(Taken(found[0], sources[found[0]], spec))
    return taken, differences


def _tensors_of(table: str, sources: Mapping[str, Source], names: Mapping[str, str], pattern: str | None) -> list[str]:
    mapped = [name for name, wanted in names.items() if wanted == table]
    if mapped:
        return [name for name in mapped if name in sources]
    called = [each.replace(TABLE, table) for each in ([pattern] if pattern else PATTERNS)]
    free = [name for name in sources if name not in names]
    exact = [name for name in free if name in called]
    if exact or pattern:
        return exact
    return [name for name in free if any(name.endswith(f".{each}") for each in called)]


def _check_finite(each: Taken) -> None:
    for first, rows in each.source.blocks():
        if (place := first_nonfinite(rows.reshape(-1))) >= 0:
            row, column = divmod(int(place), each.spec.dim)
            raise GradientError(
                f"{each.name}: row {first + row}, column {column} is {rows[row, column]}; nothing was changed",
                (each.spec.name, first + row, column),
            )


class _Importing(Restoring):
    """One import: a worker of the cluster, for as long as it takes."""

    def bring(self, taken: list[Taken]) -> Progress:
        with self.begun(into_tables=True):
            for each in taken:
                self._create(each.spec)
            for each in taken:
                self._import(each)
        self.end([], into_tables=True)
        return self._progress

    def _import(self, each: Taken) -> None:
        machine = self._machine
        index, _ = machine.tables[each.spec.name]
        writes = self._claim(index, each.spec)
        for first, weights in each.source.blocks():
            rows = np.arange(first, first + len(weights), dtype=np.int64)
            self._push(index, each.spec, rows, weights, records=False)
        self._make_durable(index, each.spec, writes)
