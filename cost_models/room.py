"""What fits: up to how many priced bytes a step is said to fit on a card.

    with confidence p   bytes x exp(q(p)) <= capacity     q: quantiles of ln(used / priced), from the certificate
    with headroom h     bytes + h <= capacity

Both are one limit on priced bytes, so that search, integer program, remedies and longest rows ask the same. Beyond the
certificate's outermost quantile q grows as a normal distribution's. What is offloaded must fit the hosts as priced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cost_models.bands import CONFIDENCE, DEVICE_MEMORY, memory_factor
from cost_models.certificate import PROBABILITIES, certificate
from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.units import show_bytes

LEAST, MOST = 0.5, 0.999
OUTERMOST = PROBABILITIES[-1]


@dataclass(frozen=True, kw_only=True)
class Room:
    """
    >>> 0.8 < Room().limit_bytes(80 * 2**30) / (80 * 2**30) < Room(confidence=0.6).limit_bytes(1.0) < 1
    True
    >>> Room(headroom_bytes=2 * 2**30).limit_bytes(80 * 2**30) / 2**30
    78.0
    """

    confidence: float = CONFIDENCE
    headroom_bytes: int | None = None  # in place of the confidence

    def __post_init__(self) -> None:
        if not LEAST <= self.confidence <= MOST:
            raise InputError(f"confidence={self.confidence}; legal: {LEAST} to {MOST}")
        if self.headroom_bytes is not None and self.headroom_bytes < 0:
            raise InputError(f"headroom_bytes={self.headroom_bytes} must be at least 0")

    def limit_bytes(self, capacity_bytes: float) -> float:
        """The most that a step may be priced at on a card of this capacity."""
        if self.headroom_bytes is not None:
            return max(0.0, capacity_bytes - self.headroom_bytes)
        return capacity_bytes / _factor(self.confidence)

    def holds(self, cost: StepCost) -> bool:
        return cost.memory_bytes <= self.limit_bytes(cost.capacity_bytes) and cost.fits_host

    @property
    def words(self) -> str:
        """
        >>> Room().words, Room(headroom_bytes=2 * 2**30).words
        ('95% confidence', '2.00 GiB headroom')
        """
        if self.headroom_bytes is not None:
            return f"{show_bytes(self.headroom_bytes)} headroom"
        return f"{100 * self.confidence:g}% confidence"


DEFAULT_ROOM = Room()
AS_PRICED = Room(headroom_bytes=0)
"""A price at its word."""


def sureness(memory_bytes: float, capacity_bytes: float) -> float:
    """Probability that a step of so many priced bytes fits; no more than the certificate's outermost one."""
    if memory_bytes <= 0 or capacity_bytes <= 0:
        return float(capacity_bytes > 0) * OUTERMOST
    errors = certificate().domain(DEVICE_MEMORY).quantiles
    return float(np.interp(math.log(capacity_bytes / memory_bytes), errors, PROBABILITIES, left=0.0))


def _factor(confidence: float) -> float:
    """Bytes that suffice with this probability, over the priced ones."""
    if confidence <= OUTERMOST:
        return memory_factor(confidence)
    from statistics import NormalDist

    normal = NormalDist().inv_cdf
    return float(memory_factor(OUTERMOST) ** (normal(confidence) / normal(OUTERMOST)))
