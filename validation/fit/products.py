"""Matrix products of a device: burst times, what a busy board makes of them, and grouped products.

    burst    t = launch + (tiles^4 + bytes^4)^(1/4)          (a smooth maximum: roofline)
             tiles = softmin over tile shapes of  waves × 2·bm·bn·(k + fill) / (peak/SMs · efficiency)
             waves = q·⌈⌈m/bm⌉⌈n/bn⌉/SMs⌉ + (1 − q)·⌈m/bm⌉⌈n/bn⌉/SMs     q: how much of the tail wave is lost
             The deviation log(measured/form) is interpolated on the measured grid and held beyond its edges, so that a
             table with more knots than were measured still shows waves and launch latency; the table is made rising.
    busy     (`power_limit.py`) from products timed inside long runs, of at least LONG_S: shorter loops end before a
             board throttles. A100: SimuMax on A100 PCIe (300 W), forward (TN), input gradient (NN), weight gradient
             (NT, added to fp32). H100: Vidur's projections on H100 SXM, timed inside a running model; exposed:
             EXPOSED_START. B200: SimuMax on B200.
    grouped  (`timing/grouped.py`) from SimuMax's products of two mixtures. A100 PCIe: 12 rows, 20 and 40 groups. B200:
             108 rows, 20 to 256 groups of 128 to 9,832 rows; forward (M, N, K), gradient of the input (M, K, N), of the
             weight (N, K, M; added to fp32 or bf16). H100 has no rows and keeps GROUPED_START.

All by least squares of log time (soft L1) with a weak prior. Vidur's A100 rows check the busy fit: its documentation
(microsoft/vidur, docs/profiling.md) does not say whether they ran on PCIe or SXM boards; their rates are those of the
PCIe board. Left out: the library's choice for one odd shape, strided and batched products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats, LogGrid
from cost_models.hardware.device import Device
from cost_models.timing.grouped import Grouped
from cost_models.timing.power_limit import Busy
from validation.fit.rows import read_rows, rising, thirds

TILES = ((128, 256), (256, 128), (128, 128), (64, 128), (256, 256), (64, 64))
BELOW_M = (1, 16, 32, 64, 128, 256)
BELOW_NK = (16, 64, 128)
SAMPLE = 1500


@dataclass(frozen=True, kw_only=True)
class Form:
    """The fitted physical form of one device."""

    parameters: Floats
    sms: int
    peak_flops: float
    bytes_per_s: float

    def log_s(self, m: npt.ArrayLike, n: npt.ArrayLike, k: npt.ArrayLike) -> Floats:
        """log seconds of C[m,n] = A[m,k] B[k,n] in 2-byte elements."""
        m, n, k = (np.asarray(x, np.float64) for x in (m, n, k))
        launch, memory, lost = self.parameters[:3]
        share = 1 / (1 + np.exp(-lost))
        per_tile = []
        for (bm, bn), (fill, slow) in zip(TILES, self.parameters[3:].reshape(-1, 2), strict=True):
            tiles = np.ceil(m / bm) * np.ceil(n / bn) / self.sms
            waves = share * np.ceil(tiles) + (1 - share) * np.maximum(tiles, 1)
            flops = 2 * bm * bn * (k + np.exp(fill))
            per_tile.append(np.log(waves * flops * self.sms / self.peak_flops) + np.exp(slow))
        stack = np.stack(np.broadcast_arrays(*per_tile))
        best = stack.min(axis=0)
        log_tiles = best - np.log(np.exp(-8 * (stack - best)).sum(axis=0)) / 8
        seconds = 2 * (m * k + n * k + m * n) / self.bytes_per_s * np.exp(memory)
        return np.asarray(np.log(np.exp(launch) + (np.exp(log_tiles) ** 4 + seconds**4) ** 0.25))


def fit_form(rows: Floats, device: Device) -> Form:
    """Least squares (soft L1) of log time over a fixed sample of the rows."""
    sample = rows[np.random.default_rng(0).permutation(len(rows))[:SAMPLE]]
    start = np.array([np.log(2e-6), 0.2, 0.0] + [5.0, -1.5] * len(TILES))

    def form(parameters: Floats) -> Form:
        assert device.sms is not None
        return Form(
            parameters=parameters,
            sms=device.sms,
            peak_flops=device.peak("bf16"),
            bytes_per_s=device.memory_bytes_per_s,
        )

    def residual(parameters: Floats) -> Floats:
        misfit = form(parameters).log_s(*sample[:, :3].T) - np.log(sample[:, 3])
        return np.concatenate([misfit, 0.05 * (parameters - start)])

    found = least_squares(residual, start, loss="soft_l1", f_scale=0.1, max_nfev=60)
    return form(found.x)


def deviation(rows: Floats, form: Form) -> LogGrid:
    """log(measured / form) on the grid of the rows; a missing cell takes its neighbour's value."""
    axes = [np.unique(rows[:, i]) for i in range(3)]
    cells = np.full(tuple(len(axis) for axis in axes), np.nan)
    index = tuple(np.searchsorted(axis, rows[:, i]) for i, axis in enumerate(axes))
    cells[index] = np.log(rows[:, 3]) - form.log_s(*rows[:, :3].T)
    for axis in (1, 2):
        before = np.concatenate([np.take(cells, [0], axis), np.take(cells, range(cells.shape[axis] - 1), axis)], axis)
        cells = np.where(np.isnan(cells), before, cells)
    assert not np.isnan(cells).any(), "the measured grid has more than single holes"
    return LogGrid(axes, cells)


