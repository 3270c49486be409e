"""`python -m longvila.JOB settings.yaml [key=value …]`: a job in one process; a user's mistake is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from longvila.job import Job, JobError
from longvila.settings import read_changed


@contextmanager
def one_line() -> Iterator[None]:
    """A JobError inside, or in the function below it, ends the process: one line on standard error, exit code 2."""
    try:
        yield
    except JobError as error:
        print(f"longvila: {error}", file=sys.stderr)
        sys.exit(2)


def run_command(command: click.Command, arguments: Sequence[str] | None = None) -> None:
    """Run a click command as a script: what it cannot read of its options is one line, too."""
    try:
        with one_line():
            code = command.main(arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        words = " ".join(error.format_message().split()).rstrip(".")
        print(f"longvila: {words}; see --help", file=sys.stderr)
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


@one_line()
def run(job: str, main: Callable[[Job], None], arguments: Sequence[str]) -> None:
    """Run the job; `job` is the module's name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        raise JobError(f"usage: python -m {job} settings.yaml [key=value ...]")
    main(Job(config=read_changed(arguments[0], arguments[1:])))
