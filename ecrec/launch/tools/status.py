"""A cluster's state as tables for people."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ecrec.launch.redundancy import redundancy
from ecrec.protocol.loss import describe_places
from ecrec.protocol.messages import (
    DOWN,
    UP,
    ClusterState,
    HistoryEntry,
    SavingFigures,
    ShardFigures,
    Waiting,
)
from ecrec.protocol.transitions import WRITING
from ecrec.urls import shown

STATE_STYLES = {UP: "green", DOWN: "bold red"}
OTHER_STYLE = "yellow"
EVENTS_SHOWN = 8
PIPE_COLUMNS = 240
"""Of what is no terminal: more than any line needs."""
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


def status_console() -> Console:
    """For `render`. What is not a terminal gets lines as wide as they are."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)


def bytes_text(count: float) -> str:
    """``1536`` -> ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _checkpoint(saving: SavingFigures, shards: int) -> str:
    """The newest checkpoint, in one line."""
    since = f", of what changed since {saving.base}," if saving.base else ""
    what = f"checkpoint {saving.checkpoint}{since} to {shown(saving.url)}: {saving.state}"
    if saving.state == WRITING:
        return (
            f"{what}, {saving.rows:,} rows, {saving.nbytes / 1e6:,.0f} MB; {saving.shards_done} of {shards} shards done"
        )
    return f"{what}: {saving.error}" if saving.error else what


def render(state: ClusterState) -> RenderableType:
    """Shards, workers, tables in short, and the last events."""
    parts: list[RenderableType] = []
    if state.lost:
        parts.append(Text(f"DATA LOST: {state.lost}", style="bold red"))
    if state.rows_reinitialised:
        updates = f"up to {state.updates_damaged:,} updates lost in part"
        parts.append(Text(f"DATA LOST: {state.rows_reinitialised:,} rows re-initialised, {updates}", style="bold red"))
    parts.append(_shards(state.shards))
    for each in sorted(state.shards, key=lambda shard: shard.shard):
        if to_do := _to_do(each.figures):
            parts.append(Text(f"shard {each.shard} is not whole: {to_do}", style=OTHER_STYLE))
    for shard, reason in sorted(state.suspected.items()):
        parts.append(Text(f"shard {shard} is suspected, not declared down: {reason}", style=OTHER_STYLE))
    silent = {figures.shard: figures.silent_ms for figures in state.shards}
    for shard, workers in sorted(state.unheard.items()):
        names = ", ".join(f"worker {worker} for {ms / 1e3:.0f} s" for worker, ms in sorted(workers.items()))
        text = f"shard {shard} is not heard by {names}; the scheduler heard it {silent.get(shard, -1):.0f} ms ago"
        parts.append(Text(text, style=OTHER_STYLE))
    for shard, reason in sorted(state.leaving.items()):
        parts.append(Text(f"shard {shard} was told to end, and serves on: {reason}", style=OTHER_STYLE))
    spares = f", {state.spares} spare" if state.spares else ""
    if state.groups > 1:
        parts.append(_groups(state))
        parts.append(Text(f"shards: {state.groups * state.n} in {state.groups} groups of {state.n}{spares}"))
    else:
        parts.append(Text(f"shards: {state.n}{spares}; view {state.views[0]}; {_can_lose(redundancy(state)[0])}"))
    for waiting in state.waiting:
        parts.append(_waiting(waiting))
    if state.tables:
        codes = sorted({str(table.code) for table in state.tables})
        rows = sum(table.rows for table in state.tables)
        parts.append(Text(f"tables: {len(state.tables)} with {rows:,} rows, code {', '.join(codes)}"))
    for data in state.datasets:
        again = f", {data.repeated:,} of them again" if data.repeated else ""
        done = f"{data.trained:,} of {data.dataset.end:,} examples trained on{again}"
        parts.append(Text(f"data {data.dataset.name}: {done}; {data.leased} splits leased"))
    if state.saving is not None:
        parts.append(Text(_checkpoint(state.saving, state.groups * state.n)))
    if state.workers:
        parts.append(_workers(state))
    if state.losses:
        parts.append(_losses(state))
    if state.history:
        parts.append(_events(state.history, state.now_ms))
    return Group(*parts)


def _waiting(each: Waiting) -> Text:
    """A process without a place."""
    kind = "spare" if each.is_spare else f"waits for shard {each.wanted}, which is down"
    if each.is_spare and each.wanted >= 0:
        kind = f"spare, was started for shard {each.wanted}, which another has"
    if not each.is_reached:
        return Text(f"not reached at {each.endpoint}: it gets no place ({kind})", style="bold red")
    return Text(f"{kind}: {each.endpoint}")


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _shards(shards: Sequence[ShardFigures]) -> Table:
    table = _table("shards", ("shard", "state"), ("epoch", "rows", "memory", "resident", "heard"))
    table.add_column("endpoint", overflow="ellipsis")  # the only one that a narrow terminal cuts off
    for shard in sorted(shards, key=lambda shard: shard.shard):
        figures = shard.figures
        memory = figures.get("data_bytes_touched", 0.0) + figures.get("parity_bytes_touched", 0.0)
        table.add_row(
            str(shard.shard),
            state_text(shard.state),
            str(shard.epoch),
            f"{figures.get('data_rows_touched', 0):,.0f}",
            bytes_text(memory),
            bytes_text(figures["resident_bytes"]) if "resident_bytes" in figures else "",
            f"{shard.silent_ms:.0f} ms" if shard.silent_ms >= 0 else "",
            shard.endpoint,
        )
    return table


def _groups(state: ClusterState) -> Table:
    table = _table("groups", ("group", "shards"), ("whole", "view"))
    table.add_column("redundancy")
    for group, left in enumerate(redundancy(state)):
        first = group * state.n
        whole = sum(shard.state == UP and first <= shard.shard < first + state.n for shard in state.shards)
        style = "" if left is None or left > 0 else "bold red" if left < 0 else OTHER_STYLE
        table.add_row(
            str(group),
            f"{first} to {first + state.n - 1}",
            f"{whole} of {state.n}",
            str(state.views[group]),
            Text(_can_lose(left), style=style),
        )
    return table


def _can_lose(left: int | None) -> str:
    if left is None:
        return "no tables yet"
    return f"can lose {left} more" if left >= 0 else "data is lost"


def _to_do(figures: Mapping[str, float]) -> str:
    counts = {"repair": figures.get("classes_to_repair", 0.0), "seed": figures.get("classes_to_seed", 0.0)}
    return ", ".join(f"{count:.0f} classes to {what}" for what, count in counts.items() if count)


def _workers(state: ClusterState) -> Table:
    names = sorted({name for figures in state.workers.values() for name in figures})
    table = _table("workers", ("worker",), ())
    for name in names:
        table.add_column(_figure_name(name), justify="right")
    for worker, figures in sorted(state.workers.items()):
        table.add_row(str(worker), *(_figure(name, figures[name]) if name in figures else "" for name in names))
    return table


def _figure_name(name: str) -> str:
    """As in ``training.session.Figures``, without the unit."""
    return name.removesuffix("_s").removeprefix("bytes_").replace("_", " ")


def _figure(name: str, value: float) -> str:
    if name.startswith("bytes_"):
        return bytes_text(value)
    return f"{value:,.2f} s" if name.endswith("_s") else f"{value:,.6g}"


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


def _events(history: Sequence[HistoryEntry], now_ms: float) -> Table:
    table = _table("last events", (), ("ago", "shard", "epoch"))
    table.add_column("event")
    table.add_column("why", overflow="fold")
    for entry in history[-EVENTS_SHOWN:]:
        ago = f"{(now_ms - entry.at_ms) / 1e3:,.2f} s"
        table.add_row(ago, str(entry.shard), str(entry.epoch), entry.event, entry.reason)
    return table
