"""The same generated rows as files of every format that ecrec reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from ecrec.data import SyntheticDataset, SyntheticOptions
from ecrec.data.criteo import write_rows
from ecrec.data.criteo_format import RawRows
from ecrec.data.rows import transform_integers

COLUMNS = """
label = "label"
dense = [{dense}]
sparse = [{sparse}]
tokens = "hex"
""".format(dense=", ".join(f'"I{i}"' for i in range(1, 14)), sparse=", ".join(f'"C{i}"' for i in range(1, 27)))


def whole_rows(count: int, seed: int = 7) -> RawRows:
    """Rows like Criteo's in which no token is missing: arrays have no way to say so."""
    raw = SyntheticDataset(SyntheticOptions(rows=count, seed=seed)).raw(0, count)
    return RawRows(raw.labels, raw.integers, raw.integers_missing, np.maximum(raw.tokens, 0))


def table(raw: RawRows) -> pa.Table:
    """Named columns, missing integers as nulls and tokens as 8 digits."""
    columns = {"label": pa.array(raw.labels.astype(np.int8))}
    for i in range(13):
        columns[f"I{i + 1}"] = pa.array(raw.integers[:, i], mask=raw.integers_missing[:, i])
    for i in range(26):
        columns[f"C{i + 1}"] = pa.array(["" if token < 0 else f"{token:08x}" for token in raw.tokens[i].tolist()])
    return pa.table(columns)


def rows_of(raw: RawRows) -> np.ndarray:
    """int32[n, 40], as MLPerf's files have them."""
    tokens = raw.tokens.astype(np.uint32).view(np.int32)
    return np.concatenate([raw.labels[:, None].astype(np.int32), raw.integers.astype(np.int32), tokens.T], axis=1)


def write(folder: Path, kind: str, raw: RawRows) -> Path:
    """One of `KINDS`; what to read by ``--data``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(raw)
    path = folder / f"rows.{kind}"
    if kind == "tsv":
        with path.open("wb") as stream:
            write_rows(stream, raw)
    elif kind == "bin":
        path.write_bytes(rows.tobytes())
    elif kind == "npy":
        np.save(path, rows)
    elif kind == "npz":
        np.savez(path, y=rows[:, 0], X_int=rows[:, 1:14], X_cat=rows[:, 14:])
    elif kind == "deflated.npz":
        np.savez_compressed(path, y=rows[:, 0], X_int=rows[:, 1:14], X_cat=rows[:, 14:])
    elif kind == "csv":
        csv.write_csv(table(raw), path)
    elif kind == "parquet":
        pq.write_table(table(raw), path, row_group_size=max(1, len(raw) // 3))
    else:
        path = folder / f"day_0_{kind}"
        np.save(folder / "day_0_labels.npy", rows[:, :1])
        np.save(folder / "day_0_dense.npy", transform_integers(raw.integers))
        if kind == "sparse.npy":
            np.save(path, rows[:, 14:])
        else:
            np.savez(path, **{str(i): rows[:, 14 + i : 15 + i] for i in range(26)})
    return path


TEXT_KINDS = ("tsv", "csv")
KINDS = (*TEXT_KINDS, "bin", "npy", "npz", "deflated.npz", "sparse.npy", "sparse_multi_hot.npz", "parquet")
