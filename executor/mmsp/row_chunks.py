"""Attention by chunks of the row, with its projections: project, exchange, attend, send back, then the next tokens.

    forward    chunk i: x -> q, k, v -> to heads; queries see the keys of chunks 0 … i -> back to tokens -> projection
    backward   chunk i, the last one first: x -> q, k, v again; its queries' part of every earlier dK, dV; those of
               chunk i are then complete: dq, dk, dv back to tokens -> gradients of x and of the weights

Kept of a layer are its input here, the result by tokens, and after the exchange keys, values and log-sum-exps; all else
is of one chunk, but for sums of dK and dV (float32, or float64 for float64) in the backward pass. The layout puts a
chunk's tokens of all ranks together, so no query sees a later chunk. Bytes sent, U ranks, (U - 1) / U of: forward q, k,
v and the result; backward q, the result and its gradient, then dq, dk, dv. Documents and windows are tiles, as without
chunks. After Fully Pipelined Distributed Transformer (arXiv 2408.16978), whose keys wait in host memory: not here, and
no ring. Shapes: x (B, S, hidden), q (B, H, n, D) of a chunk's n tokens of a rank, kv (2, B, Ku, T, D), lse (B, Hu, T).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import InputError
from cost_models.layer.heads import HeadSplit
from cost_models.tiles import Tile
from executor.mmsp.compiled import Compiler
from executor.mmsp.exchange import Exchange
from executor.mmsp.head_chunks import key_heads, query_heads, sink_gradient, summed, to_heads, to_tokens, with_sinks
from executor.mmsp.ring import Merged, attend_tile, attend_tile_backward
from executor.mmsp.slices import gradients_by_parts

Tiles = dict[tuple[int, int], tuple[Tile, ...]]
"""Of the queries of one chunk with the keys of another."""


@dataclass(kw_only=True)
class Row:
    """What the chunks of one layer's row share; forward fills it, backward finds it filled."""

    exchange: Exchange
    chunks: int
    tiles: Callable[[int], Tiles]  # for a window
    kv: Tensor = field(default_factory=lambda: torch.empty(0))
    lse: Tensor = field(default_factory=lambda: torch.empty(0))
    out: Tensor = field(default_factory=lambda: torch.empty(0))  # by tokens (B, S, H, D)
    dkv: list[Tensor] = field(default_factory=list)  # of each chunk that has not had its turn in the backward pass

    def keys(self, chunk: int) -> Tensor:
        return self._piece(self.kv, 3, chunk)

    def lses(self, chunk: int) -> Tensor:
        return self._piece(self.lse, 2, chunk)

    def results(self, chunk: int) -> Tensor:
        return self._piece(self.out, 1, chunk)

    def _piece(self, x: Tensor, dim: int, chunk: int) -> Tensor:
        size = x.shape[dim] // self.chunks
        return x.narrow(dim, chunk * size, size)

    def begin(self, q: Tensor, q_now: Tensor, k_now: Tensor) -> None:
        """Room for what all chunks leave behind, in the shape of the first: q by tokens; q_now and k_now by heads."""
        wide = torch.promote_types(q.dtype, torch.float32)
        (batch, heads, own, dim), tokens = q.shape, q_now.shape[2] * self.chunks
        self.out = q.new_empty((batch, own * self.chunks, heads, dim))
        self.kv = k_now.new_empty((2, batch, k_now.shape[1], tokens, dim))
        self.lse = q_now.new_empty((batch, q_now.shape[1], tokens), dtype=wide)


@dataclass(frozen=True, kw_only=True)
class OneChunk:
    """`Attend` of one chunk's tokens, after all chunks before it; `again`: its result is known, and has gradients."""

    row: Row
    place: int
    again: bool = False

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, window: int = 0, sinks: Tensor | None = None
    ) -> Tensor:
        split = HeadSplit(q_heads=q.shape[1], kv_heads=k.shape[1], ulysses=self.row.exchange.size)
        if sinks is not None:
            share = split.shares[self.row.exchange.index]
            sinks = sinks[share.q_start : share.q_stop]
        if self.again:
            known: Tensor = _Known.apply(q, k, v, sinks, self, split, scale, window)
            return known
        return self._first(q, k, v, sinks, split, scale, window)

    def _first(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, split: HeadSplit, scale: float, window: int
    ) -> Tensor:
        row, place = self.row, self.place
        queries, keys = query_heads(split), key_heads(split)
        q_now, k_now, v_now = to_heads([(q, queries), (k, keys), (v, keys)], row.exchange)
        if place == 0:
            row.begin(q, q_now, k_now)
        row.keys(place)[0], row.keys(place)[1] = k_now, v_now
        del k_now, v_now
        tiles, merged = row.tiles(window), Merged.empty(q_now, widen=True)
        for other in (place, *range(place)):  # its own keys come first: every query sees some of them
            for tile in tiles.get((place, other), ()):
                for run in split.runs(row.exchange.index):
                    attend_tile(q_now, row.keys(other), tile, run, scale, merged)
        out, lse = merged.out.to(q.dtype), merged.lse
        if sinks is not None:
            out, lse = with_sinks(out, lse, sinks)
        row.lses(place).copy_(lse)
        (parts,) = to_tokens([(out, queries)], row.exchange)
        result = row.results(place)
        for heads, part in zip(queries, parts, strict=True):
            result[:, :, heads] = part.transpose(1, 2)
        return result


