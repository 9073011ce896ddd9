"""How a session ends: its pushes become durable, its parts finish, its connection is given up.

Apart from the session, so that who ends it, as the interpreter does, need not hold what a script has dropped.
"""

import threading
import time

from ecrec.errors import EcrecError
from ecrec.training import exits
from ecrec.training.connection import PUMP_MS, Connection, locked
from ecrec.training.observation import Observation
from ecrec.training.owners import Owners
from ecrec.training.steps import Steps

LEAVE_S = 1.0
"""A worker that ends waits at most this long for the scheduler to know it."""

END_S = 10.0
"""A session that nobody has closed waits at most this long at the end of the interpreter."""

STALE_S = 0.1
"""Before that it reads, for this long, what came earlier."""


class Life:
    """Of one session."""

    def __init__(self, connection: Connection, steps: Steps, owners: Owners) -> None:
        self.pid, self.lock = connection.pid, connection.lock
        self.observation: Observation | None = None
        """The last one, which ends with it."""
        self.is_dropped = False
        """The session is gone, and nobody has closed it."""
        self._connection, self._steps, self._owners = connection, steps, owners
        self._is_over = threading.Event()

    @locked
    def close(self) -> None:
        """See `Session.close`."""
        if self._connection.closed:
            return
        try:
            self._steps.flush("all pushes to be durable")
            for part in self._owners.parts:
                part.finish()
            if self.observation is not None:
                self.observation.close()
            self.leave_run()
        finally:
            self.abandon()

    @locked
    def end(self) -> str:
        """Close it when the interpreter ends, or a block by ``sys.exit``; returns what was lost, empty if nothing was.

        For `END_S` at most it waits for pushes to be durable, and for all servers to be heard.
        """
        connection = self._connection
        if connection.closed:
            return ""
        machine = connection.machine
        limit_ms = END_S * 1e3 if connection.wait_timeout_ms is None else min(END_S * 1e3, connection.wait_timeout_ms)
        connection.wait_timeout_ms = limit_ms

        try:
            # trap: what servers said before they died still lies in the sockets, and is no sign of life
            end = time.monotonic() + STALE_S
            while time.monotonic() < end:
                connection.pump(PUMP_MS)
            connection.perform(machine.flush())
            machine.wait(True)
            what = "its pushes to be durable, and for all servers to be heard"
            connection.wait(lambda: machine.durable and machine.all_heard, what)  # a death is noticed by who listens
            self.close()
        except EcrecError as error:
            return f"a session was not closed, and {self.undone() or 'its cluster does not serve'}: {error}"
        finally:
            if not connection.closed:
                self.abandon()
        return ""

    def dropped(self) -> None:
        """The session is gone. Unless it was closed, it ends now, as at the end of the interpreter.

        That is done by the thread of its heartbeat, for the garbage collector calls this from anywhere.
        """
        self.is_dropped = True
        self._connection.end_in_heartbeat(self._end_dropped)

    def _end_dropped(self) -> None:
        if text := self.end():
            exits.lost(f"a session was dropped without being closed: {text}")

    def wait_until_over(self) -> None:
        """Until the one that was dropped has ended; not for longer than that may take."""
        self._is_over.wait(END_S + LEAVE_S + STALE_S)

    def undone(self) -> str:
        """Which pushes are not durable, for people."""
        machine = self._connection.machine
        open_pushes = max((pushed - machine.acked[shard] for shard, pushed in machine.pushed.items()), default=0)
        if open_pushes:
            return f"its last {open_pushes} push{'es' * (open_pushes > 1)} may be lost: not durable on all shards"
        return f"it had failed: {machine.failed}" if machine.failed else ""

    @locked
    def leave_run(self) -> None:
        """The others of a run need not wait for it."""
        self._connection.leave_run(LEAVE_S)

    def abandon(self) -> None:
        """Disconnect at once; pushes that are not durable may be lost."""
        exits.closed(self)
        if self.observation is not None:
            self.observation.close()
        self._connection.abandon()
        self._is_over.set()
