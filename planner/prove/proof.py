"""The proof that a plan carries: its space in regions, each with seconds that no layout of it is below.

    region   one data, microbatches and ulysses, rings first to last, and the least of their relaxed seconds
    written  rings whose relaxation is above the plan's price stand together; the others one by one
    checked  the regions are the space, ring by ring and once; every number is that of the relaxation, computed anew;
             the plan's price is the price of its layout, bound and gap are of each other

The proven bound is the least of the regions: with any shares of a row, memory, and every lever of it that the plan says
was searched. It knows no leaf and no broken link. An InputError names the first key that does not hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from cost_models.errors import InputError
from cost_models.layer.recompute import policy
from cost_models.pricing import price
from cost_models.strategy import LayerRange, Recompute
from planner.plan_file import Plan
from planner.prove.regions import Proof, Region
from planner.prove.relaxation import Family, Way, families, least_s

MOST_LAYOUTS = 50_000
"""Of a space with more (sharding not counted) no proof is written."""
AGREES = 1e-9
LEVERS: dict[str, Any] = {
    "mlp_chunk_tokens": None, "attention_head_chunks": 1, "attention_chunk_tokens": None, "offload_states": "none",
    "loss_chunk_tokens": None,
}  # fmt: skip
"""Levers of memory, and what is without them."""
ON_HOST = "with its input on the host"


def prove(plan: Plan) -> Proof:
    """The proof of a plan's space; InputError where it has none."""
    layouts, limit = _layouts(plan), plan.cost.step_s
    regions: list[Region] = []
    for (family, ring), value in zip(layouts, _least(plan, layouts), strict=True):
        one = Region(**family._asdict(), rings=(ring, ring), least_s=value)
        last = regions[-1] if regions else None
        if last and last.layouts[0][0] == family and min(value, last.least_s) >= limit:
            regions[-1] = replace(last, rings=(last.rings[0], ring), least_s=min(last.least_s, value))
        else:
            regions.append(one)
    return Proof(bound_s=min(region.least_s for region in regions), regions=tuple(regions))


def proven(plan: Plan) -> Plan:
    """A plan with its proof."""
    return replace(plan, proof=prove(plan))


def check(where: str, plan: Plan, proof: Proof) -> float:
    """The proven bound; InputError: what does not hold, by name."""
    if plan.profile_digest:
        raise InputError(f"{where}: a plan made with a profile has no proof; plan without --profile")
    _check_numbers(where, plan)
    layouts = _layouts(plan)
    _check_cover(where, layouts, proof.regions)
    found = dict(zip(layouts, _least(plan, layouts), strict=True))
    for index, one in enumerate(proof.regions):
        least = min(found[layout] for layout in one.layouts)
        _equal(where, f"proof.regions[{index}].least_s ({one.words})", one.least_s, least)
    bound = min(found.values())
    _equal(where, "proof.bound_s", proof.bound_s, bound)
    if bound > plan.cost.step_s * (1 + AGREES):
        raise InputError(
            f"{where}: its layout takes {plan.cost.step_s:.6g} s, less than any of the space that it states"
        )
    return bound


def _layouts(plan: Plan) -> list[tuple[Family, int]]:
    """Every layout of the plan's space but for its sharding and levers."""
    if not plan.target.is_ours or plan.objective != "time" or plan.workload.mode != "train":
        raise InputError("a proof is of steps of training in seconds, for mmsp; legal: --objective time --for mmsp")
    if plan.strategy.tensor * plan.strategy.pipeline * plan.strategy.expert > 1:
        raise InputError("a proof knows no tensor, pipeline or expert degree; legal: 1")
    numbers = ("data", "microbatches", "ulysses", "ring")
    fixed = {name: int(value) for name, value in (plan.fixed or {}).items() if name in numbers}
    space = families(plan.cluster, plan.workload, fixed)
    found = [(family, ring) for family, (first, last) in space.items() for ring in range(first, last + 1)]
    if len(found) > MOST_LAYOUTS:
        raise InputError(f"--proof lists {len(found)} layouts; legal: at most {MOST_LAYOUTS}, so fix some (--fix)")
    return found


