"""``python tests/simulator/simulate.py``: run schedules, replay one, make a failure smaller and keep it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from simulation.draw import draw
from simulation.minimise import Kept, minimise
from simulation.run import COVERAGE, FAILURES, SEEDS_NIGHTLY, Totals, replay, run_many


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 fine, 3 a checker found an error, 4 no liveness, 5 a machine or the simulator raised, 6 fine, but
    with --require-coverage something was never reached."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python tests/simulator/simulate.py", description=__doc__, epilog=main.__doc__
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many schedules")
    parser.add_argument("--nightly", action="store_true", help=f"{SEEDS_NIGHTLY} schedules")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--large", action="store_true", help="every seed with tables of thousands of rows")
    parser.add_argument(
        "--validate-all", action="store_true", help="machines check themselves after every event of all"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--coverage", action="store_true", help="say what was reached, and how often")
    parser.add_argument("--require-coverage", action="store_true", help="fail if something was never reached")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed, and say what it was")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="run a plan that was kept, and say what it was")
    parser.add_argument("--minimise", type=int, metavar="SEED", help="find a smaller plan that fails like this seed")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="with --minimise: where the smaller plan goes")
    parser.add_argument("--trace", action="store_true", help="with --replay or --plan: print every event")
    parser.add_argument("--last", type=int, default=60, help="events in the story of a failure")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(draw(options.replay, options.large), options.trace, options.last)
    if options.plan is not None:
        return replay(Kept.read(options.plan).plan, options.trace, options.last)
    if options.minimise is not None:
        return _minimise(options.minimise, options.large, options.keep, options.last)
    totals = Totals()
    count = SEEDS_NIGHTLY if options.nightly else options.seeds
    seeds = range(options.first, options.first + count)
    for outcome in run_many(seeds, options.jobs, options.large, options.validate_all):
        totals.add(outcome)
        if outcome.code:
            print(outcome.report(), flush=True)
            if not options.keep_going:
                break
    if options.coverage:
        print(totals.coverage.report())
    print(totals.line())
    worst = max((code for code in totals.codes if code), key=FAILURES.index, default=0)
    missing = totals.coverage.missing() if options.require_coverage and not worst else []
    if missing:
        print("never reached: " + "; ".join(missing))
        return COVERAGE
    return worst


def _minimise(seed: int, large: bool, keep: Path | None, last: int) -> int:
    kept = minimise(draw(seed, large), about=f"seed {seed}", say=lambda text: print(text, flush=True))
    if kept is None:
        print(f"seed {seed} does not fail")
        return 0
    if keep is not None:
        kept.write(keep)
        print(f"kept in {keep}; again: python tests/simulator/simulate.py --plan {keep} --trace")
    return replay(kept.plan, trace=False, last=last)


if __name__ == "__main__":
    sys.exit(main())
