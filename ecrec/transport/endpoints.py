"""Endpoints: where a node listens, and by which address the others reach it."""

import ipaddress
import re
from typing import NamedTuple

from ecrec.errors import ConfigurationError

IPC_PATH_BYTES_MAX = 107
"""What a socket address of the operating system has room for."""

WILDCARDS = ("0.0.0.0", "*", "::")
"""All addresses of a machine: to listen at, never to connect to."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_NAME_CHARACTERS_MAX = 253


class Endpoint(NamedTuple):
    """``tcp://HOST:PORT`` or ``ipc://PATH``, taken apart."""

    host: str
    """A name, or an address (of IPv6 without its brackets); empty for ipc."""
    port: int
    path: str = ""

    @property
    def text(self) -> str:
        return f"ipc://{self.path}" if self.path else tcp(self.host, self.port)


def tcp(host: str, port: int) -> str:
    """The endpoint of a host's port. Addresses of IPv6 get their brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def parse(endpoint: str, port_min: int = 1) -> Endpoint:
    """Raise ConfigurationError for what is neither ``tcp://HOST:PORT`` nor ``ipc://PATH``, saying why.

    ZeroMQ would take port 99999 for 34463, and cut a path off.
    """
    scheme, separator, rest = endpoint.partition("://")
    if scheme == "tcp" and separator:
        host, _, port = rest.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        plain = host[1:-1] if bracketed else host
        fine = is_host(plain) or (plain == "*" and not bracketed)
        fine = fine and bracketed == (":" in plain) and port.isascii() and port.isdigit() and len(port) <= 5
        if fine and port_min <= int(port) <= 65535:
            return Endpoint(plain, int(port))
    elif scheme == "ipc" and separator and rest:
        if len(rest.encode()) <= IPC_PATH_BYTES_MAX:
            return Endpoint("", 0, rest)
        raise ConfigurationError(f"endpoint {endpoint!r}: its path has more than {IPC_PATH_BYTES_MAX} bytes")
    raise ConfigurationError(
        f"endpoint {endpoint!r}: expected tcp://HOST:PORT with a port from {port_min} to 65535 and an address of IPv6 "
        "in brackets, or ipc://PATH"
    )


def is_address(host: str) -> bool:
    """Whether it is a number of IPv4 or IPv6, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_host(host: str) -> bool:
    """Whether it can be the address or the name of a host (RFC 1123, and underscores, which some names have)."""
    if is_address(host):
        return True
    # What consists of numbers alone is an address that was mistyped, not a name.
    mistyped = host.replace(".", "").isdigit()
    return len(host) <= _NAME_CHARACTERS_MAX and _NAME.fullmatch(host) is not None and not mistyped


def is_ipc(endpoint: str) -> bool:
    """Whether it is a socket of the file system."""
    return endpoint.startswith("ipc://")


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach what is bound there."""
    if is_ipc(endpoint):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host in ("localhost", "lo"):
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback
