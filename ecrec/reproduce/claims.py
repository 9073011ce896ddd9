"""What the runs say of each claim: rows for its table and plot, figures with their spread, verdicts.

A figure is a list of values, one of each run that gives one. Its name is what ``experiments.toml`` has in its targets.
Where an experiment has several models, the figures without a model are those of the largest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ecrec.reproduce.measure import Failure, Measured, measure, median, timeline
from ecrec.reproduce.plan import Claim, Target
from ecrec.reproduce.raw import Record

Rows = list[dict[str, Any]]
Figures = dict[str, list[float]]

MET, WITHIN, MISSED, NOT_MEASURED = "met", "within tolerance", "MISSED", "not measured"
TOO_SHORT = "too short to judge"
"""Of times that were measured in runs of seconds, which only show that all of it runs."""

BASELINE = "none"


class Verdict(NamedTuple):
    """One target."""

    target: Target
    values: list[float]
    verdict: str

    @property
    def median(self) -> float | None:
        return median(self.values)


class Finding(NamedTuple):
    """One claim."""

    name: str
    claim: Claim
    rows: Rows
    figures: Figures
    verdicts: list[Verdict]

    @property
    def verdict(self) -> str:
        """Of all its targets: the worst one; a claim without targets is described only."""
        words = {each.verdict for each in self.verdicts}
        if not words:
            return "described" if self.rows else NOT_MEASURED
        return next(word for word in (MISSED, NOT_MEASURED, TOO_SHORT, WITHIN, MET) if word in words)


def judge(target: Target, values: Sequence[float], is_smoke: bool = False) -> str:
    """The median, compared with the target."""
    middle = median(values)
    if middle is None:
        return NOT_MEASURED
    if is_smoke and target.is_timing:
        return TOO_SHORT
    over = middle - target.at_most if target.at_most is not None else 0.0
    under = target.at_least - middle if target.at_least is not None else 0.0
    missed = max(over, under)
    if missed <= 1e-12:
        return MET
    return WITHIN if missed <= target.tolerance + 1e-12 else MISSED


def find(
    claims: Mapping[str, Claim], names: Iterable[str], records: Sequence[Record], is_smoke: bool = False
) -> list[Finding]:
    """All claims of these names, from all records there are. ``is_smoke``: their runs took seconds."""
    measured = [measure(record) for record in records]
    found = []
    for name in names:
        mine = [each for each in measured if name in each.record.run.claims]
        rows, figures = FINDERS[name](mine)
        verdicts = [
            Verdict(t, figures.get(t.figure, []), judge(t, figures.get(t.figure, []), is_smoke))
            for t in claims[name].targets
        ]
        found.append(Finding(name, claims[name], rows, figures, verdicts))
    return found


# ---------------------------------------------------------------------- helpers
def _is_baseline(each: Measured) -> bool:
    return each.mode.partition("-")[0] == BASELINE


def _alike(each: Measured) -> tuple[Any, ...]:
    """What two runs must have in common to be compared: model, workers, resources, number of servers."""
    run = each.record.run
    return run.model_name, run.workers, run.resources_name, run.mode.shards


def _of_repeat(each: Measured) -> tuple[Any, ...]:
    return (*_alike(each), each.record.run.experiment, each.record.run.repeat)


def _baselines(
    measured: Sequence[Measured], value: Callable[[Measured], float | None]
) -> dict[tuple[Any, ...], list[float]]:
    """Of the runs without fault tolerance, as long as nobody had died."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for each in measured:
        if _is_baseline(each) and (figure := value(each)):
            found.setdefault(_alike(each), []).append(figure)
    return found


def _ratios(measured: Sequence[Measured], value: Callable[[Measured], float | None]) -> dict[str, float]:
    """Name of a run -> its figure, of that of the run without fault tolerance in the same repeat, where there is one,
    or else of the median of all."""
    of_repeat: dict[tuple[Any, ...], float] = {}
    for each in measured:
        if _is_baseline(each) and (figure := value(each)):
            of_repeat[_of_repeat(each)] = figure
    medians = _baselines(measured, value)
    found = {}
    for each in measured:
        figure = value(each)
        base = of_repeat.get(_of_repeat(each))
        base = base or median(medians.get(_alike(each), []))
        if figure is not None and base and not _is_baseline(each):
            found[each.name] = figure / base
    return found


def _largest(measured: Sequence[Measured]) -> str:
    """The model with the most rows and floats."""
    models = {each.record.run.model_name: each.record.run.model for each in measured}
    return max(models, key=lambda name: models[name].rows * models[name].dim, default="")


def _add(figures: Figures, name: str, value: float | None) -> None:
    if value is not None:
        figures.setdefault(name, []).append(value)


def _base_row(each: Measured) -> dict[str, Any]:
    run = each.record.run
    return {
        "experiment": run.experiment, "model": run.model_name, "mode": run.mode_name, "workers": run.workers,
        "kills": run.kills_name, "resources": run.resources_name, "repeat": run.repeat,
    }  # fmt: skip


