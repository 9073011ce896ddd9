"""Names of schedulers and of coordinators, and how the coordinator of a name is reached.

A scheduler is named by ``tcp://HOST:PORT`` or ``ipc://PATH``, where one listens, or by
``zk://HOST:PORT[,HOST:PORT...]/PATH``: a ZooKeeper through which several schedulers stand by for each other; or by
``file:///PATH``: a file that all hosts see, in which the scheduler writes where it listens.
"""

import re
from typing import TYPE_CHECKING

from ecrec.errors import ConfigurationError
from ecrec.transport.endpoint_file import FileWatch
from ecrec.transport.leadership import LeaderWatch, Location

if TYPE_CHECKING:
    from ecrec.transport.zookeeper import Candidate

SCHEME = "zk://"
FILE_SCHEME = "file://"
_HOST = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_PATH = re.compile(r"(/[A-Za-z0-9_.-]+)+")


def is_coordinator(scheduler: str) -> bool:
    """Whether a scheduler is named by its coordinator, or a file, and not by its endpoint."""
    return scheduler.startswith((SCHEME, FILE_SCHEME))


def nobody_leads(scheduler: str) -> str:
    """Why no endpoint is known of a scheduler that is named so."""
    if scheduler.startswith(FILE_SCHEME):
        return "no scheduler has written its endpoint there; was ecrec-scheduler started with this --endpoint-file"
    return "ZooKeeper names no scheduler that leads; does it run there, and was ecrec-scheduler started with it"


def parse(name: str) -> Location:
    """Take a ``zk://`` name apart. Raises ConfigurationError that says what was expected."""
    hosts, slash, rest = name.removeprefix(SCHEME).partition("/")
    path = slash + rest.rstrip("/")
    found = [_HOST.fullmatch(host) for host in hosts.split(",")]
    if not (name.startswith(SCHEME) and all(m and 1 <= int(m[2]) <= 65535 for m in found) and _PATH.fullmatch(path)):
        raise ConfigurationError(f"coordinator {name!r}: expected zk://HOST:PORT[,HOST:PORT...]/PATH")
    return Location(hosts, path)


def watch_leader(name: str) -> LeaderWatch:
    """Begin to follow the leader of a ``zk://`` or ``file://`` name; does not wait for ZooKeeper.

    Raises ConfigurationError for a name that cannot be one, or without kazoo.
    """
    if name.startswith(FILE_SCHEME):
        path = name.removeprefix(FILE_SCHEME)
        if not path.startswith("/") or path.endswith("/"):
            raise ConfigurationError(
                f"scheduler {name!r}: expected file:///PATH, the --endpoint-file of ecrec-scheduler"
            )
        return FileWatch(path)
    location = parse(name)
    try:
        from ecrec.transport.zookeeper import ZooKeeperWatch
    except ImportError as error:
        raise _missing(name, error) from error
    return ZooKeeperWatch(location)


def candidate(name: str, session_timeout_ms: int) -> "Candidate":
    """Stand for election as the leading scheduler; does not wait for ZooKeeper. Raises as `watch_leader`."""
    location = parse(name)
    try:
        from ecrec.transport.zookeeper import Candidate
    except ImportError as error:
        raise _missing(name, error) from error
    return Candidate(location, session_timeout_ms)


def _missing(name: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(f'{name}: ZooKeeper needs kazoo: pip install "ecrec[zookeeper]" ({error})')
