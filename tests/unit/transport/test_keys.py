"""Keys: who gets in, who does not, and as what."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from fakes import DEADLINE_S, FakeMachine, pump

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.events import Connect, Send
from ecrec.transport.client_node import query
from ecrec.transport.curve import CurveKeys, generate
from ecrec.transport.endpoints import is_loopback
from ecrec.transport.links import Linked, Links
from ecrec.transport.node import Node

A = m.Address(m.SHARD, 0, 1)
B = m.Address(m.SHARD, 1, 1)
WORKER = m.Address(m.WORKER, 0, 1)
SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
NOTHING_MS = 300
"""Long enough for a connection to be made and a message to arrive, were it let in."""


@pytest.fixture
def servers(tmp_path: Path) -> Path:
    generate(tmp_path / "servers", "servers")
    return tmp_path / "servers"


@pytest.fixture
def alice(servers: Path) -> Path:
    """A worker's directory; its key is allowed."""
    generate(servers.parent / "alice", "alice", servers)
    return servers.parent / "alice"


@pytest.fixture
def make() -> Iterator:
    """Makes nodes with keys; closes them all."""
    made: list[Node] = []

    def node(address: m.Address, directory: Path | None, bind: str | None = "tcp://127.0.0.1:0"):
        machine = FakeMachine(address)
        keys = CurveKeys.load(directory) if directory else None
        made.append(Node(machine, Links(bind, keys)))
        return made[-1], machine

    yield node
    for each in made:
        each.close()


def stays_out(shard: Node, machine: FakeMachine, client: Node) -> None:
    """The client's messages do not arrive."""
    client.perform([Connect(A, shard.links.endpoint), Send(A, m.Hello(1))])
    end = time.monotonic() + NOTHING_MS / 1e3
    while time.monotonic() < end:
        shard.step(5)
        client.step(5)
    assert machine.events == []


def gets_in(shard: Node, machine: FakeMachine, client: Node) -> None:
    before = len(machine.events)
    client.perform([Connect(A, shard.links.endpoint), Send(A, m.Hello(1))])
    pump([shard, client], lambda: len(machine.events) > before)


# ------------------------------------------------------------------ connections
def test_servers_talk_to_each_other(make, servers) -> None:
    (a, machine_a), (b, machine_b) = make(A, servers), make(B, servers)
    a.perform([Connect(B, b.links.endpoint), Send(B, m.Captured(0, 1), (bytes(200_000), b"x"))])
    b.perform([Connect(A, a.links.endpoint), Send(A, m.Stable(1))])
    pump([a, b], lambda: machine_a.events and machine_b.events)
    assert bytes(machine_b.received[0].frames[0]) == bytes(200_000)


def test_an_allowed_client_is_served(make, servers, alice) -> None:
    (shard, machine), (worker, answers) = make(A, servers), make(WORKER, alice, None)
    machine.on_received = lambda event: [Send(event.source, m.Welcome(0, 0))]
    gets_in(shard, machine, worker)
    pump([shard, worker], lambda: answers.events)


def test_a_connection_is_made_while_the_server_does_something_else(make, servers) -> None:
    """A server in a long push must not seem dead because a connection to it broke: the handshake needs no loop."""
    (busy, _), (other, _) = make(A, servers), make(B, servers)
    other.links.connect(A, busy.links.endpoint, watched=True)
    happened: list[object] = []
    end = time.monotonic() + DEADLINE_S
    while not happened and time.monotonic() < end:
        happened += other.links.poll(5)
    assert happened == [Linked(A, again=False)]


def test_a_client_without_a_key_gets_nothing_and_is_logged(make, servers, caplog) -> None:
    (shard, machine), (worker, _) = make(A, servers), make(WORKER, None, None)
    stays_out(shard, machine, worker)
    assert "it does not speak CURVE encryption" in caplog.text


