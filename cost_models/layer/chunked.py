"""Attention by chunks of the row, with what finished chunks made in host memory (Ulysses-Offload: FPDT).

    n = ceil(L / chunk) chunks of C tokens, each of all ulysses ranks together; forward for chunk i: its keys
    (causal), then those of the i - 1 chunks before it, which come from the host while the block before them computes
    backward for key chunk i: queries i … n - 1, each with its output, gradient, log-sum-exp and fp32 sum of dQ

Bytes over the host's link (hq, hk heads of a rank, D head dim, b bytes; C tokens of each row):
    forward    first block  out: q, k, v, output, log-sum-exp, and the layer's normed input (S / n tokens of h)
               other block  in: k, v
    backward   each block   in: q, output, its gradient (b each), sum of dQ (4), log-sum-exp; out: sum of dQ (4)
               first block  in: k, v, normed input as well
As in DeepSpeed's `deepspeed/sequence/fpdt_layer.py` (arXiv 2408.16978), whose copies run on one stream, two chunks
deep: what does not hide behind its block shows. Blocks are merged in fp32, by the framework's passes. Left out:
products and exchanges are priced as one (each chunk has some, with a barrier), pinned memory, the host's size.

Where keys stay on the GPU (`chunks_on_card`: this project's executor) nothing crosses the host's link, and backward has
queries outside: for query chunk i, last first, keys 0 … i, whose fp32 sums of dK and dV are then there for all chunks.
"""

from __future__ import annotations

from cost_models.layer.operators import attention_call_s, attention_passes_s
from cost_models.layer.sizes import RankSizes
from cost_models.number import Number, larger
from cost_models.program import Compute, Phase, Staged
from cost_models.timing.kernels import Kernels

ROWS_IN_BACKWARD = 3
"""Whole tensors of a rank's tokens by hidden width: gradient of the output, of the normed input in pieces, joined."""


def chunks(sizes: RankSizes) -> tuple[Number, Number]:
    """(tokens of a chunk in each row, how many)."""
    return sizes.ring_tokens // sizes.row_chunks, sizes.row_chunks


def chunked(sizes: RankSizes, kernels: Kernels, part: str, grad: bool, causal: bool) -> tuple[Phase, ...]:
    """All blocks of a rank's heads: for each chunk one with its keys, then those with others."""
    tokens, many = chunks(sizes)
    framework = sizes.framework
    pairs = many * (many - 1) / 2 if causal else many * (many - 1)
    merge = attention_passes_s(
        sizes, kernels, tokens, grad, framework.merge_gradient_bytes if grad else framework.merge_bytes, 3
    )
    causal_s = attention_call_s(sizes, kernels, tokens, tokens, grad, causal)
    if not grad:
        causal_s = causal_s + attention_passes_s(sizes, kernels, tokens, grad, framework.widen_bytes, 2)
    other = attention_call_s(sizes, kernels, tokens, tokens, grad, False) + merge
    if sizes.by_rows:
        summed = merge if grad else 0.0  # its own keys' gradients too are added to what later queries gave
        return (Compute(part=part, seconds=many * (causal_s + summed) + pairs * other),)
    first, further = _backward_bytes(sizes, tokens, many) if grad else _forward_bytes(sizes, tokens, many)
    return (
        Staged(part=part, blocks=many, seconds=causal_s, bytes=first),
        Staged(part=part, blocks=pairs, seconds=other, bytes=further),
    )


def _tensors(sizes: RankSizes, tokens: Number) -> tuple[Number, Number, Number, Number]:
    """Values of a chunk: queries, output, keys and values; its log-sum-exps."""
    model, lines = sizes.workload.model, tokens * sizes.rows
    kv = lines * sizes.kv_heads * (model.head_dim + model.v_dim)
    return lines * sizes.heads * model.head_dim, lines * sizes.heads * model.v_dim, kv, lines * sizes.heads


def _normed_bytes(sizes: RankSizes, many: Number) -> Number:
    return sizes.tokens / many * sizes.workload.model.hidden * sizes.width


def _forward_bytes(sizes: RankSizes, tokens: Number, many: Number) -> tuple[Number, Number]:
    queries, output, kv, lse = _tensors(sizes, tokens)
    leaving = (queries + output + kv) * sizes.width + 4 * lse + _normed_bytes(sizes, many)
    return leaving, kv * sizes.width