class _Known(torch.autograd.Function):
    """A chunk's result, which is in the row, with its gradients. Chunks come last to first."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, chunk: OneChunk, split: HeadSplit,
        scale: float, window: int,
    ) -> Tensor:  # fmt: skip
        ctx.chunk, ctx.split, ctx.scale, ctx.window = chunk, split, scale, window
        ctx.save_for_backward(q, *(() if sinks is None else (sinks,)))
        return chunk.row.results(chunk.place)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, *sinks = ctx.saved_tensors
        row, place, split = ctx.chunk.row, ctx.chunk.place, ctx.split
        wide, index = torch.promote_types(q.dtype, torch.float32), row.exchange.index
        if not row.dkv:
            row.dkv = [torch.zeros_like(row.keys(other), dtype=wide) for other in range(row.chunks)]
        queries, keys, tiles = query_heads(split), key_heads(split), row.tiles(ctx.window)
        given = [(x, queries) for x in (q, row.results(place).transpose(1, 2), dout.transpose(1, 2))]
        q_now, out, dout_now = to_heads(given, row.exchange)
        saved, dq = (dout_now, q_now, out, row.lses(place)), torch.zeros_like(q_now, dtype=wide)
        for other in range(place + 1):
            for tile in tiles.get((place, other), ()):
                for run in split.runs(index):
                    attend_tile_backward(saved, row.keys(other), tile, run, ctx.scale, dq, row.dkv[other])
        dsinks = sink_gradient(dout_now, out, row.lses(place), sinks[0]) if sinks else None
        del saved, q_now, out, dout_now
        dk, dv = row.dkv.pop().to(q.dtype)
        (of_queries, *of_keys) = to_tokens([(dq.to(q.dtype), queries), (dk, keys), (dv, keys)], row.exchange)
        del dq, dk, dv
        grads = [torch.cat(of_queries, dim=1)]
        for parts in of_keys:
            total = torch.zeros((q.shape[0], split.kv_heads, *q.shape[2:]), dtype=wide, device=q.device)
            for heads, part in summed(keys, parts, wide):
                total[:, heads] += part
            grads.append(total.to(q.dtype))
        return (*grads, dsinks, None, None, None, None)


def attend_in_turn(
    row: Row, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, sinks: Tensor | None
) -> Tensor:
    """All chunks of q, k and v that are there already, without gradients: what a prefill asks for."""
    if torch.is_grad_enabled() and q.requires_grad:
        raise InputError("attention_chunk_tokens needs attention modules that `run_in_row_chunks` was given")
    for place, part in enumerate(_parts(q, row.chunks)):
        here = OneChunk(row=row, place=place)
        here.attend(q[:, :, part], k[:, :, part], v[:, :, part], scale, window=window, sinks=sinks)
    return row.out


def run_in_row_chunks(
    attention: nn.Module, row_of: Callable[[Any], Row | None], compiler: Compiler | None = None
) -> None:
    """Let an attention module of Hugging Face take a row chunk by chunk. `row_of` gives, of the keyword argument
    `mm_sp`, the row to be filled, or `None` where it is taken whole. Parameter names stay."""
    compiler = compiler or Compiler(None)
    forward: Callable[..., tuple[Tensor, ...]] = compiler.compiled(attention.forward)

    def call(hidden_states: Tensor, **given: Any) -> tuple[Tensor, ...]:
        row = None if given.get("past_key_values") is not None else row_of(given.get("mm_sp"))
        if row is None:
            return forward(hidden_states, **given)
        y: Tensor = _RowChunks.apply(hidden_states, attention, forward, row, given, *attention.parameters())
        return y, None  # type: ignore[return-value]

    attention.forward = compiler.apart(call)


class _RowChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, module: nn.Module, forward: Callable[..., Any], row: Row, given: dict[str, Any],
        *weights: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.module, ctx.call, ctx.given = module, forward, given
        ctx.exchange, ctx.chunks, ctx.tiles = row.exchange, row.chunks, row.tiles
        result: Tensor | None = None
        for place, part in enumerate(_parts(x, row.chunks)):
            here = OneChunk(row=row, place=place)
            y = forward(x[:, part], **_of_part(given, part), mm_sp=here)[0]
            if result is None:
                result = y.new_empty((*x.shape[:-1], y.shape[-1]))
            result[:, part] = y
        assert result is not None
        ctx.save_for_backward(x, row.kv, row.lse, row.out)  # not the row: hooks of recomputation see tensors alone
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kv, lse, out = ctx.saved_tensors
        row = Row(exchange=ctx.exchange, chunks=ctx.chunks, tiles=ctx.tiles, kv=kv, lse=lse, out=out)
        parts = [*enumerate(_parts(x, ctx.chunks))]

        def again(place: int, part: slice, given: Tensor) -> Tensor:
            here = OneChunk(row=row, place=place, again=True)
            y: Tensor = ctx.call(given, **_of_part(ctx.given, part), mm_sp=here)[0]
            return y

        calls = [(part, partial(again, place, part)) for place, part in reversed(parts)]
        needed = (ctx.needs_input_grad[0], ctx.needs_input_grad[5:])
        grad_x, of_weights = gradients_by_parts(x, grad, calls, [*ctx.module.parameters()], *needed)
        return (grad_x, None, None, None, None, *of_weights)


def _parts(x: Tensor, chunks: int) -> Sequence[slice]:
    size = x.shape[-2] // chunks
    return [slice(place * size, (place + 1) * size) for place in range(chunks)]


def _of_part(given: dict[str, Any], part: slice) -> dict[str, Any]:
    """The keyword arguments of an attention module for some of its tokens."""
    found = {name: value for name, value in given.items() if name != "mm_sp"}
    if (angles := given.get("position_embeddings")) is not None:  # (cos, sin) by token and dim
        found["position_embeddings"] = tuple(one[..., part, :] for one in angles)
    if (places := given.get("position_ids")) is not None:
        found["position_ids"] = places[..., part]
    return found