def knots(measured: Floats, below: tuple[int, ...], step: int = 128) -> Floats:
    """Measured values, smaller ones for the launch-bound end, and three between values far apart."""
    found = {float(b) for b in below if b < measured[0]} | {float(x) for x in measured}
    for low, high in pairwise(measured):
        if high / low > 1.3 and high <= 32768:
            inner = low + (high - low) * np.array([0.25, 0.5, 0.75])
            found |= {float(np.ceil(x / step) * step) for x in inner}
    return np.array(sorted(found))


def gemm_table(rows: Floats, device: Device) -> LogGrid:
    """The packed table: form × deviation on more knots than were measured, made rising."""
    form = fit_form(rows, device)
    measured = deviation(rows, form)
    below = (BELOW_M, BELOW_NK, BELOW_NK)
    axes = [knots(axis, b) for axis, b in zip(measured.axes, below, strict=True)]
    mesh = np.meshgrid(*axes, indexing="ij")
    log_s = form.log_s(*mesh) + np.log(measured.read_many(*mesh)[0])
    log_s = np.maximum(log_s, np.log(2 * mesh[0] * mesh[1] * mesh[2] / device.peak("bf16")))
    return LogGrid(axes, rising(log_s, (0, 1, 2)))


def read_gemm(grid: LogGrid, m: Floats, n: Floats, k: Floats) -> Floats:
    """Burst seconds of products; beyond the table the edge's efficiency holds."""
    seconds, (cm, cn, ck) = grid.read_many(m, n, k)
    return seconds * (m * n * k / (cm * cn * ck))


def gemm_left_out(rows: Floats, device: Device) -> Floats:
    """Signed relative errors of every row whose n (then whose k) was left out whole, inner values only.

    Every third value is left out at once: both neighbours of each stay in, as when one is left out alone.
    """
    errors = []
    for column in (1, 2):
        for out in thirds(rows[:, column], inner=True):
            predicted = gemm_table(rows[~out], device).read_many(*rows[out, :3].T)[0]
            errors.append(predicted / rows[out, 3] - 1)
    return np.concatenate(errors)


LONG_S = 100e-6
LEAST_TOKENS = 512
START = {"a100-pcie-80gb": 0.75, "h100-sxm-80gb": 0.75, "b200-sxm-180gb": 0.5}
"""Share of the peak that the search for the limit starts from."""
SLOW_START = 1.03
EXPOSED_START = 0.3
"""Between A100's (0.15) and B200's (0.42); H100's rows add to no buffer and leave it."""
PRIOR_WEIGHT = 0.05
ACCUMULATED_BYTES = {"fp32": 8, "bf16": 4}


def busy_vidur(folder: Path, gpu: str) -> Floats:
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


