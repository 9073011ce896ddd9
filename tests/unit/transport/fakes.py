"""Machines that do as a test says."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from ecrec.protocol.events import Effect, Event, Received
from ecrec.protocol.messages import Address

DEADLINE_S = 10.0


class FakeMachine:
    """Records events; answers a message with what ``on_received`` returns, and a tick with nothing."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.events: list[Event] = []
        self.on_received: Callable[[Received], list[Effect]] = lambda event: []
        self.others: list[Event] = []

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        if isinstance(event, Received):
            self.events.append(event)
            return self.on_received(event)
        self.others.append(event)
        return []

    @property
    def received(self) -> list[Received]:
        return [event for event in self.events if isinstance(event, Received)]


def pump(nodes: Iterable[Any], until: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Run the nodes in turn until the condition holds; fail at the deadline."""
    nodes = list(nodes)
    end = time.monotonic() + deadline_s
    while not until():
        assert time.monotonic() < end, "the condition did not come true in time"
        for node in nodes:
            node.step(2)
