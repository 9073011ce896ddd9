"""Asks a running cluster for a checkpoint, and waits until it is complete."""

import os
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple, cast

from ecrec.checkpoint.reading import Checkpoint, Info, checkpoints, open_checkpoint
from ecrec.errors import CheckpointError, ClusterError, ConfigurationError, RefusedError
from ecrec.protocol.messages import CheckpointBase, ClusterQuery, ClusterState, Save, SaveBegun, SavingFigures
from ecrec.protocol.transitions import COMPLETE, GIVEN_UP
from ecrec.transport.client_node import query
from ecrec.transport.curve import CurveKeys
from ecrec.urls import shown

AGAIN = ("ask again", "is being written")
"""A refusal that says one of these is of the moment."""

SAVE_TIMEOUT_S = 600.0
"""For one checkpoint, begun again where a server died meanwhile."""

RATE_MB_S_MIN, RATE_MB_S_MAX = 0.001, 1e6
"""What can be asked for."""

POLL_S = 0.1
QUERY_MS = 3000.0
STATE_BYTES_PER_MS = 10_000
"""A user's state goes to the scheduler at least that fast."""


class Increments(NamedTuple):
    """When a checkpoint has only what changed since the one before, and when it has everything again."""

    count_max: int = 16
    """So many have only changes, one after another: a restore reads all of them."""
    share_max: float = 1.0
    """Together they have at most so many times the bytes of the one that they begin with."""


def absolute(url: str) -> str:
    """The URL, a local path as an absolute one: the servers have other working directories."""
    return url if "://" in url else os.path.abspath(url)


_ALL = CheckpointBase(0, "", 0)
"""No base: everything is to be written."""


def _base(endpoint: str, url: str, found: list[Info], increments: Increments, keys: CurveKeys | None) -> CheckpointBase:
    """The checkpoint of which only the changes need to be written. That it is the cluster's own is known by what the
    cluster says of it, and the scheduler compares it again."""
    state = cast(ClusterState, query(endpoint, ClusterQuery(secrets.randbelow(1 << 31)), QUERY_MS, keys))
    own = next((base for base in state.bases if base.url == url), _ALL)
    infos = {info.number: info for info in found if info.is_complete}
    if own.checkpoint not in infos:
        return _ALL
    chain = [infos[own.checkpoint]]
    while chain[-1].base:
        chain.append(infos[chain[-1].base])
    nbytes = [info.nbytes for info in chain]
    if len(chain) > increments.count_max or sum(nbytes[:-1]) > increments.share_max * nbytes[-1]:
        return _ALL
    try:
        checkpoint = open_checkpoint(url, own.checkpoint)
        for link in [checkpoint, *checkpoint.bases]:
            _check_files(link)
    except CheckpointError:  # whatever is wrong with it, what is written now does not need it
        return _ALL
    return CheckpointBase(own.checkpoint, url, checkpoint.crc32c) if checkpoint.crc32c == own.crc32c else _ALL


def _check_files(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if an index is damaged, or a part is not there, or has another length.

    Checksums of parts are not compared: that would take as long as reading them (`ecrec checkpoints check`).
    """
    for entry in checkpoint.manifest.indexes:
        sizes = {each.name: each.nbytes for each in checkpoint.folder.list(entry.name.rpartition("/")[0])}
        for part in checkpoint.index(entry.shard).parts:
            if sizes.get(part.name) != part.nbytes:
                raise CheckpointError(f"{checkpoint.folder}: part {part.name} of shard {entry.shard} is not whole")


def save_checkpoint(
    endpoint: str,
    url: str,
    timeout_s: float,
    keys: CurveKeys | None = None,
    meanwhile: Callable[[SavingFigures | None], None] = lambda _: None,
    stops: Callable[[], bool] = lambda: False,
    state: bytes = b"",
    increments: Increments | None = None,
    rate_mb_s: float | None = None,
    waits: Callable[[str], None] = lambda _: None,
) -> SavingFigures:
    """Have the cluster of the scheduler at ``endpoint`` write a checkpoint to ``url``; return what was written.

    One that is given up, because a server died or a worker did not answer, is begun again. ``meanwhile`` is called
    every tenth of a second with how far it is, and ``waits`` with the reason each time that none can be begun, or one
    was given up; ``stops()`` says that no further one is to be begun. ``state``: a file
    of `user_state.encode`, which becomes a part of it. With ``increments`` it has only what changed since the newest
    one of this cluster at ``url``, where that is there and whole, and the rule allows it; `SavingFigures.base` says so.
    ``rate_mb_s``: all servers together write at most so many megabytes a second, unless rows that change meanwhile fill
    their side buffers. Every server writes its own part: on several hosts a local path must be on a file system that
    they share.
    Raises CheckpointError if none is complete within ``timeout_s`` seconds, with the reason of the last one;
    RefusedError for what can never be written, ClusterError where no scheduler answers, ConfigurationError for a rate
    that is none.
    """
    if rate_mb_s is not None and not RATE_MB_S_MIN <= rate_mb_s <= RATE_MB_S_MAX:
        raise ConfigurationError(
            f"a rate of {rate_mb_s} MB/s: expected {RATE_MB_S_MIN} to {RATE_MB_S_MAX:.0f}, of all servers together"
        )
    bytes_per_s = 0 if rate_mb_s is None else max(1, round(rate_mb_s * 1e6))
    url, end = absolute(url), time.monotonic() + timeout_s
    why = "it has not begun"
    while time.monotonic() < end:
        try:
            found = checkpoints(url)
            after = max((info.number for info in found), default=0)
            notes = increments is not None
            base = _ALL if increments is None else _base(endpoint, url, found, increments, keys)
            request = secrets.randbelow(1 << 31)
            asked = Save(request, url, time.time(), after, state, notes, base.checkpoint, base.crc32c, bytes_per_s)
            begun = cast(SaveBegun, query(endpoint, asked, QUERY_MS + len(state) / STATE_BYTES_PER_MS, keys))
        except RefusedError as error:
            if not any(words in str(error) for words in AGAIN):
                raise
            why = str(error)
        else:
            ended = _follow(endpoint, begun.checkpoint, end, keys, meanwhile)
            if ended is not None and ended.state == COMPLETE:
                return ended
            why = ended.error if ended is not None and ended.error else "it is still being written"
        meanwhile(None)
        waits(why)
        if stops():
            break
        time.sleep(POLL_S)
    raise CheckpointError(f"no checkpoint is complete at {shown(url)}: {why}")


def _follow(
    endpoint: str, number: int, end: float, keys: CurveKeys | None, meanwhile: Callable[[SavingFigures | None], None]
) -> SavingFigures | None:
    """What became of a checkpoint; None if it is not over in time, or nobody knows it any more."""
    while time.monotonic() < end:
        try:
            state = cast(ClusterState, query(endpoint, ClusterQuery(secrets.randbelow(1 << 31)), QUERY_MS, keys))
        except ClusterError:
            continue  # the scheduler is being started again; it goes on with the checkpoint
        complete, saving = state.saved, state.saving
        if complete is not None and complete.checkpoint == number:
            return complete
        if saving is None or saving.checkpoint != number or saving.state == GIVEN_UP:
            return saving if saving is not None and saving.checkpoint == number else None
        meanwhile(saving)
        time.sleep(POLL_S)
    return None
