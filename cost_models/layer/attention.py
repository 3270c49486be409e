"""Attention of a decoder layer: the operators around it, and its kernels over a ring, gathered keys or chunks of a row.

    norm · QKV · rotary · [all-to-all of heads] · attention · [all-to-all back] · out projection · residual

Bytes of a rank (S tokens, b bytes, D head dim): the exchange of Q, K, V is S D b (H + 2 K'), that of the output S D b
H; a ring hop is 2 S K' D b forward, and backward 2 S K' D b plus 2 S K' D b_grad for dKV (R - 1 hops each way).
Packed documents attend to a fraction of a row. Units: seconds, bytes.
"""

from __future__ import annotations

from cost_models.layer.chunked import card_working_bytes, chunk_working_bytes, chunked
from cost_models.layer.latent import latent_inputs
from cost_models.layer.operators import (
    Operator,
    Passes,
    Table,
    attention_call_s,
    attention_passes_s,
    elementwise,
    layer_norm,
    maps,
    norm,
    norm_behind,
    operand_bytes,
    residual,
    tensor_operator,
)
from cost_models.layer.sizes import RankSizes
from cost_models.number import Number, larger, pick, smaller
from cost_models.program import Compute, Exchange, Phase, Ring
from cost_models.timing.kernels import Kernels
from cost_models.timing.shapes import QUERY_TILE
from cost_models.workload import DTYPE_BYTES

EXCHANGE_COPIES = 2
"""Kernels that each tensor passes through around an exchange of heads (read and write)."""
ROTARY_PASSES = {"unfused": (10, 15), "fused": (2, 2), "none": (0, 0)}
"""Readings and writings of each value, forward and backward. By operators it is times its cosines (r w), its halves
change places (half r w, r w), times the sines (r w) and added (r r w); backward each half is laid into zeros of both
(w, half r w) and these are added (r r w), too."""
ROTARY_LAUNCHES = {"unfused": 10, "fused": 2, "none": 0}
ROTARY_CALLS = {"unfused": (10, 18), "fused": (2, 2), "none": (0, 0)}


def attention_operators(sizes: RankSizes) -> Table:
    """The first half of a decoder layer, with latent inputs where the model has them."""
    model = sizes.workload.model
    inputs = _inputs(sizes) if model.latent is None else latent_inputs(sizes, model.latent)
    out = maps(sizes, "out", sizes.tokens)
    if sizes.by_rows:  # what is of one chunk is made again, and not kept
        inputs = (inputs[0], *(one._replace(reruns=True, kept=0) for one in inputs[1:]))
        out = tuple(one._replace(reruns=True, kept=0) for one in out)
    elif sizes.staged:  # the first norm's result waits in host memory
        first = inputs[0]
        inputs = (first._replace(kept=first.kept - sizes.row_bytes), *inputs[1:])
    return (
        *inputs,
        *_core(sizes),
        *_quantised_result(sizes),
        *out,
        *tensor_operator(sizes, "out", "reduce_scatter"),
        *norm_behind(sizes, "norm"),
        residual(sizes, "sum", 1),
    )


def _inputs(sizes: RankSizes) -> Table:
    """Norm, the three projections, rotary."""
    rotary = sizes.framework.rotary
    projected = sizes.framework.projects_by_heads and sizes.degrees.attention_head_chunks > 1
    turned = sizes.tokens * (sizes.q_width + sizes.kv_width) * sizes.width
    moved, back = (turned * passes for passes in ROTARY_PASSES[rotary])
    tables = 4 * sizes.tokens * sizes.workload.model.head_dim * sizes.width if sizes.framework.rotary_by_layer else 0
    return (
        layer_norm(sizes, "norm", call="inputs"),
        *tensor_operator(sizes, "qkv", "all_gather", readers=1 if sizes.framework.joined_products else 3),
        *(one._replace(reruns=projected) for one in maps(sizes, "qkv", sizes.tokens)),
        *_head_norms(sizes),
        elementwise(
            sizes,
            "rotary",
            moved,
            ROTARY_LAUNCHES[rotary],
            back=back,
            call="" if projected else "inputs",
            kept=tables,
            host=ROTARY_CALLS[rotary],
        )._replace(reruns=projected),
    )


