"""Memory-bound operations: launch latency and the reached share of the memory bandwidth of a device.

    t = launch + bytes / (bandwidth · share)
Fitted to residual additions (A100, H100: Vidur; reads two tensors, writes one) and to compiled RMSNorm forward (GB200:
cuDNN's benchmark; reads one, writes one). Left out: what the L2 cache saves when a tensor was just written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats
from cost_models.device import Device
from cost_models.fit.rows import read_rows


def additions(folder: Path, gpu: str) -> Floats:
    """bytes, seconds of residual additions of at least 512 tokens (below, the printed microseconds are too coarse)."""
    rows = []
    for row in read_rows(folder, "kernels_layerops_vidur.csv"):
        if row["gpu"] == gpu and row["op"] == "add" and float(row["num_tokens"]) >= 512:
            rows.append([3 * 2 * float(row["num_tokens"]) * float(row["hidden"]), float(row["median_ms"]) * 1e-3])
    return np.array(rows)


def norms(folder: Path, gpu: str) -> Floats:
    """bytes, seconds of RMSNorm forward, compiled by torch."""
    rows = []
    for row in read_rows(folder, "kernels_norms_cudnn.csv"):
        wanted = row["gpu_name"] == gpu and row["backend"] == "torch_compile" and row["norm_type"] == "rms_norm"
        if wanted and row["success"] == "True":
            rows.append([2 * 2 * float(row["N"]) * float(row["C"]), float(row["fwd_time_ms"]) * 1e-3])
    return np.array(rows)


def fit(rows: Floats, device: Device) -> Floats:
    """launch_s and share, by least squares of log time with bounds (0.5–20 us, 0.2–1)."""

    def seconds(parameters: Floats) -> Floats:
        launch_s, share = np.exp(parameters)
        return np.asarray(launch_s + rows[:, 0] / (device.memory_bytes_per_s * share))

    start = np.log([2e-6, 0.8])

    def residual(parameters: Floats) -> Floats:
        return np.asarray(np.log(seconds(parameters) / rows[:, 1]))

    found = least_squares(
        residual,
        start,
        bounds=(np.log([5e-7, 0.2]), np.log([2e-5, 1.0])),
        loss="soft_l1",
        f_scale=0.1,
    )
    return np.asarray(np.exp(found.x))


def errors(rows: Floats, device: Device) -> Floats:
    """Signed relative errors with one size family (equal bytes) left out at a time."""
    found = []
    for size in np.unique(rows[:, 0]):
        out = rows[:, 0] == size
        launch_s, share = fit(rows[~out], device)
        found.append((launch_s + rows[out, 0] / (device.memory_bytes_per_s * share)) / rows[out, 1] - 1)
    return np.concatenate(found)
