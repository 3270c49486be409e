"""The least that the placements of one region load on a card or a leaf's uplinks, in seconds per byte of a buffer.

    all_to_all   b of P members in a domain send (P - b) / P out of their cards each; some group is cut if one crosses
    send         every ring that is cut leaves each of its domains; with whole ulysses groups all their rings do
    gather       a group puts (P - 1) / P on the cards of each domain it visits, through no more channels than its
                 smallest part has cards; a domain whose ranks are no multiple of P cuts a group into known parts
    replicate    n ranks of which at most a share a replicate group are in n / a of them; where shard groups of Z are
                 whole, all Z replicate groups visit

Of slow cards the ones count that so many ranks cannot all leave idle (`Kinds.slowest_share`, `slowest`, `exit_share`).
A load on a kind counts for every kind in use (`_worst`) where it cannot be avoided there, else for the kind where it is
least (`_least`). Left out: what two axes load on one card at once, which no price adds up either.
"""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np
from msgspec import Struct, structs

from planner.search.regions import ELSEWHERE, INSIDE, SLOWEST, Bools, Floats, Ints, Layouts, Regions, Rows

MOST_COUNTED = 16
"""Domains of more GPUs are not asked which of their numbers of ranks cut a group."""
CROWDS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024]
"""Shard groups that meet in a domain, in ranges."""
IMPOSSIBLE = 1.0
"""Seconds per byte where a kind cannot have what a column asks of it."""


class RegionLoads(Struct, frozen=True, kw_only=True, eq=False):
    """Seconds per byte of each row; `gather` and `replicate` also by how many shard groups meet in a domain."""

    all_to_all: Floats
    send: Floats
    gather: Floats  # and those below (rows, columns): how full replicate groups are, over two domains or more
    replicate: Floats
    all_reduce: Floats
    visits: Ints  # domains of a replicate group, at least


