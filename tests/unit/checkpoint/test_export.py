"""What is exported is read by those it is for, and has the values of the servers to the bit."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from written_checkpoint import Written, every_optimizer, table, write_checkpoint

from ecrec.checkpoint.export import FORMATS, export, file_name
from ecrec.errors import CheckpointError, ConfigurationError
from ecrec.protocol.placement import DRAWN, TableSpec
from ecrec.protocol.saved import columns_of

NUMPY = {"F32": np.float32, "F64": np.float64}


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_checkpoint(str(tmp_path / "checkpoints"), every_optimizer(), groups=2)


def expected(written: Written, spec: TableSpec) -> dict[str, NDArray[Any]]:
    """All rows of each column."""
    found, begin = {}, 0
    for column in columns_of(spec.dim, spec.optimizer):
        data = np.ascontiguousarray(written.records[spec.name][:, begin : begin + column.nbytes])
        array = data.view(NUMPY[column.dtype])
        found[column.name] = array if column.width else array.reshape(-1)
        begin += column.nbytes
    return found


def assert_same(array: Any, other: NDArray[Any]) -> None:
    array = np.asarray(array)
    assert (array.shape, array.dtype, array.tobytes()) == (other.shape, other.dtype, other.tobytes())


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_safetensors(written: Written, tmp_path: Path, with_state: bool, library: str) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip(library)
    module = pytest.importorskip(f"safetensors.{library}")
    done = export(written.url, "safetensors", tmp_path / "out", with_state=with_state)
    assert done.files == sorted(f"{file_name(spec.name)}.safetensors" for spec in written.manifest.tables)
    assert done.checkpoint == 12 and done.touched == sum(map(len, written.touched.values()))
    for spec in written.manifest.tables:
        tensors = module.load_file(tmp_path / "out" / f"{file_name(spec.name)}.safetensors")
        columns = expected(written, spec)
        if not with_state:
            columns = {"weights": columns["weights"]}
        names = {f"{spec.name}.weight" + (f".{name}" if name != "weights" else ""): name for name in columns}
        assert tensors.keys() == names.keys()
        for name, column in names.items():
            assert_same(tensors[name], columns[column])


def test_a_state_dict_that_torch_modules_load(written: Written, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    specs = written.manifest.tables
    export(written.url, "torch", tmp_path / "out", with_state=True)
    model = torch.nn.ModuleDict({spec.name: torch.nn.EmbeddingBag(spec.rows, spec.dim, mode="sum") for spec in specs})
    for memory_map in (False, True):
        loaded = torch.load(tmp_path / "out" / "state_dict.pt", weights_only=True, mmap=memory_map)
        assert str(model.load_state_dict(loaded)) == "<All keys matched successfully>"
        for spec in specs:
            assert_same(model[spec.name].weight.detach().numpy(), written.weights(spec))
    bag = torch.tensor([[0, 3, 3]])
    pooled = model[specs[0].name](bag).detach().numpy()
    np.testing.assert_allclose(pooled[0], written.weights(specs[0])[[0, 3, 3]].sum(axis=0), rtol=1e-6)
    states = torch.load(tmp_path / "out" / "optimizer_state.pt", weights_only=True)
    for spec in specs:
        columns = expected(written, spec)
        columns.pop("weights")
        assert states[f"{spec.name}.weight"].keys() == columns.keys()
        for name, array in columns.items():
            assert_same(states[f"{spec.name}.weight"][name].numpy(), array)


def test_one_embedding_bag_by_its_own_names(written: Written, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, spec: TableSpec) -> None:
            super().__init__()
            self.sparse = torch.nn.Module()
            self.sparse.register_module("bag of sgd", torch.nn.EmbeddingBag(spec.rows, spec.dim))

    spec = written.manifest.tables[0]
    export(written.url, "torch", tmp_path / "out", tables=["of sgd"], names="sparse.bag {table}.weight")
    model = Model(spec)
    model.load_state_dict(torch.load(tmp_path / "out" / "state_dict.pt", weights_only=True))
    assert_same(next(model.parameters()).detach().numpy(), written.weights(spec))
    assert not (tmp_path / "out" / "optimizer_state.pt").exists()


def test_a_directory_of_torch_distributed_checkpoint(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from ecrec.checkpoint import export_torch

    monkeypatch.setattr(export_torch, "CHUNK_BYTES", 100)  # several chunks a table
    export(written.url, "dcp", tmp_path / "out", with_state=True)
    columns = {}
    for spec in written.manifest.tables:
        for name, array in expected(written, spec).items():
            columns[f"{spec.name}.weight" + (f".{name}" if name != "weights" else "")] = array
    command = [sys.executable, str(Path(__file__).with_name("dcp_rank.py"))]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "out"), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    begin = dict.fromkeys(columns, 0)
    for each in said:
        assert each.keys() == columns.keys()
        for name, (rows, digest, chunks) in each.items():
            part = columns[name][begin[name] : begin[name] + rows]
            assert hashlib.sha256(part.tobytes()).hexdigest() == digest and chunks > 1
            begin[name] += rows
    assert begin == {name: len(array) for name, array in columns.items()}


def test_a_directory_of_torch_distributed_checkpoint_becomes_a_file(written: Written, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    export(written.url, "dcp", tmp_path / "out", tables=["of adam"])
    dcp_to_torch_save(tmp_path / "out", tmp_path / "file.pt")
    loaded = torch.load(tmp_path / "file.pt", weights_only=True)
    spec = next(spec for spec in written.manifest.tables if spec.name == "of adam")
    assert list(loaded) == ["of adam.weight"]
    assert_same(loaded["of adam.weight"].numpy(), written.weights(spec))


@pytest.mark.parametrize("with_state", [False, True])
def test_parquet_has_the_rows_that_were_touched(written: Written, tmp_path: Path, with_state: bool) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(written.url, "parquet", tmp_path / "out", with_state=with_state)
    for spec in written.manifest.tables:
        read = parquet.read_table(tmp_path / "out" / f"{file_name(spec.name)}.parquet")
        about = json.loads(read.schema.metadata[b"ecrec"])
        assert about == {"table": spec.name, "rows": spec.rows, "checkpoint": 12}
        rows = read["row"].to_numpy()
        assert set(rows.tolist()) == written.touched[spec.name] and len(rows) == len(written.touched[spec.name])
        columns = expected(written, spec)
        if not with_state:
            columns = {"weights": columns["weights"]}
        assert read.column_names == ["row", *columns]
        for name, array in columns.items():
            flat = read[name].combine_chunks()
            flat = flat if array.ndim == 1 else flat.flatten()
            assert_same(flat.to_numpy(zero_copy_only=False).reshape(array[rows].shape), array[rows])


def test_a_table_that_was_never_touched(tmp_path: Path) -> None:
    written = write_checkpoint(str(tmp_path / "checkpoints"), [table("t")], touched=0.0)
    export(written.url, "safetensors", tmp_path / "safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    assert_same(numpy.load_file(tmp_path / "safetensors" / "t.safetensors")["t.weight"], written.weights(table("t")))
    parquet = pytest.importorskip("pyarrow.parquet")
    export(written.url, "parquet", tmp_path / "parquet")
    assert len(parquet.read_table(tmp_path / "parquet" / "t.parquet")) == 0


def test_memory_stays_bounded(tmp_path: Path) -> None:
    spec = table("wide", "adagrad", rows=60_000, dim=256)  # 61 MB, and as much state
    written = write_checkpoint(str(tmp_path / "checkpoints"), [spec], rows_in_part=2000, touched=0.1)
    tracemalloc.start()
    try:
        export(written.url, "safetensors", tmp_path / "out", with_state=True)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_progress_reaches_the_end(written: Written, tmp_path: Path) -> None:
    for to in FORMATS:
        if to == "parquet":
            pytest.importorskip("pyarrow")
        elif to != "safetensors":
            pytest.importorskip("torch")
        said: list[tuple[int, int]] = []
        export(written.url, to, tmp_path / to, progress=lambda done, total, said=said: said.append((done, total)))
        assert [done for done, _ in said] == sorted(done for done, _ in said) and said[-1][0] == said[-1][1]


# ---------------------------------------------------------------------- refusals
def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "onnx"}, "format 'onnx'; expected one of safetensors, torch, torchrec, dcp, parquet"),
        ({"tables": ["no"]}, "there is no table 'no'"),
        ({"names": "weight"}, "expected {table} in it"),
    ],
)
def test_what_cannot_be_is_refused(written: Written, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        export(written.url, out=tmp_path / "out", **{"to": "safetensors", **options})
    assert left(tmp_path) == ["checkpoints"]


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_checkpoint(str(tmp_path / "checkpoints"), [table("a"), table("a.sum")])
    with pytest.raises(ConfigurationError, match=r"two tensors would be called 'a\.sum'"):
        export(str(tmp_path / "checkpoints"), "torch", tmp_path / "out", with_state=True, names="{table}")


def test_a_folder_that_has_something_is_refused(written: Written, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for out, words in ((tmp_path / "checkpoints", "it is not empty"), (tmp_path / "file", "Not a directory")):
        with pytest.raises(ConfigurationError, match=words):
            export(written.url, "safetensors", out)
    (tmp_path / "empty").mkdir()
    export(written.url, "safetensors", tmp_path / "empty")
    export(written.url, "safetensors", tmp_path / "new" / "deep")
    assert left(tmp_path) == ["checkpoints", "empty", "file", "new"]


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [("parquet", "pyarrow", "parquet"), ("torch", "torch", "train"), ("dcp", "torch", "train")],
)
def test_a_missing_package_is_named(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=rf'by {package}, which is missing: pip install "ecrec\[{extra}\]"'):
        export(written.url, to, tmp_path / "out")


def test_a_damaged_checkpoint_leaves_nothing(written: Written, tmp_path: Path) -> None:
    path = sorted(written.folder.rglob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-1])
    for to in ("safetensors", "parquet"):
        if to == "parquet":
            pytest.importorskip("pyarrow")
        with pytest.raises(CheckpointError, match="it was cut short"):
            export(written.url, to, tmp_path / "out")
        assert left(tmp_path) == ["checkpoints"]


def test_a_full_disk_is_said_before_anything_is_written(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        CheckpointError, match=r"safetensors: it needs [\d,]+ bytes, and [\d,]+ are free: No space left"
    ):
        export(written.url, "safetensors", tmp_path / "out")
    assert left(tmp_path) == ["checkpoints"]


def test_a_file_that_the_system_does_not_let_grow_leaves_nothing(written: Written, tmp_path: Path) -> None:
    program = (
        "import resource, signal; from ecrec.checkpoint.export import export;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        f"export({written.url!r}, 'safetensors', {str(tmp_path / 'out')!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False, capture_output=True, text=True)
    assert "CheckpointError" in done.stderr and "are free: File too large" in done.stderr
    assert left(tmp_path) == ["checkpoints"]


def test_a_disk_that_is_full_while_torch_writes(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"state_dict\.pt: torch cannot write it: PytorchStreamWriter failed"):
        export(written.url, "torch", tmp_path / "out")
    monkeypatch.setattr(FileSystemWriter, "write_data", fail)
    with pytest.raises(CheckpointError, match=r"checkpoint cannot write it: .*PytorchStreamWriter failed"):
        export(written.url, "dcp", tmp_path / "out")
    assert left(tmp_path) == ["checkpoints"]


def test_a_newer_checkpoint_that_is_not_complete_is_said(written: Written, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-000013").mkdir()
    done = export(written.url, "safetensors", tmp_path / "out")
    assert done.checkpoint == 12 and done.warnings[0].startswith("checkpoint 13 is newer and unfinished")
    assert export(written.url, "safetensors", tmp_path / "out2", number=12).warnings == []


def test_a_table_without_all_its_first_values_is_said(tmp_path: Path) -> None:
    url = str(tmp_path / "checkpoints")
    drawn = msgspec.structs.replace(table("d"), first_values=DRAWN)
    written = msgspec.structs.replace(table("b"), first_values="uniform from -1 to 1")
    module = msgspec.structs.replace(table("m"), is_module=True)
    # What the servers draw nobody writes, ever.
    write_checkpoint(url, [table("a"), written, drawn, module], changed={"fresh": [0, 1, 2, 3]})
    assert export(url, "safetensors", tmp_path / "out", tables=["a", "d"]).warnings == []
    assert export(url, "safetensors", tmp_path / "out2").warnings == [
        f"table {name!r}: the worker that writes its first values had not written all of them; export a later "
        "checkpoint"
        for name in ("b", "m")
    ]


# ---------------------------------------------------------------------- names
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=256), min_size=2, max_size=5, unique=True))
def test_any_table_has_a_file_name_of_its_own(names: list[str]) -> None:
    found = [file_name(name) for name in names]
    assert len(set(found)) == len(names)
    for name in found:
        assert "/" not in name and not name.startswith(".") and name.isascii() and len(name) < 210


def test_usual_names_stay_as_they_are() -> None:
    assert file_name("t_cat_0") == "t_cat_0" and file_name("user/item") == "user%2Fitem"
    assert file_name("..") == "%2E." and file_name("x" * 256) != file_name("x" * 255)


# ---------------------------------------------------------------------- replicated modules
def test_the_parameters_of_a_replicated_module() -> None:
    torch = pytest.importorskip("torch")
    from ecrec.training.optimizers import Adagrad
    from ecrec.training.replicated import _spec

    module = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.Linear(50, 1))
    named = dict(module.named_parameters())
    shapes = {name: parameter.shape for name, parameter in named.items()}
    spec = _spec(
        "dense", sum(-(-p.numel() // 16) for p in named.values()), 16, table("x", k=1).code, Adagrad(lr=0.1), named
    )
    assert_found(spec, shapes)


def assert_found(spec: TableSpec, shapes: dict[str, Any]) -> None:
    import tempfile

    from ecrec.checkpoint.parameters import module_parameters
    from ecrec.checkpoint.reading import open_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        written = write_checkpoint(folder, [spec, table("t")], touched=1.0)
        checkpoint = open_checkpoint(folder)
        found = module_parameters(checkpoint, "dense", shapes)
        flat, row = written.weights(spec), 0
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            assert_same(found[name], flat.reshape(-1)[16 * row : 16 * row + size].reshape(shape))
            row += -(-size // 16)
        others = [{**shapes, "more": (1,)}, dict(reversed(shapes.items())), {}]
        for table_name, wrong in [("t", shapes), *(("dense", each) for each in others)]:
            with pytest.raises(ConfigurationError, match="is not that of a replicated module"):
                module_parameters(checkpoint, table_name, wrong)
