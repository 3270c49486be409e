"""Attention curves: closed forms for training's forward and backward, a table for the paged prefill of serving.

    form   t = launch + p·4·pairs·128 / peak · (1 + slow) · width(D) · (1 + L0/L) · (1 + U0/U) · unmasked
           p: 1 forward, 2.5 backward · L: mean keys per query (S/2 if causal) · U = B·H·⌈S/128⌉ / SMs
           width(D) = (1 − σ) · D/128 + σ: products shrink with the head dim, the softmax of a score does not
           σ = x · seconds of one exponential per score / seconds of a score at head dim 128
           unmasked: below 1 where every query sees every key, since no tile is half empty; 1 if causal
    table  form × exp(deviation), a penalised grid over (tokens, batch, heads, group): least squares on the rows
           plus λ · (second differences)²
An SM makes 16 exponentials per clock (CUDA programming guide, throughput of native arithmetic). x says how many of them
a score waits for: fitted where two head dims were timed (0.8 to 1.2 forward, 2.1 to 2.4 backward, which also scales,
subtracts and converts), else WAITED, but never more than what the products at their peak leave. The table's rows are
causal and of equal lengths; how other shapes map onto them is in `kernels.py`. `group` is query heads per KV head.
Where the rows hold one mask only, UNMASKED_PRIOR decides. Left out: sliding windows, dropout,
the deterministic backward.

Attention whose keys are wider than its values (192 and 128: DeepSeek's) is a ratio to the curve at an equal head dim:
least squares in log of measured / curve; the curve forward at the head dim with as many FLOPs, backward at the wider
one.
    A100    Transformer Engine on A100 PCIe, 4 rows each way (SimuMax)            H100    no rows: 1
    B200    cuDNN on GB200, 20 rows each way; on the board of BUSY_BOARDS Transformer Engine, 10 (SimuMax)
A board below its architecture's usual limit loses more here than where values are as wide, and more the longer a
forward kernel is (0.95 of the curve at 0.1 ms, 1.2 at 0.7 ms, 1.7 at 0.5 s): that board has its own ratio. SimuMax
timed from an operator's first kernel to its last: TRACED_GAP_S of the forward is the host's time between a small kernel
and the attention. Rows below LONG_S are left out, as for products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.optimize import least_squares
from scipy.sparse.linalg import spsolve

from cost_models.curves.grid import Floats, LogGrid
from cost_models.hardware.device import Device
from cost_models.timing.kernels import Kernels
from cost_models.timing.packed import BUSY_BOARDS, DeviceCurves
from validation.fit.products import LONG_S
from validation.fit.rows import rising, thirds, unequal_attention

QUERY_TILE = 128
PLAIN_DIM = 128
EXPONENTIALS_PER_CLOCK = 16
WAITED = {1.0: 1.0, 2.5: 2.0}
"""Exponentials' time per score that is not hidden, forward and backward (by passes)."""
KNOTS = (
    np.array([512.0, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 10240, 12288, 16384]),
    2.0 ** np.arange(9),
    np.array([1.0, 2, 4, 8, 16, 32, 48, 64]),
    np.array([1.0, 2, 4, 8, 64]),
)
SMOOTHNESS = 0.15
UNMASKED_PRIOR = 0.95
UNMASKED_WEIGHT = 1.0
BELOW_TOKENS = (64.0, 128.0, 256.0)


@dataclass(frozen=True, kw_only=True)
class Form:
    """The fitted closed form; `parameters` are logs of launch, slowness, L0, U0, the unmasked ratio and x."""

    parameters: Floats
    sms: int
    peak_flops: float
    exponentials_per_s: float
    passes: float  # 1 forward, 2.5 backward

    @property
    def softmax(self) -> float:
        """σ: share of a score's time at head dim 128 that does not shrink with the head dim."""
        slow, waited = np.exp(self.parameters[[1, 5]])
        score_s = 4 * self.passes * PLAIN_DIM / self.peak_flops * (1 + slow)
        return min(float(waited / self.exponentials_per_s / score_s), 0.9)

    def seconds(self, units: Floats, keys: Floats, pairs: Floats, causal: Floats, dims: Floats) -> Floats:
        """units: query tiles per SM; keys: mean keys per query; pairs: query-key pairs over batch and heads."""
        launch, slow, half_keys, half_units, unmasked, _ = np.exp(self.parameters)
        width = (1 - self.softmax) * dims / PLAIN_DIM + self.softmax
        work = 4 * self.passes * pairs * PLAIN_DIM / self.peak_flops * (1 + slow) * width
        work = work * np.where(causal > 0, 1.0, unmasked)
        return np.asarray(launch + work * (1 + half_keys / keys) * (1 + half_units / units))


def shapes(batch: Floats, tokens: Floats, heads: Floats, causal: Floats, dims: Floats, sms: int) -> tuple[Floats, ...]:
    """Units, mean keys, pairs, the mask and the head dim of square attention."""
    keys = np.where(causal > 0, (tokens + 1) / 2, tokens)
    units = batch * heads * np.ceil(tokens / QUERY_TILE) / sms
    return units, keys, batch * heads * tokens * keys, causal, dims


