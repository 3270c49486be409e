"""A plan's model as longvila builds it: its preset, or the sizes that the plan holds.

    plan.json: workload.model (layers, hidden, heads, layer_kinds, ssd, …)  ->  LongVilaConfig

Memory follows from sizes alone, so any dense gated model is counted, hybrids of attention and state-space layers among
them; the tower is a preset's, or none (`TextOnly`). Refused by name: experts, latent attention, windows, soft caps,
sinks, further norms and biases, other towers. Numbers that change no size (epsilon, rotary base) are the family's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import InputError
from cost_models.models.model import Model
from longvila.config import LongVilaConfig, load_config
from longvila.model import LongVilaForConditionalGeneration
from longvila.sharding import Batch, Sharding

PRESETS = {"longvila-tiny": "tiny", **{name: name for name in ("longvila-1.5b", "longvila-7b", "longvila-8b")}}
"""Models of the planner, in longvila's words."""
_TYPES = {"attention": "full_attention", "ssd": "ssd"}
_PLAIN = {"gated": True, "experts": None, "latent": None, "window": 0, "norms": 2, "o_bias": False, "mlp_bias": False,
          "sinks": False, "attention_softcap": None, "logits_softcap": None}  # fmt: skip
"""What every model has that is built here."""


class TextOnly(LongVilaForConditionalGeneration):
    """The language model alone."""

    def __init__(self, config: LongVilaConfig, attention: str = "sdpa") -> None:
        super().__init__(config, attention)
        self.tower, self.projector = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    def _encoded(self, batch: Batch, sharding: Sharding) -> Tensor:
        return torch.zeros(0, self.llm.config.hidden_size, dtype=self._head_weight().dtype)


def config_of(model: Model) -> LongVilaConfig:
    """What longvila builds for the plan's model; a kind that it does not build is an InputError."""
    odd = [f"{name}={getattr(model, name)}" for name, plain in _PLAIN.items() if getattr(model, name) != plain]
    if odd:
        raise InputError(f"model {model.name!r} cannot be checked: longvila builds none with {', '.join(odd)}")
    if model.vision is None:
        return replace(load_config("tiny"), llm=_language(model), loss_chunk_tokens=4096)  # its tower goes
    known = {name: Model.load(name) for name in PRESETS}
    if known.get(model.name) == model:
        return load_config(PRESETS[model.name])
    pool = model.vision.frames_pooled
    for name, preset in known.items():
        if preset.vision == replace(model.vision, frames_pooled=1):
            return replace(load_config(PRESETS[name]), llm=_language(model), video_pool=pool)
    raise InputError(f"model {model.name!r} cannot be checked: its tower is not that of {', '.join(PRESETS)}")


def _language(model: Model) -> dict[str, Any]:
    kind = "qwen3" if model.qk_norm else "qwen2" if model.qkv_bias else "llama"
    given = {
        "model_type": kind, "hidden_size": model.hidden, "intermediate_size": model.ffn, "head_dim": model.head_dim,
        "num_hidden_layers": model.layers, "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads,
        "vocab_size": model.vocab, "tie_word_embeddings": model.tied_embeddings, "max_position_embeddings": 2**24,
    }  # fmt: skip
    if model.ssd is not None:
        types = [_TYPES[layer] for layer in model.layer_kinds]
        given |= {"layer_types": types, "ssd": dict(vars(model.ssd))}
    return given
