"""What binds a plan, and the next amount of memory or bandwidth at which it changes, found by solving again.

    relaxed   the best layout with FREE times as much of one resource: what that resource costs the step at most
    next      the smallest further amount at which the best layout is another one: doubling steps, then bisection
    binds     the resource whose relaxation brings most; `computation` where none brings more than LITTLE

The comparison is of best prices, layout with layout (degrees, sharding, and how many layers recompute what), so that
what the choice among ties gives away does not count. Units: times of what every node has. Left out: changes that come
and go between two tried amounts, and less of a resource (`plan what-if --vary`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cost_models.cost import StepCost
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.node import Node
from cost_models.strategy import Strategy
from planner.search.objective import Objective, value_of
from planner.what_if.axes import every_node, with_memory, with_nic_rate, with_scale_up

FREE = 4.0
LITTLE = 0.01
"""Share of the objective below which a resource does not bind: less is within what a price can be off."""
STEPS = (1.02, 1.05, 1.1, 1.25, 1.5, 2.0, FREE)
CLOSE = 0.05
"""Share of what is to be added to which the next change is narrowed."""
Solved = Callable[[Cluster], tuple[Strategy, StepCost]]
"""The best layout on a cluster, and its price; InputError where nothing fits."""
Name = Literal["memory", "network", "links in a node"]


@dataclass(frozen=True)
class Resource:
    name: Name
    unit: str
    amount: Callable[[Node], float]  # of one node, in units
    with_times: Callable[[Node, float], Node]


RESOURCES = (
    Resource(
        "memory", "GiB of a GPU", lambda node: node.device.memory_bytes / 2**30,
        lambda node, times: with_memory(node, round(node.device.memory_bytes * times)),
    ),
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
    binds: Name | Literal["computation"]
    bounds: tuple[Bound, ...]


def binding(
    cluster: Cluster, objective: Objective, solved: Solved, on_step: Callable[[str], None] = lambda what: None
) -> Binding:
    """What binds the best layout of a cluster, resource by resource."""
    now = solved(cluster)
    bounds = []
    for resource in RESOURCES:
        if resource.name == "network" and len(cluster.runs) == 1 and cluster.runs[0].count == 1:
            continue
        bounds.append(_bound(cluster, objective, solved, now, resource, on_step))
    most = max(bounds, key=lambda one: one.free_gain)
    return Binding(binds=most.resource if most.free_gain > LITTLE else "computation", bounds=tuple(bounds))


def _bound(
    cluster: Cluster, objective: Objective, solved: Solved, now: tuple[Strategy, StepCost], resource: Resource,
    on_step: Callable[[str], None],
) -> Bound:  # fmt: skip
    amount = resource.amount(cluster.runs[0].node)
    known: dict[float, tuple[Strategy, StepCost]] = {1.0: now}

    def at(times: float) -> tuple[Strategy, StepCost]:
        if times not in known:
            on_step(f"{resource.name}: {amount * times:.4g} {resource.unit}")
            known[times] = solved(every_node(cluster, lambda node: resource.with_times(node, times)))
        return known[times]

    def gain(times: float) -> float:
        return max(0.0, 1 - value_of(objective, at(times)[1]) / value_of(objective, now[1]))

    free = gain(FREE)
    low, high = 1.0, next((times for times in STEPS if at(times)[0] != now[0]), None)
    if high is None:
        return Bound(resource=resource.name, unit=resource.unit, amount=amount, free_gain=free, next=None)
    low = max((times for times in (1.0, *STEPS) if times < high), default=1.0)
    while high - low > CLOSE * (high - 1.0):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] == now[0] else (low, middle)
    change = Change(amount=amount * high, layout=at(high)[0], gain=gain(high))
    return Bound(resource=resource.name, unit=resource.unit, amount=amount, free_gain=free, next=change)
