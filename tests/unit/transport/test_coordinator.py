"""Names of coordinators, and a node that leads only while it is elected."""

import subprocess
import sys

import pytest
from fakes import pump

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.events import Persist, Send, Tick
from ecrec.transport import node as node_module
from ecrec.transport.coordinator import candidate, is_coordinator, parse, watch_leader
from ecrec.transport.leadership import DeposedError, Location

SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
WORKER = m.Address(m.WORKER, 0, 1)
SHARD = m.Address(m.SHARD, 0, 1)


# ------------------------------------------------------------------ names
def test_names_that_can_be() -> None:
    assert parse("zk://host:2181/ecrec") == Location("host:2181", "/ecrec")
    assert parse("zk://a:1,b.c:2,[::1]:3/x/y-1/") == Location("a:1,b.c:2,[::1]:3", "/x/y-1")
    assert is_coordinator("zk://x") and not is_coordinator("tcp://host:1")


@pytest.mark.parametrize(
    "name",
    ["zk://", "zk://host/ecrec", "zk://host:2181", "zk://host:2181/", "zk://host:0/e", "zk://h:70000/e", "zk://h:1,/e",
     "zk://h:1/a//b", "zk://h:1/a b", "tcp://h:1/e"],
)  # fmt: skip
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected zk://HOST:PORT"):
        parse(name)


@pytest.mark.parametrize("what", ["watch_leader('zk://h:1/e')", "candidate('zk://h:1/e', 1000)"])
def test_without_kazoo_it_says_what_to_install(what: str) -> None:
    code = f"import sys; sys.modules['kazoo'] = None\nfrom ecrec.transport.coordinator import *\n{what}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert 'ConfigurationError: zk://h:1/e: ZooKeeper needs kazoo: pip install "ecrec[zookeeper]"' in done.stderr
    for call in (watch_leader, lambda name: candidate(name, 1000)):
        with pytest.raises(ConfigurationError, match="expected zk://HOST:PORT"):
            call("zk://nowhere")


def test_nothing_imports_kazoo_before_it_is_needed() -> None:
    programs = "ecrec.launch.servers.scheduler, ecrec.launch.servers.ps, ecrec.cli"
    code = f"import sys, {programs}; sys.exit('kazoo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# ------------------------------------------------------------------ a node that may be deposed
