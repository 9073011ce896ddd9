"""Keys: who a node is, who its servers are, and who may connect to it (CurveZMQ, RFC 26; ZAP, RFC 27).

A *curve directory* holds all of it, one file a key, in the text format of ``zmq.auth``::

    own.key_secret       this node's key pair; it is the only secret, and nobody else may read the file
    own.key              its public key, to be handed out
    servers/HOST.key     public key of the servers at HOST, as their endpoints name it
    servers/default.key  public key of the servers at all other hosts (and at ipc endpoints)
    allowed/NAME.key     public keys that may connect here; only a scheduler or parameter server reads them

A server encrypts everything and takes nothing but from a key in ``allowed/``, compared as a whole. Of those, only
a key that is also in ``servers/`` may speak as a scheduler or shard; all others are workers and tools. ``servers/`` and
``allowed/`` are looked at for each new connection: a key that is added counts at once, one that is removed
gets no new connection, and what it has open stays until it is closed or the server is started again.
"""

import os
import re
import stat
import struct
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from ecrec.errors import ConfigurationError

SECRET, PUBLIC = "own.key_secret", "own.key"
SERVERS, ALLOWED = "servers", "allowed"
DEFAULT_SERVER = "default"

CERTIFICATE_BYTES_MAX = 4096
KEY_CHARACTERS = 40
"""Of a key in a certificate: 32 bytes as Z85 text."""

_NAME = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,199}")
"""Hosts and names of keys: what is safe as the name of a file."""

_HEADER = "#   {what} of {name!r} for ecrec (CURVE), made by `ecrec keygen`.\n"
_BODY = 'metadata\n    name = "{name}"\ncurve\n    public-key = "{public}"\n'
_SECRET_LINE = '    secret-key = "{secret}"\n'

Signature = tuple[tuple[str, str, int, int], ...]


class Visitor(NamedTuple):
    """Whose key a connection has proven to own."""

    name: str
    server: bool
    """It may speak as a scheduler or shard."""


class CurveKeys:
    """A curve directory in use. Make it by `load`."""

    def __init__(self, directory: Path, public: bytes, secret: bytes) -> None:
        self.directory = directory
        self.public = public
        self.secret = secret
        self._seen: Signature | None = None
        self._visitors: dict[bytes, Visitor] = {}

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "CurveKeys":
        """Read the own key pair. ConfigurationError, saying what to do, if it is not there, or others may read it."""
        path = Path(directory) / SECRET
        advice = "make a directory of keys by `ecrec keygen DIR`"
        try:
            status = path.stat()
        except OSError as error:
            raise ConfigurationError(f"curve directory {directory}: {path}: {error.strerror}; {advice}") from error
        mode = status.st_mode
        # A secret that Kubernetes mounts for a user who is not root is root's, and that user's group may read it.
        is_mounted = status.st_uid == 0 != os.getuid() and status.st_gid in (os.getgid(), *os.getgroups())
        if mode & (stat.S_IRWXO | (stat.S_IWGRP | stat.S_IXGRP if is_mounted else stat.S_IRWXG)):
            raise ConfigurationError(
                f"{path}: others may read this secret key (mode {stat.S_IMODE(mode):04o}); make a new one if they "
                f"did, or: chmod 600 {path}"
            )
        public, secret = _read(path)
        if secret is None:
            raise ConfigurationError(f"{path}: no secret key in it; {advice}")
        return cls(Path(directory), public, secret)

    def server_key(self, endpoint: str) -> bytes:
        """The public key that the server at this endpoint must own. ConfigurationError if none is named for it."""
        names = [DEFAULT_SERVER]
        if endpoint.startswith("tcp://"):
            host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
            if _NAME.fullmatch(host):
                names.insert(0, host)
        for name in names:
            path = self.directory / SERVERS / f"{name}.key"
            if path.is_file():
                return _read(path)[0]
        listed = " or ".join(f"{self.directory / SERVERS / name}.key" for name in names)
        raise ConfigurationError(f"no public key of the server at {endpoint}: expected it in {listed}")

    def visitor(self, key: bytes) -> Visitor | None:
        """Whose public key (as text) this is; None if it is not allowed."""
        signature = self._signature()
        if signature != self._seen:
            self._visitors = self._read_visitors()
            self._seen = signature
        return self._visitors.get(key)

    def _signature(self) -> Signature:
        found = []
        for part in (SERVERS, ALLOWED):
            try:
                with os.scandir(self.directory / part) as entries:
                    for entry in entries:
                        status = entry.stat()
                        found.append((part, entry.name, status.st_mtime_ns, status.st_size))
            except OSError:
                continue
        return tuple(sorted(found))

    def _read_visitors(self) -> dict[bytes, Visitor]:
        servers = {key for _, key in _read_all(self.directory / SERVERS)}
        return {key: Visitor(name, key in servers) for name, key in _read_all(self.directory / ALLOWED)}


