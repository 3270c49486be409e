"""The packed curves of the devices that were measured, and which of them a device is scaled from.

One .npz per measured architecture (tables of log-seconds) and one .json beside it with the source of each
operation, the presets that it was measured on, and the error on shape families left out of the fit. Read once, kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from cost_models.curves.grid import LogGrid, unpack

FOLDER = Path(__file__).parent
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


@dataclass(frozen=True, kw_only=True)
class HeadDim:
    """How attention at one head dim is read: time at equal FLOPs over that of another head dim."""

    dim: int
    table: int  # the head dim of the paged table to read
    paged: float  # over that table's
    forward: float  # training kernels: over head dim 128's
    forward_fa2: float
    backward: float


@dataclass(frozen=True)
class DeviceCurves:
    """What was fitted for one measured device."""

    name: str
    arrays: Mapping[str, Any]

    @cached_property
    def gemm(self) -> LogGrid:
        """Seconds by (m, n, k)."""
        return self._grid("gemm", 3)

    def attention_paged(self, table: int) -> LogGrid:
        """Seconds of causal prefill by (tokens, batch, heads, group), for one measured head dim."""
        return self._grid(f"attention_{table}", 4)

    @property
    def head_dims(self) -> list[HeadDim]:
        """The head dims whose time is known, smallest first."""
        return [
            HeadDim(
                dim=int(row[0]), table=int(row[1]), paged=row[2], forward=row[3], forward_fa2=row[4], backward=row[5]
            )
            for row in self.arrays["head_dims"].tolist()
        ]

    def training(self, part: str, kernel: str) -> tuple[float, ...]:
        """launch_s, slowness over peak, half-keys, half-units, unmasked ratio of the closed form (fit/attention.py)."""
        name = f"{part}_fa2" if kernel == "fa2" and f"{part}_fa2" in self.arrays else part
        return tuple(self.arrays[name].tolist())

    @property
    def held(self) -> float:
        """GEMM time at the clock that a busy device holds, over the time in short bursts that the table has."""
        return float(self.arrays["held"])

    @property
    def memory_bound(self) -> tuple[float, float]:
        """launch_s, and the reached share of the memory bandwidth."""
        launch_s, share = self.arrays["memory_bound"].tolist()
        return launch_s, share

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Per operation: source, measured_on, and the left-out errors."""
        loaded: dict[str, dict[str, Any]] = json.loads((FOLDER / f"{self.name}.json").read_text())
        return loaded

    def _grid(self, name: str, axes: int) -> LogGrid:
        axis_arrays = [self.arrays[f"{name}_axis{i}"] for i in range(axes)]
        return LogGrid(axis_arrays, self.arrays[name])


@cache
def device_curves(name: str) -> DeviceCurves:
    """The packed curves of one of BASES' devices."""
    return DeviceCurves(name, unpack(FOLDER / f"{name}.npz"))
