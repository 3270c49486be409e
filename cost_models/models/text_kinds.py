"""What the language models of a Hugging Face `model_type` are: their parts, and the defaults of keys left out.

A file often leaves out what equals its class's default (`tie_word_embeddings`, `head_dim`, `sliding_window`, in nested
configs the sizes too). Defaults and parts are those of transformers 5.23, `models/*/configuration_*.py` and
`modeling_*.py`. `SIZES` may be left out of nested configs only: a file of a language model alone has to say them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_experts",
    "num_local_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
    "shared_expert_intermediate_size", "first_k_dense_replace", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextKind:
    """The parts of a kind of language model, and the values of keys that its files leave out."""

    defaults: Mapping[str, object] = field(default_factory=dict)
    qkv_bias: bool | str = False  # or the key that says so
    o_bias: str = ""  # the key that says so; empty: none
    mlp_bias: bool = False  # where the file says so
    qk_norm: bool | str = False
    norms: int = 2
    sinks: bool = False
    windows: Literal["none", "all", "last", "switch", "alternate", "pattern", "nope", "typed", "early"] = "none"
    experts: Literal["", "mixtral", "qwen", "deepseek", "gpt_oss"] = ""
    count_also: str = ""  # another name by which its class knows the number of experts
    latent: bool = False


def _sizes(
    vocab: int, hidden: int, ffn: int, layers: int, heads: int, kv: int | None, head_dim: int | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head_dim, **more,
    }  # fmt: skip


_QWEN_WINDOW: dict[str, Any] = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
_QWEN2: dict[str, Any] = {"qkv_bias": True, "windows": "last"}
_QWEN3: dict[str, Any] = {"qkv_bias": "attention_bias", "o_bias": "attention_bias", "qk_norm": True}
_GLM_MOE: dict[str, Any] = {"n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
                            "moe_intermediate_size": 1408, "first_k_dense_replace": 1}  # fmt: skip
_ALL_BIAS: dict[str, Any] = {"qkv_bias": "attention_bias", "o_bias": "attention_bias"}
_GEMMA: dict[str, Any] = {**_ALL_BIAS, "norms": 4}

TEXT_KINDS: dict[str, TextKind] = {
    "llama": TextKind(defaults=_sizes(32000, 4096, 11008, 32, 32, None), mlp_bias=True, **_ALL_BIAS),
    "mistral": TextKind(defaults=_sizes(32000, 4096, 14336, 32, 32, 8, sliding_window=4096), windows="all"),
    "qwen2": TextKind(defaults=_sizes(151936, 4096, 22016, 32, 32, 32, **_QWEN_WINDOW), **_QWEN2),
    "qwen2_vl_text": TextKind(
        defaults=_sizes(152064, 8192, 29568, 80, 64, 8, **{**_QWEN_WINDOW, "max_window_layers": 80}), **_QWEN2
    ),
    "qwen3": TextKind(defaults=_sizes(151936, 4096, 22016, 32, 32, 32, 128, **_QWEN_WINDOW), windows="last", **_QWEN3),
    "qwen3_vl_text": TextKind(defaults=_sizes(151936, 4096, 22016, 32, 32, 32, 128), **_QWEN3),
    "mixtral": TextKind(
        defaults=_sizes(32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
        windows="all", experts="mixtral", count_also="num_experts",
    ),
    "qwen2_moe": TextKind(
        defaults=_sizes(151936, 2048, 5632, 24, 16, 16, num_experts=60, num_experts_per_tok=4,
                        moe_intermediate_size=1408, shared_expert_intermediate_size=5632, qkv_bias=True,
                        **_QWEN_WINDOW),
        qkv_bias="qkv_bias", windows="early", experts="qwen",
    ),
    "qwen3_moe": TextKind(
        defaults=_sizes(151936, 2048, 6144, 24, 32, 4, num_experts=128, num_experts_per_tok=8,
                        moe_intermediate_size=768, sliding_window=4096, use_sliding_window=False),
        windows="switch", experts="qwen", count_also="num_local_experts", **_QWEN3,
    ),
    "qwen3_vl_moe_text": TextKind(
        defaults=_sizes(151936, 2048, 5632, 24, 16, 16, num_experts=60, num_experts_per_tok=4,
                        moe_intermediate_size=1408, tie_word_embeddings=True),
        experts="qwen", count_also="num_local_experts", **_QWEN3,
    ),
    "deepseek_v2": TextKind(
        defaults=_sizes(102400, 4096, 11008, 32, 32, None, n_routed_experts=64, n_shared_experts=2,
                        moe_intermediate_size=1407, first_k_dense_replace=0, q_lora_rank=1536, kv_lora_rank=512,
                        qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128),
        experts="deepseek", count_also="num_experts", latent=True,
    ),
    "deepseek_v3": TextKind(
        defaults=_sizes(129280, 7168, 18432, 61, 128, 128, n_routed_experts=256, n_shared_experts=1,
                        num_experts_per_tok=8, moe_intermediate_size=2048, first_k_dense_replace=3, q_lora_rank=1536,
                        kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128),
        experts="deepseek", count_also="num_local_experts", latent=True,
    ),
    "gemma": TextKind(
        defaults=_sizes(256000, 3072, 24576, 28, 16, 16, 256, tie_word_embeddings=True), **_ALL_BIAS
    ),
    "gemma2": TextKind(
        defaults=_sizes(256000, 2304, 9216, 26, 8, 4, 256, sliding_window=4096, tie_word_embeddings=True,
                        attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        windows="alternate", **_GEMMA,
    ),
    "gemma3_text": TextKind(
        defaults=_sizes(262208, 2304, 9216, 26, 8, 4, 256, sliding_window=4096, tie_word_embeddings=True,
                        sliding_window_pattern=6),
        windows="pattern", qk_norm=True, **_GEMMA,
    ),
    "gpt_oss": TextKind(
        defaults=_sizes(201088, 2880, 2880, 36, 64, 8, 64, num_local_experts=128, num_experts_per_tok=4,
                        sliding_window=128, attention_bias=True),
        windows="alternate", experts="gpt_oss", count_also="num_experts", sinks=True, **_ALL_BIAS,
    ),
    "granite": TextKind(defaults=_sizes(32000, 4096, 11008, 32, 32, None), mlp_bias=True, **_ALL_BIAS),
    "granitemoe": TextKind(
        defaults=_sizes(32000, 4096, 11008, 32, 32, None, num_local_experts=8, num_experts_per_tok=2),
        experts="mixtral", **_ALL_BIAS,
    ),
    "hunyuan_v1_dense": TextKind(defaults=_sizes(290943, 4096, 11008, 32, 32, None), qk_norm=True, **_ALL_BIAS),
    "seed_oss": TextKind(
        defaults=_sizes(155136, 4096, 27648, 64, 80, 8, 128, attention_bias=True),
        mlp_bias=True, qkv_bias="attention_bias", o_bias="attention_out_bias",
    ),
    "glm": TextKind(defaults=_sizes(151552, 4096, 13696, 40, 32, 2, 128, attention_bias=True),
                    qkv_bias="attention_bias"),
    "glm4": TextKind(defaults=_sizes(151552, 4096, 13696, 40, 32, 2, 128, attention_bias=True),
                     qkv_bias="attention_bias", norms=4),
    "glm4_moe": TextKind(defaults=_sizes(151552, 4096, 10944, 46, 96, 8, **_GLM_MOE), qkv_bias="attention_bias",
                         qk_norm="use_qk_norm", experts="deepseek", count_also="num_local_experts"),
    "glm4v_text": TextKind(defaults=_sizes(151552, 4096, 13696, 40, 32, 2), qkv_bias=True, norms=4),
    "glm4v_moe_text": TextKind(defaults=_sizes(151424, 4096, 10944, 46, 96, 8, attention_bias=True, **_GLM_MOE),
                               qkv_bias="attention_bias", experts="deepseek", count_also="num_local_experts"),
    "ministral": TextKind(defaults=_sizes(32000, 4096, 14336, 32, 32, 8, sliding_window=4096), windows="typed"),
    "ministral3": TextKind(defaults=_sizes(131072, 4096, 14336, 34, 32, 8, 128), windows="all"),
    "phi3": TextKind(defaults=_sizes(32064, 3072, 8192, 32, 32, None), windows="all"),
    "smollm3": TextKind(
        defaults=_sizes(128256, 2048, 11008, 36, 16, 4, use_sliding_window=False, tie_word_embeddings=True,
                        no_rope_layer_interval=4),
        windows="nope", mlp_bias=True, **_ALL_BIAS,
    ),
}  # fmt: skip
TEXT_KINDS["qwen2_5_vl_text"] = TEXT_KINDS["qwen2_vl_text"]
