"""Pull and push, as in `ecrec bench rpc`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import sides_of

SIDES = {"": ["torch.distributed.rpc", "pyzmq + torch", "Redis", "Ray", "TensorFlow"]}


@pytest.mark.parametrize(("case", "side"), sides_of("rpc", SIDES))
def test_rpc(case: str, side: str, run_side: Callable[[str, str, str], None]) -> None:
    run_side("rpc", case, side)
