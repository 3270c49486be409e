"""Steps whose time is worked out by hand, what must hold for any step, and agreement with the closed form."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from cost_models import Cluster, Model, Placement, Workload, price
from cost_models.errors import InputError
from cost_models.framework import Framework
from cost_models.hardware.device import Device
from cost_models.hardware.links import TREE_BYTES_PER_S
from cost_models.hardware.wiring import GPU_OUT, NIC_OUT, Wiring
from cost_models.program import Compute, Exchange, Ring, Segment, StepProgram
from cost_models.strategy import LayerRange, Strategy
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.paths import reached
from planner.simulator.result import Simulation
from planner.simulator.simulation import play, simulate
from planner.simulator.streams import ring_rounds
from tests.planner.clusters import DEGRADED, GB, cluster, layers, node, sharding, step
from tests.planner.simulator.test_folding import cases


def only(*phases: object, **more: object) -> StepProgram:
    """A program of one segment."""
    return StepProgram(microbatch=(Segment(name="only", phases=phases, **more),), epilogue=(), microbatches=1)  # type: ignore[arg-type]


def test_all_to_all_inside_a_node() -> None:
    """Each of 4 GPUs sends 3 x 1/4 of 40 MB at 100 GB/s, 2 us after the start."""
    program = only(Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=40e6))
    found = play(program, cluster(node()), Strategy(ulysses=4, shard=4))
    assert found.step_s == pytest.approx(30e6 / 100e9 + 2e-6, rel=1e-12)
    assert found.seconds == {"all_to_all": pytest.approx(found.step_s)}
    assert found.sent_bytes == pytest.approx(4 * 30e6)


def test_all_to_all_across_nodes_waits_for_the_nic() -> None:
    """8 members on 2 nodes, a NIC each: 4/8 of 80 MB at 10 GB/s, after 5 + 1 us; NVLink's share is done long before."""
    program = only(Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=80e6))
    found = play(program, cluster(node(), node()), Strategy(ulysses=8, shard=8))
    assert found.step_s == pytest.approx(40e6 / 10e9 + 6e-6, rel=1e-12)
    assert found.busiest_links[0].name == "slot 0 nic 0 in"
    assert found.busiest_links[0].alike == 8
    assert found.busiest_links[0].bytes == pytest.approx(40e6)
    assert found.busiest_links[0].utilisation == pytest.approx(4e-3 / found.step_s)


def test_one_nic_for_four_gpus_takes_four_times_as_long() -> None:
    program = only(Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=80e6))
    found = play(program, cluster(node(cards=1), node(cards=1)), Strategy(ulysses=8, shard=8))
    assert found.step_s == pytest.approx(4 * 40e6 / 10e9 + 6e-6, rel=1e-12)


def test_gather_over_nodes_uses_all_nics() -> None:
    """(P - 1)/P of 80 MB enters each node over 4 NICs; 7 steps of the mean hop's latency (6 inside, 2 across)."""
    program = only(sharding=sharding(gather=80e6))
    found = play(program, cluster(node(), node()), Strategy(ring=8, shard=8))
    latency = 7 * (6 * 2e-6 + 2 * 6e-6) / 8
    assert found.step_s == pytest.approx(70e6 / 4 / 10e9 + latency, rel=1e-12)
    assert found.seconds == {"sharding": pytest.approx(found.step_s)}


def test_ring_hides_hops_behind_blocks() -> None:
    """Blocks of 1 and 2 ms, hops of 1.506 ms: only the first hop shows."""
    program = only(Ring(part="attention", pieces=4, first_s=1e-3, piece_s=2e-3, hop_bytes=15e6))
    found = play(program, cluster(*[node(1, 1)] * 4), Strategy(ring=4, shard=1))
    hop = 15e6 / 10e9 + 6e-6
    assert found.step_s == pytest.approx(hop + 3 * 2e-3, rel=1e-12)
    assert found.seconds == {"compute": pytest.approx(1e-3 + 3 * 2e-3), "ring": pytest.approx(hop - 1e-3)}


