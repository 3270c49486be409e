"""Better placements on a small cluster that is broken in several places: what a region allows, and exchanges.

    fill       ranks of each domain as the best region's program has them, the domains in every order; or all GPUs but
               those with the slowest cards, the domains with most of them first or last
    exchange   two ranks, two blocks of ranks, or a GPU and a free one: the best exchange is made until none helps
    larger     blocks alone, a batch at a time: a ring's tour then keeps its crossings away from slow cards

So no single exchange improves the answer on few ranks. Left out: clusters whose domains are several nodes, layouts of
more than MOST_BLOCK_RANKS.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cost_models.number import distinct
from cost_models.strategy import Axis, Strategy, axis_stride, sent_patterns
from planner.search.columns import PricedLayouts, Pricer
from planner.search.placements import Placements, orders
from planner.search.regions import Ints, Regions, Rows

MOST_RANKS = 64
MOST_BLOCK_RANKS = 512
"""Layouts of more than MOST_RANKS and of up to so many exchange whole blocks only."""
BATCH = 64
MOST_RANKS_READ = 800_000
"""Ranks of all placements that one search reads to exchange blocks."""
MOST_ORDERED = 4
"""Of more domains not every order is tried."""
MOST_FILLS = 2
"""Of such a layout exchanges start from the best placements of so many sets of GPUs."""
MOST_EXCHANGES = 20
HELPS = 1e-6
"""An exchange that gains less of the time is not made."""
Pair = tuple[int, int, int]  # ranks of a block, and the numbers of two blocks


def filled(regions: Regions, rows: Rows, row: int, strategy: Strategy, pricer: Pricer) -> Placements:
    """Placements with the ranks of each domain as a region has them, and with the slowest cards left idle."""
    found: dict[bytes, tuple[Ints, Ints]] = {}
    fills = _fills(regions, rows, row, strategy.ranks)
    run = pricer.costs.cluster.run_of_slot
    every = [
        (np.repeat(slots, counts), np.concatenate([of[run[s]][:n] for s, n in zip(slots, counts, strict=True)]), counts)
        for (slots, counts), of in itertools.product(fills, pricer.placer.gpu_orders)
    ]
    for slot, gpu, counts in (*every, *_sparing(strategy.ranks, pricer)):
        for order in (*orders(strategy, 1), *_mixed(strategy, counts)):
            placed = np.empty_like(slot), np.empty_like(gpu)
            placed[0][order], placed[1][order] = slot, gpu
            found.setdefault(placed[0].tobytes() + placed[1].tobytes(), placed)
    slots, gpus = (np.stack(part) for part in zip(*found.values(), strict=True))
    return pricer.placer.with_cards(strategy, Placements(slots=slots, gpus=gpus, complete=False))


def _sparing(ranks: int, pricer: Pricer) -> Iterator[tuple[Ints, Ints, Ints]]:
    """(slot and GPU of every rank, ranks in each slot) where the GPUs with the slowest cards are left idle."""
    cluster, rates = pricer.costs.cluster, pricer.costs.rates
    slot = np.repeat(np.arange(cluster.slots), cluster.gpus_of_slot)
    gpu = np.concatenate([np.arange(gpus) for gpus in cluster.gpus_of_slot.tolist()])
    seats = pricer.costs.wiring.seats(slot, gpu)
    rate = rates.cards(seats) * rates.ring_share[seats.run]
    if rate.min() == rate.max() or len(slot) == ranks:
        return
    used = np.sort(np.argsort(rate, kind="stable")[len(slot) - ranks :])
    slot, gpu = slot[used], gpu[used]
    counts = np.bincount(slot, minlength=cluster.slots)
    for order in (np.lexsort((slot, -counts[slot])), np.lexsort((gpu, -slot, counts[slot]))):
        slots = np.unique(slot[order], return_index=True)
        yield slot[order], gpu[order], counts[slots[0][np.argsort(slots[1])]]


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
    places = _places(columns, column)
    sizes = distinct(np.array([1, strategy.ulysses, strategy.context, strategy.shard])).tolist()
    cluster = pricer.costs.cluster
    cards = pricer.costs.rates.cards(pricer.costs.wiring.seats(places[:, 0], places[:, 1]))
    seats = np.stack([places[:, 0], cards], axis=1)
    found = [_swapped(places, *pair) for pair in _pairs(sizes, strategy.ranks) if _differ(seats, *pair)]
    taken = set(map(tuple, places.tolist()))
    free = [(s, g) for s in range(cluster.slots) for g in range(cluster.node(s).gpus) if (s, g) not in taken]
    for rank, place in itertools.product(range(strategy.ranks), free):
        moved = places.copy()
        moved[rank] = place
        found.append(moved)
    return pricer.placer.with_cards(strategy, _listed(found or [places]))


def block_pairs(strategy: Strategy) -> list[Pair]:
    """Exchanges of a large layout: ulysses groups, rows and shard groups, neighbours of one block after the other."""
    sizes = distinct(np.array([strategy.ulysses, strategy.context, strategy.shard])).tolist()
    return list(_pairs([size for size in sizes if 1 < size < strategy.ranks], strategy.ranks))


def fills(columns: PricedLayouts, several: Sequence[int]) -> list[int]:
    """Of these columns the first of each set of GPUs in use."""
    found: dict[bytes, int] = {}
    for column in several:
        places = _places(columns, column)
        found.setdefault(places[np.lexsort(places.T)].tobytes(), column)
    return list(found.values())


def exchanged_blocks(columns: PricedLayouts, column: int, pairs: Sequence[Pair]) -> Placements:
    """A column's placement, then that after each of these exchanges alone."""
    places = _places(columns, column)
    return _listed([places, *(_swapped(places, *pair) for pair in pairs)])


