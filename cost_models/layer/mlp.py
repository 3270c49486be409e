"""The MLP of a dense layer as operators, over all tokens of a rank at once or over slices of them.

    at once    norm · gate and up · activation · down · residual; backward two products for each
    in slices  forward: slice by slice, only the input is kept. Backward: each slice forward again (down too), then its
               gradients; those of weights are added to what earlier slices gave (read, read, write, for each slice
               but the first), those of the input to a tensor that was cleared (4 passes); results are joined (2 passes)

Slices as in DeepSpeed's TiledMLP (`deepspeed/runtime/sequence_parallel/ulysses_sp.py`; Arctic Long Sequence Training,
arXiv 2506.13996): under full recompute of the layer its forward pass runs three times, as its documentation says.
Bytes. Left out: a last slice that is shorter (slices count as a fraction), sums of adapters' gradients.
"""

from __future__ import annotations

from cost_models.layer.operators import (
    FUSED_CALLS,
    Operator,
    Passes,
    Table,
    activation_passes,
    elementwise,
    in_slices,
    inner_tensors,
    layer_norm,
    maps,
    norm,
    norm_behind,
    operand_bytes,
    residual,
    slice_tokens,
    tensor_exchange,
    tensor_operator,
)
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import gradient_bytes
from cost_models.number import Number, larger, pick, somewhere

JOINED_PASSES, INPUT_GRADIENT_PASSES, SUM_PASSES = 2, 4, 3
"""Readings and writings of each value: slices joined; the input's gradient cleared, and added to (r, r, w); a weight's
gradient added to (r, r, w; in fp32 r b r 4 w 4)."""
SLICE_FORWARD, SLICE_BACKWARD = 5, 19
"""Operators that the host calls for each slice: gate, up, activation, product, down. Backward: the same again, twice as
many gradients, three weights' gradients and the input's added up."""


def mlp_operators(sizes: RankSizes) -> Table:
    """The second half of a decoder layer."""
    if sizes.degrees.mlp_chunk_tokens is not None:
        return _sliced(sizes)
    kept = _inside_kept(sizes, sizes.tokens)
    return (
        norm(sizes, "mlp norm", call="mlp"),
        *tensor_operator(sizes, "up gather", "all_gather", readers=_readers(sizes)),
        *_second_sum(sizes),
        *maps(sizes, "up", sizes.tokens),
        _activation(sizes, sizes.tokens, call="mlp")._replace(
            kept=kept, result=sizes.tokens * sizes.ffn * operand_bytes(sizes)
        ),
        *maps(sizes, "down", sizes.tokens),
        *tensor_operator(sizes, "mlp scatter", "reduce_scatter"),
        *norm_behind(sizes, "mlp norm"),
        residual(sizes, "mlp sum", 0, call="mlp"),
    )


def _readers(sizes: RankSizes) -> int:
    """Products that take the MLP's input."""
    return 2 if sizes.workload.model.gated and not sizes.framework.joined_products else 1


def _second_sum(sizes: RankSizes) -> Table:
    """The all-reduce of the second product's part of the input's gradient, where each has its own."""
    if not sizes.framework.sums_apart or sizes.framework.sequence_parallel or _readers(sizes) == 1:
        return ()
    back = tensor_exchange(sizes, "all_gather", True)
    return (Operator("up gather", exchanges=((), back)),) if back else ()


def _activation(sizes: RankSizes, tokens: Number, call: str = "") -> Operator:
    """Gate, activation and their product, and what an MLP holds while it runs or while its gradients are made.

    Backward: down's input goes, its gradient and those of gate and up come: 2 f (gated) per token.
    """
    fused, gated = sizes.framework.activation == "fused", sizes.workload.model.gated
    inside = tokens * sizes.ffn * sizes.width
    (moved, back), launches = activation_passes(sizes), 2 if fused else 5
    made = elementwise(
        sizes, "activation", inside * moved, launches, back=inside * back, call=call,
        host=FUSED_CALLS if fused else (2, 3),
    )  # fmt: skip
    weights = _weight_gradient_bytes(sizes)
    matrices = 3 if gated else 2
    return made._replace(
        working=(inside * matrices, larger(inside * (matrices - 1) + weights, _gathered_halves(sizes))),
        freed=_inside_kept(sizes, tokens) - matrices * weights,
    )


