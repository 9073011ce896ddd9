"""One line that puts a model on the shards: `distribute`."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import CodeSpec
from ecrec.training.buffers import CONSTANT
from ecrec.training.configs import check_table_codes
from ecrec.training.embedding import EmbeddingBagCollection, EmbeddingCollection
from ecrec.training.optimizers import Optimizer, check_optimizer
from ecrec.training.parameter_rows import dense_parameters
from ecrec.training.replicated import check_replicable
from ecrec.training.session import Session
from ecrec.training.tables import EmbeddingTables
from ecrec.training.torchrec_types import EMBEDDING, is_of, loaded
from ecrec.training.whole_model import keep_whole

ModelT = TypeVar("ModelT", bound=nn.Module)

PLAIN = ("EmbeddingBagCollection", "EmbeddingCollection")
"""TorchRec's modules that are replaced: these, and nothing that is derived from them."""

REFUSED = {
    "torchrec.distributed.": "it is distributed by TorchRec: give the model of before",
    "torchrec.modules.mc_": "each worker would manage ids (ZCH) by a table of its own",
    "torchrec.modules.hash_mc_": "each worker would manage ids (ZCH) by a table of its own",
    "torchrec.modules.itep_": "tables are not pruned",
}
"""What TorchRec's modules of these files are not taken for."""

ADDED = ("parametrizations", "max_norm", "padding_idx", "scale_grad_by_freq")
"""What tables of TorchRec's do not have, and torch's modules under them may."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def distribute(
    model: ModelT,
    session: Session,
    *,
    sparse: Optimizer | Mapping[str, Optimizer] | None = None,
    dense: Optimizer | None = None,
    code: CodeSpec | str | None = None,
    table_codes: Mapping[str, CodeSpec | str] | None = None,
    replicated_rows_max: int = 0,
    dense_code: CodeSpec | str | None = None,
    name: str = "dense",
    buffers: str = CONSTANT,
    seed: int = 0,
) -> ModelT:
    """Put a model on the shards, as TorchRec's ``DistributedModelParallel`` does; returns the model.

    Each ``EmbeddingBagCollection`` and ``EmbeddingCollection`` of TorchRec's in it is replaced by ecrec's with the same
    tables, whose rows are stepped by ``sparse``: one optimizer, or a mapping, by names of tables, by those of
    collections in the model, or by both, joined by a dot; that of a table counts for more than that of its collection.
    Collections of ecrec's stay as they are, and nothing that is said here of tables has a say in them. All other
    parameters are replicated under ``name`` and stepped by ``dense`` (see `ReplicatedModule`, which
    `ReplicatedModule.of` gives). Then `Session.prefetch`, ``loss.backward()`` and `Session.push` train it. A model that
    is a collection itself is not changed: what is returned takes its place.

    A collection on the device meta begins with the ``init_fn`` or the range of its configs. One that has weights begins
    with these, up to 1 GiB a table. What was trained on this cluster before stays. All workers call it, in the same
    order, with the same model. ``code``, ``table_codes``, ``replicated_rows_max`` and ``seed`` are those of
    `EmbeddingBagCollection`, for TorchRec's collections alone; ``dense_code`` is the code of `ReplicatedModule`, always
    1+r, and ``buffers`` is said there.

    Raises ConfigurationError for a model that is distributed already, one without any parameters, collections of other
    kinds or of other sessions, two tables of one name, optimizers of unknown names, tables without one, options of
    tables where there are no collections of TorchRec's, weights that are shared with others, hooks of a collection, and
    what `EmbeddingBagCollection` and `ReplicatedModule` refuse; the model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"distribute: model is {model!r:.100}, expected a torch.nn.Module")
    if not isinstance(session, Session):
        raise ConfigurationError(f"distribute: session is {session!r:.100}, expected a Session (ecrec.connect)")
    found = {path: module for path, module in model.named_modules() if _is_collection(module, path, session)}
    _check(model, found, session, sparse, table_codes or {})
    optimizers = {} if sparse is None else _optimizers(found, sparse)
    parameters = dense_parameters(model, left_out=list(found.values()))
    if parameters:
        if dense is None:
            raise ConfigurationError(f"distribute: dense= is needed: the model has parameters {_some(parameters)}")
        check_replicable(type(model).__name__, parameters, dense)
        if name in {config.name for module in found.values() for config in _configs(module)}:
            raise ConfigurationError(f"distribute: name {name!r} is that of a table, too: give another name=")
        session.check_claim([name])
    elif not found:
        raise ConfigurationError(
            "distribute: the model has no collections and no parameters that are not on the servers"
        )
    _check_unused(found, sparse, code, replicated_rows_max, seed)
    made: dict[int, EmbeddingTables] = {}
    replaced = list(_places(model, {id(module) for module in found.values()}))
    try:
        for path, module in found.items():
            made[id(module)] = _made(
                module, path, session, optimizers[path],
                code=code, table_codes=_of(module, table_codes or {}), replicated_rows_max=replicated_rows_max,
                seed=seed,
            )  # fmt: skip
        for parent, child, module in replaced:
            parent._modules[child] = made[id(module)]
        out: Any = made.get(id(model), model)
        if parameters:
            assert dense is not None
            session.replicate(out, dense, code=dense_code, name=name, buffers=buffers)
    except BaseException:
        for parent, child, module in replaced:
            parent._modules[child] = module
        for tables in made.values():
            session.release(tables)
        raise
    if not isinstance(out, EmbeddingTables):
        keep_whole(out)
    distributed: ModelT = out
    return distributed


