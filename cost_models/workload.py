"""What is computed in one step: the model, the tokens of a row, how many rows, and with which numeric types.

    --ctx alone          : context_tokens of text, as in the published headline
    --frames N           : N x tokens_per_frame vision tokens; the rest of context_tokens (or text_tokens) is text
    lengths              : a histogram ((tokens, count), …) of documents packed into rows of context_tokens

`train` is forward, backward and optimizer on global_batch rows; `prefill` is forward of global_batch prompts into a
KV cache; `decode` is one new token for each of global_batch sequences with context_tokens in the cache. With a
`lora_rank` the language model's matrices are frozen, and adapters of that rank on `lora_targets` are trained; beside
them the embeddings or norms, as `lora_beside` says (LongLoRA, arXiv 2309.12307, trains both).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.device import DTYPE_BYTES as DTYPE_BYTES
from cost_models.hardware.device import Dtype as Dtype
from cost_models.models.model import Model
from cost_models.units import show_tokens

Mode = Literal["train", "prefill", "decode"]
Part = Literal["llm", "projector", "tower"]
LoraTarget = Literal["qkv", "out", "up", "down"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)
"""The linear maps of a layer that may have a low-rank adapter: attention's inputs and output, the MLP's two sides."""
LoraBeside = Literal["embeddings", "norms"]
Kernel = Literal["", "fa2", "newest", "sdpa"]
"""Of attention in training: the framework's own, FlashAttention-2, the newest of the card, or what SDPA takes there."""
OPTIMIZER_STATES = {"adamw": 2, "sgd": 1}
"""Values that an optimizer keeps for each weight; SGD keeps its momentum."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """`param`: gathered weights and activations; `master`: the sharded copy that the optimizer updates."""

    param: Dtype = "bf16"
    master: Dtype = "fp32"
    grad: Dtype = "fp32"
    reduce: Dtype = "fp32"
    optimizer: Dtype = "fp32"

    def __post_init__(self) -> None:
        for name, dtype in vars(self).items():
            if dtype not in DTYPE_BYTES:
                raise InputError(f"precision.{name}={dtype!r} is unknown; legal: {', '.join(DTYPE_BYTES)}")


@dataclass(frozen=True)
class Workload:
    """What one step is of: model, tokens of a row, rows, what trains. InputError: what no step can be of."""

    model: Model
    context_tokens: int = field(default=0, kw_only=True)
    frames: int = field(default=0, kw_only=True)
    text_tokens: int | None = field(default=None, kw_only=True)
    lengths: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)
    global_batch: int = field(default=1, kw_only=True)
    mode: Mode = field(default="train", kw_only=True)
    precision: Precision = field(default_factory=Precision, kw_only=True)
    optimizer: Literal["adamw", "sgd"] = field(default="adamw", kw_only=True)
    trainable: tuple[Part, ...] = field(default=("llm", "projector", "tower"), kw_only=True)
    lora_rank: int = field(default=0, kw_only=True, metadata=strict.OPTIONAL)  # 0: its weights train
    lora_targets: tuple[LoraTarget, ...] = field(default=LORA_TARGETS, kw_only=True, metadata=strict.OPTIONAL)
    lora_beside: tuple[LoraBeside, ...] = field(default=(), kw_only=True, metadata=strict.OPTIONAL)  # trained whole
    kernel: Kernel = field(default="", kw_only=True, metadata=strict.OPTIONAL)  # of attention; "": the framework's own

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"mode={self.mode!r} is unknown; legal: {', '.join(get_args(Mode))}")
        if self.kernel not in get_args(Kernel):
            raise InputError(f"kernel={self.kernel!r} is unknown; legal: {', '.join(filter(None, get_args(Kernel)))}")
        if self.frames < 0 or self.global_batch < 1:
            raise InputError(f"frames={self.frames} must be at least 0 and batch={self.global_batch} at least 1")
        if self.frames and self.model.vision is None:
            raise InputError(f"frames={self.frames}, but {self.model.name} has no vision tower; legal: 0")
        if not self.context_tokens:
            object.__setattr__(self, "context_tokens", self.vision_tokens + (self.text_tokens or 0))
        if self.context_tokens < 1:
            raise InputError(f"context_tokens={self.context_tokens} must be at least 1")
        text = self.context_tokens - self.vision_tokens
        if text < 0 or (self.text_tokens is not None and self.text_tokens != text):
            raise InputError(
                f"{self.frames} frames are {self.vision_tokens} tokens and text is {self.text_tokens or 0}: "
                f"that is not a context of {self.context_tokens}; give a context of at least {self.vision_tokens}"
            )
        object.__setattr__(self, "text_tokens", text)
        if any(tokens < 1 or count < 1 or tokens > self.context_tokens for tokens, count in self.lengths):
            raise InputError(f"lengths must be (tokens from 1 to {self.context_tokens}, count from 1)")
        self._check_lora()

    def _check_lora(self) -> None:
        if not 0 <= self.lora_rank <= self.model.hidden:
            raise InputError(f"lora_rank={self.lora_rank} must be from 0 (none) to {self.model.hidden}")
        for name, legal in (("lora_targets", LoraTarget), ("lora_beside", LoraBeside)):
            for value in getattr(self, name):
                if value not in get_args(legal):
                    raise InputError(f"{name}: {value!r} is unknown; legal: {', '.join(get_args(legal))}")
        if not self.lora_rank:
            if self.lora_beside or self.lora_targets != LORA_TARGETS:
                raise InputError("lora_targets and lora_beside need a lora_rank of at least 1")
            return
        if self.mode != "train" or "llm" not in self.trainable:
            raise InputError(f"lora_rank={self.lora_rank} trains the llm; legal with mode=train and llm in trainable")
        if self.model.experts or self.model.latent:
            raise InputError(f"lora_rank={self.lora_rank} is not priced for experts or latent attention; legal: 0")
        if not self.lora_targets:
            raise InputError(f"lora_targets is empty; legal: one or more of {', '.join(LORA_TARGETS)}")

    @property
    def trains_weights(self) -> bool:
        """Whether the language model's matrices have gradients."""
        return self.mode == "train" and "llm" in self.trainable and not self.lora_rank

    @property
    def trains_norms(self) -> bool:
        """Whether its norms have gradients."""
        return self.trains_weights or (self.mode == "train" and self.lora_rank > 0 and "norms" in self.lora_beside)

    @property
    def trains_head(self) -> bool:
        tied = self.model.tied_embeddings and "embeddings" in self.lora_beside
        return self.trains_weights or tied

    @property
    def vision_tokens(self) -> int:
        vision = self.model.vision
        return vision.stretches(self.frames) * vision.tokens_per_frame if vision else 0

    @property
    def grids(self) -> int:
        """What the tower works on: frames, or as many of them together as one patch spans."""
        return self.model.vision.grids(self.frames) if self.model.vision else 0

    @property
    def attended_fraction(self) -> float:
        """Share of the full row's causal pairs that packed documents leave: sum(n l^2) / (sum(n l) x context)."""
        if not self.lengths:
            return 1.0
        pairs = sum(count * tokens**2 for tokens, count in self.lengths)
        return pairs / (sum(count * tokens for tokens, count in self.lengths) * self.context_tokens)

    @property
    def documents(self) -> tuple[int, ...]:
        """Where the documents of a row start, () if it is one: as listed if they fill it, else as many of each in
        proportion; what is left at the end is one more.

        >>> model = Model.load("longvila-8b")
        >>> Workload(model, context_tokens=8, lengths=((4, 1), (2, 2))).documents
        (0, 4, 6)
        >>> Workload(model, context_tokens=8, lengths=((4, 10), (2, 20))).documents
        (0, 4, 6)
        """
        if not self.lengths:
            return ()
        context, total = self.context_tokens, sum(count * tokens for tokens, count in self.lengths)
        starts, seen, at = list[int](), 0, 0
        for tokens, count in self.lengths:
            seen += count
            due = (2 * seen * context + total) // (2 * total)  # of those listed so far, rounded
            here = min(due - len(starts), (context - at) // tokens)
            starts += range(at, at + here * tokens, tokens)
            at += here * tokens
        return (*starts, at) if at < context else tuple(starts)

    def causal_pairs(self, window: int = 0) -> float:
        """(query, key) pairs of a row; with a window of w keys L w - w (w - 1) / 2 for a document of L >= w tokens."""
        context = self.context_tokens
        if not window:
            return context * (context + 1) / 2 * self.attended_fraction
        lengths = self.lengths or ((context, 1),)
        tokens = sum(count * length for length, count in lengths)
        seen = ((length, min(window, length), count) for length, count in lengths)
        return sum(count * (length * w - w * (w - 1) / 2) for length, w, count in seen) * context / tokens

    def describe(self) -> str:
        tokens = f"{show_tokens(self.context_tokens)} tokens"
        if self.frames:
            vision = self.model.vision
            mix = f"{self.frames} frame{'s' if self.frames > 1 else ''} × {vision.tokens_per_frame}" if vision else ""
            if vision and vision.frames_per_grid * vision.frames_pooled > 1:
                each = vision.frames_per_grid * vision.frames_pooled
                mix = f"{self.frames} frames, {vision.tokens_per_frame} for each {each}"
            tokens += f" ({mix} + {show_tokens(self.text_tokens or 0)} text)"
        else:
            tokens += " of text"
        if self.lengths:
            sizes = [size for size, _ in self.lengths]
            most = f"{min(sizes):,} to {max(sizes):,}" if len(sizes) > 1 else f"{sizes[0]:,}"
            tokens += f", packed with documents of {most} tokens"
        lora = f", LoRA rank {self.lora_rank}" if self.lora_rank else ""
        return f"{self.model.name}, {self.mode}, {tokens}, batch {self.global_batch}{lora}"
