"""``ecrec size``: what a model needs of servers and network, by arithmetic over its tables.

Upper bounds, where they depend on the data: ids are drawn evenly, so that a step's rows are as many as they can be, and
no two steps of a window share a row.
"""

import re
from collections.abc import Sequence

import msgspec

from ecrec.errors import ConfigurationError
from ecrec.launch.groups import deal
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import OPTIMIZERS, CodeSpec, OptimizerSpec, TableSpec

BASE_BYTES = 100 << 20
"""Of a server without rows: Python, ZeroMQ, windows that are open and in flight."""
INDEXED_ABOVE_BYTES = 256 << 20
"""A larger share of a table has `INDEX_BYTES` for each row, touched or not (`src/cpp/store/tuning.hpp`)."""
INDEX_BYTES = 4
ID_BYTES, FLOAT_BYTES = 8, 4
_TABLE = re.compile(r"(\d{1,15})x(\d{1,5})")


class Size(msgspec.Struct, frozen=True):
    """Of one server, but for what says otherwise; bytes, seconds."""

    shards: int
    groups: int
    rows: int
    """Of all tables, on all servers."""
    record_bytes: list[int]
    """Of a row of each table: weights and optimizer state."""
    data_bytes: int
    parity_bytes: int
    index_bytes: int
    memory_bytes: int
    received_bytes_per_s: int
    sent_bytes_per_s: int
    recovery_bytes: int
    """What a replacement receives until it is whole."""
    recovery_s: float
    """At the rate of the network, while no worker asks for rows."""
    recovery_training_s: float
    """The same while workers train: the sweep takes a part of the time. Rows that are asked for come first."""


def parse_table(text: str) -> tuple[int, int]:
    """``"1000000x64"`` -> rows and floats. Raises ConfigurationError."""
    match = _TABLE.fullmatch(text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ConfigurationError(f"--table {text!r}: expected ROWSxFLOATS, such as 1000000x64")
    return int(match[1]), int(match[2])


def size(
    tables: Sequence[tuple[int, int]], optimizer: str, code: str, shards: int, groups: int | None,
    batch: int, steps_per_s: float, touched: float, network_gbit_s: float,
) -> Size:  # fmt: skip
    """Raises ConfigurationError for what cannot be."""
    spec = CodeSpec.parse(code)
    dealt = deal(shards, groups, spec)
    if optimizer not in OPTIMIZERS:
        raise ConfigurationError(f"--optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
    if not tables:
        raise ConfigurationError("--table: expected one at least, such as 1000000x64")
    for name, value in (("--steps-per-s", steps_per_s), ("--network-gbit-s", network_gbit_s), ("--touched", touched)):
        if not 0 < value < float("inf") or (name == "--touched" and value > 1):
            raise ConfigurationError(
                f"{name} {value}: must be above 0" + (", at most 1" if name == "--touched" else "")
            )
    hyper = tuple(0.0 for _ in OPTIMIZERS[optimizer].hyper)
    records = [
        TableSpec(str(i), rows, dim, spec, OptimizerSpec(optimizer, hyper), "zeros").record_bytes
        for i, (rows, dim) in enumerate(tables)
    ]
    data = parity = index = received = sent = 0.0
    for (rows, dim), record in zip(tables, records, strict=True):
        share, parity_share = rows / shards, spec.r * rows / spec.k / shards
        data += touched * share * record
        # A stripe has parity as soon as one of its k rows is touched.
        parity += (1 - (1 - touched) ** spec.k) * parity_share * record
        index += sum(INDEX_BYTES * part for part in (share, parity_share) if part * record > INDEXED_ABOVE_BYTES)
        distinct = rows * (1 - (1 - 1 / rows) ** batch) * steps_per_s / shards
        deltas = spec.r * distinct * (ID_BYTES + record)
        received += distinct * (2 * ID_BYTES + FLOAT_BYTES * dim) + deltas
        sent += distinct * FLOAT_BYTES * dim + deltas
    recovery = spec.k * (data + parity)
    seconds = recovery / (network_gbit_s * 1e9 / 8)
    return Size(
        shards, dealt.count, sum(rows for rows, _ in tables), records, round(data), round(parity), round(index),
        round(data + parity + index) + BASE_BYTES, round(received), round(sent), round(recovery), seconds,
        seconds * 100 / ProtocolConfig().recovery_share_percent,
    )  # fmt: skip


def lines(found: Size, code: str) -> list[str]:
    """For people."""

    def text(count: float, unit: str = "B") -> str:
        for prefix in ("", "K", "M", "G"):
            if count < 1000:
                return f"{count:.3g} {prefix}{unit}"
            count /= 1000
        return f"{count:.3g} T{unit}"

    groups = f" in {found.groups} groups" if found.groups > 1 else ""
    return [
        f"{found.shards} servers{groups}, code {code}, {found.rows:,} rows; each server, and each spare, needs:",
        f"  memory            {text(found.memory_bytes)}: rows {text(found.data_bytes)}, parity "
        f"{text(found.parity_bytes)}, index {text(found.index_bytes)}, else {text(BASE_BYTES)}",
        f"  network           {text(found.received_bytes_per_s, 'B/s')} in, {text(found.sent_bytes_per_s, 'B/s')} out",
        f"  to be made whole  {text(found.recovery_bytes)}: {found.recovery_s:.1f} s at the rate of the network, up to "
        f"{found.recovery_training_s:.1f} s beside training; rows that are asked for come first",
    ]
