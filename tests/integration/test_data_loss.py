"""More servers are killed at once than the code tolerates: it is said what is lost, and by option training goes on."""

from runs import SMALL

from ecrec.protocol.loss import lost_rows
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, Placement, TableSpec

GOES_ON = ("--on-data-loss", "reinitialise")


def rows_of(report, shards, n, code):
    """How many rows of all tables these shards hold, by the placement; the tables' sizes are those of the report."""
    spec = CodeSpec.parse(code)
    placement = Placement(n)
    placement.add(spec)
    count = 0
    for name, rows in {(some["table"], some["of"]) for loss in report["losses"] for some in loss["lost"]}:
        table = TableSpec(name, rows, 1, spec, OptimizerSpec("sgd", (0.1,)), "zeros")
        for shard in shards:
            count += sum(some.rows for some in lost_rows(placement, [table], range(n), shard, 0, 1))
    return count


def test_training_goes_on_and_the_report_says_what_was_lost(trainer):
    # At step 70 some pushes are acknowledged: the worker does not run further ahead.
    finished = trainer.run(*SMALL, *GOES_ON, "--steps", "90", "--kill", "ps:1@70", "--kill", "ps:3@70")
    assert finished.code == 0, finished.story
    report = finished.report
    assert [(kill["shard"], kill["step"]) for kill in report["kills"]] == [(1, 70), (3, 70)], finished.story
    assert report["steps"] == 90, finished.story
    assert report["parity_ok"] is True, finished.story
    (loss,) = report["losses"]
    assert loss["reinitialised"] is True
    assert {some["shard"] for some in loss["lost"]} == {1, 3}
    assert {some["table"] for some in loss["lost"]} == {f"C{i}" for i in range(1, 27)}
    assert report["rows_reinitialised"] == loss["rows"] == rows_of(report, (1, 3), 5, "4+1") > 1000
    # all updates of these two shards touched rows that are gone; none was lost beyond that
    assert report["lost_updates"] == report["updates_damaged"] == loss["updates"] > 0, finished.story
    assert "warning: more servers died than the code tolerates" in finished.err
    assert f"{loss['rows']:,} rows were lost" in finished.err


def test_without_the_option_it_ends_and_names_the_rows(trainer):
    finished = trainer.run(*SMALL, "--kill", "ps:1@8", "--kill", "ps:3@8")
    assert finished.code == 3, finished.story
    assert finished.report is None
    assert "error: data lost: shards 1 (" in finished.err, finished.story
    assert "rows of 26 table(s) are gone: C1: " in finished.err, finished.story
    assert "every 20th from 1, 4, 15, 18 on shard 1" in finished.err, finished.story
    assert "Traceback" not in finished.err


def test_a_dense_part_lost_in_all_copies_ends_it_all_the_same(trainer):
    """Two neighbours hold both copies of some dense rows (1+1)."""
    finished = trainer.run(*SMALL, *GOES_ON, "--kill", "ps:1@8", "--kill", "ps:2@8")
    assert finished.code == 3, finished.story
    assert "replicated module dense" in finished.err, finished.story
    assert finished.report is None
