"""Does one run in a process of its own.

    python -m ecrec.reproduce.one --run RUN.json --raw FILE.jsonl --data ROWS --data-rows N [--on ray --shared DIR]

RUN.json is a `Run` of `ecrec.reproduce.plan`. The raw lines go to the file, which appears when the run is complete.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from ecrec.errors import EcrecError
from ecrec.launch.local.scratch import Scratch
from ecrec.reproduce.driver import Driver
from ecrec.reproduce.life import Engine
from ecrec.reproduce.plan import Run
from ecrec.reproduce.raw import RawWriter
from ecrec.train.engines import keys_of_run
from ecrec.train.machine import machine_of, versions
from ecrec.train.options import ENGINES, LOCAL


def main() -> None:
    """Exit code 0: the run is complete; 1: it failed, and a line on stderr says why."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="ecrec.reproduce.one", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--run", required=True, help="JSON file; see ecrec.reproduce.plan.Run")
    parser.add_argument("--raw", required=True, help="where the raw lines go")
    parser.add_argument("--data", required=True, help="rows in Criteo's format")
    parser.add_argument("--data-rows", type=int, required=True)
    parser.add_argument("--on", default=LOCAL, choices=ENGINES, help="where the processes of the run are")
    parser.add_argument("--engine", default="", help="what they are on, for the file")
    parser.add_argument("--shared", type=Path, help="a directory that all of them see, for checkpoints")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        run = msgspec.json.decode(Path(args.run).read_bytes(), type=Run)
        with (
            Scratch("ecrec-run-", kept_after=EcrecError) as directory,  # the error names the logs
            Scratch("ecrec-run-checkpoints-", place=args.shared) as checkpoints,
            keys_of_run(args.on) as keys,
            RawWriter(Path(args.raw), run, machine_of(args.engine), versions()) as raw,
        ):
            Driver(run, raw, directory, str(checkpoints), args.data, args.data_rows, Engine(args.on, keys)).drive()
    except (EcrecError, OSError, msgspec.MsgspecError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _on_sigterm(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
