"""Several data sets in one epoch, each by its weight, in an order that follows from the seed and the epoch alone.

    epoch e passes of a set of n samples with weight w:  floor((e + 1) w n) - floor(e w n)  samples

Weight 1 passes every sample once an epoch, 2 twice, 0.5 half of them, and the other half in the next epoch: the part of
an epoch is cut from passes through the set in a drawn order, so that no sample comes a second time before all have come
once. Nothing depends on the number of processes, and a place in an epoch is enough to go on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Part:
    """Consecutive samples of the whole list that share a weight."""

    count: int
    weight: float = 1.0


def epoch_order(parts: Sequence[Part], seed: int, epoch: int, *, shuffle: bool) -> np.ndarray:
    """Indices into the samples of all parts, in the order in which the epoch passes them.

    >>> epoch_order([Part(3), Part(4, 0.5)], seed=0, epoch=0, shuffle=False).tolist()
    [0, 1, 2, 3, 4]
    >>> epoch_order([Part(3), Part(4, 0.5)], seed=0, epoch=1, shuffle=False).tolist()
    [0, 1, 2, 5, 6]
    """
    return _epoch_order(tuple(parts), seed, epoch, shuffle)


@lru_cache(maxsize=2)
def _epoch_order(parts: tuple[Part, ...], seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    drawn, first = [np.zeros(0, dtype=np.int64)], 0
    for number, part in enumerate(parts):
        share = Fraction(str(part.weight)) * part.count
        start, stop = math.floor(epoch * share), math.floor((epoch + 1) * share)
        while start < stop:
            turn, place = divmod(start, part.count)
            end = min(stop - turn * part.count, part.count)
            whole = end - place == part.count
            drawn.append(first + _turn(part.count, [seed, number, turn], shuffle and not whole)[place:end])
            start = turn * part.count + end
        first += part.count
    order = np.concatenate(drawn)
    return np.random.default_rng([seed, epoch]).permutation(order) if shuffle else order


def _turn(count: int, seeds: list[int], shuffle: bool) -> np.ndarray:
    """One pass through a set; its order matters only where an epoch holds a part of it."""
    return np.random.default_rng(seeds).permutation(count) if shuffle else np.arange(count)
