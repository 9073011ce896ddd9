"""What is found of each claim, from hand-made runs, and how it is judged."""

import json
from pathlib import Path
from typing import Any

import pytest
from hand_made import MACHINE, end, event, make_run, record_of, second, servers

from ecrec.reproduce import summary, tables
from ecrec.reproduce.claims import MET, MISSED, NOT_MEASURED, TOO_SHORT, WITHIN, find, judge
from ecrec.reproduce.plan import KillAt, Resources, Target, load
from ecrec.reproduce.raw import Record
from ecrec.reproduce.summary import NotDone

PLAN = load()
KILL = (KillAt(4.0, None, (0.5,)),)


def finding(name: str, *records: Record) -> Any:
    (found,) = find(PLAN.claims, [name], records)
    return found


@pytest.mark.parametrize(
    ("limits", "values", "verdict"),
    [
        ({"at_most": 0.05}, [0.04, 0.9, 0.01], MET),
        ({"at_most": 0.05}, [0.05], MET),
        ({"at_most": 0.05, "tolerance": 0.02}, [0.07], WITHIN),
        ({"at_most": 0.05, "tolerance": 0.02}, [0.08], MISSED),
        ({"at_least": 0.9}, [0.95, 0.85], MET),
        ({"at_least": 0.9, "tolerance": 0.05}, [0.86], WITHIN),
        ({"at_least": 0.9}, [0.86], MISSED),
        ({"at_least": 0.9, "at_most": 1.0}, [1.1], MISSED),
        ({"at_most": 0.0}, [], NOT_MEASURED),
    ],
)
def test_a_median_is_compared_with_its_target(limits: dict[str, float], values: list[float], verdict: str) -> None:
    assert judge(Target(figure="f", text="t", **limits), values) == verdict


def test_in_runs_of_seconds_only_what_is_no_time_is_judged() -> None:
    """A reader would take a missed target for one."""
    assert judge(Target(figure="f", text="t", at_most=0.05), [9.0], is_smoke=True) == TOO_SHORT
    assert judge(Target(figure="f", text="t", at_most=0.05, is_timing=False), [9.0], is_smoke=True) == MISSED
    judged = {t.figure for claim in PLAN.claims.values() for t in claim.targets if not t.is_timing}
    assert judged == {"same model ec41", "lost updates", "parity / data ec41"}


def calm(tmp_path: Path, mode: str, rate: float, repeat: int = 0, **fields: Any) -> Record:
    run = make_run(mode=mode, claims=("C1", "C5"), repeat=repeat, **fields)
    lines = [second(t, rate) for t in range(10)]
    return record_of(tmp_path, run, *lines, servers(5.0), end(10.0, position=10 * rate))


def test_overhead_is_that_of_the_same_repeat(tmp_path: Path) -> None:
    records = [calm(tmp_path, "none", 100, 0), calm(tmp_path, "ec41", 96, 0), calm(tmp_path, "stop", 80, 0)]
    records += [calm(tmp_path, "none", 50, 1), calm(tmp_path, "ec41", 49, 1), calm(tmp_path, "stop", 40, 1)]
    found = finding("C1", *records)
    assert found.figures["overhead ec41"] == pytest.approx([0.04, 0.02])
    assert found.figures["overhead stop"] == pytest.approx([0.2, 0.2])
    assert found.figures["overhead ec41 / stop"] == pytest.approx([0.2, 0.1])
    assert [each.verdict for each in found.verdicts] == [MET, MET] and found.verdict == MET
    assert len(found.rows) == 6 and "overhead none" not in found.figures


def test_runs_with_other_workers_or_resources_are_not_compared(tmp_path: Path) -> None:
    records = [
        calm(tmp_path, "none", 100),
        calm(tmp_path, "ec41", 50, workers=2),
        calm(tmp_path, "ec41", 50, resources_name="half", resources=Resources(cores=0.5)),
        calm(tmp_path, "ec41", 50, model_name="other"),
    ]
    assert finding("C1", *records).figures == {}
    assert finding("C1", *records).verdict == NOT_MEASURED


