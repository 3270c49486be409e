"""Closed form and simulator read one wiring: where a single collective runs, neither knows a link that the other lacks.

    closed form <= simulated <= closed form / LEAST_SHARE

over lopsided, broken and mixed clusters, any placement, every axis and operation. Latencies are 0 and links inside a
switch cost nothing, so that only loads on shared links count: cards both ways, uplinks, PCIe switches, pairs.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cost_models import Cluster, Model, Placement, Strategy, Workload, price
from cost_models.hardware.node import Node
from cost_models.program import Exchange, Segment, StepProgram
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.collectives import Collectives
from planner.simulator.simulation import play, simulate
from tests.planner.clusters import DEGRADED, FABRICS, GB, PAIRS, PCIE, STAGED, TIERS, cluster, node, possible
from tests.planner.simulator.test_folding import layouts

LEAST_SHARE = 0.4
"""Of the simulated time, between nodes whose GPUs a switch joins. All-to-alls and sends are equal; a gather's bytes lie
evenly on the cards of each domain in the closed form, on those of the ring's channels in the simulator. In a PCIe box
the closed form also leaves out each GPU's own link and the way to a card under another switch."""
SIZE = 100e6
EXCHANGES = (
    ("ulysses", "all_to_all"), ("context", "all_to_all"), ("ring", "send"), ("pipeline", "send"),
    *((axis, op) for axis in ("shard", "replicate", "tensor") for op in ("all_gather", "all_reduce")),
)  # fmt: skip


class NoTime(Collectives):
    """A link inside a domain that takes no time."""

    def intra_s(self, op: str, ranks: int, bytes_per_rank: Any) -> Any:
        return 0.0


def without_latency(made: Node) -> Node:
    """And with switches and bridges that are never what limits."""
    fast = made.scale_up.bytes_per_s if made.scale_up.kind == "pcie" else 1e14
    scale_up = replace(made.scale_up, latency_s=0.0, bytes_per_s=fast)
    return replace(made, scale_up=scale_up, nics=replace(made.nics, latency_s=0.0))


NODES = tuple(
    map(
        without_latency,
        (
            node(4, 4),
            node(4, 2),
            node(6, 3),
            node(4, 4, nics=DEGRADED),
            node(4, 4, missing_nics=(0,)),
            node(4, 4, missing_nics=(1, 3)),
            node(3, 4),
            node(1, 1),
            node(4, 4, scale_up=PCIE),
            node(4, 1, scale_up=PCIE),
            node(4, 2, scale_up=PAIRS),
            node(4, 1, scale_up=STAGED),
            node(8, 2, scale_up=TIERS),
            node(8, 1, scale_up=replace(TIERS, peer_to_peer=False)),
            node(8, 1, scale_up=replace(TIERS, peer_to_peer=False, direct_under_switch=True)),
            node(4, 1, scale_up=replace(PAIRS, peer_to_peer=False, direct_under_switch=True)),
            node(4, 2, scale_up=replace(PAIRS, peer_to_peer=False)),
            node(4, 4, nic_shares=(1.0, 0.5, 1.0, 0.5)),
            node(4, 2, scale_up=PAIRS, missing_bridges=(0,)),
        ),
    )
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Cluster, Strategy, Placement, str, str]:
    nodes = draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=4))
    leaf, oversubscription = draw(st.sampled_from((1, 2, 64))), draw(st.sampled_from((1.0, 3.0)))
    more = draw(st.sampled_from(FABRICS))
    alike = len({one.scale_up.kind for one in nodes}) == 1
    domain = draw(st.sampled_from((1, 1, 1, 2) if alike else (1,)))  # PCIe and a switch do not make one domain
    where = possible(*nodes, leaf=leaf, oversubscription=oversubscription, domain=domain, more=more)
    where = replace(where, fabric=replace(where.fabric, hop_latency_s=0.0))
    layout = draw(layouts(where.gpus))
    everywhere = Placement.in_order(where, where.gpus)
    chosen = np.arange(layout.ranks)
    if draw(st.booleans()):
        chosen = np.array(draw(st.permutations(range(where.gpus)))[: layout.ranks])
    placement = Placement(slot_of_rank=everywhere.slot_of_rank[chosen], gpu_of_rank=everywhere.gpu_of_rank[chosen])
    several = [pair for pair in EXCHANGES if getattr(layout, pair[0]) > 1]
    assume(several)
    axis, op = draw(st.sampled_from(several))
    return where, layout, placement, axis, op


