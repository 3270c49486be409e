"""What no layout of unlike GPUs is priced below, whatever share of a row each position of its ring has.

    c_pd   least seconds of phase p for a mean block's tokens on device d: time for a token falls with the block, which
           is at most what d computes within the value to beat
    n_d    positions of the ring on devices as fast as d alone: ranks of one position have one share
    step   >= pace x min over x of Σ_p max_d c_pd x_d  +  N       with Σ_d n_d x_d = all tokens      a linear program
           >= fold of the phases, each at its own best shares                      what computation hides counts, too
    N      what is sent and no amount of computation in the layers hides, nor the most of it outside of them, on the
           paths of each region of placements

The linear program is bounded from below by its dual: any weights λ_pd with Σ_d λ_pd = 1 do, good ones are bisected.
Seconds, or the objective's unit. Left out: hops that outlast the blocks of a ring, and what memory adds to the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from msgspec import structs

from cost_models.layer.sizes import Block, RankSizes
from cost_models.pricing import fold
from cost_models.program import Compute, Exchange, Phase, Ring, Segment, Staged, StepProgram
from cost_models.step.assembly import step_program
from cost_models.strategy import VARIED, Axis, LayerRange, Strategy
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.paths import Paths
from cost_models.timing.slowest import KernelsInUse, pace
from planner.search.branch import Tree
from planner.search.layout_prices import policy_prices
from planner.search.objective import Objective, weight
from planner.search.optimistic_paths import Reach
from planner.search.policy_prices import parts_of
from planner.search.region_bounds import RegionBounds
from planner.search.regions import Floats, Ints, Layouts
from planner.search.space import Space

MOST_LAYOUTS = 100_000
"""Of a space with more (sharding not counted) there is no bound of any shares."""
SHRINKS = 4
"""Times that a device's largest block is cut to what it computes within the value to beat."""
SHARP = 5000.0
"""A phase that two devices finish within 1 / SHARP of each other counts for both in the weights, else for the later."""
HALVINGS = 45
HIDES_S = 1e4
"""What is sent and still exposed where each phase of the layers computes for so long is never hidden."""


def least_with_any_shares(
    space: Space, objective: Objective, costs: ClusterCosts, value: float, levers: bool
) -> float | None:
    """At most `value`, and no layout of the space is below it; `None`: there are too many layouts. `levers`: also none
    with levers of memory, which only cost time, so that no recompute is counted."""
    tree = Tree(space, objective, costs)
    if tree.layouts > MOST_LAYOUTS:
        return None
    family, ring = np.array([(at, ring) for at, one in enumerate(tree.families)
                             for ring in range(one.first_ring, one.most_ring + 1)]).T  # fmt: skip
    ranks = tree.data[family] * tree.ulysses[family] * ring
    layouts, limit = tree.strategies(family, ring, ranks, np.full_like(ring, 3)), value / weight(objective, ranks)
    open_ = _Unlike(space, costs, layouts, *_devices(costs, 1), limit).computed_s() < limit
    branches, legal = tree.unbounded(
        [(int(at), int(of), int(of)) for at, of in np.stack([family, ring], axis=1)[open_]]
    )
    several = [tree.strategy(branches, *map(int, one)) for one in np.argwhere(legal)]
    if not several:
        return value
    memory = not levers and len(set(space.workload.model.layer_kinds)) == 1
    paid = weight(objective, np.array([one.ranks for one in several]))
    regional = _Regional.of(space, tree.reach)
    if isinstance(regional, _Regional):
        regional.limit_s, regional.memory = value / paid, memory
        least = regional.bounds(several).bound
    else:
        least = _anywhere(space, tree.reach, several, value / paid, memory)
    return float(min(value, (least * paid).min()))


def _devices(costs: ClusterCosts, axes: int) -> tuple[tuple[int, ...], Ints]:
    """(a run of nodes with each device, GPUs of that, with further axes)."""
    gpus: dict[int, int] = {}
    for first, run in zip(costs.first_alike.tolist(), costs.cluster.runs, strict=True):
        if run.node.gpus:
            gpus[first] = gpus.get(first, 0) + run.count * run.node.gpus
    return tuple(gpus), np.array([*gpus.values()]).reshape(-1, *[1] * axes)


