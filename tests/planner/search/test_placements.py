"""Placements: complete on small clusters, sensible families on large ones."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, Model, Placement, Strategy, Workload
from cost_models.hardware.cluster import NodeRun
from cost_models.hardware.node import Node
from cost_models.timing.cluster_costs import costs_of
from planner.search.placements import Placements, Placer, _ends
from planner.solve import solve
from tests.planner.clusters import cluster, node


def checked(here: Cluster, strategy: Strategy) -> Placements:
    """The placements of a layout, each legal."""
    found = Placer(costs_of(here)).placements(strategy)
    for slots, gpus in zip(found.slots, found.gpus, strict=True):
        Placement(slot_of_rank=slots, gpu_of_rank=gpus).check(here, strategy.ranks)
    return found


def test_small_clusters_are_listed_completely() -> None:
    """Three ranks on nodes of 2 and 1 with one NIC each: which rank is alone."""
    found = checked(cluster(node(2, 1), node(1, 1)), Strategy(ring=3))
    assert found.complete
    assert sorted(map(tuple, found.slots.tolist())) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_equal_nodes_are_exchanged_freely() -> None:
    """Four ranks in two equal nodes: 4! / (2! 2!) splits, half of them mirrored."""
    one = cluster(node(2, 1))
    two = replace(one, runs=(replace(one.runs[0], count=2),))
    assert len(checked(two, Strategy(ring=4)).slots) == math.comb(4, 2) // 2


@pytest.mark.parametrize("sizes", [(5, 3), (4, 2, 2), (8, 5, 8)])
def test_whole_blocks_stay_in_a_node(sizes: tuple[int, ...]) -> None:
    """Some placement keeps every ulysses group in one node, with unequal numbers of them."""
    here = cluster(*(node(gpus, 8) for gpus in sizes))
    blocks = sum(gpus // 2 for gpus in sizes)
    found = checked(here, Strategy(ring=blocks, ulysses=2, shard=2 * blocks))
    groups = found.slots.reshape(-1, blocks, 2)
    assert np.any(np.all(groups[:, :, 0] == groups[:, :, 1], axis=1))


def test_ring_inside_and_ulysses_across_is_tried() -> None:
    found = checked(Cluster.load("dgx-h100", nodes=4), Strategy(ring=8, ulysses=4, shard=32))
    rings = found.slots.reshape(-1, 8, 4)
    assert np.any(np.all(rings == rings[:, :1, :], axis=(1, 2)))


def test_neighbours_use_different_nics() -> None:
    """Eight GPUs on four NICs: any four in a row use all of them."""
    here = cluster(node(8, 4), node(8, 4))
    found = checked(here, Strategy(ring=4, ulysses=4, shard=16))
    nic = here.node(0).nic_of_gpu(8)
    natural = [i for i in range(len(found.slots)) if np.all(np.diff(found.slots[i]) >= 0)]
    assert len(set(nic[found.gpus[natural[0]][4:8]].tolist())) == 4


def test_a_class_of_slow_nodes_can_be_left_out() -> None:
    here = cluster(node(8, 8), replace(node(8, 8), missing_nics=(0, 1, 2, 3)), node(8, 8))
    found = checked(here, Strategy(ring=16, shard=16))
    assert any(1 not in slots for slots in found.slots)


def test_no_room_gives_none() -> None:
    assert len(Placer(costs_of(Cluster.load("dgx-h100", nodes=2))).placements(Strategy(ring=17, shard=17)).slots) == 0


@pytest.mark.parametrize("seed", range(6))
def test_tours_do_not_depend_on_how_slots_are_numbered(seed: int) -> None:
    """Slots of a leaf in another order, and leaves of as many nodes in another order: the same tours of the nodes."""
    rng = np.random.default_rng(seed)
    nodes = [
        replace(node(int(rng.choice([2, 4])), 4), **({"missing_nics": (1,)} if rng.random() < 0.4 else {}))
        for _ in range(8)
    ]
    leaves = [rng.permutation(4), 4 + rng.permutation(4)]
    order = np.concatenate(leaves[:: int(rng.choice([1, -1]))])

    def tours(of: list[Node]) -> set[tuple[tuple[int, int], ...]]:
        costs = costs_of(cluster(*of, leaf=4))
        kinds = [(one.gpus, len(one.missing_nics)) for one in of]
        return {tuple(kinds[slot] for slot in tour.tolist()) for tour in Placer(costs).tiers}

    assert tours([nodes[i] for i in order]) == tours(nodes)


@pytest.mark.parametrize("changed", [{"gpus": 0}, {"gpus": 1}, {"missing_nics": tuple(range(8))}])
def test_nodes_without_gpus_or_cards_have_an_order_of_gpus(changed: dict[str, object]) -> None:
    whole = Cluster.load("dgx-h100", nodes=1).node(0)
    for shares in ((), (0.5, *[1.0] * 7)):
        one = replace(whole, nic_shares=shares, **changed)  # type: ignore[arg-type]
        assert sorted(_ends(one).tolist()) == list(range(one.gpus))


def _with_cards(sizes: tuple[int, ...], shares: tuple[float, ...]) -> Cluster:
    """Nodes of so many GPUs, each with its own card; what cards have of their rate, node by node."""
    base, runs, left = Cluster.load("dgx-h100", nodes=1), [], list(shares)
    for gpus in sizes:
        nics = replace(base.node(0).nics, count=gpus)
        mine, left = tuple(left[:gpus]), left[gpus:]
        runs.append(NodeRun(count=1, node=replace(base.node(0), gpus=gpus, nics=nics, nic_shares=mine)))
    return replace(base, runs=tuple(runs))


S = 0.1
OF_CARDS = [
    ((5, 3), (S, 1, 1, 1, 1, S, 1, 1)),
    ((5, 3), (1, 1, S, 1, S, S, S, 1)),
    ((5, 3), (1, S, S, 1, 1, S, 1, S)),
    ((3, 3, 2), (S, 1, S, S, S, 1, 1, S)),
]


@pytest.mark.parametrize(("sizes", "shares"), OF_CARDS)
def test_families_find_rings_past_slow_cards_that_the_complete_list_has(
    sizes: tuple[int, ...], shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rings and ulysses groups may take unlike numbers of a node's GPUs."""
    model = Model(name="tiny", layers=2, hidden=1024, ffn=2048, heads=6, kv_heads=6, head_dim=64, vocab=512)
    here, work = _with_cards(sizes, shares), Workload(model, context_tokens=2**16, global_batch=2)
    every = solve(here, work, fixed={"ulysses": 2}).best[0].cost.step_s
    monkeypatch.setattr("planner.search.placements.COMPLETE_RANKS", 1)
    assert solve(here, work, fixed={"ulysses": 2}).best[0].cost.step_s <= every * (1 + 1e-9)


def test_ranks_of_large_layouts_are_matched_to_unlike_cards() -> None:
    shares = (S, 1, 1, 1, S, 1, 1, 1)
    here = Cluster.load("dgx-h100", nodes=9)
    here = here.override({slot: replace(here.node(0), nic_shares=shares) for slot in range(0, 9, 2)})
    placer, strategy = Placer(costs_of(here)), Strategy(ring=36, ulysses=2)
    listed = placer.placements(strategy)
    half = len(listed.gpus) // 2
    matched = placer.cards.matched(strategy, listed.slots[:half], listed.gpus[:half])
    assert np.array_equal(listed.gpus[half:], matched) and not np.array_equal(listed.gpus[:half], matched)
