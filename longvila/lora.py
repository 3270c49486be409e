"""Low-rank adapters: a linear layer that learns two thin matrices beside a weight that stays.

    y = W x + scale · B (A x),   A: rank x in (random),  B: out x rank (zero),   scale = alpha / rank

The weight keeps its name, so released files and checkpoints fit; `merged` gives the weights that compute the same
without adapters. As in LongLoRA the four projections of attention are adapted (arXiv 2309.12307); the embeddings and
norms that it trains beside them are parts of their own (`assemble.PARTS`). Leaves out dropout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longvila.job import JobError

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")
NAMES = ("lora_a", "lora_b")


class LoraLinear(nn.Linear):
    """A linear layer with an adapter; made from one without, whose parameters it takes over."""

    def __init__(self, inner: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(inner.in_features, inner.out_features, inner.bias is not None, device="meta")
        self.weight, self.bias, self.scale = inner.weight, inner.bias, alpha / rank
        new = {"device": inner.weight.device, "dtype": inner.weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(rank, inner.in_features, **new))
        self.lora_b = nn.Parameter(torch.zeros(inner.out_features, rank, **new))
        if not inner.weight.is_meta:
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        wide: Tensor = F.linear(F.linear(input, self.lora_a), self.lora_b)
        return super().forward(input) + self.scale * wide


def adapt(llm: nn.Module, rank: int, alpha: float) -> None:
    """Put adapters on the attention of every layer of a Hugging Face causal LM; none there to adapt is a JobError."""
    found = [
        (owner, name, child)
        for owner in llm.modules()
        for name, child in owner.named_children()
        if name in ADAPTED and isinstance(child, nn.Linear)
    ]
    if not found:
        raise JobError(f"settings: lora: this language model has none of the layers {', '.join(ADAPTED)}")
    for owner, name, child in found:
        setattr(owner, name, LoraLinear(child, rank, alpha))


def merged(tensors: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """The weights that compute what weights and adapters do; `scales` by the name of the adapted layer."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(NAMES)}
    for layer, scale in scales.items():
        a, b, weight = (tensors[f"{layer}.{name}"] for name in (*NAMES, "weight"))
        plain[f"{layer}.weight"] = (weight.double() + scale * b.double() @ a.double()).to(weight.dtype)
    return plain
