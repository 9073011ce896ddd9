"""Named columns as rows: which column is what, and values of every kind as labels, numbers and tokens.

pyarrow alone knows the types; a table of it comes in, arrays go out. No row is looked at by itself, but those that are
wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ecrec.data.criteo_format import DENSE_FEATURES, SPARSE_FEATURES, parse_hex
from ecrec.data.ids import mix64
from ecrec.data.rows import HOT_MAX, MISSING_TOKEN, Layout, Rows
from ecrec.data.text import Parsed
from ecrec.errors import ConfigurationError, DataError
from ecrec.urls import printable

if TYPE_CHECKING:
    import pyarrow as pa

TEXT: Literal["text"] = "text"
HEX: Literal["hex"] = "hex"
DECIMAL: Literal["decimal"] = "decimal"

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_HEX = r"^[0-9a-fA-F]{8}$"
_DECIMAL = r"^[0-9]{1,15}$"
_BYTES_SHOWN = 60


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which column of a CSV or Parquet file is what; the keys of a ``--columns`` file."""

    label: str = "label"
    """The column of labels: 0 or 1, unless one of the next two says otherwise."""
    label_at_least: float | None = None
    """A label is 1 where the number in its column is at least this, else 0."""
    label_values: tuple[str, ...] = ()
    """A label is 1 where its column has one of these texts, else 0."""
    dense: tuple[str, ...] = ()
    """Columns of numbers; a missing one is 0."""
    dense_as: Literal["log1p", "is"] = "log1p"
    """What becomes of a number x: log(1 + max(x, 0)), or x as it is."""
    sparse: tuple[str, ...]
    """Columns whose values are ids of an embedding table."""
    tokens: Literal["text", "hex", "decimal"] = TEXT
    """How ``sparse`` is read: by the text of a value (that of a number is how it is written in decimal), as Criteo's
    8 hexadecimal digits, or as a number of 32 bits in decimal. With the last two a column of numbers has the tokens
    themselves."""
    lists: dict[str, int] = {}
    """Columns of lists, and how many values are read of each: a shorter list lacks its last ones, a longer one makes a
    bad row."""
    list_separator: str = ""
    """Between the values of a list that is a text, as in a CSV file."""
    separator: str = ","
    """Of a CSV file: one character."""
    quote: str = '"'
    """Around values that contain the separator: one character, or none."""
    header: tuple[str, ...] = ()
    """Names of all columns of a CSV file that has no line with them."""
    missing: tuple[str, ...] = ("",)
    """Texts that mean that there is no value."""

    @property
    def layout(self) -> Layout:
        """Names of the features."""
        hot = tuple(self.lists.get(name, 1) for name in self.sparse)
        return Layout(tuple(part for name in self.dense for part in self.parts(name)), self.sparse, hot)

    def parts(self, name: str) -> list[str]:
        """What the values of a column are called: by its name, or those of a list by their places."""
        return [f"{name}[{i}]" for i in range(self.lists[name])] if name in self.lists else [name]

    @property
    def wanted(self) -> list[str]:
        """All columns that are read, each once."""
        return list(dict.fromkeys((self.label, *self.dense, *self.sparse)))

    def check(self) -> None:
        """Raise ConfigurationError for an impossible mapping."""
        if not self.sparse:
            raise ConfigurationError("sparse: expected at least one column")
        if self.label_at_least is not None and self.label_values:
            raise ConfigurationError("label_at_least and label_values: expected one of them")
        for key, value, empty in (("separator", self.separator, False), ("quote", self.quote, True)):
            if not (len(value) == 1 or (empty and not value)) or not value.isascii() or value in ("\r", "\n"):
                raise ConfigurationError(f"{key} {value!r}: expected one ASCII character")
        if self.quote == self.separator:
            raise ConfigurationError(f"quote {self.quote!r}: expected another character than the separator")
        for name in ("dense", "sparse", "header"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigurationError(f"{name}: a column is named twice")
        for name, values in self.lists.items():
            if name not in (*self.dense, *self.sparse):
                raise ConfigurationError(f"lists: {name} is neither in dense nor in sparse")
            if not 1 <= values <= HOT_MAX:
                raise ConfigurationError(f"lists: {name} = {values}: expected 1 to {HOT_MAX} values")
        if self.list_separator and not self.lists:
            raise ConfigurationError("list_separator: expected lists with it")
        if self.list_separator and self.list_separator == self.separator and not self.quote:
            raise ConfigurationError(
                f"list_separator {self.list_separator!r}: expected another text than the separator"
            )
        lacking = [name for name in self.wanted if self.header and name not in self.header]
        if lacking:
            raise ConfigurationError(f"header: has no column {', '.join(lacking)}")

    def check_plain_ids(self) -> None:
        """Raise ConfigurationError unless tokens can be rows of tables."""
        if self.tokens == TEXT:
            raise ConfigurationError(
                f'tokens = "{TEXT}" makes hashes of values, which are rows of no table: expected "{DECIMAL}" or '
                f'"{HEX}" for ids that are taken as they are'
            )


CRITEO = Columns(dense=DENSE_FEATURES, sparse=SPARSE_FEATURES, tokens=HEX)
"""Criteo's columns by their names: what a Parquet file is read by where nothing else is said."""


def read_columns(path: str) -> Columns:
    """A TOML file with the keys of `Columns`. Raises ConfigurationError, naming file and key."""
    try:
        columns = msgspec.toml.decode(Path(path).read_bytes(), type=Columns)
        columns.check()
    except ImportError as error:  # before Python 3.11
        raise ConfigurationError(f'--columns {path}: TOML is read with tomli: pip install "ecrec[data]"') from error
    except (OSError, msgspec.DecodeError, ConfigurationError) as error:
        raise ConfigurationError(f"--columns {path}: {error}") from error
    return columns


def import_pyarrow(what: str) -> Any:
    """pyarrow, or ConfigurationError that says what to install for ``what``."""
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigurationError(f'{what} are read with pyarrow: pip install "ecrec[data]" ({error})') from error
    return pyarrow


def check_names(name: str, there: list[str], columns: Columns) -> None:
    """Raise DataError unless a file has all columns, once each."""
    lacking = [each for each in columns.wanted if each not in there]
    if lacking:
        names = [printable(each[:_BYTES_SHOWN]) for each in there[:50]]
        shown = ", ".join(names) + (", ..." if len(there) > 50 else "")
        others = [each for each in ";\t|," if len(there) == 1 and each in there[0]]
        hint = f"; is it separated by {others[0]!r}? separator in that file says so" if others else ""
        raise DataError(
            f"{name}: found no column {', '.join(lacking)}; there are: {shown}. "
            f"--columns FILE says which column is what{hint}"
        )
    twice = [each for each in columns.wanted if there.count(each) > 1]
    if twice:
        raise DataError(f"{name}: found column {', '.join(twice)} more than once")


def to_rows(table: pa.Table, columns: Columns, where: Any) -> Parsed:
    """Rows of a table that has all columns. ``where(i)``: what row i of it is called. Raises DataError for a type that
    no value can be made of."""
    n = table.num_rows
    wrong: dict[int, str] = {}
    good = np.ones(n, np.bool_)

    def is_wrong(bad: NDArray[np.bool_], column: str, array: pa.Array, expected: str) -> None:
        for i in np.flatnonzero(bad & good).tolist():
            wrong[i] = f"{where(i)}: found {column} = {_shown(_value(array, i))}, expected {expected}"
        good[bad] = False

    arrays = {name: _flat(table.column(name), name, where) for name in columns.wanted}
    labels = _labels(arrays[columns.label], columns, is_wrong, where)
    parts: dict[str, list[pa.Array]] = {}
    for name in (*columns.dense, *columns.sparse):
        if name not in columns.lists:
            parts[name] = [arrays[name]]
            continue
        parts[name], counts = _places(arrays[name], columns, name, where)
        for i in np.flatnonzero((counts > columns.lists[name]) & good).tolist():
            wrong[i] = f"{where(i)}: found {name} of {counts[i]} values, expected at most {columns.lists[name]}"
        good &= counts <= columns.lists[name]
    layout = columns.layout
    dense = np.zeros((n, len(layout.dense)), np.float32)
    numbered = (array for name in columns.dense for array in parts[name])
    for i, (name, array) in enumerate(zip(layout.dense, numbered, strict=True)):
        numbers, missing, bad = _numbers(array, columns, name, where)
        with np.errstate(over="ignore"):
            value = numbers.astype(np.float32)
            if columns.dense_as == "log1p":
                value = np.log1p(np.maximum(value, np.float32(0)))
        missing |= np.isnan(numbers)
        value[missing] = 0.0
        is_wrong(
            bad | (~missing & ~np.isfinite(numbers)) | ~np.isfinite(value),
            name,
            array,
            "a finite number or nothing",
        )
        dense[:, i] = value
    tokens = np.empty((sum(layout.hot), n), np.int64)
    named = [
        (part, array) for name in columns.sparse for part, array in zip(columns.parts(name), parts[name], strict=True)
    ]
    for i, (name, array) in enumerate(named):
        if columns.tokens == TEXT:
            tokens[i] = _text_tokens(array, columns, name, where)
            continue
        tokens[i], bad = _number_tokens(array, columns, name, where)
        digits = "8 hexadecimal digits, " if columns.tokens == HEX else ""
        is_wrong(bad, name, array, f"{digits}a number of 32 bits, or nothing")
    if good.all():
        return Parsed(Rows(labels, dense, tokens), np.arange(n), {})
    rows = Rows(labels[good], dense[good], np.ascontiguousarray(tokens[:, good]))
    return Parsed(rows, np.flatnonzero(good), dict(sorted(wrong.items())))


def _labels(array: pa.Array, columns: Columns, is_wrong: Any, where: Any) -> NDArray[np.float32]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if columns.label_values:
        text = _text(array, columns.label, where)
        values = pc.is_in(text, value_set=pa.array([each.encode() for each in columns.label_values], text.type))
        missing = _mask(text, columns)
        is_wrong(missing, columns.label, array, "a value")
        return np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.float32)
    numbers, missing, bad = _numbers(array, columns, columns.label, where)
    bad = bad | missing | np.isnan(numbers)
    if columns.label_at_least is not None:
        is_wrong(bad, columns.label, array, "a number")
        return (numbers >= columns.label_at_least).astype(np.float32)
    is_wrong(bad | ((numbers != 0) & (numbers != 1)), columns.label, array, "0 or 1")
    return numbers.astype(np.float32)


