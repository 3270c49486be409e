"""The moments of a step at which memory may be highest, and what is alive then apart from states and kept activations.

    loss              all activations kept; head gathered; logits and their gradients, the head's gradient
    layer backward    head's gradient waiting, this layer and the next one gathered, what is recomputed, gradients of
                      the MLP's inside or of attention, full gradients of this layer and of the one before
    tower backward    activations gone; a chunk of frames that is computed again, all gradients of the layers
    root gradients    activations gone; full gradients of embedding, head and projector, copied for their reduction
    forward           without training: one layer's tensors and the last token's logits

They follow one another, so the peak is their maximum and never their sum. Each is an upper bound by a few percent of
itself of what `executor check` counts. Bytes of one rank; numbers or arrays over candidates. Left out: the update's
transients (no activation is alive then), and the backward pass of a tower that keeps what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from cost_models.layer import decoder
from cost_models.layer.operators import in_slices, peak_bytes, slice_tokens
from cost_models.layer.recompute import policy
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import (
    expert_params,
    gradient_bytes,
    layer_params,
    reduced_bytes,
    reducing_bytes,
    stage_params,
    stage_root_params,
    trained_expert_params,
    trained_layer_params,
    trained_params,
    trained_root_params,
    unit_params,
)
from cost_models.memory.states import dropped_gradients, dummy_gradients, freed_weights
from cost_models.memory.vision import chunk_bytes
from cost_models.number import Number, both, larger, pick, smaller, somewhere
from cost_models.strategy import LayerRange
from cost_models.workload import DTYPE_BYTES

ROW_BYTES = 40
"""Per token of a row, which every rank reads: ids, labels, positions, documents and their places, 8 B each."""

FINAL_NORM_BYTES = 20
"""Of each value that an unfused final norm's backward pass is at: five tensors of gradients in fp32, as counted by
`executor check`; a narrower input has an fp32 copy, too."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """
    >>> Peak(name="loss", logits=2).total
    2
    """

    name: str
    gathered: Number = 0
    working: Number = 0
    logits: Number = 0
    dropped: Number = 0  # among them: gradients that the step before dropped

    @property
    def total(self) -> Number:
        return self.gathered + self.working + self.logits


def peak(sizes: RankSizes, layers: Iterable[LayerRange | str | tuple[RankSizes, LayerRange]] = ()) -> Peak:
    """The highest moment of a step whose layers have these policies (or ranges, or ranges of a kind). Without `layers`
    it is the highest moment outside the layers.

    What comes while activations go (gradients) is counted above what all layers keep if all have a policy, the least of
    those that are there: at most too much, and the sum of kept activations and this moment is linear in the layers of
    each policy.
    """
    if sizes.workload.mode != "train":
        return forward(sizes)
    highest = loss(sizes)
    for one in layers:
        here, part = one if isinstance(one, tuple) else (sizes, one)
        highest = _higher(sizes, highest, layer_backward(here, part))
        kept = _kept_by_all(sizes, part)
        highest = _higher(sizes, highest, root_gradients(sizes, kept))
        highest = _higher(sizes, highest, tower_backward(sizes, kept))
    return replace(highest, working=highest.working + always(sizes))


def always(sizes: RankSizes) -> Number:
    """What is there at every moment of a training step: rows, dummy gradients, a bucket."""
    rows = ROW_BYTES * sizes.rows * sizes.workload.context_tokens + dummy_gradients(sizes)
    return rows + pick(sizes.degrees.zero == 3, sizes.framework.bucket_values * sizes.width, 0)


def _higher(sizes: RankSizes, first: Peak, second: Peak) -> Peak:
    """The one with more bytes, candidate by candidate; where gradients that were dropped stay in a pool of their own
    (`fragments.py`), they are there at both moments."""
    pooled = 1 if sizes.framework.stream_pools else 0
    above = second.total - pooled * second.dropped > first.total - pooled * first.dropped
    if not somewhere(above):
        return first
    return Peak(
        name=second.name if np.all(above) else "mixed",
        gathered=pick(above, second.gathered, first.gathered),
        working=pick(above, second.working, first.working),
        logits=pick(above, second.logits, first.logits),
        dropped=pick(above, second.dropped, first.dropped),
    )


def forward(sizes: RankSizes) -> Peak:
    """One layer's tensors, attention's or the MLP's, and the logits of each row's last token.

    A decode step has one token of each row there: its vectors of the layer's width, of Q, K, V and of the MLP.
    """
    model, width = sizes.workload.model, sizes.width
    if sizes.workload.mode == "decode":
        columns = 4 * model.hidden + sizes.q_width + 2 * sizes.kv_width + 2 * sizes.ffn
        working = sizes.tokens * columns * width
    else:
        working = sizes.tokens * model.hidden * width * 2
        kinds = [sizes.of(kind) for kind in dict.fromkeys(model.layer_kinds)]
        working = working + reduce(larger, (peak_bytes(decoder.operators(one), grad=False) for one in kinds))
    last = sizes.stage is None or sizes.stage.last
    return Peak(
        name="forward",
        working=working,
        logits=larger(sizes.rows, 1) * (model.vocab // sizes.degrees.tensor) * width if last else 0,
    )


def loss(sizes: RankSizes) -> Peak:
    """Logits by `_logits`, with the final norm and the gradient of its output; or that norm's backward pass, with the
    head's gradient. The last layer's gather buffer.

    Of a pipeline without `stage` this is the last stage's, which holds fewer microbatches than the first: by at
    least the inputs of its layers.
    """
    if sizes.stage is not None and not sizes.stage.last:
        return Peak(name="loss")
    copied = 0 if _last_saves_input(sizes) else 4
    plain = sizes.framework.norm != "fused" and not in_slices(sizes)
    norm = sizes.width + copied + (sizes.width if plain else 0)
    model = sizes.workload.model
    logits = _logits(sizes) + sizes.outer_tokens * model.hidden * (norm + sizes.width)
    if sizes.framework.sequence_parallel:  # the head's products gather as a layer's do
        logits = logits + pick(sizes.degrees.tensor > 1, 2 * sizes.tokens * model.hidden * sizes.width, 0)
    wide = FINAL_NORM_BYTES + (0 if sizes.width >= 4 else 4)
    back = sizes.outer_tokens * (wide if plain else 3 * sizes.width)
    if in_slices(sizes):
        back = back + slice_tokens(sizes) * wide
    flat, ahead = _flat_bytes(sizes)
    flat = ahead if sizes.degrees.loss_chunk_tokens is None else flat
    logits = larger(logits, _head_gradient(sizes) + model.hidden * back + ahead - flat)
    if sizes.stage is None:
        logits = larger(logits - (microbatches_in_flight(sizes) - 1) * least_kept(sizes), 0)
    return Peak(name="loss", gathered=_gathered(sizes, 0) + flat, logits=logits)


def _logits(sizes: RankSizes) -> Number:
    """What the loss holds at its highest moment: for one chunk of tokens, or for all of the rank by autograd.

    at once  logits in the parameter dtype, in fp32, and the gradient of both; the head's gradient
    chunk    b + 4 + 4 per logit (a CPU's; CUDA's log-softmax casts as it reads), or the gradient's b beside the
             chunk's product; all the while the head's gradient in float32, which the backward pass then casts
    """
    model, width = sizes.workload.model, sizes.width
    vocab, chunk = model.vocab // sizes.degrees.tensor, sizes.degrees.loss_chunk_tokens
    weights = model.hidden * vocab * (1 if sizes.workload.trains_head else 0)
    if chunk is None:
        framework = sizes.framework
        held: Number = 2 * width + 8 if framework.logit_bytes is None else framework.logit_bytes
        if framework.tensor_logit_bytes is not None:
            held = pick(sizes.degrees.tensor > 1, framework.tensor_logit_bytes, held)
        outputs: Number = 0
        if framework.keeps_outputs:  # those of the microbatch before, too
            outputs = pick(sizes.degrees.microbatches > 1, width, 0)
            held, outputs = held + outputs, width + outputs
        if framework.gathers_logits:  # beside the rank's own; or softmax's gradient is cut to it, when the rest is gone
            own = sizes.tokens * pick(sizes.degrees.tensor > 1, vocab * width, 0) + _head_gradient(sizes)
            whole = sizes.tokens * model.vocab
            return larger(whole * held, whole * outputs + own) if framework.cuts_logits else whole * held + own
        return sizes.tokens * vocab * held + _head_gradient(sizes)
    logits = smaller(sizes.tokens, chunk) * vocab
    wide = max(4, width)
    cast = weights * width if width < wide else 0
    highest = larger(logits * (2 * wide if width == wide else width + 8), logits * width + cast)
    return weights * wide + larger(highest, cast)


def layer_backward(sizes: RankSizes, part: LayerRange | str) -> Peak:
    """One layer's backward pass, all earlier layers' activations still kept.

    From the second layer on the gradients of the one before are on their way, but its activations are gone. An input
    that was offloaded is here again; a reentrant checkpoint also holds the layer's result.
    """
    width = sizes.width
    recompute = part if isinstance(part, str) else part.recompute
    again = recomputed_bytes(sizes, recompute)
    trained = trained_layer_params(sizes) + trained_expert_params(sizes)
    made = smaller(dropped_gradients(sizes), trained * DTYPE_BYTES[sizes.workload.precision.grad])
    made = made / pick(sizes.degrees.zero >= 2, sizes.degrees.shard, 1)  # where no gradient waited for it
    layer, kept = unit_params(sizes), kept_bytes(sizes, part)
    passing = larger(trained * reduced_bytes(sizes) + made - kept - freed_weights(sizes, layer), 0)
    ended = trained * reducing_bytes(sizes)
    if sizes.framework.gathers_units:  # the layer's tensors and weights are gone by then, its input's gradient is made
        ended = ended + sizes.row_bytes - kept - layer * width
    inside = larger(again + _products(sizes) + passing, ended)
    offloaded = not isinstance(part, str) and part.offload != "none"
    gone = _kept_by_all(sizes, part) - kept + freed_weights(sizes, _layers(sizes) - layer)
    late = larger(_earlier_gradients(sizes, trained) - gone, 0)
    inside = larger(inside - final_norm_input(sizes), 0)  # gone, and counted as kept
    inside = inside + sizes.row_bytes * (offloaded + (sizes.framework.reentrant and recompute == "full"))
    inside = (
        inside + pick(both(sizes.degrees.zero > 0, sizes.degrees.zero < 3), sizes.framework.bucket_values, 0) * width
    )
    return Peak(
        name=f"layer backward, {recompute}",
        gathered=_gathered(sizes, pick(sizes.degrees.shard > 1, 2, 1)),
        working=inside + late,
        logits=_head_gradient(sizes),
        dropped=late,
    )


def _earlier_gradients(sizes: RankSizes, trained: Number) -> Number:
    """Of gradients that the step before dropped, those that are made when the last of the layers runs backward, which
    trains so many weights: where units are reduced one by one those of the other layers; root and tower come later."""
    dropped = dropped_gradients(sizes)
    if not sizes.framework.gathers_units:
        return dropped
    layers = sizes.stage_total(trained_layer_params) + sizes.stage_total(trained_expert_params)
    every = smaller(trained_params(sizes), stage_params(sizes)) + sizes.stage_total(trained_expert_params)
    return dropped * (layers - trained) / larger(every, 1)


def _products(sizes: RankSizes) -> Number:
    """What a layer's backward pass adds to the layer's tensors: gradients of the MLP's inside, or of attention once the
    MLP's are gone; and the residual's."""
    return peak_bytes(decoder.operators(sizes), grad=True) + sizes.row_bytes


def root_gradients(sizes: RankSizes, kept: Number) -> Peak:
    """Whole gradients of the root, and their copy for the reduction, in place of all gathered weights; and all
    gradients that the step has made by then, where none were there before."""
    vision, trained = sizes.workload.model.vision, smaller(trained_root_params(sizes), stage_root_params(sizes))
    if vision is not None:
        trained = trained + (vision.embedding_params if sizes.trains("tower") else 0)
        hidden = sizes.workload.model.hidden
        trained = trained + (vision.projector_params(hidden) if sizes.trains("projector") else 0)
    made, dropped = trained * reducing_bytes(sizes), dropped_gradients(sizes)
    if sizes.framework.gathers_units:  # over one shard the result is among those made
        made = made - pick(sizes.degrees.shard > 1, 0, smaller(dropped, trained * reduced_bytes(sizes)))
    whole = stage_params(sizes) - sizes.stage_total(layer_params) + _layers(sizes)
    gone = kept + freed_weights(sizes, whole)
    working = larger(made + dropped - gone, 0)
    return Peak(name="root gradients", working=working, dropped=smaller(dropped, working))


def tower_backward(sizes: RankSizes, kept: Number) -> Peak:
    """A chunk of frames computed again and its gradients, when those of all layers are made: two blocks gathered, whole
    gradients of two and of embedding and head, which wait for their reduction, gradients of the row's inputs, and
    those of the frames' tokens as they arrived, were sent, in order and as made."""
    chunk, model, vision = chunk_bytes(sizes), sizes.workload.model, sizes.workload.model.vision
    if vision is None or not somewhere(chunk > 0):
        return Peak(name="tower backward")
    dropped, blocks = dropped_gradients(sizes), 2 * vision.tower_params / vision.layers
    waiting = model.embedding_params * gradient_bytes(sizes) if sizes.workload.trains_head else 0
    made = sizes.frames * vision.tokens_per_frame * model.hidden * sizes.width
    inputs = sizes.row_bytes + 3 * made / vision.frames_pooled + made
    whole = blocks * (gradient_bytes(sizes) + reduced_bytes(sizes))
    working = larger(chunk + waiting + inputs + whole + dropped - kept - freed_weights(sizes, _layers(sizes)), 0)
    return Peak(
        name="tower backward",
        gathered=pick(chunk > 0, _gathered(sizes, 0) + pick(sizes.degrees.zero == 3, blocks * sizes.width, 0), 0),
        working=pick(chunk > 0, working, 0),
        logits=pick(chunk > 0, _head_gradient(sizes), 0),
        dropped=pick(chunk > 0, smaller(dropped, working), 0),
    )


