"""Schedulers that stand by for each other, through ZooKeeper (kazoo); nothing else imports kazoo.

Below the path of ``zk://HOST:PORT/PATH``::

    election/ID-SEQUENCE   one ephemeral node for each scheduler process; the first one leads
    leader                 msgpack [term, endpoint] of the newest leader; what members watch
    state                  msgpack `Head`: the state, or the names of its pieces
    pieces/TERM-WRITE-I    the pieces of a state that is too large for one node; never changed once written

What keeps a deposed leader from doing harm, each for itself:

* **Terms.** A new leader claims the state: it writes `Head` anew with a higher term, at the version it has read, in one
  transaction with its endpoint in ``leader``. Every later write of the old leader then fails by its version, and no
  effect after a failed Persist is carried out. Writes hold only while the writer's node in ``election/`` is there.
* **Messages carry the term** as the epoch of the scheduler's address; who has heard of a newer leader drops them.
* **A lease.** A leader handles an event only if ZooKeeper's leader has confirmed its place in the election at most half
  a session timeout ago, counted from when it asked. The other half covers what a follower may relay late.

A state is deflated and cut into pieces below ZooKeeper's limit of 1 MB a node. Pieces are written before the head that
names them, so a state is there as a whole or not at all; pieces that no head names any more are deleted.
"""

import hashlib
import logging
import secrets
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    ConnectionLoss,
    KazooException,
    NodeExistsError,
    NoNodeError,
    OperationTimeoutError,
    SessionExpiredError,
    SessionMovedError,
)
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.transport.endpoints import parse
from ecrec.transport.leadership import DeposedError, Location

log = logging.getLogger(__name__)
_kazoo_log = logging.getLogger(f"{__name__}.kazoo")
_kazoo_log.setLevel(logging.ERROR)  # it warns at each attempt; what matters is said below

PIECE_BYTES = 512 << 10
"""Half of what ZooKeeper takes in a node, or in a request, by default (jute.maxbuffer)."""

WATCH_SESSION_S = 10.0
"""Of those who only follow the leader."""

RECONNECT_S = 1.0
"""Longest pause before ZooKeeper is tried again."""

RETRY_S = 0.05
RECHECK_S = 5.0
"""A standby looks at the election again after this time, whatever it was told."""

CONFIRMATIONS_IN_SESSION = 6
"""How often a leader has its place confirmed; with the lease of half a session it may miss two."""

