"""Printed topologies: what each real file of `printed/` is read as (its SOURCES.md says where each comes from)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models import Model, Placement, Strategy, Workload, price
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.links import HOST_STAGED_SHARE
from cost_models.hardware.readers import hostfile, hostlist, ibnetdiscover, nccl_xml, slurm, smi, topograph
from cost_models.hardware.readers.fabric_tree import FabricTree
from cost_models.hardware.readers.host_tree import HostTree
from cost_models.hardware.readers.printed import parse
from cost_models.hardware.readers.reference import likely_device
from planner.simulator.simulation import simulate

PRINTED = Path(__file__).parent / "printed"
FILES = sorted(path for path in PRINTED.glob("*/*") if path.name != "NOTICE")

# file: GPUs, cards in use, groups of neighbours over PCIe, how NVLink joins them and with how many links
HOSTS = {
    "topo_m/smi_h100_reversed.txt": (8, [f"NIC{8 - i}" for i in range(8)], (4,), ("all", 18)),
    "topo_m/h20_vm_8nic_reversed.txt": (8, [f"NIC{7 - i}" for i in range(8)], (4,), ("all", 18)),
    "topo_m/h100_sxm_8nic_pix.txt": (8, [f"NIC{i}" for i in range(8)], (4,), ("all", 18)),
    "topo_m/a100_8nic_pxb_pairs.txt": (8, [f"NIC{i}" for i in range(8)], (2, 4), ("all", 12)),
    "topo_m/b200_gcp_a4_8nic_pairs.txt": (8, [f"NIC{i}" for i in range(8)], (2, 4), ("all", 18)),
    "topo_m/dgx_a100_nps4_10nic.txt": (8, [f"NIC{i}" for i in range(8)], (2,), ("all", 12)),
    "topo_m/hgx_a100_nps4_1nic_oldformat.txt": (8, ["mlx5_0"], (2,), ("all", 12)),
    "topo_m/aws_p4d_a100_no_nic.txt": (8, [], (4,), ("all", 12)),
    "topo_m/gh200_quad_hpe_ex.txt": (4, [], (), ("all", 6)),
    "topo_m/smi_pcie_tree.txt": (8, [], (2, 4), ("none", 0)),
    "topo_m/pcie_4gpu_node.txt": (4, [], (), ("none", 0)),
    "topo_m/pcie_6gpu_sm120.txt": (6, [], (2, 4), ("none", 0)),
    "topo_m/pcie_8gpu_all_sys_tabs.txt": (8, [], (), ("none", 0)),
    "topo_m/pcie_8gpu_pix4_2nic.txt": (8, ["NIC0", "NIC1"], (4,), ("none", 0)),
    "topo_m/pcie_8gpu_pix_pairs.txt": (8, [], (2, 4), ("none", 0)),
    "topo_m/rtx_pro_6000_2gpu_tabs.txt": (2, [], (), ("none", 0)),
    "topo_m/rocm_mi250x_4gpu_showtopo.txt": (4, [], (), ("all", 1)),
    "topo_m/rocm_mi308x_8gpu_showtopo.txt": (8, [], (4,), ("all", 1)),
    "topo_m/rocm_mi355x_8gpu_linktype_only.txt": (8, [], (), ("all", 1)),
    "nccl_xml/two_a100_one_card.xml": (2, ["mlx5_0"], (), ("all", 12)),
    "nccl_xml/ibm_vpc_8xh100_nvswitch_8nic200.xml": (8, [f"mlx5_{7 - i}" for i in range(8)], (4,), ("switch", 18)),
    "nccl_xml/aws_g5_48xl_8xa10g_pcie.xml": (8, ["NIC0"], (4,), ("none", 0)),
    "nccl_xml/azure_ncv4_4xa100_pcie.xml": (4, ["eth0"], (), ("pairs", 12)),
}

# file: hosts, hosts of each leaf, hosts of each scale-up domain, levels of switches
FABRICS = {
    "slurm/topology_tree_man_page.conf": (18, [6, 6, 6], (), 2),
    "slurm/topology_tree_superpod_a100.conf": (79, [18, 18, 18, 18, 7], (), 1),
    "slurm/topology_block_man_page.conf": (128, [128], (32, 32, 32, 32), 0),
    "slurm/topology_block_azure_gb200.conf": (51, [51], (18, 16, 8, 9), 0),
    "slurm/scontrol_show_topology_gb300_block.txt": (36, [36], (18, 18), 0),
    "topograph/model_small-tree.yaml": (6, [3, 3], (3, 3), 2),
    "topograph/model_medium.yaml": (8, [2, 2, 2, 2], (2, 2, 2, 2), 3),
    "topograph/model_nvl72.yaml": (72, [18] * 4, (18,) * 4, 3),
    "topograph/model_large.yaml": (96, [8] * 12, (8,) * 12, 3),
    "topograph/model_dual-xclr-regular.yaml": (96, [8] * 12, (48, 48), 3),
    "topograph/model_dual-xclr-irregular.yaml": (255, None, (124, 131), 3),
    "topograph/ibnetdiscover_example.out": (122, [17, 11, 16, 16, 15, 18, 18, 11], (), 2),
    "topograph/netq_topologyGraph.json": (8, [4, 4], (), 2),
    "topograph/netq_computeNodes.json": (2, [2], (2,), 0),
}


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_is_read_as_printed(name: str) -> None:
    host = parse(PRINTED / name)
    gpus, cards, tiers, joined = HOSTS[name]
    assert isinstance(host, HostTree)
    assert (len(host.gpus), host.used_cards, host.tiers(), host.joined) == (gpus, cards, tiers, joined)


@pytest.mark.parametrize("name", FABRICS)
def test_a_network_is_read_as_printed(name: str) -> None:
    tree = parse(PRINTED / name)
    hosts, leaves, domains, levels = FABRICS[name]
    assert isinstance(tree, FabricTree)
    assert (len(tree.hosts), tree.domain_sizes(), tree.levels) == (hosts, domains, levels)
    assert len(set(tree.hosts)) == hosts and sum(map(len, tree.leaves)) == hosts
    assert leaves is None or [len(leaf) for leaf in tree.leaves] == leaves


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_every_file_makes_a_cluster_that_is_priced(path: Path) -> None:
    device = None
    try:
        cluster = Cluster.load(str(path))
    except InputError as error:
        assert "does not say which GPUs these are; give --device" in str(error)
        device = "mi250x-gcd" if "mi250x" in path.name else "l40s"
        cluster = Cluster.load(str(path), device=device)
    assert cluster.notes and all(path.name in note or "preset" in note for note in cluster.notes)
    assert Cluster.from_dict(json.loads(json.dumps(cluster.to_dict()))).digest == cluster.digest
    gpus = cluster.runs[0].node.gpus
    workload = Workload(Model.load("llama-3-8b"), context_tokens=4096 * gpus)
    cost = price(Cluster.load(str(path), gpus=gpus, device=device), workload, Strategy(ring=gpus, shard=gpus))
    assert 0 < cost.mfu < 0.8


def test_oversubscription_is_counted_where_every_cable_is_listed() -> None:
    tree = parse(PRINTED / "topograph/ibnetdiscover_example.out")
    assert isinstance(tree, FabricTree)
    # the fullest leaf group: 18 hosts x 4 cards of 400 Gbit/s over 67 uplinks of 400 Gbit/s
    assert tree.oversubscription() == pytest.approx(72 / 67)
    assert tree.cards == (4, 50e9)


def test_what_is_taken_is_said() -> None:
    cluster = Cluster.load(str(PRINTED / "topo_m/smi_h100_reversed.txt"), gpus=32)
    node = cluster.runs[0].node
    assert (cluster.slots, node.device.name, node.nics.count, node.scale_up.link) == (4, "h100-sxm-80gb", 8, "nvlink4")
    said = " | ".join(cluster.notes)
    assert "GPUs taken as h100-sxm-80gb by their links (--device says otherwise)" in said
    assert (
        "(NIC8, NIC7, NIC6, …) without NIC0, near no GPU" in said
        and "taken from preset dgx-h100: cards 50 GB/s" in said
    )
    other = Cluster.load(str(PRINTED / "topo_m/smi_h100_reversed.txt"), device="h20", gpus=8)
    assert other.runs[0].node.device.name == "h20" and not any("by their links" in note for note in other.notes)


def test_the_speed_of_cards_is_the_file_s() -> None:
    cluster = Cluster.load(str(PRINTED / "nccl_xml/ibm_vpc_8xh100_nvswitch_8nic200.xml"))
    assert cluster.runs[0].node.nics.bytes_per_s == 25e9 and cluster.runs[0].node.device.name == "h100-sxm-80gb"


def test_several_files_make_one_cluster() -> None:
    host, fabric = PRINTED / "topo_m/dgx_a100_nps4_10nic.txt", PRINTED / "slurm/topology_tree_superpod_a100.conf"
    cluster = Cluster.load(str(host), fabrics=[str(fabric)])
    assert (cluster.slots, cluster.gpus, cluster.runs[0].node.device.name) == (79, 632, "a100-sxm-80gb")
    assert cluster.fabric.leaves == (18, 18, 18, 18, 7) and cluster.leaf_of_slot.tolist()[70:74] == [3, 3, 4, 4]
    preset = Cluster.load("dgx-h200", fabrics=[str(fabric)], gpus=160)
    assert (preset.slots, preset.leaf_of_slot.max()) == (20, 1)


def test_domains_of_unlike_size_are_kept() -> None:
    cluster = Cluster.load(str(PRINTED / "slurm/topology_block_azure_gb200.conf"), device="gb200")
    assert (cluster.nodes_per_domain, cluster.domains) == (18, (18, 16, 8, 9))
    assert [int((cluster.domain_of_slot == i).sum()) for i in range(4)] == [18, 16, 8, 9]
    boxes = Cluster.load(str(PRINTED / "slurm/topology_block_azure_gb200.conf"), device="h100-sxm-80gb")
    assert boxes.nodes_per_domain == 1 and any("NVLink domains of 18 hosts left out" in note for note in boxes.notes)


def test_three_tiers_of_pcie_cost_more_than_two() -> None:
    """Of a buffer, 4 GPUs send 1/2 out of a socket at 22 GB/s, 2 GPUs 1/2 out of a switch at 24 GB/s: 2.18 times."""
    cluster = Cluster.load(str(PRINTED / "topo_m/smi_pcie_tree.txt"), device="rtx3090")
    node = cluster.runs[0].node
    link = node.scale_up
    assert (link.gpus_per_switch, link.cross_bytes_per_s) == (2, 24e9)
    assert (link.gpus_per_socket, link.socket_bytes_per_s) == (4, 22e9)
    direct = replace(link, peer_to_peer=True)
    two_tiers = cluster.override(
        {0: replace(node, scale_up=replace(direct, gpus_per_socket=0, socket_bytes_per_s=0.0))}
    )
    cluster = cluster.override({0: replace(node, scale_up=direct)})
    work = Workload(Model.load("longvila-1.5b"), context_tokens=32768, global_batch=2)
    strategy = Strategy(ulysses=4, data=2, shard=1, zero=0)
    across = Placement(slot_of_rank=np.zeros(8, int), gpu_of_rank=np.array([0, 1, 4, 5, 2, 3, 6, 7]))
    three, two = (price(each, work, strategy, across).seconds["all_to_all"] for each in (cluster, two_tiers))
    assert three / two == pytest.approx((4 / 22) / (2 / 24), rel=0.02)
    simulated = simulate(cluster, work, strategy, across).seconds["all_to_all"]
    assert simulated == pytest.approx(three, rel=0.1)


@pytest.mark.parametrize(("device", "words", "peers", "direct", "rates"), [
    ("rtx3090", ("PIX", "PHB", "SYS"), False, False, (24e9, 22e9)),
    ("rtx4090", ("PIX", "PXB", "SYS"), False, False, (24e9, 22e9)),
    ("l40s", ("PIX", "PHB", "SYS"), False, True, (13e9, 7e9)),
    ("l40", ("PXB", "NODE", "SYS"), False, True, (13e9, 7e9)),  # no preset of its own: as the other Ada card
    ("l40s", ("PHB", "NODE", "SYS"), False, False, (13e9, 7e9)),  # no switch joins any two
    ("l40s", ("PIX", "PIX", "PXB"), True, False, (24e9, 0.0)),  # switches join all
    ("a100-pcie-80gb", ("PIX", "PHB", "SYS"), True, False, (24e9, 22e9)),
])  # fmt: skip
def test_cards_exchange_directly_under_a_switch_if_their_preset_does(
    tmp_path: Path, device: str, words: tuple[str, str, str], peers: bool, direct: bool, rates: tuple[float, float]
) -> None:
    """GeForce cards never do; those of L40S's kind as far as NCCL goes, PIX and PXB."""

    def near(a: int, b: int) -> str:
        return "X" if a == b else words[0] if a // 2 == b // 2 else words[1] if a // 4 == b // 4 else words[2]

    names = [f"GPU{i}" for i in range(8)]
    rows = [f"{name} {' '.join(near(i, j) for j in range(8))}" for i, name in enumerate(names)]
    (tmp_path / "t.txt").write_text("\n".join([f"     {' '.join(names)}", *rows]) + "\n")
    link = Cluster.load(str(tmp_path / "t.txt"), device=device).runs[0].node.scale_up
    assert (link.peer_to_peer, link.direct_under_switch) == (peers, direct)
    assert (link.cross_bytes_per_s, link.socket_bytes_per_s) == rates
    assert link.reached_bytes_per_s == 32e9 * (1.0 if peers or direct else HOST_STAGED_SHARE)


