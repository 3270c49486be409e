"""LongVILA's published figures, and the methods that it compares as layouts and frameworks that can be priced.

    MM-SP        ulysses in the node x ring across nodes, FSDP over all ranks
    ring         a zigzag ring over all ranks, FSDP
    Ulysses      heads only: at most as many ranks as query heads share a row
    CP + TP, CP  Megatron: the ring of context parallelism over (tensor) ranks, weights whole on each, ZeRO-1 states

Every method keeps all activations if they fit, else recomputes whole layers; the faster that fits is its time. The
prediction is `price`'s, as for every other published row; no number here was fitted to one. The figures are
second hand (the paper's text was not at hand): where GPU counts or degrees are not known they are inferred, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cost_models.cost import StepCost
from cost_models.framework import Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.networks import CHANNEL_BYTES_PER_S
from cost_models.longest import most_tokens
from cost_models.models.model import Model
from cost_models.pricing import price
from cost_models.strategy import LayerRange, Recompute, Strategy
from cost_models.workload import Workload

K = 1024
NODE = 8
PATH_BYTES_PER_S = 50e9
"""400 Gbit/s of fabric for each GPU's path out of the node, as the paper states."""

NCCL, CHANNELS = "2.20", 2
"""Of PyTorch 2.3 and 2.4, current when the paper appeared (August 2024; inferred): two channels to a peer among 32
GPUs, one among 64."""

SERIES_GPUS, LONG_GPUS, LONG_TOKENS = 32, 64, 578 * K
"""Of the series below (inferred: see the page), and of the 578K figure (printed)."""
TWO_D_S: dict[int, float] = {32 * K: 1.04, 64 * K: 1.08, 128 * K: 2.30, 256 * K: 7.04, 320 * K: 11.12}
ZIGZAG_S: dict[int, float | None] = {32 * K: 2.06, 64 * K: 4.40, 128 * K: 8.63, 256 * K: 17.54, 320 * K: None}
"""Seconds per iteration; None: out of memory."""
LONG_S = {"MM-SP": 16.9, "ring": 77.2}
RATIOS: dict[str, tuple[float, float]] = {"ring": (2.1, 5.7), "CP + TP": (1.1, 1.4), "CP": (3.1, 4.3)}
"""How many times longer than MM-SP: lowest and highest."""
TWO_STAGE_S, ONE_STAGE_S, STAGE_GAIN = 1.12, 1.20, (0.01, 0.07)
"""8 GPUs, frames not printed; how much longer one stage takes."""
LONGEST_GPUS, LONGEST_TOKENS = 256, 2 * 2**20

MM_SP, MEGATRON = Framework.load("longvila"), Framework.load("megatron-context-parallel")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One of the paper's ways to split a row, and the code that runs it."""

    name: Literal["MM-SP", "best degrees", "ring", "Ulysses", "CP + TP", "CP"]
    framework: Framework
    layouts: Callable[[int], tuple[Strategy, ...]]  # of so many GPUs; the fastest counts


