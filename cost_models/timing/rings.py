"""The rings of gathers and reductions: how they pass through scale-up domains, for many groups at once.

    group sorted by place:   [domain 0: members …] -> [domain 1: members …] -> … -> back to domain 0
                              a block: it enters at a card and leaves at the member before that card's first one

A ring visits each domain of its group once per channel. A group has as many channels as its block with the fewest
cards has cards; a channel carries 1 / channels of the buffer. Which of its cards a block with more of them uses is not
known: the closed form spreads a channel's bytes evenly over them, the simulator takes every n-th one. Over two domains
an all-reduce may take a tree instead: it sends all of the buffer out of each domain once, where rings send
2 (P - 1) / P of it, but no faster than a tree inside the domain passes bytes on. Left out: trees over more domains.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cost_models.hardware.wiring import Bools, Floats, Ints


class Blocks:
    """Members of groups sorted by place. All arrays over members are flat, in that order; rows are groups."""

    def __init__(self, place: Ints, domain: Ints, nic: Ints) -> None:
        """Of shape (groups, members) each."""
        self.groups, self.members = place.shape
        order = np.arange(place.size)
        if np.any(place[:, 1:] < place[:, :-1]):
            order = (np.argsort(place, axis=1) + order[:: self.members, None]).ravel()
        self.order: Ints = order
        """Position in the flattened input of each member."""
        ordered = domain.ravel()[order]
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        fresh[:: self.members] = True
        self.start: Ints = np.flatnonzero(fresh)
        self.size: Ints = np.diff(self.start, append=len(order))
        self.group: Ints = self.start // self.members
        self.domains: Ints = np.bincount(self.group, minlength=self.groups)
        """Blocks of each group."""
        self.after: Ints = np.arange(1, len(order) + 1)
        """The next member of a block, cyclic."""
        self.after[self.start + self.size - 1] = self.start
        first = np.cumsum(self.domains) - self.domains
        self.next: Ints = np.arange(1, len(self.start) + 1)
        """The next block of a group, cyclic."""
        self.next[first + self.domains - 1] = first
        self._enter(nic.ravel()[order])

    def _enter(self, nic: Ints) -> None:
        """Where a channel can enter a block: at each member whose card is not that of the member before it."""
        new = np.empty(len(nic), dtype=bool)
        new[self.after] = nic[self.after] != nic
        new[self.start[np.add.reduceat(new, self.start) == 0]] = True
        self.entries: Ints = np.flatnonzero(new)
        self.entry_count: Ints = np.add.reduceat(new.astype(np.int64), self.start)
        """Cards of each block."""
        self.channels: Ints = np.full(self.groups, np.iinfo(np.int64).max)
        np.minimum.at(self.channels, self.group, self.entry_count)
        self.channels[self.domains == 1] = 1

    def ends(self, channel: int) -> tuple[Ints, Ints]:
        """The members at which `channel` enters and leaves each block (of channels a group has not: some member)."""
        of_group = self.channels[self.group]
        which = np.minimum(channel, of_group - 1) * self.entry_count // of_group
        entry = self.entries[np.cumsum(self.entry_count) - self.entry_count + which]
        return entry, np.where(entry == self.start, self.start + self.size, entry) - 1

    @cached_property
    def may_be_trees(self) -> Bools:
        """Groups over two domains, whose all-reduce may send less by trees; of two ranks a ring sends as little."""
        return np.asarray((self.domains == 2) & (self.members > 2))

    def all_reduce_times(self, card_bytes_per_s: Floats, ring_share: Floats, tree_bytes_per_s: Floats) -> Floats:
        """How often an all-reduce sends what a gather does, by group alone: twice, or less by trees or where switches
        sum. Arrays are of each member's card and node, of shape (groups, members)."""
        whole = self.members / max(self.members - 1, 1)
        passed = tree_bytes_per_s.min(axis=1)
        card, ring = (self._channel(rate) for rate in (card_bytes_per_s, card_bytes_per_s * ring_share))
        tree = np.maximum(1.0, self.channels * card / passed) * whole
        trees = self.may_be_trees & (tree / card < 2.0 / ring)
        return np.asarray(np.where((self.domains == 1) & np.isinf(passed), whole, np.where(trees, tree, 2.0)))

    def _channel(self, rate: Floats) -> Floats:
        """What one channel of each group gets, whose blocks send it through their best card."""
        best = np.maximum.reduceat(rate.ravel()[self.order], self.start)
        slowest = np.full(self.groups, np.inf)
        np.minimum.at(slowest, self.group, best)
        return slowest
