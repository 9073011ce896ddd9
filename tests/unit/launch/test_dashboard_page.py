"""How a browser gets the live page: self-contained, and for nobody whom another site has sent."""

import base64
import hashlib
import json
import re
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from dashboard_states import HOSTILE, state, table
from pages import get

from ecrec.launch.dashboard.feed import VERSION, Feed
from ecrec.launch.dashboard.page import Dashboard, page
from ecrec.launch.http_server import HttpServer, Request
from ecrec.launch.watched import Snapshot, Watched

THIS_PAGE = "127.0.0.1:7080"


@pytest.fixture
def url() -> Iterator[str]:
    feed = Feed("here")
    feed.take(state(tables=[table(HOSTILE)]), 1e9)
    with Watched(lambda: Snapshot("")).serve("--http", "127.0.0.1:0", dashboard=Dashboard(feed)) as server:
        yield server.url


def refused(path: str = "/dashboard.json", **headers: str) -> int:
    """The status; 0 if it is answered."""
    given = {"host": THIS_PAGE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    response = Dashboard(Feed("here"), ["Proxy.example"]).guard(Request(path, given))
    return 0 if response is None else response.status


# ------------------------------------------------------------------ one document
def test_the_page_is_one_document_whose_policy_allows_nothing_but_itself() -> None:
    told = page()
    body = told.body.decode()
    policy = dict(told.headers)["Content-Security-Policy"]
    for tag in ("script", "style"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", body, re.DOTALL)
        assert len(source) > 1000
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_names_no_other_host_and_makes_no_markup_of_what_it_is_told() -> None:
    body = page().body.decode()
    assert {url for url in re.findall(r"https?://[^\s'\"<>)]+", body)} == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", body)
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", body), "the policy would not run or show it"


def test_a_browser_gets_the_page_and_its_data_beside_the_probes(url: str) -> None:
    status, body = get(f"{url}/")
    assert status == 200 and body.startswith("<!doctype html>")
    with urllib.request.urlopen(f"{url}/dashboard.json", timeout=10) as answer:
        headers, document = answer.headers, json.load(answer)
    assert (headers["Content-Type"], headers["Cache-Control"]) == ("application/json", "no-store")
    assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers
    assert (document["version"], document["tables"][0]["name"]) == (VERSION, HOSTILE)
    assert get(f"{url}/healthz") == (200, "ok\n") and get(f"{url}/readyz")[0] == 200


# ------------------------------------------------------------------ who may ask
@pytest.mark.parametrize("host", [
    "127.0.0.1:7080", "localhost:7080", "LOCALHOST", "localhost.", "tab.localhost:7080", "[::1]:7080", "[::1]",
    "10.1.2.3:9090", socket.gethostname(), "proxy.example:443", "PROXY.EXAMPLE",
])  # fmt: skip
def test_the_names_of_this_host_and_addresses_are_answered(host: str) -> None:
    assert refused(host=host) == 0


@pytest.mark.parametrize("host", [
    "", "evil.example", "evil.example:7080", "localhost.evil.example", "127.0.0.1.evil.example", "[evil.example]:80",
    "notlocalhost", "127.0.0.1,evil.example", "::1", "1.2.3", "[::1].evil.example", "127.0.0.1@evil.example",
])  # fmt: skip
def test_a_name_that_another_site_may_have_pointed_here_is_refused(host: str) -> None:
    assert refused(host=host) == 421 and refused("/", host=host) == 421


def test_only_the_page_itself_may_ask_for_its_data() -> None:
    assert refused(origin=f"http://{THIS_PAGE}") == refused(sec_fetch_site="same-origin") == refused() == 0
    assert refused(sec_fetch_site="none") == 0, "somebody has typed the address"
    for origin in ("http://evil.example", "null", f"http://{THIS_PAGE}.evil.example", "http://127.0.0.1:7081"):
        assert refused(origin=origin) == 403
    assert refused(sec_fetch_site="cross-site") == refused(sec_fetch_site="same-site") == 403
    assert refused("/", sec_fetch_site="cross-site") == 0, "a link of another site may lead to the page"


def test_scrapers_may_call_the_probes_by_any_name() -> None:
    assert refused("/metrics", host="ecrec-scheduler.default.svc:9090") == refused("/healthz", host="") == 0


def test_a_server_hands_the_headers_to_its_guard_as_they_came() -> None:
    seen: list[Request] = []

    def guard(request: Request) -> None:
        seen.append(request)

    with HttpServer("--http", ("127.0.0.1", 0), {"/": page}, guard) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /?a=1 HTTP/1.1\r\nHOST:  x:1 \r\nX-A: 1\r\nx-a: \xff2\r\nno header\r\n\r\nBody: 1")
            while connection.recv(1 << 16):
                pass
    assert seen == [Request("/", {"host": "x:1", "x-a": "1,ÿ2", "no header": ""})]
