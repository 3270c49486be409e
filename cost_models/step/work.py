"""What the parts of a layer are made of: products, memory-bound work, and the exchange of tensor parallelism.

    product      m x k by k x n forward; backward the gradients of the input (m, k, n) and of the weight (k, n, m)
                 and, where layers have biases, one more reading of the output's gradient
    elementwise  bytes to and from memory; backward reads the saved input as well as the gradient: twice the traffic

Units: seconds, bytes. `Shape.habits` says what an implementation does beside the mathematics.
"""

from __future__ import annotations

from typing import Any, Literal

from cost_models.either import somewhere
from cost_models.program import Compute, Exchange, Op, Phase
from cost_models.step.habits import OVERLAP_COST
from cost_models.step.shape import Shape
from cost_models.timing.kernels import Kernels


def matmul_s(
    shape: Shape,
    kernels: Kernels,
    m: Any,
    n: Any,
    k: Any,
    grad: bool,
    dtype: str | None = None,
    trained: bool | None = None,
) -> Any:
    """Forward product m x k by k x n, or both backward products, with what 8-bit inputs cost to make and the gaps.

    A weight that is not `trained` (none: as the language model's are) has one backward product, its input's gradient.
    """
    own = shape.workload.trains_weights if trained is None else trained
    calls = 2 if grad and own else 1
    return product_s(shape, kernels, m, n, k, grad, dtype, own) + calls * shape.habits.gap_s


def product_s(
    shape: Shape,
    kernels: Kernels,
    m: Any,
    n: Any,
    k: Any,
    grad: bool,
    dtype: str | None = None,
    trained: bool = True,
    groups: Any = 1,
) -> Any:
    """The kernels of `matmul_s` alone, of `groups` such products in one grouped call."""
    habits, layer = shape.habits, False
    if dtype is None:
        dtype, layer = habits.product_dtype or shape.workload.precision.param, True
    if habits.quantise_bytes and dtype == "fp8":
        values = m * n if grad else m * k + n * k
        quantised = kernels.memory_bound_s(groups * values * habits.quantise_bytes, 2)
    else:
        quantised = 0.0
    if not grad:
        return kernels.grouped_s(groups, m, n, k, dtype) + quantised
    seconds = quantised + kernels.grouped_s(groups, m, k, n, dtype)
    if habits.biases and layer and trained:
        seconds = seconds + kernels.memory_bound_s(groups * m * n * shape.width, 1)
    return seconds + kernels.grouped_s(groups, k, n, m, dtype, habits.accumulator) if trained else seconds


def norm_bytes(shape: Shape, grad: bool = False) -> Any:
    """Traffic of one unfused RMSNorm: cast, square, mean, scale in fp32 (28 B), cast back and weight (3 x b + 2 b).

    A fused norm of a copy in fp32 (`norm_casts`): copied (r b w 4), read and written (r 4 w b); backward, of which this
    is half, reads both and writes its gradient in fp32 (r b r 4 w 4), which is cast back (r 4 w b).
    """
    moved = 2 * shape.width if shape.habits.norm == "fused" else 28 + 5 * shape.width
    if shape.habits.norm_casts:
        moved = 6 + shape.width if grad else 8 + 2 * shape.width
    return shape.outer_tokens * shape.workload.model.hidden * moved


def elementwise(shape: Shape, kernels: Kernels, moved: Any, launches: int, grad: bool, part: str | None) -> Compute:
    """Backward of elementwise work reads the saved input as well as the gradient: twice the traffic."""
    seconds = small_s(shape, kernels, moved * (2 if grad else 1), launches * (2 if grad else 1))
    return Compute(part=part or "memory_bound", seconds=seconds)


def small_s(shape: Shape, kernels: Kernels, moved: Any, operators: int) -> Any:
    """Memory-bound operators of one kernel each, with the framework's gap beside each of them."""
    return kernels.memory_bound_s(moved, operators) + operators * shape.habits.gap_s


def residual_bytes(shape: Shape) -> int:
    """Per value: read both, write the sum; dropout's mask is one byte more."""
    return 3 * shape.width + (1 if shape.habits.dropout else 0)


def tensor_exchange(
    shape: Shape, op: Literal["all_gather", "reduce_scatter"], grad: bool, columns: Any = None
) -> tuple[Phase, ...]:
    """Tensor parallelism around each block: all-gather of its input, reduce-scatter of its output, backward swapped.

    Without sequence parallelism the input is whole already, and an all-reduce sums the output (the gradient of the
    input in the backward pass). `columns`: of what is exchanged; none: the hidden width. Where `tensor_beside`, a
    column-parallel weight's gradient is computed beside the reduction of its input's, and before it, with sequence
    parallelism, the input is gathered once more beside the product of that: products are longer, so an exchange adds
    OVERLAP_COST of its bytes' time.
    """
    if not somewhere(shape.degrees.tensor > 1):
        return ()
    moved = shape.tokens * (shape.workload.model.hidden if columns is None else columns) * shape.width
    if shape.habits.tensor_chunks:  # cut in chunks beside their product, of which the first is exposed
        moved = moved / shape.degrees.tensor
    if grad and op == "all_gather" and shape.habits.tensor_beside:
        hidden: tuple[Op, ...] = ("all_gather", "reduce_scatter") if shape.habits.sequence_parallel else ("all_reduce",)
        return tuple(Exchange(part="tensor", axis="tensor", op=one, bytes=OVERLAP_COST * moved) for one in hidden)
    if shape.habits.sequence_parallel:
        swapped: Op = "reduce_scatter" if op == "all_gather" else "all_gather"
        return (Exchange(part="tensor", axis="tensor", op=swapped if grad else op, bytes=moved),)
    if (op == "reduce_scatter") == grad:
        return ()
    return (Exchange(part="tensor", axis="tensor", op="all_reduce", bytes=moved),)
