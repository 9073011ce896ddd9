"""The acceptance runs: real Criteo rows, servers killed with SIGKILL in the middle, and nothing lost.

    python bench/acceptance.py --data rows.tsv.gz --report acceptance.json

For every entry of the matrix runs ``ecrec train`` undisturbed, then with kills, and compares. Anything after ``--`` is
handed on to every run. Entries with the same options share the undisturbed run. Exit code 1 if anything is not as it
must be. With ``-- --steps 30`` it is a quick look, and the AUC is not checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.running import describe, write_json

AUC_MIN = 0.745
FIRST_ROW_S_MAX = 1.0
PAUSE_MARGIN_S = 1.0
"""Training may pause for as long as the death took to be noticed, and so much longer."""

RUN_TIMEOUT_S = 900

COMMON = (
    *("--shards", "5", "--seed", "7", "--batch", "512", "--dim", "64", "--rows", "50000"),
    *("--bottom-mlp", "256", "--top-mlp", "256", "--dense-optimizer", "adagrad", "--dense-lr", "0.005"),
)
"""Named, so that another default does not change what is accepted."""


class Entry(NamedTuple):
    """One line of the matrix: options of ``ecrec train``, and the kills."""

    name: str
    options: tuple[str, ...]
    kills: tuple[str, ...]


MATRIX = (
    Entry("4+1", ("--code", "4+1"), ("ps:2@20",)),
    Entry("4+1, three times the same", ("--code", "4+1"), ("ps:2@10", "ps:2@15", "ps:2@20")),
    Entry("4+1, one after the other", ("--code", "4+1"), ("ps:0@8", "ps:4@16", "ps:1@24")),
    Entry("3+2, two at once", ("--code", "3+2"), ("ps:1@15", "ps:3@15")),
    Entry("1+1", ("--code", "1+1"), ("ps:2@20",)),
    Entry("two workers, sync", ("--code", "4+1", "--workers", "2", "--sync"), ("ps:2@20",)),
    Entry("adagrad", ("--code", "4+1", "--optimizer", "adagrad"), ("ps:2@20",)),
    Entry("sgd", ("--code", "4+1", "--optimizer", "sgd", "--lr", "20"), ("ps:2@20",)),
)
"""Of the issue, with row-wise Adagrad unless something else is named."""


class RunFailedError(Exception):
    """The run ended with an error."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, do the matrix, print a table; 1 if anything failed."""
    words = sys.argv[1:] if arguments is None else arguments
    own, extra = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = _parser().parse_args(own)
    entries = [entry for entry in MATRIX if args.only is None or args.only in entry.name]
    common = [*(word for file in args.data for word in ("--data", str(Path(file).absolute()))), *COMMON, *extra]
    auc_min = None if "--steps" in extra else AUC_MIN
    header = f"{'entry':26} {'auc':>7} {'logloss':>7} {'digest':8} {'parity':6} {'lost':>4} "
    print(header + f"{'detect':>6} {'first':>6} {'whole':>6} {'pause':>6} {'before':>6} {'during':>6} {'after':>6}")
    calm_runs: dict[tuple[str, ...], dict[str, Any]] = {}
    results = []
    for entry in entries:
        result: dict[str, Any] = {"entry": entry._asdict()}
        try:
            if entry.options not in calm_runs:
                calm_runs[entry.options] = run([*common, *entry.options])
            result["undisturbed"] = calm = calm_runs[entry.options]
            kills = [word for kill in entry.kills for word in ("--kill", kill)]
            result["killed"] = killed = run([*common, *entry.options, *kills])
            print("\n".join(table(entry.name, killed)), flush=True)
            result["failures"] = failures(calm, killed, len(entry.kills), auc_min)
        except RunFailedError as error:
            print(f"{entry.name:26} did not finish", flush=True)
            result["failures"] = [str(error)]
        for failure in result["failures"]:
            print(f"    FAILED: {failure}", flush=True)
        results.append(result)
    bad = sum(bool(result["failures"]) for result in results)
    for calm in list(calm_runs.values())[:1]:
        print(describe(calm))
    print(f"{len(results) - bad} of {len(results)} entries passed" + ("" if auc_min else "; the AUC was not checked"))
    write_json(args.report, {"passed": bad == 0, "auc_min": auc_min, "results": results})
    return 1 if bad or not results else 0


