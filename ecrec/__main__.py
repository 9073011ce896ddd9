"""``ecrec`` and ``python -m ecrec``: `ecrec.cli`, or what to install for it.

A server comes without the packages that make this command line.
"""

import sys

from ecrec.exit_codes import ExitCode

OF_CLI = ("typer", "rich")
"""What the extra ``cli`` brings."""


def main() -> None:
    try:
        from ecrec import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OF_CLI:
            raise
        print(
            f'error: the command ecrec needs {package}, which is missing: pip install "ecrec[cli]" (ecrec-ps, '
            "ecrec-scheduler and ecrec-worker need neither)",
            file=sys.stderr,
        )
        sys.exit(ExitCode.FAILED)
    cli.main()


if __name__ == "__main__":
    main()
