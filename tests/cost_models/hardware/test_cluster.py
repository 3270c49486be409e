"""Clusters from presets and files: sizes, overrides, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from cost_models import Cluster, InputError, Model, Placement, Strategy, Workload, price
from cost_models.hardware.cluster import MAX_GPUS
from cost_models.hardware.links import LINKS
from cost_models.workload import Precision

RUN = """
base: dgx-h100
nodes:
  - {count: 3}
  - {count: 1, device: a100-sxm-80gb, gpus: 4}
overrides:
  - {slots: [1], missing_nics: [2]}
  - {slots: [0-1], gpus: 7}
"""


def load(tmp_path, text, **size):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return Cluster.load(str(path), **size)


@pytest.mark.parametrize("name", Cluster.presets())
def test_every_preset_loads_and_round_trips(name):
    cluster = Cluster.load(name)
    assert Cluster.from_dict(json.loads(json.dumps(cluster.to_dict()))) == cluster
    assert len(cluster.digest) == 64
    assert Cluster.from_dict(json.loads(json.dumps(cluster.to_dict()))).digest == cluster.digest


@pytest.mark.parametrize(
    ("name", "device", "gpus", "cards", "gbit"),
    [
        ("dgx-h100", "h100-sxm-80gb", 8, 8, 400),  # NVIDIA DGX H100 data sheet
        ("hgx-h100-2nic", "h100-sxm-80gb", 8, 2, 400),
        ("dgx-b300", "b300", 8, 8, 800),  # NVIDIA DGX B300 data sheet
        ("gb300-nvl72", "gb300", 4, 4, 800),  # NVIDIA GB300 NVL72 data sheet: ConnectX-8
        ("aws-p3dn", "v100-sxm2-32gb", 8, 1, 100),  # AWS instance types
        ("aws-p4de", "a100-sxm-80gb", 8, 4, 100),
        ("aws-p5en", "h200-sxm-141gb", 8, 8, 400),
        ("gcp-a3", "h100-sxm-80gb", 8, 4, 200),  # Google Cloud, GPU network bandwidth
        ("gcp-a3-mega", "h100-sxm-80gb", 8, 8, 200),
        ("azure-nd-a100-v4", "a100-sxm-40gb", 8, 8, 200),  # Azure ND series
        ("azure-nd-mi300x-v5", "mi300x", 8, 8, 400),
        ("jean-zay-v100", "v100-sxm2-32gb", 4, 4, 100),  # IDRIS, Jean Zay partitions
        ("perlmutter", "a100-sxm-40gb", 4, 4, 200),  # NERSC architecture page
        ("frontier", "mi250x-gcd", 8, 4, 200),  # OLCF Frontier user guide
        ("leonardo", "a100-sxm-64gb", 4, 4, 100),  # leonardo-supercomputer.cineca.eu, HPC system
        ("marenostrum5", "h100-sxm-64gb", 4, 4, 200),  # BSC, MareNostrum 5 user guide
    ],
)
def test_facts_of_the_presets(name, device, gpus, cards, gbit):
    node = Cluster.load(name, nodes=1).node(0)
    assert (node.device.name, node.gpus, node.nics.count) == (device, gpus, cards)
    assert node.nics.bytes_per_s == pytest.approx(gbit * 1e9 / 8)


@pytest.mark.parametrize("name", [name for name in Cluster.presets() if name != "local"])
def test_every_preset_says_what_it_is_and_prices_a_step(name):
    assert len(Cluster.about(name)) > 30
    cluster = Cluster.load(name, nodes=2)
    node = cluster.node(0)
    assert node.scale_up.link in LINKS and node.scale_up.bytes_per_s <= LINKS[node.scale_up.link].bytes_per_s
    precision = Precision() if "bf16" in node.device.peak_flops else Precision(param="fp16")
    workload = Workload(Model.load("llama-3-8b"), context_tokens=4096 * node.gpus, precision=precision)
    cost = price(cluster, workload, Strategy(ring=2, ulysses=node.gpus, shard=2 * node.gpus))
    assert 0 < cost.mfu < 0.8


def test_a_limited_clock_in_a_file(tmp_path):
    limited = load(tmp_path, "base: dgx-h100\nnodes: [{count: 1, clock_mhz: 915}]")
    assert limited.node(0).device.peak("bf16") == pytest.approx(989.4e12 / 2)
    with pytest.raises(InputError, match="clock 3000 MHz; at least 1, at most 1830 MHz"):
        load(tmp_path, "base: dgx-h100\nnodes: [{count: 1, clock_mhz: 3000}]")


def test_what_was_added_is_written_only_where_it_is_used():
    older = Cluster.load("dgx-h100").to_dict()["runs"][0]["node"]["nics"]
    assert set(older) == {"count", "bytes_per_s", "latency_s"}
    assert Cluster.load("gcp-a2").to_dict()["runs"][0]["node"]["nics"]["gpudirect"] is False


def test_what_a_preset_is_of_an_unknown_name():
    with pytest.raises(InputError, match="cluster='dgx-h10' is no preset; did you mean dgx-h100"):
        Cluster.about("dgx-h10")


def test_sizes():
    assert Cluster.load("dgx-h100", gpus=256).slots == 32
    assert Cluster.load("dgx-h100", gpus=3).gpus == 3
    odd = Cluster.load("dgx-h100", gpus=250)  # the last of 32 nodes is used in part
    assert (odd.gpus, odd.slots, odd.gpus_of_slot[-2:].tolist()) == (250, 32, [8, 2])
    assert Cluster.load("gb200-nvl72", gpus=144).domain_of_slot.max() == 1
    assert Cluster.load("dgx-h100", gpus=2**17).gpus == 2**17


def test_a_file_builds_on_a_preset_with_runs_and_overrides(tmp_path):
    cluster = load(tmp_path, RUN)
    assert cluster.gpus_of_slot.tolist() == [7, 7, 8, 4]
    assert cluster.node(1).missing_nics == (2,)
    assert [cluster.node(slot).device.name for slot in range(4)] == ["h100-sxm-80gb"] * 3 + ["a100-sxm-80gb"]
    assert load(tmp_path, RUN, gpus=18).gpus_of_slot.tolist() == [7, 7, 4]  # the last node is used in part


def test_a_missing_card_is_shared_with_its_neighbour(tmp_path):
    node = load(tmp_path, RUN).node(1)
    assert node.nic_of_gpu(8).tolist() == [0, 1, 3, 3, 4, 5, 6, 7]
    assert Cluster.load("aws-p4d").node(0).nic_of_gpu(8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [", "is not valid YAML"),
        ("base: dgx-h10", "is no preset; did you mean dgx-h100"),
        ("base: dgx-h100\nfabrik: {}", "fabrik is unknown; did you mean fabric"),
        ("base: dgx-h100\nnodes: [{count: 2, gpu: 8}]", r"nodes\[0\].gpu is unknown; did you mean gpus"),
        ("base: dgx-h100\nnodes: [{count: 0}]", "count=0 nodes; at least 1"),
        ("base: dgx-h100\nnodes: [{device: h900}]", "device='h900' is unknown"),
        ("base: dgx-h100\nfabric: {nodes_per_leaf: 2, oversubscription: 0.5}", "oversubscription >= 1"),
        ("base: dgx-h100\nnodes: [{count: 2}]\noverrides: [{slots: [5], gpus: 1}]", "5 is not within 0 to 1"),
        ("base: dgx-h100\nnodes: [{count: 2}]\noverrides: [{slots: [1], missing_nics: [9]}]", "NICs 0 to 7"),
        ("base: dgx-h100\nnodes: [{host_memory_bytes: 2 XB}]", "not a number with one of the units"),
        ("a: &a [1]\nb: *a", r"aliases \(\*name\) are not read"),
        ("base: dgx-h100\nnodes: [{scale_up: {kind: switch, link: x, bytes_per_s: -3, latency_s: 0}}]", "_per_s=-3"),
        ("base: dgx-h100\nnodes: [{scale_up: {kind: switch, link: nvlink9, bytes_per_s: 3, latency_s: 0}}]",
         "link='nvlink9' is unknown; did you mean nvlink5"),
        ("base: aws-p5\nnodes: [scale_up: {kind: pcie,link: pcie4,latency_s: 0, bytes_per_s: 3, cross_bytes_per_s: 1}]",
         "cross_bytes_per_s needs gpus_per_switch"),
        ("base: dgx-h100\nnodes: [{scale_up: {kind: switch, link: nvlink4, bytes_per_s: 1.0e-308, latency_s: 0}}]",
         r"bytes_per_s=1e-308; from 1 to 1e\+15 bytes/s"),
        ("base: dgx-h100\nnodes: [{scale_up: {kind: switch, link: nvlink4, bytes_per_s: 900 GB/s, latency_s: 2 us}}]",
         "900 GB/s is more than nvlink4 carries of one GPU one way; legal: up to 450 GB/s"),
        ("base: dgx-h100\nnodes: [{count: 2}]\noverrides: [{slots: [1], scale_up_bytes_per_s: 451 GB/s}]",
         "451 GB/s is more than nvlink4 carries"),
        (("base: dgx-h100\nnodes: [{scale_up: {kind: pcie, link: pcie4, bytes_per_s: 3, latency_s: 0, "
         "gpus_per_switch: 2000}}]"), r"gpus_per_switch 0 \(all\) to 1024"),
        (("base: dgx-h100\nnodes: [{scale_up: {kind: switch, link: nvlink4, bytes_per_s: 3, latency_s: 0, "
         "pcie_bytes_per_s: -5}}]"), "pcie_bytes_per_s=-5"),
        ("base: dgx-h100\nnodes: [{nics: {count: 8, bytes_per_s: 1.0e+308, latency_s: 0}}]", "from 1 to 1e"),
        ("base: dgx-h100\nnodes: [{nics: {count: 8, bytes_per_s: 0 GB/s, latency_s: 0}}]", "nics: .*bytes_per_s=0"),
        ("base: dgx-h100\nnodes: [{nics: {count: 8, latency_s: 0}}]", "nics.bytes_per_s is missing"),
        ("base: dgx-h100\nnodes: [{nics: {count: 8, bytes_per_s: 1 GB/s, latency_s: 0, kind: token-ring}}]",
         "kind: 'token-ring' is not one of efa, efa-v1, ethernet, infiniband"),
    ],
)  # fmt: skip
def test_faults_in_a_file_name_the_key_and_the_legal_values(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"gpus": 0}, "--gpus 0 must be from 1"),
        ({"nodes": 2, "gpus": 24}, "--nodes 2 of 8 GPUs are 16, not --gpus 24"),
        ({"gpus": MAX_GPUS + 8}, "must be from 1 to"),
    ],
)
def test_counts_that_the_nodes_cannot_give_are_refused(size, message):
    with pytest.raises(InputError, match=message):
        Cluster.load("dgx-h100", **size)


def test_placements_are_checked():
    cluster = Cluster.load("dgx-h100", nodes=2)
    Placement.in_order(cluster, 16).check(cluster, 16)
    twice = Placement(slot_of_rank=np.zeros(2, int), gpu_of_rank=np.zeros(2, int))
    with pytest.raises(InputError, match="two ranks on one GPU"):
        twice.check(cluster, 2)
    with pytest.raises(InputError, match="17 ranks on 16 free GPUs"):
        Placement.in_order(cluster, 17)
    away = Placement(slot_of_rank=np.array([0, 2]), gpu_of_rank=np.array([0, 0]))
    with pytest.raises(InputError, match="slots outside 0 to 1"):
        away.check(cluster, 2)


@pytest.mark.parametrize(
    "line",
    ["clock_mhz: 1.0e-300", *(f"nics: {{{nics}, latency_s: 3 us}}" for nics in (
        "count: 1000000000, bytes_per_s: 50 GB/s", "count: 8, bytes_per_s: 1.0e-308"))],
)  # fmt: skip
def test_values_that_would_hang_or_overflow_a_price_are_refused(tmp_path, line):
    with pytest.raises(InputError, match=r"count from 0 to 1024|at least 1, at most 1830 MHz"):
        load(tmp_path, f"base: dgx-h100\nnodes:\n  - {{count: 2, {line}}}\n")


def test_a_leaf_or_spine_of_more_nodes_than_there_are_is_as_large_as_they_are(tmp_path):
    text = "base: dgx-h100\nnodes: [{count: 8}]\nfabric: {nodes_per_leaf: 2, leaves_per_spine: 2, "
    assert load(tmp_path, text + "leaves: [9000000000000000000]}").leaf_of_slot.tolist() == [0] * 8
    assert load(tmp_path, text + "spines: [1, 9000000000000000000]}").spine_of_slot.tolist() == [0, 0] + [1] * 6


def test_the_release_of_nccl_is_a_text_that_names_one(tmp_path):
    text = "base: dgx-h100\nnodes: [{{count: 4}}]\nfabric: {{nccl: {}}}\n"
    fabric, preset = load(tmp_path, text.format('"2.20.5"')).fabric, Cluster.load("dgx-h100").fabric
    assert fabric.nccl_minor == 20 and dataclasses.replace(fabric, nccl=preset.nccl) == preset
    for wrong in ("2.30", '"3.1"', '"new"'):  # a bare 2.30 is the number 2.3
        with pytest.raises(InputError, match="nccl"):
            load(tmp_path, text.format(wrong))
    with pytest.raises(InputError, match="channel_bytes_per_s"):
        load(tmp_path, RUN.replace("count: 3", "count: 3, nics: {count: 8, bytes_per_s: 50 GB/s, latency_s: 3 us, "
                                   "channel_bytes_per_s: 0}"))  # fmt: skip
