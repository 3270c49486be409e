"""Whether everything that a plan states is what this release computes for its question.

    same question, same plan    the question is planned anew and every key compared: choice, price, simulation, bound, …
    cut by a time limit         such a search does not end in the same place again: price and simulation are compared

Numbers agree to 1e-9, all else exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.pricing import price
from cost_models.profile import Profile
from planner.plan_file import Plan
from planner.planning import plan as plan_again
from planner.planning import summary
from planner.prove.proof import proven
from planner.question import options
from planner.question.pins import pins_of
from planner.simulator.simulation import simulate
from planner.targets.target import Target

AGREES = 1e-9


def check_plan(
    where: str, plan: Plan, profile: Profile | None, on_step: Callable[[str], None] = lambda _: None
) -> bool:
    """Compare the file `where`, which was read as `plan`, as it stands: also keys that reading does not need.

    True if all was computed again and agrees, False if bound and alternatives could not be; else an InputError.
    """
    if plan.reproducible:
        fixed = pins_of(plan, f"{where}: fixed")
        targets, workload = [Target.load(name) for name in plan.targets or [plan.target.name]], plan.workload
        if len(targets) > 1:  # each has its own precision, and ours the cluster's
            workload = replace(workload, precision=options.precision(None, plan.cluster))
        again = plan_again(
            plan.cluster, workload, fixed=fixed, objective=plan.objective, trust_model=plan.trust_model,
            room=plan.room, profile=profile, targets=targets, on_step=on_step,
        )  # fmt: skip
    else:
        layout = (plan.cluster, plan.workload, plan.strategy, plan.placement)
        code = plan.target.code
        cost, played = price(*layout, profile, code), simulate(*layout, profile=profile, framework=code)
        again = replace(plan, cost=cost, simulated=summary(played))
    if plan.proof is not None:
        again = proven(again)
    _compare(strict.read_json(where, "plan"), json.loads(again.to_json()), where, "")
    return plan.reproducible


def _compare(stated: object, computed: object, where: str, key: str) -> None:
    """Refuse the first difference, by its key."""
    if isinstance(stated, Mapping) and isinstance(computed, Mapping) and set(stated) == set(computed):
        for name, value in stated.items():
            _compare(value, computed[name], where, f"{key}.{name}".removeprefix("."))
    elif isinstance(stated, list | tuple) and isinstance(computed, list | tuple) and len(stated) == len(computed):
        for index, (one, other) in enumerate(zip(stated, computed, strict=True)):
            _compare(one, other, where, f"{key}[{index}]")
    elif not _same(stated, computed):
        raise InputError(
            f"{where}: {key} states {_short(stated)}, this release computes {_short(computed)}; plan again"
        )


def _same(stated: Any, computed: Any) -> bool:
    if isinstance(stated, int | float) and isinstance(computed, int | float) and not isinstance(stated, bool):
        return abs(stated - computed) <= AGREES * max(abs(stated), abs(computed))
    return bool(stated == computed)


def _short(value: object) -> str:
    text = f"{len(value)} entries" if isinstance(value, Mapping | list | tuple) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
