"""Where ranks can lie: placements of one layout, complete on small clusters, the promising families on large ones.

    order   which ranks are neighbours: ulysses innermost, ring innermost, data innermost, or a box a x b of both
    fill    how many of them each slot takes: all free GPUs, or whole ulysses blocks only (a node of 5 hosts one of 4)
    tier    which slots: all, or only those with at least some GPU speed, NIC rate, memory and link rate
    tour    slots in order, or leaf by leaf from the emptiest-handed leaf last, so that rings stay within leaves

Inside a slot GPUs are taken so that neighbours use different NICs: a ring's exit spreads over all of them.
On small clusters every assignment of ranks to (node, NIC) is listed, equal nodes exchanged freely. Left out beyond
that: unequal splits of one ulysses group over nodes other than those that a fill makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.cluster import Cluster, Node
from cost_models.strategy import AXES, Strategy, rank_grid

_Ints = NDArray[np.int64]
COMPLETE_RANKS = 10
"""Layouts of more ranks are not listed completely."""
COMPLETE_PLACEMENTS = 6000
"""Nor are those with more placements than this."""
MOST_TIERS = 12
MANY_RANKS = 2048
"""Beyond so many ranks only ulysses or the ring is tried innermost."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layings:
    """Placements of one layout: slots and GPUs of shape (placements, ranks)."""

    slots: _Ints
    gpus: _Ints
    complete: bool


