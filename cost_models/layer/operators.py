"""A decoder layer as an ordered table of operators: each fact about an operator of a layer stands here once.

    seconds    products, memory-bound passes, exchanges: the phases of the step program   (`decoder.phases`)
    kept       bytes from the forward to the backward pass                                (`kept_bytes`)
    peak       bytes alive for a moment, forward or while gradients are made              (`peak_bytes`)
    FLOP       of the products                                                            (`product_flops`)
    host       operators that the host calls                                              (`launches`)

`attention`, `latent`, `mlp` and `experts` build the table of a rank; `recompute` says which operators a policy does not
keep and which run again. An adapter, slices or a framework's kernels change a table, not the folds. Units: bytes,
seconds. A number may be an array with one entry for each candidate. Left out: views and what the allocator does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from cost_models.framework import FA1_SLOWDOWN, OVERLAP_COST
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import adapted, linears
from cost_models.number import Number, larger, pick, smaller, somewhere
from cost_models.program import Exchange, Op, Passed
from cost_models.timing.kernels import Kernels
from cost_models.workload import LoraTarget

NORM_PASSES = {"library": (2.0, 4.0), "pytorch": (2.7, 8.6), "compiled": (2.5, 7.6)}
"""Readings and writings of each value that take as long as a fused norm, forward and backward. cuDNN's
benchmark on H200, GB200 and GB300, 67 to 134 MB (kernels_norms_cudnn.csv), over the share that a stream reaches there:
forward 0.57 to 0.78 of the bandwidth for two passes, backward, for three, 0.63 to 0.74 by cuDNN, 0.26 to 0.38 by
PyTorch and Inductor, which sum the weight's gradient over all rows. On Ampere taken as the same."""
OPERAND_BYTES = {"fp8": 1, "fp4": 9 / 16}
"""That a product keeps of each value of its input for its weight's gradient: the transpose alone, with its scales
(Transformer Engine's modules save the quantised input: layernorm_linear.py, linear.py)."""
QUANTISE_BYTES = {"fp8": 4.0, "fp4": 5.125}
"""Each value that enters an 8-bit product is read (2 B) and written with its transpose (1 B each). Of a 4-bit one the
tensor's maximum is read first (2 B), and every 16 values have a scale (9/16 B each way)."""


class Product(NamedTuple):
    """`equal` products of (rows x inside) by (inside x out), each of `groups` such products in one grouped call."""

    rows: Number
    out: Number
    inside: Number
    trained: bool  # whether its weight has a gradient
    groups: Number = 1
    equal: int = 1  # how many such products
    dtype: str | None = None  # None: that of the layers' products


class Passes(NamedTuple):
    """Memory-bound work one way."""

    moved: Number = 0  # bytes read and written
    launches: Number = 0  # kernels
    idle_s: float = 0.0  # seconds in which the device waits for eager operators

    def plus(self, other: Passes) -> Passes:
        """Both as one call."""
        return Passes(self.moved + other.moved, self.launches + other.launches, self.idle_s + other.idle_s)


class Operator(NamedTuple):
    """A step of a layer's forward pass. A pair is of the forward and of the backward pass: `pair[grad]`."""

    name: str
    products: tuple[Product, ...] = ()
    passes: tuple[Passes, Passes] = (Passes(), Passes())
    call: str = ""  # operators of one call are timed as one memory-bound call; empty means a call for itself alone
    exchanges: tuple[tuple[Exchange | Passed, ...], tuple[Exchange | Passed, ...]] = ((), ())
    attends: bool = False  # the attention of the rank's ring
    times: Number = 1  # how often products and memory-bound work run, one slice of the tokens each time
    reruns: bool = False  # its backward pass runs it forward first, whatever the policy
    active: Number | bool = True  # where its memory-bound work runs at all
    kept: Number = 0  # bytes
    result: Number = 0  # of `kept` what it gave, which a policy may make again by itself
    working: tuple[Number, Number] = (0, 0)  # bytes alive while it runs; backward without the layer's tensors
    freed: Number | None = (
        None  # bytes of the layer's tensors that are gone after its backward pass; None: what it kept
    )
    host: tuple[Number, Number] = (0, 0)  # operators that the host calls
    timed: Callable[[Kernels, bool], Number | None] | None = None
    """Seconds of its products and passes one way, where a profile measured them as one; None: it did not."""


