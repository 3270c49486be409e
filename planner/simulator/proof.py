"""Proof that ranks which were taken for alike are: groups of one class may have members of different classes.

    a group starts when its last member comes     each group has a member of a class that comes last
    its flow has the max-min rate                 each group crosses a full link on which no other flow is faster

A partition that is coarser than an equitable one (`folding.coarse`) lets one group class stand for groups that differ
in members, and its flow crosses the links of all of them. As long as both lines hold, at every start and for all rates,
each group starts and ends when its class does, so the folded play is the play of every rank. Otherwise `Unlike` is
raised, and a finer partition is played. What differs in a group without mattering (a replica with a slow card and a
dead one next to a replica with the slow card alone) then costs nothing.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from cost_models.number import distinct
from planner.simulator.folding import Flags, Hashes
from planner.simulator.maxmin import Floats, Ints, Sharing

FULL = 1e-12
"""A link whose load is this close to its capacity is full; flows whose rates are this close are equally fast."""


class Unlike(Exception):
    """Groups of the `kinds` (numbers of Variants) behave unlike others of their class: the partition is too coarse."""

    def __init__(self, kinds: Ints) -> None:
        super().__init__()
        self.kinds = kinds


class Variants(Struct, frozen=True, kw_only=True, eq=False):
    """The kinds of group of those group classes that have several: `parts[first[v]:first[v + 1]]` are those of kind v.

    A part is what the members of one rank class make of a flow: the links that their hops cross.
    """

    first: Ints  # (kinds,)
    parts: Ints
    part: Ints  # of a crossing, its part …
    part_flow: Ints  # … flow …
    part_link: Ints  # … and link
    colours: tuple[Hashes, ...]  # by pattern: of each rank, the kind of its group
    pattern: Ints  # (kinds,) …
    rank: Ints  # … and a rank in such a group

    def check(self, sharing: Sharing, active: Ints, rate: Floats) -> None:
        """Raise `Unlike` unless the `rate` of each active flow is that of every group which the flow stands for."""
        link, count, length = sharing.crossings(active)
        of_entry = np.repeat(rate, length)
        load = np.bincount(link, count * of_entry, len(sharing.capacity))
        fastest = np.zeros(len(sharing.capacity))
        np.maximum.at(fastest, link, of_entry)
        fastest[load < sharing.capacity * (1 - FULL)] = np.inf  # no bottleneck
        of_flow = np.full(sharing.flows, np.inf)
        of_flow[active] = rate
        limited = np.zeros(int(self.part.max()) + 1, dtype=bool)
        limited[self.part[of_flow[self.part_flow] >= fastest[self.part_link] * (1 - FULL)]] = True
        alike = np.logical_or.reduceat(limited[self.parts], self.first)
        if not alike.all():
            raise Unlike(np.flatnonzero(~alike))

    def ranks(self, kinds: Ints) -> list[Flags]:
        """For each pattern that has any of `kinds`, the ranks in such groups."""
        found = []
        for pattern in distinct(self.pattern[kinds]).tolist():
            colour = self.colours[pattern]
            found.append(np.isin(colour, colour[self.rank[kinds[self.pattern[kinds] == pattern]]]))
        return found


class Kinds(Struct, frozen=True, kw_only=True, eq=False):
    """The kinds of group that one group class stands for, from number `first` on; `there[v, m]`: v has member m."""

    first: int
    there: Flags

    def check_start(self, since: Floats, now: float) -> None:
        """Raise `Unlike` unless all kinds start `now`, when the last member has come; member m came at `since[m]`."""
        alike = self.there[:, since >= now * (1 - FULL)].any(axis=1)
        if not alike.all():
            raise Unlike(self.first + np.flatnonzero(~alike))
