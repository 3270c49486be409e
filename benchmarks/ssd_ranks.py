"""What the ranks of `benchmarks.ssd` run: a profile of their cluster, and every split of it, in turns.

    profile  kernels, convolution and scan on all ranks at once, links inside the nodes and between them
    splits   `executor.mmsp.ssd` from the channels to y and back, in rounds of a random order

One launch measures the links of one cluster and all shapes on it. Seconds and bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.attention_ranks import Grid, Measured, Timed, in_turns, profile_cluster
from cost_models.token_layout import Layout
from executor.groups import Groups, make_groups
from executor.measure.bench import Order
from executor.mmsp.ssd import SsdSplit
from longvila.ssd import Inner

Split = tuple[str, str]
"""How tokens or heads are dealt out, and how states are passed."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One state-space mixer on one row."""

    tokens: int
    heads: int
    head_size: int
    state: int
    conv: int = 4
    chunk: int = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """A shape and the splits that are compared on it."""

    shape: Shape
    splits: tuple[Split, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of one rank: the cluster's profile, and by case the turns."""

    measured: Measured
    timed: tuple[Timed, ...]


def measure(
    grid: Grid,
    kind: str,
    cases: Sequence[Case],
    scans: Sequence[tuple[int, int, int, int, int, int]],
    order: Order,
    rounds: int,
) -> Found:
    """Collective over all ranks; a row of the grid is a node."""
    groups = make_groups(grid.groups(), dist.get_rank())
    measured, timed = profile_cluster(len(grid.process), (), order, True, scans), []
    for number, case in enumerate(cases):
        layout = Layout(tokens=case.shape.tokens, ulysses=grid.ulysses, ring=grid.ring, kind=kind)
        timed.append(in_turns([split_step(case.shape, layout, one, groups) for one in case.splits], rounds))
        _say(f"shape {number + 1} of {len(cases)} measured")
    return Found(measured=measured, timed=tuple(timed))


def _inner(shape: Shape, tokens: int, heads: int) -> Inner:
    made = torch.Generator().manual_seed(dist.get_rank())
    width = shape.head_size + 2 * shape.state

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=made).requires_grad_()

    return Inner(
        channels_BSHW=random(1, tokens, heads, width), a_BSH=random(1, tokens, heads),
        taps_HWK=random(heads, width, shape.conv), skip_H=random(heads), state=shape.state, chunk=shape.chunk,
    )  # fmt: skip


def _leaves(inner: Inner) -> tuple[Tensor, ...]:
    return inner.channels_BSHW, inner.a_BSH, inner.taps_HWK, inner.skip_H


def split_step(shape: Shape, layout: Layout, split: Split, groups: Groups) -> Callable[[], None]:
    """This rank's part of one forward and backward pass of the mixer."""
    ssd = SsdSplit(
        layout=layout, context=groups.context.exchange(), ulysses=groups.ulysses.exchange(),
        ring=groups.ring.exchange(), places=groups.places, split=split[0], way=split[1],
    )  # fmt: skip
    inner = _inner(shape, layout.rank_tokens, shape.heads)
    dy = torch.randn(1, layout.rank_tokens, shape.heads, shape.head_size)

    def step() -> None:
        torch.autograd.grad(ssd.mix(inner, 0), _leaves(inner), dy)

    return step


def _say(what: str) -> None:
    if dist.get_rank() == 0:
        print(f"  {what}", file=sys.stderr, flush=True)
