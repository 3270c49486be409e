"""Lines for a terminal: titles, lists that are broken where a line is full, and their printing.

No line is wider than the screen, as the terminal or COLUMNS says; in a pipe or a file, than PIPED. What does not fit
goes on below, under the last column of a table, else under the text of a labelled line.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable

import click

INDENT = 10
"""Characters of a label, such as `Memory`, and what stands under it."""
WIDEST, NARROWEST, PIPED = 104, 40, 120
LEAST_COLUMN = 30
"""Characters, or its longest word's, that a table's last column must have to be broken into lines of its own."""


def title(text: str) -> str:
    """In bold, where the terminal has it."""
    return click.style(text, bold=True)


def screen_width() -> int:
    """Columns of the terminal that is printed to, or of COLUMNS; PIPED of a pipe or a file."""
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return max(NARROWEST, shutil.get_terminal_size().columns)
    return PIPED


def wrapped(items: list[str], width: int | None = None, joined: str = " + ") -> list[str]:
    """Items joined by ` + ` or as asked, on indented lines of at most `width` characters."""
    width = width or min(WIDEST, screen_width())
    lines, line = [], INDENT * " "
    for index, item in enumerate(items):
        piece = item + (joined if index < len(items) - 1 else "")
        if len(line) + len(piece.rstrip()) > width and line.strip():
            lines.append(line.rstrip())
            line = INDENT * " "
        line += piece
    return [*lines, line.rstrip()]


def folded(line: str, width: int) -> list[str]:
    """A line broken at spaces; what follows stands under the last column or the text of a label, else 2 further in.

    >>> folded("ring 8   9.1 s  tied: 0.4% faster, loses at most 0.1%", 46)
    ['ring 8   9.1 s  tied: 0.4% faster, loses at', '                most 0.1%']
    >>> folded("Memory    21.2 GiB of 80 GiB", 22)
    ['Memory    21.2 GiB of', '          80 GiB']
    >>> folded("plan      " + 30 * "x", 24) == ["plan      " + 30 * "x"]
    True
    """
    if len(click.unstyle(line)) <= width:
        return [line]
    plain = click.unstyle(line)
    column = max((gap.end() for gap in re.finditer(r"  +(?=\S)", plain)), default=width)
    least = max(LEAST_COLUMN, *map(len, plain[column:].split()))
    labelled = plain[:INDENT][-1:] == " "
    indent = (column if width - column >= least else INDENT if labelled else 2) * " "
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
        for part in folded(line, width):
            click.echo(part)
