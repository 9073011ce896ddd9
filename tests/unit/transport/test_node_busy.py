"""A node whose machine is in the middle of an event: what it says then leaves at once."""

from types import SimpleNamespace
from typing import Any

from ecrec.protocol import messages as m
from ecrec.protocol.events import Effect, Send
from ecrec.transport.node import Node

SCHEDULER, PEER = m.Address(m.SCHEDULER, 0, 0), m.Address(m.SHARD, 1, 1)


class Machine:
    """Pauses in its only event."""

    address = m.Address(m.SHARD, 0, 1)

    def __init__(self, sent: list[m.Address]) -> None:
        self.pause: Any = None
        self.sent = sent
        self.seen: list[list[m.Address]] = []

    def listen(self, pause: Any) -> None:
        self.pause = pause

    def while_busy(self, now_ms: float) -> list[Effect]:
        return [Send(PEER, m.Ping(asks=False))]

    def handle(self, event: Any, now_ms: float) -> list[Effect]:
        self.pause()
        self.seen.append(list(self.sent))
        return [Send(SCHEDULER, m.Census())]


def test_what_is_said_in_a_pause_leaves_before_what_the_event_says() -> None:
    sent: list[m.Address] = []

    def nothing(*arguments: Any) -> None: ...

    links: Any = SimpleNamespace(
        connect=nothing, disconnect=nothing, is_connected=lambda address: True, answer=nothing, remember=nothing,
        send=lambda to, parts: sent.append(to) is None,
    )  # fmt: skip
    machine = Machine(sent)
    node = Node(machine, links)
    node.core.tick(0.0)
    assert machine.seen == [[PEER]]
    assert sent == [PEER, SCHEDULER]
