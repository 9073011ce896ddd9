"""What people are told of checkpoints: lists, progress, the outcome of a check."""

import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ecrec.checkpoint.checking import Checked, Pruned
from ecrec.checkpoint.checking import Progress as Report
from ecrec.checkpoint.reading import Info
from ecrec.launch.tools.status import bytes_text

LINES_S = 10.0
"""Seconds between plain lines."""


def listed(found: Sequence[Info]) -> Iterator[str]:
    """A table of 79 columns, and below it what is wrong with some."""
    yield f"{'NUMBER':>6}  {'TIME (UTC)':<19}  {'SIZE':>9}  {'ROWS':>12}  {'TABLES':>6}  {'BASE':>4}  STATE"
    for info in found:
        if info.is_complete:
            base = info.base or "-"
            rest = f"{_time(info)}  {bytes_text(info.nbytes):>9}  {info.rows:>12}  {info.tables:>6}  {base:>4}"
        else:
            rest = f"{'-':<19}  {'-':>9}  {'-':>12}  {'-':>6}  {'-':>4}"
        yield f"{info.number:>6}  {rest}  {info.state.value}"
    for info in found:
        if not info.is_complete:
            yield f"{info.number}: {info.problem}"


def _time(info: Info) -> str:
    try:
        return datetime.datetime.fromtimestamp(info.time_s, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # whatever the manifest says
        return f"{info.time_s:<19.6g}"


def outcome(checked: Checked) -> Iterator[str]:
    """What a check found, one file a line, and a sum."""
    for problem in checked.problems:
        yield f"{'damaged' if problem.is_damage else 'note'}: {problem.text}"
    damaged = sum(problem.is_damage for problem in checked.problems)
    if checked.number is not None:
        read = f"checkpoint {checked.number}: {checked.files} files, {bytes_text(checked.nbytes)}, {checked.rows} rows"
        yield f"{read}: {f'{damaged} problems' if damaged else 'all fits'}"


def pruned(done: Sequence[Pruned]) -> Iterator[str]:
    """What became of each checkpoint."""
    for each in done:
        yield f"{each.info.number:>6}  {'removed' if each.is_removed else 'stays':<7}  {each.why}"


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """A bar on a terminal; elsewhere a line now and then. Both on stderr."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINES_S:
            last = time.monotonic()
            print(f"{what}: {bytes_text(done)} of {bytes_text(total)}", file=sys.stderr)

    yield line
