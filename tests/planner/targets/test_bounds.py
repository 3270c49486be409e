"""No placement is priced below its bound where tensor and pipeline degrees are above 1, and columns are the price."""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, Model, Placement, Workload, price
from cost_models.hardware.device import Device
from cost_models.room import DEFAULT_ROOM
from cost_models.timing.cluster_costs import cluster_costs
from planner.search.branch import Tree
from planner.search.columns import Pricer
from planner.search.space import Space, spaces
from planner.targets.target import Target
from tests.planner.clusters import cluster as clusters
from tests.planner.clusters import node

MEGATRON = Target.load("megatron")
WORK = Workload(
    replace(Model.load("longvila-1.5b"), layers=4, layer_kinds=("attention",) * 4), context_tokens=2**15, global_batch=4
)


def space_of(here: Cluster, **pins: object) -> Space:
    return Space(cluster=here, workload=MEGATRON.asked(WORK), pins=pins, target=MEGATRON, among=("none", "full"))


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (4, 2), (2, 4)])
def test_bounds_hold_on_lopsided_clusters(tensor: int, pipeline: int) -> None:
    rng = np.random.default_rng(10 * tensor + pipeline)
    nodes = []
    for _ in range(4):
        one = replace(node(int(rng.integers(3, 9)), 8), missing_nics=tuple(range(int(rng.integers(0, 3)))))
        nodes.append(replace(one, device=Device.load("a100-sxm-80gb")) if rng.random() < 0.4 else one)
    here = clusters(*nodes, leaf=2, oversubscription=2.0)
    space = space_of(here, tensor=tensor, pipeline=pipeline)
    tree = Tree(space, "time", cluster_costs(here))
    found = tree.start()
    free = np.array([(slot, gpu) for slot in range(here.slots) for gpu in range(here.node(slot).gpus)])
    usable = np.argwhere(np.isfinite(found.bound) & found.single[:, None])
    for row, column in usable[rng.choice(len(usable), 12)]:
        strategy = tree.strategy(found, row, column)
        for chosen in (free[: strategy.ranks], free[rng.permutation(here.gpus)[: strategy.ranks]]):
            placement = Placement(slot_of_rank=chosen[:, 0], gpu_of_rank=chosen[:, 1])
            cost = price(here, space.workload, strategy, placement, framework=MEGATRON.code)
            assert found.bound[row, column] <= cost.step_s * (1 + 1e-12), strategy.describe()


def test_columns_are_the_price_of_the_targets_code() -> None:
    here = Cluster.load("dgx-h100", nodes=2)
    space = space_of(here, tensor=4, pipeline=2, data=2)
    tree = Tree(space, "time", cluster_costs(here))
    found = tree.start()
    pricer = Pricer(space, cluster_costs(here))
    columns = pricer.price([tree.strategy(found, row, 0) for row in range(2)])
    counts = np.array([2, 2])
    for index in range(0, len(columns.strategies), 2):
        strategy = columns.strategy(index, counts)
        cost = price(here, space.workload, strategy, columns.placements[index], framework=MEGATRON.code)
        one = columns.prices.take(np.array([index]))
        assert one.seconds_of(counts[None])[0] == pytest.approx(cost.step_s, rel=1e-12)
        assert one.bytes_of(counts[None])[0] == pytest.approx(cost.memory_bytes, abs=6)


def test_every_pair_of_tensor_and_pipeline_degrees_is_a_space() -> None:
    here = Cluster.load("dgx-h100", nodes=1)
    found = spaces(here, MEGATRON.asked(WORK), {}, DEFAULT_ROOM, MEGATRON)
    pairs = {(one.base.tensor, one.base.pipeline) for one in found}
    assert pairs == {(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4)}
    assert {one.base.virtual for one in found if one.base.pipeline == 2} == {1, 2}
    assert {one.among for one in found} == {("none", "full"), ("mlp",)}
    assert len(spaces(here, WORK, {}, DEFAULT_ROOM, Target.load("mmsp"))) == 1
