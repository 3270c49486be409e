"""Attention whose keys are wider than its values (192 and 128: DeepSeek's), over the curve at an equal head dim.

    ratio = measured / curve, least squares in log; the curve forward at the head dim with as many FLOPs, backward at
            the wider one
    A100    Transformer Engine on A100 PCIe, 4 rows each way (SimuMax)            H100    no rows: 1
    B200    cuDNN on GB200, 20 rows each way; on the board of BUSY_BOARDS Transformer Engine, 10 (SimuMax)
A board below its architecture's usual limit loses more here than where values are as wide, in the forward the more the
longer a kernel is (0.95 of the curve at 0.1 ms, 1.2 at 0.7 ms, 1.7 at 0.5 s): that board takes its own ratio. SimuMax
timed from an operator's first kernel to its last: TRACED_GAP_S of the forward is the host's time between a small kernel
and the attention. Rows below LONG_S are left out, as for products. Left out: other pairs of head dims.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cost_models.curves.grid import Floats
from cost_models.hardware.device import Device
from cost_models.timing.kernels import Kernels
from cost_models.timing.packed import BUSY_BOARDS, DeviceCurves
from validation.fit import rows
from validation.fit.busy import LONG_S

TRACED_GAP_S = {"B200-SXM": 30e-6}
"""By board: rows at head dim 128 (8 to 64 heads, 4,096 tokens) take 23 to 43 us more than the curve, whatever their
length, in the forward alone."""
PARTS = ("fwd", "bwd")
TIMED = {
    "a100-sxm-80gb": (("a100-pcie-80gb", "A100-PCIe-80GB"),),
    "h100-sxm-80gb": (),
    "b200-sxm-180gb": (("gb200", "NVIDIA GB200"), (BUSY_BOARDS["b200-sxm-180gb"], "B200-SXM")),
}
"""Curve -> the boards that were timed, as presets and as the files name them: the curve's own first."""


def fit(folder: Path, name: str, arrays: dict[str, Floats]) -> Floats:
    """Forward and backward ratio, of the curve's own board and of the busy one."""
    found = [[_mean(ratios(folder, name, arrays, board, part)) for part in PARTS] for board in TIMED[name]]
    return np.array([found[0], found[-1]] if found else [[1.0, 1.0], [1.0, 1.0]])


def ratios(folder: Path, name: str, arrays: dict[str, Floats], board: tuple[str, str], part: str) -> Floats:
    """Measured over the curve's seconds."""
    preset, gpu = board
    plain = DeviceCurves(name, {**arrays, "unequal": np.ones((2, 2))})
    kernels, found = Kernels(Device.load(preset), Device.load(name), plain), []
    gap_s = TRACED_GAP_S.get(gpu, 0.0) if part == "fwd" else 0.0
    for batch, tokens, heads, kv, keys, values, causal, seconds in rows.unequal_attention(folder, gpu, part):
        curve_s = kernels.attention_s(
            tokens, tokens, heads, kv, int(keys), bool(causal), part == "bwd", batch, value_dim=int(values)
        )
        if seconds - gap_s >= LONG_S:
            found.append((seconds - gap_s) / float(curve_s))
    return np.array(found)


def left_out(folder: Path, name: str, arrays: dict[str, Floats]) -> dict[str, Floats]:
    """Signed relative errors of each row by the others of its board."""
    errors = {}
    for board in TIMED[name]:
        for part in PARTS:
            found = ratios(folder, name, arrays, board, part)
            others = [_mean(np.delete(found, i)) for i in range(len(found))]
            errors[f"unequal dims {part}, rows on {board[0]}"] = np.array(others) / found - 1
    return errors


def _mean(ratios: Floats) -> float:
    return float(np.exp(np.mean(np.log(ratios))))