def _flat(column: pa.ChunkedArray, name: str, where: Any) -> pa.Array:
    import pyarrow as pa

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of none or several, in some versions
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return _plain(array)


def _plain(array: pa.Array) -> pa.Array:
    """The values themselves, where an array has numbers of them."""
    import pyarrow as pa

    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def _is_list(array: pa.Array) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(kind(array.type) for kind in kinds)


def _places(array: pa.Array, columns: Columns, name: str, where: Any) -> tuple[list[pa.Array], NDArray[np.int64]]:
    """(the first value of each list, the second one, ..., as many as `Columns.lists` says, null where there is none;
    how many values each list has)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_text(array):
        if not columns.list_separator:
            raise DataError(
                f"{where(0)}: column {name} has texts, expected lists, as --columns says; list_separator there says "
                "what is between the values of a text"
            )
        array = pc.split_pattern(_text(array, name, where), columns.list_separator)
    if not _is_list(array):
        raise _type_error(array, name, where, "lists, as --columns says")
    if pa.types.is_fixed_size_list(array.type):
        counts = np.full(len(array), array.type.list_size, np.int64)
        begins = (np.arange(len(array)) + array.offset) * array.type.list_size
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
        begins, counts = offsets[:-1], np.diff(offsets)
    counts[_bool(pc.is_null(array))] = 0
    values = _plain(array.values)
    places = [values.take(pa.array(begins + i, mask=counts <= i)) for i in range(columns.lists[name])]
    return places, counts


def _is_text(array: pa.Array) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(kind(array.type) for kind in kinds)


def _check_is_no_list(array: pa.Array, name: str, where: Any) -> None:
    if _is_list(array):
        raise DataError(
            f"{where(0)}: column {name} has lists ({array.type}), expected one value a row; "
            f'lists = {{ "{name}" = N }} in --columns FILE reads N values of each list'
        )


def _bool(array: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.asarray(array.to_numpy(zero_copy_only=False)).astype(np.bool_)
    return found


def _mask(text: pa.Array, columns: Columns) -> NDArray[np.bool_]:
    """Where there is no value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = pa.array([each.encode() for each in columns.missing], text.type)
    return _bool(pc.or_(pc.is_null(text), pc.is_in(text, value_set=missing)))


