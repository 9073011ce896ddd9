"""Hand-made runs: plans and raw lines whose figures are known."""

import json
from pathlib import Path
from typing import Any

import msgspec

from ecrec.reproduce.plan import Mode, Model, Resources, Run
from ecrec.reproduce.raw import Record, read

MACHINE = {"cpu": "a", "cores": 2, "memory_bytes": 1 << 34, "system": "s"}
MODES = {
    "none": Mode(title="none", code="4+0", recovery="scratch"),
    "ec41": Mode(title="4+1", code="4+1"),
    "stop": Mode(title="stop", code="4+0", checkpoint="stop", recovery="restart"),
    "partial": Mode(title="partial", code="4+0", checkpoint="copy", recovery="partial"),
}


def make_run(mode: str = "ec41", **fields: Any) -> Run:
    """A run of ten seconds; ``fields`` differ."""
    usual: dict[str, Any] = {
        "experiment": "e", "claims": ("C1",), "model_name": "m", "mode_name": mode, "kills_name": "",
        "resources_name": "", "model": Model(title="m", rows=10), "mode": MODES[mode], "workers": 1, "kills": (),
        "mtbf_s": None, "resources": Resources(), "seconds": 10.0, "steps": 0, "warm_up_s": 0.0, "every": 10.0,
        "exact": False, "until_recovered": False, "repeat": 0, "seed": 7,
    }  # fmt: skip
    return Run(**{**usual, **fields})


def lines_of(run: Run, *lines: dict[str, Any], machine: dict[str, Any] | None = None) -> str:
    first = {
        "kind": "run",
        "version": 1,
        "run": msgspec.to_builtins(run),
        "machine": machine or MACHINE,
        "versions": {},
    }
    return "".join(json.dumps(line) + "\n" for line in (first, *lines))


def second(t: int, examples: float, worker: int = 0) -> dict[str, Any]:
    return {
        "kind": "second", "t": t, "worker": worker, "steps": 1, "examples": examples, "loss": 0.5, "waited_s": 0.1,
        "longest_s": 0.2,
    }  # fmt: skip


def event(t: float, name: str, position: int = 0, **fields: Any) -> dict[str, Any]:
    return {"kind": "event", "t": t, "event": name, "position": position, **fields}


def servers(t: float, data: float = 4000.0, parity: float = 1000.0, **fields: float) -> dict[str, Any]:
    return {
        "kind": "servers", "t": t, "data_bytes": data, "parity_bytes": parity, "resident_bytes": 9000.0, **fields
    }  # fmt: skip


def end(t: float = 10.0, position: float = 1000, **fields: Any) -> dict[str, Any]:
    return {"kind": "end", "t": t, "position": position, "examples": position, **fields}


def record_of(folder: Path, run: Run, *lines: dict[str, Any]) -> Record:
    """Through a file."""
    path = folder / f"{run.name}.jsonl"
    path.write_text(lines_of(run, *lines))
    return read(path)
