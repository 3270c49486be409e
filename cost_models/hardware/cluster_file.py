"""Cluster YAML -> Cluster. Strict: unknown keys, missing units and impossible counts are refused by name.

    nodes:                                   # runs of equal nodes, in slot order
      - {count: 4, device: h100-sxm-80gb, gpus: 8, scale_up: {...}, nics: {...}, ...}
    fabric: {nodes_per_leaf: 32, oversubscription: 1}
    overrides:                               # single slots that differ
      - {slots: [3, 7-9], missing_nics: [2]}
      - {slots: [12], gpus: 5, nic_bytes_per_s: 200 Gbit/s}

`base: dgx-h100` takes everything that is not given from a preset. A preset has one run and may be sized freely.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.cluster import MAX_GPUS, PRESETS, Cluster, Fabric, NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.links import LINKS
from cost_models.hardware.node import Nics, Node, ScaleUp

_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
MOST_RUNS = 10_000
"""Runs of nodes in a file: one for each of 10,000 nodes that all differ."""
MOST_OVERRIDDEN = 2**18
"""Slots that all overrides of a file name together."""


@dataclass(frozen=True, kw_only=True)
class NodeEntry:
    device: str
    gpus: int
    scale_up: ScaleUp
    nics: Nics
    host_memory_bytes: int
    host_link_bytes_per_s: float
    cpus: int = 0
    count: int = 1
    missing_nics: tuple[int, ...] = ()
    missing_bridges: tuple[int, ...] = ()
    nic_shares: tuple[float, ...] = ()
    memory_bytes: int | None = None  # of one GPU, where it differs from the device's
    clock_mhz: float | None = None  # that a power or clock limit leaves, where it is below the device's
    memory_bytes_per_s: float | None = None  # of one GPU (or one of several CPU processes), where it differs
    peak_share: float | None = None  # of the device's peaks, where a process has only part of the cores

    def build(self) -> NodeRun:
        device = Device.load(self.device)
        if self.clock_mhz is not None:
            device = device.at_clock(self.clock_mhz * 1e6)
        if self.peak_share is not None:
            peaks = {dtype: flops * self.peak_share for dtype, flops in device.peak_flops.items()}
            device = replace(device, peak_flops=peaks)
        if self.memory_bytes_per_s is not None:
            device = replace(device, memory_bytes_per_s=self.memory_bytes_per_s)
        if self.memory_bytes is not None:
            device = replace(device, memory_bytes=self.memory_bytes)
        return NodeRun(count=self.count, node=Node(device=device, **{name: getattr(self, name) for name in _KEPT}))


_KEPT = tuple(field.name for field in fields(Node) if field.name != "device")


@dataclass(frozen=True, kw_only=True)
class Override:
    """What is different in some slots; what is not given stays."""

    slots: tuple[Any, ...]
    gpus: int | None = None
    device: str | None = None
    missing_nics: tuple[int, ...] | None = None
    missing_bridges: tuple[int, ...] | None = None
    nic_shares: tuple[float, ...] | None = None
    nic_bytes_per_s: float | None = None
    scale_up_bytes_per_s: float | None = None

    def apply(self, node: Node) -> Node:
        if self.device is not None:
            node = replace(node, device=Device.load(self.device))
        if self.nic_bytes_per_s is not None:
            node = replace(node, nics=replace(node.nics, bytes_per_s=self.nic_bytes_per_s))
        if self.scale_up_bytes_per_s is not None:
            node = replace(node, scale_up=replace(node.scale_up, bytes_per_s=self.scale_up_bytes_per_s))
        dead = {name: getattr(self, name) for name in ("missing_nics", "missing_bridges", "nic_shares")}
        node = replace(node, **{name: value for name, value in dead.items() if value is not None})
        if self.gpus is not None:
            if self.gpus > node.gpus:
                raise InputError(f"gpus={self.gpus} free of the node's {node.gpus}; at most {node.gpus}")
            node = replace(node, gpus=self.gpus)
        return node


@dataclass(frozen=True, kw_only=True)
class ClusterEntry:
    nodes: tuple[NodeEntry, ...]
    fabric: Fabric
    name: str | None = None
    nodes_per_domain: int = 1
    domains: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    hosts: str = ""  # a list such as gpu[001-004], in slot order


def read_cluster(path: Path, name: str, *, nodes: int | None = None, gpus: int | None = None) -> Cluster:
    """The cluster of a YAML file, cut or (one run without a fixed size) grown to `nodes` or `gpus`."""
    where = path.name
    data = _preset(path) if path.parent == PRESETS else _load(path)
    if "base" in data:
        data = _on_base(data, where)
    entry = strict.read(ClusterEntry, data, where)
    runs = tuple(node.build() for node in entry.nodes)
    sized = len(runs) == 1 and "count" not in data["nodes"][0]
    count = _wanted_nodes(runs, sized, nodes, gpus)
    if sized:
        runs = (replace(runs[0], count=count),)
    from cost_models.hardware.readers.hostlist import expand

    cluster = Cluster(
        name=entry.name or name,
        runs=runs,
        fabric=entry.fabric,
        nodes_per_domain=entry.nodes_per_domain,
        domains=entry.domains,
        notes=entry.notes,
        hosts=expand(entry.hosts, f"{where}.hosts") if entry.hosts else (),
    )
    cluster = cluster.override(_changes(cluster, entry.overrides, where))
    for run in cluster.runs:
        _check_link(run.node.scale_up, where)
    return _cut(cluster, nodes=count if sized else nodes, gpus=gpus)


def _check_link(inside: ScaleUp, where: str) -> None:
    """InputError for a rate above the data sheet's: mostly both directions together, which makers print."""
    most = LINKS[inside.link].bytes_per_s
    if inside.kind != "memory" and inside.bytes_per_s > most * (1 + 1e-9):
        raise InputError(
            f"{where}: scale_up.bytes_per_s={inside.bytes_per_s / 1e9:g} GB/s is more than {inside.link} carries of "
            f"one GPU one way; legal: up to {most / 1e9:g} GB/s (what if it were faster: --vary intra_node_gb_per_s)"
        )


