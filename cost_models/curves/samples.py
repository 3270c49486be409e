"""Measured samples (a user's profile) laid over a curve: times move to the samples, the curve's form carries on.

    t(work) = base(work) × exp(c(log work)),   c = piecewise linear through log(measured / base), held beyond the ends

`work` is what an operation grows with: FLOPs, or bytes. Samples of equal work are merged by their median and made
rising first, so that a noisy sample cannot make more work cheaper. Few samples are enough: 5 to 30 per operation.
Shapes by op: gemm (m, n, k); attention_forward and attention_backward (batch, q, kv, heads, kv_heads, head_dim,
causal); scan_forward and scan_backward (tokens, heads, head_size, state, taps, chunk) of a state-space layer's
convolution and scan; memory_bound () with `bytes` moved; collectives () with `ranks`, `path` (a link) and `bytes` (wire
bytes per rank).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cost_models.errors import InputError
from cost_models.hardware.links import LINKS
from cost_models.number import Number, distinct
from cost_models.strict import nearest

FRAMEWORK = (
    "framework_layer", "framework_microbatch", "framework_step", "framework_tower", "framework_tower_byte",
)  # fmt: skip
"""Host time that no kernel explains (Python, autograd, sharding's bookkeeping), forward and backward together: of a
layer, microbatch and step; of a tower's block each call after a microbatch's first, and each byte that it moves (norms
and a GELU take a CPU longer than sums do)."""
FORWARD_SHARE = 1 / 3
"""Of a layer's host time, as of its matrix products."""
SCANS = ("scan_forward", "scan_backward")
SHAPE_LENGTHS = {
    **dict.fromkeys((*FRAMEWORK, "memory_bound"), 0),
    "gemm": 3,
    "attention_forward": 7,
    "attention_backward": 7,
    **dict.fromkeys(SCANS, 6),
}
COLLECTIVES = ("all_to_all", "all_gather", "reduce_scatter", "all_reduce", "send_recv")
NETWORK = "network"
"""The path of messages between nodes."""
LONGEST_S = 86_400.0
"""Of one sample, a day."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measured median."""

    op: str
    median_s: float
    shape: tuple[int, ...] = ()
    dtype: str = "bf16"
    ranks: int = 1
    path: str = ""
    bytes: float = 0.0
    iqr_s: float = 0.0  # spread of the repetitions, for the reader

    def __post_init__(self) -> None:
        what, collective = f"sample {self.op} {self.shape}", self.op in COLLECTIVES
        if not collective and self.op not in SHAPE_LENGTHS:
            raise InputError(f"sample {self.op!r}: no such op; {nearest(self.op, (*SHAPE_LENGTHS, *COLLECTIVES))}")
        if self.path not in ("", NETWORK, *LINKS):
            raise InputError(f"{what}: path={self.path!r}; {nearest(self.path, (NETWORK, *LINKS))}")
        if not 0 < self.median_s <= LONGEST_S:
            raise InputError(f"{what}: median_s={self.median_s} must be above 0 and at most {LONGEST_S:g}")
        for name, least in (("ranks", 2 if collective else 1), ("bytes", 0), ("iqr_s", 0)):
            if (given := getattr(self, name)) < least:
                raise InputError(f"{what}: {name}={given} must be at least {least}")
        expected = SHAPE_LENGTHS.get(self.op)
        if expected is not None and len(self.shape) != expected:
            raise InputError(
                f"sample {self.op}: shape {self.shape} has {len(self.shape)} numbers; {expected} are needed"
            )
        if (self.op == "memory_bound" or expected is None) and self.bytes <= 0:
            raise InputError(f"sample {self.op}: bytes={self.bytes} must be above 0")
        self._check_shape(what)

    def _check_shape(self, what: str) -> None:
        attention = self.op.startswith("attention")
        if min(self.shape[:-1] if attention else self.shape, default=1) < 1:
            raise InputError(f"{what}: its sizes must be at least 1")
        if attention:
            _, queries, keys, heads, kv_heads, _, causal = self.shape
            if causal not in (0, 1) or heads % kv_heads or (causal and queries > keys):
                raise InputError(
                    f"{what}: causal must be 0 or 1, heads a multiple of kv_heads, causal queries at most the keys"
                )


class Correction:
    """The factor exp(c(log work)).

    >>> c = Correction(work=[1.0, 4.0], base_s=[1.0, 2.0], measured_s=[2.0, 4.0])
    >>> round(c.factor(2.0), 6), c.factor(np.zeros(1)).round(6).tolist(), round(c.factor(0.0), 6)
    (2.0, [2.0], 2.0)
    """

    def __init__(self, *, work: Sequence[float], base_s: Sequence[float], measured_s: Sequence[float]) -> None:
        logs = np.log(np.array([work, base_s, measured_s], np.float64))
        self._work = distinct(logs[0])
        merged = np.array([[np.median(row[logs[0] == w]) for row in logs[1:]] for w in self._work]).T
        measured = np.minimum.accumulate(merged[1][::-1])[::-1] / 2 + np.maximum.accumulate(merged[1]) / 2
        self._shift = measured - merged[0]
        self._x, self._y = self._work.tolist(), self._shift.tolist()

    def factor(self, work: Number) -> Number:
        """At one amount of work (float), or many (array)."""
        if isinstance(work, np.ndarray):
            with np.errstate(divide="ignore"):  # no work is below the least that was measured
                return np.asarray(np.exp(np.interp(np.log(work), self._work, self._shift)))
        x, xs, ys = math.log(work) if work else -math.inf, self._x, self._y
        i = bisect_right(xs, x)
        if i == 0 or i == len(xs):
            return math.exp(ys[0] if i == 0 else ys[-1])
        share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
        return math.exp(ys[i - 1] * (1 - share) + ys[i] * share)
