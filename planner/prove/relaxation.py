"""The least seconds of a layout, by a relaxation of the proof's own, and which degrees there are.

    least = the step of every price with nothing recomputed, on each device that there is, under each sharding, where
            an exchange takes the least that the group's size allows, of D GPUs in the largest domain:
    inside      what the fastest link needs, if the group may lie in one domain
    all-to-all  at least half of a buffer leaves by a rank's card, of a group of P > D at least 1 - D / P
    ring        all of a buffer leaves by some rank's card; of rows of more than D ranks this or an all-to-all crosses
    gather      (P - 1) / P leave by all cards of a domain for P > D, else by at most P / 2 of them
    reduction   over R copies, of which k = D / P are in a domain: (R - 1) / R leave by at most k cards, twice by rings

Every card is the best one, latencies and protocols count nothing, leaves do not limit: so no placement takes less. What
memory limits is in `holding`. Seconds a step. Kernels and the folding of a step are those of every price; what groups
cross, and the legal degrees, are worked out here once more, without the search. Left out: tensor and pipeline degrees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.wiring import NIC_OUT
from cost_models.layer.sizes import RankSizes
from cost_models.number import Number, smaller
from cost_models.pricing import fold
from cost_models.program import Op
from cost_models.room import Room
from cost_models.step.assembly import step_program
from cost_models.strategy import Axis, LayerRange, Strategy, sent_patterns
from cost_models.timing.cluster_costs import ClusterCosts, cluster_costs
from cost_models.timing.paths import HOST_MEMORY_BYTES_PER_S, Path, Paths, busy_s, carried_s, crossing_s
from cost_models.timing.slowest import KernelsInUse, pace
from cost_models.workload import Workload
from planner.prove.holding import NO_ROOM_S, Held
from planner.prove.unlike import Together, blocks

AT_ONCE = 2000
"""Layouts priced together."""
NEVER = 1.0
"""Seconds per byte where there is no second domain: the way inside is faster."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Family(NamedTuple):
    """Layouts that differ in ring and sharding alone."""

    data: int
    microbatches: int
    ulysses: int


