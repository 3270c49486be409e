"""One call of the attention kernel on a block of queries and keys, and memory-bound work on what it returns.

Units: seconds. Packed documents attend to a fraction; a kernel of before FlashAttention-2 is slower by a factor.
"""

from __future__ import annotations

from typing import Any

from cost_models.step.habits import FA1_SLOWDOWN
from cost_models.step.shape import Shape
from cost_models.timing.kernels import Kernels


def block_s(shape: Shape, kernels: Kernels, q_tokens: Any, kv_tokens: Any, grad: bool, causal: bool) -> Any:
    """The kernel with this rank's heads."""
    model = shape.workload.model
    seconds = kernels.attention_s(
        q_tokens, kv_tokens, shape.heads, shape.kv_heads, model.head_dim, causal,
        backward=grad, batch=shape.rows, dtype=shape.workload.precision.param, value_dim=model.v_dim,
    )  # fmt: skip
    slower = FA1_SLOWDOWN if shape.habits.attention == "fa1" else 1.0
    return seconds * shape.workload.attended_fraction * slower + shape.habits.gap_s


def values_s(shape: Shape, kernels: Kernels, tokens: Any, grad: bool, bytes_per_value: int, launches: int) -> Any:
    """Passes over every value of the output of so many tokens of each row, or of their dQ, dK and dV."""
    model, lines = shape.workload.model, tokens * shape.rows
    values = shape.heads * model.v_dim
    if grad:
        values = shape.heads * model.head_dim + shape.kv_heads * (model.head_dim + model.v_dim)
    return kernels.memory_bound_s(lines * values * bytes_per_value, launches)
