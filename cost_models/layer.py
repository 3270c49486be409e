"""One decoder layer as phases of a rank: matmuls, memory-bound work, the head exchange and the ring.

    forward:   norm · QKV · [all-to-all QKV] · ring attention · [all-to-all out] · out projection · norm · MLP
    backward:  the same in reverse, two matmuls for each; the ring carries KV again and dKV
    recompute: `full` runs the forward again, communication included; `all_but_attention` all but the ring and the
               second exchange; `mlp` the first two MLP matmuls

Bytes of a rank (S tokens, b bytes, D head dim): exchange of Q, K, V is S D b (H + 2 K'), of the output S D b H;
a ring hop is 2 S K' D b forward, and backward 2 S K' D b plus 2 S K' D b_grad for dKV (R - 1 hops each way).
Elementwise traffic counts the passes of unfused Hugging Face layers (see `_norm_bytes`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cost_models.kernels import Kernels
from cost_models.program import Compute, Exchange, Phase, Ring
from cost_models.shape import Shape
from cost_models.workload import DTYPE_BYTES


def forward(shape: Shape, kernels: Kernels, *, part: str | None = None) -> tuple[Phase, ...]:
    """Phases of one layer forward; `part` renames the computation (`recompute`)."""
    inside = (*_inputs(shape, kernels, part), ring(shape, kernels, part=part or "attention"))
    return (*inside, *_out_exchange(shape), *_outputs(shape, kernels, part), *_mlp(shape, kernels, part))


def backward(shape: Shape, kernels: Kernels, recompute: str) -> tuple[Phase, ...]:
    """Phases of one layer backward, with what the recompute policy runs again first."""
    again: tuple[Phase, ...] = ()
    if recompute == "full":
        again = forward(shape, kernels, part="recompute")
    elif recompute == "all_but_attention":
        outputs = (*_outputs(shape, kernels, "recompute"), *_mlp(shape, kernels, "recompute", down=False))
        again = (*_inputs(shape, kernels, "recompute"), *_out_exchange(shape), *outputs)
    elif recompute == "mlp":
        again = _mlp(shape, kernels, "recompute", down=False)
    elif recompute == "core_attention":
        again = (ring(shape, kernels, part="recompute"),)
    before = (*_mlp(shape, kernels, None, grad=True), *_outputs(shape, kernels, None, grad=True))
    core = (*_out_exchange(shape), ring(shape, kernels, part="attention", grad=True))
    return (*again, *before, *core, *_inputs(shape, kernels, None, grad=True))


def matmul_s(shape: Shape, kernels: Kernels, m: Any, n: Any, k: Any, grad: bool) -> Any:
    """Forward product m x k by k x n, or both backward products."""
    dtype = shape.workload.precision.param
    if not grad:
        return kernels.gemm_s(m, n, k, dtype)
    return kernels.gemm_s(m, k, n, dtype) + kernels.gemm_s(k, n, m, dtype)


def _norm_bytes(shape: Shape) -> Any:
    """Traffic of one unfused RMSNorm: cast, square, mean, scale in fp32 (28 B), cast back and weight (3 x b + 2 b)."""
    return shape.tokens * shape.workload.model.hidden * (28 + 5 * shape.width)


def _memory(shape: Shape, kernels: Kernels, moved: Any, launches: int, grad: bool, part: str | None) -> Compute:
    """Backward of elementwise work reads the saved input as well as the gradient: twice the traffic."""
    seconds = kernels.memory_bound_s(moved * (2 if grad else 1), launches * (2 if grad else 1))
    return Compute(part=part or "memory_bound", seconds=seconds)


def _inputs(shape: Shape, kernels: Kernels, part: str | None, grad: bool = False) -> tuple[Phase, ...]:
    """Norm, the three projections, rotary, and the exchange of heads (or its gradient's)."""
    model, tokens = shape.workload.model, shape.tokens
    widths = shape.q_width, shape.kv_width, shape.kv_width
    matmul = sum(matmul_s(shape, kernels, tokens, width, model.hidden, grad) for width in widths)
    rotary = tokens * (shape.q_width + shape.kv_width) * 8 * shape.width
    elementwise = _memory(shape, kernels, _norm_bytes(shape) + rotary, 16, grad, part)
    sent = tokens * shape.width * (shape.q_width + 2 * shape.sent_kv_width)
    exchange = Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=sent)
    phases = (elementwise, Compute(part=part or "matmul", seconds=matmul), *_tensor(shape), exchange)
    return phases[::-1] if grad else phases


