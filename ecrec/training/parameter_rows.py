"""Which parameters of a module are replicated, and where each lies in the rows of their table."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy, nn

from ecrec.errors import ConfigurationError
from ecrec.protocol.messages import Section
from ecrec.training.parts import F32, Share, places_by_shard

ROW_FLOATS = 1024
"""Floats in a row of the table: 4 KiB, so that even a small model is spread over the shards."""


def dense_parameters(module: nn.Module, left_out: Sequence[nn.Module] = ()) -> dict[str, nn.Parameter]:
    """A module's parameters by name, but for those of embedding tables that are on the servers already, and of modules
    in it that are ``left_out``. Raises ConfigurationError for what torch has wrapped for several processes."""
    for path, part in module.named_modules():
        if isinstance(part, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise ConfigurationError(
                f"{path or 'the module'} is wrapped in {type(part).__name__}: the servers add up the gradients of all "
                "workers (Session.push), so give the module inside (.module), without the wrapper"
            )
    others = [*left_out, *(part for part in module.modules() if getattr(part, "is_on_servers", False))]
    tables = {id(weight) for part in others for weight in part.parameters()}
    return {name: parameter for name, parameter in module.named_parameters() if id(parameter) not in tables}


class ParameterRows:
    """The rows of one table that hold parameters, each from a row of its own on."""

    def __init__(self, named: Mapping[str, nn.Parameter], row_floats: int, n: int, groups: int) -> None:
        """``n`` shards in each of so many ``groups``."""
        self.names, self.parameters = list(named), list(named.values())
        self.row_floats = row_floats
        self._shapes = [p.shape for p in self.parameters]
        counts = [-(-shape.numel() // row_floats) for shape in self._shapes]
        ends = np.cumsum(counts)
        self.count = int(ends[-1])
        self._parameter_of_row = np.repeat(np.arange(len(counts)), counts)
        self._first_rows = ends - counts
        self.by_shard = places_by_shard(np.arange(self.count, dtype=np.int64), 1, n, groups)

    def buffer(self) -> F32:
        """Zeros for all of them."""
        return np.zeros((self.count, self.row_floats), np.float32)

    def views(self, buffer: F32) -> Iterator[Tensor]:
        """Of such a buffer, one for each parameter."""
        flat = from_numpy(buffer).view(-1)
        for shape, first in zip(self._shapes, (self._first_rows * self.row_floats).tolist(), strict=True):
            yield flat[first : first + shape.numel()].view(shape)

    def named(self, indices: Sequence[int]) -> str:
        """For people."""
        return ", ".join(self.names[i] for i in indices)

    def describe(self, row: int, column: int) -> str:
        """For people: the place in a parameter. Empty behind the end of one."""
        i = int(self._parameter_of_row[row])
        flat = (row - int(self._first_rows[i])) * self.row_floats + column
        shape = self._shapes[i]
        if flat >= shape.numel():
            return ""
        place = [int(each) for each in np.unravel_index(flat, shape)] if shape else []
        return f"parameter {self.names[i]}{place or ''}"

    def all_rows(self, index: int) -> dict[int, Share]:
        """Of the table of this index, by shard."""
        return {shard: Share(Section([index], [len(rows)]), rows) for shard, rows in self.by_shard.items()}

    def shares(self, index: int, buffer: F32, which: NDArray[np.bool_] | None = None) -> dict[int, Share]:
        """The rows of a buffer by shard; of ``which`` parameters, default all."""
        # A copy: the frames of a push are kept until it is durable, and the buffer is used again before that.
        chosen = None if which is None else which[self._parameter_of_row]
        shares = {}
        for shard, all_rows in self.by_shard.items():
            rows = all_rows if chosen is None else all_rows[chosen[all_rows]]
            if len(rows):
                shares[shard] = Share(Section([index], [len(rows)]), rows, buffer[rows].reshape(-1))
        return shares