def _head_gradient(sizes: RankSizes) -> Number:
    """The head's gradient before its reduction: made first, reduced last."""
    if not sizes.workload.trains_head or (sizes.stage is not None and not sizes.stage.last):
        return 0
    model = sizes.workload.model
    return model.hidden * (model.vocab // sizes.degrees.tensor) * gradient_bytes(sizes)


def _gathered(sizes: RankSizes, layers: Number) -> Number:
    """ZeRO-3 gathers the root and so many layers. Below ZeRO-3 all weights are resident."""
    vision = sizes.workload.model.vision
    root = stage_root_params(sizes)
    if vision is not None:  # what of the vision side is no layer is in the root's unit of sharding
        root = root + vision.embedding_params + vision.projector_params(sizes.workload.model.hidden)
    full = (root + layers * (layer_params(sizes) + expert_params(sizes))) * sizes.width
    return pick(sizes.degrees.zero == 3, full, 0)


def _flat_bytes(sizes: RankSizes) -> tuple[Number, Number]:
    """Of the last layer: the buffer of its gather, which stays to the end of the model's forward pass, and so beside a
    loss in chunks, whose gradients are made there; that of the gather that ZeRO-3 makes ahead for its backward."""
    several = sizes.degrees.shard > 1
    layer = unit_params(sizes) * sizes.width
    ahead = pick(both(several, sizes.degrees.zero == 3), layer, 0)
    gathers = both(several, sizes.degrees.zero >= 1) if sizes.framework.gathers_units else False
    return larger(ahead, pick(gathers, layer, 0)), ahead


def _layers(sizes: RankSizes) -> Number:
    """Weights of all layers of a stage, as FSDP has them."""
    return sizes.stage_total(unit_params)


def _kept_by_all(sizes: RankSizes, part: LayerRange | str) -> Number:
    """What all layers of a rank keep if all have this policy."""
    return sizes.stage_total(lambda here: kept_bytes(here, part))


def least_kept(sizes: RankSizes) -> Number:
    """The inputs of all layers of a rank: no policy keeps less, unless it offloads them."""
    return sizes.stage_total(lambda here: kept_bytes(here, "full"))


def saves_input(sizes: RankSizes) -> bool:
    """Whether a layer's norm saves its input as it is: one in slices, or as the last norm."""
    return in_slices(sizes) or _last_saves_input(sizes)


def _last_saves_input(sizes: RankSizes) -> bool:
    """Whether the last norm does: a fused one, one in slices, or one in fp32 on fp32; others save an fp32 copy."""
    return sizes.framework.norm == "fused" or sizes.width >= 4 or in_slices(sizes)


def final_norm_input(sizes: RankSizes) -> Number:
    if not _last_saves_input(sizes) or (sizes.stage is not None and not sizes.stage.last):
        return 0
    return sizes.row_bytes if sizes.stage is not None else pick(sizes.degrees.pipeline == 1, sizes.row_bytes, 0)


def stage_outputs(sizes: RankSizes) -> Number:
    """Results that a stage which is not the last holds for each microbatch in flight, where its buffers keep them."""
    if not sizes.framework.keeps_outputs or sizes.stage is None or sizes.stage.last:
        return 0
    return sizes.row_bytes * microbatches_in_flight(sizes)


def kept_bytes(sizes: RankSizes, part: LayerRange | str) -> Number:
    """Bytes that one layer keeps from its forward to its backward pass under a recompute policy."""
    if sizes.workload.mode != "train":
        return 0 * sizes.tokens
    if isinstance(part, str):
        return decoder.kept_bytes(sizes, part)
    return decoder.kept_bytes(sizes, part.recompute, part.offload == "activations")


def recomputed_bytes(sizes: RankSizes, recompute: str) -> Number:
    """Bytes that come back to life in the backward pass of one layer under a policy.

    The kept input is one of them where the first norm saves it as it is.
    """
    if not policy(recompute).returns:
        return 0 * sizes.tokens
    back = kept_bytes(sizes, "none") - kept_bytes(sizes, recompute)
    if not policy(recompute).keeps_input or saves_input(sizes):
        return back
    return back + sizes.row_bytes


def microbatches_in_flight(sizes: RankSizes) -> Number:
    """1F1B: the first stage holds up to `pipeline` microbatches of its layers (interleaved: a few chunks more)."""
    stages, chunks = sizes.degrees.pipeline, sizes.degrees.virtual
    if sizes.degrees.schedule == "gpipe":
        return sizes.degrees.microbatches
    if sizes.stage is not None and not sizes.stage.first:
        stages = 1
    most = pick(chunks > 1, stages * (1 + (stages - 1) / (stages * chunks)), stages)
    return smaller(most, sizes.degrees.microbatches)
