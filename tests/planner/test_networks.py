"""What a network's kind changes: the price, the simulation that plays the same step, and the plan with its bound."""

from dataclasses import replace
from typing import Any

from cost_models import Cluster, Model, Strategy, Workload, price
from planner import plan, simulate

WORK = Workload(Model.load("longvila-8b"), context_tokens=65536)


def with_nics(cluster: Cluster, **changes: Any) -> Cluster:
    run = cluster.runs[0]
    node = replace(run.node, nics=replace(run.node.nics, **changes))
    return replace(cluster, runs=(replace(run, node=node),))


def test_the_kind_of_a_network_is_in_the_price_and_in_the_simulation() -> None:
    cluster, strategy = Cluster.load("dgx-h100", nodes=4), Strategy(ring=32, shard=32)  # every hop outlasts its block
    kinds: list[dict[str, Any]] = [{}, {"kind": "roce"}, {"kind": "efa"}, {"gpudirect": False}]
    for seconds in (
        [price(with_nics(cluster, **kind), WORK, strategy).step_s for kind in kinds],
        [simulate(with_nics(cluster, **kind), WORK, strategy).step_s for kind in kinds],
    ):
        assert seconds[0] == seconds[1] < seconds[2] < seconds[3]
    told = " ".join(price(with_nics(cluster, kind="efa"), WORK, strategy).estimates)
    assert "85% of the line rate of efa" in told


def test_the_plan_on_a_staged_network_keeps_its_bound() -> None:
    cluster = Cluster.load("dgx-h100", nodes=2)
    best = plan(with_nics(cluster, gpudirect=False), WORK)
    assert best.bound <= best.cost.step_s * (1 + 1e-9)
    assert best.cost.step_s >= plan(cluster, WORK).cost.step_s
