"""A whole step as a program: vision, embedding exchange, layers forward, head and loss, layers backward, optimizer.

    train    microbatches x [vision · embed · layers forward · loss · layers backward · vision backward] · optimizer
    prefill  [vision · embed · layers forward · logits of the last token]
    decode   [embed · layers forward of one token against the sharded cache, merged by log-sum-exp · logits]

Weights are gathered and gradients reduced as `sharding.py` says. Left out: data loading and video decoding (host side).
"""

from __future__ import annotations

from typing import Literal

from cost_models.errors import InputError
from cost_models.layer import decoder
from cost_models.layer.launches import layer_host_s
from cost_models.layer.operators import product_s, tensor_exchange
from cost_models.layer.recompute import policy
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import Run, at_stage, is_mixed, runs
from cost_models.number import Number, larger, pick, smaller, somewhere
from cost_models.program import Compute, Exchange, Phase, Segment, StepProgram
from cost_models.step import vision
from cost_models.step.sharding import Weights, broadcast_by_owners, sharded
from cost_models.strategy import LayerRange
from cost_models.timing.host import Host
from cost_models.timing.kernels import Kernels
from cost_models.workload import DTYPE_BYTES, OPTIMIZER_STATES

FORWARD_SHARE = 1 / 3
"""Of a layer's host time, as of its matrix products."""
WHOLE_LOSS_BYTES = 32
"""Traffic per logit of autograd's cross entropy beside reading the logits and writing their gradient: cast w4,
log-softmax r4 w4, zeros for the gradient w4, backward of the softmax r4 r4 w4, cast r4."""
STATE_BYTES = 8
"""Traffic per weight and state of a fused fp32 update: r4 w4, as of the weight; the gradient is read."""
NORM_BYTES = 4
"""Per gradient: read for the norm."""


def step_program(shape: RankSizes, kernels: Kernels, ranges: tuple[LayerRange, ...]) -> StepProgram:
    """The step for `ranges` of layers (all layers of the model; `stages.py` says which pipeline stage has which)."""
    model, stages, mode = shape.workload.model, shape.degrees.pipeline, shape.workload.mode
    if mode != "train" and shape.degrees.offload_states != "none":
        raise InputError(f"offload_states={shape.degrees.offload_states} with mode={mode}; legal here: none")
    if mode == "decode" and shape.degrees.attention_chunk_tokens is not None:
        raise InputError(f"attention_chunk_tokens={shape.degrees.attention_chunk_tokens} with mode=decode; legal: none")
    if mode == "decode":
        if model.experts or model.latent:
            raise InputError(f"mode=decode is not priced for {model.name} (experts or latent attention); legal: train")
        return _decode(shape, kernels)
    layers = runs(model, ranges, stages)
    forward = [
        _at(forward_segment(shape.of(r.kind), kernels, repeat=r.layers, offload=r.part.offload), r) for r in layers
    ]
    segments = [*vision.forward(shape, kernels), embed(shape, kernels), *forward, head(shape, kernels)]
    epilogue: tuple[Segment, ...] = ()
    if shape.workload.mode == "train":
        for run in reversed(layers):
            part, here = run.part, shape.of(run.kind)
            segment = backward_segment(here, kernels, part.recompute, repeat=run.layers, offload=part.offload)
            segments.append(_at(segment, run))
        segments += [*vision.backward(shape, kernels), root_gradients(shape, kernels)]
        last = at_stage(shape, ranges, stages - 1) if is_mixed(model) else shape
        epilogue = (update(last, kernels),)
    if shape.framework.owned_tensors and mode == "train" and shape.degrees.zero < 2:
        segments, broadcasts = broadcast_by_owners(segments, shape)
        epilogue = (*epilogue, *broadcasts)
    return StepProgram(
        microbatch=tuple(segments),
        epilogue=epilogue,
        microbatches=shape.degrees.microbatches,
        pipeline=stages,
        virtual=shape.degrees.virtual,
    )


def _at(segment: Segment, run: Run) -> Segment:
    """The segment as one of a pipeline's stage."""
    if run.elsewhere is None:
        return segment
    last = None if segment.last is None else segment.last._replace(elsewhere=run.elsewhere)
    return segment._replace(elsewhere=run.elsewhere, last=last)


