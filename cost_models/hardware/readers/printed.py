"""Files as machines print them -> one Cluster: told apart by content, joined, and what none of them says is said.

    one host      nvidia-smi topo -m · rocm-smi --showtopo · NCCL's XML                                 -> HostTree
    the network   topology.conf · topology.yaml · scontrol · Topograph · NetQ · ibnetdiscover · hostfile -> FabricTree

All hosts are taken to be like the one that is printed; without one, like the preset of `--cluster` or `--device`. Facts
that no file holds come from the preset that resembles the hosts most; `Cluster.notes` name them, the essence before a
colon. A GPU that no file names must be given by `--device`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import networkx as nx

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, Fabric, NodeRun
from cost_models.hardware.cluster_file import fit, is_cluster_file, read_cluster
from cost_models.hardware.device import Device
from cost_models.hardware.node import Nics, Node
from cost_models.hardware.readers import hostfile, ibnetdiscover, nccl_xml, slurm, smi, topograph
from cost_models.hardware.readers.fabric_tree import FabricTree
from cost_models.hardware.readers.host_tree import HostTree, most_common
from cost_models.hardware.readers.reference import likely_device, missing_bridges, reference, scale_up
from cost_models.units import show_bytes, show_rate

T = TypeVar("T")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Terminal codes; nvidia-smi underlines its heading with them, also into a file."""
_REORDERING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MOST_LINE = 2**22  # characters
LEGAL = (
    "a cluster file (YAML), nvidia-smi topo -m, rocm-smi --showtopo, NCCL's topology XML, Slurm's topology.conf or "
    "topology.yaml, ibnetdiscover, Topograph's or NetQ's files, a hostfile"
)


def parse(path: Path) -> HostTree | FabricTree | None:
    """What a file holds; None for a cluster file of our own."""
    text, where = strict.read_text(path, "--cluster", strict.MAX_TOPOLOGY_BYTES), path.name
    if (longest := max(map(len, text.split("\n")))) > MOST_LINE:
        raise InputError(f"{where}: a line of {longest:,} characters; at most {MOST_LINE:,} are read")
    text = _COLOURS.sub("", text)
    if (hidden := _REORDERING.search(text)) is not None:
        raise InputError(f"{where}: the character {hidden[0]!a} at {hidden.start()} hides or reorders text")
    if is_cluster_file(text):
        return None
    if nccl_xml.is_topology(text):
        return nccl_xml.read(text, where)
    if smi.is_topology(text):
        return smi.read(text, where)
    if ibnetdiscover.is_discovery(text):
        return ibnetdiscover.read(text, where)
    if slurm.is_conf(text):
        return slurm.read_conf(text, where)
    if hostfile.is_hostfile(text):
        return hostfile.read(text, where)
    data = strict.parse_json(text, where) if text.lstrip()[:1] in ("{", "[") else strict.parse_yaml(text, where)
    if topograph.is_topograph(data):
        return topograph.read(data, where)
    if isinstance(data, list) and slurm.is_yaml(data):
        return slurm.read_yaml(data, where)
    if isinstance(data, dict):
        return None  # the cluster file's reader names what is wrong
    raise InputError(f"{where} is none of: {LEGAL}")


