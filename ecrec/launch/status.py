"""A cluster's state as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ecrec.protocol.loss import describe_places
from ecrec.protocol.messages import DOWN, UP, ClusterState, HistoryEntry, ShardFigures

STATE_STYLES = {UP: "green", DOWN: "bold red"}
OTHER_STYLE = "yellow"
EVENTS_SHOWN = 8
LOST_SHOWN = 64


def plain(value: Any) -> Any:
    """Messages as dicts with the names of their fields, for JSON; on the wire they are arrays."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def state_text(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, OTHER_STYLE))


def bytes_text(count: float) -> str:
    """``1536`` -> ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def render(state: ClusterState) -> RenderableType:
    """Shards, workers, tables in short, and the last events."""
    parts: list[RenderableType] = []
    if state.lost:
        parts.append(Text(f"DATA LOST: {state.lost}", style="bold red"))
    if state.rows_reinitialised:
        updates = f"up to {state.updates_damaged:,} updates lost in part"
        parts.append(Text(f"DATA LOST: {state.rows_reinitialised:,} rows re-initialised, {updates}", style="bold red"))
    parts.append(_shards(state.shards))
    spares = f", {state.spares} spare" if state.spares else ""
    groups = f"{state.groups} groups of {state.n}" if state.groups > 1 else f"{state.n}"
    parts.append(Text(f"shards: {groups}{spares}; view {', '.join(map(str, state.views))}"))
    if state.tables:
        codes = sorted({str(table.code) for table in state.tables})
        rows = sum(table.rows for table in state.tables)
        parts.append(Text(f"tables: {len(state.tables)} with {rows:,} rows, code {', '.join(codes)}"))
    for data in state.datasets:
        again = f", {data.repeated:,} of them again" if data.repeated else ""
        done = f"{data.trained:,} of {data.dataset.end:,} examples trained on{again}"
        parts.append(Text(f"data {data.dataset.name}: {done}; {data.leased} splits leased"))
    if state.workers:
        parts.append(_workers(state))
    if state.losses:
        parts.append(_losses(state))
    if state.history:
        parts.append(_events(state.history))
    return Group(*parts)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _shards(shards: Sequence[ShardFigures]) -> Table:
    table = _table("shards", ("shard", "state"), ("epoch", "rows", "memory", "heard"))
    table.add_column("endpoint", overflow="fold")
    table.add_column("to do")
    for shard in sorted(shards, key=lambda shard: shard.shard):
        figures = shard.figures
        memory = figures.get("data_bytes_touched", 0.0) + figures.get("parity_bytes_touched", 0.0)
        table.add_row(
            str(shard.shard),
            state_text(shard.state),
            str(shard.epoch),
            f"{figures.get('data_rows_touched', 0):,.0f}",
            bytes_text(memory),
            f"{shard.silent_ms:.0f} ms",
            shard.endpoint,
            _to_do(figures),
        )
    return table


def _to_do(figures: Mapping[str, float]) -> str:
    counts = {"repair": figures.get("classes_to_repair", 0.0), "seed": figures.get("classes_to_seed", 0.0)}
    return ", ".join(f"{what} {count:.0f} classes" for what, count in counts.items() if count)


def _workers(state: ClusterState) -> Table:
    names = sorted({name for figures in state.workers.values() for name in figures})
    table = _table("workers", ("worker",), names)
    for worker, figures in sorted(state.workers.items()):
        table.add_row(str(worker), *(f"{figures[name]:,.6g}" if name in figures else "" for name in names))
    return table


def _losses(state: ClusterState) -> Table:
    """Which rows were lost, the newest loss first."""
    sizes = {table.name: table.rows for table in state.tables}
    table = _table("lost rows", ("table",), ("shard", "rows", "of"))
    table.add_column("which", overflow="fold")
    table.add_column("then")
    entries = [(loss, some) for loss in reversed(state.losses) for some in loss.rows]
    for loss, some in entries[:LOST_SHOWN]:
        which = describe_places(some).rpartition(" on shard")[0]
        then = "re-initialised" if loss.reinitialised else "stopped"
        table.add_row(some.table, str(some.shard), f"{some.rows:,}", f"{sizes.get(some.table, 0):,}", which, then)
    if len(entries) > LOST_SHOWN:
        table.add_row(f"and {len(entries) - LOST_SHOWN} more: see --json")
    return table


def _events(history: Sequence[HistoryEntry]) -> Table:
    table = _table("last events", (), ("before", "shard", "epoch"))
    table.add_column("event")
    last = history[-1].at_ms
    for entry in history[-EVENTS_SHOWN:]:
        before = f"{(last - entry.at_ms) / 1e3:.2f} s"
        table.add_row(before, str(entry.shard), str(entry.epoch), entry.event)
    return table
