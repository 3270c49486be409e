"""Bytes in flight: how much is left of every flow, how fast it goes, and when the next one is done.

    left(t + dt) = left(t) - rate x dt          rate = max-min fair shares of the links crossed

Flows are kept by *island*: ranks that share no link with other ranks (`islands.py`). A flow between islands joins them
into one component while it is in flight. A start or an end changes the rates of its own component only, and rates are
remembered by set of flows, because a step repeats few such sets. Units: bytes, bytes/s, seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from planner.simulator.filling import LEAST_FLOWS, SAME, Filling, compiled
from planner.simulator.maxmin import Sharing
from planner.simulator.proof import Variants
from planner.simulator.topology import Floats, Ints

WORTH_COMPILING = 1024
"""Flows; for fewer, loading numba takes longer than they do."""
REMEMBERED = 1 << 22
"""When so many flows are stored with their rates, the stored rates are dropped."""
FEW_ENDS = 8
"""When flows have ended so often and none has started, it pays to keep track of what an end changes."""
NOTHING: Ints = np.zeros(0, dtype=np.int64)
NO_BYTES: Floats = np.zeros(0)


class Component:
    """The flows in flight of one island, or of several islands that flows between them join."""

    __slots__ = (
        "at", "ended", "ends", "filling", "flows", "islands", "left", "rate", "row", "serial", "started", "time",
    )  # fmt: skip

    def __init__(self, islands: tuple[int, ...]) -> None:
        self.islands = islands
        self.flows, self.left, self.rate = NOTHING, NO_BYTES, NO_BYTES
        self.started: list[Ints] = []  # not among `flows` before `settle`
        self.ends = 0  # how often flows have ended since one started
        self.filling: Filling | None = None  # from FEW_ENDS on
        self.row = self.ended = NOTHING  # rows in there: of `flows`, and of those that ended before `settle`
        self.at = 0.0  # when `left` was so
        self.time = np.inf  # when the next flow is done
        self.serial = -1  # of the entry for `time` in the list of events

    def left_at(self, now: float) -> Floats:
        """Bytes left of `flows`. A component that was moved ahead of `now` is as it will be there."""
        return self.left - self.rate * (now - self.at) if now > self.at else self.left


class Transfers:
    """All flows. `settle` follows `start` and `end` before time goes on."""

    def __init__(
        self,
        sharing: Sharing,
        island_of_flow: Ints | None = None,
        islands: int = 1,
        variants: Variants | None = None,
    ) -> None:
        self.sharing, self.islands, self.variants = sharing, islands, variants
        self.island_of_flow = np.zeros(sharing.flows, np.int64) if island_of_flow is None else island_of_flow
        self.size = np.zeros(sharing.flows)
        self.serial = np.zeros(sharing.flows, dtype=np.int64)  # how often it was started
        self.carried = np.zeros(sharing.flows)  # bytes so far
        self.component_of = [Component((island,)) for island in range(islands)]
        self.changed: dict[int, Component] = {}  # by its first island
        self._known: dict[bytes, Floats] = {}
        self._stored = 0

    def start(self, flows: Ints, size: Floats, islands: tuple[int, ...], now: float) -> None:
        """Send `size` bytes on `flows`, which touch `islands`."""
        component = self.component_of[islands[0]]
        if len(islands) > 1:
            component = self._join(islands, now)
        self.size[flows] = size
        self.carried[flows] += size
        self.serial[flows] += 1
        component.started.append(flows)
        self.changed[component.islands[0]] = component

    def end(self, component: Component, now: float) -> Ints:
        """The flows of `component` that are done; it goes on without them."""
        left = component.left_at(now)
        still = left > np.maximum(self.size[component.flows] * SAME, component.rate * (now * SAME * 1e-2))
        done = component.flows[~still]
        component.ends += 1
        if component.filling:
            component.row, component.ended = component.row[still], component.row[~still]
        component.flows, component.left, component.rate = component.flows[still], left[still], component.rate[still]
        component.at = now
        self.changed[component.islands[0]] = component
        return done

    def settle(self, now: float) -> list[Component]:
        """New rates for what has changed; the components whose `time` is new."""
        settled: list[Component] = []
        for component in self.changed.values():
            flows, left = component.flows, component.left_at(now)
            if component.started:
                flows = np.concatenate([flows, *component.started])
                left = np.concatenate([left, *(self.size[started] for started in component.started)])
                order = np.argsort(flows)
                flows, left = flows[order], left[order]
                component.started, component.ends, component.filling = [], 0, None
            if len(component.islands) == 1 or (self.island_of_flow[flows] == self.islands).any():
                settled.append(self._restart(component, flows, left, now))
            else:
                settled += self._split(component, flows, left, now)
        self.changed.clear()
        return settled

    def drain(self, component: Component, ends: Floats, now: float, until: float) -> None:
        """Let flows of `component` end, one after another, up to `until`; when, is written into `ends`."""
        if component.flows.size >= WORTH_COMPILING:
            compiled()
        flows, size = component.flows, self.size[component.flows]
        ends[flows], left = Filling(self.sharing, flows).drain(size, component.left_at(now), now, until)
        still = ends[flows] == np.inf
        component.flows, component.left, component.at = flows[still], left[still], until
        component.rate, component.time = np.zeros(len(component.flows)), np.inf

    def components(self, islands: Iterable[int]) -> list[Component]:
        """Those of `islands`, each once."""
        return list({id(one): one for one in (self.component_of[island] for island in islands)}.values())

    def _restart(self, component: Component, flows: Ints, left: Floats, now: float) -> Component:
        component.flows, component.left, component.at = flows, left, now
        component.rate = self._rates(component)
        component.time = now + float((left / component.rate).min()) if flows.size else np.inf
        return component

    def _rates(self, component: Component) -> Floats:
        """Of the component's flows: remembered, changed by what has ended, or anew."""
        flows = component.flows
        if component.filling:
            if component.ended.size:
                component.filling.end(component.ended)
                component.ended = NOTHING
            return component.filling.rates(component.row)
        key = flows.tobytes()
        if (known := self._known.get(key)) is not None:
            return known
        if component.ends >= FEW_ENDS and not self.variants and Filling.suits(self.sharing, flows):
            component.filling, component.row = Filling(self.sharing, flows), np.arange(flows.size)
            return component.filling.rates(component.row)
        if self._stored > REMEMBERED:
            self._known.clear()
            self._stored = 0
        self._stored += flows.size
        self._known[key] = rate = self.sharing.rates(flows)
        if self.variants and flows.size:
            self.variants.check(self.sharing, flows, rate)
        return rate

    def _join(self, islands: tuple[int, ...], now: float) -> Component:
        """One component for `islands` and for those that they are joined to already."""
        parts = self.components(islands)
        if len(parts) == 1:
            return parts[0]
        joined = Component(tuple(sorted(island for part in parts for island in part.islands)))
        joined.at = now
        joined.flows = np.concatenate([part.flows for part in parts])
        joined.left = np.concatenate([part.left_at(now) for part in parts])
        joined.rate = np.concatenate([part.rate for part in parts])
        joined.started = [flows for part in parts for flows in part.started] or [NOTHING]
        for part in parts:
            self.changed.pop(part.islands[0], None)
            part.serial = -1
        for island in joined.islands:
            self.component_of[island] = joined
        return joined

    def _split(self, component: Component, flows: Ints, left: Floats, now: float) -> list[Component]:
        """Each island on its own again, as no flow between them is left."""
        island_of_flow = self.island_of_flow[flows]
        component.serial = -1
        made = []
        for island in component.islands:
            mine = island_of_flow == island
            self.component_of[island] = alone = Component((island,))
            made.append(self._restart(alone, flows[mine], left[mine], now))
        return made


