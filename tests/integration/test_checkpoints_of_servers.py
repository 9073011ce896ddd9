"""A checkpoint that real servers wrote is whole, and what is exported of it is what the session has, to the bit."""

import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from ecrec.checkpoint.checking import check  # noqa: E402
from ecrec.checkpoint.export import export  # noqa: E402
from ecrec.checkpoint.parameters import module_parameters  # noqa: E402
from ecrec.checkpoint.reading import checkpoints, open_checkpoint  # noqa: E402
from ecrec.checkpoint.saving import Increments, save_checkpoint  # noqa: E402
from ecrec.launch.local.cluster import ClusterSettings, LocalCluster  # noqa: E402
from ecrec.protocol.saved import checkpoint_folder  # noqa: E402
from ecrec.training import (  # noqa: E402
    Adagrad,
    Adam,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Session,
    connect,
)


def save(session: Session, endpoint: str, url: str, increments: Increments | None = None) -> None:
    """While the session goes on, whose worker is asked for its last push."""
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            save_checkpoint(endpoint, url, 60.0, increments=increments)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        session.flush()
        thread.join(0.05)
    assert errors == []


def test_what_servers_wrote_is_checked_and_exported(tmp_path: Path) -> None:
    url = str(tmp_path / "checkpoints")
    settings = ClusterSettings(10, tmp_path / "run", groups=2)
    with LocalCluster(settings) as cluster:
        endpoint = cluster.start()
        cluster.wait_ready()
        with connect(endpoint, code="4+1") as session:
            config = EmbeddingBagConfig(20_000, 8, "items", feature_names=["item"])
            sparse = EmbeddingBagCollection(session, [config], Adam(lr=0.02))
            model = torch.nn.Linear(8, 1)
            dense = session.replicate(model, Adagrad(lr=0.01))
            draw = torch.Generator().manual_seed(1)
            for number in (1, 2):
                ids = [torch.randint(0, 20_000, (1, 64), generator=draw) for _ in range(5)]
                for features in session.prefetch([KeyedJaggedTensor.from_ids(["item"], each) for each in ids]):
                    model(sparse(features).values()).sum().backward()
                    session.push(64)
                save(session, endpoint, url)
                assert [info.number for info in checkpoints(url) if info.is_complete] == list(range(1, number + 1))
            dense.pull()
            (weights,) = sparse.state_dict().values()
            parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    checked = check(url)
    assert checked.problems == [] and checked.rows > 300
    export(url, "torch", tmp_path / "out", tables=["items"])
    exported = torch.load(tmp_path / "out" / "state_dict.pt", weights_only=True)["items.weight"]
    assert torch.equal(exported.view(torch.int32), weights.view(torch.int32))
    found = module_parameters(open_checkpoint(url), "dense", {name: p.shape for name, p in parameters.items()})
    for name, parameter in parameters.items():
        assert found[name].tobytes() == parameter.numpy().tobytes()
    earlier = open_checkpoint(url, 1).dense("items")
    assert earlier.tobytes() != exported.numpy().tobytes()


def test_increments_follow_the_rule_and_never_build_on_what_is_not_there(tmp_path: Path) -> None:
    url, other = str(tmp_path / "checkpoints"), str(tmp_path / "other")
    rule = Increments(count_max=3, share_max=100.0)
    with LocalCluster(ClusterSettings(3, tmp_path / "run")) as cluster:
        endpoint = cluster.start()
        cluster.wait_ready()
        with connect(endpoint, code="2+1") as session:
            config = EmbeddingBagConfig(500, 8, "items", feature_names=["item"])
            sparse = EmbeddingBagCollection(session, [config], Adam(lr=0.02))

            def step(*ids: int) -> None:
                sparse(KeyedJaggedTensor.from_ids(["item"], torch.tensor([ids]))).values().sum().backward()
                session.push(len(ids))

            def bases(at: str = url) -> list[int]:
                return [info.base for info in checkpoints(at)]

            step(*range(400))
            for number in range(5):
                save(session, endpoint, url, rule)
                step(number, 450)
            assert bases() == [0, 1, 2, 3, 0], "after three increments everything is written again"
            assert checkpoints(url)[1].rows == 2, "only what changed"
            save(session, endpoint, other, rule)  # the changes for the first URL stay noted
            step(460)
            save(session, endpoint, url, rule)
            assert bases(other) == [0] and bases()[-1] == 5
            (tmp_path / "checkpoints" / checkpoint_folder(7) / "manifest.json").unlink()
            save(session, endpoint, url, rule)
            assert bases()[-1] == 0, "its base is gone"
            save(session, endpoint, url, Increments(share_max=0.0))
            save(session, endpoint, url, Increments(share_max=0.0))
            assert bases()[-2:] == [8, 0], "increments have more bytes than may be"
            assert session.save(url, incremental=True) == 11 and bases()[-1] == 10
            part = next((tmp_path / "checkpoints" / checkpoint_folder(10)).glob("shard-*/*.safetensors"))
            part.write_bytes(part.read_bytes()[:-1])
            assert session.save(url, incremental=True) == 12 and bases()[-1] == 0, "a base of it was cut short"
            (weights,) = sparse.state_dict().values()
            assert open_checkpoint(url).dense("items").tobytes() == weights.numpy().tobytes()
