"""Max-min rates of many flows that end one after another: each end changes the rates before it instead of all anew.

    order          the links by their share, from the least on: those in which progressive filling fills them up
    bottleneck[f]  the first of flow f's links in that order; f's rate is that link's share
    share[m] = left[i, m] / given[m, m]               m = order[i]
    left[i + 1] = left[i] - given[m] x share[m]       given[m, l]: how often flows with bottleneck m cross link l

An end changes `given` of one link, so the shares before it in the order stay. From there on they are computed anew;
where two neighbours are then in the wrong order they change places, and flows that cross both change their bottleneck.
When shares ascend and no link is overloaded, the rates are the max-min rates, which are unique. `drain` goes on from
end to end: flows of one bottleneck have one rate, so each keeps the bytes that its link has sent per flow by its end.

These functions are plain Python on arrays. `compiled` has numba compile them, if it is installed (`mmsp[fast]`): the
same source, and the same results to the last bit. Units: bytes, bytes/s, seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.simulator.maxmin import Floats, Ints, Sharing

LEAST_FLOWS, MOST_LINKS = 256, 512
"""Fewer flows, or flows over more links, are shared out anew at every change."""
EQUAL = 1e-13
SAME = 1e-12
"""Relative to a flow's size, or (a hundredth of it) to the time: closer than this is the end."""


class Filled(NamedTuple):
    """Flows and their links: flow f crosses `link[e]` `times[e]` times, for e from `first[f]` to `first[f + 1]`."""

    first: Ints  # (flows + 1,)
    link: Ints  # (crossings,)
    times: Floats  # (crossings,)
    capacity: Floats  # (links,)
    bottleneck: Ints  # (flows,): -1 = ended
    start: Ints  # (links + 1,): where a link's crossings are in `users`
    users: Ints  # (crossings,): flows, by link; of these, `using` are in flight
    using: Ints  # (links,)
    spot: Ints  # (crossings,): where each is in `users`
    order: Ints  # (links,)
    place: Ints  # (links,): of a link in `order`
    serves: Ints  # (links,): flows whose bottleneck it is
    given: Floats  # (links, links)
    left: Floats  # (links + 1, links)
    share: Floats  # (links,): infinity where it is nobody's bottleneck
    sent: Floats  # (links,): bytes that a flow with this bottleneck has sent since `drain` began
    until: Floats  # (flows,): what its bottleneck will have sent at the flow's end
    soonest: Floats  # (links,): least `until` of the flows whose bottleneck it is …
    stale: Ints  # (links,): … unless 1: the soonest one has gone


def fill(net: Filled) -> None:
    """Everything from the beginning: the link with the least share next, again and again."""
    links = len(net.capacity)
    net.given[:] = 0.0
    net.serves[:], net.stale[:], net.soonest[:] = 0, 0, np.inf
    net.left[0] = net.capacity
    waiting = np.zeros(links)  # crossings by flows that have no bottleneck yet
    net.place[:] = links
    for f in range(len(net.bottleneck)):
        if net.bottleneck[f] >= 0:
            net.until[f] -= net.sent[net.bottleneck[f]]
            net.bottleneck[f] = links
            for e in range(net.first[f], net.first[f + 1]):
                waiting[net.link[e]] += net.times[e]
    for i in range(links):
        next_one, least = -1, np.inf
        for m in range(links):
            if net.place[m] == links:
                share = max(net.left[i, m], 0.0) / waiting[m] if waiting[m] > 1e-9 else np.inf
                if next_one < 0 or share < least:
                    next_one, least = m, share
        net.order[i], net.place[next_one], net.share[next_one] = next_one, i, least
        if least < np.inf:
            for e in range(net.start[next_one], net.start[next_one] + net.using[next_one]):
                f = net.users[e]
                if net.bottleneck[f] == links:
                    net.until[f] += net.sent[next_one]
                    _give(net, f, next_one, 1)
            waiting -= net.given[next_one]
        net.left[i + 1] = net.left[i] - net.given[next_one] * (least if least < np.inf else 0.0)


