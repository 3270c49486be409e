"""Which attention kernel a name means on a card, and how it is called. Left out: what the executor runs there."""

from __future__ import annotations

from typing import get_args

from cost_models.hardware.device import Device
from cost_models.workload import Kernel

ATTENTION_KERNELS = (*filter(None, get_args(Kernel)), "cudnn")
"""Training's: the newest; FlashAttention-2; as torchtitan orders SDPA's backends (that, on Blackwell cuDNN); cuDNN."""
KERNEL_WORDS = {
    ("ampere", "fa2"): "FlashAttention-2",
    ("ada", "fa2"): "FlashAttention-2",
    ("hopper", "newest"): "FlashAttention-3 (cuDNN backward)",
    ("hopper", "fa2"): "FlashAttention-2",
    ("hopper", "cudnn"): "cuDNN, as PyTorch has it",
    ("blackwell", "newest"): "cuDNN",
    ("blackwell", "fa2"): "FlashAttention-2, in instructions of older cards",
}
"""By architecture and kernel; elsewhere FlashAttention-2's share of the peak."""


def kernel_of(device: Device, attention: str) -> str:
    """The curve that an attention kernel's name means on a device."""
    if device.architecture not in ("hopper", "blackwell"):
        return "fa2"
    if device.architecture == "blackwell":
        return "fa2" if attention == "fa2" else "newest"
    return "fa2" if attention == "sdpa" else attention
