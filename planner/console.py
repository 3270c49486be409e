"""How a command ends: its answer and 0, or one line on standard error and 2 for a user's mistake.

Used by `plan` and `executor` alike; a traceback on the terminal is a bug of ours.
"""

from __future__ import annotations

import sys

import click

from cost_models.errors import InputError


def run(command: click.Group, name: str) -> None:
    """Run a click command as a console script."""
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except InputError as error:
        _fail(name, getattr(error, "problem", str(error)), getattr(error, "remedies", ()))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        _fail(name, error.format_message() + f"; see {name} --help")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(name: str, message: str, remedies: tuple[str, ...] = ()) -> None:
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    for remedy in remedies:
        click.echo(f"  - {remedy}", err=True)
    sys.exit(2)
