"""Fabrics other than leaves under one spine, by hand: rails without a spine, three levels, dead links."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models import Cluster, Placement, Strategy, Workload, price
from cost_models.errors import InputError
from cost_models.hardware.cluster_writing import cluster_yaml
from cost_models.hardware.wiring import NIC_IN
from cost_models.models.model import Model
from cost_models.timing import rails
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.loads import Loads
from planner.simulator.simulation import simulate
from planner.simulator.topology import Topology
from tests.planner.clusters import GB, PAIRS, PCIE, cluster, node

REACHED = 0.92
"""Of an InfiniBand card's line rate."""


def links(where: Cluster, source: int, to: int) -> list[str]:
    topology = Topology(where, Placement.in_order(where, where.gpus))
    return topology.link_names(topology.routes(np.array([source]), np.array([to])), 0)


def test_between_rails_bytes_cross_the_senders_scale_up_link_first() -> None:
    """GPU 0 of one node to GPU 3 of another: over NVLink to GPU 3, whose card's switch is that of the receiver's."""
    where = cluster(node(), node(), rail_only=True)
    assert links(where, 3, 7) == ["slot 0 nic 3 out", "slot 1 nic 3 in"]
    assert links(where, 0, 7) == ["slot 0 gpu 0 out", "slot 0 gpu 3 in", "slot 0 nic 3 out", "slot 1 nic 3 in"]
    assert links(where, 0, 3) == ["slot 0 gpu 0 out", "slot 0 gpu 3 in"]
    assert links(replace(where, fabric=replace(where.fabric, rail_only=False)), 0, 7) == [
        "slot 0 nic 0 out", "slot 1 nic 3 in",
    ]  # fmt: skip


def test_a_sender_without_the_rail_leaves_the_crossing_to_the_receiver() -> None:
    """Card 3 of node 0 is broken. Its GPU 0 reaches GPU 3 of node 1 by rail 0, and there over NVLink."""
    where = cluster(node(missing_nics=(3,)), node(), rail_only=True)
    assert links(where, 0, 7) == ["slot 0 nic 0 out", "slot 1 nic 0 in", "slot 1 gpu 0 out", "slot 1 gpu 3 in"]


def test_on_a_pcie_tree_the_other_rails_card_is_reached_over_the_tree() -> None:
    where = cluster(node(scale_up=PCIE), node(scale_up=PCIE), rail_only=True)
    assert links(where, 0, 7) == [
        "slot 0 gpu 0 pcie out", "slot 0 switch 0 out", "slot 0 switch 1 in", "slot 0 nic 3 out",
        "slot 1 nic 3 in", "slot 1 gpu 3 pcie in",
    ]  # fmt: skip


def test_the_crossing_costs_a_slow_scale_up_link() -> None:
    """All-to-all of 4: each GPU sends one of its two outward quarters over NVLink, and passes on as much: at 1 GB/s
    a link that is ten times slower than a card counts, without rails it does not."""
    slow = node(2, 2, scale_up=replace(node().scale_up, bytes_per_s=1 * GB))
    where = cluster(slow, slow)
    path = {}
    for rail_only in (False, True):
        there = replace(where, fabric=replace(where.fabric, rail_only=rail_only))
        path[rail_only] = ClusterCosts(there).paths(Strategy(ulysses=4)).axes["ulysses"]
    assert 1 / path[False].all_to_all_s_per_byte == pytest.approx(0.93 * REACHED * 10 * GB / 0.5)
    reached = ClusterCosts(where).rates.of_run[0, 0]
    assert path[True].all_to_all_s_per_byte == pytest.approx(0.25 / reached)
    assert path[True].latency_s == pytest.approx(path[False].latency_s + 2e-6)


def test_nodes_without_a_common_rail_cannot_meet() -> None:
    with pytest.raises(InputError, match="no rail in common"):
        cluster(node(missing_nics=(0, 1)), node(missing_nics=(2, 3)), rail_only=True)


THREE = {"leaves_per_spine": 2, "spine_oversubscription": 2.0}


def test_three_levels_have_uplinks_of_each() -> None:
    """Leaves of one node with four cards, 2:1, two a spine, 2:1: two cards' worth up from a leaf and from a spine."""
    where = cluster(*[node()] * 4, leaf=1, oversubscription=2.0, **THREE)
    assert links(where, 0, 4) == ["slot 0 nic 0 out", "leaf 0 up", "leaf 1 down", "slot 1 nic 0 in"]
    assert links(where, 0, 8) == [
        "slot 0 nic 0 out", "leaf 0 up", "spine 0 up", "spine 1 down", "leaf 2 down", "slot 2 nic 0 in",
    ]  # fmt: skip
    topology = Topology(where, Placement.in_order(where, 16))
    assert topology.leaf_rate.tolist() == [20 * GB] * 4 and topology.spine_rate.tolist() == [20 * GB] * 2
    hops = topology.latency_s(np.array([0, 0]), np.array([4, 8]))
    assert (hops * 1e6).tolist() == pytest.approx([5 + 3, 5 + 5])


