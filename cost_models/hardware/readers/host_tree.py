"""The inside of a printed host: a graph of its GPUs and cards (networkx), and what of it a `Node` holds.

    system > NUMA node > host bridge > bridges > bridge > GPU or NIC          edges: pcie, or nvlink with a count

How near two vertices are is the kind of their lowest common ancestor, in the words of `nvidia-smi`: PIX (one bridge),
PXB (several), PHB (a host bridge), NODE (a NUMA node), SYS (the links between sockets). A GPU sends through the card
that is nearest to it; cards that are nearest to no GPU are for storage and are left out. Left out too: speeds of single
PCIe links, which printed topologies state wrongly where bridges are virtual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import networkx as nx

NEARNESS = ("PIX", "PXB", "PHB", "NODE", "SYS")
KINDS = ("bridge", "bridges", "host bridge", "numa", "system")
"""Kind of the vertex that joins two others, by nearness."""
ROOT = "system"


@dataclass(frozen=True, kw_only=True, eq=False)
class HostTree:
    """One host. Vertices have a `kind`; cards may have `bytes_per_s` and `network`."""

    graph: nx.Graph
    device: str | None = None  # preset that the file names, by the PCI identifier or the printed name of its GPUs
    unknown: str | None = None  # a printed name that no preset has
    sm: int | None = None  # NVIDIA's compute capability, such as 90
    link: str | None = None  # what joins the GPUs, where the file says it in a word: "XGMI"
    nvlinks_listed: bool = True  # False: the file leaves NVLink to whoever reads it
    notes: tuple[str, ...] = ()

    @cached_property
    def gpus(self) -> list[str]:
        return sorted(self._of_kind("gpu"), key=lambda name: int(name.removeprefix("GPU")))

    @cached_property
    def cards(self) -> list[str]:
        return self._of_kind("nic")

    def _of_kind(self, kind: str) -> list[str]:
        return [vertex for vertex, facts in self.graph.nodes(data=True) if facts["kind"] == kind]

    @cached_property
    def nearness(self) -> Mapping[str, Mapping[str, int]]:
        """For each GPU, how near every other GPU and card is: an index of NEARNESS."""
        pcie = nx.Graph(edge for edge in self.graph.edges if self.graph.edges[edge]["kind"] == "pcie")
        parent = dict(nx.bfs_predecessors(pcie, ROOT))
        chains: dict[str, list[str]] = {}
        for vertex in (*self.gpus, *self.cards):
            chain = [parent[vertex]]
            while chain[-1] != ROOT:
                chain.append(parent[chain[-1]])
            chains[vertex] = chain
        return {
            gpu: {
                other: max(KINDS.index(self.graph.nodes[v]["kind"]) for v in _up_to_common(chains[gpu], chain))
                for other, chain in chains.items()
                if other != gpu
            }
            for gpu in self.gpus
        }

    @cached_property
    def cards_of_gpu(self) -> dict[str, list[str]]:
        """The nearest cards of each GPU; several where they are equally near."""
        nearest = {}
        for gpu, near in self.nearness.items():
            best = min((near[card] for card in self.cards), default=0)
            nearest[gpu] = [card for card in self.cards if near[card] == best]
        local = {gpu for gpu in self.gpus if self.cards and self.nearness[gpu][nearest[gpu][0]] < len(NEARNESS) - 1}
        used = {card for gpu in local for card in nearest[gpu]}  # a GPU without a card of its own takes these
        return {gpu: nearest[gpu] if gpu in local or not used else sorted(used) for gpu in self.gpus}

    @cached_property
    def used_cards(self) -> list[str]:
        """Cards that are nearest to a GPU, in the order of those GPUs."""
        return list(dict.fromkeys(card for gpu in self.gpus for card in self.cards_of_gpu[gpu]))

    def groups(self, level: int) -> list[list[int]]:
        """Indices of GPUs that are within `level` of each other."""
        near = nx.Graph()
        near.add_nodes_from(range(len(self.gpus)))
        for i, gpu in enumerate(self.gpus):
            beside = [j for j, other in enumerate(self.gpus) if i < j and self.nearness[gpu][other] <= level]
            near.add_edges_from((i, j) for j in beside)
        return sorted(sorted(group) for group in nx.connected_components(near))

    def tiers(self) -> tuple[int, ...]:
        """Sizes of the groups of neighbouring GPUs that PCIe makes, the smallest first; () where all are alike.

        The last group of a tier may be smaller; groups of other sizes, or of GPUs that are no neighbours, make none.
        """
        sizes = []
        for level in range(len(NEARNESS) - 1):
            groups = self.groups(level)
            size = len(groups[0])
            regular = [gpu for group in groups for gpu in group] == list(range(len(self.gpus))) and all(
                len(group) == size for group in groups[:-1]
            )
            regular = regular and len(groups[-1]) <= size
            if regular and 1 < size < len(self.gpus) and size not in sizes:
                sizes.append(size)
        return tuple(sizes)

    @property
    def has_other_groups(self) -> bool:
        """Whether PCIe makes groups that are no tier, as of 3 and 5 GPUs, or of every second one."""
        sizes = {1, *self.tiers(), len(self.gpus)}
        groups = [each for level in range(len(NEARNESS) - 1) for each in self.groups(level)]
        rests = {count % size for size in sizes for count in sizes}  # of a tier's last group
        return any(len(each) not in sizes | rests or each[-1] - each[0] >= len(each) for each in groups)

    @cached_property
    def nvlinks(self) -> Mapping[tuple[int, int], int]:
        """Links between each pair of GPUs (a < b) that has any; links to switches are in `switched`."""
        index = {gpu: i for i, gpu in enumerate(self.gpus)}
        edges = [(*edge, facts) for *edge, facts in self.graph.edges(data=True) if facts["kind"] == "nvlink"]
        return {
            (min(index[a], index[b]), max(index[a], index[b])): facts["count"]
            for a, b, facts in edges
            if a in index and b in index
        }

    @cached_property
    def links_to_switches(self) -> int:
        """NVLinks of a GPU that end in switches: the fewest of any GPU."""
        each = [
            sum(self.graph.edges[gpu, v]["count"] for v in self.graph[gpu] if self.graph.nodes[v]["kind"] == "nvswitch")
            for gpu in self.gpus
        ]
        return min(each, default=0)

    @cached_property
    def joined(self) -> tuple[str, int]:
        """How NVLink joins the GPUs (switch, all, pairs of 2i and 2i + 1, some, none), and the links of a pair."""
        count = len(self.gpus)
        if self.links_to_switches:
            return "switch", self.links_to_switches
        if not self.nvlinks:
            return "none", 0
        fewest = min(self.nvlinks.values())
        if len(self.nvlinks) == count * (count - 1) // 2 and count > 1:
            return "all", fewest
        pairs = {(2 * i, 2 * i + 1) for i in range(count // 2)}
        return ("pairs" if set(self.nvlinks) == pairs and count > 2 else "some"), fewest


def _up_to_common(mine: list[str], other: list[str]) -> list[str]:
    """The vertices from either side up to the lowest common ancestor."""
    common = next(vertex for vertex in mine if vertex in other)
    return [*mine[: mine.index(common) + 1], *other[: other.index(common)]]


def grow(graph: nx.Graph, near: Mapping[tuple[str, str], int]) -> None:
    """Adds the PCIe tree that explains how near pairs of the graph's vertices are (indices of NEARNESS)."""
    tops = {vertex: vertex for vertex in graph.nodes}
    for level, kind in enumerate(KINDS):
        joined = nx.Graph()
        joined.add_nodes_from(tops.values())
        if kind == ROOT:
            joined.add_edges_from(pairwise(dict.fromkeys(tops.values())))
        joined.add_edges_from((tops[a], tops[b]) for (a, b), how in near.items() if how == level)
        for number, group in enumerate(nx.connected_components(joined)):
            if len(group) == 1 and kind != ROOT:
                continue
            name = ROOT if kind == ROOT else f"{kind} {number}"
            graph.add_node(name, kind=kind)
            graph.add_edges_from(((name, vertex) for vertex in sorted(group)), kind="pcie")
            tops = {vertex: name if top in group else top for vertex, top in tops.items()}


def most_common(values: list[float]) -> float | None:
    """The value that occurs most; None without any."""
    return Counter(values).most_common(1)[0][0] if values else None