def end_times(sharing: Sharing, size: Floats, start_s: Floats) -> Floats:
    """When each of `sharing.flows` flows is done that sends `size` bytes from `start_s` on: nothing else happens.

    >>> two = Sharing(flow=[0, 1, 1], link=[0, 0, 1], count=[1, 1, 1], capacity=[3.0, 1.0], flows=2)
    >>> end_times(two, np.array([4.0, 2.0]), np.zeros(2)).tolist()
    [2.0, 2.0]
    """
    transfers, ends = Transfers(sharing), np.full(sharing.flows, np.inf)
    starts, batch = np.unique(start_s, return_inverse=True)
    order = np.argsort(batch, kind="stable")
    batches = np.split(order, np.cumsum(np.bincount(batch))[:-1])
    starts = np.append(starts, np.inf)
    component, now, next_batch = transfers.component_of[0], 0.0, 0
    while True:
        now = min(component.time, starts[next_batch])
        if now == np.inf:
            return ends
        if component.time <= now * (1 + SAME * 1e-2):
            ends[transfers.end(component, now)] = now
        if starts[next_batch] <= now * (1 + SAME * 1e-2):
            flows = batches[next_batch]
            transfers.start(flows, size[flows], (0,), now)
            next_batch += 1
        transfers.settle(now)
        if Filling.suits(sharing, component.flows) and len(np.unique(size[component.flows])) > LEAST_FLOWS:
            transfers.drain(component, ends, now, starts[next_batch])
