"""A step as a program: vision, embedding exchange, layers forward, head and loss, layers backward, optimizer.

    train    microbatches x [vision · embed · layers forward · loss · layers backward · vision backward] · optimizer
    prefill  [vision · embed · layers forward · logits of the last token]
    decode   [embed · layers forward of one token against the sharded cache, merged by log-sum-exp · logits]

Weights are gathered and gradients reduced as `sharding.py` says. Left out: data loading and video decoding (host side).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from cost_models.errors import InputError
from cost_models.layer import decoder
from cost_models.layer.launches import layer_host_s, loss_host_s, update_host_s
from cost_models.layer.operators import product_s, tensor_exchange
from cost_models.layer.recompute import policy
from cost_models.layer.sizes import RankSizes
from cost_models.layer.ssd import SCAN_CALLS
from cost_models.layer.stages import at_stage, is_mixed, runs
from cost_models.layer.weights import (
    expert_params,
    fetched_bytes,
    layer_params,
    linears,
    returned_bytes,
    root_params,
    trained_expert_params,
    trained_layer_params,
    trained_params,
    trained_root_params,
)
from cost_models.models.model import LayerKind
from cost_models.number import Number, larger, pick, smaller, somewhere
from cost_models.program import Compute, Exchange, Phase, Segment, StepProgram
from cost_models.step import vision
from cost_models.step.sharding import Weights, broadcast_by_owners, copied_bytes, gathered_params, sharded
from cost_models.strategy import LayerRange
from cost_models.timing.kernels import Kernels
from cost_models.workload import DTYPE_BYTES, OPTIMIZER_STATES

FORWARD_SHARE = 1 / 3
"""Of a layer's host time, as of its matrix products."""
WHOLE_LOSS_BYTES = 32
"""Traffic per logit of autograd's cross entropy, without reading the logits and writing their gradient: cast w4,
log-softmax r4 w4, zeros for the gradient w4, backward of the softmax r4 r4 w4, cast r4."""
STATE_BYTES = 8
"""Traffic per weight and state of a fused fp32 update: r4 w4, as of the weight; the gradient is read."""
NORM_BYTES = 4
"""Per gradient: read for the norm."""
TOKEN_CALLS = 28
"""Kernels of a layer's small work on a new token."""


def step_program(sizes: RankSizes, kernels: Kernels, ranges: tuple[LayerRange, ...]) -> StepProgram:
    """The step for `ranges` of layers (all layers of the model; `stages.py` says which pipeline stage has which)."""
    model, stages, mode = sizes.workload.model, sizes.degrees.pipeline, sizes.workload.mode
    if mode != "train" and sizes.degrees.offload_states != "none":
        raise InputError(f"offload_states={sizes.degrees.offload_states} with mode={mode}; legal here: none")
    if mode == "decode" and sizes.degrees.attention_chunk_tokens is not None:
        raise InputError(f"attention_chunk_tokens={sizes.degrees.attention_chunk_tokens} with mode=decode; legal: none")
    if mode == "decode":
        if model.experts or model.latent:
            raise InputError(f"mode=decode is not priced for {model.name} (experts or latent attention); legal: train")
        return _decode(sizes, kernels)
    layers = runs(model, ranges, stages)
    forward = [
        forward_segment(sizes.of(run.kind), kernels, run.layers, run.part.offload, run.elsewhere) for run in layers
    ]
    segments = [*vision.forward(sizes, kernels), embed(sizes, kernels), *forward, head(sizes, kernels)]
    epilogue: tuple[Segment, ...] = ()
    if sizes.workload.mode == "train":
        for run in reversed(layers):
            part, here = run.part, sizes.of(run.kind)
            segments.append(backward_segment(here, kernels, part.recompute, run.layers, part.offload, run.elsewhere))
        segments += [*vision.backward(sizes, kernels), root_gradients(sizes, kernels)]
        last = at_stage(sizes, (LayerRange(count=model.layers),), stages - 1) if is_mixed(model) else sizes
        epilogue = (update(last, kernels),)
    if sizes.framework.owned_tensors and mode == "train" and sizes.degrees.zero < 2:
        segments, broadcasts = broadcast_by_owners(segments, sizes)
        epilogue = (*epilogue, *broadcasts)
    return StepProgram(
        microbatch=tuple(segments),
        epilogue=epilogue,
        microbatches=sizes.degrees.microbatches,
        pipeline=stages,
        virtual=sizes.degrees.virtual,
    )


