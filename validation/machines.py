"""The machine that a training row names: its GPU's preset by the printed name, its nodes by the nearest cluster.

    gpu, gpu_mem_gb                        -> device: same family, then form (SXM, PCIe, NVL), then memory
    gpus_per_node, n_gpus                  -> nodes of the preset with the same board and as many GPUs
    intra_bw ("600GB/s"), inter_bw ("8x200 Gb/s", "1600 Gb/s per node") -> links and cards, where they are printed

Where a row names no network, the maker's reference design stands in (DGX, then HGX) before any provider's machine,
whose cards are slower or fewer. Rates are in Gbit/s (`Gb/s`) and GB/s both ways, as sources print them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, Node
from cost_models.hardware.device import Device
from validation.rows import Row

_FORMS = ("pcie", "nvl", "sxm", "ada", "pro")


def device_of(text: str, memory_gb: float | None) -> Device:
    """The preset that a GPU's printed name means.

    >>> device_of("A100-SXM4-80GB", None).name, device_of("H100 PCIe", 80).name, device_of("RTX A6000", 48).name
    ('a100-sxm-80gb', 'h100-pcie-80gb', 'rtxa6000')
    """
    words = re.split(r"[^a-z0-9]+", text.lower())
    named = [name for name in Device.names() if _family(name) in words]
    if not named:
        raise InputError(f"gpu={text!r} is no preset; legal: {', '.join(Device.names())}")
    if memory_gb is None:
        printed = [float(word[:-2]) for word in words if re.fullmatch(r"\d+gb", word)]
        memory_gb = printed[0] if printed else None
    form = next((form for form in _FORMS if any(word.startswith(form) for word in words)), "sxm")

    def distance(name: str) -> tuple[bool, float, bool, str]:
        size = Device.load(name).memory_bytes / 1e9
        off = abs(size - memory_gb) if memory_gb else 0.0
        return not any(part.startswith(form) for part in name.split("-")), off, "capped" in name, name

    return Device.load(min(named, key=distance))


def cluster_of(row: Row) -> Cluster:
    """The nearest preset with the nodes, links and cards that the row states."""
    device = device_of(
        row.text("gpu"), row.number_of("gpu_mem_gb") if row.cells.get("gpu_mem_gb", "").strip() else None
    )
    gpus, per_node = row.count("n_gpus"), row.count("gpus_per_node", 8)
    presets = [Cluster.load(name, nodes=1) for name in Cluster.presets() if name != "local"]

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

    base = min(presets, key=distance)
    node = replace(base.runs[0].node, device=device, gpus=min(gpus, per_node))
    if base.runs[0].node.device.link != device.link:
        node = replace(node, scale_up=replace(node.scale_up, link=device.link))
    run = replace(base.runs[0], count=-(-gpus // per_node), node=_with_rates(node, row))
    return replace(base, runs=(run,), nodes_per_domain=_segment(base.nodes_per_domain, run.count))


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


def _family(name: str) -> str:
    """First word of a preset's name, as cards print it: `rtx4090` is sold as "RTX 4090"."""
    return name.split("-")[0].removeprefix("rtx")


def _board(device: Device) -> str:
    """Family and form without the memory's size.

    >>> _board(Device.load("a100-sxm-80gb")), _board(Device.load("h200-nvl-141gb")), _board(Device.load("gb200"))
    ('a100-sxm', 'h200-nvl', 'gb200')
    """
    return re.sub(r"-\d+gb(-capped)?$", "", device.name)


def _with_rates(node: Node, row: Row) -> Node:
    """Printed rates: "8x200 Gb/s" cards, "1600 Gb/s per node", "600GB/s" of NVLink both ways."""
    between, inside = row.cells.get("inter_bw", ""), row.cells.get("intra_bw", "")
    cards = re.search(r"(\d+)\s*x\s*(\d+)\s*Gb/s", between)
    whole = re.search(r"(\d+)\s*Gb/s", between)
    if cards:
        nics = replace(node.nics, count=int(cards[1]), bytes_per_s=float(cards[2]) * 1e9 / 8)
        node = replace(node, nics=nics)
    elif whole:
        each = float(whole[1]) * 1e9 / 8 / max(node.nics.count, 1)
        node = replace(node, nics=replace(node.nics, bytes_per_s=each))
    both_ways = re.search(r"(\d+)\s*GB/s", inside)
    if both_ways:
        node = replace(node, scale_up=replace(node.scale_up, bytes_per_s=float(both_ways[1]) * 1e9 / 2))
    return node
