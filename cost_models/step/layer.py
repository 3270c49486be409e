"""One decoder layer as phases of a rank: matmuls, memory-bound work, the head exchange and the ring.

    forward:   norm · QKV · [all-to-all QKV] · ring attention · [all-to-all out] · out projection · norm · MLP
    backward:  the same in reverse, two matmuls for each; the ring carries KV again and dKV
    recompute: `full` runs the forward again, communication included; `all_but_attention` all but the ring and the
               second exchange; `mlp` the first two MLP matmuls

Bytes of a rank (S tokens, b bytes, D head dim): exchange of Q, K, V is S D b (H + 2 K'), of the output S D b H;
a ring hop is 2 S K' D b forward, and backward 2 S K' D b plus 2 S K' D b_grad for dKV (R - 1 hops each way).
Elementwise traffic counts the passes of unfused Hugging Face layers unless `Shape.habits` says otherwise.
"""

from __future__ import annotations

from typing import Any

from cost_models.either import larger, pick, smaller, somewhere
from cost_models.program import Compute, Exchange, Phase, Ring
from cost_models.step.adapters import linear_s
from cost_models.step.block import block_s, values_s
from cost_models.step.chunked import chunked
from cost_models.step.expert_layer import expert_mlp
from cost_models.step.latent_layer import latent_inputs
from cost_models.step.mlp import mlp, mlp_again
from cost_models.step.shape import Shape
from cost_models.step.work import elementwise, norm_bytes, residual_bytes, tensor_exchange
from cost_models.timing.kernels import QUERY_TILE, Kernels
from cost_models.workload import DTYPE_BYTES


def forward(shape: Shape, kernels: Kernels, *, part: str | None = None) -> tuple[Phase, ...]:
    """Phases of one layer forward; `part` renames the computation (`recompute`)."""
    inside = (*_inputs(shape, kernels, part), *context(shape, kernels, part=part or "attention"))
    return (*inside, *_out_exchange(shape, kernels, part), *_outputs(shape, kernels, part), *_mlp(shape, kernels, part))


def backward(shape: Shape, kernels: Kernels, recompute: str) -> tuple[Phase, ...]:
    """Phases of one layer backward, with what the recompute policy runs again first."""
    again: tuple[Phase, ...] = ()
    if recompute == "full":
        again = forward(shape, kernels, part="recompute")
    elif recompute == "all_but_attention":
        outputs = (*_outputs(shape, kernels, "recompute"), *_mlp_again(shape, kernels))
        again = (*_inputs(shape, kernels, "recompute"), *_out_exchange(shape, kernels, "recompute"), *outputs)
    elif recompute == "mlp":
        again = _mlp_again(shape, kernels, normed=True)
    elif recompute == "core_attention":
        again = context(shape, kernels, part="recompute")
    elif shape.habits.norms_again:
        summed = shape.outer_tokens * shape.workload.model.hidden * residual_bytes(shape)
        again = (elementwise(shape, kernels, 2 * norm_bytes(shape) + summed, 3, False, "recompute"),)
    before = (*_mlp(shape, kernels, None, grad=True), *_outputs(shape, kernels, None, grad=True))
    core = (*_out_exchange(shape, kernels), *context(shape, kernels, part="attention", grad=True))
    return (*again, *before, *core, *_inputs(shape, kernels, None, grad=True))


def _rotary_bytes(shape: Shape) -> Any:
    passes = {"unfused": 8, "fused": 2, "none": 0}[shape.habits.rotary]
    return shape.tokens * (shape.q_width + shape.kv_width) * passes * shape.width


def _inputs(shape: Shape, kernels: Kernels, part: str | None, grad: bool = False) -> tuple[Phase, ...]:
    """Norm, the three projections, rotary, and the exchange of heads (or its gradient's)."""
    model = shape.workload.model
    exchange = _exchanged(shape, kernels, _qkv_bytes(shape), part)
    if model.latent is not None:
        made = (*latent_inputs(shape, kernels, model.latent, part, grad), *exchange)
        return made[::-1] if grad else made
    matmul = sum(linear_s(shape, kernels, "qkv", *columns, grad) for columns in shape.linears["qkv"])
    launches = (1 if shape.habits.norm == "fused" else 6) + {"unfused": 10, "fused": 2, "none": 0}[shape.habits.rotary]
    moved_s = elementwise(shape, kernels, norm_bytes(shape, grad) + _rotary_bytes(shape), launches, grad, part)
    gathered = tensor_exchange(shape, "all_gather", grad)
    phases = (moved_s, *gathered, Compute(part=part or "matmul", seconds=matmul), *exchange)
    return phases[::-1] if grad else phases


