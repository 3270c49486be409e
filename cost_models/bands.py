"""How wrong one price may be, and which of two layouts is faster, from the certificate's errors.

    sigma^2    = sum over sources of error (stake x spread)^2 + residual^2
    band       = price x exp(quantiles of the step's domain x sigma), each end as far out again as errors of the CPU's
                 update alone move it: share x (exp(quantile) - 1), both as legs of a right angle
    difference = ln(price b / price a);  its sigma^2 = sum (stake in a - stake in b)^2 spread^2 + 2 residual^2
    odds       = the share of pairs whose error was below difference / sigma

A stake is the share of the step that a source's seconds have, and for links also what computation hides of them: a
slower link shows it. An error of a curve or a link is common to all layouts of one question, so it cancels where two
have the same stake in it; what is left are stakes that differ, and each layout's own residual. Log units;
probabilities. Left out: errors of the workload (lengths that vary) and of the machine as stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cost_models.basis import KERNELS, SOURCES, Basis, Board
from cost_models.certificate import PROBABILITIES, Certificate, certificate
from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.number import Number

LEVEL, CONFIDENCE = 0.8, 0.95
DEVICE_MEMORY = "device memory"
NARROW, OFFLOADED = "step, 8 or 4 bits", "step, in host memory"
MOST_OFFLOADED = 0.05
"""Share of a step that may be exposed copies to host memory and updates there, before it counts as such a step."""
MOST_SURE = 0.995
"""No odds beyond this: pairs are too few to say more."""
_DOMAINS = {
    "inside": "collectives inside a node", "pcie": "collectives over PCIe", "across": "collectives across nodes",
    "offload": "offload", "update": "offload", "host": "host",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Band:
    """At least `level` of what is measured is expected between `low` and `high`; `middle` is the price."""

    low: float
    middle: float
    high: float
    level: float

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def half_width(self) -> float:
        """Relative.

        >>> Band(low=9.0, middle=10.0, high=12.0, level=0.8).half_width
        0.15
        """
        return (self.high - self.low) / 2 / self.middle


class HoldsMemory(Protocol):
    """One cost, or a batch of them."""

    @property
    def memory_bytes(self) -> Number: ...


def step_band(cost: StepCost, level: float = LEVEL, known: Certificate | None = None) -> Band:
    """Seconds of a step; `known` replaces this release's certificate."""
    return band_of(_basis(cost), cost.step_s, known or certificate(), level)


def band_of(basis: Basis, step_s: float, known: Certificate, level: float = LEVEL) -> Band:
    """The same of a price that rests on `basis`, from a certificate's errors."""
    found = band_around(step_s, known.domain(_beside(basis)).normal, sigma_of(basis, known), level)
    there = band_around(step_s * basis.shares["update"], known.domain("offload").quantiles, 1.0, level)
    low = step_s - math.hypot(step_s - found.low, there.middle - there.low)
    high = step_s + math.hypot(found.high - step_s, there.high - there.middle)
    return Band(low=low, middle=step_s, high=high, level=level)


def memory_band(cost: StepCost, level: float = LEVEL, known: Certificate | None = None) -> Band:
    """Bytes of the fullest GPU that its driver counts as used."""
    return band_around(cost.memory_bytes, (known or certificate()).domain(DEVICE_MEMORY).quantiles, 1.0, level)


def memory_at(cost: HoldsMemory, confidence: float = CONFIDENCE) -> Number:
    """Bytes that suffice with this probability: of one cost, or of each of a batch."""
    return cost.memory_bytes * memory_factor(confidence)


def memory_factor(confidence: float = CONFIDENCE) -> float:
    """`memory_at` over the price's bytes."""
    _check(confidence, "confidence")
    return math.exp(quantile(certificate().domain(DEVICE_MEMORY).quantiles, confidence))


def odds(first: StepCost, second: StepCost, paid: float = 1.0) -> float:
    """Probability that `first` is the better of two layouts of one question.

    `paid`: what a second of the second layout costs over one of the first, where GPU-hours count.
    """
    known = certificate()
    sigma = difference_sigma(_basis(first), _basis(second), known)
    return odds_of(math.log(paid * second.step_s / first.step_s) / sigma, known)


def odds_of(normal: float, known: Certificate) -> float:
    """Of a difference over its sigma, for the layout that is ahead if it is above zero."""
    sure = float(np.interp(abs(normal), known.pairs.normal, PROBABILITIES))
    sure = min(max(sure, 0.5), MOST_SURE)
    return sure if normal >= 0 else 1 - sure


def sigma_of(basis: Basis, known: Certificate) -> float:
    """Expected spread of ln(measured / predicted) of a step, but for the CPU's update: several times off, that is no
    small error."""
    return math.hypot(parts_sigma(basis, known), known.residual)


def parts_sigma(basis: Basis, known: Certificate) -> float:
    """The part of it that errors of curves and links have."""
    spreads, stakes = spreads_of(basis, known), basis.stakes
    return math.hypot(*(stakes[name] * spreads[name] for name in SOURCES if name != "update"))


def difference_sigma(first: Basis, second: Basis, known: Certificate) -> float:
    """Expected spread of the error of ln(price / price)."""
    own = known.pairs.residual
    return math.hypot(common_sigma(first, second, known), own, own)


def common_sigma(first: Basis, second: Basis, known: Certificate) -> float:
    """The part of it that errors of curves and links have: where the stakes in them differ."""
    spreads, one, other = spreads_of(first, known), first.stakes, second.stakes
    return math.hypot(*((one[name] - other[name]) * spreads[name] for name in SOURCES))


def spreads_of(basis: Basis, known: Certificate) -> dict[str, float]:
    """By source of error."""
    return {name: known.domain(source_domain(name, basis.board)).spread for name in SOURCES}


def source_domain(source: str, board: Board) -> str:
    """The certificate's domain of a source of error.

    >>> source_domain("products", "scaled"), source_domain("pcie", "scaled")
    ('products, scaled', 'collectives over PCIe')
    """
    return f"{source}, {board}" if source in KERNELS else _DOMAINS[source]


def domain_of(basis: Basis) -> str:
    """The step's domain of the certificate.

    >>> domain_of(Basis(board="measured", seconds={"products": 1.0, "across": 0.1}))
    'step, measured, across nodes'
    """
    offloaded = basis.shares["offload"] + basis.shares["update"] > MOST_OFFLOADED
    return OFFLOADED if offloaded and not basis.narrow else _beside(basis)


def _beside(basis: Basis) -> str:
    """The same whatever happens in host memory."""
    if basis.narrow:
        return NARROW
    where = {"inside": "inside a node", "pcie": "over PCIe", "across": "across nodes"}
    return f"step, {basis.board}, {where[basis.place]}"


def quantile(values: tuple[float, ...], probability: float) -> float:
    """Between the certificate's quantiles; beyond them as far as its outermost ones."""
    return float(np.interp(probability, PROBABILITIES, values))


def band_around(middle: float, errors: tuple[float, ...], sigma: float, level: float) -> Band:
    """Errors that are mostly of one sign move an end as far as the price, never beyond it."""
    _check(level, "level")
    low, high = (math.exp(quantile(errors, one) * sigma) for one in ((1 - level) / 2, (1 + level) / 2))
    return Band(low=middle * min(low, 1.0), middle=middle, high=middle * max(high, 1.0), level=level)


def _check(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name}={value} must be above 0 and below 1")


def _basis(cost: StepCost) -> Basis:
    if cost.basis is None:
        raise InputError("this cost says not what it rests on: price the layout again")
    return cost.basis
