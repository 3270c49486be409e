"""Answers to repeated questions: a step asks for the same products and exchanges over and over.

Each distinct call, by value of its arguments (numbers or arrays of candidates), is computed once. Beyond `MOST_CALLS`
everything is forgotten at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

MOST_CALLS = 50_000


class Memo:
    """
    >>> memo = Memo()
    >>> [memo.recall(max, "largest", (2, 3)) for _ in range(2)], len(memo.known)
    ([3, 3], 1)
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, Any] = {}

    def recall(
        self, call: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Any:
        """`call(*args, **kwargs)`, remembered under `name` and the arguments."""
        named = kwargs or {}
        key = (name, *map(_key, args), *((word, _key(value)) for word, value in sorted(named.items())))
        answer = self.known.get(key)
        if answer is None:
            if len(self.known) >= MOST_CALLS:
                self.known.clear()
            answer = self.known[key] = call(*args, **named)
        return answer


def _key(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.char, value.tobytes()
    return value  # type: ignore[no-any-return]
