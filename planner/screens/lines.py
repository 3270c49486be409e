"""Lines for a terminal: titles, lists that are broken where a line is full, and their printing."""

from __future__ import annotations

from collections.abc import Iterable

import click


def title(text: str) -> str:
    """In bold, where the terminal has it."""
    return click.style(text, bold=True)


def wrapped(items: list[str], width: int = 104, joined: str = " + ") -> list[str]:
    """Items joined by ` + ` or as asked, on indented lines of at most `width` characters."""
    lines, line = [], "          "
    for index, item in enumerate(items):
        piece = item + (joined if index < len(items) - 1 else "")
        if len(line) + len(piece.rstrip()) > width and line.strip():
            lines.append(line.rstrip())
            line = "          "
        line += piece
    return [*lines, line.rstrip()]


def show(lines: Iterable[str]) -> None:
    """Print them."""
    for line in lines:
        click.echo(line)
