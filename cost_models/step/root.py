"""The root of a model, one unit of sharding: embedding, final norm and output head, with the loss between the passes.

    embed            rows of the table; all of the root's weights are gathered here
    head             logits, loss and their gradients; of an answer the last token's logits
    root gradients   reduced last in the backward pass, with nothing behind it to hide them

Seconds and bytes of one rank and microbatch. Left out: the time of the final norm.
"""

from __future__ import annotations

from typing import Literal

from cost_models.layer.launches import loss_host_s
from cost_models.layer.operators import product_s, tensor_exchange
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import fetched_bytes, returned_bytes, root_params, trained_root_params
from cost_models.number import Number, larger, pick, smaller, somewhere
from cost_models.program import Compute, Exchange, Phase, Segment
from cost_models.step.overheads import copied, framework_time, launched
from cost_models.step.sharding import Weights, gathered_params, sharded
from cost_models.strategy import LayerRange
from cost_models.timing.kernels import Kernels
from cost_models.workload import DTYPE_BYTES

WHOLE_LOSS_BYTES = 32
"""Traffic per logit of autograd's cross entropy, without reading the logits and writing their gradient: cast w4,
log-softmax r4 w4, zeros for the gradient w4, backward of the softmax r4 r4 w4, cast r4."""

JOINED_PASSES = 2
"""Over gathered logits: the ranks' columns are joined (read and written). A list that a collective fills first costs as
much again, which is left out."""


def embed(sizes: RankSizes, kernels: Kernels) -> Segment:
    """Embedding rows of this rank's tokens; the root's weights (embedding, norm, head) are gathered here, once.

    A table cut by `tensor` (each rank has rows of the vocabulary) is summed like a row-parallel product, its gradient
    gathered. A decode step finds all weights gathered by the prefill.
    """
    moved = 2 * sizes.tokens * sizes.workload.model.hidden * sizes.width
    rows = Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, 2))
    segment = Segment(
        name="embed",
        phases=(rows, *_cut_by_tensor(sizes, "reduce_scatter"), framework_time(kernels, "framework_microbatch")),
        offload_bytes=fetched_bytes(sizes, root_params(sizes)),
        elsewhere=0.0,
    )
    gathered = gathered_params(sizes, root_params(sizes), trained_root_params(sizes))
    if sizes.workload.mode == "decode":
        gathered = 0.0
    return sharded(segment, sizes, kernels, Weights(gathered=gathered))


def head(sizes: RankSizes, kernels: Kernels, ranges: tuple[LayerRange, ...] = ()) -> Segment:
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
    again = sizes.framework.recomputes_ends and ranges and all(part.recompute == "full" for part in ranges)
    once_more = _logits_again(sizes, kernels, vocab) if again else ()
    gathered = (*_gathered_logits(sizes, kernels), *_cut_by_tensor(sizes, "all_gather"))
    phases = (loss, *gathered, *once_more, *copied(kernels, added))
    chunk = sizes.degrees.loss_chunk_tokens
    chunks = 1.0 if chunk is None else larger(sizes.tokens / chunk, 1.0)
    return launched(Segment(name="head and loss", phases=phases, elsewhere=0.0), kernels, loss_host_s(sizes, chunks))


def root_gradients(sizes: RankSizes, kernels: Kernels) -> Segment:
    """Embedding, norm and head, one unit of sharding: reduced last in the backward pass, with nothing behind it."""
    gradient = trained_root_params(sizes) * DTYPE_BYTES[sizes.workload.precision.reduce]
    segment = Segment(
        name="root gradients",
        phases=copied(kernels, _embedding_copies(sizes)),
        offload_bytes=returned_bytes(sizes, gradient),
        elsewhere=0.0,
    )
    return sharded(segment, sizes, kernels, Weights(trained=trained_root_params(sizes)))


def _cut_by_tensor(sizes: RankSizes, op: Literal["all_gather", "reduce_scatter"]) -> tuple[Phase, ...]:
    """The exchange of a table cut by `tensor` and, in training, of its gradient; no product in 8 bits takes it."""
    hidden = sizes.workload.model.hidden
    forward = tensor_exchange(sizes, op, False, hidden)
    return (*forward, *tensor_exchange(sizes, op, True, hidden)) if sizes.workload.mode == "train" else forward


def _gathered_logits(sizes: RankSizes, kernels: Kernels) -> tuple[Phase, ...]:
    """Every tensor rank gets all logits, where the framework's loss wants them; their gradient is cut without one."""
    if not (sizes.framework.gathers_logits and somewhere(sizes.degrees.tensor > 1)):
        return ()
    moved = sizes.tokens * sizes.workload.model.vocab * sizes.width
    joined = pick(sizes.degrees.tensor > 1, kernels.memory_bound_s(JOINED_PASSES * moved, 2), 0.0)
    gathered = Exchange(part="tensor", axis="tensor", op="all_gather", bytes=moved)
    return gathered, Compute(part="loss", seconds=joined)


def _logits_again(sizes: RankSizes, kernels: Kernels, vocab: Number) -> tuple[Phase, ...]:
    """What backward runs again of a head that is recomputed."""
    hidden, dtype = sizes.workload.model.hidden, sizes.workload.precision.param
    product = Compute(part="recompute", seconds=kernels.gemm_s(sizes.tokens, vocab, hidden, dtype))
    return (product, *_gathered_logits(sizes, kernels))


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
