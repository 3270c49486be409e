"""A mixture of experts in the place of a layer's MLP, as operators.

    norm · router · permute · [all-to-all] · sort · grouped up products · activation · grouped down products
         · sort back · [all-to-all] · unpermute · shared experts · residual

T tokens of a rank make T x chosen copies. Routing is balanced: as many copies come back from the `expert` ranks as were
sent, and a rank's experts get equally many. With expert = 1 nothing is sent and the experts' width is cut by `tensor`.
A permute moves rows of `hidden` by index, at PERMUTE_SLOWDOWN of a stream. Bytes per copy: permute reads T rows
and writes the copies; each sort reads and writes them; the exchange carries hidden x b each way, forward and backward,
of each copy, or (`experts_once`) of each token once to a domain and once to a rank.

Left out: imbalance, dropped tokens, hiding the exchange behind the shared experts, host synchronisation on counts, and
the host's call of each expert's product (Transformer Engine's GroupedLinear: 96 of 5 us for 16 experts, 0.5 ms). These
are not all that is missing: 1,024 tokens of a rank (tensor 4, 16 experts) take 9.6 ms a layer both ways in
Megatron-MoE-ModelZoo, the host by `launches` 4.5 ms and the price 5.7; four times as many are priced within 4%.
"""

from __future__ import annotations

from cost_models.layer.operators import (
    FUSED_CALLS,
    Operator,
    Table,
    activation_passes,
    elementwise,
    inner_tensors,
    map_calls,
    moves,
    multiplies,
    norm,
    operand_bytes,
    residual,
    tensor_operator,
)
from cost_models.layer.sizes import RankSizes
from cost_models.models.experts import Experts
from cost_models.number import Number, larger, pick, somewhere
from cost_models.program import Exchange

PERMUTE_SLOWDOWN = 1.32
"""Rows moved by index against a stream: 0.666 / 0.506 of bandwidth (SimuMax's fit on B200: default, permute)."""
ROUTER_BYTES = 40
"""Per token and expert: softmax, choice, scatter to a map and the balancing loss in fp32, about ten passes."""
ROUTER_LAUNCHES = 20
"""Small kernels of a router: softmax, top-k, masks, scatter, counts, cumulative sums, balancing loss."""


def expert_operators(sizes: RankSizes) -> Table:
    """The second half of a layer whose MLP is a mixture of experts."""
    experts = sizes.experts
    assert experts is not None
    hidden, routed, one_rank = sizes.workload.model.hidden, _routed_tokens(sizes), sizes.degrees.expert == 1
    copies = routed * experts.chosen
    permuted = (routed + copies) * hidden * sizes.width * PERMUTE_SLOWDOWN
    # copies that come from several ranks are sorted by expert; from one they are sorted already
    sorted_bytes = 2 * copies * hidden * sizes.width * PERMUTE_SLOWDOWN * pick(one_rank, 0, 1)
    return (
        norm(sizes, "mlp norm", call="mlp", feeds=False),
        _router(sizes, experts, routed),
        moves(sizes, "permute", permuted, 2),
        *_exchange(sizes, "dispatch", copies * hidden * sizes.width),
        moves(sizes, "dispatch", sorted_bytes, 1),
        *_grouped(sizes, experts, copies),
        moves(sizes, "combine", sorted_bytes, 1),
        *_exchange(sizes, "combine", copies * hidden * sizes.width),
        moves(sizes, "combine", permuted, 2),
        *_shared(sizes, experts),
        residual(sizes, "mlp sum", 1, call="mlp"),
    )


def _router(sizes: RankSizes, experts: Experts, tokens: Number) -> Operator:
    scores = multiplies(sizes, "router", (tokens, experts.count, sizes.workload.model.hidden))
    small = moves(sizes, "router", tokens * experts.count * ROUTER_BYTES, ROUTER_LAUNCHES)
    forward, backward = (one.plus(other) for one, other in zip(small.passes, scores.passes, strict=True))
    calls = (ROUTER_LAUNCHES + 1, ROUTER_LAUNCHES + 2)
    return small._replace(products=scores.products, passes=(forward, backward), host=calls)


