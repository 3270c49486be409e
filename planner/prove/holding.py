"""The least seconds of a step that a GPU's memory holds: layers as a mixture of recompute policies, in any shares.

    bytes    base + Σ share x kept + again <= room
    seconds  Σ share x seconds, least at two policies at most: a linear program with one row
    again    what a recomputed layer makes anew lives once: of two policies at least the second least of all

A share need not be whole layers, so that no plan takes less. Bytes of one rank, seconds of a step. Left out: levers of
memory (a space that has them is bounded without memory), layers of several kinds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.device import Device
from cost_models.layer.sizes import RankSizes
from cost_models.memory import peaks
from cost_models.memory.components import components
from cost_models.number import Number
from cost_models.room import Room
from cost_models.strategy import LayerRange, Recompute

NO_ROOM_S = 1e12
"""Stands for the seconds of a layout that memory does not hold under any policy."""
Floats = NDArray[np.float64]


class Held:
    """What layouts hold under each policy of all their layers, against the room of a device."""

    def __init__(self, sizes: RankSizes, policies: Sequence[Recompute], device: Device, room: Room, layouts: int):
        def total(activations: Number, moment: peaks.Peak) -> Floats:
            value = sum(components(sizes, activations, moment, device).values())
            return np.broadcast_to(np.asarray(value, dtype=np.float64), (layouts,))

        count, outside = sizes.workload.model.layers, peaks.peak(sizes)
        base = total(0, outside)
        self.room = room.limit_bytes(device.allocatable_bytes) - base
        self.kept = [total(count * peaks.kept_bytes(sizes, one), outside) - base for one in policies]
        alone = [LayerRange(recompute=one, count=count) for one in policies]
        self.again = [total(0, peaks.peak(sizes, [part])) - base for part in alone]

    def least_s(self, seconds: Callable[[int], Number]) -> Floats:
        """`seconds(i)`: of the step whose layers all have policy i. The first policy must be the fastest."""
        held = [kept + again <= self.room for kept, again in zip(self.kept, self.again, strict=True)]
        took: list[Floats] = [np.broadcast_to(np.asarray(seconds(0), dtype=np.float64), self.room.shape)]
        if held[0].all():
            return took[0]
        took += [np.broadcast_to(np.asarray(seconds(i)), self.room.shape) for i in range(1, len(self.kept))]
        alone = [np.where(fits, one, NO_ROOM_S) for fits, one in zip(held, took, strict=True)]
        found: Floats = np.min(alone, axis=0)
        if len(took) == 1:
            return found
        room = self.room - np.sort(self.again, axis=0)[1]
        for one, other in itertools.permutations(range(len(took)), 2):
            more = np.maximum(self.kept[one] - self.kept[other], 1.0)
            share = np.clip((room - self.kept[other]) / more, 0.0, 1.0)
            mixed = np.where(self.kept[other] <= room, share * took[one] + (1 - share) * took[other], NO_ROOM_S)
            found = np.where(self.kept[one] > self.kept[other], np.minimum(found, mixed), found)
        return found