def test_gradient_hops_come_one_block_later_and_the_last_has_nothing_to_hide_behind() -> None:
    program = only(Ring(part="attention", pieces=4, first_s=1e-3, piece_s=2e-3, hop_bytes=15e6, gradient_bytes=25e6))
    found = play(program, cluster(*[node(1, 1)] * 4), Strategy(ring=4, shard=1))
    rounds = [(1e-3, 15e6), (2e-3, 15e6), (2e-3, 40e6), (2e-3, 25e6), (0.0, 25e6)]
    assert found.step_s == pytest.approx(sum(max(s, b / 10e9 + 6e-6) for s, b in rounds), rel=1e-12)


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("gradient", [0.0, 5.0])
def test_rounds_carry_every_hop_once(pieces: int, gradient: float) -> None:
    rounds = ring_rounds(
        Ring(part="attention", pieces=pieces, first_s=1.0, piece_s=2.0, hop_bytes=3.0, gradient_bytes=gradient)
    )
    assert sum(r.times * r.seconds for r in rounds) == 1 + 2 * (pieces - 1)
    assert sum(r.times * r.bytes for r in rounds) == (pieces - 1) * (3 + gradient)


def test_gather_shares_the_nic_with_the_ring() -> None:
    """Two layers; the second's gather (2 nodes, one NIC each: 1/2 of the buffer) flies beside the first's hop.

    Both start together and get 5 GB/s: the hop's 10 MB are there after 2 ms (+ 6 us), and layer 2 can start.
    """
    ring = Ring(part="attention", pieces=2, first_s=1e-4, piece_s=1e-4, hop_bytes=10e6)
    segments = tuple(Segment(name=name, phases=(ring,), sharding=sharding(gather=40e6)) for name in ("first", "second"))
    program = StepProgram(microbatch=segments, epilogue=(), microbatches=1)
    found = play(program, cluster(node(1, 1), node(1, 1)), Strategy(ring=2, shard=2))
    gather, hop = 20e6 / 10e9, 10e6 / 10e9
    first = gather + 6e-6
    both = first + 6e-6 + 2 * hop  # hop done at half rate; 10 MB of the gather are left
    second = both + (20e6 - 10e6) / 10e9
    assert found.step_s == pytest.approx(second + 6e-6 + hop + 1e-4, rel=1e-9)


def test_reductions_overlap_the_next_segment_and_are_waited_for_before_the_epilogue() -> None:
    segment = Segment(
        name="layer", phases=(Compute(part="matmul", seconds=5e-3),), repeat=3, sharding=sharding(scatter=40e6)
    )
    update = Segment(name="optimizer", phases=(Compute(part="optimizer", seconds=1e-3),))
    program = StepProgram(microbatch=(segment,), epilogue=(update,), microbatches=1)
    found = play(program, cluster(node(1, 1), node(1, 1)), Strategy(data=2, shard=2))
    assert found.step_s == pytest.approx(3 * 5e-3 + 20e6 / 10e9 + 6e-6 + 1e-3, rel=1e-12)
    assert found.seconds["sharding"] == pytest.approx(2e-3 + 6e-6)


def test_offload_slower_than_its_segment_shows() -> None:
    segment = Segment(name="layer", phases=(Compute(part="matmul", seconds=1e-3),), repeat=4, offload_bytes=60e6)
    found = play(StepProgram(microbatch=(segment,), epilogue=(), microbatches=1), cluster(node()), Strategy())
    assert found.step_s == pytest.approx(4 * 60e6 / 20e9, rel=1e-12)
    assert found.seconds["offload"] == pytest.approx(4 * 2e-3)


