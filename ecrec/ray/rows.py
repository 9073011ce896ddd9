"""A dataset of Ray Data as a reader: rows by their numbers, as `Session.lease_splits` deals them."""

import bisect
import itertools
from collections.abc import Iterator
from typing import Any

from ecrec.errors import ConfigurationError
from ecrec.ray.needed import import_ray


def _rows(table: Any) -> int:
    return int(table.num_rows)


class Rows:
    """The rows of a dataset, numbered in its order. Make it once, and give it to all workers: they share its blocks.

    The dataset is computed once, in the object store of Ray; a block that is lost with its node is computed again.
    """

    def __init__(self, dataset: Any) -> None:
        """Raises ConfigurationError for a dataset without rows."""
        dataset.context.execution_options.preserve_order = True
        self._dataset = dataset.materialize()
        self._blocks: list[Any] = self._dataset.to_arrow_refs()
        ray = import_ray()
        count = ray.remote(num_cpus=0)(_rows)
        self._starts: list[int] = [0, *itertools.accumulate(ray.get([count.remote(block) for block in self._blocks]))]
        if not len(self):
            raise ConfigurationError("the dataset has no rows")

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, first: int, last: int, batch: int) -> Iterator[dict[str, Any]]:
        """The rows from ``first`` up to ``last``, which is not among them, ``batch`` at a time: column -> array.

        It fetches one block after the other. Raises ConfigurationError for rows that there are not.
        """
        import numpy as np
        from ray.data.block import BlockAccessor

        ray = import_ray()
        if not 0 <= first <= last <= len(self) or batch < 1:
            raise ConfigurationError(f"rows {first} to {last}, {batch} at a time: the dataset has {len(self)} rows")
        number, held = -1, None
        for begin in range(first, last, batch):
            end = min(begin + batch, last)
            pieces = []
            while begin < end:
                wanted = bisect.bisect_right(self._starts, begin) - 1
                if wanted != number:
                    number, held = wanted, BlockAccessor.for_block(ray.get(self._blocks[wanted]))
                start, stop = self._starts[number], min(end, self._starts[number + 1])
                assert held is not None
                pieces.append(BlockAccessor.for_block(held.slice(begin - start, stop - start)).to_numpy())
                begin = stop
            yield {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
