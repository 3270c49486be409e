"""Folded equals unfolded: random clusters, layouts, placements and programs, rank by rank and link by link."""

from collections import defaultdict
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.models.model import Model
from cost_models.pricing import price
from cost_models.program import Compute, Exchange, Segment, StepProgram
from cost_models.strategy import Strategy, rank_groups
from cost_models.workload import Workload
from planner.planning import summary
from planner.screens.price_lines import cost_lines
from planner.screens.simulation_lines import simulation_dict
from planner.simulator import simulation
from planner.simulator.fast_forward import FastForward
from planner.simulator.flows import pattern
from planner.simulator.folding import coarse, equitable, singletons
from planner.simulator.playback import Playback
from planner.simulator.proof import Unlike
from planner.simulator.simulation import play, played, set_up, simulate
from planner.simulator.topology import Topology
from tests.planner.clusters import (
    DEGRADED,
    FABRICS,
    GB,
    PAIRS,
    PCIE,
    STAGED,
    TIERS,
    cluster,
    layers,
    node,
    possible,
    sharding,
    step,
)

NODES = (
    node(4, 4),
    node(4, 2),
    node(4, 4, nics=DEGRADED),
    node(4, 4, missing_nics=(1,)),
    node(4, 4, nic_shares=(1.0, 0.25, 1.0, 1.0)),
    node(4, 2, scale_up=PAIRS, missing_bridges=(1,)),
    node(3, 4),
    node(4, 1, scale_up=PCIE),
    node(4, 2, scale_up=PAIRS),
    node(4, 1, scale_up=STAGED),
    node(8, 2, scale_up=TIERS),
    node(8, 1, scale_up=replace(TIERS, peer_to_peer=False)),
    node(8, 1, scale_up=replace(TIERS, peer_to_peer=False, direct_under_switch=True)),
)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    kind = draw(st.sampled_from(("uniform", "uniform", "one odd", "any")))
    count = draw(st.integers(1, 4))
    first = draw(st.sampled_from(NODES))
    nodes = [first] * count
    if kind == "one odd":
        nodes[draw(st.integers(0, count - 1))] = draw(st.sampled_from(NODES))
    elif kind == "any":
        nodes = [draw(st.sampled_from(NODES)) for _ in range(count)]
    leaf, oversubscription = draw(st.sampled_from((1, 2, 64))), draw(st.sampled_from((1.0, 3.0)))
    more = draw(st.sampled_from(FABRICS))
    domain = draw(st.sampled_from((1, 1, 2)))
    return possible(*nodes, leaf=leaf, oversubscription=oversubscription, domain=domain, more=more)


