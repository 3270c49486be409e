"""How wrong a device is that nobody measured: measured ones predicted from another by the data sheets.

    H100's rows from A100's curves, B200's (and GB200's) from H100's, through the same scaling as any unmeasured device
The band that an estimate states is the median error over both steps; each is one generation, so it is what to expect of
a new one and more than to expect of a sibling (H200 from H100). Products are compared at the burst clock, as timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cost_models.curves.grid import Floats
from cost_models.hardware.device import Device
from cost_models.timing.kernels import Kernels
from cost_models.timing.packed import DeviceCurves
from validation.fit import devices, rows

STEPS = (("h100-sxm-80gb", "a100-sxm-80gb"), ("b200-sxm-180gb", "h100-sxm-80gb"))


def errors(folder: Path, fitted: Mapping[str, Mapping[str, Any]]) -> dict[str, Floats]:
    """Signed relative errors by operation, over STEPS; `fitted`: packed arrays by device."""
    found: dict[str, list[Floats]] = {}
    recipes = {recipe.device: recipe for recipe in devices.RECIPES}
    for name, base in STEPS:
        curves = DeviceCurves(base, fitted[base])
        for op, signed in _step(folder, recipes[name], curves).items():
            found.setdefault(op, []).append(signed)
    return {op: np.concatenate(parts) for op, parts in found.items()}


def _step(folder: Path, recipe: devices.Recipe, curves: DeviceCurves) -> dict[str, Floats]:
    base = Device.load(curves.name)
    timed = Kernels(Device.load(recipe.device), base, curves, clock="burst")
    m, n, k, seconds = rows.gemm(folder, recipe.gemm_file).T
    found = {"gemm": timed.gemm_s(m, n, k) / seconds - 1}
    training = devices.training_rows(folder, recipe)
    kernels = Kernels(Device.load(recipe.training_device), base, curves)
    for op, part in (("attention_forward", training.forward), ("attention_backward", training.backward)):
        predicted = [
            kernels.attention_s(s, s, heads, kv, int(dim), bool(causal), op == "attention_backward", batch)
            for batch, s, heads, kv, dim, causal, _ in part
        ]
        found[op] = np.array(predicted) / part[:, 6] - 1
    ideal, seconds = devices.memory_rows(folder, recipe).T
    launch_s, share = curves.memory_bound
    found["memory_bound"] = (launch_s + ideal / share) / seconds - 1
    return found
