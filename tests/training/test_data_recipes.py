"""docs/data.md: its mappings read rows of the layouts they are for, and its scripts run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from data_files import whole_rows, write  # noqa: E402
from in_process import InProcessCluster  # noqa: E402

from ecrec.data import FileDataset, HashedIds, read_columns  # noqa: E402
from ecrec.data.formats import check_file  # noqa: E402
from ecrec.errors import DataError  # noqa: E402
from ecrec.train import steps  # noqa: E402
from ecrec.training import SGD, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # noqa: E402

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
MAPPINGS = dict(re.findall(r"```toml\n# (\w+)\.toml\n(.*?)```", DOCS, re.S))
SCRIPTS = dict(re.findall(r"<!-- data: (\w+) -->\n```python\n(.*?)```", DOCS, re.S))
ROWS = 64


def generated(name: str) -> str:
    """Rows of the layout that a mapping is for, as its data set has them."""
    rng = np.random.default_rng(3)

    def lines(header: str, *columns: Any, separator: str = ",") -> str:
        texts = [[str(value) for value in column] for column in columns]
        rows = [separator.join(row) for row in zip(*texts, strict=True)]
        return "\n".join(([header] if header else []) + rows) + "\n"

    def ids(high: int) -> Any:
        return rng.integers(0, high, ROWS)

    def hexes() -> list[str]:
        return [f"{value:08x}" for value in ids(1 << 32).tolist()]

    clicks = ids(2)
    if name == "avazu":
        header = (
            "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,"
            "device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
        )
        numbers = [ids(9) for _ in range(10)]
        return lines(
            header, ids(1 << 62), clicks, 14102100 + ids(24), 1005 + ids(3), ids(7), *(hexes() for _ in range(9)),
            *numbers,
        )  # fmt: skip
    if name == "taobao":
        scenes = ["430548_1007", "430539_1007"] * (ROWS // 2)
        return lines(
            "user,time_stamp,adgroup_id,pid,nonclk,clk", ids(99), ids(1 << 30), ids(50), scenes, 1 - clicks, clicks
        )
    if name == "taobao_behavior":
        return lines("", ids(99), ids(999), ids(9), ["pv", "buy", "cart", "fav"] * (ROWS // 4), ids(1 << 30))
    if name == "movielens":
        return lines("userId,movieId,rating,timestamp", ids(20), ids(30), ids(10) / 2 + 0.5, ids(1 << 30))
    assert name == "kdd12"
    columns = [
        ids(3),
        1 + ids(9),
        ids(1 << 62),
        ids(99),
        ids(99),
        1 + ids(3),
        1 + ids(3),
        *(ids(999) for _ in range(5)),
    ]
    return lines("", *columns, separator="\t")


def write_lists(path: Path) -> None:
    """A Parquet file of users with a vector and up to ten items each."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(0, 11, ROWS).tolist()
    columns = {
        "bought": pa.array(rng.integers(0, 2, ROWS)),
        "vector": pa.array(list(rng.random((ROWS, 16), np.float32)), pa.list_(pa.float32(), 16)),
        "user": pa.array(rng.integers(0, 99, ROWS)),
        "last_items": pa.array([rng.integers(0, 99, size).tolist() for size in sizes], pa.list_(pa.int64())),
    }
    pq.write_table(pa.table(columns), path)


