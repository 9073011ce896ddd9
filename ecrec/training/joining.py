"""How a process joins a cluster: as a worker, or to look."""

import secrets

from ecrec.errors import ConfigurationError, RefusedError
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import TOOL, WORKER
from ecrec.protocol.placement import CodeSpec
from ecrec.training import exits
from ecrec.training.session import Session
from ecrec.transport.client_node import ClientNode
from ecrec.transport.curve import CurveKeys


def connect(
    scheduler: str,
    *,
    code: CodeSpec | str | None = None,
    rank: int | None = None,
    world_size: int = 1,
    sync: bool = False,
    exact: bool | None = None,
    nonfinite: str = "error",
    wait_timeout_ms: float | None = None,
    keys: CurveKeys | None = None,
    read_only: bool = False,
) -> Session:
    """Join a cluster as worker ``rank``, or with ``read_only`` as a reader, with ``keys`` if it encrypts; see `Session`
    for the rest.

    A process that was worker ``rank`` before is told to end. Without a rank it is worker 0, unless another process is,
    and lives: then it raises RefusedError. One that was killed is waited for, for 5 s, until that is known.

    Raises ClusterError if the scheduler at this endpoint does not answer within a minute, or the cluster is not there
    within ``wait_timeout_ms``, ConfigurationError for arguments that contradict each other or are out of their range.
    """
    if read_only and (rank or 0, world_size, sync) != (0, 1, False):
        raise ConfigurationError("read_only=True: a reader is no worker, and has no rank, world_size or sync")
    has_open = exits.end_dropped()
    if read_only:
        machine = ClientMachine(secrets.randbelow(1 << 31), secrets.token_hex(8), TOOL)
    else:
        machine = ClientMachine(rank or 0, secrets.token_hex(8), WORKER, yields=rank is None)
    node = ClientNode(scheduler, machine, keys)
    try:
        session = Session(
            machine,
            node,
            code=code,
            rank=0 if rank is None else rank,
            world_size=world_size,
            sync=sync,
            exact=exact,
            nonfinite=nonfinite,
            wait_timeout_ms=wait_timeout_ms,
        )
        session.scheduler = scheduler, keys
        session.start()
        session.start_heartbeat()
        session.end_at_exit()
        return session
    except BaseException as error:
        node.close()
        if isinstance(error, RefusedError) and machine.failed_kind == "taken" and has_open:
            raise RefusedError(
                f"{error}. This process has a session that is open: if that is the one, close() it first"
            ) from None
        raise
