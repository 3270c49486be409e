"""`plan topology` and `plan discover`: what they print, and that a written cluster file reads back as the same."""

from __future__ import annotations

import stat
from pathlib import Path

import networkx as nx
import pytest
from click.testing import CliRunner

from cost_models import Cluster
from cost_models.hardware.cluster_writing import cluster_yaml
from planner.clusters.drawing import tree
from planner.command import cli

PRINTED = Path(__file__).parents[1] / "cost_models" / "hardware" / "printed"


def run(*words: str) -> str:
    done = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_preset_is_drawn_with_the_rates_that_prices_use() -> None:
    out = run("topology", "--cluster", "dgx-h100", "--gpus", "512")
    assert "spine of 2 leaves, full bisection" in out and "leaf 0-1, each" in out
    assert "8 × h100-sxm-80gb joined by nvlink4" in out and "8 × card of 50 GB/s (infiniband)" in out
    (line,) = [line for line in out.splitlines() if line.startswith("card to card")]
    assert line.split()[5:11] == ["50", "GB/s", "46", "GB/s", "3.3", "us"]


def test_three_tiers_are_drawn_and_what_was_taken_is_said() -> None:
    out = run("topology", "--cluster", str(PRINTED / "topo_m/smi_pcie_tree.txt"), "--device", "rtx3090")
    assert "socket of GPU 4-7" in out and "PCIe switch or socket: rtx3090 6-7" in out
    assert "all 4 GPUs of a socket, to others" in out and "22 GB/s" in out
    assert "Taken, not read:" in out and "rates and host taken from preset rtx3090-pcie" in out


def test_unlike_leaves_and_broken_nodes_have_lines_of_their_own(tmp_path: Path) -> None:
    changed = "fabric: {nodes_per_leaf: 2}\noverrides: [{slots: [3], missing_nics: [2]}]\n"
    (tmp_path / "c.yaml").write_text(f"base: dgx-h100\nnodes: [{{count: 6}}]\n{changed}")
    graph = tree(Cluster.load(str(tmp_path / "c.yaml")))
    assert nx.is_arborescence(graph)
    labels = list(nx.get_node_attributes(graph, "label").values())
    assert labels.count("2 × node A, as above") == 1 and labels.count("1 × node B") == 1
    assert {"leaf 0", "leaf 1", "leaf 2", "8 × card of 50 GB/s (infiniband), without 2"} <= set(labels)


@pytest.mark.parametrize("name", [*Cluster.presets(), *sorted(map(str, PRINTED.glob("slurm/*.conf")))])
def test_a_written_cluster_reads_back_as_the_same(name: str, tmp_path: Path) -> None:
    cluster = Cluster.load(name) if name.endswith(".conf") or name == "local" else Cluster.load(name, nodes=3)
    (tmp_path / "c.yaml").write_text(cluster_yaml(cluster))
    assert Cluster.load(str(tmp_path / "c.yaml")).to_dict() == cluster.to_dict()


def test_this_machine_is_written_with_its_driver_s_topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    listing = "\n".join(f"NVIDIA H100 80GB HBM3, 81559, 80000, GPU-{i}" for i in range(8))
    topo = PRINTED / "topo_m/h100_sxm_8nic_pix.txt"
    program.write_text(f"#!/bin/sh\nif [ $1 = topo ]; then cat {topo}; else cat <<'END'\n{listing}\nEND\nfi\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    out = run("discover", "-o", str(tmp_path / "mine.yaml"))
    assert "1 node × 8 h100-sxm-80gb, switch 450 GB/s, 8 NICs of 50 GB/s" in out
    cluster = Cluster.load(str(tmp_path / "mine.yaml"))
    assert (cluster.runs[0].node.scale_up.link, cluster.runs[0].node.device.memory_bytes) == ("nvlink4", 81559 * 2**20)
    assert any("8 GPUs, 18 links each, by switches" in note for note in cluster.notes)
