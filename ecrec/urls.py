"""Names of files, which are paths or URLs: what is local, what people are shown of them, and what fsspec opens."""

import re
from typing import Any

from ecrec.errors import ConfigurationError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)(://|::)")
_PASSWORD = re.compile(r"//[^/\s]*@")
_QUERY = re.compile(r"\?[\w.%\-]+=\S*")
_REASON_MAX = 500


def is_url(name: str) -> bool:
    """It is for fsspec: it has a scheme, and that is not ``file``."""
    found = _SCHEME.match(name)
    return found is not None and found[0].lower() != "file://"


def shown(name: str) -> str:
    """A name or a text with names for people: without user, password, and the query of a URL, which may be signed."""
    return _QUERY.sub("?***", _PASSWORD.sub("//***@", name))


def without_query(name: str) -> str:
    """A name without the query of a URL: what tells the kind of a file by its end."""
    return _QUERY.sub("", name) if is_url(name) else name


def local_path(name: str) -> str:
    """The path that a name which is no URL for fsspec means. Raises ConfigurationError for ``file://`` with anything
    but an absolute path."""
    if not name.lower().startswith("file://"):
        return name
    path = name[len("file://") :].removeprefix("localhost")
    if not path.startswith("/"):
        raise ConfigurationError(f"URL {name!r}: expected file:///PATH, with an absolute path")
    return path


def file_system(url: str, extra: str) -> tuple[Any, str]:
    """The file system of a URL, of fsspec, and the path in it.

    ``extra``: of ecrec, that has fsspec. Raises ConfigurationError for a package that is missing, with what to install,
    and for a URL that fsspec cannot open.
    """
    try:
        import fsspec
    except ImportError as error:
        raise ConfigurationError(
            f"URL {shown(url)!r}: only local files are read and written without fsspec: "
            f'pip install "ecrec[{extra}]" ({error})'
        ) from error
    found = _SCHEME.match(url)
    scheme = f" for {found[0]}" if found is not None else ""
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigurationError(f"URL {shown(url)!r}: a package{scheme} is missing: {reason_of(error)}") from error
    except Exception as error:  # each file system has its own
        raise ConfigurationError(f"URL {shown(url)!r}: fsspec cannot open it: {reason_of(error)}") from error
    return system, path


def reason_of(error: BaseException) -> str:
    """For people: why something went wrong, without what `shown` leaves out."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(shown(str(reason))[:_REASON_MAX])


def printable(text: str) -> str:
    """With escapes for what a terminal would take for commands."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
