"""``python -m ecrec.simulator``: run schedules, or replay one."""

import argparse
import sys
from collections.abc import Sequence

from ecrec.simulator.run import FAILURES, Totals, replay, run_many


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 fine, 1 a checker found an error, 2 no liveness, 3 a machine or the simulator raised."""
    parser = argparse.ArgumentParser(prog="python -m ecrec.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed, and say what it was")
    parser.add_argument("--trace", action="store_true", help="with --replay: print every event")
    parser.add_argument("--last", type=int, default=60, help="events in the story of a failure")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.replay, options.trace, options.last)
    totals = Totals()
    for outcome in run_many(range(options.first, options.first + options.seeds), options.jobs):
        totals.add(outcome)
        if outcome.code:
            print(outcome.report(), flush=True)
            if not options.keep_going:
                break
    print(totals.line())
    return max((code for code in totals.codes if code), key=FAILURES.index, default=0)


if __name__ == "__main__":
    sys.exit(main())
