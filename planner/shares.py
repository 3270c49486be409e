"""Unequal shares of a row for unlike GPUs: an improvement on the layouts that the search found with equal ones.

    shares   of a ring's positions, so that all compute as long: s <- s / (seconds of a position at s), repeated
    power    s^a: the a that is priced least, as phases of unlike ratio ask; less where the fast cards' memory asks
    layers   at most two recompute policies, the leaner one in as few layers as the fullest position's memory asks
    layouts  those near the best, and those of all GPUs: with equal shares the slow ones may not have been worth it

Taken where the price is lower by WORTH; the bound is then `search/any_shares.py`'s. Each trial is priced by `price`.
Left out: shares of packed documents, of state-space layers and of rows (data replicas), levers of memory beyond those
of the layouts tried, orders of fast and slow positions in the ring.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.pricing import price
from cost_models.profile import Profile
from cost_models.room import Room
from cost_models.step.unequal import positions
from cost_models.strategy import LayerRange, Strategy, rank_grid
from cost_models.timing.cluster_costs import ClusterCosts, cluster_costs
from planner.search.any_shares import least_with_any_shares
from planner.search.objective import Objective, value_of
from planner.search.searched import why_equal
from planner.search.space import Policy, divisors
from planner.simulator.played_program import compute_s
from planner.solve import Choice, Solution

Shares = NDArray[np.float64]
WORTH = 0.01
"""Share of the value below which equal shares stay: layouts priced less than 1% apart are not told apart."""
POWERS = (0.4, 1.4)
"""Of even shares, between these the fastest is looked for."""
SECTIONS = 7
GOLDEN = (5**0.5 - 1) / 2
TEMPERED = (1.0, 0.9, 0.75, 0.5)
ROUNDS = 5
EVEN = 0.002
"""Positions that compute as long to this share are even."""
PARTS = 2000
"""Shares are whole numbers up to this."""
MOST_MIXED = 2
"""Pairs of policies tried."""
MOST_TRIED = 3
"""Of the layouts so many get shares, layers and all; which, their price without regard to memory says …"""
ALIKE = 1.02
"""… within this of the least."""


def with_shares(solution: Solution, objective: Objective, profile: Profile | None, room: Room) -> Choice | None:
    """The best layout with unequal shares, if it is better than the solution's best by WORTH."""
    if not _possible(solution, objective):
        return None
    trials = _Trials(solution, objective, profile, room)
    several = [(*one, trials.even(*one)) for one in trials.layouts()]
    rough = sorted((trials.rough(*one), at) for at, one in enumerate(several))
    worth = [several[at] for value, at in rough[:MOST_TRIED] if value <= rough[0][0] * ALIKE]
    found = [best for one in worth if (best := trials.shared(*one))]
    limit = value_of(objective, solution.best[0].cost) * (1 - WORTH)
    better = [one for one in found if value_of(objective, one.cost) < limit]
    return min(better, key=lambda one: value_of(objective, one.cost), default=None)


def with_any_shares(solution: Solution, costs: ClusterCosts, value: float) -> float | None:
    """The bound, at most `value`, of the solution's layouts with any shares; `None`: the space is too large."""
    levers = len(solution.spaces) > 1
    return least_with_any_shares(solution.spaces[0], solution.objective, costs, value, levers)


def _possible(solution: Solution, objective: Objective) -> bool:
    """Whether unequal shares exist for this question, and GPUs are unlike."""
    first = solution.spaces[0]
    devices = [run.node.device for run in first.cluster.runs if run.node.gpus]
    kind = first.pins.get("ring_kind", "zigzag")
    return any(one != devices[0] for one in devices) and not why_equal(
        solution.workload, objective, solution.target, kind
    )