def test_memory_is_parity_of_data(tmp_path: Path) -> None:
    found = finding("C5", calm(tmp_path, "ec41", 10))
    assert found.figures["parity / data ec41"] == [0.25] and found.verdict == MET


def recovery(tmp_path: Path, mode: str, claims: tuple[str, ...] = ("C2", "C3")) -> Record:
    run = make_run(mode=mode, claims=claims, kills=KILL, kills_name="once")
    lines = [second(t, 100) for t in range(10)]
    lines += [servers(3.0, data=4e9, parity=1e9), event(4.0, "kill", 400, shard=2)]
    if mode == "ec41":
        lines += [
            event(4.2, "down", 400, shard=2, epoch=1), event(4.3, "first row", 400, shard=2, epoch=2),
            event(4.5, "whole", 446, shard=2, epoch=2),
        ]  # fmt: skip
    else:
        lines += [
            event(4.1, "process ended", 400), event(4.1, "goes back", 100, examples=300),
            event(5.0, "loaded", 100, seconds=0.9, bytes=10, rows=1), event(5.1, "first row", 100, shard=1, epoch=1),
            event(8.0, "caught up", 400),
        ]  # fmt: skip
    return record_of(tmp_path, run, *lines, end(10.0, position=700))


def test_recovery_is_compared_with_going_back(tmp_path: Path) -> None:
    found = finding("C2", recovery(tmp_path, "ec41"), recovery(tmp_path, "stop"))
    assert found.figures["first row s ec41"] == pytest.approx([0.3])
    assert found.figures["GB/s ec41"] == pytest.approx([2.0]), "1 GB of 5 lay on the dead server"
    assert found.figures["recovery s stop"] == pytest.approx([4.0])
    assert found.figures["recovery stop / ec41"] == pytest.approx([8.0])
    assert found.figures["recovery stop without loading / ec41"] == pytest.approx([6.2])
    assert found.verdict == MET
    rows = {row["mode"]: row for row in found.rows}
    assert rows["stop"]["lost_examples"] == 300 and rows["ec41"]["s_per_gb"] == pytest.approx(0.5)


def test_throughput_through_a_recovery(tmp_path: Path) -> None:
    found = finding("C3", recovery(tmp_path, "ec41"), recovery(tmp_path, "stop"))
    assert found.figures["during / before ec41"] == pytest.approx([0.92]) and found.verdict == MET
    assert found.figures["during / before stop"] == pytest.approx([0.0])
    line = [(row["t"], row["ratio"]) for row in found.rows if row["mode"] == "ec41"]
    assert len(line) == 10 and line[4] == (pytest.approx(0.5), pytest.approx(1.0))


def exact(tmp_path: Path, mode: str, kills: int, digest: str, auc: float, lost: int = 0) -> Record:
    run = make_run(mode=mode, claims=("C4",), kills=KILL * kills, exact=True, seconds=0.0, steps=5)
    lines = [event(1.0 + i, "kill", 0, shard=i) for i in range(kills)]
    results = {"model_digest": digest, "auc": auc, "logloss": 0.5, "lost_updates": lost, "parity_ok": True}
    return record_of(tmp_path, run, *lines, end(**results))


def test_the_same_model_is_the_same_digest(tmp_path: Path) -> None:
    records = [exact(tmp_path, "ec41", 0, "aa", 0.75), exact(tmp_path, "ec41", 1, "aa", 0.75)]
    records += [exact(tmp_path, "partial", 0, "aa", 0.75), exact(tmp_path, "partial", 1, "bb", 0.74)]
    found = finding("C4", *records)
    assert found.figures["same model ec41"] == [1.0] and found.figures["same model partial"] == [0.0]
    assert found.figures["AUC change partial"] == pytest.approx([-0.01]) and found.verdict == MET
    other = finding("C4", records[0], exact(tmp_path, "ec41", 2, "cc", 0.75))
    assert other.verdict == MISSED
    assert finding("C4", *records, exact(tmp_path, "ec41", 3, "aa", 0.75, lost=2)).figures["lost updates"].count(2) == 1


