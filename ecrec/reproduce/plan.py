"""What is to be measured: ``experiments.toml``, checked, and the runs that follow from it at a scale."""

import hashlib
import importlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Literal

import msgspec

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import CodeSpec

SMOKE = "smoke"
SCALES = (SMOKE, "laptop", "paper")
FILE = "experiments.toml"

START_S = 7.0
"""What a run takes besides its own time: processes start, tables are touched, all is whole again at the end."""

SCRATCH, RESTART, PARTIAL, PARITY = "scratch", "restart", "partial", "parity"
STOP, COPY, INCREMENTAL = "stop", "copy", "incremental"
DALY = "daly"


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A DLRM on rows like Criteo's."""

    title: str
    rows: int
    """Hash buckets of a table, of which there are 26."""
    dim: int = 64
    batch: int = 512
    bottom_mlp: tuple[int, ...] = (64,)
    top_mlp: tuple[int, ...] = (64,)
    optimizer: str = "rowwise-adagrad"
    touch: bool = False
    """All rows are touched before the clock starts, so that the size of what is saved and recovered is known."""


class Mode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How training is kept from failures."""

    title: str
    code: str
    shards: int = 5
    dense_code: str | None = None
    """Of the dense part, where it is not 1+r with r of ``code``."""
    checkpoint: Literal["", "stop", "copy", "incremental"] = ""
    """Whether training stands while one is written, or rows are copied on write, all or those that changed."""
    every_times: float = 1.0
    """Its checkpoints are so many times as far apart as the experiment says."""
    cost_share: float = 1.0
    """Part of the time of a checkpoint that training loses by it: for the interval after Daly."""
    recovery: Literal["scratch", "restart", "partial", "parity"] = "parity"
    """What becomes of a death: all begins again, or all goes back to the last checkpoint, or the dead server alone goes
    back. ``parity``: nothing is lost, or else as ``restart``."""
    standby: bool = False
    """A second set of processes waits all the time, so that going back costs no start of processes."""
    spares: int | None = None
    """Servers that wait for a place; r, and 1 where r is 0 and the others live on."""
    signal: Literal["KILL", "TERM"] = "KILL"
    limits: dict[str, int | float] = {}
    """Of `ProtocolConfig`, other than by default."""
    server: str = "ecrec.launch.servers.ps"
    """Program of the parameter servers."""
    unavailable: str = ""
    """Why it cannot be measured with this version of ecrec."""

    @property
    def r(self) -> int:
        return CodeSpec.parse(self.code).r

    @property
    def spare_count(self) -> int:
        if self.spares is not None:
            return self.spares
        return self.r or int(self.recovery == PARTIAL)


class Kills(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When servers die. One of the fields is given, or none."""

    at_s: tuple[float, ...] = ()
    at_steps: tuple[int, ...] = ()
    mtbf_s: float | None = None
    """Of the whole cluster; kills come at random."""
    trace: str | None = None
    """Statistics of preemptions, of which so many seconds pass in one:"""
    time_scale: float = 1.0


class Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Statistics of a public trace of preemptions."""

    source: str
    events_per_server_hour: float
    sizes: tuple[float, ...]
    """Share of the events in which 1, 2, ... servers went at once."""


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is there for the servers."""

    transport: Literal["ipc", "tcp"] = "ipc"
    cores: float | None = None
    """Of all servers together."""
    mbit_s: float | None = None
    """Of all traffic together, over TCP."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Runs that are compared with each other: all combinations of what is listed."""

    about: str
    claims: tuple[str, ...]
    models: tuple[str, ...]
    modes: tuple[str, ...]
    workers: tuple[int, ...] = (1,)
    kills: dict[str, Kills] = {}
    resources: dict[str, Resources] = {}
    seconds: float = 0.0
    """Of a run, from when its clock starts; 0: it ends after ``steps``."""
    steps: int = 0
    warm_up_s: float = 0.0
    """Seconds at the beginning that do not count for the throughput."""
    repeats: int = 1
    every: float | Literal["daly"] = 10.0
    """Seconds from one checkpoint to the next; ``daly``: sqrt(2 * cost * MTBF), with the cost as it was measured."""
    exact: bool = False
    """Rows are pulled without prefetch, so that a run is repeatable bit for bit; the model is evaluated at the end."""
    until_recovered: bool = False
    """A run that went back goes on until it is where it was, for so many times its seconds at most:"""


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a figure should be."""

    figure: str
    text: str
    at_most: float | None = None
    at_least: float | None = None
    tolerance: float = 0.0
    """A figure that misses by no more than this counts as within the tolerance."""
    is_timing: bool = True
    """Judged of runs that are long enough to tell; else at every scale."""


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is claimed, and what was published of it."""

    title: str
    published: str
    expected: str
    targets: tuple[Target, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    seed: int
    models: dict[str, Model]
    modes: dict[str, Mode]
    traces: dict[str, Trace]
    claims: dict[str, Claim]
    experiments: dict[str, dict[str, Any]]
    """As written: the fields of `Experiment`, and for each other scale a table of those that differ."""


class KillAt(msgspec.Struct, frozen=True):
    """Servers that die at a time (seconds of the run's clock) or step; each as a number in [0, 1) of all shards."""

    at_s: float | None
    step: int | None
    places: tuple[float, ...]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run, with all that it depends on."""

    experiment: str
    claims: tuple[str, ...]
    model_name: str
    mode_name: str
    kills_name: str
    resources_name: str
    model: Model
    mode: Mode
    workers: int
    kills: tuple[KillAt, ...]
    mtbf_s: float | None
    """As drawn, for the interval after Daly."""
    resources: Resources
    seconds: float
    steps: int
    warm_up_s: float
    every: float | Literal["daly"]
    exact: bool
    until_recovered: bool
    repeat: int
    seed: int
    data: str = ""
    """Of the rows: their digest, where they are not generated."""

    @property
    def name(self) -> str:
        """For people and files; another run has another one."""
        parts = [self.experiment, self.model_name, self.mode_name]
        parts += [f"{self.workers}w"] * (self.workers > 1) + [self.kills_name] + [self.resources_name]
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]
        return "-".join([*(part for part in parts if part), str(self.repeat), digest])

    @property
    def expected_s(self) -> float:
        """How long it takes, about."""
        touched = TABLES * self.model.rows * 4 * (self.model.dim + 4) if self.model.touch else 0
        return START_S + (self.seconds or self.steps / STEPS_PER_S) + touched / TOUCHED_BYTES_PER_S


TIMES_UNTIL_RECOVERED = 4.0

TABLES = 26
TOUCHED_BYTES_PER_S = 150e6
"""Rows are touched about so fast, on 2 cores, and written for the first time."""

STEPS_PER_S = 25.0
"""About, of the models of the exact runs on 2 cores."""


def load(text: str | None = None) -> Plan:
    """The file of the package, or this text. Raises ConfigurationError, with the place, for what cannot be."""
    if text is None:
        text = resources.files("ecrec.reproduce").joinpath(FILE).read_text()
    try:
        plan = msgspec.convert(_toml(text), Plan)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{FILE}: {error}") from error
    for scale in SCALES:
        for name in plan.experiments:
            _check(plan, name, experiment(plan, name, scale))
    return plan


def _toml(text: str) -> Any:
    for name in ("tomllib", "tomli"):  # the first is Python's own, from 3.11 on
        try:
            reader = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        try:
            return reader.loads(text)
        except reader.TOMLDecodeError as error:
            raise ConfigurationError(f"{FILE}: {error}") from error
    raise ConfigurationError('the evaluation needs more packages: pip install "ecrec[reproduce]"')


def experiment(plan: Plan, name: str, scale: str) -> Experiment:
    """One experiment at a scale. Raises ConfigurationError, with the place, for fields that cannot be."""
    fields = {key: value for key, value in plan.experiments[name].items() if key not in SCALES}
    try:
        return msgspec.convert({**fields, **plan.experiments[name].get(scale, {})}, Experiment)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigurationError(f"{FILE}: experiments.{name}, scale {scale}: {error}") from error


def _check(plan: Plan, name: str, each: Experiment) -> None:
    where = f"{FILE}: experiments.{name}"
    for kind, names, known in (
        ("claim", each.claims, plan.claims),
        ("model", each.models, plan.models),
        ("mode", each.modes, plan.modes),
        ("trace", [kills.trace for kills in each.kills.values() if kills.trace is not None], plan.traces),
    ):
        for wanted in names:
            if wanted not in known:
                raise ConfigurationError(f"{where}: there is no {kind} {wanted!r}; they are {', '.join(known)}")
    if (each.seconds > 0) == (each.steps > 0):
        raise ConfigurationError(f"{where}: expected seconds or steps above 0, and not both")
    if each.warm_up_s >= (each.seconds or 1e9):
        raise ConfigurationError(f"{where}: warm_up_s {each.warm_up_s} is not less than seconds {each.seconds}")
    for key, kills in each.kills.items():
        given = [kills.at_s, kills.at_steps, kills.mtbf_s, kills.trace]
        if sum(map(bool, given)) > 1:
            raise ConfigurationError(f"{where}.kills.{key}: expected one of at_s, at_steps, mtbf_s, trace")
        if kills.at_steps and not each.steps:
            raise ConfigurationError(f"{where}.kills.{key}: at_steps, and the run ends after seconds")
        if (kills.mtbf_s or kills.trace) and not each.seconds:
            raise ConfigurationError(f"{where}.kills.{key}: random kills, and the run ends after steps")
    for mode in each.modes:
        CodeSpec.parse(plan.modes[mode].code)


def check_only(plan: Plan, only: str | None) -> tuple[str, ...]:
    """``"C1,C3"`` as claims, all for None. Raises ConfigurationError for those that there are not."""
    names = tuple(plan.claims) if only is None else tuple(part.strip() for part in only.split(","))
    for name in names:
        if name not in plan.claims:
            raise ConfigurationError(f"--only {only}: there is no claim {name!r}; they are {', '.join(plan.claims)}")
    return names


def runs(plan: Plan, scale: str, claims: Sequence[str], data: str = "") -> list[Run]:
    """All runs that these claims need. Repeats come one after the other, and turn the order of the modes around, so
    that a machine that gets slower meets all modes alike."""
    found: list[Run] = []
    for name in plan.experiments:
        each = experiment(plan, name, scale)
        if not set(each.claims) & set(claims):
            continue
        for repeat in range(each.repeats):
            of_one = list(_combinations(plan, name, each, repeat, data))
            found += of_one if repeat % 2 == 0 else of_one[::-1]
    return found


def _combinations(plan: Plan, name: str, each: Experiment, repeat: int, data: str) -> Iterator[Run]:
    kinds: Mapping[str, Kills] = each.kills or {"": Kills()}
    limits: Mapping[str, Resources] = each.resources or {"": Resources()}
    for model, (kills_name, kills), (resources_name, limit), workers, mode in itertools.product(
        each.models, kinds.items(), limits.items(), each.workers, each.modes
    ):
        mtbf_s, drawn = draw_kills(plan, kills, each.seconds, plan.modes[mode].shards, f"{name}/{kills_name}/{repeat}")
        yield Run(
            experiment=name, claims=each.claims, model_name=model, mode_name=mode, kills_name=kills_name,
            resources_name=resources_name, model=plan.models[model], mode=plan.modes[mode], workers=workers,
            kills=drawn, mtbf_s=mtbf_s, resources=limit, seconds=each.seconds, steps=each.steps,
            warm_up_s=each.warm_up_s, every=each.every, exact=each.exact,
            until_recovered=each.until_recovered, repeat=repeat, seed=plan.seed, data=data,
        )  # fmt: skip


def draw_kills(
    plan: Plan, kills: Kills, seconds: float, shards: int, name: str
) -> tuple[float | None, tuple[KillAt, ...]]:
    """The mean time between failures, where there is one, and the kills; the same for all modes with as many shards.

    Random ones are as many as are expected in the time, and come at any moment alike: a Poisson process, given its
    number of events. So short runs have the rate that they are to have, and bursts as they come.
    """
    draw = random.Random(f"{plan.seed}/{name}")
    if kills.at_s or kills.at_steps:
        times: list[tuple[float | None, int | None]] = [(at, None) for at in kills.at_s]
        times += [(None, step) for step in kills.at_steps]
        return None, tuple(KillAt(at, step, (draw.random(),)) for at, step in times)
    sizes: tuple[float, ...] = (1.0,)
    mtbf_s = kills.mtbf_s
    if kills.trace is not None:
        trace = plan.traces[kills.trace]
        mtbf_s = 3600.0 / (trace.events_per_server_hour * shards) / kills.time_scale
        sizes = trace.sizes
    if mtbf_s is None:
        return None, ()
    found: list[KillAt] = []
    for at in sorted(draw.uniform(0.0, seconds) for _ in range(max(1, round(seconds / mtbf_s)))):
        (size,) = draw.choices(range(1, len(sizes) + 1), sizes)
        order = draw.sample(range(shards), min(size, shards))
        found.append(KillAt(at, None, tuple((shard + 0.5) / shards for shard in order)))
    return mtbf_s, tuple(found)
