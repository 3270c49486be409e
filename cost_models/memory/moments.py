"""The moments of a step at which memory may be highest, and what is alive then beside states and kept activations.

    loss              all activations kept; head gathered; logits and their gradients, the head's gradient
    layer backward    head's gradient waiting, this layer and the next one gathered, what is recomputed, gradients of
                      the MLP's inside or of attention, whole gradients of this layer and of the one before
    root gradients    activations gone; whole gradients of embedding, head and projector, copied for their reduction
    forward           without training: one layer's tensors and the last token's logits

They follow one another, so the peak is their maximum and never their sum. Each is an upper bound by a few percent of
itself of what `executor check` counts. Bytes of one rank; numbers or arrays over candidates. Left out: the update's
transients (no activation is alive beside them), and the tower's backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cost_models.either import both, larger, pick, smaller, somewhere
from cost_models.memory.activations import (
    final_norm_input,
    kept_bytes,
    microbatches_in_flight,
    mlp_tensors,
    recomputed_bytes,
    saves_input,
)
from cost_models.memory.states import dropped_gradients, dummy_gradients, root_params
from cost_models.step.chunked import chunk_working_bytes
from cost_models.step.expert_layer import expert_kept_bytes, expert_working_bytes
from cost_models.step.mlp import slice_tokens
from cost_models.step.shape import Shape
from cost_models.strategy import LayerRange
from cost_models.workload import DTYPE_BYTES

ROW_BYTES = 40
"""Per token of a whole row, which every rank reads: ids, labels, positions, documents and their places, 8 B each."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """
    >>> Moment(name="loss", logits=2).total
    2
    """

    name: str
    gathered: Any = 0
    working: Any = 0
    logits: Any = 0

    @property
    def total(self) -> Any:
        return self.gathered + self.working + self.logits


def peak(shape: Shape, layers: Iterable[LayerRange | str | tuple[Shape, LayerRange]] = ()) -> Moment:
    """The highest moment of a step with layers of these policies (or ranges, or ranges of a kind); none: of the rest.

    What comes while activations go (gradients) is counted above the least that any policy keeps, so that the sum of
    kept activations and this moment is linear in the layers of each policy.
    """
    if shape.workload.mode != "train":
        return _forward(shape)
    found = _higher(_loss(shape), _root_gradients(shape, _least_kept(shape)))
    for one in layers:
        here, part = one if isinstance(one, tuple) else (shape, one)
        found = _higher(found, _layer_backward(here, part))
        if not isinstance(part, str) and part.offload != "none":
            found = _higher(found, _root_gradients(shape, 0))
    always = ROW_BYTES * shape.rows * shape.workload.context_tokens + dummy_gradients(shape)
    always = always + pick(shape.degrees.zero == 3, shape.habits.bucket_values * shape.width, 0)
    return replace(found, working=found.working + always)


def _higher(first: Moment, second: Moment) -> Moment:
    """The one with more bytes, candidate by candidate."""
    above = second.total > first.total
    if not somewhere(above):
        return first
    return Moment(
        name=second.name if not somewhere(second.total <= first.total) else "mixed",
        gathered=pick(above, second.gathered, first.gathered),
        working=pick(above, second.working, first.working),
        logits=pick(above, second.logits, first.logits),
    )


def _forward(shape: Shape) -> Moment:
    """One layer's tensors, attention's or the MLP's, and the logits of each row's last token."""
    model, width, tokens = shape.workload.model, shape.width, shape.tokens
    exchanged = shape.ring_tokens * shape.rows * shape.heads * (model.head_dim + model.v_dim)
    block = 2 * shape.ring_tokens * shape.rows * shape.kv_heads * (model.head_dim + model.v_dim)
    attention = (exchanged + pick(shape.degrees.ring > 1, block, 0)) * width
    mlp = slice_tokens(shape) * shape.ffn * width * (3 if model.gated else 2)
    if shape.experts is not None:
        mlp = expert_working_bytes(shape, shape.experts)
    last = shape.stage is None or shape.stage.last
    return Moment(
        name="forward",
        working=larger(attention, mlp) + tokens * model.hidden * width * 2,
        logits=larger(shape.rows, 1) * (model.vocab // shape.degrees.tensor) * width if last else 0,
    )


def _loss(shape: Shape) -> Moment:
    """Logits by `_logits`, beside the final norm and the gradient of its output; the last layer's gather buffer.

    Of a pipeline without `stage` this is the last stage's, which holds fewer microbatches than the first: by at
    least the inputs of its layers.
    """
    if shape.stage is not None and not shape.stage.last:
        return Moment(name="loss")
    copied = 0 if saves_input(shape) else 4
    norm = shape.width + copied + (0 if shape.habits.norm == "fused" else shape.width)
    model = shape.workload.model
    logits = _logits(shape) + shape.outer_tokens * model.hidden * (norm + shape.width)
    if shape.habits.sequence_parallel:  # the head's products gather as a layer's do
        logits = logits + pick(shape.degrees.tensor > 1, 2 * shape.tokens * model.hidden * shape.width, 0)
    if shape.stage is None:
        logits = larger(logits - (microbatches_in_flight(shape) - 1) * _least_kept(shape), 0)
    return Moment(name="loss", gathered=_gathered(shape, 1), logits=logits)


def _logits(shape: Shape) -> Any:
    """What the loss holds at its highest moment: for one chunk of tokens, or for all of the rank by autograd.

    whole    logits in the parameter dtype, in fp32, and the gradient of both; the head's gradient
    chunk    b + 4 + 4 per logit (a CPU's; CUDA's log-softmax casts as it reads), or the gradient's b beside the
             chunk's product; all the while the head's gradient in float32, which the backward pass then casts
    """
    model, width = shape.workload.model, shape.width
    vocab, chunk = model.vocab // shape.degrees.tensor, shape.degrees.loss_chunk_tokens
    weights = model.hidden * vocab * (1 if shape.workload.trains_head else 0)
    if chunk is None:
        held = 2 * width + 8 if shape.habits.logit_bytes is None else shape.habits.logit_bytes
        return shape.tokens * vocab * held + _head_gradient(shape)
    logits = smaller(shape.tokens, chunk) * vocab
    wide = max(4, width)
    cast = weights * width if width < wide else 0
    highest = larger(logits * (2 * wide if width == wide else width + 8), logits * width + cast)
    return weights * wide + larger(highest, cast)


def _layer_backward(shape: Shape, part: LayerRange | str) -> Moment:
    """One layer's backward pass, all earlier layers' activations still kept.

    From the second layer on the gradients of the one before are on their way, but its activations are gone. An input
    that was offloaded is here again; a reentrant checkpoint also holds the layer's result.
    """
    width = shape.width
    recompute = part if isinstance(part, str) else part.recompute
    again = recomputed_bytes(shape, recompute)
    whole, reduced = _whole_gradient(shape)
    trained = shape.trained_layer_params + shape.trained_expert_params
    passing = larger(trained * reduced - kept_bytes(shape, part), 0)
    inside = larger(again + _products(shape) + passing, trained * (whole + reduced))
    offloaded = not isinstance(part, str) and part.offload != "none"
    late = larger(dropped_gradients(shape) - (0 if offloaded else _least_kept(shape)), 0)
    inside = larger(inside - final_norm_input(shape), 0)  # gone, and counted as kept
    inside = inside + _whole_rows(shape) * (offloaded + (shape.habits.reentrant and recompute == "full"))
    inside = inside + pick(both(shape.degrees.zero > 0, shape.degrees.zero < 3), shape.habits.bucket_values, 0) * width
    return Moment(
        name=f"layer backward, {recompute}",
        gathered=_gathered(shape, 2),
        working=inside + late,
        logits=_head_gradient(shape),
    )


def _whole_rows(shape: Shape) -> Any:
    """A layer's input, or its result."""
    return shape.outer_tokens * shape.workload.model.hidden * shape.width