def forward_segment(shape: RankSizes, kernels: Kernels, *, repeat: Number, offload: str = "none") -> Segment:
    """`repeat` layers forward."""
    phases = (*decoder.forward(shape, kernels), _framework(kernels, "framework_layer", FORWARD_SHARE))
    if somewhere(shape.degrees.pipeline > 1):
        phases = (*phases, _to_next_stage(shape))
    host_s, host_hop_s = layer_host_s(shape, _host(shape, kernels))
    segment = Segment(
        name="layer forward",
        phases=(
            *phases,
            *_copied(kernels, (shape.layer_params + shape.expert_params) * shape.framework.autocast_bytes),
        ),
        repeat=repeat,
        offload_bytes=_offloaded(shape, offload) + shape.fetched_bytes(shape.layer_params, shape.expert_params),
        kind=shape.layer_kind,
        overlap_cost=_overlap_cost(shape, kernels),
        host_s=host_s,
        host_hop_s=host_hop_s,
    )
    weights = Weights(gathered=shape.layer_params, gathered_experts=shape.expert_params)
    return sharded(segment, shape, kernels, weights)


def backward_segment(
    shape: RankSizes, kernels: Kernels, recompute: str, *, repeat: Number, offload: str = "none"
) -> Segment:
    """`repeat` layers backward, with what the policy runs again."""
    again = policy(recompute)
    host_share = 1 - FORWARD_SHARE + (FORWARD_SHARE if again.keeps_input else 0.0)
    reduce = DTYPE_BYTES[shape.workload.precision.reduce]
    phases: tuple[Phase, ...] = decoder.backward(shape, kernels, recompute)
    if somewhere(shape.degrees.pipeline > 1):
        phases = (*phases, _to_next_stage(shape))
    trained, trained_experts = shape.trained_layer_params, shape.trained_expert_params
    cast = (shape.layer_params + shape.expert_params) * shape.framework.autocast_bytes * again.passes
    added = (trained + trained_experts) * shape.framework.accumulate_bytes
    between = shape.fetched_bytes(shape.layer_params, shape.expert_params)
    between = between + shape.returned_bytes(trained * reduce, trained_experts * reduce)
    host_s, host_hop_s = layer_host_s(shape, _host(shape, kernels), recompute)
    segment = Segment(
        name=f"layer backward {recompute}",
        phases=(*phases, _framework(kernels, "framework_layer", host_share), *_copied(kernels, cast + added)),
        repeat=repeat,
        from_host=True,
        offload_bytes=_offloaded(shape, offload) + between,
        kind=shape.layer_kind,
        overlap_cost=_overlap_cost(shape, kernels),
        host_s=host_s,
        host_hop_s=host_hop_s,
    )
    gathered = pick(shape.degrees.zero == 3, 1, 0)
    weights = Weights(
        gathered=gathered * shape.layer_params,
        trained=trained,
        gathered_experts=gathered * shape.expert_params,
        trained_experts=trained_experts,
    )
    return sharded(segment, shape, kernels, weights, passes=again.passes)


def _copied(kernels: Kernels, moved: Number) -> tuple[Phase, ...]:
    """A framework's copies of weights and gradients, of so many bytes."""
    return (Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, 6)),) if somewhere(moved > 0) else ()


def _host(shape: RankSizes, kernels: Kernels) -> Host | None:
    """A CPU process is its own host: what no kernel explains there is measured (`framework_s`)."""
    return None if kernels.device.architecture == "cpu" else shape.framework.host


def _overlap_cost(shape: RankSizes, kernels: Kernels) -> float:
    """NCCL's; a profile of CPU processes was measured beside their exchanges."""
    return 0.0 if kernels.device.architecture == "cpu" else shape.framework.overlap_cost


def _offloaded(shape: RankSizes, offload: str) -> Number:
    """A layer's input (the residual stream) to host memory and back."""
    return shape.tokens * shape.workload.model.hidden * shape.width if offload == "activations" else 0.0


def _to_next_stage(shape: RankSizes) -> Exchange:
    """Its share of a layer's boundary; each tensor rank sends its own slice (Megatron-LM, arXiv 2104.04473, 4.1)."""
    moved = shape.tokens * shape.workload.model.hidden * shape.width / shape.degrees.tensor
    layers = shape.workload.model.layers / (shape.degrees.pipeline * shape.degrees.virtual)
    return Exchange(part="pipeline", axis="pipeline", op="send", bytes=moved / layers)


def embed(shape: RankSizes, kernels: Kernels) -> Segment:
    """Embedding rows of this rank's tokens; the root's weights (embedding, norm, head) are gathered here, once.

    A table cut by `tensor` (each rank has rows of the vocabulary) is summed like a row-parallel product, its gradient
    gathered. A decode step finds all weights gathered by the prefill.
    """
    moved = 2 * shape.tokens * shape.workload.model.hidden * shape.width
    rows = Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, 2))
    segment = Segment(
        name="embed",
        phases=(rows, *_cut_by_tensor(shape, "reduce_scatter"), _framework(kernels, "framework_microbatch")),
        offload_bytes=shape.fetched_bytes(shape.root_params),
        elsewhere=0.0,
    )
    gathered = 0.0 if shape.workload.mode == "decode" else shape.root_params
    return sharded(segment, shape, kernels, Weights(gathered=gathered))


