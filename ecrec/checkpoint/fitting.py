"""Which tables of a checkpoint, or of other files, go into which tables of a cluster, and all that is in the way."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from ecrec.checkpoint.rows import I64, Columns, InitialValues
from ecrec.errors import ConfigurationError
from ecrec.protocol.context import differences
from ecrec.protocol.placement import TableSpec

SHAPE = ("rows", "dim", "is_module")
"""Fields without which rows of one table say nothing to another one."""


class Fit(NamedTuple):
    """A table whose rows are taken."""

    source: TableSpec
    here: TableSpec
    """The table in the cluster."""

    @property
    def has_state(self) -> bool:
        """The optimizer's state is taken, too: it is that of the same optimizer."""
        return self.source.optimizer.name == self.here.optimizer.name


class Fits(NamedTuple):
    """What is taken, and what is not."""

    taken: list[Fit]
    differences: list[str]
    """Each table that is missing, new, or not the same. With some of them a table is taken all the same, if that is
    wanted."""


def parse_names(option: str, pairs: Iterable[str]) -> dict[str, str]:
    """``["old=new"]`` -> ``{"old": "new"}``. Raises ConfigurationError, naming the option, for anything else."""
    names: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise ConfigurationError(f"{option} {pair!r}: expected OLD=NEW, the name there and the name here")
        if old in names:
            raise ConfigurationError(f"{option}: {old!r} is given twice")
        names[old] = new
    return names


def new_names(there: Sequence[str], names: Mapping[str, str], where: str) -> dict[str, str]:
    """Name in ``where`` (the source, for people) -> name in the cluster, of all that are there. Raises
    ConfigurationError for names that are not there, and for two that would have one name."""
    if unknown := sorted(names.keys() - set(there)):
        known = ", ".join(map(repr, there[:20])) or "none"
        raise ConfigurationError(f"names: {where} has no {', '.join(map(repr, unknown))}; it has {known}")
    found = {name: names.get(name, name) for name in there}
    values = list(found.values())
    if twice := sorted({name for name in values if values.count(name) > 1}):
        raise ConfigurationError(f"names: several of {where} would be called {', '.join(map(repr, twice))} here")
    return found


def fit(source: Sequence[TableSpec], here: Sequence[TableSpec], names: Mapping[str, str]) -> Fits:
    """Compare the tables of a checkpoint with those of a cluster. Codes may differ: placement is the cluster's own.

    Raises ConfigurationError for invalid ``names``.
    """
    renamed = new_names([spec.name for spec in source], names, "the checkpoint")
    known = {spec.name: spec for spec in here}
    taken, found = [], []
    for spec in source:
        name = renamed[spec.name]
        table = known.pop(name, None)
        called = repr(spec.name) if spec.name == name else f"{spec.name!r}, here {name!r}"
        if table is None:
            found.append(f"table {called}: is in the checkpoint alone")
            continue
        same: dict[str, object] = {"name": table.name, "code": table.code}
        if spec.name != name and not spec.is_module:
            same |= {"init_seed": table.init_seed, "features": table.features}  # they follow from its name
        if spec.is_module and table.is_module and spec.init_seed != table.init_seed:
            found.append(f"table {called}: its parameters have other names or shapes, or are in another order")
        elif difference := differences(msgspec.structs.replace(spec, **same), table):
            found.append(f"table {called}: {difference}")
        if all(getattr(spec, field) == getattr(table, field) for field in SHAPE) and (
            not spec.is_module or spec.init_seed == table.init_seed  # that stands for names and shapes of parameters
        ):
            taken.append(Fit(spec, table))
    found += [f"table {name!r}: is in the cluster alone" for name in known]
    return Fits(taken, found)


def all_differences(found: Sequence[str]) -> str:
    """For an error: what comes first in each is the checkpoint's."""
    return (
        "the tables of the checkpoint and of this cluster differ (first the checkpoint's); nothing was changed:\n  "
        + "\n  ".join(found)
    )


def as_here(each: Fit, initial: InitialValues | None, rows: I64, columns: Columns) -> Columns:
    """Rows as the table here has them: where the optimizer is another one, its state is the initial one."""
    if each.has_state:
        return columns
    assert initial is not None
    return {**initial.columns(np.ascontiguousarray(rows)), "weights": columns["weights"]}
