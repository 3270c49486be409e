"""Price many layouts side by side: what the integer program's columns are made of.

    step_s  = other_s + sum over policies of layers x layer_s[policy]           (linear in the layer counts)
    memory  = base + sum of layers x kept[policy] + the largest transient of a policy in use

Built from the same segments, paths and memory functions as `pricing.price`, over numpy arrays: one entry for each
layout and placement. Times in seconds per step, memory in bytes per GPU. Left out: what a policy costs in bytes sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.device import Device
from cost_models.layer.sizes import RankSizes
from cost_models.memory import peaks
from cost_models.memory.components import components
from cost_models.memory.peaks import kept_bytes
from cost_models.pricing import fold, fold_segment
from cost_models.program import Exchange, Phase, Ring, Segment
from cost_models.step.assembly import backward_segment, forward_segment, step_program
from cost_models.strategy import Recompute, Strategy
from cost_models.timing.kernels import Kernels
from cost_models.timing.paths import Paths
from cost_models.timing.slowest import KernelsInUse
from cost_models.workload import Workload

Floats = NDArray[np.float64]
_ARRAYS = ("other_s", "layer_s", "base_bytes", "kept_bytes", "again_bytes")
EQUAL = 1e-12
"""Relative difference below which two values are the same; the policy that recomputes less is then taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyPrices:
    """Prices of layouts side by side; the policy is the last axis of the three-way arrays."""

    policies: tuple[Recompute, ...]
    layers: int
    other_s: Floats
    layer_s: Floats  # (..., policies), of one layer in every microbatch
    base_bytes: Floats
    kept_bytes: Floats  # (..., policies), of one layer
    again_bytes: Floats  # (..., policies), transient while a layer of that policy is recomputed

    def take(self, where: Any) -> PolicyPrices:
        """Some of the columns, by index or mask."""
        return replace(self, **{name: getattr(self, name)[where] for name in _ARRAYS})

    @classmethod
    def joined(cls, parts: Sequence[PolicyPrices]) -> PolicyPrices:
        """The columns of all parts, in order."""
        arrays: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in _ARRAYS}
        return replace(parts[0], **arrays)

    def least_bytes(self) -> Floats:
        """The least memory that any choice of policies for the layers needs."""
        least: Floats = (self.base_bytes[..., None] + self.layers * self.kept_bytes + self.again_bytes).min(axis=-1)
        return least

    def relaxed_s(self, capacity_bytes: Any) -> Floats:
        """A lower bound on the step: fractional layers, no transients; infinite where nothing fits.

        The optimum of that relaxation mixes at most two policies, so all pairs are tried.
        """
        room = (capacity_bytes - self.base_bytes)[..., None, None] / self.layers
        kept, seconds = self.kept_bytes, self.layer_s
        kept_a, kept_b = kept[..., :, None], kept[..., None, :]
        share = np.clip(_divide(room - kept_b, kept_a - kept_b), 0.0, 1.0)  # of policy a, the hungrier one
        possible = (kept_b <= room) & (kept_a >= kept_b)
        share = np.where(kept_a <= room, 1.0, share)
        mixed = share * seconds[..., :, None] + (1 - share) * seconds[..., None, :]
        best = np.where(possible, mixed, np.inf).min(axis=(-1, -2))
        relaxed: Floats = self.other_s + self.layers * best
        return np.where(self.least_bytes() <= capacity_bytes, relaxed, np.inf)

    def mixed(self, capacity_bytes: Any) -> tuple[Floats, NDArray[np.int64]]:
        """A good whole-layer answer for each column: seconds (infinite if none) and layers (columns, policies).

        Tries every pair of policies with as many layers of the hungrier one as fit, transients counted.
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
        """Most layers of policy a beside policy b that fit; -1 if no number does."""
        again, total = np.maximum(self.again_bytes[..., a], self.again_bytes[..., b]), self.layers
        room = capacity_bytes - self.base_bytes - again - total * self.kept_bytes[..., b]
        extra = self.kept_bytes[..., a] - self.kept_bytes[..., b]
        many = np.where(extra > 0, np.floor(_divide(room, extra)), np.where(room >= 0, total, -1.0))
        many = np.where((room < 0) & (extra >= 0), -1.0, np.minimum(many, total))
        alone = capacity_bytes - self.base_bytes - self.again_bytes[..., a] - total * self.kept_bytes[..., a]
        return np.where(alone >= 0, total, many).astype(np.int64)

    def seconds_of(self, layers: NDArray[np.int64]) -> Floats:
        """Step seconds of whole-layer counts (columns, policies)."""
        seconds: Floats = self.other_s + (layers * self.layer_s).sum(axis=-1)
        return seconds

    def bytes_of(self, layers: NDArray[np.int64]) -> Floats:
        """Memory of whole-layer counts (columns, policies)."""
        again = np.where(layers > 0, self.again_bytes, 0.0).max(axis=-1)
        used: Floats = self.base_bytes + (layers * self.kept_bytes).sum(axis=-1) + again
        return used


def policy_prices(
    workload: Workload,
    degrees: Strategy,
    kernels: Kernels,
    paths: Paths,
    policies: Sequence[Recompute],
    device: Device,
    least_ring: Any = None,
    quick: bool = False,
) -> PolicyPrices:
    """Price `degrees` under `paths`. `least_ring`: count only so many ring pieces (a bound over a range of rings).

    `quick` takes every policy's time as that of the first, which must be the fastest: a bound at a third of the work.
    """
    shape, kernels = RankSizes(workload, degrees), KernelsInUse.afresh(kernels)
    shape_of = np.broadcast_shapes(
        *(np.shape(getattr(degrees, name)) for name in ("data", "ring", "ulysses", "shard", "zero")),
        *(np.shape(path.gather_s_per_byte) for path in paths.axes.values()),
    )
    repeats = np.asarray(degrees.microbatches + (degrees.pipeline - 1) / degrees.virtual)

    def seconds(segment: Segment) -> Any:
        one = _with_ring(segment, least_ring, degrees)
        each = fold_segment(one, paths).total_s
        return repeats * each if one.last is None else (repeats - 1) * each + fold_segment(one.last, paths).total_s

    def full(value: Any) -> Floats:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), shape_of)

    program = step_program(shape, kernels, ())
    micro = tuple(_with_ring(segment, least_ring, degrees) for segment in program.microbatch)
    program = replace(program, microbatch=micro)
    forward: Any = 0.0
    if workload.mode != "decode":
        forward = seconds(forward_segment(shape, kernels, repeat=1)) / degrees.pipeline
    each: list[Floats] = []
    kept: list[Floats] = []
    again: list[Floats] = []
    rest = peaks.peak(shape)
    base = sum(components(shape, 0, rest, device).values())
    layer_s = forward
    for policy in policies:
        if workload.mode == "train" and not (quick and each):
            layer_s = forward + seconds(backward_segment(shape, kernels, policy, repeat=1)) / degrees.pipeline
        each.append(full(layer_s))
        held = components(shape, kept_bytes(shape, policy) / degrees.pipeline, rest, device)
        kept.append(full(sum(held.values()) - base))
        transient = components(shape, 0, peaks.peak(shape, [policy]), device)
        again.append(full(sum(transient.values()) - base))
    return PolicyPrices(
        policies=tuple(policies),
        layers=workload.model.layers,
        other_s=full(fold(program, paths).total_s),
        layer_s=np.stack(each, axis=-1),
        base_bytes=full(base),
        kept_bytes=np.stack(kept, axis=-1),
        again_bytes=np.stack(again, axis=-1),
    )


def _with_ring(segment: Segment, least_ring: Any, degrees: Strategy) -> Segment:
    """The segment with fewer ring pieces, and a merge over fewer ranks: least work anywhere in a range of rings."""
    if least_ring is None:
        return segment
    phases: list[Phase] = []
    for phase in segment.phases:
        if isinstance(phase, Ring):
            phase = replace(phase, pieces=least_ring)
        elif isinstance(phase, Exchange) and phase.axis == "context" and phase.op == "all_gather":
            phase = replace(phase, bytes=phase.bytes * (least_ring / degrees.ring))
        phases.append(phase)
    last = None if segment.last is None else _with_ring(segment.last, least_ring, degrees)
    return replace(segment, phases=tuple(phases), last=last)


def _divide(above: Any, below: Any) -> Any:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=np.asarray(below) != 0)
