"""One strict reader for settings: a mapping (YAML, `--set`) becomes a frozen dataclass, or one clear line says why not.

    {"steps": 20, "lr": "1e-3"}  --read_settings(TrainSettings)-->  TrainSettings(steps=20, lr=0.001, …)

Unknown keys are refused with the nearest known name, wrong types with the value and the type wanted. Handles the
field types int, float, bool, str, tuple of them, Mapping, and `X | None`; a dataclass checks its own ranges in
`__post_init__` by raising `JobError`. Leaves out nested dataclasses: settings are flat.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from longvila.job import JobError

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], given: Mapping[str, Any], where: str) -> Settings:
    """`given` as a `kind`; `where` opens the message of every fault (a file or "settings")."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise JobError(f"{where}: unknown setting {key!r}{_nearest(str(key), fields)}; known: {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    values = {key: _convert(value, hints[key], f"{where}: {key}") for key, value in given.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise JobError(f"{where}: missing setting {missing[0]!r}; known: {', '.join(fields)}")
    return kind(**values)


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(value, next(option for option in options if option is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise JobError(f"{where}: {value!r} is not a list")
        return tuple(_convert(item, typing.get_args(hint)[0], where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise JobError(f"{where}: {value!r} is not a mapping")
        return dict(value)
    return _scalar(value, hint, where)


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise JobError(f"{where}: {value!r} is neither true nor false")
    if isinstance(value, bool) and hint in (int, float):
        raise JobError(f"{where}: {value!r} is not a number")
    if hint is int:
        if isinstance(value, int):
            return value
        raise JobError(f"{where}: {value!r} is not a whole number")
    if hint is float:
        # YAML reads 1e-3 as text; a number written so is a number to whoever wrote it
        try:
            return float(value)
        except (TypeError, ValueError):
            raise JobError(f"{where}: {value!r} is not a number") from None
    if hint is str:
        if isinstance(value, str):
            return value
        raise JobError(f"{where}: {value!r} is not text")
    return value
