"""`plan explain`: what binds a plan, at which amount of memory or bandwidth it changes, and what other families do.

Every answer is a search like the plan's own, with its question, pins and room: some dozens of them, with progress.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any

import click

from cost_models.cost import PARTS, StepCost
from cost_models.hardware.cluster import Cluster
from cost_models.profile import Profile
from cost_models.room import Room
from cost_models.strategy import Strategy
from cost_models.units import show_seconds
from planner import console
from planner.explain.changes import FREE, LITTLE, Binding, Bound, binding
from planner.explain.families import Best, best_of, families
from planner.plan_file import Plan
from planner.question import options
from planner.question.pins import pins_of
from planner.screens.layout_lines import cluster_line, layers_line
from planner.screens.lines import show
from planner.search.again import Kept, Left
from planner.search.objective import show_value, value_of
from planner.solve import Solution, solve
from planner.targets.target import Target

SHOWN = 0.005
"""Share of a step from which on a part of it is named."""


@click.command(cls=console.NoEmpty)
@click.argument("plan_file", metavar="PLAN")
@click.option("--profile", "profile", metavar="FILE", help="The profile that the plan was made with, if any.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def explain(plan_file: str, profile: str | None, as_json: bool) -> None:
    """Say what binds PLAN, what the next GiB and GB/s that change it bring, and why other families lose or tie."""
    plan = Plan.load(plan_file)
    measured = options.profile_of(plan, profile)
    fixed = pins_of(plan, f"{plan_file}: fixed")

    with console.Progress() as progress:
        asked = Question(plan, fixed, measured, progress.show)
        bound = binding(plan.cluster, plan.room, plan.objective, asked)
        several = []
        for family in families(plan):
            progress.show(f"the best of {family.name}")
            several.append(best_of(plan, family, fixed, asked.of))
    if as_json:
        click.echo(json.dumps({"binding": _binding_dict(bound), "families": [*map(_family_dict, several)]}, indent=1))
    else:
        show(_lines(plan, bound, several))


class Question:
    """The plan's question; keeps the best layouts that its searches priced."""

    def __init__(
        self, plan: Plan, fixed: Mapping[str, Any], profile: Profile | None, on_step: Callable[[str], None]
    ) -> None:
        self.cluster, self.on_step, self.kept = plan.cluster, on_step, Kept()
        self.solve = partial(solve, workload=plan.workload, objective=plan.objective, profile=profile, keep=1)
        self.question = partial(self.solve, fixed=fixed, target=plan.target)
        self.room = plan.room

    def solved(self, cluster: Cluster, room: Room, words: str, within: Left, at_most: float) -> Solution:
        self.on_step(words)
        found = self.question(cluster, room=room, within=within, at_most=at_most)
        self.kept.add(found.found)
        return found

    def guessed(self, cluster: Cluster, room: Room, words: str) -> Solution:
        self.on_step(words)
        return self.question(cluster, room=room, kept=self.kept)

    def of_one(self) -> Question:
        other = copy(self)
        other.kept = self.kept.copy()
        return other

    def of(self, held: Mapping[str, Any], target: Target) -> tuple[Strategy, StepCost]:
        """The best with these choices held, for a target."""
        found = self.solve(self.cluster, room=self.room, fixed=held, target=target)
        return found.best[0].strategy, found.best[0].cost


def _lines(plan: Plan, bound: Binding, several: list[Best]) -> list[str]:
    value = show_value(plan.objective, value_of(plan.objective, plan.cost), 4)
    lines = [plan.workload.describe(), cluster_line(plan.cluster), ""]
    lines += [f"Plan      {plan.strategy.describe()}: {value}", f"          {_parts(plan.cost)}", ""]
    if plan.strategy.token_shares:
        lines += ["What follows is solved again with equal shares of a row:"]
    lines += [f"Binds     {bound.binds}" + _free(bound)]
    for one in bound.bounds:
        lines += _next(plan, one)
    lines += ["", "Families"]
    for best in several:
        if best.layout is None or best.cost is None:
            lines.append(f"  {best.family:18}{best.why}")
            continue
        took = show_value(plan.objective, value_of(plan.objective, best.cost), 4)
        lines += [
            f"  {best.family:18}{took}  {best.layout.describe()}",
            f"{'':20}{_parts(best.cost)}",
            f"{'':20}{best.why}",
        ]
    return lines


def _free(bound: Binding) -> str:
    if bound.binds == "computation":
        words = ", ".join(f"{one.resource} {one.free_gain:.1%}" for one in bound.bounds)
        return f": {FREE:g} times as much of anything else saves at most {LITTLE:.0%} ({words})"
    most = next(one for one in bound.bounds if one.resource == bound.binds)
    others = "".join(f"; {one.resource} {one.free_gain:.1%}" for one in bound.bounds if one is not most)
    return f": {FREE:g} times as much saves {most.free_gain:.1%}{others}"


def _next(plan: Plan, one: Bound) -> list[str]:
    words = f"{one.resource}: {one.amount:.4g} {one.unit} now; "
    if one.next is None:
        return [f"          {words}the layout stays up to {FREE:g} times as much"]
    if one.next.gain < LITTLE:
        return [f"          {words}the layout that is best from {one.next.amount:.4g} on brings less than {LITTLE:.0%}"]
    more = one.next.amount - one.amount
    told = f"from {one.next.amount:.4g} on (+{more:.3g}) it is another one, {one.next.gain:.2%} better than now:"
    layers = layers_line(one.next.layout, plan.workload.model.layers)
    return [f"          {words}{told}", f"            {one.next.layout.describe()}; {layers}"]


def _parts(cost: StepCost) -> str:
    """The parts of a step that matter."""
    named = ((PARTS[name].words, seconds) for name, seconds in cost.seconds.items() if seconds >= SHOWN * cost.step_s)
    return " + ".join(f"{words} {show_seconds(seconds)}" for words, seconds in named)


def _binding_dict(bound: Binding) -> dict[str, Any]:
    return {
        "binds": bound.binds,
        "resources": [
            {
                "resource": one.resource,
                "unit": one.unit,
                "amount": one.amount,
                f"gain_at_{FREE:g}_times": one.free_gain,
                "next": one.next
                and {"amount": one.next.amount, "gain": one.next.gain, "layout": one.next.layout.describe()},
            }
            for one in bound.bounds
        ],
    }


def _family_dict(best: Best) -> dict[str, Any]:
    cost = best.cost
    return {
        "family": best.family,
        "ties": best.ties,
        "why": best.why,
        "layout": best.layout and best.layout.describe(),
        "step_s": cost and cost.step_s,
        "memory_bytes": cost and cost.memory_bytes,
        "seconds": cost and dict(cost.seconds),
    }
