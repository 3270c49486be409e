"""Tables with notes, held once and shown two ways: in the terminal and as a Markdown page.

Cells are text, numbers, or None (a dash). Numbers have three significant digits; a table names the columns that are
differences, shown in per cent with their sign. Same input, same bytes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Cell = str | float | None
PIPED_COLUMNS = 160


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page or the terminal."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    key: str = ""  # its name in JSON
    text: str = ""  # above the table
    notes: tuple[str, ...] = ()  # below it
    differences: tuple[str, ...] = ()  # columns

    def cells(self) -> list[list[str]]:
        """Every row as it is shown."""
        return [
            [show(cell, name in self.differences) for cell, name in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def data(self) -> dict[str, object]:
        """For JSON, unrounded; a row is a mapping from column to cell."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"key": self.key, "title": self.title, "rows": rows, "notes": list(self.notes)}


def paragraphs(text: str) -> tuple[str, ...]:
    """Text between blank lines, each as one line."""
    return tuple(" ".join(part.split()) for part in text.strip().split("\n\n"))


def show(cell: Cell, difference: bool = False) -> str:
    """
    >>> show(7.041), show(16.94), show(-0.0664, True), show(0.26, True), show(None), show("ring")
    ('7.04', '16.9', '-6.6%', '+26%', '–', 'ring')
    """
    if cell is None:
        return "–"
    if not isinstance(cell, float):
        return str(cell)
    if difference:
        return f"{cell:+.1%}" if abs(cell) < 0.0995 else f"{cell:+.0%}"
    return f"{cell:.2f}" if cell < 9.995 else f"{cell:.1f}"


def percent(share: float) -> str:
    """
    >>> percent(0.0312), signed(0.0312), percent(float("nan"))
    ('3.1%', '+3.1%', '–')
    """
    return "–" if math.isnan(share) else f"{share:.1%}"


def signed(share: float) -> str:
    """A share in per cent with its sign."""
    return "–" if math.isnan(share) else f"{share:+.1%}"


def markdown(title: str, introduction: Sequence[str], tables: Sequence[Table]) -> str:
    """A page: title, introduction, then each table that has rows or notes, with its text."""
    blocks = [f"# {title}", *introduction]
    for table in tables:
        if table.rows or table.notes:
            blocks += [f"## {table.title}", table.text, _grid(table), *table.notes]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _grid(table: Table) -> str:
    if not table.rows:
        return ""
    lines = [list(table.columns), *([cell.replace("|", "/") for cell in row] for row in table.cells())]
    shown = ["| " + " | ".join(line) + " |" for line in lines]
    shown.insert(1, "|" + "---|" * len(table.columns))
    return "\n".join(shown)


def display(tables: Sequence[Table]) -> None:
    """Tables that have rows, to the terminal; where none says how wide it is, wide enough for file names."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS)
    for table in tables:
        if not table.rows:
            continue
        grid = RichTable(title=table.title, title_justify="left", title_style="bold")
        for place, name in enumerate(table.columns):
            grid.add_column(name.strip(), justify="left" if place == 0 else "right", overflow="fold")
        for row in table.cells():
            grid.add_row(*row)
        console.print(grid)
        for note in table.notes:
            console.print(note + "\n", highlight=False)


def write(path: Path, text: str) -> None:
    """The whole file or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
