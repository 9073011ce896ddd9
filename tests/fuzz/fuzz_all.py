"""Fuzz everything for a while, guided by coverage, and say how much that was. Needs ``pip install atheris``.

    python tests/fuzz/fuzz_all.py --seconds 150 --report fuzz.json

The time is shared by all targets. Exit code 1 if an input broke a promise: what was raised is shown, with the input
if it is short, and the input is in the working directory.
"""

import argparse
import base64
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(TESTS), str(TESTS / "unit" / "protocol"), str(TESTS / "simulator")]

from targets import TARGETS  # noqa: E402

START_S_MAX = 120
"""For a target to begin, on a busy machine: it imports and instruments everything first."""
SECONDS_MIN = 2
SHOWN_BYTES_MAX = 8192
"""An input that broke a promise is shown up to this size, so that the log of a run is enough to try it again."""


def fuzz(target: str, seconds: int, seed: int) -> dict[str, int]:
    """Inputs, bytes and edges covered; raises RuntimeError with what was raised if a promise was broken."""
    with tempfile.TemporaryDirectory() as scratch:
        counts = Path(scratch) / "counts"
        command = [sys.executable, str(Path(__file__).with_name("fuzz_coverage.py")), target, "--seconds", str(seconds)]
        done = subprocess.run(
            [*command, "--seed", str(seed), "--counts", str(counts)],
            capture_output=True, text=True, timeout=seconds + START_S_MAX, check=False,
        )  # fmt: skip
        if done.returncode:
            last_words = f"{done.stdout[-4000:]}\n{done.stderr[-1000:]}{_broken_input(done.stderr)}"
            raise RuntimeError(f"{target} ended with {done.returncode}:\n{last_words}")
        inputs, size = (int(number) for number in np.fromfile(counts, np.int64))
    covered = [int(number) for number in re.findall(r"cov: (\d+)", done.stderr)]
    if not covered:
        raise RuntimeError(f"{target}: no edge was counted, so nothing was guided by coverage:\n{done.stderr[-4000:]}")
    return {"seconds": seconds, "inputs": inputs, "bytes": size, "edges": max(covered)}


def _broken_input(said: str) -> str:
    path = re.search(r"Test unit written to (\S+)", said)
    if not path or Path(path[1]).stat().st_size > SHOWN_BYTES_MAX:
        return ""
    return f"the input in base64: {base64.b64encode(Path(path[1]).read_bytes()).decode()}\n"


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=150, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 (the default): another one each time")
    parser.add_argument("--report", type=Path, help="write the figures here, as JSON")
    args = parser.parse_args()
    seconds = max(SECONDS_MIN, args.seconds // len(TARGETS))
    figures, broken = {}, 0
    print(f"{'target':<12}{'seconds':>8}{'inputs':>10}{'bytes':>13}{'edges':>8}")
    for target in TARGETS:
        try:
            found = figures[target] = fuzz(target, seconds, args.seed)
        except RuntimeError as error:
            broken += 1
            print(f"FAILED: {error}")
            continue
        print(f"{target:<12}{seconds:>8}{found['inputs']:>10}{found['bytes']:>13}{found['edges']:>8}", flush=True)
    total = {name: sum(found[name] for found in figures.values()) for name in ("seconds", "inputs", "bytes")}
    print(f"{'all':<12}{total['seconds']:>8}{total['inputs']:>10}{total['bytes']:>13}  {broken} broken promises")
    if args.report:
        args.report.write_text(json.dumps({"targets": figures, "total": total, "broken": broken}, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
