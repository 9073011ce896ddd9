"""What an embedding table is, in TorchRec's words: `EmbeddingBagConfig` and `EmbeddingConfig`, of ecrec or TorchRec."""

import dataclasses
import enum
import functools
import hashlib
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import DRAWN, CodeSpec, TableSpec
from ecrec.training.optimizers import Optimizer
from ecrec.training.whole import WHOLE_BYTES_MAX

UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "num_embeddings_post_pruning": (None, "tables are not pruned"),
    "need_pos": (False, "there are no position weights"),
    "input_dim": (None, "ids are row numbers, 0 to num_embeddings - 1"),
    "total_num_buckets": (None, "there are no virtual tables"),
    "use_virtual_table": (False, "there are no virtual tables"),
    "virtual_table_eviction_policy": (None, "there are no virtual tables"),
    "enable_embedding_update": (False, "rows change by steps of the optimizer alone, or load_state_dict"),
    "stash_weights": (False, "weights are on the servers"),
}
"""Fields of TorchRec's configs -> the only value that is taken, and why."""

ROWS_END = 1 << 48

FLOAT32_MAX = torch.finfo(torch.float32).max

NOT_POOLED = "none"
"""`TableSpec.pooling` of a table of an `EmbeddingCollection`."""

TEXT_MAX = 1024
"""Characters of what a table's spec says of its features, and of its first values."""


class PoolingType(enum.Enum):
    """How the rows of a bag become one vector."""

    SUM = "SUM"
    MEAN = "MEAN"

    @classmethod
    def of(cls, given: Any) -> "PoolingType":
        """One of these, one of TorchRec's, or its name. ConfigurationError for anything else."""
        name = getattr(given, "value", given)
        try:
            return cls(name.upper() if isinstance(name, str) else name)
        except ValueError:
            raise ConfigurationError(
                f"pooling is {given!r}, expected {' or '.join(each.name for each in cls)}"
            ) from None


@dataclass(frozen=True)
class BaseEmbeddingConfig:
    """A table and the features that look rows up in it. Fields, their order and their meanings are TorchRec's.

    Without ``feature_names`` the table's name is its feature. Weights start uniform from ``weight_init_min`` to
    ``weight_init_max``; None: -sqrt(1 / num_embeddings) and sqrt(1 / num_embeddings). ``init_scale``, which is ecrec's
    own, stands for both: -init_scale and init_scale. ``init_fn`` fills a tensor of all weights. For it,
    and for a range that is not symmetric about 0, worker 0 makes such a tensor and writes it to the servers: these are
    for tables of at most 1 GiB. What ecrec does not support (``data_type`` other than FP32, ``need_pos``, pruning,
    virtual tables) is there to be refused: a collection raises ConfigurationError for it.
    """

    num_embeddings: int
    embedding_dim: int
    name: str = ""
    data_type: Any = "FP32"
    feature_names: list[str] = field(default_factory=list)
    weight_init_max: float | None = None
    weight_init_min: float | None = None
    num_embeddings_post_pruning: int | None = None
    init_fn: Callable[[Tensor], Any] | None = None
    need_pos: bool = False
    input_dim: int | None = None
    total_num_buckets: int | None = None
    use_virtual_table: bool = False
    virtual_table_eviction_policy: Any = None
    enable_embedding_update: bool = False
    stash_weights: bool = False
    _: KW_ONLY
    init_scale: float | None = None

    def get_weight_init_max(self) -> float:
        """Where the range of first weights ends."""
        return self._bound(self.weight_init_max, 1.0)

    def get_weight_init_min(self) -> float:
        """Where the range of first weights begins."""
        return self._bound(self.weight_init_min, -1.0)

    def num_features(self) -> int:
        return len(self.feature_names)

    def _bound(self, given: float | None, sign: float) -> float:
        if given is not None:
            return float(given)
        return sign * (self.num_embeddings**-0.5 if self.init_scale is None else self.init_scale)


