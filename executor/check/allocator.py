"""PyTorch's caching allocator, played: what it holds for a sequence of allocations and frees.

    size     rounded up to 512 B; up to 1 MiB from segments of 2 MiB, below 10 MiB from segments of 20 MiB, else a
             segment of its own, rounded up to 2 MiB
             (expandable: one segment for small and one for large ones, which grow by so much)
    reuse    the smallest free block that is large enough; what is left of it stays free where it is worth a block
             (512 B of small ones, more than 1 MiB of large ones); neighbours that are free are joined

    full     pools of a card's streams share its memory: where a segment finds no room, segments of all pools that are
             free as a whole are given back, and it is asked for again

As `c10/cuda/CUDACachingAllocator.cpp` does with its default settings, a pool for each stream. Bytes. Left out: segments
that grow do not shrink under pressure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

GRAIN, SMALL, SMALL_SEGMENT = 512, 2**20, 2 * 2**20
LARGE_SEGMENT, LARGE, ROUND = 20 * 2**20, 10 * 2**20, 2 * 2**20


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment, with its neighbours there."""

    size: int
    small: bool
    serial: int
    free: bool = False
    before: Block | None = None
    after: Block | None = None


class OutOfMemory(Exception):
    """No segment that is free as a whole is left to give back."""


class Card:
    """Memory that the pools of several streams share."""

    def __init__(self, limit: int) -> None:
        self.limit, self.retries = limit, 0
        self.pools: list[Allocator] = []

    def claim(self, size: int) -> None:
        """Room for a segment, by giving back others if need be."""
        if self._held() + size <= self.limit:
            return
        self.retries += 1
        for pool in self.pools:
            pool.give_back()
        if self._held() + size > self.limit:
            raise OutOfMemory

    def _held(self) -> int:
        return sum(pool.reserved for pool in self.pools)


class Allocator:
    """
    >>> allocator = Allocator()
    >>> first = allocator.allocate(30 * 2**20)
    >>> allocator.release(first)
    >>> second = allocator.allocate(25 * 2**20)
    >>> allocator.reserved >> 20
    30
    """

    def __init__(self, expandable: bool = False, card: Card | None = None) -> None:
        self.reserved = 0
        self._card = card
        if card is not None:
            card.pools.append(self)
        self.expandable = expandable
        self._last: dict[bool, Block | None] = {True: None, False: None}
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._serial = 0

    def allocate(self, size: int) -> Block:
        size = max(GRAIN, -(-size // GRAIN) * GRAIN)
        small = size <= SMALL
        blocks = self._free[small]
        place = bisect_left(blocks, size, key=lambda entry: entry[0])
        if place < len(blocks):
            block = blocks.pop(place)[2]
            block.free = False
        else:
            block = self._segment(size, small)
        left = block.size - size
        if left >= GRAIN if small else left > SMALL:
            self._split(block, size)
        return block

    def release(self, block: Block) -> None:
        for beside in (block.before, block.after):
            if beside is not None and beside.free:
                self._take(beside)
                self._join(block, beside)
        self._put(block)

    def give_back(self) -> None:
        """Segments that are free as a whole."""
        for blocks in self._free.values():
            for _, _, block in list(blocks):
                if block.before is None and block.after is None and not self.expandable:
                    self._take(block)
                    self.reserved -= block.size

    def _grown(self, size: int, small: bool) -> Block:
        last = self._last[small]
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        tail = last if last is not None and last.free else None
        have = tail.size if tail is not None else 0
        more = -(-(size - have) // page) * page
        self.reserved += more
        if tail is not None:
            self._take(tail)
            tail.size += more
            return tail
        block = self._new(more, small)
        block.before = last
        if last is not None:
            last.after = block
        self._last[small] = block
        return block

    def _segment(self, size: int, small: bool) -> Block:
        if self.expandable:
            return self._grown(size, small)
        whole = SMALL_SEGMENT if small else LARGE_SEGMENT if size < LARGE else -(-size // ROUND) * ROUND
        if self._card is not None:
            self._card.claim(whole)
        self.reserved += whole
        return self._new(whole, small)

    def _new(self, size: int, small: bool) -> Block:
        self._serial += 1
        return Block(size, small, self._serial)

    def _split(self, block: Block, size: int) -> None:
        rest = self._new(block.size - size, block.small)
        block.size = size
        rest.before, rest.after, block.after = block, block.after, rest
        if rest.after is not None:
            rest.after.before = rest
        if self._last[block.small] is block:
            self._last[block.small] = rest
        self._put(rest)

    def _join(self, block: Block, beside: Block) -> None:
        block.size += beside.size
        if self._last[block.small] is beside and beside is not block.before:
            self._last[block.small] = block
        if beside is block.before:
            block.before = beside.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = beside.after
            if block.after is not None:
                block.after.before = block

    def _put(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.serial, block))

    def _take(self, block: Block) -> None:
        blocks = self._free[block.small]
        del blocks[bisect_left(blocks, (block.size, block.serial), key=lambda entry: entry[:2])]
        block.free = False
