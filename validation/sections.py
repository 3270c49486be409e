"""A page of tables with notes, held once and shown three ways: terminal, Markdown, JSON.

Cells are numbers, text, or None (a dash). Numbers have three significant digits; a section names the columns that are
differences, shown in per cent with their sign.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table: cells are numbers, text, or None where nothing fits or nothing was published."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    notes: tuple[str, ...]
    differences: tuple[str, ...] = ()  # columns


def paragraphs(text: str) -> tuple[str, ...]:
    """Text between blank lines, each as one line."""
    return tuple(" ".join(part.split()) for part in text.strip().split("\n\n"))


def show(cell: Any, difference: bool = False) -> str:
    """
    >>> show(7.041), show(16.94), show(-0.0664, True), show(0.26, True), show(None), show("ring")
    ('7.04', '16.9', '-6.6%', '+26%', '—', 'ring')
    """
    if cell is None:
        return "—"
    if not isinstance(cell, float):
        return str(cell)
    if difference:
        return f"{cell:+.1%}" if abs(cell) < 0.0995 else f"{cell:+.0%}"
    return f"{cell:.2f}" if cell < 9.995 else f"{cell:.1f}"


def _cells(section: Section, row: tuple[Any, ...]) -> list[str]:
    return [show(cell, name in section.differences) for cell, name in zip(row, section.columns, strict=True)]


def as_json(found: Sequence[Section]) -> list[dict[str, Any]]:
    """Plain data, unrounded; a row is a mapping from column to cell."""
    return [
        {
            "key": section.key,
            "title": section.title,
            "rows": [dict(zip(section.columns, row, strict=True)) for row in section.rows],
            "notes": list(section.notes),
        }
        for section in found
    ]


def markdown(title: str, introduction: Sequence[str], found: Sequence[Section]) -> str:
    """A page: title, introduction, then each section's table and notes."""
    lines = [f"# {title}"]
    for paragraph in introduction:
        lines += ["", paragraph]
    for section in found:
        lines += ["", f"## {section.title}", ""]
        lines.append("| " + " | ".join(section.columns) + " |")
        lines.append("|" + "---|" * len(section.columns))
        for row in section.rows:
            lines.append("| " + " | ".join(_cells(section, row)) + " |")
        for note in section.notes:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def display(found: Sequence[Section]) -> None:
    """To the terminal; without one, wide enough that cells stay whole."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    for section in found:
        table = Table(title=section.title)
        for name in section.columns:
            table.add_column(name.strip(), justify="right")
        for row in section.rows:
            table.add_row(*_cells(section, row))
        console.print(table)
        for note in section.notes:
            console.print(note + "\n", highlight=False)
