"""Whether bands hold what they say: each source's rows against bands that all other sources set.

    coverage      share of a domain's held-out rows inside their band       half-width    median, relative
    calibration   share of rows whose error lies below the predicted quantile, for each probability: equal if calibrated

The rows that test a band had no part in setting it, but for `steps_as_shipped`; the spreads of kernels and links,
from other files, stay. Domains with fewer than FEW_SOURCES sources are not tested: there is nothing to set the band
from.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_models.bands import LEVEL, Band, band_around, band_of, difference_sigma, domain_of, odds_of, sigma_of
from cost_models.certificate import PROBABILITIES, Certificate
from validation.certificate import with_steps
from validation.conformal import FEW_SOURCES, Scored, conformal
from validation.domains import Error
from validation.pairs import Pair, pair_facts
from validation.steps import Step


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One row against a band that it did not set. `below`: probability that was given to errors below its own."""

    name: str
    domain: str
    source: str
    error: float
    inside: bool
    half_width: float
    below: float


@dataclass(frozen=True, kw_only=True)
class Coverage:
    domain: str
    rows: int
    sources: int
    share: float
    half_width: float


def steps_against_others(rows: Sequence[Step], known: Certificate) -> list[Tested]:
    """Every row of a step, by bands from the other sources."""
    found = []
    for source in sorted({one.source for one in rows}):
        others = with_steps(known, [one for one in rows if one.source != source])
        found += [_tested(one, others) for one in rows if one.source == source]
    return found


def steps_as_shipped(rows: Sequence[Step], known: Certificate) -> list[Tested]:
    """Every row of a step, by the bands that all sources set, its own among them."""
    return [_tested(one, known) for one in rows]


def _tested(row: Step, known: Certificate) -> Tested:
    band, domain = band_of(row.basis, 1.0, known), domain_of(row.basis)
    normal = known.domain(domain).normal
    return Tested(
        name=row.name, domain=domain, source=row.source, error=row.error, inside=_inside(row.error, band),
        half_width=band.half_width, below=_probability(row.error / sigma_of(row.basis, known), normal),
    )  # fmt: skip


def _inside(error: float, band: Band) -> bool:
    return band.low <= math.exp(error) <= band.high


def _probability(error: float, quantiles: tuple[float, ...]) -> float:
    return float(np.interp(error, quantiles, PROBABILITIES))


def errors_against_others(domain: str, errors: Sequence[Error]) -> Iterator[Tested]:
    """Every error of a part or of memory, by bands from the other sources."""
    for source in sorted({one.source for one in errors}):
        others = [one for one in errors if one.source != source]
        if len({one.source for one in others}) + 1 < FEW_SOURCES:
            return
        quantiles = conformal([Scored(value=one.error, source=one.source, domain=domain) for one in others], domain)
        band = band_around(1.0, quantiles, 1.0, LEVEL)
        for one in errors:
            if one.source == source:
                yield Tested(
                    name=source, domain=domain, source=source, error=one.error, inside=_inside(one.error, band),
                    half_width=band.half_width, below=_probability(one.error, quantiles),
                )  # fmt: skip


def coverages(tested: Sequence[Tested]) -> list[Coverage]:
    """By domain, in order of name."""
    found: dict[str, list[Tested]] = defaultdict(list)
    for one in tested:
        found[one.domain].append(one)
    return [
        Coverage(
            domain=name,
            rows=len(rows),
            sources=len({one.source for one in rows}),
            share=float(np.mean([one.inside for one in rows])),
            half_width=float(np.median([one.half_width for one in rows])),
        )
        for name, rows in sorted(found.items())
    ]


def odds_against_others(pairs: Sequence[Pair], known: Certificate) -> list[tuple[float, bool]]:
    """For each pair the odds of the layout that is priced faster, from the other sources' pairs; whether it was."""
    found = []
    for source in sorted({one.source for one in pairs}):
        others = replace(known, pairs=pair_facts([one for one in pairs if one.source != source], known))
        for one in pairs:
            if one.source == source:
                sigma = difference_sigma(one.first, one.second, others)
                found.append((odds_of(one.distance / sigma, others), one.loss < 0))
    return found
