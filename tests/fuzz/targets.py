"""What is fuzzed, and what must hold. Each target takes any bytes and raises only when a promise is broken.

The promises: nothing but the documented exceptions; what was refused changed nothing; no allocation out of
proportion to the input; what a machine wants to send can be sent.
"""

import contextlib
import gzip
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
from cases import Case, read_case
from scenes import SOURCES, scenes
from store_sequences import run as run_store_sequence
from test_wire import resealed

from ecrec._native import Capture
from ecrec.checkpoint.rules import check_header, check_index, check_manifest, row_bytes
from ecrec.data.columns import Columns
from ecrec.data.criteo import criteo_file
from ecrec.data.criteo_format import parse_block
from ecrec.data.formats import check_file, open_rows
from ecrec.errors import CheckpointError, ConfigurationError, DataError, WireError
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT, HalfHandledError, Received, Send, Stop, Tick
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.saved import (
    VERSION,
    IndexFile,
    Manifest,
    SavedDataset,
    SavedLease,
    ShardIndex,
    decode,
    encode,
    index_name,
    with_checksum,
)
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.state import with_checksum as state_with_checksum
from ecrec.transport.links import Arrived, Links
from ecrec.transport.node import Node

NOW_MS = 1e6
TO = m.Address(m.SHARD, 1, 1)

BYTES_FREE = 4 << 20
"""Allocated whatever the input: an open window, a heartbeat, a small table's answer."""
BYTES_FOR_ONE = 256
"""Allocated for a byte of input: objects of Python are that much larger than msgpack."""

CHECKPOINT = Manifest(
    VERSION, 1, "c", "0.1.0", 1.8e9, 2.0, 2, 1,
    [TableSpec("t", 50, 4, CodeSpec(1, 1), OptimizerSpec("adam", (0.1, 0.9, 0.999, 1e-8)), "uniform", 3, 0.5, 0.25)],
    [IndexFile(shard, index_name(shard), 300, 7, 3, 900) for shard in range(2)],
    [SavedDataset("clicks", 100, 200, 10, 50, [(10, 20)], [SavedLease(5, 1, 40, 50, 3)], 33, 2)], [0, 3], [0],
)  # fmt: skip
"""What an index and a header are compared with."""

FILE_KINDS = (
    "rows.bin", "rows.npy", "rows.npz", "day_0_sparse.npy", "day_0_sparse_multi_hot.npz", "rows.csv", "rows.parquet",
    "lists.parquet",
)  # fmt: skip
FILE_ROWS = 5
"""Of the arrays that complete those of ids."""
FILE_COLUMNS = Columns(dense=("price", "vector"), sparse=("user", "items"), lists={"vector": 2, "items": 3},
                       list_separator="|")  # fmt: skip

_DECODER = msgspec.msgpack.Decoder(m.AnyMessage)


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """Assert that no more is allocated than an input of this size may ask for (while tracemalloc is on)."""
    if not tracemalloc.is_tracing():
        yield
        return
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    yield
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before <= BYTES_FREE + BYTES_FOR_ONE * size, f"{peak - before} bytes for an input of {size}"


# ------------------------------------------------------------------ decoders
def fuzz_wire(data: bytes) -> None:
    """Frames of a message, with a length of two bytes before each but the first."""
    parts = split_parts(data)
    with contextlib.suppress(WireError):
        wire.decode(parts)
    # A checksum that nobody guesses must not be where all inputs end.
    parts = resealed(parts)
    with bounded(len(data)):
        try:
            envelope = wire.decode(parts)
        except WireError:
            return
    if envelope.message is not None:
        again = wire.encode(envelope.message, envelope.frames, *envelope[:4])
        # Compared as text: a figure that is not a number is not equal to itself.
        assert str(wire.decode(again)) == str(envelope)


def split_parts(data: bytes) -> list[bytes]:
    """Length and bytes of each frame; the last takes what is left."""
    parts = []
    while data:
        size = int.from_bytes(data[:2], "little")
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


def join_parts(parts: list[bytes]) -> bytes:
    """`split_parts` of the result are the parts."""
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def fuzz_state(data: bytes) -> None:
    """A scheduler's stored state: read, or refused as what it is; what was read can be gone on with."""
    with bounded(len(data)):
        try:
            machine = SchedulerMachine(5, 1, ProtocolConfig(), state_with_checksum(data))
        except (msgspec.MsgspecError, ConfigurationError):
            return
    check_effects(machine.handle(Tick(), NOW_MS))
    check_effects(machine.handle(Received(SOURCES[2], m.ClusterQuery(1)), NOW_MS))


