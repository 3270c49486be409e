"""What a released folder says of its model: every key that changes tokens is run, or refused by its name.

    folder/config.json                      llm_cfg, vision_tower_cfg, mm_projector_cfg, and how media are seen
    folder/{llm, vision_tower, mm_projector}/   each with config.json and weights; or one index of weights at the root

`released.yaml` says of each key of NVlabs/VILA's configs whether it is run, must be off, or changes nothing here. Any
other key is told by `unknown`, unless its value is empty.

Which order of tokens `mlp_downsample` means follows from what wrote the folder. The code turned to rows first with
NVILA's release (36f6adc, December 2024), which also brought the keys `image_encoder` and `video_encoder`; and every
VILA before it was of Llama's kind. So: one of these keys, or a language model of another kind, means rows first; else
columns first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from longvila import projector
from longvila.config import LongVilaConfig
from longvila.files import read_text
from longvila.job import JobError
from longvila.settings import read_settings, read_yaml

PARTS = {"llm": "llm", "vision_tower": "tower", "mm_projector": "projector"}
"""Folder of a part -> attribute of the model."""
EXTRA_KEYS = (
    "tokenizer", "chat", "frame_separator", "frame_opening", "loss_chunk_tokens", "frames_per_chunk", "projector",
    "video_frames", "video_fps", "video_pool", "time_tokens", "time_token_format", "min_tiles", "max_tiles",
    "s2_scales", "s2_repeat",
)  # fmt: skip
"""Fields of `LongVilaConfig` that an exported folder keeps under the key `longvila`."""

_TWICE = ("mm_projector", "image_aspect_ratio", "num_video_frames", "fps", "min_tiles", "max_tiles", "image_encoder",
          "video_encoder", "s2", "dynamic_s2", "s2_scales")  # fmt: skip
"""Published keys that an export holds, and its key `longvila` once more, in our words."""
_EMPTY: tuple[object, ...] = (None, False, 0, "", [], {}, -1)
_ENCODERS = {"image_encoder": "BasicImageEncoder", "video_encoder": "BasicVideoEncoder"}
_POOLING = "TSPVideoEncoder"
_PROCESSOR = "preprocessor_config.json"
_PICTURES: dict[str, Any] = {
    "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": 0.5, "image_std": 0.5, "do_center_crop": False,
}  # fmt: skip
"""Of SigLIP's image processor (resample 3 is bicubic): what `processor.py` does."""
_TEMPLATES = {"qwen2": "chatml", "vicuna_v1": "vicuna", "llama_3": "llama3", "hermes_2": "hermes", "hermes-2": "hermes"}


def read_config(folder: Path) -> LongVilaConfig:
    """The model that a released folder describes."""
    if not folder.is_dir():
        raise JobError(f"weights: {folder} is not a folder")
    top = read_json(folder / "config.json")
    llm, vision, projected = (_part_config(folder, top, part) for part in PARTS)
    for key, legal in keys()["off"].items():
        if top.get(key) is not None and top[key] not in legal:
            raise _refusal(folder, key, top[key], f"run are {', '.join(map(str, legal)) or 'models without it'}")
    if llm.get("quantization_config"):
        raise _refusal(folder, "llm quantization_config", llm["quantization_config"], "run are models without it")
    if vision.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise _refusal(folder, "vision_tower model_type", vision["model_type"], "run is siglip_vision_model")
    opening, separator, pool = _texts(folder, top)
    own = top.get("longvila", {})
    given = {
        "chat": _chat(folder, top, llm),
        "projector": projector_of(folder, top, llm, projected),
        "frame_opening": opening,
        "frame_separator": separator,
        "video_pool": pool,
        **_seen(folder, top, vision),
        **_moments(folder, top),
        **{key: value for key, value in own.items() if key in EXTRA_KEYS},
        "llm": {key: value for key, value in llm.items() if key not in ("torch_dtype", "dtype")},
        "vision": {key: value for key, value in vision.items() if key not in ("torch_dtype", "dtype", "model_type")},
        "vision_select_layer": -2 if top.get("mm_vision_select_layer") is None else top["mm_vision_select_layer"],
    }
    config = read_settings(LongVilaConfig, given, f"weights {folder}")
    _agrees(folder, top, root_config(config))
    return config


