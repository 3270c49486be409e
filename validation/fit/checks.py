"""Measured rows of other set-ups against the packed curves: how far another set-up's kernels are.

    Vidur projections    A100, H100: the GEMMs of seven models by tokens and tensor degree, timed inside a running model
    SimuMax matmuls      A100 PCIe, B200: by exact shape; the three products of a layer
    sglang prefill       H100: the same paged shapes under another server's kernel
    MagiAttention plots  H100: FA3 forward and backward, digitised (trust C)
The first two at the burst clock show what a busy board costs; `fit/busy.py` took SimuMax's rows and Vidur's H100 rows
of at least 0.1 ms, so that only Vidur's A100 rows and short products are new to the held clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cost_models.curves.grid import Floats
from cost_models.timing.kernels import CLOCKS, Kernels, attention_pairs
from validation.fit import busy
from validation.fit.rows import attention_forward, read_rows


def errors(folder: Path) -> dict[str, Floats]:
    """Signed relative errors (predicted over measured, minus one) by set of rows."""
    found = {}
    for clock in CLOCKS:
        for gpu in ("a100-pcie-80gb", "h100-sxm-80gb"):
            rows = _products(busy.vidur(folder, gpu[:4]), Kernels.of(gpu, clock=clock))
            found[f"{gpu}, {clock} clock: Vidur projections"] = _ratios(rows)
        for gpu, board in (("a100-pcie-80gb", "A100-PCIe-80GB"), ("b200-sxm-180gb-capped", "B200-SXM")):
            rows = _products(busy.simumax(folder, board), Kernels.of(gpu, clock=clock))
            found[f"{gpu}, {clock} clock: SimuMax matmuls"] = _ratios(rows)
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
        yield kernels.gemm_s(m, n, k, accumulate=accumulate), seconds


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
