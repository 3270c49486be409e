"""What a proof states: regions of a plan's space, each with seconds that no layout of it is below (`proof.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Family(NamedTuple):
    """Layouts that differ in ring and sharding alone."""

    data: int
    microbatches: int
    ulysses: int


@dataclass(frozen=True, kw_only=True)
class Region:
    """Layouts that differ in the ring alone, none of which takes less than `least_s`."""

    data: int
    microbatches: int
    ulysses: int
    rings: tuple[int, int]  # first, last
    least_s: float

    @property
    def layouts(self) -> list[tuple[Family, int]]:
        family = Family(self.data, self.microbatches, self.ulysses)
        return [(family, ring) for ring in range(self.rings[0], self.rings[1] + 1)]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """No layout of the space takes less than `bound_s` on any placement."""

    bound_s: float
    regions: tuple[Region, ...]
