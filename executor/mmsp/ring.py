"""Ring attention: each rank holds a block of the row; keys and values go round while queries stay.

    step i on ring rank r: attend to block j = (r - i) mod R, while block j - 1 is on its way from rank r - 1

    merge      lse' = log(exp lse + exp lse_b)        out' = out + (out_b - out) * sigmoid(lse_b - lse)
    backward   blocks are recomputed from the saved global out and lse; dK, dV of block j start at rank j + 1, gather
               what ranks up to the last that needs them add, and go home from there

Of a block travels what others need, its part of each document only to the last rank that needs it (`Travel`): blocks
get narrower from hop to hop, and a packed row whose documents lie on one rank each sends nothing. Bytes sent with n(i)
tokens of a block in hop i, K heads, D head dim: forward sum of n(i) * 2KD * b; backward the same for keys and values
again, and with b_grad for their gradients. One document in zigzag: n(i) = T for R - 1 hops. Merging and gradient sums
are in float32 (float64 for float64).
Shapes: q (B, H, T, D), kv (2, B, K, T, D), lse (B, H, T). Leaves out: which tokens a block holds (`token_layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cost_models.layer.heads import Run
from cost_models.tiles import Span, Tile
from cost_models.token_layout import Travel
from executor.mmsp import kernel
from executor.mmsp.exchange import Exchange, Pending


@dataclass(frozen=True, kw_only=True)
class RingWork:
    """What one rank does: for every block the tiles to compute, what travels, and how heads go into a kernel call."""

    exchange: Exchange
    tiles: tuple[tuple[Tile, ...], ...]  # tiles[j]: against ring rank j's block; keys of others as they lie on the way
    travels: tuple[Travel, ...]  # of each block
    runs: tuple[Run, ...]
    scale: float
    grad_dtype: torch.dtype = torch.float32  # of dK and dV on their way; at least that of the inputs if they are wider

    @property
    def index(self) -> int:
        return self.exchange.index

    @property
    def steps(self) -> int:
        """Of the block that travels farthest, with the step at home."""
        return 1 + max(one.hops for one in self.travels)

    @property
    def merges(self) -> bool:
        """Whether a query has several tiles, whose results are then kept in a wider type."""
        return self.steps > 1 or any(not tile.causal for tile in self.tiles[self.index])

    def block_at(self, step: int) -> int | None:
        """The block of which something is here at a step."""
        block = (self.index - step) % self.exchange.size
        return block if self.travels[block].hops >= step else None

    def places(self, block: int, spans: Sequence[Span], step: int) -> list[Span]:
        """Where spans of a block lie in what is here of it at a step."""
        return [self.travels[block].on_the_way(span, step) for span in spans]

    def start_next(self, held: Tensor, step: int) -> Pending:
        """To the next rank what is here at `step` and needed further on, from the one before what is needed here."""
        following, previous = (self.index + 1) % self.exchange.size, (self.index - 1) % self.exchange.size
        mine, coming = self.block_at(step), self.block_at(step + 1)
        send, receive = [], []
        if mine is not None and self.travels[mine].hops > step:
            send.append((following, picked(held, self.places(mine, self.travels[mine].legs[step], step))))
        if coming is not None:
            receive.append((previous, self._like(held, self.travels[coming].tokens(step + 1))))
        return self.exchange.start_transfer(send, receive)

    def start_gradient(self, dkv: Tensor, step: int, like: Tensor) -> tuple[Pending, tuple[Span, ...]]:
        """The gradient of what is here at `step` to the next rank, as far as that needs the keys, the rest of it home.
        What arrives is that of this rank's block where it has been to its last rank (then these spans of it), and that
        of the block here at the next step."""
        size, send, receive = self.exchange.size, list[tuple[int, Tensor]](), list[tuple[int, Tensor]]()
        mine, coming = self.block_at(step), self.block_at(step + 1)
        if mine is not None:
            travel = self.travels[mine]
            further = travel.legs[step] if travel.hops > step else ()
            for to, spans in (((self.index + 1) % size, further), (mine, travel.ending(step))):
                if spans:
                    send.append((to, picked(dkv, self.places(mine, spans, step))))
        done = self.travels[self.index].ending(step)
        if done:
            receive.append(((self.index + step) % size, self._like(like, _tokens(done))))
        if coming is not None:
            receive.append(((self.index - 1) % size, self._like(like, self.travels[coming].tokens(step + 1))))
        return self.exchange.start_transfer(send, receive), done

    def _like(self, kv: Tensor, tokens: int) -> Tensor:
        return kv.new_empty((*kv.shape[:3], tokens, kv.shape[4]))


def _tokens(spans: Sequence[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def picked(kv: Tensor, spans: Sequence[Span]) -> Tensor:
    """Spans of a block end to end; the block itself if they are all of it."""
    if _tokens(spans) == kv.shape[3]:
        return kv
    parts = [kv[:, :, :, start:stop] for start, stop in spans]
    return torch.cat(parts, dim=3) if len(parts) > 1 else parts[0].contiguous()


def add_spans(to: Tensor, grad: Tensor, spans: Sequence[Span]) -> None:
    """Add the gradient of what `picked` took of a block to the block's."""
    at = 0
    for start, stop in spans:
        to[:, :, :, start:stop] += grad[:, :, :, at : at + stop - start]
        at += stop - start


