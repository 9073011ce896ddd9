"""What a process shows over HTTP (``--http``): ``/healthz``, ``/readyz`` and ``/metrics``.

The process keeps plain numbers, and makes a `Snapshot` of them now and then, in its own loop. The thread of the server
reads the last one; prometheus-client sees the numbers only when somebody asks for ``/metrics``.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ecrec.launch.dashboard.page import Dashboard
from ecrec.launch.http_server import HttpServer, Response, parse_address, text

HTTP_HELP = (
    "HOST:PORT: answer /healthz, /readyz and /metrics there, to everybody who reaches it, without encryption. "
    "Default: nowhere."
)

SNAPSHOT_MS = 1000.0
"""How often a server makes a snapshot; a scraper asks every 15 to 60 s."""

HUNG_S = 30.0
"""A loop that made no step for this long hangs: a step takes milliseconds, and a long one says that it lives."""

COUNTER, GAUGE = "counter", "gauge"


class Metric(NamedTuple):
    """A number, or one for each value of its labels. Names of counters end with ``_total``."""

    kind: str
    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def counter(name: str, help: str, value: float) -> Metric:
    return Metric(COUNTER, name, help, [({}, value)])


def gauge(name: str, help: str, value: float) -> Metric:
    return Metric(GAUGE, name, help, [({}, value)])


class Snapshot(NamedTuple):
    """How a process is."""

    not_ready: str
    """Why it does not do its part of the work now; empty if it does."""
    metrics: Sequence[Metric] = ()


class Watched:
    """The pages of a process. ``alive_s``: when its loop made its last step, in seconds of the monotonic clock."""

    def __init__(self, look: Callable[[], Snapshot], alive_s: Callable[[], float] = time.monotonic) -> None:
        self.look = look
        self.alive_s = alive_s
        self._registry = _registry(lambda: self.look().metrics)

    def serve(self, option: str, address: str, offset: int = 0, dashboard: Dashboard | None = None) -> HttpServer:
        """Raises ConfigurationError, naming the option, for an address where it cannot listen."""
        routes = {"/healthz": self.healthz, "/readyz": self.readyz, "/metrics": self.metrics}
        where = parse_address(option, address, offset)
        if dashboard is None:
            return HttpServer(option, where, routes)
        return HttpServer(option, where, {**routes, **dashboard.routes}, dashboard.guard)

    def healthz(self) -> Response:
        """Whether to start it anew would help: only if it hangs."""
        silent_s = time.monotonic() - self.alive_s()
        return text(200, "ok") if silent_s < HUNG_S else text(503, f"its loop has made no step for {silent_s:.0f} s")

    def readyz(self) -> Response:
        reason = self.look().not_ready
        return text(503, reason) if reason else text(200, "ok")

    def metrics(self) -> Response:
        if self._registry is None:
            return text(501, 'prometheus-client is missing: pip install "ecrec[metrics]"')
        from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        return Response(200, generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)


def _registry(metrics: Callable[[], Iterable[Metric]]) -> Any:
    """What prometheus-client asks; None without it."""
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError:
        return None

    class Collector:
        def collect(self) -> Iterator[Any]:
            for kind, name, help, samples in metrics():
                names = list(samples[0][0]) if samples else []
                make = CounterMetricFamily if kind == COUNTER else GaugeMetricFamily
                family = make(name, help, labels=names)
                for labels, value in samples:
                    family.add_metric([labels[each] for each in names], value)
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    ProcessCollector(registry=registry)
    return registry