@dataclass(frozen=True)
class EmbeddingBagConfig(BaseEmbeddingConfig):
    """A table whose rows are pooled; see `BaseEmbeddingConfig`."""

    pooling: PoolingType = PoolingType.SUM


@dataclass(frozen=True)
class EmbeddingConfig(BaseEmbeddingConfig):
    """A table whose rows are not pooled; see `BaseEmbeddingConfig`."""


ConfigT = TypeVar("ConfigT", bound=BaseEmbeddingConfig)


def own_configs(kind: type[ConfigT], tables: Sequence[Any]) -> list[ConfigT]:
    """The same tables as ecrec's configs, with a feature each at least. Raises ConfigurationError for what is no
    config, and for what cannot be, or is not supported, by table and field."""
    if not isinstance(tables, Iterable):
        raise ConfigurationError(f"tables is {tables!r:.100}, expected a list of {kind.__name__}")
    configs = []
    for given in tables:
        names = [each.name for each in dataclasses.fields(kind)]
        missing = [name for name in ("num_embeddings", "embedding_dim", "name") if not hasattr(given, name)]
        if missing or hasattr(given, "pooling") is not ("pooling" in names):
            raise ConfigurationError(f"a table is {given!r:.100}, expected {kind.__name__}, ecrec's or TorchRec's")
        config = kind(**{name: getattr(given, name) for name in names if hasattr(given, name)})
        named: Any = config.feature_names
        if isinstance(named, str) or not all(isinstance(name, str) for name in named or ()):
            raise ConfigurationError(f"table {config.name}: feature_names is {named!r:.100}, expected a list of names")
        features = list(config.feature_names or [config.name])
        config = dataclasses.replace(config, feature_names=features)
        _check_config(config)
        rows, dim = operator.index(config.num_embeddings), operator.index(config.embedding_dim)
        config = dataclasses.replace(config, num_embeddings=rows, embedding_dim=dim)
        configs.append(config)
    for what, found in (
        ("table names", [config.name for config in configs]),
        ("names of outputs", [name for names in embedding_names(configs) for name in names]),
    ):
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise ConfigurationError(f"{what} must differ, found {', '.join(twice)} more than once")
    return configs


def embedding_names(configs: Sequence[BaseEmbeddingConfig]) -> list[list[str]]:
    """Names of the outputs, by table: that of the feature, or ``feature@table`` if it is in several tables."""
    features = [name for config in configs for name in config.feature_names]
    shared = {name for name in features if features.count(name) > 1}
    return [
        [f"{name}@{config.name}" if name in shared else name for name in config.feature_names] for config in configs
    ]


def server_init_scale(config: BaseEmbeddingConfig) -> float | None:
    """Where a server can draw the first weights by itself: how far from 0, uniformly. None: `first_weights` gives
    them."""
    low, high = config.get_weight_init_min(), config.get_weight_init_max()
    fill = config.init_fn
    if fill is nn.init.zeros_:
        return 0.0
    if fill is not None:
        # What TorchRec's configs set where a user gives none.
        if not isinstance(fill, functools.partial) or fill.func is not nn.init.uniform_ or fill.args:
            return None
        if set(fill.keywords) - {"a", "b"}:
            return None
        low, high = float(fill.keywords.get("a", 0.0)), float(fill.keywords.get("b", 1.0))
    return high if low == -high and math.isfinite(high) and high >= 0 else None


