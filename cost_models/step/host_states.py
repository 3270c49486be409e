"""Bytes between a GPU and its host where optimizer or all states lie in host memory (ZeRO-Offload, arXiv 2101.06840).

before a gather    a rank's own part of the weights, if they are on the host, too (`offload_states="all"`)
after a reduction  its own part of the gradients (without ZeRO all of them)
"""

from __future__ import annotations

from typing import Any

from cost_models.either import pick
from cost_models.step.shape import Shape


def fetched_bytes(shape: Shape, weights: Any, of_experts: Any = 0.0) -> Any:
    """Of `weights` that the shard group shares, and of experts."""
    if shape.degrees.offload_states != "all":
        return 0.0
    return (weights / shape.degrees.shard + of_experts / shape.degrees.expert_shard) * shape.width


def returned_bytes(shape: Shape, gradient: Any, of_experts: Any = 0.0) -> Any:
    """Of `gradient` bytes before their reduction, and of experts'."""
    if shape.degrees.offload_states == "none":
        return 0.0
    own, expert_own = (
        pick(shape.degrees.zero >= 1, size, 1) for size in (shape.degrees.shard, shape.degrees.expert_shard)
    )
    return gradient / own + of_experts / expert_own
