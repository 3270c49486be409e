"""Better placements on a small cluster that is broken in several places: what a region allows, and exchanges.

    fill       ranks of each domain as the best region's program has them, the domains in every order
    exchange   two ranks, two blocks of ranks, or a GPU and a free one: the best exchange is made until none helps

So no single exchange improves the answer. Left out: clusters whose domains are several nodes, layouts of more ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from cost_models.number import distinct
from cost_models.strategy import Strategy
from planner.search.columns import PricedLayouts, Pricer
from planner.search.placements import Placements, orders
from planner.search.regions import Ints, Regions, Rows

MOST_RANKS = 64
MOST_ORDERED = 4
"""Of more domains not every order is tried."""
MOST_EXCHANGES = 20
HELPS = 1e-6
"""An exchange that gains less of the time is not made."""


def filled(regions: Regions, rows: Rows, row: int, strategy: Strategy, pricer: Pricer) -> Placements:
    """Placements with the ranks of each domain as a region has them."""
    found: dict[bytes, tuple[Ints, Ints]] = {}
    fills = _fills(regions, rows, row, strategy.ranks)
    for (slots, counts), gpu_order in itertools.product(fills, pricer.placer.gpu_orders):
        run = pricer.costs.cluster.run_of_slot
        slot = np.repeat(slots, counts)
        gpu = np.concatenate([gpu_order[run[s]][:n] for s, n in zip(slots, counts, strict=True)])
        for order in (*orders(strategy, 1), *_mixed(strategy, counts)):
            placed = np.empty_like(slot), np.empty_like(gpu)
            placed[0][order], placed[1][order] = slot, gpu
            found.setdefault(placed[0].tobytes() + placed[1].tobytes(), placed)
    slots, gpus = (np.stack(part) for part in zip(*found.values(), strict=True))
    return Placements(slots=slots, gpus=gpus, complete=False)


def _mixed(strategy: Strategy, counts: Ints) -> Iterator[Ints]:
    """Whole ulysses groups in the first domains, and those of all others with their members in as many domains."""
    size = strategy.ulysses
    for cut in np.cumsum(counts)[:-1].tolist():
        if size > 1 and cut % size == 0:
            rest = np.arange(cut, strategy.ranks).reshape(-1, size).T.ravel()
            yield np.concatenate([np.arange(cut), rest])


def _fills(regions: Regions, rows: Rows, row: int, ranks: int) -> Iterator[tuple[Ints, Ints]]:
    """(slots, ranks in each), the slots in several orders."""
    used = np.flatnonzero(regions.used[rows.region[row]])
    least, most = int(rows.least[row]), rows.most[row]
    several = min(int(regions.domains[rows.region[row]]), ranks // least)
    kinds = regions.kinds
    first = [(kind, int(kinds.slots[kind][0])) for kind in used]
    rest = [(kind, int(slot)) for kind in used[np.argsort(-most[used])] for slot in kinds.slots[kind][1:]]
    chosen = [*first, *rest][:several]
    counts, left = np.array([least] * len(chosen)), ranks - least * len(chosen)
    for index in sorted(range(len(chosen)), key=lambda i: (-most[chosen[i][0]], chosen[i][1])):
        more = min(left, int(most[chosen[index][0]]) - least)
        counts[index], left = counts[index] + more, left - more
    slots = np.array([slot for _, slot in chosen])
    by_count = np.lexsort((slots, -counts))
    if len(slots) <= MOST_ORDERED:
        every: list[Ints] = [np.array(order) for order in itertools.permutations(range(len(slots)))]
    else:
        every = [by_count, by_count[::-1], np.argsort(slots), np.roll(by_count, 1)]
    for order in every if not left else ():
        yield slots[order], counts[order]


def exchanged(strategy: Strategy, columns: PricedLayouts, column: int, pricer: Pricer) -> Placements:
    """Every placement that one exchange makes of a column's."""
    slots, gpus = columns.placements[column].slot_of_rank, columns.placements[column].gpu_of_rank
    places = np.stack([slots, gpus], axis=1)
    found: list[Ints] = []
    for size in distinct(np.array([1, strategy.ulysses, strategy.context, strategy.shard])).tolist():
        blocks = strategy.ranks // size
        for a, b in itertools.combinations(range(blocks), 2):
            one, other = slice(a * size, a * size + size), slice(b * size, b * size + size)
            if not np.array_equal(slots[one], slots[other]):
                swapped = places.copy()
                swapped[one], swapped[other] = places[other], places[one]
                found.append(swapped)
    cluster = pricer.costs.cluster
    taken = set(map(tuple, places.tolist()))
    free = [(s, g) for s in range(cluster.slots) for g in range(cluster.node(s).gpus) if (s, g) not in taken]
    for rank, place in itertools.product(range(strategy.ranks), free):
        moved = places.copy()
        moved[rank] = place
        found.append(moved)
    if not found:
        found = [places]
    each = np.stack(found)
    return Placements(slots=each[..., 0], gpus=each[..., 1], complete=False)
