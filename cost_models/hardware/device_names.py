"""Which preset a card's printed name means: the one matcher for `nvidia-smi`, `rocm-smi`, plans and published rows.

    "NVIDIA H100 80GB HBM3", 85.5 GB  ->  family h100, form sxm (no other is said), nearest memory  ->  h100-sxm-80gb

The family is the first word of the preset's name and must be a word of the printed name; then the form (SXM, PCIe, NVL)
decides, then the memory. A card of another memory size, or a variant with another chip (Ti, Laptop), is refused.
"""

from __future__ import annotations

import difflib
import re

from cost_models.errors import InputError
from cost_models.hardware.device import Device

_FORMS = ("pcie", "nvl", "sxm", "ada", "pro")
_VARIANTS = {"ti", "super", "laptop", "mobile", "d", "max"}
"""Words after which a workstation card's name means another chip."""
MEMORY_MARGIN = 0.15
"""Between decimal and binary gigabytes, and what a driver keeps for itself."""
_MOST_PRINTED_GB = 300.0
"""A larger number in a name is the host's memory (GH200 480GB)."""


def device_of(text: str, memory_gb: float | None = None) -> Device:
    """The preset that a card's printed name means; `memory_gb` (10^9 bytes) overrides the size in the name.

    >>> device_of("A100-SXM4-80GB").name, device_of("H100 PCIe", 80).name, device_of("RTX A6000", 48).name
    ('a100-sxm-80gb', 'h100-pcie-80gb', 'rtxa6000')
    """
    words = re.split(r"[^a-z0-9]+", text.lower())
    named = [name for name in Device.names() if {_family(name), name.split("-")[0]} & set(words)]
    if not named or _VARIANTS & set(words):
        raise _unknown(text, words, "")
    if memory_gb is None:
        printed = [float(word[:-2]) for word in words if re.fullmatch(r"\d+gb", word)]
        memory_gb = next((size for size in printed if size <= _MOST_PRINTED_GB), None)
    form = next((form for form in _FORMS if any(word.startswith(form) for word in words)), "sxm")

    def distance(name: str) -> tuple[bool, float, str]:
        size = Device.load(name).memory_bytes / 1e9
        off = abs(size - memory_gb) if memory_gb else 0.0
        return not any(part.startswith(form) for part in name.split("-")), off, name

    device = Device.load(min(named, key=distance))
    if memory_gb and abs(device.memory_bytes / 1e9 / memory_gb - 1) > MEMORY_MARGIN:
        raise _unknown(text, words, f" with {memory_gb:.0f} GB")
    return device


def same_card(device: Device, text: str, memory_gb: float | None = None) -> bool:
    """Whether a card that prints this name is the preset's.

    >>> same_card(Device.load("h100-sxm-80gb"), "NVIDIA H100 80GB HBM3"), same_card(Device.load("l20"), "NVIDIA L40")
    (True, False)
    """
    try:
        printed = device_of(text, memory_gb)
    except InputError:
        return False
    return printed.name == device.name


def _family(name: str) -> str:
    """First word of a preset's name, as cards print it: `rtx4090` is sold as "RTX 4090"."""
    return name.split("-")[0].removeprefix("rtx")


def _unknown(text: str, words: list[str], size: str) -> InputError:
    """The refusal, with the presets whose family is spelt most like a word of the name."""
    likeness = {
        name: max(difflib.SequenceMatcher(None, _family(name), word).ratio() for word in words)
        for name in Device.names()
    }
    near = sorted(likeness, key=lambda name: (-likeness[name], name))[:3]
    return InputError(
        f"gpu={text!r}{size} matches no preset; nearest: {', '.join(near)}; describe it in a cluster file"
    )