Table = tuple[Operator, ...]
HOST_CALLS: dict[LoraTarget, tuple[int, int]] = {"qkv": (3, 8), "out": (1, 2), "up": (2, 5), "down": (1, 2)}
"""Backward: two products for each weight and the sum of the gradients of an input that several share."""
JOINED_CALLS: dict[LoraTarget, tuple[int, int]] = {"qkv": (1, 2), "out": (1, 2), "up": (1, 2), "down": (1, 2)}
"""Where Q, K and V, and gate and up, are one product."""
FUSED_CALLS = (1, 1)
"""Of a kernel that does in one what eager layers call operator by operator."""
LORA_CALLS = (5, 12)
"""Of an adapter: a cast, two products, a scale and a sum; backward two gradients of each product, scale and sums."""


def operand_bytes(sizes: RankSizes) -> float:
    """That a layer's product keeps of each value of its input."""
    return OPERAND_BYTES.get(sizes.framework.product_dtype or "", sizes.width)


def map_calls(sizes: RankSizes, target: LoraTarget) -> tuple[int, int]:
    """Operators that the host calls for a layer's maps of one kind."""
    return (JOINED_CALLS if sizes.framework.joined_products else HOST_CALLS)[target]


def elementwise(
    sizes: RankSizes,
    name: str,
    moved: Number,
    launches: int,
    *,
    back: Number | None = None,
    call: str = "",
    kept: Number = 0,
    host: tuple[int, int] = (0, 0),
) -> Operator:
    """Memory-bound work; its backward pass moves `back` bytes, or where none has counted them twice the forward's."""
    idle_s = launches * sizes.framework.gap_s
    backward = Passes(2 * moved if back is None else back, 2 * launches, 2 * idle_s)
    return Operator(name, passes=(Passes(moved, launches, idle_s), backward), call=call, kept=kept, host=host)


def moves(sizes: RankSizes, name: str, moved: Number, launches: int) -> Operator:
    """Memory-bound work whose gradients move as many bytes."""
    passes = Passes(moved, launches, launches * sizes.framework.gap_s)
    return Operator(name, passes=(passes, passes), host=(launches, launches))


def multiplies(
    sizes: RankSizes, name: str, *shapes: tuple[Number, ...], groups: Number = 1, host: tuple[int, int] = (0, 0)
) -> Operator:
    """Products of the language model's weights on one input, whose gradients are added one to another (r r w);
    `shapes`: (rows, out, inside) and how many of them."""
    trained = sizes.workload.trains_weights
    products = tuple(
        Product(rows, out, inside, trained, groups, int(count[0]) if count else 1)
        for rows, out, inside, *count in shapes
    )
    count, gap_s = sum(one.equal for one in products), sizes.framework.gap_s
    rows, _, inside = shapes[0][:3]
    summed = (count - 1) * 3 * rows * groups * inside * sizes.width
    calls = count * (2 if trained else 1) + count - 1
    passes = Passes(idle_s=count * gap_s), Passes(summed, count - 1, calls * gap_s)
    return Operator(name, products=products, passes=passes, host=host)


def maps(sizes: RankSizes, target: LoraTarget, rows: Number) -> Table:
    """A dense layer's linear maps of one kind, each followed by its low-rank adapter (LoRA, arXiv 2106.09685).

        y = W x + B (A x)        W: out x in, frozen        A: rank x in, B: out x rank, trained

    An adapter's passes over memory: forward B's result is scaled (r w) and added (r r w); backward its gradient is
    scaled (r w) and A's is added to the input's (r r w). It keeps A's result, unless the tokens go in slices. With
    tensor parallelism A or B is cut as its weight is, and where a weight's output is summed over the group an adapter's
    is so too, apart from it (ART's and NeMo's adapters). Dropout before A reads and writes its input (r w) and a mask
    of a byte a value, forward and backward; the mask is kept, and the result in the input's place, which a frozen W
    does not read again. Left out: adapters on experts.
    """
    work, shapes = sizes.workload, linears(sizes)[target]
    counted = {shape: shapes.count(shape) for shape in shapes}
    weights = ((rows, *shape, count) for shape, count in counted.items())
    table = [multiplies(sizes, target, *weights, host=map_calls(sizes, target))]
    if not work.lora_rank or target not in work.lora_targets:
        return tuple(table)
    rank, sliced = work.lora_rank, sizes.degrees.mlp_chunk_tokens is not None and target in ("up", "down")
    for out, inside in adapted(sizes)[target]:
        products, gap_s = (Product(rows, rank, inside, True), Product(rows, out, rank, True)), sizes.framework.gap_s
        mask, dropped = (inside, inside * (2 * sizes.width + 1)) if sizes.framework.adapters_drop else (0, 0)
        forward = Passes(rows * (5 * out * sizes.width + dropped), 2, 2 * gap_s)
        backward = Passes(rows * ((2 * out + 3 * inside) * sizes.width + dropped), 2, 4 * gap_s)
        kept = 0 if sliced else sizes.tokens * (rank * sizes.width + mask)
        table.append(Operator(target, products, (forward, backward), kept=kept, host=LORA_CALLS))
    if target in ("out", "down"):
        table += tensor_operator(sizes, target, "reduce_scatter")
    return tuple(table)


