"""What a printed topology does not say about its hosts, taken from the preset that resembles them most.

    device and GPUs of a host  ->  the preset with that device and as many GPUs; makers' designs (dgx, hgx) come first

Also how NVLink and PCIe are entered: `joined` and `tiers` of a HostTree -> ScaleUp.
"""

from __future__ import annotations

from functools import cache

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.links import LINKS, LINKS_OF_GPU, bridge
from cost_models.hardware.node import Node, ScaleUp
from cost_models.hardware.readers.host_tree import NEARNESS, HostTree
from cost_models.units import show_rate

_BY_LINKS = {
    ("NV", 12, 8): "a100-sxm-80gb", ("NV", 12, 16): "a100-sxm-80gb", ("NV", 18, 8): "h100-sxm-80gb",
    ("NV", 4, 4): "a100-sxm-80gb", ("NV", 6, 4): "gh200", ("XGMI", 1, 8): "mi300x",
}  # fmt: skip
"""The likeliest GPU of a host, by the word and number of links of a pair, and the GPUs that are joined so."""
_BY_SM = {100: {"h100-sxm-80gb": "b200-sxm-180gb"}, 103: {"h100-sxm-80gb": "b300"}}
"""Of a later generation whose links are as many, by compute capability (CUDA C++ Programming Guide, table of GPUs)."""
_PCIE = {"volta": "pcie3", "turing": "pcie3", "ampere": "pcie4", "ada": "pcie4", "cdna2": "pcie4"}
_QUADS = {"nvlink2": "nvlink2-quad", "nvlink3": "nvlink3-quad", "nvlink4": "nvlink4-quad"}
SWITCH_SHARE = 0.75
"""Of a PCIe switch's line rate, what its GPUs share on the way out: as between pairs (`wiring.PCIE_SHARE`)."""
SOCKET_BYTES_PER_S = 22e9
"""Between two sockets, one way: Sapphire Rapids in NCCL's own model (src/graph/topo.h)."""


def likely_device(tree: HostTree) -> str | None:
    """A preset's name from the number of links; None where several kinds of GPU look alike."""
    joined, count = tree.joined
    if joined not in ("all", "switch"):
        return None
    likely = _BY_LINKS.get((tree.link or "NV", count, len(tree.gpus)))
    return _BY_SM.get(tree.sm, {}).get(likely or "", likely) if tree.sm is not None else likely


@cache
def reference(device: str, gpus: int, cards: int | None = None) -> Cluster:
    """The preset cluster, of one node, that is most like hosts with `gpus` of this device and as many cards."""
    wanted = Device.load(device)
    presets = [cluster for name in Cluster.presets() if name != "local" and (cluster := _readable(name)) is not None]

    def distance(cluster: Cluster) -> tuple[object, ...]:
        node = cluster.runs[0].node
        return (
            node.device.name != device,
            node.device.link != wanted.link,
            node.device.architecture != wanted.architecture,
            node.gpus != gpus,
            abs(node.gpus - gpus),
            cards is not None and abs(node.nics.count - cards),
            not cluster.name.startswith(("dgx", "hgx")),
            not cluster.name.startswith("dgx"),
            cluster.name,
        )

    return min(presets, key=distance)


def _readable(preset: str) -> Cluster | None:
    """The preset, of one node; None where its file is wrong, which the command that names it says."""
    try:
        return Cluster.load(preset, nodes=1)
    except InputError:
        return None


