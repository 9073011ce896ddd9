import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeMachine
from forwarder import Forwarder

from ecrec.protocol.messages import Address
from ecrec.transport.links import Links
from ecrec.transport.node import Node


@pytest.fixture(params=["tcp", "ipc"])
def bind(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes endpoints to bind, of each transport in turn."""
    # A path of a socket has at most 107 bytes; pytest's tmp_path may be longer.
    with tempfile.TemporaryDirectory(prefix="ecrec") as directory:
        made: list[str] = []

        def make() -> str:
            made.append(f"ipc://{Path(directory)}/{len(made)}")
            return made[-1] if request.param == "ipc" else "tcp://127.0.0.1:0"

        yield make


@pytest.fixture
def node() -> Iterator[Callable[..., tuple[Node, FakeMachine]]]:
    """Makes nodes with fake machines; closes them all."""
    made: list[Node] = []

    def make(address: Address, bind: str | None = "tcp://127.0.0.1:0", **options: Any) -> tuple[Node, FakeMachine]:
        machine = FakeMachine(address)
        made.append(Node(machine, Links(bind), **options))
        return made[-1], machine

    yield make
    for each in made:
        each.close()


@pytest.fixture
def forwarder() -> Iterator[Callable[[str], Forwarder]]:
    """Makes forwarders; closes them all."""
    made: list[Forwarder] = []

    def make(endpoint: str) -> Forwarder:
        made.append(Forwarder(endpoint))
        return made[-1]

    yield make
    for each in made:
        each.close()
