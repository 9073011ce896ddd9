"""Checkpoints of a run: the storage that they are written to, and what is checked of them.

Some have only what changed since an earlier one. The storage is slow, refuses, or hangs, as the plan says. What is
checked: of each shard the rows at its cut are kept, made from its lineage; when a manifest is written, the files, with
those of its bases, must give just these rows. And all shards must have cut at the same pushes of each worker.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecrec import _native
from ecrec.protocol import messages as m
from ecrec.protocol.events import FileWritten, WriteFile
from ecrec.protocol.messages import Address
from ecrec.protocol.saved import (
    INDEX,
    MANIFEST,
    STATE,
    Manifest,
    ShardIndex,
    StateFile,
    checkpoint_folder,
    columns_of,
    decode,
    part_header,
)
from simulation.plan import Plan
from simulation.record import Record
from simulation.rows import gather
from simulation.story import ViolationError


@dataclass
class CutOf:
    """A shard's cut of a checkpoint, as its lineage shows it."""

    rows: bytes
    pushes: dict[tuple[int, int], int]
    """(worker, epoch) -> pushes of that life that were applied."""
    stamps: list[tuple[int, int, int]]
    """(worker, epoch, checkpoint) of pushes that name a checkpoint."""


@dataclass
class Checkpoints:
    """What the run knows of its checkpoints. ``note(item)`` counts for the coverage."""

    plan: Plan
    record: Record
    count: Callable[[str], None]
    newest_life: Callable[[int], int]
    """The newest life of a worker, as far as it was made."""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[tuple[int, int], CutOf] = field(default_factory=dict)
    """(checkpoint, shard)"""
    views: dict[int, m.CheckpointCut] = field(default_factory=dict)
    """Checkpoint -> its cut, of any group."""
    complete: dict[int, Manifest] = field(default_factory=dict)
    urls: dict[int, str] = field(default_factory=dict)
    """Checkpoint -> where it was written."""
    states: dict[float, bytes] = field(default_factory=dict)
    """When a checkpoint was asked for, in seconds -> the state of the worker's own that is a part of it."""

    def __post_init__(self) -> None:
        self.rng = random.Random(f"storage {self.plan.seed}")
        self.hangs = self.rng.random() < 0.1
        self.increments = random.Random(f"increments {self.plan.seed}")
        self.paces = random.Random(f"paces {self.plan.seed}")

    def request(self, time_s: float, state: bytes) -> tuple[str, float, int, bytes, bool, int, int]:
        """What is asked for next, as `ClientMachine.save` takes it: mostly with the newest checkpoint as the base."""
        rng, url = self.increments, "sim://storage"
        if not self.plan.increments or rng.random() < 0.1:
            return url, time_s, 0, state, False, 0, 0
        if rng.random() < 0.15:
            url = "sim://other"
        found = sorted(number for number, manifest in self.complete.items() if self.urls[number] == url)
        if not found or rng.random() < 0.05:
            return url, time_s, 0, state, True, 0, 0
        base = found[-1]
        crc32c = _native.crc32c(self.files[_manifest_name(base)])
        if rng.random() < 0.1:
            self.count("checkpoint: a base that is not the cluster's")
            if len(found) > 1 and rng.random() < 0.5:
                base = found[-2]
            else:
                crc32c ^= 1
        return url, time_s, 0, state, True, base, crc32c

    def pace(self) -> int:
        """The rate that is asked for with the next one, in bytes a second of all shards; mostly none."""
        return self.paces.choice((1 << 14, 1 << 18)) if self.paces.random() < 0.3 else 0

    # ------------------------------------------------------------------ the storage
    def write(self, effect: WriteFile, quiet: bool) -> tuple[float, FileWritten] | None:
        """After how many milliseconds the file is written, and what is then told; None: never."""
        if self.hangs and not quiet and self.rng.random() < 0.1:
            self.count("checkpoint: a write hangs")
            return None
        data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in effect.buffers)
        delay_ms = self.rng.random() * (5.0 if quiet else self.plan.storage_ms)
        if not quiet and self.rng.random() < self.plan.storage_error_rate:
            self.count("checkpoint: a write fails")
            return delay_ms, FileWritten(effect.checkpoint, effect.name, 0, 0, "the storage is full")
        self.files[effect.name] = data
        self.urls[effect.checkpoint] = effect.url
        return delay_ms, FileWritten(effect.checkpoint, effect.name, len(data), _native.crc32c(data), "")

    def asked_at(self, time_s: float, worker: int) -> tuple[float, bytes]:
        """When a worker asks for one, no two at a time, and the state that it gives; empty: none."""
        while time_s in self.states:
            time_s += 1e-6
        self.states[time_s] = b""
        if self.plan.states and len(self.states) % 2:
            self.states[time_s] = f"worker {worker} at {time_s}".encode()
        return time_s, self.states[time_s]

    # ------------------------------------------------------------------ the cut of a shard
    def snapshot(self, shard: Address, checkpoint: int, watermarks: dict[int, int]) -> None:
        """A shard takes its snapshot."""
        who = shard.id
        if self.record.epochs.get(who) != shard.epoch or (who, shard.epoch) in self.record.down:
            return  # it was declared down, and has not heard so: its checkpoint is never complete
        pushes: dict[tuple[int, int], int] = defaultdict(int)
        stamps = []
        for entry in self.record.lineage[who]:
            for p in entry.pushes:
                pushes[p.worker, p.push.worker_epoch] += 1
                if p.push.checkpoint:
                    stamps.append((p.worker, p.push.worker_epoch, p.push.checkpoint))
        known = {worker: mark for worker, mark in watermarks.items() if mark}
        if known != self.record.watermarks[who]:
            raise ViolationError(
                f"{shard}: checkpoint {checkpoint} has watermarks {known}, its lineage {self.record.watermarks[who]}",
                [who],
            )
        rows = self.record.layout.rows_on(who, self.record.tables)
        self.cuts[checkpoint, who] = CutOf(gather(self.record.shadow(who), [rows], True)[0], dict(pushes), stamps)

    def announced(self, view: m.CheckpointCut) -> None:
        self.views[view.checkpoint] = view

    # ------------------------------------------------------------------ a complete one
    def check(self, checkpoint: int) -> None:
        """The manifest was written: the files give the rows of one cut of all shards."""
        manifest = decode(self.files[_manifest_name(checkpoint)], Manifest, "manifest")
        if checkpoint in self.complete:
            return  # by a scheduler that did not hear that it was written
        self.complete[checkpoint] = manifest
        self.count("checkpoint: complete")
        shards = self.plan.n * self.plan.groups
        if [index.shard for index in manifest.indexes] != list(range(shards)):
            raise ViolationError(f"checkpoint {checkpoint} lacks shards: {manifest.indexes}")
        missing = [shard for shard in range(shards) if (checkpoint, shard) not in self.cuts]
        if missing:
            raise ViolationError(f"checkpoint {checkpoint} is complete, shards {missing} have not cut", missing)
        self._check_cut(checkpoint, shards)
        self._check_state(checkpoint, manifest)
        self._check_base(checkpoint, manifest)
        for index in manifest.indexes:
            self._check_shard(checkpoint, manifest, index.shard)

    def _check_base(self, checkpoint: int, manifest: Manifest) -> None:
        """The base is complete, at the same URL, and the one whose checksum stands in the manifest."""
        bases = {index.base for index in manifest.indexes}
        if manifest.base != max(bases) or not bases <= {0, manifest.base}:
            raise ViolationError(f"checkpoint {checkpoint} has base {manifest.base}, its shards have {bases}")
        if not manifest.base:
            return
        self.count("checkpoint: an increment")
        if 0 in bases:
            self.count("checkpoint: an increment of which a shard wrote all")
        if self.complete[manifest.base].base:
            self.count("checkpoint: an increment of an increment")
        if any(manifest.base < number < checkpoint for number in self.urls if number not in self.complete):
            self.count("checkpoint: an increment after one that was given up")
        found = _native.crc32c(self.files[_manifest_name(manifest.base)])
        if self.urls[manifest.base] != self.urls[checkpoint] or found != manifest.base_crc32c:
            raise ViolationError(f"checkpoint {checkpoint} has another base than {manifest.base}")

    def _check_state(self, checkpoint: int, manifest: Manifest) -> None:
        """The state is that of the request which this checkpoint is of."""
        expected = self.states[manifest.time_s]
        data = self.files.get(f"{checkpoint_folder(checkpoint)}/{STATE}", b"") if manifest.state is not None else b""
        if data != expected:
            raise ViolationError(f"checkpoint {checkpoint} has the state {data!r}, asked for with {expected!r}")
        if manifest.state is not None and manifest.state != StateFile(len(data), _native.crc32c(data)):
            raise ViolationError(f"checkpoint {checkpoint}: its state is not what the manifest says")
        if expected:
            self.count("checkpoint: with a user's state")

    def _check_cut(self, checkpoint: int, shards: int) -> None:
        """Of each worker that was asked, all shards have the same pushes, and none that comes after."""
        view = self.views[checkpoint]
        for worker, epoch in view.epochs.items():
            if (worker, epoch) in self.record.fenced or self.newest_life(worker) > epoch:
                continue  # of its last pushes some shards may have had none
            counts = [self.cuts[checkpoint, shard].pushes.get((worker, epoch), 0) for shard in range(shards)]
            if len(set(counts)) > 1:
                raise ViolationError(
                    f"checkpoint {checkpoint} has {counts} pushes of worker {worker}'s life {epoch} on its shards"
                )
        for shard in range(shards):
            cut = self.cuts[checkpoint, shard]
            late = [s for s in cut.stamps if s[2] >= checkpoint and s[0] not in view.barriers]
            if late:
                raise ViolationError(f"checkpoint {checkpoint} has pushes that come after it: {late[:5]}", [shard])

    def _read(self, checkpoint: int, index: Any) -> ShardIndex:
        data = self.files[f"{checkpoint_folder(checkpoint)}/{index.name}"]
        if (len(data), _native.crc32c(data)) != (index.nbytes, index.crc32c):
            raise ViolationError(f"checkpoint {checkpoint}: {index.name} is not what the manifest says", [index.shard])
        if not index.name.endswith(INDEX):
            raise ViolationError(f"checkpoint {checkpoint}: {index.name} is no index", [index.shard])
        return decode(data, ShardIndex, index.name)

    def _check_shard(self, checkpoint: int, manifest: Manifest, shard: int) -> None:
        """The parts of a shard and of its bases, the oldest ones first, give the rows of its cut."""
        store, number, bases = self.record.new_store(shard), checkpoint, []
        while True:
            bases.append((number, self._read(number, self.complete[number].indexes[shard])))
            if not bases[-1][1].base:
                break
            number = bases[-1][1].base
        touched: dict[int, set[int]] = defaultdict(set)
        for number, index in reversed(bases):
            self._bring(store, number, shard, index, touched)
        newest = bases[0][1].touched
        counts = {table: len(rows) for table, rows in touched.items() if rows}
        if counts != {table: rows for table, rows in enumerate(newest) if rows}:
            raise ViolationError(
                f"checkpoint {checkpoint}: shard {shard} says {newest} rows, and has {counts}", [shard]
            )
        expected = self.cuts[checkpoint, shard]
        listed_rows = self.record.layout.rows_on(shard, manifest.tables)
        found = gather(store, [listed_rows], True)[0]
        # Tables that came after a shard's cut have initial rows in its files.
        if found[: len(expected.rows)] != expected.rows:
            raise ViolationError(f"checkpoint {checkpoint}: the files of shard {shard} give other rows", [shard])
        self.record.rows_checked += len(listed_rows.rows)

    def _bring(
        self, store: _native.Store, checkpoint: int, shard: int, index: ShardIndex, touched: dict[int, set[int]]
    ) -> None:
        """Bring what a shard wrote of a checkpoint into a store."""
        manifest, own = self.complete[checkpoint], Counter[tuple[int, int]]()
        for part in index.parts:
            spec = manifest.tables[part.table]
            data = self.files[f"{checkpoint_folder(checkpoint)}/shard-{shard:05}/{part.name}"]
            if (len(data), _native.crc32c(data)) != (part.nbytes, part.crc32c):
                raise ViolationError(f"checkpoint {checkpoint}: {part.name} is not what the index says", [shard])
            columns = columns_of(spec.dim, spec.optimizer)
            header = part_header(spec.name, part.rows, columns)
            if data[: len(header)] != header:
                raise ViolationError(f"checkpoint {checkpoint}: {part.name} has another header", [shard])
            body = np.frombuffer(data, np.uint8, offset=len(header))
            rows, at, parts = body[: 8 * part.rows].view(np.int64), 8 * part.rows, []
            for column in columns:
                parts.append(body[at : at + part.rows * column.nbytes].reshape(part.rows, column.nbytes))
                at += part.rows * column.nbytes
            records = np.concatenate(parts, axis=1).reshape(-1).view(np.float32)
            listed = (np.array([part.table], np.int32), np.array([part.rows], np.int64), rows)
            store.assign_records(*listed, records, None)
            touched[part.table].update(rows.tolist())
            own.update((part.table, row) for row in rows.tolist())
        if own and max(own.values()) > 1:
            raise ViolationError(f"checkpoint {checkpoint} has a row of shard {shard} twice", [shard])


def _manifest_name(checkpoint: int) -> str:
    return f"{checkpoint_folder(checkpoint)}/{MANIFEST}"


def is_manifest(effect: WriteFile) -> bool:
    """Whether an effect writes a manifest."""
    return effect.name.endswith(f"/{MANIFEST}")