_AWAY = (ConnectionLoss, OperationTimeoutError, SessionExpiredError, SessionMovedError, KazooTimeoutError)
"""ZooKeeper does not answer at the moment; whether it carried a request out is open."""


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The node ``state``. ``term`` and ``write`` together are never used twice."""

    format: int
    term: int
    write: int
    size: int
    """Bytes of the deflated state; 0 before the first one."""
    digest: bytes
    """SHA-256 of the deflated state."""
    pieces: list[str] = []
    inline: bytes = b""
    """The deflated state, where it needs no pieces."""


FORMAT = 1
_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_leader = msgspec.msgpack.Decoder(tuple[int, str]).decode


def next_term(last: int) -> int:
    """A term that is higher than the last one, and than those of a state that was lost or is an older one.

    Members drop what comes of a lower term than they have heard. Counted from 1 again, a leader whose nodes were
    deleted or restored would not be heard, and could neither refuse nor adopt. So they are seconds since 1970.
    """
    return max(last + 1, int(time.time()))


def pack_state(state: bytes | None, term: int, write: int) -> tuple[Head, list[bytes]]:
    """The head for a state and the pieces that it names, in order."""
    deflated = b"" if state is None else zlib.compress(state, 1)
    digest = hashlib.sha256(deflated).digest()
    if len(deflated) <= PIECE_BYTES:
        return Head(FORMAT, term, write, len(deflated), digest, [], deflated), []
    pieces = [deflated[at : at + PIECE_BYTES] for at in range(0, len(deflated), PIECE_BYTES)]
    names = [f"{term}-{write}-{index}" for index in range(len(pieces))]
    return Head(FORMAT, term, write, len(deflated), digest, names), pieces


def unpack_state(head: Head, pieces: list[bytes]) -> bytes | None:
    """The state; None before the first one. Raises ConfigurationError if it is not what was written."""
    deflated = b"".join(pieces) if head.pieces else head.inline
    if len(deflated) != head.size or hashlib.sha256(deflated).digest() != head.digest:
        raise ConfigurationError(f"the stored state of term {head.term}, write {head.write} is damaged")
    return zlib.decompress(deflated) if deflated else None


def _client(location: Location, session_s: float) -> Any:
    retry = {"max_tries": -1, "delay": RETRY_S, "max_delay": RECONNECT_S}
    return KazooClient(
        location.hosts,
        timeout=session_s,
        handler=SequentialThreadingHandler(),
        connection_retry=retry,
        logger=_kazoo_log,
    )


def _close(client: Any) -> None:
    try:
        client.stop()
        client.close()
    except (KazooException, OSError) as error:
        log.debug("while leaving ZooKeeper: %s", error)


def _now_s() -> float:
    # Goes on while the machine sleeps, as ZooKeeper's does on others.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ZooKeeperWatch:
    """Follows the leader. kazoo's threads write what they learn; any thread may read it."""

    def __init__(self, location: Location) -> None:
        self._path = f"{location.path}/leader"
        self._lock = threading.Lock()
        self._leader: tuple[int, str] = (0, "")
        self._client = _client(location, WATCH_SESSION_S)
        self._client.add_listener(self._on_state)
        self._client.start_async()

    @property
    def endpoint(self) -> str:
        return self._leader[1]

    def close(self) -> None:
        _close(self._client)

    def _on_state(self, state: str) -> None:
        # kazoo calls this in the thread that would have to bring the answer.
        if state == "SUSPENDED":
            log.warning("the connection to ZooKeeper is broken; going on with the scheduler at %s", self.endpoint)
        elif state == "CONNECTED":
            self._client.handler.spawn(self._look)

    def _on_change(self, event: object) -> None:
        self._client.handler.spawn(self._look)

    def _look(self) -> None:
        """Read the leader and be told of the next one; after a failure the next connection looks again."""
        with self._lock:
            try:
                if self._client.exists(self._path, self._on_change) is not None:
                    self._take(self._client.get(self._path)[0])
            except (NoNodeError, *_AWAY):
                return
            except KazooException as error:
                log.warning("cannot read %s: %s: %s", self._path, type(error).__name__, error)

    def _take(self, data: bytes) -> None:
        if not data:
            return  # the first leader has not claimed yet
        try:
            term, endpoint = _decode_leader(data)
            parse(endpoint)
        except (msgspec.MsgspecError, ConfigurationError) as error:
            log.error("%s does not name a scheduler: %s", self._path, error)
            return
        # A ZooKeeper server that lags behind may still know an older one.
        if term > self._leader[0]:
            log.info("the scheduler at %s leads (term %d)", endpoint, term)
            self._leader = (term, endpoint)