def train(data: Path, mapping: Path | None, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """One pass over a file as the worker of `ecrec train` makes it."""
    session = InProcessCluster(3).session(code="2+1")
    monkeypatch.setattr(steps, "connect", lambda *_, **__: session)
    config = steps.TrainConfig(
        data=(str(data),), columns=None if mapping is None else read_columns(str(mapping)), batch=16, dim=4, rows=50,
        bottom_mlp=(8,), top_mlp=(8,), code="2+1", **options,
    )  # fmt: skip
    return steps.run(config, "nowhere", 0, 1, lambda event: None)


@pytest.mark.parametrize("name", ["avazu", "taobao", "taobao_behavior", "movielens", "kdd12", "lists"])
def test_a_mapping_reads_rows_of_its_data_set_and_they_are_trained_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping, data = tmp_path / f"{name}.toml", tmp_path / "rows"
    mapping.write_text(MAPPINGS[name])
    if name == "lists":
        write_lists(data)
    else:
        data.write_text(generated(name))
    columns = read_columns(str(mapping))
    check_file(str(data), columns)
    labels = next(FileDataset([data], HashedIds(50), columns=columns, train_fraction=1.0).train_batches(ROWS)).labels
    assert len(labels) == ROWS and 0 < labels.mean() < 1, "no row is refused, and both labels are there"
    done = train(data, mapping, monkeypatch, shuffle_window=20)
    assert done["training"]["examples"] == 51 and done["auc"] is not None


def test_every_mapping_of_the_documentation_is_run() -> None:
    assert set(MAPPINGS) == {"avazu", "taobao", "taobao_behavior", "movielens", "kdd12", "lists"}
    assert set(SCRIPTS) == {"lease", "loader", "tfrecord"}


def test_several_ids_of_a_feature_are_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = write(tmp_path, "sparse_multi_hot.npz", whole_rows(ROWS))
    np.savez(sparse, **{"0": np.arange(ROWS * 3).reshape(ROWS, 3) % 20, "1": np.arange(ROWS)[:, None]})
    assert train(sparse, None, monkeypatch)["training"]["examples"] == 51
    data = FileDataset([sparse], HashedIds(50))
    (batch,) = data.train_range(2, 5, 3)
    features = steps._bag(batch, data)
    assert features.lengths().tolist() == [3, 3, 3, 1, 1, 1]
    assert features.values().tolist() == [*batch.ids[:3].T.reshape(-1).tolist(), *batch.ids[3].tolist()]


def test_ids_that_are_rows_of_tables_are_trained_on_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = write(tmp_path, "sparse_multi_hot.npz", whole_rows(ROWS))
    np.savez(sparse, **{"0": np.arange(ROWS * 3).reshape(ROWS, 3) % 50, "1": np.arange(ROWS)[:, None] % 50})
    done = train(sparse, None, monkeypatch, ids="plain")
    assert done["training"]["examples"] == 51
    with pytest.raises(DataError, match=r"npz, row 1: found C1 = 50, expected an id from 0 to 49"):
        np.savez(sparse, **{"0": np.full((ROWS, 3), 50), "1": np.zeros((ROWS, 1), np.int64)})
        train(sparse, None, monkeypatch, ids="plain")


def test_the_scripts_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("movielens.toml").write_text(MAPPINGS["movielens"])
    Path("ratings.csv").write_text(generated("movielens"))
    for name, tables, examples in (("lease", ["userId", "movieId"], 2 * 51), ("loader", ["item"], 700)):
        session = InProcessCluster(3).session(code="2+1")
        configs = [EmbeddingBagConfig(100_000, 4, each, feature_names=[each]) for each in tables]
        sparse = EmbeddingBagCollection(session, configs, SGD(lr=0.1))
        model = torch.nn.Linear(4 * len(tables), 1)
        session.replicate(model, SGD(lr=0.1))
        dataset = torch.utils.data.TensorDataset(torch.arange(700), (torch.arange(700) % 2).float())
        scope = dict(session=session, sparse=sparse, model=model, torch=torch, dataset=dataset, np=np)
        exec(SCRIPTS[name], scope | {"KeyedJaggedTensor": KeyedJaggedTensor})
        assert session.figures.examples == examples
        session.close()


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="TensorFlow takes long: ECREC_LONG_FAULTS=1")
def test_records_of_tensorflow_become_parquet(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    make = """
import tensorflow as tf
F = tf.train.Feature
with tf.io.TFRecordWriter("a.tfrecord") as out:
    for i in range(100):
        values = {
            "label": F(int64_list=tf.train.Int64List(value=[i % 2])),
            "user": F(bytes_list=tf.train.BytesList(value=[b"u%d" % (i % 7)])),
        }
        out.write(tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString())
files = ["a.tfrecord"]
"""
    done = subprocess.run(
        [sys.executable, "-c", make + SCRIPTS["tfrecord"]], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "c.toml").write_text('dense = ["price"]\nsparse = ["user"]\n')
    columns = read_columns(str(tmp_path / "c.toml"))
    batch = next(FileDataset([tmp_path / "clicks.parquet"], HashedIds(1 << 20), columns=columns).train_batches(80))
    assert batch.labels.tolist() == [0, 1] * 40 and len(np.unique(batch.ids)) == 7
