"""The packed curves of the devices that were measured, and which of them a device is scaled from.

One .npz per measured architecture (tables of log-seconds) and one .json of the same name with the source of each
operation, the presets that it was measured on, and the error on shape families left out of the fit. Read once, kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from msgspec import Struct

from cost_models.curves.grid import LogGrid, unpack
from cost_models.hardware.device import Device
from cost_models.number import Array, Number
from cost_models.timing.grouped import Grouped
from cost_models.timing.power_limit import Busy, limit_flops

Facts = dict[str, Any]
"""What a fit says of one operation: numbers, lists of devices, and errors by kind."""
FOLDER = Path(__file__).parents[1] / "curves"
BASES = {
    "volta": "a100-sxm-80gb",
    "turing": "a100-sxm-80gb",
    "ampere": "a100-sxm-80gb",
    "ada": "a100-sxm-80gb",
    "hopper": "h100-sxm-80gb",
    "cdna2": "a100-sxm-80gb",
    "cdna3": "h100-sxm-80gb",
    "cdna4": "h100-sxm-80gb",
    "gaudi": "a100-sxm-80gb",
    "blackwell": "b200-sxm-180gb",
}
"""Architecture -> the measured device that its members are scaled from. A CPU has none."""
BASES_BY_NAME = {
    "l40s": "l40s",
    "rtx6000-ada": "l40s",
    "rtx5090": "a100-sxm-80gb",
    "rtx6000-pro": "a100-sxm-80gb",
}
"""Other devices than their architecture's: L40S was measured, and its grid is held back by its 350 W, which boards of
half its peak are not; the small Blackwell chips multiply by Ampere's instructions, not by B200's."""
LIMITED_BY = {**BASES, "ada": "l40s"}
"""Architecture -> the curves that its boards' power limit is scaled from."""

BUSY_BOARDS = {
    "a100-sxm-80gb": "a100-pcie-80gb",
    "h100-sxm-80gb": "h100-sxm-80gb",
    "l40s": "l40s",
    "b200-sxm-180gb": "b200-sxm-180gb",
}
"""Measured device -> the board on which products were timed in long runs."""
ATTENTION_TIMED = {"gb200": "gb200", "gb300": "gb300", "b300": "gb300", "l40s": "a100-sxm-80gb"}
"""Device -> the board on which its training attention was timed, where that is not the base of its architecture: of its
own chip, or for Ada, whose FlashAttention-2 is A100's."""
TIMED_IN_BURSTS = ("b200-sxm-180gb",)
"""Boards whose rows of training attention end before the board is at its power limit; others' loops were long."""


class HeadDim(Struct, frozen=True, kw_only=True):
    """How paged attention at one head dim is read."""

    dim: int
    table: int  # the head dim of the paged table to read
    paged: float  # time per FLOP over that table's


class Training(Struct, frozen=True, kw_only=True):
    """The closed form of a contiguous attention kernel (fit/attention.py), in shares that hold for any board."""

    launch_s: float
    reached: float  # share of the peak at which the products of a score run, forward or backward
    exponentials: float  # a score's time beyond its products, counted in exponentials
    half_keys: float
    half_units: float
    diagonal: float  # keys per query that a causal mask's diagonal tiles lose
    tail: float  # query tiles per SM that uneven causal tiles lose
    at_256: float  # time per FLOP at head dim 256 over 128's

    def products_s(self, head_dim: Number, passes: float, peak_flops: float) -> Number:
        """Seconds of one score's products."""
        return 4 * passes * head_dim / (peak_flops * self.reached)

    def score_s(self, head_dim: int, passes: float, peak_flops: float, exponentials_per_s: float) -> float:
        """Seconds of one score on a board of that peak and so many exponentials a second.

        >>> numbers = {"half_keys": 0, "half_units": 0, "diagonal": 0, "tail": 0, "at_256": 1.1}
        >>> form = Training(launch_s=0, reached=0.5, exponentials=1.0, **numbers)
        >>> [round(form.score_s(dim, 1.0, 1e15, 4e12) * 1e12, 3) for dim in (64, 128, 256)]
        [0.762, 1.274, 2.803]
        """
        plain = float(self.products_s(min(head_dim, 128), passes, peak_flops)) + self.exponentials / exponentials_per_s
        if head_dim <= 128:
            return plain
        return float(plain * head_dim / 128 * self.at_256 ** min(math.log2(head_dim / 128), 1.0))

    def seconds(self, scores_s: Number, keys: Number, units: Number, masked: Number) -> Number:
        """Of so many scores_s; `keys` per query; query tiles per SM; `masked`: 1 for a causal square, 0 if full."""
        by_keys = 1 + (self.half_keys + self.diagonal * masked) / keys
        return self.launch_s + scores_s * by_keys * (1 + (self.half_units + self.tail * masked) / units)