class FakeStore:
    """A `StateStore` that does as a test says."""

    def __init__(self, term: int = 1) -> None:
        self.term = term
        self.acts = True
        self.over = False
        self.saved: list[bytes] = []
        self.asked = 0

    def may_act(self, wait_ms: float) -> bool:
        self.asked += 1
        if self.over:
            raise DeposedError("over")
        return self.acts

    def save(self, state: bytes) -> None:
        self.saved.append(state)

    def note(self, level: str, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def status(number: int) -> m.WorkerStatus:
    return m.WorkerStatus("p", [number], {})


def test_effects_after_a_failed_persist_are_not_carried_out(node) -> None:
    (worker, machine), store = node(WORKER, None), FakeStore()
    leader, leading = node(SCHEDULER, state_store=store)
    worker.links.connect(SCHEDULER, leader.links.endpoint)
    leading.on_received = lambda event: [Persist(b"x"), Send(WORKER, m.Fenced("first"))]
    worker.perform([Send(SCHEDULER, status(1))])
    pump([worker, leader], lambda: bool(machine.received))
    assert store.saved == [b"x"]
    # The lease holds, but another one has written.
    leading.on_received = lambda event: [Persist(b"y"), Send(WORKER, m.Fenced("second"))]

    def refuse(state: bytes) -> None:
        raise DeposedError("another one has written")

    store.save = refuse
    worker.perform([Send(SCHEDULER, status(2))])
    with pytest.raises(DeposedError):
        pump([leader], lambda: False)
    worker.step(100)
    worker.step(100)
    assert [event.message.reason for event in machine.received] == ["first"]
    assert store.saved == [b"x"]


def test_a_scheduler_whose_lease_is_open_handles_nothing(node) -> None:
    (worker, _), store = node(WORKER, None), FakeStore()
    leader, leading = node(SCHEDULER, state_store=store)
    worker.links.connect(SCHEDULER, leader.links.endpoint)
    leader.step(0)
    assert leading.others == [Tick()]
    store.acts = False
    worker.perform([Send(SCHEDULER, status(1))])

    def deposed_at_100(wait_ms: float, may_act=store.may_act) -> bool:
        store.over = store.asked == 100
        return may_act(wait_ms)

    store.may_act = deposed_at_100
    with pytest.raises(DeposedError):
        pump([leader], lambda: False)
    assert store.asked > 100
    assert not leading.received and leading.others == [Tick()]


def test_a_scheduler_goes_on_when_its_lease_is_confirmed_and_keeps_what_came(node) -> None:
    (worker, _), store = node(WORKER, None), FakeStore()
    leader, leading = node(SCHEDULER, state_store=store)
    worker.links.connect(SCHEDULER, leader.links.endpoint)
    store.acts = False
    may_act = store.may_act

    def confirmed_at_20(wait_ms: float) -> bool:
        store.acts = store.asked >= 20
        return may_act(wait_ms)

    store.may_act = confirmed_at_20
    for number in range(3):
        worker.perform([Send(SCHEDULER, status(number))])
    pump([worker, leader], lambda: len(leading.received) == 3)
    assert [event.message.views for event in leading.received] == [[0], [1], [2]]


def test_a_scheduler_that_waits_for_its_lease_can_be_stopped(node) -> None:
    store = FakeStore()
    leader, leading = node(SCHEDULER, state_store=store)
    store.acts = False
    leader.request_stop()
    leader.step(0)
    assert not leading.others


# ------------------------------------------------------------------ terms
def test_who_has_heard_of_a_newer_leader_drops_messages_of_an_older_one(node) -> None:
    shard, machine = node(SHARD)
    old, _ = node(SCHEDULER, state_store=FakeStore(term=3))
    new, _ = node(SCHEDULER, state_store=FakeStore(term=4))
    for each in (old, new):
        each.links.connect(SHARD, shard.links.endpoint)
    old.perform([Send(SHARD, m.Fenced("of 3"))])
    pump([shard], lambda: len(machine.received) == 1)
    new.perform([Send(SHARD, m.Fenced("of 4"))])
    pump([shard], lambda: len(machine.received) == 2)
    old.perform([Send(SHARD, m.Fenced("of 3, late"))])
    for _ in range(5):
        shard.step(20)
    new.perform([Send(SHARD, m.Fenced("of 4 again"))])
    pump([shard], lambda: len(machine.received) == 3)
    assert [event.message.reason for event in machine.received] == ["of 3", "of 4", "of 4 again"]
    assert {event.source for event in machine.received} == {SCHEDULER}, "terms are not the machines' business"


# ------------------------------------------------------------------ members
class FakeWatch:
    def __init__(self) -> None:
        self.endpoint = ""
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_a_member_follows_the_leader(node, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = FakeWatch()
    monkeypatch.setattr(node_module, "watch_leader", lambda name: watch)
    worker, _ = node(WORKER, None, scheduler_endpoint="zk://h:1/e")
    (first, one), (second, two) = node(SCHEDULER), node(SCHEDULER)
    worker.perform([Send(SCHEDULER, status(0))])  # nobody leads yet: dropped, as everything is said again
    for leader, machine in ((first, one), (second, two)):
        watch.endpoint = leader.links.endpoint
        worker.step(0)
        worker.perform([Send(SCHEDULER, status(1))])
        pump([worker, leader], lambda machine=machine: bool(machine.received))
    watch.endpoint = "nonsense"
    worker.step(0)
    worker.perform([Send(SCHEDULER, status(2))])
    pump([worker, second], lambda: len(two.received) == 2)
    assert len(one.received) == 1
    worker.close()
    assert watch.closed
