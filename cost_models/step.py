"""A whole step as a program: vision, embedding exchange, layers forward, head and loss, layers backward, optimizer.

    train    microbatches x [vision · embed · layers forward · loss · layers backward · vision backward] · optimizer
    prefill  [vision · embed · layers forward · logits of the last token]
    decode   [embed · layers forward of one token against the sharded cache, merged by log-sum-exp · logits]

Weights are gathered per layer in the parameter dtype and again for the backward pass with ZeRO-3; gradients are
reduce-scattered per layer and microbatch in the reduce dtype, and their shards all-reduced over the replicas once a
step: in the last microbatch, here spread evenly over all. Left out: data loading and video decoding (host side).
"""

from __future__ import annotations

from typing import Any

from cost_models import layer, vision
from cost_models.either import larger, pick, smaller, somewhere
from cost_models.kernels import Kernels
from cost_models.program import Compute, Exchange, Phase, Segment, StepProgram
from cost_models.shape import Shape
from cost_models.strategy import LayerRange
from cost_models.work import matmul_s
from cost_models.workload import DTYPE_BYTES

FORWARD_SHARE = 1 / 3
"""Of a layer's host time, as of its matrix products."""
OPTIMIZER_BYTES = {"adamw": 7 * 4, "sgd": 3 * 4}
"""Traffic per parameter of a fused fp32 update: read weight, gradient and states, write weight and states."""


def step_program(shape: Shape, kernels: Kernels, ranges: tuple[LayerRange, ...]) -> StepProgram:
    """The step for `ranges` of layers (all layers of the model; a pipeline stage holds an equal share of each)."""
    if shape.workload.mode == "decode":
        return _decode(shape, kernels)
    stages = shape.degrees.pipeline
    forward = [forward_segment(shape, kernels, repeat=part.count / stages, offload=part.offload) for part in ranges]
    segments = [*vision.forward(shape, kernels), embed(shape, kernels), *forward, head(shape, kernels)]
    epilogue: tuple[Segment, ...] = ()
    if shape.workload.mode == "train":
        segments += [
            backward_segment(shape, kernels, part.recompute, repeat=part.count / stages, offload=part.offload)
            for part in reversed(ranges)
        ]
        segments += [*vision.backward(shape, kernels), root_gradients(shape)]
        epilogue = (update(shape, kernels),)
    return StepProgram(
        microbatch=tuple(segments),
        epilogue=epilogue,
        microbatches=shape.degrees.microbatches,
        pipeline=stages,
        virtual=shape.degrees.virtual,
    )


def forward_segment(shape: Shape, kernels: Kernels, *, repeat: Any, offload: str = "none") -> Segment:
    phases = (*layer.forward(shape, kernels), _framework(kernels, "framework_layer", FORWARD_SHARE))
    if somewhere(shape.degrees.pipeline > 1):
        phases = (*phases, _to_next_stage(shape))
    return Segment(
        name="layer forward",
        phases=phases,
        repeat=repeat,
        gather_bytes=shape.layer_params * shape.width,
        offload_bytes=_offloaded(shape, offload),
    )


def backward_segment(shape: Shape, kernels: Kernels, recompute: str, *, repeat: Any, offload: str = "none") -> Segment:
    trained = shape.trains("llm")
    host_share = 1 - FORWARD_SHARE + (FORWARD_SHARE if recompute in ("full", "all_but_attention") else 0.0)
    reduce = DTYPE_BYTES[shape.workload.precision.reduce]
    phases: tuple[Phase, ...] = layer.backward(shape, kernels, recompute)
    if somewhere(shape.degrees.pipeline > 1):
        phases = (*phases, _to_next_stage(shape))
    again = pick(shape.degrees.zero == 3, shape.layer_params * shape.width, 0)
    gradient = shape.layer_params * reduce if trained else 0.0
    return Segment(
        name=f"layer backward {recompute}",
        phases=(*phases, _framework(kernels, "framework_layer", host_share)),
        repeat=repeat,
        gather_bytes=again,
        scatter_bytes=gradient,
        replicate_bytes=shape.replicate_bytes(gradient),
        offload_bytes=_offloaded(shape, offload),
    )


def _offloaded(shape: Shape, offload: str) -> Any:
    """A layer's input (the residual stream) to host memory and back."""
    return shape.tokens * shape.workload.model.hidden * shape.width if offload == "activations" else 0.0


def _to_next_stage(shape: Shape) -> Exchange:
    """Its share of a layer's boundary; each tensor rank sends its own slice (Megatron-LM, arXiv 2104.04473, 4.1)."""
    moved = shape.tokens * shape.workload.model.hidden * shape.width / shape.degrees.tensor
    layers = shape.workload.model.layers / (shape.degrees.pipeline * shape.degrees.virtual)
    return Exchange(part="pipeline", axis="pipeline", op="send", bytes=moved / layers)


