"""What weights and gradients add to a segment: gathers before it and reductions after it, hidden by it or not.

    ZeRO-3      every microbatch: weights gathered (again in backward), gradients reduce-scattered over `shard`
    ZeRO-2      every microbatch: weights gathered once, gradients reduce-scattered
    ZeRO-0, -1  once a step, in the last microbatch: gradients reduced, weights gathered
    frozen      weights that do not train: below ZeRO-3 every rank holds them whole, so they are never gathered
    replicas    once a step, in the last microbatch: shards of gradients all-reduced over `replicate`
    deferred    ZeRO-2 and -3 where the framework defers reductions: gradients as ZeRO-1's, the rest as above

A framework may leave what ZeRO-0 to -2 send exposed, block on every weight, or let each tensor have one owner that
updates and broadcasts it. Bytes of one rank; numbers or arrays over candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cost_models.layer.operators import operand_bytes
from cost_models.layer.sizes import RankSizes
from cost_models.number import Number, pick, somewhere
from cost_models.program import Axis, Broadcasts, Compute, Exchange, Op, Phase, Segment
from cost_models.timing.host import PYTORCH_2024
from cost_models.timing.kernels import Kernels
from cost_models.workload import DTYPE_BYTES

ROOT_TENSORS = 3
"""Embedding, head and last norm."""
FLATTEN_BYTES = 12
"""Of an owner's bf16 gradient before its all-reduce: flattened, divided, copied back (r2 w2 each)."""
LIST_OPERATORS = 2
"""Eager operators for each rank where a collective takes a list of tensors: a view and a copy."""


class Weights(NamedTuple):
    """Of one repeat of a segment, on one rank before sharding; `_experts` are those spread over `expert` ranks."""

    gathered: Number = 0.0  # before it
    trained: Number = 0.0  # their gradients are reduced after it
    gathered_experts: Number = 0.0
    trained_experts: Number = 0.0


def gathered_params(sizes: RankSizes, held: Number, trained: Number) -> Number:
    """Of a unit's weights those that its forward pass gathers in training; a rank that only serves gathers all once."""
    return held if sizes.workload.mode != "train" else pick(sizes.degrees.zero == 3, held, trained)


def copied_bytes(sizes: RankSizes, weights: Weights) -> Number:
    """Traffic of a framework's copies around the collectives of a unit that several ranks share."""
    framework, several = sizes.framework, sizes.degrees.shard > 1
    held, trained = weights.gathered + weights.gathered_experts, weights.trained + weights.trained_experts
    return pick(several, held * framework.gather_copy_bytes + trained * framework.reduce_copy_bytes, 0.0)


def sharded(segment: Segment, sizes: RankSizes, kernels: Kernels, weights: Weights, *, passes: int = 1) -> Segment:
    """The segment with its gathers and reductions; a recomputed layer has two `passes` over its weights."""
    framework, every = sizes.framework, sizes.degrees.zero >= 2
    layer = segment.kind is not None
    gathers, scatters, sums = _gathers(sizes, weights, layer), _scatters(sizes, weights), _sums(sizes, weights)
    if framework.blocking_tensors and somewhere(sizes.degrees.zero == 3):
        blocking = _blocking(segment, sizes, kernels, gathers, scatters, passes)
        return segment._replace(phases=(*blocking, *segment.phases))
    exposed, zero = framework.reduction == "exposed", sizes.degrees.zero
    always = gathers if framework.defers_reductions else (*gathers, *scatters)
    hidden, late = _where(zero >= (3 if exposed else 2), always), _where(zero == 2, always) if exposed else ()
    plain = segment._replace(phases=(*segment.phases, *late), sharding=hidden)
    deferred = framework.defers_reductions and scatters
    if not (sums or deferred or ((gathers or scatters) and somewhere(zero < 2))):
        return plain
    copies: tuple[Phase, ...] = ()
    if (framework.owned_tensors or framework.sums_whole) and not somewhere(every):
        axis: Axis = "gradient" if framework.owned_tensors else "shard"
        scatters = tuple(one._replace(axis=axis, op="all_reduce") for one in scatters)
        if framework.owned_tensors:
            copies, sums = _flattened(kernels, weights), ()
    phases = (*segment.phases, *copies)
    if exposed:
        once = (*_where(zero < 3, (*gathers, *scatters)), *sums)
        last = segment._replace(phases=(*phases, *once), sharding=_where(zero == 3, (*gathers, *scatters)))
    else:
        last = segment._replace(phases=phases, sharding=(*gathers, *scatters, *sums))
    return plain._replace(last=last)


