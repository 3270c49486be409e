"""The parts of a Hugging Face `config.json` that dense models lack: experts and latent attention.

    mixtral                     num_local_experts of width intermediate_size, no dense layer
    qwen2_moe, qwen3_moe        num_experts of width moe_intermediate_size; mlp_only_layers and decoder_sparse_step
                                leave layers dense; Qwen2's shared expert has a gate
    deepseek_v2, deepseek_v3    n_routed_experts, n_shared_experts; the first first_k_dense_replace layers are dense;
                                multi-head latent attention

Strict: a missing field is an error that names it. Left out: multi-token prediction layers (weights beside the model).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cost_models.errors import InputError
from cost_models.models.experts import Experts
from cost_models.models.latent import Latent

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")
_LATENT = ("deepseek_v2", "deepseek_v3")
_COUNT_KEYS = {
    "mixtral": ("num_local_experts",),
    "qwen2_moe": ("num_experts", "num_local_experts"),
    "qwen3_moe": ("num_experts", "num_local_experts"),
    "deepseek_v2": ("n_routed_experts",),
    "deepseek_v3": ("n_routed_experts",),
}
Number = Callable[..., int]
"""(config, key, where, default) -> the number, or an InputError that names the key."""


def mixture_fields(config: Mapping[str, object], kind: str, where: str, number: Number) -> dict[str, Any]:
    """Fields of a Model beside the dense ones (and in place of them for latent attention)."""
    width = "intermediate_size" if kind == "mixtral" else "moe_intermediate_size"
    keys = [key for key in _COUNT_KEYS[kind] if key in config] or [_COUNT_KEYS[kind][0]]
    ffn = number(config, width, where)
    experts = Experts(
        count=number(config, keys[0], where),
        chosen=number(config, "num_experts_per_tok", where),
        ffn=ffn,
        shared_ffn=_shared(config, kind, where, number, ffn),
        shared_gate=kind == "qwen2_moe",
        router_bias=kind == "deepseek_v3",
    )
    fields: dict[str, Any] = {"experts": experts}
    layers = number(config, "num_hidden_layers", where)
    dense = _dense_layers(config, kind, where, layers, number)
    kinds = tuple("attention" if layer in dense else "experts" for layer in range(layers))
    if "experts" not in kinds:
        raise InputError(f"{where}: every layer is dense, though the config has {experts.count} experts")
    fields["layer_kinds"] = kinds
    if kind in _LATENT:
        fields |= _latent(config, where, number)
    if kind == "qwen2_moe":
        fields["qkv_bias"] = bool(config.get("qkv_bias", True))
    return fields


def _shared(config: Mapping[str, object], kind: str, where: str, number: Number, ffn: int) -> int:
    if kind == "qwen2_moe":
        return number(config, "shared_expert_intermediate_size", where)
    if kind in _LATENT:
        return ffn * number(config, "n_shared_experts", where) if config.get("n_shared_experts", 1) else 0
    return 0


def _dense_layers(config: Mapping[str, object], kind: str, where: str, layers: int, number: Number) -> set[int]:
    """Layers, from 0, whose MLP is dense."""
    if kind == "mixtral":
        return set()
    if kind in _LATENT:
        if config.get("moe_layer_freq", 1) != 1:
            raise InputError(f"{where}: moe_layer_freq={config['moe_layer_freq']!r} is not supported; legal: 1")
        first = config.get("first_k_dense_replace")
        if first is None:
            raise InputError(f"{where}: first_k_dense_replace is missing")
        if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= layers:
            raise InputError(f"{where}: first_k_dense_replace={first!r} must be a whole number from 0 to {layers}")
        return set(range(first))
    every = number(config, "decoder_sparse_step", where, 1)
    listed = config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(isinstance(layer, int) and 0 <= layer < layers for layer in listed):
        raise InputError(f"{where}: mlp_only_layers={listed!r} must be a list of layers from 0 to {layers - 1}")
    return {layer for layer in range(layers) if layer in listed or (layer + 1) % every}


def _latent(config: Mapping[str, object], where: str, number: Number) -> dict[str, Any]:
    if config.get("attention_bias"):
        raise InputError(f"{where}: attention_bias=true is not supported beside latent attention; legal: false")
    if "q_lora_rank" not in config:
        raise InputError(f"{where}: q_lora_rank is missing (null where queries are not compressed)")
    latent = Latent(
        q_rank=number(config, "q_lora_rank", where) if config["q_lora_rank"] is not None else None,
        kv_rank=number(config, "kv_lora_rank", where),
        rope_dim=number(config, "qk_rope_head_dim", where),
        nope_dim=number(config, "qk_nope_head_dim", where),
        v_dim=number(config, "v_head_dim", where),
    )
    return {"latent": latent, "head_dim": latent.qk_dim, "kv_heads": number(config, "num_attention_heads", where)}
