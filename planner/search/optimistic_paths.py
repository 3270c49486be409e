"""What a layout costs at the very least, whichever GPUs it lies on: prices with optimistic paths.

    inside     a group of P <= D (the largest domain's GPUs) may lie inside one, if the domains hold all such groups
    crossing   otherwise it visits at least ceil(P / D) domains:  all-to-all (1 - 1 / visits) of a rank's buffer out,
               a ring at least one hop out of every domain visited, a gather (P - 1) / P of the buffer into each

Sharding and replication pull against each other (`_crowded`): what lies together for one is apart for the other. So do
tensor groups and all others: if groups of T lie inside domains, another group has D / T members in one at most.
Where a group has more members in some domain than a PCIe switch, socket or bridged pair has GPUs, bytes pass between
these. A domain sends at most what all its NICs do, a rank what one NIC does; sums over domains give the mean load as a
bound on the largest. Ranges of rings: the work of the largest ring with the hops of the smallest. Units: seconds.
Left out: leaf uplinks (free here); that ulysses and ring cannot both stay inside where their product exceeds D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.wiring import NIC_OUT, PCIE_OUT, SOCKET_OUT, SWITCH_OUT, Ints
from cost_models.number import smaller
from cost_models.program import Op
from cost_models.strategy import Axis
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.paths import (
    HOST_MEMORY_BYTES_PER_S,
    Path,
    Paths,
    busy_s,
    carried_s,
    crossing_s,
    grown_s,
)
from cost_models.timing.protocols import peer_bytes_per_s
from cost_models.timing.slowest import pace

PATTERNS = ("all_to_all", "send", "gather")


class Reach(Struct, frozen=True, kw_only=True, dict=True):
    """The best that any part of a cluster offers."""

    costs: ClusterCosts

    @cached_property
    def cluster(self) -> Cluster:
        return self.costs.cluster

    inner: int = 1
    """Ranks that lie together in a domain, and of which a group of another axis has one: a tensor group."""

    @property
    def domain_gpus(self) -> Ints:
        """Of each scale-up domain the free GPUs, in sets of `inner`."""
        return self.costs.wiring.domain_gpus // self.inner

    @cached_property
    def leaf_gpus(self) -> int:
        return int(np.bincount(self.cluster.leaf_of_slot, weights=self.cluster.gpus_of_slot).max())

    @cached_property
    def nic_bytes_per_s(self) -> float:
        return float(self.costs.rates.of_run[:, NIC_OUT].max())

    @cached_property
    def domain_bytes_per_s(self) -> float:
        """What the NICs of the best domain send together."""
        cards = np.array([r.node.nics.count - len(r.node.missing_nics) for r in self.cluster.runs])
        per_slot = (cards * self.nic_bytes_per_s)[self.cluster.run_of_slot]
        return max(float(np.bincount(self.cluster.domain_of_slot, weights=per_slot).max()), 1.0)

    @cached_property
    def ring_share(self) -> float:
        """Of what a card reaches, what rings and sends get where they get most."""
        return float(self.costs.rates.ring_share.max())

    @cached_property
    def all_to_all_share(self) -> float:
        return float(self.costs.rates.all_to_all_share.max())

    @cached_property
    def latency_s(self) -> float:
        return float(self.costs.rates.nic_latency_s.min()) + self.cluster.fabric.hop_latency_s

    def whole_groups(self, members: Ints) -> Ints:
        """How many groups of so many members the domains hold without splitting any."""
        sizes, counts = np.unique(self.domain_gpus, return_counts=True)
        distinct, where = np.unique(members, return_inverse=True)
        held = np.array([self.inner * int((sizes // max(int(size), 1) * counts).sum()) for size in distinct])
        return held[where].reshape(members.shape)

    @cached_property
    def tiers(self) -> list[tuple[int, tuple[int, ...]]]:
        """(ranks, runs): a layout of more ranks uses at least one of these runs, which have the slower devices."""
        order: list[Device] = []
        for run in self.cluster.runs:
            if run.node.device not in order:
                order.append(run.node.device)
        order.sort(key=lambda device: -device.peak_16bit)
        place = [order.index(run.node.device) for run in self.cluster.runs]
        gpus = [run.count * run.node.gpus for run in self.cluster.runs]
        return [
            (
                sum(count for at, count in zip(place, gpus, strict=True) if at < first),
                tuple(run for run, at in enumerate(place) if at >= first),
            )
            for first in range(len(order))
        ]

    def paths(self, sizes: Mapping[Axis, Any], ranks: Any) -> FloorPaths:
        """Optimistic paths of groups of `sizes` in layouts of so many `ranks`, for every crowding (last axis)."""
        host = max(run.node.host_link_bytes_per_s for run in self.cluster.runs)
        fewest = min(run.node.gpus for run in self.cluster.runs if run.node.gpus)
        none: dict[Axis, Path] = dict.fromkeys(("context", "tensor", "pipeline"), Path(ranks=1, local=1))
        return FloorPaths(
            axes=none | self._axes(sizes, np.asarray(ranks)),
            inside=self.costs.links(tuple(range(len(self.cluster.runs))), smaller),
            host_bytes_per_s=host,
            network_source="bound",
            host_memory_bytes_per_s=HOST_MEMORY_BYTES_PER_S / fewest,
            pace=pace(self.costs.devices(tuple(range(len(self.cluster.runs)))), np.asarray(ranks)),
        )

    def _axes(self, sizes: Mapping[Axis, Any], ranks: Ints) -> dict[Axis, Path]:
        tensor = np.max(sizes.get("tensor", 1))
        others: dict[Axis, Any] = {axis: size for axis, size in sizes.items() if axis != "tensor"}
        if tensor == 1:
            return self._around(others, ranks)
        inside = self.path(np.asarray(tensor), ranks)
        crossing = replace(inside, hops_out=np.maximum(inside.hops_out, 2))
        cases = [{**self._around(others, ranks), "tensor": self.waiting(crossing)}]
        if tensor <= self.domain_gpus.max():
            together = replace(self, inner=int(tensor))._around(others, ranks)
            cases.append({**together, "tensor": self.waiting(inside)})
        return {axis: _either([case[axis] for case in cases], [_width(case) for case in cases]) for axis in cases[0]}

    def _around(self, sizes: Mapping[Axis, Any], ranks: Ints) -> dict[Axis, Path]:
        """All axes but tensor, whose groups lie in domains if `inner` is above 1."""
        axes: dict[Axis, Path] = {axis: self.path(np.asarray(size), ranks) for axis, size in sizes.items()}
        axes["shard"], axes["replicate"] = self._crowded(axes["shard"], axes["replicate"])
        return {axis: self.waiting(path) for axis, path in axes.items()}

    def waiting(self, path: Path) -> Path:
        """With the waits of a ring and a tree that cross, where further hops take the shortest one, and all-reduces."""
        step_s = min(self.latency_s, min(run.node.scale_up.latency_s for run in self.cluster.runs))
        visits = np.maximum(path.hops_out, 2)
        ring_s = visits * path.latency_s + np.maximum(path.ranks - visits, 0) * step_s
        tree = np.minimum(path.ranks / np.maximum(path.ranks - 1, 1) * self.ring_share, 2.0)  # over two domains
        return replace(
            path,
            all_reduce_s_per_byte=path.gather_s_per_byte * np.where(visits == 2, tree, 2.0),
            ring_latency_s=ring_s,
            tree_latency_s=np.log2(visits) * path.latency_s,
        )

    @cached_property
    def crowdings(self) -> tuple[Ints, Ints]:
        """(fewest, most) of ranges of shard groups that may meet in one domain: 1, 2-3, 4-7, …, up to D."""
        most = int(self.domain_gpus.max())
        first = 2 ** np.arange(most.bit_length())
        return first, np.minimum(2 * first - 1, most)

    @cached_property
    def units(self) -> list[tuple[int, int, dict[str, float]]]:
        """(GPUs of one, units of a domain, bytes/s by pattern): PCIe switches, sockets, bridged pairs, where all nodes
        have them."""
        runs = [index for index, run in enumerate(self.cluster.runs) if run.node.gpus]
        wiring, rates, most = self.costs.wiring, self.costs.rates, int(self.costs.wiring.domain_gpus.max())
        found = []
        for limits, gpus, kind in (
            (wiring.crosses_switch, wiring.switch_gpus, SWITCH_OUT),
            (wiring.crosses_socket, wiring.socket_gpus, SOCKET_OUT),
        ):
            if limits[runs].all():
                rate = {p: float((rates.of_run[runs, kind] * rates.staged_share(p)[runs]).max()) for p in PATTERNS}
                found.append((int(gpus[runs].max()), -(-most // int(gpus[runs].min())), rate))
        if wiring.in_pairs[runs].all():
            card = float(rates.of_run[runs, PCIE_OUT].max())
            found.append((2, most, {"all_to_all": 2 * card, "send": 2 * card, "gather": card}))
        return found

    def buses(self, members: Ints, ranks: Ints, inside: bool = False) -> dict[str, Any]:
        """Seconds per byte between the units of a domain, where a group has more members in some domain than a unit
        has GPUs; `inside`: all groups lie in domains."""
        domains = np.count_nonzero(self.costs.wiring.domain_gpus)
        inside, groups = inside or domains == 1, -(-(ranks // members) // domains)
        there = members if inside else -(-members // domains)
        found = {f"bus_{pattern}_s_per_byte": np.zeros(np.broadcast(members, ranks).shape) for pattern in PATTERNS}
        for size, units, rate in self.units:
            visits, few, many = -(-there // size), -(-there // units), np.minimum(size, there - 1)
            leave = np.maximum(1, -(-groups * visits // units))  # of the groups in a domain, at the busiest unit
            loads = {
                "send": leave if inside else 0 * leave,  # a ring may go from unit to unit by other domains
                "gather": (members - 1) / members * (leave if inside else 1 - 1 / np.maximum(visits, 1)),
                "all_to_all": np.minimum(few * (there - few), many * (there - many)) / members,
            }
            for pattern, load in loads.items():
                name = f"bus_{pattern}_s_per_byte"
                found[name] = np.maximum(found[name], np.where(there > size, load, 0.0) / rate[pattern])
        return found

    def path(self, members: Ints, ranks: Ints) -> Path:
        most = int(self.domain_gpus.max())
        domains = len(self.domain_gpus)
        groups = ranks // members
        forced = (members > most) | (groups > self.whole_groups(members))
        visits = np.maximum(2, -(-members // most))
        each = np.where(members > most, np.ceil(groups / self.inner * visits / domains), 1.0)  # groups that meet in one
        each = each * self.inner
        many = np.where(members > most, np.maximum(ranks / domains, 1.0) * (1 - most / members), 0.0)
        nic, domain, ring = self.nic_bytes_per_s, self.domain_bytes_per_s, self.ring_share
        spine = self.cluster.fabric.spine_hops * self.cluster.fabric.hop_latency_s
        return Path(
            ranks=members,
            local=np.where(forced, 1, np.minimum(members, most)),
            all_to_all_s_per_byte=np.maximum((1 - 1 / visits) / nic, many / domain) / self.all_to_all_share,
            send_s_per_byte=np.maximum(np.maximum(1.0 / nic, each / domain) / ring, self._peer_s_per_byte(members)),
            gather_s_per_byte=(members - 1) / members * np.maximum(each, 1.0) / (domain * ring),
            latency_s=self.latency_s + np.where(members > self.leaf_gpus, spine, 0.0),
            protocols=float(self.costs.rates.has_protocols),
            slower=self.costs.rates.slower,
            hops_out=np.where(forced, visits, 0 if domains > 1 else -1),
            **self.buses(members, ranks),
        )

    def _peer_s_per_byte(self, members: Ints) -> Any:
        """Of a send to another domain, over all channels that a peer may have in a group of so many members."""
        rates = self.costs.rates
        if not rates.has_protocols:
            return 0.0
        cards = np.minimum(
            max(run.node.nics.count for run in self.cluster.runs) * self.cluster.nodes_per_domain, members
        )
        line, channel, doubled = rates.card_line.max(), rates.channel.max(), bool(rates.doubled.any())
        return 1 / peer_bytes_per_s(members, cards, line, doubled, self.cluster.fabric.nccl_minor, channel)

    def _crowded(self, shard: Path, replicate: Path) -> tuple[Path, Path]:
        """The two sharding axes for each range of a, the most shard groups that meet in any one domain, of m ranks.

        No replicate group has more than a members in a domain, so it visits P / a of them. Replicate groups in that
        domain number at least m / a, so its at most m NICs carry 1 / a of a buffer or more; shard groups that cross
        load them with a / m. A shard group of Z lies inside only if Z + a - 1 <= D, a replicate group of P if P <= a.
        """
        most, nic = int(self.domain_gpus.max()), self.nic_bytes_per_s * self.ring_share
        fewest, largest = self.crowdings
        crossing_shard = (shard.ranks > 1) & (shard.ranks + fewest - 1 > most)
        crossing_replicate = (replicate.ranks > 1) & (replicate.ranks > largest)
        visits = -(-replicate.ranks // largest)
        shard_load = (shard.ranks - 1) / shard.ranks * fewest / (most * nic)
        replicate_load = (replicate.ranks - 1) / replicate.ranks / (largest * nic)
        return (
            replace(
                shard,
                gather_s_per_byte=np.maximum(shard.gather_s_per_byte, shard_load),
                hops_out=np.where(crossing_shard, np.maximum(shard.hops_out, 2), shard.hops_out),
            ),
            replace(
                replicate,
                gather_s_per_byte=np.maximum(replicate.gather_s_per_byte, replicate_load),
                hops_out=np.where(crossing_replicate, np.maximum(replicate.hops_out, visits), replicate.hops_out),
            ),
        )


def _width(axes: Mapping[Axis, Path]) -> int:
    """Length of the last axis."""
    return int(np.max([np.shape(path.gather_s_per_byte)[-1:] or (1,) for path in axes.values()]))


def _either(paths: Sequence[Path], widths: Sequence[int]) -> Path:
    """One axis where several cases are possible: their entries along the last axis."""
    found = {}
    for name in Path.__struct_fields__:
        values = [np.atleast_1d(np.asarray(getattr(path, name))) for path in paths]
        shape = np.broadcast_shapes(*((*value.shape[:-1], 1) for value in values))
        wide = [np.broadcast_to(value, (*shape[:-1], width)) for value, width in zip(values, widths, strict=True)]
        found[name] = np.concatenate(wide, axis=-1)
    return Path(**found)


def _bus_s_per_byte(op: Op, path: Path) -> Any:
    """Between the units of a domain."""
    if op in ("all_to_all", "send"):
        return path.bus_all_to_all_s_per_byte if op == "all_to_all" else path.bus_send_s_per_byte
    return path.bus_gather_s_per_byte * (2 if op == "all_reduce" else 1)


@dataclass(frozen=True, kw_only=True)
class FloorPaths(Paths):
    """Every exchange at its least: inside a domain (where `hops_out` is below 0), across domains (above 0), or where
    it is cheaper."""

    def _exchange_s(self, axis: Axis, op: Op, size: Any) -> Any:
        path = self.axes[axis]
        seconds = self._least(op, path, size, crossing_s(op, path, size) + grown_s(op, path, size))
        return np.maximum(seconds, size * _bus_s_per_byte(op, path))

    def _taken_s(self, axis: Axis, op: Op, size: Any) -> Any:
        path, seconds = self.axes[axis], self.exchange_s(axis, op, size)
        away = self._least(op, path, size, np.minimum(seconds, busy_s(op, path, size)))
        taken = np.where(np.asarray(path.hops_out) < 0, seconds, away)
        over_pcie = not self.inside.many_channels or np.any(_bus_s_per_byte(op, path) > 0)
        return np.minimum(taken, carried_s(op, path, size)) if over_pcie else taken

    def shares_links(self, axis: Axis, other: Axis) -> Any:
        one, two = (np.sign(self.axes[name].hops_out) for name in (axis, other))
        return (one == two) & (one != 0)

    def _least(self, op: Op, path: Path, size: Any, crossing: Any) -> Any:
        """Seconds, which are `crossing` between domains."""
        if np.all(np.asarray(path.ranks) == 1):
            return 0.0
        inside, hops = self.inside_s(op, path, size), np.asarray(path.hops_out)
        either = np.where(hops < 0, inside, np.minimum(inside, crossing))
        seconds = np.where(hops > 0, crossing, either)
        return np.where(np.asarray(path.ranks) > 1, seconds, 0.0)
