"""The inputs of multi-head latent attention as phases of a rank, and what they keep for the backward pass.

    norm · down products (q_rank; kv_rank + rope) · [gather of what they gave] · two norms · up products per head
         · rotary on the rope parts · queries and keys put together

The down products are the same for all heads: every tensor rank computes them for its own tokens, and what is gathered
is their narrow result. Bytes per token and head (fused rotary): queries r w rope in place; keys and values read
nope + v, write nope + rope + v. Unfused: rotary in 8 passes over the rope parts, and copies of q, k and v.
"""

from __future__ import annotations

from typing import Any

from cost_models.models.latent import Latent
from cost_models.program import Compute, Phase
from cost_models.step.shape import Shape
from cost_models.step.work import elementwise, matmul_s, norm_bytes, small_s, tensor_exchange
from cost_models.timing.kernels import Kernels


def latent_inputs(shape: Shape, kernels: Kernels, latent: Latent, part: str | None, grad: bool) -> tuple[Phase, ...]:
    """In forward order; the caller turns them round for the backward pass."""
    model, heads = shape.workload.model, shape.workload.model.heads // shape.degrees.tensor
    outer, tokens, narrow = shape.outer_tokens, shape.tokens, latent.kv_rank + latent.rope_dim
    down = matmul_s(shape, kernels, outer, narrow, model.hidden, grad)
    if latent.q_rank is not None:
        down = down + matmul_s(shape, kernels, outer, latent.q_rank, model.hidden, grad)
    up = matmul_s(shape, kernels, tokens, heads * latent.qk_dim, latent.q_rank or model.hidden, grad)
    up = up + matmul_s(shape, kernels, tokens, heads * (latent.nope_dim + latent.v_dim), latent.kv_rank, grad)
    norm_launches = 1 if shape.habits.norm == "fused" else 6
    small = norm_bytes(shape) * latent.norm_params / model.hidden
    gathered = tensor_exchange(shape, "all_gather", grad, (latent.q_rank or model.hidden) + narrow)
    made = tokens * heads * _made_columns(shape, latent) * shape.width
    return (
        elementwise(shape, kernels, norm_bytes(shape), norm_launches, grad, part),
        Compute(part=part or "matmul", seconds=down),
        elementwise(shape, kernels, small, 2 * norm_launches, grad, part),
        *gathered,
        Compute(part=part or "matmul", seconds=up),
        Compute(part=part or "memory_bound", seconds=small_s(shape, kernels, made, _launches(shape))),
    )


def latent_kept_bytes(shape: Shape, latent: Latent) -> Any:
    """What is kept beside q, k, v and the output: both compressions, as they were and normalised."""
    return 2 * shape.tokens * latent.norm_params * shape.width


def _made_columns(shape: Shape, latent: Latent) -> int:
    """Columns per head that are read or written between the products and attention (as many for the gradients)."""
    if shape.habits.rotary == "fused":
        return 2 * latent.rope_dim + 2 * (latent.nope_dim + latent.v_dim) + latent.rope_dim
    return 2 * 8 * latent.rope_dim + 2 * (2 * latent.qk_dim + latent.v_dim)


def _launches(shape: Shape) -> int:
    return 2 if shape.habits.rotary == "fused" else 19