def _backward_bytes(sizes: RankSizes, tokens: Number, many: Number) -> tuple[Number, Number]:
    queries, output, kv, lse = _tensors(sizes, tokens)
    each = queries * (sizes.width + 2 * 4) + 2 * output * sizes.width + 4 * lse
    return each + kv * sizes.width + _normed_bytes(sizes, many), each


def host_chunk_bytes(sizes: RankSizes) -> Number:
    """In host memory while a layer's gradients are made: all of a rank's chunks of one layer."""
    queries, output, kv, lse = _tensors(sizes, sizes.ring_tokens)
    return queries * (sizes.width + 4) + (2 * output + kv) * sizes.width + 4 * lse + _normed_bytes(sizes, 1)


def stream_bytes(sizes: RankSizes) -> Number:
    """What one stream's pool ends up with where streams are taken in turn, the mean of four roles (of copies and of the
    normed input, forward and backward).

    Forward copies: two chunks of k and v, one of q, output and log-sum-exp. Backward copies: two of q, output, its
    gradient, fp32 dQ, log-sum-exp, k and v; fp32 sums of dK and dV; three copies in an exchange. The others: output and
    log-sum-exp; two chunks of the normed input and the joined weight's gradient in fp32.
    """
    tokens, many = chunks(sizes)
    queries, output, kv, lse = _tensors(sizes, tokens)
    width, hidden = sizes.width, sizes.workload.model.hidden
    forward = (2 * kv + queries + output) * width + 4 * lse
    backward = 2 * (queries * (width + 4) + 2 * output * width + kv * width + 4 * lse) + 4 * kv + 3 * output * width
    weight = hidden * (sizes.q_width + 2 * sizes.kv_width) * 4 if sizes.workload.trains_weights else 0
    others = output * width + 4 * lse + 2 * _normed_bytes(sizes, many) + weight
    return (forward + backward + others) / 4


def chunk_working_bytes(sizes: RankSizes) -> Number:
    """Bytes that attention's backward pass adds to the layer's tensors: full rows, and the buffers of one block.

    Two chunks each of q, output, gradient and fp32 dQ, of k, v; the kernel's dQ, dK, dV and its fp32 sum; sums of dK
    and dV; three copies of a chunk in an exchange; the joined weight's gradient in fp32.
    """
    tokens, many = chunks(sizes)
    queries, output, kv, lse = _tensors(sizes, tokens)
    width, hidden = sizes.width, sizes.workload.model.hidden
    rows = ROWS_IN_BACKWARD * sizes.tokens * hidden * width
    buffers = queries * (2 * (width + 4) + width + 4) + output * (2 * 2 + 3) * width + kv * (2 * width + width + 4)
    weight = hidden * (sizes.q_width + 2 * sizes.kv_width) * 4 if sizes.workload.trains_weights else 0
    return rows + buffers + 2 * 4 * lse + 2 * _normed_bytes(sizes, many) + weight


def card_working_bytes(sizes: RankSizes, kernel: Number) -> Number:
    """Bytes that attention's backward pass adds to the layer's tensors where keys stay on the GPU.

    The gradient of the input (the output's is the residual's); sums of dK and dV of all chunks; those of the four
    weights, with the gradients of one chunk. Of one chunk: the output made again, q and the result's gradient by
    tokens; q, the result and its gradient on their way to heads, or there with the fp32 sum of dQ, what the kernel
    makes of them, and its buffers (`kernel` bytes).
    """
    model, width, (tokens, many) = sizes.workload.model, sizes.width, chunks(sizes)
    queries, output, kv, _ = _tensors(sizes, tokens)
    wide, part, row = max(4, width), sizes.tokens / many, sizes.tokens * model.hidden * width
    local = part * (model.hidden + sizes.q_width + sizes.out_width) * width
    sent = part * (sizes.q_width + 2 * sizes.out_width) * width
    given = (queries + 2 * output) * width
    made = given + queries * (wide + width) + kv * width + kernel
    weights = model.hidden * (sizes.q_width + 2 * sizes.kv_width + sizes.out_width) * sizes.workload.trains_weights
    return row + many * kv * wide + weights * (wide + width) + local + larger(given + larger(sent, given), made)
