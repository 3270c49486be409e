"""Whom a plan is for, as lines: the targets compared, and what another target or kernel would bring."""

from __future__ import annotations

from dataclasses import replace

from cost_models.cost import PARTS, StepCost
from cost_models.pricing import price
from cost_models.units import show_seconds
from planner.plan_file import Plan
from planner.screens.lines import title, wrapped
from planner.search.objective import show_value
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
    """What another target would bring, beside a plan of ours; nothing where it has no layouts of its own."""
    if not plan.target.is_ours or plan.targets:
        return []
    found = elsewhere(plan.cluster, plan.workload, plan.room)
    if found is None:
        return []
    name, degrees = found.target.name, ("tensor", "pipeline", "virtual", "ring", "data")
    if found.strategy is None or found.cost is None:
        return [title("Elsewhere ") + f"none of {found.tried} layouts priced for {name} fits; --for {name} searches"]
    said = " × ".join(
        f"{axis} {getattr(found.strategy, axis)}" for axis in degrees if getattr(found.strategy, axis) > 1
    )
    words = f"{said}: {show_seconds(found.cost.step_s, 3)}, {_against(found.cost, plan.cost)}"
    return [title("Elsewhere ") + f"{name}, {words}; best of {found.tried} priced: --for {name} searches"]


def kernel_lines(plan: Plan) -> list[str]:
    """What FlashAttention-3 would bring to this layout: the executor takes it on Hopper where it is installed."""
    named = plan.workload.kernel or plan.workload.mode != "train" or plan.profile_digest
    if named or not plan.target.is_ours or any(run.node.device.architecture != "hopper" for run in plan.cluster.runs):
        return []
    newest = replace(plan.workload, kernel="newest")
    cost = price(plan.cluster, newest, plan.strategy, plan.placement, framework=plan.target.code)
    if cost.step_s > plan.cost.step_s * (1 - TOLD):
        return []
    words = f"{show_seconds(cost.step_s, 3)}, {_against(cost, plan.cost)}"
    return [
        title("Kernel    ")
        + f"with flash_attn_interface (FlashAttention-3) installed: {words}; --kernel newest plans for it"
    ]


def _against(other: StepCost, mine: StepCost) -> str:
    """How much slower or faster, and by which part most."""
    share = other.step_s / mine.step_s - 1
    sign = 1 if share > 0 else -1
    parts = {name: sign * (other.seconds.get(name, 0.0) - mine.seconds.get(name, 0.0)) for name in PARTS}
    most = max(parts, key=lambda name: parts[name])
    word, more = ("slower", "more") if share > 0 else ("faster", "less")
    return f"{abs(share):.0%} {word} ({PARTS[most].words} {show_seconds(parts[most], 2)} {more})"
