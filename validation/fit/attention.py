"""Attention curves: closed forms for training's forward and backward, a table for the paged prefill of serving.

    form   t = launch + pairs · score(D) · (1 + (L0 + d·masked)/L) · (1 + (U0 + u·masked)/U)
           score(D) = 4·p·D / (peak · reached) + x / exponentials per second          (`timing/packed.py`)
           p: 1 forward, 2.5 backward · L: mean keys per query (S/2 if causal) · U = B·H·⌈S/128⌉ / SMs
           masked: 1 if causal, 0 where every query sees every key
           d: half of a causal mask's diagonal tiles is worked on for nothing, some 100 keys for each query
           u: causal tiles have 1 to S/128 blocks of keys each, so the last SMs wait longer for each other
    table  form × exp(deviation), a penalised grid over (tokens, batch, heads, group): least squares on the rows
           plus λ · (second differences)²
Both of the mask's losses fall with the length, so that a causal kernel reaches the rate of a full one: cuDNN's rates on
H200, GB200 and GB300 are 0.76, 0.88, 0.92, 0.95 and 1.0 of the full mask's at 2K, 4K, 8K, 16K and 32K tokens.
An SM makes 16 exponentials per clock (CUDA programming guide, throughput of native arithmetic). x says how many of them
a score waits for: fitted where two head dims were timed (0.8 to 1.2 forward, 2.1 to 2.4 backward, which also scales,
subtracts and converts), else WAITED, but never more than what the products at their peak leave. The table's rows are
causal and of equal lengths; how other shapes map onto them is in `kernels.py`. `group` is query heads per KV head.
Left out: dropout, the deterministic backward; a window is priced as its share of the pairs.

Attention whose keys are wider than its values (192 and 128: DeepSeek's) is a ratio to the curve at an equal head dim:
least squares in log of measured / curve; the curve forward at the head dim with as many FLOPs, backward at the wider
one.
    A100    Transformer Engine on A100 PCIe, 4 rows each way (SimuMax)            H100    no rows: 1
    B200    Transformer Engine, 10 rows each way (SimuMax)     GB200, GB300    cuDNN, 20 rows each way
On SimuMax's B200 the forward's ratio grows with the kernel (1.0 at 0.2 ms, 1.6 at 0.5 s); one number goes between.
SimuMax timed from an operator's first kernel to its last: TRACED_GAP_S of the forward is the host's time between a
small kernel and the attention. Rows below LONG_S are left out, as for products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import astuple
from scipy import sparse
from scipy.optimize import least_squares
from scipy.sparse.linalg import spsolve

from cost_models.curves.grid import Floats, LogGrid
from cost_models.hardware.device import Device
from cost_models.timing.kernels import Kernels
from cost_models.timing.packed import DeviceCurves, Training
from validation.fit.products import LONG_S
from validation.fit.rows import rising, thirds, unequal_attention

QUERY_TILE = 128
PLAIN_DIM = 128
WAITED = {1.0: 1.0, 2.5: 2.0}
"""Exponentials' time per score that is not hidden, forward and backward (by passes)."""
KNOTS = (
    np.array([512.0, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 10240, 12288, 16384]),
    2.0 ** np.arange(9),
    np.array([1.0, 2, 4, 8, 16, 32, 48, 64]),
    np.array([1.0, 2, 4, 8, 64]),
)
SMOOTHNESS = 0.15
START = {"launch_s": 3e-6, "slow": 0.3, "half_keys": 100.0, "half_units": 0.5, "diagonal": 64.0, "tail": 0.3}
WEIGHTS = (0.03, 0.03, 0.03, 0.3, 0.05, 0.1, 0.05)
LEAST = (1e-7, 1e-3, 1e-2, 1e-3, 1e-1, 1e-3, 0.2)
MOST = (2e-5, 100.0, 1e4, 100.0, 2e3, 10.0, 4.0)
"""Of START's parameters and x, in its order. Half of a wave of tiles is lost on average, whatever the mask; rows of
full attention have tens of tiles for each SM and do not show it, so that prior is strong. FlashAttention-2 starts the
longest causal tiles last, and half of one is 1/U of the whole: its fitted tail is 1.15."""
BELOW_TOKENS = (64.0, 128.0, 256.0)


@dataclass(frozen=True, kw_only=True)
class Form:
    """The fitted closed form; `parameters` are the logs of START's and of x."""

    parameters: Floats
    sms: int
    peak_flops: float
    exponentials_per_s: float
    passes: float  # 1 forward, 2.5 backward

    def at(self, most_softmax: float = 0.9) -> Training:
        """As it is packed; the softmax takes at most that share of a score's time at head dim 128."""
        launch_s, slow, half_keys, half_units, diagonal, tail, waited = np.exp(self.parameters).tolist()
        at_peak_s = 4 * self.passes * PLAIN_DIM / self.peak_flops
        score_s = at_peak_s * (1 + slow)
        softmax_s = min(waited / self.exponentials_per_s, most_softmax * score_s)
        return Training(
            launch_s=launch_s, reached=at_peak_s / (score_s - softmax_s),
            exponentials=softmax_s * self.exponentials_per_s,
            half_keys=half_keys, half_units=half_units, diagonal=diagonal, tail=tail, at_256=1.0,
        )  # fmt: skip

    @property
    def one_dim(self) -> Training:
        """Where one head dim was timed: a score's products are no faster than the peak."""
        slow = float(np.exp(self.parameters[1]))
        return self.at(min(0.9, slow / (1 + slow)))

    def seconds(self, units: Floats, keys: Floats, pairs: Floats, causal: Floats, dims: Floats) -> Floats:
        """units: query tiles per SM; keys: mean keys per query; pairs: query-key pairs over batch and heads."""
        form = self.at()
        score_s = form.products_s(dims, self.passes, self.peak_flops) + form.exponentials / self.exponentials_per_s
        return np.asarray(form.seconds(pairs * score_s, keys, units, causal))


