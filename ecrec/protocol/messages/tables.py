"""Messages by which a table is created and gets its first values."""

from ecrec.protocol.messages.common import Message, Number
from ecrec.protocol.placement import TableSpec


class CreateTable(Message, frozen=True):
    request: Number
    table: TableSpec


class TableReady(Message, frozen=True):
    """Every running shard has the table."""

    request: Number
    index: int


class PrepareTable(Message, frozen=True):
    """Reserve what a table needs, without having it; what was reserved before is given back. None: that alone."""

    number: Number
    """A lower one than the last is late, and nothing is done for it."""
    table: TableSpec | None


WRITTEN, WRITE, WAIT = "written", "write", "wait"
"""Of the first values of a table: it has them; the receiver is to write them; another one does, or has yet to come."""


class InitialiseTable(Message, frozen=True):
    """A worker asks whether a table has its first values. Repeated until it has."""

    request: Number
    table: Number
    claim: bool
    """It would write them; else it waits for one that does."""
    done: bool
    """It has written them, and all is durable."""
    failure: str = ""
    """Why it could not make them; workers that wait for them are told."""


class TableInitial(Message, frozen=True):
    request: Number
    table: Number
    state: str
    """`WRITTEN`, `WRITE` or `WAIT`."""
