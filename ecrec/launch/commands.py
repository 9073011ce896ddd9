"""Commands of ``ecrec``: made by typer, of functions and of classes of options (`flags.py`).

typer comes with the extra ``cli``; servers and workers have none, their command lines are made by `program.py`.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.main import get_command

from ecrec.launch import variables
from ecrec.launch.flags import Option, OptionsT, options_of


class _Either(list[str]):
    """Variables of which one is enough, as an error names them."""

    def __str__(self) -> str:
        return " or ".join(self)


def run(app: typer.Typer, prefix: str) -> Any:
    """Run a program with the arguments of this process. ``prefix``: of its variables, such as ``ECREC``."""
    return with_variables(app, prefix)()


def with_variables(app: typer.Typer, prefix: str) -> Any:
    """The click command of a program, each of whose flags has its variable."""
    command = get_command(app)
    variables.warn_of_unknown(dict(_name(command, prefix)))
    return command


def command(options: type[OptionsT]) -> Callable[[Callable[[OptionsT], None]], Callable[..., None]]:
    """Make of a function of options one that typer can call: its parameters are the flags."""
    all_ = options_of(options)

    def of(run: Callable[[OptionsT], None]) -> Callable[..., None]:
        def call(**given: Any) -> None:
            run(options(**{each.field: each.value(given[each.field]) for each in all_}))

        parameters = [_parameter(each) for each in all_]
        call.__name__, call.__doc__ = run.__name__, run.__doc__
        call.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call

    return of


def _parameter(option: Option) -> inspect.Parameter:
    flag, default = option.flag, option.default
    kind: Any = option.kind_given
    if option.is_repeatable:
        kind, default = list[str] | None, None
    elif default is None:
        kind = kind | None
    elif flag.parse:
        default = flag.show(default)
    annotation = Annotated[kind, typer.Option(option.name, help=flag.help)]
    return inspect.Parameter(option.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name(command: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Give each flag its variable; yields what the variables of a command begin with, and all of them."""
    if commands := getattr(command, "commands", None):
        for name, each in commands.items():
            yield from _name(each, variables.variable_of(prefix, name))
        return
    names = []
    for param in command.params:
        flag = next((opt for opt in getattr(param, "opts", ()) if opt.startswith("--")), None)
        if flag is not None:
            param.envvar = _Either(variables.variables_of(prefix, flag))
            names.append(param.envvar[0])
    yield f"{prefix}_", names