def _head_norms(sizes: RankSizes) -> Table:
    """Of queries and keys, head by head, where the model has them (Qwen3, Gemma 3); made again like the projections."""
    if not sizes.workload.model.qk_norm:
        return ()
    return tuple(
        norm(sizes, "qkv", values=sizes.tokens * width, feeds=False) for width in (sizes.q_width, sizes.kv_width)
    )


def _quantised_result(sizes: RankSizes) -> Table:
    """In 8 and 4 bits the out projection keeps a copy of the result, which attention keeps as it is."""
    if sizes.framework.product_dtype is None:
        return ()
    return (Operator("out", kept=sizes.tokens * sizes.out_width * operand_bytes(sizes)),)


def _core(sizes: RankSizes) -> Table:
    """Both exchanges of heads, and attention between them."""
    model, in_chunks = sizes.workload.model, sizes.staged
    lines = sizes.ring_tokens * sizes.rows
    output, lse = lines * sizes.width * sizes.heads * model.v_dim, lines * sizes.heads * 4
    inputs = lines * sizes.width * (sizes.heads * model.head_dim + sizes.kv_heads * (model.head_dim + model.v_dim))
    if sizes.degrees.attention_head_chunks > 1:
        return _core_by_heads(sizes)
    if sizes.by_rows:
        return _core_by_rows(sizes)
    sent = sizes.tokens * sizes.width * (sizes.q_width + sizes.sent_kv_width)
    sent_back = sizes.tokens * sizes.out_width * sizes.width
    copied = _result_copies(sizes) * sent_back
    if sizes.framework.keeps_joined:  # beside the rotated queries and keys those that were projected
        inputs = inputs + lines * sizes.width * (sizes.heads + sizes.kv_heads) * model.head_dim
    back = chunk_working_bytes(sizes) - 3 * sizes.row_bytes if in_chunks else _working_back(sizes)
    return (
        _exchanged(sizes, "heads", sent)._replace(kept=0 if in_chunks else inputs, host=(3, 3)),
        Operator(
            name="attention",
            attends=True,
            kept=sent_back if in_chunks else output + lse,
            working=(_working(sizes), back),
        ),
        Operator(name="scores", kept=_scores(sizes)),
        Operator(name="result", host=(2, 3)),
        _exchanged(sizes, "heads back", sent_back)._replace(kept=0 if in_chunks else copied),
    )  # fmt: skip


def _result_copies(sizes: RankSizes) -> Number:
    """1 where the product behind attention keeps a result of its own: as exchanged, or put in the order of tokens."""
    alone = {"never": 0, "several rows": pick(sizes.rows > 1, 1, 0), "always": 1}[sizes.framework.copies_result]
    return pick(sizes.degrees.ulysses > 1, 1, alone)


def _core_by_heads(sizes: RankSizes) -> Table:
    """Both exchanges and attention for some heads at a time: q, k, v and the result are kept by tokens, and exchanged
    again in the backward pass. Where a framework projects by heads, its normed input is kept in place of q, k and v,
    and backward projects them again."""
    model, chunks = sizes.workload.model, sizes.degrees.attention_head_chunks
    lines, result = sizes.ring_tokens * sizes.rows, sizes.tokens * sizes.out_width * sizes.width
    inputs: Number = 0
    if not sizes.framework.projects_by_heads:
        inputs = sizes.tokens * sizes.width * (sizes.q_width + sizes.kv_width * (1 + model.v_dim / model.head_dim))
    kv = sizes.sent_kv_heads_in_chunks * (model.head_dim + model.v_dim)
    sent = sizes.tokens * sizes.width * (sizes.q_width + kv)
    return (
        _exchanged(sizes, "heads", sent, 2 * sent, chunks)._replace(kept=inputs, host=(3, 3)),
        Operator(
            name="attention",
            attends=True,
            kept=result + lines * sizes.heads * 4,
            working=(_working(sizes.head_chunk) + result, _working_by_heads(sizes)),
        ),
        Operator(name="result", host=(2, 3)),
        _exchanged(sizes, "heads back", result, 2 * result, chunks),
    )


