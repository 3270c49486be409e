"""The tower and projector of a Hugging Face VLM config, and how many tokens of the language model a frame becomes.

    patches of a frame     (image_size / patch_size)^2; towers of any size (Qwen, GLM, Pixtral) take ANY_SIDE pixels
                           squared unless `--frame-pixels` says otherwise, each side a multiple of patch x merge,
                           rounded; Pixtral's by its own rule (`Vision.of_pixels`)
    features of a frame    its patches, and the class token of CLIP and InternVL; `vision_feature_select_strategy` drops
                           the first of them, or none
    tokens of a frame      merged in squares: ceil(side / merge)^2, by
        spatial_merge_size         Qwen-VL, GLM-V, Mistral 3; temporal_patch_size frames share a grid (Qwen, GLM)
        mm_projector_type          VILA, NVILA: mlp_downsample 2, mlp_downsample_3x3 3; of `dynamic_s2` a frame's
                                   channels come once a scale; frames of several scales (`s2`) are refused
        video_encoder pool_sizes   VILA's TSPVideoEncoder: tokens of [[frames, 1, 1]] are means over so many frames
        downsample_ratio           InternVL: 1 / ratio
        scale_factor               SmolVLM, Idefics3
        mm_tokens_per_image        Gemma 3: pooled to that many
        pooling of video           LLaVA-OneVision 2 x 2 (bilinear, rounded up); LLaVA-NeXT-Video spatial_pool_stride
                                   (rounded down); LLaVA-Video mm_spatial_pool_stride, with a token behind each row
                                   of the grid where mm_newline_position is `grid`, behind each frame for `frame`

Towers with registers, windows or 3-D patches are taken as plain ViTs of their size, a projector of one map, or of more
than two (VILA's 3 x 3 has three), as one of two with as many weights (and so FLOP). GLM-V's blocks are as wide inside
as what the tower gives out (`out_hidden_size`), and its `intermediate_size` is the merger's; Pixtral's have a gate
whatever the activation. Left out: separators and timestamps between frames, which are text; InternVL's tiles (a video
frame is one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from cost_models.errors import InputError
from cost_models.models.config_fields import Fields
from cost_models.models.model import Vision

ANY_SIDE = 448
"""Pixels along a frame where the tower takes any size."""
_SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "image_size": 384,
           "patch_size": 14, "num_hidden_layers": 26}  # fmt: skip
TOWERS: dict[str, Mapping[str, object]] = {
    "siglip-so400m-patch14-384": _SIGLIP,  # LLaVA-NeXT drops the last of its 27 layers
    "clip-vit-large-patch14-336": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                                   "image_size": 336, "patch_size": 14, "num_hidden_layers": 24},
}  # fmt: skip
"""Of LLaVA-Video's configs, which name the tower only (their `config.json` on the hub)."""
_QWEN25 = {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
           "hidden_act": "silu", "temporal_patch_size": 2, "spatial_merge_size": 2}  # fmt: skip
_QWEN3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
          "temporal_patch_size": 2, "spatial_merge_size": 2, "deepstack_visual_indexes": [8, 16, 24]}  # fmt: skip
_GLM = {"depth": 24, "hidden_size": 1536, "intermediate_size": 13696, "num_heads": 12, "patch_size": 14,
        "hidden_act": "silu", "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 4096}  # fmt: skip
_SMALL = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
          "image_size": 224, "patch_size": 32}  # fmt: skip
