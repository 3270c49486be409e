"""A mixture of experts in the place of a layer's MLP: phases of a rank, and what it keeps for the backward pass.

    norm · router · permute · [all-to-all] · sort · grouped up products · activation · grouped down products
         · sort back · [all-to-all] · unpermute · shared experts · residual

T tokens of a rank make T x chosen copies. Routing is balanced: as many copies come back from the `expert` ranks as were
sent, and a rank's experts get equally many. With expert = 1 nothing is sent and the experts' width is cut by `tensor`.
A permute moves whole rows of `hidden` by index, at PERMUTE_SLOWDOWN of a stream. Bytes per copy: permute reads T rows
and writes the copies; each sort reads and writes them; the exchange carries hidden x b each way, forward and backward.

Left out: imbalance, dropped tokens, hiding the exchange behind the shared experts, host synchronisation on counts.
"""

from __future__ import annotations

from typing import Any

from cost_models.either import larger, pick, somewhere
from cost_models.models.experts import Experts
from cost_models.program import Compute, Exchange, Phase
from cost_models.step.shape import Shape
from cost_models.step.work import elementwise, matmul_s, norm_bytes, product_s, residual_bytes, small_s, tensor_exchange
from cost_models.timing.kernels import Kernels

PERMUTE_SLOWDOWN = 1.32
"""Rows moved by index against a stream: 0.666 / 0.506 of bandwidth (SimuMax's fit on B200: default, permute)."""
ROUTER_BYTES = 40
"""Per token and expert: softmax, choice, scatter to a map and the balancing loss in fp32, about ten passes."""
ROUTER_LAUNCHES = 20
"""Small kernels of a router: softmax, top-k, masks, scatter, counts, cumulative sums, balancing loss."""


def expert_mlp(
    shape: Shape, kernels: Kernels, experts: Experts, part: str | None, grad: bool, down: bool
) -> tuple[Phase, ...]:
    """Phases forward or backward; `down` False: a recompute, which ends before the second grouped product."""
    hidden = shape.workload.model.hidden
    routed = _routed_tokens(shape)
    copies = routed * experts.chosen
    outer = norm_bytes(shape, grad) + shape.outer_tokens * hidden * residual_bytes(shape)
    launches = (1 if shape.habits.norm == "fused" else 6) + 1
    before = (
        elementwise(shape, kernels, outer, launches, grad, part),
        _router(shape, kernels, experts, routed, part, grad),
        _moved(shape, kernels, (routed + copies) * hidden * shape.width, 2, part),
    )
    sorts = 2 * copies * hidden * shape.width
    inside = (
        _moved(shape, kernels, sorts * _spread(shape), 1, part),
        *_grouped(shape, kernels, experts, copies, part, grad, down),
        *((_moved(shape, kernels, sorts * _spread(shape), 1, part),) if down else ()),
    )
    after: tuple[Phase, ...] = ()
    if down:
        unpermuted = _moved(shape, kernels, (routed + copies) * hidden * shape.width, 2, part)
        after = (*_exchange(shape, copies * hidden * shape.width), unpermuted)
    sent = _exchange(shape, copies * hidden * shape.width)
    phases = (*before, *sent, *inside, *after, *_shared(shape, kernels, experts, part, grad, down))
    return phases[::-1] if grad else phases


