"""Products of several experts in one call against SimuMax's table of grouped products on B200 (108 rows)."""

import csv
import statistics

from cost_models.expert_layer import GROUPED_SLOWDOWN
from cost_models.kernels import Kernels
from cost_models.validation.rows import FOLDER


def ratios() -> list[float]:
    """Measured over the sum of the experts' own products."""
    kernels, found = Kernels.of("b200-sxm-180gb-capped"), []
    with (FOLDER / "kernels_simumax_efficiency.csv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["op"] == "group_matmul" and row["gpu"] == "B200-SXM"]
    for row in rows:
        cells = dict(cell.strip().split("=") for cell in row["shape"].split(";"))
        groups, m, n, k = (int(cells[name]) for name in ("ng", "M", "N", "K"))
        measured_s = 2.0 * groups * m * n * k / (float(row["measured_tflops"]) * 1e12)
        if cells["stage"] == "bwd_grad_w":
            alone_s = kernels.gemm_s(k, n, m, accumulate="fp32")
        else:
            alone_s = kernels.gemm_s(m, n, k) if cells["stage"] == "fwd" else kernels.gemm_s(m, k, n)
        found.append(measured_s / (groups * float(alone_s)))
    return found


def test_the_slowdown_is_the_table_s_median() -> None:
    found = ratios()
    assert len(found) == 108
    assert abs(statistics.median(found) / GROUPED_SLOWDOWN - 1) < 0.01
    off = sorted(abs(GROUPED_SLOWDOWN / ratio - 1) for ratio in found)
    assert off[len(off) // 2] < 0.15
