"""Hugging Face `config.json` -> Model: Llama, Mistral, Qwen2, Qwen3, and VLMs of the LLaVA, VILA and Qwen-VL kind.

Mixtures of experts (Mixtral, Qwen-MoE, DeepSeek) are read with the help of `huggingface_experts.py`.

A VLM's config nests the language model (`text_config`, or `llm_cfg` in VILA) and the tower (`vision_config`,
`vision_tower_cfg`); VILA keeps each in a folder of its own. Files are data: only named fields are read, a missing
one is an error that names it. Towers with registers, windows or 3-D patches are taken as plain ViTs of their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.models.huggingface_experts import MIXTURES, mixture_fields
from cost_models.models.model import Model, Vision

DENSE = ("llama", "mistral", "qwen2", "qwen3")
_TEXT_KIND = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
VLM = ("llava", "llava_next", "llava_onevision", "llava_llama", "vila", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def read_config(path: Path) -> Model:
    """The model that a `config.json` describes; anything but the kinds above is refused by name."""
    config = strict.read_json(path, "--model")
    where = str(path)
    kind = _kind(config, where)
    name = _name(config, path)
    if kind in DENSE + MIXTURES:
        return Model(name=name, **_text(config, kind, where))
    text, text_where = _part(config, ("text_config", "llm_cfg"), path, "llm", where)
    text_kind = _kind(text, text_where, fallback=kind)
    text_kind = _TEXT_KIND.get(text_kind, text_kind)
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") and text_kind == kind:
        text_kind = "qwen3" if kind == "qwen3_vl" else "qwen2"
    if text_kind not in DENSE + MIXTURES:
        legal = ", ".join(DENSE + MIXTURES)
        raise InputError(f"{text_where}: language model kind {text_kind!r} is not supported; legal: {legal}")
    fields = _text(text, text_kind, text_where)
    tower, tower_where = _part(config, ("vision_config", "vision_tower_cfg"), path, "vision_tower", where)
    inner = tower.get("vision_config")
    tower = inner if isinstance(inner, Mapping) else tower
    merge = _merge(config, tower, kind, tower_where)
    return Model(name=name, vision=_vision(tower, merge, fields["hidden"], tower_where), **fields)


def _kind(config: Mapping[str, object], where: str, fallback: str | None = None) -> str:
    kind = config.get("model_type", fallback)
    if not isinstance(kind, str) or (fallback is None and kind not in DENSE + MIXTURES + VLM):
        raise InputError(f"{where}: model_type {kind!r} is not supported; legal: {', '.join(DENSE + MIXTURES + VLM)}")
    return kind


def _name(config: Mapping[str, object], path: Path) -> str:
    given = config.get("_name_or_path")
    name = given if isinstance(given, str) and given else path.resolve().parent.name
    return name.rstrip("/").rsplit("/", 1)[-1][:80] or "model"


def _part(
    config: Mapping[str, object], keys: tuple[str, ...], path: Path, folder: str, where: str
) -> tuple[Mapping[str, object], str]:
    for key in keys:
        part = config.get(key)
        if isinstance(part, Mapping):
            return part, f"{where}: {key}"
    beside = path.parent / folder / "config.json"
    if beside.is_file():
        return strict.read_json(beside, "--model"), str(beside)
    if "hidden_size" in config and folder == "llm":  # Qwen2-VL before transformers 4.52 keeps the LLM at the top
        return config, where
    raise InputError(f"{where}: needs {' or '.join(keys)} (or {folder}/config.json beside it)")


def _yes(config: Mapping[str, object], key: str, where: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key}={value!r}; legal: true, false")
    return value


def _number(config: Mapping[str, object], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise InputError(f"{where}: {key} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {key}={value!r} must be a whole number of at least 1")
    return value


def _text(config: Mapping[str, object], kind: str, where: str) -> dict[str, Any]:
    if kind in DENSE and (config.get("num_experts") or config.get("num_local_experts")):
        raise InputError(f"{where}: model_type {kind!r} has no experts; legal with experts: {', '.join(MIXTURES)}")
    heads = _number(config, "num_attention_heads", where)
    hidden = _number(config, "hidden_size", where)
    tied = {"qwen3": True}.get(kind, False)
    dense = {
        "layers": _number(config, "num_hidden_layers", where),
        "hidden": hidden,
        "ffn": _number(config, "intermediate_size", where),
        "heads": heads,
        "kv_heads": _number(config, "num_key_value_heads", where, heads),
        "head_dim": _number(config, "head_dim", where, 128 if kind.startswith("qwen3") else hidden // heads),
        "vocab": _number(config, "vocab_size", where),
        "tied_embeddings": _yes(config, "tie_word_embeddings", where, tied),
        "qkv_bias": kind == "qwen2" or bool(config.get("attention_bias", False)),
        "qk_norm": kind.startswith("qwen3"),
    }
    return {**dense, **mixture_fields(config, kind, where, _number)} if kind in MIXTURES else dense


def _merge(config: Mapping[str, object], tower: Mapping[str, object], kind: str, where: str) -> int:
    """Patches merged along each side of the grid before the projector."""
    if kind.startswith("qwen"):
        return _number(tower, "spatial_merge_size", where, 2)
    projector = str(config.get("mm_projector_type", config.get("mm_projector", "")))
    return 2 if "downsample" in projector or kind in ("vila", "llava_llama") else 1


def _named(config: Mapping[str, object], usual: str, other: str) -> str:
    """The key that the config has of two names of one thing; the usual one where it has neither."""
    return other if config.get(usual) is None and config.get(other) is not None else usual


def _vision(tower: Mapping[str, object], merge: int, out: int, where: str) -> Vision:
    hidden_key = "embed_dim" if "embed_dim" in tower and "depth" in tower and "mlp_ratio" in tower else "hidden_size"
    hidden = _number(tower, hidden_key, where)
    patch = _number(tower, "patch_size", where, 14)
    side = _number(tower, "image_size", where, 448) // patch
    ratio = tower.get("mlp_ratio", 4)
    ffn = int(hidden * ratio) if isinstance(ratio, int | float) else 4 * hidden
    merged = -(-side // merge)
    return Vision(
        layers=_number(tower, _named(tower, "num_hidden_layers", "depth"), where),
        hidden=hidden,
        ffn=_number(tower, "intermediate_size", where, ffn),
        heads=_number(tower, _named(tower, "num_attention_heads", "num_heads"), where),
        patches=side * side,
        patch_size=patch,
        tokens_per_frame=merged * merged,
        projector_in=hidden * merge * merge,
        projector_hidden=out,
        gated=str(tower.get("hidden_act", "")) == "silu",
    )