def _anywhere(space: Space, reach: Reach, several: Sequence[Strategy], limit_s: Floats, memory: bool) -> Floats:
    """Of layouts wherever they lie."""
    many = {name: np.array([getattr(one, name) for one in several])[:, None] for name in VARIED}
    layouts = Layouts(data=many["data"], ring=many["ring"], ulysses=many["ulysses"], shard=many["shard"])
    sizes: dict[Axis, Ints] = {"ulysses": layouts.ulysses, "ring": layouts.ring, "context": layouts.context,
                               "shard": layouts.shard, "replicate": layouts.replicate}  # fmt: skip
    paths, limit_s = reach.paths(sizes, layouts.ranks), limit_s[:, None]
    unlike = _Unlike(space, reach.costs, space.base.varied(**many), *_devices(reach.costs, 2), limit_s, paths)
    least: Floats = unlike.least_s(memory).min(axis=1)
    return least


class _Regional(RegionBounds):
    """Bounds by region where devices of one region may be unlike."""

    limit_s: Floats  # of each layout
    memory: bool

    def _seconds(self, many: dict[str, Ints], layout: Ints, region: Ints, paths: Paths) -> Floats:
        kinds, firsts = self.regions.kinds, self.costs.first_alike
        device = np.array([firsts[runs[0]] for runs in kinds.runs])
        firsts = np.unique(device[self.regions.used[region[0]]])
        gpus = (self.regions.used[region] * kinds.count * kinds.gpus) @ (device[:, None] == firsts)
        degrees = {name: value[layout][:, None] for name, value in many.items()}
        unlike = _Unlike(
            self.space, self.costs, self.space.base.varied(**degrees), tuple(firsts.tolist()), gpus.T[:, :, None],
            self.limit_s[layout][:, None], paths,
        )  # fmt: skip
        least: Floats = unlike.least_s(self.memory).min(axis=-1)
        return least


