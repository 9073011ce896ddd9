"""Words: ``summary.md`` with what was found of each claim, and ``CLAIMS.md`` with what is claimed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ecrec.reproduce.claims import Finding, Verdict
from ecrec.reproduce.measure import median
from ecrec.reproduce.plan import SCALES, Plan, Target, experiment, runs

FIGURES_SHOWN = 60


class NotDone(NamedTuple):
    """A run that is missing, and why."""

    what: str
    why: str
    claims: tuple[str, ...]


def describe_machine(machine: Mapping[str, Any]) -> str:
    """One line."""
    gib = machine["memory_bytes"] / 2**30
    engine = f"; servers and workers on {machine['engine']}" if machine.get("engine") else ""
    return f"{machine['cpu']}, {machine['cores']} cores, {gib:.0f} GiB, {machine['system']}{engine}"


def describe_versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def bound(target: Target) -> str:
    """``<= 0.05 (tolerance 0.02)``"""
    parts = [
        f"{sign} {limit:g}" for sign, limit in (("<=", target.at_most), (">=", target.at_least)) if limit is not None
    ]
    tolerance = f" (tolerance {target.tolerance:g})" if target.tolerance else ""
    return " and ".join(parts) + tolerance


def spread(values: Sequence[float]) -> str:
    """Median, extremes and number; a dash for none."""
    middle = median(values)
    if middle is None:
        return "-"
    if len(values) == 1:
        return f"{middle:.3g} (one value)"
    return f"{middle:.3g} ({min(values):.3g} to {max(values):.3g}, {len(values)} values)"


def command(scale: str, claim: str) -> str:
    """What runs one claim alone."""
    return f"ecrec reproduce --scale {scale} --only {claim}"


def write(
    path: Path, findings: Sequence[Finding], scale: str, machine: Mapping[str, Any], versions: Mapping[str, str],
    not_done: Sequence[NotDone], seconds: float,
) -> None:  # fmt: skip
    """The summary. Plots are in ``plots``, tables in ``csv``, beside it."""
    lines = [
        f"# Results at the scale {scale}", "",
        f"Machine: {describe_machine(machine)}. Versions: {describe_versions(versions)}.",
        f"All runs together took {seconds / 60:.0f} minutes. Written by `ecrec reproduce --scale {scale}`; what each "
        "claim and mode means is in CLAIMS.md and docs/evaluation.md.", "",
        "A figure is a median, with the smallest and the largest value. A verdict compares the median with the target.",
        "",
        "| claim | published | target | measured | verdict |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for finding in findings:
        lines += _table_lines(finding)
    for finding in findings:
        lines += _section(finding, scale, [each for each in not_done if finding.name in each.claims])
    path.write_text("\n".join(lines) + "\n")


def _table_lines(finding: Finding) -> list[str]:
    name = f"[{finding.name}](#{finding.name.lower()})"
    if not finding.verdicts:
        return [f"| {name} {finding.claim.title} | {finding.claim.published} | - | - | {finding.verdict} |"]
    return [_row(name, finding, each, number == 0) for number, each in enumerate(finding.verdicts)]


def _row(name: str, finding: Finding, each: Verdict, is_first: bool) -> str:
    title = f"{name} {finding.claim.title}" if is_first else name
    published = finding.claim.published if is_first else ""
    target = f"{each.target.text}: {bound(each.target)}"
    return f"| {title} | {published} | {target} | {spread(each.values)} | {each.verdict} |"


def _section(finding: Finding, scale: str, not_done: Sequence[NotDone]) -> list[str]:
    name = finding.name
    lines = ["", f"## {name}", "", f"**{finding.claim.title}.** {finding.claim.expected}.", ""]
    lines += [f"Published: {finding.claim.published}.", "", f"Alone: `{command(scale, name)}`", ""]
    if finding.rows:
        lines += [f"![{finding.claim.title}](plots/{name}.svg)", "", f"[The rows](csv/{name}.csv)", ""]
    for each in finding.verdicts:
        lines.append(f"- {each.target.text}: {spread(each.values)}; expected {bound(each.target)}: **{each.verdict}**")
    shown = sorted(finding.figures.items())[:FIGURES_SHOWN]
    if shown:
        lines += ["", "| figure | measured |", "|---|---|"]
        lines += [f"| {figure} | {spread(values)} |" for figure, values in shown]
    if not_done:
        lines += ["", "Not measured:", ""]
        lines += [f"- {each.what}: {each.why}" for each in not_done]
    return lines


# ---------------------------------------------------------------------- CLAIMS.md
MEASURED = "docs/results/laptop/summary.md"
"""Of the scale laptop, on the machine that it names."""


def claims_text(plan: Plan) -> str:
    """What is claimed, with targets and commands: the file CLAIMS.md."""
    minutes = {
        scale: sum(run.expected_s for run in runs(plan, scale, tuple(plan.claims))) / 60 for scale in SCALES
    }  # fmt: skip
    lines = [
        "# Claims", "",
        "Made from `ecrec/reproduce/experiments.toml` by `ecrec reproduce --claims`. Published figures are those of "
        "ECRec (PVLDB 16(11), 2023) where nothing else is named. A verdict compares the median of all runs with the "
        "target; what misses it by no more than the tolerance is within it. [docs/evaluation.md](docs/evaluation.md) "
        "says how each mode is made, and what it is not.", "",
        "```",
        "pip install -c constraints.txt '.[reproduce]'",
        f"ecrec reproduce --scale smoke     # {minutes['smoke']:.0f} minutes on 2 cores: does it run",
        f"ecrec reproduce --scale laptop    # {minutes['laptop']:.0f} minutes on 2 cores",
        f"ecrec reproduce --scale paper     # {minutes['paper'] / 1440:.0f} days on a large host, as published",
        "```", "",
    ]  # fmt: skip
    for name, claim in plan.claims.items():
        lines += [f"## {name}: {claim.title}", "", f"- Published: {claim.published}.", f"- Expected: {claim.expected}."]
        lines += [f"- Target, figure `{each.figure}`: {each.text}; {bound(each)}." for each in claim.targets]
        about = [
            f"`{key}` ({experiment(plan, key, 'laptop').about})"
            for key in plan.experiments
            if name in experiment(plan, key, "laptop").claims
        ]
        lines += [f"- Experiments: {', '.join(about)}.", f"- Command: `{command('laptop', name)}`"]
        lines += [f"- Measured, with its plot: [{MEASURED}#{name.lower()}]({MEASURED}#{name.lower()})", ""]
    return "\n".join(lines).rstrip() + "\n"