def _inside_kept(sizes: RankSizes, tokens: Number) -> Number:
    """Of an MLP's inside; the last of its tensors is a product's input."""
    return tokens * sizes.ffn * (sizes.width * (inner_tensors(sizes) - 1) + operand_bytes(sizes))


def _weight_gradient_bytes(sizes: RankSizes) -> Number:
    """The gradient of one matrix of the MLP before its reduction."""
    each = gradient_bytes(sizes) if sizes.workload.trains_weights else 0
    return sizes.workload.model.hidden * sizes.ffn * each


def _gathered_halves(sizes: RankSizes) -> Number:
    """Sequence-parallel tensor parallelism gathers tensors for its products: behind the MLP the gradient of its output,
    while that of down's input is alive; before it the input again and its gradient, when the inside is gone."""
    model, width = sizes.workload.model, sizes.width
    if not sizes.framework.sequence_parallel or not somewhere(sizes.degrees.tensor > 1):
        return 0
    hidden, inside = sizes.tokens * model.hidden * width, slice_tokens(sizes) * sizes.ffn * width
    before = 2 * hidden + inside * ((2 if model.gated else 1) - inner_tensors(sizes))
    return pick(sizes.degrees.tensor > 1, larger(hidden + inside, before), 0)


def _sliced(sizes: RankSizes) -> Table:
    """Norm and residual over all tokens, the inside over one slice after another.

    Backward holds the slice's tensors, sums of all weights' gradients and the input's; nothing of it was kept.
    """
    tokens, matrices = slice_tokens(sizes), 3 if sizes.workload.model.gated else 2
    slices, row = sizes.tokens / tokens, sizes.tokens * sizes.workload.model.hidden * sizes.width
    last, weights = residual(sizes, "sum", 0), _weight_gradient_bytes(sizes)
    sums = weights / max(sizes.width, 1) * 4 if sizes.framework.wide_slice_sums and sizes.width < 4 else weights
    inside = _activation(sizes, tokens)
    own = 0 if inside.freed is None else inside.freed
    inside = inside._replace(
        working=(inside.working[0], inside.working[1] + own + matrices * (weights + sums) + row),
        freed=-matrices * weights - row,
    )
    each = [*maps(sizes, "up", tokens), inside, *maps(sizes, "down", tokens)]
    gap_s = sizes.framework.gap_s
    joined = Passes(row * JOINED_PASSES, 1, gap_s), Passes(row * INPUT_GRADIENT_PASSES, 2, 2 * gap_s)
    return (
        *_norm_and_sum(sizes, last),
        *tensor_operator(sizes, "slices", "all_gather", readers=_readers(sizes)),
        *(one._replace(name="slices", times=slices, reruns=True, host=(0, 0)) for one in each),
        Operator("slices", host=(slices * SLICE_FORWARD, slices * SLICE_BACKWARD)),
        Operator("join", passes=joined, host=(2, 1)),
        _weight_sums(sizes, slices, matrices),
        *tensor_operator(sizes, "mlp scatter", "reduce_scatter"),
        *norm_behind(sizes, "sliced norm"),
    )


def _norm_and_sum(sizes: RankSizes, last: Operator) -> Table:
    """Norm and residual in one call, unless the norm runs in slices of its own."""
    first = layer_norm(sizes, "sliced norm")
    # the gradient of the MLP's input goes with it
    first = first._replace(freed=first.kept + sizes.tokens * sizes.workload.model.hidden * sizes.width)
    if in_slices(sizes):
        return first, last._replace(name="join")
    forward, backward = (one.plus(other) for one, other in zip(first.passes, last.passes, strict=True))
    return (first._replace(passes=(forward, backward), kept=first.kept + last.kept),)


def _weight_sums(sizes: RankSizes, slices: Number, matrices: int) -> Operator:
    """Adding a slice's weight gradients to those of the slices before, unless the product itself does that."""
    if sizes.framework.accumulator is not None or not sizes.workload.trains_weights:
        return Operator("weight sums")
    each = 8 + sizes.width if sizes.framework.wide_slice_sums else SUM_PASSES * sizes.width
    moved = matrices * sizes.workload.model.hidden * sizes.ffn * each
    added = Passes(moved, matrices, matrices * sizes.framework.gap_s)
    return Operator("weight sums", passes=(Passes(), added), times=larger(slices - 1, 0))
