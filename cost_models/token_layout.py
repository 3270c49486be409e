"""Which tokens of a row a rank holds, and which pairs of tokens two ranks have to bring together.

Zigzag, ring R = 2: the padded row in 2R chunks; ring rank r takes chunks r and 2R-1-r, so all do equal causal work;
the ring block is then cut into U equal slices, one for each ulysses rank:

    row      | c0 | c1 | c2 | c3 |        ring 0: c0 c3    ring 1: c1 c2      (contiguous: ring 0: c0 c1, …)
    ring 0   | c0 . c3 |  -> ulysses 0: first half of (c0 c3), ulysses 1: second half

`balanced` deals a packed row by its documents (`balanced_rows`); of one document it is zigzag. After the head exchange
a rank sees its whole ring block again, so causality is a matter of pieces alone: two pieces are the same (causal) or
one lies wholly before the other (all or nothing). A local index ascends with the row's. With chunks of the row (no
ring) each chunk is cut into U slices, so that a chunk's tokens of all ulysses ranks are a piece of the row.
`shares` make the blocks of a zigzag unequal (`token_shares`): chunks r and 2R-1-r are of one size, others of another.
Units: tokens. The row is padded to a multiple of `granule`, pads at the end.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.balanced_rows import balanced
from cost_models.errors import InputError
from cost_models.number import Number, pick
from cost_models.tiles import Parts, Span, Tile, cut, merged, off_diagonal, windowed
from cost_models.token_shares import check_shares, dealt

Places = NDArray[np.int64]
"""Positions in a row. Plain arrays, not tensors: a step on fake tensors still has to know them."""

RING_LAYOUTS = ("zigzag", "contiguous", "balanced")


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


def row_chunks(tokens: int, chunk_tokens: int | None) -> int:
    """Equal chunks of a row, none above `chunk_tokens` before padding; `None`: the whole row as one.

    >>> row_chunks(100, 32), row_chunks(100, None)
    (4, 1)
    """
    return 1 if chunk_tokens is None else -(-tokens // chunk_tokens)


class RingWork(NamedTuple):
    """Of a row in a ring: what the rank with most pairs computes, and what travels."""

    own: int  # pairs with keys of its own block
    others: int  # … with keys that come round
    hops: int  # of the block that goes farthest
    sent: float  # tokens that the busiest rank sends on, averaged over the hops


@dataclass(frozen=True)
class Travel:
    """What of a ring block other ranks need: each document's part goes round to the last that does."""

    spans: tuple[Span, ...]  # of the block, ascending, in local coordinates: of a document each
    reach: tuple[int, ...]  # hops that each makes

    @cached_property
    def legs(self) -> tuple[tuple[Span, ...], ...]:
        """What makes the first hop, the second, …: each a part of the one before. On the way spans lie end to end.

        >>> Travel((Span(0, 4), Span(4, 6)), (2, 1)).legs
        ((Span(start=0, stop=6),), (Span(start=0, stop=4),))
        """
        pieces = list(zip(self.spans, self.reach, strict=True))
        return tuple(merged([span for span, far in pieces if far > hop]) for hop in range(self.hops))

    @cached_property
    def hops(self) -> int:
        """Of what goes farthest."""
        return max(self.reach, default=0)

    def tokens(self, hop: int) -> int:
        """That make a hop, the first being 1."""
        return sum(stop - start for (start, stop), far in zip(self.spans, self.reach, strict=True) if far >= hop)

    def ending(self, hop: int) -> tuple[Span, ...]:
        """What makes this hop and no other."""
        return merged([span for span, far in zip(self.spans, self.reach, strict=True) if far == hop])

    def on_the_way(self, keys: Span, hop: int) -> Span:
        """Where keys of the block, all of one document, lie in what has made a hop; in the block before the first."""
        if not hop:
            return keys
        before = 0
        for span in self.legs[hop - 1] if hop <= self.hops else ():
            if span.start <= keys.start and keys.stop <= span.stop:
                return Span(keys.start - span.start + before, keys.stop - span.start + before)
            before += span.stop - span.start
        raise ValueError(f"{keys} makes no hop {hop}: {self.spans} make {self.reach}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a row of `tokens` tokens lies on ring x ulysses ranks."""

    tokens: int
    ulysses: int = 1
    ring: int = 1
    kind: str = "zigzag"
    documents: tuple[int, ...] = ()  # where documents start, ascending from 0; () is one
    window: int = 0  # keys that a token sees at most, its own included; 0: all before it
    chunk_tokens: int | None = None  # of the row that attention takes at one time; None: all
    shares: tuple[int, ...] = ()  # of the ring blocks, relative to each other; () is equal ones

    def __post_init__(self) -> None:
        if self.chunk_tokens is not None and self.ring > 1:
            raise InputError(f"attention_chunk_tokens with ring={self.ring}; legal here: ring=1")
        if self.kind not in RING_LAYOUTS:
            raise InputError(f"ring layout {self.kind!r} is not one of {', '.join(RING_LAYOUTS)}")
        for name in ("tokens", "ulysses", "ring"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if self.shares:
            check_shares(self.shares, self.ring, self.kind)

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """Where documents start and the row ends, with the padding as a last document: (0, …, tokens, padded_tokens).

        >>> Layout(tokens=3, ring=2, documents=(0, 2)).edges
        (0, 2, 3, 4)
        """
        ends = (self.tokens,) if self.padded_tokens == self.tokens else (self.tokens, self.padded_tokens)
        return (*(self.documents or (0,)), *ends)

    @cached_property
    def chunks(self) -> int:
        """Into which the row is cut.

        >>> Layout(tokens=9, ulysses=2, chunk_tokens=4).chunks
        3
        """
        return row_chunks(self.tokens, self.chunk_tokens)

    @cached_property
    def granule(self) -> int:
        """The padded row is a multiple of this."""
        return self.chunks * int(row_granule(self.ring, self.ulysses, self.kind))

    @cached_property
    def padded_tokens(self) -> int:
        return -(-self.tokens // self.granule) * self.granule

    @cached_property
    def held(self) -> tuple[int, ...]:
        """Tokens of each ring block.

        >>> Layout(tokens=16, ring=2, shares=(3, 1)).held
        (12, 4)
        """
        if not self.shares:
            return (self.padded_tokens // self.ring,) * self.ring
        unit = self.granule // self.ring
        return tuple(unit * units for units in dealt(self.padded_tokens // unit, self.shares))

    @cached_property
    def block_tokens(self) -> int:
        """Tokens of the largest ring block: what attention sees after the head exchange."""
        return max(self.held)

    @cached_property
    def rank_tokens(self) -> int:
        """Tokens of one rank of the largest block: what everything but attention sees."""
        return self.block_tokens // self.ulysses

    @cached_property
    def blocks(self) -> tuple[tuple[Span, ...], ...]:
        """The pieces of the row in each ring block, ascending; in the block they lie end to end.

        >>> Layout(tokens=8, ring=2).blocks[0]
        (Span(start=0, stop=2), Span(start=6, stop=8))
        """
        ring, size = self.ring, self.block_tokens  # of unequal blocks only a zigzag reads `held`
        if self.kind == "contiguous" or ring == 1:
            return tuple((Span(index * size, (index + 1) * size),) for index in range(ring))
        if self.kind == "balanced" and len(self.documents) > 1:
            return tuple(merged([Span(*piece) for piece in mine]) for mine in balanced(self.edges, ring))
        ends = np.cumsum(self.held, dtype=np.int64) // 2
        starts, last = [0, *ends.tolist()], self.padded_tokens
        return tuple((Span(low, high), Span(last - high, last - low)) for low, high in pairwise(starts))

    def _spans(self, ring_index: int, ulysses_index: int) -> Iterator[Span]:
        """A rank's tokens, ascending: of each chunk its slice."""
        size = self.held[ring_index] // self.ulysses // self.chunks
        for chunk in range(self.chunks):
            start = (chunk * self.ulysses + ulysses_index) * size
            for segment in self.blocks[ring_index]:
                low, high = max(0, start), min(segment.stop - segment.start, start + size)
                if low < high:
                    yield Span(segment.start + low, segment.start + high)
                start -= segment.stop - segment.start

    def index(self, ring_index: int, ulysses_index: int) -> Places:
        """Positions in the padded row of a rank's tokens, ascending, int64 (S,); places >= `tokens` are padding."""
        return np.concatenate([np.arange(*span) for span in self._spans(ring_index, ulysses_index)])

    def owner(self, positions: Places) -> Places:
        """Which rank holds each position of the row, as ring_index * ulysses + ulysses_index."""
        starts, shifts, rings = self._pieces
        piece = np.searchsorted(starts, positions, side="right") - 1
        chunk = np.array(self.held, dtype=np.int64)[rings[piece]] // self.chunks
        in_chunk = (positions + shifts[piece]) % chunk
        return np.asarray(rings[piece] * self.ulysses + in_chunk // (chunk // self.ulysses))

    @cached_property
    def _pieces(self) -> tuple[Places, Places, Places]:
        """Of all pieces of the row: start, its place in its block less the start, and the block."""
        found = []
        for block, spans in enumerate(self.blocks):
            local = 0
            for span in spans:
                found.append((span.start, local - span.start, block))
                local += span.stop - span.start
        starts, shifts, blocks = np.array(sorted(found), dtype=np.int64).T
        return starts, shifts, blocks

    def real_tokens(self, ring_index: int, ulysses_index: int) -> int:
        """How many of a rank's tokens are not padding; they come first."""
        spans = self._spans(ring_index, ulysses_index)
        return sum(max(0, min(span.stop, self.tokens) - span.start) for span in spans)

    def tiles(self, ring_q: int, ring_kv: int) -> tuple[Tile, ...]:
        """What queries of block `ring_q` have to see of the keys of block `ring_kv`, largest rectangles.

        No tile crosses a document's edge. A document's part of a block is contiguous there: what lies between two of
        its pieces in the row is its own.
        """
        queries, keys, own = self._parts[ring_q], self._parts[ring_kv], ring_q == ring_kv
        both = [document for document in queries if document in keys]
        if self.window:
            found = [tile for one in both for tile in windowed(queries[one], keys[one], self.window)]
            return tuple(sorted(found, key=lambda tile: not tile.causal))
        if own:
            spans = (Span(queries[one][0][1].start, queries[one][-1][1].stop) for one in both)
            return tuple(Tile(span, span, True) for span in spans)
        return tuple(tile for one in both for tile in off_diagonal(queries[one], keys[one]))

    def chunk_tiles(self) -> dict[tuple[int, int], tuple[Tile, ...]]:
        """What queries of one chunk of the row have to see of the keys of another, in their own coordinates.

        >>> Layout(tokens=8, chunk_tokens=4, documents=(0, 2)).chunk_tiles()[1, 0]
        (Tile(q=Span(start=0, stop=4), kv=Span(start=2, stop=4), causal=False, lead=0, window=0),)
        """
        found = dict[tuple[int, int], list[Tile]]()
        for tile in self.tiles(0, 0):
            for both, part in cut(tile, self.block_tokens // self.chunks):
                found.setdefault(both, []).append(part)
        return {both: tuple(parts) for both, parts in found.items()}

    def halo(self, ring_q: int, ring_kv: int) -> Travel:
        """With a window, the keys of block `ring_kv` that queries of block `ring_q` reach.

        >>> [Layout(tokens=8, ring=4, kind="contiguous", window=2).halo(2, other).tokens(1) for other in range(4)]
        [0, 1, 2, 0]
        """
        spans = list[Span]()
        for _, span, *_ in sorted(self.tiles(ring_q, ring_kv), key=lambda tile: tile.kv):
            meets = spans and span.start <= spans[-1].stop
            spans[-1:] = [Span(spans[-1].start, max(spans[-1].stop, span.stop))] if meets else [*spans[-1:], span]
        return Travel(tuple(spans), (1,) * len(spans))

    @cached_property
    def _parts(self) -> tuple[dict[int, Parts], ...]:
        """What each ring block has of each document, documents and pieces ascending."""
        found = []
        for spans in self.blocks:
            mine, offset = dict[int, Parts](), 0
            for span in spans:
                first, last = bisect_right(self.edges, span.start) - 1, bisect_left(self.edges, span.stop)
                for document in range(first, last):
                    low, high = max(span.start, self.edges[document]), min(span.stop, self.edges[document + 1])
                    shift = offset - span.start
                    mine.setdefault(document, []).append((Span(low, high), Span(low + shift, high + shift)))
                offset += span.stop - span.start
            found.append(mine)
        return tuple(found)

    def ring_work(self) -> RingWork:
        """Pairs of the rank that has most (without a window), and what is under way while the ring turns.

        >>> Layout(tokens=8, ring=2).ring_work(), Layout(tokens=8, ring=2, documents=(0, 4)).ring_work()
        (RingWork(own=10, others=8, hops=1, sent=4.0), RingWork(own=6, others=4, hops=1, sent=2.0))
        """
        most, own = 0, 0
        for block in self._parts:
            pairs = here = 0
            for document, parts in block.items():
                start, held = self.edges[document], sum(row.stop - row.start for row, _ in parts)
                here += held * (held + 1) // 2
                for row, _ in parts:
                    first, last = row.start - start, row.stop - start
                    pairs += (last * (last + 1) - first * (first + 1)) // 2
            if pairs > most:
                most, own = pairs, here
        hops, steps = max(one.hops for one in self.travels), np.zeros(2 * self.ring)
        for index, travel in enumerate(self.travels):
            for (start, stop), far in zip(travel.spans, travel.reach, strict=True):
                steps[index] += stop - start
                steps[index + far] -= stop - start
        passing = np.cumsum(steps).reshape(2, self.ring).sum(axis=0)  # a rank sends on what came to it
        return RingWork(own, most - own, hops, float(passing.max()) / max(hops, 1))

    @cached_property
    def _shared(self) -> tuple[_Shared, ...]:
        """The documents that lie on several ring blocks."""
        starts, _, blocks = self._pieces
        found = []
        for number, (start, stop) in enumerate(pairwise(self.edges)):
            first, last = np.searchsorted(starts, [start, stop - 1], side="right") - 1
            order = blocks[first : last + 1].tolist()
            if len(rings := frozenset(order)) > 1:
                found.append(_Shared(number, tuple(order), rings))
        return tuple(found)

    @cached_property
    def travels(self) -> tuple[Travel, ...]:
        """What travels of each ring block, without a window: its part of a document as far as the last rank with later
        queries of that.

        >>> [(one.tokens(1), one.hops) for one in Layout(tokens=8, ring=4, kind="contiguous").travels]
        [(2, 3), (2, 2), (2, 1), (0, 0)]
        """
        found = [list[tuple[Span, int]]() for _ in range(self.ring)]
        for document in self._shared:
            for block, far, span in self._all_of(document):
                found[block].append((span, far))
        return tuple(Travel(tuple(span for span, _ in one), tuple(far for _, far in one)) for one in map(sorted, found))

    def _all_of(self, document: _Shared) -> Iterator[tuple[int, int, Span]]:
        """(block, hops, span of the block): a block's part of the document, if another rank has later queries."""
        needed, later = dict[int, int](), set[int]()
        for block in reversed(document.order):
            if others := later - {block}:
                before = (block - 1) % self.ring  # the last that a block comes to
                far = self.ring - 1 if before in others else max((other - block) % self.ring for other in others)
                needed[block] = max(far, needed.get(block, 0))
            later.add(block)
        for block, far in needed.items():
            pieces = self._parts[block][document.number]
            yield block, far, Span(pieces[0][1].start, pieces[-1][1].stop)


class _Shared(NamedTuple):
    """A document on several ring blocks."""

    number: int
    order: tuple[int, ...]  # the blocks of its pieces, in the row's order
    rings: frozenset[int]


def document_starts(document_L: Places) -> tuple[int, ...]:
    """Where documents start in a row of document numbers.

    >>> document_starts(np.array([4, 4, 7]))
    (0, 2)
    """
    return (0, *(np.flatnonzero(np.diff(document_L)) + 1).tolist())
