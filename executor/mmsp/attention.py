"""MM-SP attention: heads are exchanged inside the ulysses group, keys and values go round the ring.

    q k v (B, H|K, S, D) --one all-to-all--> (B, Hu|Ku, T = S*U, D) --ring--> out --all-to-all--> (B, S, H, D)

Bytes a rank sends, b a number's: all-to-all (U-1)/U * S*D*b*(2H + 2K') forward and the same backward (K' from
`heads`); the ring's in `ring`. A Hugging Face model reaches this by attn_implementation="mm_sp" and the keyword
argument `mm_sp`, which the model passes down unread: groups and layout are arguments, nothing is looked up.
Saved for backward: q, k, v after the exchange, out, lse. A layer with a window sees tiles of its own, and only the halo
of a block travels; a sink is one more score of no key. Leaves out: dropout, soft caps (refused).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from cost_models.errors import InputError
from cost_models.layer.heads import HeadSplit, Share
from cost_models.tiles import Span, Tile
from cost_models.token_layout import Layout, Travel
from executor.mmsp.exchange import Exchange
from executor.mmsp.halo import HaloWork, row_backward, row_forward
from executor.mmsp.head_chunks import HeadChunks, Piece, sink_gradient, with_sinks
from executor.mmsp.ring import RingWork
from executor.mmsp.row_chunks import Row, Tiles, attend_in_turn

NAME = "mm_sp"
_REFUSED = ("softcap", "position_bias")


class Attend(Protocol):
    """The keyword argument `mm_sp` of a model call: it computes attention of this rank's tokens with all tokens."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, window: int = 0, sinks: Tensor | None = None
    ) -> Tensor:
        """q (B, H, S, D), k and v (B, K, S', D) -> (B, S, H, D). A token sees `window` keys at most (0: all), itself
        included; `sinks` (H) are scores that take their share and give no value."""


class Kept:
    """Holds one layer's attention result between its forward and its recomputation, which then takes it from here."""

    def __init__(self) -> None:
        self._result: tuple[Tensor, Tensor] | None = None

    def put(self, out: Tensor, lse: Tensor) -> None:
        self._result = (out.detach(), lse.detach())

    def take(self) -> tuple[Tensor, Tensor] | None:
        result, self._result = self._result, None
        return result


@dataclass(frozen=True, kw_only=True)
class MmSp:
    """Attention over one packed row that is split over ring x ulysses ranks; the same for all layers."""

    layout: Layout
    ulysses: Exchange
    ring: Exchange
    grad_ring_dtype: torch.dtype = torch.float32
    head_chunks: int = 1  # a rank's heads are exchanged and attended in so many pieces
    kept: Kept | None = None  # set by recompute "all_but_attention", anew for every layer
    _routes: dict[int, Route] = field(default_factory=dict, repr=False)  # by window, made when a layer first asks
    _tiles: dict[int, Tiles] = field(default_factory=dict, repr=False)  # of chunks of the row, likewise

    def route(self, window: int) -> Route:
        """What this rank computes and what travels for layers with this window."""
        if window >= self.layout.tokens:
            window = 0
        if window not in self._routes:
            layout, mine, tiles = replace(self.layout, window=window), self.ring.index, []
            travels, others = layout.travels, [other for other in range(layout.ring) if other != mine]
            if window:
                travels = tuple(layout.halo(mine, other) for other in range(layout.ring))
            for block, travel in enumerate(travels):
                here = layout.tiles(mine, block)
                hop = (mine - block) % layout.ring if not window else int(block != mine)
                here = tuple(tile._replace(kv=travel.on_the_way(tile.kv, hop)) for tile in here)
                tiles.append(here)
            gives = [(other, layout.halo(other, mine).spans) for other in others] if window else []
            takes = [(other, travels[other].tokens(1)) for other in others] if window else []
            self._routes[window] = Route(
                tuple(tiles), travels, tuple(one for one in gives if one[1]), tuple(one for one in takes if one[1])
            )
        return self._routes[window]

    def chunk_tiles(self, window: int) -> Tiles:
        """What is computed where attention takes the row by chunks, for layers with this window."""
        if window not in self._tiles:
            self._tiles[window] = replace(self.layout, window=window).chunk_tiles()
        return self._tiles[window]

    @property
    def row(self) -> Row:
        """For one layer, where attention takes the row by chunks."""
        return Row(exchange=self.ulysses, chunks=self.layout.chunks, tiles=self.chunk_tiles)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, window: int = 0, sinks: Tensor | None = None
    ) -> Tensor:
        if self.layout.chunks > 1:
            return attend_in_turn(self.row, q, k, v, scale, window, sinks)
        split, route = HeadSplit(q_heads=q.shape[1], kv_heads=k.shape[1], ulysses=self.ulysses.size), self.route(window)
        held = self.layout.held[self.ring.index] // self.layout.ulysses
        if not q.shape[2] == k.shape[2] == held:
            raise InputError(
                f'attention "mm_sp" got {q.shape[2]} queries and {k.shape[2]} keys where a rank holds {held} tokens of '
                f"the row: pass input_ids=local.input_ids_S[None], and no cache of an earlier call"
            )

        def work(of: HeadSplit) -> RingWork | HaloWork:
            runs, dtype = of.runs(self.ulysses.index), self.grad_ring_dtype
            if 0 < window < self.layout.tokens:
                return HaloWork(
                    exchange=self.ring, tiles=route.tiles, gives=route.gives, takes=route.takes, runs=runs, scale=scale,
                    grad_dtype=dtype,
                )  # fmt: skip
            return RingWork(
                exchange=self.ring,
                tiles=route.tiles,
                travels=route.travels,
                runs=runs,
                scale=scale,
                grad_dtype=dtype,
            )

        if sinks is not None:
            share = split.shares[self.ulysses.index]
            sinks = sinks[share.q_start : share.q_stop]
        if self.head_chunks > 1:
            pieces = [Piece(part, work(part)) for part in split.parts(self.head_chunks)]
            chunked: Tensor = HeadChunks.apply(q, k, v, sinks, pieces, self.ulysses, self.kept)
            return chunked
        q_BHTD, kv_BHTD = _GatherRow.apply(q, k, v, split, self.ulysses)
        out_BHTD = _Ring.apply(q_BHTD, kv_BHTD, sinks, work(split), self.kept)
        return _ScatterRow.apply(out_BHTD, split, self.ulysses)


