"""A cluster drawn in the terminal, and what is believed of each kind of path: rate, latency, and where both come from.

    core > spines > leaves > nodes > sockets, PCIe switches > GPUs, cards: a tree (networkx), equal neighbours once

`line` is the data sheet's rate of the link, one way; `reached` what large messages get of it: inside a node of an
all-gather of 1 GiB over all GPUs, between nodes of one message. Rates are those that prices and simulation use.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

import networkx as nx
import numpy as np

from cost_models import strict
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.links import LINKS
from cost_models.hardware.networks import NETWORKS
from cost_models.hardware.node import Node
from cost_models.hardware.wiring import NIC_OUT, PCIE_OUT, Wiring
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.collectives import Collectives
from cost_models.units import show_rate, show_seconds
from planner.screens.layout_lines import cluster_line

Leaf = tuple[tuple[tuple[int, int], ...], int]
"""(kind, count) of a leaf's nodes in slot order, and its dead uplinks."""
Row = tuple[str, float, float, float | None, str]
STATED = "as the preset or file states"
MOST_LINES = 40
MOST_KINDS = 4
PROBE_BYTES = 2.0**30


def lines(cluster: Cluster) -> list[str]:
    """The drawing, the table of paths, and what the files did not say."""
    notes = [f"  - {note}" for note in cluster.notes]
    return [
        cluster_line(cluster),
        *nx.generate_network_text(tree(cluster), max_depth=8),
        "",
        *table(cluster),
        *(["", "Taken, not read:", *notes] if notes else []),
    ]


def tree(cluster: Cluster) -> nx.DiGraph:
    """Network, leaves, nodes and what is in them; neighbours that are alike are one vertex. Vertices have a `label`."""
    graph, fabric = nx.DiGraph(), cluster.fabric
    first = np.array(_first_alike(cluster))
    kinds: dict[int, Leaf] = {}
    dead = Counter(fabric.missing_uplinks)
    starts = np.flatnonzero(np.diff(cluster.leaf_of_slot)) + 1  # slots stand leaf by leaf
    for leaf, kinds_in_leaf in enumerate(np.split(first[cluster.run_of_slot], starts)):
        in_leaf = kinds_in_leaf.tolist()
        nodes = tuple((run, len(list(same))) for run, same in groupby(in_leaf))
        kinds[leaf] = (nodes, dead[leaf])
    spine_of = cluster.spine_of_slot[np.unique(cluster.leaf_of_slot, return_index=True)[1]]
    under = [np.flatnonzero(spine_of == spine).tolist() for spine in range(int(spine_of[-1]) + 1)]
    described: set[int] = set()
    if len(under) == 1:
        _spine(graph, None, cluster, under[0], kinds, described)
        return graph
    root = _add(graph, None, f"core of {len(under)} spines, {_share(fabric.spine_oversubscription)}")
    done = 0
    for _, group in groupby(under, key=lambda spine: [kinds[leaf] for leaf in spine]):
        same = list(group)
        if len(graph) > MOST_LINES:
            _add(graph, root, f"… {len(under) - done} spines more")
            break
        _spine(
            graph, root, cluster, same[0], kinds, described, f" {_span(list(range(done, done + len(same))))}", len(same)
        )
        done += len(same)
    return graph


def _spine(
    graph: nx.DiGraph, root: int | None, cluster: Cluster, leaves: list[int], kinds: dict[int, Leaf],
    described: set[int], number: str = "", count: int = 1,
) -> None:  # fmt: skip
    """Adds a spine (or `count` alike) with its leaves; one leaf alone has none."""
    fabric = cluster.fabric
    rails = ", each rail with its own switches" if fabric.rail_only else ""
    each = ", each" if count > 1 else ""
    said = f"spine{number}{each} of {len(leaves)} leaves, {_share(fabric.oversubscription)}"
    alone = len(leaves) == 1 and root is None
    spine = _add(graph, root, ("one leaf" if alone else said) + rails)
    for (nodes, dead), group in groupby(leaves, key=lambda leaf: kinds[leaf]):
        same = list(group)
        if len(graph) > MOST_LINES:
            _add(graph, spine, f"… {leaves[-1] + 1 - same[0]} leaves more")
            break
        names = "" if count > 1 else f" {_span(same)}"
        told = f"{len(same)} leaves" if count > 1 else f"leaf{names}{', each' if len(same) > 1 else ''}"
        lost = f", {dead} uplink{'s' if dead != 1 else ''} dead" if dead else ""
        top = spine if alone else _add(graph, spine, told + lost)
        for run, nodes_of_kind in nodes:
            label = f"{nodes_of_kind} × node {_letter(run)}" + (", as above" if run in described else "")
            place = _add(graph, top, label)
            if run not in described:
                described.add(run)
                _inside(graph, place, cluster.runs[run].node)


def _share(oversubscription: float) -> str:
    return "full bisection" if oversubscription == 1 else f"{oversubscription:.3g}:1 oversubscribed"


def _first_alike(cluster: Cluster) -> list[int]:
    """For each run of nodes, the first run with an equal node."""
    known: dict[str, int] = {}
    return [known.setdefault(json.dumps(strict.plain(run.node)), i) for i, run in enumerate(cluster.runs)]


def _add(graph: nx.DiGraph, parent: int | None, label: str) -> int:
    vertex = len(graph)
    graph.add_node(vertex, label=label)
    if parent is not None:
        graph.add_edge(parent, vertex)
    return vertex