def load(
    cluster: str,
    fabrics: Sequence[str],
    device: str | None,
    *,
    nodes: int | None = None,
    gpus: int | None = None,
    hosts: Sequence[str] = (),
) -> Cluster:
    """The cluster of `--cluster` (a preset or a file) with the networks of `--fabric` files, or `hosts` of it."""
    host: HostTree | None = None
    trees: list[FabricTree] = []
    base: Cluster | None = None
    for name in (cluster, *fabrics):
        if name in Cluster.presets():
            base = _only(base, Cluster.load(name, nodes=1), name)
            continue
        if not Path(name).is_file():
            flag = "--cluster" if name == cluster else "--fabric"
            raise InputError(
                f"{flag} {name!r} is neither a preset nor a file; {strict.nearest(name, Cluster.presets())}"
            )
        part = parse(Path(name))
        if part is None:
            base = _only(base, read_cluster(Path(name), Path(name).stem), name)
        elif isinstance(part, HostTree):
            host = _only(host, part, name)
        else:
            trees.append(part)
    names = ", ".join(Path(name).name for name in (cluster, *fabrics) if Path(name).is_file())
    fabric = _joined(trees)
    if base is not None and device is not None:
        raise InputError(f"--device {device!r}: {base.name} says which GPUs it has; leave it out")
    if base is not None and host is not None:
        raise InputError(f"{names}: both {base.name} and a printed host say what hosts are like; give one of them")
    node, like, notes = _node(host, fabric, device, base, names)
    network, domain, count = like.fabric, like.nodes_per_domain, 1
    domains: tuple[int, ...] = ()
    if fabric is not None:
        whole, fabric = fabric, fabric.only(hosts, names) if hosts else fabric
        network, domain, domains, more = _network(fabric, whole, like, names)
        notes, count = (*notes, *fabric.notes, *more), len(fabric.hosts)
        node = _cards_of_fabric(node, fabric) if host is None else node
        node, notes = _with_slots(node, fabric.gpus, notes, names)
    built = Cluster(
        name=Path(cluster).stem if Path(cluster).is_file() else cluster,
        runs=(NodeRun(count=count, node=node),),
        fabric=network,
        nodes_per_domain=domain,
        domains=domains,
        notes=tuple(dict.fromkeys(notes)),
        hosts=tuple(fabric.hosts) if fabric is not None else (),
    )
    if fabric is not None or not hosts:
        return fit(built, sized=fabric is None, nodes=nodes, gpus=gpus)
    sized = fit(built, sized=True, nodes=len(hosts) if nodes is None and gpus is None else nodes, gpus=gpus)
    if sized.slots != len(hosts):
        raise InputError(f"--hosts names {len(hosts)} hosts, the cluster has {sized.slots} nodes; give as many")
    return replace(sized, hosts=tuple(hosts))


def _only(had: T | None, given: T, name: str) -> T:
    if had is not None:
        raise InputError(f"{name}: a second description of the hosts; give one, and networks by --fabric")
    return given


def _joined(trees: list[FabricTree]) -> FabricTree | None:
    """Several networks as one: the same names are the same hosts."""
    if len(trees) < 2:
        return trees[0] if trees else None
    return FabricTree(
        graph=nx.compose_all([tree.graph for tree in trees]),
        every_link=any(tree.every_link for tree in trees),
        gpus=min((tree.gpus for tree in trees if tree.gpus), default=None),
        notes=tuple(note for tree in trees for note in tree.notes),
    )


def _node(
    host: HostTree | None, fabric: FabricTree | None, device: str | None, base: Cluster | None, names: str
) -> tuple[Node, Cluster, tuple[str, ...]]:
    """The node, the preset that fills gaps, and what is to be said."""
    if base is not None:
        return base.runs[0].node, base, base.notes
    if host is None:
        chosen = device or ("gb200" if fabric is not None and fabric.domain_of else "h100-sxm-80gb")
        like = reference(chosen, 4 if chosen.startswith("gb") else 8)
        said = "" if device else " (no file says what they are; give --device, or --cluster and --fabric)"
        note = f"hosts taken as those of preset {like.name}{said}: {names} is about the network"
        return like.runs[0].node, like, (note,)
    guess = host.device or (likely_device(host) if host.unknown is None else None)
    if device is None and guess is None and host.unknown is not None:
        raise InputError(
            f"{names} prints {host.unknown!r}, which is no preset; give --device (`plan devices` lists all)"
        )
    if device is None and guess is None:
        raise InputError(
            f"{names} does not say which GPUs these are; give --device, such as l40s, rtx4090 or a100-pcie-80gb "
            "(`plan devices` lists all)"
        )
    notes = [f"{note}: see {names}" for note in host.notes]
    if device is None and host.device is None:
        notes.append(f"GPUs taken as {guess} by their links (--device says otherwise): {names} does not name them")
    node, like, more = node_of(host, Device.load(device or str(guess)), names)
    return node, like, (*notes, *more)


def node_of(host: HostTree, card: Device, names: str) -> tuple[Node, Cluster, tuple[str, ...]]:
    """A printed host with this device: the node, the preset that fills gaps, and what is to be said."""
    like = reference(card.name, len(host.gpus), len(host.used_cards) or None)
    like_node = like.runs[0].node
    joined, words = scale_up(host, card, like_node)
    nics, told = _nics(host, like_node.nics)
    dead = missing_bridges(host) if joined.kind == "pairs" else ()
    node = replace(like_node, device=card, gpus=len(host.gpus), scale_up=joined, nics=nics, missing_nics=(),
                   missing_bridges=dead)  # fmt: skip
    taken = f"host memory {show_bytes(node.host_memory_bytes)}, its links {show_rate(node.host_link_bytes_per_s)}"
    rates = f"rates and host taken from preset {like.name}: cards {show_rate(nics.bytes_per_s)}, {taken}"
    return node, like, (f"{words}; {told}: {names}", rates)


