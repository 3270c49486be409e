"""Files of a data set to their entries, each with the place that messages name, whatever the file's format.

    .jsonl, .json    one object a line, or one list; UTF-8, or UTF-16 with its byte-order mark
    .tar             members of one name are a sample: 0001.json (a line) or 0001.txt (a caption), 0001.mp4, 0001.jpg
    .parquet         a row is a line; pictures may be bytes in it, as in Hugging Face's `{bytes, path}`
    a folder         its .tar and .parquet files in the order of their names

A fault of one entry is given in its place, and reading goes on. Links in a tar are what they point to; members whose
name begins with a dot are none. Needs pyarrow for Parquet. Left out: compressed files.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longvila.data.columns import Columns, Growth
from longvila.data.sources import PICTURES, VIDEOS, Cell, Source, Stretch
from longvila.job import JobError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")  # gzip, zip, zstd, bzip2, xz
_KINDS = ("image", "images", "video", "videos")
_MOST_TEXT_BYTES = 2**24  # of a member: a conversation of some 3 million words
_FOREIGN = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as `surrogateescape` gives it


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
    if file.exists() and not file.is_file():
        yield Entry(str(file), fault="is neither a file nor a folder")
    elif why := _unreadable(file):
        yield Entry(str(file), fault=f"cannot be read ({why})")
    elif ".tar." in file.name or file.suffix == ".tgz":
        yield Entry(str(file), fault="a compressed tar cannot be read in place: decompress it to .tar")
    else:
        empty = True
        for entry in kind(file):
            yield entry
            empty = False
        if empty:
            yield Entry(str(file), fault="holds no samples")


def _unreadable(file: Path) -> str | None:
    """Why a file cannot be opened."""
    try:
        file.open("rb").close()
    except OSError as fault:
        return fault.strerror or type(fault).__name__
    return None


def _json(file: Path) -> Iterator[Entry]:
    content = file.read_bytes()
    try:
        text = _text(content)
    except UnicodeError as fault:
        yield Entry(str(file), fault=f"cannot be read ({type(fault).__name__})")
        return
    if content.startswith(_PACKED):
        yield Entry(str(file), fault="is compressed: decompress it first")
        return
    if text.lstrip().startswith("["):
        yield from _list(text, file)
        return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    one = _one_object(text, lines, file)
    yield from (_parsed(line, file, number) for number, line in lines) if one is None else (one,)


def _one_object(text: str, lines: list[tuple[int, str]], file: Path) -> Entry | None:
    """The entry of a file that is one object written over many lines, broken or not; None of a file of lines."""
    if len(lines) < 2 or _parsed(lines[0][1], file, 1).fault is None:
        return None
    whole = _parsed(text, file, 1)
    if whole.fault is None and "conversations" not in whole.value:
        return Entry(f"{file}:1", fault="one object is no list of samples: write a list, or a sample a line")
    if whole.fault is None or not any(isinstance(_parsed(line, file, 1).value, dict) for _, line in lines[1:]):
        return whole
    return None


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
        yield _foreign(text[counted:place], where) or Entry(where, value)
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


def _text(content: bytes) -> str:
    """Bytes that are not UTF-8 become faults of their own entries."""
    name = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(name, "strict" if name == "utf-16" else "surrogateescape")


def _foreign(text: str, where: str) -> Entry | None:
    found = _FOREIGN.search(text)
    return None if found is None else Entry(where, fault=f"is not UTF-8 (byte 0x{ord(found[0]) - 0xDC00:02x})")


def _parsed(text: str, file: Path | str, line: int) -> Entry:
    """One JSON value that stands in that line."""
    try:
        return _foreign(text, f"{file}:{line}") or Entry(f"{file}:{line}", _DECODER.decode(text))
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
    samples: dict[str, list[str]] = {}
    stretches: dict[str, Stretch] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                folder, base = posixpath.split(name)
                if base.startswith(".") or not (member.isfile() or member.issym() or member.islnk()):
                    continue
                samples.setdefault(posixpath.join(folder, base.split(".")[0]), []).append(name)
                if member.isfile() and not member.issparse():
                    stretches[name] = Stretch(file, name, member.offset_data, member.size)
                else:
                    links[name] = posixpath.normpath(posixpath.join(folder if member.issym() else "", member.linkname))
    except (tarfile.TarError, OSError) as fault:
        yield Entry(str(file), fault=f"is no readable tar ({' '.join(str(fault).split())[:100]})")
    for name in links:
        _follow(name, links, stretches)
    every: dict[str, Source] = dict(stretches)
    if not samples:
        return
    growth = Growth(file)
    with file.open("rb") as content:
        for key, names in samples.items():
            missing = [name for name in names if name not in stretches]
            if missing:
                yield Entry(f"{file}: {key}", fault=f"{missing[0]} is sparse, or a link to what is not in the shard")
            else:
                try:
                    yield _tar_sample(content, growth, f"{file}: {key}", {n: stretches[n] for n in names}, every)
                except JobError as fault:
                    yield Entry(str(file), fault=str(fault).removeprefix(f"{file}: "))
                    return


def _follow(name: str, links: Mapping[str, str], stretches: dict[str, Stretch]) -> None:
    """Give a link the stretch of what it points to, over other links."""
    target, seen = links[name], {name}
    while target in links and target not in seen:
        seen.add(target)
        target = links[target]
    if target in stretches:
        stretches[name] = stretches[target]


class _Long(Exception):
    """A text is longer than any sample's."""