def scale_up(tree: HostTree, device: Device, like: Node) -> tuple[ScaleUp, str]:
    """How the GPUs are joined, and the same in words."""
    joined, count = tree.joined
    gpus, links = len(tree.gpus), LINKS_OF_GPU.get(device.link.partition("-")[0], 0)
    same = like.device.link == device.link and like.scale_up.kind == "switch"
    told = like.scale_up if same else ScaleUp(
        kind="switch", link=device.link, bytes_per_s=LINKS[device.link].bytes_per_s, latency_s=2e-6
    )  # fmt: skip
    bridged = bridge(device.name, count)
    if bridged and gpus == 2 and joined == "all":
        name, rate = bridged
        return ScaleUp(kind="switch", link=name, bytes_per_s=rate, latency_s=2e-6), f"2 GPUs, bridged by {count} links"
    if bridged and joined in ("pairs", "some") and tree.link != "XGMI":
        apart = sorted(pair for pair in tree.nvlinks if pair[0] % 2 or pair[1] != pair[0] + 1)
        if apart:
            raise InputError(f"the file bridges GPU{apart[0][0]} and GPU{apart[0][1]}; only GPUs 2i and 2i + 1 can be")
        told_of = ", ".join(f"GPU{2 * i}" for i in range(gpus // 2) if i not in missing_bridges(tree))
        return _pcie(tree, device, like, bridged), f"{gpus} GPUs, {told_of} bridged to the next by {count} links"
    if device.link.startswith(("pcie", "shared")) and joined != "none":
        raise InputError(f"--device {device.name}: the file prints {tree.link or 'NVLink'}, which this card has not")
    if tree.link == "XGMI":
        return told, f"{gpus} GPUs joined by XGMI"
    if joined == "switch" or (joined == "all" and (gpus == 2 or count * (gpus - 1) > links)):
        return told, f"{gpus} GPUs, {count} links each, by switches" if gpus > 2 else f"{gpus} GPUs, {count} links"
    if joined == "all":
        quad = _QUADS.get(device.link, device.link)
        rate = min(LINKS[quad].bytes_per_s, LINKS[device.link].bytes_per_s)
        return ScaleUp(kind="switch", link=quad, bytes_per_s=rate, latency_s=2e-6), f"{gpus} GPUs, {count} links a pair"
    if joined == "some":
        return told, f"{gpus} GPUs, of which some pairs share NVLinks (as in {like.device.name}'s preset)"
    if joined == "pairs":
        return _pcie(tree, device, like, (device.link, LINKS[device.link].bytes_per_s)), (
            f"{gpus} GPUs in pairs of {count} links"
        )
    if not tree.nvlinks_listed and not device.link.startswith("pcie") and like.scale_up.kind == "switch":
        return told, f"{gpus} GPUs; NVLink, which the file leaves out, as the device has it"
    link = _pcie(tree, device, like)
    tiers = " × ".join(map(str, _outermost(tree))) or "all alike"
    ways = [f"{show_rate(rate)} out of one" for rate in (link.cross_bytes_per_s, link.socket_bytes_per_s) if rate]
    how = "directly" if link.peer_to_peer else "through host memory, but under a switch"
    ways.append(f"messages {how if link.peer_to_peer or link.direct_under_switch else 'through host memory'}")
    taken = f", taken as {', '.join(ways)}"
    inner = f", those of {' × '.join(map(str, left))} within them not told apart" if (left := tree.tiers()[:-2]) else ""
    unlike = (
        "; groups of unlike sizes or of GPUs that are no neighbours are not told apart" if tree.has_other_groups else ""
    )
    return link, f"{gpus} GPUs by PCIe, groups of {tiers}{taken}{inner}{unlike}"


def _outermost(tree: HostTree) -> tuple[int, ...]:
    """Sizes of the two tiers that a node can have, out of which the fewest bytes a second go."""
    return tree.tiers()[-2:]


def missing_bridges(tree: HostTree) -> tuple[int, ...]:
    """Pairs i (GPUs 2i and 2i + 1) that no NVLink joins where other pairs have some."""
    if tree.joined[0] not in ("pairs", "some"):
        return ()
    return tuple(i for i in range(len(tree.gpus) // 2) if (2 * i, 2 * i + 1) not in tree.nvlinks)


def _pcie(tree: HostTree, device: Device, like: Node, bridged: tuple[str, float] | None = None) -> ScaleUp:
    link = _PCIE.get(device.architecture, "pcie5")
    rate = LINKS[link].bytes_per_s
    tiers = _outermost(tree)
    by_socket = bool(tiers) and len(tree.groups(NEARNESS.index("NODE"))) > 1
    switch, socket = (tiers[0], tiers[1] if len(tiers) > 1 else 0) if tiers else (0, 0)
    switch_rate = SOCKET_BYTES_PER_S if by_socket and not socket else SWITCH_SHARE * rate
    socket_rate, known = SOCKET_BYTES_PER_S, like.scale_up
    if _alike(device, like) and by_socket and (known.gpus_per_switch, known.gpus_per_socket) == (switch, socket):
        switch_rate, socket_rate = known.cross_bytes_per_s, known.socket_bytes_per_s
    peers, direct = _peers(tree, device, like, switch)
    return ScaleUp(
        kind="pairs" if bridged else "pcie",
        link=bridged[0] if bridged else link,
        bytes_per_s=bridged[1] if bridged else rate,
        latency_s=8e-6,
        pcie_bytes_per_s=rate if bridged else 0.0,
        peer_to_peer=peers,
        direct_under_switch=direct,
        gpus_per_switch=switch,
        cross_bytes_per_s=switch_rate if switch else 0.0,
        gpus_per_socket=socket,
        socket_bytes_per_s=socket_rate if socket else 0.0,
    )


def _peers(tree: HostTree, device: Device, like: Node, switch: int) -> tuple[bool, bool]:
    """(`peer_to_peer`, `direct_under_switch`), as the preset of such cards has them. Under a PCIe switch is PIX or PXB:
    NCCL itself goes no further (src/graph/paths.cc, p2pLevel). Cards unlike any preset's are taken to be peers."""
    if not _alike(device, like) or like.scale_up.peer_to_peer:
        return True, False
    if not like.scale_up.direct_under_switch:
        return False, False
    groups = tree.groups(NEARNESS.index("PXB"))
    group = {gpu: i for i, gpus in enumerate(groups) for gpu in gpus}
    together = switch > 0 and all(group[gpu] == group[gpu - gpu % switch] for gpu in group)
    return len(groups) == 1, together and len(groups) > 1


def _alike(device: Device, like: Node) -> bool:
    return (like.device.link, like.device.architecture) == (device.link, device.architecture)
