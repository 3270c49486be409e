"""Kernels and paths that answer a repeated question from memory.

A step asks for the same products and exchanges over and over: K and V, a layer again for its recompute, every policy
of a batch of layouts. Each distinct call (by value of its arguments) is computed once. Arguments are numbers or
arrays of candidates. What is remembered is bounded: beyond `MOST_CALLS` everything is forgotten at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from cost_models.program import Op
from cost_models.timing.kernels import Kernels
from cost_models.timing.paths import Paths

MOST_CALLS = 50_000


class RememberedKernels(Kernels):
    """The calls of `kernels`, each computed once."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels: Kernels = kernels.kernels if isinstance(kernels, RememberedKernels) else kernels
        self.device = kernels.device
        self._known: dict[Hashable, Any] = {}

    def gemm_s(self, *args: Any, **kwargs: Any) -> Any:
        return self._recall(self.kernels.gemm_s, "gemm", args, kwargs)

    def grouped_s(self, groups: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(groups, int) and groups == 1:
            return self.gemm_s(*args, **kwargs)
        return self._recall(self.kernels.grouped_s, "grouped", (groups, *args), kwargs)

    def attention_s(self, *args: Any, **kwargs: Any) -> Any:
        return self._recall(self.kernels.attention_s, "attention", args, kwargs)

    def memory_bound_s(self, bytes_moved: Any, launches: Any = 1) -> Any:
        return self.kernels.memory_bound_s(bytes_moved, launches)

    def framework_s(self, unit: str) -> float:
        return self.kernels.framework_s(unit)

    def source(self, op: str) -> str:
        return self.kernels.source(op)

    def is_estimate(self, op: str) -> bool:
        return self.kernels.is_estimate(op)

    def _recall(self, call: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (name, *map(_key, args), *((word, _key(value)) for word, value in sorted(kwargs.items())))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST_CALLS:
                self._known.clear()
            found = self._known[key] = call(*args, **kwargs)
        return found


@dataclass(frozen=True, kw_only=True)
class RememberedPaths(Paths):
    """The exchanges of `paths`, each computed once."""

    paths: Paths
    _known: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Paths) -> RememberedPaths:
        return cls(paths=paths, **{one.name: getattr(paths, one.name) for one in fields(Paths)})

    def exchange_s(self, axis: str, op: Op, size: Any) -> Any:
        key = (axis, op, _key(size))
        if key not in self._known:
            self._known[key] = self.paths.exchange_s(axis, op, size)
        return self._known[key]


def _key(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.char, value.tobytes()
    return value  # type: ignore[no-any-return]