def _out_exchange(shape: Shape) -> tuple[Phase, ...]:
    sent = shape.tokens * shape.width * shape.q_width
    return (Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=sent),)


def _outputs(shape: Shape, kernels: Kernels, part: str | None, grad: bool = False) -> tuple[Phase, ...]:
    """Output projection and the residual sum."""
    hidden = shape.workload.model.hidden
    matmul = matmul_s(shape, kernels, shape.tokens, hidden, shape.q_width, grad)
    residual = _memory(shape, kernels, shape.tokens * hidden * 3 * shape.width, 1, grad, part)
    return (Compute(part=part or "matmul", seconds=matmul), *_tensor(shape), residual)


def _mlp(shape: Shape, kernels: Kernels, part: str | None, grad: bool = False, down: bool = True) -> tuple[Phase, ...]:
    """Norm, gate and up, activation, down projection, residual. Recompute needs all but the last product."""
    model, tokens = shape.workload.model, shape.tokens
    ups = 2 if model.gated else 1
    matmul = ups * matmul_s(shape, kernels, tokens, shape.ffn, model.hidden, grad)
    if down:
        matmul = matmul + matmul_s(shape, kernels, tokens, model.hidden, shape.ffn, grad)
    activation = tokens * shape.ffn * shape.width * (5 if model.gated else 2)
    moved = _norm_bytes(shape) + activation + 3 * tokens * model.hidden * shape.width
    elementwise = _memory(shape, kernels, moved, 11, grad, part)
    return (elementwise, Compute(part=part or "matmul", seconds=matmul), *(_tensor(shape) if down else ()))


def _tensor(shape: Shape) -> tuple[Phase, ...]:
    """Sequence-parallel tensor parallelism: one all-gather or reduce-scatter of the activations around each block."""
    if np.all(np.asarray(shape.degrees.tensor) == 1):
        return ()
    moved = shape.tokens * shape.workload.model.hidden * shape.width
    return (Exchange(part="tensor", axis="tensor", op="all_gather", bytes=moved),)


def ring(shape: Shape, kernels: Kernels, *, part: str, grad: bool = False) -> Ring:
    """Attention of one rank over its ring: its own causal block, then one block for each hop.

    zigzag and striped: every block is half masked, all ranks alike. contiguous: the last rank computes whole blocks.
    all_gather: the whole KV first, as one hop per peer with nothing to hide behind.
    """
    degrees, model, tokens = shape.degrees, shape.workload.model, shape.ring_tokens
    kind = degrees.ring_kind
    call = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": model.head_dim, "batch": shape.rows}
    call |= {"backward": grad, "dtype": shape.workload.precision.param}
    packed = shape.workload.attended_fraction
    first = kernels.attention_s(tokens, tokens, causal=True, **call) * packed
    if kind == "striped":
        piece = first
    elif kind == "contiguous":
        piece = kernels.attention_s(tokens, tokens, causal=False, **call) * packed
    else:
        piece = kernels.attention_s(tokens, np.maximum(tokens // 2, 1), causal=False, **call) * packed
    kv = 2 * shape.tokens * shape.sent_kv_width
    gradient = kv * DTYPE_BYTES[degrees.grad_ring_dtype] if grad else 0.0 * kv
    return Ring(
        part=part,
        pieces=degrees.ring,
        first_s=first,
        piece_s=piece,
        hop_bytes=kv * shape.width,
        gradient_bytes=gradient,
    )
