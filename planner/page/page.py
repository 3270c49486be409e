"""A page from its sections: numbers, pictures and tables, in one HTML file that needs no network.

    Page(title, lines, numbers, sections)  ->  html()        section = heading, words, then pictures and tables

Pictures are Vega-Lite specifications (`pictures.py`); the library's code (vega/, BSD licence) is written into the page,
so that it opens from a disk, on a phone, and prints. All text is escaped. Left out: what the reader could edit.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LIBRARY = ("vega/vega.min.js", "vega/vega-lite.min.js", "vega/vega-embed.min.js")

Spec = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page, as text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows
        )
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its pictures and table."""

    heading: str
    words: str = ""
    pictures: Mapping[str, Spec] | None = None  # by an id that is unique on the page
    table: Table | None = None

    def html(self) -> str:
        figures = "".join(
            f'<figure><div class="picture" id="{html.escape(name)}"></div></figure>\n' for name in self.pictures or {}
        )
        words = f"<p>{html.escape(self.words)}</p>\n" if self.words else ""
        table = self.table.html() if self.table else ""
        return f"<section>\n<h2>{html.escape(self.heading)}</h2>\n{words}{figures}{table}\n</section>\n"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that opens without a network."""

    title: str
    lines: Sequence[str]
    numbers: Sequence[tuple[str, str]]  # (value, what it is)
    sections: Sequence[Section]

    def html(self) -> str:
        pictures = {name: spec for section in self.sections for name, spec in (section.pictures or {}).items()}
        numbers = "".join(
            f"<li><b>{html.escape(value)}</b><span>{html.escape(name)}</span></li>" for value, name in self.numbers
        )
        lines = "".join(f"<p>{html.escape(line)}</p>\n" for line in self.lines)
        library = "".join(f"<script>{_read(name)}</script>\n" for name in LIBRARY)
        return (
            "<!doctype html>\n"
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="data:,">\n<style>{_read("style.css")}</style></head>\n'
            f"<body><h1>{html.escape(self.title)}</h1>\n{lines}"
            f'<ul class="numbers">{numbers}</ul>\n'
            + "".join(section.html() for section in self.sections)
            + library
            + f'<script id="pictures" type="application/json">{_data(pictures)}</script>\n'
            + f"<script>{_read('page.js')}</script></body></html>\n"
        )


def _data(pictures: Mapping[str, Spec]) -> str:
    """JSON that ends no script: every "<" is written by its code."""
    return json.dumps(pictures).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
