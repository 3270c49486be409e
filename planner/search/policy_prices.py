"""Linear prices of many layouts at once, by recompute policy: what the integer program's columns are made of.

    step_s  = other_s + sum over policies of layers x layer_s[policy]           (linear in the layer counts)
    memory  = base + sum of layers x kept[policy] + the largest transient of a policy in use
              on the first or the last stage of a pipeline, whichever needs more

Built from the same segments, paths and memory functions as `pricing.price`, over numpy arrays: one entry for each
layout and placement. Times in seconds per step, memory in bytes per GPU. Left out: what a policy costs in bytes sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from cost_models.hardware.device import Device
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import at_stage, end_stages
from cost_models.memory import peaks
from cost_models.memory.components import components
from cost_models.memory.peaks import kept_bytes
from cost_models.pricing import fold, fold_segment
from cost_models.program import Exchange, Phase, Ring, Segment
from cost_models.step.assembly import backward_segment, forward_segment, step_program
from cost_models.strategy import VARIED, LayerRange, Recompute, Strategy
from cost_models.timing.kernels import Kernels
from cost_models.timing.paths import Paths
from cost_models.timing.slowest import KernelsInUse
from cost_models.workload import Workload

Floats = NDArray[np.float64]
_ARRAYS = ("other_s", "layer_s", "base_bytes", "kept_bytes", "again_bytes")
EQUAL = 1e-12
"""Relative difference below which two values are the same; the policy that recomputes less is then taken."""


class PolicyPrices(Struct, frozen=True, kw_only=True, eq=False):
    """Prices of many layouts; the policy is the last axis of `layer_s`, `kept_bytes` and `again_bytes`.

    Bytes are those of the first and the last stage of a pipeline, each with an equal share of every policy's layers.
    """

    policies: tuple[Recompute, ...]
    layers: int
    other_s: Floats
    layer_s: Floats  # (..., policies), of one layer in every microbatch; (..., 1) if all are taken as equally fast
    base_bytes: Floats  # (..., stages)
    kept_bytes: Floats  # (..., stages, policies), of one layer of the model
    again_bytes: Floats  # (..., stages, policies), transient while a layer of that policy is recomputed

    def take(self, where: Any) -> PolicyPrices:
        """Some of the columns, by index or mask."""
        return structs.replace(self, **{name: getattr(self, name)[where] for name in _ARRAYS})

    @classmethod
    def joined(cls, parts: Sequence[PolicyPrices]) -> PolicyPrices:
        """The columns of all parts, in order."""
        arrays: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in _ARRAYS}
        return structs.replace(parts[0], **arrays)

    def uniform_bytes(self) -> Floats:
        """Memory where all layers have one policy, shape (..., stages, policies)."""
        return self.base_bytes[..., None] + self.layers * self.kept_bytes + self.again_bytes

    def least_bytes(self) -> Floats:
        """Memory that no choice of policies for the layers goes below."""
        least: Floats = self.uniform_bytes().min(axis=-1).max(axis=-1)
        return least

    def relaxed_s(self, capacity_bytes: Any) -> Floats:
        """A lower bound on the step: fractional layers, no transients; infinite where nothing fits.

        The optimum of that relaxation mixes at most two policies, so all pairs are tried.
        """
        fits, seconds = self.least_bytes() <= capacity_bytes, self.layer_s
        if seconds.shape[-1] == 1:
            return np.where(fits, self.other_s + self.layers * seconds[..., 0], np.inf)
        room = (np.asarray(capacity_bytes)[..., None] - self.base_bytes)[..., None, None] / self.layers
        kept, seconds = self.kept_bytes, seconds[..., None, :]
        kept_a, kept_b = kept[..., :, None], kept[..., None, :]
        share = np.minimum(np.maximum(_divide(room - kept_b, kept_a - kept_b), 0.0), 1.0)  # of a, which keeps more
        possible = (kept_b <= room) & (kept_a >= kept_b)
        share = np.where(kept_a <= room, 1.0, share)
        mixed = share * seconds[..., :, None] + (1 - share) * seconds[..., None, :]
        best = np.where(possible, mixed, np.inf).min(axis=(-1, -2)).max(axis=-1)  # no stage allows less
        return np.where(fits, self.other_s + self.layers * best, np.inf)

    def mixed(self, capacity_bytes: Any) -> tuple[Floats, NDArray[np.int64]]:
        """A good answer in entire layers for each column: seconds (infinite if none) and layers (columns, policies).

        Tries every pair of policies with as many layers of the one that keeps more as fit, transients counted.
        """
        count = len(self.policies)
        best = np.full(self.other_s.shape, np.inf)
        layers = np.zeros((*self.other_s.shape, count), dtype=np.int64)
        for a in range(count):
            for b in range(count):
                many = self._most_layers(a, b, capacity_bytes)
                seconds = self.other_s + many * self.layer_s[..., a] + (self.layers - many) * self.layer_s[..., b]
                seconds = np.where(many >= 0, seconds, np.inf)
                better = seconds < best * (1 - EQUAL)
                best = np.where(better, seconds, best)
                chosen = np.zeros_like(layers)
                chosen[..., a] += many
                chosen[..., b] += self.layers - many
                layers = np.where(better[..., None], chosen, layers)
        return best, layers

    def _most_layers(self, a: int, b: int, capacity_bytes: Any) -> NDArray[np.int64]:
        """Most layers of policy a, the others of policy b, that fit; -1 if no number does."""
        again, total = np.maximum(self.again_bytes[..., a], self.again_bytes[..., b]), self.layers
        free = np.asarray(capacity_bytes)[..., None] - self.base_bytes
        room = free - again - total * self.kept_bytes[..., b]
        extra = self.kept_bytes[..., a] - self.kept_bytes[..., b]
        many = np.where(extra > 0, np.floor(_divide(room, extra)), np.where(room >= 0, total, -1.0))
        many = np.where((room < 0) & (extra >= 0), -1.0, np.minimum(many, total))
        alone = free - self.again_bytes[..., a] - total * self.kept_bytes[..., a] >= 0
        return np.where(alone.all(axis=-1), total, many.min(axis=-1)).astype(np.int64)

    def seconds_of(self, layers: NDArray[np.int64]) -> Floats:
        """Step seconds for layers by policy, shape (columns, policies)."""
        seconds: Floats = self.other_s + (layers * self.layer_s).sum(axis=-1)
        return seconds

    def bytes_of(self, layers: NDArray[np.int64]) -> Floats:
        """Memory for layers by policy, shape (columns, policies)."""
        counts = layers[..., None, :]
        again = np.where(counts > 0, self.again_bytes, 0.0).max(axis=-1)
        used: Floats = (self.base_bytes + (counts * self.kept_bytes).sum(axis=-1) + again).max(axis=-1)
        return used


def policy_prices(
    workload: Workload,
    layouts: Strategy,
    kernels: Kernels,
    paths: Paths,
    policies: Sequence[Recompute],
    device: Device,
    least_ring: Any = None,
    quick: bool = False,
) -> PolicyPrices:
    """Prices of `layouts` (one strategy of arrays) under `paths`.

    `least_ring`: only so many ring pieces are counted (a bound over a range of rings). `quick` takes every policy's
    time as that of the first, which must be the fastest: a bound at a third of the work.
    """
    priced = _Layouts(workload, layouts, kernels, paths, device, least_ring)
    base, spread = priced.bytes_with(), priced.spread
    return PolicyPrices(
        policies=tuple(policies),
        layers=workload.model.layers,
        other_s=_full(priced.other_s(), spread),
        layer_s=_by_policy([priced.layer_s(policy) for policy in (policies[:1] if quick else policies)], spread),
        base_bytes=base,
        kept_bytes=_by_policy([priced.bytes_with(kept=policy) - base for policy in policies], base.shape),
        again_bytes=_by_policy([priced.bytes_with(again=policy) - base for policy in policies], base.shape),
    )


def _full(value: Any, shape: tuple[int, ...]) -> Floats:
    """One entry for each layout."""
    return np.broadcast_to(np.asarray(value, dtype=np.float64), shape)


def _by_policy(values: Sequence[Any], shape: tuple[int, ...]) -> Floats:
    """The values of the policies along a last axis."""
    stacked = np.empty((*shape, len(values)))
    for place, value in enumerate(values):
        stacked[..., place] = value
    return stacked


class _Layouts:
    """Layouts as one strategy of arrays, with the step's parts that do not depend on recompute."""

    def __init__(
        self,
        workload: Workload,
        layouts: Strategy,
        kernels: Kernels,
        paths: Paths,
        device: Device,
        least_ring: Any,
    ) -> None:
        self.workload, self.layouts, self.device, self.least_ring = workload, layouts, device, least_ring
        self.sizes, self.kernels, self.paths = RankSizes(workload, layouts), KernelsInUse.afresh(kernels), paths
        self.held = np.broadcast_shapes(*(np.shape(getattr(layouts, name)) for name in VARIED))
        """Shape of the layouts, and so of what they hold; of what they take, with the paths: `spread`."""
        sent = (np.shape(path.gather_s_per_byte) for path in paths.axes.values())
        self.spread = np.broadcast_shapes(self.held, *sent)

    def other_s(self) -> Any:
        """The step without its layers."""
        program = step_program(self.sizes, self.kernels, ())
        micro = tuple(_with_ring(segment, self.least_ring, self.layouts) for segment in program.microbatch)
        return fold(replace(program, microbatch=micro), self.paths).total_s

    def layer_s(self, policy: Recompute) -> Any:
        """One layer in every microbatch of a step."""
        if self.workload.mode == "decode":
            return 0.0
        seconds = self._in_step_s(self._forward)
        if self.workload.mode == "train":
            seconds = seconds + self._in_step_s(backward_segment(self.sizes, self.kernels, policy, repeat=1))
        return seconds

    @cached_property
    def _forward(self) -> Segment:
        return forward_segment(self.sizes, self.kernels, repeat=1)

    def _in_step_s(self, segment: Segment) -> Any:
        """A layer's segment in all microbatches and the bubble, spread over the stages."""
        one = _with_ring(segment, self.least_ring, self.layouts)
        repeats = np.asarray(self.layouts.microbatches + (self.layouts.pipeline - 1) / self.layouts.virtual)
        each = fold_segment(one, self.paths).total_s
        last = each if one.last is None else fold_segment(one.last, self.paths).total_s
        return ((repeats - 1) * each + last) / self.layouts.pipeline

    def bytes_with(self, kept: Recompute | None = None, again: Recompute | None = None) -> Floats:
        """Memory of each stage without layers; with what one layer of a policy keeps, or what lives while it is
        recomputed."""
        each = []
        for here, rest in self._stages:
            held = 0 if kept is None else kept_bytes(here, kept) / self.layouts.pipeline
            peak = rest if again is None else peaks.peak(here, [again])
            each.append(_full(sum(components(here, held, peak, self.device).values()), self.held))
        return np.stack(each, axis=-1)

    @cached_property
    def _stages(self) -> list[tuple[RankSizes, peaks.Peak]]:
        """A rank of the first and of the last stage, with its peak of what is no layer."""
        ranges = (LayerRange(count=self.workload.model.layers),)
        several = [at_stage(self.sizes, ranges, index) for index in end_stages(self.layouts.pipeline)]
        ranks = several if len(several) > 1 else [self.sizes]
        return [(here, peaks.peak(here)) for here in ranks]


def _with_ring(segment: Segment, least_ring: Any, degrees: Strategy) -> Segment:
    """The segment with fewer ring pieces, and a merge over fewer ranks: least work anywhere in a range of rings."""
    if least_ring is None:
        return segment
    phases: list[Phase] = []
    for phase in segment.phases:
        if isinstance(phase, Ring):
            phase = phase._replace(pieces=least_ring)
        elif isinstance(phase, Exchange) and phase.axis == "context" and phase.op == "all_gather":
            phase = phase._replace(bytes=phase.bytes * (least_ring / degrees.ring))
        phases.append(phase)
    last = None if segment.last is None else _with_ring(segment.last, least_ring, degrees)
    return segment._replace(phases=tuple(phases), last=last)


def _divide(above: Any, below: Any) -> Any:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=np.asarray(below) != 0)
