"""What experts and latent attention cost: bytes, states and times worked out by hand; arrays equal single prices.

bytes    each expert rank sends its copies out and gets them back, forward and backward: 4 exchanges a layer, each of
         T k h b bytes, (E-1)/E of it over the wire (GShard, arXiv 2006.16668, section 3.2; k experts a token)
states   experts are on data x context x tensor / expert ranks and ZeRO divides over these alone (Megatron Core's
         expert data parallelism)
"""

from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, price
from cost_models.flops import executed_flops, model_flops
from cost_models.framework import OURS
from cost_models.models.experts import Experts
from cost_models.strategy import rank_groups
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.paths import met

V2 = Model.load("deepseek-v2")
FOUR = replace(V2, layers=4, layer_kinds=("attention", "experts", "experts", "experts"))
NODE = Cluster.load("dgx-b200", nodes=1)
MIXTRAL = Model(name="mixtral-8x7b", layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128,
                vocab=32000, experts=Experts(count=8, chosen=2, ffn=14336))  # fmt: skip
ZERO_1 = replace(OURS, zero_1_as_2=False)
"""ZeRO-1 as Megatron has it: gradients reduced once a step."""


def work(model=FOUR, batch=8):
    return Workload(model, context_tokens=4096, global_batch=batch)


def test_presets_are_the_published_models():
    assert (V2.llm_params, Model.load("deepseek-v3").llm_params) == (235_741_434_880, 671_026_404_352)


def test_a_token_goes_once_to_a_node_and_once_to_a_rank():
    """6 of 160 experts on 16 ranks: 16 (1 - (15/16)^6) = 5.14 ranks for 6 copies, and 1.97 of 2 nodes, half away."""
    nodes, layout = Cluster.load("dgx-h100", nodes=2), Strategy(data=16, shard=16, zero=1, expert=16)
    copied, once = (
        price(nodes, work(batch=16), layout, framework=replace(ZERO_1, experts_once=choice)) for choice in (False, True)
    )
    ranks = 16 * (1 - (15 / 16) ** 6) / 6
    sent = copied.sent_bytes["expert all_to_all"]
    assert once.sent_bytes["expert all_to_all"] == pytest.approx(sent * ranks)
    path = cluster_costs(nodes).paths(layout).axes["expert"]
    left = 3 * 4 * 4096 * 6 * 5120 * 2 * path.all_to_all_s_per_byte
    assert once.seconds["experts"] / copied.seconds["experts"] == pytest.approx(2 * (1 - 1 / 2**6) / 6, rel=0.05)
    assert copied.seconds["experts"] == pytest.approx(left, rel=0.05)
    assert copied.seconds["compute"] == once.seconds["compute"]


def test_each_copy_goes_out_and_comes_back_twice():
    cost = price(NODE, work(), Strategy(data=8, shard=8, zero=1, expert=8))
    copies = 4096 * 6
    assert cost.sent_bytes["expert all_to_all"] == pytest.approx(7 / 8 * 3 * 4 * copies * 5120 * 2)
    assert cost.seconds["experts"] > 0
    full = price(NODE, work(), Strategy(data=8, shard=8, zero=1, expert=8,
                                        layers=(LayerRange(recompute="full", count=4),)))  # fmt: skip
    assert full.sent_bytes["expert all_to_all"] == pytest.approx(7 / 8 * 3 * 6 * copies * 5120 * 2)


def test_experts_in_a_row_are_of_few_ranks():
    """6 of 160 experts in a row: over 8 ranks (20 each) one has them, over 160 six do, which lie in one node."""
    few = replace(ZERO_1, experts_once=True, consecutive_experts=True)
    sent = price(NODE, work(), Strategy(data=8, shard=8, zero=1, expert=8), framework=few).sent_bytes
    any_ = price(NODE, work(), Strategy(data=8, shard=8, zero=1, expert=8), framework=ZERO_1).sent_bytes
    assert sent["expert all_to_all"] == pytest.approx(any_["expert all_to_all"] / 6)
    nodes = Cluster.load("dgx-h100", nodes=20)
    paths = cluster_costs(nodes).paths(Strategy(data=160, shard=160, expert=160))
    apart, beside = (paths.dispatch_s("expert", 1e9, 6, ranks) for ranks in (0, 6))
    assert apart / beside == pytest.approx(met(20, 6) * 6, rel=0.05)


