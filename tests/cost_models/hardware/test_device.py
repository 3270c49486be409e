"""Device presets: facts of the data sheets, and what a wrong name or a wrong file says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cost_models.errors import InputError
from cost_models.hardware.device import Device, read_device
from cost_models.timing.collectives import LINKS
from cost_models.timing.kernels import Kernels
from cost_models.timing.packed import BASES

GOOD = {
    "architecture": "hopper",
    "memory_gib": 80,
    "memory_tb_per_s": 3.35,
    "peak_tflops": {"bf16": 989.4},
    "sms": 132,
    "clock_mhz": 1830,
    "link": "nvlink4",
    "source": "test",
}


@pytest.mark.parametrize("name", Device.names())
def test_every_preset_is_complete(name: str) -> None:
    device = Device.load(name)
    assert device.name == name and device.source and device.link in LINKS
    assert device.architecture == "cpu" or device.architecture in BASES
    assert device.peak_16bit >= device.peak_flops["fp32"] > 0
    assert device.peak_flops.get("fp16", device.peak_16bit) <= device.peak_16bit
    assert device.peak_flops.get("fp8", 1e18) >= device.peak_16bit
    assert device.peak_flops.get("fp4", 1e18) >= device.peak_flops.get("fp8", 0.0)


def test_facts_of_the_data_sheets() -> None:
    # NVIDIA H100 SXM5, A100 SXM4 80 GB and DGX B200 data sheets, dense rates
    h100, a100, b200 = (Device.load(n) for n in ("h100-sxm-80gb", "a100-sxm-80gb", "b200-sxm-180gb"))
    assert (h100.peak("bf16"), h100.memory_bytes, h100.memory_bytes_per_s) == (989.4e12, round(79.65 * 2**30), 3.35e12)
    assert (a100.peak("bf16"), a100.sms) == (312e12, 108)
    assert a100.memory_bytes_per_s == pytest.approx(2.039e12)
    assert (b200.peak("bf16"), b200.sms, b200.memory_bytes_per_s) == (2250e12, 148, 8e12)


def test_power_and_a_published_sustained_rate_are_optional() -> None:
    # NVIDIA data sheets: A100 400 W as SXM, 300 W as PCIe 80 GB
    watts = [Device.load(name).power_w for name in ("a100-sxm-80gb", "a100-pcie-80gb")]
    assert watts == [400, 300] and read_device(GOOD, "mine").power_w is None
    known = read_device({**GOOD, "power_w": 350, "sustained_tflops": 600}, "mine")
    assert (known.power_w, known.sustained_flops) == (350, 600e12)


@pytest.mark.parametrize(
    ("name", "peak_16bit", "bandwidth", "gib"),
    [
        ("v100-sxm2-32gb", 125e12, 900e9, 32),  # NVIDIA V100 data sheet
        ("t4", 65e12, 320e9, 16),  # NVIDIA T4 data sheet
        ("a10", 125e12, 600e9, 24),  # NVIDIA A10 data sheet
        ("a40", 149.7e12, 696e9, 48),  # NVIDIA A40 data sheet
        ("l4", 121e12, 300e9, 24),  # NVIDIA L4 data sheet: 242 with sparsity
        ("l40s", 362e12, 864e9, 48),  # NVIDIA L40S data sheet
        ("rtx3090", 71e12, 936e9, 24),  # NVIDIA GA102 white paper, fp32 accumulation
        ("h100-nvl-94gb", 835e12, 3.9e12, 94),  # NVIDIA H100 data sheet, NVL
        ("h100-sxm-96gb", 989.4e12, 2.4e12, 96),  # torchtitan, benchmarks/llama3_h100_202412_torchtitan.md
        ("h200-sxm-141gb", 989.4e12, 4.8e12, 141),  # NVIDIA H200 data sheet
        ("gb200", 2500e12, 8e12, 192),  # NVIDIA GB200 NVL72 data sheet, one GPU
        ("mi250x-gcd", 191.5e12, 1.638e12, 64),  # AMD MI250X data sheet, halved
        ("mi300x", 1307.4e12, 5.3e12, 192),  # AMD MI300X data sheet
        ("mi355x", 2516.6e12, 8e12, 288),  # AMD MI355X data sheet
    ],
)
def test_more_data_sheets(name: str, peak_16bit: float, bandwidth: float, gib: float) -> None:
    device = Device.load(name)
    assert (device.peak_16bit, device.memory_bytes_per_s) == pytest.approx((peak_16bit, bandwidth))
    assert 0.9 * gib <= device.memory_bytes / 2**30 <= gib  # drivers and decimal gigabytes take some


def test_cards_without_bf16_are_priced_in_fp16_and_say_so() -> None:
    v100, a100 = Kernels.of("v100-sxm2-32gb"), Kernels.of("a100-sxm-80gb")
    ratio = v100.gemm_s(8192, 8192, 8192, "fp16") / a100.gemm_s(8192, 8192, 8192, "fp16")
    assert ratio == pytest.approx(312 / 125, rel=0.05) and v100.is_estimate("gemm")
    with pytest.raises(InputError, match="v100-sxm2-32gb has no bf16 peak; it has fp16, fp32"):
        v100.gemm_s(8192, 8192, 8192)


def test_fp4_has_its_own_peak_where_the_hardware_has_one() -> None:
    b200 = Kernels.of("b200-sxm-180gb")
    assert b200.gemm_s(8192, 8192, 8192, "fp4") < 0.6 * b200.gemm_s(8192, 8192, 8192, "fp8")
    with pytest.raises(InputError, match="has no fp4 peak"):
        Kernels.of("h100-sxm-80gb").gemm_s(8192, 8192, 8192, "fp4")


def test_a_limited_clock_takes_flops_and_leaves_bandwidth() -> None:
    full, limited = Device.load("h100-sxm-80gb"), Device.load("h100-sxm-80gb").at_clock(1.2e9)
    assert limited.peak("fp8") == pytest.approx(full.peak("fp8") * 1.2 / 1.83)
    assert limited.memory_bytes_per_s == full.memory_bytes_per_s
    slower = Kernels.of(limited)
    assert slower.gemm_s(8192, 8192, 8192) > Kernels.of(full).gemm_s(8192, 8192, 8192)
    for clock in (0.0, -1e9, 3e9):
        with pytest.raises(InputError, match="at least 1, at most 1830 MHz"):
            full.at_clock(clock)


@pytest.mark.parametrize(
    ("name", "near"), [("V100", "v100-"), ("h200", "h200-"), ("A100-80GB", "a100-"), ("MI300", "mi300")]
)
def test_the_nearest_names_of_a_wrong_one(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"is unknown; nearest: {near}"):
        Device.load(name)


def test_unknown_name_lists_the_legal_ones_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'h100-sxm-80g' is unknown; nearest: h100-sxm-80gb.*; legal: a10, a100-pcie"):
        Device.load("h100-sxm-80g")


def test_a_dtype_without_a_peak_is_refused() -> None:
    with pytest.raises(InputError, match="a100-sxm-80gb has no fp8 peak; it has bf16, fp16, fp32"):
        Device.load("a100-sxm-80gb").peak("fp8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_gb": 80}, "memory_gb is unknown; did you mean memory_gib"),
        ({"power_w": -1}, "power_w=-1.0 must be above 0 \\(finite\\), or left out"),
        ({"memory_gib": -1}, "memory_bytes=-1073741824 must be above 0"),
        ({"memory_tb_per_s": 0}, "memory_bytes_per_s=0.0 must be above 0"),
        ({"architecture": "fermi"}, "architecture='fermi'; legal: volta"),
        ({"link": "nvlink9"}, "link='nvlink9' is unknown; did you mean nvlink5"),
        ({"sms": 0}, "sms=0 must be above 0"),
        ({"clock_mhz": -5}, "clock_hz=-5000000.0 must be above 0"),
        ({"peak_tflops": {"fp32": 125}}, "neither bf16 nor fp16"),
        ({"peak_tflops": {"bf16": -1}}, "peak bf16=-1"),
    ],
)
def test_a_wrong_preset_names_the_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_device({**GOOD, **change}, "mine")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["memory_bytes", "memory_bytes_per_s", "sms", "clock_hz", "power_w", "sustained_flops", "peak_flops"]
)
def test_a_device_of_no_number_is_refused(name: str, wrong: float) -> None:
    value = {"bf16": wrong} if name == "peak_flops" else wrong
    with pytest.raises(InputError, match=f"({name}|peak bf16)={wrong} must be above 0|peak bf16={wrong}; legal"):
        replace(Device.load("h100-sxm-80gb"), **{name: value})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match=r"device mine\.link is missing"):
        read_device({key: value for key, value in GOOD.items() if key != "link"}, "mine")


def test_leonardo_s_card_adds_up_to_its_rank_in_the_top500() -> None:
    # TOP500, November 2022 on: Leonardo, Rpeak 306.31 PFLOP/s of fp64 (128 FLOP a clock and multiprocessor)
    card = Device.load("a100-sxm-64gb")
    assert 13824 * card.sms * 128 * card.clock_hz == pytest.approx(306.31e15, rel=0.01)
    assert card.peak("bf16") == pytest.approx(card.sms * 2048 * card.clock_hz, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gib"), [("a100-sxm-80gb", 79.25), ("rtx3090", 23.70), ("h200-sxm-141gb", 139.80), ("cpu", 16)]
)
def test_programs_get_what_cuda_reports(name, gib):
    """PyTorch's "total capacity", which is below what nvidia-smi lists."""
    device = Device.load(name)
    assert device.allocatable_bytes == round(gib * 2**30) <= device.memory_bytes
    assert device.allocatable_source


def test_a_card_that_nobody_reported_keeps_half_a_gib_for_its_driver():
    device = Device.load("b300")
    assert not device.allocatable_source
    assert device.memory_bytes - device.allocatable_bytes == 2**29


@pytest.mark.parametrize("change", [{"allocatable_gib": 90, "allocatable_source": "x"}, {"allocatable_gib": 70}])
def test_impossible_or_unsourced_allocatable_memory_is_refused(change):
    with pytest.raises(InputError, match="allocatable"):
        read_device({**GOOD, "memory_gib": 80, **change}, "mine")
