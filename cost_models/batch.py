"""Many strategies priced at once: the step of `price`, over arrays with one entry for each strategy.

    strategies -> groups that share layers, ring kind, stages and devices -> one fold of arrays for each group

Sizes, kernels, paths and memory are those of `price`, which the results equal. Seconds and bytes by part. Left out:
bytes sent and FLOP (`price` has them), and explicit placements: ranks lie in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from cost_models.cost import MEMORY, SECONDS, Memory
from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import check_placement
from cost_models.layer.sizes import RankSizes
from cost_models.memory.components import peak
from cost_models.memory.host import fullest_host, rank_host_bytes
from cost_models.pricing import fold
from cost_models.profile import Profile
from cost_models.step.assembly import step_program
from cost_models.strategy import VARIED, Axis, Strategy, axis_stride, sent_patterns, stacked
from cost_models.timing.cluster_costs import ClusterCosts, cluster_costs
from cost_models.timing.paths import Path, Paths
from cost_models.timing.slowest import KernelsInUse
from cost_models.workload import Workload

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BatchCost:
    """Entry i is the cost of strategy i."""

    seconds: Mapping[str, Floats]  # by part of SECONDS
    memory: Memory[Floats]  # by part of MEMORY, arrays
    capacity_bytes: Floats
    fits_host: NDArray[np.bool_]  # what is offloaded within the memory of every node

    @property
    def step_s(self) -> Floats:
        return np.sum(list(self.seconds.values()), axis=0)  # type: ignore[no-any-return]

    @property
    def memory_bytes(self) -> Floats:
        return self.memory.device_bytes

    @property
    def fits(self) -> NDArray[np.bool_]:
        return (self.memory_bytes <= self.capacity_bytes) & self.fits_host


def price_batch(
    cluster: Cluster,
    workload: Workload,
    strategies: Sequence[Strategy],
    profile: Profile | None = None,
    framework: Framework = OURS,
) -> BatchCost:
    """Cost of every strategy as `framework` runs it (not one whose owners send weights), ranks in order. Raises
    InputError if one of them cannot exist here.

    >>> from cost_models import Cluster, Model, Strategy, Workload
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    >>> several = [Strategy(ring=256 // u, ulysses=u, shard=256) for u in (1, 2, 4, 8)]
    >>> price_batch(Cluster.load("dgx-h100", nodes=32), work, several).step_s.argmin().item()
    3
    """
    here, count = cluster_costs(cluster, profile), len(strategies)
    runs_of = {}
    for ranks in {strategy.ranks for strategy in strategies}:
        check_placement(cluster, ranks, None)
        runs_of[ranks] = here.runs(ranks)
    groups: dict[tuple[tuple[int, ...], *tuple[object, ...]], list[int]] = defaultdict(list)
    by_stage = framework.sums_whole or framework.blocking_tensors  # what is sent differs in kind, not in size
    for index, strategy in enumerate(strategies):
        groups[runs_of[strategy.ranks], strategy.zero if by_stage else None, *_shared(strategy)].append(index)
    seconds = {name: np.zeros(count) for name in SECONDS}
    used: Memory[Floats] = Memory((name, np.zeros(count)) for name in MEMORY)
    capacity, fits_host = np.zeros(count), np.ones(count, dtype=bool)
    for (runs, *_), members in groups.items():
        mine = [strategies[index] for index in members]
        devices = here.devices(runs)
        capacity[members] = min(device.allocatable_bytes for device in devices)
        max(mine, key=lambda one: one.ulysses).check(workload.model)
        many = stacked(mine)
        sizes = RankSizes(workload, many, framework.on(devices[0]))
        kernels = KernelsInUse.afresh(here.kernels(runs, sizes.framework.measured_attention(workload)))
        ranges = mine[0].layer_ranges(workload.model.layers)
        program = step_program(sizes, kernels, ranges)
        for name, value in fold(program, _paths(here, runs, many)).seconds.items():
            seconds.setdefault(name, np.zeros(count))[members] = value
        for name, value in peak(sizes, ranges, devices[0]).items():
            used[name][members] = np.round(value)
        offloaded = np.broadcast_to(np.asarray(rank_host_bytes(sizes, ranges)), len(members))
        for index, one, size in zip(members, mine, offloaded, strict=True):
            need, has = fullest_host(cluster, runs, one.ranks, None, float(size))
            fits_host[index] = not has or need <= has
    return BatchCost(seconds=seconds, memory=used, capacity_bytes=capacity, fits_host=fits_host)


_shared = attrgetter(*(one.name for one in fields(Strategy) if one.name not in VARIED))
"""What all strategies of a group have in common."""


def _paths(here: ClusterCosts, runs: tuple[int, ...], many: Strategy) -> Paths:
    """Every axis as arrays; each distinct (stride, size, ranks) is read once."""
    axes: dict[Axis, Path] = {}
    for axis, patterns in sent_patterns(many).items():
        keys = np.stack(np.broadcast_arrays(*axis_stride(many, axis), many.ranks), axis=-1)
        distinct, where = np.unique(keys, axis=0, return_inverse=True)
        paths = [here.in_order(axis, patterns, *key) for key in distinct.tolist()]
        numbers = {name: np.array([getattr(path, name) for path in paths]) for name in Path.__struct_fields__}
        axes[axis] = Path(**{name: values[where.reshape(-1)] for name, values in numbers.items()})
    return here.assembled(runs, axes, many.ranks)
