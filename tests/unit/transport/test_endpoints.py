"""What an endpoint can be, and by which address a server is reached."""

import pytest

from ecrec.errors import ConfigurationError
from ecrec.launch.servers.server import advertised, is_elsewhere
from ecrec.transport.endpoints import is_host, parse, tcp


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://127.0.0.1:7000", "127.0.0.1", 7000),
        ("tcp://[::1]:7000", "::1", 7000),
        ("tcp://[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
        ("tcp://ps-0.ecrec.svc.cluster.local:1", "ps-0.ecrec.svc.cluster.local", 1),
        ("tcp://my_host:7000", "my_host", 7000),
        ("tcp://*:7000", "*", 7000),
    ],
)
def test_an_endpoint_is_taken_apart_and_put_together_again(text: str, host: str, port: int) -> None:
    assert parse(text) == (host, port, "")
    assert parse(text).text == tcp(host, port) == text


@pytest.mark.parametrize(
    "bad",
    [
        "tcp://::1:7000", "tcp://[::1:7000", "tcp://[127.0.0.1]:7000", "tcp://[host]:7000", "tcp://:7000",
        "tcp://a b:7000", "tcp://host:\uff17", "tcp://host:000007000", "tcp://300.1.1.1:7000", "tcp://1.2.3:7000",
        "tcp://-host:7000", f"tcp://{'a' * 64}:7000", "tcp://host;eth0:7000", "tcp://[*]:7000", "ipc://", "host:7000",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="expected tcp://HOST:PORT"):
        parse(bad)


def test_hosts_are_names_or_addresses() -> None:
    assert all(map(is_host, ("a", "a.b", "a.b.", "10.0.0.1", "::", "2001:db8::7", "0x1", "a-b", "1and1.com")))
    assert not any(map(is_host, ("", "a..b", "10.0.0.256", "1.2.3", "a/b", "a b", "*", ".", "é.de")))


@pytest.mark.parametrize(
    ("bound", "host", "expected"),
    [
        ("tcp://0.0.0.0:7000", "ps-1.lan", "tcp://ps-1.lan:7000"),
        ("tcp://[::]:7000", "::1", "tcp://[::1]:7000"),
        ("tcp://[::]:7000", "[2001:db8::7]", "tcp://[2001:db8::7]:7000"),
        ("tcp://10.0.0.7:7000", "", "tcp://10.0.0.7:7000"),
        ("ipc:///tmp/a", "", "ipc:///tmp/a"),
    ],
)
def test_the_advertised_endpoint(bound: str, host: str, expected: str) -> None:
    assert advertised(bound, host) == expected


@pytest.mark.parametrize("bad", ["host:7000", "tcp://host", "a b", "0.0.0.0", "::", "*", "[::]", "10.0.0.256"])
def test_what_nobody_could_connect_to_is_not_advertised(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="--advertise"):
        advertised("tcp://0.0.0.0:7000", bad)


@pytest.mark.parametrize("bound", ["tcp://0.0.0.0:7000", "tcp://[::]:7000"])
def test_an_address_that_is_all_addresses_needs_another(bound: str) -> None:
    with pytest.raises(ConfigurationError, match="name one by --advertise HOST"):
        advertised(bound, "")


def test_a_loopback_address_is_no_use_to_a_scheduler_elsewhere() -> None:
    # 192.0.2.0/24 is of documentation, and nobody's (RFC 5737).
    far = "tcp://192.0.2.7:7000"
    for host in ("", "localhost", "::1"):
        with pytest.raises(ConfigurationError, match=r"reached from this machine alone.*--advertise HOST"):
            advertised("tcp://127.0.0.1:7001", host, far)
    assert advertised("tcp://127.0.0.1:7001", "", "tcp://127.0.0.1:7000") == "tcp://127.0.0.1:7001"
    assert advertised("tcp://0.0.0.0:7001", "ps-1", far) == "tcp://ps-1:7001"


def test_whether_a_scheduler_is_on_another_machine() -> None:
    assert is_elsewhere("tcp://192.0.2.7:7000")
    assert not is_elsewhere("tcp://127.0.0.1:7000")
    assert not is_elsewhere("tcp://localhost:7000")
    assert not is_elsewhere("tcp://name.invalid:7000"), "nothing is known of it"
