"""The small HTTP server: what it answers, and what hostile bytes and clients can cost."""

import http.client
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pages import get

from ecrec.errors import ConfigurationError
from ecrec.launch import http_server
from ecrec.launch.http_server import CONNECTIONS_MAX, REQUEST_BYTES_MAX, HttpServer, parse_address, text
from ecrec.launch.watched import COUNTER, GAUGE, HUNG_S, Metric, Snapshot, Watched, counter, gauge


def broken() -> Any:
    raise RuntimeError("a bug")


@pytest.fixture
def server() -> Iterator[HttpServer]:
    routes = {"/ok": lambda: text(200, "fine"), "/long": lambda: text(200, "x" * 3_000_000), "/broken": broken}
    with HttpServer("--http", ("127.0.0.1", 0), routes) as made:
        yield made


def port(server: HttpServer) -> int:
    return int(server.url.rpartition(":")[2])


def talk(server: HttpServer, *pieces: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
        read = b""
        try:
            while data := connection.recv(1 << 16):
                read += data
        except ConnectionResetError:
            pass
        return read


def test_paths_are_answered_and_others_are_named(server: HttpServer) -> None:
    assert get(f"{server.url}/ok") == (200, "fine\n")
    assert get(f"{server.url}/ok?x=1") == (200, "fine\n")
    assert get(f"{server.url}/long") == (200, "x" * 3_000_000 + "\n")
    assert get(f"{server.url}/no") == (404, "there are /ok, /long, /broken\n")
    assert get(f"{server.url}/broken")[0] == 500
    assert get(f"{server.url}/ok") == (200, "fine\n")


def test_head_has_no_body_and_nothing_is_changed_by_others(server: HttpServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=10)
    connection.request("HEAD", "/ok")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Content-Length"), answer.read()) == (200, "5", b"")
    connection.close()
    for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT"):
        assert talk(server, method + b" /ok HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    "line",
    [b"", b"GET", b"GET /ok", b"GET  /ok HTTP/1.1", b"GET ok HTTP/1.1", b"get /ok HTTP/1.1", b"GET /ok HTTP/2",
     b"\0\xff",     b"GET /\xff HTTP/1.1", b"GET http://x/ok HTTP/1.1", b"GET /o k HTTP/1.1", b"\x16\x03\x01\x02\x00"],
)  # fmt: skip
def test_what_is_no_request_is_refused(server: HttpServer, line: bytes) -> None:
    assert talk(server, line + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_request_without_an_end_costs_no_more_than_its_limit(server: HttpServer) -> None:
    answer = talk(server, b"GET /ok HTTP/1.1\r\n", *[b"X: " + b"y" * 1000 + b"\r\n"] * (2 * REQUEST_BYTES_MAX // 1000))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert get(f"{server.url}/ok") == (200, "fine\n")


def test_a_request_may_come_byte_by_byte(server: HttpServer) -> None:
    request = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
    assert talk(server, *[request[i : i + 1] for i in range(len(request))]).endswith(b"\r\n\r\nfine\n")


def test_random_bytes_end_nothing(server: HttpServer) -> None:
    rng = random.Random(7)
    for _ in range(50):
        talk(server, rng.randbytes(rng.randrange(1, 3000)) + b"\n\n")
    assert get(f"{server.url}/ok") == (200, "fine\n")


def test_open_connections_keep_no_probe_out(server: HttpServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", port(server)), timeout=10) for _ in range(3 * CONNECTIONS_MAX)]
    try:
        assert get(f"{server.url}/ok") == (200, "fine\n")
        assert len(server._open) <= CONNECTIONS_MAX
    finally:
        for each in idle:
            each.close()


def test_a_client_that_says_or_reads_nothing_is_ended(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_S", 0.2)
    with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as silent:
        assert silent.recv(1) == b""
    with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /long HTTP/1.1\r\n\r\n")
        deadline = time.monotonic() + 10
        while server._open:
            assert time.monotonic() < deadline
            get(f"{server.url}/ok")


def test_a_busy_port_and_a_wrong_address_are_errors_that_name_the_option() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigurationError, match=r"--http 127\.0\.0\.1:\d+: cannot .*: Address already in use"),
    ):
        HttpServer("--http", ("127.0.0.1", taken.getsockname()[1]), {})
    for wrong in ("9090", ":9090", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "::1:80", "[127.0.0.1]:80", "a b:1"):
        with pytest.raises(ConfigurationError, match=r"--http .*expected HOST:PORT"):
            parse_address("--http", wrong)
    assert parse_address("--http", "[::1]:80", 3) == ("::1", 83) and parse_address("--http", "h:0", 3) == ("h", 0)
    with pytest.raises(ConfigurationError, match=r"--http no-such-host\.invalid:0: cannot listen there: "):
        HttpServer("--http", ("no-such-host.invalid", 0), {})


def test_it_listens_at_addresses_of_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with HttpServer("--http", ("::1", 0), {"/ok": lambda: text(200, "6")}) as server:
        assert server.url.startswith("http://[::1]:") and get(f"{server.url}/ok") == (200, "6\n")
    with HttpServer("--http", ("::", 0), {"/ok": lambda: text(200, "both")}) as server:
        for host in ("127.0.0.1", "[::1]"):
            assert get(f"http://{host}:{port(server)}/ok") == (200, "both\n")


# ------------------------------------------------------------------ the pages
def test_a_process_is_healthy_while_its_loop_goes_on_and_ready_when_it_says_so() -> None:
    now = [time.monotonic()]
    snapshot = [Snapshot("it recovers")]
    watched = Watched(lambda: snapshot[0], lambda: now[0])
    assert watched.healthz().status == 200 and watched.readyz() == text(503, "it recovers")
    snapshot[0] = Snapshot("")
    assert watched.readyz().status == 200
    now[0] -= HUNG_S + 1
    assert watched.healthz().status == 503 and b"has made no step for 31 s" in watched.healthz().body


def test_metrics_are_what_prometheus_reads() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    metrics = [
        counter("ecrec_pushes_total", "Pushes.", 7),
        gauge("ecrec_view", "View.", 3),
        Metric(GAUGE, "ecrec_shards", "Shards.", [({"state": "up"}, 4), ({"state": 'a "b"\n\\'}, 1)]),
        Metric(COUNTER, "ecrec_none_total", "None yet.", []),
    ]
    answer = Watched(lambda: Snapshot("", metrics)).metrics()
    assert answer.status == 200 and answer.kind.startswith("text/plain; version=0.0.4")
    families = {each.name: each for each in parser.text_string_to_metric_families(answer.body.decode())}
    assert families["ecrec_pushes"].type == "counter" and families["ecrec_pushes"].samples[0].value == 7
    assert [(s.labels, s.value) for s in families["ecrec_shards"].samples] == [
        ({"state": "up"}, 4.0),
        ({"state": 'a "b"\n\\'}, 1.0),
    ]
    assert families["ecrec_none"].samples == [] and "process_resident_memory_bytes" in families


def test_without_prometheus_client_the_page_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecrec.launch.watched._registry", lambda metrics: None)
    answer = Watched(lambda: Snapshot("")).metrics()
    assert answer.status == 501 and b'pip install "ecrec[metrics]"' in answer.body
