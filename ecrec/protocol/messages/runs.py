"""Messages by which workers form a run, whose pushes are applied in barriers."""

from ecrec.protocol.messages.common import Message, Number

RUN_BITS = 32
"""Runs are numbered from the generation of the scheduler's state << RUN_BITS on, so that no state that was made again
gives a number that was given before it was lost."""


class JoinRun(Message, frozen=True):
    """A worker asks for a run of ``size`` workers, numbered 0 to size - 1. Repeated until all have asked for it."""

    request: Number
    size: Number
    run: Number = 0
    """The run that it leaves for it, and how many of its barriers there are durable on all shards."""
    done: Number = 0


class RunJoined(Message, frozen=True):
    """The run has begun; or, with run 0, workers that have not asked for it yet (the first few)."""

    request: Number
    run: Number
    missing: list[Number] = []


class LeaveRun(Message, frozen=True):
    """A worker is done with its run after so many barriers, all durable. Repeated until `RunOver` answers it; silence
    says the same later."""

    run: Number
    done: Number


class RunOver(Message, frozen=True):
    """A worker of the run is gone: no barrier behind ``done`` will be complete. Repeated with each heartbeat."""

    run: Number
    done: Number
    reason: str
