"""The teacher, frozen: what each layer's attention is given, what it makes of it, and by which matrix.

    tokens -> layers 0 … deepest that is asked for -> {layer: (hidden states in, output, softmax(Q K^T))}

Layers after the deepest are not run. Matrices need attention written out, which holds [B, H, L, L] of a layer at a time
(and of all layers asked for at the end): rows of at most some 2,000 tokens, as in the paper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longvila import hybrid
from longvila.distill.settings import PRECISIONS, DistillSettings
from longvila.job import JobError


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One layer's attention in one batch."""

    hidden_BLD: Tensor  # after the layer's norm
    output_BLD: Tensor
    matrix_BHLL: Tensor | None  # only where attention is written out


def load_teacher(settings: DistillSettings, *, matrices: bool = False) -> PreTrainedModel:
    """The teacher's model, without gradients."""
    folder = Path(settings.teacher)
    if not (folder / "config.json").is_file():
        raise JobError(f"settings: teacher {settings.teacher!r} is no folder of a model (it has no config.json)")
    attention = "eager" if matrices else "sdpa"
    model = hybrid.load(folder, attention=attention, dtype=PRECISIONS[settings.precision])
    if model.config.model_type not in hybrid.KINDS:
        raise JobError(f"teacher: {model.config.model_type} is not distilled; legal: {', '.join(hybrid.KINDS)}")
    if "ssd" in hybrid.layer_types(model):
        raise JobError(f"teacher: {folder} is a hybrid already; name a model all of whose layers are attention")
    if odd := [layer for layer in settings.keep if not 0 <= layer < len(model.model.layers)]:
        raise JobError(f"settings: keep {odd[0]} is not one of the {len(model.model.layers)} layers, counted from 0")
    return model.to(torch.device(settings.device)).eval().requires_grad_(False)  # type: ignore[arg-type]


def watch(model: PreTrainedModel, tokens_BL: Tensor, layers: Collection[int]) -> dict[int, Seen]:
    """What the attention of these layers sees and makes of a batch."""
    seen: dict[int, Seen] = {}
    with torch.no_grad(), _truncated(model, max(layers) + 1):
        handles = [
            model.model.layers[layer].self_attn.register_forward_hook(_keep(seen, layer), with_kwargs=True)
            for layer in layers
        ]
        try:
            model.model(tokens_BL, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    return seen


def _keep(seen: dict[int, Seen], layer: int) -> Any:
    def hook(module: Any, given: tuple[Any, ...], named: dict[str, Any], made: tuple[Any, ...]) -> None:
        hidden = named["hidden_states"] if "hidden_states" in named else given[0]
        seen[layer] = Seen(hidden_BLD=hidden, output_BLD=made[0], matrix_BHLL=made[1])

    return hook


@contextmanager
def _truncated(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """The model without its later layers, for a while."""
    whole = model.model.layers
    model.model.layers = whole[:layers]
    try:
        yield
    finally:
        model.model.layers = whole
