"""What a document adds to a group of GPUs, as a table made from `price`: the coefficients of every batch's plan.

    wave     what all GPUs do between two meetings: one packed row for each group, as weights are gathered from all
    a group  takes max(gathers, alone + Σ documents' seconds) for its row: ring r × ulysses u on r u GPUs
    local    a document on one ring position: what it takes on u GPUs alone, over r, as positions are balanced
    spread   a document longer than a position's part of the row: one row on r × u, its ring's exposed hops counted
    cap      tokens of a row that a GPU holds, by recompute policy

Seconds a token are read from the table, linear in length between priced lengths. Units: seconds, tokens, GPUs.
Left out: vision towers, unequal GPUs (ranks lie in order), what changing groups from batch to batch costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models.batch import price_batch
from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.longest import most_tokens
from cost_models.pricing import price
from cost_models.profile import Profile
from cost_models.room import Room
from cost_models.strategy import LayerRange, Recompute, Strategy
from cost_models.workload import Workload
from planner.search.space import SEARCHED, divisors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DENSITY = 16 * 1024
"""Tokens of a row on a GPU at which what a token takes is priced; the table is compared with `price` elsewhere."""
SHORTEST, SHORT = 256, 1024
"""Documents below the first take as much a token as that; below the second they are short."""
CAP_UNIT = 512
"""Tokens to which what a GPU holds is rounded down."""
OF_A_DOCUMENT = ("compute", "recompute", "all_to_all", "ring", "vision", "tensor", "host")
"""Parts of a price that grow with a group's row; gathers and the update are the whole job's."""
MOST_SIZES = 48


@dataclass(frozen=True, order=True)
class Shape:
    """A group of GPUs and how it shares a row."""

    ring: int
    ulysses: int

    @property
    def gpus(self) -> int:
        return self.ring * self.ulysses


@dataclass(frozen=True, eq=False)
class PolicyCosts:
    """The table under one recompute policy: seconds a token at the lengths of `grid`."""

    policy: Recompute
    cap: int  # tokens on a GPU
    alone_s: float  # of a wave, whatever the row; exposed gathers included
    local_s: Floats  # by ulysses degree (of GroupCosts) and length: on so many GPUs
    spread_s: Floats  # by shape and length
    grid: Floats

    def local(self, lengths: Ints, degrees: Ints | slice = slice(None)) -> Floats:
        """Seconds of each document on one ring position, by place of the ulysses degree, shape (degrees, documents)."""
        return self._read(self.local_s[degrees], lengths)

    def least_work(self, lengths: Ints, degrees: Ints) -> Floats:
        """GPU-seconds that each document takes at least on one ring position of any of the ulysses degrees.

        Between two lengths of the grid the least of lines is above the line through the least at both.
        """
        least = (self.local_s * degrees[:, None]).min(axis=0, keepdims=True)
        work: Floats = self._read(least, lengths)[0]
        return work

    def spread(self, lengths: Ints, shapes: Ints | slice = slice(None)) -> Floats:
        """Seconds of each document over all positions, shape (shapes, documents)."""
        return self._read(self.spread_s[shapes], lengths)

    def _read(self, table: Floats, lengths: Ints) -> Floats:
        place = np.clip(np.searchsorted(self.grid, lengths, side="right") - 1, 0, len(self.grid) - 2)
        share = np.clip((lengths - self.grid[place]) / (self.grid[place + 1] - self.grid[place]), 0.0, 1.0)
        found: Floats = (table[:, place] * (1 - share) + table[:, place + 1] * share) * lengths
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupCosts:
    gpus: int
    shapes: tuple[Shape, ...]
    ulysses: tuple[int, ...]  # degrees, ascending
    policies: tuple[PolicyCosts, ...]
    gathers_s: float  # a wave takes at least as long
    once_s: float  # of a step: the update, and what the last wave's reductions expose

    @cached_property
    def rings(self) -> Ints:
        return np.array([one.ring for one in self.shapes])

    @cached_property
    def sizes(self) -> Ints:
        return np.array([one.gpus for one in self.shapes])

    @cached_property
    def degree(self) -> Ints:
        """Place in `ulysses` of each shape's degree."""
        return np.array([self.ulysses.index(one.ulysses) for one in self.shapes])

    @cached_property
    def best(self) -> dict[Recompute, list[int]]:
        """By policy: of each size the shape that is fastest for a document that fills it, smallest size first."""
        found: dict[Recompute, list[int]] = {}
        for policy in self.policies:
            took = policy.spread(self.sizes * DENSITY).diagonal()
            sizes = np.unique(self.sizes).tolist()
            found[policy.policy] = [
                min(np.flatnonzero(self.sizes == size).tolist(), key=took.__getitem__) for size in sizes
            ]
        return found

    def seconds(self, policy: PolicyCosts, shapes: Sequence[int] | Ints, lengths: Ints, density: float) -> Floats:
        """Of each document in rows of `density` tokens a GPU, by shape: local where a ring position has room for it."""
        picked = np.array(shapes, dtype=np.int64)
        found: Floats = policy.local(lengths, self.degree[picked]) / self.rings[picked, None]
        position = density * np.array([self.shapes[one].ulysses for one in picked])[:, None]
        position = np.where(self.rings[picked, None] == 1, np.inf, position)
        over = lengths > position.min()
        if over.any():
            spread = np.maximum(found[:, over], policy.spread(lengths[over], picked))
            found[:, over] = np.where(lengths[over] <= position, found[:, over], spread)
        return found