def test_the_busiest_level_counts() -> None:
    """Four rings over four nodes pass each leaf once, four times 1 over 20 GB/s; each spine once too."""

    def send(where: Cluster) -> float:
        return float(ClusterCosts(where).paths(Strategy(ring=4, ulysses=4)).axes["ring"].send_s_per_byte)

    flat = cluster(*[node()] * 4, leaf=1, oversubscription=1.0)
    assert send(flat) == pytest.approx(1 / (REACHED * 10 * GB))
    core = cluster(*[node()] * 4, leaf=1, **{**THREE, "spine_oversubscription": 8.0})
    assert send(core) == pytest.approx(4 / (REACHED * 10 * GB))  # a spine's uplinks: 8 cards over 8
    rails = replace(core, fabric=replace(core.fabric, rail_only=True))
    assert send(rails) == send(core)  # each rail has a quarter of them, and a quarter of the bytes


def test_a_dead_uplink_makes_its_leaf_slower() -> None:
    """Three of a leaf's four uplinks are left: 4 rings share 30 GB/s."""
    where = cluster(node(), node(), leaf=1, missing_uplinks=(1,))
    path = ClusterCosts(where).paths(Strategy(ring=2, ulysses=4)).axes["ring"]
    assert path.send_s_per_byte == pytest.approx(4 / (REACHED * 30 * GB))
    with pytest.raises(InputError, match="4 of leaf 0, which has 4; one must be left"):
        cluster(node(), node(), leaf=1, missing_uplinks=(0,) * 4)


def test_a_slow_card_and_a_dead_bridge() -> None:
    slow = cluster(node(nic_shares=(1.0, 1.0, 0.5, 1.0)), node())
    path = ClusterCosts(slow).paths(Strategy(ring=2, ulysses=4)).axes["ring"]
    assert path.send_s_per_byte == pytest.approx(1 / (REACHED * 5 * GB))
    pairs = cluster(node(scale_up=PAIRS, missing_bridges=(1,)))
    assert links(pairs, 0, 1) == ["slot 0 gpu 0 out", "slot 0 gpu 1 in"]  # over the bridge
    assert links(pairs, 2, 3) == ["slot 0 gpu 2 pcie out", "slot 0 gpu 3 pcie in"]
    with pytest.raises(InputError, match="not joined in pairs"):
        node(missing_bridges=(0,))


@pytest.mark.parametrize("more", [{"rail_only": True}, THREE, {"missing_uplinks": (0, 0)}])
def test_price_and_simulation_agree(more: dict[str, object]) -> None:
    where = Cluster.load("dgx-h100", nodes=4)
    where = replace(where, fabric=replace(where.fabric, nodes_per_leaf=1, oversubscription=2.0, **more))
    work = Workload(Model.load("longvila-8b"), context_tokens=2**18)
    layout = Strategy(ring=4, ulysses=8, shard=32)
    assert price(where, work, layout).step_s == pytest.approx(simulate(where, work, layout).step_s, rel=0.1)


def test_written_and_read_again(tmp_path: object) -> None:
    where = cluster(
        node(nic_shares=(1.0, 0.5, 1.0, 1.0)),
        node(scale_up=replace(PAIRS, link="nvlink3-bridge"), missing_bridges=(1,)),
        leaf=1,
        **THREE,
        rail_only=True,
    )
    file = tmp_path / "test.yaml"  # type: ignore[operator]
    file.write_text(cluster_yaml(where))
    assert Cluster.load(str(file)) == where


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_counting_members_loads_links_as_following_pairs_does(seed: int) -> None:
    """Of an all-to-all on rails that every node has: random nodes, levels, groups and placements."""
    rng = np.random.default_rng(seed)
    cards = int(rng.choice([1, 2, 4]))
    nodes = [node(int(rng.choice([2, 4, 8])), cards) for _ in range(rng.integers(2, 6))]
    leaf, domain = rng.choice([(1, 1), (2, 1), (2, 2)]).tolist()
    where = cluster(
        *nodes, leaf=leaf, oversubscription=2.0, domain=domain, rail_only=True,
        leaves_per_spine=int(rng.choice([1, 2])), spine_oversubscription=2.0,
    )  # fmt: skip
    free = np.array([(slot, gpu) for slot in range(where.slots) for gpu in range(where.node(slot).gpus)])
    members = int(rng.choice([2, 3, 4]))
    groups = np.arange(len(free) // members * members).reshape(-1, members)
    places = np.stack([rng.permutation(free)[: groups.size], free[: groups.size]])
    loads = Loads(ClusterCosts(where).rates, places[:, :, 0], places[:, :, 1])
    followed, counted = (each(loads.rates, loads.seats, groups) for each in (rails.followed_pairs, rails.counted_pairs))
    assert (followed.relays == counted.relays).all()
    for kind, seconds in followed.seconds.items():
        if kind != NIC_IN:  # as the members' own cards receive
            assert counted.seconds[kind] == pytest.approx(seconds)