def _nics(host: HostTree, like: Nics) -> tuple[Nics, str]:
    """The cards that GPUs use, and the same in words."""
    used = host.used_cards
    if not used:
        return like, f"no cards printed, taken as {like.count}"
    rate = most_common([rate for card in used if (rate := host.graph.nodes[card].get("bytes_per_s"))])
    idle = [card for card in host.cards if card not in used]
    some = ", ".join(used[:3]) + (", …" if len(used) > 3 else "")
    words = f"{len(used)} card{'s' if len(used) > 1 else ''} in the order of the GPUs ({some})"
    if idle:
        words += f" without {', '.join(idle[:4])}, near no GPU"
    entered = {gpu: used[i * len(used) // len(host.gpus)] for i, gpu in enumerate(host.gpus)}
    far = [gpu for gpu, card in entered.items() if card not in host.cards_of_gpu[gpu]]
    if far:
        words += f"; {', '.join(far)} are entered at another card than their nearest"
    if all(host.graph.nodes[card].get("network") == "ethernet" for card in used):
        like, words = replace(like, kind="ethernet", gpudirect=False), f"{words}, TCP by their names"
    return replace(like, count=len(used), bytes_per_s=rate or like.bytes_per_s), words


def _cards_of_fabric(node: Node, fabric: FabricTree) -> Node:
    """The node with the number and rate of the cards that the network's cables show."""
    cards = fabric.cards
    if cards is None:
        return node
    count, rate = cards
    nics = replace(node.nics, count=count, bytes_per_s=rate or node.nics.bytes_per_s)
    return replace(node, nics=nics, missing_nics=())


def _with_slots(node: Node, slots: int | None, notes: tuple[str, ...], names: str) -> tuple[Node, tuple[str, ...]]:
    """The node with as many free GPUs as a hostfile has slots for."""
    if slots is None or slots == node.gpus:
        return node, notes
    if slots > node.gpus:
        raise InputError(f"{names}: {slots} slots of a host that has {node.gpus} GPUs")
    return replace(node, gpus=slots), (
        *notes,
        f"{slots} of the {node.gpus} GPUs of each host are used: slots of {names}",
    )


def _network(
    tree: FabricTree, whole: FabricTree, like: Cluster, names: str
) -> tuple[Fabric, int, tuple[int, ...], tuple[str, ...]]:
    """(fabric, nodes of a domain, domains where they differ, what is to be said).

    `whole` is the network with hosts that are not used: they share the uplinks.
    """
    notes = []
    leaves, spines = tuple(len(leaf) for leaf in tree.leaves), tree.spine_sizes()
    told = whole.oversubscription()
    if told is None and tree.levels > 1:
        notes.append(f"full bisection above the leaves taken: {names} does not say how many uplinks they have")
    if tree.levels == 1 and len(leaves) > 1:
        notes.append(f"a spine above {len(leaves)} leaves taken: {names} names none")
    if tree.levels > 3:
        notes.append(f"{tree.levels} levels of switches priced as leaves, spines and one core: {names}")
    cards = (tree.cards or (1, None))[0]
    if 1 < tree.planes < cards:
        notes.append(
            f"{tree.planes} networks that no switch joins priced as one, {cards} cards a host share them: {names}"
        )
    fabric = Fabric(
        nodes_per_leaf=max(leaves),
        leaves=leaves if len(set(leaves)) > 1 else (),
        oversubscription=told or 1.0,
        hop_latency_s=like.fabric.hop_latency_s,
        leaves_per_spine=max(spines, default=0),
        spines=spines if len(set(spines)) > 1 else (),
        spine_oversubscription=(whole.oversubscription(2) or 1.0) if spines else 1.0,
        rail_only=1 < tree.planes == cards,
    )
    domains = tree.domain_sizes()
    if not domains or max(domains) > like.nodes_per_domain:
        if domains:
            most = f"{like.nodes_per_domain} hosts at most" if like.nodes_per_domain > 1 else "no host of another"
            notes.append(f"NVLink domains of {max(domains)} hosts left out, {like.name}'s joins {most}: {names}")
        return fabric, 1 if like.nodes_per_domain == 1 or domains else like.nodes_per_domain, (), tuple(notes)
    return fabric, max(domains), domains if len(set(domains)) > 1 else (), tuple(notes)
