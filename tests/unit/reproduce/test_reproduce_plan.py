"""experiments.toml: what it says, what it may not say, and which runs follow."""

import itertools
import re
import statistics
import sys
from importlib import resources
from pathlib import Path

import pytest

from ecrec.errors import ConfigurationError
from ecrec.reproduce import plan as plans
from ecrec.reproduce.claims import FINDERS
from ecrec.reproduce.plan import SCALES, Kills, check_only, draw_kills, load, runs
from ecrec.reproduce.plots import PLOTS
from ecrec.reproduce.summary import claims_text

PLAN = load()
TEXT = resources.files("ecrec.reproduce").joinpath(plans.FILE).read_text()
ROOT = Path(__file__).parents[3]


def test_each_claim_has_a_finder_a_plot_and_runs_at_each_scale() -> None:
    assert set(PLAN.claims) == set(FINDERS) == set(PLOTS)
    for scale in SCALES:
        assert {claim for run in runs(PLAN, scale, tuple(PLAN.claims)) for claim in run.claims} == set(PLAN.claims)


@pytest.mark.parametrize(("scale", "minutes"), [("smoke", 4), ("laptop", 60)])
def test_a_scale_takes_no_longer_than_it_says(scale: str, minutes: float) -> None:
    assert sum(run.expected_s for run in runs(PLAN, scale, tuple(PLAN.claims))) <= 60 * minutes


def test_no_two_runs_have_one_name_and_names_are_fit_for_files() -> None:
    for scale in SCALES:
        names = [run.name for run in runs(PLAN, scale, tuple(PLAN.claims))]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[A-Za-z0-9+._-]+", name) for name in names)


def test_a_run_that_differs_in_anything_has_another_name() -> None:
    run = runs(PLAN, "smoke", ("C1",))[0]
    others = [
        runs(PLAN, "smoke", ("C1",), data="other rows")[0],
        runs(load(TEXT.replace("seed = 7", "seed = 8")), "smoke", ("C1",))[0],
    ]
    assert len({run.name, *(other.name for other in others)}) == 3


def test_every_mode_and_model_is_used_and_every_target_names_a_figure_that_a_mode_gives() -> None:
    used = [run for scale in SCALES for run in runs(PLAN, scale, tuple(PLAN.claims))]
    assert {run.model_name for run in used} == set(PLAN.models)
    assert {run.mode_name for run in used} == set(PLAN.modes)
    for claim in PLAN.claims.values():
        for target in claim.targets:
            modes = [word for word in target.figure.split() if word in PLAN.modes]
            assert modes or target.figure == "lost updates", target.figure


def test_kills_are_the_same_for_all_modes_and_others_in_each_repeat() -> None:
    found = [run for run in runs(PLAN, "laptop", ("C8",)) if run.kills_name == "mtbf-10s"]
    assert len({run.kills for run in found if run.repeat == 0}) == 1
    kills = Kills(mtbf_s=10.0)
    first, again, other = (draw_kills(PLAN, kills, 100.0, 5, name)[1] for name in ("a/0", "a/0", "a/1"))
    assert first == again != other


def test_random_kills_come_as_often_as_they_should() -> None:
    mtbf_s, found = draw_kills(PLAN, Kills(mtbf_s=10.0), 20_000.0, 5, "x")
    times = [kill.at_s or 0.0 for kill in found]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert mtbf_s == 10.0 and len(found) == 2000 and times[0] > 0 and times[-1] < 20_000
    assert statistics.mean(gaps) == pytest.approx(10.0, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(10.0, rel=0.1), "bursts and calms as of a Poisson process"
    assert len(draw_kills(PLAN, Kills(mtbf_s=1e6), 10.0, 5, "x")[1]) == 1


def test_a_trace_gives_its_rate_and_its_sizes() -> None:
    trace = PLAN.traces["spot"]
    mtbf_s, found = draw_kills(PLAN, Kills(trace="spot", time_scale=200.0), 30_000.0, 5, "x")
    assert mtbf_s == pytest.approx(3600 / (0.123 * 5) / 200)
    assert len(found) == round(30_000 / mtbf_s)
    for size, share in enumerate(trace.sizes, 1):
        assert sum(len(kill.places) == size for kill in found) / len(found) == pytest.approx(share, abs=0.05)
    assert all(len(set(kill.places)) == len(kill.places) for kill in found)


def test_repeats_turn_the_order_of_the_modes_around() -> None:
    found = [run for run in runs(PLAN, "laptop", ("C1",)) if run.experiment == "normal"]
    first, second = ([run.mode_name for run in found if run.repeat == repeat] for repeat in (0, 1))
    assert first == second[::-1] and first != second


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) >= 1
    return TEXT.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed("seed = 7", "seed = 7\nsurprise = 1"), "surprise"),
        (changed("rows = 2000", "rows = 'many'"), "rows"),
        (changed('claims = ["C1", "C5"]', 'claims = ["C1", "C77"]'), "there is no claim 'C77'"),
        (changed('models = ["touched-1"]', 'models = ["none such"]'), "there is no model 'none such'"),
        (changed('modes = ["none", "ec41", "stop"]', 'modes = ["nonsense"]'), "there is no mode 'nonsense'"),
        (changed('trace = "spot"', 'trace = "dots"'), "there is no trace 'dots'"),
        (changed("steps = 300", "steps = 300\nseconds = 5"), "seconds or steps"),
        (changed("warm_up_s = 2", "warm_up_s = 200"), "warm_up_s 200"),
        (changed("{ mtbf_s = 60.0 }", "{ mtbf_s = 60.0, at_s = [1.0] }"), "expected one of"),
        (changed('checkpoint = "stop"', 'checkpoint = "stopp"'), "checkpoint"),
        (changed("at_steps = [150]", "mtbf_s = 3.0"), "random kills"),
        ("seed = ", "experiments.toml"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        load(text)


def test_only_these_claims() -> None:
    assert check_only(PLAN, "C3, C1") == ("C3", "C1") and check_only(PLAN, None) == tuple(PLAN.claims)
    with pytest.raises(ConfigurationError, match="there is no claim 'C0'"):
        check_only(PLAN, "C0")
    assert {run.experiment for run in runs(PLAN, "laptop", ("C10",))} == {"workers"}


def test_without_a_reader_of_toml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"ecrec\[reproduce\]"):
        load()


def test_claims_md_is_what_the_experiments_say() -> None:
    assert (ROOT / "CLAIMS.md").read_text() == claims_text(PLAN), "ecrec reproduce --claims > CLAIMS.md"


def test_the_document_names_each_mode() -> None:
    document = (ROOT / "docs" / "evaluation.md").read_text()
    missing = [name for name in PLAN.modes if f"`{name}`" not in document]
    assert missing == []