def norm(sizes: RankSizes, name: str, call: str = "", values: Number | None = None, feeds: bool = True) -> Operator:
    """An RMSNorm of so many values (None: of the layer's rows); `feeds`: products alone take its result.

    Unfused it casts, squares, means and scales in fp32, casts back and weighs: 28 + 4 b bytes a value; backward
    76 + 4 b, and 4 b for a trained weight (`tests/executor/test_eager_bytes.py` counts all of an eager layer).

    A fused norm of a copy in fp32 (`norm_copies`): copied (r b w 4), read and written (r 4 w b); backward reads both
    and writes its gradient in fp32 (r b r 4 w 4), which is cast back (r 4 w b).
    Kept: an fp32 copy (unfused), the normalised values, which unfused only a trained weight's gradient reads, the
    result (as products keep it) and a number per token.
    Backward adds the input's gradient; unfused four tensors in fp32, when the normalised values are gone.
    """
    fused, b = sizes.framework.norm == "fused", sizes.width
    tokens = sizes.outer_tokens
    rows = tokens * sizes.workload.model.hidden if values is None else values
    passes = NORM_PASSES[sizes.framework.norm_kernel]
    weighed = 4 * b if sizes.workload.trains_norms else 0
    forward, back = (b * passes[0], b * passes[1]) if fused else (28 + 4 * b, 76 + 4 * b + weighed)
    if sizes.framework.norm_copies:
        forward, back = 8 + 2 * b, 12 + 2 * b
    result = rows * (operand_bytes(sizes) if feeds else b)
    normalised = b if fused or sizes.workload.trains_norms else 0
    kept = result + rows * (normalised + (0 if fused else 4))
    made = elementwise(
        sizes, name, rows * forward, 1 if fused else 6, back=rows * back, call=call, kept=kept + tokens * 4,
        host=FUSED_CALLS if fused else (8, 16),
    )  # fmt: skip
    return made._replace(result=result, working=(0, rows * (b if fused else 16 - normalised)))


def in_slices(sizes: RankSizes) -> bool:
    """Whether a layer's norms run over slices of the tokens, as its MLP does."""
    return sizes.framework.slices_norms and sizes.degrees.mlp_chunk_tokens is not None


def slice_tokens(sizes: RankSizes) -> Number:
    """Tokens of a rank that go through the MLP at one time."""
    chunk = sizes.degrees.mlp_chunk_tokens
    return sizes.tokens if chunk is None else smaller(sizes.tokens, chunk)


def layer_norm(sizes: RankSizes, name: str, call: str = "", feeds: bool = True) -> Operator:
    """A norm of the layer's rows. In slices it keeps its input and its result, and runs again slice by slice in the
    backward pass, which holds the input's gradient and one slice's tensors."""
    if not in_slices(sizes):
        return norm(sizes, name, call, feeds=feeds)
    tokens, width = slice_tokens(sizes), sizes.width
    made = norm(sizes, name, values=tokens * sizes.workload.model.hidden)
    row = sizes.outer_tokens * sizes.workload.model.hidden * width
    return made._replace(
        kept=2 * row, working=(0, row + made.kept + made.working[1]), times=sizes.outer_tokens / tokens, reruns=True
    )


def norm_behind(sizes: RankSizes, name: str) -> Table:
    """The norm of a half's result before it is added, where a layer has four norms (Gemma, GLM-4)."""
    return (layer_norm(sizes, name, feeds=False),) if sizes.workload.model.norms == 4 else ()


def residual(sizes: RankSizes, name: str, launches: int, call: str = "") -> Operator:
    """Both inputs read, the sum written; dropout's mask is one byte more, and kept. Backward the gradients of both
    ways to the input are added, and that of what was dropped out is read, masked and written."""
    values, mask = sizes.outer_tokens * sizes.workload.model.hidden, 1 if sizes.framework.dropout else 0
    moved, back = 3 * sizes.width + mask, 3 * sizes.width + mask * (2 * sizes.width + 1)
    return elementwise(
        sizes, name, values * moved, launches, back=values * back, call=call, kept=values * mask, host=(1, 1)
    )


