"""Lines for a terminal: titles, lists that are broken where a line is full, and their printing.

On a terminal, or where COLUMNS says so, no line is wider than the screen: what does not fit goes on below, indented.
In a pipe or a file a line stays whole.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable

import click

INDENT = 10
"""Characters of a label, such as `Memory`, and what stands under it."""
WIDEST, NARROWEST = 104, 40


def title(text: str) -> str:
    """In bold, where the terminal has it."""
    return click.style(text, bold=True)


def screen_width() -> int | None:
    """Columns of the terminal that is printed to, or of COLUMNS; `None` of a pipe or a file."""
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return max(NARROWEST, shutil.get_terminal_size().columns)
    return None


def wrapped(items: list[str], width: int | None = None, joined: str = " + ") -> list[str]:
    """Items joined by ` + ` or as asked, on indented lines of at most `width` characters."""
    width = width or min(WIDEST, screen_width() or WIDEST)
    lines, line = [], INDENT * " "
    for index, item in enumerate(items):
        piece = item + (joined if index < len(items) - 1 else "")
        if len(line) + len(piece.rstrip()) > width and line.strip():
            lines.append(line.rstrip())
            line = INDENT * " "
        line += piece
    return [*lines, line.rstrip()]


def folded(line: str, width: int) -> list[str]:
    """A line broken at spaces; what follows stands under the text of a labelled line, else 2 further in.

    >>> folded("Memory    21.2 GiB of 80 GiB", 22)
    ['Memory    21.2 GiB of', '          80 GiB']
    >>> folded("plan      " + 30 * "x", 24) == ["plan      " + 30 * "x"]
    True
    """
    if len(click.unstyle(line)) <= width:
        return [line]
    labelled = click.unstyle(line)[:INDENT][-1:] == " "
    indent = INDENT * " " if labelled else "  "
    lines, now = [], ""
    for place, word in enumerate(line.split(" ")):
        longer = word if place == 0 else f"{now} {word}"
        if len(click.unstyle(longer)) > width and now.strip() and word and len(click.unstyle(now)) > len(indent):
            lines.append(now.rstrip())
            longer = indent + word
        now = longer
    return [*lines, now.rstrip()]


def show(lines: Iterable[str]) -> None:
    """Print them."""
    width = screen_width()
    for line in lines:
        for part in [line] if width is None else folded(line, width):
            click.echo(part)
