"""Convolution and scan of a state-space layer for some heads at a time, which backward makes again.

    forward    for each piece of a rank's heads: convolution -> scan, states passed on -> its part of y
    backward   for each piece: the same again with the states that it was entered with, then its gradients

Kept are what enters (channels, decays, halos) and the entry states, so that of all that the scan makes, tokens x heads
x chunk numbers among it, one piece is alive at a time. The gradient of a piece's channels takes their place, which
nobody reads again (a second backward pass is refused by autograd). The price is the forward pass once more and a
message for each piece; nothing is sent again. Shapes: B rows, S tokens, H heads, W channels, K taps, G stretches,
P head size. Leaves out: exchanges of heads by pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from executor.mmsp.state_passing import Passing
from longvila.ssd import Carry, Inner, mix

Given = tuple[Tensor, ...]
"""Channels [B, S, H, W], decays [B, S, H], taps [H, W, K], skips [H], halos [G, B, K - 1, H, W]."""
HEADS = (2, 2, 0, 0, 3)
"""The axis of heads of each."""


class Scan(NamedTuple):
    """What all pieces share."""

    positions_BS: Tensor
    lengths: Sequence[int]
    passing: Passing
    state: int
    chunk: int
    pieces: int

    def made(self, given: Given, carry: Carry) -> Tensor:
        """y [B, S, H, P]."""
        channels, a, taps, skip, before = given
        inner = Inner(channels_BSHW=channels, a_BSH=a, taps_HWK=taps, skip_H=skip, state=self.state, chunk=self.chunk)
        return mix(inner, self.positions_BS, self.lengths, list(before), carry)[0]

    def heads(self, of_all: int) -> Iterator[slice]:
        """Of each piece; the first ones have one more where they do not divide."""
        each, more = divmod(of_all, min(self.pieces, of_all))
        start = 0
        for piece in range(min(self.pieces, of_all)):
            stop = start + each + (piece < more)
            yield slice(start, stop)
            start = stop


class HeadPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scan: Scan, *given: Tensor) -> Tensor:
        channels_BSHW, entries = given[0], []
        out = channels_BSHW.new_empty((*channels_BSHW.shape[:-1], channels_BSHW.shape[-1] - 2 * scan.state))

        def carry(own: Tensor, decay: Tensor) -> Tensor:
            entries.append(scan.passing.entries(own, decay))
            return entries[-1]

        for heads in scan.heads(channels_BSHW.shape[2]):
            out[:, :, heads] = scan.made(_piece(given, heads), carry)
        ctx.scan = scan
        ctx.save_for_backward(*given, *entries)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scan, saved = ctx.scan, ctx.saved_tensors  # a checkpoint around gives them once
        given, entries = saved[: len(HEADS)], saved[len(HEADS) :]
        totals = [given[0].detach(), *(torch.empty_like(one) for one in given[1:])]
        for heads, known in zip(scan.heads(given[0].shape[2]), entries, strict=True):
            leaves = tuple(one.detach().requires_grad_() for one in _piece(given, heads))
            with torch.enable_grad():
                y = scan.made(leaves, lambda own, decay, known=known: scan.passing.again(own, decay, known))
            parts = torch.autograd.grad(y, leaves, grad[:, :, heads])
            for total, part in zip(_piece(totals, heads), parts, strict=True):
                total.copy_(part)
            del y, parts  # or they would be alive beside the next piece
        return None, *totals


def _piece(given: Sequence[Tensor], heads: slice) -> Given:
    return tuple(
        one.narrow(axis, heads.start, heads.stop - heads.start) for one, axis in zip(given, HEADS, strict=True)
    )