def test_a_segment_lasts_as_long_as_its_launches() -> None:
    """4 layers of 1 ms that take the host 3 ms, of 5 ms that take it 3 ms."""
    short = Segment(name="layer", phases=(Compute(part="matmul", seconds=1e-3),), repeat=4, host_s=3e-3)
    long = short._replace(phases=(Compute(part="matmul", seconds=5e-3),))
    found = play(StepProgram(microbatch=(short, long), epilogue=(), microbatches=1), cluster(node()), Strategy())
    assert found.step_s == pytest.approx(4 * 3e-3 + 4 * 5e-3, rel=1e-12)
    assert found.seconds["host"] == pytest.approx(4 * 2e-3)


def test_each_hop_of_a_ring_is_launched() -> None:
    ring = Ring(part="attention", pieces=4, first_s=1e-4, piece_s=1e-4, hop_bytes=1e3)
    found = play(only(ring, host_s=1e-3, host_hop_s=5e-4), cluster(node()), Strategy(ring=4, shard=1))
    assert found.step_s == pytest.approx(1e-3 + 3 * 5e-4, rel=1e-12)


def test_what_the_sharding_stream_takes_from_a_segment() -> None:
    """A reduction of 2.006 ms runs beside the next of three layers; each second of it adds 0.5 s to them."""
    segment = Segment(
        name="layer",
        phases=(Compute(part="matmul", seconds=5e-3),),
        repeat=3,
        sharding=sharding(scatter=40e6),
        overlap_cost=0.5,
    )
    found = play(
        StepProgram(microbatch=(segment,), epilogue=(), microbatches=1),
        cluster(node(1, 1), node(1, 1)),
        Strategy(data=2, shard=2),
    )
    reduction = 20e6 / 10e9 + 6e-6
    assert found.step_s == pytest.approx(3 * 5e-3 + 2 * 0.5 * reduction + reduction, rel=1e-9)


def test_price_and_simulation_agree_where_the_host_decides() -> None:
    work = Workload(Model.load("longvila-8b"), context_tokens=2**12)
    where, layout = Cluster.load("dgx-h100", nodes=8), Strategy(ring=64, shard=64)
    priced, played = price(where, work, layout), simulate(where, work, layout)
    assert priced.seconds["host"] > 0.5 * priced.step_s
    assert played.seconds["host"] > 0.5 * played.step_s
    assert played.step_s == pytest.approx(priced.step_s, rel=0.05)


@pytest.mark.parametrize("layout", [Strategy(data=4, ulysses=4, shard=4), Strategy(data=8, ulysses=2, shard=2)])
def test_an_all_reduce_over_two_nodes_is_the_tree_that_is_priced(layout: Strategy) -> None:
    """Of 100 MB over the replicas of each shard: every group has cards of its own."""
    where = Cluster.load("dgx-a100", nodes=2)
    paths = cluster_costs(where).paths(layout)
    found = play(only(sharding=sharding(replicate=100e6)), where, layout, rates=reached(Wiring(where)))
    assert found.step_s == pytest.approx(float(paths.exchange_s("replicate", "all_reduce", 100e6)), rel=0.15)


def test_a_tree_over_two_nodes_is_as_fast_as_its_switch_passes_bytes_on() -> None:
    """Of 16 GB, by all eight GPUs of two nodes with three cards each, which could send 69 GB/s: 65 GB/s."""
    node_of = Cluster.load("dgx-a100", nodes=2).runs[0].node
    where = Cluster.load("dgx-a100", nodes=2).override(
        {slot: replace(node_of, nics=replace(node_of.nics, count=3)) for slot in (0, 1)}
    )
    program = only(Exchange(part="gradients", axis="replicate", op="all_reduce", bytes=16e9))
    found = play(program, where, Strategy(data=16, shard=1, zero=0), rates=reached(Wiring(where)))
    assert found.step_s == pytest.approx(16e9 / TREE_BYTES_PER_S, rel=1e-3)


