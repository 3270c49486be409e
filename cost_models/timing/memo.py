"""Answers to repeated questions: a step asks for the same products and exchanges over and over.

Each distinct call, by value of its arguments (numbers or arrays of candidates), is computed once. Beyond `MOST_CALLS`
everything is forgotten at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
MOST_CALLS = 50_000
NOTHING: Mapping[str, object] = MappingProxyType({})


class Memo:
    """
    >>> memo = Memo()
    >>> [memo.recall(max, (2, 3)) for _ in range(2)], len(memo.known)
    ([3, 3], 1)
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, Any] = {}

    def recall(self, call: Callable[..., T], args: tuple[object, ...], kwargs: Mapping[str, object] = NOTHING) -> T:
        """`call(*args, **kwargs)`, remembered by the arguments; one memo holds the answers of one `call`."""
        key: Hashable = (args, *kwargs.items())
        try:
            answer = self.known.get(key)
        except TypeError:  # arrays cannot be hashed
            key = (tuple(map(_key, args)), *((word, _key(value)) for word, value in kwargs.items()))
            answer = self.known.get(key)
        if answer is None:
            if len(self.known) >= MOST_CALLS:
                self.known.clear()
            answer = self.known[key] = call(*args, **kwargs)
        remembered: T = answer
        return remembered


def _key(value: object) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.char, value.tobytes()
    return value