class Loads:
    """Of the rows of one kind of region (`Rows.where`)."""

    def __init__(self, regions: Regions, layouts: Layouts, rows: Rows) -> None:
        self.rows, self.where, self.kinds = rows, rows.where, regions.kinds
        self.of = layouts.take(rows.layout)
        self.used, self.slowest = regions.used[rows.region], regions.slowest[rows.region]
        limits = bool((self.kinds.leaf >= 0).any())
        self.several_leaves = regions.several_leaves[rows.region] | (limits & (self.of.ranks > regions.leaf_gpus))
        self.most, self.fewest = rows.most, np.minimum(rows.fewest, rows.most)
        self.domains = regions.domains[rows.region]
        self.at = np.arange(len(rows.layout))
        self.cards = np.minimum(self.most, self.kinds.cards)
        kinds = self.kinds
        self.idle = np.maximum((self.used * kinds.count * kinds.gpus).sum(axis=1) - self.of.ranks, 0)
        self.slow_share = kinds.slowest_share(self.idle)
        self.slow_ring_rate, self.slow_all_to_all_rate = kinds.slowest(self.used, self.idle)
        shared = np.array(
            [[np.sum(kinds.count[row & (kinds.leaf == leaf)]) for leaf in kinds.leaf] for row in regions.used]
        )
        apart = regions.several_leaves[rows.region][:, None]  # a leaf has its number only where kinds tell leaves apart
        self.lonely = (shared[rows.region] == 1) & (kinds.leaf >= 0) & apart

    def _worst(self, loads: Floats) -> Floats:
        """Every kind in use carries its load."""
        worst: Floats = np.where(self.used, loads, 0.0).max(axis=1)
        return worst

    def _least(self, loads: Floats) -> Floats:
        """At least one kind in use carries it."""
        least: Floats = np.where(self.used, loads, np.inf).min(axis=1)
        return least

    def _at_slowest(self, loads: Floats) -> Floats:
        return np.asarray(loads[self.at, self.slowest])

    def _slow(self) -> Bools:
        """(rows, kinds), the slowest kind of each row."""
        return np.asarray(self.slowest[:, None] == np.arange(len(self.kinds.count)))

    def _cut(self, size: Ints) -> Bools:
        """Kinds of which no legal number of ranks is a multiple of `size`."""
        return np.asarray(self.most // size[:, None] * size[:, None] < self.fewest)

    def loads(self) -> RegionLoads:
        visits = self._visits()
        two, more = self._sharded(visits), self._sharded(np.maximum(visits, 3))
        two[0][:] = np.maximum(two[0], self._over_two_domains()[:, None])
        more[0][:] = np.where(self.domains[:, None] > 2, more[0], IMPOSSIBLE)
        gather, replicate, all_reduce = (np.concatenate(both, axis=1) for both in zip(two, more, strict=True))
        columns = len(self.met)
        by_column = [np.repeat(each[:, None], columns, axis=1) for each in (visits, np.maximum(visits, 3))]
        return RegionLoads(
            all_to_all=self._all_to_all(), send=self._send(), gather=gather, replicate=replicate,
            all_reduce=all_reduce, visits=np.concatenate(by_column, axis=1),
        )  # fmt: skip

    def cases(self) -> list[RegionLoads]:
        """The loads where the slowest card's rank has its neighbours in the ring next to it, and where it has not.

        In the first case its ulysses group has fewer members there, in the second its messages leave by the card.
        """
        loads, ring, p = self.loads(), self.of.ring, self.of.ulysses
        if self.where.ulysses == INSIDE or (ring == 1).all() or (self.slow_share == 1.0).all():
            return [loads]
        together = np.maximum(np.where(self.used, self.most, 1).max(axis=1) - np.minimum(ring - 1, 2), 1)
        left = np.maximum(1 - together / p, 0.0) / self.slow_all_to_all_rate
        sent = np.where(ring > 1, 1 / self.slow_ring_rate, 0.0)
        return [
            structs.replace(loads, all_to_all=np.maximum(loads.all_to_all, left)),
            structs.replace(loads, send=np.maximum(loads.send, sent)),
        ]

    def _over_two_domains(self) -> Floats:
        """Of a gather, where some replicate group visits two domains alone: many shard groups meet in one of them."""
        size, shard, where = self.of.replicate, self.of.shard, self.where
        if where.replicate or where.shard == INSIDE:
            return np.zeros(len(size))
        most, slow = self.most[self.at, self.slowest] // shard, self._slow()
        rest = -(-size // 2) if where.shard == SLOWEST else np.maximum(size - np.maximum(most, 1), 1)
        least = np.full(self.most.shape, np.inf)
        for groups, load in zip(self.met, self._crossings, strict=True):
            enough = (groups >= rest)[:, None]
            least = np.where(enough, np.minimum(least, load / self.kinds.ring_rate), least)
        if where.shard == ELSEWHERE:  # at the slowest kind no shard group crosses
            another = (most >= rest) & (self.kinds.count[self.slowest] > 1)
            least = np.where(slow, np.where(another, 0.0, np.inf)[:, None], least)
        return np.asarray((shard - 1) / shard * np.minimum(self._least(least), IMPOSSIBLE))

    def _all_to_all(self) -> Floats:
        where, size, rate = self.where, self.of.ulysses, self.kinds.all_to_all_rate
        if where.ulysses == INSIDE:
            return np.zeros(len(size))
        p, ring = size[:, None], self.of.ring[:, None]
        whole_rings = np.full(self.most.shape, where.ring == INSIDE) | ((where.ring == ELSEWHERE) & self._slow())
        together = np.minimum(np.where(whole_rings, self.most // ring, self.most), p)
        one_row = (self.of.data[:, None] == 1) & whole_rings  # every ring in a domain is of the same row
        least = np.full(self.most.shape, np.inf)
        for ranks in (self.fewest, self.most, self.kinds.cards, together):
            n = np.clip(np.broadcast_to(ranks, least.shape), self.fewest, self.most)
            members = np.where(one_row, n / ring, np.minimum(n, together))
            least = np.minimum(least, np.maximum(1.0, n / self.kinds.cards) * np.maximum(p - members, 0) / p)
        forced = (together < p) | (p == self.of.ranks[:, None]) | one_row
        parts = np.where(self._cut(size), 1 - self._largest_part(size) / p, 0.0)
        fastest = np.where(self.used, rate, 0.0).max(axis=1)
        visits = -(-size // np.maximum(np.where(self.used, together, 0).max(axis=1), 1))
        parts = np.maximum(parts, (1 - together / p) / self.slow_share)
        load = np.maximum(
            self._worst(np.maximum(np.where(forced, least, 0.0), parts) / rate), -(-size // 2) / size / fastest
        )
        load = np.maximum(load, (1 - 1 / visits) / fastest)
        most = np.where(self.used, together, 0).max(axis=1)
        load = np.maximum(load, (1 - most / size) / self.slow_all_to_all_rate)
        if where.ulysses == SLOWEST:
            here, slow = np.minimum(size - 1, together[self.at, self.slowest]), rate[self.slowest]
            load = np.maximum(load, np.maximum((size - here) / size / slow, 1 / (slow + fastest)))
        return np.asarray(np.maximum(load, self._all_to_all_up(one_row)))

    def _all_to_all_up(self, one_row: Bools) -> Floats:
        """On the uplinks of a leaf, where every group has the same number of members there: there is one group, or one
        row whose rings are whole in domains."""
        size, ranks = self.of.ulysses, self.of.ranks
        same = (self.kinds.leaf[:, None] == self.kinds.leaf) & (self.kinds.leaf >= 0)
        most = np.where(self.used, self.kinds.count * self.most, 0)
        high = most @ same
        low = np.maximum(np.where(self.used, self.fewest, 0) @ same, ranks[:, None] - most.sum(axis=1)[:, None] + high)
        high = np.minimum(high, ranks[:, None])
        groups = (ranks // size)[:, None]
        out = np.minimum(*(n * (size[:, None] - n / groups) / size[:, None] for n in (low, high)))
        alike = ((size == ranks)[:, None] | one_row) & self.several_leaves[:, None]
        return self._worst(np.where(alike, np.maximum(out, 0.0), 0.0) / self.kinds.uplink)

    def _largest_part(self, size: Ints) -> Floats:
        """Of the groups that a domain of each kind cuts, the most members that the smallest part can have."""
        p, largest = size[:, None], np.zeros(self.most.shape)
        if self.kinds.gpus.max() > MOST_COUNTED:
            return np.asarray(np.broadcast_to(p, largest.shape) * 1.0)
        for ranks in range(1, int(self.kinds.gpus.max()) + 1):
            part = ranks // -(-ranks // p)
            legal = (self.fewest <= ranks) & (ranks <= self.most)
            largest = np.where(legal & (part > largest), part, largest)
        return largest

    def _send(self) -> Floats:
        where = self.where
        if where.ring == INSIDE:
            return np.zeros(len(self.of.ring))
        ranks, rate = self.of.ranks[:, None], self.kinds.ring_rate
        whole = np.full(self.most.shape, where.ulysses == INSIDE) | ((where.ulysses == ELSEWHERE) & self._slow())
        rings = np.where(whole, self.of.ulysses[:, None], 1)
        shards = np.full(self.most.shape, where.shard == INSIDE) | ((where.shard == ELSEWHERE) & self._slow())
        met = self.of.ulysses[:, None]  # of a row's rings, in a domain that holds ranks in order
        inside = (self.most - met) // np.maximum(self.of.ring[:, None] - 1, 1)
        rings = np.where(shards & (self.of.shard >= self.of.ulysses)[:, None], np.maximum(rings, met - inside), rings)
        group = np.where(whole, self.of.context[:, None], self.of.ring[:, None])
        each = -(-rings // self.kinds.cards) / rate
        forced = (self.most < group) | (group == ranks) | (whole & self._cut(self.of.context))
        exits = 1 / rate / self.kinds.exit_share(rings, self.idle)
        load = np.maximum(self._worst(np.where(forced, np.maximum(each, exits), 0.0)), self._least(each))
        if where.ring == SLOWEST:
            forced = forced | self._slow()
            load = np.maximum(load, self._at_slowest(each))
        up = np.where((self.of.context == self.of.ranks) & self.several_leaves, 1.0, 0.0)[:, None]
        up = np.maximum(up, self.lonely & forced) * rings / self.kinds.uplink
        return np.maximum(load, self._worst(up))

    def _sharded(self, visits: Ints) -> tuple[Floats, Floats, Floats]:
        """(gather of a shard group, of a replicate group, all-reduce of that), by how full the replicate groups are.

        Column i: some kind's cards carry replicate groups as if `met[i]` shard groups met in each of its domains, and
        none as if fewer did. So where `met[i - 1]` or fewer would load a kind more than that, more do meet there, and
        those that cross load its cards with gathers.
        """
        size, shard = self.of.replicate, self.of.shard
        met = self.met
        none = np.zeros((len(size), len(met)))
        gather = np.repeat(self._gather()[:, None], len(met), axis=1)
        if self.where.replicate:
            return gather, none, none
        by_kind = [self._replicated(most) for most in met]
        crossing = list(zip(by_kind, self._crossings, self._slow_crossings, strict=True))
        floor, floor_sum = self._replicate(visits)
        per, times = self._all_reduce(visits)
        replicate, summed, below = none.copy(), none.copy(), np.full(len(size), np.inf)
        for index, (shares, slow, up) in enumerate(by_kind):
            shares = np.maximum(shares, slow)
            on_kind = self._seconds(shares, up)
            replicate[:, index] = np.maximum(self._worst(on_kind), floor)
            summed[:, index] = np.maximum(
                self._worst(np.maximum(shares * per, up * times / self.kinds.uplink)), floor_sum
            )
            if self.where.shard != INSIDE:
                least, least_slow = np.full((2, *self.most.shape), np.inf)
                for (other, slow, trunk), load, slow_load in crossing:
                    allowed = self._seconds(other, trunk) < below[:, None]
                    least = np.where(allowed, np.minimum(least, load / self.kinds.ring_rate), least)
                    allowed = self._seconds(np.maximum(other, slow), trunk) < below[:, None]
                    load = np.maximum(load, slow_load) / self.kinds.ring_rate
                    least_slow = np.where(allowed, np.minimum(least_slow, load), least_slow)
                paid = np.minimum(self._worst(np.maximum(least, least_slow)), IMPOSSIBLE)
                gather[:, index] = np.maximum(gather[:, index], (shard - 1) / shard * paid)
            below = np.minimum(below, self._worst(on_kind))
        part = ((size - 1) / size)[:, None]
        return gather, part * replicate, part * summed

    def _seconds(self, shares: Floats, up: Floats) -> Floats:
        """By kind, of shares of a buffer on a card and on the uplinks of its leaf."""
        return np.asarray(np.maximum(shares / self.kinds.ring_rate, up / self.kinds.uplink))

    def _replicated(self, most: int) -> tuple[Floats, Floats, Floats]:
        """Shares of a buffer on a card, on the slowest one in use (as if it were the best), and on a leaf's uplinks,
        where at most so many of a replicate group are in a domain: none where that is all of a group."""
        cut, up = (self.of.replicate > most)[:, None], self.fewest / most
        on_cards = (self._spread(most), 1 / most / self.slow_share, np.where(self.lonely, up, 0.0))
        return (*(np.where(cut, share, 0.0) for share in on_cards),)  # type: ignore[return-value]

    def _all_reduce(self, visits: Ints) -> tuple[Floats, Floats]:
        """(seconds per share on a card of each kind, times that uplinks carry it): rings twice, trees over two domains
        once, without a ring's losses."""
        size, twice = self.of.replicate[:, None], 2 / self.kinds.ring_rate
        tree, two = size / np.maximum(size - 1, 1), (visits <= 2)[:, None]
        by_tree = np.minimum(twice, tree / self.kinds.rate)
        return np.where(two, by_tree, twice), np.where(two, np.minimum(tree, 2.0), 2.0)

    def _spread(self, most: int) -> Floats:
        """Replicate groups on a card of each kind, where at most so many of a group are in a domain."""
        each = self.fewest / self.kinds.cards
        return np.asarray(np.maximum(1.0, np.ceil(each) if most == 1 else each) / most)

    @cached_property
    def met(self) -> list[int]:
        """Most shard groups that meet in a domain, by column."""
        return CROWDS[: int(np.searchsorted(CROWDS, self.kinds.gpus.max())) + 1]

    @cached_property
    def _crossings(self) -> list[Floats]:
        """For each range of shard groups that meet in a domain the least load of a kind's cards by those that cross."""
        found = []
        for lower, upper in itertools.pairwise([0, *self.met]):
            least = np.full(self.most.shape, np.inf)
            for groups in range(lower + 1, upper + 1):
                least = np.minimum(least, self._met(groups))
            found.append(least)
        return found

    @cached_property
    def _slow_crossings(self) -> list[Floats]:
        """The same for the slowest card in use, as if it were the best one: its shard group is whole in the domain if
        there is room, else one of so many members at most."""
        p, found = self.of.shard[:, None], []
        for lower, upper in itertools.pairwise([0, *self.met]):
            least = np.full(self.most.shape, np.inf)
            for groups in range(lower + 1, upper + 1):
                room = self.most - groups + 1  # the other groups have a member each
                cut = 1 / np.maximum(np.minimum(room, p - 1), 1) / self.slow_share
                least = np.where(room >= 1, np.minimum(least, np.where(room >= p, 0.0, cut)), least)
            found.append(least)
        return found

    def _met(self, groups: int) -> Floats:
        """The same for exactly so many; infinite where a kind cannot have them."""
        p, least = self.of.shard[:, None], np.full(self.most.shape, np.inf)
        for ranks in range(groups, int(self.kinds.gpus.max()) + 1):
            legal = (self.fewest <= ranks) & (ranks <= self.most) & (groups * p >= ranks)
            if not legal.any():
                continue
            cards = np.minimum(ranks, self.kinds.cards)
            for whole in range(groups + 1):
                cut, left = groups - whole, ranks - whole * p
                possible = legal & (left >= cut) & (left <= cut * np.maximum(p - 1, 0))
                if cut:
                    load = np.maximum(cut / cards, 1 / np.maximum(np.minimum(left // cut, cards), 1))
                else:
                    load = np.zeros(least.shape)
                least = np.where(possible, np.minimum(least, load), least)
        return least

    def _gather(self) -> Floats:
        where, size, rate = self.where, self.of.shard, self.kinds.ring_rate
        if where.shard == INSIDE:
            return np.zeros(len(size))
        cards = np.maximum(self.cards, 1)
        all_ranks, fastest = size == self.of.ranks, np.where(self.used, rate, 0.0).max(axis=1)
        smallest = np.where(size > 1, size // 2, 1)
        channels = np.where(all_ranks, np.minimum(self.rows.least, self._least(cards)), smallest)
        load = np.where(all_ranks, self._worst(1 / rate), 1 / fastest) / np.maximum(channels, 1)
        load = np.where(self.rows.least < size, np.maximum(load, 1 / self.rows.least / fastest), load)
        forced = self._cut(size) | all_ranks[:, None]
        load = np.maximum(load, self._worst(np.where(forced, 1 / (cards * rate), 0.0)))
        slow = 1 / (np.maximum(self.most, 1) * rate * self.slow_share)  # every rank's card carries an equal part
        most = np.where(self.used, self.most, 1).max(axis=1)
        everywhere = np.maximum(self._worst(slow), 1 / most / self.slow_ring_rate)
        load = np.maximum(load, np.where(all_ranks, everywhere, 0.0))
        if where.shard == SLOWEST:
            forced = forced | self._slow()
            load = np.maximum(load, self._at_slowest(1 / (np.minimum(smallest[:, None], cards) * rate)))
        groups = np.where(forced, 1, 0)
        if where.replicate:  # a replicate group has a member of every shard group: they all visit every domain
            groups = np.broadcast_to(self.of.replicate[:, None], groups.shape)
            inside = np.maximum(np.minimum(self.rows.least // self.of.replicate, self._least(cards)), 1)
            load = np.maximum(load, np.maximum(self._worst(groups / (cards * rate)), self._worst(1 / rate) / inside))
            load = np.maximum(load, self._worst(groups * slow))
        everywhere = (self.several_leaves & (all_ranks | where.replicate))[:, None]
        load = np.maximum(load, self._worst(np.where(everywhere | self.lonely, groups, 0) / self.kinds.uplink))
        return np.asarray((size - 1) / size * load)

    def _visits(self) -> Ints:
        """Domains that some replicate group on the slowest kind's cards visits, at least; two if nothing is known."""
        size, shard = self.of.replicate, self.of.shard
        visits = np.full(len(size), 2)
        if self.where.shard == SLOWEST:
            return visits
        here = np.maximum(self.most[self.at, self.slowest] // shard, 1)
        rest = np.maximum(size - here, 1)
        room = np.where(self.used, self.kinds.count * (self.most // rest[:, None]), 0).sum(axis=1)
        room = room - self.most[self.at, self.slowest] // rest
        return np.where((rest > 0) & (room < shard) & (size > here), 3, visits)

    def _replicate(self, visits: Ints) -> tuple[Floats, Floats]:
        """(gather, all-reduce) of replicate groups, by the region alone."""
        size, shard, rate = self.of.replicate, self.of.shard, self.kinds.ring_rate
        none = np.zeros(len(size))
        if self.where.replicate:
            return none, none
        cards, whole = np.maximum(self.cards, 1), self.where.shard
        shares = np.where(self.most < size[:, None], 1 / cards, 0.0)  # by kind, of a buffer on a card
        some = 1 / np.maximum(size // 2, 1)  # on some card of the fastest kind
        groups = np.zeros(self.most.shape)
        if whole == INSIDE:
            groups = np.broadcast_to(shard[:, None], groups.shape)
            channels = np.maximum(np.minimum(self.rows.least // shard, self._least(cards)), 1)
            shares = np.maximum(shares, np.maximum(1 / channels[:, None], shard[:, None] / cards))
        elif whole == ELSEWHERE:
            channels = np.maximum(np.minimum(self.most // shard[:, None], cards), 1)
            here = np.maximum(1 / channels, shard[:, None] / cards)
            shares = np.where(self._slow(), np.maximum(shares, here), shares)
            groups = np.where(self._slow() & self.lonely, shard[:, None], 0)
        up = np.where(self.several_leaves[:, None] if whole == INSIDE else self.lonely, groups, 0)
        per, times = self._all_reduce(visits)
        found = []
        for card, trunk in ((1 / rate, 1.0), (per, times)):
            load = np.maximum(self._worst(shares * card), some * self._least(np.broadcast_to(card, shares.shape)))
            found.append(np.maximum(load, self._worst(up * trunk / self.kinds.uplink)))
        return found[0], found[1]
