"""What a step costs, as named parts that add up: seconds, bytes of memory, bytes sent, FLOP.

    step_s = sum of `seconds`        memory_bytes = sum of `memory`        never a bare float

Only exposed communication is in `seconds`: what fits behind compute is in `hidden_s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SECONDS = ("compute", "recompute", "all_to_all", "ring", "sharding", "vision", "tensor", "pipeline", "offload",
           "host", "optimizer")  # fmt: skip
MEMORY = ("parameters", "gradients", "optimizer", "gathered", "activations", "working", "logits", "vision", "cache",
          "communication", "reserve")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepCost:
    seconds: Mapping[str, float]  # by part of SECONDS, and "experts" where they are spread over ranks
    memory: Mapping[str, int]  # peak of the worst rank, by part of MEMORY
    sent_bytes: Mapping[str, float]  # per rank and step, by axis and operation
    hidden_s: Mapping[str, float]  # communication that compute hides
    capacity_bytes: int  # of the smallest GPU in use
    model_flops: float  # of the whole step, without recompute: matmuls and causal attention
    executed_flops: float  # recompute counted
    peak_flops: float  # of all GPUs in use
    tokens: int  # of the step
    ranks: int
    estimates: tuple[str, ...]  # numbers that no measurement backs, in words
    moment: str = ""  # of the step, when memory peaks; empty where a plan file was read

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.capacity_bytes

    @property
    def mfu(self) -> float:
        """Model FLOP (6 per matmul weight and token, attention causal, no recompute) over the bf16 dense peak."""
        return self.model_flops / (self.step_s * self.peak_flops)

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens / self.step_s / self.ranks

    @property
    def gpu_hours(self) -> float:
        return self.step_s * self.ranks / 3600
