"""Attention some heads at a time: exchange, attend and send back, then the next heads (Untied Ulysses, 2602.21196).

    forward    for each piece of every rank's query heads: to heads -> ring -> back to tokens, into the result
    backward   for each piece: q, k, v, result and its gradient to heads -> ring backward -> dq, dk, dv back

Kept are q, k, v and the result as the layer has them, by tokens: what the exchange brings is alive for one piece alone.
The price is the exchange of q, k, v and the result once more in the backward pass, and smaller kernels. Keys that the
next piece needs too stay, and their gradients are summed before they go back. Bytes sent, U ranks, of a tensor of n
bytes: (U - 1) / U * n. Shapes: q (B, H, S, D), k and v (B, K, S, D), the result (B, S, H, D); T = S U tokens by heads.
Leaves out the paper's projections by heads: a Hugging Face model hands over all heads' q, k and v.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cost_models.layer.heads import HeadSplit
from executor.mmsp.exchange import Exchange
from executor.mmsp.halo import HaloWork, row_backward, row_forward
from executor.mmsp.ring import RingWork

Heads = Sequence[slice]
"""Of each ulysses rank."""


class Piece(NamedTuple):
    split: HeadSplit
    work: RingWork | HaloWork

    @property
    def queries(self) -> Heads:
        return query_heads(self.split)

    @property
    def keys(self) -> Heads:
        return key_heads(self.split)


def query_heads(split: HeadSplit) -> Heads:
    return [slice(share.q_start, share.q_stop) for share in split.shares]


def key_heads(split: HeadSplit) -> Heads:
    return [slice(share.kv_start, share.kv_stop) for share in split.shares]


def to_heads(pieces: Sequence[tuple[Tensor, Heads]], exchange: Exchange) -> list[Tensor]:
    """Of tensors (B, H, S, D) this rank's heads of all tokens, (B, h, T, D), in one exchange."""
    if exchange.size == 1:
        return [x[:, heads[0]].contiguous() for x, heads in pieces]
    sent = [x[:, heads[rank]].transpose(0, 1) for rank in range(exchange.size) for x, heads in pieces]
    counts = [sum(_count(heads[rank]) for _, heads in pieces) for rank in range(exchange.size)]
    mine = [_count(heads[exchange.index]) for _, heads in pieces]
    rows_HBSD = exchange.all_to_all(torch.cat(sent), counts, [sum(mine)] * exchange.size)
    rows_UHBSD = rows_HBSD.unflatten(0, (exchange.size, sum(mine)))
    return [part.permute(2, 1, 0, 3, 4).flatten(2, 3).contiguous() for part in rows_UHBSD.split(mine, dim=1)]


def to_tokens(pieces: Sequence[tuple[Tensor, Heads]], exchange: Exchange) -> list[list[Tensor]]:
    """Of tensors (B, h, T, D) every rank's heads of this rank's tokens, (B, h, S, D) each, in one exchange."""
    if exchange.size == 1:
        return [[x] for x, _ in pieces]
    sent = torch.cat([x.unflatten(2, (exchange.size, -1)).permute(2, 1, 0, 3, 4) for x, _ in pieces], dim=1)
    counts = [[_count(heads[rank]) for _, heads in pieces] for rank in range(exchange.size)]
    mine = sum(counts[exchange.index])
    rows_HBSD = exchange.all_to_all(sent.flatten(0, 1), [mine] * exchange.size, [sum(each) for each in counts])
    parts = rows_HBSD.split([count for each in counts for count in each])
    return [[part.transpose(0, 1) for part in parts[place :: len(pieces)]] for place in range(len(pieces))]


def _count(heads: slice) -> int:
    return int(heads.stop - heads.start)