def families(cluster: Cluster, workload: Workload, fixed: Mapping[str, object]) -> dict[Family, tuple[int, int]]:
    """(first, last ring) of every family.

    >>> from cost_models import Model
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2**17)
    >>> families(Cluster.load("dgx-h100", nodes=1), work, {"ulysses": 4})
    {Family(data=1, microbatches=1, ulysses=4): (1, 2)}
    """
    batch, heads, train = workload.global_batch, workload.model.heads, workload.mode == "train"
    gpus = [0] * cluster.slots
    for slot, domain in enumerate(cluster.domain_of_slot.tolist()):
        gpus[domain] += int(cluster.gpus_of_slot[slot])
    found = {}
    for data in (d for d in range(1, min(batch, cluster.gpus) + 1) if batch % d == 0):
        rows = batch // data
        for micro in (m for m in range(1, (rows if train else 1) + 1) if rows % m == 0 or not train):
            for ulysses in range(1, min(heads, cluster.gpus) + 1):
                usual = ulysses <= max(gpus) or heads % ulysses == 0 or "ulysses" in fixed
                last = min(cluster.gpus // (data * ulysses), max(1, math.ceil(workload.context_tokens / 2) // ulysses))
                here = {"data": data, "microbatches": micro, "ulysses": ulysses}
                if not usual or last < 1 or any(fixed.get(name, value) != value for name, value in here.items()):
                    continue
                ring = fixed.get("ring")
                if ring is None or (isinstance(ring, int) and ring <= cluster.gpus // (data * ulysses)):
                    found[Family(**here)] = (1, last) if not isinstance(ring, int) else (ring, ring)
    return found


class Way(NamedTuple):
    """Levers of memory that all layers have, and how layers may recompute with them, the fastest policy first."""

    fields: Mapping[str, Any]  # of a strategy
    policies: tuple[LayerRange, ...]

    def possible(self, heads: int, of: Mapping[str, Ints]) -> Bools:
        """Which of these degrees can have the levers."""
        chunks, states = self.fields.get("attention_head_chunks", 1), self.fields.get("offload_states")
        by_rows = self.fields.get("attention_chunk_tokens") is not None
        fits: Bools = (heads // of["ulysses"] >= chunks) & ((of["zero"] == 3) | np.bool_(states != "all"))
        return np.logical_and(fits, of["ring"] == 1) if by_rows else fits


PLAIN = Way({}, (LayerRange(count=1),))


def least_s(
    cluster: Cluster,
    workload: Workload,
    held: Strategy,
    several: Sequence[tuple[Family, int]],
    framework: Framework = OURS,
    *,
    shard: int | None = None,
    ways: Sequence[Way] = (PLAIN,),
    room: Room | None = None,
    shares: bool = True,
    limit_s: float = NO_ROOM_S,
) -> Floats:
    """Of each (family, ring), as `framework` runs it; `held`: every other choice; `shard`: the only one there is;
    `room`: what a GPU may hold, or memory does not count; `shares`: whether unlike GPUs may have unequal ones;
    `limit_s`: of what takes longer in any case it is not told how much memory adds."""
    relaxed, least = _Relaxed(cluster_costs(cluster)), np.full(len(several), NO_ROOM_S)

    def layouts(of: Mapping[str, Any], way: Way) -> _Layouts:
        return _Layouts(relaxed, workload, replace(held, **way.fields, **of), way.policies, framework, shares)

    for at in range(0, len(several), AT_ONCE):
        degrees = _degrees(several[at : at + AT_ONCE], relaxed.most, shard)
        for way in ways:
            place, of = _taken(degrees, way.possible(workload.model.heads, degrees))
            floor = layouts(of, way).least_s(0) if len(place) else np.empty(0)
            open_ = (floor < np.minimum(least[at + place], limit_s)) & (room is not None)
            np.minimum.at(least, at + place[~open_], floor[~open_])
            if room is not None and open_.any():
                place, of = _taken({"place": place, **of}, open_)
                one = layouts(of, way)
                held_by = Held(one.sizes[0], one.every, relaxed.gpus, room, one.ranks)
                np.minimum.at(least, at + place, held_by.least_s(one.least_s))
    return least


def _taken(degrees: Mapping[str, Ints], some: Bools) -> tuple[Ints, dict[str, Ints]]:
    """(the places, the degrees) of some layouts."""
    found = {name: values[some] for name, values in degrees.items()}
    return found.pop("place"), found


def _degrees(several: Sequence[tuple[Family, int]], most: int, shard: int | None) -> dict[str, Ints]:
    """Degrees of every layout under every sharding, and its `place` among `several`."""
    rows = []
    for place, (family, ring) in enumerate(several):
        ranks = family.data * family.ulysses * ring
        near = next(size for size in range(min(ranks, most), 0, -1) if ranks % size == 0)
        for group in {ranks, near, ring * family.ulysses, 1} if shard is None else {shard if ranks % shard == 0 else 1}:
            rows += [(place, *family, ring, group, zero) for zero in ((3, 2) if group > 1 else (0,))]
    return dict(zip(("place", *Family._fields, "ring", "shard", "zero"), np.array(rows).T, strict=True))


class _Layouts:
    """Layouts with one way of saving memory: their programs, and what these take at the least."""

    def __init__(
        self, relaxed: _Relaxed, work: Workload, many: Strategy, policies: Sequence[LayerRange], framework: Framework,
        shares: bool,
    ) -> None:  # fmt: skip
        self.relaxed, self.ranks = relaxed, np.asarray(many.ranks)
        self.every = [replace(one, count=work.model.layers) for one in policies]
        self.sizes = [RankSizes(work, many, framework.on(device)) for device, _ in relaxed.gpus]
        costs, asked = relaxed.costs, framework.measured_attention(work)
        self.kernels = [KernelsInUse.afresh(costs.kernels((relaxed.runs[one],), asked)) for one in relaxed.first]
        cut = shares and many.attention_chunk_tokens is None and len(self.sizes) > 1
        self.blocks = [blocks(one) if cut else ([one], None) for one in self.sizes]
        crosses = itertools.product((False, True)[: relaxed.domains], repeat=2)
        self.paths = [relaxed.paths(many, *one) for one in crosses]

    def least_s(self, policy: int) -> Floats:
        """Of the step whose layers all have this policy."""
        ranges = (self.every[policy],)
        pairs = zip(self.blocks, self.kernels, strict=True)
        each = [[step_program(one, on, ranges) for one in several] for (several, _), on in pairs]
        counts, times = [count for _, count in self.relaxed.gpus], self.blocks[0][1]
        program = Together(gpus=counts, ranks=self.ranks, times=times).program(each) if len(each) > 1 else each[0][0]
        seconds = [np.broadcast_to(np.asarray(fold(program, on).total_s), self.ranks.shape) for on in self.paths]
        least: Floats = np.min(seconds, axis=0)
        return least


@dataclass(frozen=True, kw_only=True)
class _LeastPaths(Paths):
    """Exchanges at their least: inside a domain or out of it, whichever is faster, unless the group is too large."""

    def exchange_s(self, axis: Axis, op: Op, size: Number) -> Number:
        return self._least(op, self.axes[axis], size, crossing_s(op, self.axes[axis], size))

    def taken_s(self, axis: Axis, op: Op, size: Number) -> Number:
        path = self.axes[axis]
        taken = self._least(op, path, size, smaller(crossing_s(op, path, size), busy_s(op, path, size)))
        return taken if self.inside.many_channels else smaller(taken, carried_s(op, path, size))

    def shares_links(self, axis: Axis, other: Axis) -> Number:
        return (np.asarray(self.axes[axis].hops_out) > 0) & (np.asarray(self.axes[other].hops_out) > 0)

    def _least(self, op: Op, path: Path, size: Number, out: Number) -> Number:
        either = np.where(path.hops_out > 0, out, np.minimum(self.inside_s(op, path, size), out))
        return np.asarray(np.where(path.ranks > 1, either, 0.0))


class _Relaxed:
    """A cluster of which every domain, card and link is as good as the best one."""

    def __init__(self, costs: ClusterCosts) -> None:
        self.costs, cluster, rates = costs, costs.cluster, costs.rates
        self.runs = tuple(index for index, run in enumerate(cluster.runs) if run.node.gpus)
        self.nodes = costs.nodes(self.runs)
        self.most, self.domains = int(costs.wiring.domain_gpus.max()), len(costs.wiring.domain_gpus)
        self.card = max(float(rates.of_run[:, NIC_OUT].max()), 1.0)
        cards = np.array([run.node.nics.count for run in cluster.runs])[cluster.run_of_slot]
        self.all_cards = max(float(np.bincount(cluster.domain_of_slot, weights=cards).max()), 1.0) * self.card
        self.ring_share, self.all_to_all_share = float(rates.ring_share.max()), float(rates.all_to_all_share.max())

        devices = [node.device for node in self.nodes]
        self.first = [index for index, device in enumerate(devices) if devices.index(device) == index]
        of_run = [run.count * run.node.gpus for run in cluster.runs if run.node.gpus]
        self.gpus = [(devices[index], sum(many for many, device in zip(of_run, devices, strict=True)
                                          if device == devices[index])) for index in self.first]  # fmt: skip

    def paths(self, many: Strategy, ring: bool, shard: bool) -> Paths:
        """`ring`: of rows that no domain could hold the rings cross, else ulysses groups; `shard`: of shard groups that
        a domain could hold some crosses, else all lie inside domains."""
        ranks, large = np.asarray(many.ranks), np.asarray(many.context) > self.most
        axes: dict[Axis, Path] = dict.fromkeys(sent_patterns(many), Path(ranks=1, local=1))
        ulysses, rings = np.asarray(many.ulysses), np.asarray(many.ring)
        axes["ulysses"] = self._all_to_all(ulysses, large & (ulysses > 1) & (not ring))
        axes["ring"] = self._send(rings, large & (rings > 1) & ring)
        axes |= self._sharding(np.asarray(many.shard), ranks, shard)
        return _LeastPaths(
            axes=axes,
            inside=self.costs.links(self.runs, smaller),
            host_bytes_per_s=max(node.host_link_bytes_per_s for node in self.nodes),
            network_source="bound",
            host_memory_bytes_per_s=HOST_MEMORY_BYTES_PER_S / min(node.gpus for node in self.nodes),
            pace=reduce(smaller, (pace([device], ranks) for device, _ in self.gpus)),
        )

    def _path(self, members: Ints, crosses: Bools, **s_per_byte: Number) -> Path:
        """A group that must cross; or may, if there are two domains."""
        if self.domains == 1:
            s_per_byte = {name: np.full(np.shape(members), NEVER) for name in s_per_byte}
        local = np.where(crosses, 1, members)
        return Path(ranks=members, local=local, hops_out=np.where(crosses, 2, 0), **s_per_byte)

    def _all_to_all(self, members: Ints, crosses: Bools) -> Path:
        left = np.maximum(0.5, 1 - self.most / members) / self.card / self.all_to_all_share
        return self._path(members, crosses | (members > self.most), all_to_all_s_per_byte=left)

    def _send(self, members: Ints, crosses: Bools) -> Path:
        each = np.full(np.shape(members), 1 / self.card / self.ring_share)
        return self._path(members, crosses | (members > self.most), send_s_per_byte=each)

    def _sharding(self, shard: Ints, ranks: Ints, crosses: bool) -> dict[Axis, Path]:
        large, copies, rate = shard > self.most, ranks // shard, self.card * self.ring_share
        through = np.where(large, self.all_cards / self.card, np.maximum(shard // 2, 1))
        gather = (shard - 1) / shard / through / rate
        apart = large | crosses
        together = np.where(apart, self.most, np.maximum(self.most // shard, 1))
        out = (copies > together) | (~apart & (ranks > self.most))
        once = (copies - 1) / copies / together / rate
        summed = np.where(copies > 2 * together, 2 * once, 1 / together / self.card)
        return {
            "shard": self._path(shard, apart & (shard > 1), gather_s_per_byte=gather),
            "replicate": self._path(copies, out, gather_s_per_byte=once, all_reduce_s_per_byte=summed),
        }