def run(words: Sequence[str]) -> dict[str, Any]:
    """The report of ``ecrec train`` with these options. Raises RunFailedError."""
    with tempfile.TemporaryDirectory(prefix="ecrec-acceptance-") as directory:
        report = Path(directory) / "report.json"
        command = [sys.executable, "-m", "ecrec.cli", "train", "--quiet", "--report", str(report), *words]
        try:
            # Elsewhere, so that Python finds the ecrec that is installed and not a checkout around us.
            done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, cwd=directory)
        except subprocess.TimeoutExpired as error:
            raise RunFailedError(f"{' '.join(words)}: not done after {error.timeout:.0f} s") from error
        # A run that found bad parity ends with an error and has a report: the checks say what is wrong.
        if not report.exists():
            raise RunFailedError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr.strip()}")
        content: dict[str, Any] = json.loads(report.read_text())
        return content


def failures(calm: dict[str, Any], killed: dict[str, Any], kills: int, auc_min: float | None) -> list[str]:
    """What is not as it must be in an undisturbed run and the same with kills; empty if all is well."""
    found = []
    for name, report in (("undisturbed", calm), ("with kills", killed)):
        if report["parity_ok"] is not True:
            found.append(f"{name}: parity_ok is {report['parity_ok']}")
        if report["lost_updates"] != 0:
            found.append(f"{name}: lost_updates is {report['lost_updates']}")
        if auc_min is not None and not (report["auc"] or 0.0) > auc_min:
            found.append(f"{name}: the AUC is {report['auc']}, expected above {auc_min}")
    if killed["model_digest"] != calm["model_digest"]:
        found.append(f"the digests differ: {calm['model_digest'][:12]} undisturbed, {killed['model_digest'][:12]}")
    if len(killed["kills"]) != kills:
        found.append(f"{len(killed['kills'])} of {kills} kills were done")
    for kill in killed["kills"]:
        found += [f"kill of {kill['shard']} at {kill['step']}: {text}" for text in _kill_failures(kill, killed)]
    return found


def _kill_failures(kill: dict[str, Any], report: dict[str, Any]) -> list[str]:
    found = []
    if kill["first_row_s"] is None or kill["first_row_s"] >= FIRST_ROW_S_MAX:
        found.append(f"first_row_s is {kill['first_row_s']}, expected below {FIRST_ROW_S_MAX}")
    detected = [other["detect_s"] for other in report["kills"] if other["step"] == kill["step"]]
    if None in detected:
        return [*found, "its death was never noticed"]
    limit = max(detected) + PAUSE_MARGIN_S
    if kill["longest_pause_s"] is not None and kill["longest_pause_s"] > limit:
        found.append(f"training paused for {kill['longest_pause_s']:.2f} s, expected at most {limit:.2f} s")
    return found


def table(name: str, report: dict[str, Any]) -> list[str]:
    """The lines of a run with kills, one a kill."""
    parity = "ok" if report["parity_ok"] is True else str(report["parity_ok"])
    auc = "-" if report["auc"] is None else f"{report['auc']:.4f}"
    start = f"{name:26} {auc:>7} {report['logloss']:7.4f} {report['model_digest'][:8]} {parity:6} "
    start += f"{report['lost_updates']:4d} "
    lines: list[str] = []
    for kill in report["kills"]:
        times = [kill[key] for key in ("detect_s", "first_row_s", "whole_s", "longest_pause_s")]
        speeds = [kill[f"throughput_{key}"] for key in ("before", "during", "after")]
        cells = [_cell(value, ".2f") for value in times] + [_cell(value, ".0f") for value in speeds]
        lines.append((start if not lines else " " * len(start)) + " ".join(cells))
    return lines or [start]


def _cell(value: float | None, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>6}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="Criteo files, plain or gzip")
    parser.add_argument("--only", help="only the entries whose name has this in it")
    parser.add_argument("--report", help="write the reports of all runs and what failed to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
