"""Mixtures of experts and latent attention: sizes against published totals, and what a config must hold."""

import json
from dataclasses import replace

import pytest

from cost_models import InputError, Model
from cost_models.models.experts import Experts
from cost_models.models.latent import Latent

MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN2_57B = {
    "model_type": "qwen2_moe", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "num_experts": 64, "num_experts_per_tok": 8,
    "moe_intermediate_size": 2560, "shared_expert_intermediate_size": 20480, "decoder_sparse_step": 1,
    "tie_word_embeddings": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_30B = {
    "model_type": "qwen3_moe", "attention_bias": False, "head_dim": 128, "hidden_size": 2048,
    "intermediate_size": 6144, "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "mlp_only_layers": [],
    "decoder_sparse_step": 1, "tie_word_embeddings": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_235B = {
    **QWEN3_30B, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 64, "num_hidden_layers": 94,
    "moe_intermediate_size": 1536,
}  # fmt: skip
DEEPSEEK_V2 = {
    "model_type": "deepseek_v2", "first_k_dense_replace": 1, "hidden_size": 5120, "intermediate_size": 12288,
    "kv_lora_rank": 512, "moe_intermediate_size": 1536, "moe_layer_freq": 1, "n_routed_experts": 160,
    "n_shared_experts": 2, "num_attention_heads": 128, "num_experts_per_tok": 6, "num_hidden_layers": 60,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "tie_word_embeddings": False, "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
DEEPSEEK_V2_LITE = {
    **DEEPSEEK_V2, "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
    "n_routed_experts": 64, "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 27,
    "q_lora_rank": None,
}  # fmt: skip
DEEPSEEK_V3 = {
    **DEEPSEEK_V2, "model_type": "deepseek_v3", "first_k_dense_replace": 3, "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "vocab_size": 129280,
}  # fmt: skip


def load(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    return Model.load(str(path))


@pytest.mark.parametrize(
    ("data", "total", "active"),  # billions as published; some sources leave embeddings out of the active ones
    [
        (MIXTRAL, 46.7, 12.9),  # mistral.ai/news/mixtral-of-experts
        (QWEN2_57B, 57.4, 14),  # Qwen2 technical report, arXiv 2407.10671: 57B-A14B
        (QWEN3_30B, 30.5, 3.3),  # model card of Qwen3-30B-A3B
        (QWEN3_235B, 235, 22),  # model card of Qwen3-235B-A22B
        (DEEPSEEK_V2, 236, 21),  # arXiv 2405.04434, abstract
        (DEEPSEEK_V2_LITE, 15.7, 2.4),  # arXiv 2405.04434, appendix B
        (DEEPSEEK_V3, 671, 37),  # arXiv 2412.19437, abstract
    ],
)
def test_mixtures_have_their_published_size(tmp_path, data, total, active):
    model = load(tmp_path, data)
    assert model.llm_params / 1e9 == pytest.approx(total, abs=0.3)
    assert model.active_params / 1e9 == pytest.approx(active, abs=0.7)


def test_sizes_are_exact_against_the_safetensors_headers(tmp_path):
    assert load(tmp_path, MIXTRAL).llm_params == 46_702_792_704  # hub page of Mixtral-8x7B-v0.1
    assert load(tmp_path, QWEN3_30B).llm_params == 30_532_122_624  # hub page of Qwen3-30B-A3B
    assert load(tmp_path, DEEPSEEK_V2).llm_params == 235_741_434_880  # hub page of DeepSeek-V2


def test_presets_equal_their_configs(tmp_path):
    for name, data in (("mixtral-8x7b", MIXTRAL), ("qwen3-30b-a3b", QWEN3_30B), ("qwen3-235b-a22b", QWEN3_235B),
                       ("deepseek-v2", DEEPSEEK_V2), ("deepseek-v3", DEEPSEEK_V3),
                       ("deepseek-v2-lite", DEEPSEEK_V2_LITE)):  # fmt: skip
        assert replace(load(tmp_path, data), name=name) == Model.load(name)
    larger = Model.load("mixtral-8x22b")  # mistral.ai/news/mixtral-8x22b: 141B, of which 39B are active
    assert (round(larger.llm_params / 1e9), round(larger.active_params / 1e9)) == (141, 39)


def test_layers_know_their_kind(tmp_path):
    v3 = load(tmp_path, DEEPSEEK_V3)
    assert v3.layer_kinds[:4] == ("attention", "attention", "attention", "experts")
    assert (v3.expert_layers, v3.head_dim, v3.v_dim, v3.kv_heads) == (58, 192, 128, 128)
    every_second = load(tmp_path, {**QWEN3_30B, "decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert every_second.layer_kinds[:4] == ("attention", "attention", "attention", "experts")
    assert load(tmp_path, DEEPSEEK_V2_LITE).latent == Latent(kv_rank=512, rope_dim=64, nope_dim=128, v_dim=128)


@pytest.mark.parametrize("data", [MIXTRAL, QWEN2_57B, QWEN3_30B, DEEPSEEK_V2, DEEPSEEK_V3])
def test_a_missing_field_is_named(tmp_path, data):
    optional = {"tie_word_embeddings", "moe_layer_freq", "decoder_sparse_step", "mlp_only_layers", "n_shared_experts",
                "attention_bias", "head_dim", "num_key_value_heads"}  # fmt: skip
    for key in set(data) - optional - {"model_type"}:
        if data["model_type"] != "mixtral" or key != "intermediate_size":
            with pytest.raises(InputError, match=f"{key} is missing"):
                load(tmp_path, {name: value for name, value in data.items() if name != key})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_layer_freq": 2}, "moe_layer_freq=2 is not supported; legal: 1"),
        ({"first_k_dense_replace": 61}, "first_k_dense_replace=61 must be a whole number from 0 to 60"),
        ({"first_k_dense_replace": 60}, "every layer is dense"),
        ({"num_experts_per_tok": 161}, "experts.chosen=161 exceeds the 160 experts"),
        ({"attention_bias": True}, "attention_bias=true is not supported beside latent attention"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, {**DEEPSEEK_V2, **change})


def test_a_model_says_how_kinds_and_experts_agree():
    sizes = {"name": "m", "layers": 2, "hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 4, "head_dim": 16, "vocab": 99}
    experts = Experts(count=4, chosen=2, ffn=32)
    assert Model(**sizes, experts=experts).layer_kinds == ("experts", "experts")
    with pytest.raises(InputError, match="layer_kinds and experts disagree"):
        Model(**sizes, layer_kinds=("attention", "experts"))
    with pytest.raises(InputError, match="layer_kinds and experts disagree"):
        Model(**sizes, layer_kinds=("attention", "attention"), experts=experts)
    with pytest.raises(InputError, match="head_dim=24 and as many KV heads"):
        Model(**sizes, latent=Latent(kv_rank=8, rope_dim=8, nope_dim=16, v_dim=16))


def test_files_of_dense_models_do_not_name_experts():
    from cost_models import strict

    assert "experts" not in strict.plain(Model.load("llama-3-8b"))
    mixture = Model(name="m", layers=1, hidden=64, ffn=8, heads=4, kv_heads=4, head_dim=16, vocab=9,
                    experts=Experts(count=4, chosen=2, ffn=32))  # fmt: skip
    assert strict.read(Model, strict.plain(mixture), "model") == mixture
