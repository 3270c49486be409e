"""Whether a strategy that someone prices by hand beats `plan --for any`: every one is priced, ranks in order.

    python benchmarks/hand_priced.py --gpus 64 --cluster hgx-h100-1nic --model llama-3-70b --ctx 8192 --batch 64

Of every target all products of tensor, pipeline, virtual stages, data, ring, ulysses and microbatches on all the GPUs,
under each of its shardings and each recompute policy alone, as `price_batch` prices them: no code of the search. Prints
for each target how many there are, how many fit, the best of them and the planner's best price. The planner also lays
ranks out otherwise and mixes policies, so it may be better; worse by more than 0.1% is a fault.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import numpy as np

from cost_models import Cluster, LayerRange, Model, Strategy, Workload
from cost_models.batch import price_batch
from cost_models.errors import InputError
from cost_models.room import DEFAULT_ROOM
from planner.question import options
from planner.search.objective import value_of
from planner.search.space import divisors
from planner.solve import solve
from planner.targets.target import Target

WORSE = 1e-3


def strategies(gpus: int, work: Workload, target: Target) -> Iterator[Strategy]:
    """Every one on so many GPUs, in the target's words."""
    model, training = work.model, work.mode == "train"
    policies = sorted({one for several in target.recompute for one in several}) if training else ["none"]
    for tensor, pipeline, (data, ring, ulysses) in _degrees(gpus, work, target):
        rows = work.global_batch // data
        for microbatches in divisors(rows) if training else [1]:
            virtual = _virtual(target, model.layers, pipeline, microbatches) if training else [1]
            sharded = sorted(_sharded(target, data, ring * ulysses))
            for chunks, (shard, zero), policy in itertools.product(virtual, sharded, policies):
                yield Strategy(
                    data=data, ring=ring, ulysses=ulysses, tensor=tensor, pipeline=pipeline, virtual=chunks,
                    schedule="interleaved" if chunks > 1 else "1f1b", shard=shard, zero=zero,
                    microbatches=microbatches, loss_chunk_tokens=target.loss_chunk_tokens,
                    ring_kind=target.ring_kind if training else "zigzag",
                    layers=(LayerRange(recompute=policy, count=model.layers),),
                )  # fmt: skip


def _degrees(gpus: int, work: Workload, target: Target) -> Iterator[tuple[int, int, tuple[int, int, int]]]:
    """(tensor, pipeline, (data, ring, ulysses)) whose product is all GPUs."""
    model = work.model
    for tensor, pipeline in itertools.product(divisors(model.heads), divisors(model.layers)):
        here = {name for name, degree in (("tensor", tensor), ("pipeline", pipeline)) if degree > 1}
        if gpus % (tensor * pipeline) or not here <= {*target.degrees} or model.ffn % tensor:
            continue
        if model.kv_heads % tensor and tensor % model.kv_heads:
            continue
        ranks = gpus // (tensor * pipeline)
        for data, ring in itertools.product(divisors(ranks), repeat=2):
            ulysses, left = divmod(ranks, data * ring)
            if not left and work.global_batch % data == 0 and _has(target, model, tensor, ring, ulysses):
                yield tensor, pipeline, (data, ring, ulysses)


def _has(target: Target, model: Model, tensor: int, ring: int, ulysses: int) -> bool:
    """Whether these degrees of a context group exist there."""
    heads, keys = model.heads // tensor, max(1, model.kv_heads // tensor)
    if (ring > 1 and "ring" not in target.degrees) or (ulysses > 1 and "ulysses" not in target.degrees):
        return False
    if ulysses > heads or (target.ulysses == "kv_heads" and keys % ulysses):
        return False
    if target.ulysses == "heads" and (heads % ulysses or (keys % ulysses and ulysses % keys)):
        return False
    if target.context == "apart":
        return ring == 1 or ulysses == 1
    return target.context == "together" or np.gcd(ring * ulysses, model.kv_heads) == ulysses


def _virtual(target: Target, layers: int, pipeline: int, microbatches: int) -> list[int]:
    if pipeline == 1 or "interleaved" not in target.schedules or microbatches % pipeline:
        return [1]
    return divisors(layers // pipeline)


def _sharded(target: Target, data: int, context: int) -> set[tuple[int, int]]:
    """(shard, ZeRO stage)."""
    found = set()
    for over, zero in target.shardings:
        shard = {"ranks": data * context, "context": context, "domain": data * context}.get(over, 1)
        if (shard > 1) == (zero > 0) and (over != "alone" or context == 1):
            found.add((shard, zero))
    return found


def best_by_hand(cluster: Cluster, work: Workload, target: Target) -> tuple[int, int, float, Strategy | None]:
    """(strategies, how many fit, the least seconds of these, whose)."""
    several = list(strategies(cluster.gpus, work, target))
    cost = price_batch(cluster, work, several, framework=target.code)
    fits = cost.fits_host & (cost.memory_bytes <= np.array([DEFAULT_ROOM.limit_bytes(c) for c in cost.capacity_bytes]))
    seconds = np.where(fits, cost.step_s, np.inf)
    first = int(seconds.argmin())
    return len(several), int(fits.sum()), float(seconds[first]), several[first] if fits.any() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("cluster", "hgx-h100-1nic"), ("model", "llama-3-70b")):
        parser.add_argument(f"--{name}", default=value)
    for name, count in (("gpus", 64), ("ctx", 8192), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=count)
    given = parser.parse_args()
    cluster = Cluster.load(given.cluster, gpus=given.gpus)
    asked = Workload(Model.load(given.model), context_tokens=given.ctx, global_batch=given.batch)
    by_hand, planned = [], []
    print(f"{'target':12} {'strategies':>10} {'fit':>7} {'best by hand':>13} {'plan':>9} {'hand/plan':>10}")
    for target in options.targets("any", None):
        try:
            work = target.asked(asked)
        except InputError:
            continue
        tried, fitting, least, _ = best_by_hand(cluster, work, target)
        value = value_of("time", solve(cluster, asked, target=target, keep=1).best[0].cost)
        by_hand.append(least)
        planned.append(value)
        print(f"{target.name:12} {tried:10} {fitting:7} {least:11.4f} s {value:7.4f} s {least / value:10.5f}")
    ratio = min(by_hand) / min(planned)
    print(f"{'any':12} {'':10} {'':7} {min(by_hand):11.4f} s {min(planned):7.4f} s {ratio:10.5f}")
    if ratio < 1 - WORSE:
        raise SystemExit(f"a strategy priced by hand is {1 - ratio:.2%} faster than the plan")


if __name__ == "__main__":
    main()