def _tar_sample(
    content: io.BufferedReader,
    growth: Growth,
    where: str,
    members: Mapping[str, Stretch],
    every: Mapping[str, Source],
) -> Entry:
    def text(stretch: Stretch) -> str:
        if stretch.size > _MOST_TEXT_BYTES:
            size = f"{stretch.size / 2**20:,.0f} MiB"
            raise _Long(f"{stretch.member} is a text of {size}; at most {_MOST_TEXT_BYTES >> 20}")
        growth.add(stretch.size)
        content.seek(stretch.start)
        return str(content.read(stretch.size).decode("utf-8-sig"))

    media = {name: Path(name).suffix.lower() for name in members}
    suffixes = {suffix: members[name] for name, suffix in media.items()}
    twice = next((suffix for suffix in (".json", ".txt") if list(media.values()).count(suffix) > 1), None)
    beside = {
        "image": [name for name, suffix in media.items() if suffix in PICTURES],
        "video": [name for name, suffix in media.items() if suffix in VIDEOS],
    }
    if twice is not None:
        return Entry(where, fault=f"has two {twice} members: {', '.join(n for n in media if media[n] == twice)}")
    try:
        value = {}
        if ".json" in suffixes:
            parsed = _parsed(text(suffixes[".json"]), where, 1)
            if parsed.fault is not None or not isinstance(parsed.value, dict):
                return Entry(where, parsed.value, parsed.fault)
            value = parsed.value
        elif ".txt" not in suffixes:
            return Entry(where, fault="has neither a .json nor a .txt member")
        if ".txt" in suffixes and "conversations" not in value:  # beside a .json it holds what is known of the picture
            if not (beside["image"] or beside["video"]):
                return Entry(where, fault="a caption without a picture or video of a known kind beside it")
            turns = [{"from": "human", "value": ""}, {"from": "gpt", "value": text(suffixes[".txt"])}]
            value = {"conversations": turns, **({"id": value["id"]} if "id" in value else {})}
    except UnicodeDecodeError:
        return Entry(where, fault="its text is not UTF-8")
    except _Long as fault:
        return Entry(where, fault=str(fault))
    if not any(value.get(kind) for kind in _KINDS):
        value |= {kind: names for kind, names in beside.items() if names}
    return Entry(where, value, members=every)


def _parquet(file: Path) -> Iterator[Entry]:
    try:
        columns, number = Columns(file), 0
        plain, media = ([n for n in columns.names if (n in _KINDS) == kind] for kind in (False, True))
        for group in range(columns.groups):
            lines = columns.rows(group, plain)
            shelves = {name: columns.media(group, name) for name in media}
            for row, value in enumerate(lines):
                number += 1
                where = f"{file}: row {number}"
                if isinstance(value, str):
                    yield Entry(where, fault=value)
                else:
                    yield _parquet_row(file, where, value, shelves, group, row)
    except JobError as fault:
        yield Entry(str(file), fault=str(fault).removeprefix(f"{file}: "))


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
