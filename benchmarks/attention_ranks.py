"""What the ranks of `benchmarks.emulated_cluster` run: a profile of their cluster, and every layout, timed in turns.

    profile    kernels on all ranks at once, collectives inside every node at once, send-receive of pairs of nodes by
               all their ranks at once: as many connections share the links, and as many ranks the cores, as in a layout
    layouts    in rounds of a random order: all ranks from one barrier, one attention forward and backward

A layout says which process has each place of the ring x ulysses grid, so one start of the ranks runs all layouts. All
processes read one machine's clock: a layout takes from the first start to the last end. Seconds and bytes.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
import torch.distributed as dist

from benchmarks.namespaces import wire_bytes
from cost_models.curves.samples import Sample
from cost_models.profile import network
from cost_models.token_layout import Layout
from executor.groups import make_groups
from executor.measure.bench import Bench, Order, tiles
from executor.mmsp.attention import MmSp

PATH = "shared-memory"
"""Of the links inside a node, as in the local cluster."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One attention operator, causal, of one row."""

    q_heads: int
    kv_heads: int
    head_dim: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which process stands at each place: `process[ring index][ulysses index]`."""

    name: str
    process: tuple[tuple[int, ...], ...]

    @property
    def ring(self) -> int:
        return len(self.process)

    @property
    def ulysses(self) -> int:
        return len(self.process[0])

    def groups(self) -> Mapping[str, list[list[int]]]:
        """Lists of ranks as in a plan, for `make_groups`."""
        every = [rank for row in self.process for rank in row]
        alone = [[rank] for rank in every]
        return {
            "ulysses": [list(row) for row in self.process],
            "ring": [list(column) for column in zip(*self.process, strict=True)],
            "context": [every],
            "data": alone,
            "shard": alone,
            "replicate": [every],
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Kernels and collectives of a node, and (bytes/s, latency) of each node's card."""

    samples: tuple[Sample, ...]
    cards: tuple[tuple[float, float], ...]


def profile_cluster(
    nodes: int,
    shapes: Sequence[tuple[int, int, int, int]],
    order: Order,
    alike: bool,
    scans: Sequence[tuple[int, int, int, int, int, int]] = (),
) -> Measured:
    """On every rank; `shapes` and `scans` as of a `Bench`. Where cards are `alike` a pair of nodes stands for all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    each = world // nodes
    everyone = dist.group.WORLD
    assert everyone is not None
    bench = Bench(order, world, everyone, torch.device("cpu"))
    if shapes:
        bench.attention(shapes)
    if scans:
        bench.scans(scans)
    bench.memory_bound()
    samples = [replace(sample, ranks=each) for sample in bench.samples]  # a node's load is that of the machine
    _say("kernels measured")
    members = [tuple(range(node * each, (node + 1) * each)) for node in range(nodes)]
    inside = tiles(members)
    if each > 1:
        inner = Bench(order, each, inside[rank // each].group, torch.device("cpu"))
        inner.collectives(inside, rank)
        samples += inner.samples
    _say("links inside the nodes measured")
    pairs = [(0, 1)] if alike else list(combinations(range(nodes), 2))
    rates: dict[tuple[int, int], tuple[float, float]] = {}
    for pair in pairs:
        between, sent = _pair(order, pair, each, rank)
        rates[pair] = between
        samples += sent if alike else []
        _say(f"nodes {pair[0]} and {pair[1]}: {between[0] * 8e-6:.0f} Mbit/s, {between[1] * 1e3:.2f} ms")
    cards = [_card(rates, (0, 1) if alike else (node,)) for node in range(nodes)]
    return Measured(samples=tuple(samples), cards=tuple(cards))


def _pair(order: Order, nodes: tuple[int, int], each: int, rank: int) -> tuple[tuple[float, float], list[Sample]]:
    """((bytes/s, latency), samples) of two nodes whose ranks all send to their counterparts; bytes are a node's."""
    couples = [tuple(node * each + place for node in nodes) for place in range(each)]
    involved = sorted(one for ranks in couples for one in ranks)
    together = dist.new_group(involved)
    groups = tiles(couples)
    samples: list[Sample] = []
    if rank in involved:
        bench = Bench(order, len(involved), together, torch.device("cpu"))
        bench.collectives(groups, rank, ops=("send_recv",))
        samples = [replace(sample, path="network", bytes=each * sample.bytes) for sample in bench.samples]
    told: list[list[Sample]] = [samples]
    dist.broadcast_object_list(told, src=involved[0])
    found = network(tuple(told[0]))
    assert found is not None
    return found, told[0]