class _Unlike:
    """Layouts, one strategy of arrays, on so many `gpus` of each device, that of a node of each of `runs`; results have
    the shape of the layouts, and `gpus` (devices, that shape or one that broadcasts to it)."""

    def __init__(
        self, space: Space, costs: ClusterCosts, layouts: Strategy, runs: tuple[int, ...], gpus: Ints, limit_s: Floats,
        paths: Paths | None = None,
    ) -> None:  # fmt: skip
        self.space, work, code = space, space.workload, space.target.code
        several = costs.devices(runs)
        asked = code.measured_attention(work)
        self.gpus = gpus
        self.kernels = [KernelsInUse.afresh(costs.kernels((run,), asked)) for run in runs]
        self.sizes = [RankSizes(work, layouts, code.on(device)) for device in several]
        self.ring, self.together = np.asarray(layouts.ring), np.asarray(layouts.data * layouts.ulysses)
        self.mean = np.asarray(self.sizes[0].ring_tokens)
        self.blocks = work.context_tokens / self.mean  # of a row without its padding, in mean ones
        self.pace = np.asarray(pace(several, np.asarray(layouts.ranks)))
        layers = work.model.layers
        self.layers = [(LayerRange(recompute=again, offload=offload, count=layers),)
                       for again, offload in map(parts_of, space.policies)]  # fmt: skip
        self.paths, self.program = paths, step_program(self.sizes[0], self.kernels[0], self.layers[0])
        self.hides_s: list[Any] = [HIDES_S for _ in _phases(self.program)]
        left_s = limit_s - self._sent_s(1.0).min(axis=-1, keepdims=True)
        self.smallest, self.budget_s = np.asarray(layouts.ulysses) / self.mean, np.maximum(left_s, 0.0) / self.pace
        self.largest = [self._largest_block(place) for place in range(len(runs))]
        self.rates = self._rates(0)
        self.total = self.rates.sum(axis=0)
        self.hides_s = self._hides_s()
        self.apart = self._apart()

    def computed_s(self) -> Floats:
        """Of the computation alone, whatever memory there is."""
        return np.asarray(self.apart.sum(axis=0) * self.pace)

    def least_s(self, memory: bool) -> Floats:
        """With what is sent, and if `memory` with what that asks; the paths may have a further last axis."""
        assert self.paths is not None
        most = self._most()
        times = [np.maximum(many, 1) for many, _ in _phases(self.program)]
        each = [seconds / many for seconds, many in zip(self.apart, times, strict=True)]
        apart = fold(_retimed(self.program, iter(each), most), self.paths).total_s
        least = np.maximum(apart, self.pace * self._as_one(self.rates) + self._sent_s(most))
        return self._in_memory(least, most, self.paths) if memory else np.asarray(least)

    def _sent_s(self, most: Any) -> Floats:
        """N, with blocks of at least `most` mean ones in some ulysses group. What layers send hides behind any time."""
        if self.paths is None:
            return np.zeros(np.shape(self.pace))
        times = [many for many, _ in _phases(self.program)]
        total = fold(_retimed(self.program, iter(self.hides_s), most), self.paths).total_s
        computed = sum(many * each for many, each in zip(times, self.hides_s, strict=True))
        return np.asarray(total - self.pace * computed)

    def _hides_s(self) -> list[Any]:
        """Of each phase outside the layers the most that the rates give it, with each device's largest block: as long
        as that, or less, is what the linear program counts of it."""
        largest = (self.rates * np.stack(self.largest)).max(axis=1)
        phases = [(segment, many) for segment, many in _segments(self.program) for one in segment.phases
                  if isinstance(one, Compute | Ring | Staged)]  # fmt: skip
        return [one / np.maximum(many, 1) if segment.kind is None else HIDES_S
                for one, (segment, many) in zip(largest, phases, strict=True)]  # fmt: skip

    def _in_memory(self, least: Floats, most: Floats, paths: Paths) -> Floats:
        """With layers in fractions as the memory of the fastest device asks, whose blocks are at least `most`."""
        layers, first = self.layers[0][0].count, self._as_one(self.rates)
        added = [self.pace * (self._as_one(self._rates(at)) - first) / layers for at in range(len(self.layers))]
        found = least
        for place, (sizes, kernels) in enumerate(zip(self.sizes, self.kernels, strict=True)):
            held = policy_prices(
                self.space.workload, sizes.degrees, kernels, paths, self.space.policies, kernels.device,
                framework=self.space.target.code, timed=False,
            )  # fmt: skip
            shape = held.other_s.shape
            held = structs.replace(
                held,
                other_s=np.broadcast_to(least, shape),
                layer_s=np.stack([np.broadcast_to(one, shape) for one in added], axis=-1),
                kept_bytes=held.kept_bytes * most[..., None, None],
            )
            room = self.space.room.limit_bytes(kernels.device.allocatable_bytes)
            fastest = (self.total.argmin(axis=0) == place) & (most > 1)
            found = np.where(fastest, held.relaxed_s(np.full(shape, room)), found)
        return np.asarray(found)

    def _most(self) -> Floats:
        """The least that the blocks of the fastest device are, in mean ones, as no other's is above its largest."""
        counts, order = self._positions(self.total), self.total.argsort(axis=0, kind="stable")
        counts, largest = (np.take_along_axis(of, order, axis=0) for of in (counts, np.stack(self.largest)))
        others, fast = counts[1:] * largest[1:], counts[0]
        most = (self.blocks - others.sum(axis=0)) / np.maximum(fast, 1)
        slow = np.where(counts[1:] > 0, largest[1:], 0.0).max(axis=0, initial=0.0)
        return np.where((fast > 0) & (most >= slow) & (most > 1), most, 1.0)

    def _largest_block(self, place: int) -> Floats:
        """In mean ones, what a device can compute within the value to beat: time for a token falls with the block."""
        most = self.ring * 1.0
        for _ in range(SHRINKS):
            rates = self._rates_on(place, 0, most).sum(axis=0)
            most = np.minimum(most, self.budget_s / rates)
        return most

    def _rates(self, policy: int) -> Floats:
        """c: seconds of a step for a mean block's tokens, all layers by one policy; (phases, devices, ...)."""
        return np.stack([self._rates_on(at, policy, most) for at, most in enumerate(self.largest)], axis=1)

    def _rates_on(self, place: int, policy: int, most: Floats) -> Floats:
        """The same on one device with blocks of so many mean ones."""
        tokens: Any = np.ceil(self.mean * np.maximum(most, self.smallest)).astype(np.int64)
        others = (self.mean * self.ring - tokens) // np.maximum(self.ring - 1, 1)
        here = replace(self.sizes[place], block=Block(tokens, np.maximum(others, 0), tokens, 1.0))
        program = step_program(here, self.kernels[place], self.layers[policy])
        held = tokens / self.mean
        return np.array([np.broadcast_to(np.asarray(many * each / held, dtype=np.float64), np.shape(most))
                         for many, each in _phases(program)])  # fmt: skip

    def _positions(self, seconds: Floats) -> Floats:
        """n: of each device, those that are faster filled first; `seconds` and result (devices, ...)."""
        order = seconds.argsort(axis=0, kind="stable")
        gpus = np.take_along_axis(np.broadcast_to(self.gpus, order.shape), order, axis=0).cumsum(axis=0)
        filled = np.minimum(gpus // self.together, self.ring)
        filled[-1] = self.ring
        counts = np.empty(seconds.shape)
        np.put_along_axis(counts, order, np.diff(filled, axis=0, prepend=0) * 1.0, axis=0)
        return counts

    def _apart(self) -> Floats:
        """Seconds of each phase with the shares that are best for it alone; (phases, ...)."""
        several = []
        for each in self.rates:
            speed = (self._positions(each) / np.maximum(each, 1e-300)).sum(axis=0)
            several.append(np.where(each.max(axis=0) > 0, self.blocks / speed, 0.0))
        return np.array(several)

    def _as_one(self, rates: Floats) -> Floats:
        """Seconds of all phases with one share for all, at least; without regard to that where no device is faster
        than another in every phase."""
        total = rates.sum(axis=0)
        counts, order = self._positions(total), total.argsort(axis=0, kind="stable")
        rising = np.take_along_axis(rates, order[None], axis=1)
        ordered = (np.diff(rising, axis=1) >= 0).all(axis=(0, 1))
        share = 1 / total
        for one in [*range(1, len(total))] * (len(total) - 1):
            low, high = share[one] / 8, share[one] * 8
            for _ in range(HALVINGS):
                share[one] = np.sqrt(low * high)
                weighed = self._weighed(rates, share, counts)
                more = weighed[one] < np.delete(weighed, one, axis=0).min(axis=0)
                low, high = np.where(more, share[one], low), np.where(more, high, share[one])
        least = self.blocks * self._weighed(rates, share, counts).min(axis=0)
        return np.where(ordered, least, 0.0)

    @staticmethod
    def _weighed(rates: Floats, share: Floats, counts: Floats) -> Floats:
        """Σ_p λ_pd c_pd / n_d with the weights λ of these shares; infinite for devices without positions."""
        used = counts > 0
        took = np.where(used, rates * share, 0.0)
        weights = np.where(used, (took / np.maximum(took.max(axis=1, keepdims=True), 1e-300)) ** SHARP, 0.0)
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        return np.asarray(np.where(used, (weights * rates).sum(axis=0) / np.maximum(counts, 1), np.inf))


def _segments(program: StepProgram) -> Iterator[tuple[Segment, Any]]:
    """Each with its repeats in a step, in the order of `_retimed`."""
    for segment in program.microbatch:
        yield segment, (program.microbatches - (segment.last is not None)) * segment.repeat
        if segment.last is not None:
            yield segment.last, segment.repeat
    for segment in program.epilogue:
        yield segment, segment.repeat


def _phases(program: StepProgram) -> Iterator[tuple[Any, Any]]:
    """(times, seconds once) of all that is computed; of a ring or staged attention as a whole."""
    for segment, times in _segments(program):
        for one in segment.phases:
            if isinstance(one, Compute):
                yield times, one.seconds
            elif isinstance(one, Ring):
                yield times, one.first_s + (one.pieces - 1) * one.piece_s
            elif isinstance(one, Staged):
                yield times, one.blocks * one.seconds


def _retimed(program: StepProgram, seconds: Iterator[Any], most: Any) -> StepProgram:
    """With other seconds for `_phases`; a ring computes its first block alone and sends what nothing hides, ulysses
    groups exchange a block of `most` mean ones."""

    def phase(one: Phase) -> Phase:
        if isinstance(one, Compute):
            return one._replace(seconds=next(seconds))
        if isinstance(one, Ring):
            pieces = np.minimum(one.pieces, 2)
            return one._replace(pieces=pieces, first_s=next(seconds), piece_s=0.0, hop_bytes=0.0, double=False)
        if isinstance(one, Exchange) and one.axis == "ulysses":
            return one._replace(bytes=one.bytes * most)
        return one._replace(seconds=next(seconds) / one.blocks) if isinstance(one, Staged) else one

    def segment(one: Segment) -> Segment:
        phases = tuple(phase(each) for each in one.phases)
        return one._replace(phases=phases, last=None if one.last is None else segment(one.last))

    microbatch = tuple(segment(one) for one in program.microbatch)
    return replace(program, microbatch=microbatch, epilogue=tuple(segment(one) for one in program.epilogue))
