"""A fingerprint of a whole model as it is on the shards."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ecrec.protocol.messages import Section
from ecrec.protocol.placement import TableSpec
from ecrec.training.parts import I64, Share, TableSession
from ecrec.training.pulls import RecordsAsked
from ecrec.training.whole import chunks, places_of

_CHUNKS_AHEAD = 2
"""On their way while one is hashed."""


class _Chunk(NamedTuple):
    asked: RecordsAsked
    places: dict[int, I64]
    rows: int
    record_bytes: int


def model_digest(session: TableSession, specs: Sequence[TableSpec]) -> str:
    """SHA-256, in hex, over the records (weights and optimizer state) of these tables, in their order, row 0 first.

    The pulls are exact: all pushes of this worker are in it. Other workers must have none on the way.
    """
    digest = hashlib.sha256()
    waiting: list[_Chunk] = []
    for chunk in _chunks(session, specs):
        waiting.append(chunk)
        if len(waiting) > _CHUNKS_AHEAD:
            digest.update(_records(waiting.pop(0)))
    for chunk in waiting:
        digest.update(_records(chunk))
    return digest.hexdigest()


def _chunks(session: TableSession, specs: Sequence[TableSpec]) -> Iterator[_Chunk]:
    for spec in specs:
        index = session.machine.tables[spec.name][0]
        size = spec.record_bytes
        for rows in chunks(spec.rows, size):
            places = places_of(session, spec, rows)
            shares = {s: Share(Section([index], [len(p)]), rows[p]) for s, p in places.items()}
            yield _Chunk(session.pull_records(shares), places, len(rows), size)


def _records(chunk: _Chunk) -> memoryview:
    out = np.empty((chunk.rows, chunk.record_bytes), np.uint8)
    for shard, frame in chunk.asked.take().items():
        out[chunk.places[shard]] = np.frombuffer(frame, np.uint8).reshape(-1, chunk.record_bytes)
    return out.data.cast("B")
