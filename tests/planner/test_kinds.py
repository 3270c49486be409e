"""Nodes that differ a little are planned as few kinds: each at least as fast as its kind, in the same slots."""

import random
from dataclasses import replace

import pytest

from cost_models import Cluster
from cost_models.hardware.cluster import NodeRun
from planner.clusters.kinds import MOST_EXACT, by_kind

BASE = Cluster.load("dgx-h100", nodes=1).runs[0].node


def fleet(clocks_mhz: list[int]) -> Cluster:
    nodes = [replace(BASE, device=BASE.device.at_clock(clock * 1e6)) for clock in clocks_mhz]
    return replace(Cluster.load("dgx-h100", nodes=1), runs=tuple(NodeRun(count=1, node=node) for node in nodes))


def test_few_kinds_are_left_as_they_are() -> None:
    cluster = fleet([1830 - i for i in range(MOST_EXACT)])
    assert by_kind(cluster) == cluster


@pytest.mark.parametrize(("count", "most", "tolerance"), [(160, 16, 0.01), (1000, 17, 0.05)])
def test_a_measured_fleet_becomes_few_kinds(count: int, most: int, tolerance: float) -> None:
    clocks = list(range(1830 - count, 1830))
    random.Random(1).shuffle(clocks)
    cluster = fleet(clocks)
    merged = by_kind(cluster)
    (said,) = merged.notes
    assert said.startswith(f"{count} kinds of node planned as ") and f"{tolerance:.1%}" in said
    assert merged.slots == cluster.slots
    kinds = set()
    for slot in range(cluster.slots):
        mine = cluster.runs[cluster.run_of_slot[slot]].node
        kind = merged.runs[merged.run_of_slot[slot]].node
        assert kind.device.clock_hz is not None and mine.device.clock_hz is not None
        assert kind.device.clock_hz <= mine.device.clock_hz <= kind.device.clock_hz * (1 + tolerance)
        assert kind.device.peak_flops["bf16"] <= mine.device.peak_flops["bf16"]
        assert replace(kind, device=mine.device) == mine
        kinds.add(kind.device.clock_hz)
    assert len(kinds) <= most


def test_different_parts_stay_apart_and_latencies_are_the_longest() -> None:
    slow = replace(BASE, nics=replace(BASE.nics, latency_s=BASE.nics.latency_s * 1.004))
    nodes = [BASE, slow, replace(BASE, missing_nics=(1,)), replace(BASE, gpus=7)]
    rate = BASE.host_link_bytes_per_s
    rates = [replace(node, host_link_bytes_per_s=rate * (1 - i * 1e-4)) for i in range(12) for node in nodes]
    cluster = replace(Cluster.load("dgx-h100", nodes=1), runs=tuple(NodeRun(count=1, node=node) for node in rates))
    merged = by_kind(cluster)
    found = [merged.runs[merged.run_of_slot[slot]].node for slot in range(merged.slots)]
    assert {(node.gpus, node.missing_nics) for node in found} == {(8, ()), (8, (1,)), (7, ())}
    assert found[0] == found[1] and found[0].nics.latency_s == slow.nics.latency_s
    assert found[0].host_link_bytes_per_s == min(node.host_link_bytes_per_s for node in rates)