def first_weights(config: BaseEmbeddingConfig, seed: int) -> Tensor:
    """float32[num_embeddings, embedding_dim] of ``init_fn``, or uniform in the range of the config, drawn from torch's
    generator with this seed. Raises ConfigurationError for an ``init_fn`` that fails, or does not fill the tensor."""
    shape = config.num_embeddings, config.embedding_dim
    weights = torch.full(shape, torch.nan, dtype=torch.float32, device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        if config.init_fn is None:
            return weights.uniform_(config.get_weight_init_min(), config.get_weight_init_max())
        try:
            config.init_fn(weights)
        except Exception as error:
            raise ConfigurationError(f"table {config.name}: its init_fn failed: {error}") from error
    if tuple(weights.shape) != shape or weights.dtype != torch.float32 or weights.isnan().any():
        raise ConfigurationError(
            f"table {config.name}: its init_fn left a tensor of {weights.dtype} {tuple(weights.shape)} with "
            f"{int(weights.isnan().sum())} values that are not numbers, expected torch.float32 {shape} and none: it "
            "fills the tensor that it is given in place, and what it returns has no effect"
        )
    return weights


def table_spec(
    config: BaseEmbeddingConfig,
    code: CodeSpec,
    optimizer: Optimizer,
    seed: int,
    *,
    given: bool = False,
    weighted: bool = False,
) -> TableSpec:
    """``given``: worker 0 writes weights that it was given. ``weighted``: rows are multiplied by weights of the ids.

    Where a worker writes the first weights, the seed is another one: such a table is not taken for one whose first
    weights the servers draw, or the other way round.
    """
    written = given or server_init_scale(config) is None
    scale = server_init_scale(config)
    if scale is None:
        scale = 0.0
    digest = hashlib.sha256(f"{seed} {config.name}{' written' * written}".encode()).digest()
    return TableSpec(
        name=config.name,
        rows=config.num_embeddings,
        dim=config.embedding_dim,
        code=code,
        optimizer=optimizer.spec,
        init="uniform" if scale > 0 else "zeros",
        init_seed=int.from_bytes(digest[:7], "little"),
        init_scale=float(np.float32(scale)),
        init_state=optimizer.init_state,
        pooling=_pooling(config, weighted),
        features=_shortened(", ".join(config.feature_names)),
        first_values="weights that were given" if given else _shortened(_first_values(config)) if written else DRAWN,
    )


def _pooling(config: BaseEmbeddingConfig, weighted: bool) -> str:
    if not isinstance(config, EmbeddingBagConfig):
        return NOT_POOLED
    return PoolingType.of(config.pooling).value + " with weights of ids" * weighted


def _first_values(config: BaseEmbeddingConfig) -> str:
    """What worker 0 writes, in words that are equal on workers that would write the same."""
    if config.init_fn is None:
        return f"uniform from {config.get_weight_init_min()} to {config.get_weight_init_max()}"
    return f"init_fn {_function_name(config.init_fn)}"


def _function_name(function: Any) -> str:
    """A function's qualified name, with the numbers and texts of a partial. The code is not compared: it differs
    between versions of Python. The module is not, either: the script of one worker may be imported by another."""
    if isinstance(function, functools.partial):
        named = [*enumerate(function.args), *sorted(function.keywords.items())]
        plain = (numbers.Number, str, type(None))
        texts = [f"{key}={value!r}" if isinstance(value, plain) else f"{key}={type(value)}" for key, value in named]
        return f"{_function_name(function.func)}({', '.join(texts)})"
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _shortened(text: str) -> str:
    """At most `TEXT_MAX` characters; of a longer text the begin, and a digest of all."""
    if len(text) <= TEXT_MAX:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: TEXT_MAX - len(digest) - 13]}... (SHA-256 {digest})"


def check_table_codes(configs: Sequence[BaseEmbeddingConfig], table_codes: Mapping[str, Any]) -> None:
    names = [config.name for config in configs]
    unknown = sorted(set(table_codes) - set(names))
    if unknown:
        raise ConfigurationError(
            f"table_codes names {', '.join(unknown)}; the tables that are made are {', '.join(names) or 'none'}"
        )


