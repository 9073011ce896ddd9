"""Which data sets a scheduler takes: each limit is the largest that is taken."""

from types import SimpleNamespace
from typing import Any

import pytest

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.leases import DATASETS_MAX, EXAMPLES_MAX, NAME_MAX, Leases
from ecrec.protocol.messages import Dataset


def taken(dataset: Dataset, known: int = 0, number: int = 0) -> bool:
    """Whether a scheduler that knows so many others, and has given so many leases, takes it."""
    others = [SimpleNamespace(dataset=Dataset(f"other {i}", 1, 1, 1)) for i in range(known)]
    state = SimpleNamespace(datasets=others, number=number, leases=[])
    context: Any = SimpleNamespace(state=SimpleNamespace(leases=state), changed=lambda: None)
    leases = Leases(context, None)  # type: ignore[arg-type]
    try:
        return leases._index(dataset) == known
    except ConfigurationError:
        return False


LONG = m.SPLIT_EXAMPLES_MAX


@pytest.mark.parametrize(("dataset", "fits"), [
    (Dataset("d", 1, 0, 1), True), (Dataset("d", 0, 1, 1), False), (Dataset("d", 1, -1, 1), False),
    (Dataset("d", EXAMPLES_MAX, 1, LONG), True), (Dataset("d", EXAMPLES_MAX + 1, 1, LONG), False),
    (Dataset("d", EXAMPLES_MAX, EXAMPLES_MAX, LONG), True), (Dataset("d", EXAMPLES_MAX, EXAMPLES_MAX + 1, LONG), False),
    (Dataset("d", 9, 9, LONG), True), (Dataset("d", 9, 9, LONG + 1), False), (Dataset("d", 9, 9, 0), False),
    (Dataset("d" * NAME_MAX, 1, 1, 1), True), (Dataset("d" * (NAME_MAX + 1), 1, 1, 1), False),
    (Dataset("", 1, 1, 1), False),
])  # fmt: skip
def test_the_limits_of_a_data_set_are_the_largest_that_are_taken(dataset: Dataset, fits: bool) -> None:
    assert taken(dataset) == fits


def test_so_many_data_sets_are_taken_and_no_more() -> None:
    assert taken(Dataset("d", 1, 1, 1), known=DATASETS_MAX - 1)
    assert not taken(Dataset("d", 1, 1, 1), known=DATASETS_MAX)


def test_half_of_the_leases_are_kept_for_splits_that_are_handed_on() -> None:
    """Ten splits: three whole passes of three, and one of what is left."""
    dataset, half = Dataset("d", 10, 31, 4), m.LEASES_MAX // 2
    assert taken(dataset, number=half - 10) and not taken(dataset, number=half - 9)
