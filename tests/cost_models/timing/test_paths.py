"""Collectives across nodes: rings wait one hop for each further rank, all-reduces may take trees."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from cost_models import Cluster, Placement, Strategy
from cost_models.curves.samples import Sample
from cost_models.program import Op
from cost_models.timing.cluster_costs import cluster_costs, costs_of
from cost_models.timing.paths import Path, Paths
from cost_models.timing.paths import crossing_s as crossing
from cost_models.timing.protocols import CHANNEL_BYTES_PER_S, RING_WAITS, peer_bytes_per_s, slower_s


def paths(ranks: int) -> Paths:
    cluster, strategy = Cluster.load("dgx-h100", nodes=-(-ranks // 8)), Strategy(data=ranks, shard=ranks)
    return cluster_costs(cluster).paths(strategy, Placement.in_order(cluster, ranks))


def gather_s(path: Path, op: Op, size: Any) -> Any:
    return crossing(op, path, size)


def test_ring_waits_for_every_hop():
    """64 ranks on 8 nodes of one leaf: 56 hops of 2 us inside, 8 of 3.3 us between; a gather waits for 63 of them."""
    path = paths(64).axes["shard"]
    assert path.ring_latency_s == pytest.approx(56 * 2e-6 + 8 * 3.3e-6)
    assert gather_s(path, "all_gather", 0.0) == pytest.approx(63 / 64 * path.ring_latency_s)


def test_small_all_reduce_takes_the_tree_and_a_large_one_moves_as_much_either_way():
    path = paths(256).axes["shard"]
    depth = 7 * 2e-6 + 5 * 3.3e-6
    assert gather_s(path, "all_reduce", 0.0) == pytest.approx(2 * depth)
    assert 2 * depth < 0.1 * 2 * path.ring_latency_s
    size = 2.0**36
    assert gather_s(path, "all_reduce", size) == pytest.approx(2 * gather_s(path, "all_gather", size), rel=0.01)


TWO_NODES = (
    ("hgx-h100-4nic", 353.85),  # NVLink SHARP, 4 x 400 Gbit/s: an acceptance report of 2026
    ("dgx-h100", 470.0),  # 8 x 400 Gbit/s, as NVIDIA/nccl issue 2409 expects it
    ("dgx-a100", 188.0),  # 8 x 200 Gbit/s, rings (NVIDIA/nccl-tests issue 196: with 8 cards trees do not pay)
)
"""GB/s of bus rate of nccl-tests' all_reduce_perf over 16 GPUs on two nodes, large buffers."""


@pytest.mark.parametrize(("preset", "bus"), TWO_NODES)
def test_all_reduce_over_two_nodes_meets_published_rates(preset: str, bus: float) -> None:
    every = cluster_costs(Cluster.load(preset, nodes=2)).paths(Strategy(data=16, shard=16))
    found = 2 * 15 / 16 * 2.0**33 / float(every.exchange_s("shard", "all_reduce", 2.0**33)) / 1e9
    assert found == pytest.approx(bus, rel=0.05)


def test_trees_halve_what_leaves_one_of_two_domains_and_nothing_else() -> None:
    two, four = paths(16).axes["shard"], paths(32).axes["shard"]
    size = 2.0**36
    whole = 16 / 15 * 0.92  # of a card of 400 Gbit/s a ring fills 0.92, a tree all
    assert gather_s(two, "all_reduce", size) == pytest.approx(whole * gather_s(two, "all_gather", size), rel=0.01)
    assert gather_s(four, "all_reduce", size) == pytest.approx(2 * gather_s(four, "all_gather", size), rel=0.01)


def test_slower_hops_and_more_ranks_never_shorten_a_gather():
    several = [paths(ranks) for ranks in (16, 64, 256, 1024)]
    for op in ("all_gather", "all_reduce"):
        for size in (4.0, 2.0**20, 2.0**30):
            spent = [float(one.exchange_s("shard", op, size)) for one in several]
            assert spent == sorted(spent)
    path = several[1].axes["shard"]
    slower = replace(path, ring_latency_s=path.ring_latency_s * 2, tree_latency_s=path.tree_latency_s * 2)
    sizes = np.geomspace(1, 2**32, 20)
    assert (gather_s(slower, "all_reduce", sizes) >= gather_s(path, "all_reduce", sizes)).all()


