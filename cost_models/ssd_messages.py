"""What the ranks of a context group send for one state-space layer, message by message, from the table of tokens.

    states   halo: K - 1 tokens of x, B, C before each stretch of neighbouring tokens; then the states are passed on
    heads    one all-to-all over the context group: x, B, C, a of S tokens in, y back
    mixed    heads over the ulysses group, then states over the ring group with a part of the heads
    passing  gather: equal buffers of `slots` summaries to all; chain: a state to the next; tree: log2 rounds

S tokens of a rank, H heads, P head size, N state, K taps, b bytes of an activation, w of a state, G ranks:
all-to-all S H (P + 2N + 1) b / G and S H P b / G to each; halo H (P + 2N) b a token; a summary H (P N + 1) w, a state
alone H P N w. The backward pass sends the same the other way. Rank ring_index * ulysses + ulysses_index. Units: bytes.
Leaves out: what is sent for weights, and rows of a batch (times so many).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.strategy import Axis, SsdPass, Strategy
from cost_models.tiles import Span
from cost_models.token_layout import Layout, Places, row_granule

SPLITS = ("states", "mixed", "heads")
PASSES: tuple[SsdPass, ...] = ("gather", "chain", "tree")
Matrix = NDArray[np.float64]
"""Bytes from each rank to each."""


class Round(NamedTuple):
    """What is sent at one time."""

    axis: Literal["context", "ulysses", "ring"]
    op: Literal["all_to_all", "all_gather", "send"]
    bytes: Matrix


@dataclass(frozen=True, kw_only=True)
class SsdLayer:
    """Sizes of a state-space layer that what is sent depends on."""

    heads: int
    head_size: int
    state: int
    conv: int = 4
    width: float = 2  # bytes of an activation
    state_width: float = 4  # bytes of a number of a state

    @property
    def channels(self) -> int:
        """x, B and C of a head."""
        return self.head_size + 2 * self.state


def scanned(layout: Layout, split: str, places: Sequence[tuple[int, int]]) -> tuple[Places, ...]:
    """The tokens, ascending, that each member of the group in which states are passed scans.

    `places`: the (ring, ulysses) indices of the context group's members, whose order "states" takes.
    """
    if split == "heads":
        return (np.arange(layout.padded_tokens),)
    if split == "states":
        return tuple(layout.index(*place) for place in places)
    return tuple(
        np.concatenate([layout.index(ring, ulysses) for ulysses in range(layout.ulysses)])
        for ring in range(layout.ring)
    )


def runs(index: Places, cuts: Sequence[int] = ()) -> tuple[Span, ...]:
    """Neighbouring places as stretches, none of which goes on over a cut.

    >>> runs(np.array([0, 1, 2, 7, 8]), [0, 2, 9])
    (Span(start=0, stop=2), Span(start=2, stop=3), Span(start=7, stop=9))
    """
    begins = np.flatnonzero((np.diff(index) > 1) | np.isin(index[1:], cuts)) + 1
    edges = [0, *begins.tolist(), len(index)]
    return tuple(Span(int(index[first]), int(index[last - 1]) + 1) for first, last in pairwise(edges))


def in_order(stretches: Sequence[Sequence[Span]]) -> tuple[tuple[int, int], ...]:
    """(member, which of its stretches) in the row's order."""
    held = enumerate(stretches)
    found = [(span.start, member, slot) for member, mine in held for slot, span in enumerate(mine)]
    return tuple((member, slot) for _, member, slot in sorted(found))


def passing_order(strategy: Strategy, axis: Axis) -> tuple[tuple[int, int], ...]:
    """(member of an axis's group, which of its stretches) in the order of a row of one document."""
    kind = "contiguous" if strategy.ring_kind == "contiguous" else "zigzag"
    each = row_granule(strategy.ring, strategy.ulysses, kind)
    layout = Layout(tokens=int(each) * 2, ulysses=strategy.ulysses, ring=strategy.ring, kind=kind)
    places = [divmod(rank, strategy.ulysses) for rank in range(strategy.context)]
    return in_order([runs(index) for index in scanned(layout, "states" if axis == "context" else "mixed", places)])


