"""The MLP of a dense layer, over all tokens of a rank at once or over slices of them.

    whole   norm · gate and up · activation · down · residual; backward two products for each
    tiled   forward: slice by slice, only the input is kept. Backward: each slice forward again (down too), then its
            gradients; those of weights are added to what earlier slices gave (read, read, write, for each slice but
            the first), those of the input to a tensor that was cleared (4 passes); results are joined (2 passes)

Tiled as DeepSpeed's TiledMLP (`deepspeed/runtime/sequence_parallel/ulysses_sp.py`; Arctic Long Sequence Training, arXiv
2506.13996): under full recompute of the layer its forward pass runs three times, as its documentation says.
Seconds. Left out: a last slice that is shorter (slices count as a fraction), sums of adapters' gradients.
"""

from __future__ import annotations

from typing import Any

from cost_models.either import larger, smaller
from cost_models.program import Compute, Phase
from cost_models.step.adapters import linear_s
from cost_models.step.shape import Shape
from cost_models.step.work import elementwise, norm_bytes, residual_bytes, small_s, tensor_exchange
from cost_models.timing.kernels import Kernels

JOINED_PASSES, INPUT_GRADIENT_PASSES, SUM_PASSES = 2, 4, 3
"""Readings and writings of each value: slices joined; the input's gradient cleared, and added to (r, r, w); a weight's
gradient added to (r, r, w)."""


def mlp(shape: Shape, kernels: Kernels, part: str | None, grad: bool = False, down: bool = True) -> tuple[Phase, ...]:
    """Norm, gate and up, activation, down projection, residual. Recompute needs all but the last product."""
    if shape.degrees.mlp_chunk_tokens is not None:
        return _tiled(shape, kernels, part, grad)
    matmul = _products_s(shape, kernels, shape.tokens, grad, down)
    moved = _outer_bytes(shape, grad) + _activation_bytes(shape, shape.tokens)
    launches = _outer_launches(shape) + _activation_launches(shape)
    moved_s = elementwise(shape, kernels, moved, launches, grad, part)
    sums = tensor_exchange(shape, "reduce_scatter", grad) if down else ()
    return (moved_s, *tensor_exchange(shape, "all_gather", grad), Compute(part=part or "matmul", seconds=matmul), *sums)


def mlp_again(shape: Shape, kernels: Kernels, normed: bool) -> tuple[Phase, ...]:
    """What brings the inside back before its backward pass; slices do that themselves, from the `normed` input."""
    if shape.degrees.mlp_chunk_tokens is None:
        return mlp(shape, kernels, "recompute", down=False)
    if normed:
        return ()
    return (elementwise(shape, kernels, _outer_bytes(shape), _outer_launches(shape), False, "recompute"),)


def slice_tokens(shape: Shape) -> Any:
    """Tokens of a rank that go through the MLP at one time."""
    chunk = shape.degrees.mlp_chunk_tokens
    return shape.tokens if chunk is None else smaller(shape.tokens, chunk)


def _tiled(shape: Shape, kernels: Kernels, part: str | None, grad: bool) -> tuple[Phase, ...]:
    tokens, hidden = slice_tokens(shape), shape.workload.model.hidden
    slices, values = shape.tokens / tokens, shape.tokens * hidden * shape.width
    inside = _activation_bytes(shape, tokens)

    def work(backward: bool, name: str | None) -> tuple[Phase, ...]:
        moved_s = elementwise(shape, kernels, inside, _activation_launches(shape), backward, name).seconds
        matmul = slices * _products_s(shape, kernels, tokens, backward, True)
        joined = Compute(part=name or "memory_bound", seconds=slices * moved_s)
        return (Compute(part=name or "matmul", seconds=matmul), joined)

    outer = elementwise(shape, kernels, _outer_bytes(shape, grad), _outer_launches(shape), grad, part)
    before, after = tensor_exchange(shape, "all_gather", grad), tensor_exchange(shape, "reduce_scatter", grad)
    passes = INPUT_GRADIENT_PASSES if grad else JOINED_PASSES
    added = small_s(shape, kernels, values * passes, 2 if grad else 1)
    again: tuple[Phase, ...] = ()
    if grad:
        again = work(False, "recompute")
        added = added + _sums_s(shape, kernels, slices)
    joined = Compute(part=part or "memory_bound", seconds=added)
    return (outer, *before, *again, *work(grad, part), joined, *after)


def _sums_s(shape: Shape, kernels: Kernels, slices: Any) -> Any:
    """Adding a slice's weight gradients to those of the slices before, unless the product itself does that."""
    if shape.habits.accumulator is not None or not shape.workload.trains_weights:
        return 0.0 * slices
    maps = 3 if shape.workload.model.gated else 2
    weights = maps * shape.workload.model.hidden * shape.ffn
    return larger(slices - 1, 0) * small_s(shape, kernels, weights * SUM_PASSES * shape.width, maps)


def _products_s(shape: Shape, kernels: Kernels, tokens: Any, grad: bool, down: bool) -> Any:
    maps = shape.linears["up"]
    seconds = len(maps) * linear_s(shape, kernels, "up", *maps[0], grad, tokens)
    if down:
        hidden = shape.workload.model.hidden
        seconds = seconds + linear_s(shape, kernels, "down", hidden, shape.ffn, grad, tokens)
    return seconds


def _activation_bytes(shape: Shape, tokens: Any) -> Any:
    passes = (3 if shape.habits.activation == "fused" else 5) if shape.workload.model.gated else 2
    return tokens * shape.ffn * shape.width * passes


def _activation_launches(shape: Shape) -> int:
    return 2 if shape.habits.activation == "fused" else 5


def _outer_bytes(shape: Shape, grad: bool = False) -> Any:
    """The norm before and the residual sum behind."""
    return norm_bytes(shape, grad) + shape.outer_tokens * shape.workload.model.hidden * residual_bytes(shape)


def _outer_launches(shape: Shape) -> int:
    return 1 if shape.habits.norm == "fused" else 6
