"""What can be planned for, one line each: clusters, devices and frameworks, with the source of what is said of them."""

from __future__ import annotations

from cost_models.errors import InputError
from cost_models.framework import Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.timing.packed import BASES
from cost_models.units import show_bytes


def cluster_lines() -> list[str]:
    """
    >>> next(line for line in cluster_lines() if line.startswith("dgx-h100"))
    'dgx-h100            DGX H100: 8 GPUs on NVSwitch (NVLink 4), 8 x ConnectX-7 NDR 400 Gbit/s; data sheet'
    """
    return [f"{name:<18}  {Cluster.about(name)}" for name in Cluster.presets()]


def device_lines() -> list[str]:
    """
    >>> next(line for line in device_lines() if line.startswith("t4 "))[:70]
    't4                     15.00 GiB    0.32 TB/s     65 TFLOP/s fp16  est'
    """
    lines = []
    for name in Device.names():
        try:
            device = Device.load(name)
        except InputError as error:  # one wrong file hides no other
            lines.append(f"{name:<21}  {error}")
            continue
        half = "bf16" if "bf16" in device.peak_flops else "fp16"
        known = "measured" if name in BASES.values() else "estimate"
        rate, peak = device.memory_bytes_per_s / 1e12, device.peak_16bit / 1e12
        figures = f"{show_bytes(device.memory_bytes):>9}  {rate:>6.3g} TB/s  {peak:>5.4g} TFLOP/s {half}"
        lines.append(f"{name:<21}  {figures}  {known}  {device.source}")
    return lines


def framework_lines() -> list[str]:
    """
    >>> next(line for line in framework_lines() if line.startswith("torchtitan "))
    'torchtitan                 torchtitan: FSDP2 under torch.compile'
    """
    return [f"{name:<25}  {Framework.load(name).title}" for name in Framework.names("step")]


def fact_lines(name: str) -> list[str]:
    """What is known of one framework: the fields that a fact settles, and below them the reason.

    >>> fact_lines("flash-attention")
    ['flash-attn 2 alone', 'attention=fa2', '    one GPU, one kernel']
    """
    framework = Framework.load(name)
    facts: dict[str, list[str]] = {}
    for field, why in framework.reasons.items():
        value = getattr(framework, field)
        facts.setdefault(why, []).append(f"{field}={value}" if isinstance(value, str | int | float) else field)
    return [framework.title, *(line for why, settled in facts.items() for line in (", ".join(settled), f"    {why}"))]