class Candidate:
    """One scheduler process in the election, and the state of the cluster once it leads (a `StateStore`).

    A thread of its own takes the place in the election and has it confirmed; all else happens in the caller's.
    """

    def __init__(self, location: Location, session_timeout_ms: int, client: Any = None) -> None:
        """``client``: a started or unstarted KazooClient, for tests."""
        self.path = location.path
        self.term = 0
        self._hosts = location.hosts
        self._session_s = session_timeout_ms / 1000.0
        self._client = client or _client(location, self._session_s)
        self._name = secrets.token_hex(8)
        self._place = ""
        """Path of the node in the election that has won; empty before."""
        self._confirmed_s: float | None = None
        self._deposed = ""
        self._closing = False
        self._wake = threading.Event()
        """Something may have changed in the election, or in the connection."""
        self._news = threading.Condition()
        """Guards the place, the confirmation and why it is over."""
        self._version = -1
        self._writes = 0
        self._head: Head | None = None
        self._thread = threading.Thread(target=self._campaign, name="ecrec-election", daemon=True)

    def start(self) -> None:
        """Join the election, as soon as ZooKeeper is there."""
        log.info("stands by in the election at %s%s", self._hosts, self.path)
        self._client.add_listener(self._on_state)
        self._client.start_async()
        self._thread.start()

    def close(self) -> None:
        """Leave the election at once, so that the next one leads."""
        self._closing = True
        self._wake.set()
        _close(self._client)
        if self._thread.ident is not None:
            self._thread.join(self._session_s)

    # ------------------------------------------------------------------ the lease
    def may_act(self, wait_ms: float) -> bool:
        """Whether this process leads for certain; waits at most this long. DeposedError if it will not any more."""
        if self._leased():
            return True
        with self._news:
            self._news.wait_for(lambda: self._leased() or bool(self._deposed), wait_ms / 1000.0)
        self._check_over()
        return self._leased()

    def _leased(self) -> bool:
        confirmed_s = self._confirmed_s
        return not self._deposed and confirmed_s is not None and _now_s() - confirmed_s < self._session_s / 2

    def _check_over(self) -> None:
        """DeposedError once the place in the election is, or may by now be, another's."""
        confirmed_s = self._confirmed_s
        if not self._deposed and confirmed_s is not None and _now_s() - confirmed_s >= self._session_s:
            self._depose(f"ZooKeeper has confirmed nothing for {_now_s() - confirmed_s:.1f} s")
        if self._deposed:
            raise DeposedError(f"this scheduler (term {self.term}) leads no more: {self._deposed}")

    def _depose(self, reason: str) -> None:
        with self._news:
            self._deposed = self._deposed or reason
            self._news.notify_all()
        self._wake.set()

    # ------------------------------------------------------------------ the election, in its own thread
    def _on_state(self, state: str) -> None:
        if not self._closing:
            log.log(
                logging.INFO if state == "CONNECTED" else logging.WARNING, "ZooKeeper at %s: %s", self._hosts, state
            )
            if state == "LOST" and self._place:
                self._depose("its session with ZooKeeper is over")
        self._wake.set()

    def _on_change(self, event: object) -> None:
        self._wake.set()

    def _campaign(self) -> None:
        while not (self._closing or self._deposed):
            self._wake.clear()
            try:
                wait_s = self._confirm() if self._place else self._try_place()
            except _AWAY:
                wait_s = RETRY_S
            except KazooException as error:
                log.warning("ZooKeeper refuses this candidate: %s: %s", type(error).__name__, error)
                wait_s = RECONNECT_S
            if wait_s:
                self._wake.wait(wait_s)

    def _ask(self, result: Any) -> Any:
        return result.get(timeout=self._session_s)

    def _try_place(self) -> float:
        """Take a node in the election, or look whether it is the first; returns how long to wait."""
        if not self._client.connected:
            return RETRY_S
        election = f"{self.path}/election"
        try:
            nodes = self._ask(self._client.get_children_async(election))
        except NoNodeError:
            nodes = []
        order = sorted(nodes, key=lambda node: node.rpartition("-")[2])
        mine = next((node for node in order if node.startswith(self._name)), None)
        if mine is None:
            self._ask(self._client.create_async(
                f"{election}/{self._name}-", b"", ephemeral=True, sequence=True, makepath=True
            ))  # fmt: skip
            return 0.0
        ahead = order[: order.index(mine)]
        if ahead:
            there = self._ask(self._client.exists_async(f"{election}/{ahead[-1]}", self._on_change))
            return RECHECK_S if there is not None else 0.0
        asked_s = _now_s()
        if not self._is_mine(f"{election}/{mine}"):
            return RETRY_S  # left over from a session before; it is going away
        with self._news:
            self._place, self._confirmed_s = f"{election}/{mine}", asked_s
            self._news.notify_all()
        return 0.0

    def _is_mine(self, place: str) -> bool:
        """Ask ZooKeeper's leader, not only the server at hand, whether the place is there and of this session."""
        self._ask(self._client.sync_async(place))
        there = self._ask(self._client.exists_async(place))
        session = self._client.client_id
        return there is not None and session is not None and there.ephemeralOwner == session[0]

    def _confirm(self) -> float:
        asked_s = _now_s()
        if not self._is_mine(self._place):
            self._depose("its place in the election is gone")
            return 0.0
        with self._news:
            self._confirmed_s = asked_s
            self._news.notify_all()
        return self._session_s / CONFIRMATIONS_IN_SESSION

    # ------------------------------------------------------------------ the state
    def load(self) -> bytes | None:
        """The state that was written last; None for a new cluster. `claim` holds only if it is still that one.

        Raises ConfigurationError if it cannot be read, DeposedError.
        """
        while True:
            try:
                self._settled(self._client.sync_async, self.path)
                data, stat = self._settled(self._client.get_async, f"{self.path}/state")
            except NoNodeError:
                self._head, self._version = None, -1
                return None
            try:
                head = _decode_head(data)
            except msgspec.MsgspecError as error:
                raise ConfigurationError(f"{self.path}/state: not written by this version of ecrec: {error}") from error
            if head.format != FORMAT:
                raise ConfigurationError(f"{self.path}/state has format {head.format}, expected {FORMAT}")
            try:
                names = [f"{self.path}/pieces/{name}" for name in head.pieces]
                pieces = [self._settled(self._client.get_async, name)[0] for name in names]
            except NoNodeError:
                now = self._settled(self._client.get_async, f"{self.path}/state")[1]
                if now.version == stat.version:
                    raise ConfigurationError(f"{self.path}: a piece of the state is missing") from None
                continue  # the leader before wrote another state meanwhile
            self._head, self._version = head, stat.version
            return unpack_state(head, pieces)

    def claim(self, endpoint: str) -> bool:
        """Become the leader, with the state as it was loaded, and be found at ``endpoint``.

        False: it was written since, load it again. DeposedError.
        """
        old = self._head
        if old is None:
            head, _ = pack_state(None, next_term(0), 0)
        else:
            head = msgspec.structs.replace(old, term=next_term(old.term), write=0)
        self._make_paths()
        leader = _encode((head.term, endpoint))
        if not self._write(head, lambda transaction: transaction.set_data(f"{self.path}/leader", leader)):
            return False
        self.term, self._head = head.term, head
        self._sweep(head)
        return True

    def save(self, state: bytes) -> None:
        """Write the state; DeposedError if it is, or may be, no longer this leader's to write."""
        self._writes += 1
        head, pieces = pack_state(state, self.term, self._writes)
        for name, piece in zip(head.pieces, pieces, strict=True):
            try:
                self._settled(self._client.create_async, f"{self.path}/pieces/{name}", piece)
            except NodeExistsError:
                continue  # by a first try whose answer was lost: names are used once
            except NoNodeError as error:
                raise ClusterError(f"{self.path}/pieces is gone: was the cluster deleted from ZooKeeper?") from error
        if not self._write(head):
            self._depose("another scheduler has written the state")
            self._check_over()
        old, self._head = self._head, head
        for name in old.pieces if old else ():
            self._client.delete_async(f"{self.path}/pieces/{name}")  # one that stays is swept by the next leader

    def note(self, level: str, text: str) -> None:
        """Events for people are in the log; ZooKeeper has no room for them."""

    def _make_paths(self) -> None:
        for path in ("pieces", "leader"):
            try:
                self._settled(partial(self._client.create_async, f"{self.path}/{path}", b"", makepath=True))
            except NodeExistsError:
                continue

    def _sweep(self, head: Head) -> None:
        """Delete pieces that a dead leader left. Those of this term or later are not touched: they are in use."""
        for name in self._settled(self._client.get_children_async, f"{self.path}/pieces"):
            if name not in head.pieces and int(name.partition("-")[0]) < self.term:
                self._client.delete_async(f"{self.path}/pieces/{name}")

    def _write(self, head: Head, more: Callable[[Any], None] | None = None) -> bool:
        """Write the head at the version known, once. False: another one is there. DeposedError."""
        data = _encode(head)

        def attempt() -> Any:
            transaction = self._client.transaction()
            transaction.check(self._place, 0)
            if self._version < 0:
                transaction.create(f"{self.path}/state", data)
            else:
                transaction.set_data(f"{self.path}/state", data, self._version)
            if more is not None:
                more(transaction)
            return transaction.commit_async()

        asked_s = _now_s()
        results = self._settled(attempt)
        failures = [result for result in results if isinstance(result, Exception)]
        if not failures:
            self._version = 0 if self._version < 0 else results[1].version
            with self._news:
                self._confirmed_s = max(self._confirmed_s or 0.0, asked_s)
            return True
        # It may have been carried out by a first try whose answer was lost.
        try:
            there, stat = self._settled(self._client.get_async, f"{self.path}/state")
        except NoNodeError:
            there, stat = b"", None
        if there == data and stat is not None:
            self._version = stat.version
            return True
        if any(isinstance(failure, NoNodeError) for failure in failures):
            self._depose("its place in the election, or the cluster, is gone from ZooKeeper")
            self._check_over()
        if not any(isinstance(failure, BadVersionError | NodeExistsError) for failure in failures):
            raise ClusterError(f"{self.path}/state cannot be written: {failures}")
        return False

    def _settled(self, start: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a request, which is asked again while the connection is away. DeposedError after a session."""
        while True:
            self._check_over()
            left_s = self._session_s - (_now_s() - (self._confirmed_s or 0.0))
            try:
                return start(*arguments).get(timeout=max(left_s, RETRY_S))
            except (NoNodeError, NodeExistsError):
                raise
            except _AWAY as error:
                log.warning("ZooKeeper does not answer: %s", type(error).__name__)
                with self._news:
                    self._news.wait_for(lambda: bool(self._deposed), RETRY_S)
            except KazooException as error:
                raise ClusterError(f"ZooKeeper refuses a request: {type(error).__name__}: {error}") from error
