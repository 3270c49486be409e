"""What prices on one cluster share, worked out once: its wiring and rates, kernels, links and paths.

    kernels, links   of the slowest device and link among the nodes in use, for each call
    paths            of every axis, from the placement

Without a placement ranks lie in order, and an axis is (stride, size): its groups are `arange(ranks)` cut in blocks of
stride x size. Strategies share most axes, so these paths are remembered; of explicit placements those of the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.curves.samples import Sample
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.node import Node
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import LinkRates, Wiring
from cost_models.number import Number, distinct, larger
from cost_models.profile import Profile, network
from cost_models.strategy import Axis, Strategy, axis_stride, sent_patterns
from cost_models.timing.collectives import Collectives
from cost_models.timing.loads import Loads
from cost_models.timing.paths import Path, Paths, domain_link, host_rates, reached
from cost_models.timing.profile_samples import samples_for
from cost_models.timing.slowest import Choice, KernelsInUse, LinksInUse, pace

MOST_PATHS = 20_000


class ClusterCosts:
    """
    >>> costs = cluster_costs(Cluster.load("dgx-h100", nodes=2))
    >>> costs.paths(Strategy(ring=2, ulysses=8)).axes["ring"].hops_out
    2
    """

    def __init__(self, cluster: Cluster, samples: tuple[Sample, ...] = ()) -> None:
        self.cluster, self.samples = cluster, samples
        self._kernels: dict[tuple[tuple[int, ...], str, Choice], KernelsInUse] = {}
        self._links: dict[tuple[tuple[int, ...], Choice], Collectives] = {}
        self._in_order: dict[tuple[str, int, int, int], Path] = {}
        self._read: tuple[Placement | None, dict[Strategy, dict[Axis, Path]]] = (None, {})  # paths of the last one

    @cached_property
    def wiring(self) -> Wiring:
        return Wiring(self.cluster)

    @cached_property
    def rates(self) -> LinkRates:
        """What large messages reach on every link."""
        return reached(self.wiring, self.samples)

    def runs(self, ranks: int, placement: Placement | None = None) -> tuple[int, ...]:
        """Which runs of equal nodes are in use."""
        if placement is not None:
            return tuple(distinct(self.cluster.run_of_slot[placement.slot_of_rank]).tolist())
        last = int(np.searchsorted(self._filled, ranks))
        return tuple(run for run in range(last + 1) if self.cluster.runs[run].node.gpus)

    def nodes(self, runs: tuple[int, ...]) -> list[Node]:
        return [self.cluster.runs[run].node for run in runs]

    def devices(self, runs: tuple[int, ...]) -> list[Device]:
        return [node.device for node in self.nodes(runs)]

    @cached_property
    def first_alike(self) -> NDArray[np.int64]:
        """Of each run the first one with the same device."""
        devices = [run.node.device for run in self.cluster.runs]
        return np.array([devices.index(device) for device in devices])

    def kernels(self, runs: tuple[int, ...], attention: str, choose: Choice = larger) -> KernelsInUse:
        """Of the slowest device among the `runs`, with a framework's attention kernel."""
        key = (runs, attention, choose)
        if key not in self._kernels:
            self._kernels[key] = KernelsInUse.of_devices(self.devices(runs), self.samples, choose, attention)
        return self._kernels[key]

    def links(self, runs: tuple[int, ...], choose: Choice = larger) -> Collectives:
        """Inside the scale-up domains of the `runs`: for each call the slowest kind of link."""
        if (runs, choose) not in self._links:
            links = {node.scale_up: domain_link(node.scale_up, self.samples) for node in self.nodes(runs)}
            self._links[runs, choose] = LinksInUse.of_links(links.values(), choose)
        return self._links[runs, choose]

    def paths(self, strategy: Strategy, placement: Placement | None = None, sums_gradients: bool = False) -> Paths:
        """Of every axis, read off the placement (default: ranks in order); `sums_gradients`: also of `gradient`."""
        patterns, ranks = sent_patterns(strategy, sums_gradients), strategy.ranks
        if placement is None or placement.is_in_order(self.cluster):
            axes = {a: self.in_order(a, patterns[a], *axis_stride(strategy, a), ranks) for a in patterns}
            return self.assembled(self.runs(ranks), axes, ranks)
        if placement is not self._read[0]:
            self._read = placement, {}
        known, degrees = self._read[1], replace(strategy, layers=(), token_shares=())
        if degrees not in known or known[degrees].keys() != patterns.keys():
            loads = Loads(self.rates, placement.slot_of_rank[None, :], placement.gpu_of_rank[None, :])
            known[degrees] = {axis: _first(path) for axis, path in loads.paths(strategy, patterns).items()}
        return self.assembled(self.runs(ranks, placement), known[degrees], ranks)

    def assembled(self, runs: tuple[int, ...], axes: Mapping[Axis, Path], ranks: Number) -> Paths:
        """Paths of axes whose so many ranks lie on nodes of the `runs`."""
        host, memory = host_rates(self.nodes(runs))
        return Paths(
            axes=dict(axes),
            inside=self.links(runs),
            host_bytes_per_s=host,
            network_source=self.network_source,
            host_memory_bytes_per_s=memory,
            pace=pace(self.devices(runs), ranks),
            copies_share=all(node.scale_up.copies_share for node in self.nodes(runs)),
        )

    def in_order(self, axis: Axis, patterns: tuple[str, ...], stride: int, size: int, ranks: int) -> Path:
        """The path of one axis of ranks that lie in order."""
        key = (axis, stride, size, ranks)
        path = self._in_order.get(key)
        if path is None:
            if len(self._in_order) >= MOST_PATHS:
                self._in_order.clear()
            placement = Placement.in_order(self.cluster, ranks)
            groups = np.arange(ranks).reshape(-1, size, stride).swapaxes(1, 2).reshape(-1, size)
            loads = Loads(self.rates, placement.slot_of_rank[None, :], placement.gpu_of_rank[None, :])
            path = self._in_order[key] = _first(loads.path(groups, patterns))
        return path

    @cached_property
    def network_source(self) -> str:
        """Where the rates between nodes come from, in words."""
        if network(self.samples):
            return "network: rate and latency of one pair of nodes in the profile, extrapolated to all"
        cards = dict.fromkeys(run.node.nics for run in self.cluster.runs)
        shares = dict.fromkeys(
            f"{nics.reached_bytes_per_s / nics.bytes_per_s:.0%} of the line rate of {nics.kind}"
            + ("" if nics.gpudirect else " through host memory")
            for nics in cards
        )
        return f"network: {', '.join(shares)} and the stated latency, not measured here"

    @cached_property
    def _filled(self) -> list[int]:
        """Free GPUs up to and with each run."""
        filled: list[int] = np.cumsum([run.count * run.node.gpus for run in self.cluster.runs]).tolist()
        return filled


def _first(several: Path) -> Path:
    """The path of the first of several placements, as plain numbers."""
    return Path(**{name: getattr(several, name)[0].item() for name in Path.__struct_fields__})


@lru_cache(maxsize=8)
def cluster_costs(cluster: Cluster, profile: Profile | None = None) -> ClusterCosts:
    """The costs of a cluster under a profile; the last few are remembered."""
    return costs_of(cluster, samples_for(profile, cluster))


@lru_cache(maxsize=8)
def costs_of(cluster: Cluster, samples: tuple[Sample, ...] = ()) -> ClusterCosts:
    """The same object, by the samples that speak for the cluster."""
    return ClusterCosts(cluster, samples)