# ---------------------------------------------------------------------- the claims
def _normal(measured: Sequence[Measured]) -> tuple[Rows, Figures]:
    calm = [each for each in measured if not each.record.run.kills]
    rows: Rows = []
    figures: Figures = {}
    overhead = {name: 1.0 - ratio for name, ratio in _ratios(calm, lambda each: each.rate).items()}
    cpu = {name: ratio - 1.0 for name, ratio in _ratios(calm, lambda each: each.cpu_ms).items()}
    largest = _largest(calm)
    for each in calm:
        rows.append(
            {
                **_base_row(each), "examples_per_s": each.rate, "overhead": overhead.get(each.name),
                "cpu_ms_per_1000": each.cpu_ms, "cpu_overhead": cpu.get(each.name), "checkpoints": each.checkpoints,
                "checkpoint_s": each.checkpoint_s,
            }
        )  # fmt: skip
        model = each.record.run.model_name
        for name, value in (("overhead", overhead.get(each.name)), ("cpu overhead", cpu.get(each.name))):
            _add(figures, f"{name} {each.mode} {model}", value)
            if model == largest:
                _add(figures, f"{name} {each.mode}", value)
    parity, stop = figures.get("overhead ec41", []), median(figures.get("overhead stop", []))
    if stop is not None and stop > 0:
        figures["overhead ec41 / stop"] = [max(0.0, value) / stop for value in parity]
    return rows, figures


def _failures(measured: Sequence[Measured]) -> list[tuple[Measured, Failure]]:
    return [(each, failure) for each in measured for failure in each.failures]


def _lost_gb(each: Measured, failure: Failure) -> float:
    """Touched bytes that lay on the servers that died, data and parity."""
    return (each.data_bytes + each.parity_bytes) / 1e9 * failure.servers / each.record.run.mode.shards


def _recovery(measured: Sequence[Measured]) -> tuple[Rows, Figures]:
    rows: Rows = []
    figures: Figures = {}
    largest = _largest(measured)
    for each, failure in _failures(measured):
        gb = _lost_gb(each, failure)
        parity = each.record.run.mode.r > 0
        rows.append(
            {
                **_base_row(each), "lost_gb": gb, "state_gb": each.data_bytes / 1e9, "noticed_s": failure.noticed_s,
                "first_row_s": failure.first_row_s, "whole_s": failure.whole_s, "load_s": failure.load_s,
                "loaded_s": failure.loaded_s, "recovery_s": failure.recovery_s, "pause_s": failure.pause_s,
                "lost_examples": failure.lost_examples,
                "s_per_gb": failure.recovery_s / gb if failure.recovery_s is not None and gb else None,
            }
        )  # fmt: skip
        model = each.record.run.model_name
        for suffix in ([each.mode] if model == largest else []) + [f"{each.mode} {model}"]:
            _add(figures, f"first row s {suffix}", failure.first_row_s)
            _add(figures, f"recovery s {suffix}", failure.recovery_s)
            if failure.recovery_s is not None and failure.load_s:
                _add(figures, f"recovery s {suffix} without loading", failure.recovery_s - failure.load_s)
            if parity and failure.whole_s:
                _add(figures, f"GB/s {suffix}", gb / failure.whole_s)
    ours = median(figures.get("recovery s ec41", []))
    if ours:
        for mode in sorted({each.mode for each in measured} - {"ec41"}):
            for suffix in ("", " without loading"):
                for value in figures.get(f"recovery s {mode}{suffix}", []):
                    _add(figures, f"recovery {mode}{suffix} / ec41", value / ours)
    return rows, figures


def _through(measured: Sequence[Measured]) -> tuple[Rows, Figures]:
    """Seconds from the kill; in parts of the throughput before it."""
    rows: Rows = []
    figures: Figures = {}
    largest = _largest(measured)
    for each in measured:
        if not each.failures:
            continue
        failure = each.failures[0]
        for second, examples in timeline(each.record):
            rows.append(
                {
                    **_base_row(each), "t": second + 0.5 - failure.at_s, "examples_per_s": examples,
                    "ratio": examples / failure.before if failure.before else None,
                }
            )  # fmt: skip
        if each.record.run.model_name == largest and failure.before and failure.during is not None:
            _add(figures, f"during / before {each.mode}", failure.during / failure.before)
            _add(figures, f"pause s {each.mode}", failure.pause_s)
    return rows, figures


def _exact(measured: Sequence[Measured]) -> tuple[Rows, Figures]:
    rows: Rows = []
    figures: Figures = {}
    calm: dict[tuple[str, str], dict[str, Any]] = {}
    for each in measured:
        if not each.record.run.kills:
            calm.setdefault((each.record.run.model_name, each.mode), each.record.end)
    for each in measured:
        end = each.record.end
        reference = calm.get((each.record.run.model_name, each.mode), {})
        killed = bool(each.record.run.kills)
        same = end["model_digest"] == reference.get("model_digest") if killed and reference else None
        change = end["auc"] - reference["auc"] if killed and reference.get("auc") and end.get("auc") else None
        rows.append(
            {
                **_base_row(each), "deaths": len(each.record.of("kill")), "auc": end.get("auc"),
                "logloss": end.get("logloss"), "digest": (end.get("model_digest") or "")[:16], "same_model": same,
                "auc_change": change, "lost_updates": end.get("lost_updates"), "parity_ok": end.get("parity_ok"),
            }
        )  # fmt: skip
        _add(figures, f"same model {each.mode}", None if same is None else float(same))
        _add(figures, f"AUC change {each.mode}", change)
        _add(figures, "lost updates", end.get("lost_updates"))
    return rows, figures


