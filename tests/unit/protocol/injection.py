"""Exceptions in the middle of an event, at every place of the protocol's code; what a machine holds, to compare."""

import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, FunctionType, MethodType
from typing import Any

import msgspec
import numpy as np

from ecrec import _native, protocol

SOURCES = str(Path(protocol.__file__).parent)


class Injection:
    """Raises an error at the n-th line of the protocol that runs; counts lines with ``place`` None."""

    def __init__(self, place: int | None, error: Exception | None) -> None:
        self.lines = 0
        self.place = place
        self.error = error
        self.where = ""

    def __call__(self, frame: FrameType, what: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES) or frame.f_code.co_name in ("<genexpr>", "checked"):
            return None
        if frame.f_code.co_name == "handle":
            return self
        # Between the one native call that checks and acts, and the word that it did, nothing can be raised.
        if what == "line" and "checked()" not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            if self.lines == self.place and self.error is not None:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                self.lines += 1
                raise self.error
            self.lines += 1
        return self

    def during(self, call: Callable[[], Any]) -> Any:
        """The result of a call in which the error is raised."""
        sys.settrace(self)
        try:
            return call()
        finally:
            sys.settrace(None)


def places(call: Callable[[], Any], places_max: int) -> Iterator[int]:
    """Places of a call, from its first line to its last."""
    counting = Injection(None, None)
    counting.during(call)
    yield from sorted({round(i * (counting.lines - 1) / (places_max - 1)) for i in range(places_max)})


def held(thing: Any, without: frozenset[str] = frozenset(), seen: set[int] | None = None) -> Any:
    """All that an object holds, its parts included, as values that can be compared. ``without``: names left out.

    What several parts share is there once.
    """
    seen = set() if seen is None else seen
    if thing is None or isinstance(thing, bool | int | float | str | bytes | type | FunctionType | MethodType):
        return thing if not isinstance(thing, FunctionType | MethodType) else thing.__qualname__
    if type(thing).__module__ == _native.__name__:
        return type(thing).__name__  # what it holds is compared by its own means
    if id(thing) in seen:
        return "..."
    seen.add(id(thing))
    if isinstance(thing, dict):
        return sorted((repr(held(k, without, seen)), held(v, without, seen)) for k, v in thing.items())
    if isinstance(thing, set | frozenset):
        return sorted(repr(held(item, without, seen)) for item in thing)
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    if isinstance(thing, msgspec.Struct):
        names = thing.__struct_fields__
    elif hasattr(thing, "__dict__"):
        names = tuple(vars(thing))
    elif hasattr(type(thing), "__slots__") and not isinstance(thing, tuple):
        names = tuple(type(thing).__slots__)
    else:
        return [held(item, without, seen) for item in thing]
    return type(thing).__name__, [(n, held(getattr(thing, n), without, seen)) for n in names if n not in without]
