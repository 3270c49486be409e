"""The best layout of every family that people use, with what its step is made of, and why it loses, or that it ties.

    pure ring            ulysses 1
    pure Ulysses         ring 1
    LongVILA's own rule  ulysses as wide as a node, ring across nodes (arXiv 2408.10188, section 3.3)
    TP + CP              Megatron: tensor and context parallelism, no pipeline (its own code is priced)
    TP                   vLLM: of prefill and decode

Each is searched like the plan itself, with these choices held. A family ties where the odds that the plan is faster are
between 20 and 80% (`cost_models/bands.py`); where its code is another one's, kernels differ, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cost_models.bands import odds
from cost_models.cost import PARTS, StepCost
from cost_models.errors import InputError
from cost_models.strategy import Strategy
from cost_models.units import show_seconds
from planner.plan_file import Plan
from planner.search.objective import paid_ranks, value_of
from planner.search.reasons import reason
from planner.targets.target import Target

TIED = 0.8
Solved = Callable[[Mapping[str, Any], Target], tuple[Strategy, StepCost]]
"""The best layout with these choices held, for a target; InputError where there is none."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The best layout of a family, and why it loses to the plan."""

    name: str
    held: Mapping[str, Any]
    target: Target


@dataclass(frozen=True, kw_only=True)
class Best:
    """Of one family; without a layout `why` says why there is none."""

    family: str
    why: str
    ties: bool = False
    layout: Strategy | None = None
    cost: StepCost | None = None


def families(plan: Plan) -> Iterator[Family]:
    """Those that the plan's mode has."""
    domain = int(np.bincount(plan.cluster.domain_of_slot, weights=plan.cluster.gpus_of_slot).max())
    inside = min(domain, plan.workload.model.heads)
    ours = plan.target if {"ring", "ulysses"} <= set(plan.target.degrees) else Target.load("mmsp")
    yield Family(name="pure ring", held={"ulysses": 1}, target=ours)
    yield Family(name="pure Ulysses", held={"ring": 1}, target=ours)
    yield Family(name="LongVILA's rule", held={"ulysses": inside}, target=ours)
    if plan.workload.mode == "train":
        yield Family(name="Megatron TP + CP", held={"pipeline": 1}, target=Target.load("megatron"))
    else:
        yield Family(name="vLLM TP", held={}, target=Target.load("vllm"))


def best_of(plan: Plan, family: Family, fixed: Mapping[str, Any], solved: Solved) -> Best:
    """The family's best layout beside the plan. What the user fixed stays fixed."""
    for name, value in family.held.items():
        if fixed.get(name, value) != value:
            return Best(family=family.name, why=f"{name} is fixed at {fixed[name]}")
    try:
        layout, cost = solved({**fixed, **family.held}, family.target)
    except InputError as error:
        return Best(family=family.name, why=getattr(error, "problem", str(error)))
    best = Best(family=family.name, why="", layout=layout, cost=cost)
    if _same(layout, plan.strategy) and family.target == plan.target:
        return replace(best, why="these are the plan's degrees", ties=True)
    objective = plan.objective
    sure = odds(plan.cost, cost, paid_ranks(objective, layout.ranks) / paid_ranks(objective, plan.strategy.ranks))
    more = value_of(objective, cost) / value_of(objective, plan.cost) - 1
    words = f"{abs(more):.1%} {'more' if more > 0 else 'less'}"
    if objective != "memory" and 1 - TIED < sure < TIED:
        return replace(best, why=f"ties: {words} as priced, odds for the plan {sure:.0%}", ties=True)
    if more > 0:
        return replace(best, why=f"loses: {words}; {reason(cost, plan.cost, objective, None, plan.room)}")
    code = f"; its own code is priced: plan --for {family.target.name}" if family.target != plan.target else ""
    return replace(best, why=f"wins: {words}; {_saved(cost, plan.cost)}{code}")


def _saved(cost: StepCost, over: StepCost) -> str:
    """The part of a step that is most below another's."""
    less = {name: over.seconds.get(name, 0.0) - seconds for name, seconds in cost.seconds.items()}
    part = max(less, key=lambda name: less[name])
    return f"{PARTS[part].words} {show_seconds(less[part])} less"


def _same(first: Strategy, second: Strategy) -> bool:
    """Equal degrees, whatever is recomputed and how states are sharded."""
    return all(
        getattr(first, name) == getattr(second, name) for name in ("data", "ring", "ulysses", "tensor", "pipeline")
    )
