"""The picture of `benchmarks.distill`: loss and answers against tokens by stages, and answers by which layers are kept.

Written by hand as SVG, so that no plotting library is needed. Same input, same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDE, HIGH, LEFT, TOP, GAP = 300, 220, 60, 40, 90
COLOURS = {"1-3, from attention": "#4477aa", "3 alone, from attention": "#66ccee",
           "1-3, from random": "#aa3377", "3 alone, from random": "#ee6677"}  # fmt: skip


def picture(results: dict[str, Any]) -> str:
    """Two panels of lines and one of bars."""
    width, height = LEFT + 3 * WIDE + 2 * GAP + 60, TOP + HIGH + 110
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', '<rect width="100%" height="100%" fill="white"/>']
    least = results["teacher"]["loss"]
    most = max(point["tokens"] for one in results["stages"].values() for point in one["curve"])
    panels = (
        ("loss a token above the teacher's", ("0.005", "0.05", "0.5", "5"), lambda one: _decades(one["loss"] - least)),
        ("answers with every token right", ("80%", "90%", "100%"), lambda one: (one["right"] - 0.8) / 0.2),
    )
    for place, (title, ticks, height_of) in enumerate(panels):
        left = LEFT + place * (WIDE + GAP)
        parts += _frame(left, title, ticks)
        for name, one in results["stages"].items():
            points = [
                (left + point["tokens"] / most * WIDE, TOP + HIGH * (1 - min(1.0, max(0.0, height_of(point)))))
                for point in one["curve"]
            ]
            parts += _line(points, COLOURS[name], name)
        parts.append(_text(left + WIDE / 2, TOP + HIGH + 20, f"tokens of all stages, 0 … {most:,.0f}", "middle"))
    for place, (name, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + (place % 2) * 220, TOP + HIGH + 50 + place // 2 * 22
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(_text(x + 32, y + 4, f"stages {name}" if name[0] == "1" else f"stage {name}"))
    parts += _bars(LEFT + 2 * (WIDE + GAP), {"teacher": results["teacher"], **results["students"]})
    return "\n".join([*parts, "</svg>"]) + "\n"


def _decades(loss: float) -> float:
    """Height of a loss between 0.005 and 5, on a logarithmic axis."""
    return math.log10(max(loss, 1e-9) / 0.005) / 3


def _frame(left: float, title: str, ticks: Sequence[str]) -> list[str]:
    parts = [f'<rect x="{left}" y="{TOP}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#444"/>']
    parts.append(_text(left, TOP - 12, title))
    for place, tick in enumerate(ticks):
        parts.append(_text(left - 6, TOP + HIGH * (1 - place / (len(ticks) - 1)) + 4, tick, "end"))
    return parts


def _line(points: Sequence[tuple[float, float]], colour: str, name: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points]
    title = f"<title>{escape(name)}</title>"
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2">{title}</polyline>', *dots]


def _bars(left: float, students: dict[str, Any]) -> list[str]:
    """Answers right, by which layers keep attention."""
    parts = [_text(left, TOP - 12, "answers right after three stages, by the layers that keep attention")]
    step = HIGH / len(students)
    for place, (name, one) in enumerate(students.items()):
        y, kept = TOP + place * step, ", ".join(map(str, one.get("keep", ()))) or "all"
        parts.append(
            f'<rect x="{left}" y="{y:.1f}" width="{WIDE * one["right"]:.1f}" height="{step - 12:.1f}" fill="#bbccdd"/>'
        )
        parts.append(_text(left + 4, y + step / 2 - 2, f"{name} ({kept}): {one['right']:.0%}"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