def _text(array: pa.Array, name: str, where: Any) -> pa.Array:
    """large_binary: what values are as text."""
    import pyarrow as pa

    if _is_text(array):
        return array.cast(pa.large_binary())
    _check_is_no_list(array, name, where)
    try:
        return array.cast(pa.large_string()).cast(pa.large_binary())
    except pa.ArrowException as error:
        raise _type_error(array, name, where, "one value a row") from error


def _numbers(
    array: pa.Array, columns: Columns, name: str, where: Any
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(values, where there are none, where they are no numbers); values there are 0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _check_is_no_list(array, name, where)
    if not _is_text(array):
        if pa.types.is_boolean(array.type):
            array = array.cast(pa.uint8())
        try:
            values = pc.fill_null(array.cast(pa.float64(), safe=False), 0.0)
        except pa.ArrowException as error:
            raise _type_error(array, name, where, "numbers") from error
        missing = _bool(pc.is_null(array))
        return np.array(values.to_numpy(zero_copy_only=False)), missing, np.zeros(len(array), np.bool_)
    text = _text(array, name, where)
    missing = _mask(text, columns)
    good = ~missing
    numbers = np.zeros(len(text))
    try:
        found = _cast_numbers(text, good)
    except pa.ArrowException:
        found = np.array([np.nan])
    if not np.isfinite(found).all():  # there are other texts, or nan or inf, which are no numbers here
        good &= _bool(pc.fill_null(pc.match_substring_regex(text, _NUMBER), False))
        found = _cast_numbers(text, good)
    numbers[good] = found
    return numbers, missing, ~good & ~missing


def _cast_numbers(text: pa.Array, which: NDArray[np.bool_]) -> NDArray[np.float64]:
    import pyarrow as pa

    numbers: NDArray[np.float64] = text.filter(pa.array(which)).cast(pa.large_string()).cast(pa.float64()).to_numpy()
    return numbers


def _number_tokens(
    array: pa.Array, columns: Columns, name: str, where: Any
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(array.type):
        missing = _bool(pc.is_null(array))
        values = np.asarray(pc.fill_null(array, 0).to_numpy(zero_copy_only=False))
        tokens, bad = int_tokens(values)
        tokens[missing] = MISSING_TOKEN
        return tokens, bad & ~missing
    _check_is_no_list(array, name, where)
    if not _is_text(array):
        raise _type_error(array, name, where, "text or integers")
    text = _text(array, name, where)
    missing = _mask(text, columns)
    tokens = np.full(len(text), MISSING_TOKEN, np.int64)
    if columns.tokens == DECIMAL:
        good = ~missing & _bool(pc.fill_null(pc.match_substring_regex(text, _DECIMAL), False))
        tokens[good], wide = int_tokens(text.filter(pa.array(good)).cast(pa.large_string()).cast(pa.int64()).to_numpy())
        bad = ~good & ~missing
        bad[good] = wide
        return tokens, bad
    good = ~missing
    found = parse_hex(*_bytes_of(text if good.all() else text.filter(pa.array(good))))
    if found is None:
        good &= _bool(pc.fill_null(pc.match_substring_regex(text, _HEX), False))
        found = parse_hex(*_bytes_of(text.filter(pa.array(good))))
        assert found is not None
    tokens[good] = found
    return tokens, ~good & ~missing


def int_tokens(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Integers of any type as tokens, of any shape: their lowest 32 bits; and where they have more, which are no
    tokens."""
    if values.dtype.itemsize <= 4:
        wide = values.astype(np.int64)
        bad = np.zeros(values.shape, np.bool_)
    else:
        bad = (values > np.array(0xFFFFFFFF, values.dtype)) | (values < np.array(-(1 << 31), np.int64))
        wide = values.astype(np.int64)
    wide &= 0xFFFFFFFF
    return wide, bad


def _text_tokens(array: pa.Array, columns: Columns, name: str, where: Any) -> NDArray[np.int64]:
    text = _text(array, name, where)
    missing = _mask(text, columns)
    data, starts, lengths = _bytes_of(text)
    tokens = hash_texts(data, starts, lengths)
    tokens[missing] = MISSING_TOKEN
    return tokens


def _bytes_of(text: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """(all bytes, with 8 more behind them; where each value begins; its length) of a large_binary."""
    _, offsets, data = text.buffers()
    at = np.frombuffer(offsets, np.int64, len(text) + 1, 8 * text.offset) if len(text) else np.zeros(1, np.int64)
    used = np.frombuffer(data, np.uint8)[at[0] : at[-1]] if data is not None else np.empty(0, np.uint8)
    return np.concatenate([used, np.zeros(8, np.uint8)]), at[:-1] - at[0], np.diff(at)


def hash_texts(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """A token of 32 bits for each text: `data[start : start + length]`, with 8 bytes behind the last one.

    `mix64` over words of 8 bytes, little-endian, begun with the length. It is the same on every machine and in every
    release: a checkpoint depends on it. It takes a pass for each 8 bytes of the longest text.
    """
    words = np.ndarray((len(data) - 7,), "<u8", buffer=data, strides=(1,))
    mixed = mix64(lengths.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    active = np.flatnonzero(lengths > 0)
    done = 0
    while len(active):
        left = lengths[active] - done
        unused = (8 * np.maximum(8 - left, 0)).astype(np.uint64)
        word = words[starts[active] + done] & (np.uint64(0xFFFFFFFFFFFFFFFF) >> unused)
        mixed[active] = mix64(mixed[active] ^ word) + np.uint64(0x9E3779B97F4A7C15)
        active = active[left > 8]
        done += 8
    tokens: NDArray[np.int64] = (mix64(mixed) >> np.uint64(32)).astype(np.int64)
    return tokens


def _type_error(array: pa.Array, name: str, where: Any, expected: str) -> DataError:
    return DataError(f"{where(0)}: column {name} has values of type {array.type}, expected {expected}")


def _value(array: pa.Array, i: int) -> Any:
    """One value, for people: a text as bytes, which may be no UTF-8."""
    import pyarrow as pa

    return (array[i].cast(pa.large_binary()) if _is_text(array) else array[i]).as_py()


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return repr(text[:_BYTES_SHOWN]) + ("..." if len(text) > _BYTES_SHOWN else "")
