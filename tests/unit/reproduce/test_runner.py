"""The runner: what is done is not done again, other machines' results are refused, what fails or is skipped is said."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hand_made import end, event, lines_of, second, servers

from ecrec.errors import ConfigurationError
from ecrec.reproduce import raw, runner
from ecrec.reproduce.plan import Run, load
from ecrec.reproduce.runner import Runner, run_command
from ecrec.train.machine import machine, machine_of

pytest.importorskip("matplotlib")

PLAN = load()


class Machinery:
    """Does no run; writes what one could have written."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.commands: list[list[str]] = []
        self.fails: set[str] = set()
        self.stops_after: int | None = None
        self.machine: dict[str, Any] = machine()

    def __call__(self, command: list[str], limit_s: float) -> tuple[int, str]:
        if self.stops_after is not None and len(self.ran) >= self.stops_after:
            raise KeyboardInterrupt
        assert "-m" not in command, "a checkout in the current directory must not be taken for what is installed"
        given = command[command.index("ecrec.reproduce.one") + 1 :]
        words = dict(zip(given[::2], given[1::2], strict=True))
        run = msgspec.json.decode(Path(words["--run"]).read_bytes(), type=Run)
        assert Path(words["--data"]).exists() and limit_s > run.expected_s
        self.ran.append(run.name)
        self.commands.append(command)
        path = Path(words["--raw"])
        if run.mode_name in self.fails:
            path.with_name(path.name.removesuffix(raw.SUFFIX) + raw.PARTIAL).write_text("{}\n")
            return 1, "error: it broke"
        lines = [second(t, 100) for t in range(10)]
        lines += [servers(5.0), event(4.0, "kill", 400, shard=2), event(4.5, "whole", 440, shard=2, epoch=2)]
        done = end(auc=0.7, model_digest="aa", logloss=0.5, lost_updates=0)
        path.write_text(lines_of(run, *lines, done, machine=self.machine))
        return 0, ""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.tsv"
    path.write_text("1" + "\t" * 39 + "\n")
    return str(path)