class HeadChunks(torch.autograd.Function):
    """`sinks` are those of this rank's query heads; `kept` as in `attention.Kept`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pieces: Sequence[Piece], exchange: Exchange,
        kept: Any,
    ) -> Tensor:  # fmt: skip
        result = kept.take() if kept else None
        out, lse = result or _forward(q, k, v, sinks, pieces, exchange)
        if kept and not result:
            kept.put(out, lse)
        ctx.pieces, ctx.exchange = pieces, exchange
        ctx.save_for_backward(q, k, v, out, lse, *(() if sinks is None else (sinks,)))
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *sinks = ctx.saved_tensors
        pieces, exchange = ctx.pieces, ctx.exchange
        dq, wide = torch.empty_like(q), torch.promote_types(k.dtype, torch.float32)
        dkv = k.new_zeros((2, *k.shape), dtype=wide if _share_keys(pieces) else k.dtype)
        dsinks = torch.empty_like(sinks[0]) if sinks else None
        kv: Tensor | None = None
        for place, piece in enumerate(pieces):
            mine = _own_queries(pieces, place, exchange.index)
            given = [(q, piece.queries), *((x.transpose(1, 2), piece.queries) for x in (out, dout))]
            if kv is None:
                q_now, out_now, dout_now, k_now, v_now = to_heads([*given, (k, piece.keys), (v, piece.keys)], exchange)
                kv = torch.stack((k_now, v_now))
                dkv_now = torch.zeros_like(kv, dtype=wide)
                del k_now, v_now
            else:
                q_now, out_now, dout_now = to_heads(given, exchange)
            lse_now = lse[:, mine]
            dq_now, grad = row_backward(dout_now, q_now, kv, out_now, lse_now, piece.work)
            dkv_now += grad
            if dsinks is not None:
                dsinks[mine] = sink_gradient(dout_now, out_now, lse_now, sinks[0][mine])
            del q_now, out_now, dout_now, grad
            back = [(dq_now, piece.queries)]
            if _last_of_keys(pieces, place):
                back += [(x.to(k.dtype), piece.keys) for x in dkv_now]
                kv = None
            _bring_home(to_tokens(back, exchange), piece, dq, dkv)
            del dq_now, back  # or they would be alive beside the next piece
        dk, dv = dkv.to(k.dtype)
        return dq, dk, dv, dsinks, None, None, None


def _bring_home(arrived: list[list[Tensor]], piece: Piece, dq: Tensor, dkv: Tensor) -> None:
    """What arrived of a piece's gradients into those by tokens; no name of it is left when this returns."""
    of_queries, *of_keys = arrived
    _put(of_queries, piece.queries, dq)
    wide = torch.promote_types(dkv.dtype, torch.float32)
    for total, parts in zip(dkv, of_keys, strict=False):
        for heads, part in summed(piece.keys, parts, wide):
            total[:, heads] += part


def _put(parts: Sequence[Tensor], heads: Heads, into_BHSD: Tensor) -> None:
    for one, part in zip(heads, parts, strict=True):
        into_BHSD[:, one] = part


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pieces: Sequence[Piece], exchange: Exchange
) -> tuple[Tensor, Tensor]:
    """The result by tokens (B, S, H, D), and the log-sum-exps of this rank's heads (B, h, T)."""
    out_BSHD = q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))
    lses: list[Tensor] = []
    kv: Tensor | None = None
    for place, piece in enumerate(pieces):
        if kv is None:
            q_now, *both = to_heads([(q, piece.queries), (k, piece.keys), (v, piece.keys)], exchange)
            kv = torch.stack(both)
            del both
        else:
            (q_now,) = to_heads([(q, piece.queries)], exchange)
        out, lse = row_forward(q_now, kv, piece.work)
        if sinks is not None:
            out, lse = with_sinks(out, lse, sinks[_own_queries(pieces, place, exchange.index)])
        lses.append(lse)
        if _last_of_keys(pieces, place):
            kv = None
        _put(to_tokens([(out, piece.queries)], exchange)[0], piece.queries, out_BSHD.transpose(1, 2))
        del q_now, out
    return out_BSHD, torch.cat(lses, dim=1)


def summed(keys: Heads, parts: Sequence[Tensor], wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Each range of key heads once, the parts of all ranks that have it added in the wide type."""
    for heads in dict.fromkeys((one.start, one.stop) for one in keys):
        same = [part for one, part in zip(keys, parts, strict=True) if (one.start, one.stop) == heads]
        yield slice(*heads), same[0] if len(same) == 1 else sum(part.to(wide) for part in same)  # type: ignore[misc]


def _share_keys(pieces: Sequence[Piece]) -> bool:
    """Whether a key head's gradient comes from several ranges of heads, so that its parts meet in the sum by tokens."""
    ranges = {(one.start, one.stop) for piece in pieces for one in piece.keys}
    heads = [head for start, stop in ranges for head in range(start, stop)]
    return len(heads) > len({*heads})


def _last_of_keys(pieces: Sequence[Piece], place: int) -> bool:
    """Whether the next piece needs other keys, on any rank: all ranks decide alike."""
    return place + 1 == len(pieces) or pieces[place + 1].keys != pieces[place].keys


def _own_queries(pieces: Sequence[Piece], place: int, rank: int) -> slice:
    """Where a piece's query heads lie among those of this rank."""
    counts = [_count(piece.queries[rank]) for piece in pieces]
    first, stop = itertools.accumulate(counts[:place], initial=0), sum(counts[: place + 1])
    return slice([*first][-1], stop)


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """(out, lse) with one more score for each head (H), of no key: all shares shrink."""
    whole = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None].expand_as(lse[0]))
    return (out * torch.exp(lse - whole).unsqueeze(-1)).to(out.dtype), whole


def sink_gradient(dout: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """A sink's share of a query times what it takes from it: -(dout . out), as a key with value zero."""
    taken = (dout.to(lse.dtype) * out).sum(-1) * torch.exp(sinks.to(lse.dtype)[:, None] - lse)
    return -taken.sum((0, 2)).to(sinks.dtype)