def fit_form(shape: tuple[Floats, ...], seconds: Floats, device: Device, passes: float) -> Form:
    """Least squares of log time; the start values are typical of flash kernels and hold what the rows leave open."""
    start = np.log(np.array([3e-6, 0.3, 100.0, 0.3, UNMASKED_PRIOR, WAITED[passes]]))
    weights = np.array([0.03, 0.03, 0.03, 0.03, UNMASKED_WEIGHT, 0.05])
    assert device.sms is not None and device.clock_hz is not None
    sms, peak = device.sms, device.peak("bf16")
    exponentials = EXPONENTIALS_PER_CLOCK * sms * device.clock_hz

    def form(parameters: Floats) -> Form:
        return Form(parameters=parameters, sms=sms, peak_flops=peak, exponentials_per_s=exponentials, passes=passes)

    def residual(parameters: Floats) -> Floats:
        misfit = np.log(form(parameters).seconds(*shape)) - np.log(seconds)
        return np.concatenate([misfit, weights * (parameters - start)])

    bounds = (np.log([1e-7, 1e-3, 1e-2, 1e-3, 0.8, 0.2]), np.log([2e-5, 100.0, 1e4, 100.0, 1.01, 4.0]))
    return form(least_squares(residual, start, bounds=bounds, loss="soft_l1", f_scale=0.1, max_nfev=200).x)


def _corners(rows: Floats) -> sparse.csr_matrix:
    """Multilinear weights of every row on the cells of KNOTS."""
    count = len(rows)
    batch, tokens, heads, kv = rows[:, :4].T
    columns, weights = np.zeros((count, 1), int), np.ones((count, 1))
    for axis, value in zip(KNOTS, (tokens, batch, heads, heads / kv), strict=True):
        clamped = np.clip(value, axis[0], axis[-1])
        low = np.clip(np.searchsorted(axis, clamped, side="right") - 1, 0, len(axis) - 2)
        high = (np.log(clamped) - np.log(axis[low])) / (np.log(axis[low + 1]) - np.log(axis[low]))
        columns = np.hstack([columns * len(axis) + low[:, None], columns * len(axis) + low[:, None] + 1])
        weights = np.hstack([weights * (1 - high)[:, None], weights * high[:, None]])
    index = np.repeat(np.arange(count), columns.shape[1])
    size = int(np.prod([len(axis) for axis in KNOTS]))
    return sparse.csr_matrix((weights.ravel(), (index, columns.ravel())), shape=(count, size))


def _roughness() -> sparse.csr_matrix:
    """Second differences along every axis of KNOTS, in knots."""
    blocks = []
    lengths = [len(axis) for axis in KNOTS]
    for i, length in enumerate(lengths):
        second = sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(length - 2, length))
        before, after = sparse.identity(int(np.prod(lengths[:i]))), sparse.identity(int(np.prod(lengths[i + 1 :])))
        blocks.append(sparse.kron(sparse.kron(before, second), after))
    return sparse.csr_matrix(sparse.vstack(blocks))


def forward_table(rows: Floats, device: Device) -> LogGrid:
    """The packed forward table of one head dim: form × penalised deviation, rising in tokens, batch and heads."""
    assert device.sms is not None
    batch, tokens, heads = rows[:, 0], rows[:, 1], rows[:, 2]
    shape = shapes(batch, tokens, heads, np.ones(len(rows)), rows[:, 4], device.sms)
    form = fit_form(shape, rows[:, 5], device, passes=1.0)
    corners, rough = _corners(rows), _roughness()
    target = np.log(rows[:, 5]) - np.log(form.seconds(*shape))
    ridge = 1e-4 * sparse.identity(corners.shape[1])
    normal = corners.T @ corners + SMOOTHNESS * rough.T @ rough + ridge
    cells = np.asarray(spsolve(normal.tocsc(), corners.T @ target)).reshape([len(axis) for axis in KNOTS])
    axes = [np.concatenate([BELOW_TOKENS, KNOTS[0]]), *KNOTS[1:]]
    mesh = np.meshgrid(*axes, indexing="ij")
    ones = np.ones(mesh[0].shape)
    grid_shape = shapes(mesh[1], mesh[0], mesh[2], ones, rows[0, 4] * ones, device.sms)
    deviation = LogGrid(KNOTS, cells).read_many(*mesh)[0]
    log_s = np.log(form.seconds(*grid_shape)) + np.log(deviation)
    log_s = np.maximum(log_s, np.log(4 * grid_shape[2] * rows[0, 4] / device.peak("bf16")))
    return LogGrid(axes, rising(log_s, (0, 1, 2)))


