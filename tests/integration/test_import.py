"""Weights of torch, safetensors and torch.distributed.checkpoint, brought into the tables of a cluster."""

import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ecrec
from ecrec.checkpoint.sources import check_metadata, open_sources
from ecrec.cli import app
from ecrec.errors import CheckpointError, ConfigurationError, GradientError
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

TABLES = {"goods": 3000, "users": 200}


class Theirs(torch.nn.Module):
    """A model of plain torch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.bags = torch.nn.ModuleDict(
            {name: torch.nn.EmbeddingBag(rows, 8, mode="sum") for name, rows in TABLES.items()}
        )
        self.top = torch.nn.Linear(8, 1)

    def forward(self, ids):
        return torch.cat([bag(ids) for bag in self.bags.values()], 1)


def saved(kind, model, folder):
    """The model as such files; returns where."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if kind == "torch":
        torch.save({"model": state, "step": 3}, folder / "model.pt")
        return folder / "model.pt"
    if kind == "safetensors":
        save = pytest.importorskip("safetensors.torch").save_file
        save(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    from torch.distributed.checkpoint import FileSystemWriter, save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, storage_writer=FileSystemWriter(folder / "dcp"), no_dist=True)
    return folder / "dcp"


@pytest.fixture(scope="module")
def session():
    with ecrec.local_cluster(shards=3, code="2+1") as session:
        yield session


@pytest.fixture(scope="module")
def bags(session):
    configs = [EmbeddingBagConfig(rows, 8, name, feature_names=[name]) for name, rows in TABLES.items()]
    return EmbeddingBagCollection(session, configs, Adagrad(lr=0.1))


@pytest.mark.parametrize("kind", ["torch", "safetensors", "dcp"])
def test_predictions_are_those_of_the_model_that_was_imported(session, bags, tmp_path, kind):
    model = Theirs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(len(kind))  # not what an earlier import brought
    path = saved(kind, model, tmp_path)
    done = session.import_weights(str(path))
    prefix = "model." * (kind == "torch")
    assert done.tables == {name: f"{prefix}bags.{name}.weight" for name in TABLES}
    assert done.unused == [f"{prefix}top.bias", f"{prefix}top.weight"]
    assert (done.rows, done.differences) == (sum(TABLES.values()), [])
    ids = torch.tensor([[0, 7], [199, 3]])
    ours = bags(KeyedJaggedTensor(list(TABLES), ids.reshape(-1).repeat(2), lengths=torch.full((4,), 2))).values()
    assert torch.equal(ours.detach(), model(ids).detach())


def test_all_that_does_not_fit_is_named_and_nothing_is_changed(session, bags, tmp_path):
    before = bags.state_dict()
    state = {
        "a.goods.weight": torch.zeros(2999, 8), "x.users.weight": torch.zeros(200, 8),
        "y.users.weight": torch.ones(200, 8),
    }  # fmt: skip
    torch.save(state, tmp_path / "state.pt")
    path = str(tmp_path / "state.pt")
    with pytest.raises(ConfigurationError) as error:
        session.import_weights(path, names={"z": "goods", "x.users.weight": "nobody"})
    for text in (
        "tensor 'z' of --map: is not in the file", "table 'nobody' of --map: is not in the cluster",
        "table 'goods': no tensor is of it", "nothing was changed",
    ):  # fmt: skip
        assert text in str(error.value)
    with pytest.raises(ConfigurationError) as error:
        session.import_weights(path)
    assert "table 'goods': a.goods.weight is 2999 x 8, expected 3000 x 8" in str(error.value)
    assert "table 'users': several tensors may be of it: x.users.weight, y.users.weight" in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in bags.state_dict().items())
    done = session.import_weights(path, names={"y.users.weight": "users"}, partial=True)
    assert done.tables == {"users": "y.users.weight"} and len(done.differences) == 1
    assert torch.equal(bags.state_dict()["embedding_bags.users.weight"], torch.ones(200, 8))
    state["y.users.weight"][150, 3] = torch.nan
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(GradientError, match=r"y.users.weight: row 150, column 3 is nan; nothing was changed"):
        session.import_weights(path, pattern="y.{table}.weight", partial=True)
    assert torch.equal(bags.state_dict()["embedding_bags.users.weight"], torch.ones(200, 8))


