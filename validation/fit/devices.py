"""All packed arrays of one measured device, and the error of each operation on families left out.

What is fitted to what, by device:
            gemm, paged prefill   training attention, forward and backward            memory-bound
    A100    vLLM 0.14             FlashAttention-2 labels of the pair, SimuMax         Vidur additions
    H100    vLLM 0.19 (FA3)       FA3 labels (forward), cuDNN on H200 (same die)       Vidur additions, norms on H200
    B200    vLLM 0.19             cuDNN on GB200 (same die, other clock: by share)     norms on GB200
What a busy board makes of products: SimuMax's matmuls (A100 PCIe, B200), Vidur's projections (H100): `products.py`.
Grouped products: SimuMax's on the same two boards: `products.py`.
The A100 pair is split by the forward's share of the pair in SimuMax's rows of many heads. Head dims 64 and 128 are
fitted together where both were timed; 256 is a ratio to 128. Left out: SimuMax's B200 attention rows (host time below
1 ms, a power limit above), sglang's grid, digitised plots. H100 also has FlashAttention-2, a second training kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cost_models.curves.grid import Floats, LogGrid
from cost_models.hardware.device import Device
from cost_models.timing.packed import BUSY_BOARDS
from cost_models.timing.packed import Training as Packed
from validation.fit import attention, products, rates, rows

SIMUMAX_BOARDS = {"a100-sxm-80gb": "A100-PCIe-80GB", "b200-sxm-180gb": "B200-SXM"}
"""Curve -> the board of its architecture that SimuMax's tables were timed on."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which files make the curves of one device."""

    device: str
    gemm_file: str
    prefill_file: str
    training_device: str  # whose peak the training rows are shares of
    sources: dict[str, dict[str, Any]]  # by operation: `source` in words, `measured_on`: presets