def fit(cluster: Cluster, *, sized: bool, nodes: int | None, gpus: int | None) -> Cluster:
    """The first slots of a cluster that give `nodes` or `gpus`; where `sized`, its one run grows to them."""
    count = _wanted_nodes(cluster.runs, sized, nodes, gpus)
    if sized:
        cluster = replace(cluster, runs=(replace(cluster.runs[0], count=count),))
    return _cut(cluster, nodes=count if sized else nodes, gpus=gpus)


def is_cluster_file(text: str) -> bool:
    """Whether a text has the keys of a cluster file at its outermost level."""
    return bool(re.search(r"^(base|nodes|fabric|overrides)\s*:", text, re.M))


def _load(path: Path) -> dict[str, Any]:
    where = f"--cluster {str(path)!r}"
    data = strict.parse_yaml(strict.read_text(path, "--cluster"), where)
    if not isinstance(data, dict) or not isinstance(data.get("nodes", []), list):
        raise InputError(f"{where} must hold the keys nodes and fabric (or base)")
    if len(data.get("nodes", ())) > MOST_RUNS:
        raise InputError(
            f"{where} lists {len(data['nodes']):,} runs of nodes; at most {MOST_RUNS:,} are read: join equal "
            "neighbours with count"
        )
    return data


_preset = cache(_load)
"""A preset's plain data, read once; nobody changes it."""


def _on_base(data: dict[str, Any], where: str) -> dict[str, Any]:
    base = data["base"]
    if base not in Cluster.presets() or base == "local":
        raise InputError(f"{where}.base={base!r} is no preset; {strict.nearest(str(base), Cluster.presets())}")
    preset = _preset(PRESETS / f"{base}.yaml")
    merged = {**preset, **{key: value for key, value in data.items() if key not in ("base", "nodes")}}
    if isinstance(merged["fabric"], Mapping):
        merged["fabric"] = {**preset["fabric"], **merged["fabric"]}
    given = data.get("nodes") or [{}]
    if not all(isinstance(run, Mapping) for run in given):
        raise InputError(f"{where}.nodes must be a list of runs such as {{count: 4}}")
    merged["nodes"] = [{**preset["nodes"][0], **run} for run in given]
    return merged