def _core_by_rows(sizes: RankSizes) -> Table:
    """Both exchanges and attention for one chunk of the row after the other. Kept are keys and values by heads and the
    result by tokens; backward exchanges q and the result again, beside the gradients, and adds the weights' gradients
    of the chunks up."""
    model, chunks, width = sizes.workload.model, sizes.row_chunks, sizes.width
    lines, result = sizes.ring_tokens * sizes.rows, sizes.tokens * sizes.out_width * width
    sent, queries = sizes.tokens * width * (sizes.q_width + sizes.sent_kv_width), sizes.tokens * sizes.q_width * width
    keys = lines * sizes.kv_heads * (model.head_dim + model.v_dim) * width
    buffers, weights = _kernel_buffers(sizes) / chunks, 4 if sizes.workload.trains_weights else 0
    added = Passes((sizes.q_width + 2 * sizes.kv_width + sizes.out_width) * model.hidden * (8 + width), weights)
    return (
        _exchanged(sizes, "heads", sent, sent, chunks)._replace(kept=keys, host=(3, 3)),
        Operator(
            name="attention",
            attends=True,
            kept=result + lines * sizes.heads * 4,
            working=(_working(sizes) / chunks + keys + result, card_working_bytes(sizes, buffers)),
        ),
        Operator(name="result", host=(2, 3)),
        _exchanged(sizes, "heads back", result, queries + 2 * result, chunks),
        Operator("weight sums", passes=(Passes(), added), times=(chunks - 1) * (weights > 0)),
    )


def _working_by_heads(sizes: RankSizes) -> Number:
    """The result's gradient, dq and the gradients of K and V by tokens; of one piece q, k, v, the result and its
    gradient as they are exchanged and put in order, or what attention's backward pass makes of them, with the sums of
    dK and dV over the pieces that share keys."""
    model, width, one = sizes.workload.model, sizes.width, sizes.head_chunk
    wide, lines = max(4, width), sizes.ring_tokens * sizes.rows
    queries, results = lines * one.heads * model.head_dim, lines * one.heads * model.v_dim
    kv = lines * one.kv_heads * (model.head_dim + model.v_dim)
    given = (queries + 2 * results + kv) * width
    made = _working_back(one) - results * width * (1 if sizes.framework.exchange_freed else 2)
    local = sizes.tokens * sizes.out_width * width
    if sizes.framework.projects_by_heads:  # the normed input's gradient; the kernel's results are those of the piece
        alone = (queries + kv) * width + _kernel_buffers(one)
        made = pick(sizes.degrees.ring > 1, made, alone) + kv * width
        return local + sizes.row_bytes + given + larger(given, made)
    local = local + sizes.tokens * (sizes.q_width + 2 * sizes.kv_width) * width
    arriving = pick(sizes.degrees.ring > 1, kv * width, 0)  # a block's gradient, received beside that which is sent
    return local + given + larger(given, made + kv * wide + arriving)


def _exchanged(sizes: RankSizes, name: str, moved: Number, back: Number | None = None, pieces: int = 1) -> Operator:
    """An all-to-all of `moved` bytes, of `back` in the backward pass if that is not the same, in so many pieces; with
    the copies that put it in the order of ranks and back in that of heads."""
    ways = [moved, moved if back is None else back]
    exchanges = [
        (Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=bytes_ / pieces),) * pieces
        for bytes_ in ways
    ]
    copies = [Passes(2 * bytes_ * EXCHANGE_COPIES, EXCHANGE_COPIES * pieces) for bytes_ in ways]
    return Operator(
        name, passes=(copies[0], copies[1]), exchanges=(exchanges[0], exchanges[1]), active=sizes.degrees.ulysses > 1
    )


