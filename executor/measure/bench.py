"""How one rank times calls that all ranks of a load make at once, and the kernels and collectives of a profile.

    time of a call = window / calls, all ranks from one barrier, mean over ranks; median and IQR over the windows

A window holds many calls: processes that share cores are switched every few milliseconds, which one short call would
not see. Seconds and bytes; fp32 on CPU, bf16 on CUDA.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cost_models.curves.samples import COLLECTIVES, Sample
from cost_models.timing.collectives import wire_bytes
from cost_models.token_layout import Layout
from executor.mmsp import kernel
from executor.mmsp.exchange import Alone, GroupExchange
from executor.mmsp.ssd import SsdSplit
from longvila.ssd import Inner

GEMMS = ((64, 128, 128), (256, 128, 128), (256, 256, 128), (1024, 128, 128), (128, 128, 1024), (1024, 256, 128),
         (2048, 264, 128), (4096, 256, 256), (1024, 1024, 1024))  # fmt: skip
GPU_GEMMS = ((256, 1024, 1024), (1024, 4096, 4096), (4096, 4096, 4096), (8192, 14336, 4096), (8192, 128256, 4096))
ATTENTIONS = ((128, 8, 4, 16), (256, 8, 4, 16), (512, 8, 4, 16), (1024, 8, 4, 16), (2048, 8, 4, 16))
GPU_ATTENTIONS = ((1024, 32, 8, 128), (4096, 32, 8, 128), (16384, 32, 8, 128), (32768, 8, 2, 128))
SCANS = ((256, 4, 16, 16, 4, 64), (1024, 4, 16, 16, 4, 64), (1024, 8, 32, 32, 4, 64), (2048, 8, 32, 32, 4, 64))
GPU_SCANS = ((2048, 32, 64, 64, 4, 128), (8192, 32, 128, 128, 4, 128), (32768, 32, 128, 128, 4, 128))
"""Tokens, heads, head size, state, taps and chunk of a state-space layer's mixer."""
MOVED = (2**12, 2**15, 2**18, 2**20, 2**22, 2**24)
BUFFERS = (2**10, 2**14, 2**18, 2**21)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to measure: seconds of a window, windows of a sample, and how many ranks measure at once."""

    window_s: float
    windows: int
    loads: tuple[int, ...]  # divisors of the number of ranks
    cores: int
    path: str  # the link that collectives use
    cuda: bool
    timeout_s: float = 600.0


class Tile(NamedTuple):
    """Ranks that a collective is measured over."""

    ranks: tuple[int, ...]
    group: dist.ProcessGroup


class Bench:
    """One load: `ranks` processes of `group` measure together."""

    def __init__(self, order: Order, ranks: int, group: dist.ProcessGroup, device: torch.device) -> None:
        self.order, self.ranks, self.group, self.device = order, ranks, group, device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.samples: list[Sample] = []

    def add(self, call: Callable[[], Any], **sample: Any) -> None:
        """Time a call that all ranks make and keep the sample; `ranks` is the load unless the sample says otherwise."""
        self.add_in_turns([(call, sample)])

    def add_in_turns(self, calls: Sequence[tuple[Callable[[], Any], Mapping[str, Any]]]) -> None:
        """The same of several calls, a window of each after the other and again: what passes slows all alike."""
        for call, _ in calls:
            call()
        counts = [self._calls(call) for call, _ in calls]
        windows = [
            [self.window_s(call, count) for (call, _), count in zip(calls, counts, strict=True)]
            for _ in range(self.order.windows)
        ]
        name = "fp32" if self.dtype == torch.float32 else "bf16"
        for number, (_, sample) in enumerate(calls):
            low, middle, high = np.percentile([one[number] for one in windows], [25, 50, 75])
            given = {"ranks": self.ranks, "dtype": name, **sample}
            self.samples.append(Sample(median_s=float(middle), iqr_s=float(high - low), **given))

    def _calls(self, call: Callable[[], Any]) -> int:
        """Calls that fill a window: the same number on every rank."""
        one_s = max(self.window_s(call, 2), 1e-7)
        return max(1, min(20000, round(self.order.window_s / one_s)))

    def window_s(self, call: Callable[[], Any], count: int) -> float:
        """Seconds of one call, mean over ranks."""
        dist.barrier(group=self.group)
        began_s = time.perf_counter()
        for _ in range(count):
            call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        mine_s = torch.tensor((time.perf_counter() - began_s) / count, dtype=torch.float64, device=self.device)
        dist.all_reduce(mine_s, group=self.group)
        return float(mine_s) / self.ranks

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def gemms(self) -> None:
        for m, n, k in GEMMS if self.device.type == "cpu" else GPU_GEMMS:
            a, b = self.random(m, k), self.random(k, n)
            self.add(lambda a=a, b=b: a @ b, op="gemm", shape=(m, n, k))  # type: ignore[misc]

    def attention(self, shapes: Sequence[tuple[int, int, int, int]] = ()) -> None:
        """Causal blocks of (tokens, heads, KV heads, head dim); without `shapes` those of a profile."""
        for tokens, heads, kv_heads, dim in shapes or (ATTENTIONS if self.device.type == "cpu" else GPU_ATTENTIONS):
            q, k = self.random(1, heads, tokens, dim), self.random(1, kv_heads, tokens, dim)
            shape = (1, tokens, tokens, heads, kv_heads, dim, 1)

            def forward(q: Tensor = q, k: Tensor = k, scale: float = dim**-0.5) -> kernel.BlockOut:
                return kernel.forward(q, k, k, block=kernel.Block(causal=True), scale=scale)

            done = forward()

            def backward(
                q: Tensor = q, k: Tensor = k, done: kernel.BlockOut = done, scale: float = dim**-0.5
            ) -> kernel.BlockGrad:
                return kernel.backward(q, q, k, k, done.out, done.lse, block=kernel.Block(causal=True), scale=scale)

            self.add(forward, op="attention_forward", shape=shape)
            self.add(backward, op="attention_backward", shape=shape)

    def scans(self, shapes: Sequence[tuple[int, int, int, int, int, int]] = ()) -> None:
        """Convolution and scan of a state-space layer as a split of one rank runs them, with what it takes of the host
        each time, in turns; backward is both ways less the way forward."""
        calls: list[tuple[Callable[[], Any], Mapping[str, Any]]] = []
        for shape in shapes or (SCANS if self.device.type == "cpu" else GPU_SCANS):
            tokens, heads, size, state, taps, chunk = shape
            channels, a = self.random(1, tokens, heads, size + 2 * state), self.random(1, tokens, heads)
            weights = self.random(heads, size + 2 * state, taps), self.random(heads)
            leaves = [one.requires_grad_() for one in (channels, a, *weights)]
            inner = Inner(
                channels_BSHW=channels, a_BSH=a, taps_HWK=weights[0], skip_H=weights[1], state=state, chunk=chunk
            )
            layout, dy = Layout(tokens=tokens, ulysses=1, ring=1), self.random(1, tokens, heads, size)
            split = SsdSplit(layout=layout, context=Alone(), ulysses=Alone(), ring=Alone(), places=((0, 0),))

            def forward(inner: Inner = inner, split: SsdSplit = split) -> Tensor:
                return split.mix(inner, 0)

            def both(forward: Callable[[], Tensor] = forward, leaves: list[Tensor] = leaves, dy: Tensor = dy) -> None:
                torch.autograd.grad(forward(), leaves, dy)

            calls += [
                (forward, {"op": "scan_forward", "shape": shape}),
                (both, {"op": "scan_backward", "shape": shape}),
            ]
        self.add_in_turns(calls)
        for place in range(len(self.samples) - len(calls), len(self.samples), 2):
            once, whole = self.samples[place : place + 2]
            backward_s = max(whole.median_s - once.median_s, whole.median_s / 2)
            self.samples[place + 1] = replace(whole, median_s=backward_s)

    def memory_bound(self) -> None:
        width = self.dtype.itemsize
        for moved in MOVED if self.device.type == "cpu" else (*MOVED, 2**27, 2**30):
            a = self.random(max(1, moved // (3 * width)))
            self.add(lambda a=a: torch.add(a, a), op="memory_bound", bytes=float(moved))  # type: ignore[misc]

    def collectives(
        self,
        groups: Sequence[Tile],
        rank: int,
        ops: Sequence[str] = COLLECTIVES,
    ) -> None:
        """Time the collectives; all groups of one size run at once."""
        ranks, group = next(tile for tile in groups if rank in tile.ranks)
        members, index = len(ranks), ranks.index(rank)
        exchange = GroupExchange(group=group, ranks=ranks, index=index)
        for size in BUFFERS if self.device.type == "cpu" else (*BUFFERS, 2**24, 2**27):
            count = max(members, size // self.dtype.itemsize // members * members)
            full = torch.zeros(count, dtype=self.dtype, device=self.device)
            other, part = torch.empty_like(full), torch.zeros(count // members, dtype=self.dtype, device=self.device)
            following, previous = (index + 1) % members, (index - 1) % members

            def shift(full: Tensor = full, other: Tensor = other, to: int = following, by: int = previous) -> None:
                exchange.start_transfer([(to, full)], [(by, other)]).wait()

            each = [count // members] * members

            calls: dict[str, Callable[[], Any]] = {
                "all_to_all": lambda w=full, e=each: exchange.all_to_all(w, e, e),  # type: ignore[misc]
                "all_gather": lambda w=full, p=part: dist.all_gather_single(w, p, group=group),  # type: ignore[misc]
                "reduce_scatter": lambda w=full, p=part: dist.reduce_scatter_single(p, w, group=group),  # type: ignore[misc]
                "all_reduce": lambda w=full: dist.all_reduce(w, group=group),  # type: ignore[misc]
                "send_recv": shift,
            }
            for op in ops:
                wire = float(wire_bytes(op, members, count * self.dtype.itemsize))
                self.add(calls[op], op=op, ranks=members, path=self.order.path, bytes=wire, shape=(self.ranks,))


def tiles(several: Sequence[tuple[int, ...]]) -> list[Tile]:
    """Collective over the world: groups of these ranks; every rank makes all of them."""
    return [Tile(ranks, dist.new_group(list(ranks))) for ranks in several]
