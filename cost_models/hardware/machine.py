"""This machine: its name, cores, memory, GPUs and library versions, read without touching a device.

    nvidia-smi --query-gpu=name,memory.total,memory.free,uuid   ->  NVIDIA's GPUs, in the order of the PCI bus
    rocm-smi --showproductname --showmeminfo vram --json        ->  AMD's, where there are none of NVIDIA's
    /proc/meminfo (MemAvailable)                                ->  free host memory; elsewhere the physical amount

CUDA_VISIBLE_DEVICES (HIP_VISIBLE_DEVICES on AMD) chooses and orders them, as it does for the processes that compute.
Bytes throughout; no torch. Leaves out MIG slices.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = ("torch", "transformers", "mmsp")
_NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,uuid", "--format=csv,noheader,nounits")
_AMD = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    memory_bytes: int
    free_bytes: int
    uuid: str = ""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine; `versions` lacks a library that is not installed."""

    name: str
    cores: int
    memory_bytes: int
    free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One line, as `--dry-run` and the error messages show it."""
        cards = f"{len(self.gpus)} × {self.gpus[0].name}" if self.gpus else "no GPU"
        return f"{self.name}: {cards}, {self.cores} cores, {self.free_bytes / 2**30:.1f} GiB of memory free"


def discover() -> Host:
    """This host, now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Host(
        name=socket.gethostname(),
        cores=cores(),
        memory_bytes=total,
        free_bytes=_available_bytes() or total,
        gpus=gpus(),
        versions=versions(),
    )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def versions() -> dict[str, str]:
    """Installed versions of the libraries that a job's speed and results depend on."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that a process started here can use, in the order in which it numbers them."""
    nvidia = parse_nvidia(output(*_NVIDIA))
    if nvidia:
        return visible(nvidia, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return visible(parse_amd(output(*_AMD)), os.environ.get("HIP_VISIBLE_DEVICES"))


def output(program: str, *arguments: str) -> str:
    """What a program prints; empty where it is not installed, fails, or takes longer than 20 s."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        answer = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def visible(cards: Sequence[Gpu], chosen: str | None) -> tuple[Gpu, ...]:
    """The cards that a list of indices or UUIDs leaves; as in CUDA, the first name that is none ends the list.

    >>> a, b = (Gpu(name=n, memory_bytes=1, free_bytes=1, uuid=f"GPU-{n}") for n in "ab")
    >>> [gpu.name for gpu in visible([a, b], "1,0")], visible([a, b], "-1"), visible([a, b], "GPU-b")[0].name
    (['b', 'a'], (), 'b')
    """
    if chosen is None:
        return tuple(cards)
    kept: list[Gpu] = []
    for name in (part.strip() for part in chosen.split(",")):
        if name.isascii() and name.isdigit():
            matching = list(cards[int(name) : int(name) + 1]) if len(name) < 6 else []
        else:
            matching = [gpu for gpu in cards if name and gpu.uuid.startswith(name)]
        if len(matching) != 1 or matching[0] in kept:
            break
        kept.append(matching[0])
    return tuple(kept)


def parse_nvidia(listing: str) -> tuple[Gpu, ...]:
    """Lines of `name, total MiB, free MiB, UUID`.

    >>> parse_nvidia("NVIDIA H100 80GB HBM3, 81559, 80000, GPU-5b1c")[0].memory_bytes // 2**30
    79
    """
    cards = []
    for line in listing.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 3)]
        if len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
            total, free = (int(part) * 2**20 for part in parts[1:3])
            cards.append(Gpu(name=parts[0], memory_bytes=total, free_bytes=free, uuid=parts[3]))
    return tuple(cards)


def parse_amd(listing: str) -> tuple[Gpu, ...]:
    """rocm-smi's JSON: one object a card, whose keys are spelt in several ways.

    >>> parse_amd('{"card0": {"Card Series": "AMD Instinct MI210", "VRAM Total Memory (B)": "68702699520"}}')[0].name
    'AMD Instinct MI210'
    """
    try:
        data = json.loads(listing or "{}")
    except ValueError:
        return ()
    cards = []
    for _, facts in sorted(data.items(), key=lambda item: (len(item[0]), item[0])) if isinstance(data, dict) else ():
        if not isinstance(facts, dict):
            continue
        known = {str(key).lower(): str(value) for key, value in facts.items()}
        name = known.get("card series") or known.get("device name") or known.get("card model")
        total, used = (known.get(f"vram total {word}memory (b)", "0") for word in ("", "used "))
        if name and total.isdigit() and int(total):
            taken = int(used) if used.isdigit() else 0
            cards.append(Gpu(name=name, memory_bytes=int(total), free_bytes=int(total) - taken))
    return tuple(cards)


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