def fuzz_checkpoint(data: bytes) -> None:
    """A manifest, an index or the header of a part, as the first byte says, with checksums that fit."""
    kind, content = data[:1], data[1:]
    with bounded(len(data)), contextlib.suppress(CheckpointError):
        if kind == b"m":
            manifest = decode(with_checksum(content), Manifest, "f")
            check_manifest(manifest, "f")
            assert decode(encode(manifest), Manifest, "f") == manifest
        elif kind == b"i":
            index = decode(content, ShardIndex, "f")
            check_index(index, CHECKPOINT.indexes[0], CHECKPOINT, "f")
            assert all("/" not in part.name for part in index.parts)
        else:
            tensors = check_header(content, CHECKPOINT.tables[0], 3, "f")
            assert sum(3 * column.nbytes for column, _ in tensors.values()) == 3 * row_bytes(CHECKPOINT.tables[0])


def fuzz_criteo(data: bytes) -> None:
    """A block of lines, and the same as a file, plain or zipped by who knows whom."""
    block = data if data.endswith(b"\n") else data + b"\n"
    with bounded(len(block)), contextlib.suppress(DataError):
        rows = parse_block(block, "f", 1)
        assert len(rows) == block.count(b"\n")
    with tempfile.NamedTemporaryFile() as file:
        for content in (data, gzip.compress(data)[: len(data) + 12]):
            file.seek(0)
            file.truncate()
            file.write(content)
            file.flush()
            with contextlib.suppress(DataError):
                for _ in criteo_file(file.name).pieces():
                    pass


def fuzz_files(data: bytes) -> None:
    """A file of each other format, as the first byte says: what comes of it are rows, or it is refused."""
    kind = FILE_KINDS[data[0] % len(FILE_KINDS)] if data else FILE_KINDS[0]
    columns = FILE_COLUMNS if kind in ("rows.csv", "lists.parquet") else None
    with tempfile.TemporaryDirectory() as folder:
        for part, array in (("labels", np.zeros(FILE_ROWS)), ("dense", np.ones((FILE_ROWS, 2), np.int32))):
            np.save(f"{folder}/day_0_{part}.npy", array)
        name = f"{folder}/{kind}"
        with open(name, "wb") as file:
            file.write(data[1:])
        with bounded(len(data)):
            try:
                check_file(name, columns)
                rows = open_rows(name, columns)
                check_pieces(rows)
            except DataError as error:
                assert kind.removesuffix("sparse_multi_hot.npz").removesuffix("sparse.npy") in str(error)
                assert folder in str(error) and str(error).isprintable(), repr(str(error))


def check_pieces(file: Any) -> None:
    """What a file gives are rows, one piece behind the other."""
    end = 0
    for piece in file.pieces():
        n = len(piece.numbers)
        assert (piece.first, piece.stop - piece.first) == (end, n + len(piece.wrong))
        assert sorted([*piece.numbers.tolist(), *piece.wrong]) == list(range(piece.first, piece.stop))
        assert piece.rows.labels.shape == (n,) and set(piece.rows.labels.tolist()) <= {0.0, 1.0}
        assert piece.rows.dense.shape == (n, len(file.layout.dense)) and np.isfinite(piece.rows.dense).all()
        tokens = piece.rows.tokens
        assert tokens.shape == (sum(file.layout.hot), n) and ((tokens >= -1) & (tokens < 1 << 32)).all()
        end = piece.stop
    assert file.count().rows == end


# ------------------------------------------------------------------ machines
def fuzz_survivor(data: bytes) -> None:
    """A shard whose peer dies and comes back."""
    run_case("survivor", read_case(data), len(data))


def fuzz_replacement(data: bytes) -> None:
    """A shard that starts, is repaired and seeded."""
    run_case("replacement", read_case(data), len(data))


def fuzz_scheduler(data: bytes) -> None:
    run_case("scheduler", read_case(data), len(data))


def fuzz_client(data: bytes) -> None:
    run_case("client", read_case(data), len(data))