RECIPES = tuple(
    Recipe(device=device, **recipe)
    for device, recipe in yaml.safe_load((rows.DEFAULT_FOLDER / "recipes.yaml").read_text(encoding="utf-8")).items()
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Rows of contiguous training kernels up to head dim 128: batch, tokens, heads, kv heads, dim, causal, seconds."""

    forward: Floats
    backward: Floats


def training_rows(folder: Path, recipe: Recipe) -> Training:
    """The rows that RECIPES' table names."""
    if recipe.device == "b200-sxm-180gb":
        parts = [rows.cudnn_attention(folder, "NVIDIA GB200", part) for part in ("fwd", "bwd")]
    elif recipe.device == "h100-sxm-80gb":
        parts = [rows.cudnn_attention(folder, "NVIDIA H200", part) for part in ("fwd", "bwd")]
        labels = rows.flash_labels(folder, "flash3", "FlashAttention-3")
        labels[:, 6] = _seconds(labels, 4.0)
        parts[0] = np.vstack([parts[0], labels])
    else:
        parts = [rows.simumax_attention(folder, "A100-PCIe-80GB", part) for part in ("fwd", "bwd")]
        many = parts[0][:, 2] >= 32
        share = float(np.median(parts[0][many, 6] / (parts[0][many, 6] + parts[1][many, 6])))
        labels = rows.flash_labels(folder, "flash2_a100", "FlashAttention-2")
        both_s = _seconds(labels, 14.0)
        parts = [
            np.vstack([part, np.column_stack([labels[:, :6], both_s * s])])
            for part, s in zip(parts, (share, 1 - share), strict=True)
        ]
    forward, backward = (part[part[:, 4] <= 128] for part in parts)
    return Training(forward=forward, backward=backward)


def flash_2_rows(folder: Path) -> Training:
    """FlashAttention-2 on H100: the forward's labels, and the pair's less the forward's of the same shape."""
    forward = rows.flash_labels(folder, "flash3", "FlashAttention-2")
    pair = rows.flash_labels(folder, "flash2_h100", "FlashAttention-2")
    forward[:, 6], pair[:, 6] = _seconds(forward, 4.0), _seconds(pair, 14.0)
    forward, pair = (found[found[:, 4] <= 128] for found in (forward, pair))
    forward, pair = (found[np.lexsort(found[:, :6].T)] for found in (forward, pair))
    assert (forward[:, :6] == pair[:, :6]).all(), "the two plots hold different shapes"
    return Training(forward=forward, backward=np.column_stack([pair[:, :6], pair[:, 6] - forward[:, 6]]))


def _seconds(labels: Floats, flops_per_pair: float) -> Floats:
    """Printed TFLOP/s to seconds; causal counts half of the pairs."""
    batch, tokens, heads, _, dim, causal, tflops = labels.T
    return np.asarray(flops_per_pair * batch * heads * tokens**2 * dim / np.where(causal > 0, 2, 1) / (tflops * 1e12))


def at_256(folder: Path, recipe: Recipe, kernel: str, plain: Floats) -> float:
    """The forward's time per FLOP at head dim 256 over 128's; A100's FlashAttention-2 is taken as H100's."""
    device = Device.load(recipe.training_device)
    if recipe.device == "b200-sxm-180gb":
        rows_256 = rows.cudnn_attention(folder, "NVIDIA GB200", "fwd")
        return attention.wide(rows_256[rows_256[:, 4] == 256], plain, device, 1.0)
    labels = rows.flash_labels(folder, "flash3", kernel)
    labels[:, 6] = _seconds(labels, 4.0)
    if recipe.device == "a100-sxm-80gb":
        device, plain = Device.load("h100-sxm-80gb"), labels[labels[:, 4] == 128]
    return attention.wide(labels[labels[:, 4] == 256], plain, device, 1.0)


def head_dims(forward: Floats, measured: list[int]) -> Floats:
    """Rows of `packed.HeadDim`: a head dim without a table of its own reads the nearest by the training kernel's."""
    form = Packed(**dict(zip(Packed.__struct_fields__, forward.tolist(), strict=True)))
    found = []
    for dim in (32, 64, 128, 256):
        table = min(measured, key=lambda known: abs(np.log(known / dim)))
        found.append([dim, table, form.width(dim) / form.width(table)])
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
    arrays["head_dims"] = head_dims(arrays["forward"], dims)
    arrays["memory_bound"] = rates.fit_memory(memory_rows(folder, recipe))
    busy_rows, burst_s, board = busy_products(folder, recipe, _read(arrays))
    found = products.fit_busy(busy_rows, burst_s, board)
    arrays["busy"] = np.array([found.limit_flops, found.slow, found.exposed])
    of_groups = products.fit_grouped(
        products.grouped_simumax(folder, SIMUMAX_BOARDS.get(recipe.device, "")), board, found.limit_flops
    )
    arrays["grouped"] = np.array([of_groups.slow, of_groups.exposed, of_groups.call_s])
    arrays["unequal"] = attention.fit_unequal(folder, recipe.device, arrays)
    return arrays


def _add_training(arrays: dict[str, Any], folder: Path, recipe: Recipe) -> None:
    kernels = [("", "FlashAttention-2" if recipe.device == "a100-sxm-80gb" else "FlashAttention-3")]
    kernels += [("_fa2", "FlashAttention-2")] if recipe.device == "h100-sxm-80gb" else []
    device = Device.load(recipe.training_device)
    for suffix, kernel in kernels:
        found = flash_2_rows(folder) if suffix else training_rows(folder, recipe)
        wide = at_256(folder, recipe, kernel, found.forward[found.forward[:, 4] == 128])
        arrays[f"forward{suffix}"] = attention.packed(found.forward, device, 1.0, wide)
        arrays[f"backward{suffix}"] = attention.packed(found.backward, device, 2.5, 1.0)


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
        return rates.norms(folder, "NVIDIA GB200", Device.load("gb200"), ("cudnn", "torch_compile"))
    added = rates.additions(folder, recipe.device[:4], Device.load(recipe.device))
    if recipe.device == "a100-sxm-80gb":
        return added
    return np.vstack([added, rates.norms(folder, "NVIDIA H200", Device.load("h200-sxm-141gb"))])


def _add_grid(arrays: dict[str, Any], name: str, grid: Any) -> None:
    for i, axis in enumerate(grid.axes):
        arrays[f"{name}_axis{i}"] = axis
    arrays[name] = grid.log_s


def left_out(folder: Path, recipe: Recipe, arrays: dict[str, Any]) -> dict[str, Floats]:
    """Signed relative errors by operation, whole families left out; `arrays` is the fit of all rows."""
    device, training_device = Device.load(recipe.device), Device.load(recipe.training_device)
    training = training_rows(folder, recipe)
    prefill = rows.attention_forward(folder, recipe.prefill_file)
    errors = {"gemm, n and k": products.gemm_left_out(rows.gemm(folder, recipe.gemm_file), device)}
    for dim in np.unique(prefill[:, 4]):
        found = attention.left_out_heads(prefill[prefill[:, 4] == dim], device)
        errors[f"attention prefill {int(dim)}, heads"] = found
    parts = [("forward", training.forward, 1.0), ("backward", training.backward, 2.5)]
    if recipe.device == "h100-sxm-80gb":
        older = flash_2_rows(folder)
        parts += [("forward FA2", older.forward, 1.0), ("backward FA2", older.backward, 2.5)]
    for name, found, passes in parts:
        errors[f"attention {name}, heads and mask"] = attention.left_out_training(found, training_device, passes)
    busy_rows, burst_s, board = busy_products(
        folder, recipe, products.gemm_table(rows.gemm(folder, recipe.gemm_file), device)
    )
    errors["busy products, n and k"] = products.busy_left_out(busy_rows, burst_s, board)
    if recipe.device in SIMUMAX_BOARDS:
        limit, groups = products.fit_busy(busy_rows, burst_s, board).limit_flops, SIMUMAX_BOARDS[recipe.device]
        errors["grouped products, groups"] = products.grouped_left_out(
            products.grouped_simumax(folder, groups), board, limit
        )
    errors |= attention.unequal_left_out(folder, recipe.device, arrays)
    errors["memory-bound, sizes"] = rates.memory_left_out(memory_rows(folder, recipe))
    return errors