def left_out_heads(rows: Floats, device: Device) -> Floats:
    """Signed relative errors of rows whose head count was left out whole (every third at once), inner ones only."""
    errors = []
    for out in thirds(rows[:, 2], inner=True):
        batch, tokens, heads, kv = rows[out, :4].T
        predicted = forward_table(rows[~out], device).read_many(tokens, batch, heads, heads / kv)[0]
        errors.append(predicted / rows[out, 5] - 1)
    return np.concatenate(errors)


def fit_training(rows: Floats, device: Device, passes: float) -> Form:
    """The closed form from rows batch, tokens, heads, kv heads, head dim, causal, seconds."""
    return fit_form(_shapes_of(rows, device), rows[:, 6], device, passes)


def packed(rows: Floats, device: Device, passes: float, at_256: float) -> Floats:
    """launch_s, slowness, L0, U0, unmasked ratio, σ, and time per FLOP at head dim 256 over 128's.

    One head dim says nothing about σ: then at most what the products at their peak leave of a score's time.
    """
    form = fit_training(rows, device, passes)
    numbers = np.exp(form.parameters[:5])
    one_dim = len(np.unique(rows[:, 4])) == 1
    softmax = min(form.softmax, float(numbers[1] / (1 + numbers[1]))) if one_dim else form.softmax
    return np.array([*numbers, softmax, at_256])


def wide(rows: Floats, plain: Floats, device: Device, passes: float) -> float:
    """Time per FLOP at `rows`' head dim (above 128) over that of the form of `plain` rows at 128: median."""
    form = fit_training(plain, device, passes)
    units, keys, pairs, causal, dims = _shapes_of(rows, device)
    at_128 = form.seconds(units, keys, pairs * dims / PLAIN_DIM, causal, np.full(len(rows), float(PLAIN_DIM)))
    return float(np.median(rows[:, 6] / at_128))


def left_out_training(rows: Floats, device: Device, passes: float) -> Floats:
    """Signed relative errors of the closed form, one (heads, kv heads, mask) family left out at a time."""
    family = rows[:, [2, 3, 5]]
    errors = []
    for one in np.unique(family, axis=0):
        out = (family == one).all(axis=1)
        form = fit_training(rows[~out], device, passes)
        errors.append(form.seconds(*_shapes_of(rows[out], device)) / rows[out, 6] - 1)
    return np.concatenate(errors)


def _shapes_of(rows: Floats, device: Device) -> tuple[Floats, ...]:
    assert device.sms is not None
    return shapes(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 5], rows[:, 4], device.sms)


TRACED_GAP_S = {"B200-SXM": 30e-6}
"""By board: rows at head dim 128 (8 to 64 heads, 4,096 tokens) take 23 to 43 us more than the curve, whatever their
length, in the forward alone."""
PARTS = ("fwd", "bwd")
UNEQUAL_TIMED = {
    "a100-sxm-80gb": (("a100-pcie-80gb", "A100-PCIe-80GB"),),
    "h100-sxm-80gb": (),
    "b200-sxm-180gb": (("gb200", "NVIDIA GB200"), (BUSY_BOARDS["b200-sxm-180gb"], "B200-SXM")),
}
"""Curve -> the boards that were timed, as presets and as the files name them: the curve's own first."""


def fit_unequal(folder: Path, name: str, arrays: dict[str, Floats]) -> Floats:
    """Forward and backward ratio, of the curve's own board and of the busy one."""
    found = [
        [_mean_ratio(unequal_ratios(folder, name, arrays, board, part)) for part in PARTS]
        for board in UNEQUAL_TIMED[name]
    ]
    return np.array([found[0], found[-1]] if found else [[1.0, 1.0], [1.0, 1.0]])


def unequal_ratios(folder: Path, name: str, arrays: dict[str, Floats], board: tuple[str, str], part: str) -> Floats:
    """Measured over the curve's seconds."""
    preset, gpu = board
    plain = DeviceCurves(name, {**arrays, "unequal": np.ones((2, 2))})
    kernels, found = Kernels(Device.load(preset), Device.load(name), plain), []
    gap_s = TRACED_GAP_S.get(gpu, 0.0) if part == "fwd" else 0.0
    for batch, tokens, heads, kv, keys, values, causal, seconds in unequal_attention(folder, gpu, part):
        curve_s = kernels.attention_s(
            tokens, tokens, heads, kv, int(keys), bool(causal), part == "bwd", batch, value_dim=int(values)
        )
        if seconds - gap_s >= LONG_S:
            found.append((seconds - gap_s) / float(curve_s))
    return np.array(found)


def unequal_left_out(folder: Path, name: str, arrays: dict[str, Floats]) -> dict[str, Floats]:
    """Signed relative errors of each row by the others of its board."""
    errors = {}
    for board in UNEQUAL_TIMED[name]:
        for part in PARTS:
            found = unequal_ratios(folder, name, arrays, board, part)
            others = [_mean_ratio(np.delete(found, i)) for i in range(len(found))]
            errors[f"unequal dims {part}, rows on {board[0]}"] = np.array(others) / found - 1
    return errors


def _mean_ratio(ratios: Floats) -> float:
    return float(np.exp(np.mean(np.log(ratios))))
