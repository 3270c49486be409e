"""Attention by chunks of the row, with what finished chunks made in host memory (Ulysses-Offload: FPDT).

    n = ceil(L / chunk) chunks of C tokens, each of all ulysses ranks together; forward for chunk i: its own keys
    (causal), then those of the i - 1 chunks before it, which come from the host while the block before them computes
    backward for key chunk i: queries i … n - 1, each with its output, gradient, log-sum-exp and fp32 sum of dQ

Bytes over the host's link (hq, hk heads of a rank, D head dim, b bytes; C tokens of each row):
    forward    own block    out: q, k, v, output, log-sum-exp, and the layer's normed input (S / n tokens of h)
               other block  in: k, v
    backward   each block   in: q, output, its gradient (b each), sum of dQ (4), log-sum-exp; out: sum of dQ (4)
               own block    in: k, v, normed input beside these
As in DeepSpeed's `deepspeed/sequence/fpdt_layer.py` (arXiv 2408.16978), whose copies run on one stream, two chunks
deep: what does not hide behind its block shows. Blocks are merged in fp32, by the framework's own passes. Left out:
products and exchanges are priced whole (each chunk has its own, with a barrier), pinned memory, the host's size.
"""

from __future__ import annotations

from typing import Any

from cost_models.program import Phase, Staged
from cost_models.step.block import block_s, values_s
from cost_models.step.shape import Shape
from cost_models.timing.kernels import Kernels

ROWS_IN_BACKWARD = 3
"""Whole tensors of a rank's tokens by hidden width: gradient of the output, of the normed input in pieces, joined."""


def chunks(shape: Shape) -> tuple[Any, Any]:
    """(tokens of a chunk in each row, how many)."""
    many = -(-shape.ring_tokens // shape.degrees.attention_chunk_tokens)
    return -(-shape.ring_tokens // many), many


def chunked(shape: Shape, kernels: Kernels, part: str, grad: bool, causal: bool) -> tuple[Phase, ...]:
    """All blocks of a rank's heads: one of each chunk with its own keys, then the others."""
    tokens, many = chunks(shape)
    habits = shape.habits
    pairs = many * (many - 1) / 2 if causal else many * (many - 1)
    merge = values_s(shape, kernels, tokens, grad, habits.merge_gradient_bytes if grad else habits.merge_bytes, 3)
    own = block_s(shape, kernels, tokens, tokens, grad, causal)
    if not grad:
        own = own + values_s(shape, kernels, tokens, grad, habits.widen_bytes, 2)
    other = block_s(shape, kernels, tokens, tokens, grad, False) + merge
    first, further = _backward_bytes(shape, tokens, many) if grad else _forward_bytes(shape, tokens, many)
    return (
        Staged(part=part, blocks=many, seconds=own, bytes=first),
        Staged(part=part, blocks=pairs, seconds=other, bytes=further),
    )


def _tensors(shape: Shape, tokens: Any) -> tuple[Any, Any, Any, Any]:
    """Values of a chunk: queries, output, keys and values; its log-sum-exps."""
    model, lines = shape.workload.model, tokens * shape.rows
    kv = lines * shape.kv_heads * (model.head_dim + model.v_dim)
    return lines * shape.heads * model.head_dim, lines * shape.heads * model.v_dim, kv, lines * shape.heads


def _normed_bytes(shape: Shape, many: Any) -> Any:
    return shape.tokens / many * shape.workload.model.hidden * shape.width


def _forward_bytes(shape: Shape, tokens: Any, many: Any) -> tuple[Any, Any]:
    queries, output, kv, lse = _tensors(shape, tokens)
    leaving = (queries + output + kv) * shape.width + 4 * lse + _normed_bytes(shape, many)
    return leaving, kv * shape.width


def _backward_bytes(shape: Shape, tokens: Any, many: Any) -> tuple[Any, Any]:
    queries, output, kv, lse = _tensors(shape, tokens)
    each = queries * (shape.width + 2 * 4) + 2 * output * shape.width + 4 * lse
    return each + kv * shape.width + _normed_bytes(shape, many), each


def chunk_kept_bytes(shape: Shape) -> Any:
    """Of attention on the GPU: the output as the projection read it."""
    return shape.tokens * shape.out_width * shape.width


def chunk_working_bytes(shape: Shape) -> Any:
    """Backward pass of attention beside the layer's tensors: whole rows, and the buffers of one block.

    Two chunks each of q, output, gradient and fp32 dQ, of k, v; the kernel's dQ, dK, dV and its fp32 sum; sums of dK
    and dV; three copies of a chunk in an exchange; the joined weight's gradient in fp32.
    """
    tokens, many = chunks(shape)
    queries, output, kv, lse = _tensors(shape, tokens)
    width, hidden = shape.width, shape.workload.model.hidden
    rows = ROWS_IN_BACKWARD * shape.tokens * hidden * width
    buffers = queries * (2 * (width + 4) + width + 4) + output * (2 * 2 + 3) * width + kv * (2 * width + width + 4)
    weight = hidden * (shape.q_width + 2 * shape.kv_width) * 4 if shape.workload.trains_weights else 0
    return rows + buffers + 2 * 4 * lse + 2 * _normed_bytes(shape, many) + weight