def test_the_last_microbatch_alone_sums_over_the_replicas() -> None:
    """Six microbatches of three layers of 1 ms; the sums of the last follow one another, and two of its layers hide."""
    layer = Segment(name="layer", phases=(Compute(part="matmul", seconds=1e-3),), repeat=3)
    last = layer._replace(sharding=sharding(replicate=500e6))
    update = Segment(name="optimizer", phases=(Compute(part="optimizer", seconds=1e-3),))
    program = StepProgram(microbatch=(layer._replace(last=last),), epilogue=(update,), microbatches=6)
    where, layout = cluster(node()), Strategy(data=4)
    alone = play(only(sharding=sharding(replicate=500e6)), where, layout).step_s
    assert alone > 1e-3
    for folded in (True, False):
        found = play(program, where, layout, fold=folded)
        assert found.step_s == pytest.approx(16e-3 + 3 * alone + 1e-3, rel=1e-9)


def test_slow_rank_makes_its_group_wait() -> None:
    program = only(
        Compute(part="matmul", seconds=2e-3), Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=40e6)
    )
    found = play(program, cluster(node()), Strategy(ulysses=4), compute_scale=np.array([1, 1, 1.5, 1]))
    assert found.step_s == pytest.approx(3e-3 + 302e-6, rel=1e-12)
    assert found.slowest_rank == 2
    assert "waiting" not in found.seconds


def test_degraded_nic_slows_the_whole_ring() -> None:
    ring = Ring(part="attention", pieces=4, first_s=1e-3, piece_s=1e-3, hop_bytes=6e6)
    nodes = [node(1, 1)] * 3 + [node(1, 1, nics=replace(DEGRADED, count=1))]
    whole = play(only(ring), cluster(*[node(1, 1)] * 4), Strategy(ring=4, shard=1))
    found = play(only(ring), cluster(*nodes), Strategy(ring=4, shard=1))
    assert whole.step_s == pytest.approx(4e-3, rel=1e-12)
    assert found.step_s == pytest.approx(3 * (6e6 / 3e9 + 6e-6) + 1e-3, rel=1e-12)


