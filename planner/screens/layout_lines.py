"""A cluster, and how a layout lies on it, as lines: kinds of nodes, hosts, axes inside and across nodes, layers."""

from __future__ import annotations

import numpy as np

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import Wiring
from cost_models.number import distinct
from cost_models.strategy import Strategy, rank_groups
from cost_models.units import show_rate

MOST_HOSTS_SHOWN = 100
"""Characters of a list of hosts."""
MOST_RANGES_SHOWN = 4
"""Ranges of layers that recompute alike."""


def cluster_line(cluster: Cluster) -> str:
    """
    >>> cluster_line(Cluster.load("dgx-h100", nodes=2))
    'dgx-h100: 2 nodes × 8 h100-sxm-80gb, switch 450 GB/s, 8 NICs of 50 GB/s; 16 GPUs'
    >>> from dataclasses import replace
    >>> node = Cluster.load("dgx-h100", nodes=9).node(0)
    >>> broken = Cluster.load("dgx-h100", nodes=9).override({slot: replace(node, gpus=5) for slot in (1, 4, 7)})
    >>> [words[:14] for words in cluster_line(broken).split(": ")[1].split(" + ")]
    ['6 nodes × 8 h1', '3 nodes × 5 h1']
    """
    counts: dict[str, int] = {}
    for run in cluster.runs:
        node = run.node
        missing = f" ({len(node.missing_nics)} missing)" if node.missing_nics else ""
        kind = (
            f"{node.gpus} {node.device.name}, {node.scale_up.kind} {show_rate(node.scale_up.bytes_per_s)}, "
            f"{node.nics.count} NIC{'s' if node.nics.count != 1 else ''} of {show_rate(node.nics.bytes_per_s)}{missing}"
        )
        counts[kind] = counts.get(kind, 0) + run.count
    kinds = [f"{count} node{'s' if count > 1 else ''} × {kind}" for kind, count in counts.items()]
    more = f" + {len(kinds) - 4} more kinds of node" if len(kinds) > 4 else ""
    return f"{cluster.name}: {' + '.join(kinds[:4])}{more}; {counted(cluster.gpus, 'GPU')}"


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "GPU"), counted(2, "GPU")
    ('1 GPU', '2 GPUs')
    """
    return f"{count} {noun}{'s' if count != 1 else ''}"


def hosts_lines(cluster: Cluster, placement: Placement) -> list[str]:
    """Which hosts the ranks are on, where the cluster names its hosts."""
    if not cluster.hosts:
        return []
    from cost_models.hardware.readers.hostlist import compress

    used = compress([cluster.hosts[slot] for slot in distinct(placement.slot_of_rank).tolist()])
    return [f"          on {used if len(used) <= MOST_HOSTS_SHOWN else used[:MOST_HOSTS_SHOWN] + '…'}"]


def placement_line(cluster: Cluster, strategy: Strategy, placement: Placement) -> str:
    """How each axis lies: inside a scale-up domain, or across how many."""
    domain = Wiring(cluster).seats(placement.slot_of_rank, placement.gpu_of_rank).domain
    place = "node" if cluster.nodes_per_domain == 1 else "NVLink domain"
    words = []
    for axis in ("tensor", "ulysses", "ring", "data", "pipeline"):
        if getattr(strategy, axis) == 1:
            continue
        spans = np.sort(domain[rank_groups(strategy, axis)], axis=1)
        most = int((1 + (np.diff(spans, axis=1) != 0).sum(axis=1)).max())
        words.append(f"{axis} inside one {place}" if most == 1 else f"{axis} across {most} {place}s")
    used, free = len(distinct(placement.slot_of_rank)), cluster.gpus - strategy.ranks
    tail = f"{counted(strategy.ranks, 'GPU')} on {counted(used, 'node')}"
    return "; ".join([*words, tail + (f", {free} left free" if free else "")])


def states_line(strategy: Strategy) -> str:
    """How state-space layers are split."""
    way = {"gather": "gathered", "chain": "passed rank to rank", "tree": "passed by a tree"}[strategy.ssd_pass]
    return {
        "states": f"state-space layers: each rank scans its own tokens, states are {way} over the context group",
        "mixed": f"state-space layers: heads dealt out over ulysses, states {way} over the ring",
        "heads": "state-space layers: heads dealt out over the context group",
    }[strategy.ssd]


def layers_line(strategy: Strategy, layers: int) -> str:
    """How many layers recompute what, and which inputs are offloaded; of many ranges the sums.

    >>> from cost_models.strategy import LayerRange
    >>> both = (LayerRange(recompute="full", count=1), LayerRange(recompute="none", count=1))
    >>> layers_line(Strategy(layers=both * 3), 6)
    'recompute by layer: 3 × full, 3 × none, interleaved'
    """
    parts = [
        (part.count, part.recompute.replace("_", "-") + (" + offload" if part.offload != "none" else ""))
        for part in strategy.layer_ranges(layers)
    ]
    if [name for _, name in parts] == ["none"]:
        return "no recompute"
    told = ""
    if len(parts) > MOST_RANGES_SHOWN:
        names = dict.fromkeys(name for _, name in parts)
        parts = [(sum(count for count, other in parts if other == name), name) for name in names]
        told = ", interleaved"
    return f"recompute by layer: {', '.join(f'{count} × {name}' for count, name in parts)}{told}"
