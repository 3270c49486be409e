"""A table of shares (0 … 1) as a picture: PNG with its numbers drawn, and one page of HTML that needs no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from longvila.files import write_whole

CELL, ABOVE, LEFT, DOT = 60, 40, 110, 3
LOW, HIGH = np.array((200, 40, 40)), np.array((40, 150, 70))
DIGITS = {
    "0": 0x7B6F, "1": 0x2C97, "2": 0x73E7, "3": 0x73CF, "4": 0x5BC9, "5": 0x79CF,
    "6": 0x79EF, "7": 0x7249, "8": 0x7BEF, "9": 0x7BCF, "%": 0x52A5,
}  # fmt: skip
"""Three dots by five, from the top left bit on."""


def colour(share: float) -> tuple[int, int, int]:
    red, green, blue = (LOW + (HIGH - LOW) * share).round().astype(int)
    return int(red), int(green), int(blue)


def write(folder: Path, shares: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> None:
    """heatmap.png and heatmap.html in the folder; `shares` [rows, columns]."""
    _write_png(folder / "heatmap.png", draw(shares, rows, columns))
    cells = "".join(
        f"<tr><th>{html.escape(name)} frames</th>"
        + "".join(f'<td style="background:rgb{colour(float(share))}">{share:.0%}</td>' for share in line)
        + "</tr>"
        for name, line in zip(rows, shares, strict=True)
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    style = "body{font-family:sans-serif}td{color:#fff;padding:1em;text-align:center}th{padding:.5em}"
    write_whole(
        folder / "heatmap.html",
        f"<!doctype html><meta charset=utf-8><title>Needles found</title><style>{style}</style>"
        f"<h1>Needles found</h1><p>By length of the film and depth of the needle.</p>"
        f"<table><tr><th></th>{head}</tr>{cells}</table>\n",
    )


def draw(shares: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> NDArray[np.uint8]:
    """The picture, [height, width, 3]."""
    high, wide = shares.shape
    picture = np.full((ABOVE + high * CELL, LEFT + wide * CELL, 3), 255, dtype=np.uint8)
    for place, name in enumerate(columns):
        _number(picture, name, 14, LEFT + place * CELL + 8, (0, 0, 0))
    for down, name in enumerate(rows):
        top = ABOVE + down * CELL
        _number(picture, name, top + 22, 12, (0, 0, 0))
        for across in range(wide):
            left, share = LEFT + across * CELL, float(shares[down, across])
            picture[top + 1 : top + CELL - 1, left + 1 : left + CELL - 1] = colour(share)
            _number(picture, f"{share:.0%}", top + 22, left + 8, (255, 255, 255))
    return picture


def _number(picture: NDArray[np.uint8], text: str, top: int, left: int, ink: tuple[int, int, int]) -> None:
    """Digits, drawn from there on; other letters leave a gap."""
    for place, letter in enumerate(text):
        bits = DIGITS.get(letter, 0)
        dots = np.array([bits >> (14 - at) & 1 for at in range(15)], dtype=bool).reshape(5, 3)
        large = dots.repeat(DOT, axis=0).repeat(DOT, axis=1)
        start = left + place * 4 * DOT
        picture[top : top + 5 * DOT, start : start + 3 * DOT][large] = ink


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = picture.shape[0], picture.shape[1], "rgb24"
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
