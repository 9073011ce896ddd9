"""Tables of a checkpoint and of a cluster: what fits, and every difference at once."""

import msgspec
import numpy as np
import pytest

from ecrec.checkpoint.fitting import Fit, all_differences, as_here, fit, new_names, parse_names
from ecrec.checkpoint.rows import InitialValues
from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec

ADAGRAD = OptimizerSpec("adagrad", (0.1, 1e-8))


def table(name, rows=100, dim=8, **fields):
    spec = TableSpec(name, rows, dim, CodeSpec(4, 1), ADAGRAD, "uniform", hash(name) % 1000, 0.1)
    return msgspec.structs.replace(spec, **fields)


def test_every_table_that_is_missing_new_or_not_the_same_is_named_at_once():
    there = [table("a"), table("b"), table("c"), table("d"), table("same")]
    here = [
        table("a", rows=99, dim=4), table("b", optimizer=OptimizerSpec("sgd", (0.5,))), table("d", pooling="mean"),
        table("e"), table("same", code=CodeSpec(2, 2)),
    ]  # fmt: skip
    found = fit(there, here, {})
    assert found.differences == [
        "table 'a': rows is 100, not 99, dim is 8, not 4",
        f"table 'b': optimizer is {ADAGRAD}, not {OptimizerSpec('sgd', (0.5,))}",
        "table 'c': is in the checkpoint alone",
        "table 'd': pooling is , not mean",
        "table 'e': is in the cluster alone",
    ]
    assert [each.source.name for each in found.taken] == ["b", "d", "same"]
    assert [each.has_state for each in found.taken] == [False, True, True]
    text = all_differences(found.differences)
    assert all(line in text for line in found.differences) and "nothing was changed" in text


def test_a_renamed_table_fits_though_its_seed_follows_from_its_name():
    (taken,), differences = fit([table("old")], [table("new", features="new")], {"old": "new"})
    assert (taken.source.name, taken.here.name, differences) == ("old", "new", [])


def test_parameters_of_another_module_do_not_fit_under_any_name():
    there, here = table("dense", is_module=True, init_seed=1), table("other", is_module=True, init_seed=2)
    found = fit([there], [here], {"dense": "other"})
    assert found.taken == [] and "its parameters have other names or shapes" in found.differences[0]
    assert fit([table("a", is_module=True)], [table("a")], {}).taken == []


def test_names_that_cannot_be_are_refused():
    assert parse_names("--map", ["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    for pair in ("a", "=b", "a=", ""):
        with pytest.raises(ConfigurationError, match=r"--map .*expected OLD=NEW"):
            parse_names("--map", [pair])
    with pytest.raises(ConfigurationError, match="'a' is given twice"):
        parse_names("--map", ["a=b", "a=c"])
    with pytest.raises(ConfigurationError, match="the file has no 'x', 'y'; it has 'a'"):
        new_names(["a"], {"x": "b", "y": "c"}, "the file")
    with pytest.raises(ConfigurationError, match="would be called 'b' here"):
        new_names(["a", "b"], {"a": "b"}, "the file")


def test_state_of_another_optimizer_is_the_initial_one():
    there = table("a", optimizer=OptimizerSpec("sgd", (0.5,)))
    here = table("a", init_state=0.25)
    rows = np.array([3, 50], np.int64)
    weights = np.full((2, 8), 7.0, np.float32)
    columns = as_here(Fit(there, here), InitialValues(here), rows, {"weights": weights})
    assert columns["weights"] is weights
    np.testing.assert_array_equal(columns["sum"], np.full((2, 8), 0.25, np.float32))
