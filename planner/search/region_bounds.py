"""The least price of a layout over the regions of its placements, and the fill of domains that the best region allows.

    bound(layout) = min over its regions that are not empty of  price(layout, the region's least loads, layers relaxed)

The devices, links and cards of a region are those of the kinds in use, so a slow card counts where it is used and does
not where it is left idle. Rows are priced together, an array entry for each region and each range of shard groups that
meet in a domain (`region_loads.py`). Seconds, or the objective's unit. Left out: tensor and pipeline degrees.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from cost_models.strategy import VARIED, Axis, Strategy
from cost_models.timing.paths import Path, Paths
from cost_models.timing.slowest import pace
from planner.search.layout_prices import policy_prices
from planner.search.optimistic_paths import FloorPaths, Reach
from planner.search.region_loads import Loads, RegionLoads
from planner.search.regions import INSIDE, MOST_KINDS, Floats, Ints, Kinds, Layouts, Regions, Rows
from planner.search.space import Space

_NETWORK = ("all_to_all_s_per_byte", "send_s_per_byte", "gather_s_per_byte", "all_reduce_s_per_byte")
AXES: tuple[Axis, ...] = ("ulysses", "ring", "shard", "replicate")


class Regional(Struct, frozen=True, kw_only=True, eq=False):
    """Of each layout the least bound of its regions, and that region's row; `None`: all ranks in one domain."""

    bound: Floats
    rows: list[tuple[Rows, int] | None]


