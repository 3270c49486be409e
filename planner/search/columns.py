"""Layouts on explicit placements, priced exactly: the columns of the integer program.

    layout (family, ring, shard, zero) -> placements -> paths of every axis -> seconds and bytes by policy

Placements that no axis can tell apart are one column. Columns that use the same kinds of nodes are priced in one go,
by the same functions as `pricing.price`, and so agree with it. Units: seconds, bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.placement import Placement
from cost_models.strategy import LayerRange, Recompute, Strategy
from cost_models.timing.cluster_costs import costs_of
from cost_models.timing.loads import axis_paths
from cost_models.timing.paths import AXIS_PATTERNS, Path
from planner.search.branch import Tree
from planner.search.placements import Placer
from planner.search.policy_prices import PolicyPrices, policy_prices

_Ints = NDArray[np.int64]
_FIELDS = (
    "ranks", "local", "all_to_all_s_per_byte", "send_s_per_byte", "gather_s_per_byte", "latency_s", "hops_out",
    "all_reduce_s_per_byte", "ring_latency_s", "tree_latency_s",
    "bus_all_to_all_s_per_byte", "bus_send_s_per_byte", "bus_gather_s_per_byte",
)  # fmt: skip
_SHARDED = ("shard", "replicate")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Degrees without layers: one row of the space."""

    family: int
    strategy: Strategy


@dataclass(frozen=True, kw_only=True, eq=False)
class PricedLayouts:
    """Priced columns: entry i is `layouts[i]` on `placements[i]`."""

    layouts: list[Layout]
    placements: list[Placement]
    prices: PolicyPrices
    capacity_bytes: NDArray[np.float64]
    crossing: NDArray[np.float64]  # load on the busiest NIC, summed over axes (seconds per byte): breaks ties
    complete: list[Layout]  # of these every placement was priced

    def take(self, where: _Ints) -> PricedLayouts:
        return replace(
            self,
            layouts=[self.layouts[i] for i in where],
            placements=[self.placements[i] for i in where],
            prices=self.prices.take(where),
            capacity_bytes=self.capacity_bytes[where],
            crossing=self.crossing[where],
        )

    def strategy(self, column: int, layers: Sequence[int]) -> Strategy:
        """The layout with its layers; those that recompute most come first, so that the last ones are freed first."""
        ranges = [
            LayerRange(recompute=policy, count=count)
            for policy, count in zip(self.prices.policies, layers, strict=True)
            if count
        ]
        return replace(self.layouts[column].strategy, layers=tuple(reversed(ranges)))

    def tie_key(self, column: int) -> tuple[Any, ...]:
        """Order of equally good columns: less crossing, more ulysses, then the smaller degrees."""
        one = self.layouts[column].strategy
        degrees = (one.data, one.ring, one.microbatches, -one.shard, -one.zero)
        return (float(f"{self.crossing[column]:.9e}"), -one.ulysses, *degrees)


