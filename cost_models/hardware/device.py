"""One accelerator as data: memory, peaks by dtype, link, and from which data sheet each number is.

A preset is a YAML file in `presets/devices/`, its name the file's stem. Peaks are dense (no structured sparsity), in
FLOP/s at the boost clock of the data sheet; memory is what the driver lists (nvidia-smi), in bytes, of which programs
get less (`allocatable_bytes`); its bandwidth in bytes/s. What the context, libraries and fragmentation take of that is
the memory model's business; how much of a peak a kernel reaches
is `kernels.py`'s. Cards before Ampere have no bf16: `peak_16bit` is what all of them have, `peak("bf16")` is refused. A
card that is kept below its clock (`at_clock`) loses FLOP/s in proportion and no bandwidth. Left out: MIG slices, and
what a power cap makes of the clock (give the clock, or a profile).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.links import LINKS

FOLDER = Path(__file__).parents[1] / "presets" / "devices"
Dtype = Literal["fp64", "fp32", "bf16", "fp16", "fp8", "fp4"]
DTYPE_BYTES: dict[str, float] = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": 0.5}
"""Every numeric type of a weight, an activation or a product; which of them a device computes in, `peak_flops` says."""
EXPONENTIALS_PER_CLOCK = 16
"""Of a multiprocessor (CUDA programming guide, throughput of native arithmetic; a quarter of AMD's 64 lanes)."""
LEAST_CLOCK_HZ = 1e6
DRIVER_GIB = 0.5
"""What the driver keeps of the memory that it lists, where nobody printed what programs get: an estimate. The presets
that have it printed: NVIDIA's 0.25 to 1.1, median 0.5 (V100: 0.02), AMD's MI300X 0.02."""
ARCHITECTURES = ("volta", "turing", "ampere", "ada", "hopper", "blackwell", "cdna2", "cdna3", "cdna4", "gaudi", "cpu")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Data-sheet facts of one accelerator.

    >>> Device.load("h100-sxm-80gb").peak_flops["bf16"] / 1e12
    989.4
    """

    name: str
    architecture: str
    memory_bytes: int
    memory_bytes_per_s: float
    peak_flops: Mapping[str, float]
    sms: int | None
    clock_hz: float | None
    link: str  # what joins it to its neighbours in a node: a name of `links.LINKS`
    source: str
    power_w: float | None = field(default=None, metadata={"optional": True})  # board power limit; none: unknown
    sustained_flops: float | None = field(default=None, metadata={"optional": True})
    """16-bit products of a busy board, where published; none: by curves and power."""
    driver_bytes: int = round(DRIVER_GIB * 2**30)  # of the memory, which the driver keeps for itself
    allocatable_source: str = ""  # empty: an estimate

    @classmethod
    def load(cls, name: str) -> Device:
        """The preset `name`; an unknown name is an InputError that lists the legal ones."""
        return _read(name)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Every preset, sorted."""
        return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))

    def peak(self, dtype: str) -> float:
        """Dense peak of `dtype` in FLOP/s; a dtype that the hardware lacks is an InputError."""
        if dtype not in self.peak_flops:
            raise InputError(f"{self.name} has no {dtype} peak; it has {', '.join(self.peak_flops)}")
        return self.peak_flops[dtype]

    @property
    def peak_16bit(self) -> float:
        """Dense peak of training's usual products: bf16, or fp16 where the hardware has no bf16.

        >>> Device.load("v100-sxm2-32gb").peak_16bit / 1e12
        125.0
        """
        return self.peak_flops.get("bf16") or self.peak_flops["fp16"]

    @property
    def allocatable_bytes(self) -> int:
        """What the driver hands out to all programs together: `total_memory` of CUDA, "total capacity" of PyTorch.

        >>> round(Device.load("a100-sxm-80gb").allocatable_bytes / 2**30, 2)
        79.25
        """
        return max(0, self.memory_bytes - self.driver_bytes)

    @property
    def exponentials_per_s(self) -> float | None:
        """What the softmax of attention waits for; `None` where SMs or clock are not known.

        >>> Device.load("a100-sxm-80gb").exponentials_per_s / 1e12
        2.43648
        """
        return None if self.sms is None or self.clock_hz is None else EXPONENTIALS_PER_CLOCK * self.sms * self.clock_hz

    def at_clock(self, clock_hz: float) -> Device:
        """The same card kept at a lower clock: peaks in proportion, bandwidth as it was.

        >>> Device.load("h100-sxm-80gb").at_clock(0.915e9).peak("bf16") / 1e12
        494.7
        """
        if self.clock_hz is None or not LEAST_CLOCK_HZ <= clock_hz <= self.clock_hz:
            most = "no clock in its preset" if self.clock_hz is None else f"at most {self.clock_hz / 1e6:.0f} MHz"
            raise InputError(f"{self.name}: clock {clock_hz / 1e6:g} MHz; at least {LEAST_CLOCK_HZ / 1e6:g}, {most}")
        share = clock_hz / self.clock_hz
        peaks = MappingProxyType({dtype: flops * share for dtype, flops in self.peak_flops.items()})
        busy = None if self.sustained_flops is None else min(self.sustained_flops, self.peak_16bit * share)
        return replace(self, clock_hz=clock_hz, peak_flops=peaks, sustained_flops=busy)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"{self.name}: architecture={self.architecture!r}; legal: {', '.join(ARCHITECTURES)}")
        if self.link not in LINKS:
            raise InputError(f"{self.name}: link={self.link!r} is unknown; {strict.nearest(self.link, LINKS)}")
        for name in ("memory_bytes", "memory_bytes_per_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{self.name}: {name}={getattr(self, name)} must be above 0 and finite")
        if self.driver_bytes < 0:
            raise InputError(f"{self.name}: allocatable memory is above the memory that the driver lists")
        for name in ("power_w", "sustained_flops"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{self.name}: {name}={value} must be above 0 (finite), or left out where unknown")
        for name in ("sms", "clock_hz"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{self.name}: {name}={value} must be above 0 (finite), or null where it has none")
        for dtype, flops in self.peak_flops.items():
            if dtype not in DTYPE_BYTES or not 0 < flops < math.inf:
                raise InputError(
                    f"{self.name}: peak {dtype}={flops}; legal: {', '.join(DTYPE_BYTES)}, above 0 and finite"
                )
        if not {"bf16", "fp16"} & set(self.peak_flops):
            raise InputError(f"{self.name}: peak_flops has neither bf16 nor fp16, which every curve is scaled by")


@cache
def _read(name: str) -> Device:
    if name not in Device.names():
        near = [known for known in Device.names() if known.startswith(name.lower())]
        near = (near or difflib.get_close_matches(name.lower(), Device.names(), n=3, cutoff=0.5))[:3]
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise InputError(f"device={name!r} is unknown{hint}; legal: {', '.join(Device.names())}")
    return read_device(strict.parse_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), f"device {name}"), name)


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """A preset's file: sizes in GiB, TB/s and TFLOP/s, as data sheets print them."""

    architecture: str
    memory_gib: float
    memory_tb_per_s: float
    peak_tflops: Mapping[str, float]
    sms: int | None
    clock_mhz: float | None
    link: str
    source: str
    power_w: float | None = None
    sustained_tflops: float | None = None
    allocatable_gib: float | None = None  # what programs get
    allocatable_source: str = ""


def read_device(data: object, name: str) -> Device:
    """A device from the keys of a preset's file; a wrong one is an InputError that names the key."""
    sheet = strict.read(_Sheet, data, f"device {name}")
    if (sheet.allocatable_gib is None) != (not sheet.allocatable_source):
        raise InputError(f"device {name}: allocatable_gib and allocatable_source come together or not at all")
    given, listed = sheet.allocatable_gib, round(sheet.memory_gib * 2**30)
    return Device(
        name=name,
        architecture=sheet.architecture,
        memory_bytes=listed,
        memory_bytes_per_s=sheet.memory_tb_per_s * 1e12,
        peak_flops=MappingProxyType({dtype: tflops * 1e12 for dtype, tflops in sheet.peak_tflops.items()}),
        sms=sheet.sms,
        clock_hz=None if sheet.clock_mhz is None else sheet.clock_mhz * 1e6,
        link=sheet.link,
        source=sheet.source,
        power_w=sheet.power_w,
        sustained_flops=None if sheet.sustained_tflops is None else sheet.sustained_tflops * 1e12,
        driver_bytes=round(DRIVER_GIB * 2**30) if given is None else listed - round(given * 2**30),
        allocatable_source=sheet.allocatable_source,
    )
