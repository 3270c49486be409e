"""Which attention kernel a name means on a card, and how it is called. Left out: what the executor runs there."""

from __future__ import annotations

from typing import get_args

from cost_models.hardware.device import Device
from cost_models.workload import Kernel

ATTENTION_KERNELS = tuple(filter(None, get_args(Kernel)))
"""Training's: the newest; FlashAttention-2; as torchtitan orders SDPA's backends (that, on Blackwell cuDNN)."""
KERNEL_WORDS = {
    ("ampere", "fa2"): "FlashAttention-2",
    ("ada", "fa2"): "FlashAttention-2",
    ("hopper", "newest"): "FlashAttention-3 (cuDNN backward)",
    ("hopper", "fa2"): "FlashAttention-2",
    ("blackwell", "newest"): "cuDNN",
    ("blackwell", "fa2"): "FlashAttention-2, in instructions of older cards",
}
"""By architecture and kernel; elsewhere FlashAttention-2's share of the peak."""


def kernel_of(device: Device, attention: str) -> str:
    """The curve that an attention kernel's name means on a device."""
    if device.architecture not in ("hopper", "blackwell"):
        return "fa2"
    return attention if attention != "sdpa" else ("newest" if device.architecture == "blackwell" else "fa2")
