"""Files of a data set to their entries, each with the place that messages name, whatever the file's format.

    .jsonl, .json    one object a line, or one list; UTF-8, or UTF-16 with its byte-order mark
    .tar             members of one name are a sample: 0001.json (a line) or 0001.txt (a caption), 0001.mp4, 0001.jpg
    .parquet         a row is a line; pictures may be bytes in it, as in Hugging Face's `{bytes, path}`
    a folder         its .tar and .parquet files in the order of their names

A fault of one entry is given in its place, and reading goes on. Needs pyarrow for Parquet. Left out: compressed tars.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longvila.data.sources import PICTURES, VIDEOS, Cell, Source, Stretch
from longvila.job import JobError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_KINDS = ("image", "images", "video", "videos")


@dataclass(frozen=True)
class Entry:
    """A line, parsed, or the fault that it could not be; `members` are media beside it in its shard, by name."""

    where: str  # file:line
    value: Any = None
    fault: str | None = None
    members: Mapping[str, Source] = field(default_factory=dict)


def entries(file: Path) -> Iterator[Entry]:
    """All entries of a file, or of a folder's shards; a file that cannot be read at all is one faulty entry."""
    if file.is_dir():
        shards = sorted(shard for shard in file.iterdir() if shard.suffix in (".tar", ".parquet"))
        if not shards:
            yield Entry(str(file), fault="is a folder without .tar or .parquet files")
        for shard in shards:
            yield from entries(shard)
        return
    kind = {".tar": _tar, ".parquet": _parquet}.get(file.suffix.lower(), _json)
    if ".tar." in file.name or file.suffix == ".tgz":
        yield Entry(str(file), fault="a compressed tar cannot be read in place: decompress it to .tar")
    else:
        yield from kind(file)


def _json(file: Path) -> Iterator[Entry]:
    try:
        text = _text(file)
    except (OSError, UnicodeError) as fault:
        yield Entry(str(file), fault=f"cannot be read ({getattr(fault, 'strerror', None) or type(fault).__name__})")
        return
    if text.lstrip().startswith("["):
        yield from _list(text, file)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parsed(line, file, number)


def _list(text: str, file: Path) -> Iterator[Entry]:
    """The entries of a JSON list, up to the first that is broken, each with the line where it begins."""
    place, line, counted = text.index("[") + 1, 1, 0
    for number in itertools.count(1):
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, place), place
        if number == 1 and text[place : place + 1] == "]":
            break
        where = f"{file}:{line} (sample {number})"
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as fault:
            yield _broken(fault, file, line, counted)
            return
        yield Entry(where, value)
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] != ",":
            break
        place += 1
    rest = text[place:].strip()
    if rest != "]":
        line += text.count("\n", counted, place)
        yield Entry(
            f"{file}:{line}", fault=f"broken JSON (the list {f'goes on with {rest[:20]!r}' if rest else 'has no end'})"
        )


