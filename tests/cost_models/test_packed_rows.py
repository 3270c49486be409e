"""Packed documents in a ring: the slowest rank and what travels are priced as the table of tokens says."""

import itertools

import numpy as np
import pytest

from cost_models import Cluster, LayerRange, Model, Strategy, Workload, price
from cost_models.framework import Framework
from cost_models.layer.sizes import RankSizes
from cost_models.token_layout import Layout
from planner.simulator.simulation import simulate
from planner.solve import solve

MODEL = Model.load("longvila-1.5b")
UNLIKE = ((1000, 1), (300000, 1), (70000, 1), (80000, 1), (40000, 1), (5000, 1), (9000, 1), (7000, 1))
NODE = Cluster.load("dgx-h100", gpus=8)


def _row(lengths, **given) -> Workload:
    return Workload(MODEL, context_tokens=sum(tokens * count for tokens, count in lengths), lengths=lengths, **given)


def _ring(kind: str, ring: int = 8, **given) -> Strategy:
    full = (LayerRange(recompute="full", count=MODEL.layers),)
    return Strategy(ring=ring, ulysses=8 // ring, shard=8, ring_kind=kind, layers=full, **given)


@pytest.mark.parametrize("kind", ["zigzag", "contiguous", "balanced"])
@pytest.mark.parametrize("ring", [1, 2, 5])
def test_work_of_a_ring_is_that_of_its_tiles(kind, ring):
    layout = Layout(tokens=400, ring=ring, ulysses=2, kind=kind, documents=(0, 3, 200, 280, 281, 390))
    area = np.zeros((ring, ring))
    for q, kv in itertools.product(range(ring), repeat=2):
        for tile in layout.tiles(q, kv):
            rows, columns = tile.q.stop - tile.q.start, tile.kv.stop - tile.kv.start
            area[q, kv] += rows * (rows + 1) / 2 if tile.causal else rows * columns
    slowest, work = area.sum(axis=1).argmax(), layout.ring_work()
    assert work.own + work.others == area.sum(axis=1).max()
    assert work.own == area[slowest, slowest]
    passing = [0] * ring
    for block, travel in enumerate(layout.travels):
        for hop in range(travel.hops):
            passing[(block + hop) % ring] += travel.tokens(hop + 1)
    assert work.sent * work.hops == pytest.approx(max(passing))


def _sent(travel) -> int:
    return sum(travel.tokens(hop) for hop in range(1, travel.hops + 1))


@pytest.mark.parametrize("kind", ["zigzag", "contiguous", "balanced"])
@pytest.mark.parametrize("seed", range(8))
def test_a_hop_brings_the_documents_that_some_rank_from_there_on_needs_and_no_others(kind, seed):
    random = np.random.default_rng(seed)
    lengths, ring = random.integers(1, 60, int(random.integers(1, 12))), int(random.integers(2, 9))
    starts = (0, *np.cumsum(lengths)[:-1].tolist())
    layout = Layout(tokens=int(lengths.sum()), ring=ring, kind=kind, documents=starts)
    for block, travel in enumerate(layout.travels):
        document = np.searchsorted(layout.edges, layout.index(block, 0), side="right")
        for hop in range(1, ring + 1):
            needed = np.zeros(layout.block_tokens, dtype=bool)
            for far in range(hop, ring):
                for tile in layout.tiles((block + far) % ring, block):
                    needed[document == document[tile.kv.start]] = True
            brought = np.zeros_like(needed)
            for span in travel.legs[hop - 1] if hop <= travel.hops else ():
                brought[slice(*span)] = True
            assert (brought == needed).all()
            assert (
                travel.tokens(hop)
                == needed.sum()
                == sum(stop - start for start, stop in travel.ending(hop)) + (travel.tokens(hop + 1))
            )


def test_long_documents_of_a_balanced_row_lie_on_neighbours():
    """In 16 chunks each over all ranks they would take five times as many kernel calls, and keys would go far."""
    lengths = np.random.default_rng(0).lognormal(6.5, 1.0, 64).astype(int).clip(16, 6000)
    starts = (0, *np.cumsum(lengths)[:-1].tolist())
    layout = Layout(tokens=int(lengths.sum()), ring=8, kind="balanced", documents=starts)
    pairs, calls = np.zeros(8), 0
    for q, kv in itertools.product(range(8), repeat=2):
        for tile in layout.tiles(q, kv):
            rows, columns = tile.q.stop - tile.q.start, tile.kv.stop - tile.kv.start
            pairs[q] += rows * (rows + 1) / 2 if tile.causal else rows * columns
            calls += 1
    assert pairs.max() < 1.05 * pairs.mean()
    assert calls < 2 * len(lengths)
    assert sum(_sent(one) for one in layout.travels) < 0.07 * 7 * layout.tokens


def test_the_slowest_rank_of_unlike_documents_is_priced_and_balance_mends_it():
    """By hand: in zigzag the rank with the early and late chunks of the longest document has 2.53 of the mean."""
    work, seconds = _row(UNLIKE), {}
    for kind in ("zigzag", "balanced"):
        shares = RankSizes(work, _ring(kind)).ring_shares
        slowest = (shares.first + shares.piece * shares.hops) / 8
        assert slowest == pytest.approx({"zigzag": 2.53, "balanced": 1.03}[kind], abs=0.01)
        seconds[kind] = price(NODE, work, _ring(kind)).step_s
    assert 1.5 < seconds["zigzag"] / seconds["balanced"] < 2.53


def test_documents_that_fit_on_a_rank_send_nothing_round():
    cost = price(NODE, _row(((1024, 64),)), _ring("balanced"))
    assert cost.seconds["ring"] == 0 and "ring send" not in cost.sent_bytes


def test_other_frameworks_rings_know_no_documents():
    sizes = RankSizes(_row(UNLIKE), _ring("zigzag"), Framework.load("megatron-te"))
    assert sizes.ring_shares is None


def test_a_row_has_the_listed_documents_or_as_many_in_proportion():
    assert Workload(MODEL, context_tokens=10, lengths=((4, 1), (3, 2))).documents == (0, 4, 7)
    assert Workload(MODEL, context_tokens=12, lengths=((4, 1), (3, 2))).documents == (0, 4, 7, 10)
    assert Workload(MODEL, context_tokens=10, lengths=((4, 100), (3, 200))).documents == (0, 4, 7)
    assert Workload(MODEL, context_tokens=10).documents == ()


@pytest.mark.parametrize(("lengths", "kind"), [(UNLIKE, "zigzag"), (UNLIKE, "balanced"), (((2048, 96),), "balanced")])
def test_the_simulator_plays_what_is_priced(lengths, kind):
    work, layout = _row(lengths), _ring(kind)
    played, priced = simulate(NODE, work, layout), price(NODE, work, layout)
    assert played.step_s == pytest.approx(priced.step_s, rel=6e-3)  # gathers meet the ring and the exchanges
    for part in ("compute", "recompute"):
        assert played.seconds[part] == pytest.approx(priced.seconds[part], rel=1e-6), part
    assert played.seconds.get("ring", 0.0) == pytest.approx(priced.seconds["ring"], rel=0.05)


@pytest.mark.parametrize("lengths", [(*UNLIKE[:2], (2000, 30)), ((512, 100),)])
def test_the_optimum_of_packed_rows_is_that_of_enumeration(lengths):
    work = _row(lengths, global_batch=2)
    found = solve(NODE, work, fixed={"recompute": "full"})
    layouts = [
        Strategy(
            data=data, ring=ring, ulysses=ulysses, shard=shard, zero=zero, microbatches=2 // data, ring_kind="balanced",
            layers=(LayerRange(recompute="full", count=MODEL.layers),),
        )
        for data, ring, ulysses in itertools.product((1, 2), range(1, 9), range(1, 9))
        if data * ring * ulysses <= 8
        for shard, zero in {(data * ring * ulysses, 3), (data * ring * ulysses, 2), (1, 0)}
        if shard > 1 or zero == 0
    ]  # fmt: skip
    costs = [cost for cost in (price(NODE, work, one) for one in layouts) if cost.fits]
    least = min(cost.step_s for cost in costs)
    assert found.bound <= least * (1 + 1e-9)
    assert found.best[0].cost.step_s <= least * (1 + 1e-9)
