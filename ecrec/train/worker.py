"""The program behind the workers of ``ecrec train``.

    ecrec-worker -m ecrec.train.worker --config FILE.json

The file holds `ecrec.train.steps.TrainConfig`; rank, world size, the scheduler and the descriptor for events come
from ecrec-worker. Events are JSON objects, one a line.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from ecrec.errors import DataError, EcrecError
from ecrec.exit_codes import exit_code
from ecrec.launch.connect import RANK, SCHEDULER, WORLD_SIZE
from ecrec.launch.environment import curve_keys
from ecrec.launch.local.children import EVENTS_FD

Event = dict[str, Any]


def main() -> None:
    """Read the arguments and what ecrec-worker has set, train, and end with the exit code of `work`."""
    arguments = parser("ecrec.train.worker", __doc__)
    sys.exit(work(arguments, arguments.parse_args()))


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The arguments of a worker, with what ecrec-worker has set as their defaults."""
    made = argparse.ArgumentParser(allow_abbrev=False, prog=name, description=doc.partition("\n")[0])
    made.add_argument("--config", required=True, help="JSON file; see TrainConfig")
    made.add_argument("--scheduler", default=os.environ.get(SCHEDULER), help="endpoint")
    made.add_argument("--rank", type=int, default=int(os.environ.get(RANK, "0")))
    made.add_argument("--world-size", type=int, default=int(os.environ.get(WORLD_SIZE, "1")))
    made.add_argument("--events-fd", type=int, default=int(os.environ.get(EVENTS_FD, "1")))
    made.add_argument("--first-step", type=int, default=0, help="steps of the run that it goes on with")
    made.add_argument("--tables-only", action="store_true", help="make the model, and train nothing")
    return made


def work(
    arguments: argparse.ArgumentParser,
    args: argparse.Namespace,
    ready: Callable[[], None] = lambda: None,
    emitted: Callable[[Event], None] = lambda event: None,
    ends: Callable[[], bool] = lambda: False,
) -> int:
    """Train; the exit code, with a message for an error.

    ``ready`` is called before the cluster is, ``emitted`` with each event behind it; no batch is begun once ``ends()``.
    """
    if args.scheduler is None:
        arguments.error("--scheduler is missing")
    try:
        from ecrec.train.steps import make_tables, read_config, run
    except ImportError as error:
        print(f'error: training needs torch: pip install "ecrec[train]" ({error})', file=sys.stderr)
        return 1
    with os.fdopen(args.events_fd, "w", closefd=False) as events:

        def emit(event: Event) -> None:
            print(json.dumps(event), file=events, flush=True)
            emitted(event)

        try:
            config = read_config(args.config)
            ready()
            if args.tables_only:
                make_tables(config, args.scheduler, args.rank, args.world_size, emit, curve_keys())
            else:
                run(config, args.scheduler, args.rank, args.world_size, emit, curve_keys(), ends, args.first_step)
        except EcrecError as error:
            print(f"error: {error}", file=sys.stderr)
            if isinstance(error, DataError):
                emit({"event": "bad_data", "text": str(error)})
            return exit_code(error)
    return 0


if __name__ == "__main__":
    main()
