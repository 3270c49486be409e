"""Kernels and paths that answer a repeated question from memory.

The recompute policies of one batch of layouts ask for the same products and exchanges over and over: within one
pricing each distinct call (by value of its arguments) is computed once. Left out: any memory beyond one batch.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from cost_models.kernels import Kernels
from cost_models.paths import Paths
from cost_models.program import Op


class RememberedKernels(Kernels):
    """The calls of `kernels`, each computed once."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels, self.device = kernels, kernels.device
        self._known: dict[Hashable, Any] = {}

    def gemm_s(self, m: Any, n: Any, k: Any, dtype: str = "bf16") -> Any:
        key = ("gemm", _key(m), _key(n), _key(k), dtype)
        if key not in self._known:
            self._known[key] = self.kernels.gemm_s(m, n, k, dtype)
        return self._known[key]

    def attention_s(self, *args: Any, **kwargs: Any) -> Any:
        key = (*map(_key, args), *((name, _key(value)) for name, value in sorted(kwargs.items())))
        if key not in self._known:
            self._known[key] = self.kernels.attention_s(*args, **kwargs)
        return self._known[key]

    def memory_bound_s(self, bytes_moved: Any, launches: Any = 1) -> Any:
        return self.kernels.memory_bound_s(bytes_moved, launches)

    def framework_s(self, unit: str) -> float:
        return self.kernels.framework_s(unit)


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
