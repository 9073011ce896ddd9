"""Says that it is ready, and waits for its end. FAKE_EXIT: end at once, with this code; FAKE_LATE: never be
ready."""

import json
import os
import signal
import sys


def option(name):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


def main():
    print("started with", *sys.argv[1:], file=sys.stderr, flush=True)
    if "FAKE_EXIT" in os.environ:
        sys.exit(int(os.environ["FAKE_EXIT"]))
    bind = option("--bind").replace(":0", f":{os.getpid()}" if option("--scheduler") else ":7070")
    if "FAKE_LATE" not in os.environ:
        print("words that are no JSON")
        print(
            json.dumps(
                {
                    "ready": "ps" if option("--scheduler") else "scheduler",
                    "endpoint": bind,
                    "process": f"name-{os.getpid()}",
                }
            ),
            flush=True,
        )
    signal.pause()


if __name__ == "__main__":
    main()