@st.composite
def layouts(draw: st.DrawFn, gpus: int) -> Strategy:
    """Degrees whose product is at most `gpus`, hybrid shards among them."""
    ring = draw(st.integers(1, min(gpus, 7)))
    ulysses = draw(st.sampled_from([u for u in (1, 2, 3, 4, 6, 8) if ring * u <= gpus]))
    data = draw(st.integers(1, max(1, min(3, gpus // (ring * ulysses)))))
    room = gpus // (data * ring * ulysses)
    tensor = draw(st.sampled_from([t for t in (1, 1, 2, 3) if t <= room]))
    pipeline = draw(st.sampled_from([p for p in (1, 1, 2) if p <= room // tensor]))
    shared = data * ring * ulysses
    shard = draw(st.sampled_from([n for n in range(1, shared + 1) if shared % n == 0]))
    return Strategy(data=data, ring=ring, ulysses=ulysses, tensor=tensor, pipeline=pipeline, shard=shard)


@st.composite
def programs(draw: st.DrawFn, ring: int) -> StepProgram:
    size = st.sampled_from((0.0, 1e5, 3e6, 2e7))
    some = st.integers(1, 6)
    seconds = st.sampled_from((1e-4, 1e-3, 7e-3))

    def one(name: str, gradient: float) -> Segment:
        return layers(
            ring,
            draw(some),
            compute_s=draw(seconds),
            block_s=draw(seconds),
            exchange=draw(size),
            hop=draw(size),
            gradient=gradient,
            gather=draw(size),
            scatter=draw(size),
            replicate=draw(size),
            offload=draw(size),
            host_s=draw(st.sampled_from((0.0, 0.0, 2e-3, 2e-2))),
            overlap_cost=draw(st.sampled_from((0.0, 0.6))),
            name=name,
        )

    segments = [one("layer forward", 0.0), one("other forward", 0.0), one("layer backward", draw(size))]
    if draw(st.booleans()):
        segments.insert(0, embeddings(draw(size), draw(size)))
    if draw(st.booleans()):
        segments.insert(1, loss(draw(st.sampled_from((1e6, 3e7, 4e8)))))
    return step(*segments[: draw(st.integers(1, 5))], microbatches=draw(st.integers(1, 4)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[StepProgram, Cluster, Strategy, Placement, np.ndarray]:
    where = draw(clusters())
    layout = draw(layouts(where.gpus))
    placement = Placement.in_order(where, layout.ranks)
    if draw(st.booleans()) and draw(st.booleans()):
        everywhere = Placement.in_order(where, where.gpus)
        chosen = np.array(draw(st.permutations(range(where.gpus)))[: layout.ranks])
        placement = Placement(slot_of_rank=everywhere.slot_of_rank[chosen], gpu_of_rank=everywhere.gpu_of_rank[chosen])
    slow = draw(st.sampled_from((1.0, 1.0, 1.3)))
    scale = np.where(placement.slot_of_rank == 0, slow, 1.0)
    return draw(programs(layout.ring)), where, layout, placement, scale


def by_rank(playback: Playback) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Per rank: end and parts; per link that the folded run names: bytes."""
    network = playback.network
    ended = np.array([rank.ended for rank in playback.ranks])[network.partition.class_of_rank]
    load = np.bincount(
        network.sharing.link,
        network.sharing.count * playback.transfers.carried[network.sharing.flow],
        len(network.sharing.capacity),
    )
    return ended, playback.parts[network.partition.class_of_rank], dict(zip(network.link_names, load, strict=True))


def assert_equal(case: tuple) -> None:
    """Coarse classes, split where they differ, and equitable ones: both are what all ranks do."""
    program, where, layout, placement, scale = case
    setup = set_up(program, where, layout, placement, compute_scale=scale)
    unfolded = by_rank(played(setup, fold=False)[0])
    fine = setup.playback(equitable(setup.topology, setup.different, setup.scale))
    fine.play(FastForward())
    assert_alike(by_rank(fine), unfolded)
    with mock.patch.object(simulation, "FEWER", 0):
        assert_alike(by_rank(played(setup)[0]), unfolded)


def assert_alike(folded: tuple, unfolded: tuple) -> None:
    assert folded[0] == pytest.approx(unfolded[0], rel=1e-9)
    assert folded[1] == pytest.approx(unfolded[1], rel=1e-9, abs=1e-9 * float(unfolded[0].max()))
    for name, load in folded[2].items():
        assert load == pytest.approx(unfolded[2][name], rel=1e-9, abs=1e-6), name


@given(cases())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_folded_equals_unfolded(case: tuple) -> None:
    assert_equal(case)


@st.composite
def replicas(draw: st.DrawFn) -> tuple[StepProgram, Cluster, Strategy, Placement, np.ndarray]:
    """Many replicas, whose nodes are broken in some of a few ways."""
    data, ring, count = draw(st.integers(3, 8)), draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2)))
    half, slow = (replace(DEGRADED, count=2, bytes_per_s=rate * GB) for rate in (3, 1.5))
    odd = (node(2, 2, nics=half), node(2, 2, missing_nics=(1,)), node(2, 2, nics=slow))
    nodes = [node(2, 2)] * (data * ring * count)
    for slot in draw(st.lists(st.integers(0, len(nodes) - 1), max_size=6)):
        nodes[slot] = draw(st.sampled_from(odd))
    where = cluster(
        *nodes, leaf=draw(st.sampled_from((2, 64))), oversubscription=draw(st.sampled_from((1.0, 1.0, 3.0)))
    )
    layout = Strategy(data=data, ring=ring * count, ulysses=2, shard=2 * ring)
    placement = Placement.in_order(where, layout.ranks)
    longer = draw(st.sampled_from((1.0, 1.0, 1.2)))
    scale = np.where(placement.slot_of_rank == draw(st.integers(0, len(nodes) - 1)), longer, 1.0)
    return draw(programs(layout.ring)), where, layout, placement, scale


@given(replicas())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_replicas_that_differ_in_what_does_not_matter_are_folded_exactly(case: tuple) -> None:
    assert_equal(case)


def test_a_ring_that_waits_for_a_slow_partner_is_told_from_one_that_does_not() -> None:
    """Rank 0 is slow, so rank 1, its tensor partner, comes late to a ring that has no slow member."""
    phases = (
        Compute(part="vision", seconds=5e-3),
        Exchange(part="tensor", axis="tensor", op="all_gather", bytes=1e6),
    )
    program = step(Segment(name="vision forward", phases=phases, repeat=3), layers(2, 3, exchange=0.0, hop=1e6))
    where, layout = cluster(node(8, 8)), Strategy(data=2, ring=2, tensor=2, shard=1)
    scale = np.array([1.3, *[1.0] * 7])
    assert_split((program, where, layout, Placement.in_order(where, 8), scale))


def test_a_flow_is_told_from_one_whose_bottleneck_it_does_not_cross() -> None:
    """Slow cards in two of three replicas, and a slow node in one of these."""
    slow = replace(DEGRADED, bytes_per_s=1.5 * GB)
    where = cluster(*[node(4, 4, nics=slow) if i in (7, 10) else node() for i in range(12)])
    layout = Strategy(data=3, ring=4, ulysses=4, shard=16)
    backward = layers(4, 4, hop=9e6, gather=3e6, scatter=6e6, replicate=3e6, gradient=6e6, name="layer backward")
    program = step(layers(4, 4, hop=9e6, gather=3e6), backward)
    placement = Placement.in_order(where, layout.ranks)
    assert_split((program, where, layout, placement, np.where(placement.slot_of_rank == 5, 1.3, 1.0)))


def assert_split(case: tuple) -> None:
    """Coarse classes are too coarse here, which is found out."""
    program, where, layout, placement, scale = case
    setup = set_up(program, where, layout, placement, compute_scale=scale)
    with pytest.raises(Unlike):
        setup.playback(coarse(setup.topology, setup.different, setup.scale)).play(FastForward())
    assert_equal(case)


def test_six_broken_nodes_of_64_make_few_classes() -> None:
    """Coarse classes hold, and are far fewer than equitable ones."""
    half, slow = (replace(DEGRADED, bytes_per_s=rate * GB) for rate in (12.5, 6.25))
    broken = {3: half, 20: slow, 33: half, 41: slow, 50: half, 62: slow}
    where = cluster(*[node(4, 4, nics=broken[i]) if i in broken else node() for i in range(64)])
    layout = Strategy(data=16, ring=4, ulysses=4, shard=16)
    backward = layers(4, 4, hop=9e6, gather=3e6, scatter=6e6, replicate=3e6, gradient=6e6, name="layer backward")
    case = (step(layers(4, 4, hop=9e6), backward), where, layout, Placement.in_order(where, 256), np.ones(256))
    setup = set_up(*case[:4], compute_scale=case[4])
    with mock.patch.object(simulation, "FEWER", 2):
        coarsely, _ = played(setup)
    fine = setup.playback(equitable(setup.topology, setup.different, setup.scale))
    assert coarsely.network.partition.classes * 2 < fine.network.partition.classes
    fine.play(FastForward())
    assert_alike(by_rank(coarsely), by_rank(fine))


@pytest.mark.parametrize("peer_to_peer", [True, False])
def test_sockets_are_links_of_their_own(peer_to_peer: bool) -> None:
    """Two sockets of two switches each: partners across the sockets, and a node whose card is on one of them."""
    tiers = replace(TIERS, peer_to_peer=peer_to_peer)
    for nodes, layout in ((1, Strategy(data=2, ring=2, ulysses=2, shard=4)), (2, Strategy(ring=8, ulysses=2, shard=8))):
        where = cluster(*[node(8, 1, scale_up=tiers)] * nodes)
        program = step(layers(layout.ring, 3, gather=3e6, scatter=6e6, replicate=9e6))
        assert_equal((program, where, layout, Placement.in_order(where, 8 * nodes), np.ones(8 * nodes)))


def embeddings(shared: float, sent: float) -> Segment:
    """Exchanges over the axes that a layer does not use."""
    phases = (
        Compute(part="vision", seconds=5e-4),
        Exchange(part="embeddings", axis="context", op="all_to_all", bytes=shared),
        Exchange(part="tensor", axis="tensor", op="all_gather", bytes=shared),
        Exchange(part="pipeline", axis="pipeline", op="send", bytes=sent),
        Exchange(part="gradients", axis="replicate", op="all_reduce", bytes=sent),
    )
    return Segment(name="vision forward", phases=phases, repeat=2, sharding=sharding(gather=shared))


def loss(scatter: float) -> Segment:
    phases = (Compute(part="loss", seconds=2e-3),)
    return Segment(name="head and loss", phases=phases, sharding=sharding(scatter=scatter, replicate=scatter / 8))


UNEVEN = step(
    layers(4, 6, gather=3e6, hop=9e6),
    loss(1e8),
    layers(4, 9, gather=6e6, scatter=1.2e7, replicate=1e6, gradient=6e6, name="layer backward"),
    microbatches=3,
)


@pytest.mark.parametrize(
    "layout",
    [
        Strategy(ring=4, ulysses=4, shard=16),
        Strategy(data=2, ring=4, ulysses=2, shard=4),
        Strategy(data=4, ring=4, ulysses=1, shard=2),
        Strategy(data=1, ring=4, ulysses=4, shard=4),
    ],
)
@pytest.mark.parametrize("odd", [None, DEGRADED])
def test_backlog_on_the_sharding_stream(layout: Strategy, odd: object) -> None:
    """A reduction still queued from another kind of segment is part of the state: no jump may pass over it."""
    nodes = [node(), node(nics=odd) if odd else node(), node(), node()]
    where = cluster(*nodes, leaf=2, oversubscription=2.0)
    placement = Placement.in_order(where, layout.ranks)
    assert_equal((UNEVEN, where, layout, placement, np.ones(layout.ranks)))


def classes(where: Cluster, layout: Strategy) -> int:
    topology = Topology(where, Placement.in_order(where, layout.ranks))
    uses = (("ulysses", "all_to_all"), ("ring", "send"), ("shard", "all_gather"))
    patterns = [pattern(topology, rank_groups(layout, axis), op) for axis, op in uses]  # type: ignore[arg-type]
    return equitable(topology, patterns, np.ones(layout.ranks)).classes


def test_uniform_cluster_has_one_class() -> None:
    assert classes(cluster(*[node()] * 8), Strategy(ring=8, ulysses=4, shard=32)) == 1
    assert classes(Cluster.load("dgx-h100", nodes=64), Strategy(data=4, ring=16, ulysses=8, shard=512)) == 1


def test_ring_inside_nodes_has_classes_by_where_its_hops_go() -> None:
    """In each node: the first rank is reached from outside, the last one sends outside, two do neither."""
    assert classes(cluster(*[node()] * 4), Strategy(ring=16, ulysses=1, shard=16)) == 3


def test_oversubscribed_leaves_make_classes_by_where_the_ring_crosses_them() -> None:
    assert classes(cluster(*[node()] * 8, leaf=4, oversubscription=2.0), Strategy(ring=8, ulysses=4, shard=32)) == 3


def test_degraded_node_is_a_class_of_its_own() -> None:
    nodes = [node()] * 7 + [node(nics=DEGRADED)]
    assert classes(cluster(*nodes), Strategy(ring=8, ulysses=4, shard=32)) == 2


def test_shared_nic_tells_its_two_users_and_their_rings_from_the_others() -> None:
    nodes = [node()] * 7 + [node(missing_nics=(1,))]
    assert classes(cluster(*nodes), Strategy(ring=8, ulysses=4, shard=4)) == 4


def test_classes_are_equitable_by_count() -> None:
    """Every link of a class carries the same number of flows of a class: counts are whole numbers."""
    nodes = [node(), node(nics=DEGRADED), node(), node(missing_nics=(0,))]
    where = cluster(*nodes, leaf=2, oversubscription=2.0)
    setup = set_up(UNEVEN, where, Strategy(ring=4, ulysses=4, shard=16))
    playback = setup.playback(equitable(setup.topology, setup.different, setup.scale))
    count = playback.network.sharing.count
    assert count == pytest.approx(np.round(count), abs=1e-12)


def test_unfolded_keeps_every_rank_flow_and_link_apart() -> None:
    layout = Strategy(ring=4, ulysses=4, shard=16)
    setup = set_up(UNEVEN, cluster(*[node()] * 4), layout)
    playback, topology = setup.playback(singletons(16)), setup.topology
    network = playback.network
    assert network.partition.classes == 16
    assert (network.link_copies == 1).all()
    assert len(set(network.link_names)) == len(network.link_names)
    crossed: dict[str, int] = defaultdict(int)
    ranks = np.arange(16)
    source, to = (grid.ravel() for grid in np.meshgrid(ranks, ranks))
    pairs = (source != to) & (source // 4 == to // 4)
    routes = topology.routes(source[pairs], to[pairs])
    for flow in range(int(pairs.sum())):
        for name in topology.link_names(routes, flow):
            crossed[name] += 1
    all_to_all = playback.network.collectives[playback.script.uses.index(("main", "ulysses", "all_to_all", 1))]
    flows = np.concatenate([batch.flows for group in all_to_all.batches for batch in group])
    assert len(flows) == 48
    mine = np.isin(network.sharing.flow, flows)
    found = np.bincount(network.sharing.link[mine], network.sharing.count[mine], len(network.link_names))
    assert {name: n for name, n in zip(network.link_names, found.tolist(), strict=True) if n} == dict(crossed)


def test_flow_of_a_ring_crosses_the_links_of_all_its_hops() -> None:
    """Counted again from the hops themselves, rank by rank and channel by channel."""
    layout, where = (
        Strategy(ring=4, ulysses=4, shard=16),
        cluster(node(), node(cards=2), node(missing_nics=(2,)), node()),
    )
    setup = set_up(UNEVEN, where, layout)
    playback, topology = setup.playback(singletons(16)), setup.topology
    network, use = playback.network, playback.script.uses.index(("sharding", "shard", "all_gather", 1))
    found = pattern(topology, rank_groups(layout, "shard"), "all_gather")
    crossed: dict[str, int] = defaultdict(int)
    for hop in found.hops:
        routes = topology.routes(np.arange(16), hop.to)
        for rank in np.flatnonzero(hop.count).tolist():
            for name in topology.link_names(routes, rank):
                crossed[name] += int(hop.count[rank])
    (flow,) = network.collectives[use].batches[0][0].flows.tolist()
    mine = network.sharing.flow == flow
    counts = np.bincount(network.sharing.link[mine], network.sharing.count[mine], len(network.link_names))
    assert {name: n for name, n in zip(network.link_names, counts.tolist(), strict=True) if n} == dict(crossed)
    assert network.copies[flow] == sum(int(hop.count.sum()) for hop in found.hops) == 16 * 2


def test_jumps_shorten_a_long_run() -> None:
    program = step(layers(4, 200, hop=9e6, gather=1e6), microbatches=50)
    where, layout = cluster(*[node()] * 4), Strategy(ring=4, ulysses=4, shard=16)
    short = play(step(layers(4, 20, hop=9e6, gather=1e6), microbatches=5), where, layout)
    long = play(program, where, layout)
    assert long.events < 2 * short.events
    assert long.step_s > 90 * short.step_s
    assert long.sent_bytes > GB


def test_broken_nodes_do_not_unfold_the_other_replicas() -> None:
    """Replicas of three speeds are fast-forwarded apart between their reductions: more layers are not more events."""
    nodes = [node() for _ in range(16)]
    nodes[5], nodes[10] = node(nics=DEGRADED), node(missing_nics=(1,))
    layout, where = Strategy(data=4, ring=4, ulysses=4, shard=16), cluster(*nodes)
    placement = Placement.in_order(where, 64)
    scale = np.where(placement.slot_of_rank == 7, 1.3, 1.0)

    def program(repeat: int) -> StepProgram:
        more = {"scatter": 6e6, "replicate": 1e6, "gradient": 6e6}
        backward = layers(4, repeat, hop=9e6, gather=3e6, name="layer backward", **more)  # type: ignore[arg-type]
        return step(layers(4, repeat, hop=9e6, gather=3e6), backward)

    short, long = (play(program(n), where, layout, compute_scale=scale).events for n in (24, 96))
    assert long < 1.2 * short
    assert_equal((program(24), where, layout, placement, scale))


def test_groups_of_a_ring_are_alike_however_many_members_are_broken() -> None:
    """Broken nodes, their partners, the one replica without: a ring crosses each kind of link once, in any number."""
    layout = Strategy(data=4, ring=2, ulysses=4, shard=8)
    nodes = [node(nics=DEGRADED) if i in (2, 4, 7) else node() for i in range(8)]
    where = cluster(*nodes)
    topology = Topology(where, Placement.in_order(where, 32))
    uses = (("ulysses", "all_to_all"), ("shard", "all_gather"), ("replicate", "all_gather"))
    patterns = [pattern(topology, rank_groups(layout, axis), op) for axis, op in uses]  # type: ignore[arg-type]
    assert equitable(topology, patterns, np.ones(32)).classes == 3


def test_collectives_between_islands_that_share_a_link_share_its_rate() -> None:
    """Two pairs of GPUs, each pair across the switch: nothing but an all-reduce of the epilogue ties them."""
    layout, where = Strategy(data=2, tensor=2, shard=2), cluster(node(4, 1, scale_up=PCIE))
    program = step(layers(1, 1, exchange=0.0, hop=0.0))
    first, other, *_ = program.epilogue[0].phases
    phases = (first, other._replace(bytes=25e6))
    program = replace(program, epilogue=(program.epilogue[0]._replace(phases=phases),))
    assert_equal((program, where, layout, Placement.in_order(where, 4), np.ones(4)))
    unfolded = play(program, where, layout, fold=False)
    assert unfolded.step_s == pytest.approx(program_s(program) + 2 * 25e6 / 25e9 + 2 * 8e-6, rel=1e-9)


def program_s(program: StepProgram) -> float:
    phases = [phase for segment, _ in program.segments() for phase in segment.phases]
    return sum(phase.seconds for phase in phases if isinstance(phase, Compute)) + 0.6 * 4e-4


def test_averaged_classes_are_near_where_replicas_begin_at_other_places_of_a_node(monkeypatch):
    whole = Cluster.load("dgx-h100", nodes=16)
    slow = replace(whole.node(0), nics=replace(whole.node(0).nics, bytes_per_s=whole.node(0).nics.bytes_per_s / 2))
    fabric = replace(whole.fabric, nodes_per_leaf=4, oversubscription=2.0)
    broken = replace(whole.override({5: slow, 11: replace(slow, gpus=7)}), fabric=fabric)
    work = Workload(Model.load("longvila-1.5b"), context_tokens=2**18, global_batch=9)
    layout = Strategy(data=9, ring=7, ulysses=2, shard=14, zero=3)
    exact = simulate(broken, work, layout)
    monkeypatch.setattr(simulation, "MOST_CLASSES", 8)
    nearly = simulate(broken, work, layout)
    assert nearly.averaged and not exact.averaged and nearly.classes < exact.classes
    assert nearly.step_s == pytest.approx(exact.step_s, rel=5e-3)
    cost = price(broken, work, layout)
    said = ["simulated by averages" in "\n".join(cost_lines(cost, summary(one))) for one in (nearly, exact)]
    assert said == [True, False]
    assert [simulation_dict(one)["averaged"] for one in (nearly, exact)] == [True, False]
