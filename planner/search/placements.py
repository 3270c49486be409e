"""Where ranks can lie: placements of one layout, complete on small clusters, the promising families on large ones.

    order   which ranks are neighbours: ulysses innermost, ring innermost, data innermost, or a box a x b of both
    fill    how many of them each slot takes: all free GPUs, or complete ulysses blocks only (one of 4 on a node of 5)
    tier    which slots: all, or only those with at least some GPU speed, card rate, memory, or rate inside the domain
    tour    leaf by leaf and domain by domain, those with most GPUs first, their better nodes first or last

Inside a slot GPUs are taken so that neighbours use different cards: a ring's exit spreads over all of them; where that
differs, in their order, so that neighbours are behind one switch or socket; with the fastest of unlike cards at the
ends, where rings enter and leave. Neither tiers nor tours depend on how slots are numbered. On small clusters every
assignment of ranks to GPUs is listed, up to exchanges that no price can see. Where a node's cards are unlike, each
placement also stands with its ranks matched to them (`cards.py`). Left out beyond that: unequal splits of one ulysses
group over nodes other than those that a fill makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.hardware.node import Node
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import NIC_OUT, Ints, Wiring
from cost_models.number import distinct
from cost_models.strategy import AXES, Strategy, rank_grid
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.paths import LARGE_BYTES
from planner.search.cards import Cards

COMPLETE_RANKS = 10
"""Layouts of more ranks are not listed completely."""
COMPLETE_PLACEMENTS = 6000
"""Nor are those with more placements than this."""
MOST_TIERS = 12
MOST_LISTED_RANKS = 2**17
"""Placements of a layout are no more than so many ranks have, but at least FEWEST_LISTED."""
FEWEST_LISTED = 4
MOST_MATCHED_RANKS = 512
"""Ranks of larger layouts are not matched to the cards of their nodes."""
MANY_RANKS = 2048
"""Beyond so many ranks only ulysses or the ring is tried innermost, and tiers of fewer kinds of nodes come first."""


class Placements(Struct, frozen=True, kw_only=True, eq=False):
    """Placements of one layout: slots and GPUs of shape (placements, ranks)."""

    slots: Ints
    gpus: Ints
    complete: bool  # up to exchanges that no price can see

    @classmethod
    def listed(cls, several: Sequence[Placement]) -> Placements:
        """These and no others."""
        slots, gpus = (np.stack([getattr(one, name) for one in several]) for name in ("slot_of_rank", "gpu_of_rank"))
        return cls(slots=slots, gpus=gpus, complete=False)


class Placer:
    """Placements on one cluster; what does not depend on the layout is read once."""

    def __init__(self, costs: ClusterCosts) -> None:
        self.cluster, wiring = costs.cluster, costs.wiring
        every = [[of(run.node) for run in self.cluster.runs] for of in (_spread, _in_order, _ends)]
        self.gpu_orders = list({np.concatenate(one).tobytes(): one for one in every}.values())
        self.tiers, self.cards = list(_tiers(costs)), Cards(self.cluster)
        kind = np.unique(_traits(costs), axis=0, return_inverse=True)[1].reshape(-1)[self.cluster.run_of_slot]
        self.purest = sorted(range(len(self.tiers)), key=lambda tier: len(distinct(kind[self.tiers[tier]])))
        self.domain_sizes = distinct(wiring.domain_gpus)
        self._rooms: dict[tuple[int, int], tuple[Ints, Ints]] = {}
        self.cells = _Cells(wiring) if self.cluster.gpus <= 4 * COMPLETE_RANKS else None
        buses = wiring.in_pairs.any() or wiring.crosses_switch.any()
        self.alike = self.cluster.slots == 1 and not buses  # one node whose GPUs no price can tell apart

    def placements(self, strategy: Strategy) -> Placements:
        """Every placement up to symmetry if there are few, else those of the families; empty without room."""
        if self.cells is not None and strategy.ranks <= COMPLETE_RANKS:
            listed = self.cells.placements(strategy.ranks)
            if listed is not None:
                return Placements(slots=listed[0], gpus=listed[1], complete=True)
        found: dict[bytes, tuple[Ints, Ints]] = {}
        most = max(FEWEST_LISTED, MOST_LISTED_RANKS // strategy.ranks)
        tiers = self.purest if strategy.ranks > MANY_RANKS else range(len(self.tiers))
        for block, tier in itertools.product(_blocks(strategy, self.domain_sizes), tiers):
            for gpu_order in self.gpu_orders:
                fill = self._fill(tier, block, strategy.ranks, gpu_order) if len(found) < most else None
                if fill is None:
                    continue
                for order in orders(strategy, block):
                    slot, gpu = np.empty_like(fill[0]), np.empty_like(fill[1])
                    slot[order], gpu[order] = fill
                    found.setdefault(slot.tobytes() + gpu.tobytes(), (slot, gpu))
        if not found:
            none = np.empty((0, strategy.ranks), dtype=np.int64)
            return Placements(slots=none, gpus=none, complete=False)
        slots, gpus = (np.stack(part) for part in zip(*found.values(), strict=True))
        return self.with_cards(strategy, Placements(slots=slots, gpus=gpus, complete=self.alike))

    def with_cards(self, strategy: Strategy, listed: Placements) -> Placements:
        """These placements, and where nodes have unlike cards also with those of each matched to its ranks."""
        if not self.cards.unlike or not 1 < strategy.ranks <= MOST_MATCHED_RANKS:
            return listed
        gpus = self.cards.matched(strategy, listed.slots, listed.gpus)
        both = np.concatenate([listed.slots, listed.slots]), np.concatenate([listed.gpus, gpus])
        return Placements(slots=both[0], gpus=both[1], complete=listed.complete)

    def _room(self, tier: int, block: int) -> tuple[Ints, Ints]:
        """GPUs that each slot of a tier gives to complete blocks in its domain, and their running sum."""
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

    def _fill(self, tier: int, block: int, ranks: int, gpu_order: list[Ints]) -> tuple[Ints, Ints] | None:
        """(slot, GPU) of so many ranks in order, complete blocks in each domain; `None` if there is no room."""
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
        for index in distinct(run):
            mine = run == index
            gpu[mine] = gpu_order[index][place[mine]]
        return slot, gpu


def _spread(node: Node) -> Ints:
    """The node's GPUs so that neighbours use different NICs: first one of each NIC, then the second ones.

    >>> from cost_models.hardware.cluster import Cluster
    >>> _spread(Cluster.load("dgx-h100", nodes=1).node(0)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    nic = node.nic_of_gpu(node.gpus)
    earlier = np.array([int(np.sum(nic[:gpu] == nic[gpu])) for gpu in range(node.gpus)], dtype=np.int64)
    return np.lexsort((np.arange(node.gpus), earlier))


def _in_order(node: Node) -> Ints:
    return np.arange(node.gpus)


def _ends(node: Node) -> Ints:
    """The GPUs with the fastest cards first and last, where cards are unlike: rings enter a node at its first ranks and
    leave it at its last ones. Else as `_spread`.

    >>> from dataclasses import replace
    >>> from cost_models.hardware.cluster import Cluster
    >>> _ends(replace(Cluster.load("dgx-h100", nodes=1).node(0), nic_shares=(0.5, 1, 0.25, 1, 1, 1, 1, 0.25))).tolist()
    [1, 4, 6, 2, 7, 0, 5, 3]
    """
    if not node.gpus or len(set(node.nic_shares)) < 2:
        return _spread(node)
    nic = np.maximum(node.nic_of_gpu(node.gpus), 0)
    shares = np.array(node.nic_shares)[nic] / np.bincount(nic)[nic]
    falling = np.argsort(-shares, kind="stable")
    return np.concatenate([falling[::2], falling[1::2][::-1]])


def _traits(costs: ClusterCosts) -> NDArray[np.float64]:
    """What makes the nodes of a run better, the larger the better; (runs, traits)."""
    most = max(2, int(costs.wiring.domain_gpus.max()))
    rows = []
    for run, node in enumerate(costs.wiring.nodes):
        cards = float(costs.rates.of_run[run, NIC_OUT]) * (node.nics.count - len(node.missing_nics))
        inside = [
            LARGE_BYTES / float(costs.links((run,)).intra_s("all_to_all", ranks, float(LARGE_BYTES)))
            for ranks in (2, most)  # a mesh and a switch of one nominal rate differ in small groups
        ]
        device = node.device
        rows.append((node.gpus, device.peak_16bit, cards / max(node.gpus, 1), device.memory_bytes, *inside))
    return np.array(rows, dtype=np.float64)


def _tiers(costs: ClusterCosts) -> Iterator[Ints]:
    """Sets of slots worth using alone, as tours; all slots first."""
    cluster, traits = costs.cluster, _traits(costs)
    rising, kind = np.unique(traits, axis=0, return_inverse=True)
    kinds, kind = rising[::-1], kind.reshape(-1)
    seen: set[tuple[bool, ...]] = set()
    tours: set[bytes] = set()
    for least_of in (np.zeros(traits.shape[1]), *kinds):
        for axis in range(traits.shape[1] + 1):
            one = np.arange(traits.shape[1]) == axis
            allowed = np.all(traits >= (np.where(one, least_of, -np.inf) if one.any() else least_of), axis=1)
            if tuple(allowed) in seen or len(seen) >= MOST_TIERS:
                continue
            seen.add(tuple(allowed))
            slots = np.flatnonzero(allowed[cluster.run_of_slot] & (cluster.gpus_of_slot > 0))
            if not slots.size:
                continue
            for better_first in (True, False):
                tour = _tour(costs.wiring, slots, kind if better_first else -kind)
                if tour.tobytes() not in tours:
                    tours.add(tour.tobytes())
                    yield tour


def _tour(wiring: Wiring, slots: Ints, kind_of_run: Ints) -> Ints:
    """The slots leaf by leaf and domain by domain, those with most GPUs first, and in a domain the higher kinds first.

    Leaves, and domains of a leaf, of as many GPUs follow each other by the kinds of their nodes. A domain that spans
    leaves counts with the first of them.
    """
    cluster = wiring.cluster
    domain, free, kind = cluster.domain_of_slot[slots], cluster.gpus_of_slot[slots], kind_of_run[cluster.run_of_slot]
    first_slot = np.unique(cluster.domain_of_slot, return_index=True)[1]
    leaf = cluster.leaf_of_slot[first_slot[domain]]
    by_domain = _ranked(domain, free, kind[slots])
    by_leaf = _ranked(leaf, free, kind[slots])
    return slots[np.lexsort((slots, -kind[slots], domain, by_domain[domain], leaf, by_leaf[leaf]))]


def _ranked(unit: Ints, free: Ints, kind: Ints) -> Ints:
    """A number for each unit: the smaller the more GPUs it has, then by the kinds of its nodes."""
    kind = kind - kind.min()
    units, kinds = int(unit.max()) + 1, int(kind.max()) + 1
    nodes = np.bincount(unit * kinds + kind, minlength=units * kinds).reshape(units, kinds)
    gpus = np.bincount(unit, weights=free)
    return np.unique(-np.column_stack([gpus, nodes]), axis=0, return_inverse=True)[1].reshape(-1)


def _blocks(strategy: Strategy, free: Ints) -> list[int]:
    """Blocks of ranks that may stay together in a domain: 1 (fill everything), ulysses, ring, context."""
    inner = strategy.tensor
    sizes = {1, inner * strategy.ulysses, inner * strategy.ring, inner * strategy.context}
    return sorted(size for size in sizes if size == 1 or (size <= free.max() and np.any(free % size)))


def orders(strategy: Strategy, block: int) -> Iterator[Ints]:
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


def _boxes(strategy: Strategy, seen: set[bytes]) -> Iterator[Ints]:
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


class _Cells:
    """GPUs of a small cluster in cells that no price can tell apart: same node, card, bridged pair and PCIe switch.

    Two cells of a node may be exchanged if they are as large, their cards equally fast, and they share every unit, or
    have it alone; so may equal nodes of a leaf.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.members: list[list[tuple[int, int]]] = []
        self.listed: dict[int, tuple[Ints, Ints] | None] = {}
        self.rules: list[tuple[list[int], list[int]]] = []  # the first cells open only after one of the second ones
        cluster, node_cells = wiring.cluster, []
        for slot in range(cluster.slots):
            units, run = _units(wiring, slot), int(cluster.run_of_slot[slot])
            cards = wiring.card_share[run, wiring.nic_of[run]]
            first, parts = len(self.members), _parts(units)
            self.members += [[(slot, int(gpu)) for gpu in part] for part in parts]
            node_cells.append(list(range(first, len(self.members))))
            for index, part in enumerate(parts):
                alike = [i for i in range(index) if cards[parts[i][0]] == cards[part[0]]]
                twin = [i for i in alike if _exchangeable(units, parts[i], part)]
                if twin:
                    self.rules.append(([first + index], [first + twin[-1]]))
            twin_slot = _twin(wiring, slot)
            if twin_slot >= 0:
                self.rules.append((node_cells[slot], node_cells[twin_slot]))

    def placements(self, ranks: int) -> tuple[Ints, Ints] | None:
        """Slots and GPUs of every assignment of ranks to cells up to exchange; `None` means that they are too many."""
        if ranks in self.listed:
            return self.listed[ranks]
        self.listed[ranks] = None
        sizes = np.array([len(gpus) for gpus in self.members])
        table = np.zeros((len(sizes), int(sizes.max()), 2), dtype=np.int64)
        for cell, gpus in enumerate(self.members):
            table[cell, : len(gpus)] = gpus
        used = np.zeros((1, len(sizes)), dtype=np.int64)
        slot, gpu = np.empty((1, 0), dtype=np.int64), np.empty((1, 0), dtype=np.int64)
        for _ in range(ranks):
            open_to = used < sizes
            for cells, before in self.rules:
                open_to[:, cells] &= used[:, cells + before].any(axis=1, keepdims=True)
            row, cell_of = np.nonzero(open_to)
            if len(row) > COMPLETE_PLACEMENTS:
                return None
            pair = table[cell_of, used[row, cell_of]]
            slot = np.concatenate([slot[row], pair[:, :1]], axis=1)
            gpu = np.concatenate([gpu[row], pair[:, 1:]], axis=1)
            used = used[row]
            used[np.arange(len(row)), cell_of] += 1
        self.listed[ranks] = (slot, gpu)
        return slot, gpu


def _units(wiring: Wiring, slot: int) -> NDArray[np.int64]:
    """What the GPUs of a slot share and prices see: card (if there is a network), pair, switch; (units, GPUs)."""
    run = wiring.cluster.run_of_slot[slot]
    gpus = np.arange(wiring.nodes[run].gpus)
    seats = wiring.seats(np.full(len(gpus), slot), gpus)
    alone = np.zeros(len(gpus), dtype=np.int64)
    rows = [
        seats.nic if len(wiring.domain_gpus) > 1 else alone,
        seats.pair if wiring.in_pairs[run] else alone,
        seats.switch if wiring.crosses_switch[run] else alone,
    ]
    return np.stack(rows)


def _parts(units: Ints) -> list[Ints]:
    """GPUs with equal units, in order of their first ones."""
    _, first, where = np.unique(units, axis=1, return_index=True, return_inverse=True)
    return [np.flatnonzero(where.reshape(-1) == part) for part in np.argsort(first)]


def _exchangeable(units: Ints, one: Ints, other: Ints) -> bool:
    """Whether two cells are as large, and of every unit either share it or have one each alone."""
    if len(one) != len(other):
        return False
    return all(
        unit[one[0]] == unit[other[0]] or all(np.count_nonzero(unit == unit[c[0]]) == len(c) for c in (one, other))
        for unit in units
    )


def _twin(wiring: Wiring, slot: int) -> int:
    """The last earlier slot with an equal node and the same leaf, each in a separate domain; -1: no such slot."""
    cluster = wiring.cluster
    alike = [
        other
        for other in range(slot)
        if cluster.node(other) == cluster.node(slot)
        and cluster.leaf_of_slot[other] == cluster.leaf_of_slot[slot]
        and (cluster.nodes_per_domain == 1 or cluster.domain_of_slot[other] == cluster.domain_of_slot[slot])
    ]
    return alike[-1] if alike else -1
