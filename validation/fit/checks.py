"""Measured rows of other set-ups against the packed curves: how far another set-up's kernels are.

    Vidur projections    A100, H100: the GEMMs of seven models by tokens and tensor degree, timed inside a running model
    SimuMax matmuls      A100 PCIe, B200: by exact shape; the three products of a layer
    sglang prefill       H100: the same paged shapes under another server's kernel
    MagiAttention plots  H100: FA3 forward and backward, digitised (trust C)
    SimuMax attention    B200: 131,072 tokens, long enough to be at the board's power limit
The first two at the burst clock show what a busy board costs; the busy fit took SimuMax's rows and Vidur's H100 rows
of at least 0.1 ms, so that only Vidur's A100 rows and short products are new to the held clock.

How wrong a device is that nobody measured (`scaled_errors`): H100's and L40S's rows from A100's curves, B200's from
H100's, by the data sheets, as any unmeasured device is scaled. The band that an estimate states is the median error
over all steps; each is one generation, so it is what to expect of a new one and more than to expect of a sibling (H200
from H100). Products are compared at the burst clock, as timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cost_models.curves.grid import Floats
from cost_models.hardware.device import Device
from cost_models.timing.kernels import CLOCKS, Kernels
from cost_models.timing.packed import DeviceCurves
from cost_models.timing.shapes import attention_pairs
from validation.fit import devices
from validation.fit.attention import PARTS
from validation.fit.products import busy_simumax, busy_vidur
from validation.fit.rows import attention_forward, gemm, read_rows, simumax_attention


def errors(folder: Path) -> dict[str, Floats]:
    """Signed relative errors (predicted over measured, minus one) by set of rows."""
    found = {}
    for clock in CLOCKS:
        for gpu in ("a100-pcie-80gb", "h100-sxm-80gb"):
            rows = _products(busy_vidur(folder, gpu[:4]), Kernels.of(gpu, clock=clock))
            found[f"{gpu}, {clock} clock: Vidur projections"] = _ratios(rows)
        for gpu, board in (("a100-pcie-80gb", "A100-PCIe-80GB"), ("b200-sxm-180gb", "B200-SXM")):
            rows = _products(busy_simumax(folder, board), Kernels.of(gpu, clock=clock))
            found[f"{gpu}, {clock} clock: SimuMax matmuls"] = _ratios(rows)
    found["b200-sxm-180gb: SimuMax attention at the power limit"] = _ratios(_limited(folder))
    h100 = Kernels.of("h100-sxm-80gb")
    found["h100-sxm-80gb: sglang paged prefill"] = _ratios(_sglang(folder, h100))
    for part in ("fwd", "bwd"):
        found[f"h100-sxm-80gb: MagiAttention plot, FA3 {part}"] = _ratios(_magi(folder, part, h100))
    return found


def _ratios(pairs: Iterator[tuple[float, float]]) -> Floats:
    table = np.array(list(pairs))
    return np.asarray(table[:, 0] / table[:, 1] - 1)


def _products(rows: Floats, kernels: Kernels) -> Iterator[tuple[float, float]]:
    for m, n, k, added, seconds in rows:
        accumulate = {0: None, 4: "bf16", 8: "fp32"}[int(added)]
        yield float(kernels.gemm_s(m, n, k, accumulate=accumulate)), seconds


def _sglang(folder: Path, kernels: Kernels) -> Iterator[tuple[float, float]]:
    for batch, tokens, heads, kv, dim, seconds in attention_forward(folder, "kernels_attnfwd_h100_sglang0.5.9.csv"):
        yield float(kernels.attention_s(tokens, tokens, heads, kv, int(dim), True, batch=batch, paged=True)), seconds


def _limited(folder: Path) -> Iterator[tuple[float, float]]:
    kernels = Kernels.of("b200-sxm-180gb")
    for part in PARTS:
        for batch, tokens, heads, kv, dim, _, seconds in simumax_attention(folder, "B200-SXM", part):
            if tokens >= devices.LIMITED_TOKENS:
                call = (tokens, tokens, heads, kv, int(dim), True, part == "bwd", batch)
                yield float(kernels.attention_s(*call)), seconds


def _magi(folder: Path, part: str, kernels: Kernels) -> Iterator[tuple[float, float]]:
    for row in read_rows(folder, "kernels_attn_magi_digitized.csv"):
        if row["gpu"] == "H100" and row["impl"] == "fa3" and row["pass"] == part:
            causal, tokens = row["mask"] == "causal", int(row["seq_len"])
            predicted = kernels.attention_s(tokens, tokens, 64, 8, 128, causal, backward=part == "bwd")
            flops = float((4.0 if part == "fwd" else 10.0) * 64 * attention_pairs(tokens, tokens, causal) * 128)
            yield float(predicted), flops / (float(row["tflops"]) * 1e12)


STEPS = (("h100-sxm-80gb", "a100-sxm-80gb"), ("l40s", "a100-sxm-80gb"), ("b200-sxm-180gb", "h100-sxm-80gb"))


def scaled_errors(folder: Path, fitted: Mapping[str, Mapping[str, Any]]) -> dict[str, Floats]:
    """Signed relative errors by operation, over STEPS; `fitted`: packed arrays by device."""
    found: dict[str, list[Floats]] = {}
    recipes = {recipe.device: recipe for recipe in devices.RECIPES}
    for name, base in STEPS:
        curves = DeviceCurves(base, fitted[base])
        for op, signed in _step(folder, recipes[name], curves).items():
            found.setdefault(op, []).append(signed)
    return {op: np.concatenate(parts) for op, parts in found.items()}


def _step(folder: Path, recipe: devices.Recipe, curves: DeviceCurves) -> dict[str, Floats]:
    base = Device.load(curves.name)
    timed = Kernels(Device.load(recipe.device), base, curves, clock="burst")
    m, n, k, seconds = gemm(folder, recipe.gemm_file).T
    found = {"gemm": timed.gemm_s(m, n, k) / seconds - 1}
    training = devices.training_rows(folder, recipe)
    if recipe.device == "l40s":
        return found  # its attention is A100's already, and its memory's rows are A40's
    kernels = Kernels(Device.load(recipe.device), base, curves)
    for op, part in (("attention_forward", training.forward), ("attention_backward", training.backward)):
        predicted = [
            kernels.attention_s(s, s, heads, kv, int(dim), bool(causal), op == "attention_backward", batch)
            for batch, s, heads, kv, dim, causal, _ in part
        ]
        found[op] = np.array(predicted) / part[:, 6] - 1
    ideal, seconds = devices.memory_rows(folder, recipe).T
    launch_s, share = curves.memory_bound("")
    found["memory_bound"] = (launch_s + ideal / share) / seconds - 1
    return found
