"""A fused norm in a step takes what was measured of the code whose kernel it is."""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Model, Strategy, Workload
from cost_models.framework import OURS
from cost_models.layer.operators import norm
from cost_models.layer.sizes import RankSizes
from cost_models.timing.kernels import Kernels
from validation.fit.rows import read_rows
from validation.rows import FOLDER

MODEL = Model.load("llama-3-8b")
DEVICES = {"NVIDIA H200": "h200-sxm-141gb", "NVIDIA GB200": "gb200"}


@pytest.mark.parametrize("gpu", DEVICES)
@pytest.mark.parametrize(
    ("backend", "kernel"), [("cudnn", "library"), ("pytorch", "pytorch"), ("torch_compile", "compiled")]
)
def test_forward_and_backward_together(gpu: str, backend: str, kernel: str) -> None:
    """Rows of 60 MB and more: within a quarter in the median; one number for all took PyTorch's at half."""
    kernels, framework = Kernels.of(DEVICES[gpu]), replace(OURS, norm="fused", norm_kernel=kernel)
    off = []
    for row in read_rows(FOLDER, "kernels_norms_cudnn.csv"):
        tokens, hidden = int(row["N"]), int(row["C"])
        same = (row["gpu_name"], row["backend"], row["norm_type"]) == (gpu, backend, "rms_norm")
        if not same or row["success"] != "True" or tokens * hidden * 2 < 60e6:
            continue
        work = Workload(replace(MODEL, hidden=hidden), context_tokens=tokens)
        one = norm(RankSizes(work, Strategy(), framework), "norm")
        found = sum(float(kernels.memory_bound_s(each.moved, each.launches)) for each in one.passes)
        off.append(found / (1e-3 * (float(row["fwd_time_ms"]) + float(row["bwd_time_ms"]))) - 1)
    assert len(off) == 7
    assert abs(np.median(off)) < 0.25
