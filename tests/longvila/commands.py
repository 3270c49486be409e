"""A command of longvila run as its script runs it, in this process."""

import contextlib
import io

import click
import pytest

from longvila.one_process import run_command


def ran(command: click.Command, *words: object) -> tuple[int, str]:
    """(exit code, what it says on standard error, else on standard output)."""
    told, said = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        run_command(command, [str(word) for word in words])
    return int(ended.value.code or 0), said.getvalue().strip() or told.getvalue().strip()
