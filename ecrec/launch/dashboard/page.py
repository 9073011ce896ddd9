"""How a browser gets the live page: one document with its style and script in it, and the JSON that it asks for.

Nothing comes from elsewhere, and the browser is told to take nothing else. Names that another site could have pointed
at this address (DNS rebinding) are refused: what is shown is for those who may reach the address, not for any site that
they visit.
"""

import base64
import hashlib
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources

import msgspec

from ecrec.launch.dashboard.feed import Feed
from ecrec.launch.http_server import Request, Response, text

PAGE, DATA = "/", "/dashboard.json"

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]+)?")
"""An address of IPv6, or else a name."""

_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


@cache
def page() -> Response:
    """The same bytes as long as the process runs."""
    parts = resources.files("ecrec.launch.dashboard")
    style = (parts / "page.css").read_text("utf-8")
    script = "".join((parts / name).read_text("utf-8") for name in ("rules.js", "draw.js", "page.js"))
    body = (parts / "page.html").read_text("utf-8").replace("/* style */", style).replace("/* script */", script)
    policy = "; ".join(
        (
            "default-src 'none'", f"script-src {_hash(script)}", f"style-src {_hash(style)}", "connect-src 'self'",
            "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        )
    )  # fmt: skip
    headers = (("Content-Security-Policy", policy), *_ALWAYS)
    return Response(200, body.encode(), "text/html; charset=utf-8", headers)


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


class Dashboard:
    """The pages of a `Feed`. ``hosts``: more names that a browser may call it by."""

    def __init__(self, feed: Feed, hosts: Iterable[str] = ()) -> None:
        self.feed = feed
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}
        self.routes: Mapping[str, Callable[[], Response]] = {PAGE: page, DATA: self._data}

    def _data(self) -> Response:
        document = msgspec.json.encode(self.feed.document(time.time()))  # NaN, which JSON lacks, becomes null
        return Response(200, document, "application/json", _ALWAYS)

    def guard(self, request: Request) -> Response | None:
        """Refuses a browser that some other site sent, or that calls this address by a name that is none of its own."""
        if request.path not in self.routes:
            return None
        host = request.headers.get("host", "")
        if not self._knows(host):
            return text(421, f"{host!r:.200} is no name of this host: see --allow-host")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return text(403, "expected a request of this page itself, not of another site")
        if request.path == DATA and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return text(403, "expected a request of this page itself, not of another site")
        return None

    def _knows(self, host: str) -> bool:
        """An address is no name, so nobody else can have it point here."""
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1] or found[2].removesuffix(".")
        return name in self._hosts or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
