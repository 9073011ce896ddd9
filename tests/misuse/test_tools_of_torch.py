"""What torch does to a whole model: traced, compiled, checkpointed, cast, wrapped. Right, or an error that says what to
do; copies and `torch.save` are in `test_replicated_misuse`."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import ecrec  # noqa: E402
from ecrec.errors import ConfigurationError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    ReplicatedModule,
    Session,
)

IDS = torch.tensor([1, 2, 1])
SHIFT = torch.ones(3, 4)


@pytest.fixture
def session() -> Iterator[Session]:
    with InProcessCluster(3).session(code="2+1") as session:
        yield session


class Model(nn.Module):
    """Makes its features of ids, pools rows, and has a replicated layer over them."""

    def __init__(self, session: Session, name: str, weights: Tensor) -> None:
        super().__init__()
        torch.manual_seed(1)
        config = EmbeddingBagConfig(20, 4, name, feature_names=["f"])
        self.tables = EmbeddingBagCollection(session, [config], SGD(lr=1.0), weights={name: weights})
        self.over = nn.Linear(4, 1)
        session.replicate(self.over, SGD(lr=0.1), name=f"over {name}")

    def forward(self, ids: Tensor, shift: Tensor) -> Tensor:
        features = KeyedJaggedTensor(["f"], ids, lengths=torch.ones_like(ids))
        out: Tensor = torch.sigmoid(self.over(self.tables(features).values() + shift))
        return out


def pair(session: Session) -> tuple[Model, Model]:
    """Two that are equal."""
    weights = torch.rand(20, 4)
    return Model(session, "plain", weights), Model(session, "other", weights)


def traced(model: Model) -> Any:
    return torch.fx.symbolic_trace(model)


def compiled(model: Model) -> Any:
    return torch.compile(model, backend="aot_eager")


def checkpointed(reentrant: bool) -> Callable[[Model], Callable[..., Any]]:
    return lambda model: lambda *args: checkpoint(model, *args, use_reentrant=reentrant)


@pytest.mark.filterwarnings("ignore")  # torch's, of its own compiler
@pytest.mark.parametrize("change", [traced, compiled, checkpointed(False), checkpointed(True)])
def test_a_model_trains_as_one_that_is_not_changed(session: Session, change: Callable[[Model], Any]) -> None:
    plain, other = pair(session)
    changed = change(other)
    for _ in range(3):
        losses = [each(IDS, SHIFT.clone().requires_grad_()).sum() for each in (plain, changed)]
        assert losses[0].item() == losses[1].item()
        sum(losses).backward()
        session.push()
    states = [list(each.state_dict().values()) for each in (plain, other)]
    assert all(torch.equal(one, two) for one, two in zip(*states, strict=True))


def test_a_traced_model_sees_rows_that_others_pushed(session: Session) -> None:
    plain, _ = pair(session)
    graph = traced(plain)
    before = graph(IDS, SHIFT)
    plain(IDS, SHIFT).sum().backward()
    session.push()
    assert not torch.equal(graph(IDS, SHIFT), before)
    assert torch.equal(graph(IDS, SHIFT), plain(IDS, SHIFT))
    assert "tables" in str(graph.graph), "the collection is a node"


def test_sequences_are_a_node_of_a_graph_too(session: Session) -> None:
    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = EmbeddingConfig(20, 4, "words", feature_names=["f"])
            self.lists = EmbeddingCollection(session, [config], SGD(lr=1.0))

        def forward(self, features: KeyedJaggedTensor) -> Tensor:
            out: Tensor = self.lists(features)["f"].to_padded_dense(2)
            return out

    features = KeyedJaggedTensor.from_dict({"f": [[1, 2], [], [3]]})
    model = Sequences()
    assert torch.equal(torch.fx.symbolic_trace(model)(features), model(features))
    with pytest.raises(ConfigurationError, match=r"torch.fx does not see into a collection: trace the model that has"):
        torch.fx.symbolic_trace(model.lists)


def test_autocast_casts_the_dense_part_alone(session: Session) -> None:
    plain, _ = pair(session)
    before = plain.tables.state_dict()["embedding_bags.plain.weight"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = plain(IDS, SHIFT)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert plain.over.weight.grad is not None and plain.over.weight.grad.dtype == torch.float32
    session.push()
    after = plain.tables.state_dict()["embedding_bags.plain.weight"]
    assert after.dtype == torch.float32
    assert torch.equal((after != before).any(dim=1).nonzero().flatten(), torch.tensor([1, 2]))


@pytest.mark.filterwarnings("ignore")  # torch's, that they are old
def test_tracers_that_would_keep_rows_as_constants_are_refused(session: Session) -> None:
    plain, _ = pair(session)
    with pytest.raises(ConfigurationError, match=r"torch.jit.trace would keep the rows of this batch for ever"):
        torch.jit.trace(plain, (IDS, SHIFT))
    with pytest.raises(ConfigurationError, match=r"torch.jit.script does not see into an EmbeddingBagCollection"):
        torch.jit.script(plain)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch does not say that it exports")
def test_an_export_is_refused(session: Session) -> None:
    plain, _ = pair(session)
    features = KeyedJaggedTensor(["f"], IDS, lengths=torch.ones_like(IDS))

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = plain.tables

        def forward(self, shift: Tensor) -> Tensor:
            out: Tensor = self.tables(features).values() + shift
            return out

    with pytest.raises(ConfigurationError, match=r"torch.export does not see into a collection. Rows come from the"):
        torch.export.export(Pooled(), (SHIFT,), strict=False)


class Own(nn.Module):
    """Reads a parameter of its own, and has a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.over = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.sigmoid(self.over(x * self.scale))
        return out