def failures(tmp_path: Path, mode: str, useful: float, kills: int, lost: int = 0) -> Record:
    run = make_run(mode=mode, claims=("C8",), kills_name="mtbf-60s", kills=KILL, mtbf_s=60.0)
    lines = [second(t, 100) for t in range(10)]
    lines += [event(5.0 + i, "kill", 500, shard=i) for i in range(kills)]
    lines += [event(6.5, "goes back", 500 - lost, examples=lost)] if lost else []
    return record_of(tmp_path, run, *lines, event(0.0, "begin", 0), end(10.0, position=useful))


def test_the_effective_training_time_ratio_is_of_a_run_without_failures(tmp_path: Path) -> None:
    reference = record_of(
        tmp_path, make_run(mode="none", claims=("C8",)), *(second(t, 125) for t in range(10)), end(10.0, position=1250)
    )
    mode = make_run().mode
    ours = failures(tmp_path, "ec41", useful=1000, kills=2)
    ours = ours._replace(run=make_run(claims=("C8",), mode_name="ec41-last", kills_name="mtbf-60s", kills=KILL))
    assert mode == ours.run.mode
    found = finding("C8", reference, ours, failures(tmp_path, "stop", useful=500, kills=1, lost=200))
    assert found.figures["ETTR ec41-last mtbf-60s"] == pytest.approx([0.8])
    assert found.figures["ETTR stop mtbf-60s"] == pytest.approx([0.4])
    assert found.verdicts[0].verdict == MISSED and found.verdicts[1].verdict == NOT_MEASURED
    rows = {row["mode"]: row for row in found.rows}
    assert rows["stop"]["lost_s_per_kill"] == pytest.approx(5.0) and rows["stop"]["went_back"] == 1
    assert rows["ec41-last"]["lost_s_per_kill"] == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["C6", "C7", "C9", "C10"])
def test_other_claims_describe_overhead_and_recovery(tmp_path: Path, name: str) -> None:
    found = finding(name, recovery(tmp_path, "ec41", (name,)), recovery(tmp_path, "none", (name,)))
    assert found.verdict == "described" and found.figures["recovery s ec41"] == pytest.approx([0.5])
    assert found.figures["overhead ec41"] == pytest.approx([0.0])


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    for found in find(PLAN.claims, PLAN.claims, []):
        assert found.verdict == NOT_MEASURED and found.rows == []


def test_the_summary_has_each_claim_its_command_verdict_and_what_is_missing(tmp_path: Path) -> None:
    found = find(PLAN.claims, PLAN.claims, [recovery(tmp_path, "ec41"), recovery(tmp_path, "stop")])
    path = tmp_path / "summary.md"
    missing = [NotDone("normal, m, incremental", "not in this version", ("C1",))]
    summary.write(path, found, "laptop", MACHINE, {"ecrec": "1"}, missing, 60.0)
    text = path.read_text()
    for name, claim in PLAN.claims.items():
        assert f"[{name}](#{name.lower()})" in text and f"## {name}\n" in text and claim.published in text
        assert f"`ecrec reproduce --scale laptop --only {name}`" in text
    assert "| 8 (one value) | met |" in text and "plots/C2.svg" in text and "plots/C9.svg" not in text
    assert text.count("normal, m, incremental: not in this version") == 1
    assert "a, 2 cores, 16 GiB, s" in text


def test_tables_have_the_rows(tmp_path: Path) -> None:
    records = [recovery(tmp_path, "ec41"), recovery(tmp_path, "stop")]
    files = tables.write(tmp_path / "csv", find(PLAN.claims, ["C2", "C9"], records), records)
    assert {path.name for path in files} == {"C2.csv", "runs.csv", "seconds.csv"}
    lines = (tmp_path / "csv" / "C2.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("experiment,model,mode,")
    assert len((tmp_path / "csv" / "seconds.csv").read_text().splitlines()) == 21
    assert json.dumps(records[0].name)[1:-1] in (tmp_path / "csv" / "runs.csv").read_text()
