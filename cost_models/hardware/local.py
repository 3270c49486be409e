"""This machine as a cluster of one node: its GPUs as the driver lists and joins them, else CPU processes.

CPU processes share cores and memory bandwidth: `gpus` processes split what the machine has, so each one's speed is
an estimate until `executor profile` has measured it. Memory per process is the machine's, divided evenly.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, Fabric, Nics, Node, NodeRun, ScaleUp
from cost_models.hardware.device import Device
from cost_models.hardware.device_names import device_of
from cost_models.hardware.machine import Gpu, gpus, output
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
    node, notes = _printed_node(device, count)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    node = replace(node, gpus=count, host_memory_bytes=memory, cpus=os.cpu_count() or 1)
    return Cluster(name="local", runs=(NodeRun(count=1, node=node),), fabric=Fabric(nodes_per_leaf=1), notes=notes)


def _printed_node(device: Device, count: int) -> tuple[Node, tuple[str, ...]]:
    """The node as the driver prints its topology; without a print, as the preset with this device."""
    from cost_models.hardware.readers import printed, reference, smi

    text = output("nvidia-smi", "topo", "-m") or output("rocm-smi", "--showtopo")
    if not smi.is_topology(text):
        like = reference.reference(device.name, count)
        note = f"links and cards of this machine taken from preset {like.name}: its driver prints no topology"
        return replace(like.runs[0].node, device=device), (note,)
    tree = smi.read(text, "this machine's topology")
    for card in tree.cards:
        facts = tree.graph.nodes[card]
        facts["bytes_per_s"] = _card_rate(facts.get("name", card))
    node, _, notes = printed.node_of(tree, device, "this machine's topology")
    return node, notes


def _card_rate(name: str) -> float | None:
    """Bytes/s of an InfiniBand or RoCE card, as the kernel tells it ("400 Gb/sec (4X NDR)")."""
    for file in sorted(Path("/sys/class/infiniband").glob(f"{name}/ports/*/rate")):
        match = re.match(r"([0-9.]+) Gb/sec", file.read_text(encoding="utf-8"))
        if match:
            return float(match[1]) * 1e9 / 8
    return None