def _check_unused(
    found: Mapping[str, Any],
    sparse: Optimizer | Mapping[str, Optimizer] | None,
    code: CodeSpec | str | None,
    replicated_rows_max: int,
    seed: int,
) -> None:
    """Raise ConfigurationError for options of tables where none are made, which would have no effect."""
    given = {"sparse": sparse, "code": code, "replicated_rows_max": replicated_rows_max, "seed": seed}
    unused = [f"{name}=" for name, value in given.items() if value not in (None, 0)]
    if unused and not found:
        raise ConfigurationError(
            f"distribute: {', '.join(unused)} would have no effect: the model has no collections of TorchRec's to make "
            "tables of, and ecrec's own have theirs already. dense= and dense_code= are for the other parameters"
        )


def _optimizers(
    found: Mapping[str, Any], sparse: Optimizer | Mapping[str, Optimizer]
) -> dict[str, dict[str, Optimizer]]:
    """Path of a collection -> table -> optimizer. Raises ConfigurationError for names of nothing, or of two things, and
    for tables without one."""
    if not isinstance(sparse, Mapping):
        return {path: dict.fromkeys(_tables(module), sparse) for path, module in found.items()}
    unused = set(sparse)
    missing: list[str] = []
    out: dict[str, dict[str, Optimizer]] = {}
    for path, module in found.items():
        out[path] = {}
        inside = "embeddings" if getattr(module, "embedding_bags", None) is None else "embedding_bags"
        for table in _tables(module):
            full = [".".join(part for part in (path, middle, table) if part) for middle in ("", inside)]
            own = [key for key in dict.fromkeys([table, *full, f"{full[1]}.weight"]) if key in sparse]
            if len(own) > 1 or (own and own[0] in found and own[0] == table):
                others = own[1:] or [f"the collection {own[0]!r}"]
                raise ConfigurationError(
                    f"distribute: sparse: {own[0]!r} and {', '.join(map(str, others))} are both names of table "
                    f"{table!r}, or of more: give {full[0]!r} alone"
                )
            chosen = own or [key for key in (path,) if key in sparse]
            if not chosen:
                missing.append(full[0])
                continue
            unused.discard(chosen[0])
            out[path][table] = sparse[chosen[0]]
    if unused or missing:
        wrong = [f"names {', '.join(map(repr, sorted(unused, key=str)))}, which no table takes"] * bool(unused)
        wrong += [f"lacks tables {', '.join(missing)}"] * bool(missing)
        names = [f"{_path(path)}: {', '.join(_tables(module))}" for path, module in found.items()]
        raise ConfigurationError(
            f"distribute: sparse {' and '.join(wrong)}; the collections and their tables are {'; '.join(names)}"
        )
    return out


def _is_collection(module: nn.Module, path: str, session: Session) -> bool:
    """One to be replaced. Raises ConfigurationError for what looks like one and cannot be."""
    if isinstance(module, EmbeddingTables):
        if module._session is not session:
            raise ConfigurationError(f"distribute: {_at(path, module)} is of another session")
        return False
    if refused := next((why for start, why in REFUSED.items() if type(module).__module__.startswith(start)), ""):
        raise ConfigurationError(f"distribute: {_at(path, module)}: {refused}")
    kinds = [loaded(EMBEDDING, name) for name in PLAIN]
    if type(module) in kinds:
        return True
    names = ("EmbeddingBagCollectionInterface", "EmbeddingCollectionInterface")
    if not any(is_of(module, EMBEDDING, name) for name in names):
        return False
    inside = [part for part in module.modules() if part is not module and type(part) in kinds]
    if inside and not any(is_of(module, EMBEDDING, name) for name in PLAIN):
        return False  # it prepares features for the collection in it
    raise ConfigurationError(
        f"distribute: {_at(path, module)} is no plain EmbeddingBagCollection or EmbeddingCollection, and what it does "
        "beyond that would be lost: use one of these. Optimizers are fused by sparse="
    )