def seconds(case: tuple[Cluster, Strategy, Placement, str, str], size: float = SIZE) -> tuple[float, float]:
    """(closed form, simulated) of one collective."""
    where, layout, placement, axis, op = case
    costs = ClusterCosts(where)
    paths = costs.paths(layout, placement)
    inside = paths.inside
    paths = replace(paths, inside=NoTime(inside.name, inside.link))
    phase = Exchange(part="tensor", axis=axis, op=op, bytes=size)
    program = StepProgram(microbatch=(Segment(name="only", phases=(phase,)),), epilogue=(), microbatches=1)
    played = play(program, where, layout, placement, rates=costs.rates)
    return float(paths.exchange_s(axis, op, size)), played.step_s


@given(cases())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_one_collective_takes_the_simulator_at_least_as_long_and_not_much_longer(case: Any) -> None:
    where, _, placement, _, op = case
    closed, played = seconds(case)
    if not where.fabric.rail_only or where.uniform:  # else a GPU's own card counts, where other rails could take part
        assert closed <= played * (1 + 1e-9)
    switched = all(where.node(int(slot)).scale_up.kind == "switch" for slot in placement.slot_of_rank)
    if switched and closed > 1e-4:
        assert closed >= (1 - 1e-9 if op in ("all_to_all", "send") else LEAST_SHARE) * played


def test_a_broken_card_takes_nothing_from_its_switch() -> None:
    """Four cards of a leaf's node are missing: the leaf's uplinks stay, in the closed form as in the simulator."""
    where = Cluster.load("dgx-h100", nodes=4)
    where = replace(where, fabric=replace(where.fabric, nodes_per_leaf=2, oversubscription=4.0))
    broken = where.override({0: replace(where.node(0), missing_nics=(0, 1, 2, 3))})
    rates = ClusterCosts(broken).rates
    assert rates.of_leaf.tolist() == [16 * 46e9 / 4] * 2
    layout = Strategy(ring=4, ulysses=8, shard=32)
    send_s = ClusterCosts(broken).paths(layout).axes["ring"].send_s_per_byte
    # card 4 serves GPUs 0 to 4; an uplink's 8 rings have 184 GB/s; a ring fills 0.92 of what a fast card reaches
    assert 1 / send_s == pytest.approx(0.92 * 46e9 / 5)
    work = Workload(Model.load("longvila-8b"), context_tokens=2**19)
    assert price(broken, work, layout).step_s == pytest.approx(simulate(broken, work, layout).step_s, rel=1e-3)


def test_what_a_card_receives_counts_like_what_it_sends() -> None:
    """Card 0 is missing: GPUs 0 and 1 share card 1. Two rings enter there; one leaves by card 1, one by GPU 2's."""
    where = cluster(node(3, 4, missing_nics=(0,)), node(3, 3))
    slots, gpus = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 1, 0, 2])  # rings of ranks 0, 2, 4 and 1, 3, 5
    layout, costs = Strategy(ring=3, ulysses=2), ClusterCosts(where)
    paths = costs.paths(layout, Placement(slot_of_rank=slots, gpu_of_rank=gpus))
    assert paths.axes["ring"].send_s_per_byte == pytest.approx(2 / (0.92 * 10 * GB))