def refill(net: Filled, i: int) -> bool:
    """The shares from place `i` of the order on; False where no order was found soon, which calls for `fill`."""
    links = len(net.capacity)
    for _ in range(64 * links):
        if i < links:
            m = net.order[i]
            share = max(net.left[i, m], 0.0) / net.given[m, m] if net.serves[m] else np.inf
            if i and share < net.share[net.order[i - 1]] * (1 - EQUAL):
                _overtake(net, m, net.order[i - 1])
                i -= 1
                continue
            net.share[m] = share
            np.multiply(net.given[m], share if share < np.inf else 0.0, net.left[i + 1])  # in place: no new arrays
            np.subtract(net.left[i], net.left[i + 1], net.left[i + 1])
            i += 1
            continue
        over = -1
        for m in range(links):
            if not net.serves[m] and net.left[links, m] < -EQUAL * net.capacity[m]:
                over = m
        if over < 0:
            return True
        last = 0
        for e in range(net.start[over], net.start[over] + net.using[over]):
            last = max(last, net.place[net.bottleneck[net.users[e]]])
        while net.place[over] > last:
            _overtake(net, over, net.order[net.place[over] - 1])
        i = last
    return False


def _overtake(net: Filled, m: int, before: int) -> None:
    """Link `m` changes places with the one before it; flows that cross both have `m` as their bottleneck now."""
    i = net.place[before]
    net.order[i], net.order[i + 1], net.place[m], net.place[before] = m, before, i, i + 1
    if not net.serves[before]:
        return
    for e in range(net.start[before], net.start[before] + net.using[before]):
        f = net.users[e]
        if net.bottleneck[f] == before:
            crosses = False
            for c in range(net.first[f], net.first[f + 1]):
                if net.link[c] == m:
                    crosses = True
            if crosses:
                _give(net, f, before, -1)
                net.until[f] += net.sent[m] - net.sent[before]
                _give(net, f, m, 1)
    if not net.serves[before]:
        net.given[before] = 0.0


def _give(net: Filled, f: int, m: int, sign: int) -> None:
    """Flow `f` gets (1) or loses (-1) the bottleneck `m`."""
    for c in range(net.first[f], net.first[f + 1]):
        net.given[m, net.link[c]] += sign * net.times[c]
    net.bottleneck[f] = m
    net.serves[m] += sign
    if sign > 0:
        net.soonest[m] = min(net.soonest[m], net.until[f])
    elif net.until[f] <= net.soonest[m]:
        net.stale[m] = 1


def take_off(net: Filled, f: int) -> int:
    """Flow `f` has ended; the place in the order from which on shares change."""
    m = net.bottleneck[f]
    _give(net, f, m, -1)
    if not net.serves[m]:
        net.given[m] = 0.0
    for e in range(net.first[f], net.first[f + 1]):
        used = net.link[e]
        net.using[used] -= 1
        gap, last = net.spot[e], net.start[used] + net.using[used]
        moved = net.users[last]
        net.users[gap] = moved
        for c in range(net.first[moved], net.first[moved + 1]):
            if net.link[c] == used:
                net.spot[c] = gap
    net.bottleneck[f] = -1
    return int(net.place[m])