def test_oversubscribed_leaf_limits_what_crosses_it() -> None:
    """8 NICs of 10 GB/s behind an uplink of 20: ulysses 2 over the leaves needs 8 x 10 MB through it."""
    program = only(Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=20e6))
    where = cluster(*[node()] * 4, leaf=2, oversubscription=4.0)
    across = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
    placement = Placement(slot_of_rank=across // 4, gpu_of_rank=across % 4)
    found = play(program, where, Strategy(data=8, ulysses=2, shard=2), placement)
    assert found.step_s == pytest.approx(8 * 10e6 / 20e9 + 8e-6, rel=1e-12)
    assert found.busiest_links[0].name == "leaf 0 down"
    assert found.classes == 1


def test_pipeline_bubble_is_added() -> None:
    segment = Segment(name="layer", phases=(Compute(part="matmul", seconds=1e-3),), repeat=4)
    program = StepProgram(microbatch=(segment,), epilogue=(), microbatches=6, pipeline=3, virtual=2)
    found = play(program, cluster(node()), Strategy(pipeline=3))
    assert found.step_s == pytest.approx(4e-3 * (6 + 2 / 2), rel=1e-12)
    assert found.seconds["pipeline"] == pytest.approx(4e-3)


def test_fraction_of_a_layer() -> None:
    program = only(Compute(part="matmul", seconds=1e-3), repeat=10 + 2 / 3)
    assert play(program, cluster(node()), Strategy()).step_s == pytest.approx(1e-3 * 32 / 3, rel=1e-12)


@given(cases())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_holds_for_any_step(case: tuple) -> None:
    """Parts add up to the step; no link carries more than its rate allows; nobody ends before its own computation."""
    program, where, layout, placement, scale = case
    found = play(program, where, layout, placement, compute_scale=scale)
    assert sum(found.seconds.values()) == pytest.approx(found.step_s, rel=1e-9)
    assert all(link.utilisation <= 1 + 1e-9 for link in found.busiest_links)
    assert all(value > 0 for value in found.exposed_s.values())
    used = [link.utilisation for link in found.busiest_links]
    assert used == pytest.approx(sorted(used, reverse=True))


MODEL = Model.load("longvila-8b")


def real(layout: Strategy, nodes: int, tokens: int, name: str = "dgx-h100") -> tuple[Simulation, float]:
    where = Cluster.load(name, nodes=nodes)
    work = Workload(MODEL, context_tokens=tokens, global_batch=layout.data)
    return simulate(where, work, layout), price(where, work, layout).step_s


@pytest.mark.parametrize(
    ("layout", "nodes", "tokens"),
    [
        (Strategy(ring=32, ulysses=8, shard=256), 32, 2**21),
        (Strategy(ring=8, ulysses=32, shard=256), 32, 2**21),
        (Strategy(ring=4, ulysses=8, shard=32, layers=(LayerRange(recompute="full", count=32),)), 4, 2**19),
        (Strategy(data=4, ulysses=8, shard=32), 4, 2**17),
    ],
)
def test_near_the_closed_form_where_nothing_collides(layout: Strategy, nodes: int, tokens: int) -> None:
    """Uniform nodes and long contexts: both count the same bytes over the same rates."""
    found, priced = real(layout, nodes, tokens)
    assert found.step_s == pytest.approx(priced, rel=0.01)
    assert sum(found.exposed_s.values()) < 0.05 * found.step_s


def test_two_devices_wait_for_the_slower_one() -> None:
    fast, slow = Cluster.load("dgx-h100", nodes=1).runs[0], Cluster.load("dgx-a100", nodes=1).runs[0]
    where = Cluster(name="mixed", runs=(fast, slow), fabric=Cluster.load("dgx-h100", nodes=2).fabric)
    work = Workload(MODEL, context_tokens=2**18)
    found = simulate(where, work, Strategy(ring=2, ulysses=8, shard=16))
    assert found.slowest_rank >= 8
    assert found.step_s == pytest.approx(price(where, work, Strategy(ring=2, ulysses=8, shard=16)).step_s, rel=0.05)


def test_unequal_shares_are_played_as_they_are_priced() -> None:
    """Fast cards with more tokens: both say that it takes less, and the memory peaks where the price says."""
    where = Cluster.load("dgx-h100", nodes=4)
    where = where.override(dict.fromkeys((2, 3), replace(where.node(0), device=Device.load("a100-sxm-80gb"))))
    work = Workload(Model.load("longvila-8b"), context_tokens=2**19)
    equal = Strategy(ring=4, ulysses=8, shard=32, layers=(LayerRange(recompute="full", count=32),))
    unequal = replace(equal, token_shares=(18, 18, 10, 10))
    taken = [simulate(where, work, one) for one in (equal, unequal)]
    for layout, played in zip((equal, unequal), taken, strict=True):
        priced = price(where, work, layout)
        assert priced.step_s <= played.step_s * (1 + 1e-9) < 1.02 * priced.step_s
        assert max(held for _, held in played.memory) == pytest.approx(priced.memory_bytes, rel=1e-6)
    assert taken[1].step_s < 0.8 * taken[0].step_s


def test_links_carry_what_large_messages_reach() -> None:
    stated = Cluster.load("dgx-h100", nodes=2)
    rates, line = reached(Wiring(stated)), Wiring(stated).line
    assert (rates.name, line.name) == ("reached", "line")
    assert 0.8 < rates.of_run[0, NIC_OUT] / line.of_run[0, NIC_OUT] < 1
    assert 0.5 < rates.of_run[0, GPU_OUT] / line.of_run[0, GPU_OUT] < 1


def test_a_placement_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="16 ranks on 4 free GPUs"):
        play(step(layers(4, 2)), cluster(node()), Strategy(ring=4, ulysses=4))


