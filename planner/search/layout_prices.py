"""Many layouts priced at once for the integer program: what is outside the layers, and each kind of layer by policy.

Built from the same segments, paths and memory functions as `pricing.price`, over numpy arrays: one entry for each
layout and placement. `PolicyPrices` says what the numbers are of and sums them. Times in seconds per step, memory in
bytes per GPU. Left out: what a policy costs in bytes sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from cost_models.framework import OURS, Framework
from cost_models.hardware.device import Device
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import at_stage, end_stages, is_mixed
from cost_models.memory import peaks
from cost_models.memory.components import components
from cost_models.memory.host import rank_host_bytes
from cost_models.memory.peaks import kept_bytes
from cost_models.models.model import LayerKind
from cost_models.pricing import fold, fold_segment
from cost_models.program import Exchange, Passed, Phase, Ring, Segment
from cost_models.step.assembly import backward_segment, forward_segment, step_program
from cost_models.strategy import VARIED, LayerRange, Strategy
from cost_models.timing.kernels import Kernels
from cost_models.timing.paths import Paths
from cost_models.timing.slowest import KernelsInUse
from cost_models.workload import Workload
from planner.search.policy_prices import Choice, Floats, Policy, PolicyPrices, parts_of


def policy_prices(
    workload: Workload,
    layouts: Strategy,
    kernels: Kernels,
    paths: Paths,
    policies: Sequence[Policy],
    device: Device,
    least_ring: Any = None,
    quick: bool = False,
    framework: Framework = OURS,
    host_limit: Any = np.inf,
    timed: bool = True,
) -> PolicyPrices:
    """Prices of `layouts` (one strategy of arrays) under `paths`, as `framework` runs them.

    `least_ring`: only so many ring pieces are counted (a bound over a range of rings). `quick` takes every policy's
    time as that of the first, which must be the fastest: a bound at a third of the work. `host_limit`: bytes of host
    memory that a rank may have. `timed=False`: no seconds, for who asks what fits.
    """
    priced = _Layouts(workload, layouts, kernels, paths, device, least_ring, framework)
    base, spread, kinds = priced.bytes_with(), priced.spread, tuple(dict.fromkeys(workload.model.layer_kinds))
    choices = list(itertools.product(kinds, policies))
    several = list(itertools.product(kinds, policies[:1])) if quick else choices
    return PolicyPrices(
        policies=tuple(policies),
        layer_kinds=workload.model.layer_kinds,
        other_s=_full(priced.other_s() if timed else 0.0, spread),
        layer_s=_by_choice([priced.layer_s(*choice) if timed else 0.0 for choice in several], spread),
        base_bytes=base,
        kept_bytes=_by_choice([priced.bytes_with(kept=choice) - base for choice in choices], base.shape),
        again_bytes=_by_choice([priced.bytes_with(again=choice) - base for choice in choices], base.shape),
        host_base=_full(rank_host_bytes(priced.sizes, ()), priced.held),
        host_kept=_by_choice([priced.layer_host_bytes(choice) for choice in choices], priced.held),
        host_limit=_full(host_limit, priced.held),
    )


def parts_s(
    workload: Workload,
    layouts: Strategy,
    kernels: Kernels,
    paths: Paths,
    policy: Policy,
    least_ring: Any = None,
    framework: Framework = OURS,
) -> Floats:
    """Seconds outside the layers, then those of one layer of each kind under a policy, along a last axis."""
    priced = _Layouts(workload, layouts, kernels, paths, kernels.device, least_ring, framework)
    kinds = dict.fromkeys(workload.model.layer_kinds)
    return _by_choice([priced.other_s(), *(priced.layer_s(kind, policy) for kind in kinds)], priced.spread)


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
        framework: Framework,
    ) -> None:
        self.workload, self.layouts, self.device, self.least_ring = workload, layouts, device, least_ring
        evenly = least_ring is not None and bool(workload.lengths) and framework.document_ring
        self.sizes = RankSizes(workload, layouts, framework.on(device), evenly=evenly)
        self.kernels, self.paths = KernelsInUse.afresh(kernels), paths
        self.held = np.broadcast_shapes(*(np.shape(getattr(layouts, name)) for name in VARIED))
        """Shape of the layouts, and so of what they hold; of what they take, with the paths: `spread`."""
        sent = (np.shape(path.gather_s_per_byte) for path in paths.axes.values())
        self.spread = np.broadcast_shapes(self.held, *sent)

    def other_s(self) -> Any:
        """The step without its layers."""
        program = step_program(self.sizes, self.kernels, ())
        micro = tuple(_with_ring(segment, self.least_ring, self.layouts) for segment in program.microbatch)
        return fold(replace(program, microbatch=micro), self.paths).total_s

    def layer_host_bytes(self, choice: Choice) -> Any:
        """Bytes in host memory that one layer of a choice adds."""
        recompute, offload = parts_of(choice[1])
        if offload == "none":
            return 0.0
        one = (LayerRange(recompute=recompute, offload=offload, count=1),)
        return rank_host_bytes(self.sizes, one) - rank_host_bytes(self.sizes, ())

    def layer_s(self, kind: LayerKind, policy: Policy) -> Any:
        """One layer in every microbatch of a step."""
        if self.workload.mode == "decode":
            return 0.0
        here, (again, offload) = self.sizes.of(kind), parts_of(policy)
        seconds = here.once(
            ("forward_s", offload),
            lambda: self._in_step_s(forward_segment(here, self.kernels, repeat=1, offload=offload)),
        )
        if self.workload.mode == "train":
            seconds = seconds + self._in_step_s(backward_segment(here, self.kernels, again, 1, offload))
        return seconds

    def _in_step_s(self, segment: Segment) -> Any:
        """A layer's segment in all microbatches and the bubble, spread over the stages."""
        one = _with_ring(segment, self.least_ring, self.layouts)
        repeats = np.asarray(self.layouts.microbatches + (self.layouts.pipeline - 1) / self.layouts.virtual)
        each = fold_segment(one, self.paths).total_s
        last = each if one.last is None else fold_segment(one.last, self.paths).total_s
        return ((repeats - 1) * each + last) / self.layouts.pipeline

    def bytes_with(self, kept: Choice | None = None, again: Choice | None = None) -> Floats:
        """Memory of each stage without layers; with what one layer of a choice keeps, or what lives while it is
        recomputed."""
        each = []
        for here, rest in self._stages:
            held = 0 if kept is None else kept_bytes(here.of(kept[0]), kept[1]) * self._share(here)
            peak = rest if again is None else peaks.peak(here, [(here.of(again[0]), _one_layer(again[1]))])
            each.append(_full(sum(components(here, held, peak, self.device).values()), self.held))
        return np.stack(each, axis=-1)

    def _share(self, here: RankSizes) -> float:
        """Of the model's layers, on this stage."""
        layers = self.workload.model.layers
        return 1.0 if here.stage is None else sum(float(count) for _, count in here.stage.layers) / layers

    @cached_property
    def _stages(self) -> list[tuple[RankSizes, peaks.Peak]]:
        """A rank of the first and of the last stage, with its peak of what is no layer."""
        ranges = (LayerRange(count=self.workload.model.layers),)
        several = [at_stage(self.sizes, ranges, index) for index in end_stages(self.layouts.pipeline)]
        ranks = several if len(several) > 1 or is_mixed(self.workload.model) else [self.sizes]
        return [(here, peaks.peak(here)) for here in ranks]


