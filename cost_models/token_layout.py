"""Which tokens of a row a rank holds, and which pairs of tokens two ranks have to bring together.

Zigzag, ring R = 2: the padded row in 2R chunks; ring rank r takes chunks r and 2R-1-r, so all do equal causal work;
the ring block is then cut into U equal slices, one for each ulysses rank:

    row      | c0 | c1 | c2 | c3 |        ring 0: c0 c3    ring 1: c1 c2      (contiguous: ring 0: c0 c1, …)
    ring 0   | c0 . c3 |  -> ulysses 0: first half of (c0 c3), ulysses 1: second half

After the head exchange a rank sees its whole ring block again, so causality is a matter of chunks alone: two chunks
are the same (causal) or one lies wholly before the other (all or nothing). A local index ascends with the row's.
Units: tokens. Leaves out blocks of unequal size: the row is padded to a multiple of `granule`, pads at the end.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.number import Number, pick

Places = NDArray[np.int64]
"""Positions in a row. Plain arrays, not tensors: a step on fake tensors still has to know them."""

RING_LAYOUTS = ("zigzag", "contiguous")


def row_granule(ring: Number, ulysses: Number, ring_kind: str = "zigzag") -> Number:
    """A row is padded to a multiple of this: equal blocks for the ring, cut in two chunks unless a layout needs none,
    and equal parts of a block for the ulysses ranks. Numbers or arrays.

    >>> row_granule(2, 4), row_granule(2, 3), row_granule(1, 3), row_granule(2, 3, "contiguous")
    (8, 12, 3, 6)
    """
    chunks = 1 if ring_kind in ("contiguous", "striped") else pick(ring > 1, 2, 1)
    if isinstance(chunks, np.ndarray) or isinstance(ulysses, np.ndarray):
        return np.asarray(ring * np.lcm(chunks, ulysses))
    return ring * math.lcm(int(chunks), int(ulysses))


class Span(NamedTuple):
    """Tokens [start, stop)."""

    start: int
    stop: int


class Tile(NamedTuple):
    """A rectangle of attention in local coordinates: queries [q) against keys [kv) of another rank's block.

    `causal` tiles are square and on the diagonal; others are full.
    """

    q: Span
    kv: Span
    causal: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a row of `tokens` tokens lies on ring x ulysses ranks."""

    tokens: int
    ulysses: int = 1
    ring: int = 1
    kind: str = "zigzag"

    def __post_init__(self) -> None:
        if self.kind not in RING_LAYOUTS:
            raise InputError(f"ring layout {self.kind!r} is not one of {', '.join(RING_LAYOUTS)}")
        for name in ("tokens", "ulysses", "ring"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")

    @cached_property
    def granule(self) -> int:
        """The padded row is a multiple of this."""
        return int(row_granule(self.ring, self.ulysses, self.kind))

    @cached_property
    def padded_tokens(self) -> int:
        return -(-self.tokens // self.granule) * self.granule

    @cached_property
    def block_tokens(self) -> int:
        """Tokens of a ring block: what attention sees after the head exchange."""
        return self.padded_tokens // self.ring

    @cached_property
    def rank_tokens(self) -> int:
        """Tokens of one rank: what everything but attention sees."""
        return self.block_tokens // self.ulysses

    def segments(self, ring_index: int) -> tuple[Span, ...]:
        """The pieces of the row in this ring block, ascending, laid end to end in the block.

        >>> Layout(tokens=8, ring=2).segments(0)
        (Span(start=0, stop=2), Span(start=6, stop=8))
        """
        if self.kind == "contiguous" or self.ring == 1:
            return (Span(ring_index * self.block_tokens, (ring_index + 1) * self.block_tokens),)
        chunk = self.block_tokens // 2
        last = 2 * self.ring - 1 - ring_index
        return (Span(ring_index * chunk, (ring_index + 1) * chunk), Span(last * chunk, (last + 1) * chunk))

    def index(self, ring_index: int, ulysses_index: int) -> Places:
        """Positions in the padded row of a rank's tokens, ascending, int64 (S,); places >= `tokens` are padding."""
        start = ulysses_index * self.rank_tokens
        pieces = []
        for segment in self.segments(ring_index):
            length = segment.stop - segment.start
            low, high = max(0, start), min(length, start + self.rank_tokens)
            if low < high:
                pieces.append(np.arange(segment.start + low, segment.start + high))
            start -= length
        return np.concatenate(pieces)

    def owner(self, positions: Places) -> Places:
        """Which rank holds each position of the row, as ring_index * ulysses + ulysses_index."""
        if self.kind == "contiguous" or self.ring == 1:
            return positions // self.rank_tokens
        size = self.block_tokens // 2
        chunk = positions // size
        late = chunk >= self.ring
        ring_index = np.where(late, 2 * self.ring - 1 - chunk, chunk)
        in_block = positions % size + late * size
        return np.asarray(ring_index * self.ulysses + in_block // self.rank_tokens)

    def real_tokens(self, ring_index: int, ulysses_index: int) -> int:
        """How many of a rank's tokens are not padding; they come first."""
        start = ulysses_index * self.rank_tokens
        count = 0
        for segment in self.segments(ring_index):
            low, high = segment.start + max(start, 0), segment.start + start + self.rank_tokens
            count += max(0, min(high, segment.stop, self.tokens) - low)
            start -= segment.stop - segment.start
        return count

    def tiles(self, ring_q: int, ring_kv: int, edges: Sequence[int]) -> tuple[Tile, ...]:
        """What queries of block `ring_q` have to see of the keys of block `ring_kv`, largest rectangles.

        edges: ascending document edges of the padded row, from 0 to `padded_tokens`; no tile crosses one. A document's
        part of a block is contiguous there: if it reaches both chunks it covers all between them.
        """
        queries, keys = self.segments(ring_q), self.segments(ring_kv)
        if ring_q == ring_kv:
            own = (_cut(queries, document) for document in _documents(edges, queries))
            return tuple(
                Tile(Span(part[0][1].start, part[-1][1].stop), Span(part[0][1].start, part[-1][1].stop), True)
                for part in own
                if part
            )
        return tuple(
            tile
            for document in _documents(edges, queries)
            for tile in _off_diagonal(_cut(queries, document), _cut(keys, document))
        )


def document_edges(document_L: Places, padded_tokens: int) -> tuple[int, ...]:
    """Where documents start and the row ends, with the padding as a last document: (0, …, tokens, padded_tokens).

    >>> document_edges(np.array([4, 4, 7]), 4)
    (0, 2, 3, 4)
    """
    tokens = len(document_L)
    starts = np.flatnonzero(np.diff(document_L)) + 1
    edges = [0, *starts.tolist(), tokens]
    return tuple(edges) if padded_tokens == tokens else (*edges, padded_tokens)


def _documents(edges: Sequence[int], segments: Sequence[Span]) -> Iterator[Span]:
    """The documents that reach any of the segments, ascending."""
    reached = {
        document
        for segment in segments
        for document in range(bisect_right(edges, segment.start) - 1, bisect_left(edges, segment.stop))
    }
    return (Span(edges[document], edges[document + 1]) for document in sorted(reached))


def _cut(segments: Sequence[Span], document: Span) -> list[tuple[Span, Span]]:
    """(piece of the row, the same piece in block coordinates) for every segment that the document reaches."""
    pieces, offset = [], 0
    for segment in segments:
        low, high = max(segment.start, document.start), min(segment.stop, document.stop)
        if low < high:
            shift = offset - segment.start
            pieces.append((Span(low, high), Span(low + shift, high + shift)))
        offset += segment.stop - segment.start
    return pieces


def _off_diagonal(queries: list[tuple[Span, Span]], keys: list[tuple[Span, Span]]) -> Iterator[Tile]:
    """Full tiles between two different blocks: each query piece sees the key pieces before it, a prefix of `keys`."""
    grown: list[Tile] = []
    for row, local in queries:
        seen = [key_local for key_row, key_local in keys if key_row.stop <= row.start]
        if not seen:
            continue
        kv = Span(seen[0].start, seen[-1].stop)
        if grown and grown[-1].kv == kv and grown[-1].q.stop == local.start:
            grown[-1] = Tile(Span(grown[-1].q.start, local.stop), kv, False)
        else:
            grown.append(Tile(local, kv, False))
    yield from grown
