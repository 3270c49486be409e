"""GEMM curve of a device: a physical form, the measured deviation from it, and one rising table of both.

    t = launch + (tiles^4 + bytes^4)^(1/4)          (a smooth maximum: roofline)
    tiles = softmin over tile shapes of  waves × 2·bm·bn·(k + fill) / (peak/SMs · efficiency)
    waves = q·⌈⌈m/bm⌉⌈n/bn⌉/SMs⌉ + (1 − q)·⌈m/bm⌉⌈n/bn⌉/SMs     q: how much of the tail wave is lost

The deviation log(measured/form) is interpolated on the measured grid and held beyond its edges, so that a table with
more knots than were measured still shows waves and launch latency. Left out: the library's choice for one odd shape,
power throttling (the published grids were timed in short bursts), strided and batched products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats, LogGrid
from cost_models.hardware.device import Device
from validation.fit.monotone import rising

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


def table(rows: Floats, device: Device) -> LogGrid:
    """The packed table: form × deviation on more knots than were measured, made rising."""
    form = fit_form(rows, device)
    measured = deviation(rows, form)
    below = (BELOW_M, BELOW_NK, BELOW_NK)
    axes = [knots(axis, b) for axis, b in zip(measured.axes, below, strict=True)]
    mesh = np.meshgrid(*axes, indexing="ij")
    log_s = form.log_s(*mesh) + np.log(measured.read_many(*mesh)[0])
    log_s = np.maximum(log_s, np.log(2 * mesh[0] * mesh[1] * mesh[2] / device.peak("bf16")))
    return LogGrid(axes, rising(log_s, (0, 1, 2)))


def read(grid: LogGrid, m: Floats, n: Floats, k: Floats) -> Floats:
    """Burst seconds of products; beyond the table the edge's efficiency holds."""
    seconds, (cm, cn, ck) = grid.read_many(m, n, k)
    return seconds * (m * n * k / (cm * cn * ck))


def left_out(rows: Floats, device: Device) -> Floats:
    """Signed relative errors of every row whose n (then whose k) was left out whole, inner values only.

    Every third value is left out at once: both neighbours of each stay in, as when one is left out alone.
    """
    errors = []
    for column in (1, 2):
        for first in range(3):
            out = np.isin(rows[:, column], np.unique(rows[:, column])[1:-1][first::3])
            predicted = table(rows[~out], device).read_many(*rows[out, :3].T)[0]
            errors.append(predicted / rows[out, 3] - 1)
    return np.concatenate(errors)