def forward_segment(
    sizes: RankSizes, kernels: Kernels, repeat: Number, offload: str = "none", elsewhere: Number | None = None
) -> Segment:
    """`repeat` layers forward; other stages run `elsewhere` of them."""
    params, experts = layer_params(sizes), expert_params(sizes)
    weights = Weights(
        gathered=gathered_params(sizes, params, trained_layer_params(sizes)),
        gathered_experts=gathered_params(sizes, experts, trained_expert_params(sizes)),
    )
    cast = (params + experts) * sizes.framework.autocast_bytes + copied_bytes(sizes, weights)
    segment = Segment(
        name="layer forward",
        phases=_layer_phases(sizes, kernels, decoder.forward(sizes, kernels), FORWARD_SHARE, cast),
        repeat=repeat,
        elsewhere=elsewhere,
        offload_bytes=_offloaded(sizes, offload) + fetched_bytes(sizes, params, experts),
    )
    return _sent_beside(sharded(_of_layer(segment, sizes, kernels, None), sizes, kernels, weights), sizes)


def backward_segment(
    sizes: RankSizes,
    kernels: Kernels,
    recompute: str,
    repeat: Number,
    offload: str = "none",
    elsewhere: Number | None = None,
) -> Segment:
    """`repeat` layers backward, with what the policy runs again."""
    again, reduce = policy(recompute), DTYPE_BYTES[sizes.workload.precision.reduce]
    host_share = 1 - FORWARD_SHARE + (FORWARD_SHARE if again.keeps_input else 0.0)
    params, experts = layer_params(sizes), expert_params(sizes)
    trained, trained_experts = trained_layer_params(sizes), trained_expert_params(sizes)
    gathered = pick(sizes.degrees.zero == 3, 1, 0)
    weights = Weights(gathered * params, trained, gathered * experts, trained_experts)
    cast = (params + experts) * sizes.framework.autocast_bytes * again.passes
    added = (trained + trained_experts) * sizes.framework.accumulate_bytes
    copied = cast + added + copied_bytes(sizes, weights)
    returned = returned_bytes(sizes, trained * reduce, trained_experts * reduce)
    segment = Segment(
        name=f"layer backward {recompute}",
        phases=_layer_phases(sizes, kernels, decoder.backward(sizes, kernels, recompute), host_share, copied),
        repeat=repeat,
        elsewhere=elsewhere,
        from_host=True,
        offload_bytes=_offloaded(sizes, offload) + fetched_bytes(sizes, params, experts) + returned,
    )
    whole = sharded(_of_layer(segment, sizes, kernels, recompute), sizes, kernels, weights, passes=again.passes)
    return _sent_beside(whole, sizes)


def _layer_phases(
    sizes: RankSizes, kernels: Kernels, phases: tuple[Phase, ...], host_share: float, copied: Number
) -> tuple[Phase, ...]:
    """A layer's operators one way, what goes to the next stage, and a framework's copies."""
    sent = (_to_next_stage(sizes),) if somewhere(sizes.degrees.pipeline > 1) and not _sends_beside(sizes) else ()
    return (*phases, *sent, _framework(kernels, "framework_layer", host_share), *_copied(kernels, copied))


def _sends_beside(sizes: RankSizes) -> bool:
    """Whether a chunk's result travels while the next chunk computes (Megatron-Core's overlap_p2p_comm)."""
    return sizes.framework.overlapped_sends and not somewhere(sizes.degrees.virtual == 1)