class Pricer:
    """Lays layouts on one cluster and prices them."""

    def __init__(self, floors: Tree) -> None:
        self.floors, self.cluster = floors, floors.space.cluster
        self.costs = costs_of(self.cluster, floors.samples)
        self.placer = Placer(self.costs)

    def price(self, layouts: Sequence[Layout]) -> PricedLayouts:
        """Every layout on every placement that is worth it."""
        found: list[tuple[Layout, Placement]] = []
        features: list[NDArray[np.float64]] = []
        used: list[tuple[int, ...]] = []
        complete: list[Layout] = []
        shared: dict[tuple[int, int], Any] = {}
        for layout in layouts:
            strategy = layout.strategy
            key = (layout.family, strategy.ring)
            if key not in shared:
                shared[key] = self._place(strategy)
            placements, common, runs = shared[key]
            if placements.complete:
                complete.append(layout)
            if not len(placements.slots):
                continue
            table = self._features(strategy, placements, common)
            marked = np.concatenate([table, runs], axis=1)
            _, first = np.unique(marked, axis=0, return_index=True)
            for index in np.sort(first):
                placement = Placement(slot_of_rank=placements.slots[index], gpu_of_rank=placements.gpus[index])
                found.append((layout, placement))
                used.append(tuple(np.flatnonzero(runs[index]).tolist()))
                features.append(table[index])
        return self._price(found, features, used, complete)

    def _place(self, strategy: Strategy) -> tuple[Any, dict[str, Path], NDArray[np.bool_]]:
        """Placements, paths of the axes that sharding does not move, and the runs of nodes in use."""
        placements = self.placer.placements(strategy)
        axes = tuple(axis for axis in AXIS_PATTERNS if axis not in _SHARDED)
        slots = placements.slots
        runs = np.zeros((len(slots), len(self.cluster.runs)), dtype=bool)
        if not len(slots):
            return placements, {}, runs
        runs[np.arange(len(slots))[:, None], self.cluster.run_of_slot[slots]] = True
        paths = axis_paths(self.costs.rates, strategy, slots, placements.gpus, axes)
        return placements, paths, runs

    def _features(self, strategy: Strategy, placements: Any, common: dict[str, Path]) -> NDArray[np.float64]:
        """All path numbers of all axes, (placements, axes x fields)."""
        paths = dict(common)
        more = axis_paths(self.costs.rates, strategy, placements.slots, placements.gpus, _SHARDED)
        paths.update(more)
        rows = [getattr(paths[axis], name) for axis in AXIS_PATTERNS for name in _FIELDS]
        return np.nan_to_num(np.stack(rows, axis=1).astype(np.float64))

    def _price(
        self,
        found: list[tuple[Layout, Placement]],
        features: list[NDArray[np.float64]],
        used: list[tuple[int, ...]],
        complete: list[Layout],
    ) -> PricedLayouts:
        count, policies = len(found), self.floors.space.policies
        table = np.array(features).reshape(count, len(AXIS_PATTERNS), len(_FIELDS))
        prices: list[tuple[_Ints, PolicyPrices]] = []
        capacity = np.zeros(count)
        for runs in sorted(set(used)):
            mine = np.array([i for i in range(count) if used[i] == runs], dtype=np.int64)
            devices = self.costs.devices(runs)
            capacity[mine] = min(device.memory_bytes for device in devices)
            paths = self.costs.assembled(runs, self._axes(table[mine]))
            layouts = [found[i][0] for i in mine]
            degrees = self.floors.degrees(
                np.array([layout.family for layout in layouts]),
                np.array([layout.strategy.ring for layout in layouts]),
                np.array([layout.strategy.shard for layout in layouts]),
                np.array([layout.strategy.zero for layout in layouts]),
            )
            workload = self.floors.space.workload
            priced = policy_prices(workload, degrees, self.costs.kernels(runs), paths, policies, devices[0])
            prices.append((mine, priced))
        crossing = table[:, :, 2:5].max(axis=2).sum(axis=1) if count else np.zeros(0)
        return PricedLayouts(
            layouts=[layout for layout, _ in found],
            placements=[placement for _, placement in found],
            prices=_joined(prices, count, policies, self.floors.space.workload.model.layers),
            capacity_bytes=capacity,
            crossing=crossing,
            complete=complete,
        )

    def _axes(self, table: NDArray[np.float64]) -> dict[str, Path]:
        return {
            axis: Path(
                **{
                    name: table[:, a, f].astype(np.int64) if name in ("ranks", "local", "hops_out") else table[:, a, f]
                    for f, name in enumerate(_FIELDS)
                }
            )
            for a, axis in enumerate(AXIS_PATTERNS)
        }


def _joined(
    parts: list[tuple[_Ints, PolicyPrices]], count: int, policies: tuple[Recompute, ...], layers: int
) -> PolicyPrices:
    """Columns of several groups in the order of their indices."""
    arrays = {}
    for name, shape in (
        ("other_s", ()),
        ("layer_s", (len(policies),)),
        ("base_bytes", ()),
        ("kept_bytes", (len(policies),)),
        ("again_bytes", (len(policies),)),
    ):
        arrays[name] = np.zeros((count, *shape))
        for where, part in parts:
            arrays[name][where] = getattr(part, name)
    return PolicyPrices(policies=policies, layers=layers, **arrays)


def join(left: PricedLayouts | None, right: PricedLayouts) -> PricedLayouts:
    """PolicyPrices of both, in order."""
    if left is None:
        return right
    count = len(left.layouts)
    total = count + len(right.layouts)
    parts = [(np.arange(count), left.prices), (np.arange(count, total), right.prices)]
    return PricedLayouts(
        layouts=left.layouts + right.layouts,
        placements=left.placements + right.placements,
        prices=_joined(parts, total, left.prices.policies, left.prices.layers),
        capacity_bytes=np.concatenate([left.capacity_bytes, right.capacity_bytes]),
        crossing=np.concatenate([left.crossing, right.crossing]),
        complete=left.complete + right.complete,
    )