def _with_ring(segment: Segment, least_ring: Any, degrees: Strategy) -> Segment:
    """The segment with fewer ring pieces, and a merge over fewer ranks: least work anywhere in a range of rings."""
    if least_ring is None:
        return segment
    phases: list[Phase] = []
    grows = ("context",) if degrees.ring_kind == "all_gather" else ("context", "ring")  # gathered keys are the row's
    for phase in segment.phases:
        if isinstance(phase, Ring):
            phase = phase._replace(pieces=np.minimum(phase.pieces, least_ring))
        elif isinstance(phase, Exchange) and phase.op == "all_gather" and phase.axis in grows:
            phase = phase._replace(bytes=phase.bytes * (least_ring / degrees.ring))
        elif isinstance(phase, Passed):
            continue  # of fewer ranks it may take next to nothing
        phases.append(phase)
    last = None if segment.last is None else _with_ring(segment.last, least_ring, degrees)
    return segment._replace(phases=tuple(phases), last=last)


def _one_layer(policy: Policy) -> LayerRange:
    return policy if isinstance(policy, LayerRange) else LayerRange(recompute=policy, count=1)


def _full(value: Any, shape: tuple[int, ...]) -> Floats:
    """One entry for each layout."""
    return np.broadcast_to(np.asarray(value, dtype=np.float64), shape)


def _by_choice(values: Sequence[Any], shape: tuple[int, ...]) -> Floats:
    """The values of the choices along a last axis."""
    stacked = np.empty((*shape, len(values)))
    for place, value in enumerate(values):
        stacked[..., place] = value
    return stacked
