"""Does one layout suffice for documents of many lengths, or do groups of any size, anew for each batch, win?

    drawn batches -> table (group_costs) -> the best layout for all of them, priced on its rows
                                         -> groups of any size, and the bound that neither is below
                                         -> the same with longer and shorter documents: the border

"By how much" are seconds of a step over those of the other way. One layout is within (step / bound - 1) of whatever
groups could bring: where that is small, it suffices, whatever dealing were found. Left out: rows that change from step
to step under one layout are taken as dealt by cost; `in_order_s` is what they take as the executor packs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_models.errors import InputError
from cost_models.pricing import price
from cost_models.strategy import LayerRange, Strategy
from cost_models.units import show_tokens
from cost_models.workload import Workload
from planner.lengths.dealing import Batch, Dealt, best_dynamic, one_layout
from planner.lengths.group_costs import SHORTEST, Floats, GroupCosts, Ints, PolicyCosts, Shape, group_costs, strategy_of
from planner.lengths.histogram import Histogram
from planner.question.options import Question

WINS = 0.03
"""Groups of any size win where one layout takes so much longer: less is within what a price can be off."""
DRAWN = 3
PROMISING = 6
"""Layouts that are dealt a batch, of those whose work would be done first were it dealt evenly."""
PRICED = 3
"""Of those the best that are priced on their rows."""
LEAST_LIMIT = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Border:
    """What both ways take where documents are cut at `limit` tokens."""

    limit: int
    layout_s: float
    dynamic_s: float
    bound_s: float

    @property
    def wins(self) -> bool:
        return self.layout_s > (1 + WINS) * self.dynamic_s


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """One layout for all batches beside groups that are dealt for each batch; seconds of a step."""

    limit: int
    tokens: int  # of a step
    documents: int  # of the first batch
    longest: int  # tokens of its longest
    strategy: Strategy  # the one layout
    workload: Workload  # its rows: the slowest of the first batch
    priced_s: float  # by `price`
    layout_s: float  # by the table, as all below; means over the drawn batches
    in_order_s: float
    unpacked_s: float
    dynamic_s: float
    bound_s: float
    groups: Mapping[int, int]  # of the dynamic answer: how many of each size, first batch
    borders: tuple[Border, ...]

    @property
    def suffices(self) -> bool:
        return self.layout_s <= (1 + WINS) * self.dynamic_s


def verdict(
    asked: Question,
    histogram: Histogram,
    limit: int,
    tokens: int,
    fixed: Mapping[str, object],
    on_step: Callable[[str], None] = lambda what: None,
) -> Verdict:
    """InputError: a document of `limit` tokens that no group holds, or pins that leave no layout."""
    costs = group_costs(asked.cluster, asked.workload, limit, asked.room, asked.profile, on_step)
    on_step("dealing batches")
    several_drawn = [histogram.draw(tokens, limit, seed) for seed in range(DRAWN)]
    batches = [Batch.of(joined(drawn), costs) for drawn in several_drawn]
    rivals = layouts(batches[0], fixed)
    if not rivals:
        pinned = ", ".join(f"{name}={value}" for name, value in fixed.items())
        raise InputError(f"--fix {pinned}: no layout of it holds documents of {limit} tokens; leave one out")
    every = [[dealt_best(one, policy, shape) for one in batches] for _, policy, shape in rivals]
    held = [place for place, several in enumerate(every) if all(several)]
    if not held:
        raise InputError(f"no layout holds every batch of {tokens} tokens in memory; give a smaller --batch")
    held.sort(key=lambda place: sum(one.step_s for one in every[place] if one))
    on_step("pricing the best layouts on their rows")
    (priced_s, strategy, work), place = min(
        ((_priced(asked, costs, rivals[place][0]), place) for place in held[:PRICED]), key=lambda one: one[0][0]
    )
    _, policy, shape = rivals[place]
    several = [one for one in every[place] if one is not None]
    dynamic = [
        min(filter(None, [best_dynamic(batch), layout, *_alike(batch)]), key=lambda one: one.step_s)
        for batch, layout in zip(batches, several, strict=True)
    ]
    drawn = several_drawn[0]
    sizes = [one.gpus for one in dynamic[0].shapes]
    return Verdict(
        limit=limit, tokens=tokens, documents=len(drawn), longest=int(drawn.max()), strategy=strategy, workload=work,
        priced_s=priced_s, layout_s=_mean(one.step_s for one in several),
        in_order_s=_mean(_in_order_s(each, costs, policy, shape, work.context_tokens) for each in several_drawn),
        unpacked_s=_unpacked_s(drawn, costs),
        dynamic_s=_mean(one.step_s for one in dynamic), bound_s=_mean(one.bound_s for one in batches),
        groups={size: sizes.count(size) for size in sorted(set(sizes))},
        borders=tuple(_borders(histogram, costs, limit, tokens, fixed, on_step)),
    )  # fmt: skip


def joined(lengths: Ints) -> Ints:
    """Documents of at most SHORTEST / 2 tokens put together to less than SHORTEST: the table has them all at the rate
    of SHORTEST tokens, so that no price changes and a batch of millions is no longer than one of thousands.

    >>> joined(np.array([3000, 100, 20, 90, 5, 200])).tolist()
    [3000, 200, 120, 95]
    """
    short = lengths <= SHORTEST // 2
    ends = np.cumsum(lengths[short])
    packs = np.unique((ends - 1) // (SHORTEST // 2), return_inverse=True)[1]
    together = np.bincount(packs, lengths[short]).astype(np.int64)
    return np.concatenate([lengths[~short], together])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _alike(batch: Batch) -> list[Dealt]:
    """Groups of one shape for this batch, whatever is pinned for all."""
    return [dealt for dealt, _, _ in layouts(batch, {})]


def layouts(batch: Batch, fixed: Mapping[str, object]) -> list[tuple[Dealt, PolicyCosts, int]]:
    """(dealt batch, policy, shape) of the most promising layouts, the best first."""
    costs, lengths, found = batch.costs, batch.lengths, []
    tokens, longest = int(lengths.sum()), int(lengths[0])
    for policy in costs.policies:
        if fixed.get("recompute", policy.policy) != policy.policy:
            continue
        waves = -(-tokens // (policy.cap * costs.gpus))
        legal = [place for place, one in enumerate(costs.shapes) if _legal(one, costs, fixed, policy.cap, longest)]
        if not legal:
            continue
        work = costs.seconds(policy, legal, lengths, tokens / waves / costs.gpus)
        groups = costs.gpus // costs.sizes[legal]
        even = policy.alone_s * waves + np.maximum(work.sum(axis=1) / groups, work[:, 0] * 1.0)
        found += [(float(seconds), policy, place) for seconds, place in zip(even, legal, strict=True)]
    found.sort(key=lambda one: one[0])
    dealt = [(dealt_best(batch, policy, place), policy, place) for _, policy, place in found[: 2 * PROMISING]]
    several = [(one, policy, place) for one, policy, place in dealt if one is not None]
    return sorted(several, key=lambda one: one[0].step_s)[:PROMISING]


def _legal(shape: Shape, costs: GroupCosts, fixed: Mapping[str, object], cap: int, longest: int) -> bool:
    data = costs.gpus // shape.gpus
    pinned = {"ring": shape.ring, "ulysses": shape.ulysses, "data": data}
    return shape.gpus * cap >= longest and all(fixed.get(name, value) == value for name, value in pinned.items())


def dealt_best(batch: Batch, policy: PolicyCosts, shape: int) -> Dealt | None:
    """With as few waves as memory allows: a wave more where rows of unlike documents do not fit."""
    groups = batch.costs.gpus // int(batch.costs.sizes[shape]) * int(batch.costs.sizes[shape])
    fewest = -(-int(batch.lengths.sum()) // (policy.cap * groups))
    for waves in range(fewest, 2 * fewest + 2):
        if (found := one_layout(batch, policy, waves, shape)) is not None:
            return found
    return None


def _priced(asked: Question, costs: GroupCosts, dealt: Dealt) -> tuple[float, Strategy, Workload]:
    """(seconds of the step by `price`, if every row were the slowest; layout, workload)."""
    shape = dealt.shapes[0]
    data = costs.gpus // shape.gpus
    layers = (LayerRange(recompute=dealt.policy, count=asked.workload.model.layers),)
    layout = strategy_of(shape, data, dealt.waves, layers)
    held = np.bincount(dealt.group, dealt.lengths, len(dealt.shapes))
    slowest = dealt.row(int(dealt.group_s.argmax()))
    unit = 2 * shape.gpus
    row = int(-(-max(held.max(), slowest.sum()) // unit) * unit)
    lengths = tuple(
        (int(tokens), int(count)) for tokens, count in zip(*np.unique(slowest, return_counts=True), strict=True)
    )
    work = replace(
        asked.workload, context_tokens=row, text_tokens=None, global_batch=data * dealt.waves, lengths=lengths[::-1]
    )
    return price(asked.cluster, work, layout, profile=asked.profile).step_s, layout, work


def _in_order_s(lengths: Ints, costs: GroupCosts, policy: PolicyCosts, shape: int, row: int) -> float:
    """A row ends when the next document does not fit; each wave takes the next rows."""
    seconds = costs.seconds(policy, [shape], lengths, row / int(costs.sizes[shape]))[0]
    rows, tokens, took = list[float](), 0, 0.0
    for length, one in zip(lengths.tolist(), seconds.tolist(), strict=True):
        if tokens + length > row:
            rows.append(took)
            tokens, took = 0, 0.0
        tokens, took = tokens + length, took + one
    return _waves_s([*rows, took], costs, policy, costs.gpus // int(costs.sizes[shape]))


def _waves_s(rows: Sequence[float] | Floats, costs: GroupCosts, policy: PolicyCosts, groups: int) -> float:
    starts = np.arange(0, len(rows), groups)
    slowest = np.maximum.reduceat(np.asarray(rows), starts)
    return float(np.maximum(costs.gathers_s, policy.alone_s + slowest).sum()) + costs.once_s


def _unpacked_s(lengths: Ints, costs: GroupCosts) -> float:
    """A document a row, in the order of the data, by the best layout for that."""
    best = np.inf
    for policy in costs.policies:
        for place in np.flatnonzero(costs.sizes * policy.cap >= lengths.max()).tolist():
            rows = costs.seconds(policy, [place], lengths, 0.0)[0]
            best = min(best, _waves_s(rows, costs, policy, costs.gpus // int(costs.sizes[place])))
    return best


def _borders(
    histogram: Histogram, costs: GroupCosts, limit: int, tokens: int, fixed: Mapping[str, object],
    on_step: Callable[[str], None],
) -> Iterator[Border]:  # fmt: skip
    limits = [limit]
    while limits[-1] > LEAST_LIMIT:
        limits.append(max(LEAST_LIMIT, 1 << (limits[-1] - 1).bit_length() - 1))
    for one in reversed(limits):
        on_step(f"documents of at most {show_tokens(one)} tokens")
        batch = Batch.of(joined(histogram.draw(tokens, one, 0)), costs)
        held, free = layouts(batch, fixed), [one for one in (best_dynamic(batch), *_alike(batch)) if one is not None]
        if not held:
            continue
        best = held[0][0].step_s
        yield Border(
            limit=one, layout_s=best, dynamic_s=min([best, *(each.step_s for each in free)]), bound_s=batch.bound_s
        )
