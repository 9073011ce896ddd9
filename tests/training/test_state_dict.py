"""state_dict and load_state_dict of models whose tables are on the shards."""

import io

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError  # noqa: E402
from ecrec.training import (  # noqa: E402
    Adagrad,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Session,
    whole,
)

FEATURES = KeyedJaggedTensor.from_ids(["a", "b"], torch.tensor([[1, 2, 3, 29], [0, 6, 6, 1]]))
KEYS = ["embedding_bags.ta.weight", "embedding_bags.tb.weight"]


class Model(nn.Module):
    def __init__(self, session: Session, seed: int) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(30, 4, "ta", feature_names=["a"]),
            EmbeddingBagConfig(7, 3, "tb", feature_names=["b"]),
        ]
        self.sparse = EmbeddingBagCollection(session, configs, Adagrad(lr=0.1), seed=seed)
        self.over = nn.Linear(7, 1)
        self.dense = session.replicate(self.over, Adagrad(lr=0.1))

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        out: torch.Tensor = self.over(self.sparse(features).values())
        return out


def trained(session: Session, steps: int = 3) -> Model:
    model = Model(session, seed=3)
    for _ in range(steps):
        model(FEATURES).sum().backward()
        session.push()
    return model


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "CHUNK_BYTES", 200)


@pytest.mark.parametrize(("n", "groups", "code"), [(3, 1, "2+1"), (3, 2, "1+1"), (5, 1, "3+2")])
def test_a_state_dict_has_the_weights_of_the_shards_and_goes_into_plain_torch(n: int, groups: int, code: str) -> None:
    with InProcessCluster(n, groups).session(code=code) as session:
        model = trained(session)
        expected = model.sparse(FEATURES).values().detach()
        state = model.sparse.state_dict()
        assert list(state) == KEYS
        bags = [nn.EmbeddingBag(rows, dim, mode="sum") for rows, dim in ((30, 4), (7, 3))]
        for bag, key in zip(bags, KEYS, strict=True):
            bag.load_state_dict({"weight": state[key]})
        ids = FEATURES.values().view(2, -1, 1)
        plain = torch.cat([bag(i) for bag, i in zip(bags, ids, strict=True)], dim=1)
        assert torch.equal(plain, expected)


def test_a_saved_model_is_loaded_on_another_cluster() -> None:
    with InProcessCluster(3).session(code="2+1") as session:
        model = trained(session)
        expected = model(FEATURES).detach()
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
    file.seek(0)
    with InProcessCluster(5).session(code="3+2") as session:
        model = Model(session, seed=8)
        assert not torch.equal(model(FEATURES), expected)
        assert str(model.load_state_dict(torch.load(file))) == "<All keys matched successfully>"
        model.dense.assign()
        assert torch.equal(model(FEATURES), expected)
        model(FEATURES).sum().backward()
        session.push()


def test_a_state_that_does_not_fit_is_named_and_nothing_of_that_table_is_written() -> None:
    with InProcessCluster(3).session(code="2+1") as session:
        model = trained(session)
        before = model.sparse.state_dict()
        for bad in (torch.zeros(29, 4), torch.zeros(30, 4, device="meta")):
            with pytest.raises(
                RuntimeError, match=r"table 'ta' is \(30, 4\) on the servers, and embedding_bags.ta.weight"
            ):
                model.sparse.load_state_dict({**before, KEYS[0]: bad})
        with pytest.raises(RuntimeError, match=r"Missing key.*embedding_bags.tb.weight"):
            model.sparse.load_state_dict({KEYS[0]: before[KEYS[0]]})
        after = model.sparse.state_dict()
        assert all(torch.equal(after[key], before[key]) for key in KEYS)


def test_a_table_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "WHOLE_BYTES_MAX", 4 * 30 * 4 - 1)
    with InProcessCluster(3).session(code="2+1") as session:
        model = trained(session)
        with pytest.raises(
            ConfigurationError, match=r"table 'ta' has .* GB of weights.*state_dict of the dense modules"
        ):
            model.state_dict()
        assert list(model.over.state_dict()) == ["weight", "bias"]
