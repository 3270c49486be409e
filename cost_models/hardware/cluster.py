"""A cluster as data: runs of equal nodes (`node`), and the fabric between them.

    core ── spine ── leaf ── node: [NIC per rail] ── [GPU …] joined by NVSwitch, NVLink pairs or PCIe
            │        └ nodes_per_leaf, oversubscription         scale-up domain = nodes_per_domain hosts (18 in NVL72)
            └ leaves_per_spine, spine_oversubscription          rail_only: each rail has switches of its own

A *slot* is a place for a host: slots are numbered through the runs; `hosts` names them where it is known who they are.
All rates are one way, per GPU or per NIC. Loads presets and YAML files (strict, see docs/cluster.md); per-slot
overrides split the runs. What is left out: storage, and CPU-side NUMA other than as part of a PCIe tree.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.node import Node
from cost_models.strict import plain

PRESETS = Path(__file__).parents[1] / "presets" / "clusters"
MAX_GPUS = 2**20
MOST_OVERSUBSCRIPTION = 1e6
MOST_HOPS = 64


@dataclass(frozen=True, kw_only=True)
class NodeRun:
    """`count` equal nodes in neighbouring slots."""

    count: int
    node: Node

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"count={self.count} nodes; at least 1")


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """The network between nodes: rails meet in leaf switches, leaves in spines, spines in a core.

    `rail_only`: cards of unlike number have no switch in common, here and above. What is for another rail first crosses
    the sender's scale-up link to the GPU of that rail (NCCL's PXN), or the receiver's where the sender lacks the rail.
    """

    nodes_per_leaf: int
    oversubscription: float = 1.0  # leaf downlinks / uplinks; 1 = full bisection
    hop_latency_s: float = 0.0  # of one switch
    spine_hops: int = 2  # further switches when leaves differ; twice as many when spines do
    leaves: tuple[int, ...] = field(default=(), metadata=strict.OPTIONAL)
    """Nodes of each leaf in slot order, where they differ; () means `nodes_per_leaf` each."""
    leaves_per_spine: int = field(default=0, metadata=strict.OPTIONAL)  # 0: one spine joins all leaves
    spines: tuple[int, ...] = field(default=(), metadata=strict.OPTIONAL)
    """Leaves of each spine in slot order, where they differ; () means `leaves_per_spine` each."""
    spine_oversubscription: float = field(default=1.0, metadata=strict.OPTIONAL)  # uplinks of its leaves / its own
    rail_only: bool = field(default=False, metadata=strict.OPTIONAL)
    missing_uplinks: tuple[int, ...] = field(default=(), metadata=strict.OPTIONAL)
    """The leaf of each dead uplink (a cable of a card's rate); a leaf that lost several stands there several times."""
    nccl: str = field(default="2.29", metadata=strict.OPTIONAL)
    """The release that runs here, as torch.cuda.nccl.version() has it: how many channels it gives to sends."""

    def __post_init__(self) -> None:
        ratios = self.oversubscription, self.spine_oversubscription
        waits = 0 <= self.hop_latency_s <= 1 and 0 <= self.spine_hops <= MOST_HOPS
        if self.nodes_per_leaf < 1 or not 1 <= min(ratios) <= max(ratios) <= MOST_OVERSUBSCRIPTION or not waits:
            raise InputError(
                "fabric needs nodes_per_leaf >= 1, oversubscription >= 1 (and spine_oversubscription), at most "
                f"{MOST_OVERSUBSCRIPTION:g}, hop_latency_s from 0 to 1 and spine_hops from 0 to {MOST_HOPS}"
            )
        for name, sizes in (("leaves", self.leaves), ("spines", self.spines)):
            if any(size < 1 for size in sizes):
                raise InputError(f"fabric.{name}={list(sizes)[:8]}: each needs at least 1")
        if self.leaves_per_spine < 0 or (self.leaves_per_spine == 0 and (self.spines or ratios[1] > 1)):
            raise InputError(
                f"fabric.leaves_per_spine={self.leaves_per_spine}; at least 1 where spines or spine_oversubscription "
                "are given (left out: one spine joins all leaves)"
            )
        if not re.fullmatch(r"2\.[0-9]{1,2}(\.[0-9]{1,2})?", self.nccl):
            raise InputError(f"fabric.nccl={self.nccl!r}; a release of NCCL 2 in quotes, such as '2.29' or '2.20.5'")
        if self.rail_only and self.missing_uplinks:
            raise InputError("fabric.missing_uplinks: of a rail_only fabric no file says whose rail an uplink is")

    @property
    def nccl_minor(self) -> int:
        """20 of 2.20.5."""
        return int(self.nccl.split(".")[1])

    @property
    def leaves_limit(self) -> bool:
        """Whether a leaf's uplinks may carry less than its cards."""
        return self.oversubscription > 1 or bool(self.missing_uplinks)

    @property
    def spines_limit(self) -> bool:
        """Whether a spine's uplinks may carry less than those of its leaves."""
        return self.spine_oversubscription > 1


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """
    >>> cluster = Cluster.load("dgx-h100", nodes=32)
    >>> cluster.gpus, cluster.slots, cluster.runs[0].node.device.name
    (256, 32, 'h100-sxm-80gb')
    """

    name: str
    runs: tuple[NodeRun, ...]
    fabric: Fabric
    nodes_per_domain: int = 1
    notes: tuple[str, ...] = ()
    domains: tuple[int, ...] = field(default=(), metadata=strict.OPTIONAL)
    """Nodes of each scale-up domain in slot order, where they differ; () means `nodes_per_domain` each."""
    hosts: tuple[str, ...] = field(default=(), metadata=strict.OPTIONAL)
    """The host of each slot; () means that nobody said, and whoever launches a plan binds slots to hosts."""

    def __post_init__(self) -> None:
        if not self.runs or self.nodes_per_domain < 1:
            raise InputError("a cluster needs at least one node and nodes_per_domain of at least 1")
        if self.gpus < 1 or self.gpus > MAX_GPUS:
            raise InputError(f"the cluster has {self.gpus} free GPUs; from 1 to {MAX_GPUS} can be planned")
        for name, sizes in (("fabric.leaves", self.fabric.leaves), ("domains", self.domains)):
            if sizes and (min(sizes) < 1 or sum(sizes) < self.slots):
                raise InputError(f"{name} hold {sum(sizes)} nodes; the cluster has {self.slots}, and none may be empty")
        if self.hosts:
            _check_hosts(self.hosts, self.slots)
        self._check_fabric()
        cut_off = any(run.node.nics.count == len(run.node.missing_nics) for run in self.runs)
        if cut_off and self.nodes_per_domain < self.slots:
            raise InputError("a node without a working NIC cannot be part of a cluster of several nodes")

    def _check_fabric(self) -> None:
        fabric, leaves = self.fabric, int(self.leaf_of_slot[-1]) + 1
        if fabric.spines and sum(fabric.spines) < leaves:
            raise InputError(f"fabric.spines hold {sum(fabric.spines)} leaves; the cluster has {leaves}")
        for leaf, dead in Counter(fabric.missing_uplinks).items():
            if not 0 <= leaf < leaves:
                raise InputError(f"fabric.missing_uplinks: there is no leaf {leaf}; legal: 0 to {leaves - 1}")
            nodes = [self.node(int(slot)) for slot in np.flatnonzero(self.leaf_of_slot == leaf)]
            uplinks = len(nodes) * max(node.nics.count for node in nodes) / fabric.oversubscription
            if dead >= uplinks and leaves > 1:
                raise InputError(
                    f"fabric.missing_uplinks: {dead} of leaf {leaf}, which has {uplinks:.3g}; one must be left"
                )
        if fabric.rail_only and self.nodes_per_domain < self.slots:
            cards = {
                frozenset(range(run.node.nics.count)) - frozenset(run.node.missing_nics)
                for run in self.runs
                if run.node.gpus
            }
            apart = next(((a, b) for a in cards for b in cards if not a & b), None)
            if apart is not None:
                told = " and ".join(str(sorted(one)) for one in sorted(apart, key=sorted))
                raise InputError(f"fabric.rail_only: nodes with cards {told} have no rail in common and cannot meet")

    def __hash__(self) -> int:
        return hash((self.name, self.gpus, self.slots))

    @classmethod
    def load(
        cls,
        name: str,
        *,
        nodes: int | None = None,
        gpus: int | None = None,
        fabrics: Sequence[str] = (),
        device: str | None = None,
        hosts: Sequence[str] = (),
    ) -> Cluster:
        """A preset or a file, sized to `nodes` or `gpus` (a last node may be partly used).

        Files are our own (YAML) or printed topologies (`readers/printed.py`); `fabrics` are files about the network,
        `device` names the GPUs of a printed host, `hosts` the hosts to use: of those that the network's files name, or
        in slot order.
        """
        from cost_models.hardware.cluster_file import is_cluster_file, read_cluster

        preset = name in cls.presets()
        if not preset and not Path(name).is_file():
            raise InputError(
                f"--cluster {name!r} is neither a preset nor a file; {strict.nearest(name, cls.presets())}"
            )
        known = preset or is_cluster_file(strict.read_text(name, "--cluster", strict.MAX_TOPOLOGY_BYTES))
        if fabrics or device is not None or not known:
            from cost_models.hardware.readers import printed

            return printed.load(name, fabrics, device, nodes=nodes, gpus=gpus, hosts=hosts)
        if hosts:
            return cls._on_hosts(name, hosts, nodes, gpus)
        if name == "local":
            from cost_models.hardware.local import local_cluster

            return local_cluster(gpus)
        if preset:
            return read_cluster(PRESETS / f"{name}.yaml", name, nodes=nodes, gpus=gpus)
        return read_cluster(Path(name), Path(name).stem, nodes=nodes, gpus=gpus)

    @classmethod
    def _on_hosts(cls, name: str, hosts: Sequence[str], nodes: int | None, gpus: int | None) -> Cluster:
        """The preset or cluster file, on so many nodes as `hosts` are named."""
        sized = cls.load(name, nodes=len(hosts) if nodes is None and gpus is None else nodes, gpus=gpus)
        if sized.hosts and sized.hosts != tuple(hosts):
            raise InputError(f"--hosts: {name} names its hosts itself; leave --hosts out, or change the file")
        if len(hosts) != sized.slots:
            raise InputError(f"--hosts names {len(hosts)} hosts, the cluster has {sized.slots} nodes; give as many")
        return replace(sized, hosts=tuple(hosts))

    @staticmethod
    def presets() -> list[str]:
        return [*sorted(path.stem for path in PRESETS.glob("*.yaml")), "local"]

    @staticmethod
    def about(preset: str) -> str:
        """What a preset is and where its figures come from, in a line.

        >>> Cluster.about("perlmutter")[:44]
        'Perlmutter: 4 x A100 40 GB (NVLink 3 without'
        """
        if preset == "local":
            return "this machine: its GPUs as the driver reports them, else its CPU cores"
        if preset not in Cluster.presets():
            raise InputError(f"cluster={preset!r} is no preset; {strict.nearest(preset, Cluster.presets())}")
        return (PRESETS / f"{preset}.yaml").read_text().partition("\n")[0].removeprefix("# ")

    @cached_property
    def gpus(self) -> int:
        return sum(run.count * run.node.gpus for run in self.runs)

    @cached_property
    def slots(self) -> int:
        return sum(run.count for run in self.runs)

    @cached_property
    def run_of_slot(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.runs)), [run.count for run in self.runs])

    @cached_property
    def gpus_of_slot(self) -> NDArray[np.int64]:
        return np.array([run.node.gpus for run in self.runs])[self.run_of_slot]

    @cached_property
    def domain_of_slot(self) -> NDArray[np.int64]:
        return _numbered(self.slots, self.domains, self.nodes_per_domain)

    @cached_property
    def leaf_of_slot(self) -> NDArray[np.int64]:
        return _numbered(self.slots, self.fabric.leaves, self.fabric.nodes_per_leaf)

    @cached_property
    def spine_of_slot(self) -> NDArray[np.int64]:
        leaves = int(self.leaf_of_slot[-1]) + 1
        return _numbered(leaves, self.fabric.spines, self.fabric.leaves_per_spine or leaves)[self.leaf_of_slot]

    @cached_property
    def uniform(self) -> bool:
        """All nodes are equal."""
        return len(self.runs) == 1

    def node(self, slot: int) -> Node:
        return self.runs[int(self.run_of_slot[slot])].node

    def to_dict(self) -> dict[str, object]:
        """Plain data that `from_dict` reads back, devices by value."""
        return plain(self)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, object], where: str = "cluster") -> Cluster:
        return strict.read(cls, data, where)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, so that a plan can tell which cluster it was made for."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def override(self, changes: Mapping[int, Node]) -> Cluster:
        """The same cluster with other nodes in some slots; equal neighbours are joined into runs."""
        for slot in changes:
            if not 0 <= slot < self.slots:
                raise InputError(f"slot {slot} is not one of 0 to {self.slots - 1}")
        joined: list[NodeRun] = []
        for slot, node in _pieces(self, changes):
            if joined and joined[-1].node == node:
                joined[-1] = NodeRun(count=joined[-1].count + slot, node=node)
            else:
                joined.append(NodeRun(count=slot, node=node))
        return replace(self, runs=tuple(joined))


