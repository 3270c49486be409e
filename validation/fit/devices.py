"""All packed arrays of one measured device, and the error of each operation on families left out.

What is fitted to what, by device:
            gemm, paged prefill   training attention, forward and backward            memory-bound
    A100    vLLM 0.14             FlashAttention-2 labels of the pair, SimuMax         Vidur additions
    H100    vLLM 0.19 (FA3)       FA3 labels (forward), cuDNN on H200 (same die)       Vidur additions, norms on H200
    L40S    vLLM 0.14             A100's, at L40S's power limit                        Vidur additions on A40
    B200    vLLM 0.19             cuDNN: SimuMax (Transformer Engine), SDPA's bars     norms on GB200, GB300
    GB200, GB300                  cuDNN, each board its own rows
What a busy board makes of products: SimuMax's matmuls (A100 PCIe, B200), Vidur's projections (H100): `products.py`.
L40S: the limit at which A100's prefill times, by peak, SMs and exponentials, are L40S's at equal shapes. A busy board
ends near one rate, whatever the kernel (B200: 1131 TFLOP/s in products, 1120 in attention; H100: 748 and 706), so that
limit is taken for products too.
Grouped products: SimuMax's on the same two boards: `products.py`.
The A100 pair is split by the forward's share of the pair in SimuMax's rows of many heads. Head dims 64 and 128 are
fitted together where both were timed; 256 is a ratio to 128. FlashAttention-2 is a second training kernel: on H100 its
labels; on B200, where its code runs on instructions of older cards, FlashMask's bars, which is built on it. A third on
H100 is cuDNN as PyTorch shipped it: labels (forward) and MagiAttention's bars, a fifth below H200's rows of 2026.
Left out: cuDNN's own bars on B200 (its causal backward is a fourth slower than as SDPA and Transformer Engine call
it), FlashAttention-4's (a tenth faster at length), sglang's grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats, LogGrid
from cost_models.hardware.device import Device
from cost_models.timing.kernels import Kernels
from cost_models.timing.packed import ATTENTION_TIMED, BUSY_BOARDS, DeviceCurves
from cost_models.timing.packed import Training as Packed
from cost_models.timing.power_limit import Busy
from validation.fit import attention, products, rates, rows

SIMUMAX_BOARDS = {"a100-sxm-80gb": "A100-PCIe-80GB", "b200-sxm-180gb": "B200-SXM"}
"""Curve -> the board of its architecture that SimuMax's tables were timed on."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which files make the curves of one device."""

    device: str
    gemm_file: str
    prefill_file: str
    sources: dict[str, dict[str, Any]]  # by operation: `source` in words, `measured_on`: presets


RECIPES = tuple(
    Recipe(device=device, **recipe)
    for device, recipe in yaml.safe_load((rows.DEFAULT_FOLDER / "recipes.yaml").read_text(encoding="utf-8")).items()
)


@dataclass(frozen=True)
class Training:
    """Rows of contiguous training kernels up to head dim 128: batch, tokens, heads, kv heads, dim, causal, seconds."""

    forward: Floats
    backward: Floats


SIBLINGS = {"b200-sxm-180gb": {"gb200": "NVIDIA GB200", "gb300": "NVIDIA GB300"}}
"""Curve -> boards of its architecture whose training attention was timed, as presets and as the file names them."""


LIMITED_TOKENS = 131072.0
HOST_BOUND_S = 130e-6
"""Backward of 4 and of 8 heads takes 110 and 120 us in SimuMax's table: shorter calls wait for the host."""


def training_rows(folder: Path, recipe: Recipe) -> Training:
    """The rows of the module's table for a curve's own board."""
    if recipe.device == "b200-sxm-180gb":
        parts = [_b200(folder, part) for part in attention.PARTS]
    elif recipe.device == "h100-sxm-80gb":
        parts = [rows.cudnn_attention(folder, "NVIDIA H200", part) for part in attention.PARTS]
        labels = rows.flash_labels(folder, "flash3", "FlashAttention-3")
        labels[:, 6] = _seconds(labels, 4.0)
        parts[0] = np.vstack([parts[0], labels])
    else:
        parts = [rows.simumax_attention(folder, "A100-PCIe-80GB", part) for part in attention.PARTS]
        many = parts[0][:, 2] >= 32
        share = float(np.median(parts[0][many, 6] / (parts[0][many, 6] + parts[1][many, 6])))
        labels = rows.flash_labels(folder, "flash2_a100", "FlashAttention-2")
        both_s = _seconds(labels, 14.0)
        parts = [
            np.vstack([part, np.column_stack([labels[:, :6], both_s * s])])
            for part, s in zip(parts, (share, 1 - share), strict=True)
        ]
    return Training(*(part[part[:, 4] <= 128] for part in parts))


