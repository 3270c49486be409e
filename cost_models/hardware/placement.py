"""Where each rank runs: rank -> (slot, GPU of the slot). Slots are places for hosts; launch binds hosts to them.

The default lays ranks in order over the slots, filling the free GPUs of each; `plan` chooses better ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.number import distinct


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Which GPU of which slot each rank has."""

    slot_of_rank: NDArray[np.int64]  # (ranks,)
    gpu_of_rank: NDArray[np.int64]  # (ranks,)

    @classmethod
    def in_order(cls, cluster: Cluster, ranks: int) -> Placement:
        """Ranks 0, 1, … over the GPUs of slot 0, then slot 1, …; GPUs that are not needed stay free."""
        check_placement(cluster, ranks, None)
        free = cluster.gpus_of_slot
        slot = np.repeat(np.arange(cluster.slots), free)[:ranks]
        first = np.concatenate([[0], np.cumsum(free)[:-1]])
        return cls(slot_of_rank=slot, gpu_of_rank=np.arange(ranks) - first[slot])

    def is_in_order(self, cluster: Cluster) -> bool:
        """Whether it is the placement that `in_order` gives."""
        usual = Placement.in_order(cluster, len(self.slot_of_rank))
        same_slots = np.array_equal(self.slot_of_rank, usual.slot_of_rank)
        return same_slots and np.array_equal(self.gpu_of_rank, usual.gpu_of_rank)

    def check(self, cluster: Cluster, ranks: int) -> None:
        """Refuse a placement that is not one free GPU of the cluster for every rank."""
        if len(self.slot_of_rank) != ranks or len(self.gpu_of_rank) != ranks:
            raise InputError(f"the placement has {len(self.slot_of_rank)} ranks; the strategy has {ranks}")
        if np.any(self.slot_of_rank < 0) or np.any(self.slot_of_rank >= cluster.slots):
            raise InputError(f"the placement names slots outside 0 to {cluster.slots - 1} of {cluster.name}")
        if np.any(self.gpu_of_rank < 0) or np.any(self.gpu_of_rank >= cluster.gpus_of_slot[self.slot_of_rank]):
            raise InputError("the placement names a GPU that its slot does not have free")
        place = self.slot_of_rank * (int(cluster.gpus_of_slot.max()) + 1) + self.gpu_of_rank
        if len(distinct(place)) != ranks:
            raise InputError("the placement puts two ranks on one GPU")


def check_placement(cluster: Cluster, ranks: int, placement: Placement | None) -> None:
    """Refuse a placement that does not fit, or more ranks than free GPUs."""
    if placement is not None:
        placement.check(cluster, ranks)
    elif ranks > cluster.gpus:
        raise InputError(f"{ranks} ranks on {cluster.gpus} free GPUs of {cluster.name}; at most {cluster.gpus}")
