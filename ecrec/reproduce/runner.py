"""All runs of a scale, one after the other, each in a process of its own; then tables, plots and the summary.

Results lie in a folder: ``machine.json``, ``raw/`` (a file a run), ``csv/``, ``plots/``, ``summary.md``. A run whose
file is there is not run again, so that an interrupted evaluation goes on where it was.
"""

import contextlib
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ecrec.errors import ConfigurationError
from ecrec.reproduce import plots, raw, summary, tables
from ecrec.reproduce.available import why_not
from ecrec.reproduce.claims import Finding, find
from ecrec.reproduce.plan import SMOKE, Plan, Run, check_only, runs
from ecrec.reproduce.resources import in_namespace
from ecrec.reproduce.summary import NotDone
from ecrec.tether import module_command
from ecrec.train.counting import RowCount
from ecrec.train.engines import describe_engine
from ecrec.train.machine import machine_of
from ecrec.train.options import LOCAL

MACHINE, RAW, CSV, PLOTS, SUMMARY = "machine.json", "raw", "csv", "plots", "summary.md"

GENERATED_ROWS = 100_000
TIMES_EXPECTED, MORE_S = 4.0, 120.0
"""A run that takes so many times as long as expected, and so much more, is ended."""

END_S = 10.0
SAME_MACHINE = ("cpu", "cores", "memory_bytes", "system", "engine")
STDERR_LINES = 12

Say = Callable[[str], None]


class Outcome(NamedTuple):
    """What became of an evaluation."""

    findings: list[Finding]
    failed: list[NotDone]
    skipped: list[NotDone]
    folder: Path


class Rows(NamedTuple):
    """What all runs train on."""

    path: str
    rows: int
    name: str
    """Part of what a run is: empty for generated ones."""


