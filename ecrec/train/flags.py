"""Options of a program that stand in one place: a field of a class of options, with a `Flag` in its annotation.

The field has the name, the type and the default; the `Flag` has the help and what may be given. From these come the
flag on the command line, its check, and the value of the field: a new option is one field.
"""

import inspect
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

    ``name``: of the flag, where it is not the field's. ``at_least``, ``choices``: what may be given. ``kind``: the type
    on the command line, where it is not the field's. ``parse(flag, given)``: the field's value of what is given there;
    ``show`` the other way round, for the default.
    """

    help: str
    at_least: float | None = None
    choices: tuple[str, ...] = ()
    name: str = ""
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


@dataclass(frozen=True)
class Option:
    """A field with its flag."""

    field: str
    name: str
    """``--batch``"""
    kind: Any
    """Of the field, without None."""
    default: Any
    flag: Flag


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


def command(options: type[OptionsT]) -> Callable[[Callable[[OptionsT], None]], Callable[..., None]]:
    """Make of a function of options one that typer can call: its parameters are the flags."""
    all_ = options_of(options)

    def of(run: Callable[[OptionsT], None]) -> Callable[..., None]:
        def call(**given: Any) -> None:
            run(options(**{each.field: _value(each, given[each.field]) for each in all_}))

        parameters = [_parameter(each) for each in all_]
        call.__name__, call.__doc__ = run.__name__, run.__doc__
        call.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call

    return of


def check(options: msgspec.Struct) -> None:
    """Raise ConfigurationError, naming the flag, for the first field whose value its flag does not allow."""
    for each in options_of(type(options)):
        each.flag.check(each.name, getattr(options, each.field))


def _parameter(option: Option) -> inspect.Parameter:
    import typer  # workers have options too, and no command line

    flag, default = option.flag, option.default
    kind: Any = str if flag.parse else flag.kind or option.kind
    if kind == tuple[str, ...]:
        kind, default = list[str] | None, None
    elif default is None:
        kind = kind | None
    elif flag.parse:
        default = flag.show(default)
    annotation = Annotated[kind, typer.Option(option.name, help=flag.help)]
    return inspect.Parameter(option.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(option: Option, given: Any) -> Any:
    """Of the field, for what the command line gives."""
    flag = option.flag
    if option.kind == tuple[str, ...]:
        return tuple(given or ())
    return flag.parse(option.name, given) if flag.parse and given is not None else given
