"""Every depth of one width on a cluster at once: seconds of a step, the recompute that fits, and the longest row.

    layouts x policies priced at the shallowest and the deepest model        -> seconds and bytes, a line over layers
    two policies mixed: k of N layers recompute more, the fewest that fit    -> seconds of N layers in each layout
    the roomiest layout at two lengths                                       -> bytes over layers and tokens

Seconds are linear in layers, and in layers of a policy, so a line through two prices is the price of each between them.
Bytes are the highest of several moments, each linear, so a line between two mixes of the same policies lies on or above
them: what fits here fits. Left out: tensor, pipeline and expert degrees, levers of memory, other mixes of policies;
`plan` searches these.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.batch import price_batch
from cost_models.cost import Memory
from cost_models.framework import OURS
from cost_models.hardware.cluster import Cluster
from cost_models.layer.sizes import RankSizes
from cost_models.memory.components import peak
from cost_models.profile import Profile
from cost_models.quality import backbone
from cost_models.room import Room
from cost_models.strategy import LayerRange, Recompute, Strategy, stacked
from cost_models.workload import Workload

Floats = NDArray[np.float64]
POLICIES: tuple[Recompute, ...] = ("none", "all_but_attention", "full")
"""Each takes longer and keeps less than the one before."""
LEAST_PIECE = 256
"""Tokens of a row that a rank has at least."""
MOST_TOGETHER = 32768
"""Tokens of a microbatch on a rank, where it has several rows."""
LONGEST = 2**25
"""Rows of up to so many tokens are looked at."""


class Shapes(Struct, frozen=True, kw_only=True):
    """What is asked of every width."""

    cluster: Cluster
    workload: Workload  # its model is replaced
    profile: Profile | None
    room: Room


class Depths(Struct, frozen=True, kw_only=True, eq=False):
    """Of one width; every array has an entry for each depth. A step of infinite seconds fits in no layout."""

    layers: NDArray[np.int64]
    step_s: Floats
    longest: Floats  # tokens, 0 where no row fits
    strategies: tuple[Strategy | None, ...]


@lru_cache(maxsize=8)
def layouts(
    gpus: int, node: int, batch: int, tokens: int, heads: int, policy: Recompute, layers: int
) -> tuple[Strategy, ...]:
    """data x ring x ulysses over all GPUs, ZeRO-3 over all or over a node; rows of a microbatch one or many. Widths of
    as many heads share them."""
    kept = (LayerRange(recompute=policy, count=layers),)
    found = []
    for context in (one for one in range(1, gpus + 1) if gpus % one == 0):
        data, piece = gpus // context, tokens // context
        if batch % data or (piece < LEAST_PIECE and context > 1):
            continue
        most = batch // data
        several = [rows for rows in range(1, min(most, MOST_TOGETHER // piece) + 1) if most % rows == 0]
        for rows, ulysses in itertools.product(sorted({1, max(several, default=1)}), range(1, min(heads, node) + 1)):
            if context % ulysses:
                continue
            for shard in sorted({gpus, node if gpus % node == 0 else gpus}):
                found.append(
                    Strategy(
                        data=data, ring=context // ulysses, ulysses=ulysses, shard=shard, microbatches=most // rows,
                        layers=kept,
                    )
                )  # fmt: skip
    return tuple(found)


def depths(shapes: Shapes, hidden: int, ffn: int, layers: Sequence[int]) -> Depths:
    """Of all these depths the quickest layout that fits, and the longest row."""
    many = np.array(layers)
    ends = (int(many[0]), max(int(many[-1]), int(many[0]) + 1))
    heads, work = backbone(ends[0], hidden, ffn).heads, shapes.workload
    node = max(run.node.gpus for run in shapes.cluster.runs)
    of = partial(layouts, shapes.cluster.gpus, node, work.global_batch, work.context_tokens, heads)
    several = of(POLICIES[0], ends[0])
    if not several:
        nothing: tuple[Strategy | None, ...] = (None,) * len(many)
        return Depths(layers=many, step_s=np.full(len(many), np.inf), longest=0.0 * many, strategies=nothing)
    seconds, used, limit = _priced(shapes, hidden, ffn, of, ends)
    along = ((many - ends[0]) / (ends[1] - ends[0]))[:, None]
    best = np.full(len(many), np.inf)
    chosen: list[Strategy | None] = [None] * len(many)
    for less, more in itertools.pairwise(range(len(POLICIES))):
        policies = POLICIES[less], POLICIES[more]
        of_one, of_all_but_one = (
            _line(_mixed_bytes(shapes, hidden, ffn, several, ends, policies, rest), along) for rest in (False, True)
        )
        saved = np.maximum((of_one - of_all_but_one) / (many[:, None] - 2), 1.0)
        again = 1 + np.ceil(np.clip((of_one - limit) / saved, 0.0, None))
        again = np.where(
            again < many[:, None], again, np.where(_line(used[more], along) <= limit, many[:, None], np.inf)
        )
        again = np.where(_line(used[less], along) <= limit, 0, again)
        of_less, of_more = _line(seconds[less], along), _line(seconds[more], along)
        fits = np.isfinite(again)
        takes = np.where(fits, of_less + (of_more - of_less) * np.where(fits, again, 0.0) / many[:, None], np.inf)
        quickest = takes.argmin(axis=1)
        for index, layout in enumerate(quickest.tolist()):
            if takes[index, layout] < best[index] * (1 - 1e-12):
                best[index] = takes[index, layout]
                mix = _mix(*policies, int(again[index, layout]), int(many[index]))
                chosen[index] = replace(several[layout], layers=mix)
    longest = _longest(shapes, hidden, ffn, many, ends)
    return Depths(layers=many, step_s=best, longest=longest, strategies=tuple(chosen))


def _mix(less: Recompute, more: Recompute, again: int, layers: int) -> tuple[LayerRange, ...]:
    """`again` layers of the policy that keeps less, then the others."""
    parts = ((more, again), (less, layers - again))
    return tuple(LayerRange(recompute=policy, count=count) for policy, count in parts if count)


def _line(ends: Floats, along: Floats) -> Floats:
    """(depths, layouts) of the values at both ends, (2, layouts)."""
    between: Floats = ends[0] + (ends[1] - ends[0]) * along
    return between


def _priced(
    shapes: Shapes, hidden: int, ffn: int, of: Callable[[Recompute, int], Sequence[Strategy]], ends: Iterable[int]
) -> tuple[Floats, Floats, float]:
    """Seconds and bytes, (policies, ends, layouts), and the bytes that may be used."""
    seconds, used, limit = [], [], np.inf
    for policy, layers in itertools.product(POLICIES, ends):
        work = replace(shapes.workload, model=backbone(layers, hidden, ffn))
        cost = price_batch(shapes.cluster, work, of(policy, layers), shapes.profile)
        seconds.append(cost.step_s)
        used.append(cost.memory_bytes)
        limit = min(limit, shapes.room.limit_bytes(float(cost.capacity_bytes.min())))
    shape = (len(POLICIES), -1, len(seconds[0]))
    return np.array(seconds).reshape(shape), np.array(used).reshape(shape), limit


def _mixed_bytes(
    shapes: Shapes, hidden: int, ffn: int, several: Sequence[Strategy], ends: Iterable[int],
    policies: tuple[Recompute, Recompute], rest: bool,
) -> Floats:  # fmt: skip
    """Bytes at both ends, (2, layouts), where one layer has the second policy, or all but one (`rest`)."""
    device, used = shapes.cluster.runs[0].node.device, []
    for layers in ends:
        work = replace(shapes.workload, model=backbone(layers, hidden, ffn))
        sizes = RankSizes(work, stacked(several), OURS.on(device))
        parts = peak(sizes, _mix(*policies, layers - 1 if rest else 1, layers), device)
        used.append(Memory((name, np.round(value)) for name, value in parts.items()).device_bytes)
    return np.array(used)


def _longest(shapes: Shapes, hidden: int, ffn: int, many: NDArray[np.int64], ends: tuple[int, int]) -> Floats:
    """Tokens of a row that all GPUs share, everything recomputed: where bytes over tokens meet the limit."""
    gpus = shapes.cluster.gpus
    node, heads = max(run.node.gpus for run in shapes.cluster.runs), hidden // 128
    ulysses = max(one for one in range(1, min(node, heads) + 1) if gpus % one == 0)
    shortest = max(shapes.workload.context_tokens, 2 * gpus)
    used = np.zeros((2, 2))
    limit = np.inf
    for (i, tokens), (j, layers) in itertools.product(enumerate((shortest, LONGEST)), enumerate(ends)):
        work = replace(
            shapes.workload,
            model=backbone(layers, hidden, ffn),
            context_tokens=tokens,
            text_tokens=None,
            global_batch=1,
        )
        kept = (LayerRange(recompute="full", count=layers),)
        one = Strategy(ring=gpus // ulysses, ulysses=ulysses, shard=gpus, layers=kept)
        cost = price_batch(shapes.cluster, work, [one], shapes.profile)
        used[i, j] = cost.memory_bytes[0]
        limit = min(limit, shapes.room.limit_bytes(float(cost.capacity_bytes[0])))
    short, long = (used[i, 0] + (used[i, 1] - used[i, 0]) * (many - ends[0]) / (ends[1] - ends[0]) for i in (0, 1))
    tokens = shortest + (limit - short) / (long - short) * (LONGEST - shortest)
    whole = np.floor(np.minimum(tokens, LONGEST) / 1024) * 1024
    return np.where(short <= limit, whole, 0.0)
