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
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.wiring import NIC_OUT
from cost_models.layer.sizes import RankSizes
from cost_models.number import Number, smaller
from cost_models.pricing import fold
from cost_models.program import Op
from cost_models.room import Room
from cost_models.step.assembly import step_program
from cost_models.strategy import Axis, LayerRange, Recompute, Strategy, sent_patterns, stacked
from cost_models.timing.cluster_costs import ClusterCosts, cluster_costs
from cost_models.timing.paths import HOST_MEMORY_BYTES_PER_S, Path, Paths, busy_s, crossing_s
from cost_models.timing.slowest import KernelsInUse, pace
from cost_models.workload import Workload
from planner.prove.holding import Held

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


def least_s(
    cluster: Cluster,
    workload: Workload,
    held: Strategy,
    several: Sequence[tuple[Family, int]],
    framework: Framework = OURS,
    shard: int | None = None,
    policies: Sequence[Recompute] = ("none",),
    room: Room | None = None,
) -> Floats:
    """Of each (family, ring), as `framework` runs it; `held`: every other choice; `shard`: the only one there is;
    `policies`: how layers may recompute, the fastest first; `room`: what a GPU may hold, or memory does not count."""
    relaxed = _Relaxed(cluster_costs(cluster))
    return np.concatenate(
        [
            _least(relaxed, workload, held, several[at : at + AT_ONCE], framework, shard, policies, room)
            for at in range(0, len(several), AT_ONCE)
        ]
    )


def _least(
    relaxed: _Relaxed,
    workload: Workload,
    held: Strategy,
    several: Sequence[tuple[Family, int]],
    framework: Framework,
    shard: int | None,
    policies: Sequence[Recompute],
    room: Room | None,
) -> Floats:
    least = np.full(len(several), np.inf)
    ranks = [family.data * family.ulysses * ring for family, ring in several]
    for sharding in ("ranks", "domain", "context", "one") if shard is None else ("pinned",):
        for stage in (3, 2) if sharding != "one" else (0,):
            layouts = []
            for (family, ring), count in zip(several, ranks, strict=True):
                near = next(size for size in range(min(count, relaxed.most), 0, -1) if count % size == 0)
                of = {"ranks": count, "domain": near, "context": ring * family.ulysses, "one": 1, "pinned": shard or 1}
                group = of[sharding] if count % of[sharding] == 0 else 1
                zero = stage if group > 1 else 0
                layouts.append(replace(held, ring=ring, shard=group, zero=zero, **family._asdict()))
            many = stacked(layouts)
            for run, device in relaxed.devices:
                sizes = RankSizes(workload, many, framework.on(device))
                kernels = KernelsInUse.afresh(relaxed.costs.kernels((run,), framework.measured_attention(workload)))
                alone = [(LayerRange(recompute=one, count=workload.model.layers),) for one in policies]
                program = cache(lambda i, s=sizes, k=kernels, a=alone: step_program(s, k, a[i]))
                holds = room and Held(sizes, policies, device, room, len(several))
                for crosses in itertools.product((False, True)[: relaxed.domains], repeat=2):
                    paths = relaxed.paths(many, device, *crosses)
                    seconds = partial(lambda p, on, i: fold(p(i), on).total_s, program, paths)
                    least = np.minimum(least, holds.least_s(seconds) if holds else seconds(0))
    return least


@dataclass(frozen=True, kw_only=True)
class _LeastPaths(Paths):
    """Exchanges at their least: inside a domain or out of it, whichever is faster, unless the group is too large."""

    def exchange_s(self, axis: Axis, op: Op, size: Number) -> Number:
        return self._least(op, self.axes[axis], size, crossing_s(op, self.axes[axis], size))

    def taken_s(self, axis: Axis, op: Op, size: Number) -> Number:
        path = self.axes[axis]
        return self._least(op, path, size, smaller(crossing_s(op, path, size), busy_s(op, path, size)))

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

    @property
    def devices(self) -> list[tuple[int, Device]]:
        """Each device, with a run of nodes that have it."""
        found: list[tuple[int, Device]] = []
        for run, node in zip(self.runs, self.nodes, strict=True):
            if all(node.device != device for _, device in found):
                found.append((run, node.device))
        return found

    def paths(self, many: Strategy, device: Device, ring: bool, shard: bool) -> Paths:
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
            pace=pace([device], ranks),
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
