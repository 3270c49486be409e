"""One reader from files (YAML, JSON) to frozen dataclasses: exact types, no unknown keys, no coercion.

A fault is an InputError that names the file, the path of the key, the value, and what is legal:
    cluster.yaml.nodes[0].nics.cuont is unknown; did you mean count? (legal: count, bytes_per_s, latency_s)
Fields whose name ends in _bytes, _bytes_per_s or _s may be written with a unit ("80 GiB", "400 Gbit/s", "5 us").
A key that is given twice, an alias, a tag, nesting below `MOST_DEPTH`, an endless number, NaN, infinity and characters
that hide or reorder text are refused while the text is parsed, before anything is built from it. YAML is that of its
core schema (version 1.2): 1e9 is a number, `yes` and 2024-01-01 are texts.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import msgspec
import yaml
from msgspec import inspect

from cost_models.errors import InputError
from cost_models.units import parse_bytes, parse_rate, parse_seconds

T = TypeVar("T")
MAX_FILE_BYTES = 16 * 2**20
"""A plan of 131,072 GPUs is about 11 MB; anything above this is not ours and is not read into memory."""
MAX_TOPOLOGY_BYTES = 64 * 2**20
"""A discovery (`ibnetdiscover`) of 16,000 hosts with 8 cards has about as many."""
MOST_PARTS = 2**20
"""Lists, objects and keys of a JSON text: that plan has 607,000; 33 million of them take Python 2.4 GiB and 10 s."""
MAX_YAML_CHARACTERS = 2**20
MOST_DEPTH = 32
MOST_DIGITS = 30
MOST_WHOLE = 2**63 - 1

OPTIONAL: Mapping[str, object] = MappingProxyType({"optional": True})
"""Metadata of a field that files leave out where it has its default: those who do not use it see no change."""

_HIDDEN = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069"
_HIDDEN_TEXT = re.compile(f"[{_HIDDEN}]")
_HIDDEN_JSON = re.compile(rf"[{_HIDDEN}]|\\u(?:00(?:0[0-8bcBCeEfF]|1|7[fF])|200[eEfF]|202[a-eA-E]|206[6-9])")
_WHOLE = re.compile(r"[-+]?[0-9]+\Z")
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_WORDS = {"": None, "~": None, **dict.fromkeys(("null", "Null", "NULL"))}
_WORDS |= {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}


def read_text(path: str | Path, what: str, most_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of a file from outside, of bounded size; a missing, odd or huge file is an InputError."""
    file = Path(path)
    try:
        if not file.is_file():
            raise InputError(f"{what} {str(path)!r}: no such file")
        size = file.stat().st_size
        if size > most_bytes:
            raise InputError(f"{what} {str(path)!r} has {size:,} bytes; at most {most_bytes:,} are read")
        return file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {str(path)!r} cannot be read: {error}") from error


def read_json(
    path: str | Path, what: str, most_bytes: int = MAX_FILE_BYTES, most_parts: int = MOST_PARTS
) -> dict[str, Any]:
    """A JSON object from a file; truncated or other content, NaN and infinity too, is an InputError."""
    data = parse_json(read_text(path, what, most_bytes), f"{what} {str(path)!r}", most_parts)
    if not isinstance(data, dict):
        raise InputError(f"{what} {str(path)!r} holds a {type(data).__name__}, not a JSON object")
    return data


def parse_json(text: str, where: str, most_parts: int = MOST_PARTS) -> Any:
    """Plain data from JSON text; `where` opens the message of every fault."""
    parts = sum(map(text.count, "[{:"))
    if parts > most_parts:
        raise InputError(f"{where} has {parts:,} lists, objects and keys; at most {most_parts:,} are read")
    try:
        hidden = _HIDDEN_JSON.search(text)
        if hidden:
            raise ValueError(f"the character {hidden[0]!a} at {hidden.start()} hides or reorders text")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise InputError(f"{where} is not valid JSON: it nests too deeply") from None
    except ValueError as error:
        long = "integer string conversion" in str(error)
        told = f"a number of more than {sys.get_int_max_str_digits():,} digits" if long else str(error)
        raise InputError(f"{where} is not valid JSON: {told}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key[:40]!a} is given twice")
    return data


