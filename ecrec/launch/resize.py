"""``ecrec resize``: a cluster stopped by a checkpoint, and restored on another number of servers.

Who started the processes changes their number. `ecrec train` does it itself when it finds a request in its run
directory. Of a cluster whose processes were started by hand, the command writes the checkpoint, waits until somebody
has started another cluster in its place, and brings the checkpoint into that one.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from ecrec.checkpoint.restore import restore
from ecrec.checkpoint.saving import save_checkpoint
from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.environment import curve_keys
from ecrec.protocol.messages import UP, ClusterQuery, ClusterState
from ecrec.protocol.placement import CodeSpec
from ecrec.transport.client_node import query
from ecrec.urls import shown

REQUEST_FILE, ANSWER_FILE = "resize.json", "resized.json"
"""In the run directory. The request is removed when it is taken."""

FILE_BYTES_MAX = 1 << 16
TAKEN_S = 20.0
"""A run that goes on takes a request within a tenth of a second, unless it is being restored itself."""
POLL_S = 0.1


class Request(msgspec.Struct, frozen=True):
    """What a run is to go on with."""

    id: str
    shards: int
    groups: int | None = None
    code: str | None = None
    """None: the one that it has."""


class Answer(msgspec.Struct, frozen=True):
    """What became of a request."""

    id: str
    error: str = ""
    """Why nothing was changed."""
    checkpoint: int = 0
    url: str = ""
    examples_repeated: int = 0
    seconds_stood_still: float = 0.0


class Requests:
    """The side of a run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def take(self) -> Request | None:
        """A request that was made, once. One that cannot be read is answered, and dropped."""
        path = self._run_dir / REQUEST_FILE
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX)
            path.unlink()
        except OSError:
            return None
        try:
            return msgspec.json.decode(data, type=Request)
        except msgspec.MsgspecError as error:
            self.answer(Answer("", f"{path}: {error}"))
            return None

    def answer(self, answer: Answer) -> None:
        """A full directory takes the answer with it: the run's report has it, too."""
        with contextlib.suppress(OSError):
            _write(self._run_dir / ANSWER_FILE, msgspec.json.encode(answer))


def ask(run_dir: Path, shards: int, groups: int | None, code: str | None, timeout_s: float) -> Answer:
    """Have the `ecrec train` of a run directory go on with so many servers; return what became of it.

    Raises ConfigurationError if no run takes the request, or it cannot be done; ClusterError if it is not done within
    ``timeout_s``: the run may still do it.
    """
    request = Request(secrets.token_hex(8), shards, groups, code)
    path, answered = run_dir / REQUEST_FILE, run_dir / ANSWER_FILE
    if not run_dir.is_dir():
        raise ConfigurationError(f"--run-dir {run_dir}: there is no such directory; it is that of an `ecrec train`")
    try:
        answered.unlink(missing_ok=True)
        _write(path, msgspec.json.encode(request))
    except OSError as error:
        raise ConfigurationError(f"--run-dir {run_dir}: {error.strerror}") from error
    began = time.monotonic()
    while time.monotonic() < began + timeout_s:
        time.sleep(POLL_S)
        if path.exists() and time.monotonic() > began + TAKEN_S:
            path.unlink(missing_ok=True)
            raise ConfigurationError(f"--run-dir {run_dir}: no `ecrec train` that trains has taken the request")
        if answered.exists():
            answer = msgspec.json.decode(answered.read_bytes(), type=Answer)
            if answer.error:
                raise ConfigurationError(f"not resized, training goes on as it was: {answer.error}")
            if answer.id == request.id:
                return answer
    path.unlink(missing_ok=True)
    raise ClusterError(f"--run-dir {run_dir}: not resized within {timeout_s:.0f} s")


def _write(path: Path, data: bytes) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


class ByHand(NamedTuple):
    """How a cluster that was started by hand was resized."""

    checkpoint: int
    rows: int
    seconds: float
    """From the checkpoint to the end of the restore."""


def by_hand(
    endpoint: str, url: str, shards: int, code: str | None, timeout_s: float, say: Callable[[str], None],
    curve_dir: str | None = None,
) -> ByHand:  # fmt: skip
    """Write a checkpoint, wait until a new cluster of ``shards`` servers answers at the endpoint, and bring it there.

    ``say`` is told what is to be done meanwhile. Raises CheckpointError for a checkpoint that cannot be written, or
    read, ClusterError if no such cluster is there within ``timeout_s``.
    """
    keys, spec = curve_keys(curve_dir), None if code is None else CodeSpec.parse(code)
    before = _state(endpoint, curve_dir)
    done = save_checkpoint(endpoint, url, timeout_s, keys)
    began = time.monotonic()
    say(
        f"checkpoint {done.checkpoint} is written to {shown(done.url)}. Now end all workers and servers, and the "
        f"scheduler; start the scheduler with --shards {shards} and a new state, and {shards} servers. What "
        "workers push from now on is lost"
    )

    def why_not(state: ClusterState) -> str:
        if state.cluster == before.cluster:
            return "the cluster is the one of before"
        count = state.n * state.groups
        return f"the new cluster has {count} shards, expected {shards}" if count != shards else not_complete(state)

    try:
        wait_for_cluster(endpoint, why_not, timeout_s, say, curve_dir)
    except ClusterError as error:
        again = f"`ecrec restore {shown(url)} --number {done.checkpoint}`"
        raise ClusterError(f"{error}. The checkpoint stays: {again}") from error
    got = restore(endpoint, done.url, done.checkpoint, spec, keys=keys)
    return ByHand(done.checkpoint, got.rows, time.monotonic() - began)


def not_complete(state: ClusterState) -> str:
    """Why nothing can be brought into a cluster that was just started; empty if it can."""
    if state.lost:
        return "the cluster has lost data: end all of it, and start the scheduler with a new state"
    if state.tables:
        return "the cluster has tables already: end all of it, and start the scheduler with a new state"
    up = sum(shard.state == UP for shard in state.shards)
    return f"{up} of {state.n * state.groups} servers are there" if up < state.n * state.groups else ""


def wait_for_cluster(
    endpoint: str, why_not: Callable[[ClusterState], str], timeout_s: float, say: Callable[[str], None],
    curve_dir: str | None = None,
) -> None:  # fmt: skip
    """Wait until ``why_not`` of the cluster at an endpoint is empty; ``say`` is told what is waited for.

    Raises ClusterError, with that, after ``timeout_s`` seconds.
    """
    end, said = time.monotonic() + timeout_s, ""
    while True:
        try:
            text = why_not(_state(endpoint, curve_dir))
        except ClusterError:
            text = "no scheduler answers"
        if not text:
            return
        if time.monotonic() > end:
            raise ClusterError(f"no such cluster within {timeout_s:.0f} s: {text}")
        if text != said:
            said = text
            say(f"waiting: {text}")
        time.sleep(POLL_S)


def _state(endpoint: str, curve_dir: str | None) -> ClusterState:
    return cast(ClusterState, query(endpoint, ClusterQuery(secrets.randbelow(1 << 31)), keys=curve_keys(curve_dir)))
