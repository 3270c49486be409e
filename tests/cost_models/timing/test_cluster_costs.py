"""Paths of ranks in order, remembered by stride and size, equal those read off the explicit placement."""

import itertools
from dataclasses import replace

import pytest

from cost_models import Cluster, Model, Placement, Strategy, Workload, price
from cost_models.timing.cluster_costs import ClusterCosts, cluster_costs

DEGREES = [
    {"data": data, "ring": ring, "ulysses": ulysses, "tensor": tensor, "pipeline": pipeline}
    for data, ring, ulysses, tensor, pipeline in itertools.product((1, 2), (1, 3), (1, 4), (1, 2), (1, 2))
]


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
@pytest.mark.parametrize("preset", ["dgx-h100", "gb200-nvl72"])
def test_axes_in_order_equal_the_placement(degrees: dict[str, int], preset: str) -> None:
    cluster = Cluster.load(preset, nodes=24)
    whole = degrees["data"] * degrees["ring"] * degrees["ulysses"]
    for shard in {1, whole, degrees["ulysses"]}:
        strategy = Strategy(**degrees, shard=shard)
        placement = Placement.in_order(cluster, strategy.ranks)
        costs = ClusterCosts(cluster)
        assert str(costs.paths(strategy).axes) == str(costs.paths(strategy, placement).axes)  # nan is nan


def test_price_without_placement_is_that_of_ranks_in_order() -> None:
    cluster = Cluster.load("dgx-h100", nodes=4)
    work = Workload(Model.load("longvila-8b"), context_tokens=262144, global_batch=2)
    strategy = Strategy(data=2, ring=4, ulysses=4, shard=8)
    assert price(cluster, work, strategy) == price(
        cluster, work, strategy, placement=Placement.in_order(cluster, strategy.ranks)
    )


def test_a_changed_cluster_has_costs_of_its_own() -> None:
    cluster = Cluster.load("dgx-h100", nodes=4)
    assert cluster_costs(cluster) is cluster_costs(Cluster.load("dgx-h100", nodes=4))
    node = cluster.runs[0].node
    slower = cluster.override({0: replace(node, nics=replace(node.nics, bytes_per_s=1e9))})
    assert cluster_costs(slower) is not cluster_costs(cluster)
    work, strategy = Workload(Model.load("longvila-8b"), context_tokens=262144), Strategy(ring=4, ulysses=8, shard=32)
    assert price(slower, work, strategy).step_s > price(cluster, work, strategy).step_s