def parse_yaml(text: str, where: str) -> Any:
    """Plain data (dict, list, text, number, true or false, None) from one YAML document."""
    if len(text) > MAX_YAML_CHARACTERS:
        raise InputError(f"{where} has {len(text):,} characters; at most {MAX_YAML_CHARACTERS:,} are read")
    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        next(events)  # the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        data = _node(next(events), events, 0)
        next(events)  # the document's end
        if not isinstance(next(events), yaml.StreamEndEvent):
            raise yaml.YAMLError("it holds several documents; give one")
        return data
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())[:200]}") from None


def _node(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> object:
    """The data that starts with `event`; its further events are taken from `events`."""
    if isinstance(event, yaml.AliasEvent):
        raise yaml.YAMLError("aliases (*name) are not read; write the value out")
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise yaml.YAMLError(f"the tag {tag} is not read; leave it out")
    if isinstance(event, yaml.ScalarEvent):
        return _text(event.value) if event.style else _scalar(event.value)
    if depth == MOST_DEPTH:
        raise yaml.YAMLError(f"it nests deeper than {MOST_DEPTH} levels")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(event, events, depth + 1))
        return items
    values: dict[Any, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            raise yaml.YAMLError("a key must be a text")
        key = _node(event, events, depth)
        if key in values:
            raise yaml.YAMLError(f"the key {key} is given twice")
        values[key] = _node(next(events), events, depth + 1)
    return values


def _text(value: str) -> str:
    hidden = _HIDDEN_TEXT.search(value)
    if hidden:
        raise yaml.YAMLError(f"the text {value!a:.60} holds {hidden[0]!a}, which hides or reorders text")
    return value


def _scalar(value: str) -> object:
    """What unquoted text means in YAML's core schema.

    >>> [_scalar(text) for text in ("8", "1e9", "true", "", "yes", "0x10")]
    [8, 1000000000.0, True, None, 'yes', '0x10']
    """
    if value in _WORDS:
        return _WORDS[value]
    if _WHOLE.match(value):
        if len(value) > MOST_DIGITS:
            raise yaml.YAMLError(f"a number of {len(value):,} digits is not read; at most {MOST_DIGITS}")
        return int(value)
    if _NUMBER.match(value):
        return float(value)
    if _NOT_FINITE.match(value):
        raise yaml.YAMLError(f"{value} is not a finite number")
    return _text(value)


def nearest(name: str, legal: Iterable[str]) -> str:
    """A hint for a mistyped name: `did you mean X? (legal: …)`, or `legal: …` where none is like it.

    >>> nearest("ulyses", ["data", "ring", "ulysses"]), nearest("x", ["data", "ring"])
    ('did you mean ulysses? (legal: data, ring, ulysses)', 'legal: data, ring')
    """
    names = list(legal)
    close = difflib.get_close_matches(name, names, n=1)
    listed = f"legal: {', '.join(names)}"
    return f"did you mean {close[0]}? ({listed})" if close else listed


def read(cls: type[T], data: object, where: str) -> T:
    """An instance of the dataclass `cls` from plain data; `where` names the file or key for error messages."""
    return cast(T, _build(_kind(cls), data, where))  # type: ignore[arg-type]  # classes are hashable


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


def _left_out(field: Field[object], value: object) -> bool:
    return bool(field.metadata.get("optional")) and bool(getattr(value, field.name) == field.default)


@cache
def _kind(cls: type) -> inspect.Type:
    """The types of a dataclass's fields, as msgspec reads its annotations."""
    return inspect.type_info(cls)


def _show(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


def _build(kind: inspect.Type, data: object, where: str) -> object:
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return _number(kind, data, where)
    if isinstance(kind, inspect.UnionType):
        if data is None and kind.includes_none:
            return None
        return _build(next(one for one in kind.types if not isinstance(one, inspect.NoneType)), data, where)
    if isinstance(kind, inspect.VarTupleType | inspect.TupleType):
        return _tuple(kind, data, where)
    if isinstance(kind, inspect.LiteralType):
        if data not in kind.values:
            raise InputError(f"{where}: {_show(data)} is not one of {', '.join(map(str, kind.values))}")
        return data
    if isinstance(kind, inspect.DictType):
        return {str(k): _build(kind.value_type, value, f"{where}.{k}") for k, value in _mapping(data, where).items()}
    if isinstance(kind, inspect.DataclassType):
        return _dataclass(kind, _mapping(data, where), where)
    if not isinstance(kind, inspect.AnyType):
        wanted, name = (bool, "true or false") if isinstance(kind, inspect.BoolType) else (str, "a text")
        if not isinstance(data, wanted):
            raise InputError(f"{where}: {_show(data)} is not {name}")
    return data


def _mapping(data: object, where: str) -> Mapping[object, object]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where} must hold keys and values, not {_show(data)}")
    return data


def _dataclass(kind: inspect.DataclassType, data: Mapping[object, object], where: str) -> object:
    known = {field.name: field for field in kind.fields}
    for key in data:
        if key not in known:
            raise InputError(f"{where}.{key} is unknown; {nearest(str(key), known)}")
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = _build(field.type, data[name], f"{where}.{name}")
        elif field.required:
            raise InputError(f"{where}.{name} is missing")
    try:
        return kind.cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _tuple(kind: inspect.VarTupleType | inspect.TupleType, data: object, where: str) -> tuple[object, ...]:
    if not isinstance(data, list | tuple):
        raise InputError(f"{where} must be a list, not {_show(data)}")
    if isinstance(kind, inspect.VarTupleType):
        return tuple([_build(kind.item_type, item, f"{where}[{i}]") for i, item in enumerate(data)])
    if len(data) != len(kind.item_types):
        raise InputError(f"{where} must have {len(kind.item_types)} entries, not {len(data)}")
    return tuple([_build(kind.item_types[i], item, f"{where}[{i}]") for i, item in enumerate(data)])


def _number(kind: inspect.IntType | inspect.FloatType, data: object, where: str) -> int | float:
    if isinstance(data, str):
        data = _with_unit(data, where)
    if isinstance(data, bool) or not isinstance(data, int | float):
        name = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        raise InputError(f"{where}: {_show(data)} is not {name}")
    whole = isinstance(kind, inspect.IntType) or isinstance(data, int)
    if not -MOST_WHOLE <= data <= MOST_WHOLE if whole else not math.isfinite(data):
        raise InputError(f"{where}: {_show(data)} must be finite, and whole numbers within 2^63")
    if isinstance(kind, inspect.FloatType):
        data = float(data)
    elif isinstance(data, float):
        if not data.is_integer():
            raise InputError(f"{where}: {_show(data)} is not a whole number")
        data = int(data)
    if (kind.ge is not None and data < kind.ge) or (kind.gt is not None and data <= kind.gt):
        raise InputError(f"{where}: {_show(data)} is below its minimum" + _least(kind))
    if kind.le is not None and data > kind.le:
        raise InputError(f"{where}: {_show(data)} is above its maximum of {kind.le}")
    number: int | float = data
    return number


def _least(kind: inspect.IntType | inspect.FloatType) -> str:
    return f" of {kind.ge:g}" if kind.ge is not None else f": it must be above {kind.gt:g}"


def _with_unit(text: str, where: str) -> object:
    name = where.rpartition(".")[2]
    if name.endswith("bytes_per_s"):
        return parse_rate(text, where)
    if name.endswith("_bytes"):
        return parse_bytes(text, where)
    return parse_seconds(text, where) if name.endswith("_s") else text


def schema(cls: type) -> dict[str, object]:
    """The JSON Schema of a dataclass, which refuses unknown keys as `read` does."""
    described = msgspec.json.schema(cls)
    for part in described["$defs"].values():
        if "properties" in part:
            part["additionalProperties"] = False
    return described
