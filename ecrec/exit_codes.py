"""The exit codes of all programs: one table. docs/operations.md shows it, and a test compares the two."""

from enum import IntEnum

from ecrec.errors import ConfigurationError, DataError, DataLostError, FencedError


class ExitCode(IntEnum):
    """What a program ends with. A number means the same in every program."""

    def __new__(cls, number: int, means: str) -> "ExitCode":
        code = int.__new__(cls, number)
        code._value_ = number
        code.means = means
        return code

    means: str
    """For `--help` and the documentation."""

    DONE = 0, "done; of a server: ended by SIGTERM without loss, or by SIGINT"
    FAILED = 1, "failed; the last line says why"
    OPTIONS = 2, "invalid options, files, addresses or data; to start it again unchanged does not help"
    DATA_LOST = 3, "data was lost: more servers died than the code tolerates"
    STATE = 4, "the scheduler's state cannot be written"
    MEMORY = 5, "out of memory"
    HALF_HANDLED = 6, "an error inside ecrec in the middle of an event"
    OUTDATED = 7, "the scheduler's state is older than its cluster, or another cluster's"
    LEFT_EARLY = (
        8,
        "a server was ended by --leave-timeout-ms or a second SIGTERM before it could leave; data may be lost",
    )
    REPLACED = 9, "the cluster goes on without this process: another one has its place"
    DAMAGED = 10, "parity, acknowledged updates, a checkpoint or files of data are not as they must be"
    REPAIRED = 11, "damage was found, and all of it is repaired"
    NO_SCHEDULER = 12, "no scheduler answered within --scheduler-timeout-ms"
    CLEANUP = 120, "a script ended well, and pushes of a session that it did not close were lost, or servers are dead"
    INTERRUPTED = 130, "interrupted by SIGINT, or by SIGTERM where that is no request to leave"


def exit_codes_help(*codes: ExitCode) -> str:
    """The sentence for `--help` of a program that ends with one of these."""
    return "Exit codes: " + "; ".join(f"{code:d} {code.means}" for code in codes) + "."


def exit_code(error: BaseException) -> ExitCode:
    """What a program that is ended by an error exits with."""
    if isinstance(error, ConfigurationError | DataError):
        return ExitCode.OPTIONS
    if isinstance(error, DataLostError):
        return ExitCode.DATA_LOST
    return ExitCode.REPLACED if isinstance(error, FencedError) else ExitCode.FAILED
