"""Which host fills which slot of a plan, and so which rank a process is: (host, local rank) -> plan rank.

    plan:  rank -> (slot, GPU)          binding:  slot -> host
    host "b" is bound to slot 0, whose ranks are 5 on GPU 0 and 2 on GPU 1:   (b, 0) -> rank 5,   (b, 1) -> rank 2

Local rank i of a host is the rank on its i-th used GPU; the order in which a launcher numbers processes is never
read. Hosts whose GPUs are known are bound to slots of the same class (GPU model and at least as many); hosts known by
name only take the remaining slots in the order given. Leaves out: distance between hosts (slots of one class differ
only by leaf; give `--hosts` in slot order where that matters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cost_models.errors import InputError
from cost_models.hardware.device_names import same_card
from cost_models.hardware.machine import Host
from planner.plan_file import Plan


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where one rank runs."""

    rank: int
    slot: int
    gpu: int  # index on its host
    host: str
    local_rank: int


@dataclass(frozen=True, kw_only=True)
class Binding:
    """`host_of_slot` covers the slots that the plan uses; seats are ordered by rank."""

    host_of_slot: Mapping[int, str]
    seats: tuple[Seat, ...]

    def on(self, host: str) -> tuple[Seat, ...]:
        """The seats of one host, by local rank; an unknown host is an InputError."""
        seats = sorted((seat for seat in self.seats if seat.host == host), key=lambda seat: seat.local_rank)
        if not seats:
            raise InputError(f"host {host!r} is bound to no slot of the plan; bound: {', '.join(self.hosts)}")
        return tuple(seats)

    def seat(self, host: str, local_rank: int) -> Seat:
        """Where local process `local_rank` of `host` is in the plan."""
        seats = self.on(host)
        if local_rank >= len(seats):
            raise InputError(
                f"torchrun starts more processes on {host} than the plan has ranks there; "
                f"use --nproc-per-node={len(seats)}"
            )
        return seats[local_rank]

    @property
    def hosts(self) -> tuple[str, ...]:
        """In slot order: the node ranks of a multi-node launch; the processes meet at the first."""
        return tuple(self.host_of_slot[slot] for slot in sorted(self.host_of_slot))


def used_slots(plan: Plan) -> tuple[int, ...]:
    """Slots with at least one rank, ascending."""
    return tuple(int(slot) for slot in np.unique(plan.placement.slot_of_rank))


def bind(plan: Plan, names: Sequence[str], known: Mapping[str, Host] | None = None) -> Binding:
    """Bind every used slot to one of `names`; `known` holds what was discovered on some of them."""
    slots, known = used_slots(plan), known or {}
    if len(set(names)) != len(names):
        raise InputError(f"--hosts names a host twice: {', '.join(names)}")
    if len(names) != len(slots):
        raise InputError(f"the plan uses {len(slots)} hosts; --hosts names {len(names)}: {', '.join(names) or 'none'}")
    free, chosen = list(slots), {}
    for name in sorted(names, key=lambda name: name not in known):
        fitting = [slot for slot in free if name not in known or fits(plan, slot, known[name])]
        if not fitting:
            raise InputError(f"{known[name].describe()} fits none of the plan's free slots {free}")
        # A host known by name only takes the slot of its place in the list while that is free.
        listed = slots[list(names).index(name)]
        slot = listed if listed in fitting else fitting[0]
        chosen[slot] = name
        free.remove(slot)
    return Binding(host_of_slot=chosen, seats=_seats(plan, chosen))


def fits(plan: Plan, slot: int, host: Host) -> bool:
    """Whether the host has what the slot's node has: enough GPUs, of its model."""
    node = plan.cluster.node(slot)
    if node.device.architecture == "cpu":
        return True
    return len(host.gpus) >= gpus_needed(plan, slot) and all(
        same_card(node.device, gpu.name, gpu.memory_bytes / 1e9) for gpu in host.gpus
    )


def gpus_needed(plan: Plan, slot: int) -> int:
    """GPU indices 0 … n-1 must exist on the slot's host for this n."""
    return int(plan.placement.gpu_of_rank[plan.placement.slot_of_rank == slot].max()) + 1


def _seats(plan: Plan, host_of_slot: Mapping[int, str]) -> tuple[Seat, ...]:
    slots, gpus = plan.placement.slot_of_rank.tolist(), plan.placement.gpu_of_rank.tolist()
    places = sorted(range(len(slots)), key=lambda rank: (slots[rank], gpus[rank]))
    local, seats, last = 0, [], -1
    for rank in places:
        local = local + 1 if slots[rank] == last else 0
        last = slots[rank]
        seats.append(Seat(rank=rank, slot=last, gpu=gpus[rank], host=host_of_slot[last], local_rank=local))
    return tuple(sorted(seats, key=lambda seat: seat.rank))
