"""Predicted over measured seconds as one SVG picture, both axes logarithmic, a colour for each file.

    diagonal: exact · dashed: 20% off · a dot: one row (title: which, and its error); rows scored `yes` and `apart`

Written by hand so that no plotting library is needed. Same input, same bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from html import escape

from validation.score import FileReport

SIZE, MARGIN, LEGEND = 560, 56, 300
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb5500", "#444444", "#009988", "#ee3377")
OFF = 0.2


def svg(reports: Sequence[FileReport]) -> str:
    """The picture; files without a prediction are left out of the legend."""
    shown = [report for report in reports if any(one.score in ("yes", "apart") for one in report.verdicts)]
    rows = [one for report in shown for one in report.verdicts if one.score in ("yes", "apart")]
    if not rows:
        return _page([])
    every = [value for one in rows for value in (one.measured_s, one.predicted_s)]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))

    def at(seconds: float) -> float:
        return MARGIN + (math.log10(seconds) - low) / (high - low) * SIZE

    parts = _axes(low, high, at(10.0**low), at(10.0**high))
    for share, style in ((1.0, ""), (1 + OFF, ' stroke-dasharray="4 4"'), (1 / (1 + OFF), ' stroke-dasharray="4 4"')):
        start, end = 10.0**low / min(share, 1.0), 10.0**high / max(share, 1.0)
        parts.append(
            f'<line x1="{at(start):.1f}" y1="{_up(at(start * share)):.1f}" x2="{at(end):.1f}" '
            f'y2="{_up(at(end * share)):.1f}" stroke="#888"{style}/>'
        )
    for place, report in enumerate(shown):
        colour = COLOURS[place % len(COLOURS)]
        for one in report.verdicts:
            if one.score in ("yes", "apart"):
                title = f"{one.file} {one.row}: {one.error:+.1%}"
                parts.append(
                    f'<circle cx="{at(one.measured_s):.1f}" cy="{_up(at(one.predicted_s)):.1f}" r="3" fill="{colour}" '
                    f'fill-opacity="0.6"><title>{escape(title)}</title></circle>'
                )
        top = MARGIN + 20 * place
        parts.append(f'<circle cx="{SIZE + MARGIN + 24}" cy="{top}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{SIZE + MARGIN + 36}" y="{top + 4}">{escape(report.file)}</text>')
    return _page(parts)


def _up(y: float) -> float:
    """SVG counts downwards."""
    return SIZE + 2 * MARGIN - y


def _axes(low: int, high: int, start: float, end: float) -> list[str]:
    parts = [f'<rect x="{start}" y="{start}" width="{end - start}" height="{end - start}" fill="none" stroke="#444"/>']
    for power in range(low, high + 1):
        place = start + (power - low) / (high - low) * (end - start)
        parts.append(f'<text x="{place:.1f}" y="{end + 18:.1f}" text-anchor="middle">1e{power}</text>')
        parts.append(f'<text x="{start - 6:.1f}" y="{_up(place) + 4:.1f}" text-anchor="end">1e{power}</text>')
    middle = (start + end) / 2
    parts.append(f'<text x="{middle}" y="{end + 38}" text-anchor="middle">measured, s</text>')
    parts.append(f'<text x="{start}" y="{start - 14}">predicted, s</text>')
    return parts


def _page(parts: Sequence[str]) -> str:
    width, height = SIZE + 2 * MARGIN + LEGEND, SIZE + 2 * MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def calibration(curves: Mapping[str, Sequence[float]]) -> str:
    """Predicted against observed quantiles, a line for each domain; `curves`: the probability given to each row.

    Diagonal: calibrated. Below it on the left and above it on the right: bands too narrow.
    """

    def at(share: float) -> float:
        return MARGIN + share * SIZE

    parts = [f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#444"/>']
    parts.append(f'<line x1="{at(0)}" y1="{_up(at(0))}" x2="{at(1)}" y2="{_up(at(1))}" stroke="#888"/>')
    for share in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
        parts.append(f'<text x="{at(share):.1f}" y="{at(1) + 18}" text-anchor="middle">{share:g}</text>')
        parts.append(f'<text x="{MARGIN - 6}" y="{_up(at(share)) + 4:.1f}" text-anchor="end">{share:g}</text>')
    for place, (name, given) in enumerate(curves.items()):
        colour, ordered = COLOURS[place % len(COLOURS)], sorted(given)
        style = "" if place < len(COLOURS) else ' stroke-dasharray="5 3"'
        shares = [step / 50 for step in range(51)]
        below = [bisect_right(ordered, share) / len(ordered) for share in shares]
        path = " ".join(f"{at(share):.1f},{_up(at(seen)):.1f}" for share, seen in zip(shares, below, strict=True))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{style}/>')
        top = MARGIN + 20 * place
        line = f'x1="{SIZE + MARGIN + 16}" y1="{top}" x2="{SIZE + MARGIN + 32}" y2="{top}"'
        parts.append(f'<line {line} stroke="{colour}" stroke-width="3"{style}/>')
        parts.append(f'<text x="{SIZE + MARGIN + 38}" y="{top + 4}">{escape(name)}</text>')
    parts.append(f'<text x="{at(0.5)}" y="{at(1) + 38}" text-anchor="middle">predicted quantile</text>')
    parts.append(f'<text x="{at(0)}" y="{at(0) - 14}">share of rows below it</text>')
    return _page(parts)
