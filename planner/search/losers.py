"""Why a layout lost, in a few words, and which losers are worth showing.

    slower    the part of the step that costs most beyond the best layout's: "exposed ring 4.1 s more"
    too big   "needs 91.0 GiB of 80.0 GiB"

The notable ones are what people would try by hand: no recompute, ulysses alone, ring alone, half the GPUs, no
sharding. Left out: their best placements; they lie in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from cost_models.cost import PARTS, SECONDS, StepCost
from cost_models.strategy import LayerRange, Strategy
from cost_models.units import show_bytes, show_seconds
from planner.search.space import Space, divisors


def reason(cost: StepCost, best: StepCost, objective: Literal["time", "memory", "gpu-hours"]) -> str:
    """Why a layout with `cost` lost to the best one."""
    if not cost.fits:
        return f"needs {show_bytes(cost.memory_bytes)} of {show_bytes(cost.capacity_bytes)}"
    if objective == "memory" and cost.memory_bytes > best.memory_bytes:
        return f"{show_bytes(cost.memory_bytes - best.memory_bytes)} more memory"
    if objective == "gpu-hours" and cost.gpu_hours > best.gpu_hours:
        share = cost.gpu_hours / best.gpu_hours - 1
        return f"{share:.1%} more GPU-hours on {cost.ranks} GPUs"
    more = {name: cost.seconds[name] - best.seconds[name] for name in SECONDS}
    worst = max(more, key=lambda name: more[name])
    if more[worst] <= 0:
        return "as fast; loses the tie"
    words = f"{PARTS[worst].words} {show_seconds(more[worst])} more"
    return words if cost.ranks == best.ranks else f"{words} on {cost.ranks} GPUs"


def notable(space: Space, best: Strategy, shown: Sequence[Strategy]) -> Iterator[Strategy]:
    """Layouts that a reader would ask about and that are not among those shown; only such as respect the pins."""
    known = {(one.data, one.ring, one.ulysses, one.shard) for one in shown}
    plain = (LayerRange(recompute="none", count=space.workload.model.layers),)
    if best.layers != plain and "recompute" not in space.pins:
        yield replace(best, layers=plain)
    for one in _tried_by_hand(space, best):
        key = (one.data, one.ring, one.ulysses, one.shard)
        pinned = all(getattr(one, name) == value for name, value in space.pins.items() if name != "recompute")
        if key not in known and pinned:
            known.add(key)
            yield one


def _tried_by_hand(space: Space, best: Strategy) -> Iterator[Strategy]:
    heads, context = space.workload.model.heads // best.tensor, best.context
    ulysses = max(degree for degree in divisors(context) if degree <= heads)
    for degree in (ulysses, 1):
        if degree != best.ulysses:
            yield replace(best, ulysses=degree, ring=context // degree)
    if best.shard > 1:
        yield replace(best, shard=1, zero=0)
    if best.ring % 2 == 0:
        half = replace(best, ring=best.ring // 2, shard=1)
        ranks = half.data * half.context
        yield replace(half, shard=ranks if best.shard > ranks or ranks % best.shard else best.shard)