def _sent_beside(segment: Segment, sizes: RankSizes) -> Segment:
    """The layer's segment with what goes to the next stage on the sharding stream, whose cards it shares."""
    if not somewhere(sizes.degrees.pipeline > 1) or not _sends_beside(sizes):
        return segment
    last = None if segment.last is None else _sent_beside(segment.last, sizes)
    return segment._replace(sharding=(*segment.sharding, _to_next_stage(sizes)), last=last)


def _of_layer(segment: Segment, sizes: RankSizes, kernels: Kernels, recompute: str | None) -> Segment:
    """With the host's launches and what NCCL's overlap costs.

    A CPU process launches nothing: its profile was measured with exchanges, and has what no kernel explains.
    """
    segment = segment._replace(kind=sizes.layer_kind)
    if kernels.device.architecture == "cpu":
        return segment
    host_s, host_hop_s = layer_host_s(sizes, sizes.framework.host, recompute)
    return segment._replace(overlap_cost=sizes.framework.overlap_cost, host_s=host_s, host_hop_s=host_hop_s)


def _copied(kernels: Kernels, moved: Number) -> tuple[Phase, ...]:
    """A framework's copies of weights and gradients, of so many bytes."""
    if not somewhere(moved > 0):
        return ()
    return (Compute(part="memory_bound", seconds=pick(moved > 0, kernels.memory_bound_s(moved, 6), 0.0)),)


def _offloaded(sizes: RankSizes, offload: str) -> Number:
    """A layer's input (the residual stream) to host memory and back."""
    return sizes.tokens * sizes.workload.model.hidden * sizes.width if offload == "activations" else 0.0


def _to_next_stage(sizes: RankSizes) -> Exchange:
    """Its share of a layer's boundary; each tensor rank sends its slice (Megatron-LM, arXiv 2104.04473, 4.1)."""
    moved = sizes.tokens * sizes.workload.model.hidden * sizes.width / sizes.degrees.tensor
    layers = sizes.workload.model.layers / (sizes.degrees.pipeline * sizes.degrees.virtual)
    return Exchange(part="pipeline", axis="pipeline", op="send", bytes=moved / layers)


def embed(sizes: RankSizes, kernels: Kernels) -> Segment:
    """Embedding rows of this rank's tokens; the root's weights (embedding, norm, head) are gathered here, once.

    A table cut by `tensor` (each rank has rows of the vocabulary) is summed like a row-parallel product, its gradient
    gathered. A decode step finds all weights gathered by the prefill.
    """
    moved = 2 * sizes.tokens * sizes.workload.model.hidden * sizes.width
    rows = Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, 2))
    segment = Segment(
        name="embed",
        phases=(rows, *_cut_by_tensor(sizes, "reduce_scatter"), _framework(kernels, "framework_microbatch")),
        offload_bytes=fetched_bytes(sizes, root_params(sizes)),
        elsewhere=0.0,
    )
    gathered = gathered_params(sizes, root_params(sizes), trained_root_params(sizes))
    if sizes.workload.mode == "decode":
        gathered = 0.0
    return sharded(segment, sizes, kernels, Weights(gathered=gathered))


def head(sizes: RankSizes, kernels: Kernels) -> Segment:
    """Logits and cross entropy with their backward pass; else the last token's logits."""
    model, dtype = sizes.workload.model, sizes.workload.precision.param
    vocab = model.vocab // sizes.degrees.tensor
    if sizes.workload.mode != "train":
        seconds = kernels.gemm_s(larger(sizes.rows, 1), vocab, model.hidden, dtype)
        return Segment(name="logits", phases=(Compute(part="loss", seconds=seconds),), elsewhere=0.0)
    loss = Compute(part="loss", seconds=_loss_s(sizes, kernels, vocab))
    added = (
        model.embedding_params / sizes.degrees.tensor * sizes.framework.accumulate_bytes * sizes.workload.trains_head
    )
    phases = (loss, *_gathered_logits(sizes), *_cut_by_tensor(sizes, "all_gather"), *_copied(kernels, added))
    chunk = sizes.degrees.loss_chunk_tokens
    chunks = 1.0 if chunk is None else larger(sizes.tokens / chunk, 1.0)
    return _launched(Segment(name="head and loss", phases=phases, elsewhere=0.0), kernels, loss_host_s(sizes, chunks))


