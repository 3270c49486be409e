"""Where a picture or video is: a file, a folder of frames, a stretch of a tar shard, or a cell of a Parquet file.

    Path                         a file, or a folder whose pictures are the frames of one video
    Stretch(path, start, size)   a member of an uncompressed tar: FFmpeg reads it in place, nothing is unpacked
    Cell(path, group, row, …)    bytes in a Parquet column: its row group is read when the medium is

All are small, comparable and hashable, so that samples, caches and clips name media by them. Left out: addresses on a
network, compressed tars (they cannot be read in place).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av

from longvila.data.columns import Columns
from longvila.job import JobError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jxl"})
VIDEOS = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"})
VIDEOS |= {".m2ts", ".mts", ".m2v", ".ogv", ".asf", ".f4v", ".vob", ".rmvb", ".mxf"}


@dataclass(frozen=True)
class Stretch:
    """`size` bytes of a file from `start` on: a member of a tar shard."""

    path: Path
    member: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}: {self.member}"


@dataclass(frozen=True)
class Cell:
    """Bytes of a Parquet file: entry `place` of the column's list, or of its single value."""

    path: Path
    group: int
    row: int  # in the group
    column: str
    place: int
    member: str

    def __str__(self) -> str:
        return f"{self.path}: {self.member}"


Source = Path | Stretch | Cell


def opened(source: Source) -> av.container.InputContainer:
    """A medium that is no folder, opened; raises `av.FFmpegError`."""
    if isinstance(source, Stretch):
        stretch = f"subfile,,start,{source.start},end,{source.start + source.size},,:"
        return av.open(f"{stretch}{source.path.resolve()}", "r")
    # file: so that FFmpeg takes "a:b.mp4" for no protocol
    return av.open(io.BytesIO(_cell_bytes(source)) if isinstance(source, Cell) else f"file:{source}", "r")


def read_bytes(source: Source) -> bytes:
    """The whole content of a medium that is no folder."""
    if isinstance(source, Stretch):
        with source.path.open("rb") as shard:
            shard.seek(source.start)
            return shard.read(source.size)
    return _cell_bytes(source) if isinstance(source, Cell) else source.read_bytes()


def name_of(source: Source) -> str:
    """The name of a medium, without the place of its data set."""
    return source.name if isinstance(source, Path) else source.member


def frame_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in the order of their names, numbers by value: frame_2 is before frame_10."""
    shown = [file for file in folder.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith(".")]
    files = [file for file in shown if file.is_file()]
    return tuple(sorted(files, key=lambda file: [_rank(part) for part in re.split(r"(\d+)", file.name)]))


def _rank(part: str) -> tuple[int, str]:
    return (int(part), part) if part.isdecimal() else (-1, part)


def _cell_bytes(cell: Cell) -> bytes:
    held = _column(cell.path, cell.group, cell.column)[cell.row]
    if type(held).__name__.endswith("ListScalar"):
        held = held.values[cell.place]
    value = held.as_py()
    content = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise JobError(f"{cell}: holds no bytes")
    return content


@lru_cache(maxsize=4)  # samples of a group are often read one after another
def _column(path: Path, group: int, column: str) -> Any:
    """The column as Arrow holds it: a picture that many rows show is there once."""
    return Columns(path).read(group, [column])[column]
