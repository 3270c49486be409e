"""Mixture-of-experts MLPs as numbers: how many experts a layer has, how many a token visits, how wide each is.

    token -> router (hidden x count) -> `chosen` experts of width `ffn`, weighted and summed, + the shared experts

The experts that every token visits are one dense MLP of width `shared_ffn` beside the chosen ones. Weights are exact;
a gated expert has three matrices, another two. Left out: load imbalance (routing is taken as balanced, as training's
auxiliary loss or a capacity makes it), and what steers the choice without a gradient (DeepSeek-V3's correction).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cost_models import strict
from cost_models.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Experts:
    """
    >>> eight = Experts(count=8, chosen=2, ffn=14336)
    >>> eight.matmul_params(4096, gated=True), eight.active_params(4096, gated=True)
    (1409286144, 352354304)
    """

    count: int
    chosen: int  # per token
    ffn: int  # of one expert
    shared_ffn: int = 0  # of the experts that every token visits, together; 0 = none
    shared_gate: bool = False  # a learned weight on the shared experts' output (Qwen2-MoE)
    router_bias: bool = False  # a trained number for each expert (gpt-oss)
    bias: bool = field(default=False, metadata=strict.OPTIONAL)  # of every product of an expert (gpt-oss)

    def __post_init__(self) -> None:
        for name in ("count", "chosen", "ffn"):
            if not 1 <= getattr(self, name) <= 2**31:
                raise InputError(f"experts.{name}={getattr(self, name)} must be from 1 to 2^31")
        if not 0 <= self.shared_ffn <= 2**31:
            raise InputError(f"experts.shared_ffn={self.shared_ffn} must be from 0 to 2^31")
        if self.chosen > self.count:
            raise InputError(f"experts.chosen={self.chosen} exceeds the {self.count} experts")

    def matmul_params(self, hidden: int, gated: bool) -> int:
        """Weights of all experts of one layer, without router and shared ones."""
        bias = (2 if gated else 1) * self.ffn + hidden if self.bias else 0
        return self.count * ((3 if gated else 2) * hidden * self.ffn + bias)

    def shared_params(self, hidden: int, gated: bool) -> int:
        return (3 if gated else 2) * hidden * self.shared_ffn

    def router_params(self, hidden: int) -> int:
        return hidden * self.count + (self.count if self.router_bias else 0) + (hidden if self.shared_gate else 0)

    def active_params(self, hidden: int, gated: bool) -> int:
        """Weights that one token is multiplied with."""
        chosen = self.chosen * (3 if gated else 2) * hidden * self.ffn
        return chosen + self.shared_params(hidden, gated) + hidden * self.count
