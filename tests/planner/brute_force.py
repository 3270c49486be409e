"""The planner's answer by enumeration: every layout on every placement of a small cluster, priced one by one.

Shares nothing with the search: strategies and placements are listed here from their definition, and each is priced by
`cost_models.price`. Placements that give equal path numbers are priced once. Layer mixes are listed completely.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cost_models import Cluster, LayerRange, Model, Placement, Strategy, Workload, price
from cost_models.cost import StepCost
from cost_models.room import DEFAULT_ROOM
from cost_models.strategy import sent_patterns
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.loads import Loads

POLICIES = ("none", "mlp", "all_but_attention", "full")


def best_value(cluster: Cluster, workload: Workload, objective: str = "time") -> float | None:
    """Least seconds, GPU-hours or bytes of anything that fits; None if nothing does.

    Where seconds count, a layout that fits without recompute is not tried with it: recompute only adds work.
    """
    best = None
    for costs in prices(cluster, workload):
        for index, cost in enumerate(costs):
            if DEFAULT_ROOM.holds(cost):
                best = value(cost, objective) if best is None else min(best, value(cost, objective))
                if index == 0 and objective != "memory":
                    break
    return best


def value(cost: StepCost, objective: str) -> float:
    return {"time": cost.step_s, "gpu-hours": cost.gpu_hours, "memory": float(cost.memory_bytes)}[objective]


def prices(cluster: Cluster, workload: Workload) -> Iterator[Iterator[StepCost]]:
    """Every layout on every placement that differs, and of each every mix of layers, all without recompute first."""
    listed: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    mixes = [tuple(mix) for mix in layer_mixes(workload.model)] if workload.mode == "train" else [()]
    for strategy in strategies(cluster, workload):
        if strategy.ranks not in listed:
            listed[strategy.ranks] = placements(cluster, strategy.ranks)
        for placement in distinct_placements(cluster, strategy, *listed[strategy.ranks]):
            yield (price(cluster, workload, replace(strategy, layers=mix), placement) for mix in mixes)


def layer_mixes(model: Model) -> Iterator[tuple[LayerRange, ...]]:
    """Every number of layers of each policy, all without recompute first; of unlike layers a policy for each one."""
    layers = model.layers
    if len(set(model.layer_kinds)) > 1:
        for chosen in itertools.product(POLICIES, repeat=layers):
            yield tuple(LayerRange(recompute=policy, count=1) for policy in chosen)
        return
    for counts in itertools.product(range(layers, -1, -1), repeat=len(POLICIES)):
        if sum(counts) == layers:
            yield tuple(LayerRange(recompute=p, count=n) for p, n in zip(POLICIES, counts, strict=True) if n)


def strategies(cluster: Cluster, workload: Workload) -> Iterator[Strategy]:
    """All degrees with at least two tokens a rank; shards over all ranks, a domain's worth, the context or nothing."""
    domain = int(np.bincount(cluster.domain_of_slot, weights=cluster.gpus_of_slot).max())
    heads, batch = workload.model.heads, workload.global_batch
    for data, ring, ulysses in itertools.product(range(1, cluster.gpus + 1), repeat=3):
        ranks = data * ring * ulysses
        allowed = ulysses <= heads and (ulysses <= domain or heads % ulysses == 0)
        if ranks > cluster.gpus or not allowed or batch % data:
            continue
        if ring > 1 and 2 * ring * ulysses > workload.context_tokens + 1:
            continue
        near = max(d for d in range(1, min(domain, ranks) + 1) if ranks % d == 0)
        for micro in range(1, batch // data + 1):
            if (batch // data) % micro or (workload.mode != "train" and micro > 1):
                continue
            for shard in {ranks, near, ring * ulysses, 1}:
                for zero in (3, 2) if shard > 1 else (0,):
                    yield Strategy(data=data, ring=ring, ulysses=ulysses, shard=shard, zero=zero, microbatches=micro)


def distinct_placements(
    cluster: Cluster, strategy: Strategy, slots: np.ndarray, gpus: np.ndarray
) -> Iterator[Placement]:
    """One of all placements that share their path numbers and the kinds of nodes in use."""
    rows = [cluster.run_of_slot[slots] == run for run in range(len(cluster.runs))]
    numbers = [row.any(axis=1).astype(float) for row in rows]
    for path in Loads(cluster_costs(cluster).rates, slots, gpus).paths(strategy, sent_patterns(strategy)).values():
        numbers += [np.nan_to_num(getattr(path, name).astype(float)) for name in path.__struct_fields__]
    first: dict[bytes, int] = {}
    for index, row in enumerate(np.stack(numbers, axis=1) + 0.0):
        first.setdefault(row.tobytes(), index)
    for index in first.values():
        yield Placement(slot_of_rank=slots[index], gpu_of_rank=gpus[index])


def placements(cluster: Cluster, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots and GPUs of every assignment of ranks to GPUs; shapes (placements, ranks)."""
    places = np.array([(slot, gpu) for slot in range(cluster.slots) for gpu in range(cluster.node(slot).gpus)])
    chosen = places[np.array(list(itertools.permutations(range(len(places)), ranks)))]
    return chosen[:, :, 0], chosen[:, :, 1]