def activation_passes(sizes: RankSizes) -> tuple[int, int]:
    """Readings and writings of each value of the MLP's inside, forward and backward: of one kernel, or of the
    activation (r w, r r w) and the product with what it gates (r r w, for each of the two r r w)."""
    if not sizes.workload.model.gated:
        return 2, 3
    return (3, 5) if sizes.framework.activation == "fused" else (5, 9)


def inner_tensors(sizes: RankSizes) -> int:
    """Kept of an MLP's inside: gate, its activation, up, their product; a fused kernel keeps no activation."""
    if not sizes.workload.model.gated:
        return 2
    return 3 if sizes.framework.activation == "fused" else 4


def tensor_exchange(
    sizes: RankSizes, op: Literal["all_gather", "reduce_scatter"], grad: bool, columns: Number | None = None
) -> tuple[Exchange, ...]:
    """Tensor parallelism around each block: all-gather of its input, reduce-scatter of its output, backward swapped.

    Without sequence parallelism every rank has the input already, and an all-reduce sums the output (in the backward
    pass the input's gradient). `columns` are exchanged; None means the hidden width. Where products overlap them, two
    backward exchanges do: the reduction of an input's gradient, and (with sequence parallelism) a second
    gather of the input. Those products are longer, so such an exchange counts OVERLAP_COST of its bytes. Frozen weights
    have no product of their gradients to run beside, and need no input a second time.
    """
    if not somewhere(sizes.degrees.tensor > 1):
        return ()
    gathers = (op == "all_gather") != grad
    moved = _exchanged_bytes(sizes, gathers and columns is None and sizes.framework.narrow_gathers, columns)
    if sizes.framework.tensor_overlap == "chunks":  # of which the first is exposed
        moved = moved / sizes.degrees.tensor
    beside_products = sizes.framework.tensor_overlap == "products" and sizes.workload.trains_weights
    if grad and op == "all_gather" and beside_products:
        hidden: tuple[Op, ...] = (
            ("all_gather", "reduce_scatter") if sizes.framework.sequence_parallel else ("all_reduce",)
        )
        return tuple(Exchange(part="tensor", axis="tensor", op=one, bytes=OVERLAP_COST * moved) for one in hidden)
    if sizes.framework.sequence_parallel:
        swapped: Op = "reduce_scatter" if op == "all_gather" else "all_gather"
        return (Exchange(part="tensor", axis="tensor", op=swapped if grad else op, bytes=moved),)
    if (op == "reduce_scatter") == grad:
        return ()
    return (Exchange(part="tensor", axis="tensor", op="all_reduce", bytes=moved),)


def _exchanged_bytes(sizes: RankSizes, narrow: bool, columns: Number | None = None) -> Number:
    """Of all tokens, as they are or (`narrow`) as 8- and 4-bit products take them."""
    each = operand_bytes(sizes) if narrow else sizes.width
    return sizes.tokens * (sizes.workload.model.hidden if columns is None else columns) * each


def tensor_operator(
    sizes: RankSizes,
    name: str,
    op: Literal["all_gather", "reduce_scatter"],
    columns: Number | None = None,
    readers: int = 1,
) -> Table:
    """The exchange as a row of the table; none where no candidate has tensor parallelism. A gathered input may stay:
    the norm keeps the rank's own share of it in any case. `readers`: products that take a gathered input."""
    forth, back = (tensor_exchange(sizes, op, grad, columns) for grad in (False, True))
    if not (forth or back):
        return ()
    kept: Number = 0
    if op == "all_gather" and sizes.framework.keeps_gathered:
        kept = (sizes.tokens - sizes.outer_tokens) * (columns or sizes.workload.model.hidden) * sizes.width
    passes = _copies(sizes, op, columns, readers) if sizes.framework.copies_exchanged else (Passes(), Passes())
    return (Operator(name, exchanges=(forth, back), passes=passes, kept=kept),)


def _copies(
    sizes: RankSizes, op: Literal["all_gather", "reduce_scatter"], columns: Number | None, readers: int
) -> tuple[Passes, Passes]:
    """Whole tensors read and written once beside a collective whose buffer is in another order: behind a gather, before
    a reduction. Each reader of a gathered input but the first adds its gradient (r b r b w b) before they are reduced.
    Left out: embedding and head."""
    several, narrow = sizes.degrees.tensor > 1, sizes.framework.narrow_gathers and columns is None
    whole, gathered = (pick(several, _exchanged_bytes(sizes, one, columns), 0) for one in (False, narrow))
    behind, added = Passes(2 * gathered, 1), 3 * (readers - 1) * whole
    before = Passes(2 * whole + (added if op == "all_gather" else 0), readers if op == "all_gather" else 1)
    return (behind, before) if op == "all_gather" else (before, behind)


