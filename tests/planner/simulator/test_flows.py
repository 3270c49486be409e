"""What collectives send: bytes out of each rank and domain, ring by ring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.strategy import Strategy, rank_groups
from planner.simulator.flows import Pattern, pattern
from planner.simulator.topology import Topology
from tests.planner.clusters import PCIE, cluster, node


def made(where: Cluster, layout: Strategy, axis: str, op: str) -> tuple[Topology, Pattern]:
    topology = Topology(where, Placement.in_order(where, layout.ranks))
    return topology, pattern(topology, rank_groups(layout, axis), op)  # type: ignore[arg-type]


def sent(topology: Topology, found: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """Shares that each rank sends in all, and those that leave each domain."""
    share, leaving = np.zeros(topology.ranks), np.zeros(int(topology.domain.max()) + 1)
    for hop in found.hops:
        sends = hop.count * found.hop_share[found.group_of_rank]
        share += sends
        outside = topology.domain != topology.domain[hop.to]
        np.add.at(leaving, topology.domain[outside], sends[outside])
    return share, leaving


def test_ring_over_two_nodes_enters_each_once_per_nic() -> None:
    """8 ranks, 4 NICs a node: 4 channels; each rank sends 7/8 of the buffer, each node 7/8 of it to the other."""
    topology, found = made(cluster(node(), node()), Strategy(ring=2, ulysses=4, shard=8), "shard", "all_gather")
    share, leaving = sent(topology, found)
    assert share == pytest.approx(np.full(8, 7 / 8), rel=1e-12)
    assert leaving == pytest.approx([7 / 8, 7 / 8], rel=1e-12)
    inside, across = found.hops
    assert inside.to.tolist() == [1, 2, 3, 0, 5, 6, 7, 4]
    assert inside.count.tolist() == [3] * 8
    assert across.count.tolist() == [1] * 8
    assert found.hop_share == pytest.approx([7 / 8 / 4], rel=1e-12)
    assert sorted(across.to.tolist()) == list(range(8))


def test_ring_inside_one_domain_is_one_channel() -> None:
    where = cluster(node(), node(), domain=2)
    _, found = made(where, Strategy(ring=2, ulysses=4, shard=8), "shard", "all_gather")
    assert len(found.hops) == 1
    assert found.hops[0].to.tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert found.delay_s == pytest.approx([7 * 2e-6], rel=1e-12)


def test_all_reduce_sends_twice() -> None:
    where, layout = cluster(node(), node()), Strategy(data=2, ulysses=4, shard=4)
    topology, found = made(where, layout, "replicate", "all_reduce")
    share, leaving = sent(topology, found)
    assert share == pytest.approx(np.full(8, 2 * 1 / 2), rel=1e-12)
    assert leaving == pytest.approx([4.0, 4.0], rel=1e-12)
    assert found.delay_s == pytest.approx(np.full(4, 2 * 1 / 2 * 2 * 6e-6), rel=1e-12)


def test_all_reduce_over_two_nodes_takes_trees() -> None:
    """8 ranks, 4 cards a node: all of the buffer leaves each node once, where rings would send 2 x 7/8 of it."""
    topology, found = made(cluster(node(), node()), Strategy(data=8, shard=8), "shard", "all_reduce")
    leaving = sent(topology, found)[1]
    assert leaving == pytest.approx([1.0, 1.0], rel=1e-12)
    three = made(cluster(node(), node(), node()), Strategy(data=12, shard=12), "shard", "all_reduce")
    assert sent(*three)[1] == pytest.approx(np.full(3, 2 * 11 / 12), rel=1e-12)


def test_channels_are_those_of_the_domain_with_the_fewest_nics() -> None:
    topology, found = made(cluster(node(), node(cards=1)), Strategy(ring=8, shard=8), "shard", "all_gather")
    across = found.hops[1]
    assert np.flatnonzero(across.count).tolist() == [3, 7]
    assert across.to[[3, 7]].tolist() == [4, 0]
    assert sent(topology, found)[1] == pytest.approx([7 / 8, 7 / 8], rel=1e-12)


def test_missing_nic_leaves_three_channels_on_three_nics() -> None:
    topology, found = made(cluster(node(missing_nics=(1,)), node()), Strategy(ring=8, shard=8), "shard", "all_gather")
    across = found.hops[1]
    leaving = np.flatnonzero(across.count)
    out = [topology.nic[rank] for rank in leaving if topology.slot[rank] == 0]
    entered = [topology.nic[to] for to in across.to[leaving] if topology.slot[to] == 0]
    assert len(set(out)) == len(out) == 3
    assert len(set(entered)) == len(entered) == 3


def test_send_goes_to_the_next_and_waits_for_the_longest_hop() -> None:
    _, found = made(cluster(node(), node()), Strategy(ring=8, shard=8), "ring", "send")
    assert found.hops[0].to.tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert found.delay_s == pytest.approx([6e-6], rel=1e-12)


def test_all_to_all_goes_to_each_other_member() -> None:
    _, found = made(cluster(node()), Strategy(ulysses=4, shard=4), "ulysses", "all_to_all")
    assert (found.hops, found.each_share, found.members) == ((), 0.25, 4)


def test_group_of_one_sends_nothing() -> None:
    _, found = made(cluster(node()), Strategy(ulysses=4, shard=1), "shard", "all_gather")
    assert found.hops == () and found.each_share == 0


@given(st.lists(st.sampled_from((1, 2, 3, 4)), min_size=2, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_cut_bytes_of_any_ring(gpus: list[int], data: st.DataObject) -> None:
    """Whatever the nodes look like: (P-1)/P out of every rank, and the same out of every domain of a group."""
    where = cluster(*[node(count, data.draw(st.integers(1, 4))) for count in gpus])
    every = sum(gpus)
    layout = Strategy(data=every, shard=data.draw(st.sampled_from([n for n in range(1, every + 1) if every % n == 0])))
    topology, found = made(where, layout, "shard", "reduce_scatter")
    part = (layout.shard - 1) / layout.shard
    share, leaving = sent(topology, found)
    assert share == pytest.approx(np.full(every, part), rel=1e-12)
    expected = np.zeros(len(gpus))
    for group in found.groups:
        domains = set(topology.domain[group].tolist())
        for domain in domains if len(domains) > 1 else ():
            expected[domain] += part
    assert leaving == pytest.approx(expected, rel=1e-12)


def test_pcie_ring_crosses_the_sockets_once_each_way() -> None:
    topology, found = made(cluster(node(scale_up=PCIE)), Strategy(ring=4, shard=4), "shard", "all_gather")
    crossing = topology.switch != topology.switch[found.hops[0].to]
    assert crossing.tolist() == [False, True, False, True]