class Route(NamedTuple):
    """One window's part of `RingWork`, or of `HaloWork`."""

    tiles: tuple[tuple[Tile, ...], ...]  # against the block of each ring rank
    travels: tuple[Travel, ...]  # of those blocks; with a window what of them comes here
    gives: tuple[tuple[int, tuple[Span, ...]], ...]
    takes: tuple[tuple[int, int], ...]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    mm_sp: Attend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Called by Hugging Face models: query (B, H, S, D), key and value (B, K, S', D) -> ((B, S, H, D), None)."""
    if mm_sp is None:
        raise InputError('attention "mm_sp" needs the keyword argument mm_sp: pass **local.attention to the model')
    refused = [name for name in _REFUSED if kwargs.get(name) is not None]
    if False in (getattr(module, "is_causal", True), kwargs.get("is_causal", True)):
        refused.append("attention to later tokens (is_causal=False)")
    if dropout or refused or attention_mask is not None:
        what = f"dropout={dropout}" if dropout else ", ".join(refused) or "an attention mask"
        raise InputError(f'attention "mm_sp" does not do {what}; switch it off in the model\'s config')
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return mm_sp.attend(query, key, value, scale, window=sliding_window or 0, sinks=s_aux), None


def row_by_chunks(call: Any) -> Row | None:
    """The row that a call with this `mm_sp` takes by chunks, if it does."""
    return call.row if isinstance(call, MmSp) and call.layout.chunks > 1 else None


def register() -> None:
    """Make attn_implementation="mm_sp" known to transformers.

    No mask function is: causality and documents are in the layout, and transformers, to make a mask, would read from
    the device whether documents are packed. No graph of torch.compile enters it.
    """
    AttentionInterface.register(NAME, torch.compiler.disable(attention))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kv: Tensor, sinks: Tensor | None, work: RingWork | HaloWork, kept: Kept | None
    ) -> Tensor:
        result = kept.take() if kept else None
        out, lse = result or row_forward(q, kv, work)
        if sinks is not None and not result:
            out, lse = with_sinks(out, lse, sinks)
        if kept and not result:
            kept.put(out, lse)
        ctx.work = work
        ctx.save_for_backward(q, kv, out, lse, *(() if sinks is None else (sinks,)))
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, out, lse, *sinks = ctx.saved_tensors
        dq, dkv = row_backward(dout, q, kv, out, lse, ctx.work)
        dsinks = None
        if sinks:
            dsinks = sink_gradient(dout, out, lse, sinks[0])
        return dq, dkv, dsinks, None, None