class RegionBounds:
    """Bounds of layouts of one space by the regions of their placements."""

    def __init__(self, space: Space, reach: Reach, kinds: Kinds) -> None:
        self.space, self.reach, self.costs = space, reach, reach.costs
        self.regions = Regions(self.costs, kinds)

    @classmethod
    def of(cls, space: Space, reach: Reach) -> RegionBounds | None:
        """`None` where the cluster has too many kinds of domains, or some with unlike devices or links in one, or the
        layouts have degrees that regions do not know."""
        kinds = Kinds.of(reach.costs)
        plain = space.base.tensor == space.base.pipeline == space.base.expert == 1 and space.workload.model.ssd is None
        if not plain or len(kinds.count) > MOST_KINDS:
            return None
        for runs in kinds.runs:
            first, *others = reach.costs.nodes(runs)
            if any((one.device, one.scale_up) != (first.device, first.scale_up) for one in others):
                return None
        return cls(space, reach, kinds)

    @cached_property
    def _runs(self) -> list[tuple[int, ...]]:
        """Of each region the runs of nodes in use."""
        kinds = self.regions.kinds.runs
        return [
            tuple(sorted({run for kind in np.flatnonzero(used) for run in kinds[kind]})) for used in self.regions.used
        ]

    @cached_property
    def _alike(self) -> Ints:
        """A number for each region: those with equal devices and links have the same."""
        seen: list[tuple[list[object], list[object]]] = []
        numbers = []
        for runs in self._runs:
            devices: list[object] = []
            links: list[object] = []
            for node in self.costs.nodes(runs):
                devices += [node.device] if node.device not in devices else []
                links += [node.scale_up] if node.scale_up not in links else []
            if (devices, links) not in seen:
                seen.append((devices, links))
            numbers.append(seen.index((devices, links)))
        return np.array(numbers)

    def bounds(self, strategies: list[Strategy]) -> Regional:
        many = {name: np.array([getattr(one, name) for one in strategies]) for name in VARIED}
        layouts = Layouts(data=many["data"], ring=many["ring"], ulysses=many["ulysses"], shard=many["shard"])
        bound, best = np.full(len(strategies), np.inf), np.full(len(strategies), -1)
        parts = self._parts(layouts)
        where = np.concatenate([np.full(len(layout), place) for place, (layout, *_) in enumerate(parts)])
        row = np.concatenate([np.arange(len(layout)) for layout, *_ in parts])
        layout, region = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        axes = {axis: self._joined([self._axis(axis, layouts, *part) for part in parts]) for axis in AXES}
        for number in np.unique(self._alike[region]):
            mine = np.flatnonzero(self._alike[region] == number)
            found = self._priced(
                many,
                layouts.take(layout[mine]),
                layout[mine],
                region[mine],
                {a: _taken(p, mine) for a, p in axes.items()},
            )
            order = np.argsort(found, kind="stable")[::-1]
            last = np.full(len(bound), -1)
            last[layout[mine][order]] = order
            hit = np.flatnonzero(last >= 0)
            better = hit[found[last[hit]] < bound[hit]]
            bound[better], best[better] = found[last[better]], mine[last[better]]
        rows = [
            None if place < 0 or parts[where[place]][2] is None else (parts[where[place]][2], int(row[place]))
            for place in best.tolist()
        ]
        return Regional(bound=bound, rows=rows)

    def _parts(self, layouts: Layouts) -> list[tuple[Ints, Ints, Rows | None, RegionLoads | None]]:
        layout, region = self.regions.alone(layouts.ranks)
        parts: list[tuple[Ints, Ints, Rows | None, RegionLoads | None]] = [(layout, region, None, None)]
        for rows in self.regions.crossing(layouts):
            for loads in Loads(self.regions, layouts, rows).cases():
                parts.append((rows.layout, rows.region, rows, loads))
        return parts

    def _axis(
        self, axis: Axis, layouts: Layouts, layout: Ints, region: Ints, rows: Rows | None, loads: RegionLoads | None
    ) -> Path:
        """Paths of one axis in some rows, at their least."""
        size = np.asarray(getattr(layouts, axis))[layout][:, None]
        ranks = layouts.ranks[layout][:, None]
        path = self.reach.waiting(self.reach.path(size, ranks))
        state = None if rows is None else getattr(rows.where, axis)
        if rows is None or loads is None or (rows.where.replicate if axis == "replicate" else state == INSIDE):
            return replace(path, local=size, hops_out=np.full_like(size, -1), **self.reach.buses(size, ranks, True))
        least: dict[str, Any] = {
            "ulysses": {"all_to_all_s_per_byte": loads.all_to_all[:, None]},
            "ring": {"send_s_per_byte": loads.send[:, None]},
            "shard": {"gather_s_per_byte": loads.gather},
            "replicate": {"gather_s_per_byte": loads.replicate, "all_reduce_s_per_byte": loads.all_reduce},
        }[axis]
        hops = np.maximum(path.hops_out, loads.visits if axis == "replicate" else 2)
        return replace(
            path, hops_out=hops, **{name: np.maximum(getattr(path, name), value) for name, value in least.items()}
        )

    def _joined(self, paths: list[Path]) -> Path:
        """All rows of an axis, the second axis as long as the longest one."""
        width = max(np.shape(getattr(path, name))[1] for path in paths for name in _NETWORK)

        def column(path: Path, name: str) -> Any:
            value = np.asarray(getattr(path, name))
            rows = len(np.asarray(path.ranks))
            return (
                np.broadcast_to(value, (rows, width if value.ndim == 2 and value.shape[1] > 1 else 1))
                if value.ndim == 2
                else np.broadcast_to(value, (rows, 1))
            )

        found = {}
        for name in Path.__struct_fields__:
            columns = [column(path, name) for path in paths]
            wide = max(one.shape[1] for one in columns)
            found[name] = np.concatenate([np.broadcast_to(one, (len(one), wide)) for one in columns])
        return Path(**found)

    def _priced(
        self,
        many: dict[str, Ints],
        of: Layouts,
        layout: Ints,
        region: Ints,
        axes: dict[Axis, Path],
    ) -> Floats:
        """The bound of each row."""
        runs = self._runs[int(region[0])]
        costs, ranks = self.costs, of.ranks[:, None]
        optimistic = self.reach.paths({axis: np.ones_like(ranks) for axis in AXES}, ranks)
        devices = costs.devices(runs)
        paths = FloorPaths(
            axes={**optimistic.axes, **axes}, inside=costs.links(runs), host_bytes_per_s=optimistic.host_bytes_per_s,
            network_source="bound", host_memory_bytes_per_s=optimistic.host_memory_bytes_per_s,
            pace=pace(devices, ranks),
        )  # fmt: skip
        return self._seconds(many, layout, region, paths)

    def _seconds(self, many: dict[str, Ints], layout: Ints, region: Ints, paths: Paths) -> Floats:
        """Of layouts in regions with equal devices, on `paths`."""
        runs = self._runs[int(region[0])]
        degrees = {name: value[layout][:, None] for name, value in many.items()}
        space, devices = self.space, self.costs.devices(runs)
        code = space.target.code
        priced = policy_prices(
            space.workload,
            space.base.varied(**degrees),
            self.costs.kernels(runs, code.measured_attention(space.workload)),
            paths,
            space.policies,
            devices[0],
            framework=code,
        )
        room = space.room.limit_bytes(min(device.allocatable_bytes for device in devices))
        seconds: Floats = priced.relaxed_s(np.full(priced.other_s.shape, room)).min(axis=-1)
        return seconds


def _taken(path: Path, where: Ints) -> Path:
    return Path(**{name: getattr(path, name)[where] for name in Path.__struct_fields__})
