"""Pairs of layouts in the certificate: which of two runs for the same work on the same GPUs is the faster.

    error     ln(slower / faster) as measured, less as priced: what two prices share is in neither
    loss      how much longer the layout that is priced faster took

Kept apart: rows that another run of the same layout refutes (`contradictions`); no price orders both ways. Left out:
when a run was made. Runs of one sweep may lie days apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cost_models.bands import common_sigma
from cost_models.basis import Basis
from cost_models.certificate import Apart, Certificate, Pairs
from validation.domains import Error, quantiles, rounded
from validation.score import FileReport
from validation.steps import Step, residual, steps

APART = 0.03
"""Runs measured further apart have an order that prices should know."""
EDGES = (0.0, 0.01, 0.03, 0.1, 0.3)
TIE = 0.005
"""Rows measured closer than this have no order."""


@dataclass(frozen=True, kw_only=True)
class Pair(Error):
    """Two rows of one sweep; `error` is that of ln(slower / faster) as priced, `distance`."""

    first: Basis
    second: Basis
    distance: float

    @property
    def loss(self) -> float:
        """How much longer the one priced faster took; below zero where the order is right."""
        return math.expm1(-(self.distance + self.error))


def ranked(reports: Sequence[FileReport]) -> list[Step]:
    """Rows of sweeps; also such as only rank."""
    return [row for row in steps(reports, ("yes", "apart", "rank")) if row.sweep]


def by_sweep(rows: Iterable[Step]) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = defaultdict(list)
    for row in rows:
        found[row.sweep].append(row)
    return found


def ranked_pairs(reports: Sequence[FileReport], *, with_refuted: bool = False) -> list[Pair]:
    """Of every sweep those that were measured apart."""
    rows = ranked(reports)
    apart = set() if with_refuted else refuted(rows)
    sweeps = by_sweep(row for row in rows if row.name not in apart).values()
    return [found for sweep in sweeps for found in map(_pair, combinations(sweep, 2)) if found is not None]


def contradictions(rows: Sequence[Step]) -> list[tuple[Step, Step]]:
    """(faster, slower) by their kernels, where the faster took more than APART longer.

    A source ran one layout on the same GPUs with two attention kernels, all else equal. The price orders them by the
    kernels' own curves. Which of the two rows is wrong is not known.
    """
    found = []
    for faster, slower in twins(rows):
        if faster.measured_s > slower.measured_s * (1 + APART):
            found.append((faster, slower))
    return found


def refuted(rows: Sequence[Step]) -> set[str]:
    """Names of both rows of every contradiction."""
    return {row.name for both in contradictions(rows) for row in both}


def twins(rows: Iterable[Step]) -> list[tuple[Step, Step]]:
    """Every two rows that differ in the attention kernel alone, the one with the faster kernel first."""
    equal: dict[str, list[Step]] = defaultdict(list)
    for row in rows:
        equal[row.twin].append(row)
    pairs = (sorted(both, key=lambda one: one.predicted_s) for same in equal.values() for both in combinations(same, 2))
    return [(faster, slower) for faster, slower in pairs if faster.predicted_s < slower.predicted_s]


def _pair(both: tuple[Step, Step]) -> Pair | None:
    """None without an order: measured as a tie, or one layout that was run twice or by switches that have no price."""
    faster, slower = sorted(both, key=lambda one: one.predicted_s)
    if abs(math.log(slower.measured_s / faster.measured_s)) < TIE or faster.predicted_s == slower.predicted_s:
        return None
    distance = math.log(slower.predicted_s / faster.predicted_s)
    error = math.log(slower.measured_s / faster.measured_s) - distance
    return Pair(source=faster.source, error=error, first=faster.basis, second=slower.basis, distance=distance)


def pair_facts(found: Sequence[Pair], known: Certificate) -> Pairs:
    """Residual, quantiles of the normalised error, and the order by distance."""

    common = [common_sigma(one.first, one.second, known) for one in found]

    def sigmas(value: float) -> list[float]:
        return [math.hypot(one, value, value) for one in common]

    value = residual(found, sigmas)
    sources = [one.source for one in found]
    over = [one.error / sigma for one, sigma in zip(found, sigmas(value), strict=True)]
    both_ways = quantiles([*over, *(-one for one in over)], sources * 2)
    return Pairs(
        sources=tuple(sorted(set(sources))),
        residual=value,
        normal=rounded(both_ways),
        apart=tuple(_apart(found, *edges) for edges in zip(EDGES, (*EDGES[1:], math.inf), strict=True)),
    )


def _apart(found: Sequence[Pair], least: float, most: float) -> Apart:
    inside = [one for one in found if least <= one.distance < most]
    losses = [one.loss for one in inside if one.loss > 0]
    return Apart(
        least=least,
        pairs=len(inside),
        wrong=len(losses),
        loss=round(float(np.median(losses)), 4) if losses else 0.0,
        worst_loss=round(max(losses, default=0.0), 4),
    )
