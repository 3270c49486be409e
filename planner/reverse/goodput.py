"""What failures leave of a rate: checkpoint interval, spares, and planning again on what is left.

    M  seconds between failures of the nodes in use       C  seconds to write a checkpoint
    R  seconds from a failure to the first step again     D  seconds until a failed node is back
    wall(t) = M exp(R / M) (exp((t + C) / M) - 1)         seconds that an interval of t seconds of work takes
    goodput = t / wall(t), at the best t                  about sqrt(2 C M)
    nodes that are away: Poisson with mean D / M

`wall` is exact for failures at a constant rate that may strike while work, a checkpoint or a restart runs (Daly, "A
higher order estimate of the optimum checkpoint interval for restart dumps", 2006; Young, 1974, for the square root).
Failures played one by one agree (`tests/planner/reverse/test_goodput.py`). Left out: failures that come together, and
those that a checkpoint on another node's memory would make cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cost_models.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How machines fail, and what a failure and a checkpoint take. Seconds; all above 0, `repair_s` at least 0."""

    between_s: float  # of the nodes in use together
    checkpoint_s: float
    restart_s: float
    repair_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("between_s", "checkpoint_s", "restart_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name):g} must be above 0")
        if not 0 <= self.repair_s < math.inf:
            raise InputError(f"repair_s={self.repair_s:g} must be at least 0")

    def wall_s(self, work_s: float) -> float:
        """Expected seconds of an interval with so much work and its checkpoint.

        >>> round(Failures(between_s=3600, checkpoint_s=60, restart_s=300).wall_s(600))
        787
        """
        mean = self.between_s
        exponents = self.restart_s / mean, (work_s + self.checkpoint_s) / mean
        if sum(exponents) > 600:
            return math.inf
        return mean * math.exp(exponents[0]) * math.expm1(exponents[1])

    def goodput(self, work_s: float) -> float:
        """Share of the time that is work, between checkpoints of this distance."""
        return work_s / self.wall_s(work_s)

    def interval_s(self) -> float:
        """The best distance of checkpoints: goodput has one maximum, which golden sections of its logarithm reach."""
        guess = math.sqrt(2 * self.checkpoint_s * self.between_s)
        low, high = math.log(guess / 100), math.log(guess * 100)
        golden = (math.sqrt(5) - 1) / 2
        while high - low > 1e-6:
            left, right = high - golden * (high - low), low + golden * (high - low)
            if self.goodput(math.exp(left)) < self.goodput(math.exp(right)):
                low = left
            else:
                high = right
        return math.exp((low + high) / 2)

    def away(self, count: int) -> float:
        """Probability that so many nodes are away at a time (Poisson)."""
        mean = self.repair_s / self.between_s
        return math.exp(-mean + count * math.log(mean) - math.lgamma(count + 1)) if mean else float(count == 0)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`spares` of the nodes wait, the others run; `tokens_per_s` counts failures, checkpoints and absent nodes."""

    nodes: int
    spares: int
    replans: bool  # where no spare is left, the job goes on with a plan for fewer nodes; else it waits
    tokens_per_s: float


def rate_with(
    failures: Failures, rates: Sequence[float], nodes: int, spares: int, replans: bool, interval_s: float
) -> float:
    """Tokens a second over a long time. `rates[k]`: of the plan with k nodes fewer than `nodes`; beyond the list, 0.

    >>> calm = Failures(between_s=1e12, checkpoint_s=1, restart_s=1, repair_s=3600)
    >>> round(rate_with(calm, [1000.0, 900.0], nodes=8, spares=1, replans=True, interval_s=1e6))
    900
    """
    share = failures.goodput(interval_s)
    total = 0.0
    for away in range(nodes + 1):
        fewer = max(spares, away)
        if fewer > spares and not replans:
            break
        total += failures.away(away) * (rates[fewer] if fewer < len(rates) else 0.0)
    return share * total


def fleets(failures: Failures, rates: Sequence[float], nodes: int) -> list[Fleet]:
    """Every number of spares that `rates` covers, waiting or planning again; best first."""
    interval_s = failures.interval_s()
    found = [
        Fleet(
            nodes=nodes,
            spares=spares,
            replans=replans,
            tokens_per_s=rate_with(failures, rates, nodes, spares, replans, interval_s),
        )
        for spares in range(min(nodes, len(rates)))
        for replans in (True, False)
    ]
    return sorted(found, key=lambda fleet: (-fleet.tokens_per_s, fleet.spares, fleet.replans))


def most_away(failures: Failures) -> int:
    """Nodes that may be away at a time, but for one time in a million."""
    total, count = failures.away(0), 0
    while total < 1 - 1e-6 and count < 10_000:
        count += 1
        total += failures.away(count)
    return count


def rates_of(rate: Callable[[int], float], nodes: int, failures: Failures, most: int = 8) -> list[float]:
    """`rate(nodes - k)` for k = 0, 1, … as far as nodes are ever away."""
    return [rate(nodes - fewer) for fewer in range(min(nodes, most, 1 + most_away(failures)) or 1)]
