"""The program behind the workers of ``ecrec reproduce``: those of ``ecrec train``, which the driver can hold.

ecrec-worker -m ecrec.reproduce.worker --config FILE.json --control DIR
"""

import json
import os
import sys
import time
from pathlib import Path

from ecrec.reproduce.control import Control
from ecrec.train.worker import Event, parser, work


def main() -> None:
    """As `ecrec.train.worker.main`, with stops where the directory of --control says so."""
    arguments = parser("ecrec.reproduce.worker", __doc__)
    arguments.add_argument("--control", required=True, help="directory; see ecrec.reproduce.control")
    args = arguments.parse_args()
    control = Control(Path(args.control))

    def tell(event: str) -> None:
        with os.fdopen(args.events_fd, "w", closefd=False) as events:
            print(json.dumps({"event": event, "at": time.monotonic()}), file=events, flush=True)

    def emitted(event: Event) -> None:
        if event["event"] == "step":
            control.hold(tell)

    sys.exit(work(arguments, args, control.wait_to_go, emitted, lambda: control.stopped))


if __name__ == "__main__":
    main()