def busy_simumax(folder: Path, gpu: str) -> Floats:
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


def fit_busy(rows: Floats, burst_s: Floats, board: Device) -> Busy:
    """Limit, slowness and exposed share from rows of `board`; without accumulating rows EXPOSED_START stays."""
    long = rows[:, 4] >= LONG_S
    start = np.log([START[board.name] * board.peak("bf16"), SLOW_START, EXPOSED_START])

    def residual(parameters: Floats) -> Floats:
        predicted = busy_s(_busy(parameters), board, rows[long], burst_s[long])
        return np.append(np.log(predicted / rows[long, 4]), PRIOR_WEIGHT * (parameters - start))

    bounds = (start + np.log([0.3, 1 / SLOW_START, 0.05]), start + np.log([2.0, 1.5, 3.0]))
    return _busy(least_squares(residual, start, bounds=bounds, loss="soft_l1", f_scale=0.05).x)


def busy_s(busy: Busy, board: Device, rows: Floats, burst_s: Floats) -> Floats:
    """Predicted seconds of `rows` on the board itself."""
    m, n, k, added = rows[:, :4].T
    product = busy.product_s(burst_s, 2 * m * n * k, busy.limit_flops)
    return np.asarray(product + busy.exposed * added * m * n / board.memory_bytes_per_s)


def busy_left_out(rows: Floats, burst_s: Floats, board: Device) -> Floats:
    """Signed relative errors of long products whose n (then whose k) was left out whole, every third value at once."""
    errors = []
    for column in (1, 2):
        for out in thirds(rows[:, column]):
            busy = fit_busy(rows[~out], burst_s[~out], board)
            held = out & (rows[:, 4] >= LONG_S)
            errors.append(busy_s(busy, board, rows[held], burst_s[held]) / rows[held, 4] - 1)
    return np.concatenate(errors)


def _busy(parameters: Floats) -> Busy:
    limit, slow, exposed = np.exp(parameters)
    return Busy(limit_flops=float(limit), slow=float(slow), exposed=float(exposed))


GROUPED_START = Grouped(slow=1.0, exposed=0.8, call_s=9e-6)
"""Between A100 (0.5) and B200 (1.2); the shortest groups of B200's table take 8.6 to 9.3 us whatever their size."""
VALUE_BYTES = 2


def grouped_simumax(folder: Path, gpu: str) -> Floats:
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


def fit_grouped(rows: Floats, board: Device, limit_flops: float) -> Grouped:
    """The form from rows of `board`, which sustains `limit_flops`; GROUPED_START without rows."""
    start = np.log([GROUPED_START.slow, GROUPED_START.exposed, GROUPED_START.call_s])

    def residual(parameters: Floats) -> Floats:
        predicted = grouped_s(_grouped(parameters), board, limit_flops, rows)
        return np.append(np.log(predicted / rows[:, 4]), PRIOR_WEIGHT * len(rows) ** 0.5 * (parameters - start))

    return _grouped(least_squares(residual, start, loss="soft_l1", f_scale=0.1).x)


def grouped_s(form: Grouped, board: Device, limit_flops: float, rows: Floats) -> Floats:
    """Predicted seconds of a group for each of `rows`."""
    m, n, k, result = rows[:, :4].T
    moved = VALUE_BYTES * (m * k + n * k) + result * m * n
    return np.asarray(form.group_s(2 * m * n * k, moved, limit_flops, board.memory_bytes_per_s))


def grouped_left_out(rows: Floats, board: Device, limit_flops: float) -> Floats:
    """Signed relative errors with all rows of one count of groups left out at a time."""
    errors = []
    for count in np.unique(rows[:, 5]):
        out = rows[:, 5] == count
        form = fit_grouped(rows[~out], board, limit_flops)
        errors.append(grouped_s(form, board, limit_flops, rows[out]) / rows[out, 4] - 1)
    return np.concatenate(errors)


def _grouped(parameters: Floats) -> Grouped:
    slow, exposed, call_s = np.exp(parameters)
    return Grouped(slow=float(slow), exposed=float(exposed), call_s=float(call_s))
