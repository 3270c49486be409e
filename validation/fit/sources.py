"""How wrong attention and products are on rows of a source that the fit never saw: signed errors by domain and source.

    measured   a board's curve without one of its sources, on the rows of that source
    scaled     a board's rows by another board's curve, as boards that nobody measured are priced

    predicted / measured - 1, kernels of at least LONG_S. Keys: domain ("attention, measured"), then board and source.

Products in long runs have one source a board but for A100: H100's, B200's and A40's are predicted as scaled boards'
are, from grid and limit of another. Left out: FlashAttention-2 on newer boards (one source each), paged prefill,
grouped products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cost_models.curves.grid import Floats
from cost_models.hardware.device import Device
from cost_models.timing.kernels import Kernels
from cost_models.timing.packed import BUSY_BOARDS, device_curves
from cost_models.timing.power_limit import Busy, limit_flops
from validation.fit import attention, devices, products, rows

PASSES = {"fwd": 1.0, "bwd": 2.5}
Errors = dict[str, Floats]


def left_out_sources(folder: Path) -> dict[str, Errors]:
    """By domain, the errors of each source."""
    return {
        "attention, measured": _attention_measured(folder),
        "attention, scaled": _attention_scaled(folder),
        "products, measured": _products_measured(folder),
        "products, scaled": _products_scaled(folder),
    }


def _attention_measured(folder: Path) -> Errors:
    found: Errors = {}
    for board, by_part in _attention_sources(folder).items():
        for part, sources in by_part.items():
            for name, out in sources.items():
                others = [one for other, one in sources.items() if other != name]
                form = attention.fit_training(np.vstack(others), Device.load(board), PASSES[part])
                found[f"{board}, {name}, {part}"] = attention.errors(form, out, Device.load(board))
    return found


def _attention_sources(folder: Path) -> dict[str, dict[str, Mapping[str, Floats]]]:
    """Rows of equal head dims up to 128 from LONG_S on, by board, pass and source."""
    recipes = {recipe.device: recipe for recipe in devices.RECIPES}
    a100 = devices.training_rows(folder, recipes["a100-sxm-80gb"])
    h100 = devices.training_rows(folder, recipes["h100-sxm-80gb"])
    b200 = devices.training_rows(folder, recipes["b200-sxm-180gb"])
    made: dict[str, dict[str, Mapping[str, Floats]]] = {"a100-sxm-80gb": {}, "h100-sxm-80gb": {}, "b200-sxm-180gb": {}}
    for part, on_a100, on_h100, on_b200 in (
        ("fwd", a100.forward, h100.forward, b200.forward),
        ("bwd", a100.backward, h100.backward, b200.backward),
    ):
        simumax = len(rows.simumax_attention(folder, "A100-PCIe-80GB", part))
        made["a100-sxm-80gb"][part] = {"SimuMax": on_a100[:simumax], "FlashAttention-2's labels": on_a100[simumax:]}
        cudnn = len(rows.cudnn_attention(folder, "NVIDIA H200", part))
        h100_sources = {"cuDNN on H200": on_h100[:cudnn], "FlashAttention-3's labels": on_h100[cudnn:]}
        h100_sources["MagiAttention's FA3"] = rows.magi_attention(folder, "H100", "fa3", part)
        made["h100-sxm-80gb"][part] = {name: one for name, one in h100_sources.items() if len(one)}
        bars = len(_long(rows.magi_attention(folder, "B200", "sdpa", part), devices.HOST_BOUND_S))
        made["b200-sxm-180gb"][part] = {"SimuMax": on_b200[:-bars], "MagiAttention's SDPA": on_b200[-bars:]}
    return {
        board: {
            part: {name: _long(one, products.LONG_S) for name, one in sources.items()}
            for part, sources in parts.items()
        }
        for board, parts in made.items()
    }


def _attention_scaled(folder: Path) -> Errors:
    """B200 from H100, H100 from A100, GB300 from GB200, L40S from A100 at one limit."""
    found: Errors = {}
    for board, base in (("h100-sxm-80gb", "a100-sxm-80gb"), ("b200-sxm-180gb", "h100-sxm-80gb")):
        for part, sources in _attention_sources(folder)[board].items():
            kernels = Kernels(Device.load(board), Device.load(base), device_curves(base), clock="burst")
            found[f"{board} from {base}, {part}"] = _attention_errors(kernels, np.vstack(list(sources.values())), part)
    for part in attention.PARTS:
        gb200, gb300 = (_long(_sibling(folder, gpu, part), products.LONG_S) for gpu in ("NVIDIA GB200", "NVIDIA GB300"))
        form = attention.fit_training(gb200, Device.load("gb200"), PASSES[part])
        found[f"gb300 from gb200, {part}"] = attention.errors(form, gb300, Device.load("gb300"))
    own, a100 = devices.l40s_rows(folder)
    curves = device_curves("l40s")
    seconds = devices.l40s_by_limit(dict(curves.arrays), curves.busy.limit_flops, a100)
    found["l40s from a100-sxm-80gb, prefill"] = seconds / own[:, 5] - 1
    return found


def _sibling(folder: Path, gpu: str, part: str) -> Floats:
    found = rows.cudnn_attention(folder, gpu, part)
    return np.asarray(found[found[:, 4] <= 128])


def _attention_errors(kernels: Kernels, measured: Floats, part: str) -> Floats:
    predicted = [
        kernels.attention_s(s, s, heads, kv, int(dim), bool(causal), part == "bwd", batch)
        for batch, s, heads, kv, dim, causal, _ in measured
    ]
    return np.array(predicted) / measured[:, 6] - 1


def _products_measured(folder: Path) -> Errors:
    """A100: Vidur's projections by SimuMax's limit, and the other way round."""
    device = Device.load("a100-sxm-80gb")
    board = Device.load("a100-pcie-80gb")
    table = products.gemm_table(rows.gemm(folder, devices.RECIPES[0].gemm_file), device)
    sources = {
        "SimuMax": products.busy_simumax(folder, "A100-PCIe-80GB"),
        "Vidur": products.busy_vidur(folder, "a100"),
    }
    found: Errors = {}
    for name, other in (("SimuMax", "Vidur"), ("Vidur", "SimuMax")):
        fitted, out = sources[other], sources[name]
        busy = products.fit_busy(fitted, products.read_gemm(table, *fitted[:, :3].T), board)
        found[f"a100, {name}"] = _busy_errors(busy, board, out, products.read_gemm(table, *out[:, :3].T))
    return found


def _products_scaled(folder: Path) -> Errors:
    """Long runs of H100 and A40 from A100, and of B200 from H100: grid and limit are the other board's."""
    found: Errors = {}
    for name, base, measured in (
        ("h100-sxm-80gb", "a100-sxm-80gb", products.busy_vidur(folder, "h100")),
        ("b200-sxm-180gb", "h100-sxm-80gb", products.busy_simumax(folder, "B200-SXM")),
        ("a40", "a100-sxm-80gb", products.busy_vidur(folder, "a40")),
    ):
        device, other, busy = Device.load(name), Device.load(base), device_curves(base).busy
        unknown = replace(device, name="unknown", sustained_flops=None)
        limit = limit_flops(unknown, other, Device.load(BUSY_BOARDS[base]), busy.limit_flops)
        kernels = Kernels(replace(unknown, sustained_flops=limit), other, device_curves(base))
        m, n, k, added, seconds = _long(measured, products.LONG_S, 4).T
        adding_s = products.EXPOSED_START * added * m * n / device.memory_bytes_per_s
        found[f"{name} from {base}"] = np.asarray(kernels.gemm_s(m, n, k) + adding_s) / seconds - 1
    return found


def _busy_errors(busy: Busy, board: Device, measured: Floats, burst_s: Floats) -> Floats:
    long = measured[:, 4] >= products.LONG_S
    return np.asarray(products.busy_s(busy, board, measured[long], burst_s[long]) / measured[long, 4] - 1)


def _long(measured: Floats, least_s: float, column: int = 6) -> Floats:
    return np.asarray(measured[measured[:, column] >= least_s])
