"""Distinct rows and pooling, as in `ecrec bench batch`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import sides_of

SIDES = {
    "dedup": ["np.unique", "torch.unique"],
    "unique": ["np.unique", "torch.unique"],
    "pool forward": ["torch embedding_bag"],
    "pool backward bag 1 ": ["torch embedding_bag", "torch index_add_"],
    "pool backward bag 10 ": ["torch embedding_bag"],
}


@pytest.mark.parametrize(("case", "side"), sides_of("batch", SIDES))
def test_batch(case: str, side: str, run_side: Callable[[str, str, str], None]) -> None:
    run_side("batch", case, side)
