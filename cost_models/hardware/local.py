"""This machine as a cluster of one node: its GPUs as the driver lists and joins them, else CPU processes.

CPU processes share cores and memory bandwidth: `gpus` processes split what the machine has, so each one's speed is
an estimate until `executor profile` has measured it. Memory per process is the machine's, divided evenly.
"""

from __future__ import annotations

import os
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, Fabric, NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.device_names import device_of
from cost_models.hardware.machine import Gpu, gpus, output
from cost_models.hardware.machine import cores as available_cores
from cost_models.hardware.network_cards import network_cards, numa_nodes
from cost_models.hardware.node import Nics, Node, ScaleUp
from cost_models.units import show_rate

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
    nics, said = _cards(Nics(count=1, bytes_per_s=1e9, latency_s=1e-4))
    node = Node(
        device=device,
        gpus=count,
        scale_up=ScaleUp(kind="memory", link="shared-memory", bytes_per_s=1e9, latency_s=1e-4),
        nics=nics,
        host_memory_bytes=memory,
        host_link_bytes_per_s=5e9,
        cpus=cores,
    )
    return Cluster(
        name="local",
        runs=(NodeRun(count=1, node=node),),
        fabric=Fabric(nodes_per_leaf=1),
        notes=("CPU processes: every speed is an estimate until `executor profile` has measured this machine", said),
    )


def _cards(otherwise: Nics) -> tuple[Nics, str]:
    """The fastest network cards that the kernel lists, and the same in words; `otherwise` where it tells no rate."""
    cards, numa = network_cards(), numa_nodes()
    rate = max((card.bytes_per_s or 0.0 for card in cards), default=0.0)
    memory = f"{numa} NUMA nodes, links between them not told apart" if numa > 1 else "one NUMA node"
    listed = ", ".join(card.name + ("" if card.numa is None else f" at node {card.numa}") for card in cards[:8])
    if not rate:
        told = f"the kernel tells no rate of {listed}" if cards else "the kernel lists no network card"
        return otherwise, f"network card of {show_rate(otherwise.bytes_per_s)} taken: {told}; {memory}"
    fastest = [card for card in cards if card.bytes_per_s == rate]
    kind = fastest[0].kind
    nics = replace(
        otherwise, count=len(fastest), bytes_per_s=rate, kind=kind, gpudirect=otherwise.gpudirect and kind != "ethernet"
    )
    return nics, f"cards as the kernel lists them: {listed}; {len(fastest)} of {show_rate(rate)}; {memory}"


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
        note = f"links of this machine taken from preset {like.name}: its driver prints no topology"
        nics, said = _cards(like.runs[0].node.nics)
        return replace(like.runs[0].node, device=device, nics=nics, missing_nics=()), (note, said)
    tree = smi.read(text, "this machine's topology")
    rates = {card.name: card.bytes_per_s for card in network_cards()}
    for card in tree.cards:
        facts = tree.graph.nodes[card]
        facts["bytes_per_s"] = rates.get(facts.get("name", card))
    node, _, notes = printed.node_of(tree, device, "this machine's topology")
    if not tree.used_cards:
        nics, said = _cards(node.nics)
        node, notes = replace(node, nics=nics), (*notes, said)
    return node, notes
