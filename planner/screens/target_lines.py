"""Whom a plan is for, as lines: the targets compared, and what another target or kernel would bring."""

from __future__ import annotations

from dataclasses import replace

from cost_models.cost import PARTS, StepCost
from cost_models.pricing import price
from cost_models.units import show_seconds
from planner.plan_file import Plan
from planner.screens.lines import title, wrapped
from planner.search.objective import Objective, show_value, value_of
from planner.search.reasons import beside
from planner.targets.elsewhere import elsewhere

TOLD = 0.03
"""Of the step: a kernel that saves less is not named."""


def target_lines(plan: Plan) -> list[str]:
    """Whom the plan is for, if not this executor, and what the other targets' best layouts take."""
    lines = [] if plan.target.is_ours else [f"          for {plan.target.title}"]
    values = {name: value for name, value in plan.targets.items() if name != plan.target.name}
    if values:
        words = [
            f"{name} {show_value(plan.objective, value, 4) if value else 'does not fit'}"
            for name, value in values.items()
        ]
        lines += wrapped([f"for {plan.target.name}; the best of others: {words[0]}", *words[1:]], joined=", ")
    return lines


def elsewhere_lines(plan: Plan) -> list[str]:
    """What another target would bring, beside a plan of ours; nothing where it has no layouts of its own, or where
    memory is what counts."""
    if not plan.target.is_ours or plan.targets or plan.objective == "memory":
        return []
    if plan.workload.model.ssd is not None:
        return [title("Elsewhere ") + "no other program that --for names runs state-space layers"]
    found = elsewhere(plan.cluster, plan.workload, plan.room)
    if found is None:
        return []
    name, degrees = found.target.name, ("tensor", "pipeline", "virtual", "ring", "data")
    if found.strategy is None or found.cost is None:
        return [title("Elsewhere ") + f"none of {found.tried} layouts priced for {name} fits; --for {name} searches"]
    said = " × ".join(
        f"{axis} {getattr(found.strategy, axis)}" for axis in degrees if getattr(found.strategy, axis) > 1
    )
    words = f"{said}: {_against(found.cost, plan.cost, plan.objective)}"
    newest = _with_newest(plan)
    if newest is not None and newest.step_s < plan.cost.step_s:
        words += f"; against this layout with FlashAttention-3 {_share(found.cost, newest, plan.objective)}"
    return [title("Elsewhere ") + f"{name}, {words}; best of {found.tried} priced: --for {name} searches"]


def kernel_lines(plan: Plan) -> list[str]:
    """What FlashAttention-3 would bring to this layout, where it saves more than TOLD."""
    cost = _with_newest(plan)
    if cost is None or cost.step_s > plan.cost.step_s * (1 - TOLD):
        return []
    words = _against(cost, plan.cost, plan.objective)
    return [title("Kernel    ") + f"FlashAttention-3 (flash_attn_interface): {words}; --kernel newest plans for it"]


def _with_newest(plan: Plan) -> StepCost | None:
    """This layout with FlashAttention-3: the executor takes it on Hopper where it is installed; `None` elsewhere."""
    named = plan.workload.kernel or plan.workload.mode != "train" or plan.profile_digest
    if named or not plan.target.is_ours or any(run.node.device.architecture != "hopper" for run in plan.cluster.runs):
        return None
    newest = replace(plan.workload, kernel="newest")
    return price(plan.cluster, newest, plan.strategy, plan.placement, framework=plan.target.code)


def _against(other: StepCost, mine: StepCost, objective: Objective) -> str:
    """What it takes, how much slower or faster that is, and by which part most."""
    sign = 1 if other.step_s > mine.step_s else -1
    parts = {name: sign * (other.seconds.get(name, 0.0) - mine.seconds.get(name, 0.0)) for name in PARTS}
    most = max(parts, key=lambda name: parts[name])
    part = f"{PARTS[most].words} {show_seconds(parts[most], 2)} {'more' if sign > 0 else 'less'}"
    if objective == "gpu-hours" and other.ranks != mine.ranks:
        part = f"{other.ranks} GPUs"
    return f"{show_value(objective, value_of(objective, other), 3)}, {_share(other, mine, objective)} ({part})"


def _share(other: StepCost, mine: StepCost, objective: Objective) -> str:
    return beside(value_of(objective, other), value_of(objective, mine), objective, digits=0)
