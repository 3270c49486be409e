"""What another program would bring: a handful of layouts with tensor and pipeline degrees, priced beside our own plan.

    training            Megatron: tensor as large as a domain, half of it and 1, each without and with pipeline stages
    prefill, decode     vLLM: tensor as large as a domain, half and a quarter of it, the rest data

Ranks lie in order, states are sharded, as little is recomputed as fits. No search: `--for NAME` searches, and the line
says so. A price takes some milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from msgspec import Struct

from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.pricing import price
from cost_models.room import Room
from cost_models.strategy import LayerRange, Strategy
from cost_models.workload import Workload
from planner.search.space import check_plannable, divisors, tensor_degrees
from planner.targets.target import Target

MOST_STAGES = 8


class Elsewhere(Struct, frozen=True, kw_only=True):
    """The best of `tried` layouts of another target; no cost: none of them fits."""

    target: Target
    tried: int
    strategy: Strategy | None = None
    cost: StepCost | None = None


def elsewhere(cluster: Cluster, workload: Workload, room: Room) -> Elsewhere | None:
    """`None`: no other target runs the model as precisely, in layouts that ours does not have."""
    target = Target.load("megatron" if workload.mode == "train" else "vllm")
    try:
        check_plannable(workload.model)
        asked = target.asked(workload)
    except InputError:
        return None
    if asked.precision.param != workload.precision.param:  # fp32, or a card without bf16: not the same work
        return None
    best, tried = None, 0
    for strategy in _candidates(cluster, asked, target):
        for policy in dict.fromkeys((target.recompute[0][0], target.recompute[0][-1])):
            one = replace(strategy, layers=(LayerRange(recompute=policy, count=asked.model.layers),))
            tried += 1
            try:
                cost = price(cluster, asked, one, framework=target.code)
            except InputError:
                continue
            if room.holds(cost):
                best = min([(cost.step_s, tried, one, cost), *([best] if best else [])])
                break
            if best and cost.step_s >= best[0]:  # recomputing saves no time
                break
    if tried == 0:
        return None
    found = {} if best is None else {"strategy": best[2], "cost": best[3]}
    return Elsewhere(target=target, tried=tried, **found)  # type: ignore[arg-type]


def _candidates(cluster: Cluster, workload: Workload, target: Target) -> Iterator[Strategy]:
    domain = max(run.node.gpus for run in cluster.runs) * cluster.nodes_per_domain
    tensors = [degree for degree in tensor_degrees(workload.model) if degree <= min(domain, cluster.gpus)]
    training = workload.mode == "train"
    for tensor in dict.fromkeys([tensors[-1], *tensors[-2:-1], *([1] if training else tensors[-3:-2])]):
        stages = max(one for one in divisors(workload.model.layers) if one <= min(MOST_STAGES, cluster.gpus // tensor))
        for pipeline in dict.fromkeys((1, stages if training else 1)):
            if tensor * pipeline > 1:
                yield _layout(cluster.gpus // (tensor * pipeline), tensor, pipeline, workload, target)


def _layout(ranks: int, tensor: int, pipeline: int, workload: Workload, target: Target) -> Strategy:
    """On so many ranks beside tensor and pipeline: the batch over data, what is left in a ring."""
    data = max(one for one in divisors(workload.global_batch) if one <= ranks)
    ring = ranks // data if "ring" in target.degrees else 1
    rows = workload.global_batch // data if workload.mode == "train" else 1
    virtual = 1
    if pipeline > 1 and rows % pipeline == 0:
        virtual = max(one for one in divisors(workload.model.layers // pipeline) if one <= 5)
    shard = data * ring if workload.mode == "train" else 1
    return Strategy(
        data=data, ring=ring, tensor=tensor, pipeline=pipeline, virtual=virtual, microbatches=rows,
        schedule="interleaved" if virtual > 1 else "1f1b", shard=shard, zero=1 if shard > 1 else 0,
        loss_chunk_tokens=target.loss_chunk_tokens,
    )  # fmt: skip
