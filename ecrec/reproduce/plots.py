"""A plot for each claim, from its rows; SVG and PNG."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecrec.errors import ConfigurationError
from ecrec.reproduce.claims import Finding, Rows
from ecrec.reproduce.measure import median

FORMATS = ("svg", "png")
WIDTH, HEIGHT, DPI = 8.0, 4.2, 120
COLOURS = ("#2f6fb0", "#d1722b", "#3a9a5b", "#b3413e", "#7b5ea7", "#7f6247", "#c06aa5", "#6d6d6d", "#a8a32d", "#35a8b5")
HEAD_S, TAIL_S = 4.0, 60.0
"""Seconds before and after a kill that the plot of a recovery shows, at most."""


def pyplot() -> Any:
    """matplotlib's, drawing into files. Raises ConfigurationError, with what to install, if it is not there."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConfigurationError('plots need matplotlib: pip install "ecrec[reproduce]"') from error
    matplotlib.use("Agg")
    # The same rows give the same file, which is committed.
    matplotlib.rcParams.update(
        {"svg.hashsalt": "ecrec", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
    )
    from matplotlib import pyplot

    return pyplot


def draw(finding: Finding, titles: Mapping[str, str], folder: Path, caption: str) -> list[Path]:
    """Write the plot of a claim; the files. None for a claim of which nothing was measured.

    ``titles``: of modes, for people. ``caption``: below it, the machine.
    """
    if not finding.rows:
        return []
    plt = pyplot()
    figure = PLOTS[finding.name](plt, finding.rows, titles)
    figure.suptitle(f"{finding.name}: {finding.claim.title}", fontsize=11)
    figure.text(0.01, 0.01, caption, fontsize=6, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 0.98))
    files = []
    for kind in FORMATS:
        path = folder / f"{finding.name}.{kind}"
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(path, dpi=DPI, metadata=metadata)
        files.append(path)
    plt.close(figure)
    return files


def _order(rows: Rows, key: str) -> list[Any]:
    """Values in the order in which they come."""
    return list(dict.fromkeys(row[key] for row in rows if row[key] != ""))


def _values(rows: Rows, figure: str, **where: Any) -> list[float]:
    return [
        row[figure]
        for row in rows
        if row.get(figure) is not None and all(row[key] == value for key, value in where.items())
    ]


def _bars(
    axes: Any, rows: Rows, figure: str, label: str, titles: Mapping[str, str], series: str = "model", scale: float = 1.0
) -> None:
    """Medians by mode, with the extremes; one colour a value of ``series``."""
    modes = [mode for mode in _order(rows, "mode") if _values(rows, figure, mode=mode)]
    kinds = _order(rows, series) or [""]
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        for place, mode in enumerate(modes):
            values = [scale * value for value in _values(rows, figure, mode=mode, **{series: kind})]
            middle = median(values)
            if middle is None:
                continue
            at = place - 0.4 + (number + 0.5) * width
            spread = [[middle - min(values)], [max(values) - middle]]
            axes.bar(at, middle, width * 0.9, color=COLOURS[number % len(COLOURS)], yerr=spread, capsize=2,
                     error_kw={"linewidth": 0.8})  # fmt: skip
    axes.set_xticks(range(len(modes)), [_wrapped(titles.get(mode, mode)) for mode in modes], fontsize=6.5)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel(label)
    axes.grid(axis="y", linewidth=0.3)
    if len(kinds) > 1:
        patches = [axes.bar(0, 0, color=COLOURS[number % len(COLOURS)]) for number in range(len(kinds))]
        axes.legend(patches, [str(kind) for kind in kinds], fontsize=7)


def _wrapped(text: str, width: int = 15) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _panels(plt: Any, count: int) -> tuple[Any, Sequence[Any]]:
    figure, axes = plt.subplots(count, 1, figsize=(WIDTH, HEIGHT * (0.4 + 0.6 * count)), squeeze=False)
    return figure, [row[0] for row in axes]


