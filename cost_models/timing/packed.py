"""The packed curves of the devices that were measured, and which of them a device is scaled from.

One .npz per measured architecture (tables of log-seconds) and one .json of the same name with the source of each
operation, the presets that it was measured on, and the error on shape families left out of the fit. Read once, kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from msgspec import Struct

from cost_models.curves.grid import LogGrid, unpack
from cost_models.number import Array
from cost_models.timing.grouped import Grouped
from cost_models.timing.power_limit import Busy

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


BUSY_BOARDS = {
    "a100-sxm-80gb": "a100-pcie-80gb",
    "h100-sxm-80gb": "h100-sxm-80gb",
    "b200-sxm-180gb": "b200-sxm-180gb-capped",
}
"""Measured device -> the board on which products were timed in long runs."""


class HeadDim(Struct, frozen=True, kw_only=True):
    """How paged attention at one head dim is read."""

    dim: int
    table: int  # the head dim of the paged table to read
    paged: float  # time per FLOP over that table's


class Training(Struct, frozen=True, kw_only=True):
    """The closed form of a contiguous attention kernel (fit/attention.py)."""

    launch_s: float
    slow: float  # of a score over the peak, at head dim 128
    half_keys: float
    half_units: float
    unmasked: float
    softmax: float  # share of a score's time at head dim 128 that does not shrink with the head dim
    at_256: float

    def width(self, head_dim: int) -> float:
        """Time per FLOP over that of head dim 128.

        >>> form = Training(launch_s=0, slow=0, half_keys=0, half_units=0, unmasked=1, softmax=0.25, at_256=1.1)
        >>> form.width(64), form.width(128), form.width(512)
        (1.25, 1.0, 1.1)
        """
        if head_dim <= 128:
            return 1 - self.softmax + self.softmax * 128 / head_dim
        return float(self.at_256 ** min(math.log2(head_dim / 128), 1.0))


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

    def training(self, part: str, kernel: str) -> Training:
        """`part`: forward or backward; `kernel`: newest or fa2."""
        name = f"{part}_fa2" if kernel == "fa2" and f"{part}_fa2" in self.arrays else part
        values = self.arrays[name].tolist()
        return Training(**dict(zip(Training.__struct_fields__, values, strict=True)))

    @property
    def busy(self) -> Busy:
        """What long runs do to products, of the board BUSY_BOARDS names."""
        limit, slow, exposed = self.arrays["busy"].tolist()
        return Busy(limit_flops=limit, slow=slow, exposed=exposed)

    def unequal(self, same_board: bool) -> tuple[float, float]:
        """Attention with 192-wide keys and 128-wide values over the curve of an equal head dim, forward and backward.

        `same_board`: of the board that BUSY_BOARDS names; else of the one that the curve is of.
        """
        forward, backward = self.arrays["unequal"][int(same_board)].tolist()
        return forward, backward

    @property
    def grouped(self) -> Grouped:
        """What products of one shape take in one call, of the same board."""
        slow, exposed, call_s = self.arrays["grouped"].tolist()
        return Grouped(slow=slow, exposed=exposed, call_s=call_s)

    @property
    def memory_bound(self) -> tuple[float, float]:
        """launch_s, and the reached share of the memory bandwidth."""
        launch_s, share = self.arrays["memory_bound"].tolist()
        return launch_s, share

    @cached_property
    def facts(self) -> dict[str, Facts]:
        """Per operation: source, measured_on, and the left-out errors."""
        loaded: dict[str, Facts] = json.loads((FOLDER / f"{self.name}.json").read_text())
        return loaded

    def _grid(self, name: str, axes: int) -> LogGrid:
        axis_arrays = [self.arrays[f"{name}_axis{i}"] for i in range(axes)]
        return LogGrid(axis_arrays, self.arrays[name])


@cache
def device_curves(name: str) -> DeviceCurves:
    """The packed curves of one of BASES' devices."""
    return DeviceCurves(name, unpack(FOLDER / f"{name}.npz"))