def test_a_client_whose_key_is_not_on_the_list_gets_nothing_and_is_logged(make, servers, alice, caplog) -> None:
    (servers / "allowed" / "alice.key").unlink()
    (shard, machine), (worker, _) = make(A, servers), make(WORKER, alice, None)
    stays_out(shard, machine, worker)
    public = CurveKeys.load(alice).public.decode()
    assert f"refused a connection from 127.0.0.1: key {public!r} is not allowed" in caplog.text


def test_a_client_that_expects_another_server_gets_nothing(make, servers, alice, tmp_path) -> None:
    """It would otherwise send its rows to whoever listens there."""
    generate(tmp_path / "impostor", "servers")
    (tmp_path / "impostor" / "allowed" / "alice.key").write_bytes((alice / "own.key").read_bytes())
    (shard, machine), (worker, _) = make(A, tmp_path / "impostor"), make(WORKER, alice, None)
    stays_out(shard, machine, worker)


def test_a_client_with_a_key_tells_nothing_to_a_server_without(make, alice) -> None:
    (shard, machine), (worker, _) = make(A, None), make(WORKER, alice, None)
    stays_out(shard, machine, worker)


def test_an_empty_list_lets_nobody_in(make, servers, alice) -> None:
    for key in (servers / "allowed").iterdir():
        key.unlink()
    (shard, machine), (worker, _) = make(A, servers), make(WORKER, alice, None)
    stays_out(shard, machine, worker)


def test_a_key_is_allowed_and_no_longer_allowed_without_a_restart(make, servers, alice) -> None:
    listed = servers / "allowed" / "alice.key"
    certificate = listed.read_bytes()
    listed.unlink()
    (shard, machine), (early, _) = make(A, servers), make(WORKER, alice, None)
    stays_out(shard, machine, early)
    listed.write_bytes(certificate)
    gets_in(shard, machine, make(WORKER, alice, None)[0])
    listed.unlink()
    machine.events.clear()
    stays_out(shard, machine, make(WORKER, alice, None)[0])


def test_a_file_that_is_no_key_locks_nobody_out(make, servers, alice) -> None:
    (servers / "allowed" / "aaa.key").write_bytes(b"\xff" * 5000)
    (servers / "allowed" / "bbb.key").write_text('public-key = "too short"')
    (shard, machine), (worker, _) = make(A, servers), make(WORKER, alice, None)
    gets_in(shard, machine, worker)


@pytest.mark.parametrize("source", [SCHEDULER, B])
def test_a_worker_that_says_it_is_a_server_is_not_heard(make, servers, alice, source, caplog) -> None:
    shard, machine = make(A, servers)
    keys = CurveKeys.load(alice)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
        dealer.curve_serverkey = keys.server_key(shard.links.endpoint)
        dealer.connect(shard.links.endpoint)
        dealer.send_multipart(wire.encode(m.Fenced("go away"), (), source, A, 1))
        dealer.send_multipart(wire.encode(m.Hello(1), (), WORKER, A))
        pump([shard], lambda: machine.events)
    assert [event.message for event in machine.received] == [m.Hello(1)]
    assert "client alice 127.0.0.1: it says that it is" in caplog.text


def test_a_query_with_a_wrong_key_says_what_may_be_wrong(make, servers, alice) -> None:
    (shard, _) = make(SCHEDULER, servers)
    for keys, says in ((None, "ECREC_CURVE_DIR"), (CurveKeys.load(alice), "is this one allowed")):
        with pytest.raises(ClusterError, match=says):
            query(shard.links.endpoint, m.ClusterQuery(0), 100, keys)


# ------------------------------------------------------------------ directories
def test_only_the_owner_can_read_a_secret_key(servers, alice) -> None:
    for directory in (servers, alice):
        assert stat.S_IMODE((directory / "own.key_secret").stat().st_mode) == 0o600
        secret = CurveKeys.load(directory).secret.decode()
        others = [path for path in directory.rglob("*.key") if secret in path.read_text()]
        assert others == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("mode", "group", "fits"), [(0o440, 77, True), (0o444, 77, False), (0o440, 78, False)])