def _launched(segment: Segment, kernels: Kernels, host_s: Number) -> Segment:
    """With what the host takes to launch it; a CPU process launches nothing."""
    return segment if kernels.device.architecture == "cpu" else segment._replace(host_s=host_s)


def _gathered_logits(sizes: RankSizes) -> tuple[Exchange, ...]:
    """Every tensor rank gets all logits, where the framework's loss wants them; their gradient is cut without one."""
    if not (sizes.framework.gathers_logits and somewhere(sizes.degrees.tensor > 1)):
        return ()
    moved = sizes.tokens * sizes.workload.model.vocab * sizes.width
    return (Exchange(part="tensor", axis="tensor", op="all_gather", bytes=moved),)


def _cut_by_tensor(sizes: RankSizes, op: Literal["all_gather", "reduce_scatter"]) -> tuple[Phase, ...]:
    """The exchange of a table cut by `tensor` and, in training, of its gradient."""
    forward = tensor_exchange(sizes, op, False)
    return (*forward, *tensor_exchange(sizes, op, True)) if sizes.workload.mode == "train" else forward


def root_gradients(sizes: RankSizes, kernels: Kernels) -> Segment:
    """Embedding, norm and head, one unit of sharding: reduced last in the backward pass, with nothing behind it."""
    gradient = trained_root_params(sizes) * DTYPE_BYTES[sizes.workload.precision.reduce]
    segment = Segment(
        name="root gradients",
        phases=_copied(kernels, _embedding_copies(sizes)),
        offload_bytes=returned_bytes(sizes, gradient),
        elsewhere=0.0,
    )
    return sharded(segment, sizes, kernels, Weights(trained=trained_root_params(sizes)))


def _embedding_copies(sizes: RankSizes) -> Number:
    """The embedding's gradient is a full table, zeroed, and then added to a buffer; the head's is added like a layer's.

    A head whose product adds it itself (`accumulator`) pays in its product; an embedding has none. With a pipeline the
    embedding stands on the first stage, where no head is.
    """
    table = sizes.workload.model.embedding_params / sizes.degrees.tensor
    if not (sizes.framework.accumulate_bytes or sizes.framework.accumulator):
        return 0.0
    alone = sizes.degrees.pipeline == 1 and float(trained_root_params(sizes)) >= table
    return table * (2 * sizes.width + 2 * DTYPE_BYTES[sizes.workload.precision.grad]) * alone


def _loss_s(sizes: RankSizes, kernels: Kernels, vocab: Number) -> Number:
    """Logits, softmax and the products of their gradients, once for each chunk; else autograd's cross entropy.

    A chunk's traffic per logit (b bytes): log-softmax r b w 4, exp r 4 w 4, mask and cast r 4 w b. Its part of the
    head's gradient is added to a float32 sum (r b r 4 w 4 for each weight) unless it is float32 itself. In the end the
    sum and the gradient of the hidden states are scaled (r 4 w b; r b w b). Gathered logits are the whole vocabulary's.
    """
    model, dtype, width = sizes.workload.model, sizes.workload.precision.param, sizes.width
    scored = model.vocab if sizes.framework.gathers_logits else vocab
    chunk, weights = sizes.degrees.loss_chunk_tokens, vocab * model.hidden
    tokens = sizes.tokens if chunk is None else smaller(sizes.tokens, chunk)
    product = kernels.gemm_s(tokens, vocab, model.hidden, dtype)
    trained = sizes.workload.trains_head
    products = product + product_s(sizes, kernels, tokens, vocab, model.hidden, True, dtype, trained)
    products = products + (2 if trained else 1) * sizes.framework.gap_s
    if chunk is None:
        moved = WHOLE_LOSS_BYTES + 2 * width if sizes.framework.loss_bytes is None else sizes.framework.loss_bytes
        return products + kernels.memory_bound_s(tokens * scored * moved, 8)
    softmax = kernels.memory_bound_s(tokens * scored * (16 + 2 * width), 8)
    summed = kernels.memory_bound_s(weights * (8 + width), 1) if trained and width < 4 else 0.0
    scaled = kernels.memory_bound_s(2 * sizes.tokens * model.hidden * width, 1)
    if trained:
        scaled = scaled + kernels.memory_bound_s(weights * (4 + width), 2)
    return sizes.tokens / tokens * (products + softmax + summed) + scaled


