"""The packed curves of the devices that were measured, and which of them a device is scaled from.

One .npz per measured architecture (tables of log-seconds in float32) and one .json beside it with the source of each
operation, the presets that it was measured on, and the error on shape families left out of the fit. Read once, kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cost_models.curves.grid import LogGrid, unpack
from cost_models.curves.samples import Correction

FOLDER = Path(__file__).parent
BASES = {
    "ampere": "a100-sxm-80gb",
    "ada": "a100-sxm-80gb",
    "hopper": "h100-sxm-80gb",
    "cdna3": "h100-sxm-80gb",
    "blackwell": "b200-sxm-180gb",
}
"""Architecture -> the measured device that its members are scaled from. A CPU has none."""


@dataclass(frozen=True)
class DeviceCurves:
    """What was fitted for one measured device."""

    name: str
    arrays: Mapping[str, Any]

    @cached_property
    def gemm(self) -> LogGrid:
        """Seconds by (m, n, k)."""
        return self._grid("gemm", 3)

    def attention_forward(self, table: int) -> LogGrid:
        """Seconds of causal prefill by (tokens, batch, heads, group), for one measured head dim."""
        return self._grid(f"attention_{table}", 4)

    @property
    def head_dims(self) -> list[tuple[int, int, float, float]]:
        """(head dim, the table it is read from, forward and backward time at equal FLOPs over that table's)."""
        return [(int(d), int(t), float(f), float(b)) for d, t, f, b in self.arrays["head_dims"]]

    @property
    def backward(self) -> tuple[float, float, float, float]:
        """launch_s, slowness over peak, half-keys, half-units of the closed form (see fit/attention.py)."""
        launch_s, slow, keys, units = self.arrays["backward"].tolist()
        return launch_s, slow, keys, units

    @property
    def full_over_causal(self) -> float:
        """Unmasked time over causal time at the same pairs and keys per query."""
        return float(self.arrays["full_over_causal"])

    @cached_property
    def contiguous(self) -> Correction:
        """By mean keys per query: a training kernel's time over that of the paged prefill the tables hold."""
        keys, log_ratio = self.arrays["contiguous"]
        return Correction(
            work=keys.tolist(), base_s=[1.0] * len(keys), measured_s=np.exp(log_ratio).tolist(), keep_order=False
        )

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
        return LogGrid(axis_arrays, np.asarray(self.arrays[name], np.float64))


@cache
def device_curves(name: str) -> DeviceCurves:
    """The packed curves of one of BASES' devices."""
    return DeviceCurves(name, unpack(FOLDER / f"{name}.npz"))