def _card(rates: Mapping[tuple[int, int], tuple[float, float]], nodes: tuple[int, ...]) -> tuple[float, float]:
    """The best of the pairs that a node is in: its own card, unless all others are slower."""
    return max(rate for pair, rate in rates.items() if set(nodes) <= set(pair))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Of one rank: when each run of each layout [round][layout] began and ended, and what this node's links sent."""

    spans_s: tuple[tuple[tuple[float, float], ...], ...]
    sent_bytes: tuple[int, ...]  # by layout, of all its runs after the first; of the namespace


def measured(timed: Sequence[Timed], place: int, each: int) -> tuple[tuple[float, ...], float]:
    """(milliseconds by round, MB of a run over all nodes' links) of one layout; `each` ranks share a node's links."""
    rounds = [[one.spans_s[number][place] for one in timed] for number in range(len(timed[0].spans_s))]
    times = tuple(1e3 * (max(end for _, end in spans) - min(start for start, _ in spans)) for spans in rounds)
    return times, sum(one.sent_bytes[place] for one in timed[::each]) / len(rounds) / 1e6


def time_layouts(shape: Shape, grids: Sequence[Grid], rounds: int) -> Timed:
    """On every rank: all layouts, in turns."""
    return in_turns([attention_step(shape, grid) for grid in grids], rounds)


def in_turns(steps: Sequence[Callable[[], object]], rounds: int, inside: bool = False) -> Timed:
    """On every rank: all steps once unmeasured, then `rounds` times in turns of a random order. `inside`: as
    `wire_bytes`."""
    for number, step in enumerate(steps):
        step()
        _say(f"layout {number + 1} of {len(steps)} runs")
    sent, every = [0] * len(steps), []
    shuffled, indices = random.Random(0), list(range(len(steps)))
    for number in range(rounds):
        shuffled.shuffle(indices)
        spans = {}
        for index in indices:
            dist.barrier()
            before, began_s = wire_bytes(inside), time.monotonic()
            steps[index]()
            spans[index] = (began_s, time.monotonic())
            dist.barrier()
            sent[index] += wire_bytes(inside) - before
        every.append(tuple(spans[index] for index in range(len(steps))))
        _say(f"round {number + 1} of {rounds}")
    return Timed(spans_s=tuple(every), sent_bytes=tuple(sent))


def attention_step(shape: Shape, grid: Grid) -> Callable[[], None]:
    """Collective over all ranks: this rank's part of one forward and backward pass under a layout."""
    rank = dist.get_rank()
    groups = make_groups(grid.groups(), rank)
    layout = Layout(tokens=shape.tokens, ulysses=grid.ulysses, ring=grid.ring)
    operator = MmSp(layout=layout, ulysses=groups.ulysses.exchange(), ring=groups.ring.exchange())
    made = torch.Generator().manual_seed(rank)

    def random_heads(heads: int) -> torch.Tensor:
        return torch.randn(1, heads, layout.rank_tokens, shape.head_dim, generator=made)

    q, k, v = (random_heads(heads).requires_grad_() for heads in (shape.q_heads, shape.kv_heads, shape.kv_heads))
    dout = random_heads(shape.q_heads).transpose(1, 2)

    def step() -> None:
        q.grad = k.grad = v.grad = None
        operator.attend(q, k, v, shape.head_dim**-0.5).backward(dout)

    return step


def _say(what: str) -> None:
    if dist.get_rank() == 0:
        print(f"  {what}", file=sys.stderr, flush=True)