class Placer:
    """Placements on one cluster; what does not depend on the layout is read once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.gpu_order = [_spread(run.node) for run in cluster.runs]
        self.tiers = list(_tiers(cluster))
        self.domain_sizes = np.unique(np.bincount(cluster.domain_of_slot, weights=cluster.gpus_of_slot)).astype(
            np.int64
        )
        self._rooms: dict[tuple[int, int], tuple[_Ints, _Ints]] = {}
        self.buckets = _Buckets(cluster) if cluster.gpus <= 4 * COMPLETE_RANKS else None

    def layings(self, strategy: Strategy) -> Layings:
        """Every placement up to symmetry if there are few, else those of the families; none if GPUs do not suffice."""
        if self.buckets is not None and strategy.ranks <= COMPLETE_RANKS:
            listed = self.buckets.placements(strategy.ranks)
            if listed is not None:
                return Layings(slots=listed[0], gpus=listed[1], complete=True)
        found: dict[bytes, tuple[_Ints, _Ints]] = {}
        for tier in range(len(self.tiers)):
            for block in _blocks(strategy, self.domain_sizes):
                fill = self._fill(tier, block, strategy.ranks)
                if fill is None:
                    continue
                for order in _orders(strategy, block):
                    slot, gpu = np.empty_like(fill[0]), np.empty_like(fill[1])
                    slot[order], gpu[order] = fill
                    found.setdefault(slot.tobytes() + gpu.tobytes(), (slot, gpu))
        pairs = list(found.values())
        alone = len(self.cluster.domain_of_slot) == 1
        if not pairs:
            none = np.empty((0, strategy.ranks), dtype=np.int64)
            return Layings(slots=none, gpus=none, complete=False)
        return Layings(slots=np.stack([p[0] for p in pairs]), gpus=np.stack([p[1] for p in pairs]), complete=alone)

    def _room(self, tier: int, block: int) -> tuple[_Ints, _Ints]:
        """GPUs that each slot of a tier gives to whole blocks in its domain, and their running sum."""
        if (tier, block) in self._rooms:
            return self._rooms[tier, block]
        cluster, slots = self.cluster, self.tiers[tier]
        free = cluster.gpus_of_slot[slots]
        if block > 1:
            domain = cluster.domain_of_slot[slots]
            first = np.flatnonzero(np.diff(domain, prepend=-1))
            total = np.add.reduceat(free, first)
            before = np.cumsum(free) - free
            start = np.repeat(before[first], np.diff(first, append=len(slots)))
            room = np.repeat(total // block * block, np.diff(first, append=len(slots)))
            free = np.clip(room - (before - start), 0, free)
        self._rooms[tier, block] = free, np.cumsum(free)
        return self._rooms[tier, block]

    def _fill(self, tier: int, block: int, ranks: int) -> tuple[_Ints, _Ints] | None:
        """(slot, GPU) of so many ranks in order, whole blocks in each domain; None if there is no room."""
        cluster = self.cluster
        free, total = self._room(tier, block)
        if not len(total) or total[-1] < ranks:
            return None
        used = int(np.searchsorted(total, ranks)) + 1
        slots, free, before = self.tiers[tier][:used], free[:used], (total - free)[:used]
        slot = np.repeat(slots, free)[:ranks]
        place = (np.arange(free.sum()) - np.repeat(before, free))[:ranks]
        gpu = np.empty(ranks, dtype=np.int64)
        run = cluster.run_of_slot[slot]
        for index in np.unique(run):
            mine = run == index
            gpu[mine] = self.gpu_order[index][place[mine]]
        return slot, gpu


def _spread(node: Node) -> _Ints:
    """The node's GPUs so that neighbours use different NICs: first one of each NIC, then the second ones.

    >>> from cost_models.hardware.cluster import Cluster
    >>> _spread(Cluster.load("dgx-h100", nodes=1).node(0)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    nic = node.nic_of_gpu(node.gpus)
    earlier = np.array([int(np.sum(nic[:gpu] == nic[gpu])) for gpu in range(node.gpus)], dtype=np.int64)
    return np.lexsort((np.arange(node.gpus), earlier))


def _tiers(cluster: Cluster) -> Iterator[_Ints]:
    """Sets of slots worth using alone, as tours; the whole cluster first."""
    nodes = [run.node for run in cluster.runs]
    traits = np.array(
        [
            (
                node.device.peak_16bit,
                node.nics.reached_bytes_per_s * (node.nics.count - len(node.missing_nics)) / max(node.gpus, 1),
                node.device.memory_bytes,
                node.scale_up.bytes_per_s,
                node.gpus,
            )
            for node in nodes
        ]
    )
    seen: set[tuple[bool, ...]] = set()
    tours: set[bytes] = set()
    thresholds = [np.zeros(traits.shape[1]), *traits]
    for one in thresholds:
        for axis in range(traits.shape[1] + 1):
            least = np.where(np.arange(traits.shape[1]) == axis, one, -np.inf) if axis < len(one) else one
            allowed = np.all(traits >= least, axis=1)
            if tuple(allowed) in seen or len(seen) >= MOST_TIERS:
                continue
            seen.add(tuple(allowed))
            slots = np.flatnonzero(allowed[cluster.run_of_slot] & (cluster.gpus_of_slot > 0))
            for tour in (slots, _leaf_tour(cluster, slots)):
                if tour.tobytes() not in tours:
                    tours.add(tour.tobytes())
                    yield tour


def _leaf_tour(cluster: Cluster, slots: _Ints) -> _Ints:
    """The slots leaf by leaf and domain by domain, those with the most GPUs first."""
    leaf, domain, free = cluster.leaf_of_slot[slots], cluster.domain_of_slot[slots], cluster.gpus_of_slot[slots]
    by_leaf, by_domain = np.bincount(leaf, weights=free), np.bincount(domain, weights=free)
    return slots[np.lexsort((slots, domain, -by_domain[domain], leaf, -by_leaf[leaf]))]


def _blocks(strategy: Strategy, free: _Ints) -> list[int]:
    """Blocks of ranks that may be kept whole in a domain: 1 (fill everything), ulysses, ring, context."""
    inner = strategy.tensor
    sizes = {1, inner * strategy.ulysses, inner * strategy.ring, inner * strategy.context}
    return sorted(size for size in sizes if size == 1 or (size <= free.max() and np.any(free % size)))


def _orders(strategy: Strategy, block: int) -> Iterator[_Ints]:
    """Orders in which ranks follow each other through the slots."""
    grid = rank_grid(strategy)
    pipeline, data, ring, ulysses, tensor = (AXES.index(name) for name in AXES)
    seen: set[bytes] = set()
    usual = (
        (pipeline, data, ring, ulysses, tensor),
        (pipeline, data, ulysses, ring, tensor),
        (pipeline, ring, ulysses, data, tensor),
        (pipeline, ring, data, ulysses, tensor),
        (pipeline, ulysses, data, ring, tensor),
        (pipeline, ulysses, ring, data, tensor),
    )
    for axes in usual[: 2 if strategy.ranks > MANY_RANKS else None]:
        order = np.ascontiguousarray(np.transpose(grid, axes)).ravel()
        if order.tobytes() not in seen:
            seen.add(order.tobytes())
            yield order
    if block == 1 and strategy.ranks <= MANY_RANKS:
        yield from _boxes(strategy, seen)


def _boxes(strategy: Strategy, seen: set[bytes]) -> Iterator[_Ints]:
    """Boxes of a ulysses ranks x b ring ranks as neighbours, for a and b that divide the degrees."""
    grid = rank_grid(strategy)
    p, d, r, u, t = grid.shape
    for a in (x for x in range(2, u) if u % x == 0):
        for b in (x for x in range(2, min(r, 64) + 1) if r % x == 0):
            split = grid.reshape(p, d, r // b, b, u // a, a, t)
            for axes in ((0, 1, 2, 4, 3, 5, 6), (0, 1, 4, 2, 3, 5, 6)):
                order = np.ascontiguousarray(np.transpose(split, axes)).ravel()
                if order.tobytes() not in seen:
                    seen.add(order.tobytes())
                    yield order


class _Buckets:
    """GPUs of a small cluster in groups that no price can tell apart: same node and NIC."""

    def __init__(self, cluster: Cluster) -> None:
        self.members: list[list[tuple[int, int]]] = []
        self.listed: dict[int, tuple[_Ints, _Ints] | None] = {}
        self.node: list[int] = []
        self.twin: list[int] = []  # an earlier slot that is exchangeable with this bucket's slot, or -1
        self.bucket_twin: list[int] = []  # an earlier bucket of the same slot that is exchangeable, or -1
        for slot in range(cluster.slots):
            node = cluster.node(slot)
            nic = node.nic_of_gpu(node.gpus)
            if cluster.slots == cluster.nodes_per_domain or cluster.slots == 1:
                nic = np.zeros(node.gpus, dtype=np.int64)
            own: list[int] = []
            for card in np.unique(nic):
                gpus = [(slot, int(gpu)) for gpu in np.flatnonzero(nic == card)]
                alike = [b for b in own if len(self.members[b]) == len(gpus)]
                self.members.append(gpus)
                self.node.append(slot)
                self.twin.append(_twin(cluster, slot))
                self.bucket_twin.append(alike[-1] if alike else -1)
                own.append(len(self.members) - 1)

    def placements(self, ranks: int) -> tuple[_Ints, _Ints] | None:
        """Slots and GPUs of every assignment of ranks to buckets up to exchange, or None if they are too many."""
        if ranks in self.listed:
            return self.listed[ranks]
        sizes = np.array([len(gpus) for gpus in self.members])
        table = np.zeros((len(sizes), int(sizes.max()), 2), dtype=np.int64)
        for bucket, gpus in enumerate(self.members):
            table[bucket, : len(gpus)] = gpus
        used = np.zeros((1, len(sizes)), dtype=np.int64)
        slot = np.empty((1, 0), dtype=np.int64)
        gpu = np.empty((1, 0), dtype=np.int64)
        for _ in range(ranks):
            open_to = used < sizes
            for bucket in range(len(sizes)):
                open_to[:, bucket] &= self._first_allowed(used, bucket)
            row, bucket_of = np.nonzero(open_to)
            if len(row) > COMPLETE_PLACEMENTS:
                self.listed[ranks] = None
                return None
            pair = table[bucket_of, used[row, bucket_of]]
            slot = np.concatenate([slot[row], pair[:, :1]], axis=1)
            gpu = np.concatenate([gpu[row], pair[:, 1:]], axis=1)
            used = used[row]
            used[np.arange(len(row)), bucket_of] += 1
        self.listed[ranks] = (slot, gpu)
        return slot, gpu

    def _first_allowed(self, used: _Ints, bucket: int) -> NDArray[np.bool_]:
        """An empty bucket or node opens only after the earlier one that it could be exchanged with."""
        allowed = np.ones(len(used), dtype=bool)
        if self.bucket_twin[bucket] >= 0:
            allowed &= (used[:, bucket] > 0) | (used[:, self.bucket_twin[bucket]] > 0)
        if self.twin[bucket] >= 0:
            mine = [b for b, slot in enumerate(self.node) if slot == self.node[bucket]]
            other = [b for b, slot in enumerate(self.node) if slot == self.twin[bucket]]
            allowed &= (used[:, mine].sum(axis=1) > 0) | (used[:, other].sum(axis=1) > 0)
        return allowed


def _twin(cluster: Cluster, slot: int) -> int:
    """The last earlier slot with an equal node and the same leaf, each its own domain; -1 if there is none."""
    alike = [
        other
        for other in range(slot)
        if cluster.node(other) == cluster.node(slot)
        and cluster.leaf_of_slot[other] == cluster.leaf_of_slot[slot]
        and (cluster.nodes_per_domain == 1 or cluster.domain_of_slot[other] == cluster.domain_of_slot[slot])
    ]
    return alike[-1] if alike else -1
