"""Flows in flight: bytes left of each, and how fast they go while the set of active ones does not change.

    left(t + dt) = left(t) - rate x dt          rate = max-min fair shares of the links crossed

Rates are remembered by set of active flows: a step repeats few such sets. Units: bytes, bytes/s, seconds.
"""

from __future__ import annotations

import numpy as np

from planner.simulator.maxmin import Sharing
from planner.simulator.network import Batch
from planner.simulator.topology import Floats, Ints

SAME = 1e-12
"""Relative to a flow's size or to the time: closer than this is the same moment."""
CACHED_FLOWS = 4096
"""Rates are remembered by set of active flows up to this many flow classes."""


class Flows:
    """Bytes left of every flow class, and the max-min rates of those in flight."""

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.left = np.zeros(sharing.flows)
        self.size = np.zeros(sharing.flows)
        self.serial = np.zeros(sharing.flows, dtype=np.int64)  # which time it is in flight
        self.carried = np.zeros(sharing.flows)  # bytes so far
        self.is_active = np.zeros(sharing.flows, dtype=bool)
        self.active: Ints = np.zeros(0, dtype=np.int64)
        self.rate: Floats = np.zeros(0)
        self.changed = False
        self._known: dict[bytes, tuple[Ints, Floats]] = {}

    def start(self, batch: Batch, size: float) -> None:
        flows = batch.flows
        self.left[flows] = self.size[flows] = size * batch.share
        self.carried[flows] += self.size[flows]
        self.serial[flows] += 1
        self.is_active[flows] = True
        self.changed = True

    def share_links(self) -> None:
        """Rates for the flows in flight now."""
        self.changed = False
        key = self.is_active.tobytes() if len(self.left) <= CACHED_FLOWS else b""
        if key in self._known:
            self.active, self.rate = self._known[key]
            return
        self.active = np.flatnonzero(self.is_active)
        self.rate = self.sharing.rates(self.active)
        if key:
            self._known[key] = (self.active, self.rate)

    def next_end_s(self) -> float:
        return float((self.left[self.active] / self.rate).min()) if self.active.size else np.inf

    def advance(self, seconds: float, now: float) -> Ints:
        """Send for `seconds`; the flows that are done."""
        if not self.active.size:
            return self.active
        left = self.left[self.active] - self.rate * seconds
        self.left[self.active] = left
        done = self.active[left <= np.maximum(self.size[self.active] * SAME, self.rate * (now * SAME * 1e-2))]
        if done.size:
            self.is_active[done] = False
            self.changed = True
        return done