def _wanted_nodes(runs: tuple[NodeRun, ...], sized: bool, nodes: int | None, gpus: int | None) -> int:
    for flag, value in (("--nodes", nodes), ("--gpus", gpus)):
        if value is not None and not 1 <= value <= MAX_GPUS:
            raise InputError(f"{flag} {value} must be from 1 to {MAX_GPUS}")
    each = runs[0].node.gpus
    if nodes is not None and gpus is not None and sized and nodes * each != gpus:
        raise InputError(f"--nodes {nodes} of {each} GPUs are {nodes * each}, not --gpus {gpus}; give one of the two")
    if not sized:
        return sum(run.count for run in runs)
    if gpus is None:
        return nodes or 1
    return -(-gpus // each)  # the last node may be used in part


def _slots(items: tuple[object, ...], limit: int, where: str) -> list[range]:
    spans = []
    for item in items:
        match = _SPAN.fullmatch(str(item))
        if match is None:
            raise InputError(f"{where}.slots: {str(item)[:40]!r} is neither a slot nor a range such as 7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= limit:
            raise InputError(f"{where}.slots: {item!r} is not within 0 to {limit - 1}")
        spans.append(range(first, last + 1))
    return spans


def _changes(cluster: Cluster, overrides: tuple[Override, ...], where: str) -> dict[int, Node]:
    """The node of each slot that an override names; later overrides change what earlier ones left."""
    spans = [_slots(one.slots, cluster.slots, f"{where}.overrides[{i}]") for i, one in enumerate(overrides)]
    named = sum(len(span) for each in spans for span in each)
    if named > MOST_OVERRIDDEN:
        raise InputError(f"{where}.overrides name {named:,} slots in all; at most {MOST_OVERRIDDEN:,} are read")
    changes: dict[int, Node] = {}
    for override, each in zip(overrides, spans, strict=True):
        made: dict[int, tuple[Node, Node]] = {}  # one new node for all slots that shared the old one
        for slot in chain.from_iterable(each):
            node = changes.get(slot) or cluster.node(slot)
            if id(node) not in made:
                made[id(node)] = node, override.apply(node)
            changes[slot] = made[id(node)][1]
    return changes


def _cut(cluster: Cluster, *, nodes: int | None, gpus: int | None) -> Cluster:
    """The first slots that give exactly `nodes` nodes or `gpus` GPUs."""
    if nodes is not None and nodes > cluster.slots:
        raise InputError(f"--nodes {nodes}: {cluster.name} has {cluster.slots} nodes; at most {cluster.slots}")
    if gpus is not None and gpus > cluster.gpus:
        raise InputError(f"--gpus {gpus}: {cluster.name} has {cluster.gpus} free GPUs; at most {cluster.gpus}")
    kept: list[NodeRun] = []
    left_nodes, left_gpus = nodes or cluster.slots, gpus or cluster.gpus
    for run in cluster.runs:
        whole = min(run.count, left_nodes, left_gpus // run.node.gpus if run.node.gpus else run.count)
        if whole:
            kept.append(replace(run, count=whole))
            left_nodes, left_gpus = left_nodes - whole, left_gpus - whole * run.node.gpus
        if whole < run.count and left_nodes and 0 < left_gpus < run.node.gpus:
            kept.append(NodeRun(count=1, node=replace(run.node, gpus=left_gpus)))
            left_nodes, left_gpus = left_nodes - 1, 0
        if not left_nodes or not left_gpus:
            break
    slots = sum(run.count for run in kept)
    leaves = int(cluster.leaf_of_slot[slots - 1]) + 1
    uplinks = tuple(leaf for leaf in cluster.fabric.missing_uplinks if leaf < leaves)
    fabric = replace(cluster.fabric, missing_uplinks=uplinks)
    return replace(cluster, runs=tuple(kept), fabric=fabric, hosts=cluster.hosts[:slots])
