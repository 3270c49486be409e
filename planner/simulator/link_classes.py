"""Classes of links from classes of ranks: a GPU's links go with its rank, shared ones with all the ranks they serve.

    NIC, PCIe switch, socket: the multisets of classes on the unit and in its slot (and whose NIC hangs on it)
    leaf, spine:      the multiset of classes in it
    rail-only         all of these by their number too: bytes enter and leave at cards and GPUs of others

With single ranks as classes every link is its own class. Of averaged classes a slot counts for nothing, and leaves and
spines are told apart by their rates. A class is named after its lowest unit.
"""

from __future__ import annotations

import numpy as np

from cost_models.hardware.wiring import (
    KINDS,
    LEAF_DOWN,
    LEAF_UP,
    NIC_IN,
    NIC_OUT,
    OF_GPU,
    SOCKET_IN,
    SOCKET_OUT,
    TRUNKS,
)
from cost_models.number import distinct
from planner.simulator.folding import Hashes, Partition, mix
from planner.simulator.topology import Floats, Ints, Topology


class LinkClasses:
    """Classes of links from classes of ranks: a GPU's links go with its rank, other units with all ranks they serve."""

    def __init__(self, topology: Topology, partition: Partition) -> None:
        self.topology, self.partition = topology, partition
        self.known: dict[int, tuple[Ints, Ints, Ints]] = {}

    def of_kind(self, kind: int) -> tuple[Ints, Ints, Ints]:
        """(class of each unit, units in each class, lowest unit of each class) of one kind of link."""
        family = 0 if kind in OF_GPU else kind - kind % 2
        if family not in self.known:
            self.known[family] = self._gpu_units() if kind in OF_GPU else self._shared_units(kind)
        return self.known[family]

    def _gpu_units(self) -> tuple[Ints, Ints, Ints]:
        t, place, of_rank = self.topology, self.topology.place, self.partition.class_of_rank
        units = t.cluster.slots * t.wiring.gpu_places if t.rail_only else int(place.max()) + 1
        of_unit = np.full(units, -1)
        of_unit[place] = of_rank
        lowest = np.full(self.partition.classes, len(of_unit))
        np.minimum.at(lowest, of_rank, place)
        if not t.rail_only:
            return of_unit, self.partition.size, lowest
        free = np.flatnonzero(of_unit < 0)  # GPUs without a rank, whose links others' bytes may cross
        colour = mix(self.partition.class_of_rank.astype(np.uint64))
        whole = _numbered(_sums(t.slot, colour, t.cluster.slots), t.wiring.gpu_places)[free]
        _, first, number, size = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
        of_unit[free] = self.partition.classes + number
        return of_unit, np.concatenate([self.partition.size, size]), np.concatenate([lowest, free[first]])

    def _shared_units(self, kind: int) -> tuple[Ints, Ints, Ints]:
        t = self.topology
        colour, averaged = mix(self.partition.class_of_rank.astype(np.uint64)), self.partition.averaged
        if kind in TRUNKS:
            rates, level = (t.leaf_rate, t.leaf) if kind in (LEAF_UP, LEAF_DOWN) else (t.spine_rate, t.spine)
            units, rails = len(rates), t.wiring.rails
            whole = _numbered(
                rates[::rails].view(np.uint64) if averaged else _sums(level, colour, units // rails), rails
            )
        else:
            per_slot = t.per_slot(kind)
            of_rank, of_nic = (t.socket, t.nic_socket) if kind in (SOCKET_OUT, SOCKET_IN) else (t.switch, t.nic_switch)
            units, of_rank = t.cluster.slots * per_slot, t.nic if kind in (NIC_OUT, NIC_IN) else of_rank
            around = np.zeros(t.cluster.slots, dtype=np.uint64) if averaged else _sums(t.slot, colour, t.cluster.slots)
            around = _numbered(around, per_slot) if t.rail_only else np.repeat(around, per_slot)
            with np.errstate(over="ignore"):
                whole = mix(_sums(of_rank, colour, units)) + mix(around)
                if kind not in (NIC_OUT, NIC_IN) and t.reaches_nic_across.any():
                    whole = whole + mix(_sums(of_nic, mix(colour), units))
        if self.partition.classes == t.ranks:
            whole = np.arange(units, dtype=np.uint64)
        _, lowest, of_unit, size = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
        return of_unit, size, lowest

    def number(self, kind: int, unit: Ints) -> Ints:
        """A number for the class of each unit; unique over kinds."""
        return np.asarray(self.of_kind(kind)[0][unit] * len(KINDS) + kind, dtype=np.int64)

    def describe(self, used: Ints) -> tuple[Floats, Floats, tuple[str, ...]]:
        """Rate, number of links and a name for each class in `used`."""
        which, kinds = np.divmod(used, len(KINDS))
        units = np.empty(len(used), dtype=np.int64)
        rate, copies = np.empty(len(used)), np.empty(len(used))
        for kind in distinct(kinds).tolist():
            these = kinds == kind
            _, size, lowest = self.of_kind(kind)
            units[these] = lowest[which[these]]
            copies[these] = size[which[these]]
            rate[these] = self.topology.rate(kind, units[these])
        names = tuple(self.topology.link_name(k, u) for k, u in zip(kinds.tolist(), units.tolist(), strict=True))
        return rate, copies, names


def _sums(bag: Ints, value: Hashes, bags: int) -> Hashes:
    total = np.zeros(bags, dtype=np.uint64)
    np.add.at(total, bag, value)
    return total


def _numbered(value: Hashes, places: int) -> Hashes:
    """`value` for each of `places` units of a slot or switch, told apart by their number."""
    with np.errstate(over="ignore"):
        return np.repeat(mix(value), places) + np.tile(np.arange(places, dtype=np.uint64), len(value))