def check_heads(heads: int, split: str, *, context: int, ulysses: int) -> None:
    """InputError where the heads of a layer cannot be dealt out evenly, or for an unknown split."""
    group = {"states": 1, "mixed": ulysses, "heads": context}.get(split)
    if group is None:
        raise InputError(f"ssd={split} is not one of {', '.join(SPLITS)}")
    if heads % group:
        raise InputError(f"ssd={split} deals {heads} heads to {group} ranks; the ranks must divide the heads")


def check_passing(way: str, stretches: Sequence[Sequence[Span]]) -> None:
    """InputError for an unknown way, or a chain over ranks with several stretches."""
    if way not in PASSES:
        raise InputError(f"ssd_pass={way} is not one of {', '.join(PASSES)}")
    if way == "chain" and (slots := max(map(len, stretches))) > 1:
        raise InputError(
            f"ssd_pass=chain needs one stretch of the row on each rank, here are up to {slots}; "
            "take ring_layout contiguous, or ssd_pass gather or tree"
        )


def rounds(layout: Layout, layer: SsdLayer, split: str, way: str) -> list[Round]:
    """The messages of a forward pass, round after round; those of the backward pass are their transposes, reversed."""
    check_heads(layer.heads, split, context=layout.ring * layout.ulysses, ulysses=layout.ulysses)
    grid = np.arange(layout.ring * layout.ulysses).reshape(layout.ring, layout.ulysses)
    dealt = {"states": grid.reshape(-1, 1), "mixed": grid, "heads": grid.reshape(1, -1)}[split]
    passing = {"states": grid.reshape(1, -1), "mixed": grid.T, "heads": grid.reshape(-1, 1)}[split]
    by_heads: Literal["ulysses", "context"] = "ulysses" if split == "mixed" else "context"
    by_states: Literal["ring", "context"] = "ring" if split == "mixed" else "context"
    to_each = layout.rank_tokens * layer.heads / dealt.shape[1] * layer.width
    inside = [np.full((dealt.shape[1],) * 2, to_each * numbers) for numbers in (layer.channels + 1, layer.head_size)]
    into, back = (Round(by_heads, "all_to_all", _spread(one, dealt, grid.size)) for one in inside)
    indices = scanned(layout, split, [divmod(rank, layout.ulysses) for rank in range(grid.size)])
    stretches = [runs(index) for index in indices]
    check_passing(way, stretches)
    heads = layer.heads // dealt.shape[1]
    halo = heads * layer.channels * layer.width * _halo_tokens(indices, stretches, layer.conv - 1)
    state = heads * layer.head_size * layer.state * layer.state_width
    passed = _passed(stretches, way, state, state + heads * layer.state_width)
    op: Literal["all_gather", "send"] = "all_gather" if way == "gather" else "send"
    asked = Round(by_states, "all_to_all", _spread(halo, passing, grid.size))
    between = [Round(by_states, op, _spread(one, passing, grid.size)) for one in passed]
    return [one for one in (into, asked, *between, back) if one.bytes.any()]


def _spread(inside: Matrix, groups: NDArray[np.int64], ranks: int) -> Matrix:
    """The messages of one group as those of all groups of that axis; none to oneself."""
    every = np.zeros((ranks, ranks))
    for group in groups:
        every[np.ix_(group, group)] = inside
    np.fill_diagonal(every, 0)
    return every


def _halo_tokens(indices: Sequence[Places], stretches: Sequence[Sequence[Span]], reach: int) -> Matrix:
    """Tokens that each member sends to each, for the convolutions of its stretches."""
    owner = np.empty(sum(map(len, indices)), dtype=np.int64)
    for member, index in enumerate(indices):
        owner[index] = member
    sent = np.zeros((len(indices),) * 2)
    for member, mine in enumerate(stretches):
        for span in mine:
            sent[:, member] += np.bincount(owner[max(0, span.start - reach) : span.start], minlength=len(indices))
    return sent


def _passed(stretches: Sequence[Sequence[Span]], way: str, state: float, summary: float) -> list[Matrix]:
    """How states go through the members of one group."""
    members = len(stretches)
    if way == "gather":
        return [np.full((members, members), summary * max(map(len, stretches)))] if members > 1 else []
    order, found = [member for member, _ in in_order(stretches)], []
    if way == "chain":
        for sender, receiver in pairwise(order):
            found.append(np.zeros((members, members)))
            found[-1][sender, receiver] = state
        return found
    step = 1
    while step < len(order):
        found.append(np.zeros((members, members)))
        np.add.at(found[-1], (order[:-step], order[step:]), summary)
        step *= 2
    return found
