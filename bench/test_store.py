"""Steps and gathers of the store, as in `ecrec bench store`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import sides_of

SIDES = {"step": ["FBGEMM", "without deltas"], "gather": ["torch.index_select"]}


@pytest.mark.parametrize(("case", "side"), sides_of("store", SIDES))
def test_store(case: str, side: str, run_side: Callable[[str, str, str], None]) -> None:
    run_side("store", case, side)