def _where(counts: Number, exchanges: tuple[Exchange, ...]) -> tuple[Exchange, ...]:
    """Of those candidates alone; nothing where no candidate is."""
    if not somewhere(counts):
        return ()
    return tuple(one._replace(bytes=pick(counts, one.bytes, 0.0)) for one in exchanges)


def _present(axis: Axis, op: Op, size: Number) -> tuple[Exchange, ...]:
    return (Exchange(part="sharding", axis=axis, op=op, bytes=size),) if somewhere(size > 0) else ()


def _gathers(sizes: RankSizes, weights: Weights, layer: bool) -> tuple[Exchange, ...]:
    """Weights as they travel; those of a layer's products may be cast before."""
    width: float = 4 if sizes.framework.autocast_bytes else sizes.width
    if layer and sizes.framework.narrow_gathers:
        width = operand_bytes(sizes)
    return (
        *_present("shard", "all_gather", weights.gathered * width),
        *_present("expert_shard", "all_gather", weights.gathered_experts * width),
    )


def _scatters(sizes: RankSizes, weights: Weights) -> tuple[Exchange, ...]:
    width = DTYPE_BYTES[sizes.workload.precision.reduce]
    return (
        *_present("shard", "reduce_scatter", weights.trained * width),
        *_present("expert_shard", "reduce_scatter", weights.trained_experts * width),
    )


def _sums(sizes: RankSizes, weights: Weights) -> tuple[Exchange, ...]:
    """Over the replicas of each shard."""
    width, degrees = DTYPE_BYTES[sizes.workload.precision.reduce], sizes.degrees
    replicated = somewhere(degrees.replicate > 1)
    result = _present("replicate", "all_reduce", weights.trained * width / degrees.shard) if replicated else ()
    if not somewhere(weights.trained_experts > 0):
        return result
    return (
        *result,
        *_present("expert_replicate", "all_reduce", weights.trained_experts * width / degrees.expert_shard),
    )


def _blocking(
    segment: Segment,
    sizes: RankSizes,
    kernels: Kernels,
    gathers: Iterable[Exchange],
    scatters: Iterable[Exchange],
    passes: int,
) -> tuple[Phase, ...]:
    """Each weight of a layer by one collective, with nothing concurrent; gathers once for each pass.

    As lists of tensors each collective goes through a flat buffer, read and written with eager operators per rank; the
    buffer of a gather is cleared first.
    """
    framework = sizes.framework
    tensors = framework.blocking_tensors if segment.kind is not None else 1
    host_s = LIST_OPERATORS * sizes.degrees.shard * PYTORCH_2024.operator_s
    phases: tuple[Phase, ...] = ()
    for exchanges, count, touched in ((gathers, tensors * passes, 3), (scatters, tensors, 2)):
        for one in exchanges:
            size = one.bytes / tensors
            flat_s = kernels.memory_bound_s(touched * size, 1)
            phases += (one._replace(bytes=size), Compute(part="sharding", seconds=flat_s + host_s)) * count
    return phases


def _flattened(kernels: Kernels, weights: Weights) -> tuple[Phase, ...]:
    """Gradients copied to a flat bucket, divided, and copied back."""
    moved = weights.trained * FLATTEN_BYTES
    return (Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, 3)),) if moved else ()


def broadcast_by_owners(segments: list[Segment], sizes: RankSizes) -> tuple[list[Segment], tuple[Segment, ...]]:
    """(segments without the gathers of their last microbatch, the owners' broadcasts of those weights after it).

    Tensors are dealt out undivided (those of the layers, embedding, head and last norm), so no more ranks have any.
    """
    moved, result = 0.0, []
    for segment in segments:
        last = segment.last
        if last is not None:
            moved += sum(float(one.bytes * segment.repeat) for one in last.sharding if one.op == "all_gather")
            kept = tuple(one for one in last.sharding if one.op != "all_gather")
            segment = segment._replace(last=last._replace(sharding=kept))
        result.append(segment)
    owners = min(int(sizes.degrees.shard), sizes.framework.owned_tensors * sizes.workload.model.layers + ROOT_TENSORS)
    sending = Broadcasts(part="sharding", axis="shard", bytes=moved, owners=owners)
    return result, (Segment(name="broadcasts of the owners", phases=(sending,)),)
