"""Run a seed and say how it went; run many, over several processes."""

import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from simulation.cluster import Cluster, Ending, MachineError
from simulation.coverage import Coverage
from simulation.draw import draw
from simulation.plan import Plan
from simulation.story import LivenessError, Story, ViolationError
from simulation.tuning import native_store

CORRECTNESS, LIVENESS, CRASH, COVERAGE = 3, 4, 5, 6
FAILURES = (COVERAGE, LIVENESS, CRASH, CORRECTNESS)
"""Exit codes, the gravest last. 1 and 2 are Python's own, for a program that raises and for wrong arguments."""
NAMES = {CORRECTNESS: "correctness", LIVENESS: "liveness", CRASH: "exception"}

SEEDS_CI, SEEDS_SEARCH, SEEDS_NIGHTLY = 1_200, 2_000, 20_000
"""How many schedules are tried before a change lands; until one catches a mistake made on purpose; and at night."""

TWIN_EVERY = 16
"""One deterministic seed of so many is also run without faults. All are compared with the oracle."""

PROGRAM = "python tests/simulator/simulate.py"


@dataclass
class Outcome:
    """How one seed went. ``code`` is 0 or an exit code."""

    seed: int
    code: int = 0
    text: str = ""
    where: str = ""
    """For a failure: which check failed, or where what was raised. Two failures of one cause have it in common."""
    story: str = ""
    plan: str = ""
    digest: str = ""
    deaths: int = 0
    pushes: int = 0
    pulls: int = 0
    messages: int = 0
    rows_checked: int = 0
    scrubs: int = 0
    lost: bool = False
    reinitialised: int = 0
    """Rows that more deaths than the code tolerates have set back."""
    simulated_ms: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)

    def report(self) -> str:
        """For a failure: what, where, how to see it again, and the story of it."""
        return (
            f"seed {self.seed}: {NAMES.get(self.code, 'fine')} ({self.where}): {self.text}\n"
            f"plan: {self.plan}\n"
            f"again: {PROGRAM} --replay {self.seed} --trace\n"
            f"smaller: {PROGRAM} --minimise {self.seed} --keep tests/simulator/kept/NAME.json\n"
            f"{self.story}\n"
        )


@dataclass
class Totals:
    """Sums over many outcomes."""

    began_s: float = field(default_factory=time.monotonic)
    seeds: int = 0
    deaths: int = 0
    pushes: int = 0
    pulls: int = 0
    messages: int = 0
    rows_checked: int = 0
    scrubs: int = 0
    lost: int = 0
    reinitialised: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    codes: Counter[int] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.codes[outcome.code] += 1
        self.deaths += outcome.deaths
        self.pushes += outcome.pushes
        self.pulls += outcome.pulls
        self.messages += outcome.messages
        self.rows_checked += outcome.rows_checked
        self.scrubs += outcome.scrubs
        self.lost += outcome.lost
        self.reinitialised += bool(outcome.reinitialised)
        self.coverage.add(outcome.coverage)

    def line(self) -> str:
        seconds = time.monotonic() - self.began_s
        failures = ", ".join(f"{self.codes[code]} {NAMES[code]}" for code in NAMES if self.codes[code])
        return (
            f"{self.seeds} schedules in {seconds:.1f} s ({self.seeds / max(seconds, 1e-9):.1f} a second): "
            f"{self.deaths} deaths, {self.lost} losses announced, {self.reinitialised} with rows re-initialised, "
            f"{self.pushes} pushes, {self.pulls} pulls, {self.messages} messages, {self.rows_checked} rows checked, "
            f"{self.scrubs} chunks scrubbed while running; failures: {failures or 'none'}"
        )


def play(plan: Plan, story: Story) -> Ending:
    """Play a plan; raises what went wrong."""
    with native_store(plan):
        return Cluster(plan, story).run()


def run_seed(seed: int, echo: bool = False, last: int = 60, large: bool = False, validate: bool = False) -> Outcome:
    """Run one seed with all checks; ``validate``: those of machines after every event. Never raises for what a machine
    does."""
    plan = draw(seed, large)
    return run_plan(replace(plan, validate=True) if validate else plan, echo, last)


def run_plan(plan: Plan, echo: bool = False, last: int = 60) -> Outcome:
    """Run one plan with all checks. Never raises for what a machine does."""
    story = Story(echo)
    outcome = Outcome(plan.seed, plan=plan.describe())
    try:
        ending = play(plan, story)
        outcome.deaths, outcome.pushes, outcome.coverage = ending.deaths, ending.pushes, ending.coverage
        outcome.pulls, outcome.messages, outcome.rows_checked = ending.pulls, ending.messages, ending.rows_checked
        outcome.lost, outcome.simulated_ms, outcome.scrubs = ending.lost, ending.simulated_ms, ending.scrubs
        outcome.reinitialised = ending.reinitialised
        if plan.deterministic and not (ending.lost or ending.reinitialised) and plan.seed % TWIN_EVERY == 0:
            twin = play(plan.without_faults(), Story())
            if twin.data != ending.data:
                raise ViolationError("the same plan without faults ends with other rows")
    except LivenessError as error:
        outcome.code, outcome.text, outcome.where = LIVENESS, error.text, "liveness"
        outcome.story = story.tell(error.shards, error.keys, last)
    except ViolationError as error:
        outcome.code, outcome.text, outcome.where = CORRECTNESS, error.text, _where(error)
        outcome.story = story.tell(error.shards, error.keys, last)
    except MachineError as error:
        outcome.code, outcome.text, outcome.where = CRASH, str(error), _where(error.__cause__ or error)
        outcome.story = story.tell((), (), last)
    except Exception as error:
        outcome.code, outcome.text = CRASH, f"the simulator failed:\n{traceback.format_exc()}"
        outcome.where, outcome.story = _where(error), story.tell((), (), last)
    outcome.digest = story.digest
    return outcome


def _where(error: BaseException) -> str:
    """``module.function`` that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).stem}.{frame.name}"


def run_many(seeds: Iterable[int], jobs: int = 1, large: bool = False, validate: bool = False) -> Iterator[Outcome]:
    """Outcomes, in order of the seeds."""
    run = partial(run_seed, large=large, validate=validate)
    if jobs <= 1:
        yield from map(run, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run, seeds, chunksize=8)


def replay(plan: Plan, trace: bool, last: int) -> int:
    """Run a plan for people; returns its exit code."""
    outcome = run_plan(plan, trace, last)
    if outcome.code:
        print(outcome.report())
    else:
        print(f"seed {plan.seed}: fine. {outcome.plan}")
    print(
        f"{outcome.deaths} deaths, {outcome.pushes} pushes, {outcome.messages} messages, "
        f"{outcome.simulated_ms:.0f} simulated ms, trace {outcome.digest}"
    )
    return outcome.code
