"""Layouts on explicit placements, priced exactly: the columns of the integer program.

    strategy without layers -> placements -> paths of every axis -> seconds and bytes by recompute policy

Placements of a strategy that no axis can tell apart are one column. Columns that use the same kinds of nodes are priced
together as one strategy of arrays, by the functions of `pricing.price`. Units: seconds, bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from cost_models.hardware.placement import Placement
from cost_models.layer.stages import end_stages
from cost_models.strategy import Axis, Strategy, sent_patterns, stacked
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.loads import Loads
from cost_models.timing.paths import Path
from planner.search.layout_prices import policy_prices
from planner.search.placements import Placements, Placer
from planner.search.policy_prices import EQUAL, PolicyPrices
from planner.search.space import Space

_Ints = NDArray[np.int64]
_SHARDED: tuple[Axis, ...] = ("shard", "replicate")
_NETWORK = ("all_to_all_s_per_byte", "send_s_per_byte", "gather_s_per_byte")


class PricedLayouts(Struct, frozen=True, kw_only=True, eq=False):
    """Priced columns: entry i is `strategies[i]` on `placements[i]`."""

    strategies: tuple[Strategy, ...]  # without layers
    placements: tuple[Placement, ...]
    prices: PolicyPrices
    capacity_bytes: NDArray[np.float64]
    crossing: NDArray[np.float64]  # seconds per byte on the busiest NIC, summed over the axes: breaks ties
    complete: frozenset[Strategy]  # of these every placement was priced

    @classmethod
    def joined(cls, parts: Sequence[PricedLayouts]) -> PricedLayouts:
        """The columns of all parts, in order."""
        return cls(
            strategies=tuple(strategy for part in parts for strategy in part.strategies),
            placements=tuple(placement for part in parts for placement in part.placements),
            prices=PolicyPrices.joined([part.prices for part in parts]),
            capacity_bytes=np.concatenate([part.capacity_bytes for part in parts]),
            crossing=np.concatenate([part.crossing for part in parts]),
            complete=frozenset().union(*(part.complete for part in parts)),
        )

    def take(self, where: Sequence[int]) -> PricedLayouts:
        index = np.asarray(where, dtype=np.int64)
        return structs.replace(
            self,
            strategies=tuple(self.strategies[i] for i in index),
            placements=tuple(self.placements[i] for i in index),
            prices=self.prices.take(index),
            capacity_bytes=self.capacity_bytes[index],
            crossing=self.crossing[index],
        )

    @property
    def ranks(self) -> _Ints:
        return np.array([strategy.ranks for strategy in self.strategies], dtype=np.int64)

    def strategy(self, column: int, layers: Sequence[int]) -> Strategy:
        """The layout with its layers."""
        return replace(self.strategies[column], layers=self.prices.ranges(layers))

    def tie_key(self, column: int) -> tuple[Any, ...]:
        """Order of equally good columns: less load on the busiest NICs, more ulysses, then the smaller degrees."""
        one = self.strategies[column]
        degrees = (one.data, one.ring, one.microbatches, -one.shard, -one.zero)
        return (float(f"{self.crossing[column]:.9e}"), -one.ulysses, *degrees)


class Pricer:
    """Prices the layouts of a space on the placements of its cluster; not in seconds where it is not `timed`."""

    def __init__(self, space: Space, costs: ClusterCosts, timed: bool = True) -> None:
        self.space, self.costs, self.timed = space, costs, timed
        self.placed: dict[Strategy, _Placed] = {}
        self.last: tuple[tuple[Strategy, bytes, bytes], _Placed] | None = None

    @cached_property
    def placer(self) -> Placer:
        return Placer(self.costs)

    def price(self, strategies: Sequence[Strategy]) -> PricedLayouts:
        """Every strategy on every placement that is worth it."""
        for strategy in strategies:
            unsharded = _unsharded(strategy)
            if unsharded not in self.placed:
                self.placed[unsharded] = _Placed(self.costs, self.placer.placements(strategy), unsharded)
        return self._columns([(strategy, self.placed[_unsharded(strategy)]) for strategy in strategies])

    def price_on(self, strategy: Strategy, placements: Placements) -> PricedLayouts:
        """One strategy on given placements."""
        return self._columns([(strategy, self._read(strategy, placements))])

    def price_better(self, strategy: Strategy, placements: Placements, kept: Sequence[Axis]) -> PricedLayouts:
        """One strategy on those of the placements that may be better than the first one. All are of its GPUs, and have
        its paths of the axes `kept`."""
        return self._columns([(strategy, _Better(self.costs, placements, strategy, kept))])

    def _read(self, strategy: Strategy, placements: Placements) -> _Placed:
        """Of the last placements once for all shardings."""
        key = (_unsharded(strategy), placements.slots.tobytes(), placements.gpus.tobytes())
        if self.last is None or self.last[0] != key:
            self.last = key, _Placed(self.costs, placements, key[0])
        return self.last[1]

    def price_each(self, layouts: Mapping[Strategy, Sequence[Placement]]) -> PricedLayouts:
        """Every layout on its own placements."""
        placed = [(one, _Placed(self.costs, Placements.listed(on), _unsharded(one))) for one, on in layouts.items()]
        return self._columns(placed)

    def _columns(self, placed: Sequence[tuple[Strategy, _Placed]]) -> PricedLayouts:
        columns = [_no_columns(self.space)]
        by_runs: dict[tuple[int, ...], list[_SamePaths]] = defaultdict(list)
        for strategy, there in placed:
            for runs, those in there.distinct(strategy):
                by_runs[runs].append(those)
        columns += [self._priced(runs, several) for runs, several in sorted(by_runs.items(), key=lambda item: item[0])]
        complete = frozenset(strategy for strategy, there in placed if there.placements.complete)
        return structs.replace(PricedLayouts.joined(columns), complete=complete)

    def _priced(self, runs: tuple[int, ...], several: Sequence[_SamePaths]) -> PricedLayouts:
        """Columns that use nodes of the same runs."""
        strategies = tuple(one.strategy for one in several for _ in one.placements)
        devices = self.costs.devices(runs)
        axes = {axis: _joined([one.paths[axis] for one in several]) for axis in several[0].paths}
        many = stacked(strategies)
        prices = policy_prices(
            self.space.workload,
            many,
            self.costs.kernels(runs, self.space.target.code.measured_attention(self.space.workload)),
            self.costs.assembled(runs, axes, many.ranks),
            self.space.policies,
            devices[0],
            framework=self.space.target.code,
            host_limit=self._host_limits(several),
            timed=self.timed,
        )
        return PricedLayouts(
            strategies=strategies,
            placements=tuple(placement for one in several for placement in one.placements),
            prices=prices,
            capacity_bytes=np.full(len(strategies), self._limit_bytes(runs)),
            crossing=crossing_load(axes),
            complete=frozenset(),
        )

    def _limit_bytes(self, runs: tuple[int, ...]) -> float:
        return min(self.space.room.limit_bytes(device.allocatable_bytes) for device in self.costs.devices(runs))

    def in_room(self, columns: PricedLayouts) -> PricedLayouts:
        """Columns of the same cluster that were priced in another room."""
        runs = [self.costs.runs(len(one.slot_of_rank), one) for one in columns.placements]
        return structs.replace(columns, capacity_bytes=np.array([self._limit_bytes(one) for one in runs]))

    def _host_limits(self, several: Sequence[_SamePaths]) -> Any:
        if not self.space.uses_host:
            return np.inf
        return np.array([self._host_limit(placement) for one in several for placement in one.placements])

    def _host_limit(self, placement: Placement) -> float:
        """Bytes of host memory for each rank on the node that has least for one; infinite where none is known."""
        cluster = self.space.cluster
        ranks = np.bincount(placement.slot_of_rank, minlength=cluster.slots)
        used = np.flatnonzero(ranks)
        has = np.array([run.node.host_memory_bytes for run in cluster.runs], dtype=float)[cluster.run_of_slot[used]]
        return float((np.where(has > 0, has, np.inf) / ranks[used]).min())


def _unsharded(strategy: Strategy) -> Strategy:
    """Placements do not depend on how parameters are sharded."""
    return replace(strategy, shard=1, zero=3)


class _SamePaths(Struct, frozen=True, kw_only=True, eq=False):
    """Placements of one strategy with their paths, an array entry for each placement."""

    strategy: Strategy
    placements: list[Placement]
    paths: dict[Axis, Path]


class _Placed:
    """The placements of a strategy, the runs of nodes that each uses, and the paths that sharding does not change."""

    def __init__(
        self, costs: ClusterCosts, placements: Placements, strategy: Strategy, axes: Sequence[Axis] | None = None
    ) -> None:
        self.placements = placements
        slots, cluster = placements.slots, costs.cluster
        self.uses = np.zeros((len(slots), len(cluster.runs)), dtype=bool)
        self.paths: dict[Axis, Path] = {}
        if len(slots):
            self.uses[np.arange(len(slots))[:, None], cluster.run_of_slot[slots]] = True
            self.loads = Loads(costs.rates, slots, placements.gpus)
            unsharded = [axis for axis in sent_patterns(strategy) if axis not in _SHARDED]
            self.paths = self.loads.paths(strategy, unsharded if axes is None else axes)

    def distinct(self, strategy: Strategy) -> Iterator[tuple[tuple[int, ...], _SamePaths]]:
        """(runs in use, placements) that some axis tells apart; of equal ones the first."""
        slots, gpus = self.placements.slots, self.placements.gpus
        if not len(slots):
            return
        paths = self._all_paths(strategy)
        numbers = np.stack([getattr(path, name) for path in paths.values() for name in Path.__struct_fields__], axis=1)
        told_apart = np.concatenate([numbers, self.uses], axis=1) + 0.0
        seen: dict[bytes, int] = {}
        for place in self._worth(numbers).tolist():
            seen.setdefault(told_apart[place].tobytes(), place)
        first = np.array([*seen.values()], dtype=np.int64)
        for used in dict.fromkeys(map(tuple, self.uses[first].tolist())):
            these = first[(self.uses[first] == used).all(axis=1)]
            yield (
                tuple(np.flatnonzero(used).tolist()),
                _SamePaths(
                    strategy=strategy,
                    placements=[Placement(slot_of_rank=slots[i], gpu_of_rank=gpus[i]) for i in these],
                    paths={axis: _taken(path, these) for axis, path in paths.items()},
                ),
            )

    def _all_paths(self, strategy: Strategy) -> dict[Axis, Path]:
        sharded = self.loads.paths(strategy, _SHARDED)
        return {axis: sharded.get(axis) or self.paths[axis] for axis in sent_patterns(strategy)}

    def _worth(self, numbers: NDArray[np.float64]) -> _Ints:
        """Placements to price; `numbers`: of each the fields of its paths, axis by axis."""
        return np.arange(len(numbers))


class _Better(_Placed):
    """Of placements on the same GPUs, with equal paths of the axes `kept`, those that the first may be worse than.

    No exchange takes longer where its axis has fewer seconds, so a placement that saves none, and whose groups lie over
    as many domains, is priced no lower than the first.
    """

    def __init__(self, costs: ClusterCosts, placements: Placements, strategy: Strategy, kept: Sequence[Axis]) -> None:
        super().__init__(costs, placements, strategy, [axis for axis in sent_patterns(strategy) if axis not in kept])
        first = Loads(costs.rates, placements.slots[:1], placements.gpus[:1]).paths(strategy, kept)
        same = np.zeros(len(placements.slots), dtype=np.int64)
        self.paths |= {axis: _taken(path, same) for axis, path in first.items()}

    def _all_paths(self, strategy: Strategy) -> dict[Axis, Path]:
        return {axis: self.paths[axis] for axis in sent_patterns(strategy)}

    def _worth(self, numbers: NDArray[np.float64]) -> _Ints:
        seconds = np.array([name.endswith(("_s", "_per_byte")) for name in Path.__struct_fields__] * len(self.paths))
        saved = numbers < numbers[0] * (1 - EQUAL)
        apart = numbers != numbers[0]
        found: _Ints = np.flatnonzero(np.where(seconds, saved, apart).any(axis=1))
        return found


def _taken(path: Path, where: _Ints) -> Path:
    return Path(**{name: getattr(path, name)[where] for name in Path.__struct_fields__})


def _joined(paths: Sequence[Path]) -> Path:
    return Path(**{name: np.concatenate([getattr(path, name) for path in paths]) for name in Path.__struct_fields__})


def crossing_load(axes: dict[Axis, Path]) -> NDArray[np.float64]:
    """Load on the busiest NIC: the heaviest pattern of each axis, summed over the axes; unread patterns are nan."""
    loads = [[getattr(path, name) for name in _NETWORK] for path in axes.values()]
    total: NDArray[np.float64] = np.sum(np.fmax.reduce(loads, axis=1, initial=0.0), axis=0)
    return total


def _no_columns(space: Space) -> PricedLayouts:
    """A start for `joined`, so that it also works where no layout has a placement."""
    kinds = space.workload.model.layer_kinds
    stages, choices = len(end_stages(space.base.pipeline)), len(set(kinds)) * len(space.policies)
    empty, by_choice, by_stage = np.zeros(0), np.zeros((0, choices)), np.zeros((0, stages, choices))
    prices = PolicyPrices(
        policies=space.policies,
        layer_kinds=kinds,
        other_s=empty,
        layer_s=by_choice,
        base_bytes=np.zeros((0, stages)),
        kept_bytes=by_stage,
        again_bytes=by_stage,
        host_base=empty,
        host_kept=by_choice,
        host_limit=empty,
    )
    return PricedLayouts(
        strategies=(), placements=(), prices=prices, capacity_bytes=empty, crossing=empty, complete=frozenset()
    )