def head(shape: RankSizes, kernels: Kernels) -> Segment:
    """Logits and cross entropy with their backward pass; else the last token's logits."""
    model, dtype = shape.workload.model, shape.workload.precision.param
    vocab = model.vocab // shape.degrees.tensor
    if shape.workload.mode != "train":
        seconds = kernels.gemm_s(larger(shape.rows, 1), vocab, model.hidden, dtype)
        return Segment(name="logits", phases=(Compute(part="loss", seconds=seconds),), elsewhere=0.0)
    loss = Compute(part="loss", seconds=_loss_s(shape, kernels, vocab))
    added = (
        model.embedding_params / shape.degrees.tensor * shape.framework.accumulate_bytes * shape.workload.trains_head
    )
    phases = (loss, *_cut_by_tensor(shape, "all_gather"), *_copied(kernels, added))
    return Segment(name="head and loss", phases=phases, elsewhere=0.0)


def _cut_by_tensor(shape: RankSizes, op: Literal["all_gather", "reduce_scatter"]) -> tuple[Phase, ...]:
    """The exchange of a table cut by `tensor` and, in training, of its gradient."""
    forward = tensor_exchange(shape, op, False)
    return (*forward, *tensor_exchange(shape, op, True)) if shape.workload.mode == "train" else forward


def root_gradients(shape: RankSizes, kernels: Kernels) -> Segment:
    """Embedding, norm and head, one unit of sharding: reduced last in the backward pass, with nothing behind it."""
    gradient = shape.trained_root_params * DTYPE_BYTES[shape.workload.precision.reduce]
    segment = Segment(
        name="root gradients",
        phases=_copied(kernels, _embedding_copies(shape)),
        offload_bytes=shape.returned_bytes(gradient),
        elsewhere=0.0,
    )
    return sharded(segment, shape, kernels, Weights(trained=shape.trained_root_params))


def _embedding_copies(shape: RankSizes) -> Number:
    """The embedding's gradient is a full table, zeroed, and then added to a buffer; the head's is added like a layer's.

    A head whose product adds it itself (`accumulator`) pays in its product; an embedding has none. With a pipeline the
    embedding stands on the first stage, where no head is.
    """
    table = shape.workload.model.embedding_params / shape.degrees.tensor
    if not (shape.framework.accumulate_bytes or shape.framework.accumulator):
        return 0.0
    alone = shape.degrees.pipeline == 1 and float(shape.trained_root_params) >= table
    return table * (2 * shape.width + 2 * DTYPE_BYTES[shape.workload.precision.grad]) * alone


def _loss_s(shape: RankSizes, kernels: Kernels, vocab: Number) -> Number:
    """Logits, softmax and the products of their gradients, once for each chunk; whole: by autograd's cross entropy.

    A chunk's traffic per logit (b bytes): log-softmax r b w 4, exp r 4 w 4, mask and cast r 4 w b. Its part of the
    head's gradient is added to a float32 sum (r b r 4 w 4 for each weight) unless it is float32 itself. In the end the
    sum and the gradient of the hidden states are scaled (r 4 w b; r b w b).
    """
    model, dtype, width = shape.workload.model, shape.workload.precision.param, shape.width
    chunk, weights = shape.degrees.loss_chunk_tokens, vocab * model.hidden
    tokens = shape.tokens if chunk is None else smaller(shape.tokens, chunk)
    product = kernels.gemm_s(tokens, vocab, model.hidden, dtype)
    trained = shape.workload.trains_head
    products = product + product_s(shape, kernels, tokens, vocab, model.hidden, True, dtype, trained)
    products = products + (2 if trained else 1) * shape.framework.gap_s
    if chunk is None:
        moved = WHOLE_LOSS_BYTES + 2 * width if shape.framework.loss_bytes is None else shape.framework.loss_bytes
        return products + kernels.memory_bound_s(tokens * vocab * moved, 8)
    softmax = kernels.memory_bound_s(tokens * vocab * (16 + 2 * width), 8)
    summed = kernels.memory_bound_s(weights * (8 + width), 1) if trained and width < 4 else 0.0
    scaled = kernels.memory_bound_s(2 * shape.tokens * model.hidden * width, 1)
    if trained:
        scaled = scaled + kernels.memory_bound_s(weights * (4 + width), 2)
    return shape.tokens / tokens * (products + softmax + summed) + scaled


