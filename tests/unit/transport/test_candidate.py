"""A candidate against a ZooKeeper in memory whose answers can be lost."""

import itertools
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("kazoo", reason="the extra zookeeper is not installed")
from kazoo.exceptions import (
    BadVersionError,
    ConnectionLoss,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    RolledBackError,
    RuntimeInconsistency,
)

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.transport import zookeeper as zookeeper_module
from ecrec.transport.leadership import DeposedError, Location
from ecrec.transport.zookeeper import PIECE_BYTES, Candidate, ZooKeeperWatch, pack_state, unpack_state

SESSION_MS = 60_000


class Answer:
    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self, timeout: float | None = None) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Transaction:
    def __init__(self, client: "FakeClient") -> None:
        self.client = client
        self.operations: list[tuple[Any, ...]] = []

    def check(self, *arguments: Any) -> None:
        self.operations.append(("check", *arguments))

    def create(self, *arguments: Any) -> None:
        self.operations.append(("create", *arguments))

    def set_data(self, *arguments: Any) -> None:
        self.operations.append(("set", *arguments))

    def commit_async(self) -> Answer:
        return self.client.answer(lambda: self.client.commit(self.operations))


class FakeClient:
    """The part of KazooClient that a candidate uses; many may share ``nodes``: path -> (data, version, owner)."""

    sessions = itertools.count(1)

    def __init__(self, nodes: dict[str, tuple[bytes, int, int]]) -> None:
        self.nodes = nodes
        self.client_id = (next(self.sessions), b"")
        self.connected = True
        self.faults: list[str] = []
        """Of the next requests in turn: ``before`` (not carried out), ``after`` (answer lost), ``denied``, ``""``."""
        self.listeners: list[Any] = []

    def add_listener(self, listener: Any) -> None:
        self.listeners.append(listener)

    def start_async(self) -> None:
        pass

    def stop(self) -> None:
        self.connected = False

    def close(self) -> None:
        pass

    def answer(self, carry_out: Any) -> Answer:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            return Answer(ConnectionLoss())
        if fault == "denied":
            return Answer(NoAuthError())
        try:
            value = carry_out()
        except Exception as error:
            value = error
        return Answer(ConnectionLoss()) if fault == "after" else Answer(value)

    def find(self, path: str) -> tuple[bytes, int, int]:
        if path not in self.nodes:
            raise NoNodeError
        return self.nodes[path]

    def make(self, path: str, data: bytes, owner: int = 0) -> str:
        if path in self.nodes:
            raise NodeExistsError
        self.nodes[path] = (data, 0, owner)
        return path

    def stat(self, path: str) -> Any:
        _, version, owner = self.find(path)
        return SimpleNamespace(version=version, ephemeralOwner=owner)

    def sync_async(self, path: str) -> Answer:
        return Answer(path)

    def exists_async(self, path: str, watch: Any = None) -> Answer:
        return Answer(self.stat(path) if path in self.nodes else None)

    def get_async(self, path: str) -> Answer:
        return self.answer(lambda: (self.find(path)[0], self.stat(path)))

    def get_children_async(self, path: str) -> Answer:
        return Answer([node.removeprefix(f"{path}/") for node in self.nodes if node.startswith(f"{path}/")])

    def create_async(
        self, path: str, data: bytes, ephemeral: bool = False, sequence: bool = False, makepath: bool = False
    ) -> Answer:
        name = path + f"{len(self.nodes):010d}" if sequence else path
        return self.answer(lambda: self.make(name, data, self.client_id[0] if ephemeral else 0))

    def delete_async(self, path: str) -> Answer:
        return self.answer(lambda: self.nodes.pop(path, None))

    def transaction(self) -> Transaction:
        return Transaction(self)

    def commit(self, operations: list[tuple[Any, ...]]) -> list[Any]:
        results: list[Any] = []
        for kind, path, data, *rest in operations:
            there = self.nodes.get(path)
            wanted = data if kind == "check" else (rest or [-1])[0]
            if kind == "create":
                failure = NodeExistsError() if there else None
            else:
                failure = NoNodeError() if not there else BadVersionError() if wanted not in (-1, there[1]) else None
            if failure is not None:
                late = len(operations) - len(results) - 1
                return [RolledBackError() for _ in results] + [failure] + [RuntimeInconsistency()] * late
            results.append(True)
        for at, (kind, path, data, *_) in enumerate(operations):
            if kind != "check":
                version = self.nodes[path][1] + 1 if kind == "set" else 0
                self.nodes[path] = (data, version, 0)
                results[at] = SimpleNamespace(version=version) if kind == "set" else path
        return results


