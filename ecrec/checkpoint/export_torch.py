"""The formats of `export` that torch writes: state dicts, and directories of torch.distributed.checkpoint."""

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecrec.checkpoint.filling import SCRATCH, Job, arrays_in, fill, mapped
from ecrec.checkpoint.rows import Columns
from ecrec.errors import CheckpointError
from ecrec.protocol.placement import TableSpec

CHUNK_BYTES = 256 << 20
"""Of a table in a directory of torch.distributed.checkpoint: to read a row, torch reads the whole chunk with it."""


def write_state_dict(job: Job) -> None:
    """``state_dict.pt``: the weights of each table by name; ``optimizer_state.pt``: name -> part of the state ->
    tensor. Both are read by ``torch.load(..., weights_only=True)``, with ``mmap=True`` without bringing them to memory.
    """
    import torch

    weights: dict[str, Any] = {}
    states: dict[str, Any] = {}
    for spec, tensors in _tensors(job):
        weights[job.name(spec)] = tensors.pop("weights")
        states[job.name(spec)] = tensors
    saved = {"state_dict.pt": weights} | ({"optimizer_state.pt": states} if job.with_state else {})
    for name, tensors in saved.items():
        try:
            torch.save(tensors, job.folder / name)
        except RuntimeError as error:  # also where the disk is full
            raise CheckpointError(f"{job.folder / name}: torch cannot write it: {error}") from error


def _tensors(job: Job) -> Iterator[tuple[TableSpec, dict[str, Any]]]:
    """The tensors of each table, in files that are removed afterwards."""
    import torch

    scratch: Path = job.folder / SCRATCH
    scratch.mkdir()
    for number, spec in enumerate(job.specs):
        tensors: Columns = {}
        for column in job.columns(spec):
            # A file for each tensor: torch saves the whole memory that a tensor is a part of.
            with mapped(scratch / f"{number}-{column.name}", spec.rows * column.nbytes) as memory:
                tensors |= arrays_in(memory, [0], [column], spec.rows)
        fill(job, spec, tensors)
        yield spec, {name: torch.from_numpy(array) for name, array in tensors.items()}


def write_dcp(job: Job) -> None:
    """A directory for ``torch.distributed.checkpoint.load``: tensors in chunks of rows, which any number of ranks read
    as they need them."""
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors: dict[str, Any] = {}
    for spec, found in _tensors(job):
        for column in job.columns(spec):
            tensors[job.tensor_name(spec, column)] = found[column.name]

    class Chunks(DefaultSavePlanner):
        """Plans the chunks; torch's own planner makes one of each tensor that is not distributed."""

        def create_local_plan(self) -> SavePlan:
            items = [item for name in tensors for item in self._items(name)]
            # What a nested state dict is made of again; this one is not nested.
            self.plan = SavePlan(items, planner_data={name: (name,) for name in tensors})
            return self.plan

        def _items(self, name: str) -> Iterator[WriteItem]:
            tensor = tensors[name]
            properties = TensorProperties.create_from_tensor(tensor)
            step = max(1, CHUNK_BYTES // max(1, tensor[:1].nbytes))
            for number, first in enumerate(range(0, len(tensor), step)):
                rows = min(step, len(tensor) - first)
                offsets = torch.Size([first, *[0] * (tensor.dim() - 1)])
                chunk = ChunkStorageMetadata(offsets, torch.Size([rows, *tensor.shape[1:]]))
                yield WriteItem(
                    MetadataIndex(name, offsets, number), WriteItemType.SHARD,
                    tensor_data=TensorWriteData(chunk, properties, tensor.shape),
                )  # fmt: skip

        def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
            data = write_item.tensor_data
            assert data is not None
            first = data.chunk.offsets[0]
            part: torch.Tensor = tensors[write_item.index.fqn][first : first + data.chunk.sizes[0]]
            return part

    # Older ones have no such parameter, and write alone where no group of processes was made.
    alone: Any = {"no_dist": True} if "no_dist" in inspect.signature(save).parameters else {}
    with warnings.catch_warnings():
        # Without a group of processes: it says that it takes this to be meant.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            save(tensors, storage_writer=FileSystemWriter(job.folder), planner=Chunks(), **alone)
        except CheckpointException as error:  # a BaseException
            reasons = "; ".join(str(wrapped[0]) for wrapped in error.failures.values())
            raise CheckpointError(f"{job.folder}: torch.distributed.checkpoint cannot write it: {reasons}") from error
