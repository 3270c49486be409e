"""Attention with a window over a split row: keys that another rank's queries reach back to go to that rank alone.

    forward    the halo of every other rank is sent, that of this one comes | own tiles | tiles with what came
    backward   the same once more; gradients of what came go home while nothing waits for them but the sum

A key is sent to each rank whose queries reach it: with a window no longer than a chunk of the row to one, so a rank
of a zigzag row sends 2 (window - 1) keys whatever the ring's size. Bytes, n keys, K heads, D head dim: forward
2nKD * b; backward the same again and 2nKD * b_grad. Shapes as in `ring`, whose tiles and merging these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cost_models.layer.heads import Run
from cost_models.tiles import Span, Tile
from executor.mmsp.exchange import Exchange, Pending
from executor.mmsp.ring import (
    Merged,
    RingWork,
    add_spans,
    attend_tile,
    attend_tile_backward,
    picked,
    ring_backward,
    ring_forward,
)


@dataclass(frozen=True, kw_only=True)
class HaloWork:
    """What one rank does: as `RingWork`, with what it gives to which member, and how many keys come from which."""

    exchange: Exchange
    tiles: tuple[tuple[Tile, ...], ...]  # tiles[j]: against member j's block; keys of others as they come
    gives: tuple[tuple[int, tuple[Span, ...]], ...]
    takes: tuple[tuple[int, int], ...]
    runs: tuple[Run, ...]
    scale: float
    grad_dtype: torch.dtype = torch.float32

    @property
    def own(self) -> Sequence[Tile]:
        return self.tiles[self.exchange.index]

    @property
    def merges(self) -> bool:
        return bool(self.takes) or any(not tile.causal for tile in self.own)

    def start(self, kv: Tensor) -> Pending:
        """Keys and values to whom needs them, and what this rank needs."""
        send = [(member, picked(kv, spans)) for member, spans in self.gives]
        return self.exchange.start_transfer(send, [(member, _like(kv, tokens)) for member, tokens in self.takes])


def halo_forward(q: Tensor, kv: Tensor, work: HaloWork) -> tuple[Tensor, Tensor]:
    """(out, lse) of this rank's queries over all the keys that they may see; out has q's dtype."""
    pending, merged = work.start(kv), Merged.empty(q, widen=work.merges)
    for tile in work.own:
        for run in work.runs:
            attend_tile(q, kv, tile, run, work.scale, merged)
    for (member, _), held in zip(work.takes, pending.wait(), strict=True):
        for tile in work.tiles[member]:
            for run in work.runs:
                attend_tile(q, held, tile, run, work.scale, merged)
    return merged.out.to(q.dtype), merged.lse


def halo_backward(
    dout: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, work: HaloWork
) -> tuple[Tensor, Tensor]:
    """(dq, dkv) in the dtypes of q and kv."""
    pending, wide = work.start(kv), torch.promote_types(q.dtype, torch.float32)
    travel_dtype, saved = torch.promote_types(work.grad_dtype, q.dtype), (dout, q, out, lse)
    dq = torch.zeros(q.shape, dtype=wide if work.merges else q.dtype, device=q.device)
    home = torch.zeros(kv.shape, dtype=wide if work.merges or work.gives else kv.dtype, device=kv.device)
    for tile in work.own:
        for run in work.runs:
            attend_tile_backward(saved, kv, tile, run, work.scale, dq, home)
    send: list[tuple[int, Tensor]] = []
    for (member, _), held in zip(work.takes, pending.wait(), strict=True):
        dkv = torch.zeros(held.shape, dtype=wide, device=kv.device)
        for tile in work.tiles[member]:
            for run in work.runs:
                attend_tile_backward(saved, held, tile, run, work.scale, dq, dkv)
        send.append((member, dkv.to(travel_dtype)))
    coming = [
        (member, _like(home, sum(span.stop - span.start for span in spans)).to(travel_dtype))
        for member, spans in work.gives
    ]
    for (_, spans), grad in zip(work.gives, work.exchange.start_transfer(send, coming).wait(), strict=True):
        add_spans(home, grad, spans)
    return dq.to(q.dtype), home.to(kv.dtype)


def _like(kv: Tensor, tokens: int) -> Tensor:
    return kv.new_empty((*kv.shape[:3], tokens, kv.shape[4]))


def row_forward(q: Tensor, kv: Tensor, work: RingWork | HaloWork) -> tuple[Tensor, Tensor]:
    """Round the ring, or with a window by halos."""
    return halo_forward(q, kv, work) if isinstance(work, HaloWork) else ring_forward(q, kv, work)


def row_backward(
    dout: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, work: RingWork | HaloWork
) -> tuple[Tensor, Tensor]:
    """The gradients of either."""
    if isinstance(work, HaloWork):
        return halo_backward(dout, q, kv, out, lse, work)
    return ring_backward(dout, q, kv, out, lse, work)