def test_of_a_deeper_pcie_tree_the_outermost_tiers_count(tmp_path: Path) -> None:
    """16 cards: pairs under a switch, fours under two of them, eights on a socket. Sockets are the narrowest."""

    def near(a: int, b: int) -> str:
        groups = ((2, "PIX"), (4, "PXB"), (8, "NODE"))
        return "X" if a == b else next((word for size, word in groups if a // size == b // size), "SYS")

    names = [f"GPU{i}" for i in range(16)]
    rows = [f"{name} {' '.join(near(i, j) for j in range(16))} 0-31 {i // 8} N/A" for i, name in enumerate(names)]
    printed = tmp_path / "deep.txt"
    printed.write_text("\n".join([f"     {' '.join(names)} CPU Affinity NUMA Affinity GPU NUMA ID", *rows]) + "\n")
    cluster = Cluster.load(str(printed), device="rtx3090")
    link = cluster.runs[0].node.scale_up
    assert (link.gpus_per_switch, link.gpus_per_socket, link.socket_bytes_per_s) == (4, 8, 22e9)
    assert any("groups of 4 × 8" in note and "of 2 within them not told apart" in note for note in cluster.notes)


@pytest.mark.parametrize(
    ("groups", "tier", "told"),
    [
        ("00011111", 0, True),
        ("01010101", 0, True),
        ("00001111", 4, False),
        ("00000111", 5, False),
        ("00000000", 0, False),
    ],
)
def test_groups_of_a_pcie_tree_that_make_no_tier_are_said(tmp_path: Path, groups: str, tier: int, told: bool) -> None:
    def near(a: int, b: int) -> str:
        return "X" if a == b else "PIX" if groups[a] == groups[b] else "SYS"

    rows = [f"GPU{i} {' '.join(near(i, j) for j in range(8))} 0-31 0 N/A" for i in range(8)]
    heading = f"     {' '.join(f'GPU{i}' for i in range(8))} CPU Affinity NUMA Affinity GPU NUMA ID"
    (tmp_path / "tree.txt").write_text("\n".join([heading, *rows]) + "\n")
    cluster = Cluster.load(str(tmp_path / "tree.txt"), device="rtx3090")
    assert cluster.runs[0].node.scale_up.gpus_per_switch == tier
    assert any("are not told apart" in note for note in cluster.notes) is told


def test_topology_yaml_hostfile_and_graph_output() -> None:
    tree = slurm.read_yaml(
        [
            {"topology": "flat", "flat": True},
            {
                "topology": "t",
                "cluster_default": True,
                "tree": {"switches": [{"switch": "top", "children": "s[1-2]"}, {"switch": "s1", "nodes": "n[1-3]"},
                                      {"switch": "s2", "nodes": "n[4-5]"}]},
            },
        ],
        "topology.yaml",
    )  # fmt: skip
    assert [len(leaf) for leaf in tree.leaves] == [3, 2] and tree.levels == 2
    blocks = slurm.read_yaml(
        [{"topology": "b", "block": {"block_sizes": [2], "blocks": [{"block": "x", "nodes": "a[1-2]"}]}}], "y"
    )
    assert blocks.domain_sizes() == (2,)
    hosts = hostfile.read("gpu001 slots=8\ngpu[002-004] slots=8  # the rest\nlogin:8\n", "hosts")
    assert hosts.hosts == ["gpu001", "gpu002", "gpu003", "gpu004", "login"]
    graph = {
        "instances": [
            {"id": f"n{i}", "network_layers": [f"leaf{i // 2}", "core"], "labels": {"x/accelerator": f"nvl{i // 2}"}}
            for i in range(4)
        ]
    }
    made = topograph.read(graph, "graph.json")
    assert (made.levels, [len(leaf) for leaf in made.leaves], made.domain_sizes()) == (2, [2, 2], (2, 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "dgx-h100", "fabrics": ["slurm/topology_tree_man_page.conf"], "device": "l40s"}, "leave it out"),
        (
            {"name": "topo_m/smi_pcie_tree.txt", "fabrics": ["topo_m/pcie_4gpu_node.txt"]},
            "a second description of the hosts",
        ),
        ({"name": "topo_m/smi_pcie_tree.txt", "fabrics": ["nowhere.conf"]}, "--fabric 'nowhere.conf' is neither"),
        ({"name": "topo_m/smi_h100_reversed.txt", "device": "l40s"}, "NVLink, which this card has not"),
        ({"name": "topo_m/smi_h100_reversed.txt", "device": "h900"}, "device='h900' is unknown"),
        ({"name": "topo_m/smi_h100_reversed.txt", "gpus": 0}, "--gpus 0 must be from 1"),
        ({"name": "slurm/topology_tree_man_page.conf", "gpus": 1000}, "has 144 free GPUs; at most 144"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_a_line(words: dict[str, object], message: str) -> None:
    given = dict(words)
    name, fabrics = str(given.pop("name")), [str(f) for f in given.pop("fabrics", [])]  # type: ignore[attr-defined]
    paths = [str(PRINTED / fabric) if (PRINTED / fabric).is_file() else fabric for fabric in fabrics]
    with pytest.raises(InputError, match=message) as error:
        Cluster.load(str(PRINTED / name) if "/" in name else name, fabrics=paths, **given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_formats_are_told_apart_by_content() -> None:
    for path in FILES:
        text = path.read_text()
        readers = (
            smi.is_topology,
            nccl_xml.is_topology,
            ibnetdiscover.is_discovery,
            slurm.is_conf,
            hostfile.is_hostfile,
        )
        kinds = [is_one(text) for is_one in readers]
        assert sum(kinds) == (0 if path.suffix in (".yaml", ".json") else 1), path.name


def test_what_programs_add_to_their_output_is_skipped(tmp_path: Path) -> None:
    """Terminal codes around the heading, a byte order mark, a matrix without its affinity columns."""
    plain = (PRINTED / "topo_m/h100_sxm_8nic_pix.txt").read_text()
    coloured = tmp_path / "coloured.txt"
    coloured.write_text(plain.replace("GPU0", "\x1b[4mGPU0", 1).replace("\n", "\x1b[0m\n", 1))
    assert Cluster.load(str(coloured)).runs == Cluster.load(str(PRINTED / "topo_m/h100_sxm_8nic_pix.txt")).runs
    marked = tmp_path / "marked.conf"
    marked.write_bytes(b"\xef\xbb\xbfSwitchName=s0 Nodes=n[1-4]\r\n")
    assert Cluster.load(str(marked)).slots == 4
    short = tmp_path / "short.txt"
    short.write_text("\tGPU0\tGPU1\nGPU0\tX\tNV12\nGPU1\tNV12\tX\n")
    assert Cluster.load(str(short), device="a100-sxm-80gb").gpus == 2


@pytest.mark.parametrize("text", ["null", "NaN", "1e400", "true", "7", "tokens,count\n8192,3\n", "gpu1\nnull\n"])
def test_values_of_other_files_are_no_hosts(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError, match="f is none of: a cluster file"):
        parse(tmp_path / "f")
    assert hostfile.is_hostfile("gpu[1,2,007]\n10.0.0.1 slots=8\nnull-7,7e.example\n")


def test_slots_of_a_hostfile_are_the_gpus_of_its_hosts(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("gpu[001-004] slots=4\n")
    cluster = Cluster.load(str(hosts))
    assert (cluster.gpus, cluster.slots) == (16, 4)
    assert any("4 of the 8 GPUs" in note for note in cluster.notes)
    for text, problem in {
        "gpu1 slots=4\ngpu2 slots=8\n": "unlike numbers of slots",
        "gpu1 slots=16\n": "16 slots of a host that has 8 GPUs",
        "x" * 300: "more than 253 characters",
        "gpu1\n" * 200 + "what is this?\n": "is no host",
    }.items():
        hosts.write_text(text)
        with pytest.raises(InputError, match=problem):
            Cluster.load(str(hosts))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_essence_of_a_note_stands_before_its_colon(path: Path) -> None:
    """The short report prints notes up to the first colon: what is left must still be said in full, and once."""
    try:
        notes = Cluster.load(str(path)).notes
    except InputError as error:
        assert "--device" in str(error)
        return
    essences = [note.split(": ")[0] for note in notes]
    assert all(essence.count("(") == essence.count(")") and essence != path.name for essence in essences)
    assert len(set(notes)) == len(notes)


def discovered(tmp_path: Path, cables: list[tuple[str, str, int]]) -> FabricTree:
    """Cables as ibnetdiscover prints them: (switch, `host mlx5_N` or another switch, links)."""
    guid = {name: f"S-{i:04x}" for i, name in enumerate(dict.fromkeys(switch for switch, *_ in cables))}
    lines = []
    for switch, number in guid.items():
        lines.append(f'Switch\t65 "{number}"\t\t# "MF0;{switch}:MQM9701/U1" enhanced port 0 lid 1 lmc 0')
        ends = [(b, n) for a, b, n in cables if a == switch] + [(a, n) for a, b, n in cables if b == switch]
        for port, other in enumerate((end for end, links in ends for _ in range(links)), 1):
            to = guid.get(other, "H-" + other.encode().hex())
            lines.append(f'[{port}]\t"{to}"[1]\t\t# "{other}" lid 1 4xNDR')
    file = tmp_path / "fabric.out"
    file.write_text("\n".join(lines))
    tree = parse(file)
    assert isinstance(tree, FabricTree)
    return tree


def rails(leaf: int, hosts: range, switch: str) -> list[tuple[str, str, int]]:
    return [(switch.format(rail=rail, leaf=leaf), f"n{host} mlx5_{rail}", 1) for host in hosts for rail in range(2)]


def test_rails_that_no_switch_joins_are_read_as_such(tmp_path: Path) -> None:
    """Two rails of two leaves, each rail with a spine of its own; with a cable between the spines it is one network."""
    cables = [*rails(0, range(4), "r{rail}l{leaf}"), *rails(1, range(4, 8), "r{rail}l{leaf}")]
    cables += [(f"spine{rail}", f"r{rail}l{leaf}", 2) for rail in range(2) for leaf in range(2)]
    tree = discovered(tmp_path, cables)
    assert (tree.planes, tree.oversubscription(), [len(leaf) for leaf in tree.leaves]) == (2, 2.0, [4, 4])
    cluster = Cluster.load(str(tmp_path / "fabric.out"))
    assert cluster.fabric.rail_only and cluster.fabric.oversubscription == 2.0 and cluster.node(0).nics.count == 2
    joined = discovered(tmp_path, [*cables, ("spine0", "spine1", 1)])
    assert joined.planes == 1
    alone = discovered(tmp_path, rails(0, range(4), "r{rail}"))
    assert alone.planes == 2 and Cluster.load(str(tmp_path / "fabric.out")).fabric.rail_only


def test_three_levels_are_read_with_the_uplinks_of_each(tmp_path: Path) -> None:
    """Four leaves of four hosts and two cards, four uplinks each (2:1); two spines with four uplinks of eight (2:1)."""
    cables = [cable for leaf in range(4) for cable in rails(leaf, range(4 * leaf, 4 * leaf + 4), "l{leaf}")]
    cables += [(f"spine{leaf // 2}", f"l{leaf}", 4) for leaf in range(4)] + [("core", f"spine{i}", 4) for i in range(2)]
    discovered(tmp_path, cables)
    fabric = Cluster.load(str(tmp_path / "fabric.out")).fabric
    assert (fabric.nodes_per_leaf, fabric.leaves_per_spine) == (4, 2)
    assert (fabric.oversubscription, fabric.spine_oversubscription, fabric.rail_only) == (2.0, 2.0, False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("topology.conf", (
            "SwitchName=l0 Nodes=n[0-3]\nSwitchName=l1 Nodes=n[4-7]\nSwitchName=l2 Nodes=n[8-11]\n"
            "SwitchName=s0 Switches=l[0-1]\nSwitchName=s1 Switches=l2\nSwitchName=core Switches=s[0-1]\n")),
        ("topology.yaml", (
            "- topology: t\n  cluster_default: true\n  tree:\n    switches:\n"
            "    - {switch: core, children: 's[0-1]'}\n    - {switch: s0, children: 'l[0-1]'}\n"
            "    - {switch: s1, children: l2}\n    - {switch: l0, nodes: 'n[0-3]'}\n"
            "    - {switch: l1, nodes: 'n[4-7]'}\n    - {switch: l2, nodes: 'n[8-11]'}\n")),
        ("model.yaml", (
            "switches:\n  core: {switches: [s0, s1]}\n  s0: {switches: [l0, l1]}\n  s1: {switches: [l2]}\nblocks:\n"
            "- {switch: l0, nodes: ['n[0-3]']}\n- {switch: l1, nodes: ['n[4-7]']}\n"
            "- {switch: l2, nodes: ['n[8-11]']}\n")),
        ("graph.json", json.dumps({"instances": [
            {"id": f"n{i}", "network_layers": [f"l{i // 4}", f"s{i // 8}", "core"]} for i in range(12)]})),
    ],
)  # fmt: skip
def test_three_levels_are_read_from_lists_of_switches(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    cluster = Cluster.load(str(tmp_path / name))
    assert (cluster.fabric.nodes_per_leaf, cluster.fabric.leaves_per_spine, cluster.fabric.spines) == (4, 2, (2, 1))
    assert cluster.spine_of_slot.tolist() == [0] * 8 + [1] * 4
    assert any("does not say how many uplinks they have" in note for note in cluster.notes)


def test_a_leaf_without_hosts_is_no_level(tmp_path: Path) -> None:
    (tmp_path / "topology.conf").write_text(
        "SwitchName=l0 Nodes=n[0-3]\nSwitchName=l1 Nodes=n[4-7]\nSwitchName=top Switches=l[0-2]\n"
    )
    cluster = Cluster.load(str(tmp_path / "topology.conf"))
    assert (cluster.slots, cluster.fabric.leaves_per_spine) == (8, 0)


def test_hosts_chosen_from_a_network_keep_their_leaves() -> None:
    """Of 79 hosts under five leaves, 20 of two: in the network's order, each under its own leaf."""
    host, fabric = PRINTED / "topo_m/dgx_a100_nps4_10nic.txt", PRINTED / "slurm/topology_tree_superpod_a100.conf"
    chosen = hostlist.expand("node-[021-030,001-010]")
    cluster = Cluster.load(str(host), fabrics=[str(fabric)], hosts=chosen)
    assert cluster.hosts == hostlist.expand("node-[001-010,021-030]")
    assert (cluster.slots, cluster.fabric.nodes_per_leaf) == (20, 10)
    assert Cluster.load(str(host), fabrics=[str(fabric)]).hosts[16:18] == ("node-019", "node-020")
    with pytest.raises(InputError, match="--hosts: node-099 not in"):
        Cluster.load(str(host), fabrics=[str(fabric)], hosts=["node-001", "node-099"])


def test_hosts_name_the_slots_where_no_network_does(tmp_path: Path) -> None:
    named = Cluster.load("dgx-h100", hosts=["a1", "a2"])
    assert (named.slots, named.hosts) == (2, ("a1", "a2"))
    with pytest.raises(InputError, match="--hosts names 2 hosts, the cluster has 4 nodes"):
        Cluster.load("dgx-h100", gpus=32, hosts=["a1", "a2"])
    (tmp_path / "c.yaml").write_text("base: dgx-h100\nnodes: [{count: 4}]\nhosts: 'n[01-03],login'\n")
    file = Cluster.load(str(tmp_path / "c.yaml"), gpus=16)
    assert file.hosts == ("n01", "n02")
    for text, message in (("n[1-3]", "3 names for 4 nodes"), ("n[1-3],n1", "n1 stands there 2 times")):
        (tmp_path / "c.yaml").write_text(f"base: dgx-h100\nnodes: [{{count: 4}}]\nhosts: '{text}'\n")
        with pytest.raises(InputError, match=message):
            Cluster.load(str(tmp_path / "c.yaml"))


@given(st.lists(st.from_regex(r"[a-c]{1,2}-?[0-9]{0,3}", fullmatch=True), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_compressed_list_names_the_same_hosts_in_the_same_order(names: list[str]) -> None:
    assert list(hostlist.expand(hostlist.compress(names))) == names


def test_pairs_whose_other_card_the_machine_hides() -> None:
    """Azure's NC A100 v4 prints 12 NVLinks from each GPU to itself, and a TCP card."""
    cluster = Cluster.load(str(PRINTED / "nccl_xml/azure_ncv4_4xa100_pcie.xml"))
    node = cluster.node(0)
    assert (node.scale_up.kind, node.scale_up.bytes_per_s) == ("pairs", 300e9)
    assert (node.nics.kind, node.nics.gpudirect, node.nics.bytes_per_s) == ("ethernet", False, 12.5e9)
    assert any("taken as bridges of GPUs 2i and 2i + 1" in note for note in cluster.notes)


@pytest.mark.parametrize(
    ("name", "print_", "device", "rate"),
    [
        ("h20_vm_8nic_reversed.txt", "GPU 0: NVIDIA H20 (UUID: GPU-1)\n", "h20", 450e9),
        (
            "b200_gcp_a4_8nic_pairs.txt",
            "|   0  NVIDIA B200         On  | Off |\n",
            "b200-sxm-180gb",
            900e9,
        ),
        ("h100_sxm_8nic_pix.txt", "GPU 0: NVIDIA H200 (UUID: GPU-1)\n", "h200-sxm-141gb", 450e9),
        ("rocm_mi355x_8gpu_linktype_only.txt", "GPU[0]\t: Card Series:\tAMD Instinct MI355X\n", "mi355x", None),
    ],
)
def test_a_printed_name_decides_which_gpu_it_is(
    tmp_path: Path, name: str, print_: str, device: str, rate: float | None
) -> None:
    """`nvidia-smi topo -m` names no GPU; a file that also holds `nvidia-smi -L`, `nvidia-smi` or the like does."""
    (tmp_path / name).write_text(print_ + (PRINTED / "topo_m" / name).read_text())
    cluster = Cluster.load(str(tmp_path / name))
    assert cluster.node(0).device.name == device and not any("by their links" in note for note in cluster.notes)
    assert rate is None or cluster.node(0).scale_up.bytes_per_s == rate


def test_a_printed_name_without_a_preset_is_not_guessed(tmp_path: Path) -> None:
    text = (PRINTED / "topo_m/rocm_mi308x_8gpu_showtopo.txt").read_text()
    (tmp_path / "a.txt").write_text("GPU[0]: Card Series: AMD Instinct MI308X\n" + text)
    with pytest.raises(InputError, match="prints 'AMD Instinct MI308X', which is no preset; give --device"):
        Cluster.load(str(tmp_path / "a.txt"))
    assert Cluster.load(str(tmp_path / "a.txt"), device="mi300x").node(0).device.name == "mi300x"


def test_links_as_many_as_an_h100s_of_a_later_generation() -> None:
    text = (PRINTED / "nccl_xml/ibm_vpc_8xh100_nvswitch_8nic200.xml").read_text()
    for sm, device in (("100", "b200-sxm-180gb"), ("103", "b300"), ("90", "h100-sxm-80gb")):
        changed = text.replace('sm="90"', f'sm="{sm}"').replace('device="0x2330"', 'device="0xffff"')
        assert likely_device(nccl_xml.read(changed, "a.xml")) == device


def test_a_matrix_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    lines = (PRINTED / "topo_m/dgx_a100_nps4_10nic.txt").read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("GPU1"))
    lines[row] = lines[row].replace("NV12", "NV4 ", 1)
    (tmp_path / "a.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match="row GPU0 says NV12 of GPU1, row GPU1 says NV4 of GPU0"):
        Cluster.load(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("device", "links", "gb_per_s"),
    [
        ("a40", 4, 56.25),
        ("rtx3090", 4, 56.25),
        ("a30", 4, 100),
        ("a100-pcie-80gb", 12, 300),
        ("a100-pcie-80gb", 4, 100),
    ],
)
def test_bridges_of_pcie_cards_carry_what_their_links_do(
    tmp_path: Path, device: str, links: int, gb_per_s: float
) -> None:
    """One pair alone, two pairs, and two pairs of which one has no bridge (data sheets)."""
    nv = f"NV{links}"
    rows = {
        "two": [f"GPU0 X {nv}", f"GPU1 {nv} X"],
        "pairs": [f"GPU0 X {nv} SYS SYS", f"GPU1 {nv} X SYS SYS", f"GPU2 SYS SYS X {nv}", f"GPU3 SYS SYS {nv} X"],
        "one": [f"GPU0 X {nv} SYS SYS", f"GPU1 {nv} X SYS SYS", "GPU2 SYS SYS X PHB", "GPU3 SYS SYS PHB X"],
    }
    for name, lines in rows.items():
        head = " ".join(f"GPU{i}" for i in range(len(lines)))
        (tmp_path / f"{name}.txt").write_text("\n".join([f"\t{head}", *lines]).replace(" ", "\t") + "\n")
        node = Cluster.load(str(tmp_path / f"{name}.txt"), device=device).node(0)
        assert node.scale_up.bytes_per_s == gb_per_s * 1e9 and "bridge" in node.scale_up.link
        assert node.missing_bridges == ((1,) if name == "one" else ())
    with pytest.raises(InputError, match="NVLink, which this card has not"):
        Cluster.load(str(tmp_path / "pairs.txt"), device="l40s")
