"""Criteo's native row format: parse a block of bytes into arrays, all rows at once.

A row is one line of 40 tab-separated fields: the label (0 or 1), the integers I1..I13 (decimal, may be
negative) and the tokens C1..C26 (8 hexadecimal digits). An empty integer or token is a missing value.

`parse_line` is the slow and obvious reader of one line: it is the oracle of `parse_block` in the tests, and
what writes the error message when `parse_block` meets a line that is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecrec.data.rows import MISSING_TOKEN
from ecrec.errors import DataError

INTEGERS = 13
TOKENS = 26
FIELDS = 1 + INTEGERS + TOKENS

DENSE_FEATURES = tuple(f"I{i}" for i in range(1, INTEGERS + 1))
SPARSE_FEATURES = tuple(f"C{i}" for i in range(1, TOKENS + 1))
"""Names of the integers and of the tokens, in the order of the fields."""

INTEGER_DIGITS_MAX = 15
"""Longest integer, sign not counted; the released files need 10, and 15 fit twice into 8 bytes with a
sign."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_U64 = np.dtype("<u8")
_TAB, _NEWLINE, _MINUS, _ZERO = 9, 10, 45, 48
_PAD = 16
_FIELD_NAMES = ["label", *DENSE_FEATURES, *SPARSE_FEATURES]
_INTEGER_PATTERN = re.compile(rb"-?[0-9]{1,%d}" % INTEGER_DIGITS_MAX)
_TOKEN_PATTERN = re.compile(rb"[0-9a-fA-F]{8}")


@dataclass(frozen=True)
class RawRows:
    """n parsed rows: labels float32[n]; integers int64[n, 13] with `integers_missing` bool[n, 13] (the value
    there is 0); tokens int64[26, n], feature-major, MISSING_TOKEN where empty."""

    labels: NDArray[np.float32]
    integers: NDArray[np.int64]
    integers_missing: NDArray[np.bool_]
    tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def parse_line(line: bytes, path: str, line_number: int) -> tuple[int, list[int | None], list[int | None]]:
    """One line, without its newline, as (label, 13 integers, 26 tokens), None for missing.

    Raises DataError, naming the file, the line, what was found and what was expected, if the line is not 40
    tab-separated fields, the label not 0 or 1, an integer not decimal, or a token not 8 hexadecimal digits.
    """
    fields = line.split(b"\t")
    where = f"{path}, line {line_number}"
    if len(fields) != FIELDS:
        raise DataError(
            f"{where}: found {len(fields)} tab-separated fields, expected {FIELDS} "
            f"(label, I1..I13, C1..C26): {_shown(line)}{_guess(line, line_number)}"
        )
    if fields[0] not in (b"0", b"1"):
        raise DataError(f"{where}: found label {_shown(fields[0])}, expected 0 or 1{_guess(line, line_number)}")
    integers: list[int | None] = []
    tokens: list[int | None] = []
    for name, field in zip(_FIELD_NAMES[1:], fields[1:], strict=True):
        if name[0] == "I":
            if field and not _INTEGER_PATTERN.fullmatch(field):
                raise DataError(
                    f"{where}: found {name} = {_shown(field)}, expected an integer of at most "
                    f"{INTEGER_DIGITS_MAX} digits or nothing"
                )
            integers.append(int(field) if field else None)
        else:
            if field and not _TOKEN_PATTERN.fullmatch(field):
                raise DataError(f"{where}: found {name} = {_shown(field)}, expected 8 hexadecimal digits or nothing")
            tokens.append(int(field, 16) if field else None)
    return int(fields[0]), integers, tokens


def _guess(line: bytes, number: int) -> str:
    """For people: what a line that is no row of Criteo's looks like."""
    first = line.split(b"\t", 1)[0]
    if line.startswith(_BYTE_ORDER_MARK):
        return "; the file begins with a byte order mark (UTF-8 with BOM): write it without one"
    if b"\r" in line:
        return "; its lines end with a carriage return alone: write it with newlines"
    if b"," in line and b"\t" not in line:
        return "; it is separated by commas: of a CSV file, --columns FILE says which column is what"
    if line.count(b"\t") == FIELDS - 2:
        return "; one field is missing: is it a test file, which has no label?"
    if number == 1 and re.search(rb"[A-Za-z_]", first) and first.lower() not in (b"nan", b"inf"):
        return "; it looks like a header: leave that line out"
    return ""


def parse_block(block: bytes | memoryview, path: str, first_line: int) -> RawRows:
    """Every line of `block`, which ends with a newline (or is empty) and starts at line `first_line` of
    `path`.

    A carriage return before a newline belongs to the newline. Raises DataError as `parse_line` does, for the
    first line that is wrong; nothing of the block is returned then.
    """
    raw = bytes(block)
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n")
    # Padding on both sides lets every token be read as whole 8-byte words without leaving the buffer.
    padded = np.frombuffer(b"".join((b"\0" * _PAD, raw, b"\0" * _PAD)), dtype=np.uint8)
    is_newline = padded == _NEWLINE
    separators = np.flatnonzero(is_newline | (padded == _TAB))
    rows, remainder = divmod(len(separators), FIELDS)
    ends = separators[: rows * FIELDS].reshape(rows, FIELDS)
    if remainder or np.count_nonzero(is_newline) != rows or not is_newline[ends[:, -1]].all():
        _raise_first_error(raw, path, first_line)
    starts = np.empty_like(ends)
    starts.reshape(-1)[:1] = _PAD
    starts.reshape(-1)[1:] = separators[:-1] + 1
    words = np.ndarray((len(padded) - 7,), _U64, buffer=padded, strides=(1,))

    label_digits = padded[starts[:, 0]] - np.uint8(_ZERO)
    good = ((ends[:, 0] - starts[:, 0]) == 1) & (label_digits <= 1)
    integers, integers_missing, good_integers = _parse_integers(
        padded, words, starts[:, 1 : 1 + INTEGERS], ends[:, 1 : 1 + INTEGERS]
    )
    # Feature-major from here on: the transposed index arrays make every later pass write contiguous columns.
    token_starts = np.ascontiguousarray(starts[:, 1 + INTEGERS :].T)
    token_ends = np.ascontiguousarray(ends[:, 1 + INTEGERS :].T)
    tokens, good_tokens = _parse_tokens(words, token_starts, token_ends)
    if not (good.all() and good_integers and good_tokens):
        _raise_first_error(raw, path, first_line)
    return RawRows(label_digits.astype(np.float32), integers, integers_missing, tokens)