def run_case(name: str, case: Case, size: int) -> None:
    """Give the scene's machine the case's messages; check the promises after each."""
    moments = scenes()[name].moments
    machine = moments[case.moment % len(moments)]()
    # What is due at this time is done before, and not by the first message.
    check_effects(machine.handle(Tick(), NOW_MS))
    for sent in case.sent:
        source = SOURCES[sent.source % len(SOURCES)]
        try:
            parts = wire.encode(_DECODER.decode(sent.body), sent.frames, source, TO)
            message = wire.decode(parts).message
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, WireError):
            continue
        assert message is not None
        before = fingerprint(machine)
        try:
            with bounded(size):
                effects = machine.handle(Received(source, message, tuple(sent.frames)), NOW_MS)
        except BAD_CONTENT:
            assert fingerprint(machine) == before, "what was refused changed something"
            continue
        check_effects(effects)
        if source.role in (m.WORKER, m.TOOL) and not isinstance(machine, ClientMachine):
            assert not any(isinstance(effect, Stop) for effect in effects)
        # A push that waited for rows is refused with the message that brings them, which changes what it is to change.
        is_refused = any(isinstance(e, Send) and isinstance(e.message, m.PushRefused) for e in effects)
        if is_refused and isinstance(message, m.Push):
            assert fingerprint(machine) == before, "a refused push changed something"
        check_effects(machine.handle(Tick(), NOW_MS))


def fuzz_node(data: bytes) -> None:
    """Frames as `fuzz_wire` takes them, to a whole server but for its sockets: nothing that arrives ends it, but for
    what a server says that cannot be: it would be a hole in a stream, or a view that is not taken."""
    moments = scenes()["survivor"].moments
    node = Node(moments[len(data) % len(moments)](), Links())
    try:
        parts = resealed(split_parts(data))
        for route in (b"route", b""):
            try:
                node.core.arrived(Arrived(route, parts), NOW_MS)
            except HalfHandledError:
                assert wire.decode(parts).source.role in (m.SHARD, m.SCHEDULER)
                return
            assert not node.stopped or wire.decode(parts).source.role == m.SCHEDULER
            node.core.tick(NOW_MS)
    finally:
        node.close()


def fuzz_store(data: bytes) -> None:
    """A sequence of calls on the stores of a group: each leaves what the model says."""
    run_store_sequence(data)


def check_effects(effects: Any) -> None:
    for effect in effects:
        if isinstance(effect, Send):
            packed = wire.pack(effect.message, effect.frames)
            with contextlib.suppress(WireError):  # an epoch that no address has: the transport logs and drops it
                wire.seal(packed, TO, effect.to)


def fingerprint(machine: Any) -> Any:
    """All that a refused message must leave as it was."""
    if isinstance(machine, ShardMachine):
        return _shard_fingerprint(machine)
    if isinstance(machine, SchedulerMachine):
        contacts = {key: (c.view, c.status) for key, c in machine.members.contacts.items()}
        return (
            msgspec.msgpack.encode(machine.state),
            set(machine.admission.candidates),
            contacts,
            set(machine.workers.clients),
        )
    assert isinstance(machine, ClientMachine)
    shards = {n: (s.epoch, s.connected, s.greeted, s.pushed, s.acked) for n, s in machine._shards.items()}
    return machine.epoch, machine.failed, list(machine._views), dict(machine.tables), shards, set(machine._tickets)


def _shard_fingerprint(machine: ShardMachine) -> Any:
    placed = (machine.address, machine.state, machine.view, machine.heartbeats.wanted)
    if not machine.state:
        return placed, machine.store is None, machine.placement is None
    context = machine.context
    numbers = context.window_number, context.stable, dict(context.watermarks), dict(context.durable)
    told = context.origin, context.copied, context.copy, machine.membership.prepared, machine.membership.refusal
    windows = dict(context.open_watermarks), sorted(context.unstable), context.buffers.rows()
    peers = {
        n: (p.epoch, p.state, p.joined, p.received, p.watermarks_received(), [u.number for u in p.undo], dict(p.rounds))
        for n, p in machine.peers.items()
    }
    store, placement = machine.store, machine.placement
    rows: list[bytes] = []
    for stripe in placement.classes:
        size = store.class_size(stripe.class_id)
        if machine.shard in stripe.data:
            rows += [array.tobytes() for array in store.coded_rows(stripe.class_id, 0, size)]
            rows.append(str(store.next_missing(stripe.class_id, 0)).encode())
        if machine.shard in stripe.parity and size:
            rows += [np.asarray(array).tobytes() for array in Capture(store, stripe.class_id, 0, size).take()]
    asked = set(machine.repairs.asked), set(machine.captures.assemblies), dict(machine.seeding.rounds)
    return placed, told, numbers, windows, peers, store.tables, rows, asked, dict(machine.seeding.tasks)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": fuzz_wire,
    "state": fuzz_state,
    "criteo": fuzz_criteo,
    "files": fuzz_files,
    "checkpoint": fuzz_checkpoint,
    "survivor": fuzz_survivor,
    "replacement": fuzz_replacement,
    "scheduler": fuzz_scheduler,
    "client": fuzz_client,
    "node": fuzz_node,
    "store": fuzz_store,
}
"""By name; the corpus has a folder of each."""