def test_protocols_add_nothing_to_empty_messages_and_a_fixed_number_of_waits_to_large_ones() -> None:
    for op, waits in (("all_reduce", 6.0), ("all_gather", 2.8), ("send", 0.0), ("all_to_all", 0.0)):
        assert slower_s(op, 1e-5, 0.0) == 0.0
        assert slower_s(op, 1e-5, 10.0) == pytest.approx(waits * 1e-5, rel=1e-4)


def test_messages_between_nodes_start_late_and_not_where_a_profile_measured_them() -> None:
    cluster = Cluster.load("dgx-h100", nodes=2)
    plain = cluster_costs(cluster).paths(Strategy(ulysses=16))
    assert float(plain.exchange_s("ulysses", "all_to_all", 1.0)) == pytest.approx(37e-6, rel=0.1)  # autoparallel
    pair = [Sample(op="send_recv", ranks=2, path="network", bytes=b, median_s=1e-5 + b / 4e10) for b in (1e6, 1e8, 1e9)]
    known = costs_of(cluster, tuple(pair)).paths(Strategy(ulysses=16)).axes["ulysses"]
    assert known.protocols == 0.0 and plain.axes["ulysses"].protocols == 1.0


def test_where_one_protocol_runs_larger_messages_wait_no_longer_for_their_hops() -> None:
    """Two a3-highgpu over TCPX (Google's documentation): a gather of 1, 8 and 512 MiB takes 0.71, 0.81 and 7.1 ms."""
    paths = cluster_costs(Cluster.load("gcp-a3", nodes=2)).paths(Strategy(data=16, shard=16))
    path = paths.axes["shard"]
    assert path.protocols == 1.0 and path.slower == 0.0
    for size, ms in ((2**20, 0.71), (2**23, 0.81), (2**29, 7.08)):
        taken = float(paths.exchange_s("shard", "all_gather", float(size)))
        assert taken == pytest.approx(float(crossing("all_gather", path, float(size))))
        assert taken * 1e3 == pytest.approx(ms, rel=0.2)


def test_where_no_ll_runs_larger_messages_wait_less_longer_for_their_hops() -> None:
    """Two a3-megagpu over TCPXO, which has LL128 and Simple: gathers of 4 KiB, 16 MiB and 1 GiB take 85 us, 0.20 ms and
    5.5 ms (cluster-toolkit; the larger ones at dstack, too). With LL 16 MiB would be priced at 0.27 ms."""
    paths = cluster_costs(Cluster.load("gcp-a3-mega", nodes=2)).paths(Strategy(data=16, shard=16))
    assert float(paths.axes["shard"].slower) == pytest.approx(0.41, abs=0.01)
    for size, ms in ((2**12, 0.085), (2**24, 0.20), (2**30, 5.5)):
        assert float(paths.exchange_s("shard", "all_gather", float(size))) * 1e3 == pytest.approx(ms, rel=0.1)


def test_a_ring_of_sends_has_the_channels_that_nccl_gives_a_peer() -> None:
    """B200, NCCL 2.29.7 (together-nccl-tests): a ring over all GPUs of 2, 4, 8, 16 and 64 nodes, GB/s."""
    measured = {2: 43, 4: 44, 8: 26, 16: 14.7, 64: 14.8}
    for nodes, gb_per_s in measured.items():
        whole = cluster_costs(Cluster.load("dgx-b200", nodes=nodes)).paths(Strategy(ring=8 * nodes))
        assert 1 / float(whole.axes["ring"].send_s_per_byte) / 1e9 == pytest.approx(gb_per_s, rel=0.08)


def test_sends_of_one_card_fill_their_channels_together() -> None:
    """Rings over 32 nodes have one channel: 14 GB/s each, also two of one card of 42.3; four share the card."""
    cluster = Cluster.load("dgx-h100", nodes=32)
    run = cluster.runs[0]
    for gpus, gb_per_s in ((1, 14.0), (2, 14.0), (4, 42.32 / 4)):
        nics = dataclasses.replace(run.node.nics, count=1)
        node = dataclasses.replace(run.node, gpus=gpus, nics=nics)
        shared = dataclasses.replace(cluster, runs=(dataclasses.replace(run, node=node),))
        path = cluster_costs(shared).paths(Strategy(ring=32, ulysses=gpus)).axes["ring"]
        assert 1 / float(path.send_s_per_byte) / 1e9 == pytest.approx(gb_per_s)


