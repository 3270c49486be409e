"""Network cards of this machine, from a made-up /sys: RDMA cards, Ethernet cards, rates that nobody tells."""

from pathlib import Path

import pytest

from cost_models.hardware import local
from cost_models.hardware.network_cards import NetworkCard, network_cards, numa_nodes


def put(sys: Path, **files: str) -> None:
    for name, text in files.items():
        file = sys / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def ethernet(sys: Path, name: str, speed: str, numa: str = "-1") -> None:
    put(sys, **{f"class__net__{name}__speed": speed, f"class__net__{name}__device__numa_node": numa})


def test_rdma_cards_hide_ethernet_s(tmp_path: Path) -> None:
    for name, layer, rate, numa in (
        ("mlx5_0", "InfiniBand", "400 Gb/sec (4X NDR)", "1"),
        ("mlx5_1", "Ethernet", "x", "0"),
    ):
        at = f"class__infiniband__{name}"
        put(
            tmp_path,
            **{f"{at}__ports__1__rate": rate, f"{at}__ports__1__link_layer": layer, f"{at}__device__numa_node": numa},
        )
    ethernet(tmp_path, "eth0", "1000")
    assert network_cards(tmp_path) == (
        NetworkCard(name="mlx5_0", kind="infiniband", bytes_per_s=50e9, numa=1),
        NetworkCard(name="mlx5_1", kind="roce", bytes_per_s=None, numa=0),
    )


def test_ethernet_cards_with_hardware_behind_them(tmp_path: Path) -> None:
    ethernet(tmp_path, "eth0", "-1")
    ethernet(tmp_path, "eth1", "25000", "3")
    put(tmp_path, class__net__lo__speed="10000", devices__system__node__node0__x="", devices__system__node__node1__x="")
    assert network_cards(tmp_path) == (
        NetworkCard(name="eth0", kind="ethernet", bytes_per_s=None, numa=None),
        NetworkCard(name="eth1", kind="ethernet", bytes_per_s=3.125e9, numa=3),
    )
    assert numa_nodes(tmp_path) == 2 and network_cards(tmp_path / "no") == () and numa_nodes(tmp_path / "no") == 1


def test_a_machine_of_cpus_has_the_cards_that_its_kernel_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("eth0", "eth1"):
        ethernet(tmp_path, name, "100000", "0")
    ethernet(tmp_path, "eth2", "1000")
    monkeypatch.setattr(local, "gpus", lambda: ())
    monkeypatch.setattr(local, "network_cards", lambda: network_cards(tmp_path))
    cluster = local.local_cluster(1)
    nics = cluster.node(0).nics
    assert (nics.count, nics.bytes_per_s, nics.kind, nics.gpudirect) == (2, 12.5e9, "ethernet", False)
    assert any("eth0 at node 0, eth1 at node 0, eth2; 2 of 12.5 GB/s" in note for note in cluster.notes)
    monkeypatch.setattr(local, "network_cards", lambda: network_cards(tmp_path / "no"))
    assert "the kernel lists no network card" in local.local_cluster(1).notes[-1]
