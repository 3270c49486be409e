"""Max-min fair rates of flows that share links: nobody's rate can rise without lowering a smaller or equal one.

    for every link l:  sum over flows f of count[l, f] x rate[f]  <=  capacity[l]      (bytes/s)

Progressive filling, exact: a link's fair share is (what is left of it) / (flows on it that are not frozen). A link
whose share is the smallest along every one of its flows is a *local* bottleneck; all of them are frozen in one round,
so the number of rounds is the depth of the chain of bottlenecks, not the number of links. `count` above one serves
folded networks, where one flow stands for many equal ones. Left out: weights by latency or by window (TCP).
Max-min sharing is not monotone: a faster link can end a fixed set of flows later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TIE = 1e-14
"""Shares closer than this (relative) are one bottleneck: rounding must not split a round of equal links."""


class Sharing:
    """Flows on links as three parallel arrays: `flow[e]` crosses `link[e]`, which carries `count[e]` of its kind.

    >>> sharing = Sharing(flow=[0, 0, 1, 2], link=[0, 1, 1, 0], count=[1, 1, 1, 1], capacity=[3.0, 2.0], flows=3)
    >>> sharing.rates(np.array([0, 1, 2])).tolist()
    [1.0, 1.0, 2.0]
    """

    def __init__(
        self,
        *,
        flow: NDArray[np.int64] | list[int],
        link: NDArray[np.int64] | list[int],
        count: NDArray[np.float64] | list[float],
        capacity: NDArray[np.float64] | list[float],
        flows: int,
    ) -> None:
        self.flow = np.asarray(flow, dtype=np.int64)
        self.link = np.asarray(link, dtype=np.int64)
        self.count = np.asarray(count, dtype=np.float64)
        self.capacity = np.asarray(capacity, dtype=np.float64)
        self.flows = flows

    def rates(self, active: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rates in bytes/s of the `active` flows, in their order; a flow that crosses no link has rate infinity."""
        is_active = np.zeros(self.flows, dtype=bool)
        is_active[active] = True
        keep = is_active[self.flow]
        flow, link, count = self.flow[keep], self.link[keep], self.count[keep]
        rate = np.full(self.flows, np.inf)
        left = self.capacity.copy()
        while flow.size:
            flow, link, count = self._freeze(flow, link, count, rate, left)
        return rate[active]

    def _freeze(
        self,
        flow: NDArray[np.int64],
        link: NDArray[np.int64],
        count: NDArray[np.float64],
        rate: NDArray[np.float64],
        left: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """One round: set the rates of all flows on local bottlenecks, take them off the links; what remains."""
        load = np.bincount(link, count, left.size)
        share = np.full(left.size, np.inf)
        np.divide(left, load, out=share, where=load > 0)
        on_link = share[link]
        smallest = np.full(self.flows, np.inf)
        np.minimum.at(smallest, flow, on_link)
        along = np.full(left.size, np.inf)
        np.minimum.at(along, link, smallest[flow])
        bottleneck = (load > 0) & (along >= share * (1 - TIE))
        done = np.zeros(self.flows, dtype=bool)
        done[flow[bottleneck[link]]] = True
        rate[done] = smallest[done]
        gone = done[flow]
        left -= np.bincount(link[gone], count[gone] * smallest[flow[gone]], left.size)
        np.maximum(left, 0.0, out=left)
        stay = ~gone
        return flow[stay], link[stay], count[stay]