def make(nodes: dict[str, tuple[bytes, int, int]]) -> tuple[Candidate, FakeClient]:
    """A candidate that is elected, its election not running."""
    client = FakeClient(nodes)
    made = Candidate(Location("h:1", "/e"), SESSION_MS, client)
    while not made._place:
        made._try_place()
    return made, client


def leading(nodes: dict[str, tuple[bytes, int, int]]) -> tuple[Candidate, FakeClient]:
    made, client = make(nodes)
    made.load()
    assert made.claim("tcp://h:7070")
    return made, client


def end(client: FakeClient) -> None:
    """Its session is over, and it has not heard of it."""
    for path in [path for path, node in client.nodes.items() if node[2] == client.client_id[0]]:
        del client.nodes[path]


# ------------------------------------------------------------------ packing
@pytest.mark.parametrize("size", [0, 1, 1000, PIECE_BYTES, 3 * PIECE_BYTES + 1])
def test_states_are_packed_whole(size: int) -> None:
    state = os.urandom(size)
    head, pieces = pack_state(state, 2, 5)
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces) and len(head.inline) <= PIECE_BYTES
    assert unpack_state(head, pieces) == state
    if pieces:
        with pytest.raises(ConfigurationError, match="term 2, write 5 is damaged"):
            unpack_state(head, pieces[::-1] if size else [])
        with pytest.raises(ConfigurationError, match="is damaged"):
            unpack_state(head, pieces[:-1])


def test_before_the_first_state_there_is_none() -> None:
    assert unpack_state(*pack_state(None, 1, 0)) is None


# ------------------------------------------------------------------ writes whose answers are lost
@pytest.mark.parametrize("faults", [["before"], ["after"], ["after", "before"], ["before", "after", "after"]])
def test_a_write_without_an_answer_is_settled(faults: list[str]) -> None:
    leader, client = leading({})
    client.faults = list(faults)
    leader.save(b"one")
    leader.save(b"two")
    assert leader.load() == b"two"
    assert leader.term > 1_700_000_000, "also where the nodes of earlier leaders are gone"


@pytest.mark.parametrize("faults", [[fault] * count for fault in ("before", "after") for count in (1, 2, 3)])
def test_a_claim_without_an_answer_is_settled(faults: list[str]) -> None:
    candidate, client = make({})
    candidate.load()
    client.faults = list(faults)
    assert candidate.claim("tcp://h:7070")
    candidate.save(b"one")
    assert candidate.load() == b"one"


def test_pieces_whose_answers_are_lost_are_written_once() -> None:
    leader, client = leading({})
    state = os.urandom(3 * PIECE_BYTES)
    client.faults = ["after", "before", "", "after"]
    leader.save(state)
    assert leader.load() == state
    leader.save(b"small")
    assert not [path for path in client.nodes if path.startswith("/e/pieces/")]


def test_what_a_dead_leader_left_is_swept_by_the_next() -> None:
    nodes: dict[str, tuple[bytes, int, int]] = {}
    first, client = leading(nodes)
    state = os.urandom(2 * PIECE_BYTES)
    first.save(state)
    client.make("/e/pieces/1-99-0", b"of a write that was not finished")
    end(client)
    second, _ = leading(nodes)
    assert second.load() == state
    assert "/e/pieces/1-99-0" not in nodes
    assert second.term > first.term


# ------------------------------------------------------------------ deposed
def test_a_leader_whose_place_is_gone_writes_nothing() -> None:
    leader, client = leading({})
    leader.save(b"one")
    end(client)
    with pytest.raises(DeposedError, match="its place in the election"):
        leader.save(b"two")
    with pytest.raises(DeposedError):
        leader.may_act(0.0)
    other, _ = make(client.nodes)
    assert other.load() == b"one"


def test_a_leader_deposed_with_the_answer_lost_does_not_take_the_others_write_for_its_own() -> None:
    nodes: dict[str, tuple[bytes, int, int]] = {}
    old, client = leading(nodes)
    old.save(b"same")
    end(client)
    new, _ = leading(nodes)
    new.save(b"same")
    client.faults = ["after"]
    with pytest.raises(DeposedError):
        old.save(b"same")


