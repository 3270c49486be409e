"""What a network's kind changes: the price, the simulation that plays the same step, and the plan with its bound."""

from dataclasses import replace
from typing import Any

import pytest

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models.curves.samples import Sample
from cost_models.hardware.networks import NETWORKS, NetworkKind
from cost_models.hardware.wiring import NIC_OUT, Wiring
from cost_models.timing.cluster_costs import costs_of
from cost_models.timing.paths import reached
from planner import plan, simulate
from planner.search.optimistic_paths import Reach

WORK = Workload(Model.load("longvila-8b"), context_tokens=65536)


def with_nics(cluster: Cluster, **changes: Any) -> Cluster:
    run = cluster.runs[0]
    node = replace(run.node, nics=replace(run.node.nics, **changes))
    return replace(cluster, runs=(replace(run, node=node),))


def test_the_kind_of_a_network_is_in_the_price_and_in_the_simulation() -> None:
    cluster, strategy = Cluster.load("dgx-h100", nodes=4), Strategy(ring=32, shard=32)  # every hop outlasts its block
    kinds: list[dict[str, Any]] = [{"kind": "efa"}, {"kind": "roce"}, {}, {"gpudirect": False}]  # by rates of rings
    for seconds in (
        [price(with_nics(cluster, **kind), WORK, strategy).step_s for kind in kinds],
        [simulate(with_nics(cluster, **kind), WORK, strategy).step_s for kind in kinds],
    ):
        assert seconds == sorted(set(seconds))
    told = " ".join(price(with_nics(cluster, kind="efa"), WORK, strategy).estimates)
    assert "91% of the line rate of efa" in told


def test_the_plan_on_a_staged_network_keeps_its_bound() -> None:
    cluster = Cluster.load("dgx-h100", nodes=2)
    best = plan(with_nics(cluster, gpudirect=False), WORK)
    assert best.bound <= best.cost.step_s * (1 + 1e-9)
    assert best.cost.step_s >= plan(cluster, WORK).cost.step_s


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_faster_line_never_raises_the_price_and_staging_always_does(kind: NetworkKind) -> None:
    cluster, strategy = Cluster.load("dgx-h100", nodes=4), Strategy(ring=32, shard=32)

    def seconds(gpudirect: bool, rate: float) -> float:
        nics = with_nics(cluster, kind=kind, gpudirect=gpudirect, bytes_per_s=rate)
        return price(nics, WORK, strategy).step_s

    rates = (12.5e9, 25e9, 50e9, 100e9)
    staged = [seconds(False, rate) for rate in rates]
    assert staged == sorted(staged, reverse=True) and staged[0] > staged[-1]
    if kind != "ethernet":
        direct = [seconds(True, rate) for rate in rates]
        assert direct == sorted(direct, reverse=True) and direct[0] > direct[-1]
        assert all(slow > fast for slow, fast in zip(staged, direct, strict=True))


def test_tcp_is_slower_than_infiniband() -> None:
    cluster, strategy = Cluster.load("dgx-h100", nodes=4), Strategy(ring=32, shard=32)
    tcp = with_nics(cluster, kind="ethernet", gpudirect=False)
    assert price(tcp, WORK, strategy).step_s > price(cluster, WORK, strategy).step_s


@pytest.mark.parametrize("changes", [{"kind": "efa"}, {"kind": "tcpx"}, {"kind": "ethernet", "gpudirect": False}])
def test_price_bound_and_simulation_read_one_rate(changes: dict[str, Any]) -> None:
    cluster = with_nics(Cluster.load("dgx-h100", nodes=4), **changes)
    cluster = replace(cluster, fabric=replace(cluster.fabric, nodes_per_leaf=2, oversubscription=4.0))
    rate = cluster.runs[0].node.nics.reached_bytes_per_s
    rates = reached(Wiring(cluster))
    assert Reach(costs=costs_of(cluster)).nic_bytes_per_s == rates.of_run[0, NIC_OUT] == rate
    assert rates.of_leaf.tolist() == pytest.approx([2 * 8 * rate / 4.0] * 2)


def test_a_measured_pair_of_nodes_replaces_the_kind() -> None:
    cluster = Cluster.load("dgx-h100", nodes=2)
    samples = tuple(
        Sample(op="send_recv", path="network", ranks=2, bytes=size, median_s=5e-6 + size / 20e9)
        for size in (2**10, 2**30)
    )
    rates = {Reach(costs=costs_of(with_nics(cluster, kind=kind), samples)).nic_bytes_per_s for kind in ("efa", "roce")}
    assert len(rates) == 1 and rates.pop() == pytest.approx(20e9, rel=0.01)
