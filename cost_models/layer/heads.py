"""Which attention heads a ulysses rank computes, for any degree up to the number of query heads.

Query heads are dealt in contiguous runs of at most ceil(H / U); among those the run lengths are chosen that need the
fewest key-value heads in all, since every rank is sent only the KV heads that its queries read:

    28 query / 4 KV heads, U = 8: runs 4 3 4 3 4 3 4 3, one KV head each      K' = 8
     7 query / 7 KV heads, U = 4: runs 2 2 2 1                                K' = 7

K' (`sent_kv_heads`) is what the all-to-all carries; it is the number of KV heads when U divides it, U when it divides
U. Leaves out: balancing ranks of different speed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from cost_models.errors import InputError


class Run(NamedTuple):
    """A rectangle of heads that one grouped-query kernel call serves: local query and KV heads [start, stop)."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int


class Share(NamedTuple):
    """One rank's ranges of the model's heads: queries [q_start, q_stop), keys and values [kv_start, kv_stop)."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int

    @property
    def q_heads(self) -> int:
        return self.q_stop - self.q_start

    @property
    def kv_heads(self) -> int:
        return self.kv_stop - self.kv_start


@dataclass(frozen=True, kw_only=True)
class HeadSplit:
    """How H query and K key-value heads lie on `ulysses` ranks."""

    q_heads: int
    kv_heads: int
    ulysses: int
    part: tuple[int, int] = (0, 1)
    """(index, count): of every rank's query heads the index-th of `count` pieces, as even as can be."""

    def __post_init__(self) -> None:
        if self.ulysses > self.q_heads:
            raise InputError(
                f"ulysses={self.ulysses} exceeds the model's {self.q_heads} query heads; at most {self.q_heads}"
            )
        if self.kv_heads < 1 or self.q_heads % self.kv_heads:
            raise InputError(f"{self.q_heads} query heads are not a multiple of {self.kv_heads} key-value heads")

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """One for each ulysses rank; query ranges tile [0, H), or hold this part of every rank's."""
        group, (index, count) = self.q_heads // self.kv_heads, self.part
        shares, start = [], 0
        for length in _run_lengths(self.q_heads, group, self.ulysses):
            first, stop = (start + length * edge // count for edge in (index, index + 1))
            shares.append(Share(first, stop, first // group, (stop - 1) // group + 1))
            start += length
        return tuple(shares)

    def parts(self, count: int) -> tuple[HeadSplit, ...]:
        """Every rank's heads in `count` pieces, one after the other; no rank may have fewer query heads."""
        fewest = min(share.q_heads for share in self.shares)
        if not 1 <= count <= fewest:
            raise InputError(f"attention_head_chunks={count} of the {fewest} query heads of a rank; at most {fewest}")
        return tuple(replace(self, part=(index, count)) for index in range(count))

    @cached_property
    def most_q_heads(self) -> int:
        return max(share.q_heads for share in self.shares)

    @cached_property
    def most_kv_heads(self) -> int:
        return max(share.kv_heads for share in self.shares)

    @cached_property
    def sent_kv_heads(self) -> int:
        """K': KV heads of all ranks together, after the repetition that the exchange makes."""
        return sum(share.kv_heads for share in self.shares)

    def runs(self, ulysses_index: int) -> tuple[Run, ...]:
        """A rank's heads cut where the number of queries per KV head changes."""
        share, group = self.shares[ulysses_index], self.q_heads // self.kv_heads
        runs: list[Run] = []
        for kv in range(share.kv_start, share.kv_stop):
            start = max(kv * group, share.q_start) - share.q_start
            stop = min((kv + 1) * group, share.q_stop) - share.q_start
            local = kv - share.kv_start
            last = runs[-1] if runs else None
            if last and (last.q_stop - last.q_start) == (stop - start) * (last.kv_stop - last.kv_start):
                runs[-1] = Run(last.q_start, stop, last.kv_start, local + 1)
            else:
                runs.append(Run(start, stop, local, local + 1))
        return tuple(runs)


head_split = lru_cache(maxsize=256)(HeadSplit)
"""The split of some heads over some ranks, made once."""


@lru_cache(maxsize=256)
def _run_lengths(heads: int, group: int, ranks: int) -> tuple[int, ...]:
    """Lengths of `ranks` runs over `heads`, each 1..ceil(heads/ranks), touching the fewest groups in all.

    Dynamic program from the end; ties go to the longest run first.
    """
    longest = -(-heads // ranks)
    best: dict[int, tuple[int, tuple[int, ...]]] = {heads: (0, ())}
    for placed in range(1, ranks + 1):
        following, best = best, {}
        low, high = max(0, heads - placed * longest), heads - placed
        for start in range(low, high + 1):
            options = [
                ((start + length - 1) // group - start // group + 1 + following[start + length][0], -length)
                for length in range(1, longest + 1)
                if start + length in following
            ]
            if options:
                cost, negative = min(options)
                best[start] = (cost, (-negative, *following[start - negative][1]))
    return best[0][1]