def test_a_gather_has_as_many_channels_as_its_domain_with_the_fewest_cards() -> None:
    """Four slow cards meet one fast one: the one channel needs (P - 1) / P of the buffer on one of the slow cards."""
    where = cluster(node(4, 4, nics=DEGRADED), node(4, 1))
    path = ClusterCosts(where).paths(Strategy(data=8, shard=8)).axes["shard"]
    assert path.gather_s_per_byte == pytest.approx(7 / 8 / (0.92 * 3 * GB))
    even = ClusterCosts(cluster(node(4, 4, nics=DEGRADED), node(4, 4))).paths(Strategy(data=8, shard=8)).axes["shard"]
    assert even.gather_s_per_byte == pytest.approx(7 / 8 / 4 / (0.92 * 3 * GB))


@pytest.mark.parametrize(("cards", "passes"), [(1, 1.0), (2, 0.5), (3, 0.5)])
def test_a_ring_that_leaves_the_node_spares_one_socket_per_channel(cards: int, passes: float) -> None:
    """Over two boxes of two sockets: with a card each, half of the channels end at each socket; a third card is no
    worse."""
    where = cluster(node(4, cards, scale_up=PCIE), node(4, cards, scale_up=PCIE))
    path = ClusterCosts(where).paths(Strategy(data=8, shard=8)).axes["shard"]
    assert path.bus_gather_s_per_byte == pytest.approx(passes * 7 / 8 / (25 * GB))


def test_a_gather_over_leaves_goes_through_their_uplinks() -> None:
    """A node a leaf, 4:1: four cards of 9.2 GB/s in each, of which the uplink carries one card's worth."""
    where = cluster(node(), node(), leaf=1, oversubscription=4.0)
    path = ClusterCosts(where).paths(Strategy(data=8, shard=8)).axes["shard"]
    assert path.gather_s_per_byte == pytest.approx(7 / 8 / (0.92 * 10 * GB))


def test_two_trees_share_cards_but_not_what_a_node_passes_on() -> None:
    """Two groups over both nodes, three cards of 23 GB/s: each group may pass 65 GB/s on, together they send 69."""
    where = Cluster.load("dgx-a100", nodes=2)
    three = replace(where.node(0), nics=replace(where.node(0).nics, count=3))
    path = ClusterCosts(where.override({0: three, 1: three})).paths(Strategy(data=8, ulysses=2, shard=2))
    assert path.axes["replicate"].all_reduce_s_per_byte == pytest.approx(2 / (3 * 23 * GB))


def test_a_mixed_cluster_takes_the_slower_link_of_each_operation() -> None:
    """A mesh of 448 GB/s is slower than a switch of 447 for two GPUs: its pairs have 64 GB/s."""
    mesh, switch = Collectives.of("xgmi-mi300x"), Collectives.of("nvlink4", bytes_per_s=447 * GB)
    joined = node(8, 8, scale_up=replace(node().scale_up, link="nvlink4", bytes_per_s=447 * GB))
    meshed = node(8, 8, scale_up=replace(node().scale_up, link="xgmi-mi300x", bytes_per_s=448 * GB))
    links = ClusterCosts(cluster(joined, meshed)).links((0, 1))
    for op in ("all_to_all", "all_gather", "all_reduce", "send_recv"):
        for ranks in (2, 4, 8):
            each = [float(link.intra_s(op, ranks, 1e9)) for link in (mesh, switch)]
            assert float(links.intra_s(op, ranks, 1e9)) == max(each)
    assert float(mesh.intra_s("all_to_all", 2, 1e9)) > 5 * float(switch.intra_s("all_to_all", 2, 1e9))


def test_the_slowest_host_link_of_the_nodes_in_use_counts() -> None:
    fast, slow = node(2), node(2, host_link_bytes_per_s=5 * GB)
    for where in (cluster(fast, slow), cluster(slow, fast)):
        assert ClusterCosts(where).paths(Strategy(ulysses=4)).host_bytes_per_s == 5 * GB
    assert ClusterCosts(cluster(fast, slow)).paths(Strategy(ulysses=2)).host_bytes_per_s == 20 * GB


