"""What a LongVILA is made of: vision tower, downsampling projector, language model, and how text is written for it.

    image_size 384, patch 14 -> 27x27 patches -> 2x2 downsample (27 padded to 28) -> 14x14 = 196 tokens a frame
    image_size 448, patch 14 -> 32x32 patches -> 2x2 256, 3x3 (32 padded to 33) 11x11 = 121, none 1,024

Read from a preset (`tiny`, `longvila-8b`, `longvila-7b`, `longvila-1.5b`), from a YAML file of the same keys, or from
a released folder (see `weights.py`). `llm` holds the keys of any Hugging Face causal LM config, with those of
`hybrid.py`; `vision` holds those of `SiglipVisionConfig`. `vision_select_layer` counts as Hugging Face's
`hidden_states` do: -1 is the output of the last layer before the final norm, -2 that of the layer before; layers that
no output comes from are not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, SiglipVisionConfig

from longvila import hybrid, projector
from longvila.files import read_text
from longvila.job import JobError
from longvila.settings import read_settings, read_yaml
from longvila.tokens import View

TOKENIZERS = ("byte", "folder")


@dataclass(frozen=True, kw_only=True)
class LongVilaConfig:
    """A model as its files state it: language model, tower, projector, and how text and frames are written."""

    llm: Mapping[str, Any]
    vision: Mapping[str, Any]
    vision_select_layer: int = -2
    projector: str = "mlp_downsample"  # see projector.py
    s2_scales: tuple[int, ...] = ()  # sizes at which the tower sees a frame, ascending; none: its own
    s2_repeat: int = 1  # times that a frame's channels are repeated (NVILA's dynamic_s2)
    time_tokens: int = 0  # tokens that name moments of a video, of this format: answers that hold one are not learned
    time_token_format: str = "<t{t}>"
    video_pool: int = 1  # frames of a video whose embeddings are one mean (VILA's TSPVideoEncoder)
    tokenizer: str = "folder"  # byte | folder (the `llm` folder of the weights)
    chat: str = "chatml"  # how turns are written, see tokens.CHATS
    frame_separator: str = "\n"  # text after the tokens of each frame
    frame_opening: str = ""  # text before them
    video_frames: int = 8  # of a video, where a run does not say
    video_fps: float | None = None  # instead, up to `video_frames`
    min_tiles: int = 1  # of a picture
    max_tiles: int = 1  # 1 means that pictures are not tiled
    loss_chunk_tokens: int = 4096  # tokens whose logits exist at one time
    frames_per_chunk: int | None = 64  # the most that go through the tower as one (model.py); None: all

    def __post_init__(self) -> None:
        if "model_type" not in self.llm:
            raise JobError("model: llm has no model_type (for example llama or qwen2)")
        hybrid.shape_of(self.llm)
        if self.tokenizer not in TOKENIZERS:
            raise JobError(f"model: tokenizer {self.tokenizer!r} is none of {', '.join(TOKENIZERS)}")
        for name in ("image_size", "patch_size"):
            value = self.vision.get(name)
            if not isinstance(value, int) or value < 1:
                raise JobError(f"model: vision {name} {value!r} is not a whole number of pixels from 1")
        layers = self.vision.get("num_hidden_layers", 12)
        if not isinstance(layers, int) or layers < 1:
            raise JobError(f"model: vision num_hidden_layers {layers!r} is not a whole number from 1")
        if not -layers <= self.vision_select_layer <= -1:
            raise JobError(f"model: vision_select_layer {self.vision_select_layer} is not within -{layers} … -1")
        if not projector.known(self.projector):
            raise JobError(f"model: projector {self.projector!r} is not known; {projector.LEGAL}")
        self._check_view()
        for name in ("loss_chunk_tokens", "frames_per_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise JobError(f"model: {name} {value} must be at least 1")

    def _check_view(self) -> None:
        size, scales = int(self.vision["image_size"]), self.s2_scales
        if scales and (scales[0] != size or any(scale % size for scale in scales)):
            raise JobError(f"model: s2_scales {list(scales)} are not multiples of the tower's {size} pixels, from 1 on")
        counts = (self.s2_repeat, self.video_pool, self.video_frames, self.min_tiles)
        if min(counts) < 1 or self.min_tiles > self.max_tiles:
            raise JobError(
                "model: s2_repeat, video_pool, video_frames and min_tiles <= max_tiles are whole numbers from 1"
            )
        if self.video_pool > 1 and self.max_tiles > 1:
            raise JobError("model: video_pool with tiled pictures is not run")

    @property
    def image_size(self) -> int:
        """Pixels of a frame's side as it is decoded."""
        return self.s2_scales[-1] if self.s2_scales else int(self.vision["image_size"])

    @property
    def tokens_per_frame(self) -> int:
        side = int(self.vision["image_size"]) // int(self.vision["patch_size"])
        return (-(-side // projector.merged_side(self.projector))) ** 2

    @property
    def vision_width(self) -> int:
        """Channels of a patch that reaches the projector."""
        return int(self.vision_config().hidden_size) * max(len(self.s2_scales), 1) * self.s2_repeat

    @property
    def vocab_size(self) -> int:
        return int(self.llm_config().vocab_size)

    def view(self) -> View:
        fewest, most = self.min_tiles, self.max_tiles
        pictures = None if self.s2_repeat == 1 else "image_aspect_ratio dynamic_s2: videos alone are run"
        return View(
            frames=self.video_frames, fps=self.video_fps, pool=self.video_pool, fewest=fewest, most=most,
            size=self.image_size, no_pictures=pictures,
            moments=tuple(self.time_token_format.replace("{t}", str(t)) for t in range(self.time_tokens)),
        )  # fmt: skip

    def llm_config(self) -> PretrainedConfig:
        given = hybrid.plain(self.llm)
        return AutoConfig.for_model(given.pop("model_type"), **given)

    def vision_config(self) -> SiglipVisionConfig:
        """The tower as built: only the layers up to the selected one, no pooling head."""
        given = dict(self.vision)
        given["num_hidden_layers"] = int(given.get("num_hidden_layers", 12)) + 1 + self.vision_select_layer
        given["vision_use_head"] = False
        return SiglipVisionConfig(**given)


def presets() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    folder = resources.files("longvila") / "presets"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_config(name: str, rope_theta: float | None = None) -> LongVilaConfig:
    """A preset by name or a YAML file by path; `rope_theta` replaces the language model's rotary base (stage 4)."""
    if name in presets():
        text = (resources.files("longvila") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = read_text(Path(name), "model: ")
    else:
        raise JobError(f"model: {name!r} is neither a preset ({', '.join(presets())}) nor a YAML file")
    config = read_settings(LongVilaConfig, read_yaml(text, f"model: {name}"), f"model {name}")
    return with_rope_theta(config, rope_theta)


def with_rope_theta(config: LongVilaConfig, rope_theta: float | None) -> LongVilaConfig:
    """The same model with another rotary base, the knob that context extension turns."""
    if rope_theta is None:
        return config
    if rope_theta <= 0:
        raise JobError(f"settings: rope_theta {rope_theta} must be positive")
    llm = dict(config.llm)
    llm.pop("rope_theta", None)
    rope = {"rope_type": "default", **dict(llm.get("rope_parameters") or {}), "rope_theta": rope_theta}
    return replace(config, llm={**llm, "rope_parameters": rope})
