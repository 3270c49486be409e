"""One decoder layer: its table of operators, folded into phases of the step program and into bytes kept.

    forward:   the operators in order        backward: what the recompute policy runs again, then all in reverse
    table:     mixer (attention, latent or not) and MLP (dense, in slices, experts), two choices of their own

What the host calls for it is in `launches`, the moments of memory in `memory/`, FLOP in `flops`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cost_models.either import Number, pick, somewhere
from cost_models.layer.attention import attention_operators, attention_phases
from cost_models.layer.experts import expert_operators
from cost_models.layer.mlp import mlp_operators
from cost_models.layer.operators import Operator, Table, products_s
from cost_models.layer.recompute import policy, run_again
from cost_models.layer.sizes import RankSizes
from cost_models.program import Compute, Phase
from cost_models.timing.kernels import Kernels


def operators(sizes: RankSizes) -> Table:
    """The layer of this kind on one rank; built once for each."""
    if "layer" not in sizes.tables:
        second = mlp_operators(sizes) if sizes.experts is None else expert_operators(sizes, sizes.experts)
        sizes.tables["layer"] = (*attention_operators(sizes), *second)
    table: Table = sizes.tables["layer"]
    return table


def forward(sizes: RankSizes, kernels: Kernels) -> tuple[Phase, ...]:
    return phases(sizes, kernels, operators(sizes))


def backward(sizes: RankSizes, kernels: Kernels, recompute: str) -> tuple[Phase, ...]:
    """With what the recompute policy runs again first."""
    table = operators(sizes)
    again = run_again(table, recompute, sizes.framework.norms_again)
    return (*phases(sizes, kernels, again, part="recompute"), *phases(sizes, kernels, table, grad=True))


def phases(
    sizes: RankSizes, kernels: Kernels, table: Table, *, grad: bool = False, part: str | None = None
) -> tuple[Phase, ...]:
    """The work of a table one way; `part` renames computation. Neighbouring computation of one part is one phase."""
    calls: dict[str, Operator] = {}
    for one in table:
        if one.call:
            calls[one.call] = _together(calls[one.call], one) if one.call in calls else one
    units: list[tuple[Phase, ...]] = []
    rerun = tuple(replace(one, reruns=False) for one in table if one.reruns) if grad else ()
    last = max((place for place, one in enumerate(table) if one.reruns), default=None)
    for place, one in enumerate(table):
        timed = calls.pop(one.call, None) if one.call else one
        units += _units(sizes, kernels, one, timed, grad, part)
        if rerun and place == last:
            units.append(phases(sizes, kernels, rerun, part="recompute"))
    return tuple(_joined(phase for unit in (reversed(units) if grad else units) for phase in unit))


def _together(left: Operator, right: Operator) -> Operator:
    """The memory-bound work of two operators as one call."""
    return replace(
        left, moved=left.moved + right.moved, moved_back=left.moved_back + right.moved_back,
        launches=left.launches + right.launches, launches_back=left.launches_back + right.launches_back,
        idle_s=left.idle_s + right.idle_s, idle_back_s=left.idle_back_s + right.idle_back_s,
    )  # fmt: skip


def _units(
    sizes: RankSizes, kernels: Kernels, one: Operator, timed: Operator | None, grad: bool, part: str | None
) -> Iterator[tuple[Phase, ...]]:
    """Memory-bound work (that of `timed`, the operator's call), exchanges, products, attention."""
    idle_s = one.idle_back_s if grad else one.idle_s
    if timed is not None:
        moved, launches = (timed.moved_back, timed.launches_back) if grad else (timed.moved, timed.launches)
        if launches or not isinstance(moved, int) or moved:
            seconds = kernels.memory_bound_s(moved, launches) + (timed.idle_back_s if grad else timed.idle_s)
            idle_s = 0.0
            if somewhere(one.active):
                seconds = pick(one.active, _times(one, seconds), 0.0)
                yield (Compute(part=part or "memory_bound", seconds=seconds),)
    if exchanges := one.exchanges_back if grad else one.exchanges:
        yield exchanges
    if one.products:
        seconds = products_s(sizes, kernels, one, grad) + idle_s
        yield (Compute(part=part or "matmul", seconds=_times(one, seconds)),)
    if one.attends:
        yield attention_phases(sizes, kernels, part=part or "attention", grad=grad)


def _times(one: Operator, seconds: Number) -> Number:
    return one.times * seconds


def _joined(phases: Iterator[Phase]) -> Iterator[Phase]:
    """Neighbouring computation of one part as one phase."""
    held: Compute | None = None
    for phase in phases:
        if isinstance(phase, Compute) and held is not None and held.part == phase.part:
            held = Compute(part=held.part, seconds=held.seconds + phase.seconds)
            continue
        if held is not None:
            yield held
        held = phase if isinstance(phase, Compute) else None
        if held is None:
            yield phase
    if held is not None:
        yield held


def kept_bytes(sizes: RankSizes, recompute: str, offloaded: bool = False) -> Number:
    """Bytes that a layer keeps from its forward to its backward pass; `offloaded`: its input waits in host memory."""
    chosen = policy(recompute)
    kept = sum(one.kept for one in operators(sizes) if chosen.keeps(one.name))
    return kept + (sizes.row_bytes if chosen.keeps_input and not offloaded else 0)