@dataclass(frozen=True)
class DeviceCurves:
    """What was fitted for one measured device."""

    name: str
    arrays: Mapping[str, Array]

    @cached_property
    def gemm(self) -> LogGrid:
        """Seconds by (m, n, k)."""
        return self._grid("gemm", 3)

    def attention_paged(self, table: int) -> LogGrid:
        """Seconds of causal prefill by (tokens, batch, heads, group), for one measured head dim."""
        return self._grid(f"attention_{table}", 4)

    @property
    def head_dims(self) -> list[HeadDim]:
        """The head dims whose paged time is known, smallest first."""
        return [HeadDim(dim=int(d), table=int(t), paged=ratio) for d, t, ratio in self.arrays["head_dims"].tolist()]

    def training(self, part: str, kernel: str, board: str) -> Training:
        """`part`: forward or backward; `kernel`: newest, fa2, cudnn; `board`: this one, or one of ATTENTION_TIMED's."""
        name = f"{part}_{board if kernel == 'newest' else kernel}"
        values = self.arrays.get(name, self.arrays[part]).tolist()
        return Training(**dict(zip(Training.__struct_fields__, values, strict=True)))

    @property
    def busy(self) -> Busy:
        """What long runs do to products, of the board BUSY_BOARDS names."""
        limit, slow, exposed = self.arrays["busy"].tolist()
        return Busy(limit_flops=limit, slow=slow, exposed=exposed)

    def unequal(self, board: str) -> tuple[float, float]:
        """Attention with 192-wide keys and 128-wide values over the curve of an equal head dim: forward, backward."""
        forward, backward = self.arrays.get(f"unequal_{board}", self.arrays["unequal"]).tolist()
        return forward, backward

    @property
    def grouped(self) -> Grouped:
        """What products of one shape take in one call, of the same board."""
        slow, exposed, call_s = self.arrays["grouped"].tolist()
        return Grouped(slow=slow, exposed=exposed, call_s=call_s)

    def memory_bound(self, device: str) -> tuple[float, float]:
        """launch_s, and the reached share of the memory bandwidth: the device's own where it was timed."""
        launch_s, share = self.arrays.get(f"memory_bound_{device}", self.arrays["memory_bound"]).tolist()
        return launch_s, share

    @cached_property
    def facts(self) -> dict[str, Facts]:
        """Per operation: source, measured_on, and the left-out errors."""
        loaded: dict[str, Facts] = json.loads((FOLDER / f"{self.name}.json").read_text())
        return loaded

    def _grid(self, name: str, axes: int) -> LogGrid:
        axis_arrays = [self.arrays[f"{name}_axis{i}"] for i in range(axes)]
        return LogGrid(axis_arrays, self.arrays[name])


def base_name(device: Device) -> str | None:
    """The measured device that `device` is read or scaled from; `None` for a CPU."""
    return BASES_BY_NAME.get(device.name, BASES.get(device.architecture))


@cache
def device_curves(name: str) -> DeviceCurves:
    """The packed curves of one of BASES' devices."""
    return DeviceCurves(name, unpack(FOLDER / f"{name}.npz"))


def limit_share(board: Device, base: Device, curves: DeviceCurves) -> float:
    """Share of its 16-bit peak that a busy board sustains, by the curves of its architecture."""
    name = LIMITED_BY[board.architecture]
    if name != base.name:
        base, curves = Device.load(name), device_curves(name)
    measured = limit_flops(board, base, Device.load(BUSY_BOARDS[base.name]), curves.busy.limit_flops)
    return measured / board.peak_16bit


def neighbours(dims: Sequence[HeadDim], padded: int) -> list[tuple[HeadDim, float]]:
    """The known head dims below and above `padded` and their weights in log."""
    below = [row for row in dims if row.dim <= padded] or [dims[0]]
    above = [row for row in dims if row.dim >= padded] or [dims[-1]]
    low, high = below[-1], above[0]
    if low.dim == high.dim:
        return [(low, 1.0)]
    share = math.log(padded / low.dim) / math.log(high.dim / low.dim)
    return [(low, 1.0 - share), (high, share)]