def _check(
    model: nn.Module,
    found: Mapping[str, Any],
    session: Session,
    sparse: Optimizer | Mapping[str, Optimizer] | None,
    table_codes: Mapping[str, CodeSpec | str],
) -> None:
    """Raise ConfigurationError for what would not be the same model on the shards."""
    if found and sparse is None:
        raise ConfigurationError(f"distribute: sparse= is needed: the model has {', '.join(map(_path, found))}")
    if isinstance(sparse, Mapping):
        for key, optimizer in sparse.items():
            check_optimizer(optimizer, f"of {key!r}")
    elif sparse is not None:
        check_optimizer(sparse)
    check_table_codes([config for module in found.values() for config in _configs(module)], table_codes)
    where: dict[str, str] = {}
    weights: dict[int, str] = {}
    for path, module in found.items():
        for config in _configs(module):
            if (other := where.get(config.name)) is not None:
                raise ConfigurationError(
                    f"distribute: {_path(other)} and {_path(path)} both have a table {config.name!r}, and a name is "
                    "that of one table of the cluster: give them different names"
                )
            where[config.name] = path
        _check_plain(path, module)
        for weight_name, weight in module.named_parameters(remove_duplicate=False):
            if (other := weights.get(id(weight))) is not None:
                raise ConfigurationError(f"distribute: {_path(path)}.{weight_name} is the same tensor as {other}")
            weights[id(weight)] = f"{_path(path)}.{weight_name}"
    session.check_claim(list(where))
    inside = {id(part) for module in found.values() for part in module.modules()}
    for path, module in model.named_modules():
        if id(module) in inside:
            continue
        for weight_name, weight in module.named_parameters(recurse=False):
            if (other := weights.get(id(weight))) is not None:
                raise ConfigurationError(
                    f"distribute: {_path(path)}.{weight_name} is the same tensor as {other}, which is a table on the "
                    "servers: they cannot share it"
                )
        for attribute, value in vars(module).items():
            if attribute != "_modules" and (held := _held(value, inside)):
                raise ConfigurationError(
                    f"distribute: {_at(path, module)} holds a {held} in its attribute {attribute!r}, which is no "
                    "submodule, and would go on with the tables of before: hold it as a submodule"
                )


def _check_plain(path: str, module: nn.Module) -> None:
    """Raise ConfigurationError for what somebody has added to a collection of TorchRec's, and would be lost."""
    for name, part in module.named_modules(prefix=path):
        added = [hook for hook in HOOKS if getattr(part, hook, None)]
        added += [field for field in ADDED if not any(getattr(part, field, None) is each for each in (None, False))]
        added += [
            f"{weight}.register_hook" for weight, tensor in part.named_parameters(recurse=False) if _hooks(tensor)
        ]
        if "forward" in vars(part):
            added.append("a forward of its own")
        if added:
            raise ConfigurationError(f"distribute: {_at(name, part)} has {', '.join(added)}, which would be lost")


def _hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


def _held(value: Any, inside: set[int]) -> str:
    """The kind of module, one of these, that a plain attribute holds; empty if it holds none."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else [value]
    return next((type(each).__name__ for each in values if id(each) in inside), "")


def _made(
    module: Any, path: str, session: Session, sparse: Mapping[str, Optimizer], **options: Any
) -> EmbeddingBagCollection | EmbeddingCollection:
    """ecrec's collection with the tables of TorchRec's."""
    tables = _tables(module)
    weights: dict[str, Tensor] = {
        name: table.weight.detach() for name, table in tables.items() if table.weight.device.type != "meta"
    }
    made: EmbeddingBagCollection | EmbeddingCollection
    try:
        if is_of(module, EMBEDDING, "EmbeddingBagCollection"):
            made = EmbeddingBagCollection(
                session, module.embedding_bag_configs(), sparse, module.is_weighted(), weights=weights, **options
            )
        else:
            made = EmbeddingCollection(
                session, module.embedding_configs(), sparse, need_indices=module.need_indices(), weights=weights,
                **options,
            )  # fmt: skip
    except ConfigurationError as error:
        raise ConfigurationError(f"distribute: {_at(path, module)}: {error}") from None
    for name, table in _tables(made).items():
        table.weight.requires_grad_(tables[name].weight.requires_grad)
    made.train(module.training)
    return made


def _tables(module: Any) -> dict[str, Any]:
    """The tables of a collection, by name."""
    bags = getattr(module, "embedding_bags", None)
    return dict((module.embeddings if bags is None else bags).items())


def _configs(module: Any) -> list[Any]:
    bags = getattr(module, "embedding_bag_configs", None)
    configs: list[Any] = module.embedding_configs() if bags is None else bags()
    return configs


def _of(module: Any, table_codes: Mapping[str, CodeSpec | str]) -> dict[str, CodeSpec | str]:
    """Those of the tables of one collection."""
    return {config.name: table_codes[config.name] for config in _configs(module) if config.name in table_codes}


def _places(model: nn.Module, wanted: set[int]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) wherever one of these modules is a child; one that is shared has several places."""
    for parent in list(model.modules()):
        if id(parent) in wanted:
            continue
        for child, module in list(parent._modules.items()):
            if module is not None and id(module) in wanted:
                yield parent, child, module


def _path(path: str) -> str:
    return path or "the model"


def _at(path: str, module: nn.Module) -> str:
    return f"{_path(path)} ({type(module).__name__})"


def _some(parameters: Mapping[str, Any]) -> str:
    names = list(parameters)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
