"""Routes, rates and latencies of every kind of node, link by link."""

from dataclasses import replace

import numpy as np
import pytest

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import KINDS, LEAF_DOWN, LEAF_UP, NIC_OUT
from planner.simulator.topology import Topology
from tests.planner.clusters import DEGRADED, GB, PAIRS, PCIE, STAGED, cluster, node


def topology(where: Cluster) -> Topology:
    return Topology(where, Placement.in_order(where, where.gpus))


def route(where: Cluster, source: int, to: int) -> list[str]:
    found = topology(where)
    return found.link_names(found.routes(np.array([source]), np.array([to])), 0)


def test_switch_joins_any_pair_and_rails_leave_the_node() -> None:
    where = cluster(node(), node())
    assert route(where, 0, 3) == ["slot 0 gpu 0 out", "slot 0 gpu 3 in"]
    assert route(where, 1, 6) == ["slot 0 nic 1 out", "slot 1 nic 2 in"]


def test_fewer_nics_than_gpus_are_shared_and_a_missing_one_is_left_to_its_neighbour() -> None:
    shared = cluster(node(cards=2), node(cards=2))
    assert [route(shared, gpu, 4)[0] for gpu in range(4)] == [
        "slot 0 nic 0 out",
        "slot 0 nic 0 out",
        "slot 0 nic 1 out",
        "slot 0 nic 1 out",
    ]
    broken = cluster(node(missing_nics=(1, 3)), node())
    assert [route(broken, gpu, 4)[0] for gpu in range(4)] == [f"slot 0 nic {nic} out" for nic in (0, 2, 2, 0)]


def test_pcie_tree_crosses_the_sockets() -> None:
    where = cluster(node(scale_up=PCIE))
    assert route(where, 0, 1) == ["slot 0 gpu 0 pcie out", "slot 0 gpu 1 pcie in"]
    assert route(where, 1, 2) == [
        "slot 0 gpu 1 pcie out",
        "slot 0 switch 0 out",
        "slot 0 switch 1 in",
        "slot 0 gpu 2 pcie in",
    ]


def test_without_peer_to_peer_bytes_go_through_host_memory() -> None:
    where = cluster(node(scale_up=STAGED))
    assert route(where, 0, 1) == [
        "slot 0 gpu 0 pcie out",
        "slot 0 gpu 0 host out",
        "slot 0 gpu 1 host in",
        "slot 0 gpu 1 pcie in",
    ]
    latency = topology(where).latency_s(np.array([0]), np.array([1]))
    assert latency[0] == 2 * STAGED.latency_s


def test_nvlink_pairs_use_the_bridge_only_inside_the_pair() -> None:
    where = cluster(node(scale_up=PAIRS))
    assert route(where, 2, 3) == ["slot 0 gpu 2 out", "slot 0 gpu 3 in"]
    assert route(where, 0, 3) == [
        "slot 0 gpu 0 pcie out",
        "slot 0 switch 0 out",
        "slot 0 switch 1 in",
        "slot 0 gpu 3 pcie in",
    ]
    found = topology(where)
    routes = found.routes(np.array([2, 0]), np.array([3, 3]))
    assert found.rate(0, routes.unit[:1, 0]).tolist() == [100 * GB]


def test_one_nic_of_a_pcie_box_is_reached_over_the_sockets() -> None:
    where = cluster(node(cards=1, scale_up=PCIE), node(cards=1, scale_up=PCIE))
    assert route(where, 3, 6) == [
        "slot 0 gpu 3 pcie out",
        "slot 0 switch 1 out",
        "slot 0 switch 0 in",
        "slot 0 nic 0 out",
        "slot 1 nic 0 in",
        "slot 1 switch 0 out",
        "slot 1 switch 1 in",
        "slot 1 gpu 2 pcie in",
    ]
    assert route(where, 1, 4) == [
        "slot 0 gpu 1 pcie out",
        "slot 0 nic 0 out",
        "slot 1 nic 0 in",
        "slot 1 gpu 0 pcie in",
    ]


def test_leaf_links_only_where_they_can_limit() -> None:
    nodes = [node() for _ in range(4)]
    assert route(cluster(*nodes, leaf=2), 0, 12) == ["slot 0 nic 0 out", "slot 3 nic 0 in"]
    tight = cluster(*nodes, leaf=2, oversubscription=4.0)
    assert route(tight, 0, 12) == ["slot 0 nic 0 out", "leaf 0 up", "leaf 1 down", "slot 3 nic 0 in"]
    assert route(tight, 0, 4) == ["slot 0 nic 0 out", "slot 1 nic 0 in"]
    assert topology(tight).rate(LEAF_UP, np.array([0, 1])).tolist() == [2 * 4 * 10 * GB / 4] * 2


def test_leaf_uplink_is_not_slower_for_a_degraded_node_but_is_for_fewer_nodes() -> None:
    nodes = [node(), node(nics=DEGRADED), node()]
    rate = topology(cluster(*nodes, leaf=2, oversubscription=2.0)).rate(LEAF_DOWN, np.array([0, 1]))
    assert rate.tolist() == [40 * GB, 20 * GB]


def test_domain_over_several_hosts_needs_no_nic() -> None:
    where = cluster(node(), node(), node(), domain=2)
    assert route(where, 0, 7) == ["slot 0 gpu 0 out", "slot 1 gpu 3 in"]
    assert route(where, 0, 8)[0] == "slot 0 nic 0 out"
    assert route(Cluster.load("gb200-nvl72", gpus=72), 0, 71) == ["slot 0 gpu 0 out", "slot 17 gpu 3 in"]


def test_latency_grows_with_the_distance() -> None:
    where = cluster(node(), node(), node(nics=replace(DEGRADED, latency_s=7e-6)), leaf=2)
    found = topology(where).latency_s(np.array([0, 0, 0]), np.array([1, 4, 8]))
    assert found == pytest.approx([2e-6, 5e-6 + 1e-6, 7e-6 + 3e-6], rel=1e-12)


def test_rates_follow_each_node() -> None:
    where = cluster(node(), node(nics=DEGRADED))
    assert topology(where).rate(NIC_OUT, np.array([0, 4])).tolist() == [10 * GB, 3 * GB]


def test_host_memory_is_reached_over_pcie_where_the_gpu_has_no_other_link() -> None:
    tree = topology(cluster(node(scale_up=PCIE)))
    out = tree.host_routes(np.array([1]), inwards=False)
    assert tree.link_names(out, 0) == ["slot 0 gpu 1 pcie out", "slot 0 gpu 1 host out"]
    found = topology(cluster(node()))
    routes = found.host_routes(np.array([0, 2]), inwards=True)
    assert [KINDS[kind] for kind in routes.kind] == ["host in", "pcie in"]
    assert found.link_names(routes, 1) == ["slot 0 gpu 2 host in"]
