"""Bands that hold what they say of a source that had no part in them: quantiles of errors, conformal by source.

    base     a domain's quantiles over all sources but one (`domains.py`); of a domain with few rows or sources all
             domains'
    score    of a row at a level: how far it lies beyond an end that all sources but its own set; below zero inside
    ends     of a row: base's of the domain without its source, each moved out by its score
    band     at a level, the level's quantile over rows of either end

CV+ (Barber, Candes, Ramdas, Tibshirani 2021) of quantiles (Romano, Patterson, Candes 2019), with whole sources left out
instead of rows, as rows of one source err alike. A score moves the ends that it was measured from: added to those of
all sources, a source that errs by much would count twice, in them and by its own score. Rows are the domain's, each
counted once; of all domains where it has few. A band holds its price (`bands.py`): errors above it are scored at the
upper end alone. Left out: what no source shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cost_models.bands import OFFLOADED
from cost_models.certificate import PROBABILITIES
from validation.domains import Floats, quantiles

FEW_ROWS, FEW_SOURCES = 20, 4
"""A domain with fewer takes the quantiles and scores of all domains together."""
MIDDLE = PROBABILITIES.index(0.5)
LEVELS = tuple(zip(range(MIDDLE), reversed(range(MIDDLE + 1, len(PROBABILITIES))), strict=True))
"""Places of both ends, from the widest band to the narrowest."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An error over what was expected of it, or an error as it is."""

    value: float
    source: str
    domain: str


def conformal(rows: Sequence[Scored], domain: str) -> tuple[float, ...]:
    """Quantiles at PROBABILITIES of one domain."""
    moved, ends = _base(rows, domain), _ends(rows, domain)
    if not len(ends):
        return tuple(float(one) for one in moved)
    low = high = moved[MIDDLE]
    for place in range(len(LEVELS) - 1, -1, -1):
        below, above = LEVELS[place]
        level = PROBABILITIES[above] - PROBABILITIES[below]
        low = min(low, np.quantile(ends[:, 0, place], 1 - level))
        high = max(high, np.quantile(ends[:, 1, place], level))
        moved[below], moved[above] = low, high
    return tuple(float(one) for one in moved)


def few(rows: Sequence[Scored], domain: str) -> bool:
    sources = [one.source for one in rows if one.domain == domain]
    return len(sources) < FEW_ROWS or len(set(sources)) < FEW_SOURCES


def _ends(rows: Sequence[Scored], domain: str) -> Floats:
    """(rows, lower and upper, levels); none from a single source."""
    everywhere = few(rows, domain)
    judged = [one for one in rows if one.domain == domain or (everywhere and one.domain != OFFLOADED)]
    below, above = (list(places) for places in zip(*LEVELS, strict=True))
    found = []
    for source in sorted({one.source for one in judged}):
        others = [one for one in rows if one.source != source]
        if all(one.domain == OFFLOADED for one in others):
            continue  # nothing that could judge
        mine = [one for one in judged if one.source == source]
        bases = {name: _base(others, name) for name in {domain, *(one.domain for one in mine)}}
        scores = np.array([_score(one.value, bases[one.domain]) for one in mine])
        found.append(np.stack([bases[domain][below] - scores, bases[domain][above] + scores], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2, len(LEVELS)))


def _score(value: float, base: Floats) -> list[float]:
    """A band holds its price, so that only the end on the value's side can leave it out."""
    return [value - base[above] if value > 0 else base[below] - value for below, above in LEVELS]


def _base(rows: Sequence[Scored], domain: str) -> Floats:
    """Its own quantiles, or with few rows those of all, wider where its own median refutes them.

    Copies to host memory err by several times: such steps are no measure for others.
    """
    mine = [one for one in rows if one.domain == domain]
    if mine and not few(rows, domain):
        return _quantiles(mine)
    pooled = _quantiles([one for one in rows if one.domain != OFFLOADED] or rows)
    return borrowed(_quantiles(mine), pooled) if mine else pooled


def borrowed(own: Floats, pooled: Floats) -> Floats:
    """Those of all domains, wider if a domain's own median is outside the middle 80% of them."""
    low, high = PROBABILITIES.index(0.1), PROBABILITIES.index(0.9)
    return pooled if pooled[low] <= own[MIDDLE] <= pooled[high] else wider(own, pooled)


def wider(one: Floats, other: Floats) -> Floats:
    """At each probability the quantile that is farther out.

    >>> wider(np.array([-1.0] * 5 + [0.0] + [2.0] * 5), np.array([-3.0] * 5 + [0.0] + [1.0] * 5))[::5].tolist()
    [-3.0, 0.0, 2.0]
    """
    return np.where(np.array(PROBABILITIES) < 0.5, np.minimum(one, other), np.maximum(one, other))


def _quantiles(rows: Sequence[Scored]) -> Floats:
    return quantiles([one.value for one in rows], [one.source for one in rows])