def test_the_simulator_needs_neither_networkx_nor_scipy() -> None:
    code = """
import sys
for name in ("networkx", "scipy", "numba", "pulp", "torch"):
    sys.modules[name] = None
from cost_models import Cluster, Model, Workload, Strategy
from planner.simulator.simulation import simulate
work = Workload(Model.load("longvila-8b"), context_tokens=2**17)
assert simulate(Cluster.load("dgx-h100", nodes=1), work, Strategy(ulysses=8, shard=8)).step_s > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cluster_of_sixteen_thousand_gpus_is_one_class() -> None:
    layout = Strategy(data=64, ring=32, ulysses=8, shard=256)
    found = play(step(layers(32, 32, gather=4e8)), Cluster.load("dgx-h100", nodes=2048), layout)
    assert (found.ranks, found.classes) == (16384, 1)
    assert found.sent_bytes > 16384 * GB


MIXED = (LayerRange(recompute="mlp", count=20), LayerRange(recompute="none", count=12))


@pytest.mark.parametrize(
    ("layout", "nodes", "tokens"),
    [
        (Strategy(ring=32, ulysses=8, shard=256), 32, 2**21),
        (Strategy(ulysses=8, shard=8, layers=(LayerRange(recompute="full", count=32),)), 1, 2**17),
        (Strategy(data=2, ulysses=4, shard=8, layers=MIXED), 1, 2**14),
    ],
)
def test_memory_over_time_has_the_priced_peak(layout: Strategy, nodes: int, tokens: int) -> None:
    where = Cluster.load("dgx-h100", nodes=nodes)
    work = Workload(MODEL, context_tokens=tokens, global_batch=layout.data)
    found = simulate(where, work, layout)
    times, held = (np.array(column) for column in zip(*found.memory, strict=True))
    assert held.max() == pytest.approx(price(where, work, layout).memory_bytes, rel=1e-6)
    assert times[0] >= 0 and (np.diff(times) >= 0).all() and times[-1] < found.step_s
    top = int(held.argmax())
    assert held[0] < held[top // 2] < held[top] > held[-3] > held[-1]
    traced = simulate(where, work, layout, trace=True)
    assert np.array(traced.memory) == pytest.approx(np.array(found.memory), rel=1e-9, abs=1e-9)
    assert traced.trace is not None and traced.trace.counters[-1].values == pytest.approx((held / 2**30).tolist())


def test_small_sums_inside_a_domain_take_what_they_are_measured_to_take():
    """A decode step of tensor ranks is 65 all_reduces of a row each: latency, which hops taken one by one overstate."""
    decoded = Workload(Model.load("longvila-8b"), context_tokens=2**18, mode="decode")
    node, layout = Cluster.load("dgx-h100", nodes=1), Strategy(tensor=8)
    priced = price(node, decoded, layout, framework=Framework.load("vllm"))
    found = simulate(node, decoded, layout, framework=Framework.load("vllm"))
    assert found.step_s == pytest.approx(priced.step_s, rel=0.02)


@pytest.mark.parametrize(("peer_to_peer", "seconds"), [(True, 1.0), (False, 0.4)])
def test_copies_to_host_memory_go_at_the_host_s_own_rate(peer_to_peer: bool, seconds: float) -> None:
    """Messages that go through host memory reach less than one copy there does: 10 GB over a link of 25 GB/s, of which
    messages between GPUs reach 10; peer to peer the copy takes what they take."""
    link = replace(node().scale_up, kind="pcie", link="pcie4", bytes_per_s=10e9, peer_to_peer=peer_to_peer)
    where = cluster(replace(node(), scale_up=link, host_link_bytes_per_s=25e9))
    found = play(only(offload_bytes=10e9), where, Strategy(shard=1))
    assert found.step_s == pytest.approx(seconds, rel=1e-6)
