"""Ring attention: each rank holds a block of the row; keys and values go round while queries stay.

    step i on ring rank r: attend to block j = (r - i) mod R, while block j - 1 is on its way from rank r - 1

    merge      lse' = log(exp lse + exp lse_b)        out' = out + (out_b - out) * sigmoid(lse_b - lse)
    backward   blocks are recomputed from the saved global out and lse; dK, dV of block j start at rank j + 1, gather
               what ranks j + 1, …, j - 1 add, and come home in R - 1 hops; what rank j adds to its block is never sent

Bytes sent per rank, T block tokens, K heads, D head dim: forward (R-1) * 2TKD * b; backward the same for keys and
values again, and (R-1) * 2TKD * b_grad. Merging and gradient sums are in float32 (float64 for float64).
Shapes: q (B, H, T, D), kv (2, B, K, T, D), lse (B, H, T). Leaves out: which tokens a block holds (`layout.tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cost_models.layer.heads import Run
from cost_models.token_layout import Tile
from executor.mmsp import kernel
from executor.mmsp.exchange import Exchange


@dataclass(frozen=True, kw_only=True)
class RingWork:
    """What one rank does: for every other block the tiles to compute, and how heads are grouped in a kernel call."""

    exchange: Exchange
    tiles: tuple[tuple[Tile, ...], ...]  # tiles[j]: against the block of ring rank j
    runs: tuple[Run, ...]
    scale: float
    grad_dtype: torch.dtype = torch.float32  # of dK and dV on their way; at least that of the inputs if they are wider

    def block_at(self, step: int) -> int:
        return (self.exchange.index - step) % self.exchange.size


def ring_forward(q: Tensor, kv: Tensor, work: RingWork) -> tuple[Tensor, Tensor]:
    """(out, lse) of this rank's queries over all the keys that they may see; out has q's dtype."""
    steps = work.exchange.size
    accumulated = _Merged.empty(q, widen=steps > 1)
    for step in range(steps):
        following = work.exchange.start_shift(kv) if step + 1 < steps else None
        for tile in work.tiles[work.block_at(step)]:
            for run in work.runs:
                _attend(q, kv, tile, run, work.scale, accumulated)
        if following:
            kv = following.wait()
    return accumulated.out.to(q.dtype), accumulated.lse


def ring_backward(
    dout: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, work: RingWork
) -> tuple[Tensor, Tensor]:
    """(dq, dkv) in the dtypes of q and kv."""
    steps = work.exchange.size
    wide = torch.promote_types(q.dtype, torch.float32)
    travel_dtype = torch.promote_types(work.grad_dtype, q.dtype)
    saved = (dout, q, out, lse)
    dq = torch.zeros(q.shape, dtype=wide if steps > 1 else q.dtype, device=q.device)
    home = torch.zeros(kv.shape, dtype=wide if steps > 1 else kv.dtype, device=kv.device)
    arriving = None
    for step in range(steps):
        following = work.exchange.start_shift(kv) if step + 1 < steps else None
        dkv = home if step == 0 else torch.zeros_like(home)
        for tile in work.tiles[work.block_at(step)]:
            for run in work.runs:
                _attend_backward(saved, kv, tile, run, work.scale, dq, dkv)
        if step > 0:
            travelling = dkv if arriving is None else dkv.add_(arriving.wait())
            arriving = work.exchange.start_shift(travelling.to(travel_dtype))
        if following:
            kv = following.wait()
    if arriving:
        home += arriving.wait()
    return dq.to(q.dtype), home.to(kv.dtype)


@dataclass(frozen=True)
class _Merged:
    """The result so far of every query. This rank's block comes first: in it every query sees at least itself."""

    out: Tensor
    lse: Tensor

    @classmethod
    def empty(cls, q: Tensor, *, widen: bool) -> _Merged:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty(q.shape, dtype=wide if widen else q.dtype, device=q.device)
        return cls(out, torch.empty(q.shape[:-1], dtype=wide, device=q.device))

    def add(self, heads: slice, queries: slice, block: kernel.BlockOut, first: bool) -> None:
        out, lse = self.out[:, heads, queries], self.lse[:, heads, queries]
        if first:
            out.copy_(block.out)
            lse.copy_(block.lse)
            return
        weight = torch.sigmoid(block.lse - lse)
        out.lerp_(block.out.to(out.dtype), weight.unsqueeze(-1))
        lse.copy_(torch.logaddexp(lse, block.lse))


def _attend(q: Tensor, kv: Tensor, tile: Tile, run: Run, scale: float, into: _Merged) -> None:
    heads, kv_heads = slice(run.q_start, run.q_stop), slice(run.kv_start, run.kv_stop)
    queries, keys = slice(*tile.q), slice(*tile.kv)
    k, v = kv[:, :, kv_heads, keys]
    block = kernel.forward(q[:, heads, queries], k, v, causal=tile.causal, scale=scale)
    # Causal tiles are those of this rank's block, which comes first.
    into.add(heads, queries, block, first=tile.causal)


def _attend_backward(
    saved: Sequence[Tensor], kv: Tensor, tile: Tile, run: Run, scale: float, dq: Tensor, dkv: Tensor
) -> None:
    heads, kv_heads = slice(run.q_start, run.q_stop), slice(run.kv_start, run.kv_stop)
    queries, keys = slice(*tile.q), slice(*tile.kv)
    dout, q, out, lse = (x[:, heads, queries] for x in saved)
    k, v = kv[:, :, kv_heads, keys]
    grad = kernel.backward(dout, q, k, v, out, lse, causal=tile.causal, scale=scale)
    dq[:, heads, queries] += grad.dq
    dkv[0][:, kv_heads, keys] += grad.dk
    dkv[1][:, kv_heads, keys] += grad.dv
