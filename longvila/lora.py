"""Low-rank adapters: a linear layer that learns two thin matrices beside a weight that stays.

    y = W x + B (scale · A x),   A: rank x in (random),  B: out x rank (zero),   scale = alpha / rank

The weight keeps its name, so released files and checkpoints fit; `merged` gives the weights that compute the same
without adapters. As in LongLoRA the four projections of attention are adapted (arXiv 2309.12307) unless other targets
are named; the embeddings and norms that it trains beside them are parts of their own (`assemble.PARTS`). Leaves out
dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F

from longvila.job import JobError

TARGETS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": ("o_proj",),
    "up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""What may be adapted, with the names of Llama's and Qwen2's layers."""
ATTENTION = ("qkv", "out")
NAMES = ("lora_a", "lora_b")


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Rank, scale and places of the adapters. JobError: places that there are not."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ATTENTION

    @classmethod
    def asked(cls, rank: int | None, alpha: float, targets: Sequence[str] = ATTENTION) -> Adapters | None:
        """Adapters of that rank; without one, none."""
        return None if rank is None else cls(rank=rank, alpha=alpha, targets=tuple(targets))


class LoraLinear(nn.Linear):
    """A linear layer with an adapter, made from one without; `reset` gives the adapter its values."""

    def __init__(self, inner: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(inner.in_features, inner.out_features, inner.bias is not None, device="meta")
        self.weight, self.bias, self.scale = inner.weight, inner.bias, alpha / rank
        self.lora_a = nn.Parameter(inner.weight.new_empty(rank, inner.in_features))
        self.lora_b = nn.Parameter(inner.weight.new_empty(inner.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        thin = F.linear(input, self.lora_a) * self.scale  # where it is thin: no copy of the wide result, nor gradient
        return super().forward(input) + F.linear(thin, self.lora_b)


def adapt(llm: nn.Module, adapters: Adapters) -> None:
    """Put adapters on every layer of a Hugging Face causal LM; none there to adapt is a JobError."""
    for target in adapters.targets:
        names = TARGETS[target]
        found = [
            (owner, name, child)
            for owner in llm.modules()
            for name, child in owner.named_children()
            if name in names and isinstance(child, nn.Linear)
        ]
        if not found:
            raise JobError(f"settings: lora: this language model has none of the layers {', '.join(names)}")
        for owner, name, child in found:
            setattr(owner, name, LoraLinear(child, adapters.rank, adapters.alpha))


def reset(model: nn.Module, seed: int) -> None:
    """Adapters that change nothing yet, the same under any sharding: A as `nn.Linear` begins, B zero."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            a: Any = module.lora_a.detach()
            full = torch.empty(a.shape).uniform_(-1, 1, generator=random) * module.in_features**-0.5
            full = full.to(device=a.device, dtype=a.dtype)
            if isinstance(a, DTensor):
                full = distribute_tensor(full, a.device_mesh, a.placements, src_data_rank=None)
            a.copy_(full)
            module.lora_b.detach().zero_()


def scales(model: nn.Module) -> dict[str, float]:
    """The scale of every adapted layer, by its name."""
    return {name: module.scale for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def merged(tensors: Mapping[str, Tensor], scale_of: Mapping[str, float]) -> dict[str, Tensor]:
    """The weights that compute what weights and adapters do; `scale_of` an adapted layer's name."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(NAMES)}
    for layer, scale in scale_of.items():
        a, b, weight = (tensors[f"{layer}.{name}"] for name in (*NAMES, "weight"))
        plain[f"{layer}.weight"] = (weight.double() + scale * b.double() @ a.double()).to(weight.dtype)
    return plain
