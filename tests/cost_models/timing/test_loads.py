"""What leaves a PCIe switch, a socket or a bridged pair: loads by hand, and what others measured."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cost_models import Cluster, Model, Placement, Strategy, Workload
from cost_models.framework import Framework
from cost_models.hardware.cluster import NodeRun
from cost_models.hardware.node import ScaleUp
from cost_models.strategy import sent_patterns
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.loads import Loads
from cost_models.timing.paths import Paths
from validation.operator_time import Call, operator_s

MEASUREMENTS = Path(__file__).parents[3] / "measurements"
TREE = ScaleUp(kind="pcie", link="pcie4", bytes_per_s=32e9, latency_s=6e-6, gpus_per_switch=4, cross_bytes_per_s=1e9)
PAIRS = ScaleUp(kind="pairs", link="nvlink3-bridge", bytes_per_s=300e9, latency_s=2e-6, pcie_bytes_per_s=32e9)


def box(link: ScaleUp, gpus: int = 8, nodes: int = 1) -> Cluster:
    base = Cluster.load("a100-pcie", nodes=1)
    run = NodeRun(count=nodes, node=replace(base.runs[0].node, gpus=gpus, scale_up=link))
    return replace(base, runs=(run,))


def paths(cluster: Cluster, strategy: Strategy) -> Paths:
    return cluster_costs(cluster).paths(strategy)


def test_an_exchange_over_two_sockets_crosses_by_half() -> None:
    # 4 ranks of each socket send 4/8 of their buffer over the one way between the sockets
    found = paths(box(TREE), Strategy(ulysses=8))
    assert found.axes["ulysses"].bus_all_to_all_s_per_byte == pytest.approx(4 * 0.5 / 1e9)
    assert found.exchange_s("ulysses", "all_to_all", 1e9) == pytest.approx(2.0)


def test_groups_that_stay_under_one_socket_cross_nothing() -> None:
    found = paths(box(TREE), Strategy(ulysses=4, data=2))
    assert found.axes["ulysses"].bus_all_to_all_s_per_byte == 0


def test_a_ring_crosses_where_its_next_member_is_elsewhere() -> None:
    # ring 8: one hop each way; ring 4 over pairs (0 2 4 6, 1 3 5 7): two groups cross at once
    assert paths(box(TREE), Strategy(ring=8)).axes["ring"].bus_send_s_per_byte == pytest.approx(1 / 1e9)
    assert paths(box(TREE), Strategy(ring=4, ulysses=2)).axes["ring"].bus_send_s_per_byte == pytest.approx(2 / 1e9)


def test_groups_of_several_nodes_count_only_what_crosses_inside() -> None:
    # 16 ranks on 2 nodes: from a socket 4 ranks send 4/16 to the other socket of their node
    found = paths(box(TREE, nodes=2), Strategy(ulysses=16))
    assert found.axes["ulysses"].bus_all_to_all_s_per_byte == pytest.approx(4 * 0.25 / 1e9)


@pytest.mark.parametrize(("groups", "measured"), [(2, 4.0e9), (4, 7.65e9)])
def test_groups_that_share_the_socket_link_meet_simumaxs_rates(groups: int, measured: float) -> None:
    # kernels_simumax_network_fit.json, a100_pcie, 8x all_gather, dp_fixed_bw: 4 groups of 2: 4 GB/s each, 2 of 4: 7.65
    found = paths(Cluster.load("a100-pcie", gpus=8), Strategy(data=groups, tensor=8 // groups, shard=groups))
    wire = 1e9 * (groups - 1) / groups
    assert wire / found.exchange_s("shard", "all_gather", 1e9) == pytest.approx(measured, rel=0.06)


def test_all_reduce_over_two_bridged_pairs_meets_vidurs_rows() -> None:
    # kernels_comm_vidur.csv, a100_pairwise_nvlink, 4 GPUs of one node, 16 MB and more
    found, errors = paths(box(PAIRS, gpus=4), Strategy(data=4, shard=4)), []
    with (MEASUREMENTS / "kernels_comm_vidur.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            pairs = (row["node_sku"], row["num_workers"], row["nodes"]) == ("a100_pairwise_nvlink", "4", "1")
            if pairs and float(row["bytes"]) >= 2**24:
                seconds = float(found.exchange_s("shard", "all_reduce", float(row["bytes"])))
                errors.append(seconds / (float(row["median_ms"]) * 1e-3) - 1)
    assert len(errors) > 20 and np.median(np.abs(errors)) < 0.06


def test_arrays_of_placements_equal_one() -> None:
    cluster, strategy = box(TREE), Strategy(ring=4, ulysses=2)
    gpus = np.array([np.arange(8), [0, 4, 1, 5, 2, 6, 3, 7]])
    both = Loads(cluster_costs(cluster).rates, np.zeros((2, 8), int), gpus).paths(strategy, sent_patterns(strategy))
    for index in range(2):
        place = Placement(slot_of_rank=np.zeros(8, int), gpu_of_rank=gpus[index])
        one = cluster_costs(cluster).paths(strategy, place)
        for axis in ("ulysses", "ring"):
            for name in ("bus_all_to_all_s_per_byte", "bus_send_s_per_byte", "bus_gather_s_per_byte"):
                assert getattr(both[axis], name)[index] == getattr(one.axes[axis], name)


def attention_per_s(cluster: Cluster, ulysses: int) -> float:
    """Forward attention of 32K tokens on 8 GPUs as yunchang's script runs it: 32 heads of 128, 8 KV heads, zigzag."""
    hidden = 32 * 128
    model = Model(
        name="attention", layers=1, hidden=hidden, ffn=hidden, heads=32, kv_heads=8, head_dim=128, vocab=1
    )  # fmt: skip
    call = Call(
        cluster=cluster,
        workload=Workload(model, context_tokens=32768),
        strategy=Strategy(ulysses=ulysses, ring=8 // ulysses, ring_kind="zigzag"),
        backward=False,
    )
    return 1 / operator_s(call, Framework.load("yunchang"))


def test_the_best_ulysses_degree_moves_with_the_network() -> None:
    # feifeibear/long-context-attention, media/pcie_machine.jpg (read off: U8 14.3, U4 32.8, U2 62.8, U1 58.4 it/s on
    # 8 L20 PCIe) and media/benchmark_results.png (8 A100 NVLink: U8 and U4 win); GROUP_NUM=4 of
    # scripts/run_qkvpack_compare.sh. U2 and U1, which wait for nothing, come out a quarter late.
    l20 = {degree: attention_per_s(Cluster.load("l20-pcie", gpus=8), degree) for degree in (8, 4, 2, 1)}
    assert sorted(l20, key=l20.__getitem__)[:2] == [8, 4] and l20[2] > 0.95 * l20[1]  # U2's lead of 7% is not seen
    assert (l20[8], l20[4]) == pytest.approx((14.3, 32.8), rel=0.1)
    a100 = {degree: attention_per_s(Cluster.load("dgx-a100", gpus=8), degree) for degree in (8, 4, 2, 1)}
    assert max(a100, key=a100.__getitem__) in (4, 8)


def unlike(*nodes: dict[str, object], kind: str = "dgx-h100") -> Cluster:
    """Nodes of a preset, each with changes of its cards (`count`, `bytes_per_s`) and GPUs."""
    base = Cluster.load(kind, nodes=1)
    node, runs = base.node(0), []
    for changes in nodes:
        gpus = changes.pop("gpus", node.gpus)
        runs.append(NodeRun(count=1, node=replace(node, gpus=gpus, nics=replace(node.nics, **changes))))
    return replace(base, runs=tuple(runs))


def all_reduce_s_per_byte(cluster: Cluster) -> float:
    return float(paths(cluster, Strategy(data=cluster.gpus, shard=1)).axes["replicate"].all_reduce_s_per_byte)


def test_a_tree_over_unlike_cards_goes_as_fast_as_the_slower_node() -> None:
    """A node of A100 passes 65 GB/s of a tree on; its card of 23, or that of the other node, carries less."""
    slow = all_reduce_s_per_byte(unlike(*({"gpus": 2, "count": 1},) * 2, kind="dgx-a100"))
    mixed = unlike({"gpus": 2, "count": 1}, {"gpus": 2, "count": 1, "bytes_per_s": 200e9}, kind="dgx-a100")
    assert all_reduce_s_per_byte(mixed) == slow == pytest.approx(1 / 23e9)


def test_one_ring_fills_a_slower_card_as_well_as_a_faster_one() -> None:
    """No step where cards begin to be fast: 39 GB/s carry no more than 41, and 25 all that the card reaches."""
    rates = [25e9, 38e9, 39e9, 40e9, 41e9, 50e9]
    reach = [1 / paths(unlike({"bytes_per_s": r}, {"bytes_per_s": r}), Strategy(ring=16)).axes["ring"].send_s_per_byte
             for r in rates]  # fmt: skip
    assert reach == pytest.approx(sorted(reach), rel=1e-12)
    assert (reach[0], reach[-1]) == (pytest.approx(0.92 * 25e9), pytest.approx(0.92**2 * 50e9))


def test_what_a_fast_card_loses_of_a_ring_a_slow_one_does_not() -> None:
    """A send from a card of 400 Gbit/s into one of 40 fills the latter."""
    slow, fast = {"gpus": 1, "count": 1, "bytes_per_s": 5e9}, {"gpus": 1, "count": 1}
    send = paths(unlike(fast, slow), Strategy(ring=2)).axes["ring"].send_s_per_byte
    assert send == pytest.approx(1 / (0.92 * 5e9))


def test_two_rings_leave_a_bridged_pair_by_a_card_each() -> None:
    """A pair whose GPUs are in two groups carries as much as two GPUs that no bridge joins."""
    for bridges in ((), (0, 1)):
        where = box(PAIRS, gpus=4)
        where = where.override({0: replace(where.node(0), missing_bridges=bridges)})
        found = paths(where, Strategy(data=2, ring=2, shard=2)).axes["replicate"]
        assert found.bus_gather_s_per_byte == pytest.approx(0.5 / (0.75 * 32e9))


def test_dead_uplinks_of_a_leaf_are_of_the_cards_that_sized_it() -> None:
    """Eight cards of 25 GB/s beside one of 100: a leaf of both has 16 uplinks of 25, and two less 14."""
    where = unlike({"bytes_per_s": 25e9}, {"count": 1, "bytes_per_s": 100e9}, {}, {})
    where = replace(where, fabric=replace(where.fabric, nodes_per_leaf=2, missing_uplinks=(0, 0)))
    assert cluster_costs(where).wiring.line.of_leaf.tolist() == [14 * 25e9, 16 * 50e9]
