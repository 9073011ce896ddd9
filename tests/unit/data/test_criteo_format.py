"""The fast block parser against the slow reader of one line, and what each refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecrec.data.criteo_format import parse_block, parse_line
from ecrec.data.rows import MISSING_TOKEN
from ecrec.errors import DataError

INTEGER = st.one_of(st.just(""), st.integers(-(10**15) + 1, 10**15 - 1).map(str), st.integers(-3, 40).map(str))
TOKEN = st.one_of(
    st.just(""), st.integers(0, 2**32 - 1).map("{:08x}".format), st.integers(0, 2**32 - 1).map("{:08X}".format)
)
LINE = st.tuples(
    st.sampled_from("01"),
    st.lists(INTEGER, min_size=13, max_size=13),
    st.lists(TOKEN, min_size=26, max_size=26),
).map(lambda parts: "\t".join([parts[0], *parts[1], *parts[2]]).encode())


def good_fields() -> list[bytes]:
    return [b"1", *[b"%d" % i for i in range(13)], *[b"%08x" % (i * 0x09ABCDEF) for i in range(26)]]


@settings(max_examples=60, deadline=None)
@given(st.lists(LINE, max_size=20), st.sampled_from([b"\n", b"\r\n"]))
def test_a_block_parses_as_its_lines_do(lines: list[bytes], newline: bytes) -> None:
    rows = parse_block(b"".join(line + newline for line in lines), "file", 1)
    assert len(rows) == len(lines)
    for row, line in enumerate(lines):
        label, integers, tokens = parse_line(line, "file", row + 1)
        assert rows.labels[row] == label
        assert rows.integers_missing[row].tolist() == [value is None for value in integers]
        assert rows.integers[row].tolist() == [value or 0 for value in integers]
        assert rows.tokens[:, row].tolist() == [MISSING_TOKEN if t is None else t for t in tokens]
    assert rows.labels.dtype == np.float32
    assert rows.tokens.shape == (26, len(lines))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 39), st.binary(max_size=18))
def test_a_block_and_a_line_refuse_the_same_fields(field: int, value: bytes) -> None:
    value = value.replace(b"\r", b"").replace(b"\n", b"")
    fields = good_fields()
    fields[field] = value
    line = b"\t".join(fields)
    try:
        parse_line(line, "file", 1)
    except DataError as error:
        with pytest.raises(DataError) as caught:
            parse_block(line + b"\n", "file", 1)
        assert str(caught.value) == str(error)
    else:
        parse_block(line + b"\n", "file", 1)


@pytest.mark.parametrize("position", range(8))
def test_every_byte_that_is_no_hexadecimal_digit_is_refused_at_every_place(position: int) -> None:
    for byte in set(range(256)) - {9, 10, 13}:
        fields = good_fields()
        token = bytearray(b"0a1b2c3d")
        token[position] = byte
        fields[14] = bytes(token)
        block = b"\t".join(fields) + b"\n"
        if chr(byte) in "0123456789abcdefABCDEF":
            assert parse_block(block, "file", 1).tokens[0, 0] == int(token, 16)
        else:
            with pytest.raises(DataError, match="C1"):
                parse_block(block, "file", 1)


@pytest.mark.parametrize("length", range(1, 16))
def test_every_byte_that_is_no_decimal_digit_is_refused_at_every_place(length: int) -> None:
    for position in range(length):
        for byte in set(range(256)) - {9, 10, 13}:
            fields = good_fields()
            integer = bytearray(b"987654321234567"[:length])
            integer[position] = byte
            fields[1] = bytes(integer)
            block = b"\t".join(fields) + b"\n"
            if chr(byte) in "0123456789" or (byte == ord("-") and position == 0 and length > 1):
                assert parse_block(block, "file", 1).integers[0, 0] == int(integer)
            else:
                with pytest.raises(DataError, match="I1"):
                    parse_block(block, "file", 1)


@pytest.mark.parametrize(
    ("field", "value", "found", "expected"),
    [
        (0, b"2", "label '2'", "0 or 1"),
        (0, b"", "label ''", "0 or 1"),
        (3, b"1.5", "I3 = '1.5'", "integer"),
        (13, b"-", "I13 = '-'", "integer"),
        (1, b"1" * 16, "I1 = '1111111111111111'", "15 digits"),
        (14, b"zzzzzzzz", "C1 = 'zzzzzzzz'", "8 hexadecimal digits"),
        (39, b"abc", "C26 = 'abc'", "8 hexadecimal digits"),
    ],
)
def test_an_error_names_file_line_field_and_what_was_expected(
    field: int, value: bytes, found: str, expected: str
) -> None:
    good = b"\t".join(good_fields()) + b"\n"
    fields = good_fields()
    fields[field] = value
    with pytest.raises(DataError) as caught:
        parse_block(good * 3 + b"\t".join(fields) + b"\n" + good, "day_0", 101)
    message = str(caught.value)
    assert message.startswith("day_0, line 104: ")
    assert found in message
    assert expected in message


@pytest.mark.parametrize("line", [b"", b"1", b"\t".join(good_fields()[:39]), b"\t".join([*good_fields(), b""])])
def test_a_line_with_another_number_of_fields_is_refused(line: bytes) -> None:
    good = b"\t".join(good_fields()) + b"\n"
    with pytest.raises(DataError, match=r"file, line 2: found \d+ tab-separated fields, expected 40"):
        parse_block(good + line + b"\n" + good, "file", 1)


def test_fields_that_only_add_up_over_two_lines_are_refused() -> None:
    fields = good_fields()
    block = b"\t".join(fields[:39]) + b"\n" + b"\t".join([*fields, b""]) + b"\n"
    with pytest.raises(DataError, match="line 1: found 39"):
        parse_block(block, "file", 1)
