"""The machine that a training row names: its GPU's preset by the printed name, its nodes by the nearest cluster.

    gpu, gpu_mem_gb                        -> device: same family, then form (SXM, PCIe, NVL), then memory
    gpus_per_node, n_gpus                  -> nodes of the preset with the same board and as many GPUs
    intra_bw, inter_bw                     -> links and cards, where they are printed (`words.py`)
    cluster, device                        -> names of presets, which come before all of the above
    nccl                                   -> the release of NCCL that ran, where the source's software tells

Where a row names no network, the maker's reference design stands in (DGX, then HGX) before any provider's machine,
whose cards are slower or fewer.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.device_names import device_of
from cost_models.hardware.links import LINKS
from cost_models.hardware.node import Node
from validation import words
from validation.rows import Row


def cluster_of(row: Row, gpus: int | None = None) -> Cluster:
    """The preset that the row's `cluster` cell names, else the nearest, with the nodes, links and cards it states.

    So many `gpus` of it, else as many as the row says.
    """
    device = Device.load(row.cell("device")) if row.cell("device") else _device(row)
    gpus, per_node = gpus or row.count("n_gpus"), row.optional("gpus_per_node") or 8
    base = _preset(row.cell("cluster")) if row.cell("cluster") else _nearest(device.name, per_node)
    node = replace(base.runs[0].node, device=device, gpus=min(gpus, per_node))
    if base.runs[0].node.device.link != device.link:
        rate = LINKS[device.link].bytes_per_s
        node = replace(node, scale_up=replace(node.scale_up, link=device.link, bytes_per_s=rate))
    run = replace(base.runs[0], count=-(-gpus // per_node), node=_with_rates(node, row, per_node))
    nccl = row.cell("nccl") or base.fabric.nccl
    return replace(
        base,
        runs=(run,),
        nodes_per_domain=_segment(base.nodes_per_domain, run.count),
        fabric=replace(base.fabric, nccl=nccl),
    )


def _device(row: Row) -> Device:
    """The printed card; where neither name nor column says its memory, the board of the maker's reference node."""
    memory_gb = row.number_of("gpu_mem_gb") if row.cell("gpu_mem_gb") else None
    device = device_of(row.text("gpu"), memory_gb)
    if memory_gb is None and not re.search(r"\d ?gb", row.text("gpu").lower()):
        nodes = (_preset(name).runs[0].node for name in Cluster.presets() if name.startswith("dgx"))
        return next((node.device for node in nodes if _board(node.device) == _board(device)), device)
    return device


@cache
def _preset(name: str) -> Cluster:
    return Cluster.load(name, nodes=1)


@cache
def _nearest(name: str, per_node: int) -> Cluster:
    """The preset whose nodes have this device's board and as many GPUs, the maker's own before a provider's."""
    device = Device.load(name)

    def distance(cluster: Cluster) -> tuple[bool | str, ...]:
        here = cluster.runs[0].node
        return (
            _board(here.device) != _board(device),
            here.device.architecture != device.architecture,
            here.gpus != per_node,
            not cluster.name.startswith(("dgx", "hgx")),
            here.device.name != device.name,
            not cluster.name.startswith("dgx"),
            cluster.name,
        )

    return min((_preset(name) for name in Cluster.presets() if name != "local"), key=distance)


def _segment(domain: int, nodes: int) -> int:
    """Nodes of a NVLink domain that a job of several domains takes from each: a power of two that divides it.

    NVIDIA's launch scripts ask for 16 of the 18 nodes of an NVL72 (`--segment=16`, Megatron-LM's examples), so that no
    group of ranks straddles two domains.

    >>> _segment(18, 32), _segment(18, 4), _segment(1, 32)
    (16, 18, 1)
    """
    if nodes <= domain:
        return domain
    sizes = [1 << power for power in range(domain.bit_length())]
    return max(size for size in sizes if size <= domain and nodes % size == 0)


def _board(device: Device) -> str:
    """Family and form without the memory's size.

    >>> _board(Device.load("a100-sxm-80gb")), _board(Device.load("h200-nvl-141gb")), _board(Device.load("gb200"))
    ('a100-sxm', 'h200-nvl', 'gb200')
    """
    return re.sub(r"-\d+gb$", "", device.name)


def _with_rates(node: Node, row: Row, per_node: int) -> Node:
    """The printed rates of cards and links, where there are some."""
    cards, link = words.network(row.cell("inter_bw")), words.link_bytes_per_s(row.cell("intra_bw"), node.device.link)
    if cards is not None:
        count = node.nics.count if cards.cards is None else cards.cards * (per_node if cards.of_each_gpu else 1)
        each = cards.bytes_per_s / (max(count, 1) if cards.cards is None else 1)
        node = replace(node, nics=replace(node.nics, count=count, bytes_per_s=each, kind=cards.kind or node.nics.kind))
    if link is not None:
        node = replace(node, scale_up=replace(node.scale_up, bytes_per_s=link))
    return node