_BY_MODEL: dict[str, Mapping[str, object]] = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
                 "temporal_patch_size": 2, "spatial_merge_size": 2},
    "qwen2_5_vl": _QWEN25,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "smolvlm": _SMALL,
    "idefics3": _SMALL,
    "internvl": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "image_size": 448, "patch_size": 14},
}  # fmt: skip
_BY_TOWER: dict[str, Mapping[str, object]] = {
    "clip_vision_model": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                          "num_attention_heads": 12, "image_size": 224, "patch_size": 32},
    "siglip_vision_model": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                            "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
    "pixtral": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "image_size": 1024, "patch_size": 16},
}  # fmt: skip
"""Defaults of the tower's classes in transformers 5.23."""
_CLIP, _SIGLIP_CLASS = "clip_vision_model", "siglip_vision_model"
_CLASSES: dict[str, tuple[str, ...]] = {
    "gemma3": (_SIGLIP_CLASS,), "mistral3": ("pixtral",), "llava": (_CLIP, _SIGLIP_CLASS, "pixtral"),
    "llava_next": (_CLIP, _SIGLIP_CLASS), "llava_next_video": (_CLIP, _SIGLIP_CLASS),
    "llava_onevision": (_SIGLIP_CLASS, _CLIP),
}  # fmt: skip
"""The tower's classes, of kinds that leave it to the config; the first where that names none."""
_SELECTS = {"llava": "default", "llava_next": "default", "llava_next_video": "default", "llava_onevision": "full",
            "internvl": "default"}  # fmt: skip
"""Kinds with a `vision_feature_select_strategy`, and their class's."""
_GLM_KINDS = ("glm4v", "glm4v_moe")
_VILA = ("llava_llama", "vila")
_ANY_SIZE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "mistral3")
_SEQUENTIAL = ("mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix", "mlp_downsample_3x3_s2",
               "mlp_downsample_3x3_s2_fix", "identity", "linear", "mlpNx_gelu")  # fmt: skip


class Grid(NamedTuple):
    """How patches become tokens."""

    merge: int  # along each side, before the projector, whose input is that much wider
    tokens: int
    wider: bool = True  # whether merged patches are joined (False: pooled or averaged)


