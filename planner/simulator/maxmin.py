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
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
TIE = 1e-14
"""Shares closer than this (relative) are one bottleneck: rounding must not split a round of equal links."""


class Sharing:
    """Flows on links as three parallel arrays: `flow[e]` crosses `link[e]`, which carries `count[e]` of its kind.

    >>> sharing = Sharing(flow=[0, 0, 1, 2], link=[0, 1, 1, 0], count=[1, 1, 1, 1], capacity=[3.0, 2.0], flows=3)
    >>> sharing.rates(np.array([0, 1, 2])).tolist()
    [1.0, 1.0, 2.0]
    """

    def __init__(self, *, flow: ArrayLike, link: ArrayLike, count: ArrayLike, capacity: ArrayLike, flows: int) -> None:
        self.flow: Ints = np.asarray(flow, dtype=np.int64)
        self.link: Ints = np.asarray(link, dtype=np.int64)
        self.count: Floats = np.asarray(count, dtype=np.float64)
        self.capacity: Floats = np.asarray(capacity, dtype=np.float64)
        self.flows = flows
        if np.any(self.flow[1:] < self.flow[:-1]):
            order = np.argsort(self.flow, kind="stable")
            self.flow, self.link, self.count = self.flow[order], self.link[order], self.count[order]
        self._crossed = np.bincount(self.flow, minlength=flows)
        self._first = np.cumsum(self._crossed) - self._crossed

    def rates(self, active: Ints) -> Floats:
        """Rates in bytes/s of the `active` flows, ascending numbers; a flow that crosses no link has rate infinity."""
        link, count, length = self.crossings(active)
        left = self.capacity
        if link.size < left.size:  # number the links that are crossed
            used, link = np.unique(link, return_inverse=True)
            left = left[used]
        rate, flow = np.full(active.size, np.inf), np.flatnonzero(length)
        length, left = length[flow], left.copy()
        while flow.size:
            flow, link, count, length = _freeze(flow, link, count, length, rate, left)
        return rate

    def crossings(self, active: Ints) -> tuple[Ints, Floats, Ints]:
        """Links and counts of the `active` flows one after another, and how many each has."""
        length = self._crossed[active]
        if active.size == self.flows:
            return self.link, self.count, length
        entry = np.repeat(self._first[active] - np.cumsum(length) + length, length)
        entry += np.arange(entry.size)
        return self.link[entry], self.count[entry], length


def _freeze(
    flow: Ints, link: Ints, count: Floats, length: Ints, rate: Floats, left: Floats
) -> tuple[Ints, Ints, Floats, Ints]:
    """One round: set the rates of all flows on local bottlenecks and take them off the links; what remains.

    `link` and `count` have `length[i]` entries in a row for flow i of those left, whose place in `rate` is `flow[i]`.
    """
    load = np.bincount(link, count, left.size)
    share = np.full(left.size, np.inf)
    np.divide(left, load, out=share, where=load > 0)
    first = np.cumsum(length) - length
    smallest = np.minimum.reduceat(share[link], first)  # along each flow
    of_entry = np.repeat(smallest, length)
    along = np.full(left.size, np.inf)
    np.minimum.at(along, link, of_entry)
    bottleneck = along >= share * (1 - TIE)
    done = np.logical_or.reduceat(bottleneck[link], first)
    rate[flow[done]] = smallest[done]
    stay = ~done
    if not stay.any():
        return flow[stay], link, count, length
    gone = np.repeat(done, length)
    left -= np.bincount(link[gone], (count * of_entry)[gone], left.size)
    np.maximum(left, 0.0, out=left)
    return flow[stay], link[~gone], count[~gone], length[stay]
