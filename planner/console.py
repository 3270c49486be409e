"""How a command ends: its answer and 0, or one line on standard error and 2 for a user's mistake.

Used by `plan` and `executor` alike; a traceback on the terminal is a bug of ours.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from cost_models.errors import InputError

OURS = ("cost_models", "planner", "executor", "longvila")
"""A missing module of these is a bug; any other is a package of an extra that was not installed."""


class NoEmpty(click.Command):
    """A command that takes an empty text for a mistake, such as a shell's unset variable: `-o ""` is not no `-o`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            given = ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
            if given and "" in (value if isinstance(value, tuple) else (value,)):
                name = parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.human_readable_name
                raise InputError(f"{name} '' is empty; give a value, or leave it out")
        return rest


class NoEmptyGroup(NoEmpty, click.Group):
    """The same for a group and the commands made by its decorator."""

    command_class = NoEmpty


def run(command: click.Group, name: str) -> None:
    """Run a click command as a console script."""
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except InputError as error:
        _fail(name, getattr(error, "problem", str(error)), getattr(error, "remedies", ()))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else name
        _fail(name, f"{error.format_message().rstrip('.')}; see {where} --help")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        _fail(name, f"needs the package {error.name}, which is not installed: pip install 'mmsp[executor]'")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        if error.filename is None:
            _fail(name, f"the answer cannot be written: {error.strerror}")
        _fail(name, f"{str(error.filename)[:100]!r} cannot be used: {error.strerror}")
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(name: str, message: str, remedies: tuple[str, ...] = ()) -> None:
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    for remedy in remedies:
        click.echo(f"  - {remedy}", err=True)
    sys.exit(2)


class Progress:
    """What a command is doing, on a terminal's stderr: a spinner, or a bar where there is a `total`; else nothing."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.shown: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            words = progress.TextColumn("{task.description}")
            bar = (words, progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
            columns = (progress.SpinnerColumn(), words) if self.total is None else bar
            self.shown = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self.shown.start()
            self.task = self.shown.add_task("planning", total=self.total)
        return self

    def show(self, what: str) -> None:
        if self.shown is not None:
            self.shown.update(self.task, description=what)

    def advance(self, done: int, of: int) -> None:
        if self.shown is not None:
            self.shown.update(self.task, completed=done, total=of)

    def each(self, parts: Iterable[str], total: int) -> Iterator[str]:
        """`parts`, of which `total` are to come: the bar says how many have."""
        for done, part in enumerate(parts, 1):
            yield part
            self.advance(done, total)

    def __exit__(self, *exc: object) -> None:
        if self.shown is not None:
            self.shown.stop()