def _scores(sizes: RankSizes) -> Number:
    """Without flash attention: the softmax, and with dropout its mask and result."""
    if sizes.framework.attention != "unfused":
        return 0
    each = sizes.width + ((sizes.width + 1) if sizes.framework.dropout else 0)
    return sizes.rows * sizes.heads * sizes.ring_tokens * sizes.ring_tokens * each


def _working(sizes: RankSizes) -> Number:
    """Without gradients: what is exchanged for queries and output, and two blocks of keys and values in a ring, or all
    of them and a copy of one."""
    lines, width = sizes.ring_tokens * sizes.rows, sizes.workload.model.head_dim + sizes.workload.model.v_dim
    blocks: Number = sizes.degrees.ring + 1 if sizes.framework.gathers_ring else 2
    block = blocks * sizes.passing_tokens * sizes.rows * sizes.kv_heads * width
    return (lines * sizes.heads * width + pick(sizes.degrees.ring > 1, block, 0)) * sizes.width


def _working_back(sizes: RankSizes) -> Number:
    """The output's gradient, dQ (fp32 in a ring), the kernel's dQ, dK, dV and buffers, the sums of dK and dV; in a ring
    the block and the sum that is added to, and where it goes on the next block and the sum that arrives. Where what was
    exchanged is freed, a ring also has the sum that leaves; else the gradient before its exchange is there still, and
    without a ring dK and dV once more. Where all blocks are gathered at once, they and a copy are there for both."""
    model, width, degrees = sizes.workload.model, sizes.width, sizes.degrees
    lines, wide, ring = sizes.ring_tokens * sizes.rows, max(4, width), degrees.ring > 1
    freed, sent = sizes.framework.exchange_freed, DTYPE_BYTES[degrees.grad_ring_dtype]
    queries = model.head_dim * (width + pick(ring, wide, width)) + model.v_dim * width * (1 if freed else 2)
    block, onwards = (width * (degrees.ring + 1), 0) if sizes.framework.gathers_ring else (width, width)
    further = pick(degrees.ring > 2, onwards + sent * (2 if freed else 1), 0)
    kv = sizes.passing_tokens * sizes.rows * sizes.kv_heads * (model.head_dim + model.v_dim)
    summed = pick(ring, 2 * wide + block + further, width * (1 if freed else 2))
    made = lines * sizes.heads * queries + kv * (width + summed)
    return made + _kernel_buffers(sizes)


def _kernel_buffers(sizes: RankSizes) -> Number:
    """What the backward kernel takes beside its results: dQ summed in fp32; where several queries share a key,
    FlashAttention-2 has dK and dV of every query head before it adds them up (flash_api.cpp, mha_bwd: dq_accum,
    dk_expanded, dv_expanded), FlashAttention-3 sums both in fp32 (dk_accum, dv_accum)."""
    model, kernel = sizes.workload.model, sizes.framework.attention_backward
    if kernel == "none" or sizes.framework.attention == "unfused":
        return 0
    lines, each = sizes.ring_tokens * sizes.rows, model.head_dim + model.v_dim
    grouped = sizes.heads * each * sizes.width if kernel == "fa2" else sizes.kv_heads * each * 4
    return lines * (sizes.heads * model.head_dim * 4 + pick(sizes.heads > sizes.kv_heads, grouped, 0))


def attention_phases(
    sizes: RankSizes, kernels: Kernels, *, part: str, grad: bool = False, causal: bool = True
) -> tuple[Phase, ...]:
    """Attention of one rank over all keys: its ring, its chunks, or (all_gather) all KV first, gradients scattered."""
    if sizes.staged or sizes.by_rows:
        return chunked(sizes, kernels, part, grad, causal)
    pieces, sizes = sizes.degrees.attention_head_chunks, sizes.head_chunk
    if sizes.degrees.ring_kind != "all_gather":
        return (_ring(sizes, kernels, part, grad, causal),) * pieces
    held = sizes.tokens * sizes.sent_kv_width * sizes.degrees.ring * sizes.width
    gathered = Exchange(part="ring", axis="ring", op="all_gather", bytes=held)
    scattered = (Exchange(part="ring", axis="ring", op="reduce_scatter", bytes=held),) if grad else ()
    return (gathered, _gathered(sizes, kernels, part, grad, causal), *scattered) * pieces


