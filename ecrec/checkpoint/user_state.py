"""A user's own state in a checkpoint: plain values and arrays, as one safetensors file; never pickle.

The tree of values stands as JSON in the metadata of the file, under ``state``; an array in it is ``{"$tensor": NAME}``,
a tensor of the file. What JSON has no word for begins with a dollar too: ``{"$tuple": [...]}``, ``{"$float": "nan"}``,
and ``{"$items": [[key, value], ...]}`` for a dict whose keys are not all strings, or begin with a dollar.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ecrec.errors import CheckpointError, ConfigurationError
from ecrec.protocol.saved import STATE_BYTES_MAX

DEPTH_MAX = 64
"""Of dicts and lists in each other."""

KINDS = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip
"""Types of safetensors, and numpy's. It has none for bfloat16: its bits are those of a `Tensor`."""
_NAMES = {np.dtype(text): name for name, text in KINDS.items() if name != "BF16"}


class Tensor(NamedTuple):
    """An array, as a file has it."""

    dtype: str
    """One of `KINDS`."""
    array: Any
    """numpy.ndarray"""
    kind: str = ""
    """What it was: ``torch``, ``scalar`` (numpy's), or an array."""


def tensor_of(array: Any, kind: str = "") -> Tensor:
    """Of an array. Raises TypeError for one of objects, strings, times or complex numbers."""
    found = np.ascontiguousarray(array).reshape(np.shape(array))
    little = found.astype(found.dtype.newbyteorder("<"), copy=False)
    if little.dtype not in _NAMES:
        raise TypeError(f"an array of {found.dtype}")
    return Tensor(_NAMES[little.dtype], little, kind)


def encode(state: Mapping[str, Any], convert: Callable[[Any], Tensor | None] = lambda value: None) -> bytes:
    """The file of a state. ``convert`` gives the `Tensor` of a value of another package, None for one that it does not
    know. Raises ConfigurationError, naming the place, for a value that cannot be written, and for more than
    `STATE_BYTES_MAX` bytes.
    """
    if not isinstance(state, Mapping):
        raise ConfigurationError(f"state is a {type(state).__name__}; expected a dict")
    tensors: list[Tensor] = []

    def tree(value: Any, place: str, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise ConfigurationError(f"{place[:200]}: more than {DEPTH_MAX} dicts and lists in each other")
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, Mapping):
            items = [(k, tree(v, f"{place}[{k!r}]", depth + 1)) for k, v in value.items()]
            if all(isinstance(k, str) and not k.startswith("$") for k, _ in items):
                return dict(items)
            return {"$items": [[tree(k, f"{place}: key {k!r}", depth + 1), v] for k, v in items]}
        if type(value) in (list, tuple):
            listed = [tree(each, f"{place}[{number}]", depth + 1) for number, each in enumerate(value)]
            return listed if type(value) is list else {"$tuple": listed}
        try:
            found = tensor_of(value, "scalar" * isinstance(value, np.generic)) if _is_numpy(value) else convert(value)
        except TypeError as error:
            raise ConfigurationError(f"{place} is {error}: it cannot be written without pickle") from error
        if found is None:
            raise ConfigurationError(
                f"{place} is a {type(value).__module__}.{type(value).__qualname__}: expected None, a bool, number, "
                "str, dict, list, tuple, numpy array or torch tensor; an object gives such by its state_dict()"
            )
        tensors.append(found)
        entry = {"$tensor": f"{len(tensors) - 1}"}
        return entry | {"kind": found.kind} if found.kind else entry

    told = tree(dict(state), "state", 0)
    if (total := sum(each.array.nbytes for each in tensors)) > STATE_BYTES_MAX:
        raise _too_large(total)
    header: dict[str, Any] = {"__metadata__": {"format": "ecrec state 1", "state": json.dumps(told, allow_nan=False)}}
    offset = 0
    # Numbers of 8 bytes first, so that all lie where such numbers may.
    order = sorted(range(len(tensors)), key=lambda number: -tensors[number].array.itemsize)
    for number in order:
        each = tensors[number]
        end = offset + each.array.nbytes
        header[str(number)] = {"dtype": each.dtype, "shape": list(each.array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if 8 + len(text) + offset > STATE_BYTES_MAX:
        raise _too_large(8 + len(text) + offset)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[number].array.tobytes() for number in order)])


def _is_numpy(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def _too_large(nbytes: int) -> ConfigurationError:
    return ConfigurationError(
        f"state has {nbytes / 1e6:,.1f} MB, at most {STATE_BYTES_MAX / 1e6:.1f} are possible: parameters that are "
        "trained belong into tables and replicated modules"
    )


def decode(data: bytes, name: str, make: Callable[[Tensor], Any] = lambda tensor: tensor.array) -> dict[str, Any]:
    """What `encode` was given; ``make`` gives the value of a tensor. Raises CheckpointError for a file that is damaged,
    which may be hostile."""
    try:
        tree, tensors = _parts(data)
        found = _value(tree, tensors, make, 0)
        if not isinstance(found, dict):
            raise ValueError("its state is no dict")
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{name}: damaged, or no state of a checkpoint: {str(error)[:300]}") from error


def _parts(data: bytes) -> tuple[Any, dict[str, Tensor]]:
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError(f"its header has {length} bytes, and {len(data) - 8} are there")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    if metadata["format"] != "ecrec state 1":
        raise ValueError(f"it is of the format {metadata['format']!r}")
    begin, found = 8 + length, {}
    for key, entry in header.items():
        first, last = entry["data_offsets"]
        dtype, shape = np.dtype(KINDS[entry["dtype"]]), entry["shape"]
        if not all(type(n) is int and 0 <= n < 1 << 40 for n in (first, last, *shape)) or len(shape) > 32:
            raise ValueError(f"tensor {key!r} has no numbers that can be")
        if last - first != math.prod(shape) * dtype.itemsize or last > len(data) - begin:
            raise ValueError(f"tensor {key!r} has another length than its shape")
        array = np.frombuffer(data, dtype, math.prod(shape), begin + first).reshape(shape)
        found[key] = Tensor(entry["dtype"], array.copy())
    return json.loads(metadata["state"]), found


def _value(tree: Any, tensors: Mapping[str, Tensor], make: Callable[[Tensor], Any], depth: int) -> Any:
    if depth > 2 * DEPTH_MAX + 2:
        raise ValueError("too many dicts and lists in each other")

    def inside(each: Any) -> Any:
        return _value(each, tensors, make, depth + 1)

    if isinstance(tree, list):
        return [inside(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        tensor = tensors[tree["$tensor"]]._replace(kind=tree.get("kind", ""))
        return tensor.array[()] if tensor.kind == "scalar" else make(tensor)
    if "$tuple" in tree:
        return tuple(inside(each) for each in tree["$tuple"])
    if "$float" in tree:
        return float(tree["$float"])
    if "$items" in tree:
        return {inside(key): inside(value) for key, value in tree["$items"]}
    return {key: inside(value) for key, value in tree.items()}
