"""The program behind the workers of ``ecrec train``.

    ecrec-worker -m ecrec.launch.train_worker --config FILE.json

The file holds `ecrec.training.train.TrainConfig`; rank, world size, the scheduler and the descriptor for events come
from ecrec-worker. Events are JSON objects, one a line.
"""

import argparse
import json
import os
import sys
from typing import Any

from ecrec.errors import DataLostError, EcrecError, FencedError
from ecrec.launch.children import EVENTS_FD
from ecrec.launch.connect import RANK, SCHEDULER, WORLD_SIZE
from ecrec.launch.environment import curve_keys
from ecrec.launch.server import EXIT_FENCED

EXIT_DATA_LOST = 4


def main() -> None:
    """Read the arguments and what ecrec-worker has set; a message for an error, and exit code 1, or 3 when the cluster
    has given this worker up, 4 for lost data."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="ecrec.launch.train_worker", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--config", required=True, help="JSON file; see TrainConfig")
    parser.add_argument("--scheduler", default=os.environ.get(SCHEDULER), help="endpoint")
    parser.add_argument("--rank", type=int, default=int(os.environ.get(RANK, "0")))
    parser.add_argument("--world-size", type=int, default=int(os.environ.get(WORLD_SIZE, "1")))
    parser.add_argument("--events-fd", type=int, default=int(os.environ.get(EVENTS_FD, "1")))
    args = parser.parse_args()
    if args.scheduler is None:
        parser.error("--scheduler is missing")
    try:
        from ecrec.training.train import read_config, run
    except ImportError as error:
        print(f'error: training needs torch: pip install "ecrec[train]" ({error})', file=sys.stderr)
        sys.exit(1)
    with os.fdopen(args.events_fd, "w", closefd=False) as events:

        def emit(event: dict[str, Any]) -> None:
            print(json.dumps(event), file=events, flush=True)

        try:
            run(read_config(args.config), args.scheduler, args.rank, args.world_size, emit, curve_keys())
        except EcrecError as error:
            print(f"error: {error}", file=sys.stderr)
            if isinstance(error, DataLostError):
                sys.exit(EXIT_DATA_LOST)
            sys.exit(EXIT_FENCED if isinstance(error, FencedError) else 1)


if __name__ == "__main__":
    main()
