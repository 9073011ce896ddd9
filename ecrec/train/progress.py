"""What a person sees while a run goes on: a live bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ecrec.launch.groups import Groups
from ecrec.launch.tools.status import state_text

LINES_S = 2.0
"""Seconds between plain lines."""

RATE_S = 3.0
"""Examples a second are those of the last few seconds."""


class ProgressView(Protocol):
    """Where a run reports to."""

    def step(self, step: int, examples: int, loss: float) -> None:
        """Worker 0 did a step; ``examples`` are those that all workers finished since the last call."""

    def health(self, states: Mapping[int, str]) -> None:
        """The state of every shard."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None: ...

    def __enter__(self) -> "ProgressView": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Rate:
    """Examples a second over the last RATE_S seconds."""

    def __init__(self) -> None:
        self._done: list[tuple[float, int]] = []

    def add(self, examples: int, now: float) -> float:
        self._done.append((now, examples))
        while self._done[0][0] < now - RATE_S:
            self._done.pop(0)
        span = now - self._done[0][0]
        return sum(count for at, count in self._done[1:]) / span if span > 0 else 0.0


class _Base:
    def close(self) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class QuietProgress(_Base):
    """Says nothing."""

    def step(self, step: int, examples: int, loss: float) -> None:
        pass

    def health(self, states: Mapping[int, str]) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class PlainProgress(_Base):
    """Lines, a few seconds apart, and one for every change of a shard's state."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._console = console
        self._total = total
        self._rate = _Rate()
        self._said_at: float | None = None
        self._states: dict[int, str] = {}

    def step(self, step: int, examples: int, loss: float) -> None:
        now = time.monotonic()
        rate = self._rate.add(examples, now)
        if self._said_at is not None and now - self._said_at < LINES_S and step != self._total:
            return
        self._said_at = now
        of = f"/{self._total}" if self._total is not None else ""
        speed = f"  {rate:,.0f} examples/s" if rate else ""
        self.say(f"step {step}{of}  loss {loss:.4f}{speed}")

    def health(self, states: Mapping[int, str]) -> None:
        for shard, state in states.items():
            if self._states.get(shard, state) != state:
                self.say(f"shard {shard}: {state}")
        self._states = dict(states)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveProgress(_Base):
    """A bar with steps, loss and examples a second, and below it the health of each shard, a line for each group."""

    def __init__(self, console: Console, total: int | None, groups: Groups | None = None) -> None:
        self._groups = groups
        self._rate = _Rate()
        self._states: dict[int, str] = {}
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} examples/s"),
            TimeElapsedColumn(),
            expand=True,
        )
        self._task = self._bar.add_task("train", total=total, loss="-", rate="-")
        self._live = Live(self._render(), console=console, refresh_per_second=8, transient=True)
        self._live.start()

    def _render(self) -> RenderableType:
        cells: dict[int, list[Text]] = {}
        for shard, state in self._states.items():
            group = self._groups.of(shard) if self._groups else 0
            cells.setdefault(group, []).append(Text.assemble(f"ps {shard} ", state_text(state)))
        if not cells:
            return Group(self._bar, Text("the cluster starts"))
        several = len(cells) > 1
        lines = [
            Text("  ").join([*([Text(f"group {group}:", style="bold")] if several else []), *states])
            for group, states in cells.items()
        ]
        return Group(self._bar, *lines)

    def step(self, step: int, examples: int, loss: float) -> None:
        rate = self._rate.add(examples, time.monotonic())
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=f"{rate:,.0f}")

    def health(self, states: Mapping[int, str]) -> None:
        if self._states != states:
            self._states = dict(states)
            self._live.update(self._render())

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()


def make_progress(console: Console, total: int | None, quiet: bool, groups: Groups | None = None) -> ProgressView:
    """Live in a terminal, lines elsewhere, nothing if quiet."""
    if quiet:
        return QuietProgress()
    return LiveProgress(console, total, groups) if console.is_terminal else PlainProgress(console, total)


def summary(report: Mapping[str, Any]) -> Table:
    """The report as a table: figures of the run, and a line for each kill."""
    table = Table(title="training run", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in ("steps", "examples", "seconds", "examples_per_s"):
        table.add_row(name, _figure(report.get(name)))
    one_class = report.get("auc") is None and report.get("logloss") is not None
    table.add_row(
        "auc", "undefined: all labels of the test part are equal" if one_class else _figure(report.get("auc"))
    )
    table.add_row("logloss", _figure(report.get("logloss")))
    if report.get("normalized_entropy") is not None:
        table.add_row("normalized_entropy", _figure(report["normalized_entropy"]))
    if training := report.get("training"):
        figures = ", ".join(f"{name} {_figure(training[name])}" for name in ("auc", "logloss", "normalized_entropy"))
        table.add_row("while training", f"{figures} (worker 0, last {training['examples']:,} examples)")
    if report.get("bad_rows"):
        table.add_row("bad_rows", Text(f"{report['bad_rows']:,} skipped", style="bold yellow"))
    data = report.get("config", {}).get("data")
    if data is not None:
        table.add_row("data", ", ".join(data) or "generated")
    for kill in report["kills"]:
        table.add_row(f"kill ps {kill['shard']} at step {kill['step']}", _kill_text(kill))
    for kill in report.get("kills_not_done", []):
        table.add_row(f"kill {kill}", Text("not done: training had ended", style="bold yellow"))
    if report.get("worker_deaths"):
        again = f"{report['examples_repeated']:,} of {report['examples_trained']:,} examples trained on again"
        table.add_row("worker_deaths", f"{report['worker_deaths']}, {again}")
    for rewind in [*report.get("rewinds", []), *report.get("resizes", [])]:
        text = (
            f"to checkpoint {rewind['checkpoint']}: {rewind['examples_repeated']:,} examples, "
            f"{_seconds(rewind['seconds_repeated'])} of training, repeated; stood still for "
            f"{_seconds(rewind['seconds_stood_still'])}"
        )
        if rewind["resized"]:
            table.add_row("resized", f"{rewind['reason']}; {text}")
        else:
            table.add_row("went back", Text(text, style="bold yellow"))
    lost = report["lost_updates"]
    table.add_row("lost_updates", Text(str(lost), style="bold green" if lost == 0 else "bold red"))
    if report.get("rows_reinitialised"):
        rows = Text(f"{report['rows_reinitialised']:,}", style="bold red")
        table.add_row("rows_reinitialised", rows)
    table.add_row("parity_ok", _parity_text(report))
    table.add_row("model_digest", str(report.get("model_digest")))
    return table


def _parity_text(report: Mapping[str, Any]) -> Text:
    ok = report["parity_ok"]
    if ok is None:
        return Text("no parity to compare", style="yellow")
    words = f"{ok} ({report['stripes_scrubbed']:,} stripes compared)"
    return Text(words, style="bold green" if ok else "bold red")


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _kill_text(kill: Mapping[str, Any]) -> str:
    rates = [kill[f"throughput_{when}"] for when in ("before", "during", "after")]
    return (
        f"noticed after {_seconds(kill['detect_s'])}, "
        f"rows from the replacement {_seconds(kill['first_row_s'])} later, "
        f"whole after {_seconds(kill['whole_s'])}; longest pause {_seconds(kill['longest_pause_s'])}; "
        "examples/s "
        f"{' / '.join('-' if rate is None else f'{rate:,.0f}' for rate in rates)} before / during / after"
    )