def test_half_precision_and_the_names_of_an_export(session, bags, tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    weights = {name: torch.arange(rows * 8, dtype=torch.float32).reshape(rows, 8) / 64 for name, rows in TABLES.items()}
    for name, dtype in (("goods", torch.bfloat16), ("users", torch.float16)):
        save({f"embedding_bags.{name}.weight": weights[name].to(dtype)}, tmp_path / f"{name}.safetensors")
    session.import_weights(str(tmp_path))
    state = bags.state_dict()
    assert torch.equal(state["embedding_bags.goods.weight"], weights["goods"].bfloat16().float())
    assert torch.equal(state["embedding_bags.users.weight"], weights["users"].half().float())


def test_a_directory_of_many_ranks_is_read_chunk_by_chunk(tmp_path):
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
    from torch.distributed.checkpoint.state_dict_saver import save

    whole = torch.randn(100, 4)

    class Chunks(DefaultSavePlanner):
        def create_local_plan(self):
            items = []
            for number, first in enumerate(range(0, 100, 30)):
                offsets, sizes = torch.Size([first, 0]), torch.Size([min(30, 100 - first), 4])
                data = TensorWriteData(
                    ChunkStorageMetadata(offsets, sizes), TensorProperties.create_from_tensor(whole), whole.shape
                )
                items.append(WriteItem(MetadataIndex("w", offsets, number), WriteItemType.SHARD, tensor_data=data))
            self.plan = SavePlan(items, planner_data={"w": ("w",)})
            return self.plan

        def resolve_data(self, item):
            first = item.tensor_data.chunk.offsets[0]
            return whole[first : first + item.tensor_data.chunk.sizes[0]]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"w": whole}, storage_writer=FileSystemWriter(tmp_path / "dcp"), planner=Chunks(), no_dist=True)
    source = open_sources(tmp_path / "dcp")["w"]
    blocks = list(source.blocks())
    assert [first for first, _ in blocks] == [0, 30, 60, 90] and source.shape == (100, 4)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), whole.numpy())


class Runs:
    def __reduce__(self):
        return print, ("this must not run",)


def test_files_that_would_run_something_are_refused(tmp_path, capsys):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CheckpointError, match=r"it names builtins.print, which is not a part"):
        open_sources(tmp_path)
    for protocol in range(5):
        with pytest.raises(CheckpointError, match="no metadata of"):
            check_metadata(pickle.dumps(Runs(), protocol), "file")
    # Names that are pushed, and then others taken in their place.
    sly = b"\x80\x04\x8c\x05torch\x94\x8c\x04Size\x94\x8c\x08builtins\x94\x8c\x05print\x940h\x02h\x03\x93."
    with pytest.raises(CheckpointError, match="POP"):
        check_metadata(sly, "file")
    with pytest.raises(CheckpointError, match=r"builtins\.print"):
        check_metadata(b"\x80\x04\x8c\x08builtins\x94\x8c\x05print\x94h\x00h\x01\x93.", "file")
    buffer = io.BytesIO()
    torch.save({"a": Runs()}, buffer)
    (tmp_path / "model.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="torch cannot load it with weights_only"):
        open_sources(tmp_path / "model.pt")
    assert "must not run" not in capsys.readouterr().out


def test_damaged_files_and_wrong_paths(tmp_path):
    with pytest.raises(ConfigurationError, match="there is no such file"):
        open_sources(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match=r"neither \.metadata"):
        open_sources(tmp_path)
    for data in (b"", b"\xff" * 8, (1000).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"):
        (tmp_path / "x.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged, or no safetensors file"):
            open_sources(tmp_path / "x.safetensors")
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(CheckpointError, match="another length than its shape"):
        open_sources(tmp_path / "x.safetensors")


def test_the_command_says_what_it_brought(session, bags, tmp_path):
    torch.save({f"{name}.weight": torch.full((rows, 8), 0.5) for name, rows in TABLES.items()}, tmp_path / "s.pt")
    runner = CliRunner()
    done = runner.invoke(app, ["import", str(tmp_path / "s.pt"), "--scheduler", session.scheduler[0]])
    assert done.exit_code == 0, done.output
    assert "goods: goods.weight" in done.output and "3,200 rows" in done.output
    assert session.read_only is False and not session.closed
    refused = runner.invoke(
        app, ["import", str(tmp_path / "s.pt"), "--scheduler", session.scheduler[0], "--names", "x.{table}"]
    )
    assert isinstance(refused.exception, ConfigurationError) and "no tensor is of it" in str(refused.exception)
