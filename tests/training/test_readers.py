"""Sessions that only read: they see the model, and training does not feel them."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    Adagrad,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Session,
    connect,
)
from ecrec.training.digest import model_digest  # noqa: E402

FEATURES = KeyedJaggedTensor.from_ids(["f"], torch.tensor([[1, 2, 3]]))


def table(name: str = "t", dim: int = 4) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(20, dim, name, feature_names=["f"])


def model(session: Session, optimizer: Any, seed: int) -> tuple[EmbeddingBagCollection, nn.Module, Any]:
    sparse = EmbeddingBagCollection(session, [table()], optimizer, seed=seed)
    over = nn.Linear(4, 1)
    return sparse, over, session.replicate(over, optimizer)


def test_a_reader_sees_what_the_worker_trains_and_the_worker_goes_on() -> None:
    """It needs no optimizer, code or seed of the cluster's, and many of them are no workers."""
    cluster = InProcessCluster(3)
    worker = cluster.session(code="1+2")
    sparse, over, dense = model(worker, Adagrad(lr=0.1), seed=3)
    readers = [cluster.session(read_only=True) for _ in range(3)]
    seen = [model(reader, SGD(lr=1.0), seed=8) for reader in readers]
    for _ in range(3):
        over(sparse(FEATURES).values()).sum().backward()
        worker.push(3)
        worker.flush()
        expected = over(sparse(FEATURES).values())
        for their_sparse, their_over, their_dense in seen:
            their_dense.pull()
            assert torch.equal(their_over(their_sparse(FEATURES).values()), expected)
    assert readers[0].model_digest() == worker.model_digest()
    specs = sorted([*sparse.specs, dense.spec], key=lambda spec: spec.name)
    assert model_digest(readers[0], specs) == worker.model_digest()
    for reader in readers:
        reader.close()
    worker.push()
    worker.close()


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("no_grad", [False, True])
def test_a_reader_that_calls_the_module_sees_what_the_cluster_has_now(no_grad: bool, part: bool) -> None:
    """Rows of tables are those of now: the dense part must not be that of the first call."""
    cluster = InProcessCluster(3)
    worker = cluster.session(code="1+2")
    towers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    worker.replicate(towers, SGD(lr=0.5))
    theirs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    reader = cluster.session(read_only=True)
    reader.replicate(theirs, SGD(lr=0.5))
    x = torch.ones(2, 4)
    for _ in range(3):
        towers(x).sum().backward()
        worker.push()
        worker.flush()
        worker_sees = (towers[0] if part else towers)(x)
        pulled = reader.figures.bytes_pulled
        with torch.set_grad_enabled(not no_grad):
            assert torch.equal((theirs[0] if part else theirs)(x), worker_sees)
        assert reader.figures.bytes_pulled - pulled == 4 * 1024 * -(-25 // 1024) * 4, "once a call"
    reader.close()
    worker.close()


def test_a_call_that_fails_is_over() -> None:
    cluster = InProcessCluster(3)
    worker = cluster.session()
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    worker.replicate(module, SGD(lr=0.5))
    reader = cluster.session(read_only=True)
    theirs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    reader.replicate(theirs, SGD(lr=0.5))
    with pytest.raises(RuntimeError, match="shapes"):
        theirs(torch.ones(2, 3))
    module(torch.ones(2, 4)).sum().backward()
    worker.push()
    worker.flush()
    assert torch.equal(theirs(torch.ones(2, 4)), module(torch.ones(2, 4)))
    reader.close()
    worker.close()


def test_a_reader_changes_nothing() -> None:
    cluster = InProcessCluster(3)
    worker = cluster.session()
    model(worker, SGD(lr=1.0), seed=3)
    reader = cluster.session(read_only=True)
    sparse, over, dense = model(reader, SGD(lr=1.0), seed=3)
    over(sparse(FEATURES).values()).sum().backward()
    calls: list[Callable[[], Any]] = [
        reader.push, dense.assign, reader.barrier, lambda: reader.lease_splits("x", 10, split_examples=5),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigurationError, match=r"this session only reads \(read_only=True\)"):
            call()
    with pytest.raises(ConfigurationError, match=r"there is no table 'u' on the cluster; there are: dense, t"):
        EmbeddingBagCollection(reader, [table("u")], SGD(lr=1.0))
    with pytest.raises(ConfigurationError, match=r"table 't' has 20 rows of 4 weights on the cluster, not 20 of 5"):
        EmbeddingBagCollection(cluster.session(read_only=True), [table(dim=5)], SGD(lr=1.0))
    with pytest.raises(Exception, match="another module"):
        cluster.session(read_only=True).replicate(nn.Linear(2, 2), SGD(lr=1.0))
    assert set(worker.machine.pushed.values()) == {1}
    worker.push()
    worker.flush()


def test_a_reader_has_no_rank() -> None:
    for options in ({"rank": 1, "world_size": 2}, {"sync": True}):
        with pytest.raises(ConfigurationError, match="a reader is no worker"):
            connect("ipc:///nowhere", read_only=True, **options)  # type: ignore[arg-type]