def test_a_ring_has_the_channels_of_the_release_that_runs() -> None:
    """By src/graph/paths.cc of each: channels to a peer of rings over 32 and 64 GPUs, 8 a node."""
    expected = {"2.8.4": (1, 1), "2.19.3": (2, 2), "2.20": (2, 1), "2.28.9": (2, 1), "2.29": (3, 2)}  # 3: the card's 42
    for release, channels in expected.items():
        for nodes, wanted in zip((4, 8), channels, strict=True):
            cluster = Cluster.load("dgx-h100", nodes=nodes)
            cluster = dataclasses.replace(cluster, fabric=dataclasses.replace(cluster.fabric, nccl=release))
            rate = 1 / float(cluster_costs(cluster).paths(Strategy(ring=8 * nodes)).axes["ring"].send_s_per_byte)
            assert rate / CHANNEL_BYTES_PER_S == pytest.approx(wanted, rel=0.08), release


def test_sends_get_what_a_channel_is_said_to_carry() -> None:
    """32 GH200, a card of 25 GB/s each: 24.2 GB/s by NCCL 2.19, 18.3 by 2.20 (NVIDIA/nccl issue 1272)."""
    cluster = Cluster.load("alps-gh200", nodes=8)
    run = cluster.runs[0]
    nics = dataclasses.replace(run.node.nics, channel_bytes_per_s=18.3e9)
    runs = (dataclasses.replace(run, node=dataclasses.replace(run.node, nics=nics)),)
    for release, gb_per_s in (("2.19.4", 24.2), ("2.20.5", 18.3)):
        fabric = dataclasses.replace(cluster.fabric, nccl=release)
        path = cluster_costs(dataclasses.replace(cluster, runs=runs, fabric=fabric)).paths(Strategy(ring=32))
        assert 1 / float(path.axes["ring"].send_s_per_byte) / 1e9 == pytest.approx(gb_per_s, rel=0.08)


def test_no_more_ranks_or_fewer_cards_give_a_peer_more_channels() -> None:
    ranks, cards, rate = np.array([2, 8, 9, 64, 65, 512]), np.array([1, 2, 3, 8, 16]), np.array([12.5e9, 25e9, 100e9])
    found = peer_bytes_per_s(ranks[:, None, None], cards[:, None], rate, np.array(True)) / CHANNEL_BYTES_PER_S
    assert (np.diff(found, axis=0) <= 0).all() and (np.diff(found, axis=1) >= 0).all()
    assert (np.diff(found, axis=2) >= 0).all() and found.min() == 1 and found.max() == 8
    along_a_rail = peer_bytes_per_s(ranks, np.array(1), np.array(50e9), np.array(False))  # A100
    assert (along_a_rail <= 2 * CHANNEL_BYTES_PER_S).all()


@pytest.mark.parametrize(("preset", "bus"), [("dgx-h100", 77.0), ("dgx-a100", 37.0)])
def test_all_to_alls_over_two_nodes_meet_published_rates(preset: str, bus: float) -> None:
    """H100: what NCCL's authors expect; A100: measured (NVIDIA/nccl-tests)."""
    every = cluster_costs(Cluster.load(preset, nodes=2)).paths(Strategy(ulysses=16))
    found = 15 / 16 * 2.0**33 / float(every.exchange_s("ulysses", "all_to_all", 2.0**33)) / 1e9
    assert found == pytest.approx(bus, rel=0.1)


def test_all_reduces_over_many_nodes_go_by_trees_and_the_largest_by_rings() -> None:
    """64 nodes of B200 (together-nccl-tests): 256 GB/s of bus rate at 2 GiB, 288 at 8 GiB."""
    every = cluster_costs(Cluster.load("dgx-b200", nodes=64)).paths(Strategy(data=512, shard=512))
    for size, bus in ((2.0**31, 256), (2.0**33, 288)):
        found = 2 * 511 / 512 * size / float(every.exchange_s("shard", "all_reduce", size)) / 1e9
        assert found == pytest.approx(bus, rel=0.1)
    path = every.axes["shard"]
    ring_s = 511 / 512 * path.ring_latency_s
    assert slower_s("all_reduce", 1e-4, 1e3, ring_s, 64) == pytest.approx(RING_WAITS * ring_s - 1e-4)
    assert slower_s("all_reduce", 1e-4, 1e3, ring_s, 2) == pytest.approx(6e-4, rel=1e-3)