@pytest.fixture
def possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine can do."""
    monkeypatch.setattr(runner, "why_not", lambda run, on: run.mode.unavailable)


def make(tmp_path: Path, one: Machinery, rows: str, only: str | None = None, said: list[str] | None = None) -> Runner:
    say = (said if said is not None else []).append
    return Runner(PLAN, "smoke", only, tmp_path / "out", rows, say, one)


@pytest.mark.usefixtures("possible")
def test_everything_is_run_and_every_plot_and_table_is_there(tmp_path: Path, rows: str) -> None:
    one, said = Machinery(), list[str]()
    outcome = make(tmp_path, one, rows, said=said).run()
    folder = tmp_path / "out" / "smoke"
    assert outcome.failed == [] and outcome.folder == folder
    for name in PLAN.claims:
        for path in (
            folder / "plots" / f"{name}.svg",
            folder / "plots" / f"{name}.png",
            folder / "csv" / f"{name}.csv",
        ):
            assert path.stat().st_size > 0
    assert "## C10" in (folder / "summary.md").read_text()
    assert said[-1].startswith(f"[{len(one.ran)}/{len(one.ran)}] ") and said[-1].endswith(" s left")
    skipped = [text for text in said if text.startswith("SKIPPED: ablations, ec41-weights-only: ")]
    assert len(skipped) == 1 and [each.claims for each in outcome.skipped] == [("C7",)]
    assert "records; weights and state" in (folder / "summary.md").read_text()


@pytest.mark.usefixtures("possible")
def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path: Path, rows: str) -> None:
    first = Machinery()
    first.stops_after = 2
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, first, rows, "C1").run()
    second_one, said = Machinery(), list[str]()
    make(tmp_path, second_one, rows, "C1", said).run()
    assert len(first.ran) == 2 and len(second_one.ran) == 1 and not set(first.ran) & set(second_one.ran)
    assert said[0].startswith("2 of 3 runs are done already")
    third = Machinery()
    make(tmp_path, third, rows, "C1").run()
    assert third.ran == []


@pytest.mark.usefixtures("possible")
def test_other_rows_are_other_runs(tmp_path: Path, rows: str) -> None:
    make(tmp_path, first := Machinery(), rows, "C10").run()
    other = tmp_path / "other.tsv"
    other.write_text(2 * ("1" + "\t" * 39 + "\n"))
    make(tmp_path, again := Machinery(), str(other), "C10").run()
    assert len(first.ran) == len(again.ran) == 1 and first.ran != again.ran


@pytest.mark.usefixtures("possible")
def test_a_failed_run_is_said_and_done_again(tmp_path: Path, rows: str) -> None:
    one, said = Machinery(), list[str]()
    one.fails = {"stop"}
    outcome = make(tmp_path, one, rows, "C1", said).run()
    assert [each.why for each in outcome.failed] == ["error: it broke"]
    assert any(text.startswith("FAILED: normal, touched-tiny, stop") for text in said)
    folder = tmp_path / "out" / "smoke" / "raw"
    (failed,) = folder.glob(f"*{raw.FAILED}")
    assert "it broke" in failed.read_text() and "error: it broke" in (folder.parent / "summary.md").read_text()
    again = Machinery()
    assert make(tmp_path, again, rows, "C1").run().failed == []
    assert len(again.ran) == 1 and "-stop-" in again.ran[0] and not list(folder.glob(f"*{raw.FAILED}"))


@pytest.mark.usefixtures("possible")
def test_results_of_another_machine_are_refused_before_anything_is_run(tmp_path: Path, rows: str) -> None:
    make(tmp_path, Machinery(), rows, "C10").run()
    path = tmp_path / "out" / "smoke" / "machine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cpu": "another", "cores": 64}))
    one = Machinery()
    with pytest.raises(ConfigurationError, match=r"results of another machine \(cores 64 there.*; cpu another there"):
        make(tmp_path, one, rows, "C10").run()
    assert one.ran == []


@pytest.mark.usefixtures("possible")
def test_a_file_of_another_machine_among_the_others_is_refused(tmp_path: Path, rows: str) -> None:
    one = Machinery()
    one.machine = {**machine(), "memory_bytes": 1}
    with pytest.raises(ConfigurationError, match=r"is of another machine \(memory_bytes differ\)"):
        make(tmp_path, one, rows, "C10").run()


def test_a_machine_file_that_cannot_be_read_is_named(tmp_path: Path, rows: str) -> None:
    (tmp_path / "out" / "smoke").mkdir(parents=True)
    (tmp_path / "out" / "smoke" / "machine.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"machine.json: cannot be read"):
        make(tmp_path, Machinery(), rows).run()


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such file"):
        make(tmp_path, Machinery(), str(tmp_path / "none.tsv")).run()


def test_a_limited_network_is_a_namespace_around_the_run(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "why_not", lambda run, on: "" if run.resources.mbit_s else "not this time")
    one, said = Machinery(), list[str]()
    outcome = make(tmp_path, one, rows, "C9", said).run()
    (command,) = one.commands
    assert command[:3] == ["unshare", "--net", "sh"] and "rate 400000kbit" in command[4]
    assert said[0] == "SKIPPED: limited, ec41: not this time" and len(outcome.skipped) == 1


def test_runs_on_ray_are_told_so_and_use_the_folder_that_all_nodes_see(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "describe_engine", lambda on: "Ray, nodes of 4 CPUs" if on == "ray" else "")
    one, said = Machinery(), list[str]()
    one.machine = machine_of("Ray, nodes of 4 CPUs")
    outcome = Runner(PLAN, "smoke", "C1,C9", tmp_path / "out", rows, said.append, one, on="ray").run()
    folder = tmp_path / "out" / "smoke"
    assert len(one.commands) == 3 and outcome.failed == []
    for command in one.commands:
        words = dict(itertools.pairwise(command))
        assert (words["--on"], words["--engine"]) == ("ray", "Ray, nodes of 4 CPUs")
        assert Path(words["--shared"]).is_relative_to(folder) and Path(words["--run"]).is_relative_to(folder)
    assert {"unshare"}.isdisjoint({command[0] for command in one.commands})
    assert all("cannot be limited (--on ray)" in each.why for each in outcome.skipped) and outcome.skipped
    assert "servers and workers on Ray, nodes of 4 CPUs" in (folder / "summary.md").read_text()
    assert not [path for path in folder.iterdir() if path.name.startswith("ecrec-reproduce-")]
    with pytest.raises(ConfigurationError, match="engine Ray, nodes of 4 CPUs there, None here"):
        make(tmp_path, Machinery(), rows, "C1").run()


def test_a_command_that_fails_or_hangs_ends_and_says_why(tmp_path: Path) -> None:
    code, words = run_command([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], 60.0)
    assert code == 3 and words == "why"
    assert run_command([sys.executable, "-c", "pass"], 60.0) == (0, "")
    sleep = shutil.which("sleep")
    assert sleep is not None
    code, words = run_command([sleep, "100"], 0.1)
    assert code != 0 and words == "not done after 0 s"