def _least(plan: Plan, layouts: Sequence[tuple[Family, int]]) -> list[float]:
    fixed, work = plan.fixed or {}, plan.workload
    without = {name: of for name, of in LEVERS.items() if name not in fixed}
    without |= {"loss_chunk_tokens": plan.target.loss_chunk_tokens} if "loss_chunk_tokens" in without else {}
    held = replace(plan.strategy, layers=(), token_shares=(), **without)
    one_kind, ways = len(set(work.model.layer_kinds)) == 1, list(_ways(plan))
    seconds = least_s(
        plan.cluster, work, held, layouts, plan.target.code, shard=int(fixed["shard"]) if "shard" in fixed else None,
        ways=ways if one_kind else [Way(ways[0].fields, ways[0].policies[:1])], room=plan.room if one_kind else None,
        shares=not work.lengths and work.model.ssd is None, limit_s=plan.cost.step_s,
    )  # fmt: skip
    return [float(value) for value in seconds]


def _ways(plan: Plan) -> Iterator[Way]:
    """Every choice of levers that the plan says were searched, none first."""
    fixed, varied = plan.fixed or {}, plan.searched.varied
    names = (cast(Recompute, fixed["recompute"]),) if "recompute" in fixed else plan.target.recompute[0]
    policies = [LayerRange(recompute=one, count=1) for one in names]
    if ON_HOST in varied.get("recompute", ""):
        policies += [replace(one, offload="activations") for one in policies if policy(one.recompute).keeps_input]
    choices = [[(name, _read(name, one)) for one in varied[name].split(", ")] for name in LEVERS if name in varied]
    pinned = {name: getattr(plan.strategy, name) for name in LEVERS if name in fixed}
    for chosen in itertools.product(*choices):
        fields = {**pinned, **dict(chosen)}
        by_rows = fields.get("attention_chunk_tokens") is not None
        if not by_rows or fields.get("attention_head_chunks", 1) == 1:
            yield Way(fields, tuple(one for one in policies if not by_rows or one.recompute in ("none", "mlp", "full")))


def _read(name: str, value: str) -> Any:
    return LEVERS[name] if value == "none" else int(value) if value.isdecimal() else value


def _check_numbers(where: str, plan: Plan) -> None:
    cost = price(plan.cluster, plan.workload, plan.strategy, plan.placement, None, plan.target.code)
    _equal(where, "priced.step_s", plan.cost.step_s, cost.step_s)
    if not plan.equal_shares_bound and plan.bound > plan.cost.step_s * (1 + AGREES):
        raise InputError(f"{where}: bound states {plan.bound:.6g} s, above the plan's own price of {cost.step_s:.6g} s")
    _equal(where, "gap", 1 - plan.gap, plan.bound / cost.step_s)


def _check_cover(where: str, layouts: Sequence[tuple[Family, int]], regions: Sequence[Region]) -> None:
    """Every ring of every family is in one region."""
    times, space, most = dict.fromkeys(layouts, 0), set(layouts), max(ring for _, ring in layouts)
    for one in regions:
        if not 1 <= one.rings[0] <= one.rings[1] <= most or not space.issuperset(one.layouts):
            raise InputError(f"{where}: proof.regions has {one.words}, which is not in the space")
        for layout in one.layouts:
            times[layout] += 1
    wrong = next((layout for layout, many in times.items() if many != 1), None)
    if wrong:
        words = Region(**wrong[0]._asdict(), rings=(wrong[1], wrong[1]), least_s=0.0).words
        raise InputError(f"{where}: proof.regions has {words} {times[wrong]} times; legal: once")


def _equal(where: str, key: str, stated: float, computed: float) -> None:
    if abs(stated - computed) > AGREES * abs(computed):
        raise InputError(f"{where}: {key} states {stated:.6g}, the check computes {computed:.6g}")
