"""Every machine is checked after every event, also where a test calls `handle` itself."""

import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from injection import Injection

from ecrec.protocol import invariants
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Stop
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine


def validated(machine: type) -> Any:
    """The machine's `handle`, and its invariants behind it. One that is to stop need not be consistent."""
    real: Any = machine.handle  # type: ignore[attr-defined]

    def handle(self: Any, event: Any, now_ms: float) -> Any:
        effects = real(self, event, now_ms)
        if isinstance(sys.gettrace(), Injection):
            return effects  # lines of the checks are none of the event
        if not any(isinstance(effect, Stop) for effect in effects):
            invariants.check(self)
        return effects

    return mock.patch.object(machine, "handle", handle)


@pytest.fixture(autouse=True)
def invariants_hold_after_every_event() -> Iterator[None]:
    with validated(ShardMachine), validated(SchedulerMachine), validated(ClientMachine):
        yield
