"""Low-rank adapters: what is frozen has no gradient, state or weight product; what is trained is counted by hand.

rank r on W (out x in): r (out + in) weights (LoRA, arXiv 2106.09685, section 4.1); Llama-3-8B's shapes are its config's
"""

from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload, price
from cost_models.flops import executed_flops, model_flops
from cost_models.framework import OURS, Framework
from cost_models.layer.launches import layer_calls
from cost_models.layer.operators import LORA_CALLS
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import adapter_params
from cost_models.timing.kernels import Kernels

MODEL = Model.load("llama-3-8b")
NODE = Cluster.load("dgx-h100", nodes=1)
WHOLE = Workload(MODEL, context_tokens=2**16)
ADAPTED = replace(WHOLE, lora_rank=8)
EIGHT = Strategy(ulysses=8, shard=8)
QKV, OUT = (4096 + 4096) + 2 * (4096 + 1024), 4096 + 4096
PER_LAYER = 8 * (QKV + OUT + 3 * (4096 + 14336))


def test_states_are_the_adapters_alone():
    cost = price(NODE, ADAPTED, EIGHT, framework=replace(OURS, drops_gradients_to=None))
    adapters = 32 * PER_LAYER
    assert adapters == 20_971_520  # peft prints 20,971,520 trainable parameters for rank 8 on all linear maps of it
    assert cost.memory["gradients"] == pytest.approx(4 * adapters / 8, abs=1)
    assert cost.memory["optimizer"] == pytest.approx(8 * adapters / 8, abs=1)
    assert cost.memory["parameters"] == pytest.approx((2 * MODEL.llm_params + 4 * adapters) / 8, abs=1)
    assert cost.sent_bytes["shard reduce_scatter"] == pytest.approx(7 / 8 * 4 * adapters)
    gathered = 2 * (2 * (32 * MODEL.layer_params + adapters) + 2 * 128256 * 4096 + 4096)
    assert cost.sent_bytes["shard all_gather"] == pytest.approx(7 / 8 * gathered)


def test_longvila_trains_embeddings_and_norms_beside_them():
    beside = replace(ADAPTED, lora_beside=("embeddings", "norms"))
    trained = 32 * (PER_LAYER + 2 * 4096) + 128256 * 4096 + 4096
    assert price(NODE, beside, EIGHT).memory["optimizer"] == pytest.approx(8 * trained / 8, abs=1)
    assert price(NODE, replace(ADAPTED, lora_targets=("qkv",)), EIGHT).memory["optimizer"] == pytest.approx(
        8 * 32 * 8 * QKV / 8, abs=1
    )


def test_weight_products_fall_away_and_thin_ones_come():
    kernels = Kernels.of("h100-sxm-80gb")
    whole, adapted = price(NODE, WHOLE, EIGHT), price(NODE, ADAPTED, EIGHT)
    tokens = 2**13
    maps = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), *[(14336, 4096)] * 2, (4096, 14336)]
    saved = 32 * sum(kernels.gemm_s(inside, out, tokens) for out, inside in maps)
    passes = sum(7 * out + 3 * inside for out, inside in maps) * tokens * 2  # 5 out forward, 2 out and 3 in backward
    added = 32 * sum(
        2 * kernels.gemm_s(tokens, 8, inside) + kernels.gemm_s(8, inside, tokens) + 2 * kernels.gemm_s(tokens, out, 8)
        + kernels.gemm_s(out, 8, tokens) for out, inside in maps
    ) + 32 * kernels.memory_bound_s(passes, 4 * 7)  # fmt: skip
    head = kernels.gemm_s(128256, 4096, 1024) * 8
    difference = whole.seconds["compute"] - adapted.seconds["compute"]
    assert saved - added < difference < saved + 2 * head
    assert adapted.memory_bytes < whole.memory_bytes


def test_flops_count_two_passes_of_frozen_weights():
    weights = 2 * (32 * MODEL.layer_matmul_params + 128256 * 4096) * 2**16
    adapters = 2 * 32 * PER_LAYER * 2**16
    assert model_flops(WHOLE) - model_flops(ADAPTED) == pytest.approx(weights - 3 * adapters)
    assert executed_flops(WHOLE, EIGHT) - executed_flops(ADAPTED, EIGHT) == pytest.approx(weights - 3 * adapters)


def test_a_frozen_model_under_a_trained_projector_has_no_weight_products():
    video = Model.load("longvila-8b")
    work = Workload(video, frames=64, text_tokens=1024)
    aligned = price(NODE, replace(work, trainable=("projector",)), EIGHT)
    assert aligned.seconds["compute"] < price(NODE, work, EIGHT).seconds["compute"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rank": -1}, "lora_rank=-1 must be from 0"),
        ({"lora_rank": 4097}, "lora_rank=4097 must be from 0 .none. to 4096"),
        ({"lora_rank": 8, "lora_targets": ("head",)}, "lora_targets: 'head' is unknown; legal: qkv, out, up, down"),
        ({"lora_rank": 8, "lora_beside": ("bias",)}, "lora_beside: 'bias' is unknown; legal: embeddings, norms"),
        ({"lora_beside": ("norms",)}, "need a lora_rank of at least 1"),
        ({"lora_rank": 8, "mode": "prefill"}, "legal with mode=train and llm in trainable"),
        (
            {"lora_rank": 8, "model": Model.load("deepseek-v2")},
            "not priced for experts or latent attention",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(WHOLE, **change)


def test_an_adapter_of_a_summed_output_is_summed_apart():
    """Tensor 2: a layer scatters its two outputs, and those of their two adapters; Q, K, V and gate, up have none."""
    work = Workload(MODEL, context_tokens=8192, lora_rank=16)
    layout = Strategy(tensor=2)
    both, inputs = (
        price(NODE, replace(work, lora_targets=targets), layout).sent_bytes["tensor reduce_scatter"]
        for targets in (("qkv", "out", "up", "down"), ("qkv", "up"))
    )
    row = 8192 * MODEL.hidden * 2
    assert both - inputs == pytest.approx(32 * 2 * row / 2)


def test_adapters_apart_beside_joined_products_are_seven_and_not_four():
    """ART: q, k, v, out, gate, up and down each have two weights; joined, q, k, v have one pair, and gate and up."""
    art = Framework.load("art")
    apart, joined = (RankSizes(ADAPTED, Strategy(), one) for one in (art, replace(art, adapters_apart=False)))
    assert adapter_params(apart) == PER_LAYER
    assert adapter_params(apart) - adapter_params(joined) == 8 * (2 * 4096 + 4096)
    assert layer_calls(apart).operators - layer_calls(joined).operators == 3 * LORA_CALLS[0]
