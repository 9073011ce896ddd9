"""Run a seed and say how it went; run many, over several processes."""

import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ecrec.simulator.cluster import Cluster, Ending, MachineError
from ecrec.simulator.plan import Plan, draw
from ecrec.simulator.story import LivenessError, Story, ViolationError

CORRECTNESS, LIVENESS, CRASH = 1, 2, 3
FAILURES = (LIVENESS, CRASH, CORRECTNESS)
"""Exit codes, the gravest last."""
NAMES = {CORRECTNESS: "correctness", LIVENESS: "liveness", CRASH: "exception"}

TWIN_EVERY = 16
"""One deterministic seed of so many is also run without faults. All are compared with the oracle."""


@dataclass
class Outcome:
    """How one seed went. ``code`` is 0 or an exit code."""

    seed: int
    code: int = 0
    text: str = ""
    story: str = ""
    plan: str = ""
    digest: str = ""
    deaths: int = 0
    pushes: int = 0
    pulls: int = 0
    messages: int = 0
    rows_checked: int = 0
    lost: bool = False
    reinitialised: int = 0
    """Rows that more deaths than the code stands have set back."""
    simulated_ms: float = 0.0

    def report(self) -> str:
        """For a failure: what, where, how to see it again, and the story of it."""
        return (
            f"seed {self.seed}: {NAMES.get(self.code, 'fine')}: {self.text}\n"
            f"plan: {self.plan}\n"
            f"again: python -m ecrec.simulator --replay {self.seed} --trace\n"
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
    lost: int = 0
    reinitialised: int = 0
    codes: Counter[int] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.codes[outcome.code] += 1
        self.deaths += outcome.deaths
        self.pushes += outcome.pushes
        self.pulls += outcome.pulls
        self.messages += outcome.messages
        self.rows_checked += outcome.rows_checked
        self.lost += outcome.lost
        self.reinitialised += bool(outcome.reinitialised)

    def line(self) -> str:
        seconds = time.monotonic() - self.began_s
        failures = ", ".join(f"{self.codes[code]} {NAMES[code]}" for code in NAMES if self.codes[code])
        return (
            f"{self.seeds} schedules in {seconds:.1f} s ({self.seeds / max(seconds, 1e-9):.1f} a second): "
            f"{self.deaths} deaths, {self.lost} losses announced, {self.reinitialised} with rows re-initialised, "
            f"{self.pushes} pushes, {self.pulls} pulls, "
            f"{self.messages} messages, {self.rows_checked} rows checked; failures: {failures or 'none'}"
        )


def play(plan: Plan, story: Story) -> Ending:
    """Play a plan; raises what went wrong."""
    return Cluster(plan, story).run()


def run_seed(seed: int, echo: bool = False, last: int = 60) -> Outcome:
    """Run one seed with all checks. Never raises for what a machine does."""
    plan = draw(seed)
    story = Story(echo)
    outcome = Outcome(seed, plan=plan.describe())
    try:
        ending = play(plan, story)
        outcome.digest, outcome.deaths, outcome.pushes = ending.digest, ending.deaths, ending.pushes
        outcome.pulls, outcome.messages, outcome.rows_checked = ending.pulls, ending.messages, ending.rows_checked
        outcome.lost, outcome.simulated_ms = ending.lost, ending.simulated_ms
        outcome.reinitialised = ending.reinitialised
        if plan.deterministic and not (ending.lost or ending.reinitialised) and seed % TWIN_EVERY == 0:
            twin = play(plan.without_faults(), Story())
            if twin.data != ending.data:
                raise ViolationError("the same plan without faults ends with other rows")
    except LivenessError as error:
        outcome.code, outcome.text = LIVENESS, error.text
        outcome.story = story.tell(error.shards, error.keys, last)
    except ViolationError as error:
        outcome.code, outcome.text = CORRECTNESS, error.text
        outcome.story = story.tell(error.shards, error.keys, last)
    except MachineError as error:
        outcome.code, outcome.text, outcome.story = CRASH, str(error), story.tell((), (), last)
    except Exception:
        outcome.code, outcome.text = CRASH, f"the simulator failed:\n{traceback.format_exc()}"
        outcome.story = story.tell((), (), last)
    return outcome


def run_many(seeds: Iterable[int], jobs: int = 1) -> Iterator[Outcome]:
    """Outcomes, in order of the seeds."""
    if jobs <= 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run_seed, seeds, chunksize=8)


def replay(seed: int, trace: bool, last: int) -> int:
    """Run a seed for people; returns its exit code."""
    outcome = run_seed(seed, trace, last)
    if outcome.code:
        print(outcome.report())
    else:
        print(
            f"seed {seed}: fine. {outcome.plan}\n{outcome.deaths} deaths, {outcome.pushes} pushes, {outcome.messages} "
            f"messages, {outcome.simulated_ms:.0f} simulated ms, trace {outcome.digest}"
        )
    return outcome.code