def test_of_two_that_both_believe_in_their_place_only_the_last_to_claim_writes() -> None:
    old, client = leading({})
    old.save(b"one")
    new = Candidate(Location("h:1", "/e"), SESSION_MS, client)
    new._place, new._confirmed_s = old._place, old._confirmed_s
    new.load()
    old.save(b"two")
    assert not new.claim("tcp://n:1"), "what it has loaded is not the newest"
    assert new.load() == b"two"
    assert new.claim("tcp://n:1")
    assert new.term > old.term
    with pytest.raises(DeposedError, match="another scheduler has written the state"):
        old.save(b"three")
    assert new.load() == b"two"


def test_a_session_that_is_over_ends_the_lease_at_once() -> None:
    leader, _ = leading({})
    assert leader.may_act(0.0)
    leader._on_state("SUSPENDED")
    assert leader.may_act(0.0)
    leader._on_state("LOST")
    with pytest.raises(DeposedError, match="its session with ZooKeeper is over"):
        leader.may_act(0.0)


def test_the_lease_is_half_a_session_from_when_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(zookeeper_module, "_now_s", lambda: now[0])
    leader, _ = leading({})
    now[0] += SESSION_MS / 2000 - 1
    assert leader.may_act(0.0)
    now[0] += 1
    assert not leader.may_act(0.0)
    leader._confirm()
    assert leader.may_act(0.0)
    now[0] += SESSION_MS / 1000
    with pytest.raises(DeposedError, match="ZooKeeper has confirmed nothing for 60"):
        leader.may_act(0.0)
    with pytest.raises(DeposedError):
        leader.save(b"x")


def test_a_refusal_of_zookeeper_is_told() -> None:
    leader, client = leading({})
    client.faults = ["denied"]
    with pytest.raises(ClusterError, match="refuses a request: NoAuthError"):
        leader.save(b"x")


# ------------------------------------------------------------------ the election
def test_the_first_one_leads_and_the_next_follows() -> None:
    nodes: dict[str, tuple[bytes, int, int]] = {}
    first, client = make(nodes)
    second = Candidate(Location("h:1", "/e"), SESSION_MS, FakeClient(nodes))
    for _ in range(3):
        second._try_place()
    assert not second._place and not second.may_act(0.0)
    end(client)
    assert first._confirm() == 0.0
    with pytest.raises(DeposedError):
        first.may_act(0.0)
    second._try_place()
    assert second.may_act(0.0)


def test_a_place_left_from_a_session_before_does_not_lead() -> None:
    client = FakeClient({})
    candidate = Candidate(Location("h:1", "/e"), SESSION_MS, client)
    candidate._try_place()
    client.client_id = (next(FakeClient.sessions), b"")
    candidate._try_place()
    assert not candidate._place


# ------------------------------------------------------------------ a stored state that cannot be read
def test_a_state_of_another_version_is_refused() -> None:
    candidate, client = make({})
    client.make("/e/state", b"nonsense")
    with pytest.raises(ConfigurationError, match="/e/state: not written by this version of ecrec"):
        candidate.load()
    client.nodes["/e/state"] = (zookeeper_module._encode(zookeeper_module.Head(99, 1, 1, 0, b"")), 0, 0)
    with pytest.raises(ConfigurationError, match="format 99, expected 1"):
        candidate.load()


def test_a_missing_piece_is_told() -> None:
    leader, client = leading({})
    leader.save(os.urandom(2 * PIECE_BYTES))
    del client.nodes[f"/e/pieces/{leader.term}-1-1"]
    with pytest.raises(ConfigurationError, match="a piece of the state is missing"):
        leader.load()


# ------------------------------------------------------------------ members
def test_a_member_takes_only_newer_leaders_with_an_endpoint() -> None:
    watch = ZooKeeperWatch.__new__(ZooKeeperWatch)
    watch._path, watch._leader, watch._lock = "/e/leader", (0, ""), threading.Lock()
    for leader in ((2, "tcp://b:1"), (1, "tcp://a:1"), (3, "nonsense"), "x"):
        watch._take(zookeeper_module._encode(leader))
        assert watch.endpoint == "tcp://b:1"
    watch._take(b"")
    watch._take(zookeeper_module._encode((4, "ipc:///d")))
    assert watch.endpoint == "ipc:///d"
