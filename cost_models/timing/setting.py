"""What a price needs of a cluster beside the strategy, worked out once for all strategies: kernels and paths.

    kernels   of the slowest device among those in use          paths   of every axis, from the placement

Without a placement ranks lie in order, and an axis is (stride, size): its groups are `arange(ranks)` cut in blocks of
stride x size. Strategies share most axes, so these paths are remembered. Left out: memory of explicit placements.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from cost_models.curves.samples import Sample
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.placement import Placement
from cost_models.profile import Profile
from cost_models.strategy import Strategy, axis_stride
from cost_models.timing.cluster_kernels import kernels_of
from cost_models.timing.kernels import Kernels
from cost_models.timing.load import samples_for
from cost_models.timing.paths import (
    Path,
    Paths,
    domain_link,
    group_paths,
    host_rates,
    network_source,
    paths_of,
    priced_patterns,
)
from cost_models.timing.remembered import RememberedKernels

MOST_PATHS = 20_000


class Setting:
    """Kernels and paths of one cluster under one profile.

    >>> here = setting(Cluster.load("dgx-h100", nodes=2), None)
    >>> here.paths(Strategy(ring=2, ulysses=8)).axes["ring"].hops_out
    2
    """

    def __init__(self, cluster: Cluster, profile: Profile | None) -> None:
        self.cluster = cluster
        self.samples: tuple[Sample, ...] = samples_for(profile, cluster)
        self._kernels: dict[tuple[int, ...], Kernels] = {}
        self._in_order: dict[tuple[str, int, int, int], Path] = {}

    def runs(self, ranks: int, placement: Placement | None = None) -> tuple[int, ...]:
        """Which runs of equal nodes are in use."""
        if placement is not None:
            return tuple(np.unique(self.cluster.run_of_slot[placement.slot_of_rank]).tolist())
        last = int(np.searchsorted(self._filled, ranks))
        return tuple(run for run in range(last + 1) if self.cluster.runs[run].node.gpus)

    def devices(self, runs: tuple[int, ...]) -> list[Device]:
        return [self.cluster.runs[run].node.device for run in runs]

    def kernels(self, runs: tuple[int, ...]) -> Kernels:
        """Of the slowest device among the `runs`."""
        if runs not in self._kernels:
            self._kernels[runs] = RememberedKernels(kernels_of(self.devices(runs), self.samples))
        return self._kernels[runs]

    def paths(self, strategy: Strategy, placement: Placement | None = None) -> Paths:
        """Of every axis, read off the placement (default: ranks in order)."""
        runs = self.runs(strategy.ranks, placement)
        slowest = min((self.cluster.runs[run].node.scale_up for run in runs), key=lambda link: link.reached_bytes_per_s)
        inside = domain_link(slowest, self.samples)
        if placement is not None:
            return paths_of(self.cluster, strategy, placement, inside, self.samples)
        axes = {
            axis: self.in_order(axis, patterns, *axis_stride(strategy, axis), strategy.ranks)
            for axis, patterns in priced_patterns(strategy).items()
        }
        host, memory = host_rates(self.cluster.runs[run].node for run in runs)
        return Paths(
            axes=axes,
            inside=inside,
            host_bytes_per_s=host,
            network_source=network_source(self.cluster, self.samples),
            host_memory_bytes_per_s=memory,
        )

    def in_order(self, axis: str, patterns: tuple[str, ...], stride: int, size: int, ranks: int) -> Path:
        """The path of one axis of ranks that lie in order."""
        key = (axis, stride, size, ranks)
        found = self._in_order.get(key)
        if found is None:
            if len(self._in_order) >= MOST_PATHS:
                self._in_order.clear()
            placement = Placement.in_order(self.cluster, ranks)
            groups = np.arange(ranks).reshape(-1, size, stride).swapaxes(1, 2).reshape(-1, size)
            found = group_paths(self.cluster, placement, groups, patterns, self.samples)
            self._in_order[key] = found
        return found

    @cached_property
    def _filled(self) -> list[int]:
        """Free GPUs up to and with each run."""
        filled: list[int] = np.cumsum([run.count * run.node.gpus for run in self.cluster.runs]).tolist()
        return filled


@lru_cache(maxsize=8)
def setting(cluster: Cluster, profile: Profile | None) -> Setting:
    """The setting of a cluster; the last few are remembered."""
    return Setting(cluster, profile)
