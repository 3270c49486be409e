"""The least seconds of a step that GPUs' memory holds: layers as a mixture of policies, in any shares.

    bytes    base + Σ share x kept + again <= room
    seconds  Σ share x seconds, least at two policies at most: a linear program with one row
    again    what a recomputed layer makes anew lives once: of two policies the larger
    room     of unlike GPUs, whose blocks may be as unlike, the mean of the roomiest, as many as there are ranks

A share need not be whole layers, so that no plan takes less. Bytes of one rank, seconds of a step. Left out: host
memory, layers of several kinds.
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
from cost_models.strategy import LayerRange

NO_ROOM_S = 1e12
"""Stands for the seconds of a layout that memory does not hold under any policy."""
Floats = NDArray[np.float64]


class Held:
    """What layouts hold under each policy of all their layers, against the room of the devices; each (layouts,)."""

    def __init__(
        self,
        sizes: RankSizes,
        policies: Sequence[LayerRange],
        gpus: Sequence[tuple[Device, int]],
        room: Room,
        ranks: Floats,
    ) -> None:
        def total(activations: Number, moment: peaks.Peak) -> Floats:
            each = [sum(components(sizes, activations, moment, device).values()) for device, _ in gpus]
            least: Floats = np.min([np.broadcast_to(one, ranks.shape) for one in each], axis=0)
            return least

        outside = peaks.peak(sizes)
        base = total(0, outside)
        self.room = _roomiest(gpus, room, ranks) - base
        self.kept = [total(one.count * peaks.kept_bytes(sizes, one), outside) - base for one in policies]
        self.again = [total(0, peaks.peak(sizes, [one])) - base for one in policies]

    def least_s(self, seconds: Callable[[int], Floats]) -> Floats:
        """`seconds(i)`: of the step whose layers all have policy i."""
        lean = [kept + again <= self.room for kept, again in zip(self.kept, self.again, strict=True)]
        found = np.full(self.room.shape, NO_ROOM_S)
        if not np.any(lean):
            return found
        took = [seconds(policy) for policy in range(len(lean))]
        for fits, one in zip(lean, took, strict=True):
            found = np.minimum(found, np.where(fits, one, NO_ROOM_S))
        for more, less in itertools.permutations(range(len(took)), 2):
            room = self.room - np.maximum(self.again[more], self.again[less])
            saved = np.maximum(self.kept[more] - self.kept[less], 1.0)
            share = np.clip((room - self.kept[less]) / saved, 0.0, 1.0)
            mixed = np.where(self.kept[less] <= room, share * took[more] + (1 - share) * took[less], NO_ROOM_S)
            found = np.where(self.kept[more] > self.kept[less], np.minimum(found, mixed), found)
        return found


def _roomiest(gpus: Sequence[tuple[Device, int]], room: Room, ranks: Floats) -> Floats:
    """Bytes that a rank may be priced at, as a mean over the roomiest GPUs."""
    total, left = np.zeros(ranks.shape), ranks
    for device, many in sorted(gpus, key=lambda pair: -pair[0].allocatable_bytes):
        used = np.minimum(left, many)
        total, left = total + used * room.limit_bytes(device.allocatable_bytes), left - used
    return total / ranks
