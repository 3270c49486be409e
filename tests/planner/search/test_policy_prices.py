"""Columns agree with the price of the same strategy, and their relaxation and mixes with enumeration."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, Model, Placement, Workload, price
from cost_models.hardware.device import Device
from cost_models.models.model import LayerKind
from cost_models.room import DEFAULT_ROOM
from cost_models.timing.cluster_costs import costs_of
from cost_models.timing.paths import Path
from planner.search.branch import Tree
from planner.search.columns import PricedLayouts, Pricer, crossing_load
from planner.search.policy_prices import PolicyPrices
from planner.search.space import Space
from tests.planner.clusters import cluster as clusters
from tests.planner.clusters import node
from tests.planner.search.test_integer_program import no_host

WORK = Workload(Model.load("longvila-1.5b"), context_tokens=2**17, global_batch=4, frames=256)


def tree_of(cluster: Cluster, work: Workload = WORK, **pins: int | str) -> Tree:
    return Tree(Space(cluster=cluster, workload=work, pins=pins), "time", costs_of(cluster))


def priced(work: Workload = WORK, **pins: int | str) -> PricedLayouts:
    """The layouts of a few pinned degrees on all their placements."""
    tree = tree_of(Cluster.load("dgx-h100", nodes=2), work, **pins)
    found = tree.start()
    legal = np.argwhere(np.isfinite(found.bound) & found.single[:, None])
    return Pricer(tree.space, tree.costs).price([tree.strategy(found, row, sharding) for row, sharding in legal])


@pytest.mark.parametrize("mode", ["train", "prefill", "decode"])
@pytest.mark.parametrize(
    "pins",
    [
        {"ring": 4, "ulysses": 4},
        {"ring": 3, "ulysses": 2, "data": 2},
        {"ring": 1, "ulysses": 12},
        {"ring": 2, "ulysses": 2, "pipeline": 2},  # the first stage holds most microbatches
        {"ring": 1, "ulysses": 4, "pipeline": 2, "schedule": "gpipe"},  # both hold all; the last has the loss
    ],
)
def test_columns_are_the_price(mode: str, pins: dict[str, int | str]) -> None:
    work = replace(WORK, mode=mode)
    found = priced(work=work, **pins)
    assert len(found.strategies) > 1 or mode == "decode"  # which has no sharding to choose
    cluster = Cluster.load("dgx-h100", nodes=2)
    layers = work.model.layers
    for index in range(len(found.strategies)):
        for policy in range(len(found.prices.policies)):
            counts = np.zeros(len(found.prices.policies), dtype=np.int64)
            counts[policy] += layers - 3
            counts[0] += 3
            cost = price(cluster, work, found.strategy(index, counts), found.placements[index])
            one = found.prices.take(np.array([index]))
            assert one.seconds_of(counts[None])[0] == pytest.approx(cost.step_s, rel=1e-12)
            assert one.bytes_of(counts[None])[0] == pytest.approx(cost.memory_bytes, abs=6)
            assert found.capacity_bytes[index] == DEFAULT_ROOM.limit_bytes(cost.capacity_bytes)


@pytest.mark.parametrize("mode", ["train", "prefill", "decode"])
def test_columns_of_unlike_layers_are_the_price(mode: str) -> None:
    kinds = ("window", "window", "attention", "window")
    model = replace(WORK.model, layers=4, layer_kinds=kinds, window=4096)
    work, cluster = replace(WORK, model=model, mode=mode), Cluster.load("dgx-h100", nodes=2)
    found = priced(work=work, ring=2, ulysses=4)
    assert len(found.strategies) > 1
    for index, counts in itertools.product(range(0, len(found.strategies), 4), found.prices.uniform):
        cost = price(cluster, work, found.strategy(index, counts), found.placements[index])
        one = found.prices.take(np.array([index]))
        assert one.seconds_of(counts[None])[0] == pytest.approx(cost.step_s, rel=1e-12)
        assert one.bytes_of(counts[None])[0] == pytest.approx(cost.memory_bytes, abs=6)


def test_bounds_hold_for_every_placement_priced() -> None:
    cluster = Cluster.load("dgx-h100", nodes=2)
    tree = tree_of(cluster, ring=4, data=1)
    branches = tree.start()
    lowest = {
        (int(tree.ulysses[f]), int(s), int(z)): b
        for f, ss, zs, bs in zip(branches.family, branches.shard, branches.zero, branches.bound, strict=True)
        for s, z, b in zip(ss, zs, bs, strict=True)
        if tree.microbatches[f] == 1 and np.isfinite(b)
    }
    found = priced(ring=4, data=1, microbatches=1)
    seconds = found.prices.relaxed_s(found.capacity_bytes)
    for one, value in zip(found.strategies, seconds, strict=True):
        assert lowest[one.ulysses, one.shard, one.zero] <= value * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_for_shuffled_placements(seed: int) -> None:
    """No order of ranks over the GPUs beats the bound."""
    cluster = Cluster.load("dgx-h100", nodes=3)
    rng = np.random.default_rng(seed)
    tree = tree_of(cluster)
    branches = tree.start()
    usable = np.argwhere(np.isfinite(branches.bound) & branches.single[:, None])
    for row, column in usable[rng.choice(len(usable), 25)]:
        strategy = tree.strategy(branches, row, column)
        chosen = rng.permutation(cluster.gpus)[: strategy.ranks]
        placement = Placement(slot_of_rank=chosen // 8, gpu_of_rank=chosen % 8)
        assert branches.bound[row, column] <= price(cluster, WORK, strategy, placement).step_s * (1 + 1e-12)


def test_a_range_of_rings_is_bounded_by_each_of_them() -> None:
    tree = tree_of(Cluster.load("dgx-h100", nodes=8))
    for family in range(0, len(tree.families), 7):
        most = tree.families[family].most_ring
        if most < 5:
            continue
        whole = tree.branches([(family, 3, most)])
        each = tree.branches([(family, ring, ring) for ring in range(3, most + 1)])
        assert whole.bound.min() <= each.bound.min() * (1 + 1e-12)
        assert whole.least_bytes.min() <= each.least_bytes.min()


ALIKE: tuple[LayerKind, ...] = ("attention",) * 6
UNLIKE: tuple[LayerKind, ...] = ("window", "window", "attention", "window")


def made(seed: int, kinds: tuple[LayerKind, ...] = ALIKE, stages: int = 1) -> tuple[PolicyPrices, float]:
    rng, count = np.random.default_rng(seed), len(set(kinds))
    kept = np.sort(rng.uniform(1, 10, (stages, count, 4)))[..., ::-1]
    columns = PolicyPrices(
        policies=("none", "mlp", "all_but_attention", "full"),
        layer_kinds=kinds,
        other_s=rng.uniform(1, 2, 1),
        layer_s=np.sort(rng.uniform(1, 2, (1, count, 4))).reshape(1, -1),
        base_bytes=rng.uniform(1, 5, (1, stages)),
        kept_bytes=kept.reshape(1, stages, -1),
        again_bytes=(kept[..., :1] - kept).reshape(1, stages, -1),
        **no_host(1, kept.reshape(1, stages, -1).shape[-1]),
    )
    return columns, float((columns.base_bytes[0] + len(kinds) * kept.mean(axis=(-1, -2))).max())


def enumerated(columns: PolicyPrices, capacity: float) -> float:
    best = np.inf
    kinds = list(columns.layers_of.values())
    for counts in itertools.product(*(range(many + 1) for many in kinds for _ in range(4))):
        layers = np.array([counts])
        each = layers.reshape(-1, 4).sum(axis=1).tolist()
        if each == kinds and columns.bytes_of(layers)[0] <= capacity:
            best = min(best, float(columns.seconds_of(layers)[0]))
    return best


@pytest.mark.parametrize("kinds", [ALIKE, UNLIKE], ids=["alike", "unlike"])
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_relaxation_below_and_mix_above_the_best_integers(seed: int, stages: int, kinds: tuple[LayerKind, ...]) -> None:
    columns, capacity = made(seed, kinds, stages)
    best = enumerated(columns, capacity)
    value, layers = columns.mixed(np.array([capacity]))
    assert columns.relaxed_s(np.array([capacity]))[0] <= best * (1 + 1e-12)
    assert value[0] >= best * (1 - 1e-12)
    if np.isfinite(value[0]):
        assert [part.recompute for part in columns.ranges(layers[0])]
        assert sum(part.count for part in columns.ranges(layers[0])) == len(kinds) == layers.sum()
        assert columns.bytes_of(layers)[0] <= capacity
        assert columns.seconds_of(layers)[0] == pytest.approx(value[0])


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_on_lopsided_clusters(seed: int) -> None:
    """Other GPU models, missing NICs, partly used nodes, leaves of two nodes: still no placement beats the bound."""
    rng = np.random.default_rng(seed)
    nodes = []
    for _ in range(4):
        one = replace(node(int(rng.integers(3, 9)), 8), missing_nics=tuple(range(int(rng.integers(0, 3)))))
        nodes.append(replace(one, device=Device.load("a100-sxm-80gb")) if rng.random() < 0.4 else one)
    here = clusters(*nodes, leaf=2, oversubscription=2.0)
    tree = tree_of(here)
    found = tree.start()
    free = np.array([(slot, gpu) for slot in range(here.slots) for gpu in range(here.node(slot).gpus)])
    usable = np.argwhere(np.isfinite(found.bound) & found.single[:, None])
    for row, column in usable[rng.choice(len(usable), 40)]:
        strategy = tree.strategy(found, row, column)
        in_order, shuffled = free[: strategy.ranks], free[rng.permutation(here.gpus)[: strategy.ranks]]
        for chosen in (in_order, shuffled):
            placement = Placement(slot_of_rank=chosen[:, 0], gpu_of_rank=chosen[:, 1])
            assert found.bound[row, column] <= price(here, WORK, strategy, placement).step_s * (1 + 1e-12)


@pytest.mark.parametrize("pattern", ["all_to_all", "send", "gather"])
def test_the_tie_break_counts_every_pattern_of_traffic(pattern: str) -> None:
    """The heaviest pattern of each axis counts, whichever it is, and axes add up; unread ones (nan) are 0."""
    light = {f"{name}_s_per_byte": np.array([1.0, np.nan]) for name in ("all_to_all", "send", "gather")}
    heavy = {**light, f"{pattern}_s_per_byte": np.array([5.0, 7.0])}
    axes = {"ring": Path(ranks=2, local=1, **heavy), "shard": Path(ranks=2, local=1, **light)}
    assert crossing_load(axes).tolist() == [6.0, 7.0]