def _memory(measured: Sequence[Measured]) -> tuple[Rows, Figures]:
    rows: Rows = []
    figures: Figures = {}
    largest = _largest(measured)
    for each in measured:
        rows.append(
            {
                **_base_row(each), "data_mb": each.data_bytes / 1e6, "parity_mb": each.parity_bytes / 1e6,
                "resident_mb": each.resident_bytes / 1e6,
                "parity_of_data": each.parity_bytes / each.data_bytes if each.data_bytes else None,
            }
        )  # fmt: skip
        if each.record.run.model_name == largest and each.data_bytes:
            _add(figures, f"parity / data {each.mode}", each.parity_bytes / each.data_bytes)
            _add(figures, f"resident MB {each.mode}", each.resident_bytes / 1e6)
    return rows, figures


def _other_deaths(each: Measured) -> int | None:
    """Deaths that nobody asked for; None where each death is the end of a cluster."""
    if not each.record.run.mode.r:
        return None
    return max(0, len(each.record.of("down")) - len(each.record.of("kill")))


def _compared(measured: Sequence[Measured]) -> tuple[Rows, Figures]:
    """Overhead, and what a kill cost, of each mode: codes, ablations, resources, workers."""
    rows: Rows = []
    figures: Figures = {}
    overhead = {name: 1.0 - ratio for name, ratio in _ratios(measured, lambda each: each.rate).items()}
    for each in measured:
        run = each.record.run
        failure = each.failures[0] if each.failures else None
        rows.append(
            {
                **_base_row(each), "code": run.mode.code, "shards": run.mode.shards, "examples_per_s": each.rate,
                "overhead": overhead.get(each.name), "cpu_ms_per_1000": each.cpu_ms,
                "first_row_s": failure.first_row_s if failure else None,
                "recovery_s": failure.recovery_s if failure else None, "pause_s": failure.pause_s if failure else None,
                "lost_updates": each.record.end.get("lost_updates"),
                "other_deaths": _other_deaths(each),
            }
        )  # fmt: skip
        what = " ".join(
            part for part in (each.mode, run.resources_name, f"{run.workers}w" if run.workers > 1 else "") if part
        )
        _add(figures, f"overhead {what}", overhead.get(each.name))
        _add(figures, f"examples/s {what}", each.rate)
        _add(figures, f"recovery s {what}", failure.recovery_s if failure else None)
        _add(figures, "lost updates", each.record.end.get("lost_updates"))
    return rows, figures


def _ettr(measured: Sequence[Measured]) -> tuple[Rows, Figures]:
    """The effective training time ratio: useful examples, of those that a run without failures and without fault
    tolerance makes in the same time. And what was lost."""
    rows: Rows = []
    figures: Figures = {}
    calm = _baselines([each for each in measured if not each.record.run.kills_name], lambda each: each.rate)
    reference = calm or _baselines(measured, lambda each: each.rate)
    for each in measured:
        run = each.record.run
        if not run.kills_name:
            continue
        base = median(reference.get(_alike(each), []))
        ettr = each.useful_rate / base if base else None
        kills = len(each.record.of("kill"))
        own = each.rate or base
        # What the kills took, besides the overhead of the mode: standing still, and steps that are repeated.
        lost_s = (each.seconds - each.useful / own) / kills if own and kills else None
        rows.append(
            {
                **_base_row(each), "mtbf_s": run.mtbf_s, "killed": kills,
                "kills_missed": len(each.record.of("kill missed")),
                "seconds": each.seconds, "useful_examples": each.useful, "reference_per_s": base, "ettr": ettr,
                "lost_examples": each.lost_examples, "lost_s_per_kill": lost_s,
                "went_back": len(each.record.of("goes back")), "checkpoints": each.checkpoints,
                "checkpoint_s": each.checkpoint_s, "lost_updates": each.record.end.get("lost_updates"),
            }
        )  # fmt: skip
        _add(figures, f"ETTR {each.mode} {run.kills_name}", ettr)
        _add(figures, f"lost s per kill {each.mode} {run.kills_name}", lost_s)
    return rows, figures


FINDERS: dict[str, Callable[[Sequence[Measured]], tuple[Rows, Figures]]] = {
    "C1": _normal,
    "C2": _recovery,
    "C3": _through,
    "C4": _exact,
    "C5": _memory,
    "C6": _compared,
    "C7": _compared,
    "C8": _ettr,
    "C9": _compared,
    "C10": _compared,
}
