"""The least that a step of unlike GPUs takes, whatever share of a row each has: phase by phase the sum of their speeds.

    a phase lasts as long as on its slowest rank    >= tokens of all ranks / Σ over ranks (tokens per second of a rank)
    speed of a device     its best of blocks of 1, 2 and R times the mean: time for a token falls with the block
    which GPUs            the fastest in this phase, as many as there are ranks
    what does not grow    with the block (an update) lasts at least as long as its mean: the same formula
    a ring                computes for as long as its slowest position does; its hops count nothing here

So the answer holds for equal shares, too. Where shares must be equal, the slowest of these GPUs counts. Seconds. Left
out: that all phases of a rank have one share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.layer.sizes import Block, RankSizes
from cost_models.program import Ring, StepProgram

Floats = NDArray[np.float64]
Values = list[list[Any]]


def blocks(sizes: RankSizes) -> tuple[list[RankSizes], Floats]:
    """(a rank with blocks of several sizes, these over the mean one; (sizes, layouts))."""
    ring, mean = np.asarray(sizes.degrees.ring), np.asarray(sizes.ring_tokens)
    times = np.stack([np.minimum(ring, 1), np.minimum(ring, 2), ring])
    others = [mean * (ring - many) // np.maximum(ring - 1, 1) for many in times]
    several = [replace(sizes, block=Block(mean * many, other, mean * many, 1.0))
               for many, other in zip(times, others, strict=True)]  # fmt: skip
    return several, times.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Together:
    """Programs of each device, of which there are so many GPUs, as one; arrays over layouts of so many ranks."""

    gpus: Sequence[int]
    ranks: Floats
    times: Floats | None  # blocks of a device's programs over the mean one; `None`: shares are equal

    def program(self, each: Sequence[Sequence[StepProgram]]) -> StepProgram:
        """`each`: of every device, with every block."""
        merged = self._merged([list(one) for one in each])
        assert isinstance(merged, StepProgram)
        return merged

    def _merged(self, values: Values) -> Any:
        flat = [one for each in values for one in each]
        first = flat[0]
        if first is None or isinstance(first, bool | str) or all(one is first for one in flat):
            return first
        if isinstance(first, int | float | np.ndarray | np.number):
            return first if all(np.array_equal(one, first) for one in flat) else self._seconds(values)
        if isinstance(first, Ring) and self.times is not None:
            values = [[_turn(one) for one in each] for each in values]
        if isinstance(first, tuple):
            parts = [self._merged([[one[place] for one in each] for each in values]) for place in range(len(first))]
            return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
        named = {of.name: [[getattr(one, of.name) for one in each] for each in values] for of in fields(first)}
        return replace(first, **{name: self._merged(one) for name, one in named.items()})

    def _seconds(self, values: Values) -> Floats:
        """Over the fastest GPUs the harmonic mean of the least seconds, or the most if shares are equal; (layouts,)."""
        every = [[np.broadcast_to(one, self.ranks.shape) for one in each] for each in values]
        taken = np.array(every, dtype=np.float64)
        least = taken[:, 0]
        if self.times is not None:
            grows = (taken != taken[:, :1]).any(axis=1)
            least = np.where(grows, (taken / self.times).min(axis=1), least)
        order = least.argsort(axis=0)
        rising, many = np.take_along_axis(least, order, axis=0), np.array(self.gpus)[order]
        used = np.clip(self.ranks - (many.cumsum(axis=0) - many), 0, many)
        mean: Floats = self.ranks / (used / np.maximum(rising, 1e-300)).sum(axis=0)
        return mean if self.times is not None else np.where(used > 0, rising, 0.0).max(axis=0)


def _turn(ring: Ring) -> Ring:
    """Its blocks as one, without hops: only the whole turn is the slowest position's."""
    whole = ring.first_s + (ring.pieces - 1) * ring.piece_s
    return ring._replace(first_s=whole, piece_s=0.0, hop_bytes=0.0, gradient_bytes=0.0)