def update(shape: RankSizes, kernels: Kernels) -> Segment:
    """Gradient norm and optimizer on this rank's shard (on everything without sharding); a resident buffer cleared."""
    framework, whole = shape.framework, trained_params(shape) / shape.degrees.pipeline
    experts, zero = trained_expert_params(shape), shape.degrees.zero
    params = whole / pick(zero == 0, 1, shape.degrees.shard) + experts / pick(zero == 0, 1, shape.degrees.expert_shard)
    if framework.owned_tensors:  # one owner has the largest tensor to itself
        params = larger(params, shape.workload.model.embedding_params / shape.degrees.tensor)
    if shape.degrees.offload_states != "none":
        return _host_update(shape, kernels, params)
    moved = params * _update_bytes(shape)
    if framework.accumulator is not None:
        moved = moved + (whole + experts) * DTYPE_BYTES[framework.accumulator]
    exchange = Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0)
    step = Compute(part="optimizer", seconds=kernels.memory_bound_s(moved, 6))
    return Segment(name="optimizer", phases=(step, _framework(kernels, "framework_step"), exchange))


def _host_update(shape: RankSizes, kernels: Kernels, params: Number) -> Segment:
    """The CPU's update (ZeRO-Offload, arXiv 2101.06840); new weights go up beside it unless they stay on the host."""
    norm = Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0)
    return Segment(
        name="optimizer",
        phases=(_framework(kernels, "framework_step"), norm),
        host_update_bytes=params * (_update_bytes(shape) - NORM_BYTES),
        offload_bytes=params * shape.width if shape.degrees.offload_states == "optimizer" else 0.0,
    )


def _update_bytes(shape: RankSizes) -> int:
    """Traffic per weight of norm and update; a framework's number is of AdamW, with two states."""
    states = OPTIMIZER_STATES[shape.workload.optimizer]
    if shape.framework.optimizer_bytes is not None:
        return shape.framework.optimizer_bytes - STATE_BYTES * (OPTIMIZER_STATES["adamw"] - states)
    return STATE_BYTES * (1 + states) + 4 + NORM_BYTES


def _framework(kernels: Kernels, unit: str, share: float = 1.0) -> Compute:
    """Host time that no kernel explains; nothing unless a profile of CPU processes has it."""
    return Compute(part="memory_bound", seconds=share * kernels.framework_s(unit))


def trained_params(shape: RankSizes) -> Number:
    """Weights of one rank before sharding that have gradients, over all pipeline stages, without spread experts."""
    model = shape.workload.model
    layers = model.layers * shape.trained_layer_params
    if shape.stage is not None:
        layers = shape.stage_total(lambda here: here.trained_layer_params) * shape.degrees.pipeline
    total: Number = layers + shape.trained_root_params
    if model.vision is not None:
        total = total + (model.vision.tower_params if shape.trains("tower") else 0)
        total = total + (model.vision.projector_params(model.hidden) if shape.trains("projector") else 0)
    return total


def trained_expert_params(shape: RankSizes) -> Number:
    """Weights of spread experts that one rank of a stage holds and trains, before sharding."""
    return shape.stage_total(lambda here: here.trained_expert_params)


def _decode(shape: RankSizes, kernels: Kernels) -> StepProgram:
    model, width, dtype = shape.workload.model, shape.width, shape.workload.precision.param
    rows, cached = shape.rows, shape.rows * (shape.ring_tokens // shape.degrees.ulysses)
    widths = ((shape.q_width, model.hidden), (shape.kv_width, model.hidden), (shape.kv_width, model.hidden))
    shapes = (*widths, (model.hidden, shape.q_width), (shape.ffn, model.hidden), (model.hidden, shape.ffn))
    products = sum(kernels.gemm_s(larger(rows, 1), n, k, dtype) for n, k in shapes)
    if model.gated:
        products = products + kernels.gemm_s(larger(rows, 1), shape.ffn, model.hidden, dtype)
    cache = kernels.memory_bound_s(cached * 2 * shape.kv_width * width, 1)
    small = kernels.memory_bound_s(2 * _token_bytes(shape), 28)
    merge = rows * (shape.q_width + model.heads) * 4 * shape.degrees.context
    phases = (
        Compute(part="matmul", seconds=products),
        Compute(part="attention", seconds=cache),
        Exchange(part="all_to_all", axis="context", op="all_gather", bytes=merge),
        Compute(part="memory_bound", seconds=small),
    )
    one = Segment(name="layer decode", phases=phases, repeat=model.layers)
    segments = (embed(shape, kernels), one, head(shape, kernels))
    return StepProgram(microbatch=segments, epilogue=(), microbatches=shape.degrees.microbatches)


def _token_bytes(shape: RankSizes) -> Number:
    return shape.tokens * shape.workload.model.hidden * (28 + 5 * shape.width)
