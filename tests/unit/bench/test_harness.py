"""How `ecrec bench` measures: ratios, turns, comparison of results, JSON, and peers that are not installed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ecrec.bench import harness, kernels, suites, workload
from ecrec.bench.harness import Case, PeerMissingError, ResultsDifferError, Run, Selection
from ecrec.bench.peers.fbgemm import Fbgemm
from ecrec.errors import ConfigurationError

KEYS = {"case", "unit", "ours", "peer", "peer_name", "ratio", "ratio_min", "ratio_max"}


def told(name: str, seconds: float, order: list[str]) -> Run:
    def run(calls: int) -> float:
        order.append(name)
        return seconds * calls

    return run


def case_of(order: list[str], result: str = "ab12") -> Case:
    return Case(
        "work", "million rows/s", 3.0, told("ours", 0.01, order), {"peer": told("peer", 0.02, order)}, lambda: result
    )


def run_one(case: Case, monkeypatch: pytest.MonkeyPatch, wanted: str = "") -> tuple[suites.Outcome, str]:
    def cases(selection: Selection) -> Iterator[Case]:
        if selection.wants(case.name):
            yield case
        selection.find("absent", missing)

    def missing() -> None:
        raise PeerMissingError("not installed: pip install absent")

    monkeypatch.setattr(suites, "suite", lambda name: cases)
    out = io.StringIO()
    outcome = suites.run(["batch"], wanted, 7, None, Console(file=out, width=200))
    return outcome, out.getvalue()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``ecrec bench``, in a process of its own: it changes its environment."""
    program = [sys.executable, "-m", "ecrec.cli", "bench", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120)


def test_rates_are_those_of_the_medians_and_the_ratio_spreads_over_the_rounds() -> None:
    case = case_of([])
    (line,) = harness.compare(case, "batch", {"": [1.0, 2.0, 3.0], "peer": [5.0, 4.0, 9.0]}, "ab12")
    assert (line.ours, line.peer) == (1.5, 0.6)
    assert (line.ratio, line.ratio_min, line.ratio_max) == (2.5, 2.0, 5.0)
    assert (line.peer_name, line.result) == ("peer", "ab12")


def test_the_sides_take_turns_and_each_is_in_turn_the_first() -> None:
    order: list[str] = []
    seconds = harness.take_turns(case_of(order), 4)
    assert order[-8:] == ["ours", "peer", "peer", "ours"] * 2
    assert seconds == {"": pytest.approx([0.01] * 4), "peer": pytest.approx([0.02] * 4)}


@pytest.mark.parametrize("call_seconds", [1e-7, 0.001, 0.02, 0.5])
def test_a_round_is_long_enough(call_seconds: float) -> None:
    calls = harness.calls_for(lambda calls: calls * call_seconds, 0.02)
    assert calls * call_seconds >= 0.02
    assert calls == 1 or calls * call_seconds < 0.1


def test_batches_are_taken_one_after_the_other() -> None:
    order: list[int] = []
    run = harness.repeated(*[lambda i=i: order.append(i) for i in range(3)])
    assert run(4) >= 0
    run(1)
    assert order == [0, 1, 2, 0, 1]


def test_results_that_differ_are_refused() -> None:
    ones = np.ones(4, np.float32)
    harness.check_equal("case", "peer", ones, ones.copy())
    with pytest.raises(ResultsDifferError, match="case: 1 of 4 values differ from those of peer"):
        harness.check_equal("case", "peer", ones, np.array([1, 1, 2, 1], np.float32))
    with pytest.raises(ResultsDifferError, match="case: ours is float32"):
        harness.check_equal("case", "peer", ones, np.ones(5, np.float32))
    assert harness.check_close("case", "peer", ones, ones + np.float32(0.5), 0.5) == 0.5
    with pytest.raises(ResultsDifferError, match=r"0\.5 away from peer"):
        harness.check_close("case", "peer", ones, ones + np.float32(0.5), 0.4)
    with pytest.raises(ResultsDifferError, match="nan away"):
        harness.check_close("case", "peer", ones, np.full(4, np.nan, np.float32), 1.0)


def test_a_missing_peer_is_visible_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, text = run_one(case_of([]), monkeypatch)
    assert [line.peer_name for line in outcome.lines] == ["peer"]
    assert "SKIPPED: batch: absent: not installed: pip install absent" in text
    assert "2.00..2.00" in text


def test_a_case_whose_results_differ_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs() -> str:
        raise ResultsDifferError("work: 3 of 4 values differ")

    outcome, text = run_one(Case("work", "u", 1.0, lambda n: 1.0, {"peer": lambda n: 1.0}, differs), monkeypatch)
    assert outcome.lines == []
    assert outcome.failed == ["work: 3 of 4 values differ"]
    assert "FAILED: work: 3 of 4 values differ" in text


def test_bad_options_are_refused() -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(ConfigurationError, match="--rounds is 6, expected at least 7"):
        suites.run(["batch"], "", 6, None, console)
    with pytest.raises(ConfigurationError, match="suite 'stroe': expected one of kernels, store, batch, rpc"):
        suites.run(["stroe"], "", 7, None, console)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kernel", "nosuch"], "--kernel nosuch"),
        (["--case", "no such case"], "no case of batch has this in its name"),
    ],
)
def test_the_command_refuses_what_cannot_be(arguments: list[str], said: str) -> None:
    done = command("batch", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.fixture
def threads_of_torch() -> Iterator[None]:
    """A peer holds torch to one thread; what comes after this test is to have those that it had."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("threads_of_torch")
def test_fbgemm_and_isal_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)
    selection = Selection("store")
    assert selection.find("FBGEMM", Fbgemm) is None
    monkeypatch.setattr("shutil.which", lambda name: None)
    kernel_selection = Selection("kernels")
    assert list(kernels.cases(kernel_selection)) == []
    (fbgemm,), (isal,) = selection.skipped, kernel_selection.skipped
    assert "pip install" in fbgemm.reason
    assert "install" in isal.reason


def test_global_rows_are_those_of_shard_0() -> None:
    local = np.arange(400)
    rows = workload.global_rows(local)
    stripe, slot = rows // workload.K, rows % workload.K
    assert np.all((stripe + slot) % workload.SHARDS == 0)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.max() < len(local) // workload.K * workload.SHARDS * workload.K


def test_the_batches_are_what_the_cases_say() -> None:
    step = workload.make_step(100_000, 1)
    (batch,) = step.batches
    assert len(batch.ids) == 53_248
    assert 29_500 < batch.distinct < 30_000
    assert batch.counts.sum() == batch.distinct
    table = np.repeat(step.tables, batch.counts)
    assert np.array_equal(workload.global_rows(batch.places - table * step.rows_per_table), batch.rows)
    assert np.array_equal(batch.rows[batch.inverse], batch.ids)


def test_the_command_measures_compares_and_writes_json(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "batch.json"
    done = command("batch", "--rounds", "7", "--case", "pool forward bag 10 dim 64", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "pool forward bag 10 dim 64" in done.stdout
    (line,) = json.loads(path.read_text())
    assert line.keys() >= KEYS
    assert line["peer_name"] == "torch embedding_bag"
    assert line["ratio_min"] <= line["ratio"] <= line["ratio_max"]
    assert line["ratio"] == pytest.approx(line["ours"] / line["peer"])
    assert line["kernel"] and line["cpu"] and line["versions"]["ecrec"]


def test_nothing_of_the_benchmarks_is_loaded_until_it_is_asked_for() -> None:
    code = "import sys, ecrec.cli, ecrec.launch.servers.ps; assert not any('ecrec.bench' in m for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
