"""Arithmetic on a number or on an array of candidates: one formula, and no numpy call where there is one number.

A numpy call on a scalar takes longer than all the arithmetic of a price; a strategy's price is numbers throughout.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Number = float | Array
"""A number or a truth value, or one for each candidate."""


@overload
def larger(left: int, right: int) -> int: ...
@overload
def larger(left: float, right: float) -> float: ...
@overload
def larger(left: Number, right: Number) -> Number: ...
def larger(left: Number, right: Number) -> Number:
    """
    >>> larger(1, 2.0), larger(np.array([1, 3]), 2).tolist()
    (2.0, [2, 3])
    """
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.asarray(np.maximum(left, right))
    return left if left >= right else right


@overload
def smaller(left: int, right: int) -> int: ...
@overload
def smaller(left: float, right: float) -> float: ...
@overload
def smaller(left: Number, right: Number) -> Number: ...
def smaller(left: Number, right: Number) -> Number:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.asarray(np.minimum(left, right))
    return left if left <= right else right


@overload
def pick(condition: bool, then: int, otherwise: int) -> int: ...
@overload
def pick(condition: bool, then: float, otherwise: float) -> float: ...
@overload
def pick(condition: Number, then: Number, otherwise: Number) -> Number: ...
def pick(condition: Number, then: Number, otherwise: Number) -> Number:
    """`then` where the condition holds.

    >>> pick(True, 1.0, 0.0), pick(np.array([True, False]), 1.0, 0.0).tolist()
    (1.0, [1.0, 0.0])
    """
    if isinstance(condition, np.ndarray):
        return np.where(condition, then, otherwise)
    return then if condition else otherwise


def both(left: Number, right: Number) -> Number:
    """Logical and."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.asarray(np.logical_and(left, right))
    return left and right


def somewhere(condition: Number) -> bool:
    """Whether the condition holds for the number, or for any candidate."""
    return bool(condition.any()) if isinstance(condition, np.ndarray) else bool(condition)


def distinct(values: Array) -> Array:
    """The values that occur, ascending; `np.unique` does the same, but first imports numpy's masked arrays.

    >>> distinct(np.array([[3, 1], [1, 3]])).tolist()
    [1, 3]
    """
    ordered = np.sort(values, axis=None)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]
