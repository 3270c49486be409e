"""The fewest whole nodes of each kind that train so many tokens in so many days, and what they cost.

    needed rate = tokens / time        rate(nodes) = tokens of a step / priced seconds of the best plan on these nodes

The priced optimum never falls when a node is added that may stay unused, so the fewest nodes are found by doubling and
bisection. Failures are left out: `goodput.py` says what they leave of a rate. Dollars where a GPU-hour has a price.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.workload import Workload
from planner.solve import Choice, NothingFits, solve

MOST_NODES = 16384
_GOAL = re.compile(
    r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMBT]?)\s*(?:tokens)?\s+in\s+([0-9]+(?:\.[0-9]+)?)\s*(hour|day|week)s?\s*"
)
_MANY = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_SECONDS = {"hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """So many tokens in so many seconds."""

    tokens: float
    seconds: float

    @classmethod
    def read(cls, text: str) -> Goal:
        """Decimal prefixes, as training budgets are written.

        >>> Goal.read("3T tokens in 30 days")
        Goal(tokens=3000000000000.0, seconds=2592000.0)
        """
        match = _GOAL.fullmatch(text)
        if match is None or not 0 < float(match[1]) < 1e9 or not 0 < float(match[3]) < 1e6:
            raise InputError(
                f"--finish {text!r} is not TOKENS in TIME (as in '3T tokens in 30 days'; hours, days, weeks)"
            )
        return cls(tokens=float(match[1]) * _MANY[match[2]], seconds=float(match[3]) * _SECONDS[match[4]])

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Fewest:
    """The fewest nodes of a cluster that reach the goal; `problem` says why none do."""

    cluster: str
    device: str
    nodes: int = 0
    gpus: int = 0  # of these nodes: who rents a node pays for GPUs that the plan leaves free, too
    used: int = 0  # by the plan
    seconds: float = 0.0
    dollars: float | None = None
    plan: str = ""
    problem: str = ""

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


def fewest(
    name: str,
    workload: Workload,
    goal: Goal,
    *,
    fixed: Mapping[str, object] | None = None,
    dollars_per_gpu_hour: float | None = None,
    room: Room = DEFAULT_ROOM,
    on_step: Callable[[str], None] = lambda what: None,
) -> Fewest:
    """The smallest number of nodes of preset `name` on which the goal is reached."""
    known: dict[int, Choice | None] = {}

    def best(nodes: int) -> Choice | None:
        if nodes not in known:
            on_step(f"{name}: {nodes} nodes")
            try:
                here = Cluster.load(name, nodes=nodes)
                known[nodes] = solve(here, workload, fixed=fixed, room=room, keep=1).best[0]
            except NothingFits:
                known[nodes] = None
        return known[nodes]

    def reaches(nodes: int) -> bool:
        choice = best(nodes)
        return choice is not None and choice.cost.tokens / choice.cost.step_s >= goal.tokens_per_s

    device = Cluster.load(name, nodes=1).runs[0].node.device.name
    high = 1
    while not reaches(high):
        if high >= MOST_NODES or _no_faster(known, high):
            return Fewest(cluster=name, device=device, problem=_why(known, high, goal))
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    choice = best(high)
    assert choice is not None
    gpus, seconds = Cluster.load(name, nodes=high).gpus, goal.tokens * choice.cost.step_s / choice.cost.tokens
    dollars = None if dollars_per_gpu_hour is None else dollars_per_gpu_hour * gpus * seconds / 3600
    return Fewest(
        cluster=name, device=device, nodes=high, gpus=gpus, used=choice.strategy.ranks, seconds=seconds,
        dollars=dollars, plan=choice.strategy.describe(),
    )  # fmt: skip


def _no_faster(known: Mapping[int, Choice | None], nodes: int) -> bool:
    """Four times the nodes bring less than 1%: the batch has no more work to spread."""
    few, many = known.get(nodes // 4), known[nodes]
    return few is not None and many is not None and many.cost.step_s > few.cost.step_s * 0.99


def _why(known: Mapping[int, Choice | None], nodes: int, goal: Goal) -> str:
    choice = known[nodes]
    if choice is None:
        return f"nothing fits on up to {nodes} nodes"
    rate = choice.cost.tokens / choice.cost.step_s
    return (
        f"{rate:,.0f} tokens/s on {choice.strategy.ranks} GPUs is the most, {goal.tokens_per_s:,.0f} are needed: "
        f"give a larger --batch or more time"
    )
