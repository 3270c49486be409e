"""One strict reader for settings: YAML, or a mapping, becomes a frozen dataclass, or one clear line says why not.

    {"steps": 20, "lr": 1e-3}  --read_settings(TrainSettings)-->  TrainSettings(steps=20, lr=0.001, …)

msgspec checks the types; this module names what is wrong: an unknown key with the nearest known name, a wrong type
with the value and the type wanted. A dataclass checks its ranges in `__post_init__` by raising `JobError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from longvila.files import read_text
from longvila.job import JobError

Settings = TypeVar("Settings")
MOST_DEPTH = 32
_WRONG = {"int": "is not a whole number", "float": "is not a number", "bool": "is neither true nor false"}
_WRONG |= {"str": "is not text", "array": "is not a list", "object": "is not a mapping"}


def read_settings(kind: type[Settings], given: Mapping[str, Any], where: str) -> Settings:
    """`given` as a `kind`; `where` opens the message of every fault (a file or "settings")."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    known = f"known: {', '.join(fields)}"
    for key in given:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise JobError(f"{where}: unknown setting {key!r}{hint}; {known}")
    try:
        return msgspec.convert({key: _number(value, fields[key].type) for key, value in given.items()}, kind)
    except msgspec.ValidationError as fault:
        if isinstance(fault.__cause__, JobError):
            raise fault.__cause__ from None
        missing = re.match(r"Object missing required field `(\w+)`", str(fault))
        if missing:
            raise JobError(f"{where}: missing setting {missing[1]!r}; {known}") from None
        raise JobError(f"{where}: {_wrong_type(str(fault), given)}") from None


def _number(value: Any, kind: object) -> Any:
    """Read text as a number where the field wants one: PyYAML reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) and str(kind).startswith("float") else value
    except ValueError:
        return value


def _wrong_type(fault: str, given: Mapping[str, Any]) -> str:
    """msgspec's "Expected `int | null`, got `str` - at `$.steps`" in this module's words."""
    match = re.match(r"Expected `(\w+)[^`]*`.* - at `\$\.(\w+)(?:\[(\d+)\])?", fault)
    if match is None:
        return fault
    value = given[match[2]] if match[3] is None else given[match[2]][int(match[3])]
    return f"{match[2]}: {value!r} {_WRONG.get(match[1], f'is no {match[1]}')}"


class _Loader(yaml.SafeLoader):
    """YAML without aliases, repeated keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent) or self.depth == MOST_DEPTH:
            raise yaml.YAMLError(f"aliases (*name) and more than {MOST_DEPTH} levels are not read")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            raise yaml.YAMLError(f"a key of {', '.join(map(str, values))} is given twice")
        return values


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """The settings of a YAML text; anything but `key: value` lines is a JobError."""
    given = _loaded(text, where)
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise JobError(f"{where} holds no settings as `key: value` lines")
    return given


def read_changed(file: str, changes: Sequence[str]) -> dict[str, Any]:
    """The settings of a YAML file with some of them changed, as key=value."""
    given = read_yaml(read_text(Path(file), ""), file)
    for text in changes:
        key, sign, value = text.partition("=")
        if not sign:
            raise JobError(f"{text!r} is not key=value")
        given[key] = _loaded(value, text)
    return given


def _loaded(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as fault:
        raise JobError(f"{where} is not YAML: {' '.join(str(fault).split())[:200]}") from None