def generate(directory: Path, name: str, join: Path | None = None) -> list[Path]:
    """Make a key pair, called ``name``, in a new curve directory; return the files written.

    Without ``join`` it is the directory of a cluster's servers: its key is the servers', and the only one allowed.
    With ``join``, the curve directory of servers, it is that of one who connects to them: it learns their keys, and
    its own is added to those that they allow.
    Raises ConfigurationError for a name that is no plain word, a key that is there already, or a directory that
    cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"name {name!r}: expected letters, digits, '-', '_' and '.'")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    own = _BODY.format(name=name, public=public)
    certificate = _HEADER.format(what="Public key", name=name) + own
    wanted: list[tuple[Path, str, int]] = []
    if join is None:
        wanted += [(directory / SERVERS / f"{DEFAULT_SERVER}.key", certificate, 0o644)]
        wanted += [(directory / ALLOWED / f"{name}.key", certificate, 0o644)]
    else:
        servers = sorted((join / SERVERS).glob("*.key"))
        if not servers:
            raise ConfigurationError(f"{join / SERVERS}: no public key; expected the directory of servers")
        wanted += [(directory / SERVERS / path.name, _text(path), 0o644) for path in servers]
        wanted += [(join / ALLOWED / f"{name}.key", certificate, 0o644)]
    secret_text = _HEADER.format(what="SECRET KEY", name=name) + own + _SECRET_LINE.format(secret=secret)
    wanted += [(directory / PUBLIC, certificate, 0o644), (directory / SECRET, secret_text, 0o600)]
    for path, _, _ in wanted:
        if path.exists():
            raise ConfigurationError(f"{path} exists: it is not written over; remove it or take another name")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, text, mode in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The mode is there from the start: at no time can others read the secret.
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
                file.write(text)
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return [path for path, _, _ in wanted]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(CERTIFICATE_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """Public and secret key of a certificate, as text. ConfigurationError if it is none."""
    found: dict[str, bytes] = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition("=")
        found[name.strip()] = value.strip(" \t'\"").encode()
    public, secret = found.get("public-key"), found.get("secret-key")
    for key in (public, secret):
        if key is not None and not _is_key(key):
            raise ConfigurationError(f"{path}: not a CURVE certificate: expected keys of {KEY_CHARACTERS} characters")
    if public is None:
        raise ConfigurationError(f'{path}: not a CURVE certificate: no line public-key = "..."')
    return public, secret


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == KEY_CHARACTERS and len(z85.decode(key)) == 32
    except (KeyError, ValueError, struct.error):
        return False


def _read_all(directory: Path) -> list[tuple[str, bytes]]:
    """(name, public key) of all certificates; what is not one is left out, so that a bad file locks nobody out."""
    found = []
    for path in sorted(directory.glob("*.key")):
        try:
            found.append((path.stem, _read(path)[0]))
        except ConfigurationError:
            continue
    return found