def vision(
    config: Mapping[str, object], tower: Mapping[str, object], kind: str, out: int, where: str, tower_where: str
) -> Vision:
    """The tower in front of a language model of width `out`."""
    named = _named(tower, kind, tower_where)
    fields = Fields(tower, tower_where, _BY_TOWER.get(named) or _BY_MODEL.get(kind, {}))
    hidden = _hidden(fields, kind)
    patch = _side(fields, "patch_size")
    pixtral = named == "pixtral"
    any_size = kind in _ANY_SIZE or pixtral
    pixels = ANY_SIDE if any_size else _pixels(config, fields, kind, where)
    grid = _grid(config, fields, kind, named, pixels // patch, where)
    scales = _vila_scales(config, where) if kind in _VILA else 1
    joined = hidden * (grid.merge**2 if grid.wider else 1) * scales * _depths(config, kind, where)
    temporal = fields.number("temporal_patch_size", 1) if not pixtral else 1
    levels = fields.get("deepstack_visual_indexes")
    made = Vision(
        layers=fields.number("depth" if fields.get("num_hidden_layers") is None else "num_hidden_layers"),
        hidden=hidden,
        ffn=_inside(fields, kind, hidden),
        heads=fields.number("num_heads" if fields.get("num_attention_heads") is None else "num_attention_heads"),
        patches=(pixels // patch) ** 2,
        patch_size=patch,
        tokens_per_frame=grid.tokens,
        projector_in=joined,
        projector_hidden=_projector_hidden(fields, kind, _projector_named(config), hidden, joined, out),
        gated=pixtral or str(fields.get("hidden_act") or "") == "silu",
        frames_per_grid=temporal,
        frames_pooled=_vila_pool(config, where) if kind in _VILA else 1,
        projectors=1 + (len(levels) if isinstance(levels, list) else 0),
        pixel_step=patch * grid.merge if any_size else 0,
        pixel_most=_side(fields, "image_size") if pixtral else 0,
    )
    return made.of_pixels(ANY_SIDE, ANY_SIDE) if any_size else made


def _named(tower: Mapping[str, object], kind: str, where: str) -> str:
    """The tower's class, of the kinds that have a choice; empty: the kind's own."""
    if kind not in _CLASSES:
        return ""
    named = tower.get("model_type", _CLASSES[kind][0])
    if not isinstance(named, str) or named not in _CLASSES[kind]:
        raise InputError(f"{where}: a tower of model_type {named!r} is not known; legal: {', '.join(_CLASSES[kind])}")
    return named


def _pixels(config: Mapping[str, object], fields: Fields, kind: str, where: str) -> int:
    """A side of a frame of a tower that resizes every frame; InternVL's own files may force one."""
    if kind == "internvl_chat" and config.get("force_image_size") is not None:
        return Fields(config, where, {}).number("force_image_size")
    return _side(fields, "image_size")


def _depths(config: Mapping[str, object], kind: str, where: str) -> int:
    """Layers of the tower whose channels reach the projector side by side."""
    listed = config.get("vision_feature_layer")
    if not isinstance(listed, list):
        return 1
    if not kind.startswith("llava") or not listed:
        raise InputError(f"{where}: vision_feature_layer={listed!r} of model_type {kind!r}; legal: a number")
    return len(listed)


def _hidden(fields: Fields, kind: str) -> int:
    """Qwen2-VL's tower calls its width embed_dim, and the language model's hidden_size."""
    return fields.number("embed_dim" if kind == "qwen2_vl" else "hidden_size")


def _inside(fields: Fields, kind: str, hidden: int) -> int:
    """The width of a block's MLP."""
    if kind in _GLM_KINDS:
        return fields.number("out_hidden_size")
    ratio = fields.get("mlp_ratio")
    ffn = int(hidden * ratio) if isinstance(ratio, int | float) and not isinstance(ratio, bool) else 4 * hidden
    return fields.number("intermediate_size", ffn)


def _projector_hidden(fields: Fields, kind: str, named: str, hidden: int, joined: int, out: int) -> int:
    """Between the projector's two maps; of other projectors, the width that gives two maps their weights."""
    if kind.startswith("qwen"):
        return joined
    if kind in _GLM_KINDS:  # a strided convolution, a map, and a gated MLP
        weights = joined * out + out * out + 3 * out * fields.number("intermediate_size")
    elif kind == "mistral3":  # merging, then two maps
        weights = joined * hidden + hidden * out + out * out
    elif kind in ("smolvlm", "idefics3", "gemma3") or named == "linear":
        weights = joined * out
    elif named.startswith("mlp_downsample_3x3"):  # two maps of a third of nine patches' channels, then the last
        weights = joined * (joined // 3) + joined // 3 * out + out * out
    elif maps := re.fullmatch(r"mlp(\d+)x_gelu", named):
        weights = joined * out + (int(maps[1]) - 1) * out * out
    else:
        return 1 if named == "identity" else out
    return round(weights / (joined + out))


def _side(fields: Fields, key: str) -> int:
    """A square's side, which InternVL writes as a pair."""
    value = fields.get(key)
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise InputError(f"{fields.where}: {key}={value!r} must be a square")
        return Fields({key: value[0]}, fields.where, {}).number(key)
    return fields.number(key, 14 if key == "patch_size" else None)


def _grid(config: Mapping[str, object], tower: Fields, kind: str, named: str, side: int, where: str) -> Grid:
    top = Fields(config, where, {})
    features = _features(config, kind, named, side, where)
    if kind in _VILA:
        return _merged(_vila_merge(config, where), side)
    if kind == "mistral3":
        return _merged(top.number("spatial_merge_size", 2), side)
    if kind in _ANY_SIZE:
        return _merged(tower.number("spatial_merge_size", 2), side)
    if kind in ("internvl", "internvl_chat"):
        ratio = top.real("downsample_ratio") or 0.5
        return _merged(_whole_inverse(ratio, where), side)
    if kind in ("smolvlm", "idefics3"):
        return _merged(top.number("scale_factor", 2), side)
    if kind == "gemma3":
        return Grid(1, top.number("mm_tokens_per_image", 256), wider=False)
    if kind == "llava_onevision":
        return Grid(1, (-(-side // 2)) ** 2, wider=False)
    if kind == "llava_next_video":
        return Grid(1, (side // top.number("spatial_pool_stride", 2)) ** 2, wider=False)
    if kind == "llava_qwen":
        return Grid(1, _llava_video_tokens(top, side), wider=False)
    return Grid(1, features)


def _features(config: Mapping[str, object], kind: str, named: str, side: int, where: str) -> int:
    """Of a frame, that the projector sees: its patches and a class token, less the first of them by `default`."""
    if config.get("mm_vision_select_feature") == "cls_patch" and "clip" in str(config.get("mm_vision_tower")):
        raise InputError(f"{where}: mm_vision_select_feature='cls_patch' behind CLIP is not priced; legal: patch")
    if kind not in _SELECTS:
        return side * side
    strategy = config.get("vision_feature_select_strategy", _SELECTS[kind])
    if strategy not in ("default", "full"):
        raise InputError(f"{where}: vision_feature_select_strategy={strategy!r}; legal: default, full")
    classes = named == _CLIP or kind == "internvl"
    features = side * side + classes - (strategy == "default")
    if features != side * side and (kind not in ("llava", "llava_next") or named == "pixtral"):
        raise InputError(
            f"{where}: vision_feature_select_strategy={strategy!r} leaves {features} features of {side}^2 patches; "
            f"legal: {'default' if classes else 'full'}"
        )
    return features


def _merged(merge: int, side: int) -> Grid:
    return Grid(merge, (-(-side // merge)) ** 2)


def _whole_inverse(ratio: float, where: str) -> int:
    merge = round(1 / ratio)
    if merge < 1 or abs(merge * ratio - 1) > 1e-9:
        raise InputError(f"{where}: downsample_ratio={ratio!r} must be 1 over a whole number")
    return merge


def _projector_named(config: Mapping[str, object]) -> str:
    """VILA's and LLaVA's word for the projector; empty where there is none."""
    nested = config.get("mm_projector_cfg")
    named = nested.get("mm_projector_type") if isinstance(nested, Mapping) else None
    for key in ("mm_projector_type", "mm_projector"):
        named = named or config.get(key)
    return named if isinstance(named, str) else ""


def _vila_merge(config: Mapping[str, object], where: str) -> int:
    """Patches merged along a side, by the projector's type (VILA's `multimodal_projector/base_projector.py`)."""
    named = _projector_named(config)
    if not named:
        return 2
    if named.startswith("mlp_downsample_3x3"):
        merge = 3
    elif named.startswith("mlp_downsample"):
        merge = 2
    else:
        merge = 1
    if named not in _SEQUENTIAL and not re.fullmatch(r"mlp\d+x_gelu", named):
        raise InputError(f"{where}: mm_projector_type={named!r} is not known; legal: {', '.join(_SEQUENTIAL)}")
    return merge


def _vila_scales(config: Mapping[str, object], where: str) -> int:
    """How often a frame's channels reach the projector (VILA's `merge_features_for_dynamic_s2`); else a refusal."""
    if config.get("dynamic_s2"):
        return len(str(config.get("s2_scales")).split(","))
    if config.get("s2"):
        raise InputError(f"{where}: s2={config['s2']!r} is not priced: the tower must see a frame at one size")
    return 1


def _vila_pool(config: Mapping[str, object], where: str) -> int:
    """Frames whose embeddings are one mean (VILA's `TSPVideoEncoder`): pool_sizes [[frames, 1, 1]]."""
    encoder = config.get("video_encoder")
    sizes = re.search(r"pool_sizes\W+(\d[\d\W]*)", str(encoder))
    numbers = [int(number) for number in re.findall(r"\d+", sizes[1])] if sizes else [1, 1, 1]
    if len(numbers) != 3 or numbers[1:] != [1, 1] or numbers[0] < 1:
        raise InputError(
            f"{where}: video_encoder={encoder!r} is not priced: pool_sizes must be one pool over frames alone, "
            "such as [[8, 1, 1]]"
        )
    return numbers[0]


def _llava_video_tokens(top: Fields, side: int) -> int:
    stride = top.number("mm_spatial_pool_stride", 2)
    mode = top.get("mm_spatial_pool_mode") or "bilinear"
    if mode not in ("bilinear", "average", "max"):
        raise InputError(f"{top.where}: mm_spatial_pool_mode={mode!r}; legal: average, max, bilinear")
    pooled = -(-side // stride) if mode == "bilinear" else side // stride
    newline = top.get("mm_newline_position") or "one_token"
    after = {"grid": pooled, "frame": 1, "one_token": 0, "no_token": 0}
    if not isinstance(newline, str) or newline not in after:
        raise InputError(f"{top.where}: mm_newline_position={newline!r}; legal: {', '.join(after)}")
    return pooled * pooled + after[newline]
