"""Which rank of a ring holds which pieces of a packed row, so that all hold as many tokens and attend to as many pairs.

    long documents    2R chunks in zigzag over the R ranks: equal tokens, equal pairs, keys travel
    other documents   whole on the least loaded rank with room: keys stay
    what has no room  cut from its end, the heavier pieces to the less loaded ranks

Long are those above a rank's tokens, and as many of the next as it takes for the fullest rank to be within NEAR of the
mean. A query at place p of its document attends to p + 1 keys. Left out: the hops that a cut document's keys take, and
that short calls run at a lower rate.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

Pieces = list[list[tuple[int, int]]]
"""For each rank the (start, stop) of what it holds of the row."""
NEAR = 1.03
"""The fullest rank's pairs over the mean at which no more documents are cut."""


def balanced(edges: Sequence[int], ring: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The pieces of each rank, ascending; `edges` are those of documents in a row that `ring` divides.

    >>> balanced((0, 8, 10, 12), 2)
    (((0, 2), (6, 8), (8, 10)), ((2, 4), (4, 6), (10, 12)))
    """
    starts, lengths = edges[:-1], np.diff(edges)
    order = sorted(range(len(lengths)), key=lambda document: (-int(lengths[document]), document))
    mean = float((lengths * (lengths + 1.0)).sum()) / 2 / ring
    least = int((lengths > edges[-1] // ring).sum())
    best: tuple[float, Pieces] | None = None
    for cut in _counts(least, len(order)):
        worst, pieces = _dealt([(starts[d], int(lengths[d])) for d in order], cut, ring, edges[-1] // ring)
        if best is None or worst < best[0]:
            best = worst, pieces
        if worst <= NEAR * mean:
            break
    assert best is not None
    return tuple(tuple(sorted(mine)) for mine in best[1])


def _counts(least: int, most: int) -> Iterator[int]:
    """How many documents to cut: ever more, in growing strides, all of them last."""
    cut, stride = least, 1
    while cut < most:
        yield cut
        cut, stride = cut + stride, max(1, (cut - least) // 4)
    yield most


def _dealt(documents: list[tuple[int, int]], cut: int, ring: int, room: int) -> tuple[float, Pieces]:
    """(pairs of the fullest rank, pieces): the first `cut` documents (start, tokens) in zigzag, the others whole."""
    rooms, pairs = [room] * ring, [0.0] * ring
    pieces: Pieces = [[] for _ in range(ring)]

    def give(rank: int, document: int, start: int, stop: int) -> None:
        if start < stop:
            pieces[rank].append((start, stop))
            rooms[rank] -= stop - start
            first, last = start - document, stop - document
            pairs[rank] += (last * (last + 1) - first * (first + 1)) / 2

    for start, tokens in documents[:cut]:
        for rank, first, last in _zigzag(start, tokens, rooms):
            give(rank, start, first, last)
    heap, homeless = [(pairs[rank], rank) for rank in range(ring)], []
    heapq.heapify(heap)
    for start, tokens in documents[cut:]:
        full = []
        while heap and rooms[heap[0][1]] < tokens:
            full.append(heapq.heappop(heap))
        if heap:
            _, rank = heapq.heappop(heap)
            give(rank, start, start, start + tokens)
            heapq.heappush(heap, (pairs[rank], rank))
        else:
            homeless.append((start, tokens))
        for one in full:
            heapq.heappush(heap, one)
    for start, tokens in homeless:
        stop = start + tokens
        while stop > start:
            rank = min((r for r in range(ring) if rooms[r]), key=lambda r: (pairs[r], r))
            first = max(start, stop - rooms[rank])
            give(rank, start, first, stop)
            stop = first
    return max(pairs), pieces


def _zigzag(start: int, tokens: int, rooms: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(rank, start, stop): an early and a late chunk of a document for each rank, one token more for most room."""
    ring = len(rooms)
    shares = [tokens // ring] * ring
    for rank in sorted(range(ring), key=lambda rank: (-rooms[rank], rank))[: tokens % ring]:
        shares[rank] += 1
    early = [share // 2 for share in shares]
    at = start
    for rank in range(ring):
        yield rank, at, at + early[rank]
        at += early[rank]
    for rank in reversed(range(ring)):
        late = shares[rank] - early[rank]
        yield rank, at, at + late
        at += late