class _GatherRow(torch.autograd.Function):
    """All heads of some tokens -> some heads of all tokens of the ring block; q (B, Hu, T, D), kv (2, B, Ku, T, D)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, split: HeadSplit, exchange: Exchange
    ) -> tuple[Tensor, Tensor]:
        ctx.split, ctx.exchange = split, exchange
        if exchange.size == 1:
            return q.contiguous(), torch.stack((k, v))
        mine, sent = split.shares[exchange.index], []
        for share in split.shares:
            kv_heads = slice(share.kv_start, share.kv_stop)
            sent += [q[:, share.q_start : share.q_stop], k[:, kv_heads], v[:, kv_heads]]
        rows_HBSD = torch.cat([part.transpose(0, 1) for part in sent])
        rows_HBSD = exchange.all_to_all(rows_HBSD, _rows_of_all(split), [_rows(mine)] * exchange.size)
        rows_UHBSD = rows_HBSD.unflatten(0, (exchange.size, _rows(mine)))
        q_UHBSD, kv_UHBSD = rows_UHBSD.split((mine.q_heads, 2 * mine.kv_heads), dim=1)
        kv_2BHUSD = kv_UHBSD.unflatten(1, (2, mine.kv_heads)).permute(1, 3, 2, 0, 4, 5)
        return _join(q_UHBSD.permute(2, 1, 0, 3, 4)), _join(kv_2BHUSD)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dkv: Tensor) -> tuple[Tensor | None, ...]:
        split, exchange = ctx.split, ctx.exchange
        if exchange.size == 1:
            return dq, dkv[0], dkv[1], None, None
        mine = split.shares[exchange.index]
        dq_UHBSD = dq.unflatten(2, (exchange.size, -1)).permute(2, 1, 0, 3, 4)
        dkv_UHBSD = dkv.unflatten(3, (exchange.size, -1)).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
        rows_HBSD = torch.cat((dq_UHBSD, dkv_UHBSD), dim=1).flatten(0, 1)
        rows_HBSD = exchange.all_to_all(rows_HBSD, [_rows(mine)] * exchange.size, _rows_of_all(split))
        return (*_sum_heads(rows_HBSD, split), None, None)


class _ScatterRow(torch.autograd.Function):
    """The inverse of `_GatherRow` for the output: (B, Hu, T, D) -> (B, S, H, D)."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, split: HeadSplit, exchange: Exchange) -> Tensor:
        ctx.split, ctx.exchange = split, exchange
        if exchange.size == 1:
            return out.transpose(1, 2)
        mine = split.shares[exchange.index].q_heads
        rows_HBSD = out.unflatten(2, (exchange.size, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1)
        counts = [share.q_heads for share in split.shares]
        return exchange.all_to_all(rows_HBSD, [mine] * exchange.size, counts).permute(1, 2, 0, 3)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        split, exchange = ctx.split, ctx.exchange
        if exchange.size == 1:
            return dout.transpose(1, 2), None, None
        mine = split.shares[exchange.index].q_heads
        counts = [share.q_heads for share in split.shares]
        rows_HBSD = exchange.all_to_all(dout.permute(2, 0, 1, 3).contiguous(), counts, [mine] * exchange.size)
        return _join(rows_HBSD.unflatten(0, (exchange.size, mine)).permute(2, 1, 0, 3, 4)), None, None


def _rows(share: Share) -> int:
    return share.q_heads + 2 * share.kv_heads


def _rows_of_all(split: HeadSplit) -> list[int]:
    return [_rows(share) for share in split.shares]


def _join(x: Tensor) -> Tensor:
    """(…, U, S, D) -> (…, T, D), contiguous."""
    return x.flatten(-3, -2).contiguous()


def _sum_heads(rows_HBSD: Tensor, split: HeadSplit) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients from all ulysses ranks -> those of q, k, v; a KV head that several ranks read is summed."""
    parts = rows_HBSD.split(
        [count for share in split.shares for count in (share.q_heads, share.kv_heads, share.kv_heads)]
    )
    dq = torch.cat(parts[0::3]).transpose(0, 1)
    wide = torch.promote_types(rows_HBSD.dtype, torch.float32)
    dkv = rows_HBSD.new_zeros((2, split.kv_heads, *rows_HBSD.shape[1:]), dtype=wide)
    for share, dk, dv in zip(split.shares, parts[1::3], parts[2::3], strict=True):
        dkv[0, share.kv_start : share.kv_stop] += dk
        dkv[1, share.kv_start : share.kv_stop] += dv
    dk, dv = dkv.to(rows_HBSD.dtype).transpose(1, 2)
    return dq, dk, dv
