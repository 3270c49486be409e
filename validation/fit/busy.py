"""Fit what a busy board does to products (`cost_models/timing/busy.py`) from products timed inside long runs.

    A100    SimuMax on A100 PCIe (300 W): forward (TN), input gradient (NN), weight gradient (NT, added to fp32)
    H100    Vidur's projections on H100 SXM, timed inside a running model; exposed: EXPOSED_START
    B200    SimuMax on a B200 that sustains less than others (`b200-sxm-180gb-capped`); three products as on A100
limit, slow and exposed by least squares of log time (soft L1) over products of at least LONG_S: shorter loops end
before a board throttles, and hold launches. Vidur's A100 rows check it: its documentation (microsoft/vidur,
docs/profiling.md) does not say whether they ran on PCIe or SXM boards; their rates are those of the PCIe board.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats
from cost_models.hardware.device import Device
from cost_models.timing.busy import Busy
from validation.fit.rows import read_rows

LONG_S = 100e-6
LEAST_TOKENS = 512
START = {"a100-pcie-80gb": 0.75, "h100-sxm-80gb": 0.75, "b200-sxm-180gb-capped": 0.5}
"""Share of the peak that the search for the limit starts from."""
SLOW_START = 1.03
EXPOSED_START = 0.3
"""Between A100's (0.15) and B200's (0.42); H100's rows add to no buffer and leave it."""
PRIOR_WEIGHT = 0.05
ACCUMULATED_BYTES = {"fp32": 8, "bf16": 4}


def vidur(folder: Path, gpu: str) -> Floats:
    """m, n, k, accumulator bytes (none), seconds of the four projections at LEAST_TOKENS or more."""
    found = []
    for row in read_rows(folder, "kernels_layerops_vidur.csv"):
        tokens, hidden, ffn, tensor = (int(row[c]) for c in ("num_tokens", "hidden", "ffn", "tp"))
        head_dim = hidden // int(row["heads"])
        queries, keys = hidden // tensor, max(int(row["kv_heads"]) // tensor, 1) * head_dim
        shapes = {
            "attn_pre_proj": (queries + 2 * keys, hidden),
            "attn_post_proj": (hidden, queries),
            "mlp_up_proj": (2 * ffn // tensor, hidden),
            "mlp_down_proj": (hidden, ffn // tensor),
        }
        if row["gpu"] == gpu and row["op"] in shapes and tokens >= LEAST_TOKENS:
            found.append([tokens, *shapes[row["op"]], 0.0, float(row["median_ms"]) * 1e-3])
    return np.array(found)


def simumax(folder: Path, gpu: str) -> Floats:
    """m, n, k, accumulator bytes per value, seconds of single matrix products."""
    found = []
    for row in read_rows(folder, "kernels_simumax_efficiency.csv"):
        if row["gpu"] == gpu and row["op"] == "matmul":
            shape = dict(part.strip().split("=") for part in row["shape"].split(";"))
            batch, m, n, k = (int(shape[c]) for c in ("b", "m", "n", "k"))
            added = ACCUMULATED_BYTES[shape["out_dtype"]] if shape["accumulate"] == "True" else 0
            if batch == 1 and min(m, n, k) > 1:
                found.append([m, n, k, added, 2.0 * m * n * k / (float(row["measured_tflops"]) * 1e12)])
    return np.array(found)


def fit(rows: Floats, burst_s: Floats, board: Device) -> Busy:
    """Limit, slowness and exposed share from rows of `board`; without accumulating rows EXPOSED_START stays."""
    long = rows[:, 4] >= LONG_S
    start = np.log([START[board.name] * board.peak("bf16"), SLOW_START, EXPOSED_START])

    def residual(parameters: Floats) -> Floats:
        predicted = seconds(_busy(parameters), board, rows[long], burst_s[long])
        return np.append(np.log(predicted / rows[long, 4]), PRIOR_WEIGHT * (parameters - start))

    bounds = (start + np.log([0.3, 1 / SLOW_START, 0.05]), start + np.log([2.0, 1.5, 3.0]))
    return _busy(least_squares(residual, start, bounds=bounds, loss="soft_l1", f_scale=0.05).x)


def seconds(busy: Busy, board: Device, rows: Floats, burst_s: Floats) -> Floats:
    """Predicted seconds of `rows` on the board itself."""
    m, n, k, added = rows[:, :4].T
    product = busy.product_s(burst_s, 2 * m * n * k, busy.limit_flops)
    return np.asarray(product + busy.exposed * added * m * n / board.memory_bytes_per_s)


def left_out(rows: Floats, burst_s: Floats, board: Device) -> Floats:
    """Signed relative errors of long products whose n (then whose k) was left out whole, every third value at once."""
    errors = []
    for column in (1, 2):
        for first in range(3):
            out = np.isin(rows[:, column], np.unique(rows[:, column])[first::3])
            busy = fit(rows[~out], burst_s[~out], board)
            held = out & (rows[:, 4] >= LONG_S)
            errors.append(seconds(busy, board, rows[held], burst_s[held]) / rows[held, 4] - 1)
    return np.concatenate(errors)


def _busy(parameters: Floats) -> Busy:
    limit, slow, exposed = np.exp(parameters)
    return Busy(limit_flops=float(limit), slow=float(slow), exposed=float(exposed))