def sibling_rows(folder: Path, gpu: str) -> Training:
    """cuDNN's rows of another board of the architecture."""
    parts = [rows.cudnn_attention(folder, gpu, part) for part in attention.PARTS]
    return Training(*(part[part[:, 4] <= 128] for part in parts))


def _b200(folder: Path, part: str) -> Floats:
    """Transformer Engine's calls of cuDNN, less what was traced before the kernel, and SDPA's.

    Calls of 131,072 tokens (60 ms and more) ran at the power limit, 1120 TFLOP/s: they check it (`checks.py`).
    """
    traced = rows.simumax_attention(folder, "B200-SXM", part)
    traced = traced[traced[:, 1] < LIMITED_TOKENS]
    if part == "fwd":
        traced[:, 6] -= attention.TRACED_GAP_S["B200-SXM"]
    found = np.vstack([traced, rows.magi_attention(folder, "B200", "sdpa", part)])
    return np.asarray(found[found[:, 6] >= HOST_BOUND_S])


def flash_2_rows(folder: Path, recipe: Recipe) -> Training:
    """FlashAttention-2 on B200 (FlashMask), and on H100: forward's labels, and the pair's less them at equal shapes."""
    if recipe.device == "b200-sxm-180gb":
        return Training(*(rows.magi_attention(folder, "B200", "flash_mask", part) for part in attention.PARTS))
    forward = rows.flash_labels(folder, "flash3", "FlashAttention-2")
    pair = rows.flash_labels(folder, "flash2_h100", "FlashAttention-2")
    forward[:, 6], pair[:, 6] = _seconds(forward, 4.0), _seconds(pair, 14.0)
    forward, pair = (found[found[:, 4] <= 128] for found in (forward, pair))
    forward, pair = (found[np.lexsort(found[:, :6].T)] for found in (forward, pair))
    assert (forward[:, :6] == pair[:, :6]).all(), "the two plots hold different shapes"
    return Training(forward, np.column_stack([pair[:, :6], pair[:, 6] - forward[:, 6]]))


def cudnn_rows(folder: Path) -> Training:
    """cuDNN on H100: forward's labels (cuDNN 9.0) and MagiAttention's bars of both, as SDPA calls it."""
    labels = rows.flash_labels(folder, "flash3", "cuDNN")
    labels[:, 6] = _seconds(labels, 4.0)
    forward, backward = (rows.magi_attention(folder, "H100", "cudnn", part) for part in attention.PARTS)
    return Training(np.vstack([labels, forward]), backward)


def _seconds(labels: Floats, flops_per_pair: float) -> Floats:
    """Printed TFLOP/s to seconds; causal counts half of the pairs."""
    batch, tokens, heads, _, dim, causal, tflops = labels.T
    return np.asarray(flops_per_pair * batch * heads * tokens**2 * dim / np.where(causal > 0, 2, 1) / (tflops * 1e12))


def at_256(folder: Path, recipe: Recipe, kernel: str, board: str, plain: Floats) -> float:
    """The forward's time per FLOP at head dim 256 over 128's: of GB200 and GB300 their own, of B200 GB200's, of A100
    and L40S FlashAttention-2's on H100."""
    if recipe.device == "b200-sxm-180gb":
        known = board if board in SIBLINGS[recipe.device] else "gb200"
        gpu = SIBLINGS[recipe.device][known]
        wide = rows.cudnn_attention(folder, gpu, "fwd")
        return attention.wide(wide[wide[:, 4] == 256], sibling_rows(folder, gpu).forward, Device.load(known), 1.0)
    device = Device.load(recipe.device)
    labels = rows.flash_labels(folder, "flash3", kernel)
    labels[:, 6] = _seconds(labels, 4.0)
    if recipe.device in ("a100-sxm-80gb", "l40s"):
        device, plain = Device.load("h100-sxm-80gb"), labels[labels[:, 4] == 128]
    return attention.wide(labels[labels[:, 4] == 256], plain, device, 1.0)


def head_dims(forward: Floats, measured: list[int], device: Device) -> Floats:
    """Rows of `packed.HeadDim`: a head dim without a table of its own reads the nearest by the training kernel's."""
    form = Packed(**dict(zip(Packed.__struct_fields__, forward.tolist(), strict=True)))
    assert device.exponentials_per_s is not None
    found = []
    for dim in (32, 64, 128, 256):
        table = min(measured, key=lambda known: abs(np.log(known / dim)))
        per_flop = [form.score_s(d, 1.0, device.peak("bf16"), device.exponentials_per_s) / d for d in (dim, table)]
        found.append([dim, table, per_flop[0] / per_flop[1]])
    return np.array(found)


