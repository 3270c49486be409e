"""The proof that a plan carries: its space in regions, each with seconds that no layout of it is below.

    region   one data, microbatches and ulysses, rings first to last, and the least of their relaxed seconds
    written  rings whose relaxation is above the plan's price stand together; the others one by one
    checked  the regions are the space, ring by ring and once; every number is that of the relaxation, computed anew;
             the plan's price is the price of its layout, bound and gap are of each other

The proven bound is the least of the regions: with any shares of a row, memory, and every lever of it that the plan says
was searched. An InputError names the first key that does not hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from cost_models.errors import InputError
from cost_models.pricing import price
from cost_models.strategy import LayerRange, Recompute
from planner.plan_file import Plan
from planner.prove.regions import Family, Proof, Region
from planner.prove.relaxation import Asked, families, least_s
from planner.question.pins import pins_of

MOST_LAYOUTS = 50_000
"""Of a space with more (sharding not counted) no proof is written."""
AGREES = 1e-9
LEVERS = {"mlp_chunk_tokens": None, "attention_head_chunks": 1, "attention_chunk_tokens": None,
          "offload_states": "none", "loss_chunk_tokens": None}  # fmt: skip
"""Levers of memory, and what is without them."""


def proven(plan: Plan) -> Plan:
    """The plan with the proof of its space; InputError where it has none."""
    layouts, regions = _layouts(plan), list[Region]()
    for (family, ring), value in zip(layouts, _least(plan, layouts), strict=True):
        last = regions[-1] if regions else None
        if last and last.layouts[0][0] == family and min(value, last.least_s) >= plan.cost.step_s:
            regions[-1] = replace(last, rings=(last.rings[0], ring), least_s=min(last.least_s, value))
        else:
            regions.append(Region(**family._asdict(), rings=(ring, ring), least_s=value))
    bound = min(region.least_s for region in regions)
    return replace(plan, proof=Proof(bound_s=bound, regions=tuple(regions)))


def check(where: str, plan: Plan, proof: Proof) -> float:
    """The proven bound; InputError: what does not hold, by name."""
    if plan.profile_digest:
        raise InputError(f"{where}: a plan made with a profile has no proof; plan without --profile")
    cost = price(plan.cluster, plan.workload, plan.strategy, plan.placement, None, plan.target.code)
    _equal(where, "priced.step_s", plan.cost.step_s, cost.step_s)
    if not plan.equal_shares_bound and plan.bound > plan.cost.step_s * (1 + AGREES):
        raise InputError(f"{where}: bound states {plan.bound:.6g} s, above the plan's own price of {cost.step_s:.6g} s")
    _equal(where, "gap", 1 - plan.gap, plan.bound / cost.step_s)
    layouts = _layouts(plan)
    _check_cover(where, layouts, proof.regions)
    found = dict(zip(layouts, _least(plan, layouts), strict=True))
    for index, one in enumerate(proof.regions):
        least = min(found[layout] for layout in one.layouts)
        _equal(where, f"proof.regions[{index}].least_s ({_words(*one.layouts[0])})", one.least_s, least)
    bound = min(found.values())
    _equal(where, "proof.bound_s", proof.bound_s, bound)
    if bound > plan.cost.step_s * (1 + AGREES):
        raise InputError(f"{where}: its layout takes {cost.step_s:.6g} s, less than any of the space that it states")
    return bound


def _layouts(plan: Plan) -> list[tuple[Family, int]]:
    """Every layout of the plan's space but for its sharding and levers."""
    if not plan.target.is_ours or plan.objective != "time" or plan.workload.mode != "train":
        raise InputError("a proof is of steps of training in seconds, for mmsp; legal: --objective time --for mmsp")
    if plan.strategy.tensor * plan.strategy.pipeline * plan.strategy.expert > 1:
        raise InputError("a proof knows no tensor, pipeline or expert degree; legal: 1")
    numbers = ("data", "microbatches", "ulysses", "ring")
    pins = pins_of(plan, "fixed")
    for name in (
        name for name in numbers if pins.get(name, getattr(plan.strategy, name)) != getattr(plan.strategy, name)
    ):
        raise InputError(f"fixed.{name} states {pins[name]}, the plan's strategy has {getattr(plan.strategy, name)}")
    fixed = {name: value for name, value in pins.items() if name in numbers}
    space = families(plan.cluster, plan.workload, fixed)
    found = [(family, ring) for family, (first, last) in space.items() for ring in range(first, last + 1)]
    if len(found) > MOST_LAYOUTS:
        raise InputError(f"--proof lists {len(found)} layouts; legal: at most {MOST_LAYOUTS}, so fix some (--fix)")
    return found


def _least(plan: Plan, layouts: Sequence[tuple[Family, int]]) -> list[float]:
    """Seconds that each layout is not below."""
    fixed, varied, work = pins_of(plan, "fixed"), plan.searched.varied, plan.workload
    without: dict[str, Any] = {name: of for name, of in LEVERS.items() if name not in fixed}
    without |= {"loss_chunk_tokens": plan.target.loss_chunk_tokens} if "loss_chunk_tokens" in without else {}
    choices = [[(name, LEVERS[name] if one == "none" else int(one) if one.isdecimal() else one)
                for one in varied[name].split(", ")] for name in LEVERS if name in varied]  # fmt: skip
    names = (cast(Recompute, fixed["recompute"]),) if "recompute" in fixed else plan.target.recompute[0]
    policies = [LayerRange(recompute=one, count=1) for one in names]
    policies += [replace(one, offload="activations") for one in policies
                 if f"{one.recompute} + offload" in varied.get("recompute", "")]  # fmt: skip
    asked = Asked(
        cluster=plan.cluster, work=work, framework=plan.target.code, limit_s=plan.cost.step_s, policies=policies,
        held=replace(plan.strategy, layers=(), token_shares=(), **without),
        levers=[dict(chosen) for chosen in itertools.product(*choices)],
        shard=fixed.get("shard"),
        room=plan.room if len(set(work.model.layer_kinds)) == 1 else None,
    )  # fmt: skip
    return [float(value) for value in least_s(asked, layouts)]


def _check_cover(where: str, layouts: Sequence[tuple[Family, int]], regions: Sequence[Region]) -> None:
    """Every ring of every family is in one region."""
    times, most = dict.fromkeys(layouts, 0), max(ring for _, ring in layouts)
    for one in regions:
        if not 1 <= one.rings[0] <= one.rings[1] <= most or not times.keys() >= set(one.layouts):
            raise InputError(f"{where}: proof.regions has {one}, which is not in the space")
        for layout in one.layouts:
            times[layout] += 1
    for layout, many in times.items():
        if many != 1:
            raise InputError(f"{where}: proof.regions has {_words(*layout)} {many} times; legal: once")


def _words(family: Family, ring: int) -> str:
    return ", ".join(f"{name} {value}" for name, value in {**family._asdict(), "ring": ring}.items())


def _equal(where: str, key: str, stated: float, computed: float) -> None:
    if not abs(stated - computed) <= AGREES * abs(computed):
        raise InputError(f"{where}: {key} states {stated:.6g}, the check computes {computed:.6g}")
