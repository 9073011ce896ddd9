"""Our parity bytes are ISA-L's, through pyeclib and liberasurecode."""

from typing import Any

import numpy as np
import pytest

from ecrec.codec import Code

FRAGMENT_HEADER_BYTES = 80
"""liberasurecode puts such a header before the payload of each fragment."""


def driver(k: int, r: int) -> Any:
    interface = pytest.importorskip("pyeclib.ec_iface", reason="pyeclib is not installed")
    try:
        return interface.ECDriver(k=k, m=r, ec_type="isa_l_rs_cauchy")
    except interface.ECDriverError as error:
        pytest.skip(f"liberasurecode has no ISA-L here: {error}")


@pytest.mark.parametrize("k, r", [(2, 1), (4, 1), (4, 2), (6, 3), (10, 4), (3, 5), (12, 4)])
@pytest.mark.parametrize("length", [16, 64, 272, 1008, 4096])
def test_parity_bytes_are_those_of_isal(kernel: str, k: int, r: int, length: int) -> None:
    """The lengths are multiples of 16, so that liberasurecode adds no padding."""
    data = np.random.default_rng(length).integers(0, 256, (k, length), dtype=np.uint8)
    fragments = driver(k, r).encode(data.tobytes())
    payloads = [np.frombuffer(fragment, dtype=np.uint8)[FRAGMENT_HEADER_BYTES:] for fragment in fragments]
    parity = [np.empty(length, dtype=np.uint8) for _ in range(r)]
    Code(k, r, "isal-cauchy").encode(list(data), parity)
    for slot, block in enumerate([*data, *parity]):
        assert np.array_equal(payloads[slot], block), f"slot {slot}"