def _products(shape: Shape) -> Any:
    """Beside the layer's own tensors: gradients of the MLP's inside, or of attention once the MLP's are gone.

    MLP        down's input goes, its gradient and those of gate and up come: 2 f (gated) per token; residual's h.
               In slices: of one slice, with what it computes again, beside sums of all weights' gradients; input's h
    attention  output, its exchange, dQ (fp32 in a ring), the kernel's dQ, dK, dV, the sums of dK and dV, and in a ring
               the next block and two travelling sums
    """
    model, width, tokens = shape.workload.model, shape.width, shape.tokens
    whole = _whole_gradient(shape)[0] if shape.workload.trains_weights else 0
    maps, weights = 3 if model.gated else 2, model.hidden * shape.ffn * whole
    inside = slice_tokens(shape) * shape.ffn * width
    mlp = larger(inside * (maps - 1) + weights, _gathered_halves(shape))
    kept = inside * mlp_tensors(shape) - maps * weights
    if shape.degrees.mlp_chunk_tokens is not None:  # nothing of it was kept: the slice's tensors, sums of all gradients
        mlp = mlp + inside * mlp_tensors(shape) + maps * weights + tokens * model.hidden * width
        kept = -maps * weights - tokens * model.hidden * width
    if shape.experts is not None:
        mlp, kept = expert_working_bytes(shape, shape.experts), expert_kept_bytes(shape, shape.experts)
    tensors, ring = shape.ring_tokens * shape.rows, shape.degrees.ring > 1
    kv = tensors * shape.kv_heads * (model.head_dim + model.v_dim)
    wide = max(4, width)
    queries = model.head_dim * (width + pick(ring, wide, width)) + model.v_dim * 2 * width
    travelling = 2 * wide + 2 * DTYPE_BYTES[shape.degrees.grad_ring_dtype] + width
    attention = tensors * shape.heads * queries + kv * (width + pick(ring, travelling, 2 * width)) - kept
    if shape.degrees.attention_chunk_tokens is not None:  # the output and both of the second norm's tensors are gone
        attention = chunk_working_bytes(shape) - kept - 3 * _whole_rows(shape)
    return larger(mlp, attention) + shape.outer_tokens * model.hidden * width


