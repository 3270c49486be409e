"""Memory-bound operations: launch latency and the reached share of the memory bandwidth.

    t = launch + ideal / share,   ideal = bytes / data-sheet bandwidth of the device that was timed
Rows: residual additions (A100, H100: Vidur; read two tensors, write one) of at least 80 MB, since smaller ones live in
the L2 cache that a training step's tensors do not fit in, and RMSNorm forward (reads one, writes one): cuDNN's on H200
and GB200, and torch's compiled one on GB200, where it is a fifth slower than cuDNN's (0.66 of the bandwidth) and most
of a step's kernels are like it. SimuMax's fit of elementwise kernels on B200, 0.666 of 8,000 GiB/s, is 0.72 of the
data sheet. Left out: what the L2 saves when a tensor is fresh.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats
from cost_models.hardware.device import Device
from validation.fit.rows import read_rows

BEYOND_L2_BYTES = 80e6
LAUNCH_PRIOR_S = 2e-6
MOST_SHARE = 0.92
"""What large elementwise kernels reach of an H100's bandwidth at most (0.92 in pytorch/ao issue 4054, 0.91 and 0.87
elsewhere). H100's additions fall with size (0.98 of it at 60 MB, 0.954 from 180 MB on), so a part of what they read
again and again is in its 50 MB of L2, and an unbounded fit gives 1.0. Fits of other cards end below."""


def additions(folder: Path, gpu: str, device: Device) -> Floats:
    """Ideal seconds, seconds of Vidur's residual additions on `gpu`."""
    rows = []
    for row in read_rows(folder, "kernels_layerops_vidur.csv"):
        moved = 3 * 2 * float(row["num_tokens"]) * float(row["hidden"])
        if row["gpu"] == gpu and row["op"] == "add" and moved >= BEYOND_L2_BYTES:
            rows.append([moved / device.memory_bytes_per_s, float(row["median_ms"]) * 1e-3])
    return np.array(rows)


def norms(folder: Path, gpu: str, device: Device, backends: tuple[str, ...] = ("cudnn",)) -> Floats:
    """Ideal seconds, seconds of the RMSNorm forward on `gpu`."""
    rows = []
    for row in read_rows(folder, "kernels_norms_cudnn.csv"):
        wanted = row["gpu_name"] == gpu and row["backend"] in backends and row["norm_type"] == "rms_norm"
        if wanted and row["success"] == "True":
            moved = 2 * 2 * float(row["N"]) * float(row["C"])
            rows.append([moved / device.memory_bytes_per_s, float(row["fwd_time_ms"]) * 1e-3])
    return np.array(rows)


def fit(rows: Floats) -> Floats:
    """launch_s and share by least squares of log time; where all rows are long, LAUNCH_PRIOR_S decides the launch."""
    start = np.log([LAUNCH_PRIOR_S, 0.8])

    def residual(parameters: Floats) -> Floats:
        launch_s, share = np.exp(parameters)
        misfit = np.log((launch_s + rows[:, 0] / share) / rows[:, 1])
        return np.append(misfit, 0.1 * (parameters[0] - start[0]))

    bounds = (np.log([5e-7, 0.2]), np.log([2e-5, MOST_SHARE]))
    found = least_squares(residual, start, bounds=bounds, loss="soft_l1", f_scale=0.1)
    return np.asarray(np.exp(found.x))


def left_out(rows: Floats) -> Floats:
    """Signed relative errors with one size (equal ideal seconds) left out at a time."""
    errors = []
    for size in np.unique(rows[:, 0]):
        out = rows[:, 0] == size
        launch_s, share = fit(rows[~out])
        errors.append((launch_s + rows[out, 0] / share) / rows[out, 1] - 1)
    return np.concatenate(errors)
