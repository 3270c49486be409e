"""Measured rows that no curve was shaped by, against the packed curves: how far another set-up's kernels are.

    Vidur projections    A100, H100: the GEMMs of seven models by tokens and tensor degree, timed inside a running model
    SimuMax matmuls      A100 PCIe, B200: by exact shape
    sglang prefill       H100: the same paged shapes under another server's kernel
    MagiAttention plots  H100: FA3 forward and backward, digitised (trust C)
Grids timed in short bursts run at clocks that a busy GPU does not hold; `held` in the packed curves is one constant
per device from the long products of Vidur (A100, H100) and SimuMax (B200). A100 PCIe, and short products, check it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cost_models.curves.grid import Floats
from cost_models.fit.rows import attention_forward, read_rows
from cost_models.kernels import CLOCKS, Kernels, attention_pairs

LEAST_TOKENS = 512


def errors(folder: Path) -> dict[str, Floats]:
    """Signed relative errors (predicted over measured, minus one) by set of rows."""
    found = {}
    for clock in CLOCKS:
        for gpu in ("a100-sxm-80gb", "h100-sxm-80gb"):
            rows = vidur(folder, gpu[:4], Kernels.of(gpu, clock=clock))
            found[f"{gpu}, {clock} clock: Vidur projections"] = _ratios(rows)
        for gpu in ("a100-pcie-80gb", "b200-sxm-180gb"):
            rows = simumax(folder, Kernels.of(gpu, clock=clock))
            found[f"{gpu}, {clock} clock: SimuMax matmuls"] = _ratios(rows)
    h100 = Kernels.of("h100-sxm-80gb")
    found["h100-sxm-80gb: sglang paged prefill"] = _ratios(_sglang(folder, h100))
    for part in ("fwd", "bwd"):
        found[f"h100-sxm-80gb: MagiAttention plot, FA3 {part}"] = _ratios(_magi(folder, part, h100))
    return found


def _ratios(pairs: Iterator[tuple[float, float]]) -> Floats:
    table = np.array(list(pairs))
    return np.asarray(table[:, 0] / table[:, 1] - 1)


def vidur(folder: Path, gpu: str, kernels: Kernels) -> Iterator[tuple[float, float]]:
    """(predicted, measured) seconds of the four projections."""
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
            n, k = shapes[row["op"]]
            yield kernels.gemm_s(tokens, n, k), float(row["median_ms"]) * 1e-3


def simumax(folder: Path, kernels: Kernels) -> Iterator[tuple[float, float]]:
    """(predicted, measured) seconds of single matrix products on an A100 PCIe or a B200."""
    gpu = "B200-SXM" if kernels.device.architecture == "blackwell" else "A100-PCIe-80GB"
    for row in read_rows(folder, "kernels_simumax_efficiency.csv"):
        if row["gpu"] == gpu and row["op"] == "matmul":
            shape = dict(part.strip().split("=") for part in row["shape"].split(";"))
            batch, m, n, k = (int(shape[c]) for c in ("b", "m", "n", "k"))
            if batch == 1 and min(m, n, k) > 1:
                yield kernels.gemm_s(m, n, k), 2.0 * m * n * k / (float(row["measured_tflops"]) * 1e12)


def _sglang(folder: Path, kernels: Kernels) -> Iterator[tuple[float, float]]:
    for batch, tokens, heads, kv, dim, seconds in attention_forward(folder, "kernels_attnfwd_h100_sglang0.5.9.csv"):
        yield kernels.attention_s(tokens, tokens, heads, kv, int(dim), True, batch=batch, paged=True), seconds


def _magi(folder: Path, part: str, kernels: Kernels) -> Iterator[tuple[float, float]]:
    for row in read_rows(folder, "kernels_attn_magi_digitized.csv"):
        if row["impl"] == "fa3" and row["pass"] == part:
            causal, tokens = row["mask"] == "causal", int(row["seq_len"])
            predicted = kernels.attention_s(tokens, tokens, 64, 8, 128, causal, backward=part == "bwd")
            flops = (4.0 if part == "fwd" else 10.0) * 64 * attention_pairs(tokens, tokens, causal) * 128
            yield predicted, flops / (float(row["tflops"]) * 1e12)