class _Trials:
    def __init__(self, solution: Solution, objective: Objective, profile: Profile | None, room: Room) -> None:
        self.solution, self.objective, self.profile, self.room = solution, objective, profile, room
        self.space = solution.spaces[0]
        self.cluster: Cluster = self.space.cluster
        self.costs, self.code = cluster_costs(self.cluster, profile), solution.target.code

    def layouts(self) -> list[tuple[Strategy, Placement]]:
        """Layouts with a ring to give shares to, the first of each degrees."""
        found: dict[tuple[int, ...], tuple[Strategy, Placement]] = {}
        near = ((one.strategy, one.placement) for one in (*self.solution.best, *self.solution.near))
        for strategy, placement in itertools.chain(near, self._of_all_gpus()):
            if strategy.ring > 1 and strategy.tensor == strategy.pipeline == 1:
                degrees = strategy.data, strategy.ring, strategy.ulysses
                found.setdefault(degrees, (replace(strategy, ring_kind="zigzag"), placement))
        return list(found.values())

    def _of_all_gpus(self) -> Iterator[tuple[Strategy, Placement]]:
        """Ranks on every GPU: ulysses inside nodes, ring position by position, all replicas of each together."""
        gpus, work, pins = self.cluster.gpus, self.solution.workload, self.space.pins
        least = int(np.gcd.reduce([run.node.gpus for run in self.cluster.runs if run.node.gpus]))
        first = self.solution.best[0].strategy
        for data, ulysses in itertools.product(divisors(work.global_batch), divisors(least)):
            ring, rows = gpus // (data * ulysses), work.global_batch // data
            chunks = max(1, min(first.attention_head_chunks, work.model.heads // ulysses))
            asked: dict[str, Any] = {
                "attention_head_chunks": chunks,
                "data": data,
                "ring": ring,
                "ulysses": ulysses,
                "shard": gpus,
                "zero": 3,
                "microbatches": rows,
            }
            if data * ulysses * ring != gpus or ulysses > work.model.heads or ring < 2:
                continue
            if any(pins.get(name, value) != value for name, value in asked.items()):
                continue
            if 2 * ring * ulysses > work.context_tokens:
                continue
            strategy = replace(first, **asked, expert=1, attention_chunk_tokens=None)
            order = np.transpose(rank_grid(strategy)[0, ..., 0], (1, 0, 2)).reshape(-1)
            plain, slot, gpu = Placement.in_order(self.cluster, gpus), np.empty(gpus, int), np.empty(gpus, int)
            slot[order], gpu[order] = plain.slot_of_rank, plain.gpu_of_rank
            yield strategy, Placement(slot_of_rank=slot, gpu_of_rank=gpu)

    def price(self, strategy: Strategy, placement: Placement) -> Choice:
        cost = price(self.cluster, self.solution.workload, strategy, placement, self.profile, self.code)
        return Choice(strategy=strategy, placement=placement, cost=cost)

    def rough(self, strategy: Strategy, placement: Placement, shares: Shares) -> float:
        """The value with even shares and the layers as they are, whatever memory that takes."""
        return self.value(self.price(_dealt(strategy, shares), placement))

    def shared(self, strategy: Strategy, placement: Placement, shares: Shares) -> Choice | None:
        """The best layout with shares, of even ones, that fits; they are tempered further as long as that helps."""
        best: Choice | None = None
        if np.ptp(shares) == 0:
            return None
        fastest = self._fastest(strategy, placement, shares)
        for temper in TEMPERED:
            dealt = _dealt(strategy, shares ** (fastest * temper))
            found = min(self._with_layers(dealt, placement), key=self.value, default=None)
            if best is not None and (found is None or self.value(found) >= self.value(best)):
                break
            best = found
        return best

    def _fastest(self, strategy: Strategy, placement: Placement, even: Shares) -> float:
        """The power of even shares that is priced least, the layers as they are: phases have unlike ratios, so that
        none that waits for another position may be worth more than that sums are even. By golden sections."""

        def value(power: float) -> float:
            return self.value(self.price(_dealt(strategy, even**power), placement))

        low, high = POWERS
        inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
        least = [value(one) for one in inner]
        for _ in range(SECTIONS):
            if least[0] <= least[1]:
                high, inner = inner[1], [inner[1] - GOLDEN * (inner[1] - low), inner[0]]
                least = [value(inner[0]), least[0]]
            else:
                low, inner = inner[0], [inner[1], inner[0] + GOLDEN * (high - inner[0])]
                least = [least[1], value(inner[1])]
        return inner[least.index(min(least))]

    def value(self, choice: Choice) -> float:
        return value_of(self.objective, choice.cost)

    def even(self, strategy: Strategy, placement: Placement) -> Shares:
        """Shares at which all positions of the ring compute as long, the largest 1."""
        shares = np.ones(strategy.ring)
        for _ in range(ROUNDS):
            dealt, seconds = _dealt(strategy, shares), np.empty(strategy.ring)
            for one in positions(self.costs, self.solution.workload, dealt, placement, self.code):
                seconds[list(one.rings)] = compute_s(one.program())
            if seconds.max() <= seconds.min() * (1 + EVEN):
                break
            shares = np.array(dealt.token_shares) / seconds
            shares /= shares.max()
        return shares

    def _with_layers(self, strategy: Strategy, placement: Placement) -> Iterator[Choice]:
        """Layers by one policy; by two, the fastest that its seconds and bytes by each alone promise, as many by the
        leaner one as memory asks."""
        layers = self.solution.workload.model.layers

        def choice(fast: Policy, lean: Policy, count: int) -> Choice:
            parts = [(lean, count), (fast, layers - count)]
            ranges = tuple(_ranged(policy, many) for policy, many in parts if many)
            return self.price(replace(strategy, layers=ranges), placement)

        alone = [(policy, choice(policy, policy, layers)) for policy in self.space.policies]
        fitting = [(policy, one) for policy, one in alone if self.room.holds(one.cost)]
        yield from (one for _, one in fitting)
        mixed: list[tuple[float, int, int, Policy, Policy]] = []
        for (fast, over), (lean, held) in itertools.product(alone, fitting):
            saved = over.cost.memory_bytes - held.cost.memory_bytes
            if self.room.holds(over.cost) or over.cost.step_s >= held.cost.step_s or saved <= 0:
                continue
            count = max(1, int(layers * self._over(over) / saved))  # memory is about linear in the layers
            seconds = over.cost.step_s + (held.cost.step_s - over.cost.step_s) * count / layers
            mixed.append((seconds, count, saved, fast, lean))
        for _, count, saved, fast, lean in sorted(mixed, key=lambda one: one[:2])[:MOST_MIXED]:
            while count < layers:
                tried = choice(fast, lean, count)
                if self.room.holds(tried.cost):
                    yield tried
                    break
                count += max(1, int(layers * self._over(tried) / saved))

    def _over(self, choice: Choice) -> float:
        """Bytes above what a rank may be priced at."""
        return choice.cost.memory_bytes - self.room.limit_bytes(choice.cost.capacity_bytes)


def _dealt(strategy: Strategy, shares: Shares) -> Strategy:
    parts = np.maximum(1, np.round(shares / np.max(shares) * PARTS).astype(int))
    return replace(strategy, token_shares=tuple((parts // np.gcd.reduce(parts)).tolist()))


def _ranged(policy: Policy, count: int) -> LayerRange:
    return replace(policy, count=count) if isinstance(policy, LayerRange) else LayerRange(recompute=policy, count=count)