def scripted(module: nn.Module) -> Any:
    return torch.jit.script(module)


def jit_traced(module: nn.Module) -> Any:
    return torch.jit.trace(module, (SHIFT,))


def exported(module: nn.Module, strict: bool = False) -> Any:
    return torch.export.export(module, (SHIFT,), strict=strict).module()


TRACERS = {"script": scripted, "trace": jit_traced, "export": exported}


def replicated(session: Session, made: nn.Module) -> tuple[Any, ReplicatedModule]:
    """After a push, which nobody has pulled."""
    torch.manual_seed(1)
    part = session.replicate(made, SGD(lr=0.5))
    stepped(session, made)
    return made, part


def stepped(session: Session, module: nn.Module) -> None:
    module(SHIFT).sum().backward()
    session.push()


@pytest.mark.filterwarnings("ignore")  # torch's, that they are old
@pytest.mark.parametrize("tool", TRACERS)
def test_a_copy_of_a_dense_module_is_traced_and_the_module_is_not(session: Session, tool: str) -> None:
    """What it makes has its weights as constants, or reads those that were pulled last."""
    if tool == "export" and not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this torch does not say that it exports")
    module, part = replicated(session, Own())
    for each in (module, nn.Sequential(module)):
        with pytest.raises(ConfigurationError, match=rf"'dense': torch\.\w*\.?{tool} .*copy\.deepcopy\(module\)"):
            TRACERS[tool](each)
    with pytest.raises(ConfigurationError, match="older than the last push: pull"):
        copy.deepcopy(module)
    part.pull()
    expected = module(SHIFT)
    made = TRACERS[tool](copy.deepcopy(module))
    assert torch.equal(made(SHIFT), expected)
    stepped(session, module)
    assert torch.equal(made(SHIFT), expected) and not torch.equal(module(SHIFT), expected), "that of then"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", TRACERS)
