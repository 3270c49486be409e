"""The least seconds of a layout, by a relaxation of the proof's own, and which degrees there are.

    least   the step of every price under each sharding, with the least recomputed that memory allows: layers in shares
            of two policies, bytes with the levers that save most, seconds without any, for they only cost time
    unlike  GPUs may have any shares of a row, but for packed rows: of so many ranks the fastest, each computing alone,
            a token in the least time of blocks of 1, 2 and all of a ring's; nothing is sent
    alike   an exchange takes the least of what the fastest link inside a domain needs and what leaves by the best card,
            which a group of P > D GPUs of a domain must: all-to-all 1 - D / P and at least half of a buffer, ring all
            of it, gather and reduction (P - 1) / P by all cards of the best domain

Latencies, protocols, leaves and slow cards count nothing, so no placement takes less. Kernels, bytes and the folding of
a step are those of every price. Left out: host memory, tensor and pipeline degrees, how groups lie beside each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.wiring import NIC_OUT
from cost_models.layer.sizes import Block, RankSizes
from cost_models.memory import peaks
from cost_models.memory.components import components
from cost_models.number import Number, smaller
from cost_models.pricing import fold
from cost_models.program import Op
from cost_models.room import Room
from cost_models.step.assembly import step_program
from cost_models.strategy import Axis, LayerRange, Strategy, sent_patterns
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.paths import HOST_MEMORY_BYTES_PER_S, Path, Paths, carried_s, crossing_s
from cost_models.timing.slowest import KernelsInUse, pace
from cost_models.workload import Workload
from planner.prove.regions import Family

AT_ONCE = 2000
NO_ROOM_S = 1e12
"""Stands for the seconds of a layout that memory does not hold under any policy."""
DEGREES = (*Family._fields, "ring", "shard", "zero")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def families(cluster: Cluster, workload: Workload, fixed: Mapping[str, int]) -> dict[Family, tuple[int, int]]:
    """(first, last ring) of every family.

    >>> from cost_models import Model
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2**17)
    >>> families(Cluster.load("dgx-h100", nodes=1), work, {"ulysses": 4})
    {Family(data=1, microbatches=1, ulysses=4): (1, 2)}
    """
    gpus, batch, heads = cluster.gpus, workload.global_batch, workload.model.heads
    found = {}
    for data, ulysses in itertools.product(range(1, min(batch, gpus) + 1), range(1, min(heads, gpus) + 1)):
        room = gpus // (data * ulysses)
        last = min(room, max(1, math.ceil(workload.context_tokens / 2) // ulysses))
        first, last = (fixed["ring"], min(fixed["ring"], room)) if "ring" in fixed else (1, last)
        usual = ulysses <= _most(cluster) or heads % ulysses == 0 or "ulysses" in fixed
        for micro in range(1, batch // data + 1) if batch % data == 0 and usual and first <= last else ():
            here = Family(data, micro, ulysses)
            if batch // data % micro == 0 and fixed.items() <= {**fixed, **here._asdict()}.items():
                found[here] = (first, last)
    return found


def _most(cluster: Cluster) -> int:
    """GPUs of the largest domain."""
    return int(np.bincount(cluster.domain_of_slot, weights=cluster.gpus_of_slot).max())


@dataclass(frozen=True, kw_only=True)
class Asked:
    cluster: Cluster
    work: Workload
    held: Strategy  # every choice but degrees, sharding and layers
    framework: Framework = OURS
    policies: Sequence[LayerRange] = (LayerRange(count=1),)  # of a layer, the fastest first
    levers: Sequence[Mapping[str, Any]] = ({},)  # whose bytes may count, one of these
    shard: int | None = None  # the only one there is
    room: Room | None = None  # what a GPU may hold, or memory does not count
    limit_s: float = NO_ROOM_S  # what takes longer without regard to memory is not asked what that adds


def least_s(asked: Asked, several: Sequence[tuple[Family, int]]) -> Floats:
    """Of each (family, ring)."""
    least, most = np.full(len(several), NO_ROOM_S), _most(asked.cluster)
    for at in range(0, len(several), AT_ONCE):
        some = enumerate(several[at : at + AT_ONCE], start=at)
        rows = np.array([(place, *one) for place, layout in some for one in _degrees(*layout, most, asked.shard)])
        floor = _Layouts(asked, rows).least_s(0)
        open_ = (floor < asked.limit_s) & (asked.room is not None)
        np.minimum.at(least, rows[~open_, 0], floor[~open_])
        if open_.any():
            np.minimum.at(least, rows[open_, 0], _Layouts(asked, rows[open_]).held_s())
    return least


def _degrees(family: Family, ring: int, most: int, shard: int | None) -> list[tuple[int, ...]]:
    """`DEGREES` under every sharding."""
    ranks = family.data * family.ulysses * ring
    near = next(size for size in range(min(ranks, most), 0, -1) if ranks % size == 0)
    groups = {ranks, near, ring * family.ulysses, 1} if shard is None else {shard if ranks % shard == 0 else 1}
    return [(*family, ring, group, zero) for group in groups for zero in ((3, 2) if group > 1 else (0,))]


class _Layouts:
    """Layouts as arrays of degrees behind their place, on each device that there is."""

    def __init__(self, asked: Asked, rows: Ints) -> None:
        self.asked, self.costs, self.rows = asked, cluster_costs(asked.cluster), rows
        self.many = asked.held.varied(**dict(zip(DEGREES, rows.T[1:], strict=True)))
        self.ranks, self.ring = np.asarray(self.many.ranks), np.asarray(self.many.ring)
        gpus: dict[int, int] = {}
        for first, run in zip(self.costs.first_alike.tolist(), asked.cluster.runs, strict=True):
            gpus[first] = gpus.get(first, 0) + run.count * run.node.gpus
        self.runs = tuple(run for run, many in gpus.items() if many)
        self.gpus, self.devices = np.array([gpus[run] for run in self.runs]), self.costs.devices(self.runs)
        shares = not asked.work.lengths and asked.work.model.ssd is None and self.many.attention_chunk_tokens is None
        self.shared, self.paths = len(self.devices) > 1 and shares, self._paths()

    def least_s(self, policy: int) -> Floats:
        """Of the step whose layers all have this policy: of unlike GPUs at the sum of the fastest ones' speeds."""
        each = np.stack([self._alone_s(place, policy) for place in range(len(self.devices))])
        order = each.argsort(axis=0)
        rising, used = np.take_along_axis(each, order, axis=0), self._used(order)
        mean: Floats = self.ranks / (used / rising).sum(axis=0)
        return mean if self.shared else np.where(used > 0, rising, 0.0).max(axis=0)

    def _used(self, order: Ints) -> Ints:
        """Of so many ranks those on each device, the first in this order filled first; (devices, layouts)."""
        many = self.gpus[order]
        return np.asarray(np.clip(self.ranks - (many.cumsum(axis=0) - many), 0, many))

    def _alone_s(self, place: int, policy: int) -> Floats:
        """On one device: as long as for a mean block's tokens in the block in which these take least."""
        work, code, ring = self.asked.work, self.asked.framework, self.ring
        sizes = RankSizes(work, self.many, code.on(self.devices[place]))
        kernels = KernelsInUse.afresh(self.costs.kernels((self.runs[place],), code.measured_attention(work)))
        layers, least = (replace(self.asked.policies[policy], count=work.model.layers),), np.full(ring.shape, np.inf)
        for times in (ring**0, np.minimum(2, ring), ring) if self.shared else (1,):
            mean: Any = np.asarray(sizes.ring_tokens)
            block = Block(mean * times, mean * (ring - times) // np.maximum(ring - 1, 1), mean * times, 1.0)
            here = replace(sizes, block=block) if self.shared else sizes
            least = np.minimum(least, np.asarray(fold(step_program(here, kernels, layers), self.paths).total_s) / times)
        return least

    def held_s(self) -> Floats:
        """Of layers in shares of two policies, as memory asks: a linear program with one row. The room is a mean over
        the roomiest GPUs, for blocks may be as unlike."""
        assert self.asked.room is not None
        rooms = np.array([self.asked.room.limit_bytes(device.allocatable_bytes) for device in self.devices])
        order = np.argsort(-rooms)
        room = rooms[order] @ self._used(order[:, None] + 0 * self.ranks) / self.ranks
        policies, found = range(len(self.asked.policies)), np.full(self.ranks.shape, NO_ROOM_S)
        took, kept = [self.least_s(one) for one in policies], [self._bytes(one) for one in self.asked.policies]
        for more, less in itertools.product(policies, repeat=2):
            share = np.clip((room - kept[less]) / np.maximum(kept[more] - kept[less], 1.0), 0.0, 1.0)
            mixed = share * took[more] + (1 - share) * took[less]
            found = np.where(kept[less] <= room, np.minimum(found, mixed), found)
        return found

    def _bytes(self, policy: LayerRange) -> Floats:
        """Of a rank whose layers all have this policy, on the device and with the levers with which it is least."""
        work, least = self.asked.work, np.full(self.ranks.shape, np.inf)
        for device, levers in itertools.product(self.devices, self.asked.levers):
            chunks, by_rows = levers.get("attention_head_chunks", 1), levers.get("attention_chunk_tokens") is not None
            legal = (work.model.heads // np.asarray(self.many.ulysses) >= chunks) & ((self.ring == 1) | (not by_rows))
            legal &= (np.asarray(self.many.zero) == 3) | (levers.get("offload_states") != "all")
            if by_rows and chunks > 1:
                continue
            many = self.asked.held.varied(**dict(zip(DEGREES, self.rows[legal].T[1:], strict=True)))
            sizes, one = RankSizes(work, replace(many, **levers), self.asked.framework.on(device)), policy
            kept: Number = work.model.layers * peaks.kept_bytes(sizes, one)
            held = sum(components(sizes, kept, peaks.peak(sizes, [one]), device).values())
            least[legal] = np.minimum(least[legal], held)
        return least

    def _paths(self) -> Paths:
        """On which every domain, card and link is as good as the best one."""
        cluster, rates, most = self.asked.cluster, self.costs.rates, _most(self.asked.cluster)
        runs = tuple(index for index, run in enumerate(cluster.runs) if run.node.gpus)
        nodes, axes = self.costs.nodes(runs), dict.fromkeys(sent_patterns(self.many), Path(ranks=1, local=1))
        cards = np.array([run.node.nics.count for run in cluster.runs])[cluster.run_of_slot]
        apart = len(self.costs.wiring.domain_gpus) > 1  # else nothing leaves: a byte would take a second
        card = max(float(rates.of_run[:, NIC_OUT].max()), 1.0) if apart else 1.0
        all_cards = max(float(np.bincount(cluster.domain_of_slot, weights=cards).max()), 1.0) * card
        several: tuple[Axis, ...] = ("ulysses", "ring", "shard", "replicate") if len(self.devices) == 1 else ()
        for axis in several:
            members = self.ranks // self.many.shard if axis == "replicate" else np.asarray(getattr(self.many, axis))
            out, through = members > most, np.where(members > most, all_cards, np.maximum(members // 2, 1) * card)
            axes[axis] = Path(
                ranks=members, local=np.where(out, 1, members), hops_out=np.where(out, 2, 0),
                all_to_all_s_per_byte=np.maximum(0.5, 1 - most / members) / card / rates.all_to_all_share.max(),
                send_s_per_byte=np.full(members.shape, 1 / card / rates.ring_share.max()),
                gather_s_per_byte=(members - 1) / members / through / rates.ring_share.max(),
                all_reduce_s_per_byte=(members - 1) / members / through,
            )  # fmt: skip
        return _LeastPaths(
            axes=axes, inside=self.costs.links(runs, smaller), network_source="bound",
            host_bytes_per_s=max(node.host_link_bytes_per_s for node in nodes),
            host_memory_bytes_per_s=HOST_MEMORY_BYTES_PER_S / min(node.gpus for node in nodes),
            pace=np.min([np.broadcast_to(pace([one], self.ranks), self.ranks.shape) for one in self.devices], axis=0),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _LeastPaths(Paths):
    """Exchanges at their least: out of a domain where a group must, else there or inside, whichever is faster."""

    def exchange_s(self, axis: Axis, op: Op, size: Number) -> Number:
        path, out = self.axes[axis], crossing_s(op, self.axes[axis], size)
        least = np.where(path.hops_out > 0, out, np.minimum(self.inside_s(op, path, size), out))
        return np.asarray(np.where(path.ranks > 1, least, 0.0))

    def _taken_s(self, axis: Axis, op: Op, size: Number) -> Number:
        return smaller(self.exchange_s(axis, op, size), carried_s(op, self.axes[axis], size))

    def shares_links(self, axis: Axis, other: Axis) -> Number:
        return False