def drain(net: Filled, size: Floats, ends: Floats, now: float, until: float) -> None:
    """Let flows end up to `until`, and write when into `ends`. `net.until` has the bytes left at `now`."""
    links, largest = len(net.capacity), size.max()
    ended = np.zeros(len(size), dtype=np.int64)
    while True:
        wait, soonest = np.inf, -1
        for m in range(links):
            if net.serves[m]:
                if net.stale[m]:
                    net.soonest[m], net.stale[m] = np.inf, 0
                    for e in range(net.start[m], net.start[m] + net.using[m]):
                        if net.bottleneck[net.users[e]] == m:
                            net.soonest[m] = min(net.soonest[m], net.until[net.users[e]])
                if (net.soonest[m] - net.sent[m]) / net.share[m] < wait:
                    wait, soonest = (net.soonest[m] - net.sent[m]) / net.share[m], m
        if soonest < 0 or now + wait >= until:
            wait, soonest = (until - now if until < np.inf else 0.0), -1
        now += wait
        many = 0
        for m in range(links):
            if net.serves[m]:
                net.sent[m] += net.share[m] * wait
                slack = net.share[m] * (now * SAME * 1e-2)
                if m == soonest or net.soonest[m] - net.sent[m] <= max(slack, largest * SAME):
                    for e in range(net.start[m], net.start[m] + net.using[m]):
                        f = net.users[e]
                        if net.bottleneck[f] == m and (
                            net.until[f] - net.sent[m] <= max(slack, size[f] * SAME)
                            or (m == soonest and net.until[f] == net.soonest[m])
                        ):
                            ended[many] = f
                            many += 1
        place = links
        for f in ended[:many]:
            ends[f] = now
            place = min(place, take_off(net, f))
        if place < links and not refill(net, place):
            fill(net)
        if soonest < 0:
            return


def compiled() -> bool:
    """Have the functions above compiled, once; False without numba, or where it has no folder to keep its code in."""
    functions = globals()
    if not hasattr(drain, "py_func"):
        try:
            from numba import njit

            for name in ("_give", "_overtake", "take_off"):
                functions[name] = njit(cache=True, inline="always")(functions[name])
            for name in ("fill", "refill", "drain"):
                functions[name] = njit(cache=True)(functions[name])
        except (ImportError, RuntimeError):
            return False
    return True


class Filling:
    """The flows `flows` of `sharing`, of which some end; rows are in the order of `flows`."""

    def __init__(self, sharing: Sharing, flows: Ints) -> None:
        link, count, length = sharing.crossings(flows)
        used, link = np.unique(link, return_inverse=True)
        links, first = len(used), np.cumsum([0, *length])
        by_link = np.argsort(link, kind="stable")
        spot = np.empty_like(by_link)
        spot[by_link] = np.arange(len(link))
        using = np.bincount(link, minlength=links)
        whole, some = np.zeros(links, dtype=np.int64), np.zeros(links)
        self.net = Filled(
            first=first, link=link, times=count, capacity=sharing.capacity[used],
            bottleneck=np.zeros(len(flows), dtype=np.int64),
            start=np.cumsum([0, *using]), users=np.repeat(np.arange(len(flows)), length)[by_link], using=using,
            spot=spot,
            order=whole.copy(), place=whole.copy(), serves=whole.copy(),
            given=np.zeros((links, links)), left=np.zeros((links + 1, links)), share=some.copy(),
            sent=some.copy(), until=np.zeros(len(flows)), stale=whole.copy(), soonest=some.copy(),
        )  # fmt: skip
        fill(self.net)

    @staticmethod
    def suits(sharing: Sharing, flows: Ints) -> bool:
        """Whether there are many flows over few links."""
        return flows.size >= LEAST_FLOWS and len(sharing.capacity) <= MOST_LINKS

    def end(self, rows: Ints) -> None:
        """Take the flows in `rows` off."""
        place = min(take_off(self.net, row) for row in rows.tolist())
        if not refill(self.net, place):
            fill(self.net)

    def rates(self, rows: Ints) -> Floats:
        return np.asarray(self.net.share[self.net.bottleneck[rows]], dtype=np.float64)

    def drain(self, size: Floats, left: Floats, now: float, until: float) -> tuple[Floats, Floats]:
        """When each flow ends that does before `until` (else infinity), and the bytes that are left of it then."""
        net, ends = self.net, np.full(len(size), np.inf)
        net.until[:] = left
        net.stale[:] = 1
        drain(net, size, ends, now, until)
        return ends, np.where(ends < np.inf, 0.0, net.until - net.sent[net.bottleneck])
