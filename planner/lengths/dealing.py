"""One batch of documents dealt to groups of GPUs, wave by wave, and a bound that no dealing is below.

    one layout   every group has the same shape                 dynamic   groups of any size, anew for each batch
    step         Σ waves max(gathers, alone + slowest group's Σ documents) + once
    bound        least over policies: waves x alone + max(Σ documents' least GPU-seconds / GPUs, the slowest document)
                 + once, with as few waves as memory allows

Long documents are placed one by one, longest first, each on the size that takes least GPU-seconds and ends in time;
the others fill all groups to one level by prefix sums, longest first, so that what is dealt last is short. A batch of
thousands of documents takes milliseconds. Units: tokens, seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cost_models.strategy import Recompute
from planner.lengths.group_costs import SHORT, Floats, GroupCosts, Ints, PolicyCosts, Shape

LEVELS = (0.5, 0.8, 0.95, 1.0)
"""Shares of the level to which groups are filled in turn."""
PART = 1 / 4
"""A document above this share of what a GPU does in a wave is placed by itself."""
LATE = 1.03
"""A group may end so much after the level before another one of its size is opened."""
TRIED = 2
"""Policies and counts of waves that are dealt, the most promising first."""


@dataclass(frozen=True, eq=False)
class Dealt:
    """Where every document of a batch goes."""

    step_s: float
    policy: Recompute
    waves: int
    shapes: tuple[Shape, ...]  # of every group of every wave
    group: Ints  # of each document
    lengths: Ints  # of the documents, longest first
    group_s: Floats  # of each group's documents

    def row(self, group: int) -> Ints:
        """Lengths of the documents of a group."""
        found: Ints = self.lengths[self.group == group]
        return found


@dataclass(frozen=True, eq=False)
class Batch:
    """Lengths, longest first, and what they take at least under each policy."""

    lengths: Ints
    costs: GroupCosts
    least: tuple[tuple[float, float], ...]  # by policy: GPU-seconds of all over the GPUs, seconds of the longest

    @classmethod
    def of(cls, lengths: Ints, costs: GroupCosts) -> Batch:
        down = np.sort(lengths)[::-1]
        return cls(down, costs, tuple(_least(down, costs, policy) for policy in costs.policies))

    @property
    def bound_s(self) -> float:
        """Seconds that no dealing of the batch to groups of these shapes goes below."""
        tokens, costs = int(self.lengths.sum()), self.costs
        several = []
        for policy, (work, longest) in zip(costs.policies, self.least, strict=True):
            waves = -(-tokens // (policy.cap * costs.gpus))
            others = (waves - 1) * max(costs.gathers_s, policy.alone_s)
            several.append(
                max(policy.alone_s * waves + work, others + policy.alone_s + longest, costs.gathers_s * waves)
            )
        return min(several) + costs.once_s

    def tries(self) -> Iterator[tuple[PolicyCosts, int]]:
        """(policy, waves), those first whose work would be done first were it dealt evenly."""
        tokens, costs = int(self.lengths.sum()), self.costs
        found = []
        for place, (policy, (work, longest)) in enumerate(zip(costs.policies, self.least, strict=True)):
            fewest = -(-tokens // (policy.cap * costs.gpus))
            for waves in {fewest, fewest + 1, -(-5 * fewest // 4)} if np.isfinite(work) else ():
                wave_s = max(costs.gathers_s, policy.alone_s + work / waves, policy.alone_s + longest)
                crowded = tokens > 0.97 * waves * policy.cap * costs.gpus
                found.append((waves * wave_s * (1.05 if crowded else 1.0), place, waves))
        for _, place, waves in sorted(found):
            yield costs.policies[place], waves


def _least(lengths: Ints, costs: GroupCosts, policy: PolicyCosts) -> tuple[float, float]:
    """A document on several ring positions takes at least the GPU-seconds that it takes on one, if one holds it."""
    degrees = np.array(costs.ulysses)[:, None]
    long = lengths[: int(np.searchsorted(-lengths, -policy.cap))]  # no GPU alone holds them
    rest = float(policy.least_work(lengths[len(long) :], degrees[:, 0]).sum()) / costs.gpus
    if not len(long):
        return rest, float(costs.seconds(policy, range(len(costs.shapes)), lengths[:1], 0.0).min())
    local = policy.local(long)
    spread = np.maximum(policy.spread(long), local[costs.degree] / costs.rings[:, None])
    spread = np.where(long <= costs.sizes[:, None] * policy.cap, spread, np.inf)
    held = np.where(long <= degrees * policy.cap, local * degrees, np.inf).min(axis=0)
    work = np.minimum(held, (spread * costs.sizes[:, None]).min(axis=0))
    return rest + float(work.sum()) / costs.gpus, float(spread[:, 0].min())


def best_dynamic(batch: Batch) -> Dealt | None:
    """Groups of any size; `None` where memory holds no document that long."""
    return _best(batch, dynamic)


def _best(batch: Batch, deal: Callable[[Batch, PolicyCosts, int], Dealt | None]) -> Dealt | None:
    best: Dealt | None = None
    for tried, (policy, waves) in enumerate(batch.tries(), 1):
        found = deal(batch, policy, waves)
        if found is not None and (best is None or found.step_s < best.step_s):
            best = found
        if best is not None and tried >= TRIED:
            break
    return best


def one_layout(batch: Batch, policy: PolicyCosts, waves: int, shape: int) -> Dealt | None:
    """All groups of one shape; `None` where memory does not hold the batch in so many waves."""
    costs = batch.costs
    groups = _Groups(batch, policy, waves)
    for wave in range(waves):
        for _ in range(costs.gpus // int(costs.sizes[shape])):
            groups.open(shape, wave)
    return groups.fill()


def dynamic(batch: Batch, policy: PolicyCosts, waves: int) -> Dealt | None:
    """Groups of any size; `None` where memory does not hold the batch in so many waves."""
    costs, lengths = batch.costs, batch.lengths
    density = float(lengths.sum()) / (waves * costs.gpus)
    if density > policy.cap:
        return None
    best = costs.best[policy.policy]
    long = lengths[: int(np.searchsorted(-lengths, -max(SHORT, density * PART)))]
    seconds, sizes = costs.seconds(policy, best, long, density), costs.sizes[best]
    seconds = np.where(long <= sizes[:, None] * policy.cap, seconds, np.inf)
    if len(long) and not np.isfinite(seconds.min(axis=0)).all():
        return None
    rest = float(policy.local(lengths[len(long) :], slice(1)).sum())
    chosen, level = _sizes(seconds, sizes, rest, waves * costs.gpus)
    groups = _Groups(batch, policy, waves)
    if not groups.place_long(chosen, seconds, best, level):
        return None
    for wave in range(waves):  # what no long document needs is groups of the smallest size
        for _ in range(groups.free[wave] // int(sizes[0])):
            groups.open(best[0], wave)
    return groups.fill()


def _sizes(seconds: Floats, sizes: Ints, rest: float, gpus: int) -> tuple[Ints, float]:
    """(size of each long document, the level): least GPU-seconds among the sizes that end within the level."""
    if not seconds.shape[1]:
        return np.zeros(0, dtype=np.int64), rest / gpus
    work, columns = seconds * sizes[:, None], np.arange(seconds.shape[1])
    level = float(seconds.min(axis=0).max())
    for _ in range(6):
        chosen = np.where(seconds <= level * (1 + 1e-9), work, np.inf).argmin(axis=0)
        need = (float(work[chosen, columns].sum()) + rest) / gpus
        if need <= level:
            break
        level = need
    return chosen, level


class _Groups:
    """The groups of every wave while documents are placed in them."""

    def __init__(self, batch: Batch, policy: PolicyCosts, waves: int) -> None:
        self.costs, self.lengths, self.policy, self.waves = batch.costs, batch.lengths, policy, waves
        self.shapes: list[int] = []
        self.wave: list[int] = []
        self.load: list[float] = []
        self.free = [batch.costs.gpus] * waves
        self.group = np.full(len(batch.lengths), -1)

    def open(self, shape: int, wave: int) -> int:
        self.shapes.append(shape)
        self.wave.append(wave)
        self.load.append(0.0)
        self.free[wave] -= int(self.costs.sizes[shape])
        return len(self.shapes) - 1

    def place(self, document: int, group: int, seconds: float) -> None:
        self.group[document] = group
        self.load[group] += seconds

    def place_long(self, chosen: Ints, seconds: Floats, best: Sequence[int], level: float) -> bool:
        """Documents for more than the smallest size, by size, the longest first to the group that is done first, or to
        a new one if it would be late. False where a wave has no room for them."""
        for size in np.unique(chosen[chosen > 0])[::-1].tolist():
            mine = np.flatnonzero(chosen == size).tolist()
            takes, heap = seconds[size], list[tuple[float, int]]()
            for document in mine:
                wave, took = max(range(self.waves), key=self.free.__getitem__), float(takes[document])
                open_ = self.free[wave] >= self.costs.sizes[best[size]]
                if open_ and (not heap or heap[0][0] + took > level * LATE):
                    heapq.heappush(heap, (0.0, self.open(best[size], wave)))
                if not heap:
                    return False
                _, group = heap[0]
                self.place(document, group, took)
                heapq.heapreplace(heap, (self.load[group], group))
        return True

    def fill(self) -> Dealt | None:
        """All other documents: long ones each to the group that is done first, the rest to one level."""
        left = np.flatnonzero(self.group < 0)
        lengths, shapes = self.lengths[left], np.array(self.shapes)
        kinds = np.unique(shapes)
        density = float(self.lengths.sum()) / (self.waves * self.costs.gpus)
        seconds = self.costs.seconds(self.policy, kinds, lengths, density)  # by kind of group
        kind = np.searchsorted(kinds, shapes)
        mean = float(seconds.min(axis=0).sum()) / len(shapes)
        alone = int(np.searchsorted(-seconds.min(axis=0), -mean * PART)) if len(left) else 0
        heap = [(load, group) for group, load in enumerate(self.load)]
        heapq.heapify(heap)
        for document in range(alone):
            _, group = heap[0]
            self.place(int(left[document]), group, float(seconds[kind[group], document]))
            heapq.heapreplace(heap, (self.load[group], group))
        load, holds = np.array(self.load), self.costs.sizes[shapes] * self.policy.cap
        placed = self.group >= 0
        held = np.bincount(self.group[placed], self.lengths[placed], len(shapes))
        where = _levelled(seconds[:, alone:], lengths[alone:], kind, load, holds - held)
        self.group[left[alone:]] = where
        load += np.bincount(where, seconds[kind[where], np.arange(alone, len(left))], len(shapes))
        if (np.bincount(self.group, self.lengths, len(shapes)) > holds).any():
            return None
        return self._dealt(shapes, load)

    def _dealt(self, shapes: Ints, load: Floats) -> Dealt:
        slowest = np.zeros(self.waves)
        np.maximum.at(slowest, self.wave, load)
        step_s = float(np.maximum(self.costs.gathers_s, self.policy.alone_s + slowest).sum()) + self.costs.once_s
        return Dealt(
            step_s, self.policy.policy, self.waves, tuple(self.costs.shapes[one] for one in shapes), self.group,
            self.lengths, load,
        )  # fmt: skip


def _levelled(seconds: Floats, lengths: Ints, kind: Ints, load: Floats, room: Floats) -> Ints:
    """The group of each document, by prefix sums: all groups end up at about one level, those with too little `room`
    (tokens) below it. `seconds` by kind of group."""
    count = len(lengths)
    where, first = np.zeros(count, dtype=np.int64), 0
    if not count:
        return where
    rate = seconds.sum(axis=1)
    rate = (rate / max(float(rate.min()), 1e-30))[kind]  # of a group over the cheapest
    each, load, room = seconds[int(seconds.sum(axis=1).argmin())], load.copy(), room.astype(float)
    for share in LEVELS:
        left = float(each[first:].sum())
        holds = np.maximum(room, 0.0) * (left / max(float(lengths[first:].sum()), 1.0))  # seconds of the cheapest
        level = _level(load, 1 / rate, left)
        for _ in range(3):  # what groups without room leave is the others'
            fits = np.minimum(np.maximum(level - load, 0.0) / rate, holds)
            tight = fits >= holds
            if not tight.any() or tight.all():
                break
            open_ = ~tight
            level = _level(load[open_], 1 / rate[open_], left - float(holds[tight].sum()))
        fits = np.minimum(np.maximum(level * share - load, 0.0) / rate, holds * share)
        order = np.argsort(-fits, kind="stable")
        ends, done = np.cumsum(fits[order]), np.cumsum(each[first:])
        last = count if share == LEVELS[-1] else first + int(np.searchsorted(done, ends[-1]))
        taken = np.searchsorted(ends, (done - each[first:] / 2)[: last - first])
        mine = where[first:last] = order[np.minimum(taken, len(order) - 1)]
        load += np.bincount(mine, seconds[kind[mine], np.arange(first, last)], len(load))
        room -= np.bincount(mine, lengths[first:last], len(load))
        first = last
    return where


def _level(load: Floats, speed: Floats, work: float) -> float:
    """The level L at which Σ speed x max(0, L - load) is the work.

    >>> _level(np.array([1.0, 3.0]), np.array([1.0, 1.0]), 4.0)
    4.0
    """
    if work <= 0:
        return float(load.min())
    order = np.argsort(load)
    speeds = np.cumsum(speed[order])
    levels = (work + np.cumsum((speed * load)[order])) / speeds
    above = np.append(load[order][1:], np.inf)
    return float(levels[np.argmax(levels <= above)])
