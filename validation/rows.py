"""Published rows as they were transcribed, and what each may judge.

    score   yes: step time and memory count · apart: 8- or 4-bit, reported beside · rank: only its place in a sweep
            memory: no time, as its steps waited for what no step does (the reason stands behind it) · no: never used

A blank cell means that the source does not say. Left out: kernel files, which shaped the curves and so cannot judge
them.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cost_models.errors import InputError

Score = Literal["yes", "apart", "rank", "memory", "no"]
FOLDER = Path(__file__).parents[1] / "measurements"
_PREFIXES: tuple[tuple[str, Score], ...] = tuple((one, one) for one in get_args(Score))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of one file."""

    file: str  # without .csv
    number: str  # as the file numbers it, else its position
    score: Score
    cells: dict[str, str]

    def text(self, column: str) -> str:
        if column not in self.cells:
            raise InputError(f"{self.file} has no column {column!r}; it has {', '.join(self.cells)}")
        return self.cells[column].strip()

    def cell(self, column: str) -> str:
        """The same, blank where the file has no such column."""
        return self.cells.get(column, "").strip()

    @property
    def source(self) -> str:
        """Who measured: the repository, else the file."""
        return self.cell("source_repo") or self.file

    def degree(self, column: str) -> int:
        """A count that is 1 where the cell is blank or the column absent."""
        return self.count(column, 1) if column in self.cells else 1

    def optional(self, column: str) -> int | None:
        """A count that is None where the cell is blank or the column absent."""
        return self.count(column) if self.cell(column) else None

    def quantity(self, column: str, unit: float) -> float | None:
        """A number above zero in SI units; None where the cell is blank or the column absent."""
        return self.positive(column) * unit if self.cell(column) else None

    def number_of(self, column: str, default: float | None = None) -> float:
        """The cell as a number; `default` for a blank (an InputError without one)."""
        text = self.text(column)
        if not text:
            if default is None:
                raise InputError(f"{self.file} row {self.number}: {column} is blank")
            return default
        try:
            value = float(text)
        except ValueError as error:
            raise InputError(f"{self.file} row {self.number}: {column}={text!r} is not a number") from error
        if not 0 <= value < math.inf:
            raise InputError(f"{self.file} row {self.number}: {column}={text!r} must be finite and not below zero")
        return value

    def positive(self, column: str) -> float:
        """What was measured: a number above zero."""
        value = self.number_of(column)
        if value == 0:
            raise InputError(f"{self.file} row {self.number}: {column} is zero; it must be above")
        return value

    def count(self, column: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.number_of(column, None if default is None else float(default))
        if value != int(value):
            raise InputError(f"{self.file} row {self.number}: {column}={value} is not whole")
        if value < least:
            raise InputError(f"{self.file} row {self.number}: {column}={int(value)}; it must be at least {least}")
        return int(value)


def files(folder: Path = FOLDER) -> tuple[str, ...]:
    """Names (without .csv) of the training and operator files, sorted."""
    if not folder.is_dir():
        raise InputError(f"--measurements {str(folder)!r} is not a folder; the repository's is `measurements/`")
    found = sorted(path.stem for pattern in ("train_*.csv", "op_*.csv") for path in folder.glob(pattern))
    if not found:
        raise InputError(f"--measurements {str(folder)!r} holds no train_*.csv and no op_*.csv")
    return tuple(found)


def read(file: str, folder: Path = FOLDER) -> list[Row]:
    """All rows of one file."""
    path = folder / f"{file}.csv"
    if not path.is_file():
        raise InputError(f"--file {file!r} is unknown; legal: {', '.join(files(folder))}")
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table = list(csv.DictReader(lines, restkey=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a table of UTF-8 text ({error})") from error
    for line, cells in enumerate(table, start=2):
        if "" in cells or None in cells.values():
            raise InputError(f"{path} line {line}: not as many cells as the header names")
    return [
        Row(file=file, number=cells.get("row") or str(place), score=_score(file, cells), cells=cells)
        for place, cells in enumerate(table, start=1)
    ]


def _score(file: str, cells: dict[str, str]) -> Score:
    if "score" not in cells:
        return "no"
    for prefix, score in _PREFIXES:
        if cells["score"].startswith(prefix):
            return score
    raise InputError(f"{file}: score={cells['score']!r}; legal: yes, apart: …, rank only, memory: …, no: …")