def parse_good_lines(
    block: bytes | memoryview, path: str, first_line: int
) -> tuple[RawRows, NDArray[np.int64], dict[int, str]]:
    """The rows of a block without the lines that are wrong: (rows, their numbers in the block, why others are left
    out, by their number). The block is as in `parse_block`. Raises nothing."""
    try:
        rows = parse_block(block, path, first_line)
    except DataError:
        pass
    else:
        return rows, np.arange(len(rows)), {}
    good, numbers, wrong = [], [], {}
    for number, line in enumerate(bytes(block).replace(b"\r\n", b"\n").split(b"\n")[:-1]):
        try:
            parse_line(line, path, first_line + number)
        except DataError as error:
            wrong[number] = str(error)
        else:
            good.append(line + b"\n")
            numbers.append(number)
    return parse_block(b"".join(good), path, first_line), np.array(numbers, np.int64), wrong


def _parse_integers(
    padded: NDArray[np.uint8], words: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], bool]:
    missing = starts == ends
    negative = padded[starts] == _MINUS
    digits = ends - starts - negative
    value, good = _decimal_word(words[ends - 8], digits)
    if (digits > 8).any():
        high, high_good = _decimal_word(words[ends - 16], digits - 8)
        value += high * np.int64(10**8)
        good &= high_good
    # A sign alone has no digits and is not missing; a token longer than two words is refused.
    good &= (digits > 0) | missing
    good &= digits <= INTEGER_DIGITS_MAX
    return np.where(negative, -value, value), missing, bool(good.all())


def _decimal_word(word: NDArray[np.uint64], digits: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The value of the last min(digits, 8) characters of each little-endian 8-byte word, and whether all of
    them are decimal digits (D. Lemire, "Quickly parsing eight digits", 2018)."""
    unused_bits = (8 * (8 - np.clip(digits, 0, 8))).astype(np.uint64)
    all_unused = unused_bits == 64
    # A shift by 64 is undefined, so words without digits are shifted by 0 and cleared afterwards.
    unused_bits[all_unused] = 0
    keep = np.uint64(0xFFFFFFFFFFFFFFFF) << unused_bits
    keep[all_unused] = 0
    nibbles = (word ^ np.uint64(0x3030303030303030)) & keep
    # Per byte: a high half that is not zero, or a low half that reaches 16 after adding 6, is no digit.
    bad = (nibbles | (nibbles + np.uint64(0x0606060606060606))) & np.uint64(0xF0F0F0F0F0F0F0F0)
    pairs = (nibbles * np.uint64(10) + (nibbles >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(100) + (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    value = (fours * np.uint64(10000) + (fours >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    return value.astype(np.int64), bad == 0


def _parse_tokens(
    words: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], bool]:
    length = ends - starts
    missing = length == 0
    if not (missing | (length == 8)).all():
        return np.empty((0, 0), np.int64), False
    word = words[starts]
    word[missing] = 0x3030303030303030
    letters = (word >> np.uint64(6)) & np.uint64(0x0101010101010101)
    nibbles = (word & np.uint64(0x0F0F0F0F0F0F0F0F)) + letters * np.uint64(9)
    # Spell the digits again and compare: only 0-9, a-f and, through the OR, A-F come back as they were.
    over_nine = ((nibbles + np.uint64(0x0606060606060606)) >> np.uint64(4)) & np.uint64(0x0101010101010101)
    spelled = nibbles + np.uint64(0x3030303030303030) + over_nine * np.uint64(0x27)
    bad = spelled ^ (word | np.uint64(0x2020202020202020))
    bad |= nibbles & np.uint64(0xF0F0F0F0F0F0F0F0)
    # The OR would let control characters pass for digits: one of bits 5 and 6 must have been set before it.
    bad |= ~(word | (word >> np.uint64(1))) & np.uint64(0x2020202020202020)
    if bad.any():
        return np.empty((0, 0), np.int64), False
    pairs = ((nibbles << np.uint64(4)) | (nibbles >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    fours = ((pairs << np.uint64(8)) | (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    value = ((fours << np.uint64(16)) | (fours >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    tokens = value.astype(np.int64)
    tokens[missing] = MISSING_TOKEN
    return tokens, True


def parse_hex(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Tokens of texts: `data[start : start + length]`, with 8 bytes behind the last one. None unless each is 8
    hexadecimal digits, or nothing."""
    words = np.ndarray((len(data) - 7,), _U64, buffer=data, strides=(1,))
    tokens, good = _parse_tokens(words, starts, starts + lengths)
    return tokens if good else None


def _raise_first_error(raw: bytes, path: str, first_line: int) -> None:
    for index, line in enumerate(raw.split(b"\n")[:-1]):
        parse_line(line, path, first_line + index)
    raise AssertionError(f"{path}, line {first_line}: parse_block refused lines that parse_line accepts")


def _shown(field: bytes, limit: int = 60) -> str:
    text = field[:limit].decode("utf-8", "backslashreplace")
    return repr(text) + ("..." if len(field) > limit else "")
