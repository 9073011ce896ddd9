"""The kernels against ISA-L's, as in `ecrec bench kernels`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import sides_of

SIDES = {"": ["ISA-L"]}


@pytest.mark.parametrize(("case", "side"), sides_of("kernels", SIDES))
def test_kernels(case: str, side: str, run_side: Callable[[str, str, str], None]) -> None:
    run_side("kernels", case, side)
