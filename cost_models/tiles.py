"""Rectangles of attention: which queries of one block see which keys of another, by where their pieces lie in the row.

Two pieces of a row are the same (causal) or one lies wholly before the other (all or nothing), so the tiles of a
document are its causal part of a block and full rectangles, or, with a window, strips of at most `window` queries.
Which pieces a block has is in `token_layout.py`. Units: tokens, in local coordinates of a block unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Tokens [start, stop)."""

    start: int
    stop: int


class Tile(NamedTuple):
    """A rectangle of attention in local coordinates: queries [q) against keys [kv) of another rank's block.

    A `causal` tile ends on the diagonal and holds all keys of its block that its queries see and that touch them; of
    each query there is one. Other tiles are full. With a `window` a query sees only keys less than so many before it.
    """

    q: Span
    kv: Span
    causal: bool
    lead: int = 0  # place of the first query in the row less that of the first key
    window: int = 0  # 0: none that cuts this tile


Parts = list[tuple[Span, Span]]
"""Pieces of the row, each with where it lies in its block."""


def merged(spans: list[Span]) -> tuple[Span, ...]:
    """Ascending spans, those that touch as one."""
    result: list[Span] = []
    for span in spans:
        touches = result and result[-1].stop == span.start
        result[-1:] = [Span(result[-1].start, span.stop)] if touches else [*result[-1:], span]
    return tuple(result)


def windowed(queries: Parts, keys: Parts, window: int) -> Iterator[Tile]:
    """Tiles of a document's pieces where a query sees less than `window` keys back, by at most `window` queries."""
    for row, local in queries:
        for key_row, key_local in keys:
            own, reached = key_row == row, key_row.stop - 1 + window
            if not own and (key_row.start > row.start or reached <= row.start):
                continue
            for start in range(row.start, min(row.stop, reached), window):
                stop = min(start + window, row.stop if own else min(row.stop, reached))
                first, last = max(key_row.start, start - window + 1), stop if own else key_row.stop
                kv = Span(first - key_row.start + key_local.start, last - key_row.start + key_local.start)
                q = Span(start - row.start + local.start, stop - row.start + local.start)
                masked = stop - 1 - first >= window or (own and start > first)
                yield Tile(q, kv, own, start - first, window if masked else 0)


def off_diagonal(queries: Parts, keys: Parts) -> Iterator[Tile]:
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


def cut(tile: Tile, size: int) -> Iterator[tuple[tuple[int, int], Tile]]:
    """Of a tile of a row with itself what lies in each two chunks of `size` tokens, queries that see a key there."""
    for chunk in range(tile.q.start // size, (tile.q.stop - 1) // size + 1):
        for keys in range(tile.kv.start // size, min(chunk, (tile.kv.stop - 1) // size) + 1):
            first, last = max(tile.q.start, chunk * size), min(tile.q.stop, (chunk + 1) * size)
            start, stop = max(tile.kv.start, keys * size), min(tile.kv.stop, (keys + 1) * size)
            if tile.window:
                last, start = min(last, stop - 1 + tile.window), max(start, first - tile.window + 1)
            if first < last and start < stop:
                q, kv = Span(first - chunk * size, last - chunk * size), Span(start - keys * size, stop - keys * size)
                lead = first - start if tile.window else 0
                yield (chunk, keys), Tile(q, kv, chunk == keys, lead, tile.window)
