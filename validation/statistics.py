"""Errors of predictions: per file, and within sweeps how well the order and the best choice are predicted.

error = predicted / measured - 1          bias = median error          regret = measured(predicted best) / best - 1
tau   = (agreeing - disagreeing) / pairs, over pairs that the measurement puts more than 5% apart
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from validation.tables import percent, signed

APART = 0.05
"""Pairs closer than this are ties: no order is asked for."""


def error(predicted: float | None, measured: float | None) -> float | None:
    """
    >>> error(1.5, 1.0), error(None, 1.0)
    (0.5, None)
    """
    return None if predicted is None or measured is None else predicted / measured - 1


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Shares, not percent."""

    rows: int
    median: float
    p90: float
    worst: float
    bias: float

    @classmethod
    def of(cls, found: Iterable[float | None]) -> Errors:
        """None is a row without the quantity.

        >>> Errors.of([0.1, -0.3, None, 0.2]).median
        0.2
        """
        errors = [one for one in found if one is not None]
        if not errors:
            return cls(rows=0, median=math.nan, p90=math.nan, worst=math.nan, bias=math.nan)
        size = np.abs(np.asarray(errors, dtype=np.float64))
        return cls(
            rows=len(errors),
            median=float(np.median(size)),
            p90=float(np.quantile(size, 0.9)),
            worst=float(size.max()),
            bias=float(np.median(errors)),
        )

    def cells(self) -> tuple[str, str, str, str, str]:
        """As tables show them: rows, median, 90th percentile, worst, bias."""
        return str(self.rows), percent(self.median), percent(self.p90), percent(self.worst), signed(self.bias)

    def centre(self) -> tuple[str, str]:
        """Median and bias, as tables show them."""
        return percent(self.median), signed(self.bias)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One sweep: choices for the same work on the same GPUs."""

    name: str
    rows: int
    pairs: int
    tau: float  # nan without a pair
    regret: float


def ranking(name: str, predicted: Sequence[float], measured: Sequence[float]) -> Ranking:
    """
    >>> found = ranking("x", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    >>> found.pairs, round(found.tau, 3), found.regret
    (3, 0.333, 0.0)
    """
    pairs = order = 0
    for first, second in combinations(range(len(measured)), 2):
        low, high = sorted((measured[first], measured[second]))
        if high <= low * (1 + APART):
            continue
        pairs += 1
        order += int(np.sign((predicted[first] - predicted[second]) * (measured[first] - measured[second])))
    chosen = measured[int(np.argmin(predicted))]
    return Ranking(
        name=name,
        rows=len(measured),
        pairs=pairs,
        tau=order / pairs if pairs else math.nan,
        regret=chosen / min(measured) - 1,
    )
