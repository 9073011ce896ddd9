"""Runs of the evaluation with real processes: what each mode does after a death, as its raw lines tell it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ecrec.data import SyntheticDataset, SyntheticOptions
from ecrec.reproduce.available import why_no_incremental
from ecrec.reproduce.measure import Measured, measure
from ecrec.reproduce.plan import KillAt, Resources, Run, load
from ecrec.reproduce.raw import read
from ecrec.reproduce.resources import CpuLimit, why_no_cpu_limit

RUN_S = 180
ROWS = 20_000
PLAN = load()
LONG = pytest.mark.skipif("ECREC_LONG_FAULTS" not in os.environ, reason="minutes: set ECREC_LONG_FAULTS=1")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    SyntheticDataset(SyntheticOptions(rows=ROWS, seed=7)).write_tsv(path)
    return path


def do(folder: Path, rows: Path, mode: str, **fields: Any) -> Measured:
    usual: dict[str, Any] = {
        "experiment": "e", "claims": ("C1",), "model_name": "tiny", "mode_name": mode, "kills_name": "",
        "resources_name": "", "model": PLAN.models["tiny"], "mode": PLAN.modes[mode], "workers": 1, "kills": (),
        "mtbf_s": None, "resources": Resources(), "seconds": 0.0, "steps": 40, "warm_up_s": 0.0, "every": 0.5,
        "exact": True, "until_recovered": False, "repeat": 0, "seed": 7,
    }  # fmt: skip
    run = Run(**{**usual, **fields})
    (folder / "run.json").write_bytes(msgspec.json.encode(run))
    path = folder / f"{run.name}.jsonl"
    command = [sys.executable, "-m", "ecrec.reproduce.one", "--run", str(folder / "run.json"), "--raw", str(path)]
    command += ["--data", str(rows), "--data-rows", str(ROWS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return measure(read(path))


AT_20 = (KillAt(None, 20, (0.5,)),)


def test_a_death_with_parity_costs_no_step(tmp_path: Path, rows: Path) -> None:
    found = do(tmp_path, rows, "ec41", kills=AT_20)
    (failure,) = found.failures
    end = found.record.end
    assert (end["lost_updates"], end["parity_ok"], found.lost_examples) == (0, True, 0)
    assert failure.first_row_s is not None and failure.whole_s is not None and failure.recovery_s == failure.whole_s
    assert end["position"] == 40 * PLAN.models["tiny"].batch and 0.5 < end["auc"] < 1
    assert found.data_bytes > 0 and found.parity_bytes > 0


@LONG
@pytest.mark.parametrize("mode", ["stop", "incremental"])
def test_going_back_repeats_steps_and_gives_the_same_model(tmp_path: Path, rows: Path, mode: str) -> None:
    if mode == "incremental" and (why := why_no_incremental()):
        pytest.skip(why)
    calm = do(tmp_path, rows, mode)
    found = do(tmp_path, rows, mode, kills=AT_20)
    (failure,) = found.failures
    assert failure.lost_examples > 0 and failure.caught_up_s is not None and failure.load_bytes > 0
    assert found.record.end["model_digest"] == calm.record.end["model_digest"]
    assert len(found.record.of("goes back")) == 1 and calm.record.end["position"] == found.record.end["position"]


@LONG
def test_a_kill_while_there_is_no_cluster_hits_nobody(tmp_path: Path, rows: Path) -> None:
    kills = tuple(KillAt(at_s, None, (0.5,)) for at_s in (2.0, 2.05, 2.1))
    found = do(tmp_path, rows, "copy", kills=kills, exact=False, steps=0, seconds=5.0)
    assert (len(found.record.of("kill")), len(found.record.of("kill missed"))) == (1, 2)


@LONG
def test_partial_recovery_goes_on_with_another_model(tmp_path: Path, rows: Path) -> None:
    calm = do(tmp_path, rows, "partial")
    found = do(tmp_path, rows, "partial", kills=AT_20)
    (failure,) = found.failures
    assert failure.lost_examples == 0 and failure.load_bytes > 0 and failure.recovery_s is not None
    assert len(found.record.of("rows lost")) == 1
    assert found.record.end["model_digest"] != calm.record.end["model_digest"]


@LONG
@pytest.mark.parametrize("mode", ["none", "ec41-term", "ec41-dense-once", "ec41-forgetful", "rep12-last"])
def test_other_modes_end(tmp_path: Path, rows: Path, mode: str) -> None:
    found = do(tmp_path, rows, mode, kills=AT_20)
    assert found.record.end["position"] >= 40 * PLAN.models["tiny"].batch - PLAN.models["tiny"].batch


@LONG
def test_two_deaths_at_once_go_back_to_the_last_resort(tmp_path: Path, rows: Path) -> None:
    found = do(tmp_path, rows, "ec41-last", kills=(KillAt(None, 20, (0.1, 0.5)),))
    assert len(found.record.of("goes back")) == 1 and found.record.end["position"] == 40 * PLAN.models["tiny"].batch


def test_processes_are_held_to_a_share_of_a_core() -> None:
    if why := why_no_cpu_limit():
        pytest.skip(why)
    spin = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    with CpuLimit(0.2) as limit:
        process = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE, text=True)
        limit.hold([process.pid])
        used, _ = process.communicate(timeout=60)
        assert limit.throttled["nr_throttled"] > 0
    assert float(used) < 0.6