def test_a_copy_that_is_made_in_an_evaluation_has_what_is_evaluated(session: Session, tool: str) -> None:
    module, _ = replicated(session, Own())
    found: list[Any] = []

    def predict(x: Tensor) -> Tensor:
        found.append(TRACERS[tool](copy.deepcopy(module)))
        return module(x)  # type: ignore[no-any-return]

    (expected,) = session.evaluate(module, [SHIFT], predict)
    stepped(session, module)
    with torch.no_grad():
        torch.testing.assert_close(found[0](SHIFT), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", TRACERS)
def test_a_module_of_a_closed_session_is_plain_torch(tool: str) -> None:
    with InProcessCluster(3).session(code="2+1") as session:
        module, _ = replicated(session, Own())
    assert torch.equal(TRACERS[tool](module)(SHIFT), module(SHIFT))


@pytest.mark.filterwarnings("ignore")
def test_a_strict_export_of_a_replicated_module_is_an_error(session: Session) -> None:
    module, part = replicated(session, Own())
    with pytest.raises(Exception, match=r"copy\.deepcopy\(module\)|torch\.compiler\.disable"):
        exported(module, strict=True)
    part.pull()
    expected = module(SHIFT)
    assert torch.equal(exported(copy.deepcopy(module), strict=True)(SHIFT), expected)


def test_a_graph_of_a_module_that_reads_its_parameters_itself_pulls_and_trains(session: Session) -> None:
    module, _ = replicated(session, Own())
    graph = torch.fx.symbolic_trace(module)
    assert "scale" in dict(graph.named_parameters())
    for _ in range(3):
        before = module.scale.item()
        with torch.no_grad():
            found = graph(SHIFT)
        assert module.scale.item() != before, "pulled"
        assert torch.equal(found, module(SHIFT))
        stepped(session, graph)


def test_a_graph_with_a_module_inside_that_reads_its_parameters_itself_is_refused(session: Session) -> None:
    inside, part = replicated(session, nn.Sequential(Own(), nn.Sigmoid()))
    words = r"'dense': a holder of parameters, such as torch\.fx makes.*copy\.deepcopy\(module\)"
    for each in (inside, nn.Sequential(inside)):
        with pytest.raises(ConfigurationError, match=words):
            torch.fx.symbolic_trace(each)
    part.pull()
    graph, expected = torch.fx.symbolic_trace(copy.deepcopy(inside)), inside(SHIFT)
    assert torch.equal(graph(SHIFT), expected)


def test_a_module_that_shares_a_replicated_parameter_pulls_it(session: Session) -> None:
    module, _ = replicated(session, Own())
    other = nn.Linear(4, 1)
    other.weight = module.over.weight
    with torch.no_grad():
        before = module.over.weight.clone()
        found = other(SHIFT)
        assert not torch.equal(module.over.weight, before)
        assert torch.equal(found, nn.functional.linear(SHIFT, module.over.weight, other.bias))


@pytest.fixture
def group() -> Iterator[None]:
    """Of one process."""
    distributed = torch.distributed
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{Path(folder) / 'group'}", rank=0, world_size=1)
        yield
        distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_wrappers_for_several_processes_are_refused(session: Session) -> None:
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, 1))
    words = "is wrapped in DistributedDataParallel: the servers add up the gradients of all workers .*the module inside"
    with pytest.raises(ConfigurationError, match=f"the module {words}"):
        session.replicate(wrapped, SGD(lr=0.1))
    with pytest.raises(ConfigurationError, match=f"0 {words}"):
        ecrec.distribute(nn.Sequential(wrapped), session, dense=SGD(lr=0.1))
    with pytest.raises(ConfigurationError, match="the module is wrapped in DataParallel"):
        session.replicate(nn.DataParallel(nn.Linear(4, 1)), SGD(lr=0.1))
    session.replicate(wrapped.module, SGD(lr=0.1))


@pytest.mark.usefixtures("group")
def test_a_replicated_module_that_is_wrapped_says_so(session: Session) -> None:
    module = nn.Linear(4, 1)
    session.replicate(module, SGD(lr=0.1))
    wrapped = nn.parallel.DistributedDataParallel(module)

    def step() -> None:
        wrapped(torch.ones(1, 4)).sum().backward()
        session.push()

    with pytest.raises(ConfigurationError, match=r"parameter weight was changed here .*DistributedDataParallel"):
        for _ in range(2):
            step()
    plain, _ = pair(session)
    with pytest.raises(ValueError, match="same type of devices"):
        nn.parallel.DistributedDataParallel(plain)
