"""What binds a plan, and the next amount of memory or bandwidth at which it changes, found by solving again.

    relaxed   the best layout with FREE times as much of one resource: what that resource costs the step at most
    next      the smallest further amount at which the best layout is another one: growing steps, then bisection
    binds     the resource whose relaxation brings most; `computation` where none brings more than LITTLE

Steps and bisection ask which of the layouts priced so far is best (`search/again.py`). Solved again are the amount that
comes out and the one just below it; what these find anew is asked about, too, until they say the same. What is bounded
above the best price now with more of a resource is left out with less of it.

The comparison is of best prices, layout with layout (degrees, sharding, and how many layers recompute what), so that
what the choice among ties gives away does not count. Units: times of what every node has. Left out: changes that come
and go below the amount found, and less of a resource (`plan what-if --vary`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.node import Node
from cost_models.room import Room
from cost_models.strategy import Strategy
from planner.search.again import ALL, Left, left
from planner.search.objective import Objective, value_of
from planner.solve import Choice, Solution
from planner.what_if.axes import every_node, with_nic_rate, with_scale_up

FREE = 4.0
LITTLE = 0.01
"""Share of the objective below which a resource does not bind: less is within what a price can be off."""
STEPS = (1.02, 1.05, 1.1, 1.25, 1.5, 2.0, FREE)
NEARLY = 1e-9
"""Of a value that is computed twice."""
CLOSE = 0.05
"""Share of what is to be added to which the next change is narrowed."""
Name = Literal["memory", "network", "links in a node"]


class Asked(Protocol):
    """A plan's question on other clusters; InputError where nothing fits. `words` are for the progress."""

    def solved(self, cluster: Cluster, room: Room, words: str, within: Left, at_most: float) -> Solution:
        """By a search, `within` what another one left; some layout has the value `at_most`."""

    def guessed(self, cluster: Cluster, room: Room, words: str) -> Solution:
        """The best of the layouts that `solved` has priced so far."""

    def of_one(self) -> Asked:
        """Another one that knows these layouts, and learns of others by itself."""


@dataclass(frozen=True)
class Resource:
    name: Name
    unit: str
    amount: Callable[[Node], float]  # of one node, in units
    with_times: Callable[[Node, float], Node] | None = None  # None: more room on the same cards


@dataclass(frozen=True, kw_only=True)
class Grown(Room):
    """The room on cards that hand out so many times as much. No price depends on it, so those of the cluster stay."""

    times: float

    def limit_bytes(self, capacity_bytes: float) -> float:
        return super().limit_bytes(capacity_bytes * self.times)

    @classmethod
    def of(cls, room: Room, times: float) -> Grown:
        return cls(confidence=room.confidence, headroom_bytes=room.headroom_bytes, times=times)


RESOURCES = (
    Resource("memory", "GiB of a GPU", lambda node: node.device.allocatable_bytes / 2**30),
    Resource(
        "network", "GB/s of a card", lambda node: node.nics.bytes_per_s / 1e9,
        lambda node, times: with_nic_rate(node, node.nics.bytes_per_s * times),
    ),
    Resource("links in a node", "GB/s of a GPU", lambda node: node.scale_up.bytes_per_s / 1e9, with_scale_up),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Change:
    """The next amount at which the best layout is another one."""

    amount: float
    layout: Strategy
    gain: float  # of the objective's value, over the best one now


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What one resource does to the plan."""

    resource: Name
    unit: str
    amount: float  # now, of the first kind of node
    free_gain: float  # share of the objective's value that FREE times as much would save
    next: Change | None  # None: the layout stays up to FREE times as much


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What limits a plan, and what more of it would buy."""

    binds: Name | Literal["computation"]
    bounds: tuple[Bound, ...]


def binding(cluster: Cluster, room: Room, objective: Objective, asked: Asked) -> Binding:
    """What binds the best layout of a cluster, resource by resource."""
    now = asked.solved(cluster, room, "as it is", ALL, np.inf)
    bounds = []
    for resource in RESOURCES:
        if resource.name == "network" and len(cluster.runs) == 1 and cluster.runs[0].count == 1:
            continue
        bounds.append(_Amounts(cluster, room, objective, asked.of_one(), now, resource).bound())
    most = max(bounds, key=lambda one: one.free_gain)
    return Binding(binds=most.resource if most.free_gain > LITTLE else "computation", bounds=tuple(bounds))


class _Amounts:
    """One resource at several amounts, in times of what there is now."""

    def __init__(
        self, cluster: Cluster, room: Room, objective: Objective, asked: Asked, now: Solution, resource: Resource
    ) -> None:
        self.cluster, self.room, self.objective, self.asked, self.resource = cluster, room, objective, asked, resource
        self.solved = {1.0: now}
        self.guessed: dict[float, Choice] = {}
        self.now = now.best[0].strategy
        self.value = value_of(objective, now.best[0].cost)

    def bound(self) -> Bound:
        name, unit, amount = self.resource.name, self.resource.unit, self.resource.amount(self.cluster.runs[0].node)
        self._solve(FREE)
        free = self._gain(FREE)
        while True:
            low, high = self._border()
            unsure = [times for times in (high, low) if times not in self.solved]
            if not unsure:
                break
            for times in unsure:
                self._solve(times)
        if self.same(high):
            return Bound(resource=name, unit=unit, amount=amount, free_gain=free, next=None)
        change = Change(amount=amount * high, layout=self.solved[high].best[0].strategy, gain=self._gain(high))
        return Bound(resource=name, unit=unit, amount=amount, free_gain=free, next=change)

    def _border(self) -> tuple[float, float]:
        """(the most at which the layout is as now, the least at which it is not), as far as is known; FREE twice where
        it stays."""
        high = next((times for times in STEPS if not self.same(times)), None)
        if high is None:
            return FREE, FREE
        low = max(times for times in (1.0, *STEPS) if times < high)
        while high - low > CLOSE * (high - 1.0):
            middle = (low + high) / 2
            low, high = (middle, high) if self.same(middle) else (low, middle)
        return low, high

    def same(self, times: float) -> bool:
        """Whether the best layout is that of now: as solved, else of those priced so far."""
        if times in self.solved:
            return self.solved[times].best[0].strategy == self.now
        return self._guess(times).strategy == self.now

    def _guess(self, times: float) -> Choice:
        if times not in self.guessed:
            self.guessed[times] = self.asked.guessed(*self._at(times), self._words(times)).best[0]
        return self.guessed[times]

    def _solve(self, times: float) -> None:
        """Searches among what no search with as much or more has shown to be above the best value now."""
        more = min((known for known in self.solved if known >= times), default=None)
        within = ALL if more is None else left(self.solved[more].branches, self.solved[more].floors, self.value)
        guess = self._guess(times)
        found = self.asked.solved(
            *self._at(times), self._words(times), within, value_of(self.objective, guess.cost) * (1 + NEARLY)
        )
        if guess.strategy != found.best[0].strategy:
            self.guessed = {}  # others are priced now
        self.solved[times] = found

    def _at(self, times: float) -> tuple[Cluster, Room]:
        change = self.resource.with_times
        if change is not None:
            return every_node(self.cluster, lambda node: change(node, times)), self.room
        return self.cluster, Grown.of(self.room, times)

    def _words(self, times: float) -> str:
        amount = self.resource.amount(self.cluster.runs[0].node) * times
        return f"{self.resource.name}: {amount:.4g} {self.resource.unit}"

    def _gain(self, times: float) -> float:
        return max(0.0, 1 - value_of(self.objective, self.solved[times].best[0].cost) / self.value)
