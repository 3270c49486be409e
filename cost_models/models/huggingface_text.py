"""The language model of a Hugging Face config -> the fields of a Model, by the parts of its kind (`text_kinds.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.models.config_fields import Fields
from cost_models.models.huggingface_experts import COUNT_KEYS, experts_of, latent_of
from cost_models.models.model import MOST_LAYERS
from cost_models.models.ssd import Ssd
from cost_models.models.text_kinds import SIZES, TEXT_KINDS, TextKind
from cost_models.models.windows import windows

HYBRIDS = ("llama", "qwen2")
"""Whose layers may be replaced by layers of states."""
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast")
FOREIGN = ("q_lora_rank", "kv_lora_rank", "attention_chunk_size", "linear_num_key_heads", "mamba_d_state",
           "num_kv_shared_layers", "hidden_size_per_layer_input", "full_attention_interval", "attention_window",
           "attention_window_size", "window_size", "sliding_window_size", "local_attention",
           "global_attn_every_n_layers", "attention_types", "attn_type_list", "attn_layer_period",
           "layers_block_type", "hybrid_override_pattern", "block_configs", "mixer_types", "linear_attn_config",
           "sparse_config", "sparse_attention_config", "index_topk", "use_cla")  # fmt: skip
"""Keys of other architectures (Longformer, RecurrentGemma, GPT-Neo, ModernBERT, MiniMax, Jamba, Nemotron, MiniCPM, Kimi
Linear, DeepSeek V3.2, Hunyuan): a file of a plain kind that has one, and not as 0 or false, is not that kind."""


def text_fields(config: Mapping[str, object], kind: str, where: str, nested: bool) -> dict[str, Any]:
    """Fields of a Model, without its name; `nested`: within a vision-language model, sizes have defaults too."""
    one = TEXT_KINDS[kind]
    _check(config, kind, one, where)
    fields = Fields(config, where, one.defaults if nested else _said(one.defaults))
    heads, layers = fields.number("num_attention_heads"), fields.number("num_hidden_layers")
    if layers > MOST_LAYERS:
        raise InputError(f"{where}: num_hidden_layers={layers}; legal: 1 to {MOST_LAYERS}")
    hidden = fields.number("hidden_size")
    config, states, ssd = ssd_of(config, kind, layers, where)
    fields = Fields(config, where, fields.defaults)
    window, chosen = windows(fields, one, layers)
    result: dict[str, Any] = {
        "layers": layers,
        "hidden": hidden,
        "ffn": fields.number("intermediate_size"),
        "heads": heads,
        "kv_heads": heads if one.latent else fields.number("num_key_value_heads", heads),
        "head_dim": fields.number("head_dim", hidden // heads),
        "vocab": fields.number("vocab_size"),
        "tied_embeddings": fields.yes("tie_word_embeddings"),
        "qkv_bias": _part(fields, one.qkv_bias),
        "o_bias": _part(fields, one.o_bias),
        "mlp_bias": one.mlp_bias and fields.yes("mlp_bias"),
        "qk_norm": _part(fields, one.qk_norm),
        "norms": one.norms,
        "sinks": one.sinks,
        "window": window,
        "attention_softcap": fields.real("attn_logit_softcapping"),
        "logits_softcap": fields.real("final_logit_softcapping"),
    }
    dense = set(range(layers))
    if one.experts:
        result["experts"], dense = experts_of(fields, one, layers)
    result["layer_kinds"] = tuple(
        {(False, True): "attention", (True, True): "window", (False, False): "experts"}.get(
            (sliding, layer in dense), "window_experts"
        )
        if layer not in states
        else "ssd"
        for layer, sliding in enumerate(chosen)
    )
    result["ssd"] = ssd
    return {**result, **latent_of(fields)} if one.latent else result


def ssd_of(
    config: Mapping[str, object], kind: str, layers: int, where: str
) -> tuple[Mapping[str, object], frozenset[int], Ssd | None]:
    """The config as its class would have it, the layers that mix tokens by a state, and their sizes: `layer_types` has
    "ssd" for these, and `ssd` says heads, head_size and state (longvila/hybrid.py)."""
    types, given = config.get("layer_types"), config.get("ssd")
    listed: list[object] = types if isinstance(types, list) else []
    states = frozenset(layer for layer, one in enumerate(listed) if one == "ssd")
    if not states and given is None:
        return config, states, None
    if not states or given is None:
        raise InputError(f"{where}: ssd and layer_types disagree: layers of type ssd need the key, and the other way")
    if kind not in HYBRIDS or len(listed) != layers:
        raise InputError(f"{where}: ssd layers are known of {', '.join(HYBRIDS)}, one type for each of {layers} layers")
    plain = ["full_attention" if layer in states else one for layer, one in enumerate(listed)]
    left = {key: value for key, value in config.items() if key not in ("ssd", "layer_types")}
    kept = {} if set(plain) == {"full_attention"} else {"layer_types": plain}
    return {**left, **kept}, states, strict.read(Ssd, given, f"{where}: ssd")


def _said(defaults: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in defaults.items() if key not in SIZES}


def _part(fields: Fields, part: bool | str) -> bool:
    """Whether the kind has a part, or the file says so under this key."""
    return part if isinstance(part, bool) else bool(part) and fields.yes(part)


def _check(config: Mapping[str, object], kind: str, one: TextKind, where: str) -> None:
    """Refuses what the kind does not have."""
    if not one.experts and any(config.get(key) for key in COUNT_KEYS):
        legal = ", ".join(name for name, other in TEXT_KINDS.items() if other.experts)
        raise InputError(f"{where}: model_type {kind!r} has no experts; legal with experts: {legal}")
    for key in FOREIGN:
        if config.get(key) and not (one.latent and key.endswith("lora_rank")):
            raise InputError(f"{where}: {key} is not a key of model_type {kind!r}: its attention is not known")
    if config.get("is_causal", True) is not True or config.get("use_bidirectional_attention"):
        raise InputError(f"{where}: tokens that see later ones (is_causal, use_bidirectional_attention) are not priced")
    for key in ("hidden_act", "hidden_activation"):
        if config.get(key) is not None and config[key] not in ACTIVATIONS:
            raise InputError(f"{where}: {key}={config[key]!r} is not known; legal: {', '.join(ACTIVATIONS)}")
