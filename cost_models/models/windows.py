"""Which layers of a Hugging Face config see a window of keys only, by each class's own rule.

    all         mistral, ministral3, mixtral, phi3: every layer, where `sliding_window` is a number
    typed       ministral: as `layer_types`; without them like `all`
    last        qwen2, qwen3: with `use_sliding_window`, the layers from `max_window_layers` on
    early       qwen2_moe: with `use_sliding_window`, every second layer before `max_window_layers`
    switch      qwen3_moe: with `use_sliding_window`, every layer
    alternate   gemma2, gpt_oss: every second layer, from the first on
    pattern     gemma3: all but each `sliding_window_pattern`-th layer (6)
    nope        smollm3: with `use_sliding_window`, the layers without rotary positions

`layer_types` in the file goes before the rule, except in `all` and `switch`, whose classes do not read it.
"""

from __future__ import annotations

from cost_models.errors import InputError
from cost_models.models.config_fields import Fields
from cost_models.models.text_kinds import TextKind

TYPES = ("full_attention", "sliding_attention")


def windows(fields: Fields, kind: TextKind, layers: int) -> tuple[int, tuple[bool, ...]]:
    """(keys in a window or 0, for each layer whether it has one)."""
    none = (0, (False,) * layers)
    listed = _listed(fields, layers) if fields.config.get("layer_types") is not None else None
    switched = "use_sliding_window" in kind.defaults
    if switched and kind.windows != "nope" and not fields.yes("use_sliding_window"):
        return none
    if listed is not None and kind.windows in ("none", "all", "switch"):
        if len(set(listed)) > 1 or (kind.windows == "none" and any(listed)):
            raise InputError(f"{fields.where}: layer_types mixes kinds that this model_type does not have")
    elif listed is not None:
        return (fields.number("sliding_window"), listed) if any(listed) else none
    if kind.windows == "none" or fields.get("sliding_window") is None:
        return none
    if switched and not fields.yes("use_sliding_window"):
        return none
    window, chosen = fields.number("sliding_window"), tuple(_has_window(fields, kind, layer) for layer in range(layers))
    return (window, chosen) if any(chosen) else none


def _listed(fields: Fields, layers: int) -> tuple[bool, ...]:
    listed = fields.config["layer_types"]
    if not isinstance(listed, list) or len(listed) != layers:
        raise InputError(f"{fields.where}: layer_types must be a list with one entry for each of {layers} layers")
    for one in listed:
        if one not in TYPES:
            raise InputError(f"{fields.where}: layer_types has {one!r}; legal: {', '.join(TYPES)}")
    return tuple(one == "sliding_attention" for one in listed)


def _has_window(fields: Fields, kind: TextKind, layer: int) -> bool:
    if kind.windows == "last":
        return layer >= fields.number("max_window_layers", least=0)
    if kind.windows == "early":
        return layer % 2 == 0 and layer < fields.number("max_window_layers", least=0)
    if kind.windows == "alternate":
        return layer % 2 == 0
    if kind.windows == "pattern":
        return (layer + 1) % fields.number("sliding_window_pattern") != 0
    if kind.windows == "nope":
        return not _rotates(fields, layer)
    return True


def _rotates(fields: Fields, layer: int) -> bool:
    listed = fields.config.get("no_rope_layers")
    if listed is None:
        return (layer + 1) % fields.number("no_rope_layer_interval") != 0
    if not isinstance(listed, list) or len(listed) <= layer or any(one not in (0, 1) for one in listed):
        raise InputError(f"{fields.where}: no_rope_layers must be a list of 0 and 1 with one entry for each layer")
    return bool(listed[layer])
