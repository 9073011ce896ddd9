"""The command lines of servers and workers, made of a class of options (`flags.py`) by argparse alone.

A server pulls in no framework for command lines: what it has to install, import and keep up to date is what it serves
with. What is given on the command line counts before a variable of the environment (`variables.py`), and that before
the default.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn

import msgspec

import ecrec
from ecrec.errors import ConfigurationError
from ecrec.exit_codes import ExitCode
from ecrec.launch import variables
from ecrec.launch.flags import Option, OptionsT, check, options_of

YES, NO = ("1", "true", "yes", "on", "y", "t"), ("0", "false", "no", "off", "n", "f")
"""What a variable of a flag without a value may say."""

_SCRIPT, _ARGUMENTS = "SCRIPT", "ARGUMENTS"
_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Program(Generic[OptionsT]):
    """A program: call it.

    ``run`` gets the options and returns the exit code; a ConfigurationError that it raises is said, and ends the
    program as invalid options do. With ``script_help`` two more arguments follow the flags, a script and what the
    script gets, and ``run`` gets both; flags behind the script are the script's.
    """

    name: str
    prefix: str
    """Of its variables, such as ``ECREC_PS``."""
    help: str
    options: type[OptionsT]
    run: Callable[..., int]
    script_help: str = ""

    def __call__(self, arguments: Sequence[str] | None = None) -> NoReturn:
        """Run it with the arguments, or those of this process, and end the process."""
        code: int = ExitCode.INTERRUPTED
        try:
            options, *script = self.parse(sys.argv[1:] if arguments is None else arguments, os.environ)
            code = self.run(options, *script)
        except ConfigurationError as error:
            self._refuse(str(error))
        except KeyboardInterrupt:
            pass
        sys.exit(code)

    @property
    def flags(self) -> dict[str, tuple[str, ...]]:
        """Each flag with its variables."""
        return {each.name: variables.variables_of(self.prefix, each.name) for each in options_of(self.options)}

    def parse(self, arguments: Sequence[str], environment: Mapping[str, str]) -> list[Any]:
        """The options; then, of a program with a script, the script and the list of its arguments.

        Raises ConfigurationError for values that no flag allows, SystemExit after `--help`, `--version` and for
        arguments that there are not.
        """
        given = vars(self._parser().parse_args(arguments))
        names = [variable for each in self.flags.values() for variable in each]
        variables.warn_of_unknown({f"{self.prefix}_": names})
        values = {}
        for option in options_of(self.options):
            value, source = given[option.field], option.name
            if value is None:
                variable = next((name for name in self.flags[option.name] if environment.get(name)), None)
                if variable is not None:
                    value, source = _of_variable(option, environment[variable], variable), f"{option.name} ({variable})"
            if value is not None:
                values[option.field] = option.value(_converted(option, value, source))
            elif option.default is msgspec.NODEFAULT:
                raise ConfigurationError(f"{option.name} is missing: give it, or set {self.flags[option.name][0]}")
        options = self.options(**values)
        check(options)
        return [options, given[_SCRIPT], given[_ARGUMENTS]] if self.script_help else [options]

    def _parser(self) -> argparse.ArgumentParser:
        usage = f"{self.name} [OPTIONS]" + (f" {_SCRIPT} [{_ARGUMENTS}]..." if self.script_help else "")
        parser = _Parser(
            self, prog=self.name, usage=usage, description=self.help, formatter_class=_Help, allow_abbrev=False
        )
        parser.add_argument("--version", action="version", version=f"{self.name} {ecrec.__version__}")
        for option in options_of(self.options):
            names = [name for name in (option.flag.short, option.name) if name]
            how: dict[str, Any] = {"dest": option.field, "default": None, "help": self._help_of(option)}
            if option.kind is bool:
                how |= {"action": "store_const", "const": "1"}
            else:
                how["metavar"] = option.flag.metavar or getattr(option.kind_given, "__name__", "value").upper()
                how["action"] = "append" if option.is_repeatable else "store"
            parser.add_argument(*names, **how)
        if self.script_help:
            parser.add_argument(_SCRIPT, help=self.script_help)
            rest = parser.add_argument(_ARGUMENTS, nargs=argparse.REMAINDER, help="Its arguments.")
            rest.required = False  # up to Python 3.12 it would be named where the script is missing
        return parser

    def _help_of(self, option: Option) -> str:
        notes = [f"env: {', '.join(self.flags[option.name])}"]
        if option.default is msgspec.NODEFAULT:
            notes.append("required")
        elif option.default is not False and option.default not in (None, "", ()):
            notes.append(f"default: {option.flag.show(option.default)}")
        return f"{option.flag.help} [{'; '.join(notes)}]".replace("%", "%%")

    def _refuse(self, text: str) -> NoReturn:
        print(f"error: {text}\n`{self.name} --help` shows all options.", file=sys.stderr)
        sys.exit(ExitCode.OPTIONS)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as our programs do, and not with all flags before it."""

    def __init__(self, program: Program[Any], **given: Any) -> None:
        super().__init__(**given)
        self._program = program

    def error(self, message: str) -> NoReturn:
        self._program._refuse(message)


class _Help(argparse.HelpFormatter):
    """Breaks no line inside of a flag or an address."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent("\n".join(self._split_lines(text, width - len(indent))), indent)


def _of_variable(option: Option, text: str, name: str) -> Any:
    """What the command line would give. Raises ConfigurationError for a flag that is neither on nor off."""
    if option.is_repeatable:
        return text.split()
    if option.kind is not bool:
        return text
    if text.lower() not in YES + NO:
        raise ConfigurationError(f"{name}={text!r}: expected {YES[1]} or {NO[1]}")
    return "1" if text.lower() in YES else "0"


def _converted(option: Option, text: Any, source: str) -> Any:
    """In the type of the command line. Raises ConfigurationError for a text that is none of it."""
    kind = option.kind_given
    if option.is_repeatable or kind is str:
        return text
    if kind is bool:
        return text == "1"
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(f"{source} {text!r}: expected {_KINDS[kind]}") from None
