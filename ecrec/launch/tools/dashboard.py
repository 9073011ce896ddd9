"""The live page of a cluster that runs anywhere, on this machine: it asks the scheduler, as `ecrec status` does."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

from ecrec.launch.dashboard.feed import EVERY_S, Feed
from ecrec.launch.dashboard.page import Dashboard
from ecrec.launch.http_server import HttpServer, parse_address
from ecrec.launch.tools.watch import ClusterWatch


@contextlib.contextmanager
def dashboard(
    scheduler: str, http: str, hosts: Iterable[str] = (), curve_dir: str | None = None, option: str = "--http"
) -> Iterator[str]:
    """Show the page at ``http`` as long as the context is open; gives its URL.

    ``hosts``: more names that browsers may call it by. Raises ConfigurationError, naming the option, for an address
    where it cannot listen, and what `ClusterWatch` raises.
    """
    pages = Dashboard(Feed(scheduler), hosts)
    with (
        HttpServer(option, parse_address(option, http), pages.routes, pages.guard) as server,
        ClusterWatch(scheduler, curve_dir, EVERY_S * 1e3) as watch,
    ):
        ending = threading.Event()

        def follow() -> None:
            shown = None
            while not ending.wait(EVERY_S / 4):
                seen = watch.latest
                if seen is not None and seen is not shown:
                    shown = seen
                    pages.feed.take(seen.state, time.time() - (time.monotonic() - seen.asked_at))

        thread = threading.Thread(target=follow, name="ecrec-dashboard", daemon=True)
        thread.start()
        try:
            yield f"{server.url}/"
        finally:
            ending.set()
            thread.join()
