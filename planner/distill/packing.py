"""Layers that learn alone, dealt out to GPUs so that the slowest is done soonest.

    a GPU with layers G:   seconds = sum of teacher_s of layers 0 … max(G)  +  sum over G of layer_s
                           bytes   = the same sums of teacher_bytes and layer_bytes  <= capacity
    minimise the largest seconds of a GPU

Each GPU runs the teacher as far as its deepest layer, so equal numbers of layers are not equal work: who has shallow
layers can take more of them. For a limit T the fewest GPUs are found exactly. The deepest layer left must go somewhere;
with it go as many layers as fit, of each kind the deepest (exchanging two of a kind never raises a prefix), so a table
over how many are left of each kind has every case. T is bisected, and the answer lies within 1e-6 of its lower bound.
Left out: hidden states sent from one GPU to the next in place of running the teacher again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

from msgspec import Struct

from cost_models.errors import InputError

EXACT = 1e-6
"""How far above the lower bound the answer may be, relative."""
MOST_CASES = 50_000
GIB = 2.0**30
Counts = tuple[int, ...]


class LayerCost(Struct, frozen=True, kw_only=True):
    """One layer of the teacher; `layer_s` and `layer_bytes` are None where it keeps attention and learns nothing."""

    teacher_s: float
    teacher_bytes: float
    layer_s: float | None
    layer_bytes: float | None


class Packing(Struct, frozen=True, kw_only=True):
    groups: tuple[tuple[int, ...], ...]  # layers of each GPU, the slowest first
    seconds: tuple[float, ...]
    bound_s: float  # no packing is faster

    @property
    def slowest_s(self) -> float:
        return max(self.seconds)


class _Task:
    """The layers that learn, by kind, deepest last; and what precedes each."""

    def __init__(self, costs: Sequence[LayerCost], capacity_bytes: float) -> None:
        self.costs, self.capacity_bytes = costs, capacity_bytes
        self.prefix_s = [*itertools.accumulate(one.teacher_s for one in costs)]
        self.prefix_bytes = [*itertools.accumulate(one.teacher_bytes for one in costs)]
        kinds: dict[tuple[float, float], list[int]] = {}
        for layer, one in enumerate(costs):
            if one.layer_s is not None and one.layer_bytes is not None:
                kinds.setdefault((one.layer_s, one.layer_bytes), []).append(layer)
        self.sizes, self.layers = [*kinds], [*kinds.values()]

    def seconds(self, group: Sequence[int]) -> float:
        return self.prefix_s[max(group)] + sum(self.costs[layer].layer_s or 0.0 for layer in group)

    def fewest(self, limit_s: float, gpus: int) -> list[list[int]] | None:
        """Groups that each take at most `limit_s`, at most `gpus` of them; None if there are none."""

        @cache
        def best(left: Counts) -> tuple[int, Counts | None]:
            """GPUs that these need, and what the first of them takes."""
            if not any(left):
                return 0, None
            found: tuple[int, Counts | None] = (gpus + 1, None)
            for taken in self._loads(left, limit_s):
                rest = best(tuple(have - take for have, take in zip(left, taken, strict=True)))[0] + 1
                found = min(found, (rest, taken), key=lambda one: one[0])
            return found

        left = tuple(len(layers) for layers in self.layers)
        if best(left)[0] > gpus:
            return None
        groups = []
        while (taken := best(left)[1]) is not None:
            groups.append([layer for k, take in enumerate(taken) for layer in self.layers[k][left[k] - take : left[k]]])
            left = tuple(have - take for have, take in zip(left, taken, strict=True))
        return groups

    def _loads(self, left: Counts, limit_s: float) -> list[Counts]:
        """The largest loads of the GPU that takes the deepest layer left, by kind."""
        deepest = max(range(len(left)), key=lambda k: self.layers[k][left[k] - 1] if left[k] else -1)
        layer = self.layers[deepest][left[deepest] - 1]
        room_s, room_bytes = limit_s - self.prefix_s[layer], self.capacity_bytes - self.prefix_bytes[layer]

        def most(k: int, room_s: float, room_bytes: float) -> int:
            seconds, size = self.sizes[k]
            fits = [
                left[k],
                *(int(room / each + 1e-9) for room, each in ((room_s, seconds), (room_bytes, size)) if each),
            ]
            return max(-1, min(fits))

        loads: list[Counts] = []
        order = [k for k in range(len(left)) if k != deepest]

        def fill(place: int, taken: Counts, room_s: float, room_bytes: float) -> None:
            if place < 0:
                if (own := most(deepest, room_s, room_bytes)) >= 1:
                    named = dict(zip(order[::-1], taken, strict=True)) | {deepest: own}
                    loads.append(tuple(named[k] for k in range(len(left))))
                return
            seconds, size = self.sizes[order[place]]
            for count in range(most(order[place], room_s, room_bytes) + 1):
                fill(place - 1, (*taken, count), room_s - count * seconds, room_bytes - count * size)

        fill(len(order) - 1, (), room_s, room_bytes)
        return loads


def pack(costs: Sequence[LayerCost], gpus: int, capacity_bytes: float) -> Packing:
    """The packing whose slowest GPU is fastest, proven. InputError: some layer fits on no GPU, or all on too few.

    >>> layers = [LayerCost(teacher_s=1.0, teacher_bytes=1.0, layer_s=2.0, layer_bytes=1.0)] * 8
    >>> found = pack(layers, gpus=2, capacity_bytes=100.0)
    >>> found.groups, found.slowest_s
    (((0, 1, 2, 3, 4), (5, 6, 7)), 15.0)
    """
    task = _Task(costs, capacity_bytes)
    if not task.layers:
        raise InputError("every layer keeps attention: nothing is left to distil")
    cases = 1
    for layers in task.layers:
        cases *= len(layers) + 1
    if cases > MOST_CASES:
        raise InputError(f"{len(task.layers)} kinds of layers make {cases:,} cases; at most {MOST_CASES:,}")
    every = [layer for layers in task.layers for layer in layers]
    high = task.seconds(every) * (1 + EXACT)
    groups = task.fewest(high, gpus)
    if groups is None:
        deepest = max(every)
        needs = task.prefix_bytes[deepest] + (costs[deepest].layer_bytes or 0.0)
        left = f"{gpus} x {capacity_bytes / GIB:.0f} GiB"
        if capacity_bytes <= 0:
            left = f"{gpus} GPUs, which one row's matrices fill"
        raise InputError(
            f"{len(every)} layers do not fit into {left} (layer {deepest} needs {needs / GIB:,.0f} GiB with the "
            "teacher before it): give more or larger GPUs, or a shorter --ctx"
        )
    low = max(task.prefix_s[max(every)], sum(costs[layer].layer_s or 0.0 for layer in every) / gpus)
    high = max(task.seconds(group) for group in groups)
    while high > low * (1 + EXACT):
        middle = (low + high) / 2
        found = task.fewest(middle, gpus)
        if found is None:
            low = middle
        else:
            groups, high = found, max(task.seconds(group) for group in found)
    shown = sorted((task.seconds(group), tuple(sorted(group))) for group in groups)[::-1]
    return Packing(
        groups=tuple(group for _, group in shown),
        seconds=tuple(seconds for seconds, _ in shown),
        bound_s=min(low, high),
    )
