"""CRC-32C: by the instruction as by the table, which agrees with the standard."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecrec.codec import crc32c, crc32c_by_table, crc32c_in_use


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksums_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == crc32c_by_table(data) == checksum


def test_an_instruction_is_used_where_there_is_one() -> None:
    with open("/proc/cpuinfo") as file:
        words = set(file.read().split())
    wide = {"sse4_2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "vpclmulqdq"} <= words
    x86 = "avx512" if wide else "sse4.2" if "sse4_2" in words else ""
    assert crc32c_in_use() == (x86 or ("armv8" if "crc32" in words else "table"))


# Lanes join at 768 and 12,288 bytes; vectors go by 64 and 256, from 512 on.
SIZES = [
    *range(70),
    *(64 * count + more for count in range(4, 24) for more in (-1, 0, 1, 63)),
    *(block * count + more for block in (768, 12_288) for count in (1, 2) for more in (-1, 0, 1, 9, 777)),
]


@pytest.mark.parametrize("value", [0, 1, 0xFFFFFFFF, 0x12345678])
def test_the_instruction_computes_what_the_table_does(value: int) -> None:
    data = np.random.default_rng(value).integers(0, 256, max(SIZES) + 8, np.uint8)
    for size in SIZES:
        for offset in (0, 1, 7):
            part = data[offset : offset + size]
            assert crc32c(part, value) == crc32c_by_table(part, value), (size, offset)


@given(st.lists(st.binary(max_size=1000), max_size=5))
def test_parts_one_behind_the_other_have_the_checksum_of_the_whole(parts: list[bytes]) -> None:
    value = 0
    for part in parts:
        value = crc32c(part, value)
    assert value == crc32c(b"".join(parts))


def test_any_contiguous_buffer_and_no_other() -> None:
    data = np.arange(100_000, dtype=np.float32)
    assert crc32c(data) == crc32c(memoryview(data)) == crc32c_by_table(data.tobytes())
    with pytest.raises(BufferError, match="contiguous"):
        crc32c(memoryview(data)[::2])
    with pytest.raises((BufferError, ValueError), match="contiguous"):
        crc32c(data[::2])
    with pytest.raises(TypeError):
        crc32c("text")
    with pytest.raises(TypeError):
        crc32c(b"", -1)
