"""A decoder-only language model, optionally behind a vision tower and projector, as the numbers that cost depends on.

    frames -> tower (ViT) -> projector -> tokens_per_frame embeddings each -> language model -> logits

Loads a preset (`longvila-8b`) or a Hugging Face `config.json` (or its folder); see `huggingface.py`.
Parameter counts are exact for the listed architectures: weights and biases, norms included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from cost_models import strict
from cost_models.errors import InputError
from cost_models.models.experts import Experts
from cost_models.models.latent import Latent
from cost_models.models.ssd import Ssd

LayerKind = Literal["attention", "experts", "window", "window_experts", "ssd"]
Mixer = Literal["attention", "window", "ssd"]
Mlp = Literal["dense", "experts"]


class LayerParts(NamedTuple):
    """What mixes the tokens of a layer, and the MLP behind it: two choices of their own."""

    mixer: Mixer
    mlp: Mlp


LAYER_KINDS: dict[LayerKind, LayerParts] = {
    "attention": LayerParts("attention", "dense"),
    "experts": LayerParts("attention", "experts"),
    "window": LayerParts("window", "dense"),
    "window_experts": LayerParts("window", "experts"),
    "ssd": LayerParts("ssd", "dense"),
}
"""A kind is the name of a pair, as models and plan files write it."""
MOST_LAYERS = 10_000
"""Beyond any model; each layer has a name of its own in `layer_kinds`."""
_PRESETS = Path(__file__).parents[1] / "presets" / "models"


@dataclass(frozen=True, kw_only=True)
class Vision:
    """A ViT tower and the projector behind it (pre-norm blocks, biases everywhere, as SigLIP), no final norm."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    patches: int  # tokens per frame inside the tower
    patch_size: int
    tokens_per_frame: int  # after the projector's downsampling
    projector_in: int  # width of a downsampled patch: hidden x merged patches
    projector_hidden: int
    gated: bool = False
    frames_per_grid: int = field(default=1, metadata=strict.OPTIONAL)  # that one patch spans; counts are a grid's
    frames_pooled: int = field(default=1, metadata=strict.OPTIONAL)  # embeddings of so many are one mean in the row
    projectors: int = field(default=1, metadata=strict.OPTIONAL)  # of the same size: DeepStack adds one for each level
    pixel_step: int = field(default=0, metadata=strict.OPTIONAL)  # sides are multiples of it; 0 = the size is fixed
    pixel_most: int = field(default=0, metadata=strict.OPTIONAL)  # of a side; 0 = no rule (of_pixels)

    def __post_init__(self) -> None:
        _positive("vision", self, *(name for name in ("pixel_step", "pixel_most") if not getattr(self, name)))
        if self.hidden % self.heads:
            raise InputError(f"vision.hidden={self.hidden} is not a multiple of vision.heads={self.heads}")

    @property
    def tower_params(self) -> int:
        h, matrices = self.hidden, 3 if self.gated else 2
        block = 4 * (h * h + h) + matrices * h * self.ffn + (matrices - 1) * self.ffn + h + 4 * h
        return self.layers * block + self.embedding_params

    @property
    def embedding_params(self) -> int:
        """Patches to the tower's width, and their learned positions."""
        pixels = 3 * self.patch_size**2 * self.frames_per_grid
        return pixels * self.hidden + self.hidden + self.patches * self.hidden

    @property
    def block_maps(self) -> tuple[tuple[int, int], ...]:
        """(columns out, columns in) of a block's linear maps."""
        h, ups = self.hidden, 2 if self.gated else 1
        return ((h, h),) * 4 + ((self.ffn, h),) * ups + ((h, self.ffn),)

    def projector_maps(self, out: int) -> tuple[tuple[int, int], ...]:
        """The same of the projector, to a language model of `out` columns."""
        return ((self.projector_hidden, self.projector_in), (out, self.projector_hidden)) * self.projectors

    def projector_params(self, out: int) -> int:
        inside, mid = self.projector_in, self.projector_hidden
        return self.projectors * (2 * inside + inside * mid + mid + mid * out + out)

    def grids(self, frames: int) -> int:
        """Grids of patches that so many frames make.

        >>> Model.load("longvila-8b").vision.grids(9)
        9
        """
        return -(-frames // self.frames_per_grid)

    def stretches(self, frames: int) -> int:
        """Stretches of tokens that so many frames are in the row; the last mean repeats its last frame.

        >>> Model.load("longvila-8b").vision.stretches(9)
        9
        """
        return -(-self.grids(frames) // self.frames_pooled)

    def of_pixels(self, height: int, width: int) -> Vision:
        """The tower for frames of height x width pixels, each side rounded to a multiple of `pixel_step`; by Pixtral's
        rule, with `pixel_most`, shrunk to it and then rounded up."""
        if not self.pixel_step:
            side = math.isqrt(self.patches) * self.patch_size
            if (height, width) == (side, side):
                return self
            raise InputError(f"frame pixels {height}x{width}: this tower resizes every frame; legal: {side}x{side}")
        if self.pixel_most:
            longest = max(height, width, self.pixel_most)
            height, width = (max(1, side * self.pixel_most // longest) for side in (height, width))
            high, wide = (-(-side // self.pixel_step) for side in (height, width))
        else:
            high, wide = (max(1, round(side / self.pixel_step)) for side in (height, width))
        merged = self.pixel_step // self.patch_size
        return replace(self, patches=high * wide * merged**2, tokens_per_frame=high * wide)


@dataclass(frozen=True, kw_only=True)
class Model:
    """
    >>> model = Model.load("longvila-8b")
    >>> model.llm_params, model.heads, model.vision.tokens_per_frame
    (8030261248, 32, 196)
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys; values have `v_dim`
    vocab: int
    gated: bool = True  # SwiGLU: three MLP matrices instead of two
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    vision: Vision | None = None
    layer_kinds: tuple[LayerKind, ...] = ()  # () = all alike: experts where the model has any
    experts: Experts | None = field(default=None, metadata=strict.OPTIONAL)
    latent: Latent | None = field(default=None, metadata=strict.OPTIONAL)
    window: int = field(default=0, metadata=strict.OPTIONAL)  # keys that a token of a `window` layer sees, its own too
    norms: int = field(default=2, metadata=strict.OPTIONAL)  # of a layer, as wide as the model; 4: behind each half too
    o_bias: bool = field(default=False, metadata=strict.OPTIONAL)  # on attention's output
    mlp_bias: bool = field(default=False, metadata=strict.OPTIONAL)  # of a dense MLP
    sinks: bool = field(default=False, metadata=strict.OPTIONAL)  # a learned score for each head, of no key
    attention_softcap: float | None = field(default=None, metadata=strict.OPTIONAL)  # cap x tanh(score / cap)
    logits_softcap: float | None = field(default=None, metadata=strict.OPTIONAL)
    ssd: Ssd | None = field(default=None, metadata=strict.OPTIONAL)  # of the layers that mix tokens by a state

    def __post_init__(self) -> None:
        _positive("model", self, *(() if self.window else ("window",)))
        if not self.layer_kinds:
            kind: LayerKind = "experts" if self.experts else "attention"
            if not 1 <= self.layers <= MOST_LAYERS:
                raise InputError(f"layers={self.layers}; legal: 1 to {MOST_LAYERS}")
            object.__setattr__(self, "layer_kinds", (kind,) * self.layers)
        if len(self.layer_kinds) != self.layers:
            raise InputError(f"layer_kinds names {len(self.layer_kinds)} layers of {self.layers}")
        if any(LAYER_KINDS[kind].mixer == "window" for kind in self.layer_kinds) != (self.window > 0):
            raise InputError("layer_kinds and window disagree: layers of windows need `window`, and the other way")
        if any(LAYER_KINDS[kind].mixer == "ssd" for kind in self.layer_kinds) != (self.ssd is not None):
            raise InputError("layer_kinds and ssd disagree: layers of kind ssd need `ssd`, and the other way")
        if any(LAYER_KINDS[kind].mlp == "experts" for kind in self.layer_kinds) != (self.experts is not None):
            raise InputError("layer_kinds and experts disagree: layers of experts need `experts`, and the other way")
        if self.latent is not None and (self.latent.qk_dim, self.heads) != (self.head_dim, self.kv_heads):
            raise InputError(
                f"latent attention has head_dim={self.latent.qk_dim} and as many KV heads as heads ({self.heads}), "
                f"not head_dim={self.head_dim} and kv_heads={self.kv_heads}"
            )
        if self.heads % self.kv_heads:
            raise InputError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")

    @classmethod
    def load(cls, name: str) -> Model:
        """A preset by name, or a `config.json` (or the folder that holds one) of a Hugging Face model."""
        if name in cls.presets():
            return _preset(name)
        path = Path(name)
        if path.is_dir():
            path = path / "config.json"
        if not path.is_file():
            raise InputError(
                f"--model {name!r} is neither a preset nor a config.json or its folder; "
                + strict.nearest(name, cls.presets())
            )
        from cost_models.models.huggingface import read_config

        return read_config(path)

    @staticmethod
    def presets() -> list[str]:
        return sorted(path.stem for path in _PRESETS.glob("*.yaml"))

    @property
    def v_dim(self) -> int:
        """Width of a value head."""
        return self.latent.v_dim if self.latent else self.head_dim

    @cached_property
    def layer_params(self) -> int:
        """Weights of one decoder layer with a dense MLP."""
        return self.layer_matmul_params + self.layer_small_params + self.mlp_bias_params

    @cached_property
    def attention_params(self) -> int:
        """Matrix weights of one layer's attention."""
        if self.latent is not None:
            return self.latent.matmul_params(self.hidden, self.heads)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * q + 2 * kv)

    @cached_property
    def layer_matmul_params(self) -> int:
        return self.attention_params + (3 if self.gated else 2) * self.hidden * self.ffn

    @cached_property
    def layer_small_params(self) -> int:
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        bias += (self.hidden if self.o_bias else 0) + (self.heads if self.sinks else 0)
        latent = self.latent.norm_params if self.latent else 0
        return self.norms * self.hidden + bias + (2 * self.head_dim if self.qk_norm else 0) + latent

    @property
    def mlp_bias_params(self) -> int:
        """Biases of a dense MLP."""
        return (2 if self.gated else 1) * self.ffn + self.hidden if self.mlp_bias else 0

    @cached_property
    def expert_layers(self) -> int:
        return sum(LAYER_KINDS[kind].mlp == "experts" for kind in self.layer_kinds)

    @cached_property
    def ssd_layer_params(self) -> int:
        """Weights of one decoder layer that mixes tokens by a state."""
        if self.ssd is None:
            return 0
        mlp = (3 if self.gated else 2) * self.hidden * self.ffn + self.mlp_bias_params
        return self.ssd.matmul_params(self.hidden) + self.ssd.small_params + mlp + self.norms * self.hidden

    @cached_property
    def expert_layer_params(self) -> int:
        """Weights of one decoder layer whose MLP is a mixture of experts."""
        if self.experts is None:
            return 0
        mixture = self.experts.matmul_params(self.hidden, self.gated) + self.experts.router_params(self.hidden)
        shared = self.experts.shared_params(self.hidden, self.gated)
        return self.attention_params + mixture + shared + self.layer_small_params

    @cached_property
    def params_of_layers(self) -> tuple[int, ...]:
        """Weights of each decoder layer."""
        by_kind = dict.fromkeys(self.layer_kinds, self.layer_params)
        for kind in by_kind:
            if LAYER_KINDS[kind].mlp == "experts":
                by_kind[kind] = self.expert_layer_params
            elif LAYER_KINDS[kind].mixer == "ssd":
                by_kind[kind] = self.ssd_layer_params
        return tuple(by_kind[kind] for kind in self.layer_kinds)

    @cached_property
    def active_params(self) -> int:
        """Weights that a token passes: all but the experts that it does not visit."""
        if self.experts is None:
            return self.llm_params
        one = self.experts.matmul_params(self.hidden, self.gated) // self.experts.count
        idle = (self.experts.count - self.experts.chosen) * one
        return self.llm_params - self.expert_layers * idle

    @cached_property
    def embedding_params(self) -> int:
        return self.vocab * self.hidden

    @cached_property
    def head_params(self) -> int:
        """Weights of the output head that are not the embedding's."""
        return 0 if self.tied_embeddings else self.vocab * self.hidden

    @cached_property
    def llm_params(self) -> int:
        return sum(self.params_of_layers) + self.embedding_params + self.head_params + self.hidden

    @cached_property
    def vision_params(self) -> int:
        return self.vision.tower_params + self.vision.projector_params(self.hidden) if self.vision else 0

    @cached_property
    def params(self) -> int:
        return self.llm_params + self.vision_params


def _positive(where: str, value: object, *unless: str) -> None:
    for name, number in vars(value).items():
        if name not in unless and isinstance(number, int) and not isinstance(number, bool) and not 1 <= number <= 2**31:
            raise InputError(f"{where}.{name}={number} must be from 1 to 2^31")


@cache
def _preset(name: str) -> Model:
    text = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    return strict.read(Model, {"name": name, **strict.parse_yaml(text, f"preset {name}")}, f"preset {name}")