def _grouped(sizes: RankSizes, experts: Experts, copies: Number) -> Table:
    """Products of one rank's experts in grouped calls, each expert with its share of the copies.

    The widest moment, forward and backward: copies before and after their sort, or one product with its gradient.
    """
    model, ranks = sizes.workload.model, sizes.degrees.expert
    held, ffn = experts.count // ranks, experts.ffn // pick(ranks == 1, sizes.degrees.tensor, 1)
    ups = 2 if model.gated else 1
    up = (ups * ffn, model.hidden, 1) if sizes.framework.joined_products else (ffn, model.hidden, ups)
    inside = copies * ffn * sizes.width
    widest = copies * larger(2 * model.hidden, 3 * ffn) * sizes.width
    kept = _kept_bytes(sizes, experts, ffn)
    fused = sizes.framework.activation == "fused"
    calls = FUSED_CALLS if fused else (2, 3)
    moved, back = activation_passes(sizes)
    activation = elementwise(sizes, "activation", inside * moved, 2, back=inside * back, host=calls)
    return (
        multiplies(sizes, "up", (copies / held, *up), groups=held, host=map_calls(sizes, "up")),
        activation._replace(
            kept=kept, result=copies * ffn * operand_bytes(sizes), working=(widest, widest), freed=kept
        ),
        multiplies(sizes, "down", (copies / held, model.hidden, ffn), groups=held, host=map_calls(sizes, "down")),
    )


def _kept_bytes(sizes: RankSizes, experts: Experts, ffn: Number) -> Number:
    """Rows as the experts got them, their two products, the shared experts', the routing (fp32 scores, a map, indices).

    The weights of the choice are applied between the two products, so that nothing else is kept per copy.
    """
    routed, taken = _routed_tokens(sizes), operand_bytes(sizes)
    copies, inside = routed * experts.chosen, sizes.width * (inner_tensors(sizes) - 1) + taken
    shared = sizes.tokens * experts.shared_ffn // sizes.degrees.tensor * inside
    routing = routed * experts.count * (4 + 1) + copies * 8
    return copies * (sizes.workload.model.hidden * taken + ffn * inside) + shared + routing


def _routed_tokens(sizes: RankSizes) -> Number:
    """Tokens that one rank sends to experts: with expert parallelism its share, else all of the tensor group."""
    return pick(sizes.degrees.expert == 1, sizes.tokens, sizes.outer_tokens)


def _exchange(sizes: RankSizes, name: str, moved: Number) -> Table:
    if not somewhere(sizes.degrees.expert > 1):
        return ()
    copies, framework = 1, sizes.framework
    beside: Number = 0
    if sizes.experts is not None and framework.experts_once:
        copies = sizes.experts.chosen
        if framework.consecutive_experts:
            beside = larger(1.0, copies * sizes.degrees.expert / sizes.experts.count)
    exchange = (Exchange(part="experts", axis="expert", op="all_to_all", bytes=moved, copies=copies, beside=beside),)
    return (Operator(name, exchanges=(exchange, exchange)),)


def _shared(sizes: RankSizes, experts: Experts) -> Table:
    """The experts that every token visits: a dense MLP, cut by `tensor`."""
    gathered = tensor_operator(sizes, "shared up", "all_gather")
    summed = tensor_operator(sizes, "shared down", "reduce_scatter")
    if not experts.shared_ffn:
        return (*gathered, *summed) if not somewhere(sizes.degrees.expert > 1) else ()
    model, ffn, tokens = sizes.workload.model, experts.shared_ffn // sizes.degrees.tensor, sizes.tokens
    ups = 2 if model.gated else 1
    up = (ups * ffn, model.hidden, 1) if sizes.framework.joined_products else (ffn, model.hidden, ups)
    added = 3 * sizes.outer_tokens * model.hidden
    moved, back = (sizes.width * (tokens * ffn * passes + added) for passes in activation_passes(sizes))
    return (
        *gathered,
        multiplies(sizes, "shared up", (tokens, *up)),
        elementwise(sizes, "shared up", moved, 3, back=back),
        multiplies(sizes, "shared down", (tokens, model.hidden, ffn)),
        *summed,
    )