def unmoved(strategy: Strategy, pairs: Sequence[Pair]) -> list[Axis]:
    """Axes whose paths none of these exchanges changes: whole groups trade places; or members of one group do, and no
    rank sends to the next one, for gathers and all-to-alls go by who is in a group.

    >>> unmoved(Strategy(ring=4, ulysses=2, shard=8), [(2, 0, 3)])
    ['ulysses', 'shard', 'tensor']
    """
    kept: list[Axis] = []
    for axis, patterns in sent_patterns(strategy).items():
        stride, members = axis_stride(strategy, axis)
        span = stride * members  # ranks that hold whole groups

        def inside(size: int, a: int, b: int, stride: int = stride, span: int = span) -> bool:
            return size % stride == 0 and span % size == 0 and a * size // span == b * size // span

        if all(pair[0] % span == 0 or ("send" not in patterns and inside(*pair)) for pair in pairs):
            kept.append(axis)
    return kept


def _places(columns: PricedLayouts, column: int) -> Ints:
    """(slot, GPU) of every rank."""
    placement = columns.placements[column]
    return np.stack([placement.slot_of_rank, placement.gpu_of_rank], axis=1)


def _listed(places: Sequence[Ints]) -> Placements:
    each = np.stack(places)
    return Placements(slots=each[..., 0], gpus=each[..., 1], complete=False)


def _pairs(sizes: Sequence[int], ranks: int) -> Iterator[Pair]:
    for size in sizes:
        yield from ((size, a, b) for a, b in itertools.combinations(range(ranks // size), 2))


def _differ(seats: NDArray[np.float64], size: int, a: int, b: int) -> bool:
    """Whether two blocks lie on other slots, or beside cards of other rates; (slot, rate) of every rank."""
    one, other = (seats[block * size : (block + 1) * size] for block in (a, b))
    return not np.array_equal(one, other)


def _swapped(places: Ints, size: int, a: int, b: int) -> Ints:
    swapped = places.copy()
    one, other = (slice(block * size, (block + 1) * size) for block in (a, b))
    swapped[one], swapped[other] = places[other], places[one]
    return swapped