class Runner:
    """Does the runs of some claims at a scale. ``run`` does it all.

    ``one``: runs a command until its end, at most so many seconds; (exit code, stderr). Tests give another. ``on``:
    where the processes of the runs are; on another engine than this machine all hosts see ``out`` and ``data``.
    """

    def __init__(
        self,
        plan: Plan,
        scale: str,
        only: str | None,
        out: Path,
        data: str | None,
        say: Say,
        one: "Callable[[list[str], float], tuple[int, str]] | None" = None,
        on: str = LOCAL,
    ) -> None:
        self._plan, self._scale, self._say = plan, scale, say
        self._claims = check_only(plan, only)
        self._folder = out / scale
        self._data = data
        self._one = one or run_command
        self._on, self._engine = on, describe_engine(on)
        self._machine = machine_of(self._engine)
        self._ratio = 1.0
        """How long runs took, of what was expected."""

    def run(self) -> Outcome:
        """Raises ConfigurationError for a folder with results of another machine, and what cannot be."""
        plots.pyplot()  # before an hour is spent
        self._check_machine()
        (self._folder / RAW).mkdir(parents=True, exist_ok=True)
        place = None if self._on == LOCAL else self._folder.absolute()
        with tempfile.TemporaryDirectory(prefix="ecrec-reproduce-", dir=place) as scratch:
            rows = self._rows(Path(scratch))
            todo = runs(self._plan, self._scale, self._claims, rows.name)
            skipped, failed = self._do(todo, rows, Path(scratch))
        return self._results(todo, skipped, failed)

    # ------------------------------------------------------------------ before
    def _check_machine(self) -> None:
        """Results of two machines must not stand in one folder: they would be compared."""
        path = self._folder / MACHINE
        here = {name: self._machine[name] for name in SAME_MACHINE if name in self._machine}
        if path.exists():
            try:
                there = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"{path}: cannot be read: {error}; name another folder with --out") from error
            differ = sorted(name for name in SAME_MACHINE if there.get(name) != here.get(name))
            if differ:
                words = "; ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in differ)
                raise ConfigurationError(
                    f"{self._folder} has results of another machine ({words}). Results of different machines are not "
                    "mixed: name another folder with --out"
                )
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(here, indent=1) + "\n")

    def _rows(self, scratch: Path) -> Rows:
        if self._data is None:
            from ecrec.data import SyntheticDataset, SyntheticOptions

            path = scratch / "generated.tsv"
            SyntheticDataset(SyntheticOptions(rows=GENERATED_ROWS, seed=self._plan.seed)).write_tsv(path)
            return Rows(str(path), GENERATED_ROWS, "")
        path = Path(self._data).absolute()
        if not path.is_file():
            raise ConfigurationError(f"--data {path}: there is no such file")
        with RowCount([str(path)]) as counting:
            while not counting.is_done:
                time.sleep(0.05)
        return Rows(str(path), counting.result()[0].rows, f"{path.name}, {path.stat().st_size} bytes")

    # ------------------------------------------------------------------ the runs
    def _path(self, run: Run) -> Path:
        return self._folder / RAW / f"{run.name}{raw.SUFFIX}"

    def _do(self, todo: Sequence[Run], rows: Rows, scratch: Path) -> tuple[list[NotDone], list[NotDone]]:
        skipped, failed = [], []
        left = [run for run in todo if not raw.is_complete(self._path(run))]
        if len(left) < len(todo):
            self._say(f"{len(todo) - len(left)} of {len(todo)} runs are done already, in {self._folder / RAW}")
        told: set[str] = set()
        possible = []
        for run in left:
            if why := why_not(run, self._on):
                skipped.append(NotDone(_title(run), why, run.claims))
                if (what := f"SKIPPED: {run.experiment}, {run.mode_name}: {why}") not in told:
                    told.add(what)
                    self._say(what)
            else:
                possible.append(run)
        for number, run in enumerate(possible):
            rest_s = self._ratio * sum(each.expected_s for each in possible[number:])
            self._say(f"[{number + 1}/{len(possible)}] {_title(run)}; {_minutes(rest_s)} left")
            begin = time.monotonic()
            if why := self._do_one(run, rows, scratch):
                failed.append(NotDone(_title(run), why, run.claims))
                self._say(f"FAILED: {_title(run)}: {why}")
            self._learn(run, time.monotonic() - begin)
        return skipped, failed

    def _learn(self, run: Run, took_s: float) -> None:
        """How long runs really take here: mostly what the last ones did."""
        self._ratio += 0.3 * (took_s / run.expected_s - self._ratio)

    def _do_one(self, run: Run, rows: Rows, scratch: Path) -> str:
        """Why it failed; empty if it did not."""
        path = self._path(run)
        raw.forget_failure(path)
        description = scratch / "run.json"
        description.write_bytes(msgspec.json.encode(run))
        command = module_command(
            "ecrec.reproduce.one", "--run", str(description), "--raw", str(path.absolute()),
            "--data", rows.path, "--data-rows", str(rows.rows),
        )  # fmt: skip
        if self._on != LOCAL:
            command += ["--on", self._on, "--engine", self._engine, "--shared", str(scratch)]
        if run.resources.mbit_s is not None:
            command = in_namespace(command, run.resources.mbit_s)
        code, words = self._one(command, TIMES_EXPECTED * run.expected_s + MORE_S)
        if code == 0 and raw.is_complete(path):
            return ""
        why = words or f"exit code {code}"
        raw.fail(path, why)
        return why

    # ------------------------------------------------------------------ after
    def _results(self, todo: Sequence[Run], skipped: list[NotDone], failed: list[NotDone]) -> Outcome:
        records = [raw.read(path) for run in todo if raw.is_complete(path := self._path(run))]
        for record in records:
            differ = [name for name in SAME_MACHINE if record.machine.get(name) != self._machine.get(name)]
            if differ:
                raise ConfigurationError(
                    f"{self._folder / RAW / record.name}{raw.SUFFIX} is of another machine ({', '.join(differ)} "
                    "differ): results of different machines are not mixed; remove it, or name another folder with --out"
                )
        findings = find(self._plan.claims, self._claims, records, is_smoke=self._scale == SMOKE)
        tables.write(self._folder / CSV, findings, records)
        (self._folder / PLOTS).mkdir(exist_ok=True)
        titles = {name: mode.title for name, mode in self._plan.modes.items()}
        caption = f"{summary.describe_machine(self._machine)}; scale {self._scale}"
        for finding in findings:
            plots.draw(finding, titles, self._folder / PLOTS, caption)
        versions = records[-1].versions if records else {}
        seconds = sum(record.end["t"] for record in records)
        path = self._folder / SUMMARY
        summary.write(path, findings, self._scale, self._machine, versions, [*failed, *skipped], seconds)
        return Outcome(findings, failed, skipped, self._folder)


def _title(run: Run) -> str:
    """``recovery, touched-1, ec41, once, #2``"""
    parts = [run.experiment, run.model_name, run.mode_name, f"{run.workers} workers" if run.workers > 1 else ""]
    parts += [run.kills_name, run.resources_name, f"#{run.repeat + 1}"]
    return ", ".join(part for part in parts if part)


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def run_command(command: list[str], limit_s: float) -> tuple[int, str]:
    """Run it to its end, or for at most this long; its exit code, and the end of what it said on stderr."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        try:
            code = process.wait(limit_s)
            words = ""
        except subprocess.TimeoutExpired:
            code, words = _end(process), f"not done after {limit_s:.0f} s"
        except BaseException:
            _end(process)
            raise
        errors.seek(0)
        said = [line for line in errors.read().splitlines() if line.strip()]
    if code == 0:
        return 0, ""
    return code or 1, "\n".join([*([words] if words else []), *said[-STDERR_LINES:]])


def _end(process: "subprocess.Popen[Any]") -> int:
    """With what it has started, which a process that is killed could not end."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(END_S)
    process.kill()
    return process.wait()
