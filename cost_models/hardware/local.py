"""This machine as a cluster of one node: its GPUs as the driver lists them, else CPU processes.

CPU processes share cores and memory bandwidth: `gpus` processes split what the machine has, so each one's speed is
an estimate until `executor profile` has measured it. Memory per process is the machine's, divided evenly.
"""

from __future__ import annotations

import os
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, Fabric, Nics, Node, NodeRun, ScaleUp
from cost_models.hardware.device import Device
from cost_models.hardware.device_names import device_of
from cost_models.hardware.machine import Gpu, gpus
from cost_models.hardware.machine import cores as available_cores

MAX_PROCESSES = 64
PRESET_CORES = 2
"""Cores of the machine whose peaks the cpu preset states."""


def local_cluster(processes: int | None) -> Cluster:
    """One node of this machine's GPUs, or of `processes` CPU ranks (default: the cores)."""
    found = gpus()
    if found:
        return _gpu_node(found, processes)
    cores = available_cores()
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


def _gpu_node(cards: tuple[Gpu, ...], wanted: int | None) -> Cluster:
    kinds = {(card.name, card.memory_bytes) for card in cards}
    if len(kinds) > 1:
        names = ", ".join(sorted({card.name for card in cards}))
        raise InputError(f"--cluster local: GPUs of several kinds ({names}); choose some with CUDA_VISIBLE_DEVICES")
    count = len(cards) if wanted is None else wanted
    if not 1 <= count <= len(cards):
        raise InputError(f"--gpus {count}: this machine has {len(cards)} GPUs; legal: 1 to {len(cards)}")
    card = cards[0]
    device = replace(device_of(card.name, card.memory_bytes / 1e9), memory_bytes=card.memory_bytes)
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
