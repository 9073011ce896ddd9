"""The transport of a worker or tool: no inbox, no thread; the caller pumps."""

import os
import secrets
import time
from collections.abc import Sequence

from ecrec.errors import ClusterError, ConfigurationError, RefusedError, WireError
from ecrec.protocol import wire
from ecrec.protocol.events import Effect, Result
from ecrec.protocol.messages import SCHEDULER, SCHEDULER_ADDRESS, TOOL, Address, Message, Refused
from ecrec.protocol.node_core import Machine
from ecrec.transport.coordinator import is_coordinator, nobody_leads, watch_leader
from ecrec.transport.curve import CurveKeys
from ecrec.transport.links import Arrived, Links
from ecrec.transport.node import Node

_LEADER_POLL_MS = 20.0

QUERY_RESEND_MS = 300.0
"""A question that was not answered is asked again: the scheduler may have been starting."""


_KEYS_HINT = (
    ", and does it take connections without keys (if not: --curve-dir, or ECREC_CURVE_DIR)",
    ", with these keys, and is this one allowed",
)


_own_pid = os.getpid()
"""Noted, because the system is asked for it by a call that takes as long as sending a small message."""


def _note_pid() -> None:
    global _own_pid
    _own_pid = os.getpid()


os.register_at_fork(after_in_child=_note_pid)


def check_process(made_by: int) -> None:
    """Raise ConfigurationError in a child of `os.fork`: sockets, threads and locks are of one process."""
    if _own_pid != made_by:
        raise ConfigurationError(
            f"this connection to the cluster was made by process {made_by}, and this is its child {_own_pid}: connect "
            "in the process that uses it, and give to a DataLoader's workers a data set that has no session"
        )


def tool_address() -> Address:
    """For a program that looks at a cluster, or scrubs it: each has one of its own."""
    return Address(TOOL, secrets.randbelow(1 << 31), 0)


class ClientNode:
    """A client machine on real sockets; a context manager. Use it from one thread."""

    def __init__(self, scheduler_endpoint: str, machine: Machine, keys: CurveKeys | None = None) -> None:
        """Raises ConfigurationError for an endpoint that cannot be one; does not wait for the scheduler.

        ``keys``: for a cluster that encrypts.
        """
        self._pid = os.getpid()
        self.scheduler_endpoint = scheduler_endpoint
        self.keys = keys
        links = Links(keys=keys)
        try:
            self._node = Node(machine, links, scheduler_endpoint)
        except Exception:
            links.close()
            raise

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out what a call of the machine returned; results come out of `pump`."""
        check_process(self._pid)
        self._node.perform(effects)

    def pump(self, timeout_ms: float) -> list[Result]:
        """Handle what arrived and the passing of time; wait at most ``timeout_ms``, or about a tick, for something.

        Returns the results there are. An empty list says nothing about the time that passed.
        """
        check_process(self._pid)
        return self._node.step(timeout_ms)

    def scheduler_trouble(self) -> str:
        """Why the scheduler does not answer, as far as that can be seen from here."""
        return self._node.links.trouble(SCHEDULER_ADDRESS)

    def close(self) -> None:
        """In a child of `os.fork` nothing happens."""
        if os.getpid() == self._pid:
            self._node.close()

    def __enter__(self) -> "ClientNode":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def query(
    asked_endpoint: str,
    message: Message,
    timeout_ms: float = 3000.0,
    keys: CurveKeys | None = None,
    asked: Address = SCHEDULER_ADDRESS,
) -> Message:
    """Ask the scheduler, or a shard, one question (ClusterQuery, StoryQuery) and return the answer, which has the same
    ``request``.

    ``keys``: for a cluster that encrypts.

    Raises ClusterError if there is no answer in time or who is asked speaks another wire version, RefusedError if it
    refuses, ConfigurationError for an endpoint that cannot be one.
    """
    name, program = ("a scheduler", "ecrec-scheduler") if asked.role == SCHEDULER else (str(asked), "ecrec-ps")
    source = tool_address()
    request = getattr(message, "request", None)
    watch = watch_leader(asked_endpoint) if is_coordinator(asked_endpoint) else None
    links = Links(keys=keys)
    endpoint = ""
    try:
        parts = wire.encode(message, (), source, asked)
        start_ms = resend_ms = time.monotonic() * 1000.0
        while (now_ms := time.monotonic() * 1000.0) < start_ms + timeout_ms:
            endpoint = asked_endpoint if watch is None else watch.endpoint
            if (endpoint or watch is None) and (links.connect(asked, endpoint) or now_ms >= resend_ms):
                links.send(asked, parts)
                resend_ms = now_ms + QUERY_RESEND_MS
            wait_ms = max(0.0, min(resend_ms, start_ms + timeout_ms) - now_ms) + 1
            for arrived in links.poll(wait_ms if watch is None else min(wait_ms, _LEADER_POLL_MS)):
                answer = _answer(arrived.parts) if isinstance(arrived, Arrived) else None
                if answer is not None and getattr(answer, "request", None) == request:
                    if isinstance(answer, Refused):
                        raise RefusedError(f"{name} at {endpoint} refused: {answer.reason}")
                    return answer
        trouble = links.trouble(asked)
    finally:
        links.close()
        if watch is not None:
            watch.close()
    if watch is not None and not endpoint:
        raise ClusterError(
            f"no scheduler is known at {asked_endpoint} within {timeout_ms:.0f} ms: {nobody_leads(asked_endpoint)}?"
        )
    raise ClusterError(
        f"no answer from {name} at {endpoint} within {timeout_ms:.0f} ms ({trouble}): "
        f"is {program} running there{_KEYS_HINT[keys is not None]}?"
    )


def _answer(parts: list[object]) -> Message | None:
    try:
        return wire.decode(parts).message
    except wire.RefusedByPeerError as error:
        raise ClusterError(f"it refuses our messages: {error}") from error
    except WireError:
        return None