_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def _check_hosts(hosts: tuple[str, ...], slots: int) -> None:
    if len(hosts) != slots:
        raise InputError(f"hosts: {len(hosts)} names for {slots} nodes; one for each, in slot order")
    odd = next((name for name in hosts if not _HOST.fullmatch(name)), None)
    if odd is not None:
        raise InputError(f"hosts: {odd[:40]!r} is no host's name (letters, digits, dots, hyphens, underscores)")
    if len(set(hosts)) < len(hosts):
        name, times = Counter(hosts).most_common(1)[0]
        raise InputError(f"hosts: {name} stands there {times} times")


def _numbered(slots: int, sizes: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """The number of the group that each slot is in."""
    if sizes:
        return np.repeat(np.arange(len(sizes)), np.minimum(sizes, slots))[:slots]
    return np.arange(slots) // size


def _pieces(cluster: Cluster, changes: Mapping[int, Node]) -> list[tuple[int, Node]]:
    """(count, node) through all slots, cut at the changed ones."""
    pieces: list[tuple[int, Node]] = []
    start, changed = 0, sorted(changes)
    for run in cluster.runs:
        at = start
        for slot in changed[bisect_left(changed, start) : bisect_left(changed, start + run.count)]:
            if slot > at:
                pieces.append((slot - at, run.node))
            pieces.append((1, changes[slot]))
            at = slot + 1
        if at < start + run.count:
            pieces.append((start + run.count - at, run.node))
        start += run.count
    return pieces
