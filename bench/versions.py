"""Another version of ecrec against this one: the cases of `ecrec bench` that both have, in turns, in one run.

    python bench/versions.py ../before/.venv/bin/python store rpc --rounds 41 --report versions.json

Each version is a process of its own, started with its own Python (for the cases `rpc` with a cluster of its own), makes
its side of a case without the peers, and waits for its turn. A turn is short, so that what else the machine does
meets both; the ratio is the median of the rounds' own ratios, and > 1 means that this version is faster. Between two
runs of `ecrec bench` lie minutes, in which a shared machine becomes a fifth slower or faster.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

SHARDS_AT = ("ecrec.launch.tools.bench", "ecrec.launch.bench")
"""Where versions start a cluster and set their process up."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run all cases, print them; 1 if the median of a ratio is below --ratio-min."""
    args = _parser().parse_args(arguments)
    if args.side is not None:
        return serve(*args.side)
    from bench.running import write_json
    from ecrec.bench.harness import calls_for, in_turns, machine
    from ecrec.bench.suites import names

    lines = []
    for suite in args.suites:
        for case in names(suite):
            if args.case not in case:
                continue
            with ExitStack() as stack:
                sides = {}
                for name, python in (("before", args.python), ("now", sys.executable)):
                    sides[name] = stack.enter_context(side(python, suite, case)).run
                calls = max(calls_for(run, args.seconds) for run in sides.values())
                seconds = in_turns(sides, dict.fromkeys(sides, calls), args.rounds)
            ratios = [before / now for before, now in zip(seconds["before"], seconds["now"], strict=True)]
            quarter, median, three = statistics.quantiles(ratios, n=4)
            print(f"{suite}: {case:<40} {median:.3f} (half of the rounds: {quarter:.3f} to {three:.3f})", flush=True)
            lines.append({"suite": suite, "case": case, "ratio": median, "quartiles": [quarter, three], **seconds})
    write_json(args.report, {"machine": machine(), "lines": lines})
    return 0 if all(line["ratio"] >= args.ratio_min for line in lines) else 1


class Side:
    """One version's case, in a process that takes its turns when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read()

    def run(self, calls: int) -> float:
        """Seconds of so many calls."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a version ended with code {self._process.wait()}; its last words are above")
        return float(line)


@contextmanager
def side(python: str, suite: str, case: str) -> Iterator[Side]:
    """A version's process, which has made its case."""
    command = [python, __file__, python, "--side", suite, case]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        yield Side(process)
        assert process.stdin is not None
        process.stdin.close()


def serve(suite_name: str, case: str) -> int:
    """The process of a version: makes the case, then answers each number of calls with the seconds they took."""
    answers, sys.stdout = sys.stdout, sys.stderr
    launch = _first_of(SHARDS_AT)
    launch.set_up_process()
    from ecrec.bench.harness import Selection

    suite: Any = importlib.import_module(f"ecrec.bench.{suite_name}")
    if hasattr(suite, "PEERS"):
        suite.PEERS = {}

    class Exactly(Selection):
        def wants(self, name: str) -> bool:
            return name == case

    for found in suite.cases(Exactly(suite_name, case, launch.local_shards)):
        print(0.0, file=answers, flush=True)
        for line in sys.stdin:
            print(found.ours(int(line)), file=answers, flush=True)
    return 0


def _first_of(modules: tuple[str, ...]) -> Any:
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"this version of ecrec has none of {', '.join(modules)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("python", help="of a virtual environment in which the other version is installed")
    parser.add_argument("suites", nargs="*", default=["store", "rpc"])
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=41, help="turns of each version")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--ratio-min", type=float, default=0.0)
    parser.add_argument("--report", help="write what was found here, as JSON")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
