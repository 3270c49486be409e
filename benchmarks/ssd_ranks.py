"""What the ranks of `benchmarks.ssd` run: the curves of their links, the scan alone, and every split of it, in turns.

    links    all-to-all and all-gather over each axis, all its groups at once; send-receive inside a node, and across
    scan     convolution and scan of a rank's tokens and heads, forward and backward, on all ranks at once
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

from benchmarks.attention_ranks import Grid, Timed, in_turns
from cost_models.curves.samples import Sample
from cost_models.ssd_messages import runs, scanned
from cost_models.token_layout import Layout
from executor.groups import Groups, make_groups
from executor.measure.measuring import Bench, Order
from executor.mmsp.ssd import SsdSplit
from longvila.ssd import Inner, mix

SIZES = (2**11, 2**14, 2**17, 2**19)
"""Bytes of a rank's buffer."""
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
    """Of one rank: links (`path` is the axis, "inside" or "across"), scans by case and kind of split, and turns."""

    links: tuple[Sample, ...]
    scan_s: tuple[dict[str, float], ...]
    timed: tuple[Timed, ...]


def measure(grid: Grid, kind: str, cases: Sequence[Case], order: Order, rounds: int) -> Found:
    """Collective over all ranks."""
    groups = make_groups(grid.groups(), dist.get_rank())
    links = _links(groups, order)
    scans, timed = [], []
    for number, case in enumerate(cases):
        layout = Layout(tokens=case.shape.tokens, ulysses=grid.ulysses, ring=grid.ring, kind=kind)
        scans.append({split: _scan_s(case.shape, layout, split, groups, order) for split, _ in case.splits})
        timed.append(in_turns([split_step(case.shape, layout, one, groups) for one in case.splits], rounds))
        _say(f"shape {number + 1} of {len(cases)} measured")
    return Found(links=links, scan_s=tuple(scans), timed=tuple(timed))


def _links(groups: Groups, order: Order) -> tuple[Sample, ...]:
    everyone = dist.group.WORLD
    assert everyone is not None
    bench = Bench(order, dist.get_world_size(), everyone, torch.device("cpu"))
    for axis in (groups.context, groups.ulysses, groups.ring):
        if axis.size == 1:
            continue
        exchange, others = axis.exchange(), axis.size - 1
        for size in SIZES:
            rows = torch.zeros(axis.size, max(1, size // 4 // axis.size))
            part, counts = torch.zeros(size // 4), [1] * axis.size
            sent = {"all_to_all": float(rows[0].nbytes * others), "all_gather": float(part.nbytes * others)}
            bench.add(
                lambda rows=rows, counts=counts, exchange=exchange: exchange.all_to_all(rows, counts, counts),
                op="all_to_all", path=axis.name, bytes=sent["all_to_all"],
            )  # fmt: skip
            bench.add(
                lambda part=part, exchange=exchange: exchange.all_gather(part),
                op="all_gather", path=axis.name, bytes=sent["all_gather"],
            )  # fmt: skip
        _say(f"links of {axis.name} measured")
    for name, pair in (("inside", (0, 1)), ("across", (0, groups.context.size - 1))):
        _pair(bench, groups, name, pair)
    return tuple(bench.samples)


def _pair(bench: Bench, groups: Groups, name: str, pair: tuple[int, int]) -> None:
    """A message from one member to another, then one back, as a chain sends them; the others wait."""
    exchange, me = groups.context.exchange(), groups.context.index
    for size in SIZES:
        sent, got = torch.zeros(size // 4), torch.zeros(size // 4)

        def message(sent: Tensor = sent, got: Tensor = got) -> None:
            for one, other in (pair, pair[::-1]):
                exchange.start_transfer(
                    [(other, sent)] if me == one else [], [(one, got)] if me == other else []
                ).wait()

        # The mean over ranks counts those that wait as nothing.
        share = len(pair) / groups.context.size
        bench.add(message, op="send_recv", path=name, bytes=float(size), shape=(len(pair), groups.context.size))
        last = bench.samples.pop()
        scale = 1 / (2 * share)
        bench.samples.append(
            Sample(op=last.op, shape=last.shape, dtype=last.dtype, ranks=2, path=name, bytes=last.bytes,
                   median_s=last.median_s * scale, iqr_s=last.iqr_s * scale)
        )  # fmt: skip


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


def _scan_s(shape: Shape, layout: Layout, split: str, groups: Groups, order: Order) -> float:
    """Seconds of what this rank computes under a split, forward and backward, with nothing sent."""
    ranks = {"states": 1, "mixed": layout.ulysses, "heads": groups.context.size}[split]
    member = {"states": groups.context.index, "mixed": groups.ring.index, "heads": 0}[split]
    index = scanned(layout, split, groups.places)[member]
    lengths = [span.stop - span.start for span in runs(index)]
    inner = _inner(shape, len(index), shape.heads // ranks)
    positions, first = torch.from_numpy(index)[None], inner.channels_BSHW[:, : shape.conv - 1].detach()
    dy = torch.randn(1, len(index), shape.heads // ranks, shape.head_size)

    def step() -> None:
        y, _ = mix(inner, positions, lengths, [first] * len(lengths), lambda own, _: torch.zeros_like(own))
        torch.autograd.grad(y, _leaves(inner), dy)

    everyone = dist.group.WORLD
    assert everyone is not None
    bench = Bench(order, groups.context.size, everyone, torch.device("cpu"))
    bench.add(step, op="memory_bound", bytes=1.0)
    return bench.samples[0].median_s


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
