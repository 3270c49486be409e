"""Fit what grouped products take (`timing/grouped.py`) from SimuMax's grouped products of two mixtures of experts.

    A100    12 rows on A100 PCIe: 20 and 40 groups · B200    108 rows: 20 to 256 groups of 128 to 9,832 rows
            forward (M, N, K), gradient of the input (M, K, N), of the weight (N, K, M; added to fp32 or bf16)
Least squares of log time (soft L1), the starts below as a weak prior; H100 has no rows and keeps them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats
from cost_models.hardware.device import Device
from cost_models.timing.grouped import Grouped
from validation.fit.busy import ACCUMULATED_BYTES
from validation.fit.rows import read_rows

START = Grouped(slow=1.0, exposed=0.8, call_s=9e-6)
"""Between A100 (0.5) and B200 (1.2); the shortest groups of B200's table take 8.6 to 9.3 us whatever their size."""
PRIOR_WEIGHT = 0.05
VALUE_BYTES = 2


def simumax(folder: Path, gpu: str) -> Floats:
    """m, n, k of a group, bytes per value of its result, seconds of a group, groups."""
    found = []
    for row in read_rows(folder, "kernels_simumax_efficiency.csv"):
        if row["gpu"] != gpu or row["op"] != "group_matmul":
            continue
        shape = dict(part.strip().split("=") for part in row["shape"].split(";"))
        groups, m, n, k = (int(shape[c]) for c in ("ng", "M", "N", "K"))
        seconds = 2.0 * m * n * k / (float(row["measured_tflops"]) * 1e12)
        added = ACCUMULATED_BYTES[shape["main_grad_dtype"]]
        product = {
            "fwd": (m, n, k, VALUE_BYTES),
            "bwd_grad_act": (m, k, n, VALUE_BYTES),
            "bwd_grad_w": (n, k, m, added),
        }
        found.append([*product[shape["stage"]], seconds, groups])
    return np.array(found).reshape(-1, 6)


def fit(rows: Floats, board: Device, limit_flops: float) -> Grouped:
    """The form from rows of `board`, which sustains `limit_flops`; START without rows."""
    start = np.log([START.slow, START.exposed, START.call_s])

    def residual(parameters: Floats) -> Floats:
        predicted = seconds(_grouped(parameters), board, limit_flops, rows)
        return np.append(np.log(predicted / rows[:, 4]), PRIOR_WEIGHT * len(rows) ** 0.5 * (parameters - start))

    return _grouped(least_squares(residual, start, loss="soft_l1", f_scale=0.1).x)


def seconds(form: Grouped, board: Device, limit_flops: float, rows: Floats) -> Floats:
    """Predicted seconds of a group for each of `rows`."""
    m, n, k, result = rows[:, :4].T
    moved = VALUE_BYTES * (m * k + n * k) + result * m * n
    return np.asarray(form.group_s(2 * m * n * k, moved, limit_flops, board.memory_bytes_per_s))


def left_out(rows: Floats, board: Device, limit_flops: float) -> Floats:
    """Signed relative errors with all rows of one count of groups left out at a time."""
    errors = []
    for count in np.unique(rows[:, 5]):
        out = rows[:, 5] == count
        form = fit(rows[~out], board, limit_flops)
        errors.append(seconds(form, board, limit_flops, rows[out]) / rows[out, 4] - 1)
    return np.concatenate(errors)


def _grouped(parameters: Floats) -> Grouped:
    slow, exposed, call_s = np.exp(parameters)
    return Grouped(slow=float(slow), exposed=float(exposed), call_s=float(call_s))
