import threading
from collections.abc import Callable, Iterator

import pytest
from fakes import FakeMachine

from ecrec.errors import ClusterError, ConfigurationError, RefusedError
from ecrec.protocol import messages as m
from ecrec.protocol.events import Effect, Received, Send
from ecrec.transport.client_node import ClientNode, query
from ecrec.transport.links import Links
from ecrec.transport.node import Node

SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
STATE = m.ClusterState(0, 5, 1, [1], [], {}, [], [], 2, "")


@pytest.fixture
def scheduler() -> Iterator[tuple[str, FakeMachine]]:
    """A fake scheduler that runs in a thread."""
    machine = FakeMachine(SCHEDULER)
    node = Node(machine, Links("tcp://127.0.0.1:0"), grace_ms=150)
    thread = threading.Thread(target=node.run)
    thread.start()
    yield node.links.endpoint, machine
    node.request_stop()
    thread.join(10)
    assert not thread.is_alive()
    node.close()


def answers(answer: Callable[[int], m.Message]) -> Callable[[Received], list[Effect]]:
    def on_received(event: Received) -> list[Effect]:
        assert isinstance(event.message, m.ClusterQuery)
        return [Send(event.source, answer(event.message.request))]

    return on_received


def test_a_query_is_answered(scheduler) -> None:
    endpoint, machine = scheduler
    machine.on_received = answers(lambda request: STATE)
    assert query(endpoint, m.ClusterQuery(0)) == STATE


def test_a_query_that_is_refused(scheduler) -> None:
    endpoint, machine = scheduler
    machine.on_received = answers(lambda request: m.Refused(request, "not now"))
    with pytest.raises(RefusedError, match="refused: not now"):
        query(endpoint, m.ClusterQuery(7))


def test_an_answer_to_another_question_is_no_answer(scheduler) -> None:
    endpoint, machine = scheduler
    machine.on_received = answers(lambda request: m.Refused(request + 1, "not you"))
    with pytest.raises(ClusterError, match=r"no answer from a scheduler at tcp://.* within 150 ms"):
        query(endpoint, m.ClusterQuery(7), timeout_ms=150)


def test_a_query_is_asked_again_when_the_answer_is_lost(scheduler) -> None:
    endpoint, machine = scheduler
    machine.on_received = lambda event: [Send(event.source, STATE)] if len(machine.events) > 1 else []
    assert query(endpoint, m.ClusterQuery(0)) == STATE
    assert len(machine.events) == 2


def test_no_scheduler_there() -> None:
    with pytest.raises(ClusterError, match="is ecrec-scheduler running there"):
        query("tcp://127.0.0.1:1", m.ClusterQuery(0), timeout_ms=100)


@pytest.mark.parametrize("endpoint", ["nonsense", "", "http://x"])
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="expected tcp://HOST:PORT"):
        query(endpoint, m.ClusterQuery(0))
    with pytest.raises(ConfigurationError, match="expected tcp://HOST:PORT"):
        ClientNode(endpoint, FakeMachine(m.Address(m.WORKER, 0, 0)))


def test_a_client_sends_and_pumps(scheduler) -> None:
    endpoint, machine = scheduler
    machine.on_received = lambda event: [Send(event.source, m.Views(0, []))]
    client = FakeMachine(m.Address(m.WORKER, 3, 0))
    with ClientNode(endpoint, client) as node:
        node.perform([Send(SCHEDULER, m.WorkerStatus("p", [-1], {}))])
        while not client.events:
            assert node.pump(1000) == []
    assert client.received[0].message == m.Views(0, [])
    assert client.received[0].source == SCHEDULER