def _letter(run: int) -> str:
    """The name of a kind of node: A, B, … Z, 26, 27, …"""
    return chr(ord("A") + run) if run < 26 else str(run)


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _inside(graph: nx.DiGraph, place: int, node: Node) -> None:
    """Adds the parts of a node under its vertex."""
    link = node.scale_up
    socket, switch = link.gpus_per_socket or node.gpus, link.gpus_per_switch or node.gpus
    if switch >= node.gpus or link.kind not in ("pcie", "pairs"):
        _add(graph, place, f"{node.gpus} × {node.device.name} joined by {_joined(node)}")
    else:
        for first in range(0, node.gpus, socket):
            stop = min(first + socket, node.gpus)
            under = place if socket >= node.gpus else _add(graph, place, f"socket of GPU {first}-{stop - 1}")
            for one in range(first, stop, switch):
                gpus = _span(list(range(one, min(one + switch, stop))))
                _add(graph, under, f"PCIe switch or socket: {node.device.name} {gpus}")
    missing = f", without {', '.join(map(str, node.missing_nics))}" if node.missing_nics else ""
    slow = [f"card {card} at {share:.0%}" for card, share in enumerate(node.nic_shares) if share < 1]
    missing += f", {', '.join(slow)}" if slow else ""
    if node.missing_bridges:
        _add(
            graph,
            place,
            f"no bridge between GPUs {', '.join(f'{2 * p} and {2 * p + 1}' for p in node.missing_bridges)}",
        )
    _add(graph, place, f"{node.nics.count} × card of {show_rate(node.nics.bytes_per_s)} ({node.nics.kind}){missing}")


def _joined(node: Node) -> str:
    link = node.scale_up.link
    words = {"switch": link, "memory": "shared memory", "pairs": f"{link} in pairs, PCIe between them"}
    return words.get(node.scale_up.kind, "PCIe")


def table(cluster: Cluster) -> list[str]:
    """One line for each kind of path: line rate, reached rate, latency, source."""
    rows = [("path", "line", "reached", "latency", "source")]
    kinds = sorted(set(_first_alike(cluster)))
    for run in kinds[:MOST_KINDS]:
        named = f" ({_letter(run)})" if len(kinds) > 1 else ""
        rows += [_cells(named, *row) for row in _paths(cluster, run)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]


def _cells(
    named: str, path: str, line: float, reached: float, latency: float | None, source: str
) -> tuple[str, str, str, str, str]:
    return path + named, show_rate(line), show_rate(reached), "" if latency is None else show_seconds(latency), source


def _paths(cluster: Cluster, run: int) -> Iterator[Row]:
    """(path, bytes/s by data sheet, bytes/s reached, latency, source) of one kind of node."""
    node, fabric = cluster.runs[run].node, cluster.fabric
    link, nics = node.scale_up, node.nics
    rates = cluster_costs(cluster).rates
    if node.gpus > 1:
        words = {"switch": "GPU to GPU", "pairs": "GPU to GPU of a pair", "memory": "process to process"}
        inside = Collectives.of(link.link, bytes_per_s=link.reached_bytes_per_s)
        ranks = 2 if link.kind == "pairs" else node.gpus
        seconds = float(np.asarray(inside.intra_s("all_gather", ranks, PROBE_BYTES)))
        word = words.get(link.kind, "GPU to GPU, PCIe")
        yield word, link.bytes_per_s, PROBE_BYTES / seconds, link.latency_s, LINKS[link.link].source
    if link.kind == "pairs":
        reached = float(rates.of_run[run, PCIE_OUT])
        yield "GPU to another pair, PCIe", link.pcie_bytes_per_s, reached, link.latency_s, STATED
    if link.cross_bytes_per_s and link.kind in ("pcie", "pairs"):
        under = f"all {link.gpus_per_switch} GPUs of a PCIe switch or socket, to others"
        yield under, link.cross_bytes_per_s, link.cross_bytes_per_s, None, STATED
    if link.socket_bytes_per_s:
        under = f"all {link.gpus_per_socket} GPUs of a socket, to others"
        yield under, link.socket_bytes_per_s, link.socket_bytes_per_s, None, STATED
    yield "GPU to host memory", node.host_link_bytes_per_s, node.host_link_bytes_per_s, None, STATED
    if cluster.slots > cluster.nodes_per_domain:
        latency, card = nics.latency_s + fabric.hop_latency_s, float(rates.of_run[run, NIC_OUT])
        yield "card to card, one leaf", nics.bytes_per_s, card, latency, NETWORKS[nics.kind].source
        if fabric.rail_only and node.nics.count > 1:
            by = (
                "over the PCIe tree to that rail's card"
                if link.kind in ("pcie", "pairs")
                else "scale-up link, then rail"
            )
            relay_s = 0.0 if link.kind in ("pcie", "pairs") else link.latency_s
            yield "card to card of another rail", nics.bytes_per_s, card, latency + relay_s, by
    if run == 0:
        yield from _trunks(cluster, nics.latency_s)


def _trunks(cluster: Cluster, card_s: float) -> Iterator[Row]:
    """All uplinks of the first leaf, and of the first spine."""
    fabric, line, rates = cluster.fabric, Wiring(cluster).line, cluster_costs(cluster).rates
    one = " (one rail)" if fabric.rail_only else ""
    for name, of_slot, stated, reached, hops in (
        ("leaf", cluster.leaf_of_slot, line.of_leaf, rates.of_leaf, 1 + fabric.spine_hops),
        ("spine", cluster.spine_of_slot, line.of_spine, rates.of_spine, 1 + 2 * fabric.spine_hops),
    ):
        if of_slot[-1]:
            latency = card_s + hops * fabric.hop_latency_s
            others = "leaves" if name == "leaf" else "spines"
            yield (
                f"all uplinks of {name} 0, to other {others}{one}",
                float(stated[0]),
                float(reached[0]),
                latency,
                STATED,
            )