def _check_config(config: BaseEmbeddingConfig) -> None:
    where = f"table {config.name}"
    for what, value in (("num_embeddings", config.num_embeddings), ("embedding_dim", config.embedding_dim)):
        if not hasattr(value, "__index__") or isinstance(value, bool) or not 1 <= value < ROWS_END:
            raise ConfigurationError(f"{where}: {what} is {value!r}, expected a whole number from 1 to 2**48 - 1")
    if not isinstance(config.name, str) or not config.name or "." in config.name:
        raise ConfigurationError(f"table {config.name!r}: a name is not empty and has no dot")
    if getattr(config.data_type, "value", config.data_type) not in ("FP32", torch.float32):
        raise ConfigurationError(f"{where}: data_type is {config.data_type!r}, expected FP32: rows are float32")
    for name, (only, why) in UNSUPPORTED.items():
        if (value := getattr(config, name)) != only:
            raise ConfigurationError(f"{where}: {name} is {value!r}, and {why}: expected {only}")
    if isinstance(config, EmbeddingBagConfig):
        PoolingType.of(config.pooling)
    twice = sorted({name for name in config.feature_names if config.feature_names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{where}: feature_names has {', '.join(twice)} more than once")
    for field_name in ("init_scale", "weight_init_min", "weight_init_max"):
        bound: Any = getattr(config, field_name)
        if bound is not None and (not isinstance(bound, numbers.Real) or abs(float(bound)) > FLOAT32_MAX):
            raise ConfigurationError(f"{where}: {field_name} is {bound!r:.100}, expected a finite number, of float32")
    if config.init_scale is not None:
        if not 0 <= config.init_scale < math.inf:
            raise ConfigurationError(f"{where}: init_scale is {config.init_scale}, expected at least 0")
        if (config.init_fn, config.weight_init_min, config.weight_init_max) != (None, None, None):
            raise ConfigurationError(
                f"{where}: init_scale and weight_init_min, weight_init_max or init_fn: expected one of them"
            )
    low, high = config.get_weight_init_min(), config.get_weight_init_max()
    if config.init_fn is None and not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ConfigurationError(
            f"{where}: weight_init_min {low} and weight_init_max {high}: expected finite numbers, the first not above "
            "the second"
        )
    if config.init_fn is not None and not callable(config.init_fn):
        raise ConfigurationError(f"{where}: init_fn is {config.init_fn!r:.100}, expected a function of a tensor")


def check_device(what: str, device: torch.device | str | None) -> None:
    """Raise ConfigurationError for another device than those that a collection may be given."""
    try:
        kind = "cpu" if device is None else torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"{what}: device is {device!r:.100}, which torch does not know: {error}") from None
    if kind not in ("cpu", "meta"):
        raise ConfigurationError(
            f"{what}: device is {device}; tables are on the servers, and looked up on the CPU: leave device out, and "
            f"move what the collection returns, as values().to({str(device)!r}); gradients come back by themselves"
        )


def is_written(config: BaseEmbeddingConfig, weights: Mapping[str, Tensor]) -> bool:
    """A worker writes the first weights, for servers cannot draw them."""
    return config.name in weights or server_init_scale(config) is None


def check_weights(configs: Sequence[BaseEmbeddingConfig], weights: Mapping[str, Tensor]) -> None:
    """Raise ConfigurationError for first weights that do not fit, or take too much memory."""
    shapes = {config.name: (config.num_embeddings, config.embedding_dim) for config in configs}
    for name, given in weights.items():
        if (expected := shapes.get(name)) is None:
            raise ConfigurationError(f"weights names {name}; the tables are {', '.join(shapes)}")
        if not isinstance(given, Tensor):
            raise ConfigurationError(f"table {name}: weights are {type(given).__name__}, expected a torch.Tensor")
        if tuple(given.shape) != expected or given.device.type != "cpu" or given.dtype != torch.float32:
            raise ConfigurationError(
                f"table {name}: weights are {given.dtype} {tuple(given.shape)} on {given.device}, expected float32 "
                f"{expected} on cpu"
            )
    for config in configs:
        size = 4 * config.num_embeddings * config.embedding_dim
        if size > WHOLE_BYTES_MAX and is_written(config, weights):
            raise ConfigurationError(
                f"table {config.name}: its first weights are {size / 1e9:.1f} GB, and of more than "
                f"{WHOLE_BYTES_MAX / 1e9:.1f} GB the servers draw them: use no init_fn, a range that is symmetric "
                "about 0, and, for a module that is distributed, device='meta'"
            )