def update(sizes: RankSizes, kernels: Kernels) -> Segment:
    """Gradient norm and optimizer on this rank's shard (on everything without sharding); a resident buffer cleared."""
    framework, trained = sizes.framework, trained_params(sizes) / sizes.degrees.pipeline
    experts, zero = sizes.stage_total(trained_expert_params), sizes.degrees.zero
    params = trained / pick(zero == 0, 1, sizes.degrees.shard) + experts / pick(
        zero == 0, 1, sizes.degrees.expert_shard
    )
    if framework.owned_tensors:  # one owner has the largest tensor to itself
        params = larger(params, sizes.workload.model.embedding_params / sizes.degrees.tensor)
    if sizes.degrees.offload_states != "none":
        return _host_update(sizes, kernels, params)
    moved = params * _update_bytes(sizes)
    if framework.accumulator is not None:
        moved = moved + (trained + experts) * DTYPE_BYTES[framework.accumulator]
    exchange = Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0)
    step = Compute(part="optimizer", seconds=kernels.memory_bound_s(moved, 6))
    phases = (step, _framework(kernels, "framework_step"), exchange)
    return _launched(Segment(name="optimizer", phases=phases), kernels, update_host_s(sizes))


def _host_update(sizes: RankSizes, kernels: Kernels, params: Number) -> Segment:
    """The CPU's update (ZeRO-Offload, arXiv 2101.06840); new weights go up meanwhile unless they stay on the host."""
    norm = Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0)
    return Segment(
        name="optimizer",
        phases=(_framework(kernels, "framework_step"), norm),
        host_update_bytes=params * (_update_bytes(sizes) - NORM_BYTES),
        offload_bytes=params * sizes.width if sizes.degrees.offload_states == "optimizer" else 0.0,
    )


def _update_bytes(sizes: RankSizes) -> int:
    """Traffic per weight of norm and update; a framework's number is of AdamW, with two states."""
    states = OPTIMIZER_STATES[sizes.workload.optimizer]
    if sizes.framework.optimizer_bytes is not None:
        return sizes.framework.optimizer_bytes - STATE_BYTES * (OPTIMIZER_STATES["adamw"] - states)
    return STATE_BYTES * (1 + states) + 4 + NORM_BYTES


def _framework(kernels: Kernels, unit: str, share: float = 1.0) -> Compute:
    """Host time that no kernel explains; nothing unless a profile of CPU processes has it."""
    return Compute(part="memory_bound", seconds=share * kernels.framework_s(unit))


