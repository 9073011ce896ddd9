"""Training takes its features from the data: another format has other ones, of other names and numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402

from ecrec.data import Batch, SyntheticDataset  # noqa: E402
from ecrec.train import steps  # noqa: E402


class TwoAndThree:
    """Two dense and three sparse features."""

    dense_features = ("age", "price")
    sparse_features = ("user", "item", "shop")
    hot = (1, 1, 1)
    rows_per_table = (30, 20, 10)
    train_rows, test_rows = 96, 32

    def batch(self, start: int, stop: int) -> Batch:
        rows = np.arange(start, stop)
        ids = np.stack([rows % size for size in self.rows_per_table])
        dense = np.stack([np.sin(rows), np.cos(rows)], axis=1).astype(np.float32)
        return Batch((rows % 3 == 0).astype(np.float32), dense, ids)

    def train_range(self, first: int, last: int, batch_size: int, epoch: int = 0) -> Iterator[Batch]:
        return (self.batch(at, min(at + batch_size, last)) for at in range(first, last, batch_size))

    def train_batches(self, batch_size: int, **options: Any) -> Iterator[Batch]:
        return self.train_range(0, self.train_rows, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        return self.train_range(self.train_rows, self.train_rows + self.test_rows, batch_size)


def test_a_source_of_other_features_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    session = InProcessCluster(3).session(code="2+1")
    monkeypatch.setattr(steps, "open_data", lambda config: TwoAndThree())
    monkeypatch.setattr(steps, "connect", lambda *_, **__: session)
    events: list[dict[str, Any]] = []
    config = steps.TrainConfig(batch=16, dim=4, bottom_mlp=(8,), top_mlp=(8,), code="2+1")
    done = steps.run(config, "nowhere", 0, 1, events.append)
    assert set(TwoAndThree.sparse_features) <= set(session.machine.tables)
    assert [event["examples"] for event in events if event["event"] == "step"] == [16] * 6
    assert done["training"]["examples"] == 96 and done["auc"] is not None


def test_sources_say_what_their_features_are() -> None:
    data = SyntheticDataset()
    (batch,) = data.train_range(0, 5, 5)
    assert batch.dense.shape == (5, len(data.dense_features)) and batch.ids.shape == (len(data.sparse_features), 5)
    assert data.dense_features[0] == "I1" and data.sparse_features[-1] == "C26"