def shapes(batch: Floats, tokens: Floats, heads: Floats, causal: Floats, dims: Floats, sms: int) -> tuple[Floats, ...]:
    """Units, mean keys, pairs, the mask and the head dim of square attention."""
    keys = np.where(causal > 0, (tokens + 1) / 2, tokens)
    units = batch * heads * np.ceil(tokens / QUERY_TILE) / sms
    return units, keys, batch * heads * tokens * keys, causal, dims


def fit_form(shape: tuple[Floats, ...], seconds: Floats, device: Device, passes: float) -> Form:
    """Least squares of log time; the start values are typical of flash kernels and hold what the rows leave open."""
    start = np.log([*START.values(), WAITED[passes]])
    assert device.sms is not None and device.exponentials_per_s is not None
    sms, peak, exponentials = device.sms, device.peak("bf16"), device.exponentials_per_s

    def form(parameters: Floats) -> Form:
        return Form(parameters=parameters, sms=sms, peak_flops=peak, exponentials_per_s=exponentials, passes=passes)

    def residual(parameters: Floats) -> Floats:
        misfit = np.log(form(parameters).seconds(*shape)) - np.log(seconds)
        return np.concatenate([misfit, np.array(WEIGHTS) * (parameters - start)])

    bounds = (np.log(LEAST), np.log(MOST))
    return form(least_squares(residual, start, bounds=bounds, loss="soft_l1", f_scale=0.1, max_nfev=300).x)


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
    """The fields of `packed.Training`, from rows of `device`."""
    form = fit_training(rows, device, passes)
    found = form.one_dim if len(np.unique(rows[:, 4])) == 1 else form.at()
    return np.array([*astuple(found)[:-1], at_256])


def wide(rows: Floats, plain: Floats, device: Device, passes: float) -> float:
    """Time per FLOP at `rows`' head dim (above 128) over that of the form of `plain` rows at 128: median."""
    form = fit_training(plain, device, passes)
    units, keys, pairs, causal, dims = _shapes_of(rows, device)
    at_128 = form.seconds(units, keys, pairs * dims / PLAIN_DIM, causal, np.full(len(rows), float(PLAIN_DIM)))
    return float(np.median(rows[:, 6] / at_128))


def errors(form: Form, rows: Floats, device: Device) -> Floats:
    """Signed relative errors of a form on rows of `device`, by that device's peak, SMs and exponentials."""
    assert device.sms is not None and device.exponentials_per_s is not None
    units, keys, pairs, causal, dims = _shapes_of(rows, device)
    found = form.at()
    products_s = found.products_s(dims, form.passes, device.peak("bf16"))
    scores_s = pairs * (products_s + found.exponentials / device.exponentials_per_s)
    return np.asarray(found.seconds(scores_s, keys, units, causal) / rows[:, 6] - 1)


def left_out_training(rows: Floats, device: Device, passes: float) -> Floats:
    """Signed relative errors of the closed form, one (heads, kv heads, mask) family left out at a time."""
    family = rows[:, [2, 3, 5]]
    found = []
    for one in np.unique(family, axis=0):
        out = (family == one).all(axis=1)
        found.append(errors(fit_training(rows[~out], device, passes), rows[out], device))
    return np.concatenate(found)


def _shapes_of(rows: Floats, device: Device) -> tuple[Floats, ...]:
    assert device.sms is not None
    return shapes(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 5], rows[:, 4], device.sms)


TRACED_GAP_S = {"B200-SXM": 30e-6}
"""By board: rows at head dim 128 (8 to 64 heads, 4,096 tokens) take 23 to 43 us more than the curve, whatever their
length, in the forward alone. SimuMax's A100 rows are 47 to 74 us above a curve without them, and keep that: less 40 us,
operators on 8 A100 (op_usp_ulysses_ring.csv) come out 10% early in the median, 5% with it."""
PARTS = ("fwd", "bwd")
UNEQUAL_TIMED = {
    "a100-sxm-80gb": {"": ("a100-pcie-80gb", "A100-PCIe-80GB")},
    "b200-sxm-180gb": {
        "": ("b200-sxm-180gb", "B200-SXM"),
        "_gb200": ("gb200", "NVIDIA GB200"),
        "_gb300": ("gb300", "NVIDIA GB300"),
    },
}
"""Curve -> by the ending of its packed names, the board that was timed: as a preset and as the files name it."""


def add_unequal(folder: Path, name: str, arrays: dict[str, Floats]) -> None:
    """Forward and backward ratio of each board; 1 where none was timed."""
    arrays["unequal"] = np.ones(2)
    for ending, board in UNEQUAL_TIMED.get(name, {}).items():
        ratios = [_mean_ratio(unequal_ratios(folder, name, arrays, board, part)) for part in PARTS]
        arrays[f"unequal{ending}"] = np.array(ratios)


def unequal_ratios(folder: Path, name: str, arrays: dict[str, Floats], board: tuple[str, str], part: str) -> Floats:
    """Measured over the curve's seconds."""
    preset, gpu = board
    plain = DeviceCurves(name, {key: np.ones(2) if key.startswith("unequal") else a for key, a in arrays.items()})
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
    for board in UNEQUAL_TIMED.get(name, {}).values():
        for part in PARTS:
            found = unequal_ratios(folder, name, arrays, board, part)
            others = [_mean_ratio(np.delete(found, i)) for i in range(len(found))]
            errors[f"unequal dims {part}, rows on {board[0]}"] = np.array(others) / found - 1
    return errors


def _mean_ratio(ratios: Floats) -> float:
    return float(np.exp(np.mean(np.log(ratios))))