def _ring(sizes: RankSizes, kernels: Kernels, part: str, grad: bool, causal: bool) -> Ring:
    """The causal block of the rank's keys, then one block for each hop.

    zigzag, balanced, double and striped: every block is half masked, all ranks alike. contiguous: the last rank
    computes full blocks. Packed documents, where the framework's ring knows them: all ranks are as slow as the one with
    most pairs, and a hop sends the largest block under way (`RingShares`). Of unequal blocks (`Block`) a hop brings the
    others' mean, and all wait for each other as `stall` says. Without a causal mask all blocks are full;
    with a window all ranks are alike, and a call is shortened to its share of the pairs. Widening the result, once, is
    spread over the hops: where there are none, nothing is widened (and a bound that takes fewer hops stays below).
    """
    degrees, tokens, kind = sizes.degrees, sizes.ring_tokens, sizes.degrees.ring_kind
    if sizes.framework.attention == "unfused":
        return _unfused(sizes, kernels, part, grad)
    first, shares = attention_call_s(sizes, kernels, tokens, tokens, grad, causal), sizes.ring_shares
    if kind == "striped":
        piece = first
    elif (kind == "contiguous" and not sizes.window and shares is None) or not causal:
        piece = attention_call_s(sizes, kernels, tokens, tokens, grad, False)
    else:
        keys = tokens if sizes.block is None else sizes.block.others
        piece = attention_call_s(sizes, kernels, tokens, larger(keys // 2, 1), grad, False)
    widened: Number = 0.0
    if sizes.framework.widen_bytes:
        widened = attention_passes_s(sizes, kernels, tokens, grad, sizes.framework.widen_bytes, 2)
    kv = sizes.tokens * sizes.sent_kv_width * _travelling(sizes)
    merged = _merged_share(sizes) * (_merge_s(sizes, kernels, grad) + sizes.framework.hop_wait_s)
    pieces: Number = degrees.ring
    if shares is not None:
        first, piece, merged = first * shares.first, piece * shares.piece, merged * shares.sent
        kv, pieces = kv * shares.sent, shares.hops + 1
    elif sizes.evenly:
        first, pieces, kv, merged = degrees.ring * smaller(first, piece), 0 * degrees.ring + 1, 0.0 * kv, 0.0
    elif sizes.block is not None:
        first, piece = first * sizes.block.stall, piece * sizes.block.stall
        kv = kv * sizes.block.others / tokens
    return Ring(
        part=part,
        pieces=pieces,
        first_s=first,
        piece_s=piece + merged + widened / larger(pieces - 1, 1),
        hop_bytes=kv * sizes.width,
        gradient_bytes=kv * DTYPE_BYTES[degrees.grad_ring_dtype] if grad else 0.0 * kv,
        hiding=_last_blocks(sizes, kernels) if sizes.framework.late_hops else 1.0,
        double=kind == "double",
    )


def _merged_share(sizes: RankSizes) -> Number:
    """Share of the hops whose block some query sees: with a window each half of the rank's tokens sees as many halves
    before it as the window reaches; what a hop adds is averaged over all of them."""
    if not sizes.window:
        return 1.0
    reached = 2 * -(-sizes.window // larger(sizes.ring_tokens // 2, 1))
    return smaller(reached / larger(sizes.degrees.ring - 1, 1), 1.0)


def _travelling(sizes: RankSizes) -> Number:
    """Share of a block that is sent in a hop: with a window, where the framework knows it, the window - 1 last keys of
    each of its chunks, once, spread over the hops; the last chunk's, which nobody needs, are counted."""
    if not sizes.window or not sizes.framework.window_halo:
        return 1.0
    chunks = 1 if sizes.degrees.ring_kind == "contiguous" else 2
    halo = chunks * (sizes.window - 1) / larger(sizes.ring_tokens, 1)
    return smaller(halo / larger(sizes.degrees.ring - 1, 1), 1.0)


def _last_blocks(sizes: RankSizes, kernels: Kernels) -> Number:
    """Share of an attention kernel's time after its last thread block has started: one turn of all turns of an SM.

    NCCL's kernel needs an SM to itself for each channel (its authors: its blocks share an SM with no other kernel,
    NVIDIA/nccl issue 689), 32 of them inside an NVSwitch domain ("32 p2p channels per peer" in its log on 8 A100 or
    H100). On a stream of the usual priority it waits for an event of the computing stream, whose next kernel follows
    at once and refills every SM until it has no block left; only then does NCCL's get in (NVIDIA/nccl issue 1431
    reports it). Between nodes and over PCIe a peer has 2 channels, and hops are seen to hide behind full blocks.
    """
    if kernels.device.sms is None:
        return 1.0
    blocks = sizes.rows * sizes.heads * (sizes.ring_tokens / QUERY_TILE)
    return smaller(kernels.device.sms / larger(blocks, 1), 1.0)


def _gathered(sizes: RankSizes, kernels: Kernels, part: str, grad: bool, causal: bool) -> Compute:
    """All keys are here: each zigzag half of the queries against its prefix, all ranks alike; no merge."""
    half, keys = larger(sizes.ring_tokens // 2, 1), sizes.ring_tokens * sizes.degrees.ring
    if causal:
        seconds = sum(attention_call_s(sizes, kernels, half, seen, grad, True) for seen in (half, keys))
    else:
        seconds = attention_call_s(sizes, kernels, sizes.ring_tokens, keys, grad, False)
    framework = sizes.framework
    if each := framework.gathered_gradient_bytes if grad else framework.gathered_bytes:
        model = sizes.workload.model
        held = keys * sizes.rows * sizes.kv_heads * (model.head_dim + model.v_dim)
        seconds = seconds + kernels.memory_bound_s(held * each, 8)
    return Compute(part=part, seconds=seconds)


def _merge_s(sizes: RankSizes, kernels: Kernels, grad: bool) -> Number:
    """Blending one hop's block into the running output, or adding its gradients to the running sums."""
    framework, tokens = sizes.framework, sizes.ring_tokens
    if grad:
        return attention_passes_s(sizes, kernels, tokens, grad, framework.merge_gradient_bytes, 3)
    sliced = framework.slice_bytes if sizes.degrees.ring_kind == "striped" else 0
    return attention_passes_s(sizes, kernels, tokens, grad, framework.merge_bytes + sliced, 4)


def _unfused(sizes: RankSizes, kernels: Kernels, part: str, grad: bool) -> Ring:
    """Attention as Megatron had it before flash attention: batched products, and all scores in memory.

    Per score: scale, mask and softmax in one kernel read and write b bytes (backward reads two and writes one), unless
    the framework calls them one by one (`score_bytes`); dropout reads and writes as much again and a mask of one byte.
    No FLOP is saved by causality.
    """
    model, tokens = sizes.workload.model, sizes.ring_tokens
    lines, dtype = tokens * sizes.rows * sizes.heads, sizes.workload.precision.param
    products = kernels.gemm_s(lines, tokens, model.head_dim, dtype) + kernels.gemm_s(
        lines, model.head_dim, tokens, dtype
    )
    apart = sizes.framework.score_gradient_bytes if grad else sizes.framework.score_bytes
    passes = (3 if grad else 2) * sizes.width if apart is None else apart
    passes = passes + ((2 * sizes.width + 1) if sizes.framework.dropout else 0)
    softmax = kernels.memory_bound_s(lines * tokens * passes, 2)
    seconds = products * (2 if grad else 1) + softmax
    return Ring(part=part, pieces=sizes.degrees.ring, first_s=seconds, piece_s=seconds, hop_bytes=0.0 * lines)