def _qkv_bytes(shape: Shape) -> Any:
    return shape.tokens * shape.width * (shape.q_width + shape.sent_kv_width)


def _out_exchange(shape: Shape, kernels: Kernels, part: str | None = None) -> tuple[Phase, ...]:
    return _exchanged(shape, kernels, shape.tokens * shape.width * shape.out_width, part)


def _exchanged(shape: Shape, kernels: Kernels, moved: Any, part: str | None) -> tuple[Phase, ...]:
    """An all-to-all of `moved` bytes, with the copies that put it in the order of ranks and back in that of heads."""
    exchange = Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=moved)
    several, copies = shape.degrees.ulysses > 1, shape.habits.exchange_copies
    if not (copies and somewhere(several)):
        return (exchange,)
    seconds = kernels.memory_bound_s(2 * moved * copies, copies)
    return (Compute(part=part or "memory_bound", seconds=pick(several, seconds, 0.0)), exchange)


def _outputs(shape: Shape, kernels: Kernels, part: str | None, grad: bool = False) -> tuple[Phase, ...]:
    """Output projection and the residual sum."""
    hidden = shape.workload.model.hidden
    matmul = linear_s(shape, kernels, "out", hidden, shape.out_width, grad)
    residual = elementwise(shape, kernels, shape.outer_tokens * hidden * residual_bytes(shape), 1, grad, part)
    return (Compute(part=part or "matmul", seconds=matmul), *tensor_exchange(shape, "reduce_scatter", grad), residual)


def _mlp(shape: Shape, kernels: Kernels, part: str | None, grad: bool = False) -> tuple[Phase, ...]:
    if shape.experts is not None:
        return expert_mlp(shape, kernels, shape.experts, part, grad, True)
    return mlp(shape, kernels, part, grad)


def _mlp_again(shape: Shape, kernels: Kernels, normed: bool = False) -> tuple[Phase, ...]:
    """The MLP's inside for its backward pass: all but the last product, after the norm unless its result was kept."""
    if shape.experts is not None:
        return expert_mlp(shape, kernels, shape.experts, "recompute", False, False)
    return mlp_again(shape, kernels, normed)


def context(shape: Shape, kernels: Kernels, *, part: str, grad: bool = False, causal: bool = True) -> tuple[Phase, ...]:
    """Attention of one rank over all keys: its ring, its chunks, or (all_gather) all KV first, gradients scattered."""
    if shape.degrees.attention_chunk_tokens is not None:
        return chunked(shape, kernels, part, grad, causal)
    if shape.degrees.ring_kind != "all_gather":
        return (ring(shape, kernels, part=part, grad=grad, causal=causal),)
    held = shape.tokens * shape.sent_kv_width * shape.degrees.ring * shape.width
    gathered = Exchange(part="ring", axis="ring", op="all_gather", bytes=held)
    scattered = (Exchange(part="ring", axis="ring", op="reduce_scatter", bytes=held),) if grad else ()
    return (gathered, _gathered(shape, kernels, part, grad, causal), *scattered)


