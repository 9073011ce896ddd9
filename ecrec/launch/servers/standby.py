"""A scheduler among several: stands by until it is elected, then leads until it ends."""

import logging
import time
from collections.abc import Callable

from ecrec.protocol.node_core import Machine
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.transport.links import Links
from ecrec.transport.node import Node
from ecrec.transport.zookeeper import Candidate

log = logging.getLogger(__name__)

POLL_MS = 50.0


class Standby:
    """A server program's node that is made when this process is elected. It leads once: deposed, it has to end."""

    def __init__(
        self,
        links: Links,
        candidate: Candidate,
        endpoint: str,
        make_machine: Callable[[bytes | None], SchedulerMachine],
        make_node: Callable[[SchedulerMachine], Node],
    ) -> None:
        """``endpoint``: where members find this scheduler when it leads. Owns the links and the candidate."""
        self.links = links
        self._candidate = candidate
        self._endpoint = endpoint
        self._make_machine = make_machine
        self._make_node = make_node
        self._node: Node | None = None
        self._stopping = False
        self._look: Callable[[Machine], None] | None = None
        self._stepped_s = time.monotonic()

    @property
    def stepped_s(self) -> float:
        """When its loop made its last step."""
        return self._node.stepped_s if self._node is not None else self._stepped_s

    def watch(self, look: Callable[[Machine], None]) -> None:
        """As `Node.watch`, once it leads."""
        self._look = look

    @property
    def stopped(self) -> str:
        return self._node.stopped if self._node is not None else ""

    @property
    def stop_kind(self) -> str:
        return self._node.stop_kind if self._node is not None else ""

    def run(self) -> None:
        """Go on until `request_stop`. Raises ConfigurationError for a stored state that does not fit, DeposedError."""
        self._candidate.start()
        while not self._candidate.may_act(0.0):
            if self._stopping:
                return
            self._stepped_s = time.monotonic()
            # Nobody is sent here yet: what comes was meant for one who was here before, and is said again.
            self.links.poll(POLL_MS)
        while True:
            machine = self._make_machine(self._candidate.load())
            if self._candidate.claim(self._endpoint):
                break
        log.info("leads at %s (term %d)", self._endpoint, self._candidate.term)
        self._node = self._make_node(machine)
        if self._look is not None:
            self._node.watch(self._look)
        if not self._stopping:
            self._node.run()

    def request_stop(self) -> None:
        self._stopping = True
        if self._node is not None:
            self._node.request_stop()

    def request_leave(self) -> None:
        """A scheduler has nothing to lose."""
        self.request_stop()

    def last_words(self, reason: str) -> None:
        """A scheduler has nobody to tell."""

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
            return
        self.links.close()
        self._candidate.close()
