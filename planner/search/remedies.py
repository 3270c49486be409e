"""What would make a workload fit: other pins, tensor or pipeline degrees, levers, more GPUs, a shorter context.

Every remedy is tried: the space is bounded again with one thing changed, and the memory of a layout does not depend on
where its ranks lie, so what fits there fits. Bisection gives GPU counts and contexts. Bytes per GPU.
Left out: combinations of remedies.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from msgspec import structs

from cost_models.curves.samples import Sample
from cost_models.errors import InputError
from cost_models.hardware.cluster import MAX_GPUS, Cluster, NodeRun
from cost_models.room import LEAST, sureness
from cost_models.timing.cluster_costs import costs_of
from cost_models.units import show_bytes, show_tokens
from planner.search.branch import Tree
from planner.search.levers import VALUES, strongest
from planner.search.space import Space, divisors, spaces
from planner.search.with_levers import holding, strongest_of

CONTEXT_STEP = 1024
"""Contexts are offered in multiples of so many tokens."""


class NothingFits(InputError):
    """No layout has the memory; `remedies` says what would, each with its number.

    Both are computed when they are read: a sweep or a bisection that only asks whether anything fits waits for neither.
    """

    def __init__(self, space: Space, samples: tuple[Sample, ...], fixed: Mapping[str, object]) -> None:
        super().__init__()
        self._space, self._samples, self._fixed = space, samples, fixed

    @cached_property
    def problem(self) -> str:
        """What is wrong, with the least bytes that any layout needs."""
        least, room = least_bytes(self._space, self._samples)
        workload, gpus = self._space.workload, self._space.cluster.gpus
        pinned = ", ".join(f"{name}={value}" for name, value in self._space.pins.items())
        whole = largest_gpu_bytes(self._space)
        there = show_bytes(whole)
        may = "" if room == whole else f", of which {show_bytes(room)} may be used with {self._space.room.words}"
        where = f"on {gpus} GPU{'s' if gpus > 1 else ''}" + (f" with {pinned}" if pinned else "")
        need = f"needs at least {show_bytes(least)} per GPU; it has {there}{may}"
        return f"nothing fits: {workload.describe()} {where} {need}"

    @cached_property
    def remedies(self) -> tuple[str, ...]:
        """What would fit."""
        return tuple(_tried(self._space, self._samples, self._fixed))

    def __str__(self) -> str:
        return "; ".join([self.problem, *self.remedies])

    def __reduce__(self) -> tuple[type[NothingFits], tuple[Space, tuple[Sample, ...], Mapping[str, object]]]:
        return NothingFits, (self._space, self._samples, self._fixed)


def _tried(space: Space, samples: tuple[Sample, ...], fixed: Mapping[str, object]) -> Iterator[str]:
    least, _ = least_bytes(space, samples)
    sure = math.floor(100 * sureness(least, largest_gpu_bytes(space))) / 100
    if LEAST <= sure < space.room.confidence and space.room.headroom_bytes is None:
        yield f"it fits with {sure:.0%} confidence: {show_bytes(least)} (`--confidence {sure:g}`)"
    for name in space.pins:
        looser = structs.replace(space, pins={pin: value for pin, value in space.pins.items() if pin != name})
        least, room = least_bytes(looser, samples)
        if least <= room:
            yield f"without {name}={space.pins[name]} it fits: {show_bytes(least)}"
    for axis in ("tensor", "pipeline"):
        degree = _degree(space, samples, axis)
        if degree is not None:
            pin = f"{axis}={degree[0]}"
            other = "megatron" if space.workload.mode == "train" else "vllm"
            plans = f"`plan --for {other}` plans it; this executor cannot run it" if space.target.is_ours else pin
            yield f"{pin} fits: {show_bytes(degree[1])} ({plans})"
    yield from _further_levers(space, samples)
    gpus = _more_gpus(space, samples, fixed)
    if gpus is not None:
        more = gpus - space.cluster.gpus
        yield f"{more} GPU{'s' if more > 1 else ''} more ({gpus}) fit"
    context = _shorter(space, samples, fixed)
    if context is not None:
        yield f"a context of at most {show_tokens(context)} ({context} tokens) fits"


def _degree(space: Space, samples: tuple[Sample, ...], axis: str) -> tuple[int, float] | None:
    """(smallest degree that fits, its bytes) of an axis that is searched only as pinned; `None` means no degree."""
    if axis in space.pins:
        return None
    model = space.workload.model
    legal, most = (model.heads, space.domain_gpus) if axis == "tensor" else (model.layers, space.cluster.gpus)
    for degree in (d for d in divisors(legal) if 1 < d <= most):
        try:
            least, room = least_bytes(structs.replace(space, pins={**space.pins, axis: degree}), samples)
        except InputError:
            continue
        if least <= room:
            return degree, least
    return None


def least_bytes(space: Space, samples: tuple[Sample, ...]) -> tuple[float, float]:
    """(least memory of any layout with any levers of the target, room on the largest GPU), bytes; of what fits if any
    does."""
    needed = [_least(one, samples) for one in _forms(space)]
    return min(needed), space.room.limit_bytes(largest_gpu_bytes(space))


def _least(space: Space, samples: tuple[Sample, ...]) -> float:
    """The least memory of any layout; infinite where there is none with these levers."""
    try:
        branches = Tree(space, "memory", costs_of(space.cluster, samples)).start()
    except InputError:
        if space.levers.chosen:
            return math.inf
        raise
    single = branches.take(branches.single)
    fitting = float(single.bound.min(initial=np.inf))
    return fitting if np.isfinite(fitting) else float(single.least_bytes.min(initial=np.inf))


def roomiest(spaces: Sequence[Space], samples: tuple[Sample, ...]) -> Space:
    """The space with the layout that needs least."""

    def least(space: Space) -> float:
        try:
            return least_bytes(space, samples)[0]
        except InputError:  # its degrees leave no room
            return math.inf

    return spaces[0] if len(spaces) == 1 else min(spaces, key=least)


def largest_gpu_bytes(space: Space) -> int:
    """Bytes that the driver hands out on the largest GPU."""
    return max(run.node.device.allocatable_bytes for run in space.cluster.runs)


def _fits(space: Space, samples: tuple[Sample, ...], fixed: Mapping[str, object]) -> bool:
    """Also with other tensor and pipeline degrees, where serving searches them (training has hundreds of spaces)."""
    several = [space]
    if space.workload.mode != "train":
        several += spaces(space.cluster, space.workload, fixed, space.room, space.target)
    return holding(several, costs_of(space.cluster, samples)) is not None


def _grown(cluster: Cluster, nodes: int) -> Cluster:
    """The cluster with so many more nodes of its last kind."""
    last = cluster.runs[-1]
    return replace(cluster, runs=(*cluster.runs[:-1], NodeRun(count=last.count + nodes, node=last.node)))


def _more_gpus(space: Space, samples: tuple[Sample, ...], fixed: Mapping[str, object]) -> int | None:
    each = space.cluster.runs[-1].node.gpus
    most = (min(MAX_GPUS, 16 * space.cluster.gpus + 64) - space.cluster.gpus) // max(each, 1)

    def fits(nodes: int) -> bool:
        return _fits(structs.replace(space, cluster=_grown(space.cluster, nodes)), samples, fixed)

    if each == 0 or most < 1 or not fits(most):
        return None
    return _grown(space.cluster, 1 + bisect_left(range(1, most), True, key=fits)).gpus


def _shorter(space: Space, samples: tuple[Sample, ...], fixed: Mapping[str, object]) -> int | None:
    """The longest multiple of `CONTEXT_STEP` tokens that fits; `None` means that no shorter one does."""
    workload = space.workload
    fewest = -(-max(workload.vision_tokens, 1) // CONTEXT_STEP)

    def fits(thousands: int) -> bool:
        shorter = replace(workload, context_tokens=thousands * CONTEXT_STEP, text_tokens=None, lengths=())
        return _fits(structs.replace(space, workload=shorter), samples, fixed)

    most = workload.context_tokens // CONTEXT_STEP
    if most <= fewest or not fits(fewest):
        return None
    longer = range(fewest + 1, most)
    return (fewest + bisect_left(longer, True, key=lambda thousands: not fits(thousands))) * CONTEXT_STEP


def _further_levers(space: Space, samples: tuple[Sample, ...]) -> Iterator[str]:
    """Levers of memory that the target lacks or the user has pinned, each beside all that may be chosen anyway."""
    if space.workload.mode != "train":
        return
    for lever in (one for one in VALUES if one not in space.target.levers):
        (field, value), *_ = reversed(VALUES[lever])
        wider = (*space.target.levers, lever)
        bundles = [one for one in strongest(wider, space.pins) if (field, value) in one.chosen and space.has(one)]
        held = [structs.replace(space, levers=one) for one in bundles]
        needed = [_least(one, samples) for one in held]
        room = space.room.limit_bytes(largest_gpu_bytes(space))
        if min(needed, default=math.inf) <= room:
            named = "a layer's input on the host" if field == "inputs" else f"{field}={value}"
            whether = "fits" if holding(held, costs_of(space.cluster, samples)) else "fits the GPUs, not the hosts"
            yield f"{named} {whether}: {show_bytes(min(needed))} (not among the levers of --for {space.target.name})"


def _forms(space: Space) -> list[Space]:
    """The space without levers, and with the strongest of its target."""
    return [space, *strongest_of([space])]
