"""Valid inputs to start from: the messages of a real run, one of each type, a state, some rows."""

import io
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cases import MESSAGES_MAX, Case, Sent, mutate_body, mutate_bytes, mutate_case, read_case, sent_of, write_case
from data_files import table, whole_rows, write
from hypothesis import HealthCheck, Phase, given, seed, settings
from scenes import MOMENTS, SOURCES, scenes
from store_sequences import HEAD_BYTES, STEP_BYTES, STEPS_MAX
from targets import CHECKPOINT, FILE_KINDS, FILE_ROWS, TO, join_parts, split_parts
from test_wire import PREAMBLE_BYTES, frames_of, values

from ecrec.data.criteo import write_rows
from ecrec.data.criteo_format import RawRows
from ecrec.data.rows import MISSING_TOKEN
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.events import Received
from ecrec.protocol.saved import VERSION, Part, ShardIndex, columns_of, encode, part_header, part_name

MACHINES = ("survivor", "replacement", "scheduler", "client")


@cache
def messages(name: str) -> tuple[Sent, ...]:
    """What the scene's machine was told, and a made-up message of each type from a source that sends it."""
    told = [sent_of(event, _source(event.source)) for event in scenes()[name].told]
    return tuple(told + [_made_up(kind) for kind in get_args(m.AnyMessage)])


def _source(address: m.Address) -> int:
    return SOURCES.index(address) if address in SOURCES else 0


@cache
def _made_up(kind: type[m.Message]) -> Sent:
    found: list[Any] = []

    @seed(7)
    @settings(max_examples=6, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(values(kind))
    def take(message: m.Message) -> None:
        found.append(message)

    take()
    message = max(found, key=lambda each: len(wire.pack(each, frames_of(each)).body))
    return sent_of(Received(TO, message, tuple(frames_of(message))), len(found) % len(SOURCES))


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Valid inputs of a target."""
    if name in MACHINES:
        told = messages(name)[: len(scenes()[name].told)]
        singles = [Case(moment, [each]) for i, each in enumerate(told) for moment in (i % (MOMENTS + 1), MOMENTS)]
        runs = [Case(1, list(told[i : i + MESSAGES_MAX])) for i in range(0, len(told), MESSAGES_MAX)]
        return tuple(write_case(case) for case in singles + runs)
    if name in ("wire", "node"):
        told = [event for scene in scenes().values() for event in scene.told]
        encoded = [wire.encode(e.message, e.frames, e.source, TO, 3, 2) for e in told]
        return tuple(join_parts([bytes(part) for part in parts]) for parts in encoded)
    if name == "state":
        from targets import SchedulerMachine

        states = [scenes()["scheduler"].moments[i]() for i in range(1, MOMENTS + 1)]
        assert all(isinstance(state, SchedulerMachine) for state in states)
        return tuple(msgspec.msgpack.encode(state.state) for state in states)
    if name == "store":
        drawn = random.Random(7)
        return tuple(drawn.randbytes(HEAD_BYTES + STEP_BYTES * drawn.randrange(STEPS_MAX)) for _ in range(20))
    if name == "checkpoint":
        table = CHECKPOINT.tables[0]
        manifest = encode(CHECKPOINT)
        manifest = manifest[: manifest.rindex(b",")] + b"\n}"  # without its checksum
        parts = [Part(part_name(0), 0, 3, 900, 7)]
        header = part_header(table.name, 3, columns_of(table.dim, table.optimizer))
        return (b"m" + manifest, b"i" + encode(ShardIndex(VERSION, 1, 0, {0: 10}, parts)), b"h" + header[8:])
    if name == "files":
        return tuple(bytes([number]) + _file(kind) for number, kind in enumerate(FILE_KINDS))
    assert name == "criteo"
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, 2**32, (26, 3))
    tokens[rng.random((26, 3)) < 0.2] = MISSING_TOKEN
    missing = rng.random((3, 13)) < 0.2
    integers = np.where(missing, 0, rng.integers(-3, 10**9, (3, 13)))
    stream = io.BytesIO()
    write_rows(stream, RawRows(np.array([0, 1, 0], np.float32), integers, missing, tokens))
    return (stream.getvalue(), stream.getvalue().replace(b"\n", b"\r\n"), b"1" + b"\t" * 39 + b"\n")


def _file(kind: str) -> bytes:
    """A file of some rows."""
    raw = whole_rows(FILE_ROWS)
    lists = {
        "label": [0, 1, 1, 0, 1],
        "price": [1.5, None, 0.0, 7.0, 1e9],
        "vector": [[1.0, 2.0], [3.0], [], None, [4.0, None]],
        "user": ["a", "bb", "", None, "a longer one"],
        "items": [[1, 2], [], [3], None, [4, 5, 6]],
    }
    if kind == "rows.csv":
        return b'label,price,vector,user,items\n1,2.5,1|2,anna,7|8\n0,,"3",,\n1,1e3,|,"x,y",9\n'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / kind
        if kind == "lists.parquet":
            pq.write_table(pa.table(lists), path, row_group_size=3, compression="none")
        elif kind == "rows.parquet":
            pq.write_table(table(raw), path, use_dictionary=False)
        else:
            path = write(Path(folder), kind.removeprefix("rows.").removeprefix("day_0_"), raw)
        return path.read_bytes()


def mutated(name: str, start: bytes, rng: random.Random) -> bytes:
    """A neighbour of an input: of its messages where it has some, of its bytes now and then."""
    if name in MACHINES and rng.random() < 0.95:
        case = read_case(start)
        for _ in range(rng.choice([1, 1, 2, 3])):
            case = mutate_case(case, rng, messages(name), MOMENTS + 1)
        return write_case(case)
    if name == "files" and rng.random() < 0.95:  # of one format
        return start[:1] + mutate_bytes(start[1:], rng)
    if name in ("wire", "node") and rng.random() < 0.9:
        parts: Sequence[bytes] = split_parts(start) or [b""]
        which = rng.randrange(len(parts))
        head = PREAMBLE_BYTES + 8 * (len(parts) - 1)
        body = which == 0 and len(parts[0]) > head and rng.random() < 0.5
        changed = parts[0][:head] + mutate_body(parts[0][head:], rng) if body else mutate_bytes(parts[which], rng)
        return join_parts([*parts[:which], changed[: 2**16 - 1], *parts[which + 1 :]])
    if name == "store" and rng.random() < 0.5:
        return rng.randbytes(HEAD_BYTES) + start[HEAD_BYTES:]
    return mutate_bytes(start, rng)