def test_a_secret_that_kubernetes_mounts_for_the_group_of_its_user_is_taken(
    servers, mode: int, group: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = servers / "own.key_secret"
    os.chown(path, 0, group)
    path.chmod(mode)
    monkeypatch.setattr(os, "getuid", lambda: 77)
    monkeypatch.setattr(os, "getgid", lambda: 77)
    monkeypatch.setattr(os, "getgroups", lambda: [])
    if fits:
        CurveKeys.load(servers)
    else:
        with pytest.raises(ConfigurationError, match="others may read this secret key"):
            CurveKeys.load(servers)


def test_a_secret_key_that_others_can_read_is_refused(servers) -> None:
    (servers / "own.key_secret").chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"others may read this secret key \(mode 0640\).*chmod 600"):
        CurveKeys.load(servers)


def test_a_directory_without_a_key_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory; make a directory of keys by"):
        CurveKeys.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "public-key = x", 'public-key = "' + "~" * 40 + '"', "\0" * 100])
def test_a_file_that_is_no_certificate_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / "own.key_secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not a CURVE certificate"):
        CurveKeys.load(tmp_path)


def test_keys_are_not_written_over(servers) -> None:
    before = (servers / "own.key_secret").read_bytes()
    with pytest.raises(ConfigurationError, match="exists: it is not written over"):
        generate(servers, "servers")
    assert (servers / "own.key_secret").read_bytes() == before


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "a b", "ä"])
def test_a_name_that_is_no_name(tmp_path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected letters, digits"):
        generate(tmp_path / "x", name)
    assert not (tmp_path / "x").exists()


def test_a_directory_that_cannot_be_joined_or_written(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="expected the directory of servers"):
        generate(tmp_path / "x", "alice", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written: Not a directory"):
        generate(tmp_path / "file" / "x", "servers")


def test_a_server_may_have_a_key_of_its_own(servers, tmp_path) -> None:
    generate(tmp_path / "ps3", "ps3")
    (servers / "servers" / "ps3.example.key").write_bytes((tmp_path / "ps3" / "own.key").read_bytes())
    keys = CurveKeys.load(servers)
    assert keys.server_key("tcp://ps3.example:7070") == CurveKeys.load(tmp_path / "ps3").public
    for endpoint in ("tcp://other:7070", "ipc:///run/x", "tcp://../../own:1", f"tcp://{'x' * 5000}:1"):
        assert keys.server_key(endpoint) == keys.public


def test_a_server_without_any_known_key_is_not_connected_to(servers) -> None:
    (servers / "servers" / "default.key").unlink()
    with pytest.raises(ConfigurationError, match=r"no public key of the server at tcp://h:1: .*servers/h.key or "):
        CurveKeys.load(servers).server_key("tcp://h:1")


# ------------------------------------------------------------------ without keys
@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0", "tcp://192.0.2.1:1", "tcp://eth0:0"])
def test_without_keys_a_node_listens_to_its_own_machine_alone(bind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--curve-dir DIR .* tcp://127.0.0.1:PORT, .*--allow-plain-network"):
        Links(bind)


def test_without_keys_a_node_listens_to_others_when_told_so() -> None:
    Links("tcp://0.0.0.0:0", plain_network=True).close()


def test_with_keys_a_node_listens_to_others(servers) -> None:
    Links("tcp://0.0.0.0:0", CurveKeys.load(servers)).close()


@pytest.mark.parametrize(
    "bind", ["tcp://127.0.0.1:0", "tcp://127.8.9.1:0", "tcp://localhost:0", "tcp://[::1]:0", "ipc:///x"]
)
def test_what_only_this_machine_reaches(bind: str) -> None:
    assert is_loopback(bind)


def test_an_open_file_descriptor_does_not_stay_behind(make, servers, alice) -> None:
    links = Links("tcp://127.0.0.1:0", CurveKeys.load(servers))
    links.close()
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Links("tcp://127.0.0.1:0", CurveKeys.load(servers)).close()
    assert len(os.listdir("/proc/self/fd")) == count