def fit(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Every packed array of one device."""
    device = Device.load(recipe.device)
    arrays: dict[str, Any] = {}
    _add_grid(arrays, "gemm", products.gemm_table(rows.gemm(folder, recipe.gemm_file), device))
    prefill = rows.attention_forward(folder, recipe.prefill_file)
    dims = [int(d) for d in np.unique(prefill[:, 4])]
    for dim in dims:
        _add_grid(arrays, f"attention_{dim}", attention.forward_table(prefill[prefill[:, 4] == dim], device))
    _add_training(arrays, folder, recipe)
    arrays["head_dims"] = head_dims(arrays["forward"], dims, device)
    arrays["memory_bound"] = rates.fit_memory(memory_rows(folder, recipe))
    if recipe.device == "a100-sxm-80gb":
        arrays["memory_bound_a40"] = rates.fit_memory(rates.additions(folder, "a40", Device.load("a40")))
    if recipe.device == "l40s":
        found = Busy(limit_flops=_l40s_limit(folder, arrays), slow=1.0, exposed=products.EXPOSED_START)
        of_groups = products.GROUPED_START
    else:
        busy_rows, burst_s, board = busy_products(folder, recipe, _read(arrays))
        found = products.fit_busy(busy_rows, burst_s, board)
        groups = products.grouped_simumax(folder, SIMUMAX_BOARDS.get(recipe.device, ""))
        of_groups = products.fit_grouped(groups, board, found.limit_flops)
    arrays["busy"] = np.array([found.limit_flops, found.slow, found.exposed])
    arrays["grouped"] = np.array([of_groups.slow, of_groups.exposed, of_groups.call_s])
    attention.add_unequal(folder, recipe.device, arrays)
    return arrays


UNTIMED = {"unequal": np.ones(2), "grouped": np.ones(3)}
"""What a curve needs to be read, where only equal head dims of attention are asked."""


def l40s_rows(folder: Path) -> tuple[Floats, Floats]:
    """Prefill rows of L40S from LONG_S on, and those of A100 of the same shapes."""
    a100, l40s = (rows.attention_forward(folder, f"kernels_attnfwd_{gpu}_vllm0.14.csv") for gpu in ("a100", "l40s"))
    seconds = {tuple(row[:5]): row[5] for row in a100}
    found = [row for row in l40s if tuple(row[:5]) in seconds and row[5] >= products.LONG_S]
    return np.array(found), np.array([[*row[:5], seconds[tuple(row[:5])]] for row in found])


def _l40s_limit(folder: Path, arrays: dict[str, Any]) -> float:
    """The power limit that carries A100's prefill over to L40S: its form on both boards, at each one's limit."""
    own, a100 = l40s_rows(folder)

    def misfit(limit: Floats) -> Floats:
        return l40s_by_limit(arrays, float(np.exp(limit[0])), a100) / own[:, 5] - 1

    found = least_squares(misfit, [np.log(0.6 * Device.load("l40s").peak("bf16"))], loss="soft_l1", f_scale=0.05)
    return float(np.exp(found.x[0]))


def l40s_by_limit(arrays: dict[str, Any], limit_flops: float, a100: Floats) -> Floats:
    """A100's prefill times carried to a L40S of that limit."""
    busy = np.array([limit_flops, 1.0, products.EXPOSED_START])
    device = Device.load("l40s")
    kernels = Kernels(device, device, DeviceCurves("l40s", arrays | {"busy": busy, **UNTIMED}))
    batch, tokens, heads, kv = a100[:, :4].T
    ratio = [
        one.attention_s(tokens, tokens, heads, kv, 128, True, batch=batch)
        for one in (kernels, Kernels.of("a100-sxm-80gb"))
    ]
    return np.asarray(a100[:, 5] * ratio[0] / ratio[1])


def _add_training(arrays: dict[str, Any], folder: Path, recipe: Recipe) -> None:
    newest = "FlashAttention-3" if recipe.device == "h100-sxm-80gb" else "FlashAttention-2"
    timed = [("", newest, ATTENTION_TIMED.get(recipe.device, recipe.device), training_rows(folder, recipe))]
    for board, gpu in SIBLINGS.get(recipe.device, {}).items():
        timed.append((f"_{board}", newest, board, sibling_rows(folder, gpu)))
    if recipe.device in ("h100-sxm-80gb", "b200-sxm-180gb"):
        timed.append(("_fa2", "FlashAttention-2", recipe.device, flash_2_rows(folder, recipe)))
    for ending, kernel, board, found in timed:
        device = Device.load(board)
        wide = at_256(folder, recipe, kernel, board, found.forward[found.forward[:, 4] == 128])
        _pack_training(arrays, ending, found, device, wide)
    if recipe.device == "h100-sxm-80gb":
        same_at_256 = float(arrays["forward"][-1])
        _pack_training(arrays, "_cudnn", cudnn_rows(folder), Device.load(recipe.device), same_at_256)


def _pack_training(arrays: dict[str, Any], ending: str, found: Training, device: Device, wide: float) -> None:
    arrays[f"forward{ending}"] = attention.packed(found.forward, device, 1.0, wide)
    arrays[f"backward{ending}"] = attention.packed(found.backward, device, 2.5, 1.0)


def _read(arrays: dict[str, Any]) -> LogGrid:
    return LogGrid([arrays[f"gemm_axis{i}"] for i in range(3)], arrays["gemm"])


def busy_products(folder: Path, recipe: Recipe, table: LogGrid) -> tuple[Floats, Floats, Device]:
    """Rows of products in long runs (m, n, k, accumulator bytes, seconds), their burst seconds, and their board."""
    board = Device.load(BUSY_BOARDS[recipe.device])
    if recipe.device == "h100-sxm-80gb":
        found = products.busy_vidur(folder, "h100")
    else:
        found = products.busy_simumax(folder, SIMUMAX_BOARDS[recipe.device])
    return found, products.read_gemm(table, *found[:, :3].T), board


def memory_rows(folder: Path, recipe: Recipe) -> Floats:
    """Ideal seconds and seconds of the memory-bound rows of a recipe."""
    if recipe.device == "b200-sxm-180gb":
        boards = (("NVIDIA GB200", "gb200"), ("NVIDIA GB300", "gb300"))
        backends = ("cudnn", "torch_compile")
        return np.vstack([rates.norms(folder, gpu, Device.load(name), backends) for gpu, name in boards])
    added = {"a100-sxm-80gb": "a100", "l40s": "a40", "h100-sxm-80gb": "h100"}[recipe.device]
    board = Device.load("a40" if added == "a40" else recipe.device)
    found = rates.additions(folder, added, board)
    if recipe.device != "h100-sxm-80gb":
        return found
    return np.vstack([found, rates.norms(folder, "NVIDIA H200", Device.load("h200-sxm-141gb"))])


def _add_grid(arrays: dict[str, Any], name: str, grid: Any) -> None:
    for i, axis in enumerate(grid.axes):
        arrays[f"{name}_axis{i}"] = axis
    arrays[name] = grid.log_s


def left_out(folder: Path, recipe: Recipe, arrays: dict[str, Any]) -> dict[str, Floats]:
    """Signed relative errors by operation, whole families left out; `arrays` is the fit of all rows."""
    device = Device.load(recipe.device)
    prefill = rows.attention_forward(folder, recipe.prefill_file)
    errors = {"gemm, n and k": products.gemm_left_out(rows.gemm(folder, recipe.gemm_file), device)}
    for dim in np.unique(prefill[:, 4]):
        found = attention.left_out_heads(prefill[prefill[:, 4] == dim], device)
        errors[f"attention prefill {int(dim)}, heads"] = found
    errors |= _training_left_out(folder, recipe)
    if recipe.device == "l40s":
        own, a100 = l40s_rows(folder)
        errors["attention by A100's, one limit"] = l40s_by_limit(arrays, arrays["busy"][0], a100) / own[:, 5] - 1
    else:
        errors |= _busy_left_out(folder, recipe, device)
    errors |= attention.unequal_left_out(folder, recipe.device, arrays)
    errors["memory-bound, sizes"] = rates.memory_left_out(memory_rows(folder, recipe))
    return errors


def _training_left_out(folder: Path, recipe: Recipe) -> dict[str, Floats]:
    if recipe.device == "l40s":
        return {}
    timed = [("", recipe.device, training_rows(folder, recipe))]
    if recipe.device in ("h100-sxm-80gb", "b200-sxm-180gb"):
        timed.append((" FA2", recipe.device, flash_2_rows(folder, recipe)))
    timed += [(f" {board}", board, sibling_rows(folder, g)) for board, g in SIBLINGS.get(recipe.device, {}).items()]
    errors = {}
    for words, board, training in timed:
        for part, found, passes in (("forward", training.forward, 1.0), ("backward", training.backward, 2.5)):
            signed = attention.left_out_training(found, Device.load(board), passes)
            errors[f"attention {part}{words}, heads and mask"] = signed
    return errors


def _busy_left_out(folder: Path, recipe: Recipe, device: Device) -> dict[str, Floats]:
    table = products.gemm_table(rows.gemm(folder, recipe.gemm_file), device)
    busy_rows, burst_s, board = busy_products(folder, recipe, table)
    errors = {"busy products, n and k": products.busy_left_out(busy_rows, burst_s, board)}
    if recipe.device in SIMUMAX_BOARDS:
        limit = products.fit_busy(busy_rows, burst_s, board).limit_flops
        groups = products.grouped_simumax(folder, SIMUMAX_BOARDS[recipe.device])
        errors["grouped products, groups"] = products.grouped_left_out(groups, board, limit)
    return errors
