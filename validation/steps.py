"""Domains of the certificate for whole steps: rows of published runs that set no constant. Their order: `pairs.py`.

    step, board, place   board measured or scaled; exchanges inside a node, over PCIe, across nodes
    normal               error / sigma of the price (`cost_models/bands.py`), for a source left out (`conformal.py`)
    residual             what makes most rows' errors as large as their sigma: the part that no curve's error explains

Held out are the rows of `later/`, whose files came after the model was built. Nothing is fitted to any step, but facts
of frameworks were found by looking at some, so rows of `measurements/` itself are not counted as held out. `quarter`
names the sources that no constant may ever be set by.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from cost_models.bands import NARROW, OFFLOADED, domain_of, sigma_of
from cost_models.basis import Basis
from cost_models.certificate import Certificate, Domain
from validation.conformal import Scored, conformal, wider
from validation.domains import Error, measured, rounded, spread, stated
from validation.parts import STATED
from validation.rows import Score
from validation.score import FileReport, Verdict

BOARDS, PLACES = ("measured", "scaled"), ("inside a node", "over PCIe", "across nodes")
LEAST_THERE = 0.1
"""Of its price, what a CPU's update is taken to be where a step took less than the price of all else."""
LEAST_SHARE = 0.1
"""Of a step's price, what the update must be for the step to say anything of it."""


@dataclass(frozen=True, kw_only=True)
class Step(Error):
    """A published step."""

    name: str  # file and row
    label: str
    basis: Basis
    sweep: str
    predicted_s: float
    measured_s: float
    exchanged_s: float  # of `predicted_s`, what exchanges of data ranks show
    twin: str  # all but the attention kernel


def quarter(source: str) -> bool:
    """Whether a source belongs to the quarter that no constant is ever set by: by the digest of its name.

    >>> quarter("pytorch/torchtitan"), quarter("InternLM/InternEvo")
    (True, False)
    """
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % 4 == 3


def steps(reports: Sequence[FileReport], scores: tuple[Score, ...] = ("yes", "apart")) -> list[Step]:
    """Rows of whole steps that may judge; 8- and 4-bit ones are a domain of their own."""
    return [_step(one) for report in reports for one in report.verdicts if one.score in scores and one.basis]


def _step(one: Verdict) -> Step:
    assert one.basis is not None
    return Step(
        name=f"{one.file} {one.row}",
        label=one.label,
        source=one.source,
        error=math.log(one.measured_s / one.predicted_s),
        basis=one.basis,
        sweep=f"{one.file}: {one.sweep}" if one.sweep else "",
        predicted_s=one.predicted_s,
        measured_s=one.measured_s,
        exchanged_s=one.exchanged_s,
        twin=one.twin,
    )


def residual(rows: Sequence[Error], sigmas: Callable[[float], Sequence[float]]) -> float:
    """The residual with which errors about their median, each over its sigma, have a spread of one."""
    sources = [one.source for one in rows]

    def excess(value: float) -> float:
        over = [one.error / sigma for one, sigma in zip(rows, sigmas(value), strict=True)]
        return spread(over, sources) - 1

    low, high = 0.005, 1.0
    if excess(low) <= 0:
        return low
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return round(high, 4)


def domains(rows: Sequence[Step], known: Certificate) -> dict[str, Domain]:
    """Every step's domain. `known` holds the parts' errors and the residual."""
    scored = [
        Scored(value=one.error / sigma_of(one.basis, known), source=one.source, domain=domain_of(one.basis))
        for one in rows
    ]
    found: dict[str, list[Step]] = defaultdict(list)
    for row, one in zip(rows, scored, strict=True):
        found[one.domain].append(row)
    pooled = measured([row for name, mine in found.items() for row in mine if name != OFFLOADED])
    made = {}
    for name in (*(f"step, {board}, {place}" for board, place in product(BOARDS, PLACES)), NARROW, OFFLOADED):
        why = "no rows of such steps: the errors of all others, over what is expected of this one"
        plain = measured(found[name]) if found[name] else stated(2 * pooled.spread, why)
        made[name] = replace(plain, normal=rounded(conformal(scored, name)))
    return {**made, "offload": in_host_memory(found[OFFLOADED])}


def in_host_memory(rows: Sequence[Step]) -> Domain:
    """Errors of the CPU's update, at least as wide as they are stated: what `rows` took beyond the price of all else,
    over the price of these seconds."""
    known, rows = stated(*STATED["offload"]), [one for one in rows if one.basis.shares["update"] >= LEAST_SHARE]
    if not rows:
        return known
    errors = [replace(one, error=math.log(max(1 + math.expm1(one.error) / one.basis.shares["update"], LEAST_THERE)))
              for one in rows]  # fmt: skip
    own = measured(errors)
    quantiles = wider(np.array(own.quantiles), np.array(known.quantiles))
    return replace(known, rows=own.rows, sources=own.sources, quantiles=rounded(quantiles))
