"""Splits of the data as a training script sees them."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402

from ecrec.errors import ConfigurationError, FencedError, RefusedError  # noqa: E402
from ecrec.protocol.config import ProtocolConfig  # noqa: E402
from ecrec.train.steps import split_batches  # noqa: E402
from ecrec.training import SGD, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, Session  # noqa: E402
from ecrec.training.splits import Split  # noqa: E402

EXAMPLES, BATCH = 60, 4


def table(session: Session) -> EmbeddingBagCollection:
    """A row for each example; every time it is trained on, its weights grow by exactly one."""
    config = EmbeddingBagConfig(EXAMPLES, 4, "times", feature_names=["example"], init_scale=0.0)
    return EmbeddingBagCollection(session, [config], SGD(lr=1.0), code="1+1")


def features(first: int, last: int) -> Any:
    return KeyedJaggedTensor.from_ids(["example"], torch.arange(first, last)[None, :])


def train(session: Session, split_examples: int = 12, epochs: int = 1) -> list[Split]:
    sparse = table(session)
    splits = []
    for split in session.lease_splits("examples", EXAMPLES, split_examples=split_examples, epochs=epochs):
        splits.append(split)
        batches = (features(at, min(at + BATCH, split.last)) for at in range(split.first, split.last, BATCH))
        for batch in session.prefetch(batches, sparse):
            (-sparse(batch).values()).sum().backward()
            session.push(int(batch.values().numel()))
    return splits


def times(session: Session) -> np.ndarray:
    """How often each example was trained on."""
    with torch.no_grad():
        return table(session)(features(0, EXAMPLES)).values().numpy()[:, 0]


def test_one_worker_gets_all_in_order() -> None:
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        splits = train(session, split_examples=24, epochs=2)
        assert splits == [Split(e, a, b) for e in range(2) for a, b in ((0, 24), (24, 48), (48, 60))]
        assert (times(session) == 2).all()
        with pytest.raises(ConfigurationError, match="iterated over all of it: epochs= says how many passes"):
            session.lease_splits("examples", EXAMPLES, split_examples=24, epochs=2)
    with cluster.session() as again:
        assert train(again, split_examples=24, epochs=2) == [], "all of it is trained on"


def test_several_workers_share_the_data_and_a_shard_dies() -> None:
    cluster = InProcessCluster(3)
    sessions = [cluster.session(rank=rank, world_size=3) for rank in range(3)]
    sparse = [lambda s=session: train(s, split_examples=8) for session in sessions]
    got = in_threads([*sparse, lambda: cluster.kill(1)])
    assert sorted(split for splits in got[:3] for split in splits) == [
        Split(0, at, min(at + 8, EXAMPLES)) for at in range(0, EXAMPLES, 8)
    ]
    assert (times(sessions[0]) == 1).all()
    for session in sessions:
        session.close()


def test_a_worker_that_dies_in_the_middle_of_a_split_leaves_the_rest() -> None:
    cluster = InProcessCluster(3)
    session = cluster.session()
    sparse = table(session)
    splits = session.lease_splits("examples", EXAMPLES, split_examples=24)
    next(splits)
    for at in (0, 4):
        (-sparse(features(at, at + BATCH)).values()).sum().backward()
        session.push(BATCH)
    session.flush()
    session.abandon()
    with cluster.session() as again:
        first = train(again, split_examples=24)[0]
        assert first == Split(0, 8, 24)
        assert (times(again) == 1).all()
    (figures,) = cluster.scheduler.leases.figures()
    assert (figures.trained, figures.repeated, figures.deaths) == (EXAMPLES, 0, 1)


def test_a_worker_that_was_given_up_is_told_so() -> None:
    cluster = InProcessCluster(3, config=ProtocolConfig(lease_timeout_ms=1000))
    session = cluster.session()
    sparse = table(session)
    next(session.lease_splits("examples", EXAMPLES, split_examples=24))
    with cluster.session(rank=1, world_size=2) as other:
        train(other, split_examples=24)
        assert (times(other) == 1).all()
    with pytest.raises(FencedError, match=r"over|fenced"):
        for _ in range(100):
            (-sparse(features(0, BATCH)).values()).sum().backward()
            session.push(BATCH)


def test_what_cannot_be_is_refused() -> None:
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        for options in ({"examples": 0}, {"split_examples": 0}, {"epochs": -1}, {"end": -1}):
            with pytest.raises(ConfigurationError, match="lease_splits"):
                session.lease_splits("x", **{"examples": 10, "split_examples": 5, **options})
        for name, number in (("examples", "10"), ("split_examples", True), ("epochs", None), ("end", "5")):
            options = {"examples": 10, "split_examples": 5, name: number}
            with pytest.raises(
                ConfigurationError, match=rf"lease_splits\('x'\): {name} is .*, expected a whole number"
            ):
                session.lease_splits("x", **options)
        with pytest.raises(ConfigurationError, match=r"lease_splits: the name is 7, expected a string"):
            session.lease_splits(7, 10, split_examples=5)
        splits = session.lease_splits("x", 10, split_examples=5)
        next(splits)
        with pytest.raises(ConfigurationError, match=r"an iteration over 'x' .*was broken off"):
            next(session.lease_splits("y", 10, split_examples=5))
        for examples, expected in ((6, "but 5 are left"), (-1, "expected a whole number, at least 0")):
            with pytest.raises(ConfigurationError, match=f"a push of {examples} examples, {expected}"):
                session.push(examples)
        session.push(3)
        with pytest.raises(ConfigurationError, match="2 examples of the split 0 to 5 were not pushed"):
            next(splits)
    with cluster.session(rank=1, world_size=2) as other, pytest.raises(RefusedError, match="exists as"):
        next(other.lease_splits("x", 11, split_examples=5))


def test_sync_training_has_no_leases() -> None:
    cluster = InProcessCluster(3)
    with (
        cluster.session(sync=True) as session,
        pytest.raises(ConfigurationError, match="sync=True"),
    ):
        session.lease_splits("x", 10, split_examples=5)


@pytest.mark.parametrize(
    ("examples", "batch", "workers", "expected"),
    [(1000, 10, 1, 100), (1001, 10, 1, 101), (1000, 10, 2, 6), (100_000, 10, 2, 32), (10, 10, 4, 1)],
)
def test_there_are_splits_enough_for_all_workers(examples: int, batch: int, workers: int, expected: int) -> None:
    assert split_batches(examples, batch, workers) == expected
