"""Hugging Face `config.json` -> Model: language models (`text_kinds.py`), and VLMs with a tower in front of one.

A VLM's config nests the language model (`text_config`; `llm_cfg` in VILA, `llm_config` in InternVL's own files) and the
tower (`vision_config`, `vision_tower_cfg`); VILA keeps each in a folder of its own, LLaVA-Video the language model at
the top. `tie_word_embeddings` counts where the class looks for it: at the top, or nested as well (`_TIED`).
Files are data: only named fields are read; what a kind does not have is an error that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cost_models import strict
from cost_models.errors import InputError
from cost_models.models.config_fields import Fields
from cost_models.models.huggingface_text import text_fields
from cost_models.models.huggingface_vision import TOWERS, vision
from cost_models.models.model import Model
from cost_models.models.text_kinds import TEXT_KINDS


@dataclass(frozen=True, kw_only=True)
class Nesting:
    """`text`: the language model's kind where the nested config names none. `tied`: where tie_word_embeddings counts:
    at the top (with this default), at the top or nested, or nested alone (the top where that is silent)."""

    text: str | None
    tied: Literal["top", "either", "nested"]
    default: bool = False


VLM: dict[str, Nesting] = {
    "llava": Nesting(text="llama", tied="either"),
    "llava_next": Nesting(text="llama", tied="top"),
    "llava_next_video": Nesting(text="llama", tied="either"),
    "llava_onevision": Nesting(text="qwen2", tied="either"),
    "llava_llama": Nesting(text="llama", tied="nested"),
    "llava_qwen": Nesting(text="qwen2", tied="nested"),
    "vila": Nesting(text=None, tied="nested"),
    "qwen2_vl": Nesting(text="qwen2_vl_text", tied="either"),
    "qwen2_5_vl": Nesting(text="qwen2_5_vl_text", tied="either"),
    "qwen3_vl": Nesting(text="qwen3_vl_text", tied="top"),
    "qwen3_vl_moe": Nesting(text="qwen3_vl_moe_text", tied="top"),
    "gemma3": Nesting(text="gemma3_text", tied="top", default=True),
    "mistral3": Nesting(text="mistral", tied="top", default=True),
    "internvl": Nesting(text="qwen2", tied="top", default=True),
    "internvl_chat": Nesting(text=None, tied="nested"),
    "smolvlm": Nesting(text="llama", tied="top"),
    "idefics3": Nesting(text="llama", tied="top"),
    "glm4v": Nesting(text="glm4v_text", tied="either"),
    "glm4v_moe": Nesting(text="glm4v_moe_text", tied="either"),
}
_TEXT_AT_THE_TOP = ("qwen2_vl", "qwen2_5_vl", "llava_qwen", "llava_llama")
"""Qwen2-VL before transformers 4.52, LLaVA-Video, and LLaVA's own files."""


def read_config(path: Path) -> Model:
    """The model that a `config.json` describes; anything but the kinds above is refused by name."""
    config = strict.read_json(path, "--model")
    where = str(path)
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in TEXT_KINDS:
        return Model(name=_name(config, path), **text_fields(config, kind, where, nested=False))
    if not isinstance(kind, str) or kind not in VLM:
        raise InputError(f"{where}: model_type {kind!r} is not supported; legal: {', '.join([*TEXT_KINDS, *VLM])}")
    text, text_where = _part(config, ("text_config", "llm_cfg", "llm_config"), path, "llm", where, kind)
    text_kind = _text_kind(text, kind, text_where)
    fields = text_fields(text, text_kind, text_where, nested=text is not config)
    fields["tied_embeddings"] = _tied(config, text, VLM[kind], text_kind, where, text_where)
    tower, tower_where = _tower(config, kind, path, where)
    projector = path.parent / "mm_projector" / "config.json"
    if "mm_projector_cfg" not in config and projector.is_file():
        config = {**config, "mm_projector_cfg": strict.read_json(projector, "--model")}
    made = vision(config, tower, kind, fields["hidden"], where, tower_where)
    return Model(name=_name(config, path), vision=made, **fields)


def _text_kind(text: Mapping[str, object], kind: str, where: str) -> str:
    named = text.get("model_type", VLM[kind].text)
    found = VLM[kind].text if named == kind else named
    if not isinstance(found, str) or found not in TEXT_KINDS:
        raise InputError(f"{where}: language model kind {named!r} is not supported; legal: {', '.join(TEXT_KINDS)}")
    return found


def _tied(
    config: Mapping[str, object], text: Mapping[str, object], nesting: Nesting, kind: str, where: str, text_where: str
) -> bool:
    """Whether embeddings and output head are one matrix."""
    top = Fields(config, where, {"tie_word_embeddings": nesting.default}).yes("tie_word_embeddings")
    nested = Fields(text, text_where, TEXT_KINDS[kind].defaults).yes("tie_word_embeddings")
    if nesting.tied == "top":
        return top
    if nesting.tied == "nested":
        return nested if "tie_word_embeddings" in text else top or nested
    return top or nested


def _name(config: Mapping[str, object], path: Path) -> str:
    given = config.get("_name_or_path")
    name = given if isinstance(given, str) and given else path.resolve().parent.name
    return name.rstrip("/").rsplit("/", 1)[-1][:80] or "model"


def _part(
    config: Mapping[str, object], keys: tuple[str, ...], path: Path, folder: str, where: str, kind: str
) -> tuple[Mapping[str, object], str]:
    for key in keys:
        part = config.get(key)
        if isinstance(part, Mapping):
            return part, f"{where}: {key}"
    beside = path.parent / folder / "config.json"
    if beside.is_file():
        return strict.read_json(beside, "--model"), str(beside)
    if "hidden_size" in config and folder == "llm" and kind in _TEXT_AT_THE_TOP:
        return config, where
    raise InputError(f"{where}: needs {' or '.join(keys[:2])} (or {folder}/config.json beside it)")


def _tower(config: Mapping[str, object], kind: str, path: Path, where: str) -> tuple[Mapping[str, object], str]:
    """The tower's config; LLaVA's own files and LLaVA-Video's name it only."""
    named = config.get("mm_vision_tower")
    if kind in ("llava_qwen", "llava_llama") and isinstance(named, str) and "vision_tower_cfg" not in config:
        short = named.rstrip("/").rsplit("/", 1)[-1]
        if short not in TOWERS:
            raise InputError(f"{where}: mm_vision_tower={named!r} is not known; legal: {', '.join(TOWERS)}")
        return TOWERS[short], f"{where}: mm_vision_tower"
    tower, tower_where = _part(config, ("vision_config", "vision_tower_cfg"), path, "vision_tower", where, kind)
    inner = tower.get("vision_config")
    return (inner, tower_where) if isinstance(inner, Mapping) else (tower, tower_where)