def group_costs(
    cluster: Cluster,
    workload: Workload,
    limit: int,
    room: Room,
    profile: Profile | None = None,
    on_step: Callable[[str], None] = lambda what: None,
) -> GroupCosts:
    """The table for rows of at most `limit` tokens a document; InputError where no group holds such a document."""
    pricer = _Pricer(cluster, workload, profile)
    shapes = pricer.shapes()
    degrees = tuple(sorted({one.ulysses for one in shapes}))
    grid = np.array([float(SHORTEST), *(float(SHORT << k) for k in range(32) if SHORT << k < limit), float(limit)])
    caps = pricer.caps(room, on_step)
    if max(caps.values(), default=0) * cluster.gpus < limit:
        raise InputError(
            f"a document of {limit} tokens needs more than {cluster.gpus} GPUs of this kind; give --ctx of at most "
            f"{max(caps.values(), default=0) * cluster.gpus}, and longer documents are cut"
        )
    gathers_s, exposed_s, once_s = pricer.shared()
    made: list[PolicyCosts] = []
    for policy, cap in caps.items():
        on_step(f"pricing groups of {shapes[0].gpus} to {shapes[-1].gpus} GPUs, recompute {policy}")
        alone_s, local = pricer.local(degrees, grid, policy)
        if policy in ("none", "full"):
            spread = pricer.spread(shapes, grid, policy, alone_s)
        else:  # recomputes no attention, so what a ring exposes is that of `none`
            further = [(local - made[0].local_s)[degrees.index(one.ulysses)] / one.ring for one in shapes]
            spread = made[0].spread_s + np.array(further)
        made.append(PolicyCosts(policy, cap, alone_s + exposed_s, local, spread, grid))
    return GroupCosts(
        gpus=cluster.gpus, shapes=shapes, ulysses=degrees, policies=tuple(one for one in made if one.cap),
        gathers_s=gathers_s, once_s=once_s,
    )  # fmt: skip


def strategy_of(shape: Shape, data: int, waves: int, layers: tuple[LayerRange, ...]) -> Strategy:
    """`data` groups of one shape, each with a row in every wave; weights are sharded over all."""
    ranks = data * shape.gpus
    return Strategy(
        data=data, ring=shape.ring, ulysses=shape.ulysses, shard=ranks, ring_kind="balanced",
        zero=3 if ranks > 1 else 0, microbatches=waves, layers=layers,
    )  # fmt: skip