def _text(file: Path) -> str:
    content = file.read_bytes()
    return content.decode(next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8"))


def _parsed(text: str, file: Path | str, line: int) -> Entry:
    """One JSON value that stands in that line."""
    try:
        return Entry(f"{file}:{line}", _DECODER.decode(text))
    except (ValueError, RecursionError) as fault:
        return _broken(fault, file, line, 0)


def _broken(fault: Exception, file: Path | str, line: int, start: int) -> Entry:
    """The fault that JSON cannot be read; its text begins in that line, at character `start`."""
    if isinstance(fault, json.JSONDecodeError):
        line += fault.doc.count("\n", start, fault.pos)
        return Entry(f"{file}:{line}", fault=f"broken JSON ({fault.msg} at column {fault.colno})")
    return Entry(f"{file}:{line}", fault=f"broken JSON ({' '.join(str(fault).split())[:100]})")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_SPACE = re.compile(r"\s*")


def _tar(file: Path) -> Iterator[Entry]:
    """Members that share a name up to the first dot are a sample, as WebDataset has it."""
    samples: dict[str, dict[str, Stretch]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isfile():
                    folder, _, base = member.name.rpartition("/")
                    stretch = Stretch(file, member.name, member.offset_data, member.size)
                    samples.setdefault(f"{folder}/{base.split('.')[0]}".lstrip("/"), {})[member.name] = stretch
    except (tarfile.TarError, OSError) as fault:
        yield Entry(str(file), fault=f"is no readable tar ({' '.join(str(fault).split())[:100]})")
    every: dict[str, Source] = {name: stretch for members in samples.values() for name, stretch in members.items()}
    if not samples:
        return
    with file.open("rb") as content:
        for key, members in samples.items():
            yield _tar_sample(content, f"{file}: {key}", members, every)


def _tar_sample(
    content: io.BufferedReader, where: str, members: Mapping[str, Stretch], every: Mapping[str, Source]
) -> Entry:
    def text(stretch: Stretch) -> str:
        content.seek(stretch.start)
        return str(content.read(stretch.size).decode("utf-8-sig"))

    suffixes = {Path(name).suffix.lower(): stretch for name, stretch in members.items()}
    media = {name: Path(name).suffix.lower() for name in members}
    beside = {
        "image": [name for name, suffix in media.items() if suffix in PICTURES],
        "video": [name for name, suffix in media.items() if suffix in VIDEOS],
    }
    try:
        if ".json" in suffixes:
            parsed = _parsed(text(suffixes[".json"]), where, 1)
            if parsed.fault is not None or not isinstance(parsed.value, dict):
                return Entry(where, parsed.value, parsed.fault)
            value = parsed.value
        elif ".txt" in suffixes:
            turns = [{"from": "human", "value": ""}, {"from": "gpt", "value": text(suffixes[".txt"])}]
            value = {"conversations": turns}
        else:
            return Entry(where, fault="has neither a .json nor a .txt member")
    except UnicodeDecodeError:
        return Entry(where, fault="its text is not UTF-8")
    if not any(value.get(kind) for kind in _KINDS):
        value |= {kind: names for kind, names in beside.items() if names}
    return Entry(where, value, members=every)


def _parquet(file: Path) -> Iterator[Entry]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise JobError(f"{file}: Parquet needs pyarrow: pip install 'mmsp[parquet]'") from None
    try:
        table = parquet.ParquetFile(file)
        media = [name for name in table.schema_arrow.names if name in _KINDS]
        names = [name for name in table.schema_arrow.names if name not in _KINDS]
        leaves = [table.schema.column(i).path for i in range(len(table.schema.names))]
        number = 0
        for group in range(table.num_row_groups):
            lines = table.read_row_group(group, columns=names).to_pylist()
            shelves = {
                name: table.read_row_group(group, columns=_leaf(name, leaves))[name].to_pylist() for name in media
            }
            for row, value in enumerate(lines):
                number += 1
                yield _parquet_row(file, f"{file}: row {number}", value, shelves, group, row)
    except (ArrowException, OSError) as fault:
        yield Entry(str(file), fault=f"is no readable Parquet file ({' '.join(str(fault).split())[:100]})")


def _leaf(name: str, leaves: list[str]) -> list[str]:
    """What to read of a column to know its entries: of `{bytes, path}` the paths alone, which are short."""
    inside = [leaf for leaf in leaves if leaf.startswith(f"{name}.")]
    paths = [leaf for leaf in inside if leaf.endswith(".path")]
    return paths if paths and any(leaf.endswith(".bytes") for leaf in inside) else [name]


def _parquet_row(
    file: Path, where: str, value: dict[str, Any], shelves: Mapping[str, list[Any]], group: int, row: int
) -> Entry:
    """The row as a line: bytes become names of cells, texts stay paths."""
    cells: dict[str, Source] = {}
    for column, values in shelves.items():
        held = values[row]
        items = held if isinstance(held, list) else [] if held is None else [held]
        names: list[object] = []
        for place, item in enumerate(items):
            if isinstance(item, (dict, bytes)):
                name = f"{column} {place + 1} of {where.rpartition(': ')[2]}"
                cells[name] = Cell(file, group, row, column, place, name)
                names.append(name)
            else:
                names.append(item)
        if names:
            value[column] = names
    return Entry(where, value, members=cells)
