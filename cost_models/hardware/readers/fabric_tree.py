"""The network between printed hosts: a graph of hosts and switches (networkx), and what of it a `Fabric` holds.

    hosts and switches are vertices; an edge has its number of `links` and, where it is told, their `bytes_per_s`

Hosts that share a switch make one leaf (with several rails, the leaf is all their switches together); leaves that share
an upper switch make one spine, and stand side by side in slot order. Oversubscription is what enters a leaf or spine
from below over what its uplinks carry, the worst of a level; it is known only where the file lists every link, and so
is whether no switch joins the rails. Hosts may belong to scale-up `domain`s (NVLink racks). Left out: levels above the
third, which card is on which rail, and routes that leave the tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import networkx as nx

from cost_models.errors import InputError
from cost_models.hardware.readers.hostlist import MOST_HOSTS

MOST_VERTICES = 2**18
MOST_LEVELS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class FabricTree:
    """The network that a file describes: hosts, and the switches above them."""

    graph: nx.Graph
    every_link: bool = False  # whether every cable is listed, so that oversubscription can be counted
    notes: tuple[str, ...] = ()
    gpus: int | None = None  # of a host, where a hostfile counts its slots

    @cached_property
    def hosts(self) -> list[str]:
        """In slot order: spine by spine, domain by domain and leaf by leaf."""
        return [host for leaf in self.leaves for host in leaf]

    def only(self, hosts: Sequence[str], where: str) -> FabricTree:
        """The network with these hosts alone, and without switches that have none below."""
        known = set(self.hosts)
        unknown = [name for name in dict.fromkeys(hosts) if name not in known]
        if unknown:
            raise InputError(f"--hosts: {', '.join(unknown[:3])}{', …' if unknown[3:] else ''} not in {where}")
        kept = set(hosts)
        for vertex, level in sorted(self.level.items(), key=lambda item: item[1]):
            if level and any(other in kept and self.level[other] == level - 1 for other in self.graph[vertex]):
                kept.add(vertex)
        graph = self.graph.copy()
        graph.remove_nodes_from([vertex for vertex in self.graph if vertex not in kept])
        return replace(self, graph=graph)

    @cached_property
    def _next_to(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = nx.to_dict_of_lists(self.graph)
        return found

    @cached_property
    def level(self) -> dict[str, int]:
        """Switches between a vertex and its nearest host; hosts are 0."""
        at = [vertex for vertex, facts in self.graph.nodes(data=True) if facts["kind"] == "host"]
        found = dict.fromkeys(at, 0)
        level = 0
        while at:
            level += 1
            at = list(dict.fromkeys(other for vertex in at for other in self._next_to[vertex] if other not in found))
            found.update(dict.fromkeys(at, level))
        return found

    def _parts(self, vertices: Iterable[str]) -> dict[str, int]:
        """The number of the part that each of these vertices is in, were there no others."""
        left, found, parts = dict.fromkeys(vertices), dict[str, int](), 0
        for first in left:
            if first in found:
                continue
            found[first], at = parts, [first]
            while at:
                for other in self._next_to[at.pop()]:
                    if other in left and other not in found:
                        found[other] = parts
                        at.append(other)
            parts += 1
        return found

    @cached_property
    def leaves(self) -> list[list[str]]:
        """Hosts of each leaf. A file without switches has one leaf for each domain, else one in all."""
        order = {vertex: i for i, vertex in enumerate(self.graph.nodes)}
        hosts = [vertex for vertex in order if self.graph.nodes[vertex]["kind"] == "host"]
        if any(self._next_to[host] for host in hosts):
            part = self._parts(vertex for vertex, level in self.level.items() if level <= 1)
            groups: list[list[str]] = [[] for _ in range(max(part.values()) + 1)]
            for host in hosts:
                groups[part[host]].append(host)
        else:
            groups = [hosts]
        domain = self.domain_of

        def by_domain(host: str) -> tuple[int, int]:
            return domain.get(host, 0), order[host]

        def by_place(group: list[str]) -> tuple[object, ...]:
            return (
                self._spine[group[0]] if self.levels > 2 else 0,
                min(domain.get(host, 0) for host in group),
                self._upper(group, order),
                min(order[host] for host in group),
            )

        return sorted((sorted(group, key=by_domain) for group in groups), key=by_place)

    @cached_property
    def domain_of(self) -> dict[str, int]:
        """Number of the scale-up domain of each host that has one, in the order of the file."""
        names = nx.get_node_attributes(self.graph, "domain")
        number = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        return {host: number[name] for host, name in names.items()}

    def domain_sizes(self) -> tuple[int, ...]:
        """Hosts of each scale-up domain, in slot order; () where none is told."""
        sizes: list[int] = []
        last = None
        for host in self.hosts:
            domain = self.domain_of.get(host)
            if domain is not None and domain == last:
                sizes[-1] += 1
            else:
                sizes.append(1)
            last = domain
        return tuple(sizes) if self.domain_of else ()

    def _upper(self, group: list[str], order: dict[str, int]) -> tuple[int, ...]:
        """The switches above a leaf, from the top: the first of each level."""
        at, chain = {switch for host in group for switch in self._next_to[host]}, []
        while at:
            first = min(at, key=order.__getitem__)
            at = {upper for switch in at for upper in self._above[switch]}
            chain.append(order[first])
        return tuple(reversed(chain[1:]))

    @cached_property
    def _above(self) -> dict[str, list[str]]:
        """The vertices of the next level that each one has an edge to."""
        return {
            vertex: [other for other in self._next_to[vertex] if self.level[other] > level]
            for vertex, level in self.level.items()
        }

    @cached_property
    def levels(self) -> int:
        """Levels of switches."""
        return max(self.level.values(), default=0)

    def spine_sizes(self) -> tuple[int, ...]:
        """Leaves of each spine, in slot order; () where one spine joins all."""
        if self.levels < 3:
            return ()
        sizes = [len(list(same)) for _, same in groupby(self.leaves, key=lambda leaf: self._spine[leaf[0]])]
        return tuple(sizes) if len(sizes) > 1 else ()

    @cached_property
    def _spine(self) -> dict[str, int]:
        """The number of the part that a host or switch is in, were there nothing above the second level."""
        return self._parts(vertex for vertex, at in self.level.items() if at <= 2)

    def oversubscription(self, level: int = 1) -> float | None:
        """Rate into the switches of a level (1: leaves, 2: spines) over the rate out of them, the worst of all of them;
        None: not told."""
        if not self.every_link or self.levels <= level:
            return None
        part = self._parts(vertex for vertex, at in self.level.items() if at <= level)
        below, above = Counter[int](), Counter[int]()
        for one, other, facts in self.graph.edges(data=True):
            lower, upper = sorted((one, other), key=self.level.__getitem__)
            for rates, at in ((below, level - 1), (above, level)):
                if (self.level[lower], self.level[upper]) == (at, at + 1):
                    rates[part[lower]] += facts["links"] * facts.get("bytes_per_s", 1.0)
        return max([1.0, *(below[number] / above[number] for number in below if above[number])])

    @cached_property
    def planes(self) -> int:
        """Parts of the network that no switch joins and that every host has cards in; 1 where cables are not listed."""
        if not self.every_link:
            return 1
        part = self._parts(vertex for vertex, level in self.level.items() if level)
        met = {frozenset(part[switch] for switch in self._next_to[host]) for host in self.hosts}
        return len(next(iter(met))) if len(met) == 1 else 1

    @cached_property
    def cards(self) -> tuple[int, float | None] | None:
        """(cards of a host, bytes/s of one), the most common; None where links are not counted."""
        if not self.every_link:
            return None
        counts, rates = Counter[str](), Counter[float | None]()
        for one, other, facts in self.graph.edges(data=True):
            for host in (one, other):
                if not self.level.get(host, 1):
                    counts[host] += facts["links"]
                    rates[facts.get("bytes_per_s")] += 1
        if not counts:
            return None
        return Counter(counts.values()).most_common(1)[0][0], rates.most_common(1)[0][0]


class Builder:
    """Collects hosts and switches; a host that two leaves list stays at the first."""

    def __init__(self, where: str) -> None:
        self.where, self.graph = where, nx.Graph()
        self.under = nx.DiGraph()  # switch -> the one above it
        self.host_count = 0
        self.notes: list[str] = []
        self.twice: list[str] = []  # hosts that several switches list

    def switch(self, name: str) -> None:
        if name not in self.graph:
            self._room()
            self.graph.add_node(name, kind="switch")

    def hosts(self, names: Sequence[str], switch: str | None = None, domain: str | None = None) -> None:
        """Hosts under a switch (None: under none) and in a scale-up domain."""
        for name in names:
            if name in self.graph and self.graph.nodes[name]["kind"] == "switch":
                raise InputError(f"{self.where}: {name[:40]!r} is a host and a switch")
            if name not in self.graph:
                self._room()
                self.host_count += 1
                if self.host_count > MOST_HOSTS:
                    raise InputError(f"{self.where} names more than {MOST_HOSTS:,} hosts")
                self.graph.add_node(name, kind="host")
            elif switch is not None and self.graph[name]:
                self.twice.append(name)
                continue
            if switch is not None:
                self.graph.add_edge(name, switch, links=1)
            if domain is not None:
                self.graph.nodes[name]["domain"] = domain

    def cable(self, one: str, other: str, bytes_per_s: float | None = None, links: int = 1) -> None:
        """So many more links between two vertices."""
        if one == other:
            raise InputError(f"{self.where}: {one[:40]!r} is cabled to itself")
        if not self.graph.has_edge(one, other):
            self.graph.add_edge(one, other, links=0)
        facts = self.graph.edges[one, other]
        facts["links"] += links
        if bytes_per_s is not None:
            facts["bytes_per_s"] = bytes_per_s

    def above(self, upper: str, lower: Sequence[str]) -> None:
        """Switches under an upper one; a switch under itself is refused."""
        self.switch(upper)
        for name in lower:
            self.switch(name)
            self.graph.add_edge(name, upper, links=1)
            self.under.add_edge(name, upper)

    def _room(self) -> None:
        if len(self.graph) >= MOST_VERTICES:
            raise InputError(f"{self.where} names more than {MOST_VERTICES:,} hosts and switches")

    def finish(self, every_link: bool = False) -> FabricTree:
        if self.twice:
            names = ", ".join(self.twice[:3]) + (", …" if len(self.twice) > 3 else "")
            self.notes.append(f"{names} of {self.where} taken under the first of the switches that list them")
        tree = FabricTree(graph=self.graph, every_link=every_link, notes=tuple(self.notes))
        if not nx.is_directed_acyclic_graph(self.under):
            (lower, _), *_ = nx.find_cycle(self.under)
            raise InputError(f"{self.where}: switch {lower[:40]!r} is under itself")
        if not any(facts["kind"] == "host" for _, facts in self.graph.nodes(data=True)):
            raise InputError(f"{self.where} names no host")
        self._drop_empty()
        if tree.levels > MOST_LEVELS:
            raise InputError(f"{self.where}: {tree.levels:,} levels of switches; at most {MOST_LEVELS} are read")
        return tree

    def _drop_empty(self) -> None:
        """Takes out switches that files list under others, but that have no host below: they are no level."""
        used = {
            vertex
            for vertex in self.under
            if any(self.graph.nodes[other]["kind"] == "host" for other in self.graph[vertex])
        }
        for vertex in nx.topological_sort(self.under):
            if vertex in used:
                used.update(self.under[vertex])
        self.graph.remove_nodes_from(set(self.under) - used)