def _hybrid(gpus: int, *ulysses: int) -> tuple[Strategy, ...]:
    """Heads over so many neighbours, a ring across them, FSDP over all."""
    degrees = [degree for degree in ulysses if gpus % degree == 0]
    return tuple(Strategy(ring=gpus // one, ulysses=one, shard=gpus, loss_chunk_tokens=None) for one in degrees)


def _ulysses(gpus: int) -> tuple[Strategy, ...]:
    ulysses = min(gpus, 32)
    return (Strategy(data=gpus // ulysses, ulysses=ulysses, shard=gpus, loss_chunk_tokens=None),)


def _megatron(gpus: int, *tensor: int) -> tuple[Strategy, ...]:
    """A ring over groups of so many tensor ranks, weights whole on each group, ZeRO-1."""
    return tuple(
        Strategy(ring=gpus // one, tensor=one, shard=gpus // one, zero=1, loss_chunk_tokens=None)
        for one in tensor
        if gpus % one == 0
    )


METHODS = {
    method.name: method
    for method in (
        Method(name="MM-SP", framework=MM_SP, layouts=lambda gpus: _hybrid(gpus, min(gpus, NODE))),
        Method(name="best degrees", framework=MM_SP, layouts=lambda gpus: _hybrid(gpus, 1, 2, 4, 8, 16, 32)),
        Method(name="ring", framework=MM_SP, layouts=lambda gpus: _hybrid(gpus, 1)),
        Method(name="Ulysses", framework=MM_SP, layouts=_ulysses),
        Method(name="CP + TP", framework=MEGATRON, layouts=lambda gpus: _megatron(gpus, 2, 4, 8)),
        Method(name="CP", framework=MEGATRON, layouts=lambda gpus: _megatron(gpus, 1)),
    )
}


def cluster(gpus: int, preset: str = "dgx-h100", path_bytes_per_s: float = PATH_BYTES_PER_S) -> Cluster:
    """Nodes of 8 GPUs, each with a path of its own to the fabric at this rate, of which a channel has half."""
    made = Cluster.load(preset, nodes=-(-gpus // NODE))
    run = made.runs[0]
    channel = min(CHANNEL_BYTES_PER_S, path_bytes_per_s / CHANNELS)
    nics = replace(run.node.nics, count=NODE, bytes_per_s=path_bytes_per_s, channel_bytes_per_s=channel)
    runs, fabric = (replace(run, node=replace(run.node, nics=nics)),), replace(made.fabric, nccl=NCCL)
    return replace(made, runs=runs, fabric=fabric)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A method on some GPUs at some length: one layout and recompute policy, priced."""

    strategy: Strategy
    recompute: Recompute
    cost: StepCost

    @property
    def step_s(self) -> float:
        return self.cost.step_s

    @property
    def fits(self) -> bool:
        return self.cost.fits

    @property
    def degrees(self) -> str:
        layout = self.strategy
        names = ("tensor", "ring", "ulysses")
        parts = [f"{name} {getattr(layout, name)}" for name in names if getattr(layout, name) > 1]
        return " × ".join(parts or ["one GPU"]) + (", recompute" if self.recompute != "none" else "")


def priced(
    framework: Framework, where: Cluster, work: Workload, layout: Strategy, recompute: Recompute = "none"
) -> Run:
    """One layout under a framework."""
    work = replace(work, precision=framework.precision, global_batch=layout.data)
    strategy = replace(layout, layers=(LayerRange(recompute=recompute, count=work.model.layers),))
    return Run(strategy=layout, recompute=recompute, cost=price(where, work, strategy, framework=framework))


def fastest(method: Method, where: Cluster, work: Workload) -> Run | None:
    """The fastest layout and policy that fit; None if nothing does."""
    runs = [
        priced(method.framework, where, work, layout, recompute)
        for layout in method.layouts(where.gpus)
        for recompute in ("none", "full")
    ]
    return min((run for run in runs if run.fits), key=lambda run: run.step_s, default=None)


def kept(method: Method, where: Cluster, work: Workload) -> Run:
    """The fastest layout with all activations kept, whether or not it fits."""
    runs = [priced(method.framework, where, work, layout) for layout in method.layouts(where.gpus)]
    return min(runs, key=lambda run: run.step_s)


LENGTH_STEP = 128
"""Tokens per rank: the grain of the longest row that is looked for."""


def longest(method: Method, where: Cluster, model: Model, recompute: Recompute = "none") -> int:
    """Tokens of the longest row that fits under one policy; 0 if not even the shortest does."""

    def most(layout: Strategy) -> int:
        def fits(tokens: int) -> bool:
            return priced(method.framework, where, Workload(model, context_tokens=tokens), layout, recompute).fits

        return most_tokens(fits, LENGTH_STEP * layout.context * layout.tensor)

    return max(map(most, method.layouts(where.gpus)))


def path_rate_of(method: Method, gpus: int, work: Workload, wanted_s: float) -> float:
    """Bytes/s of a GPU's path out of the node at which the method takes `wanted_s`; the stated rate if it already does.

    A diagnosis of a published time; no prediction uses it.
    """
    low, high = 1e8, PATH_BYTES_PER_S
    if kept(method, cluster(gpus, path_bytes_per_s=high), work).step_s >= wanted_s:
        return high
    for _ in range(24):
        middle = math.sqrt(low * high)
        slow = kept(method, cluster(gpus, path_bytes_per_s=middle), work).step_s > wanted_s
        low, high = (middle, high) if slow else (low, middle)
    return math.sqrt(low * high)
