"""One reader from plain data (YAML, JSON) to frozen dataclasses: exact types, no unknown keys, no coercion.

A fault names the path of the key and, for an unknown key, the nearest known one:
    cluster.yaml: nodes[0].nics.cuont is unknown; did you mean count? (legal: count, bytes_per_s, latency_s)
Fields whose name ends in _bytes, _bytes_per_s or _s may be written with a unit ("80 GiB", "400 Gbit/s", "5 us").
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from cost_models.errors import InputError
from cost_models.units import parse_bytes, parse_rate, parse_seconds

T = TypeVar("T")
MAX_FILE_BYTES = 256 * 2**20
"""A plan of 100,000 GPUs is about 10 MB; anything above this is not ours and is not read into memory."""

OPTIONAL: Mapping[str, Any] = MappingProxyType({"optional": True})
"""Metadata of a field that files leave out where it has its default: those who do not use it see no change."""


def read_text(path: str | Path, what: str) -> str:
    """The text of a file from outside, of bounded size; a missing, odd or huge file is an InputError."""
    file = Path(path)
    try:
        if not file.is_file():
            raise InputError(f"{what} {str(path)!r}: no such file")
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{what} {str(path)!r} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {str(path)!r} cannot be read: {error}") from error


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """A JSON object from a file; truncated or other content, NaN and infinity too, is an InputError."""
    text = read_text(path, what)
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{what} {str(path)!r} holds a {type(data).__name__}, not a JSON object")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def nearest(name: str, legal: typing.Iterable[str]) -> str:
    """A hint for a mistyped name: `did you mean X? (legal: …)`.

    >>> nearest("ulyses", ["data", "ring", "ulysses"])
    'did you mean ulysses? (legal: data, ring, ulysses)'
    """
    names = list(legal)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}(legal: {', '.join(names)})"


def read(cls: type[T], data: object, where: str) -> T:
    """An instance of the dataclass `cls` from a mapping; `where` names the file or key for error messages."""
    if not isinstance(data, Mapping):
        raise InputError(f"{where} must hold keys and values, not {_show(data)}")
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in known:
            raise InputError(f"{where}.{key} is unknown; {nearest(str(key), known)}")
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}.{name} is missing")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def plain(value: object) -> Any:
    """The inverse of `read`: dataclasses, tuples and mappings as dicts and lists that JSON and YAML can write."""
    if is_dataclass(value):
        shown = [field for field in fields(value) if field.init and not _left_out(field, value)]
        return {field.name: plain(getattr(value, field.name)) for field in shown}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def _left_out(field: Field[Any], value: object) -> bool:
    return bool(field.metadata.get("optional")) and bool(getattr(value, field.name) == field.default)


def _show(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


def _value(hint: Any, data: object, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _value(next(arg for arg in args if arg is not type(None)), data, where)
    if origin is typing.Literal:
        if data not in args:
            raise InputError(f"{where}: {_show(data)} is not one of {', '.join(map(str, args))}")
        return data
    if origin is tuple:
        return _tuple(args, data, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise InputError(f"{where} must hold keys and values, not {_show(data)}")
        return {str(key): _value(args[1], value, f"{where}.{key}") for key, value in data.items()}
    if is_dataclass(hint):
        return read(typing.cast("type[Any]", hint), data, where)
    return _scalar(hint, data, where)


def _tuple(args: tuple[Any, ...], data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise InputError(f"{where} must be a list, not {_show(data)}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(data) != len(args):
        raise InputError(f"{where} must have {len(args)} entries, not {len(data)}")
    return tuple(_value(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, data, strict=True)))


def _scalar(hint: Any, data: object, where: str) -> Any:
    if isinstance(data, str) and hint in (int, float):
        name = where.rsplit(".", 1)[-1]
        if name.endswith("bytes_per_s"):
            data = parse_rate(data, where)
        elif name.endswith("_bytes"):
            data = parse_bytes(data, where)
        elif name.endswith("_s"):
            data = parse_seconds(data, where)
    if hint is float and isinstance(data, int | float) and not isinstance(data, bool):
        if not math.isfinite(data):
            raise InputError(f"{where}: {data} is not finite")
        return float(data)
    if hint is int and isinstance(data, float) and data.is_integer():
        data = int(data)
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise InputError(f"{where}: {_show(data)} is not {_ARTICLE.get(hint, hint)}")
    return data


_ARTICLE = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
