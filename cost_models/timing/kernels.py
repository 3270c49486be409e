"""How long one kernel takes on a device: matrix products, attention, memory-bound operations. Seconds.

    measured device     GEMM and paged prefill: a table in log-log, its edge efficiency held beyond; training attention:
                        a closed form whose efficiency rises with keys per query and tiles per SM to a plateau
    another device      GEMM: launch + (t − launch) · (c⁴·peak ratio + b⁴·bandwidth ratio) / (c⁴ + b⁴),
                        c, b: FLOPs and bytes over the measured device's peaks (roofline form, an estimate with a band)
                        attention: the same form with its own peak, SMs and exponentials a second (SMs · clock · 16)
    CPU                 launch + FLOPs / (share of peak) or bytes / bandwidth, the larger; a profile replaces the shares
    busy board          GEMM grids are timed in bursts; under its power limit a busy board is slower (power_limit.py)
    accumulate          a weight gradient added to a resident buffer: part of the buffer's traffic is not hidden
    grouped             products of one shape in one call: FLOPs and traffic of each add up (grouped.py)
    with samples        any of these × exp(interpolated log(measured / predicted)), see curves/samples.py

Times never fall below FLOPs / peak. Arguments are numbers or arrays that broadcast; a number gives a float.
Left out: launch gaps of an eager framework, strided or batched products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cost_models.curves.samples import FRAMEWORK, SCANS, Correction, Sample
from cost_models.errors import InputError
from cost_models.hardware.device import DTYPE_BYTES, Device
from cost_models.number import Number, larger, pick, smaller, somewhere
from cost_models.timing.attention_kernels import ATTENTION_KERNELS, KERNEL_WORDS, kernel_of
from cost_models.timing.packed import (
    ATTENTION_TIMED,
    TIMED_IN_BURSTS,
    DeviceCurves,
    Facts,
    base_name,
    device_curves,
    limit_share,
    neighbours,
)
from cost_models.timing.power_limit import dtype_share, limited_s, reach
from cost_models.timing.shapes import (
    QUERY_TILE,
    Larger,
    attention_pairs,
    padded_dim,
    tiled,
    unaligned,
    unmasked_share,
)

CLOCKS = ("held", "burst")
OPS = ("gemm", "attention_forward", "attention_backward", "memory_bound")
GENERIC_SHARE = {"gemm": 0.9, "attention_forward": 0.7, "attention_backward": 0.6, "memory_bound": 0.7}
"""Share of peak where nothing was measured: a matrix product on 2 CPU cores and one attention reached about these."""
GENERIC_LAUNCH_S = 5e-6


class Kernels:
    """Kernel times of one device.

    >>> kernels = Kernels.of("h100-sxm-80gb")
    >>> 0.5 < 2 * 8192**3 / kernels.gemm_s(8192, 8192, 8192) / 989.4e12 < 1
    True
    >>> kernels.is_estimate("gemm"), Kernels.of("l20").is_estimate("gemm")
    (False, True)
    """

    _framework: Mapping[str, float] = MappingProxyType({})  # by unit, from a profile
    scans: tuple[Sample, ...] = ()  # of state-space layers, which `layer/ssd.py` reads

    def __init__(
        self, device: Device, base: Device, curves: DeviceCurves | None, clock: str = "held", attention: str = "newest"
    ) -> None:
        if clock not in CLOCKS:
            raise InputError(f"clock={clock!r}; legal: {', '.join(CLOCKS)}")
        if attention not in ATTENTION_KERNELS:
            raise InputError(f"attention={attention!r}; legal: {', '.join(ATTENTION_KERNELS)}")
        self.device = device
        self.base = base
        self._curves = curves
        self._corrections: Mapping[str, Correction] = {}
        self._profiled: Mapping[str, int] = {}
        if curves is not None:
            self._gemm = curves.gemm
            self._busy, self._grouped = curves.busy, curves.grouped
            timed = ATTENTION_TIMED.get(device.name, ATTENTION_TIMED.get(base.name, base.name))
            share = limit_share(device, base, curves)
            self._limit_flops = share * device.peak_16bit if clock == "held" else None
            burst = timed in TIMED_IN_BURSTS
            self._timed_share = math.inf if burst else limit_share(Device.load(timed), base, curves)
            self._unequal = curves.unequal(timed)
            self._dims = curves.head_dims
            self._tables = {t: curves.attention_paged(t) for t in {near.table for near in self._dims}}
            self._longest = float(next(iter(self._tables.values())).axes[0][-1])
            self._floor_s = math.exp(min(float(table.log_s.min()) for table in self._tables.values()))
            self._kernel = kernel_of(device, attention)
            training = [curves.training(part, self._kernel, timed) for part in ("forward", "backward")]
            self._forward, self._backward = training
            assert base.sms is not None and base.exponentials_per_s is not None
            self._sms = device.sms or base.sms
            self._exponentials_per_s = (
                device.exponentials_per_s or base.exponentials_per_s * device.peak_16bit / base.peak_16bit
            )

    @classmethod
    def of(
        cls,
        device: Device | str,
        samples: Sequence[Sample] = (),
        clock: str = "held",
        attention: str = "newest",
    ) -> Kernels:
        """Curves of `device` (a Device or a preset's name), moved onto `samples` where there are any.

        `clock`: "held", products at the power limit of a busy board; "burst", as the GEMM grids were timed.
        `attention`: training's kernel, one of ATTENTION_KERNELS (`attention_kernel` says what it is here).
        """
        device = Device.load(device) if isinstance(device, str) else device
        name = base_name(device)
        base, curves = (Device.load(name), device_curves(name)) if name else (device, None)
        kernels = cls(device, base, curves, clock, attention)
        corrections, profiled = {}, {}
        for op in OPS:
            rows = [sample for sample in samples if sample.op == op]
            if rows:
                corrections[op] = kernels._correction(op, rows)
                profiled[op] = len(rows)
        kernels._corrections, kernels._profiled = corrections, profiled
        kernels.scans = tuple(sample for sample in samples if sample.op in SCANS)
        kernels._framework = {sample.op: sample.median_s for sample in samples if sample.op in FRAMEWORK}
        return kernels

    def gemm_s(self, m: Number, n: Number, k: Number, dtype: str = "bf16", accumulate: str | None = None) -> Number:
        """C[m,n] = A[m,k] B[k,n]; `accumulate`: C is added to a resident buffer of that dtype (a weight gradient).

        n and k are worked on in tiles of TILE; rows of C that do not start at 16 bytes take UNALIGNED times as long. (k
        is tokens in a weight gradient, which lie across the rows that are loaded.)
        """
        larger = _larger(m, n, k)
        flops = 2.0 * m * n * k
        moved = (m * k + n * k + m * n) * float(DTYPE_BYTES[_known(dtype)])
        added = m * n * 2.0 * DTYPE_BYTES[_known(accumulate)] if accumulate else 0.0
        if self._curves is None:
            seconds = self._generic("gemm", flops, moved + added, dtype, larger)
        else:
            read: Any = self._gemm.read if larger is max else self._gemm.read_many
            tiled_n, tiled_k = tiled(n), tiled(k)
            seconds, (cm, cn, ck) = read(m, tiled_n, tiled_k)
            seconds = seconds * (m * tiled_n * tiled_k / (cm * cn * ck)) * unaligned(n, dtype)
            seconds = self._scaled(seconds, flops, moved, dtype)
            if self._limit_flops is not None:
                limit = self._limit_flops * dtype_share(self.device, dtype)
                seconds = self._busy.product_s(seconds, flops, limit)
            seconds = seconds + added * self._busy.exposed / self.device.memory_bytes_per_s
        return larger(self._corrected("gemm", seconds, flops), flops / self.device.peak(dtype))

    def grouped_s(
        self, groups: Number, m: Number, n: Number, k: Number, dtype: str = "bf16", accumulate: str | None = None
    ) -> Number:
        """`groups` products of that shape in one call; one group is a product alone."""
        if self._curves is None or not somewhere(groups > 1):
            return groups * self.gemm_s(m, n, k, dtype, accumulate)
        flops, size = 2.0 * m * n * k, float(DTYPE_BYTES[_known(dtype)])
        moved = (m * k + n * k) * size + m * n * (2.0 * DTYPE_BYTES[_known(accumulate)] if accumulate else size)
        held = self._limit_flops
        limit = self._reached(dtype) if held is None else held * dtype_share(self.device, dtype)
        seconds = self._grouped.group_s(flops, moved, limit, self.device.memory_bytes_per_s)
        seconds = larger(self._corrected("gemm", seconds, flops), flops / self.device.peak(dtype))
        alone = self.gemm_s(m, n, k, dtype, accumulate) if isinstance(groups, np.ndarray) else seconds
        return groups * pick(groups > 1, seconds, alone)

    def attention_s(
        self,
        q_tokens: Number,
        kv_tokens: Number,
        heads: Number,
        kv_heads: Number,
        head_dim: int,
        causal: bool,
        backward: bool = False,
        batch: Number = 1,
        dtype: str = "bf16",
        paged: bool = False,
        value_dim: int | None = None,
        seen: Number = math.inf,
        edges: float = 0.0,
    ) -> Number:
        """One fused attention: `q_tokens` queries on `kv_tokens` keys, `batch` times `heads` query heads.

        `head_dim` of queries and keys, `value_dim` of values (`None` means as wide), as in multi-head latent attention.

        `seen`: keys per query that a window or documents leave. The time stays that of all pairs, at the rate that so
        few keys and `edges` masked edges (a document 1, a window 2) allow; the caller takes the share of the pairs.

        `paged`: the serving kernel that reads a paged cache (forward only); else the contiguous kernel of training.

        Causal is aligned at the end (the last query sees every key), as flash-attn does; the head dim is padded to the
        kernel's tile. The backward is that of the kernel alone: recomputing the scores is in it, the forward is not.
        """
        larger = _larger(q_tokens, kv_tokens, heads, kv_heads, batch)
        pairs = attention_pairs(q_tokens, kv_tokens, causal)
        passes = 2.5 if backward else 1.0
        head_dim, unequal = self._equal_dim(head_dim, value_dim, backward)
        padded = self._padded(head_dim)
        flops = 4.0 * passes * batch * heads * pairs * padded
        size = float(DTYPE_BYTES[_known(dtype)])
        moved = batch * (2 * q_tokens * heads + 2 * kv_tokens * kv_heads) * head_dim * size * (2 if backward else 1)
        op = "attention_backward" if backward else "attention_forward"
        if self._curves is None:
            seconds = self._generic(op, flops, moved, dtype, larger)
        else:
            shape = (q_tokens, kv_tokens, heads, heads / kv_heads, batch, pairs)
            paged = paged and not backward
            peak = self._reached(dtype)
            if paged:
                seconds = self._paged(shape, padded, peak, larger)
            else:
                seconds = self._training(shape, padded, backward, peak, (seen, edges), larger)
            seconds = larger(seconds, moved / self.device.memory_bytes_per_s)
            if self._limit_flops is not None and not paged:
                seconds = self._on_this_board(seconds, flops, dtype)
            seconds = seconds * unequal
        return larger(self._corrected(op, seconds, flops), flops / self.device.peak(dtype))

    def memory_bound_s(self, bytes_moved: Number, launches: Number = 1) -> Number:
        """Norms, activations, residuals, optimizer: `bytes_moved` to and from memory in `launches` kernels."""
        if self._curves is None:
            launch_s, share = GENERIC_LAUNCH_S, GENERIC_SHARE["memory_bound"]
        else:
            launch_s, share = self._curves.memory_bound(self.device.name)
        seconds = launches * launch_s + bytes_moved / (self.device.memory_bytes_per_s * share)
        return self._corrected("memory_bound", seconds, bytes_moved)

    @property
    def measured(self) -> Kernels:
        """The kernels that a profile's samples speak for: these, unless they are others made slower."""
        return self

    def framework_s(self, unit: str) -> float:
        """Host time of a layer, microbatch or step beyond its kernels: a CPU profile's; elsewhere kernels hide it."""
        assert unit in FRAMEWORK
        return self._framework.get(unit, 0.0)

    @property
    def attention_kernel(self) -> str:
        """The kernel of training's attention, in words."""
        if self._curves is None:
            return "PyTorch's"
        return KERNEL_WORDS.get((self.device.architecture, self._kernel), "FlashAttention-2's share of the peak")

    def source(self, op: str) -> str:
        """Where the curve of `op` comes from, in words."""
        if _op(op) in self._profiled:
            return f"measured: profile of this cluster, {self._profiled[op]} samples"
        if self._curves is None:
            share = GENERIC_SHARE[op]
            return f"estimate: {share:.0%} of the peak of {self.device.name} ({self.device.source}); profile it"
        facts = self._facts(op)
        if self.is_estimate(op) and self.device.name == self.base.name:
            return f"estimate: {facts['source']}"
        if self.is_estimate(op):
            band = self._band(self._curves.facts[op])
            words = f"estimate: {self.device.name} scaled from {self.base.name} by data sheet, {band}"
            return f"{words} ({self.device.source}); {facts['source']}"
        return f"measured: {facts['source']}"

    @staticmethod
    def _band(facts: Mapping[str, Mapping[str, float]]) -> str:
        """How wrong measured devices come out when they are scaled so (fit/scaling.py)."""
        return f"±{facts['scaled']['median']:.0%} as a rule, ±{facts['scaled']['p90']:.0%} in one of ten"

    def is_estimate(self, op: str) -> bool:
        """True where no measurement of this device (or its profile) backs `op`."""
        if _op(op) in self._profiled:
            return False
        return self._curves is None or self.device.name not in self._facts(op)["measured_on"]

    def _facts(self, op: str) -> Facts:
        assert self._curves is not None
        own = f"attention_{self._kernel}"
        return self._curves.facts[own if op.startswith("attention") and own in self._curves.facts else op]

    def _equal_dim(self, head_dim: int, value_dim: int | None, backward: bool) -> tuple[int, float]:
        """An equal head dim to read the curve at, and the time of unequal ones over the curve's there.

        Forward: as many FLOPs (scores over `head_dim`, output over `value_dim`); backward: tiles as wide as the wider.
        """
        if value_dim is None or value_dim == head_dim:
            return head_dim, 1.0
        dim = max(head_dim, value_dim) if backward else -(-(head_dim + value_dim) // 2)
        return dim, 1.0 if self._curves is None else self._unequal[backward]

    def _training(
        self,
        shape: tuple[Number, ...],
        padded: int,
        backward: bool,
        peak: float,
        left: tuple[Number, float],
        larger: Larger,
    ) -> Number:
        """The closed form of contiguous kernels (packed.py); `left`: as `attention_s` has `seen` and `edges`."""
        q, kv, heads, _, batch, pairs = shape
        form, passes = (self._backward, 2.5) if backward else (self._forward, 1.0)
        seen, edges = left
        keys = larger(smaller(pairs / larger(q, 1.0), seen), 0.5)
        units = batch * heads * larger(q / QUERY_TILE, 1.0) / self._sms
        scores_s = batch * heads * pairs * form.score_s(padded, passes, peak, self._exponentials_per_s)
        return form.seconds(scores_s, keys, units, larger(1.0 - unmasked_share(q, kv, pairs, larger), edges))

    def _paged(self, shape: tuple[Number, ...], padded: int, peak: float, larger: Larger) -> Number:
        """Map any shape onto square causal prefill of the same FLOPs, query tiles and keys per query."""
        q, _, heads, group, batch, pairs = shape
        square = larger(2.0 * pairs / larger(q, 1.0) - 1.0, 1.0)  # the causal square with as many keys per query
        tokens = smaller(square, self._longest)
        copies = batch * q / tokens
        columns = heads * smaller(copies, 1.0)
        work = batch * heads * pairs
        logs = 0.0
        for near, weight in neighbours(self._dims, padded):
            grid = self._tables[near.table]
            read: Any = grid.read if larger is max else grid.read_many
            seconds, (ct, cb, ch, _) = read(tokens, larger(copies, 1.0), columns, group)
            at_dim = seconds * near.paged * padded / near.table / (cb * ch * ct * (ct + 1) / 2.0)
            logs = logs + weight * (math.log(at_dim) if larger is max else np.log(at_dim))
        found = work * (math.exp(logs) if larger is max else np.exp(logs))
        return larger(found * self._paged_ratio(padded, peak), self._floor_s)

    def _paged_ratio(self, padded: int, peak: float) -> float:
        """A score's time on this device over that on the base, each at its board's limit."""
        base, form, curves = self.base, self._forward, self._curves
        assert curves is not None and base.exponentials_per_s is not None
        if self.device.name == base.name and peak == base.peak_16bit:
            return 1.0
        shares = (limit_share(one, base, curves) for one in (self.device, base))
        rates = ((peak, self._exponentials_per_s), (base.peak_16bit, base.exponentials_per_s))
        own_s, base_s = (
            float(limited_s(form.score_s(padded, 1.0, *rate), 4.0 * padded, share * rate[0]))
            for rate, share in zip(rates, shares, strict=True)
        )
        return own_s / base_s

    def _on_this_board(self, seconds: Number, flops: Number, dtype: str) -> Number:
        """Attention timed in long loops is at its board's power limit, so that only another limit changes it."""
        assert self._limit_flops is not None
        own, theirs = self._limit_flops / self.device.peak_16bit, self._timed_share
        if own == theirs:
            return seconds
        limit = self.device.peak_16bit * dtype_share(self.device, dtype)
        return seconds * (limited_s(seconds, flops, own * limit) / limited_s(seconds, flops, theirs * limit))

    def _scaled(self, base_s: Number, flops: Number, moved: Number, dtype: str) -> Number:
        """A measured device's time carried to this device and dtype by the roofline form."""
        base = self.base
        by_flops = base.peak("bf16") / self._reached(dtype)
        by_bytes = base.memory_bytes_per_s / self.device.memory_bytes_per_s
        if by_flops == 1.0 and by_bytes == 1.0:
            return base_s
        assert self._curves is not None
        launch_s = self._curves.memory_bound(self.device.name)[0]
        compute, memory = (flops / base.peak("bf16")) ** 4, (moved / base.memory_bytes_per_s) ** 4
        ratio = (compute * by_flops + memory * by_bytes) / (compute + memory)
        fixed = smaller(base_s, launch_s)
        return fixed + (base_s - fixed) * ratio

    def _reached(self, dtype: str) -> float:
        return self.device.peak(dtype) * reach(self.device, dtype)

    def _padded(self, head_dim: int) -> int:
        """The head dim that the kernel really works on; CPU kernels do not pad."""
        wide = padded_dim(head_dim)
        return head_dim if self._curves is None else wide

    def _generic(self, op: str, flops: Number, moved: Number, dtype: str, larger: Larger) -> Number:
        compute = flops / (self.device.peak(dtype) * GENERIC_SHARE[op])
        memory = moved / (self.device.memory_bytes_per_s * GENERIC_SHARE["memory_bound"])
        return GENERIC_LAUNCH_S + larger(compute, memory)

    def _corrected(self, op: str, seconds: Number, work: Number) -> Number:
        correction = self._corrections.get(op)
        return seconds if correction is None else seconds * correction.factor(work)

    def _correction(self, op: str, rows: Sequence[Sample]) -> Correction:
        """Predict every sample with the bare curve and keep the ratios."""
        work, base_s = [], []
        for row in rows:
            if op == "gemm":
                m, n, k = row.shape
                work.append(2.0 * m * n * k)
                base_s.append(float(self.gemm_s(m, n, k, row.dtype)))
            elif op == "memory_bound":
                work.append(float(row.bytes))
                base_s.append(float(self.memory_bound_s(row.bytes)))
            else:
                batch, q, kv, heads, kv_heads, dim, causal = row.shape
                backward = op == "attention_backward"
                padded = self._padded(dim)
                passes = 2.5 if backward else 1.0
                work.append(float(4.0 * passes * batch * heads * attention_pairs(q, kv, bool(causal)) * padded))
                seconds = self.attention_s(q, kv, heads, kv_heads, dim, bool(causal), backward, batch, row.dtype)
                base_s.append(float(seconds))
        return Correction(work=work, base_s=base_s, measured_s=[row.median_s for row in rows])


def _larger(*values: Number) -> Larger:
    """`max` for numbers, `np.maximum` if any value is an array."""
    for value in values:
        if isinstance(value, np.ndarray):
            return np.maximum
    return max


def _known(dtype: str) -> str:
    if dtype not in DTYPE_BYTES:
        raise InputError(f"dtype={dtype!r}; legal: {', '.join(DTYPE_BYTES)}")
    return dtype


def _op(op: str) -> str:
    if op not in OPS:
        raise InputError(f"op={op!r}; legal: {', '.join(OPS)}")
    return op