def _gathered_halves(shape: Shape) -> Any:
    """Sequence-parallel tensor parallelism gathers whole tensors for its products: behind the MLP the gradient of its
    output beside that of down's input, before it the input again and its gradient, when the inside is gone."""
    model, width, tokens = shape.workload.model, shape.width, shape.tokens
    if not shape.habits.sequence_parallel or not somewhere(shape.degrees.tensor > 1):
        return 0
    hidden, inside = tokens * model.hidden * width, slice_tokens(shape) * shape.ffn * width
    before = 2 * hidden + inside * ((2 if model.gated else 1) - mlp_tensors(shape))
    return pick(shape.degrees.tensor > 1, larger(hidden + inside, before), 0)


def _root_gradients(shape: Shape, kept: Any) -> Moment:
    """Whole gradients of the root, and their copy for the reduction, in place of its gathered weights."""
    whole, reduced = _whole_gradient(shape)
    vision, trained = shape.workload.model.vision, smaller(shape.trained_root_params, root_params(shape))
    if vision is not None:
        trained = trained + (vision.embedding_params if shape.trains("tower") else 0)
        hidden = shape.workload.model.hidden
        trained = trained + (vision.projector_params(hidden) if shape.trains("projector") else 0)
    return Moment(name="root gradients", working=larger(trained * (whole + reduced) - kept, 0))


def _whole_gradient(shape: Shape) -> tuple[Any, Any]:
    """Bytes per weight of a gradient before its reduction, and of its copy that is reduced; 0 where it is added up in
    the resident one at once (below ZeRO-2, unless the host has them)."""
    passing = shape.degrees.zero >= (2 if shape.degrees.offload_states == "none" else 0)
    return pick(passing, shape.width, 0), pick(passing, DTYPE_BYTES[shape.workload.precision.reduce], 0)


def _head_gradient(shape: Shape) -> Any:
    """The head's whole gradient, made first and reduced last."""
    if not shape.workload.trains_head or (shape.stage is not None and not shape.stage.last):
        return 0
    model = shape.workload.model
    return model.hidden * (model.vocab // shape.degrees.tensor) * _whole_gradient(shape)[0]


def _gathered(shape: Shape, layers: int) -> Any:
    """ZeRO-3: the root whole, and so many layers; below, whole weights are resident."""
    vision = shape.workload.model.vision
    root = root_params(shape)
    if vision is not None:  # what of the vision side is no layer is in the root's unit of sharding
        root = root + vision.embedding_params + vision.projector_params(shape.workload.model.hidden)
    whole = (root + layers * (shape.layer_params + shape.expert_params)) * shape.width
    return pick(shape.degrees.zero == 3, whole, 0)


def _least_kept(shape: Shape) -> Any:
    """The inputs of all layers of a rank: no policy keeps less, unless it offloads them."""
    return shape.stage_total(lambda here: kept_bytes(here, "full"))
