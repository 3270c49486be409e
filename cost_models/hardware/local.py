"""This machine as a cluster of one node: its NVIDIA GPUs if `nvidia-smi` lists any, else CPU processes.

CPU processes share cores and memory bandwidth: `gpus` processes split what the machine has, so each one's speed is
an estimate until `executor profile` has measured it. Memory per process is the machine's, divided evenly.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, Fabric, Nics, Node, NodeRun, ScaleUp
from cost_models.hardware.device import Device

MAX_PROCESSES = 64
PRESET_CORES = 2
"""Cores of the machine whose peaks the cpu preset states."""


def local_cluster(processes: int | None) -> Cluster:
    """One node of this machine's GPUs, or of `processes` CPU ranks (default: the cores)."""
    found = _nvidia_gpus()
    if found:
        return _gpu_node(found, processes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    count = cores if processes is None else processes
    if not 1 <= count <= MAX_PROCESSES:
        raise InputError(f"--gpus {count}: on this machine's CPU from 1 to {MAX_PROCESSES} processes can be planned")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = Device.load("cpu")
    share = cores / (PRESET_CORES * count)
    device = replace(
        cpu,
        memory_bytes=memory // count,
        memory_bytes_per_s=cpu.memory_bytes_per_s / count,
        peak_flops={dtype: flops * share for dtype, flops in cpu.peak_flops.items()},
    )
    node = Node(
        device=device,
        gpus=count,
        scale_up=ScaleUp(kind="memory", link="shared-memory", bytes_per_s=1e9, latency_s=1e-4),
        nics=Nics(count=1, bytes_per_s=1e9, latency_s=1e-4),
        host_memory_bytes=memory,
        host_link_bytes_per_s=5e9,
        cpus=cores,
    )
    return Cluster(
        name="local",
        runs=(NodeRun(count=1, node=node),),
        fabric=Fabric(nodes_per_leaf=1),
        notes=("CPU processes: every speed is an estimate until `executor profile` has measured this machine",),
    )


def _nvidia_gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if "," in line] if answer.returncode == 0 else []


def _gpu_node(found: list[str], wanted: int | None) -> Cluster:
    name, mib = (part.strip() for part in found[0].rsplit(",", 1))
    matches = [preset for preset in Device.names() if all(w in name.lower() for w in preset.split("-")[:1])]
    if not matches or len(set(found)) > 1:
        raise InputError(f"--cluster local: GPUs {sorted(set(found))} match no preset; describe them in a cluster file")
    count = len(found) if wanted is None else wanted
    if not 1 <= count <= len(found):
        raise InputError(f"--gpus {count}: this machine has {len(found)} GPUs; legal: 1 to {len(found)}")
    sized = [preset for preset in matches if abs(Device.load(preset).memory_bytes / 2**20 / int(mib) - 1) < 0.1]
    device = replace(Device.load((sized or matches)[0]), memory_bytes=int(mib) * 2**20)
    node = Node(
        device=device,
        gpus=count,
        scale_up=ScaleUp(kind="pcie", link="pcie4", bytes_per_s=32e9, latency_s=1e-5),
        nics=Nics(count=1, bytes_per_s=1e9, latency_s=3e-5),
        host_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        host_link_bytes_per_s=20e9,
        cpus=os.cpu_count() or 1,
    )
    return Cluster(
        name="local",
        runs=(NodeRun(count=1, node=node),),
        fabric=Fabric(nodes_per_leaf=1),
        notes=("GPU links of this machine are taken as PCIe 4 until `executor profile` has measured them",),
    )
