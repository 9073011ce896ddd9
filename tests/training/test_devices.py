"""Tables are looked up, and replicated modules trained, on the CPU: other devices are refused, with what to do.

What a collection returns may be moved, and its gradients come back. `meta` stands in for a device that is not there.
"""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from torch import nn  # noqa: E402

import ecrec  # noqa: E402
from ecrec.errors import ConfigurationError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    Session,
)

ROWS, DIM = 10, 4
BATCH = KeyedJaggedTensor.from_ids(["t"], torch.tensor([[1, 2, 2]]))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


@pytest.fixture
def session() -> Iterator[Session]:
    with InProcessCluster(3).session(code="2+1") as session:
        yield session


def bags(session: Session, device: Any = None) -> EmbeddingBagCollection:
    config = EmbeddingBagConfig(ROWS, DIM, "t", feature_names=["t"], init_scale=0.0)
    return EmbeddingBagCollection(session, [config], SGD(lr=1.0), device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "xpu", torch.device("cuda", 0)])
def test_a_collection_on_a_device_is_refused_by_its_name_with_what_to_do(session: Session, device: Any) -> None:
    words = rf"device is {device}; tables are on the servers.*move what the collection returns.*\.to\('{device}'\)"
    with pytest.raises(ConfigurationError, match=words):
        bags(session, device)
    with pytest.raises(ConfigurationError, match=words):
        EmbeddingCollection(session, [EmbeddingConfig(ROWS, DIM, "s", feature_names=["t"])], SGD(lr=1.0), device=device)
    bags(session)  # nothing was made


@pytest.mark.parametrize("device", ["gpu", 3.5, "cuda:x"])
def test_what_is_no_device_is_refused(session: Session, device: Any) -> None:
    with pytest.raises(ConfigurationError, match="which torch does not know"):
        bags(session, device)


def test_modules_on_a_device_are_refused_with_what_to_do(session: Session) -> None:
    words = r"parameter weight of Linear is torch\.float32 on meta; expected.*module\.cpu\(\)\.float\(\) before"
    with pytest.raises(ConfigurationError, match=words):
        session.replicate(nn.Linear(2, 2, device="meta"), SGD(lr=1.0))
    with pytest.raises(ConfigurationError, match=r"on meta; expected torch\.float32 on cpu"):
        ecrec.distribute(nn.Linear(2, 2, device="meta"), session, sparse=SGD(lr=1.0), dense=SGD(lr=1.0))
    session.replicate(nn.Linear(2, 2), SGD(lr=1.0))


def test_what_a_collection_returns_may_be_moved(session: Session) -> None:
    """The forward pass alone: what is on `meta` has no values, and no gradients come from there."""
    moved = bags(session)(BATCH).values().to("meta")
    assert moved.device.type == "meta" and tuple(moved.shape) == (3, DIM) and moved.requires_grad


@needs_cuda
def test_gradients_of_what_was_moved_to_cuda_come_back_to_the_rows(session: Session) -> None:
    sparse = bags(session)
    torch.manual_seed(0)
    head = nn.Linear(DIM, 1).cuda()
    head(sparse(BATCH).values().cuda()).sum().backward()
    session.push()
    with torch.no_grad():
        rows = sparse(KeyedJaggedTensor.from_ids(["t"], torch.tensor([[1, 2, 3]]))).values()
    step = -head.weight.detach().cpu().reshape(-1)
    assert torch.allclose(rows, torch.stack([step, 2 * step, torch.zeros(DIM)]))


@needs_cuda
def test_a_replicated_module_that_is_moved_to_cuda_is_refused(session: Session) -> None:
    module = nn.Linear(2, 2)
    session.replicate(module, SGD(lr=1.0))
    module.cuda()
    with pytest.raises(ConfigurationError, match="was moved or converted"):
        module(torch.zeros(1, 2, device="cuda"))


@needs_cuda
def test_features_on_cuda_are_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="the features are on cuda:0, expected cpu"):
        bags(session)(KeyedJaggedTensor.from_ids(["t"], torch.tensor([[1]], device="cuda")))
