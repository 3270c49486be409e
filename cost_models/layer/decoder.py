"""One decoder layer: its table of operators, folded into phases of the step program and into bytes kept.

    forward:   the operators in order        backward: what the recompute policy runs again, then all in reverse
    table:     mixer (attention, latent or not) and MLP (dense, in slices, experts), chosen apart

What the host calls for it is in `launches`, the moments of memory in `memory/`, FLOP in `flops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cost_models.layer.attention import attention_operators, attention_phases
from cost_models.layer.experts import expert_operators
from cost_models.layer.mlp import mlp_operators
from cost_models.layer.operators import Operator, Passes, Table, products_s
from cost_models.layer.recompute import Policy, kept_products, policy, run_again
from cost_models.layer.sizes import RankSizes
from cost_models.layer.ssd import ssd_operators
from cost_models.models.model import Mixer, Mlp
from cost_models.number import Number, pick, somewhere
from cost_models.program import Compute, Passed, Phase
from cost_models.timing.kernels import Kernels

MIXERS: dict[Mixer, Callable[[RankSizes], Table]] = {
    "attention": attention_operators, "window": attention_operators, "ssd": ssd_operators,
}  # fmt: skip
MLPS: dict[Mlp, Callable[[RankSizes], Table]] = {"dense": mlp_operators, "experts": expert_operators}
"""The builders of both halves; a new part of a layer is a module with one, and a row here."""


def operators(sizes: RankSizes) -> Table:
    """The layer of this kind on one rank; built once for each."""
    mixer, mlp = sizes.parts
    return sizes.once("layer", lambda: (*MIXERS[mixer](sizes), *MLPS[mlp](sizes)))


def forward(sizes: RankSizes, kernels: Kernels) -> tuple[Phase, ...]:
    """Phases of one layer; ranges of several policies ask for the same."""
    return sizes.once(("forward", kernels), lambda: phases(sizes, kernels, operators(sizes)))


def backward(sizes: RankSizes, kernels: Kernels, recompute: str) -> tuple[Phase, ...]:
    """With what the recompute policy runs again first."""
    again = run_again(operators(sizes), recompute, sizes.framework)
    rerun = phases(sizes, kernels, again, part="recompute") if again else ()
    return (*rerun, *sizes.once(("backward", kernels), lambda: phases(sizes, kernels, operators(sizes), grad=True)))


def phases(
    sizes: RankSizes, kernels: Kernels, table: Table, *, grad: bool = False, part: str | None = None
) -> tuple[Phase, ...]:
    """The work of a table one way; `part` renames computation. Neighbouring computation of one part is one phase."""
    calls: dict[str, Passes] = {}
    for one in table:
        if one.call:
            calls[one.call] = calls.get(one.call, Passes()).plus(one.passes[grad])
    rerun = tuple(one._replace(reruns=False) for one in table if one.reruns) if grad else ()
    last = max((place for place, one in enumerate(table) if one.reruns), default=None)
    units: list[tuple[Phase, ...]] = []
    for place, one in enumerate(table):
        passes = calls.pop(one.call, Passes()) if one.call else one.passes[grad]
        units += _units(sizes, kernels, one, passes, grad, part)
        if rerun and place == last:
            units.append(phases(sizes, kernels, rerun, part="recompute"))
    return _joined(phase for unit in (reversed(units) if grad else units) for phase in unit)


def _units(
    sizes: RankSizes, kernels: Kernels, one: Operator, passes: Passes, grad: bool, part: str | None
) -> Iterator[tuple[Phase, ...]]:
    """Memory-bound work, exchanges, products, attention; idle time counts once."""
    seconds = None if one.timed is None else one.timed(kernels, grad)
    if seconds is not None:
        yield (Compute(part=part or "memory_bound", seconds=seconds),)
        if one.exchanges[grad]:
            yield _sent(one, kernels, grad)
        return
    moved, launches, idle_s = passes
    if launches or not isinstance(moved, int) or moved:
        if somewhere(one.active):
            seconds = one.times * (kernels.memory_bound_s(moved, launches) + idle_s)
            yield (Compute(part=part or "memory_bound", seconds=pick(one.active, seconds, 0.0)),)
        idle_s = 0.0
    if one.exchanges[grad]:
        yield _sent(one, kernels, grad)
    if one.products:
        seconds = one.times * (products_s(sizes, kernels, one, grad) + idle_s)
        yield (Compute(part=part or "matmul", seconds=seconds),)
    if one.attends:
        yield attention_phases(sizes, kernels, part=part or "attention", grad=grad)


def _sent(one: Operator, kernels: Kernels, grad: bool) -> tuple[Phase, ...]:
    """Exchanges; to states that are handed on, the seconds of the memory in which ranks join them."""
    return tuple(
        sent._replace(
            pass_s=kernels.memory_bound_s(3 * sent.summary_bytes) / 3,
            back=grad,
            by_transfers=kernels.device.architecture == "cpu",
        )
        if isinstance(sent, Passed)
        else sent
        for sent in one.exchanges[grad]
    )


def _joined(phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """Neighbouring computation of one part as one phase."""
    result: list[Phase] = []
    for phase in phases:
        before = result[-1] if result else None
        if isinstance(phase, Compute) and isinstance(before, Compute) and before.part == phase.part:
            result[-1] = Compute(part=phase.part, seconds=before.seconds + phase.seconds)
        else:
            result.append(phase)
    return tuple(result)


def _kept(one: Operator, chosen: Policy) -> Number:
    return one.kept - one.result if chosen.remakes(one.name) else one.kept


def kept_bytes(sizes: RankSizes, recompute: str, offloaded: bool = False) -> Number:
    """Bytes that a layer keeps from its forward to its backward pass; `offloaded`: its input waits in host memory."""
    chosen = policy(recompute)
    kept: Number = sizes.once(
        ("kept", recompute), lambda: sum(_kept(one, chosen) for one in operators(sizes) if chosen.keeps(one.name))
    )
    if chosen.every_other:
        kept = kept + kept_products(operators(sizes), sizes.width, sizes.framework.keeps_unread)
    return kept + (sizes.row_bytes if chosen.keeps_input and not offloaded else 0)