@pytest.mark.parametrize("op", ["all_to_all", "send", "all_gather", "all_reduce"])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e8])
@pytest.mark.parametrize("nodes", [2, 3])
def test_price_and_simulation_wait_alike(op: str, size: float, nodes: int) -> None:
    """With latencies, starts and protocols by size; switches inside the nodes are never what limits."""
    fast = node(4, 4, scale_up=replace(node().scale_up, bytes_per_s=1e14))
    where = cluster(*(fast,) * nodes)
    ranks = 4 * nodes
    layouts = {"all_to_all": ("ulysses", Strategy(ulysses=ranks)), "send": ("ring", Strategy(ring=ranks))}
    axis, layout = layouts.get(op, ("shard", Strategy(data=ranks, shard=ranks)))
    closed, played = seconds((where, layout, Placement.in_order(where, ranks), axis, op), size)
    assert closed == pytest.approx(played, rel=1e-6)


@pytest.mark.parametrize("name", ["rtx4090-pcie", "l40s-pcie", "a100-pcie", "a40-pairs"])
def test_a_large_collective_inside_a_pcie_box_is_simulated_as_priced(name: str) -> None:
    """By the measured curve of its operation and of as many ranks: groups of 2 (but of bridges), 4 and 8."""
    where = Cluster.load(name, nodes=1)
    costs = ClusterCosts(where)
    for axis, op in (("ulysses", "all_to_all"), ("ring", "send"), ("shard", "all_gather"), ("tensor", "all_reduce")):
        for ranks in (4, 8) if name == "a40-pairs" else (2, 4, 8):
            degrees = {"data": ranks, "shard": ranks} if axis == "shard" else {axis: ranks, "data": 8 // ranks}
            layout = Strategy(**degrees)
            phase = Exchange(part="tensor", axis=axis, op=op, bytes=2e9)
            program = StepProgram(microbatch=(Segment(name="only", phases=(phase,)),), epilogue=(), microbatches=1)
            inside = costs.links(costs.runs(layout.ranks))
            played = play(program, where, layout, rates=costs.rates, inside=inside)
            closed = float(costs.paths(layout).exchange_s(axis, op, 2e9))
            assert played.step_s == pytest.approx(closed, rel=0.01)


def test_a_send_out_of_a_bridged_pair_goes_by_one_cards_pcie() -> None:
    """Of a ring of four over two pairs each pair sends one message, by the PCIe link of its second card."""
    where = Cluster.load("a40-pairs", nodes=1)
    costs = ClusterCosts(where)
    path = costs.paths(Strategy(ring=4, data=2)).axes["ring"]
    assert path.bus_send_s_per_byte == pytest.approx(1 / (0.75 * 0.25 * 32e9))


@pytest.mark.parametrize("layout", [{"ring": 8, "shard": 8, "zero": 3}, {"tensor": 8}, {"ulysses": 4, "tensor": 2}])
@pytest.mark.parametrize("name", ["rtx4090-pcie", "l40s-pcie", "a40-pairs"])
def test_a_step_over_pcie_is_simulated_as_priced(name: str, layout: dict[str, int]) -> None:
    """Within a fifth: what is left is who waits for whom."""
    where, work = Cluster.load(name, nodes=1), Workload(Model.load("llama-3-8b"), context_tokens=2**14, global_batch=8)
    chosen = Strategy(**layout)
    assert simulate(where, work, chosen).step_s == pytest.approx(price(where, work, chosen).step_s, rel=0.2)


def test_collectives_over_pcie_keep_few_channels_busy() -> None:
    """A gather over NVSwitch takes as much as it lasts, over PCIe what all channels would need for its bytes."""
    layout = Strategy(data=8, shard=8)
    for name, least, most in (("dgx-h100", 1.0, 1.0), ("a100-pcie", 0.0, 0.1), ("a100-pcie-pairs", 0.0, 0.15)):
        paths = ClusterCosts(Cluster.load(name, nodes=1)).paths(layout)
        share = paths.taken_s("shard", "all_gather", 1e9) / paths.exchange_s("shard", "all_gather", 1e9)
        assert least <= float(share) <= most
