"""A failing plan is made smaller, kept in a file, and fails again exactly as it did."""

from pathlib import Path

import msgspec
import pytest
from mutations import MUTATIONS
from simulate import main
from simulation.draw import draw
from simulation.minimise import Kept, ddmin, minimise
from simulation.plan import plan_from_json
from simulation.run import CORRECTNESS, run_plan, run_seed

KEPT = sorted((Path(__file__).parent / "kept").glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_failed_once_passes_now(path: Path) -> None:
    outcome = run_plan(Kept.read(path).plan)
    assert outcome.code == 0, outcome.report()


def test_ddmin_finds_the_items_that_matter() -> None:
    tried: list[list[int]] = []

    def fails(some: list[int]) -> bool:
        tried.append(some)
        return {3, 11} <= set(some)

    assert ddmin(range(16), fails) == [3, 11]
    assert len(tried) < 80
    assert ddmin([5], lambda some: True) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_is_the_same_after_a_file(seed: int) -> None:
    plan = draw(seed)
    again = plan_from_json(plan.to_json())
    assert again == plan
    assert run_plan(again).digest == run_plan(plan).digest


def test_a_plan_that_was_not_written_by_this_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"about": "old", "code": 3}')
    with pytest.raises(msgspec.ValidationError, match="missing required field"):
        Kept.read(path)


def test_a_failing_seed_becomes_a_smaller_plan_that_fails_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MUTATIONS["nothing_is_undone_beyond_the_cut"].make():
        seed = next(s for s in range(100) if run_seed(s).code == CORRECTNESS)
        first = run_seed(seed)
        kept = minimise(draw(seed), "a test", runs_max=40)
        assert kept is not None and (kept.code, kept.where) == (first.code, first.where)
        assert kept.plan.events < draw(seed).events
        kept.write(tmp_path / "kept.json")
        again = run_plan(Kept.read(tmp_path / "kept.json").plan)
        assert (again.code, again.where, again.digest) == (kept.code, kept.where, kept.digest)
        assert main(["--plan", str(tmp_path / "kept.json")]) == CORRECTNESS
        assert kept.digest in capsys.readouterr().out
    assert main(["--plan", str(tmp_path / "kept.json")]) == 0
    assert minimise(draw(seed), "it passes now") is None
