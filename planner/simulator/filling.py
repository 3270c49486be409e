"""Max-min rates of many flows that end one after another: each end changes the rates before it instead of all anew.

    bottleneck[f]     a saturated link of flow f on which no other flow is faster: f's rate is that link's share
    A z = capacity    A[l, m] = flows with bottleneck m that cross l;  z[m] = the share of link m

A link that is nobody's bottleneck has the unit column, and its z is the capacity that is left. An end takes its flow
off a column of A; a flow whose bottleneck is no longer the smallest share along its route moves to another column. Both
are rank-one changes, under which the inverse of A is updated (Sherman and Morrison) and one step of refinement keeps z
exact. When no flow moves any more and no link is overloaded, the rates are the max-min rates, which are unique.
"""

from __future__ import annotations

import numpy as np

from planner.simulator.maxmin import Floats, Ints, Sharing

LEAST_FLOWS, MOST_LINKS = 256, 512
"""Fewer flows, or flows over more links, are shared out anew at every change."""
MOST_ROUNDS = 64
RENEWED = 256
"""The inverse is computed anew after so many updates."""
EQUAL = 1e-13


class Filling:
    """The flows `flows` of `sharing`, of which some end; rows are in the order of `flows`."""

    def __init__(self, sharing: Sharing, flows: Ints) -> None:
        link, count, length = sharing.crossings(flows)
        self.row = np.repeat(np.arange(flows.size), length)
        used, link = np.unique(link, return_inverse=True)
        self.capacity = sharing.capacity[used]
        self.links = len(used)
        self.first = np.searchsorted(self.row, np.arange(len(flows) + 1))
        self.link, self.count = link, count
        steps = int(np.diff(self.first).max())
        self.route = np.full((steps, len(flows)), self.links)
        self.route[np.arange(len(link)) - self.first[self.row], self.row] = link
        self.bottleneck = self._bottlenecks(sharing.rates(flows))
        self.served = np.bincount(self.bottleneck, minlength=self.links)
        self.matrix = np.zeros((self.links, self.links))
        np.add.at(self.matrix, (link, self.bottleneck[self.row]), count)
        unused = np.flatnonzero(self.served == 0)
        self.matrix[unused, unused] = 1.0
        self._change = np.empty_like(self.matrix)
        self._renew()

    @staticmethod
    def suits(sharing: Sharing, flows: Ints) -> bool:
        """Whether there are many flows over few links."""
        return flows.size >= LEAST_FLOWS and len(sharing.capacity) <= MOST_LINKS

    def end(self, rows: Ints) -> bool:
        """Take the flows in `rows` off; False if the rates could not be found this way."""
        for row in rows.tolist():
            self._leave(row, self._crossed(row))
            self.bottleneck[row] = self.links
            self.route[:, row] = self.links
        return self._settle()

    def rates(self, rows: Ints) -> Floats:
        return np.asarray(self.share[self.bottleneck[rows]], dtype=np.float64)

    def _bottlenecks(self, rate: Floats) -> Ints:
        """For each flow a link that its rate fills up and on which it is the fastest."""
        load = np.bincount(self.link, self.count * rate[self.row], self.links)
        fastest = np.zeros(self.links)
        np.maximum.at(fastest, self.link, rate[self.row])
        good = (load >= self.capacity * (1 - 1e-9))[self.link] & (rate[self.row] >= fastest[self.link] * (1 - 1e-9))
        bottleneck = np.full(len(rate), self.links)
        np.minimum.at(bottleneck, self.row[good], self.link[good])  # of equal ones the first, so that A has an inverse
        return bottleneck

    def _renew(self) -> None:
        self.inverse = np.linalg.inv(self.matrix)
        self.updates = 0
        self.lost = False  # the inverse, where the matrix has none
        self._solve()

    def _solve(self) -> None:
        """`left`: z; `share`: of links that are somebody's bottleneck, else infinity, which also ends short routes."""
        z = self.inverse @ self.capacity
        self.left = z + self.inverse @ (self.capacity - self.matrix @ z)
        self.share = np.append(np.where(self.served > 0, self.left, np.inf), np.inf)

    def _crossed(self, row: int) -> Floats:
        """How often the flow crosses each link."""
        crossed = np.zeros(self.links)
        mine = slice(self.first[row], self.first[row + 1])
        crossed[self.link[mine]] = self.count[mine]
        return crossed

    def _settle(self) -> bool:
        for _ in range(MOST_ROUNDS):
            if self.lost:
                return False
            if self.updates > RENEWED:
                try:
                    self._renew()
                except np.linalg.LinAlgError:
                    return False
            self._solve()
            along = self.share[self.route]
            smallest = along.min(axis=0)
            moving = np.flatnonzero(self.share[self.bottleneck] > smallest * (1 + EQUAL))
            for row in moving.tolist():
                self._move(row, int(self.route[along[:, row].argmin(), row]))
            if moving.size:
                continue
            overloaded = np.flatnonzero((self.served == 0) & (self.left < -EQUAL * self.capacity))
            if not overloaded.size:
                return True
            for link in overloaded.tolist():
                users = np.flatnonzero((self.route == link).any(axis=0))
                self._move(int(users[self.share[self.bottleneck[users]].argmax()]), link)
        return False

    def _move(self, row: int, link: int) -> None:
        crossed = self._crossed(row)
        before = int(self.bottleneck[row])
        if self.served[before] > 1 and self.served[link]:
            self.served[before] -= 1
            self.served[link] += 1
            self.matrix[:, link] += crossed
            self.matrix[:, before] -= crossed
            self._update(crossed, self.inverse[link] - self.inverse[before], link, before)
        else:
            self._leave(row, crossed)
            joining = crossed.copy()
            if not self.served[link]:
                joining[link] -= 1.0
            self.served[link] += 1
            self.matrix[:, link] += joining
            self._update(joining, self.inverse[link].copy(), link)
        self.bottleneck[row] = link

    def _leave(self, row: int, crossed: Floats) -> None:
        link = int(self.bottleneck[row])
        self.served[link] -= 1
        leaving = -crossed
        if not self.served[link]:
            leaving = -self.matrix[:, link]
            leaving[link] += 1.0
        self.matrix[:, link] += leaving
        self._update(leaving, self.inverse[link].copy(), link)

    def _update(self, column: Floats, row: Floats, more: int, less: int | None = None) -> None:
        """The inverse after `column` was added to column `more` of the matrix, and taken off column `less`."""
        moved = self.inverse @ column
        pivot = 1.0 + moved[more] - (moved[less] if less is not None else 0.0)
        if abs(pivot) < 1e-9:
            self.lost = True
            return
        moved /= pivot
        np.multiply(moved[:, None], row, out=self._change)
        self.inverse -= self._change
        self.updates += 1
