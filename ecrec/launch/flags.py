"""Options of a program that stand in one place: a field of a class of options, with a `Flag` in its annotation.

The field has the name, the type and the default; the `Flag` has the help and what may be given. From these come the
flag on the command line, its check, and the value of the field: a new option is one field. `program.py` makes the
command lines of servers and workers of it, `commands.py` those of ``ecrec``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from ecrec.errors import ConfigurationError

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


@dataclass(frozen=True)
class Flag:
    """What a field of options is on the command line.

    ``name``: of the flag, where it is not the field's; ``short``: a second one, of one letter. ``at_least``,
    ``at_most``, ``choices``: what may be given; ``metavar``: what `--help` calls it. ``kind``: the type on the command
    line, where it is not the field's. ``parse(flag, given)``: the field's value of what is given there; ``show`` the
    other way round, for the default.
    """

    help: str
    at_least: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    name: str = ""
    short: str = ""
    metavar: str = ""
    kind: type | None = None
    parse: Callable[[str, str], Any] | None = None
    show: Callable[[Any], str] = str

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigurationError, naming the flag, for a value of its field that is not allowed."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise ConfigurationError(f"{name} {value!r}: expected one of {', '.join(self.choices)}")
        if self.at_least is not None and value < self.at_least:
            text = f"be at least {self.at_least:g}" if self.at_least else "not be negative"
            raise ConfigurationError(f"{name} {value}: must {text}")
        if self.at_most is not None and value > self.at_most:
            raise ConfigurationError(f"{name} {value}: must be at most {self.at_most:g}")


@dataclass(frozen=True)
class Option:
    """A field with its flag."""

    field: str
    name: str
    """``--batch``"""
    kind: Any
    """Of the field, without None."""
    default: Any
    """`msgspec.NODEFAULT` where it must be given."""
    flag: Flag

    @property
    def is_repeatable(self) -> bool:
        return bool(self.kind == tuple[str, ...])

    @property
    def kind_given(self) -> Any:
        """The type on the command line, of each where it is repeatable."""
        return str if self.flag.parse or self.is_repeatable else self.flag.kind or self.kind

    def value(self, given: Any) -> Any:
        """Of the field, for what the command line gives. Raises what ``parse`` of the flag raises."""
        if self.is_repeatable:
            return tuple(given or ())
        return self.flag.parse(self.name, given) if self.flag.parse and given is not None else given


def options_of(options: type[msgspec.Struct]) -> list[Option]:
    """In order. Raises TypeError for a field without a flag: it would be an option that nobody can give."""
    hints = get_type_hints(options, include_extras=True)
    found = []
    for field in msgspec.structs.fields(options):
        if get_origin(hints[field.name]) is not Annotated:
            raise TypeError(f"{options.__name__}.{field.name} has no Flag in its annotation")
        kind, flag = get_args(hints[field.name])
        if isinstance(kind, UnionType):
            (kind,) = (each for each in get_args(kind) if each is not NoneType)
        name = flag.name or "--" + field.name.replace("_", "-")
        found.append(Option(field.name, name, kind, field.default, flag))
    return found


def check(options: msgspec.Struct) -> None:
    """Raise ConfigurationError, naming the flag, for the first field whose value its flag does not allow."""
    for each in options_of(type(options)):
        each.flag.check(each.name, getattr(options, each.field))