def ring_forward(q: Tensor, kv: Tensor, work: RingWork) -> tuple[Tensor, Tensor]:
    """(out, lse) of this rank's queries over all the keys that they may see; out has q's dtype."""
    steps = work.steps
    accumulated = Merged.empty(q, widen=work.merges)
    held = kv
    for step in range(steps):
        following = work.start_next(held, step) if step + 1 < steps else None
        block = work.block_at(step)
        for tile in work.tiles[block] if block is not None else ():
            for run in work.runs:
                attend_tile(q, held, tile, run, work.scale, accumulated)
        if following:
            held = next(iter(following.wait()), held)
    return accumulated.out.to(q.dtype), accumulated.lse


def ring_backward(
    dout: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, work: RingWork
) -> tuple[Tensor, Tensor]:
    """(dq, dkv) in the dtypes of q and kv."""
    steps = work.steps
    wide = torch.promote_types(q.dtype, torch.float32)
    travel_dtype = torch.promote_types(work.grad_dtype, q.dtype)
    saved = (dout, q, out, lse)
    dq = torch.zeros(q.shape, dtype=wide if work.merges else q.dtype, device=q.device)
    home = torch.zeros(kv.shape, dtype=dq.dtype, device=kv.device)
    held, like = kv, home[:, :, :, :0].to(travel_dtype)
    arriving: tuple[Pending, tuple[Span, ...]] | None = None
    for step in range(steps):
        following = work.start_next(held, step) if step + 1 < steps else None
        block = work.block_at(step)
        dkv = home if step == 0 else torch.zeros(held.shape, dtype=wide, device=kv.device)
        for tile in work.tiles[block] if block is not None else ():
            for run in work.runs:
                attend_tile_backward(saved, held, tile, run, work.scale, dq, dkv)
        if step:
            _take(arriving, home, dkv)
            arriving = None  # what it holds is not needed beside the next
            arriving = work.start_gradient(dkv.to(travel_dtype), step, like)
        if following:
            held = next(iter(following.wait()), held)
    del held, dkv  # or they would be alive beside the results
    _take(arriving, home, home)
    arriving = None
    return dq.to(q.dtype), home.to(kv.dtype)


def _take(arriving: tuple[Pending, tuple[Span, ...]] | None, home: Tensor, dkv: Tensor) -> None:
    """Add the gradients that have arrived: to this rank's block, and to what is here of another now."""
    if arriving is None:
        return
    pending, done = arriving
    grads = pending.wait()
    if done:
        add_spans(home, grads.pop(0), done)
    for grad in grads:
        dkv += grad


@dataclass(frozen=True)
class Merged:
    """The result so far of every query. This rank's block comes first: in it every query sees at least itself."""

    out: Tensor
    lse: Tensor

    @classmethod
    def empty(cls, q: Tensor, *, widen: bool) -> Merged:
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


def attend_tile(q: Tensor, kv: Tensor, tile: Tile, run: Run, scale: float, into: Merged) -> None:
    """Attend from a tile's queries to its keys, and merge the result into `into` by log-sum-exp."""
    heads, kv_heads = slice(run.q_start, run.q_stop), slice(run.kv_start, run.kv_stop)
    queries, keys = slice(*tile.q), slice(*tile.kv)
    k, v = kv[:, :, kv_heads, keys]
    shape = kernel.Block(tile.causal, tile.lead, tile.window)
    block = kernel.forward(q[:, heads, queries], k, v, block=shape, scale=scale)
    # Causal tiles are the first of this rank's block, which comes first; of each query there is one.
    into.add(heads, queries, block, first=tile.causal)


def attend_tile_backward(
    saved: Sequence[Tensor], kv: Tensor, tile: Tile, run: Run, scale: float, dq: Tensor, dkv: Tensor
) -> None:
    """Add a tile's gradients to those of its queries, keys and values."""
    heads, kv_heads = slice(run.q_start, run.q_stop), slice(run.kv_start, run.kv_stop)
    queries, keys = slice(*tile.q), slice(*tile.kv)
    dout, q, out, lse = (x[:, heads, queries] for x in saved)
    k, v = kv[:, :, kv_heads, keys]
    shape = kernel.Block(tile.causal, tile.lead, tile.window)
    grad = kernel.backward(dout, q, k, v, out, lse, block=shape, scale=scale)
    dq[:, heads, queries] += grad.dq
    dkv[0][:, kv_heads, keys] += grad.dk
    dkv[1][:, kv_heads, keys] += grad.dv
