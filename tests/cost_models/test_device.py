"""Device presets: facts of the data sheets, and what a wrong name or a wrong file says."""

from __future__ import annotations

import pytest

from cost_models.collectives import LINKS
from cost_models.curves.packed import BASES
from cost_models.device import Device, from_mapping
from cost_models.errors import InputError

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
    assert device.peak_flops["bf16"] >= device.peak_flops["fp32"] > 0
    assert device.peak_flops.get("fp8", 1e18) >= device.peak_flops["bf16"]


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
    assert watts == [400, 300] and from_mapping(GOOD, "mine").power_w is None
    known = from_mapping({**GOOD, "power_w": 350, "sustained_tflops": 600}, "mine")
    assert (known.power_w, known.sustained_flops) == (350, 600e12)


def test_unknown_name_lists_the_legal_ones_and_the_nearest() -> None:
    with pytest.raises(InputError, match="'h100-sxm-80g' is unknown; nearest: h100-sxm-80gb; legal: a100-pcie-40gb"):
        Device.load("h100-sxm-80g")


def test_a_dtype_without_a_peak_is_refused() -> None:
    with pytest.raises(InputError, match="a100-sxm-80gb has no fp8 peak; it has bf16, fp16, fp32"):
        Device.load("a100-sxm-80gb").peak("fp8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_gb": 80}, "unknown key 'memory_gb'"),
        ({"power_w": -1}, "power_w=-1 must be above 0, or left out"),
        ({"memory_gib": -1}, "memory_bytes=-1073741824 must be above 0"),
        ({"memory_tb_per_s": 0}, "memory_bytes_per_s=0.0 must be above 0"),
        ({"architecture": "volta"}, "architecture='volta'; legal: ampere"),
        ({"peak_tflops": {"fp16": 125}}, "no bf16"),
        ({"peak_tflops": {"bf16": -1}}, "peak bf16=-1"),
    ],
)
def test_a_wrong_preset_names_the_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_mapping({**GOOD, **change}, "mine")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match="key 'link' is missing"):
        from_mapping({key: value for key, value in GOOD.items() if key != "link"}, "mine")
