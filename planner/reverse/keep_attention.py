"""What a model costs with fewer attention layers: time, memory and the longest row against how many keep attention.

The layers that keep it lie evenly, the last one among them (MOHAWK's hybrids interleave, arXiv 2408.10189). The others
mix tokens by a state of the sizes that a conversion takes (a head for each query head, states as wide as heads;
longvila/hybrid.py), or attend to a window. Every row is a plan of its own. What the model loses is not said here:
`longvila.distill` measures it. Left out: models that have windows, latent attention or experts already (refused).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cost_models.errors import InputError
from cost_models.models.model import LayerKind, Model
from cost_models.models.ssd import Ssd
from cost_models.workload import Workload
from planner.question.options import Question
from planner.reverse.longest import longest_context
from planner.search.remedies import NothingFits
from planner.solve import solve

MOST_ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One number of attention layers; `step_s` and what follows are None where nothing fits."""

    attention_layers: int
    params: int
    longest_tokens: int | None
    step_s: float | None = None
    memory_bytes: float | None = None
    plan: str = ""


def hybrid(model: Model, keep: Sequence[int], window: int = 0) -> Model:
    """The model whose other layers mix tokens by a state, or attend to a window.

    >>> hybrid(Model.load("llama-3-8b"), [15, 31]).layer_kinds.count("ssd")
    30
    """
    if set(model.layer_kinds) != {"attention"} or model.latent is not None:
        raise InputError(f"{model.name} has layers beside full attention with a dense MLP; legal: a model without")
    other: LayerKind = "window" if window else "ssd"
    kinds: tuple[LayerKind, ...] = tuple("attention" if i in keep else other for i in range(model.layers))
    if other not in kinds:
        return model
    sizes = Ssd(heads=model.heads, head_size=model.head_dim, state=model.head_dim)
    return replace(model, layer_kinds=kinds, window=window, ssd=None if window else sizes)


def evenly(count: int, layers: int) -> list[int]:
    """
    >>> evenly(4, 32), evenly(1, 5)
    ([7, 15, 23, 31], [4])
    """
    return [(i + 1) * layers // count - 1 for i in range(count)]


def read_counts(text: str, layers: int) -> list[int]:
    """ "4..24" or "4,8,16": at most MOST_ROWS numbers of layers, the ends of a range among them.

    >>> read_counts("4..24", 32), read_counts("0,8", 32)
    ([4, 8, 12, 16, 20, 24], [0, 8])
    """
    try:
        first, dots, last = text.partition("..")
        if dots:
            low, high = int(first), int(last)
            steps = min(MOST_ROWS - 1, high - low)
            counts = [low + round(i * (high - low) / max(1, steps)) for i in range(steps + 1)]
        else:
            counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or sorted(set(counts)) != counts or not 0 <= counts[0] <= counts[-1] <= layers:
        raise InputError(f"--keep-attention {text!r}; legal: 4..24 or 4,8,16, ascending, from 0 to {layers} layers")
    return counts


def kept(
    asked: Question, counts: Sequence[int], fixed: Mapping[str, object], window: int, on_step: Callable[[str], None]
) -> list[Kept]:
    """A plan and the longest row for each number of layers."""
    found = []
    for place, count in enumerate(counts):
        on_step(f"{count} attention layers ({place + 1} of {len(counts)})")
        model = hybrid(asked.workload.model, evenly(count, asked.workload.model.layers), window)
        found.append(_one(asked, replace(asked.workload, model=model), count, fixed))
    return found


def _one(asked: Question, workload: Workload, count: int, fixed: Mapping[str, object]) -> Kept:
    try:
        most = longest_context(asked.cluster, workload, fixed, asked.profile, asked.room).context_tokens
    except InputError:
        most = None
    row = Kept(attention_layers=count, params=workload.model.llm_params, longest_tokens=most)
    try:
        best = solve(asked.cluster, workload, fixed=fixed, profile=asked.profile, room=asked.room, keep=1).best[0]
    except NothingFits:
        return row
    ssd = f", ssd {best.strategy.ssd}" if workload.model.ssd is not None else ""
    return replace(
        row, step_s=best.cost.step_s, memory_bytes=float(best.cost.memory_bytes), plan=best.strategy.describe() + ssd
    )
