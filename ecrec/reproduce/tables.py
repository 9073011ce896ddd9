"""CSV: the rows of each claim, and of all runs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecrec.reproduce.claims import Finding
from ecrec.reproduce.measure import measure
from ecrec.reproduce.raw import Record

RUNS, SECONDS = "runs.csv", "seconds.csv"


def write(folder: Path, findings: Sequence[Finding], records: Sequence[Record]) -> list[Path]:
    """One file a claim of which there are rows, and `RUNS` and `SECONDS` for all; what is written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [_write(folder / f"{finding.name}.csv", finding.rows) for finding in findings if finding.rows]
    files.append(_write(folder / RUNS, [_run(record) for record in records]))
    seconds = [{"run": record.name, **line} for record in records for line in record.seconds]
    files.append(_write(folder / SECONDS, seconds))
    return files


def _run(record: Record) -> dict[str, Any]:
    run, measured, end = record.run, measure(record), record.end
    return {
        "run": record.name, "experiment": run.experiment, "model": run.model_name, "mode": run.mode_name,
        "workers": run.workers, "kills": run.kills_name, "resources": run.resources_name, "repeat": run.repeat,
        "seconds": measured.seconds, "examples_per_s": measured.rate, "useful_examples": measured.useful,
        "lost_examples": measured.lost_examples, "killed": len(record.of("kill")),
        "checkpoints": measured.checkpoints, "checkpoint_s": measured.checkpoint_s,
        "data_bytes": measured.data_bytes, "parity_bytes": measured.parity_bytes,
        "resident_bytes": measured.resident_bytes, "lost_updates": end.get("lost_updates"),
        "parity_ok": end.get("parity_ok"), "auc": end.get("auc"), "digest": end.get("model_digest"),
    }  # fmt: skip


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return path


def _cell(value: Any) -> Any:
    """Six digits are more than any of these figures has."""
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
