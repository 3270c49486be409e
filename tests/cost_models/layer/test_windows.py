"""Layers that see a window of keys: pairs counted by hand, FLOP, and prices between none and all keys."""

from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload, price
from cost_models.flops import executed_flops, model_flops
from cost_models.layer.decoder import operators
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import at_stage
from cost_models.layer.weights import layer_params
from cost_models.strategy import LayerRange
from cost_models.token_layout import Layout

FULL = Model.load("llama-3-8b")
LOCAL = replace(FULL, layer_kinds=("window",) * 32, window=4096)
MIXED = replace(FULL, layer_kinds=("window", "attention") * 16, window=4096)
RECOMPUTED = (LayerRange(recompute="full", count=32),)
NODE = Cluster.load("dgx-h100", nodes=1)


@pytest.mark.parametrize("window", [1, 3, 7, 12, 13, 50])
@pytest.mark.parametrize("lengths", [(), ((12, 1),), ((5, 1), (7, 1))])
def test_pairs_are_those_of_a_walk(window, lengths):
    work = Workload(FULL, context_tokens=12, lengths=lengths)
    documents = [tokens for tokens, count in lengths or ((12, 1),) for _ in range(count)]
    walked = sum(min(place + 1, window) for tokens in documents for place in range(tokens))
    assert work.causal_pairs(window) == walked


def test_flop_are_those_of_each_layers_pairs():
    length = 2**18
    full, local, mixed = (Workload(one, context_tokens=length) for one in (FULL, LOCAL, MIXED))
    left = 32 * 3 * 4 * 32 * 128 * (length * (length + 1) / 2 - (length * 4096 - 4096 * 4095 / 2))
    assert model_flops(full) - model_flops(local) == pytest.approx(left, rel=1e-12)
    assert model_flops(full) - model_flops(mixed) == pytest.approx(left / 2, rel=1e-12)
    plan = Strategy(ulysses=8, shard=8, layers=RECOMPUTED)
    assert executed_flops(full, plan) - executed_flops(local, plan) == pytest.approx(left * 1.5, rel=1e-12)


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(ulysses=8, shard=8),
        Strategy(ring=8, shard=8),
        Strategy(ring=4, ulysses=2, shard=8, layers=RECOMPUTED),
        Strategy(ring=8, shard=8, ring_kind="all_gather"),
    ],
)
def test_attention_costs_its_share_of_the_pairs(strategy):
    length, least = 2**18, replace(LOCAL, window=1)

    def compute_s(model):
        return price(NODE, Workload(model, context_tokens=length), strategy).seconds["compute"]

    full, local, mixed, none = (compute_s(one) for one in (FULL, LOCAL, MIXED, least))
    assert local - none == pytest.approx((full - none) * 4095 * 2 / length, rel=0.25)
    assert mixed == pytest.approx((full + local) / 2, rel=1e-9)


def test_every_rank_of_a_contiguous_ring_has_the_same_window():
    work = Workload(LOCAL, context_tokens=2**18)
    costs = [price(NODE, work, Strategy(ring=8, shard=8, ring_kind=kind)) for kind in ("zigzag", "contiguous")]
    assert any("windows of 4096 keys" in line for line in costs[0].estimates)
    assert costs[0].seconds["compute"] == pytest.approx(costs[1].seconds["compute"], rel=1e-12)


def test_only_the_halo_of_a_window_travels():
    """What the price sends is what the executor's layout sends: of a block of 32K tokens two halos of 4,095 each, where
    a row without a window sends 7 blocks."""
    degrees = Strategy(ring=8, shard=8)
    costs = [price(NODE, Workload(one, context_tokens=2**18), degrees) for one in (FULL, LOCAL)]
    sent = [cost.sent_bytes["ring send"] for cost in costs]
    layout = Layout(tokens=2**18, ring=8, window=4096)
    given = [sum(layout.halo(to, by).tokens(1) for to in range(8) if to != by) for by in range(8)]
    assert max(given) == 2 * 4095
    assert sent[1] / sent[0] == pytest.approx(max(given) / (7 * 2**15))


def test_a_window_as_long_as_the_row_is_full_attention():
    wide = replace(FULL, layer_kinds=("window",) * 32, window=2**15)
    costs = [price(NODE, Workload(one, context_tokens=2**15), Strategy(ulysses=8, shard=8)) for one in (FULL, wide)]
    assert costs[0].step_s == pytest.approx(costs[1].step_s, rel=1e-12)
    assert costs[0].memory == costs[1].memory


def test_a_new_token_reads_what_its_window_holds():
    def cache_s(model):
        work = Workload(model, context_tokens=2**18, mode="decode", global_batch=8)
        return price(NODE, work, Strategy(data=8)).seconds["compute"]

    full, local, mixed, short = (cache_s(one) for one in (FULL, LOCAL, MIXED, replace(LOCAL, window=1)))
    assert local - short < (full - short) / 32
    assert mixed == pytest.approx((full + local) / 2, rel=1e-9)


def test_four_norms_keep_and_read_twice_as_much_as_two():
    work = (Workload(replace(FULL, norms=norms), context_tokens=2**15) for norms in (2, 4))
    two, four = (RankSizes(one, Strategy(ulysses=8)) for one in work)
    again = [row for row in operators(four) if row.name in ("norm", "mlp norm")]
    assert sum(row.kept for row in again) == 2 * sum(row.kept for row in operators(two) if "norm" in row.name)
    assert layer_params(four) == layer_params(two) + 2 * FULL.hidden


def test_kinds_and_window_agree():
    with pytest.raises(InputError, match="layer_kinds and window disagree"):
        replace(FULL, window=4096)
    with pytest.raises(InputError, match="layer_kinds and window disagree"):
        replace(FULL, layer_kinds=("window",) * 32)


def test_heads_that_are_normed_are_read_and_written_once_more():
    """Qwen3: norms of queries and keys, 28 + 4 b bytes a value in eager layers, kept as other norms are."""
    normed = replace(FULL, qk_norm=True)
    plain, both = (RankSizes(Workload(one, context_tokens=8192), Strategy()) for one in (FULL, normed))
    values = 8192 * (32 + 8) * 128
    moved = (sum(one.passes[0].moved for one in operators(sizes)) for sizes in (plain, both))
    assert -next(moved) + next(moved) == values * (28 + 4 * 2)
    kept = (sum(one.kept for one in operators(sizes)) for sizes in (plain, both))
    assert -next(kept) + next(kept) == values * 8 + 2 * 8192 * 4


def test_a_layer_kind_is_sized_once_and_counted_once_a_stage():
    """Sizes made anew for each run of a kind made plans of interleaved models take eight times as long."""
    sizes = RankSizes(Workload(MIXED, context_tokens=2**14), Strategy())
    assert sizes.of("window") is sizes.of("window")
    assert at_stage(sizes, (LayerRange(count=32),), 0).stage.layers == (("window", 16), ("attention", 16))