def _normal(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (top, below) = _panels(plt, 2)
    _bars(top, rows, "overhead", "throughput lost, %", titles, scale=100.0)
    _bars(below, rows, "cpu_overhead", "more processor time, %", titles, scale=100.0)
    return figure


def _recovery(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (top, below) = _panels(plt, 2)
    _bars(top, rows, "recovery_s", "s until training is where it\nwas, and as safe", titles)
    _bars(below, rows, "s_per_gb", "s per GB of touched rows\non the dead server", titles)
    return figure


def _explain(axes: Any, x: str, y: str) -> None:
    """What the lines of a plot are of, and which is which."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=7)


def _through(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (axes,) = _panels(plt, 1)
    model = _order(rows, "model")[-1]
    for number, mode in enumerate(_order(rows, "mode")):
        mine = [row for row in rows if row["mode"] == mode and row["model"] == model]
        if not mine:
            continue
        repeat = min(row["repeat"] for row in mine)
        line = [(row["t"], row["ratio"]) for row in mine if row["repeat"] == repeat and row["ratio"] is not None]
        line = [(t, ratio) for t, ratio in line if -HEAD_S <= t <= TAIL_S]
        axes.plot(*zip(*line, strict=True) if line else ([], []), label=titles.get(mode, mode), linewidth=1.4,
                  marker=".", markersize=3, color=COLOURS[number % len(COLOURS)])  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    _explain(axes, "seconds from the kill; steps that are repeated count", "throughput, of that before")
    return figure


def _exact(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (axes,) = _panels(plt, 1)
    for number, mode in enumerate(_order(rows, "mode")):
        mine = [row for row in rows if row["mode"] == mode and row["auc"] is not None]
        for row in mine:
            same = row["same_model"] is not False
            axes.plot(row["deaths"], row["auc"], marker="o" if same else "x", markersize=7, linestyle="",
                      color=COLOURS[number % len(COLOURS)])  # fmt: skip
        line = sorted((row["deaths"], row["auc"]) for row in mine)
        axes.plot(*zip(*line, strict=True) if line else ([], []), linewidth=1, label=titles.get(mode, mode),
                  color=COLOURS[number % len(COLOURS)])  # fmt: skip
    _explain(axes, "deaths (circle: the model of the undisturbed run, bit for bit; cross: another one)", "test AUC")
    return figure


def _memory(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (top, below) = _panels(plt, 2)
    _bars(top, rows, "parity_of_data", "parity, of the data", titles)
    _bars(below, rows, "resident_mb", "servers resident, MB", titles)
    return figure


def _codes(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (top, below) = _panels(plt, 2)
    _bars(top, rows, "overhead", "throughput lost, %", titles, scale=100.0)
    _bars(below, rows, "recovery_s", "s until all is whole", titles)
    return figure


def _failures(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (top, below) = _panels(plt, 2)
    _bars(top, rows, "ettr", "effective training\ntime ratio", titles, series="kills")
    _bars(below, rows, "lost_s_per_kill", "s of training that a\nkill takes", titles, series="kills")
    return figure


def _limited(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (top, below) = _panels(plt, 2)
    _bars(top, rows, "examples_per_s", "examples/s", titles, series="resources")
    _bars(below, rows, "overhead", "throughput lost, %", titles, series="resources", scale=100.0)
    return figure


def _workers(plt: Any, rows: Rows, titles: Mapping[str, str]) -> Any:
    figure, (axes,) = _panels(plt, 1)
    for number, mode in enumerate(_order(rows, "mode")):
        counts = sorted({row["workers"] for row in rows if row["mode"] == mode})
        points = [(n, median(_values(rows, "examples_per_s", mode=mode, workers=n))) for n in counts]
        known = [(n, rate) for n, rate in points if rate is not None]
        axes.plot(*zip(*known, strict=True) if known else ([], []), marker="o", label=titles.get(mode, mode),
                  color=COLOURS[number % len(COLOURS)])  # fmt: skip
    axes.set_xlabel("workers")
    axes.set_ylabel("examples/s, all workers")
    axes.set_ylim(bottom=0)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=7)
    return figure


PLOTS: dict[str, Callable[[Any, Rows, Mapping[str, str]], Any]] = {
    "C1": _normal,
    "C2": _recovery,
    "C3": _through,
    "C4": _exact,
    "C5": _memory,
    "C6": _codes,
    "C7": _codes,
    "C8": _failures,
    "C9": _limited,
    "C10": _workers,
}
