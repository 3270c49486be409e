"""Which rank of a ring holds which pieces of a packed row, so that all hold as many tokens and attend to as many pairs.

    long documents    end to end over the ranks in the ring's order, equal pairs for each: keys go on to few ranks;
                      where that leaves ranks uneven, 2R chunks in zigzag over the R ranks: keys go to all
    other documents   whole on the least loaded rank with room: keys stay
    what has no room  cut from its end, the heavier pieces to the less loaded ranks

Long are those above a rank's tokens, and as many of the next as it takes for the fullest rank to be within NEAR of the
mean. A query at place p of its document attends to p + 1 keys: of a long document a later rank holds fewer tokens, and
other documents fill it up. Left out: that short calls run at a lower rate.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

Pieces = list[list[tuple[int, int]]]
"""For each rank the (start, stop) of what it holds of the row."""
NEAR = 1.05
"""The fullest rank's pairs over the mean at which no more documents are cut."""
HALVINGS, ROUNDS = 8, 3
"""Of the search for the pairs that long documents bring to a rank."""

Documents = Sequence[tuple[int, int]]
"""(start, tokens), the longest first."""
Chunks = list[tuple[int, int, int, int]]
"""(rank, start of its document, start, stop)."""


class Dealt(NamedTuple):
    """A whole row, with the pairs of each rank."""

    most: float
    pairs: list[float]
    pieces: Pieces


def balanced(edges: Sequence[int], ring: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The pieces of each rank, ascending; `edges` are those of documents in a row that `ring` divides.

    >>> balanced((0, 8, 10, 12), 2)
    (((0, 6),), ((6, 8), (8, 10), (10, 12)))
    """
    starts, lengths = edges[:-1], np.diff(edges)
    order = sorted(range(len(lengths)), key=lambda document: (-int(lengths[document]), document))
    mean = float((lengths * (lengths + 1.0)).sum()) / 2 / ring
    least = int((lengths > edges[-1] // ring).sum())
    documents, best = [(starts[document], int(lengths[document])) for document in order], list[Dealt]()
    for way, cut in product((_in_turn, _in_zigzag), _counts(least, len(order))):
        best = sorted((*best, *way(documents, cut, ring, edges[-1] // ring)))[:1]
        if best and best[0].most <= NEAR * mean:
            break
    return tuple(tuple(sorted(mine)) for mine in best[0].pieces)


def _counts(least: int, most: int) -> Iterator[int]:
    """How many documents to cut: ever more, in growing strides, all of them last."""
    cut, stride = least, 1
    while cut < most:
        yield cut
        cut, stride = cut + stride, max(1, (cut - least) // 4)
    yield most


def _in_turn(documents: Documents, cut: int, ring: int, room: int) -> Iterator[Dealt]:
    """The first `cut` documents end to end; none where they find no room. A rank's share of them is first what other
    documents of the mean would leave it, then what they left it the time before."""
    long, others = documents[:cut], documents[cut:]
    short = sum(_pairs(0, tokens) for _, tokens in others)
    each = short / max(1, sum(tokens for _, tokens in others))  # pairs of a token of other documents
    mean = (short + sum(_pairs(0, tokens) for _, tokens in long)) / ring
    low, high = mean, 2 * mean
    for _ in range(HALVINGS):  # the least for which all find room
        middle = (low + high) / 2
        low, high = (middle, high) if _laid(long, room, each, [middle] * ring) is None else (low, middle)
    most = [high] * ring
    for _ in range(ROUNDS):
        if (chunks := _laid(long, room, each, most)) is None:
            return
        dealt = _dealt(documents, chunks, cut, ring, room)
        yield dealt
        over = (dealt.pairs[-1] - mean) / ring
        most = [one + mean - pairs + over for one, pairs in zip(most, dealt.pairs, strict=True)]


def _laid(long: Documents, room: int, each: float, most: Sequence[float]) -> Chunks | None:
    """Chunks in turn, for each rank until it is full or would have its `most` pairs with the rest of it at `each` a
    token, for the last until it is full; None if that does not hold all."""
    chunks: Chunks = []
    rank, left, pairs = 0, room, room * each
    for start, tokens in long:
        place = 0
        while place < tokens:
            last = rank + 1 == len(most)
            # Pairs of x tokens from here, less those of other documents that then find no room: most - pairs.
            half = place + 0.5 - each
            fits = math.sqrt(max(0.0, half * half + 2 * (most[rank] - pairs))) - half
            size = min(left, tokens - place, left if last else max(0, round(fits)))
            chunks.append((rank, start, start + place, start + place + size))
            pairs += _pairs(place, place + size) - size * each
            place, left = place + size, left - size
            if place < tokens:
                if last:
                    return None
                rank, left, pairs = rank + 1, room, room * each
    return chunks


def _in_zigzag(documents: Documents, cut: int, ring: int, room: int) -> Iterator[Dealt]:
    """An early and a late chunk of each of the first `cut` documents for each rank."""
    chunks, rooms = Chunks(), [room] * ring
    for start, tokens in documents[:cut]:
        for rank, first, last in _mirrored(start, tokens, rooms):
            chunks.append((rank, start, first, last))
            rooms[rank] -= last - first
    yield _dealt(documents, chunks, cut, ring, room)


def _pairs(first: int, last: int) -> float:
    """Of a document's queries from place `first` to before `last`."""
    return (last * (last + 1) - first * (first + 1)) / 2


def _dealt(documents: Documents, chunks: Chunks, cut: int, ring: int, room: int) -> Dealt:
    """The chunks of the first `cut` documents, the others whole where there is room."""
    rooms, pairs = [room] * ring, [0.0] * ring
    pieces: Pieces = [[] for _ in range(ring)]

    def give(rank: int, document: int, start: int, stop: int) -> None:
        if start < stop:
            pieces[rank].append((start, stop))
            rooms[rank] -= stop - start
            pairs[rank] += _pairs(start - document, stop - document)

    for chunk in chunks:
        give(*chunk)
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
    return Dealt(max(pairs), pairs, pieces)


def _mirrored(start: int, tokens: int, rooms: Sequence[int]) -> Iterator[tuple[int, int, int]]:
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
