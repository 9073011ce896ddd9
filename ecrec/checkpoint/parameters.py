"""The parameters of a replicated module, out of the table that they lie in."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from ecrec.checkpoint.reading import Checkpoint
from ecrec.checkpoint.rows import F32
from ecrec.errors import ConfigurationError


def module_parameters(checkpoint: Checkpoint, table: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, F32]:
    """The parameters of the module that was replicated as ``table``, by name.

    A checkpoint has no names and shapes of parameters, but a digest of them: so the caller gives them, in the order of
    the module, as ``{name: parameter.shape for name, parameter in module.named_parameters()}``. Parameters of embedding
    tables that are on the servers are none of it.
    Raises ConfigurationError if it was a module with other parameters, or is the table of embeddings.
    """
    spec = checkpoint.spec(table)
    sizes = {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}
    text = "".join(f"{name} {shape};" for name, shape in sizes.items())
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
    counts = [-(-int(np.prod(shape, dtype=np.int64)) // spec.dim) for shape in sizes.values()]
    if not spec.is_module or digest != spec.init_seed or sum(counts) != spec.rows:
        raise ConfigurationError(
            f"table {table!r} is not that of a replicated module with the parameters {', '.join(sizes) or 'none'}, of "
            "these shapes and in this order"
        )
    rows = checkpoint.dense(table).reshape(-1)
    found, begin = {}, 0
    for (name, shape), count in zip(sizes.items(), counts, strict=True):
        found[name] = rows[begin : begin + int(np.prod(shape, dtype=np.int64))].reshape(shape)
        begin += count * spec.dim
    return found
