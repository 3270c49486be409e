"""What is here: this host's name, cores, memory, NVIDIA GPUs and library versions, read without touching a device.

    nvidia-smi --query-gpu=name,memory.total,memory.free   ->  gpus, in the order of their CUDA indices
    /proc/meminfo (MemAvailable)                           ->  free host memory; elsewhere the physical amount

Bytes throughout. Importing this module imports no torch: a plan is compared with the host before anything heavy is
loaded. Leaves out: other vendors' GPUs, MIG slices, the links between GPUs (`executor profile` measures those).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = ("torch", "transformers", "mmsp")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine as found; `versions` lacks a library that is not installed."""

    name: str
    cores: int
    memory_bytes: int
    free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One line, as `--dry-run` and the error messages show it."""
        found = f"{len(self.gpus)} × {self.gpus[0].name}" if self.gpus else "no NVIDIA GPU"
        return f"{self.name}: {found}, {self.cores} cores, {self.free_bytes / 2**30:.1f} GiB of memory free"


def discover() -> Host:
    """This host, now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Host(
        name=socket.gethostname(),
        cores=cores(),
        memory_bytes=total,
        free_bytes=_available_bytes() or total,
        gpus=_nvidia_gpus(),
        versions=versions(),
    )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def versions() -> dict[str, str]:
    """Installed versions of the libraries that a job's speed and results depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _nvidia_gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(answer.stdout) if answer.returncode == 0 else ()


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """Lines of `name, total MiB, free MiB`.

    >>> parse_gpus("NVIDIA H100 80GB HBM3, 81559, 80000")[0].memory_bytes // 2**30
    79
    """
    gpus = []
    for line in listing.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            gpus.append(Gpu(name=parts[0], memory_bytes=int(parts[1]) * 2**20, free_bytes=int(parts[2]) * 2**20))
    return tuple(gpus)