def test_states_of_experts_are_divided_over_the_ranks_that_hold_them():
    experts = 160 * 3 * 5120 * 1536
    latent = 5120 * (1536 + 512 + 64) + 128 * (1536 * 192 + 512 * 256 + 128 * 5120) + 1536 + 512 + 2 * 5120
    dense = 4 * latent + 3 * 5120 * 12288 + 3 * (3 * 5120 * 3072 + 5120 * 160) + 2 * 102400 * 5120 + 5120
    cost = price(
        NODE, work(), Strategy(data=8, shard=8, zero=1, expert=8), framework=replace(ZERO_1, drops_gradients_to=None)
    )
    held = 3 * experts / 8
    assert cost.memory["optimizer"] == pytest.approx(8 * (held + dense / 8), abs=8)
    assert cost.memory["gradients"] == pytest.approx(4 * (held + dense), abs=8)
    assert cost.memory["parameters"] == pytest.approx(4 * (held + dense / 8) + 2 * (held + dense), abs=8)
    twice = price(NODE, work(), Strategy(data=8, shard=8, zero=1, expert=4), framework=ZERO_1)
    assert twice.memory["optimizer"] == pytest.approx(8 * (2 * held / 2 + dense / 8), abs=8)
    assert twice.sent_bytes["expert_shard reduce_scatter"] == pytest.approx(1 / 2 * 4 * 2 * held)


def test_pipeline_stages_are_told_apart():
    """Stage 0: dense, experts, embedding; stage 1: two layers of experts and the head, which holds most."""
    layout = Strategy(pipeline=2, data=4, shard=4, zero=1, expert=4, microbatches=8)
    cost = price(NODE, work(batch=32), layout, framework=ZERO_1)
    experts, hidden = 160 * 3 * 5120 * 1536 // 4, 5120
    attention = V2.attention_params + V2.layer_small_params
    dense = 2 * (attention + 3 * hidden * 3072 + hidden * 160) + hidden * 102400 + hidden
    assert cost.memory["gradients"] == pytest.approx(4 * (2 * experts + dense), abs=8)
    one, two = (price(NODE, work(batch=4 * m), replace(layout, microbatches=m), framework=ZERO_1) for m in (1, 2))
    pace = two.step_s - one.step_s
    assert cost.step_s - one.step_s == pytest.approx(7 * pace, rel=0.02)  # replicas are summed once, not per microbatch
    assert one.seconds["pipeline"] < pace  # the other stage has a dense layer where this one has experts


def test_unspread_experts_are_weights_like_others():
    cluster = Cluster.load("dgx-h100", nodes=4)
    cost = price(cluster, work(MIXTRAL, 32), Strategy(data=32, shard=32))
    assert cost.memory["optimizer"] == pytest.approx(8 * MIXTRAL.llm_params / 32, abs=8)
    assert "experts" not in cost.seconds and "expert all_to_all" not in cost.sent_bytes
    assert cost.model_flops == model_flops(work(MIXTRAL, 32))
    weights = 32 * (4096 * (2 * 4096 + 2 * 1024) + 2 * 3 * 4096 * 14336 + 4096 * 8) + 4096 * 32000
    attention = 32 * 2 * 32 * 256 * (4096 * 4097 / 2)
    assert cost.model_flops == pytest.approx(3 * 32 * (2 * weights * 4096 + attention))
    assert executed_flops(work(MIXTRAL, 32), Strategy(data=32, shard=32)) > cost.model_flops


def test_latent_attention_has_wider_keys_than_values():
    dense = replace(V2, experts=None, layer_kinds=("attention",) * 60)
    cost = price(NODE, work(dense, 1), Strategy(ulysses=8, shard=8))
    per_token = 2 * 128 * (192 + 192 + 128 + 128)
    assert cost.sent_bytes["ulysses all_to_all"] == pytest.approx(60 * 7 / 8 * 512 * 2 * per_token)


def test_groups_of_experts_are_neighbours():
    strategy = Strategy(data=2, ulysses=2, tensor=2, expert=4, shard=4)
    assert rank_groups(strategy, "expert").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (strategy.expert_shard, strategy.expert_replicate) == (2, 1)
    assert rank_groups(strategy, "expert_shard").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (Model.load("llama-3-8b"), {"data": 8, "expert": 8}, "expert=8 is not possible for llama-3-8b; legal: 1"),
        (MIXTRAL, {"data": 16, "expert": 16}, "expert=16 is not possible .* legal: divisors of its 8 experts"),
    ],
)
def test_experts_that_cannot_be_spread_are_refused(model, given, message):
    with pytest.raises(InputError, match=message):
        Strategy(**given).check(model)


def test_degrees_must_hold_the_expert_group():
    with pytest.raises(InputError, match="expert=8 does not divide data x context x tensor = 4"):
        Strategy(data=4, expert=8)
    with pytest.raises(InputError, match="mode=decode is not priced for deepseek-v2"):
        price(NODE, replace(work(V2), mode="decode"), Strategy(data=8))
