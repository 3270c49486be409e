"""The proof that a plan carries: its space in regions, each with seconds that no layout of it is below.

    region   one data, microbatches and ulysses, rings first to last, and the least of their relaxed seconds
    written  rings whose relaxation is above the plan's price stand together; the others one by one
    checked  the regions are the space, ring by ring and once; every number is that of the relaxation, computed anew;
             the plan's price is the price of its layout, bound and gap are of each other

The proven bound is the least of the regions. It knows no leaf and no slow node, and memory only where no lever of it is
in the space, so it lies below the plan's own bound; the screen says by how much. An InputError names the first key that
does not hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from cost_models.errors import InputError
from cost_models.pricing import price
from cost_models.profile import Profile
from cost_models.strategy import Recompute, Strategy
from planner.prove.relaxation import Family, families, least_s

if TYPE_CHECKING:
    from planner.plan_file import Plan

MOST_LAYOUTS = 50_000
"""Of a space with more (sharding not counted) no proof is written."""
AGREES = 1e-9
LEVERLESS: dict[str, Any] = {
    "mlp_chunk_tokens": None, "attention_head_chunks": 1, "attention_chunk_tokens": None, "offload_states": "none"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Region:
    data: int
    microbatches: int
    ulysses: int
    rings: tuple[int, int]  # first, last
    least_s: float

    @property
    def family(self) -> Family:
        return Family(self.data, self.microbatches, self.ulysses)

    @property
    def words(self) -> str:
        first, last = self.rings
        ring = f"{first}" if first == last else f"{first}-{last}"
        return f"data {self.data}, microbatches {self.microbatches}, ulysses {self.ulysses}, ring {ring}"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """No layout of the space takes less than `bound_s` on any placement."""

    bound_s: float
    regions: tuple[Region, ...]


def prove(plan: Plan) -> Proof:
    """The proof of a plan's space; InputError where it has none."""
    held, space = _held(plan), _space(plan)
    layouts = [(family, ring) for family, (first, last) in space.items() for ring in range(first, last + 1)]
    if len(layouts) > MOST_LAYOUTS:
        raise InputError(f"--proof lists {len(layouts)} layouts; legal: at most {MOST_LAYOUTS}, so fix some (--fix)")
    seconds = _least(plan, held, layouts)
    limit = plan.cost.step_s
    regions: list[Region] = []
    rows = list(zip(layouts, seconds, strict=True))
    for index, ((family, ring), value) in enumerate(rows):
        before = rows[index - 1][0][0] if index else None
        joins = before == family and value >= limit and rows[index - 1][1] >= limit
        if joins:
            last = regions[-1]
            regions[-1] = replace(last, rings=(last.rings[0], ring), least_s=min(last.least_s, value))
        else:
            regions.append(Region(**family._asdict(), rings=(ring, ring), least_s=value))
    return Proof(bound_s=min(region.least_s for region in regions), regions=tuple(regions))


def check(where: str, plan: Plan, proof: Proof, profile: Profile | None = None) -> float:
    """The proven bound; InputError: what does not hold, by name."""
    if profile is not None or plan.profile_digest:
        raise InputError(f"{where}: a plan made with a profile has no proof; plan without --profile")
    _check_numbers(where, plan)
    space = _space(plan)
    _check_cover(where, space, proof.regions)
    layouts = [(one.family, ring) for one in proof.regions for ring in range(one.rings[0], one.rings[1] + 1)]
    if len(layouts) > MOST_LAYOUTS:
        raise InputError(f"{where}: proof.regions: {len(layouts)} layouts; at most {MOST_LAYOUTS}")
    seconds = iter(_least(plan, _held(plan), layouts))
    for index, one in enumerate(proof.regions):
        least = min(itertools.islice(seconds, one.rings[1] - one.rings[0] + 1))
        _equal(where, f"proof.regions[{index}].least_s ({one.words})", one.least_s, least)
    bound = min(one.least_s for one in proof.regions)
    _equal(where, "proof.bound_s", proof.bound_s, bound)
    if bound > plan.cost.step_s * (1 + AGREES) and not plan.strategy.token_shares:
        raise InputError(
            f"{where}: its layout takes {plan.cost.step_s:.6g} s, less than any of the space that it states"
        )
    return bound