class _Pricer:
    def __init__(self, cluster: Cluster, workload: Workload, profile: Profile | None) -> None:
        self.cluster, self.workload, self.profile = cluster, workload, profile
        counts = np.bincount(cluster.domain_of_slot, weights=cluster.gpus_of_slot)
        self.domain = min(int(counts.max()), workload.model.heads)

    def shapes(self) -> tuple[Shape, ...]:
        """Any size inside a domain, beyond it whole domains; ulysses inside a domain, where it divides the size."""
        gpus, domain = self.cluster.gpus, self.domain
        whole = range(2, gpus // domain + 1)
        picked = np.unique(np.geomspace(2, max(2, len(whole) + 1), MOST_SIZES).round()).astype(int).tolist()
        sizes = [*range(1, min(domain, gpus) + 1), *(count * domain for count in whole if count in picked)]
        found = set()
        for size in sizes:
            shared = math.gcd(domain, self.workload.model.kv_heads)
            degrees = divisors(size) if size <= domain else [1, shared, domain]
            found |= {Shape(size // one, one) for one in degrees if size % one == 0}
        return tuple(sorted(found, key=lambda one: (one.gpus, one.ring)))

    def strategy(self, shape: Shape, policy: Recompute, batch: int | None = None) -> Strategy:
        """As many such groups as there is room for; `batch` rows go through them one by one."""
        data = self.cluster.gpus // shape.gpus
        layers = (LayerRange(recompute=policy, count=self.workload.model.layers),)
        return strategy_of(shape, data, 1 if batch is None else batch // data, layers)

    def row(self, tokens: int, batch: int, document: int | None = None) -> Workload:
        lengths = () if document is None or document >= tokens else ((document, tokens // document),)
        return replace(self.workload, context_tokens=tokens, text_tokens=None, global_batch=batch, lengths=lengths)

    def priced(self, shape: Shape, policy: Recompute, tokens: int, document: int | None, waves: int = 1) -> StepCost:
        layout = self.strategy(shape, policy)
        layout = replace(layout, microbatches=waves)
        work = self.row(tokens, layout.data * waves, document)
        return price(self.cluster, work, layout, profile=self.profile)

    def caps(self, room: Room, on_step: Callable[[str], None]) -> dict[Recompute, int]:
        """Tokens that a GPU holds under each policy, the fewer of a narrow and of a wide group."""
        found: dict[Recompute, int] = {}
        wide = max((one for one in divisors(self.cluster.gpus) if one <= self.domain), default=1)
        for policy in SEARCHED:
            on_step(f"tokens that a GPU holds, recompute {policy}")
            most = []
            for shape in {Shape(1, 1), Shape(1 if wide == self.cluster.gpus else 2, wide)}:
                layout, unit = self.strategy(shape, policy), CAP_UNIT * shape.gpus

                def fits(tokens: int, layout: Strategy = layout) -> bool:
                    return room.holds(price(self.cluster, self.row(tokens, layout.data), layout))

                most.append(most_tokens(fits, unit) // shape.gpus)
            found[policy] = min(most)
        return found

    def shared(self) -> tuple[float, float, float]:
        """(gathers of a wave, what they expose behind a long row, what a step takes beside its waves)."""
        wide = max(one for one in divisors(self.cluster.gpus) if one <= self.domain)
        one, two = (self.priced(Shape(1, wide), "full", DENSITY * wide, None, waves) for waves in (1, 2))
        exposed = two.seconds["sharding"] - one.seconds["sharding"]
        hidden = two.hidden_s.get("sharding", 0.0) - one.hidden_s.get("sharding", 0.0)
        return exposed + hidden, exposed, one.step_s - _of_rows(one) - exposed

    def local(self, degrees: Sequence[int], grid: Floats, policy: Recompute) -> tuple[float, Floats]:
        """(seconds of a row beside its documents, by ulysses degree the seconds a token by length of a document)."""
        found, alone_s = [], 0.0
        for ulysses in degrees:
            shape, row = Shape(1, ulysses), DENSITY * ulysses
            much, less = (_of_rows(self.priced(shape, policy, tokens, SHORT)) for tokens in (row, row // 4))
            alone_s = max(alone_s, (4 * less - much) / 3)
            for length in grid.astype(int).tolist():
                tokens = max(row, length)
                found.append(_of_rows(self.priced(shape, policy, tokens, length)) / (tokens // length * length))
                found[-1] -= alone_s / tokens
        return alone_s, np.maximum(np.array(found).reshape(len(degrees), len(grid)), 0.0)

    def spread(self, shapes: Sequence[Shape], grid: Floats, policy: Recompute, alone_s: float) -> Floats:
        """Seconds a token of one document on each shape, beside the `alone_s` of its row."""
        batch = math.lcm(*(self.cluster.gpus // one.gpus for one in shapes))
        layouts = [self.strategy(one, policy, batch) for one in shapes]
        waves = np.array([one.microbatches for one in layouts])
        found = []
        for length in grid.astype(int).tolist():
            cost = price_batch(self.cluster, self.row(length, batch), layouts, self.profile)
            row_s = sum(cost.seconds.get(part, 0.0) for part in OF_A_DOCUMENT) / waves
            found.append(np.maximum(row_s - alone_s, 0.0) / length)
        return np.array(found).T


def _of_rows(cost: StepCost) -> float:
    return sum(cost.seconds.get(part, 0.0) for part in OF_A_DOCUMENT)
