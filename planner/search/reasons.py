"""Why a layout lost, in a few words, and which losers are worth showing.

    slower    the part of the step that costs most above the best layout's: "4.3 s slower: exposed ring 4.1 s more"
    too big   "too big: 74.1 GiB may be used"

Worth showing is what people would try by hand: no recompute, ulysses alone, ring alone, half the GPUs, no sharding.
Left out: the best placements of these; their ranks lie in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cost_models.cost import PARTS, StepCost
from cost_models.errors import InputError
from cost_models.layer.sizes import RankSizes
from cost_models.room import AS_PRICED, Room
from cost_models.strategy import LayerRange, Strategy
from cost_models.units import show_bytes, show_seconds
from planner.search.objective import Objective, value_of
from planner.search.space import Space, divisors


def reason(
    cost: StepCost,
    best: StepCost,
    objective: Objective,
    simulated: tuple[float, float] | None = None,
    room: Room = AS_PRICED,
) -> str:
    """Why a layout with `cost` lost to the best one; `simulated`: the objective's value of both in the simulator."""
    if not room.holds(cost):
        limit = room.limit_bytes(cost.capacity_bytes)
        if cost.memory_bytes > limit:
            return f"too big: {show_bytes(limit)} may be used"
        return f"too big for the host: needs {show_bytes(cost.host_bytes)}"
    value, least = value_of(objective, cost), value_of(objective, best)
    if value < least and simulated is not None:
        return f"priced better, but simulated {simulated[0] / simulated[1] - 1:.1%} worse"
    if value > least and objective == "memory":
        return f"{show_bytes(value - least)} more memory"
    if value > least and objective == "gpu-hours":
        return f"{value / least - 1:.1%} more GPU-hours on {cost.ranks} GPUs"
    more = {name: seconds - best.seconds.get(name, 0.0) for name, seconds in cost.seconds.items()}
    part = max(more, key=lambda name: more[name])
    slower = cost.step_s - best.step_s
    if slower > 0 and more[part] > 0:
        words = f"{show_seconds(slower)} slower: {PARTS[part].words} {show_seconds(more[part])} more"
        return words if cost.ranks == best.ranks else f"{words} on {cost.ranks} GPUs"
    if cost.memory_bytes > best.memory_bytes:
        return f"as good, but {show_bytes(cost.memory_bytes - best.memory_bytes)} more memory"
    if cost.ranks > best.ranks:
        return f"as good, but needs {cost.ranks - best.ranks} GPUs more"
    return "as good; lost the tie on degrees"


def tied_reason(
    cost: StepCost,
    chosen: StepCost,
    objective: Objective,
    regret: float,
    simulated: tuple[float, float] | None = None,
) -> str:
    """What a layout that is tied with the chosen one has against it, and for it; `simulated` as for `reason`."""
    words = f"tied: {beside(value_of(objective, cost), value_of(objective, chosen), objective)}"
    if simulated is not None and simulated[0] > simulated[1]:
        words += f", simulated {beside(*simulated, objective)}"
    else:
        words += f", {loses(regret)}"
    more = cost.memory_bytes - chosen.memory_bytes
    return f"{words}, {show_bytes(more)} more" if more >= 2**30 else words


def loses(regret: float) -> str:
    """
    >>> loses(0.0123), loses(2e-5)
    ('loses at most 1.2%', 'loses less than 0.1%')
    """
    return f"loses at most {regret:.1%}" if regret >= 0.0005 else "loses less than 0.1%"


def beside(value: float, own: float, objective: Objective, digits: int = 1) -> str:
    """How much less or more than `own`, in words.

    >>> beside(9.0, 10.0, "time"), beside(10.5, 10.0, "gpu-hours"), beside(10.001, 10.0, "time")
    ('10.0% faster', '5.0% more GPU-hours', 'as fast')
    """
    share = value / own - 1
    fewer, more, same = ("faster", "slower", "as fast")
    if objective == "gpu-hours":
        fewer, more, same = ("fewer GPU-hours", "more GPU-hours", "as many GPU-hours")
    if abs(share) < 0.5 * 10 ** -(digits + 2):
        return same
    return f"{abs(share):.{digits}%} {fewer if share < 0 else more}"


def notable(space: Space, best: Strategy, shown: Sequence[Strategy]) -> Iterator[Strategy]:
    """Layouts that a reader would ask about and that are not among those shown; only such as respect the pins."""
    known = {(one.data, one.ring, one.ulysses, one.shard) for one in shown}
    plain = (LayerRange(recompute="none", count=space.workload.model.layers),)
    if best.layers != plain and "recompute" not in space.pins:
        yield replace(best, layers=plain)
    for one in _tried_by_hand(space, best):
        if not _possible(space, one):
            continue
        key = (one.data, one.ring, one.ulysses, one.shard)
        pinned = all(getattr(one, name) == value for name, value in space.pins.items() if name != "recompute")
        if key not in known and pinned:
            known.add(key)
            yield one


def _possible(space: Space, one: Strategy) -> bool:
    """Whether the space has these degrees, and the model a layout with these levers."""
    if not any(
        (family.data, family.microbatches, family.ulysses) == (one.data, one.microbatches, one.ulysses)
        and family.first_ring <= one.ring <= family.most_ring
        for family in space.families
    ):
        return False
    try:
        RankSizes(space.workload, one).head_chunk.heads  # noqa: B018  refuses more pieces than a rank has heads
    except InputError:
        return False
    return True


def _tried_by_hand(space: Space, best: Strategy) -> Iterator[Strategy]:
    heads, context = space.workload.model.heads // best.tensor, best.context
    ulysses = max(degree for degree in divisors(context) if degree <= heads)
    for degree in (ulysses, 1):
        if degree != best.ulysses and (best.attention_chunk_tokens is None or degree == context):
            yield replace(best, ulysses=degree, ring=context // degree)
    if best.shard > 1 and best.offload_states != "all":
        yield replace(best, shard=1, zero=0)
    if best.ring % 2 == 0:
        half = replace(best, ring=best.ring // 2, shard=1)
        ranks = half.data * half.context
        yield replace(half, shard=ranks if best.shard > ranks or ranks % best.shard else best.shard)