def _decode(sizes: RankSizes, kernels: Kernels) -> StepProgram:
    """One token through all layers: a pipeline's stages follow each other, and a tensor group sums twice a layer."""
    model, width, dtype = sizes.workload.model, sizes.width, sizes.workload.precision.param
    rows, cached = sizes.rows, sizes.rows * sizes.cached_tokens
    maps = (pair for several in linears(sizes).values() for pair in several)
    products = sum(kernels.gemm_s(larger(rows, 1), out, inside, dtype) for out, inside in maps)
    scans = model.layer_kinds.count("ssd")
    attending = model.layers - scans
    of_kind = {
        kind: kernels.memory_bound_s(_seen(sizes, kind, cached) * 2 * sizes.kv_width * width, 1)
        for kind in dict.fromkeys(model.layer_kinds)
        if kind != "ssd"
    }
    cache = sum(seconds * (model.layer_kinds.count(kind) / attending) for kind, seconds in of_kind.items())
    small = kernels.memory_bound_s(2 * _token_bytes(sizes), TOKEN_CALLS)
    merge = rows * (sizes.q_width + model.heads) * 4 * sizes.degrees.context
    phases = (
        Compute(part="matmul", seconds=products),
        Compute(part="attention", seconds=cache),
        Exchange(part="all_to_all", axis="context", op="all_gather", bytes=merge),
        Compute(part="memory_bound", seconds=small),
        *_decode_exchanges(sizes),
    )
    layers = [Segment(name="layer decode", phases=phases, repeat=attending)] if attending else []
    layers += [_scanned_token(sizes, kernels)] if scans else []
    segments = (embed(sizes, kernels), *layers, *_to_next_stages(sizes), head(sizes, kernels))
    return StepProgram(microbatch=segments, epilogue=(), microbatches=sizes.degrees.microbatches)


def _scanned_token(sizes: RankSizes, kernels: Kernels) -> Segment:
    """One token through all state-space layers: each rank has their states, reads and writes them, sends nothing."""
    ssd, model, rows = sizes.workload.model.ssd, sizes.workload.model, larger(sizes.rows, 1)
    assert ssd is not None
    mlp = [pair for target, several in linears(sizes).items() if target in ("up", "down") for pair in several]
    maps = [(ssd.columns, model.hidden), (model.hidden, ssd.inner), *mlp]
    products = sum(kernels.gemm_s(rows, *one, sizes.workload.precision.param) for one in maps)
    moved = 2 * rows * ssd.cached_bytes(sizes.width) + 2 * _token_bytes(sizes)
    phases = (
        Compute(part="matmul", seconds=products),
        Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, TOKEN_CALLS + SCAN_CALLS[0])),
    )
    return Segment(name="layer decode", phases=phases, repeat=model.layer_kinds.count("ssd"))


def _decode_exchanges(sizes: RankSizes) -> Iterator[Phase]:
    """Of a layer: attention's output and the MLP's are summed, a cache cut by tokens takes the queries of all its ranks
    and gives back their partial results in fp32 with their log-sum-exps."""
    if not somewhere(sizes.degrees.tensor > 1):
        return
    summed = sizes.rows * sizes.workload.model.hidden * sizes.width
    yield Exchange(part="tensor", axis="tensor", op="all_reduce", bytes=summed)
    yield Exchange(part="tensor", axis="tensor", op="all_reduce", bytes=summed)
    if sizes.degrees.cache_context > 1:
        queries = sizes.rows * sizes.q_width * sizes.degrees.cache_context
        heads = queries / sizes.workload.model.head_dim
        yield Exchange(part="tensor", axis="tensor", op="all_gather", bytes=queries * sizes.width)
        yield Exchange(part="tensor", axis="tensor", op="reduce_scatter", bytes=(queries + heads) * 4)


def _to_next_stages(sizes: RankSizes) -> Iterator[Segment]:
    if sizes.degrees.pipeline > 1:
        sent = sizes.rows * sizes.workload.model.hidden * sizes.width
        phase = Exchange(part="pipeline", axis="pipeline", op="send", bytes=sent)
        yield Segment(name="to the next stage", phases=(phase,), repeat=sizes.degrees.pipeline - 1)


def _seen(sizes: RankSizes, kind: LayerKind, cached: Number) -> Number:
    """Of a rank's cached tokens those that a new one sees: of a window the last ranks hold all, so no more than it."""
    window = sizes.of(kind).window
    return smaller(cached, sizes.rows * window) if window else cached


def _token_bytes(sizes: RankSizes) -> Number:
    return sizes.tokens * sizes.workload.model.hidden * (28 + 5 * sizes.width)
