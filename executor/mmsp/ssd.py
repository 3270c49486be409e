"""State-space layers over the context group: their tokens, their heads, or both are dealt out.

    states  each rank scans its own stretches of the row; K - 1 tokens before each come from their owner (the halo of
            the convolution), states are passed on (`state_passing`)
    heads   one all-to-all over the context group: all tokens of some heads, x B C a in, y back; the gate stays
    mixed   heads over the ulysses group, states over the ring group

Bytes a rank sends, b a number's, w a state's (4; 8 in float64): heads (G-1)/G S H (2P + 2N + 1) b; halo
(K-1) H (P + 2N) b for each stretch that others begin after its tokens; the backward pass sends the same again. Who
holds which token is the table of attention, so the two chunks of a zigzag are two stretches. Documents are cut by
positions, which every rank knows. Shapes: B rows, S tokens of a rank, T tokens that it scans, H heads, W channels.
Leaves out: heads that the group does not divide (refused), overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from cost_models.ssd_messages import check_heads, runs, scanned
from cost_models.tiles import Span
from cost_models.token_layout import Layout, Places
from executor.mmsp.decode import ShardedCache
from executor.mmsp.exchange import Alone, Exchange, all_to_all
from executor.mmsp.scan_pieces import HeadPieces, Scan
from executor.mmsp.state_passing import Passing
from longvila.sharding import places_on
from longvila.ssd import Inner, StateLayer, mix


@dataclass(frozen=True, kw_only=True)
class SsdSplit:
    """The state-space layers of one packed row over ring x ulysses ranks: the keyword argument `ssd` of a model."""

    layout: Layout
    context: Exchange
    ulysses: Exchange
    ring: Exchange
    places: tuple[tuple[int, int], ...]  # (ring, ulysses) of the context group's members
    split: str = "states"
    way: str = "gather"  # of passing states
    pieces: int = 1  # of a rank's heads, which are scanned one after the other, in training (`scan_pieces`)
    cut: bool = False  # stretches end where documents do, so that the states at their ends are known
    _halos: dict[int, Halo] = field(default_factory=dict, repr=False)  # by taps

    def mix(self, inner: Inner, layer: int, cache: Cache | None = None) -> Tensor:
        """`inner` of this rank's tokens -> y [B, S, H, P] of them; a `cache` keeps the states of the documents."""
        if cache is not None and not self.cut:
            return self._cut.mix(inner, layer, cache)
        heads = inner.skip_H.shape[0]
        check_heads(heads, self.split, context=self.context.size, ulysses=self.ulysses.size)
        mine, dtype = self._by_heads(inner), inner.channels_BSHW.dtype
        device = mine.channels_BSHW.device
        positions = places_on(torch.from_numpy(_in_documents(self.layout, self._index)), device)[None]
        halo = self._halo(inner.taps_HWK.shape[-1])
        spans = self.stretches[self._states.index]
        before = halo.fetch(mine.channels_BSHW, self._states, len(spans))
        lengths = [span.stop - span.start for span in spans]
        if self.pieces > 1 and cache is None and torch.is_grad_enabled():
            shared = Scan(positions, lengths, self._passing, mine.state, mine.chunk, self.pieces)
            given = (mine.channels_BSHW, mine.a_BSH, mine.taps_HWK, mine.skip_H, before)
            return self._back(HeadPieces.apply(shared, *given))
        y, ends = mix(mine, positions, lengths, list(before), self._passing)
        if cache is not None:
            assert isinstance(cache, ShardedCache)
            self._keep(mine, ends, layer, cache)
        return self._back(y.to(dtype))

    @cached_property
    def _cut(self) -> SsdSplit:
        """The same for a prefill, whose stretches are too many for a chain."""
        return replace(self, cut=True, way="gather" if self.way == "chain" else self.way, _halos={})

    def _keep(self, mine: Inner, ends: Tensor, layer: int, cache: ShardedCache) -> None:
        """Give every member the state at each document's end, and the channels of the K - 1 tokens before it."""
        reach, channels = mine.taps_HWK.shape[-1] - 1, mine.channels_BSHW[0]
        edges = self.layout.edges[: len(cache.parts) + 1]
        states = ends.new_zeros((len(cache.parts), *ends.shape[2:]))
        tails = channels.new_zeros((len(cache.parts), reach, *channels.shape[1:]))
        spans, index = self.stretches[self._states.index], self._index
        for document, (start, stop) in enumerate(pairwise(edges)):
            for span, end in zip(spans, ends, strict=True):
                if span.stop == stop:
                    states[document] = end[0]
            for place in range(max(start, stop - reach), stop):
                if (at := int(np.searchsorted(index, place))) < len(index) and index[at] == place:
                    tails[document, place - stop] = channels[at]
        states, tails = self._of_all(states, 1), self._of_all(tails, 2)
        for document, (_, shard) in enumerate(cache.parts):
            kept = shard.states[layer] = StateLayer()
            kept.advance(shard.tokens, states[document : document + 1], tails[document : document + 1])

    @property
    def _states(self) -> Exchange:
        """The group that states are passed in."""
        return {"states": self.context, "mixed": self.ring, "heads": Alone()}[self.split]

    @property
    def _heads(self) -> Exchange:
        """The group that heads are dealt out to."""
        return {"states": Alone(), "mixed": self.ulysses, "heads": self.context}[self.split]

    @cached_property
    def _indices(self) -> tuple[Places, ...]:
        """The tokens, ascending, that each member of `_states` scans."""
        return scanned(self.layout, self.split, self.places)

    def _of_all(self, mine: Tensor, heads: int) -> Tensor:
        """What one member has and the others have as zeros, for all heads, which stand in axis `heads`."""
        return torch.cat([*self._heads.all_gather(self._states.all_gather(mine).sum(0))], heads)

    @property
    def _index(self) -> Places:
        return self._indices[self._states.index]

    @cached_property
    def stretches(self) -> tuple[tuple[Span, ...], ...]:
        """The runs of neighbouring tokens of each member."""
        edges = self.layout.edges if self.cut else ()
        return tuple(runs(index, edges) for index in self._indices)

    @cached_property
    def _passing(self) -> Passing:
        return Passing(exchange=self._states, stretches=self.stretches, way=self.way)

    def _halo(self, taps: int) -> Halo:
        if taps not in self._halos:
            self._halos[taps] = _halo(self._indices, self.stretches, self._states.index, taps - 1)
        return self._halos[taps]

    def _by_heads(self, inner: Inner) -> Inner:
        """The same of this rank's heads and the tokens of all that they were dealt out to."""
        group = self._heads
        if group.size == 1:
            return inner
        heads = inner.skip_H.shape[0] // group.size
        here = slice(group.index * heads, (group.index + 1) * heads)
        rows_HBSW = torch.cat((inner.channels_BSHW, inner.a_BSH[..., None]), -1).permute(2, 0, 1, 3)
        rows_HBSW = all_to_all(rows_HBSW, group, [heads] * group.size, [heads] * group.size)
        rows_BTHW = rows_HBSW.unflatten(0, (group.size, heads)).permute(2, 0, 3, 1, 4).flatten(1, 2)
        if self.split == "heads":
            rows_BTHW = self._ordered(rows_BTHW, self._to_row, self._from_row)
        channels_BTHW, a_BTH1 = rows_BTHW.split((rows_BTHW.shape[-1] - 1, 1), -1)
        return replace(
            inner, channels_BSHW=channels_BTHW, a_BSH=a_BTH1[..., 0], taps_HWK=inner.taps_HWK[here],
            skip_H=inner.skip_H[here],
        )  # fmt: skip

    def _back(self, y_BTHP: Tensor) -> Tensor:
        group = self._heads
        if group.size == 1:
            return y_BTHP
        if self.split == "heads":
            y_BTHP = self._ordered(y_BTHP, self._from_row, self._to_row)
        heads = y_BTHP.shape[2]
        rows = y_BTHP.unflatten(1, (group.size, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return all_to_all(rows, group, [heads] * group.size, [heads] * group.size).permute(1, 2, 0, 3)

    @cached_property
    def _to_row(self) -> Places:
        """Tokens in the context group's order -> in the row's."""
        return np.argsort(self._from_row)

    @cached_property
    def _from_row(self) -> Places:
        return np.concatenate([self.layout.index(*place) for place in self.places])

    @staticmethod
    def _ordered(rows: Tensor, order: Places, inverse: Places) -> Tensor:
        to, back = (places_on(torch.from_numpy(one), rows.device) for one in (order, inverse))
        ordered: Tensor = _Ordered.apply(rows, to, back)
        return ordered


class _Ordered(torch.autograd.Function):
    """Tokens in another order; its gradient is read by the inverse, where autograd's adds row by row into zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows[:, order]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grad[:, inverse], None, None


class Halo(NamedTuple):
    """What one member sends and receives so that each of its stretches knows the tokens before it."""

    send: Places  # which of its tokens, by receiver
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]
    taken: Places  # [stretches * reach]: which of the received is each token before a stretch; the last + 1 is none

    def fetch(self, channels_BTHW: Tensor, group: Exchange, stretches: int) -> Tensor:
        """The tokens before each of this rank's stretches, [G, B, reach, H, W]; zeros before the row."""
        device, tokens_TBHW = channels_BTHW.device, channels_BTHW.transpose(0, 1)
        got = tokens_TBHW.new_empty((0, *tokens_TBHW.shape[1:]))
        if len(self.send) or (group.size > 1 and len(self.taken)):  # on all members or on none
            rows = tokens_TBHW[places_on(torch.from_numpy(self.send), device)]
            got = all_to_all(rows, group, self.send_counts, self.receive_counts)
        got = torch.cat((got, got.new_zeros((1, *tokens_TBHW.shape[1:]))))
        return got[places_on(torch.from_numpy(self.taken), device)].unflatten(0, (stretches, -1)).transpose(1, 2)


def _halo(indices: Sequence[Places], stretches: Sequence[Sequence[Span]], me: int, reach: int) -> Halo:
    members = len(indices)
    owner = np.empty(sum(map(len, indices)), dtype=np.int64)
    for member, index in enumerate(indices):
        owner[index] = member
    wanted = [
        np.concatenate([np.arange(span.start - reach, span.start) for span in mine]) if reach else np.empty(0, np.int64)
        for mine in stretches
    ]
    sent = [places[places >= 0] for places in wanted]
    sent = [places[owner[places] == me] for places in sent]
    mine = wanted[me]
    real = np.flatnonzero(mine >= 0)
    senders = owner[mine[real]]
    taken = np.full(len(mine), len(real), dtype=np.int64)
    taken[real[np.argsort(senders, kind="stable")]] = np.arange(len(real))
    return Halo(
        send=np.searchsorted(indices[me], np.concatenate(sent)),
        send_counts=tuple(map(len, sent)),
        receive_counts=tuple(np.bincount(senders, minlength=members).tolist()),
        taken=taken,
    )


def _in_documents(layout: Layout, index: Places) -> Places:
    """The places of tokens in their documents; padding is a document."""
    starts = np.array(layout.edges[:-1])
    return index - starts[np.searchsorted(starts, index, side="right") - 1]