def _agrees(folder: Path, top: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Refuse an export whose published keys were changed, while its own key `longvila` says what they were."""
    for key in _TWICE if "longvila" in top and "num_video_frames" in top else ():
        if top.get(key) != written.get(key):
            raise _refusal(folder, key, top.get(key), f"its key longvila says {written.get(key)!r}: change both")


def root_config(config: LongVilaConfig) -> dict[str, Any]:
    """config.json of an exported folder: VILA's keys, which its own code reads, and ours under `longvila`."""
    columns = config.projector == projector.COLUMNS
    texts = {"start_tokens": config.frame_opening or None, "end_tokens": config.frame_separator or None}
    encoders: dict[str, Any] = {
        key: {"_target_": f"llava.model.encoders.{name}", **texts}
        for key, name in _ENCODERS.items()
        if not columns  # the earlier code knew no encoders, which is how it is told apart
    }
    if config.video_pool > 1:
        pooled = {"_target_": f"llava.model.encoders.{_POOLING}", "pool_sizes": [[config.video_pool, 1, 1]]}
        encoders["video_encoder"] = {**texts, **pooled}
    scales: dict[str, Any] = {"s2": True, "s2_scales": ",".join(map(str, config.s2_scales))} if config.s2_scales else {}
    if config.s2_repeat > 1:  # of the released scales, multiples of the tower's size, videos see the number alone
        sizes = [config.image_size * step for step in range(1, config.s2_repeat + 1)]
        scales = {"dynamic_s2": True, "s2_scales": ",".join(map(str, sizes)), "s2_resize_output_to_scale_idx": -1}
    tiles = {"min_tiles": config.min_tiles, "max_tiles": config.max_tiles} if config.max_tiles > 1 else {}
    moments: dict[str, Any] = {}
    if config.time_tokens:
        moments = {"num_time_tokens": config.time_tokens, "time_token_format": config.time_token_format}
    return {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "mm_projector": "mlp_downsample" if columns else config.projector,
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "cls_patch",
        "image_aspect_ratio": "dynamic" if tiles else "resize",
        "num_video_frames": config.video_frames,
        "fps": config.video_fps or 0.0,
        **encoders,
        **scales,
        **tiles,
        **moments,
        "longvila": {key: getattr(config, key) for key in EXTRA_KEYS},
    }


def tokenizer_folder(folder: Path) -> Path:
    """Where a released folder keeps its tokenizer: with the language model, else at the root."""
    at_root = not (folder / "llm" / "tokenizer_config.json").is_file()
    return folder if at_root and (folder / "tokenizer_config.json").is_file() else folder / "llm"


def unknown(folder: Path) -> list[str]:
    """Keys of config.json that are neither run, nor checked, nor known to change nothing, with a value."""
    top, known = read_json(folder / "config.json"), {key for group in keys().values() for key in group}
    return sorted(key for key in top if key not in known and top[key] not in _EMPTY)


@lru_cache(maxsize=1)
def keys() -> Mapping[str, Any]:
    """`released.yaml`: run, off with the legal values, idle."""
    return read_yaml((resources.files("longvila") / "released.yaml").read_text(encoding="utf-8"), "released.yaml")


def projector_of(folder: Path, top: Mapping[str, Any], llm: Mapping[str, Any], projected: Mapping[str, Any]) -> str:
    """The kind of projector, in `projector.py`'s names."""
    kind = projected.get("mm_projector_type", top.get("mm_projector"))
    if not projector.known(kind) or kind == projector.COLUMNS:
        raise _refusal(folder, "mm_projector", kind, projector.LEGAL)
    if kind == "mlp_downsample":
        late = "image_encoder" in top or "video_encoder" in top or llm.get("model_type") != "llama"
        return kind if late and "longvila" not in top else projector.COLUMNS
    return str(kind)


def _seen(folder: Path, top: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """How frames and pictures reach the tower."""
    size, fps = vision.get("image_size"), top.get("fps") or 0
    if top.get("vision_resolution") not in (None, -1, size):
        raise _refusal(folder, "vision_resolution", top["vision_resolution"], f"run is the tower's {size}")
    if not isinstance(fps, int | float) or not 0 <= fps < math.inf:
        raise _refusal(folder, "fps", fps, "it is frames a second, or 0 for num_video_frames spread evenly")
    seen: dict[str, Any] = {"video_frames": top.get("num_video_frames") or 8, "video_fps": fps if fps else None}
    if top.get("image_aspect_ratio") == "dynamic":
        seen |= {"min_tiles": top.get("min_tiles") or 1, "max_tiles": top.get("max_tiles") or 12}
    scales = _scales(folder, top)
    _check_processor(folder, scales[-1] if scales and top.get("s2") else size, size)
    if top.get("dynamic_s2"):
        seen["s2_repeat"] = len(scales)
    elif top.get("s2"):
        seen["s2_scales"] = scales
        for key, run in {"s2_max_split_size": size, "s2_resize_output_to_scale_idx": 0}.items():
            if top.get(key) not in (None, run):
                raise _refusal(folder, key, top[key], f"run with s2 is {run}")
    elif top.get("image_aspect_ratio") == "dynamic_s2":
        raise _refusal(folder, "image_aspect_ratio", "dynamic_s2", "it goes with dynamic_s2: true")
    return seen


def _check_processor(folder: Path, *sides: object) -> None:
    """Refuse pictures that the tower's processor would make otherwise than `processor.py`; `sides` are legal."""
    for file in (folder / "vision_tower" / _PROCESSOR, folder / _PROCESSOR):
        if not file.is_file():
            continue
        given = read_json(file)
        sizes = [{"height": side, "width": side} for side in sides]
        for key, run in {**_PICTURES, "size": given["size"] if given.get("size") in sizes else sizes[0]}.items():
            value = given.get(key, run)
            if value != run and not (isinstance(run, float) and _all_near(value, run)):
                raise JobError(f"weights: {file}: {key} {value!r} is not run; run is {run}")


def _all_near(value: Any, run: float) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(one, int | float) and abs(one - run) < 1e-6 for one in values)


def _moments(folder: Path, top: Mapping[str, Any]) -> dict[str, Any]:
    """Time tokens: the tokenizer has them, and they change nothing in a text without them."""
    count, written = top.get("num_time_tokens") or 0, top.get("time_token_format") or "<t{t}>"
    if not isinstance(count, int) or count < 0 or (top.get("time_token_ids") and not count):
        raise _refusal(folder, "num_time_tokens", count, "it is how many time_token_ids there are")
    if count and (not isinstance(written, str) or "{t}" not in written):
        raise _refusal(folder, "time_token_format", written, 'it holds "{t}"')
    return {"time_tokens": count, "time_token_format": written} if count else {}


def _scales(folder: Path, top: Mapping[str, Any]) -> list[int]:
    given = top.get("s2_scales")
    try:
        scales = sorted(int(scale) for scale in (given.split(",") if isinstance(given, str) else given or []))
    except (TypeError, ValueError):
        scales = []
    if not scales and (top.get("s2") or top.get("dynamic_s2")):
        raise _refusal(folder, "s2_scales", given, 'it must be sizes such as "448,896"')
    return scales


def _texts(folder: Path, top: Mapping[str, Any]) -> tuple[str, str, int]:
    """The text before and after each frame, and the frames that are one mean: VILA's `llava/model/encoders`."""
    texts, pool = {}, 1
    for key, name in _ENCODERS.items():
        given = top.get(key)
        try:
            encoder = json.loads(given) if isinstance(given, str) else given or {}
        except (ValueError, RecursionError):
            raise _refusal(folder, key, given, "it is not JSON") from None
        if not isinstance(encoder, Mapping):
            raise _refusal(folder, key, given, "it is a mapping with _target_")
        target = str(encoder.get("_target_", name)).rpartition(".")[2]
        if key == "video_encoder" and target == _POOLING:
            pool = _pooled(folder, encoder.get("pool_sizes"))
        elif target != name:
            raise _refusal(folder, key, target, f"run is {name}{f' or {_POOLING}' * (key == 'video_encoder')}")
        if encoder.get("sep_tokens") is not None:
            raise _refusal(folder, f"{key} sep_tokens", encoder["sep_tokens"], "run is none")
        texts[key] = encoder.get("start_tokens") or "", encoder.get("end_tokens", "\n") or ""
    if texts["image_encoder"] != texts["video_encoder"]:
        raise _refusal(folder, "image_encoder", texts["image_encoder"], "run are video_encoder's start and end_tokens")
    return *texts["video_encoder"], pool


def _pooled(folder: Path, sizes: Any) -> int:
    match sizes:
        case [[int(frames), 1, 1]] if frames >= 1:
            return frames
    raise _refusal(folder, "video_encoder pool_sizes", sizes, "run is one pool over frames alone, such as [[8, 1, 1]]")


def _chat(folder: Path, top: Mapping[str, Any], llm: Mapping[str, Any]) -> str:
    """The template: named by the folder, else by the language model as VILA's `conversation.py` maps its releases."""
    named = top.get("chat_template")
    if named is not None:
        if not isinstance(named, str) or named not in _TEMPLATES:
            raise _refusal(folder, "chat_template", named, f"legal: {', '.join(_TEMPLATES)}")
        return _TEMPLATES[named]
    if llm.get("model_type") != "llama":
        return "chatml"
    words = llm.get("vocab_size", 0) // 100
    return {320: "vicuna", 640: "hermes"}.get(words, "llama3")  # Llama 2, Yi, Llama 3


def _part_config(folder: Path, top: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The part's own config.json, else what the root's says of it."""
    inside = top.get(f"{part}_cfg")
    if (folder / part / "config.json").is_file() or not isinstance(inside, Mapping):
        inside = read_json(folder / part / "config.json")
    return inside.get("vision_config", inside)


def _refusal(folder: Path, key: str, value: object, legal: str) -> JobError:
    shown = str(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."
    return JobError(f"weights: {folder}/config.json: {key} {shown!r} is not run; {legal}")


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object of a folder of weights."""
    try:
        content = json.loads(read_text(path, "weights: "))
    except (ValueError, RecursionError) as fault:
        raise fault if isinstance(fault, JobError) else JobError(f"weights: {path} cannot be read (not JSON)") from None
    if not isinstance(content, Mapping):
        raise JobError(f"weights: {path} is not a JSON object")
    return content