def product_s(
    sizes: RankSizes,
    kernels: Kernels,
    rows: Number,
    out: Number,
    inside: Number,
    grad: bool,
    dtype: str | None = None,
    trained: bool = True,
    groups: Number = 1,
) -> Number:
    """A product forward, or the gradients of its input (rows, inside, out) and of a trained weight (inside, out, rows).

    `dtype` None means that of the layers' products: 8- and 4-bit inputs are quantised first (a frozen weight never
    again after it was loaded, nor one that is cast before it is gathered), and a layer's biases have gradients that
    read the output's gradient once more.
    """
    framework, layer = sizes.framework, dtype is None
    if dtype is None:
        dtype = framework.product_dtype or sizes.workload.precision.param
    quantised: Number = 0.0
    if framework.product_dtype is not None and framework.product_dtype == dtype:
        cast = trained and not framework.narrow_gathers
        values = rows * out if grad else rows * inside + (out * inside if cast else 0)
        quantised = kernels.memory_bound_s(groups * values * QUANTISE_BYTES[framework.product_dtype], 2)
    if not grad:
        return kernels.grouped_s(groups, rows, out, inside, dtype) + quantised
    seconds = quantised + kernels.grouped_s(groups, rows, inside, out, dtype)
    if framework.biases and layer and trained:
        seconds = seconds + kernels.memory_bound_s(groups * rows * out * sizes.width, 1)
    return seconds + kernels.grouped_s(groups, inside, out, rows, dtype, framework.accumulator) if trained else seconds


def products_s(sizes: RankSizes, kernels: Kernels, operator: Operator, grad: bool) -> Number:
    """An operator's products; the rows of a grouped product are rounded down."""
    seconds: Number = 0.0
    for rows, out, inside, trained, groups, equal, dtype in operator.products:
        full_rows = rows if isinstance(rows, int) else larger(rows // 1, 1)
        once = product_s(sizes, kernels, full_rows, out, inside, grad, dtype, trained, groups)
        seconds = seconds + (equal * once if equal > 1 else once)
    return seconds


def product_flops(operators: Iterable[Operator], grad: bool = False) -> float:
    """FLOP of the products: 2 for each weight and row forward; backward 2, and 2 more where the weight is trained."""
    total = 0.0
    for one in operators:
        for rows, out, inside, trained, groups, equal, _ in one.products:
            once = 2.0 * rows * out * inside * groups * equal * one.times
            total += float(once) * ((2 if trained else 1) if grad else 1)
        if grad and one.reruns:
            total += product_flops((one,))
    return total


def peak_bytes(operators: Table, grad: bool) -> Number:
    """The most bytes alive for a moment, with all of the layer's tensors; backward the last operator comes first."""
    peak: Number = 0
    gone: Number = 0
    for one in reversed(operators) if grad else operators:
        peak = larger(peak, one.working[grad] - gone if grad else one.working[grad])
        gone = gone + (one.kept if one.freed is None else one.freed)
    return peak


def attention_call_s(
    sizes: RankSizes, kernels: Kernels, q_tokens: Number, kv_tokens: Number, grad: bool, causal: bool
) -> Number:
    """One call of the attention kernel with this rank's heads; a kernel from before FlashAttention-2 is slower."""
    model, (seen, edges) = sizes.workload.model, sizes.seen
    seconds = kernels.attention_s(
        q_tokens, kv_tokens, sizes.heads, sizes.kv_heads, model.head_dim, causal,
        backward=grad, batch=sizes.rows, dtype=sizes.workload.precision.param, value_dim=model.v_dim,
        seen=seen, edges=edges,
    )  # fmt: skip
    slower = FA1_SLOWDOWN if sizes.framework.attention == "fa1" else 1.0
    return seconds * sizes.attended_fraction * slower + sizes.framework.gap_s


def attention_passes_s(
    sizes: RankSizes, kernels: Kernels, tokens: Number, grad: bool, bytes_per_value: int, launches: int
) -> Number:
    """Passes over attention's output for `tokens` of each row, or over dQ, dK and dV."""
    model, lines = sizes.workload.model, tokens * sizes.rows
    values = sizes.heads * model.v_dim
    if grad:
        values = sizes.heads * model.head_dim + sizes.kv_heads * (model.head_dim + model.v_dim)
    return kernels.memory_bound_s(lines * values * bytes_per_value, launches)