def ring(shape: Shape, kernels: Kernels, *, part: str, grad: bool = False, causal: bool = True) -> Ring:
    """Attention of one rank over its ring: its own block (causal), then one block for each hop.

    zigzag, double and striped: every block is half masked, all ranks alike. contiguous: the last rank computes whole
    blocks. Without a causal mask all blocks are whole. Widening the result, once, is spread over the hops: where there
    are none, nothing is widened (and a bound that takes fewer hops stays below).
    """
    degrees, tokens, kind = shape.degrees, shape.ring_tokens, shape.degrees.ring_kind
    if shape.habits.attention == "unfused":
        return _unfused(shape, kernels, part, grad)
    first = block_s(shape, kernels, tokens, tokens, grad, causal)
    if kind == "striped":
        piece = first
    elif kind == "contiguous" or not causal:
        piece = block_s(shape, kernels, tokens, tokens, grad, False)
    else:
        piece = block_s(shape, kernels, tokens, larger(tokens // 2, 1), grad, False)
    widened = _rank_values_s(shape, kernels, grad, shape.habits.widen_bytes, 2) if shape.habits.widen_bytes else 0.0
    kv = shape.tokens * shape.sent_kv_width
    return Ring(
        part=part,
        pieces=degrees.ring,
        first_s=first,
        piece_s=piece + _merge_s(shape, kernels, grad) + widened / larger(degrees.ring - 1, 1),
        hop_bytes=kv * shape.width,
        gradient_bytes=kv * DTYPE_BYTES[degrees.grad_ring_dtype] if grad else 0.0 * kv,
        beside=_last_blocks(shape, kernels) if shape.habits.late_hops else 1.0,
        double=kind == "double",
    )


def _last_blocks(shape: Shape, kernels: Kernels) -> Any:
    """Share of an attention kernel's time after its last thread block has started: one turn of all turns of an SM.

    NCCL's kernel needs a whole SM for each channel (its authors: its blocks share an SM with no other kernel,
    NVIDIA/nccl issue 689), 32 of them inside an NVSwitch domain ("32 p2p channels per peer" in its log on 8 A100 or
    H100). On a stream of the usual priority it waits for an event of the computing stream, whose next kernel follows
    at once and refills every SM until it has no block left; only then does NCCL's get in (NVIDIA/nccl issue 1431
    reports it). Between nodes and over PCIe a peer has 2 channels, and hops are seen to hide behind whole blocks.
    """
    if kernels.device.sms is None:
        return 1.0
    blocks = shape.rows * shape.heads * (shape.ring_tokens / QUERY_TILE)
    return smaller(kernels.device.sms / larger(blocks, 1), 1.0)


def _gathered(shape: Shape, kernels: Kernels, part: str, grad: bool, causal: bool) -> Compute:
    """All keys are here: each zigzag half of the queries against its prefix, all ranks alike; no merge."""
    half, keys = larger(shape.ring_tokens // 2, 1), shape.ring_tokens * shape.degrees.ring
    if causal:
        seconds = sum(block_s(shape, kernels, half, seen, grad, True) for seen in (half, keys))
    else:
        seconds = block_s(shape, kernels, shape.ring_tokens, keys, grad, False)
    habits = shape.habits
    if each := habits.gathered_gradient_bytes if grad else habits.gathered_bytes:
        model = shape.workload.model
        held = keys * shape.rows * shape.kv_heads * (model.head_dim + model.v_dim)
        seconds = seconds + kernels.memory_bound_s(held * each, 8)
    return Compute(part=part, seconds=seconds)


def _merge_s(shape: Shape, kernels: Kernels, grad: bool) -> Any:
    """Blending one hop's block into the running output, or adding its gradients to the running sums."""
    habits = shape.habits
    if grad:
        return _rank_values_s(shape, kernels, grad, habits.merge_gradient_bytes, 3)
    sliced = habits.slice_bytes if shape.degrees.ring_kind == "striped" else 0
    return _rank_values_s(shape, kernels, grad, habits.merge_bytes + sliced, 4)


def _rank_values_s(shape: Shape, kernels: Kernels, grad: bool, bytes_per_value: int, launches: int) -> Any:
    """Of a rank's whole block."""
    return values_s(shape, kernels, shape.ring_tokens, grad, bytes_per_value, launches)


def _unfused(shape: Shape, kernels: Kernels, part: str, grad: bool) -> Ring:
    """Attention as Megatron had it before flash attention: batched products, and whole scores in memory.

    Per score: scale, mask and softmax in one kernel read and write b bytes (backward reads two and writes one);
    dropout reads and writes as much again and a mask of one byte. No FLOP is saved by causality.
    """
    model, tokens = shape.workload.model, shape.ring_tokens
    lines, dtype = tokens * shape.rows * shape.heads, shape.workload.precision.param
    products = kernels.gemm_s(lines, tokens, model.head_dim, dtype) + kernels.gemm_s(
        lines, model.head_dim, tokens, dtype
    )
    passes = (3 if grad else 2) * shape.width + ((2 * shape.width + 1) if shape.habits.dropout else 0)
    softmax = kernels.memory_bound_s(lines * tokens * passes, 2)
    seconds = products * (2 if grad else 1) + softmax
    return Ring(part=part, pieces=shape.degrees.ring, first_s=seconds, piece_s=seconds, hop_bytes=0.0 * lines)
