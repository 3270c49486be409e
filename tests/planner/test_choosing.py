"""Regret: scenarios are prices of a changed world, and the choice is the minimax over them, then memory, then bytes."""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, Model, Placement, Workload, price
from cost_models.cost import Memory
from cost_models.curves.samples import SCANS, Sample
from cost_models.profile import VERSION, Profile
from cost_models.strategy import LayerRange, Strategy
from cost_models.timing.cluster_costs import cluster_costs
from planner.choosing import ALIKE, ROOM, Ties, between_nodes, ties
from planner.search.uncertainty import NETWORK, STRAGGLER, Scenario, scenarios, seconds_in
from planner.solve import Choice, solve

WORK = Workload(Model.load("longvila-8b"), context_tokens=2**18, global_batch=4)
NODES = Cluster.load("dgx-h100", nodes=4)


def layouts(cluster: Cluster) -> list[tuple[Strategy, Placement]]:
    """Degrees, shardings, recompute mixes and placements that differ."""
    mixed = (LayerRange(recompute="full", count=20), LayerRange(recompute="none", count=12))
    several = [
        Strategy(ring=4, ulysses=8, shard=32, zero=3, microbatches=4),
        Strategy(data=4, ulysses=8, shard=8, zero=2, layers=mixed),
        Strategy(data=2, ring=8, ulysses=2, shard=32, zero=3, microbatches=2),
        Strategy(data=2, ring=2, ulysses=4, shard=16, zero=3, microbatches=2),
    ]
    found = [(one, Placement.in_order(cluster, one.ranks)) for one in several]
    turned = np.arange(32).reshape(8, 4).T.ravel()
    return [*found, (several[0], Placement(slot_of_rank=turned // 8, gpu_of_rank=turned % 8))]


@pytest.mark.parametrize("preset", ["dgx-h100", "l40s-pcie", "a100-pcie-pairs"])
def test_as_modelled_is_the_price(preset: str) -> None:
    here = Cluster.load(preset, nodes=4)
    several = layouts(here)
    found = seconds_in(WORK, cluster_costs(here), several, [Scenario(words="as modelled")])
    expected = [price(here, WORK, strategy, placement).step_s for strategy, placement in several]
    assert found[:, 0] == pytest.approx(expected, rel=1e-12)


def test_as_modelled_is_the_price_by_a_profile_of_scans() -> None:
    """Also in scenarios a scan takes what the profile says, slower with what limits it."""
    work = Workload(Model.load("longvila-8b-ssd"), context_tokens=2**16)
    scans = [
        Sample(op=op, shape=(tokens, 32, 128, 128, 4, 128), median_s=1e-5 * tokens * (1 + grad))
        for grad, op in enumerate(SCANS)
        for tokens in (2**10, 2**14)
    ]
    profile = Profile(version=VERSION, device="h100-sxm-80gb", machine="", samples=tuple(scans))
    one = Strategy(ring=2, ulysses=8, shard=16, zero=3, ssd="states", ssd_pass="gather")
    placement, here = Placement.in_order(NODES, 16), cluster_costs(NODES, profile)
    memory = (1.0, 1.0, 1.25)
    several = [Scenario(words="as modelled"), Scenario(words="memory 25% slower", kernels=memory)]
    (found,) = seconds_in(work, here, [(one, placement)], several)
    expected = price(NODES, work, one, placement, profile).step_s
    assert found[0] == pytest.approx(expected, rel=1e-12)
    assert expected > 1.1 * price(NODES, work, one, placement).step_s
    assert found[0] < found[1] < 1.25 * found[0]


def test_another_network_is_the_price_on_that_network() -> None:
    """Faster by 30%, and from there as much slower again. Without gathers: faster cards also take more of a GPU, and
    cards of a slower kind would reach another share."""
    node, rate, work = NODES.node(0), 1 + NETWORK, replace(WORK, mode="prefill")
    cards = replace(node.nics, bytes_per_s=node.nics.bytes_per_s * rate)
    faster = replace(NODES, runs=(replace(NODES.runs[0], node=replace(node, nics=cards)),))
    asked = [(replace(one, shard=1, zero=0, microbatches=1, layers=()), place) for one, place in layouts(NODES)]
    for here, there, factor in ((NODES, faster, 1 / rate), (faster, NODES, rate)):
        found = seconds_in(work, cluster_costs(here), asked, [Scenario(words="", network=factor)])
        expected = [price(there, work, *one).step_s for one in asked]
        assert found[:, 0] == pytest.approx(expected, rel=1e-9)
        assert found[-1, 0] != price(here, work, *asked[-1]).step_s


def test_every_cause_is_felt() -> None:
    costs = cluster_costs(NODES)
    several = scenarios("measured", costs.links((0,)))
    found = seconds_in(WORK, costs, layouts(NODES), several)
    slower = [i for i, one in enumerate(several) if "slower" in one.words]
    faster = [i for i, one in enumerate(several) if "faster" in one.words]
    assert len(slower) == len(faster) == 5
    assert (found[0, slower] > found[0, 0]).all() and (found[0, faster] < found[0, 0]).all()
    assert several[-1].node == 1 / (1 - STRAGGLER)
    assert (found[:, -1] > found[:, 0]).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_minimax_regret_by_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = solve(Cluster.load("dgx-h100", nodes=1), replace(WORK, context_tokens=2**13, text_tokens=None), near=True)
    pool = some.near[:5]
    changed = [
        Choice(strategy=one.strategy, placement=one.placement, cost=replace(
            one.cost, memory=Memory(parameters=int(rng.integers(1, 60)) * 2**29))) for one in pool]  # fmt: skip
    values = 1 + rng.random((len(pool), 6)) * 0.03
    sent = tuple(rng.integers(0, 3, len(pool)).astype(float).tolist())
    names = tuple(Scenario(words=str(i)) for i in range(6))
    found = Ties(tied=tuple(changed), scenarios=names, values=values, between_bytes=sent).pick()
    regret = [max(values[i, s] / min(values[:, s]) - 1 for s in range(6)) for i in range(len(pool))]
    held = [one.cost.memory_bytes for one in changed]
    left = [i for i in range(len(pool)) if regret[i] <= min(regret) + ALIKE]
    left = [i for i in left if held[i] <= min(held[j] for j in left) + ROOM]
    left = [i for i in left if sent[i] == min(sent[j] for j in left)]
    assert found == left[0]


def test_what_is_tied_fits_and_is_near() -> None:
    here, work = Cluster.load("dgx-h100", nodes=2), replace(WORK, global_batch=1)
    solution = solve(here, work, near=True)
    open_ = ties(cluster_costs(here), solution)
    assert len(open_.tied) > 1 and open_.tied[0] is solution.best[0]
    assert all(one.cost.fits for one in open_.tied)
    assert open_.values[:, 0] == pytest.approx([one.cost.step_s for one in open_.tied], rel=1e-9)
    assert (open_.regrets >= 0).all() and (open_.regrets.min(axis=0) == 0).all()


def test_bytes_between_nodes() -> None:
    """Of ulysses in a node and a ring of 4 nodes every hop leaves; of ulysses over two nodes half of the exchange."""
    costs = cluster_costs(NODES)

    def sent(strategy: Strategy) -> tuple[float, dict[str, float]]:
        placement = Placement.in_order(NODES, strategy.ranks)
        cost = price(NODES, WORK, strategy, placement)
        choice = Choice(strategy=strategy, placement=placement, cost=cost)
        return between_nodes(costs, choice), dict(cost.sent_bytes)

    inside, parts = sent(Strategy(ring=4, ulysses=8, shard=1, zero=0))
    assert inside == pytest.approx(parts["ring send"] + parts["replicate all_reduce"] / 8)
    across, parts = sent(Strategy(ring=2, ulysses=16, shard=1, zero=0))
    expected = parts["ring send"] + parts["ulysses all_to_all"] * 8 / 15 + parts["replicate all_reduce"] / 8
    assert across == pytest.approx(expected)
