"""Arithmetic on a number or on an array of candidates: one formula, and no numpy call where there is one number.

A numpy call on a scalar takes longer than the arithmetic of a whole price; a strategy's price is numbers throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Number = float | NDArray[Any]
"""A number, or one for each candidate."""


def larger(left: Any, right: Any) -> Any:
    """
    >>> larger(1, 2.0), larger(np.array([1, 3]), 2).tolist()
    (2.0, [2, 3])
    """
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.maximum(left, right)
    return left if left >= right else right


def smaller(left: Any, right: Any) -> Any:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.minimum(left, right)
    return left if left <= right else right


def pick(condition: Any, then: Any, otherwise: Any) -> Any:
    """`then` where the condition holds.

    >>> pick(True, 1.0, 0.0), pick(np.array([True, False]), 1.0, 0.0).tolist()
    (1.0, [1.0, 0.0])
    """
    if isinstance(condition, np.ndarray):
        return np.where(condition, then, otherwise)
    return then if condition else otherwise


def both(left: Any, right: Any) -> Any:
    """Logical and."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.logical_and(left, right)
    return left and right


def somewhere(condition: Any) -> bool:
    """Whether the condition holds for the number, or for any candidate."""
    return bool(condition.any()) if isinstance(condition, np.ndarray) else bool(condition)
