"""The parts of a Hugging Face `config.json` that dense models lack: experts and latent attention.

    mixtral, gpt_oss    num_local_experts of width intermediate_size, no dense layer; gpt-oss with biases
    qwen                num_experts of width moe_intermediate_size; mlp_only_layers and decoder_sparse_step leave
                        layers dense; Qwen2's shared expert has a gate
    deepseek (and GLM)  n_routed_experts, n_shared_experts; the first first_k_dense_replace layers are dense;
                        DeepSeek has multi-head latent attention

Strict: a missing field is an error that names it. Left out: multi-token prediction layers (weights beside the model).
"""

from __future__ import annotations

from cost_models.errors import InputError
from cost_models.models.config_fields import Fields
from cost_models.models.experts import Experts
from cost_models.models.latent import Latent
from cost_models.models.text_kinds import TextKind

COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
_COUNT_KEY = {
    "mixtral": "num_local_experts", "gpt_oss": "num_local_experts",
    "qwen": "num_experts", "deepseek": "n_routed_experts",
}  # fmt: skip


def experts_of(fields: Fields, kind: TextKind, layers: int) -> tuple[Experts, set[int]]:
    """(the experts, the layers from 0 whose MLP is dense)."""
    narrow = kind.experts in ("mixtral", "gpt_oss")
    ffn = fields.number("intermediate_size" if narrow else "moe_intermediate_size")
    gated_share = "shared_expert_intermediate_size" in (*fields.config, *kind.defaults)
    experts = Experts(
        count=_count(fields, kind),
        chosen=fields.number("num_experts_per_tok"),
        ffn=ffn,
        shared_ffn=_shared(fields, kind, ffn, gated_share),
        shared_gate=gated_share and kind.experts == "qwen",
        router_bias=kind.experts == "gpt_oss",
        bias=kind.experts == "gpt_oss",
    )
    dense = set() if narrow else _dense_layers(fields, kind, layers)
    if len(dense) == layers:
        raise InputError(f"{fields.where}: every layer is dense, though the config has {experts.count} experts")
    return experts, dense


def _count(fields: Fields, kind: TextKind) -> int:
    """Under the class's key or its other name for it: a key that the class ignores, or two numbers, are refused."""
    own = _COUNT_KEY[kind.experts]
    legal = [key for key in (own, kind.count_also) if key]
    given = {key: fields.number(key) for key in COUNT_KEYS if fields.config.get(key) is not None}
    foreign = [key for key in given if key not in legal]
    if foreign:
        raise InputError(f"{fields.where}: {foreign[0]} does not count this kind's experts; legal: {', '.join(legal)}")
    if len(set(given.values())) > 1:
        said = " and ".join(f"{key}={count}" for key, count in given.items())
        raise InputError(f"{fields.where}: {said} are two counts of the same experts; state one")
    return next(iter(given.values())) if given else fields.number(own)


def _shared(fields: Fields, kind: TextKind, ffn: int, gated_share: bool) -> int:
    if kind.experts == "qwen":
        return fields.number("shared_expert_intermediate_size") if gated_share else 0
    if kind.experts == "deepseek":
        return 0 if fields.get("n_shared_experts") in (None, 0) and "n_shared_experts" in fields.config else (
            ffn * fields.number("n_shared_experts")
        )  # fmt: skip
    return 0


def _dense_layers(fields: Fields, kind: TextKind, layers: int) -> set[int]:
    """Layers, from 0, whose MLP is dense."""
    if kind.experts == "deepseek":
        if fields.config.get("moe_layer_freq", 1) != 1:
            raise InputError(
                f"{fields.where}: moe_layer_freq={fields.config['moe_layer_freq']!r} is not supported; legal: 1"
            )
        first = fields.number("first_k_dense_replace", least=0)
        if first > layers:
            raise InputError(
                f"{fields.where}: first_k_dense_replace={first!r} must be a whole number from 0 to {layers}"
            )
        return set(range(first))
    every = fields.number("decoder_sparse_step", 1)
    listed = fields.config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(isinstance(layer, int) and 0 <= layer < layers for layer in listed):
        raise InputError(f"{fields.where}: mlp_only_layers={listed!r} must be a list of layers from 0 to {layers - 1}")
    return {layer for layer in range(layers) if layer in listed or (layer + 1) % every}


def latent_of(fields: Fields) -> dict[str, Latent | int | None]:
    """Fields of a Model with multi-head latent attention."""
    for key in ("attention_bias", "mlp_bias"):
        if fields.config.get(key):
            raise InputError(f"{fields.where}: {key}=true is not supported beside latent attention; legal: false")
    if "q_lora_rank" not in fields.config and "q_lora_rank" not in fields.defaults:
        raise InputError(f"{fields.where}: q_lora_rank is missing (null where queries are not compressed)")
    latent = Latent(
        q_rank=fields.number("q_lora_rank") if fields.get("q_lora_rank") is not None else None,
        kv_rank=fields.number("kv_lora_rank"),
        rope_dim=fields.number("qk_rope_head_dim"),
        nope_dim=fields.number("qk_nope_head_dim"),
        v_dim=fields.number("v_head_dim"),
    )
    return {"latent": latent, "head_dim": latent.qk_dim, "kv_heads": fields.number("num_attention_heads")}