def expert_kept_bytes(shape: Shape, experts: Experts) -> Any:
    """What the mixture keeps: rows as the experts got them, their two products, the shared experts', the routing.

    The weights of the choice are applied between the two products, so that nothing else is kept per copy.
    """
    model, width, copies = shape.workload.model, shape.width, _routed_tokens(shape) * experts.chosen
    inner = _inner_tensors(shape)
    own = copies * (model.hidden + experts.ffn // _cut(shape) * inner) * width
    shared = shape.tokens * experts.shared_ffn // shape.degrees.tensor * inner * width
    routing = _routed_tokens(shape) * experts.count * (4 + 1) + copies * 8  # scores in fp32, a map; rows by index
    return own + shared + routing


def expert_working_bytes(shape: Shape, experts: Experts) -> Any:
    """The widest moment: copies before and after their sort, or one product with its gradient."""
    copies, model = _routed_tokens(shape) * experts.chosen, shape.workload.model
    widest = larger(2 * model.hidden, 3 * (experts.ffn // _cut(shape)))
    return copies * widest * shape.width


def _inner_tensors(shape: Shape) -> int:
    """Of an expert's width: gate, up and their product; an unfused activation keeps its own result too."""
    if not shape.workload.model.gated:
        return 2
    return 3 if shape.habits.activation == "fused" else 4


def _routed_tokens(shape: Shape) -> Any:
    """Tokens that one rank sends to experts: with expert parallelism its own share, else all of the tensor group."""
    return pick(shape.degrees.expert == 1, shape.tokens, shape.outer_tokens)


def _cut(shape: Shape) -> Any:
    """Into how many parts the width of an expert is cut."""
    return pick(shape.degrees.expert == 1, shape.degrees.tensor, 1)


def _spread(shape: Shape) -> Any:
    """Copies that come from several ranks are sorted by expert; from one they lie so already."""
    return pick(shape.degrees.expert == 1, 0, 1)


def _router(shape: Shape, kernels: Kernels, experts: Experts, tokens: Any, part: str | None, grad: bool) -> Compute:
    scores = matmul_s(shape, kernels, tokens, experts.count, shape.workload.model.hidden, grad)
    small = small_s(shape, kernels, tokens * experts.count * ROUTER_BYTES, ROUTER_LAUNCHES)
    return Compute(part=part or "memory_bound", seconds=scores + small)


def _moved(shape: Shape, kernels: Kernels, moved: Any, launches: int, part: str | None) -> Compute:
    """Rows moved by index; their gradients move the same way back."""
    return Compute(part=part or "memory_bound", seconds=small_s(shape, kernels, moved * PERMUTE_SLOWDOWN, launches))


def _grouped(
    shape: Shape, kernels: Kernels, experts: Experts, copies: Any, part: str | None, grad: bool, down: bool
) -> tuple[Phase, ...]:
    """Products of one rank's experts in grouped calls, each expert with its share of the copies."""
    model, own = shape.workload.model, experts.count // shape.degrees.expert
    rows, ffn = larger(copies // own, 1), experts.ffn // _cut(shape)
    ups = 2 if model.gated else 1
    trained = shape.workload.trains_weights
    if shape.habits.joined_products:
        ups, ffn_columns = 1, ups * ffn
    else:
        ffn_columns = ffn
    seconds = ups * product_s(shape, kernels, rows, ffn_columns, model.hidden, grad, trained=trained, groups=own)
    if down:
        seconds = seconds + product_s(shape, kernels, rows, model.hidden, ffn, grad, trained=trained, groups=own)
    calls = (ups + (1 if down else 0)) * (2 if grad and trained else 1)  # one grouped call for all experts
    passes = (3 if shape.habits.activation == "fused" else 5) if model.gated else 2
    activation = elementwise(shape, kernels, copies * ffn * shape.width * passes, 2, grad, part)
    return (Compute(part=part or "matmul", seconds=seconds + calls * shape.habits.gap_s), activation)


def _exchange(shape: Shape, moved: Any) -> tuple[Phase, ...]:
    if not somewhere(shape.degrees.expert > 1):
        return ()
    return (Exchange(part="experts", axis="expert", op="all_to_all", bytes=moved),)


def _shared(
    shape: Shape, kernels: Kernels, experts: Experts, part: str | None, grad: bool, down: bool
) -> tuple[Phase, ...]:
    """The experts that every token visits: a dense MLP, cut by `tensor`."""
    gathered = tensor_exchange(shape, "all_gather", grad)
    summed = tensor_exchange(shape, "reduce_scatter", grad) if down else ()
    if not experts.shared_ffn:
        return (*gathered, *summed) if not somewhere(shape.degrees.expert > 1) else ()
    model, ffn = shape.workload.model, experts.shared_ffn // shape.degrees.tensor
    ups = 2 if model.gated else 1
    seconds = ups * matmul_s(shape, kernels, shape.tokens, ffn, model.hidden, grad)
    if shape.habits.joined_products:
        seconds = matmul_s(shape, kernels, shape.tokens, ups * ffn, model.hidden, grad)
    if down:
        seconds = seconds + matmul_s(shape, kernels, shape.tokens, model.hidden, ffn, grad)
    passes = (3 if shape.habits.activation == "fused" else 5) if model.gated else 2
    moved = shape.tokens * ffn * shape.width * passes + 3 * shape.outer_tokens * model.hidden * shape.width
    activation = elementwise(shape, kernels, moved, 3, grad, part)
    return (*gathered, Compute(part=part or "matmul", seconds=seconds), activation, *summed)
