"""Errors of rows summed up as a domain of the certificate: quantiles in which no source outvotes the others.

    error    ln(measured / predicted)
    weight   of a source of n rows: n / (1 + (n - 1) ALIKE), the number of independent rows that they are worth; of each
             of its rows, an n-th of it
    spread   (84th - 16th percentile) / 2: a standard deviation, were errors normal

Rows of one source share a machine, a script and a version, so their errors are alike. Left out: what two sources share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cost_models.certificate import PROBABILITIES, Domain

Floats = NDArray[np.float64]
ALIKE = 1 / 3
"""Correlation of the errors of one source's rows: 0.30 over the held-out steps (one-way analysis of variance), and 0 to
0.76 in single domains, which have too few sources for a number of their own."""
SIXTEENTH = NormalDist().cdf(-1)


@dataclass(frozen=True, kw_only=True)
class Error:
    """One prediction of a row that was not fitted."""

    source: str
    error: float  # ln(measured / predicted)


def weights(sources: Sequence[str]) -> Floats:
    """Of each row; together what the sources are worth.

    >>> weights(["a", "b", "b", "b"]).round(3).tolist()
    [1.0, 0.6, 0.6, 0.6]
    """
    rows = Counter(sources)
    return np.array([1 / (1 + (rows[source] - 1) * ALIKE) for source in sources])


def quantiles(values: Iterable[float], sources: Sequence[str], at: Sequence[float] = PROBABILITIES) -> Floats:
    """Weighted; between two rows linear.

    >>> quantiles([3.0, 1.0, 2.0], ["a", "b", "c"], [0.5]).tolist()
    [2.0]
    """
    found, weight = np.array(list(values)), weights(sources)
    order = np.argsort(found, kind="stable")
    below = np.cumsum(weight[order]) - weight[order] / 2
    return np.asarray(np.interp(at, below / weight.sum(), found[order]))


def spread(values: Iterable[float], sources: Sequence[str]) -> float:
    """Robust standard deviation about the median."""
    low, high = quantiles(values, sources, (SIXTEENTH, 1 - SIXTEENTH))
    return float(high - low) / 2


def measured(errors: Sequence[Error]) -> Domain:
    """A domain of rows."""
    values, sources = [one.error for one in errors], [one.source for one in errors]
    return Domain(
        rows=len(errors),
        sources=tuple(sorted(set(sources))),
        quantiles=rounded(quantiles(values, sources)),
        spread=round(spread(values, sources), 4),
    )


def stated(sigma: float, why: str) -> Domain:
    """A domain without rows: normal errors of `sigma` about zero."""
    normal = NormalDist()
    return Domain(
        rows=0,
        sources=(),
        quantiles=rounded(sigma * normal.inv_cdf(one) for one in PROBABILITIES),
        spread=sigma,
        stated=why,
    )


def rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(one), 4) for one in values)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Rows of one source, by their errors' quantiles at PROBABILITIES."""

    rows: int
    quantiles: tuple[float, ...]


POINTS = 200
"""That stand for a family: so many equal shares of its rows."""


def points(families: Mapping[str, Family]) -> list[Error]:
    """As many equally likely errors of each family."""
    shares = (np.arange(POINTS) + 0.5) / POINTS
    return [
        Error(source=name, error=float(error))
        for name, one in families.items()
        for error in np.interp(shares, PROBABILITIES, one.quantiles)
    ]


def pooled(families: Mapping[str, Family]) -> Domain:
    """A domain in which every family counts alike."""
    return replace(measured(points(families)), rows=sum(one.rows for one in families.values()))
