"""Products of several experts in one call: SimuMax's tables of grouped products, and the form's own properties."""

import numpy as np
import pytest

from cost_models.hardware.device import Device
from cost_models.timing.grouped import Grouped
from cost_models.timing.kernels import Kernels
from cost_models.timing.slowest import KernelsInUse
from validation.fit import products
from validation.rows import FOLDER

BOARDS = {"b200-sxm-180gb": ("B200-SXM", 108, 0.08), "a100-pcie-80gb": ("A100-PCIe-80GB", 12, 0.03)}


@pytest.mark.parametrize("board", BOARDS)
def test_the_tables_are_met(board: str) -> None:
    gpu, count, median = BOARDS[board]
    rows = products.grouped_simumax(FOLDER, gpu)
    assert len(rows) == count
    kernels, errors = Kernels.of(board), []
    for m, n, k, result, seconds, groups in rows:
        accumulate = {2: None, 4: "bf16", 8: "fp32"}[int(result)]
        errors.append(float(kernels.grouped_s(groups, m, n, k, accumulate=accumulate)) / (groups * seconds) - 1)
    assert np.median(np.abs(errors)) < median and abs(np.median(errors)) < 0.02


def test_a_form_is_found_again() -> None:
    board, limit = Device.load("a100-pcie-80gb"), 240e12
    truth = Grouped(slow=1.1, exposed=0.6, call_s=2e-5)
    shapes = [
        (m, n, k, r, 0.0, 8.0) for m in (8, 64, 512, 2048) for n, k in ((512, 1024), (4096, 8192)) for r in (2, 8)
    ]
    rows = np.array(shapes)
    rows[:, 4] = products.grouped_s(truth, board, limit, rows)
    found = products.fit_grouped(rows, board, limit)
    assert found.slow == pytest.approx(1.1, rel=0.05) and found.exposed == pytest.approx(0.6, rel=0.1)
    assert found.call_s == pytest.approx(2e-5, rel=0.1)
    assert products.fit_grouped(rows[:0], board, limit).exposed == pytest.approx(products.GROUPED_START.exposed)


@pytest.mark.parametrize("device", ["b200-sxm-180gb", "h100-sxm-80gb", "mi300x", "cpu"])
def test_one_group_is_a_product_and_more_take_longer(device: str) -> None:
    kernels = Kernels.of(device)
    alone = kernels.gemm_s(512, 4096, 2048)
    assert kernels.grouped_s(1, 512, 4096, 2048) == alone
    each = [kernels.grouped_s(groups, 512, 4096, 2048) for groups in (2, 8, 64)]
    assert each == sorted(each) and each[2] == pytest.approx(32 * each[0])
    assert kernels.grouped_s(8, 512, 4096, 2048, accumulate="fp32") >= each[1]
    assert each[1] >= 8 * 2 * 512 * 4096 * 2048 / kernels.device.peak_16bit


def test_arrays_of_candidates_and_memory_answer_alike() -> None:
    kernels = Kernels.of("h100-sxm-80gb")
    groups, rows = np.array([1, 4, 16]), np.array([4096, 1024, 256])
    one = [kernels.grouped_s(int(g), int(m), 4096, 2048, accumulate="fp32") for g, m in zip(groups, rows, strict=True)]
    assert kernels.grouped_s(groups, rows, 4096, 2048, accumulate="fp32").tolist() == pytest.approx(one)
    remembered = KernelsInUse([kernels])
    again = [
        remembered.grouped_s(int(g), int(m), 4096, 2048, accumulate="fp32")
        for g, m in zip(groups, rows, strict=True)
        for _ in range(2)
    ]
    assert again == [seconds for seconds in one for _ in range(2)]
