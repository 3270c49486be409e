"""`python -m longvila.JOB settings.yaml [key=value …]`: a job in one process, whose JobError is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from longvila.files import read_text
from longvila.job import Job, JobError
from longvila.settings import read_yaml


@contextmanager
def one_line() -> Iterator[None]:
    """A JobError inside, or in the function below it, ends the process: one line on standard error, exit code 2."""
    try:
        yield
    except JobError as error:
        print(f"longvila: {error}", file=sys.stderr)
        sys.exit(2)


@one_line()
def run(job: str, main: Callable[[Job], None], arguments: Sequence[str]) -> None:
    """Run the job; `job` is the module's name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        raise JobError(f"usage: python -m {job} settings.yaml [key=value ...]")
    given = read_yaml(read_text(Path(arguments[0]), ""), arguments[0])
    for text in arguments[1:]:
        key, sign, value = text.partition("=")
        if not sign:
            raise JobError(f"{text!r} is not key=value")
        given[key] = yaml.safe_load(value)
    main(Job(config=given))