def embed(shape: Shape, kernels: Kernels) -> Segment:
    """Embedding rows of this rank's tokens; the root's weights (embedding, norm, head) are gathered here, once.

    A decode step finds all weights gathered by the prefill.
    """
    moved = 2 * shape.tokens * shape.workload.model.hidden * shape.width
    seconds = kernels.memory_bound_s(moved, 2)
    return Segment(
        name="embed",
        phases=(Compute(part="memory_bound", seconds=seconds), _framework(kernels, "framework_microbatch")),
        gather_bytes=0.0 if shape.workload.mode == "decode" else shape.root_params * shape.width,
    )


def head(shape: Shape, kernels: Kernels) -> Segment:
    """Logits and cross entropy with their backward pass; else the last token's logits."""
    model, dtype = shape.workload.model, shape.workload.precision.param
    vocab = model.vocab // shape.degrees.tensor
    if shape.workload.mode != "train":
        seconds = kernels.gemm_s(larger(shape.rows, 1), vocab, model.hidden, dtype)
        return Segment(name="logits", phases=(Compute(part="loss", seconds=seconds),))
    return Segment(name="head and loss", phases=(Compute(part="loss", seconds=_loss_s(shape, kernels, vocab)),))


def root_gradients(shape: Shape) -> Segment:
    """Embedding, norm and head, one unit of sharding: reduced last in the backward pass, with nothing behind it."""
    gradient = shape.root_params * DTYPE_BYTES[shape.workload.precision.reduce] if shape.trains("llm") else 0.0
    return Segment(
        name="root gradients", phases=(), scatter_bytes=gradient, replicate_bytes=shape.replicate_bytes(gradient)
    )


def _loss_s(shape: Shape, kernels: Kernels, vocab: Any) -> Any:
    """Logits, softmax and the products of their gradients, once for each chunk; whole: by autograd's cross entropy.

    A chunk's traffic per logit (b bytes): log-softmax r b w 4, exp r 4 w 4, mask and cast r 4 w b. Its part of the
    head's gradient is added to a float32 sum (r b r 4 w 4 for each weight) unless it is float32 itself. In the end the
    sum and the gradient of the hidden states are scaled (r 4 w b; r b w b).
    """
    model, dtype, width = shape.workload.model, shape.workload.precision.param, shape.width
    chunk, weights = shape.degrees.loss_chunk_tokens, vocab * model.hidden
    tokens = shape.tokens if chunk is None else smaller(shape.tokens, chunk)
    product = kernels.gemm_s(tokens, vocab, model.hidden, dtype)
    products = product + matmul_s(shape, kernels, tokens, vocab, model.hidden, True, dtype)
    if chunk is None:
        return products + kernels.memory_bound_s(tokens * vocab * (20 + 3 * width), 8)
    softmax = kernels.memory_bound_s(tokens * vocab * (16 + 2 * width), 8)
    summed = kernels.memory_bound_s(weights * (8 + width), 1) if shape.trains("llm") and width < 4 else 0.0
    scaled = kernels.memory_bound_s(2 * shape.tokens * model.hidden * width, 1)
    if shape.trains("llm"):
        scaled = scaled + kernels.memory_bound_s(weights * (4 + width), 2)
    return shape.tokens / tokens * (products + softmax + summed) + scaled


def update(shape: Shape, kernels: Kernels) -> Segment:
    """Gradient norm and optimizer on this rank's shard (on everything without sharding)."""
    parts = pick(shape.degrees.zero == 0, 1, shape.degrees.shard)
    params = trained_params(shape) / shape.degrees.pipeline / parts
    norm = kernels.memory_bound_s(params * 4, 2)
    step = kernels.memory_bound_s(params * OPTIMIZER_BYTES[shape.workload.optimizer], 4)
    exchange = Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0)
    return Segment(
        name="optimizer",
        phases=(Compute(part="optimizer", seconds=norm + step), _framework(kernels, "framework_step"), exchange),
    )


def _framework(kernels: Kernels, unit: str, share: float = 1.0) -> Compute:
    """Host time that no kernel explains; nothing unless a profile of CPU processes has it."""
    return Compute(part="memory_bound", seconds=share * kernels.framework_s(unit))


def trained_params(shape: Shape) -> Any:
    """Weights of one rank before sharding that have gradients."""
    model = shape.workload.model
    total: Any = 0
    if shape.trains("llm"):
        total = model.layers * shape.layer_params + shape.root_params
    if model.vision is not None:
        total = total + (model.vision.tower_params if shape.trains("tower") else 0)
        total = total + (model.vision.projector_params(model.hidden) if shape.trains("projector") else 0)
    return total


def _decode(shape: Shape, kernels: Kernels) -> StepProgram:
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


def _token_bytes(shape: Shape) -> Any:
    return shape.tokens * shape.workload.model.hidden * (28 + 5 * shape.width)