def _held(plan: Plan) -> Strategy:
    """The choices that the plan's space does not vary."""
    if not plan.target.is_ours or plan.objective != "time" or plan.workload.mode != "train":
        raise InputError("a proof is of steps of training in seconds, for mmsp; legal: --objective time --for mmsp")
    if plan.strategy.tensor * plan.strategy.pipeline * plan.strategy.expert > 1:
        raise InputError("a proof knows no tensor, pipeline or expert degree; legal: 1")
    defaults = {
        **LEVERLESS,
        "token_shares": (),
        "loss_chunk_tokens": plan.target.loss_chunk_tokens,
    }  # no lever saves time
    return replace(
        plan.strategy, layers=(), **{name: of for name, of in defaults.items() if name not in (plan.fixed or {})}
    )


def _least(plan: Plan, held: Strategy, layouts: Sequence[tuple[Family, int]]) -> list[float]:
    fixed, model = plan.fixed or {}, plan.workload.model
    policies = (cast(Recompute, fixed["recompute"]),) if "recompute" in fixed else plan.target.recompute[0]
    levers = {*LEVERLESS, "loss_chunk_tokens"} & {*plan.searched.varied, *fixed}
    counts = not levers and len(set(model.layer_kinds)) == 1
    seconds = least_s(
        plan.cluster, plan.workload, held, layouts, plan.target.code, int(fixed["shard"]) if "shard" in fixed else None,
        policies if counts else policies[:1], plan.room if counts else None,
    )  # fmt: skip
    return [float(value) for value in seconds]


def _space(plan: Plan) -> dict[Family, tuple[int, int]]:
    numbers = ("data", "microbatches", "ulysses", "ring")
    fixed = {name: int(value) for name, value in (plan.fixed or {}).items() if name in numbers}
    return families(plan.cluster, plan.workload, fixed)


def _check_numbers(where: str, plan: Plan) -> None:
    cost = price(plan.cluster, plan.workload, plan.strategy, plan.placement, None, plan.target.code)
    _equal(where, "priced.step_s", plan.cost.step_s, cost.step_s)
    if plan.strategy.token_shares:  # the bound is of equal ones
        _equal(where, "gap", plan.gap, max(0.0, 1 - plan.bound / cost.step_s))
        return
    if plan.bound > plan.cost.step_s * (1 + AGREES):
        raise InputError(f"{where}: bound states {plan.bound:.6g} s, above the plan's own price of {cost.step_s:.6g} s")
    _equal(where, "gap", 1 - plan.gap, plan.bound / cost.step_s)


def _check_cover(where: str, space: dict[Family, tuple[int, int]], regions: Sequence[Region]) -> None:
    """Every ring of every family is in one region."""
    for family, (first, last) in space.items():
        mine = sorted((one for one in regions if one.family == family), key=lambda one: one.rings)
        expected = first
        for one in (one for one in mine if one.rings[1] >= one.rings[0]):
            if one.rings[0] != expected:
                break
            expected = one.rings[1] + 1
        held = sum(one.rings[1] - one.rings[0] + 1 for one in mine)
        if expected != last + 1 or held != last + 1 - first:
            missing = Region(**family._asdict(), rings=(min(expected, last), last), least_s=0.0)
            raise InputError(f"{where}: proof.regions does not cover {missing.words} once, in order")
    other = next((one for one in regions if one.family not in space), None)
    if other is not None:
        raise InputError(f"{where}: proof.regions has {other.words}, which is not in the space")


def _equal(where: str, key: str, stated: float, computed: float) -> None:
    if abs(stated - computed) > AGREES * abs(computed):
        raise InputError(f"{where}: {key} states {stated:.6g}, the check computes {computed:.6g}")
