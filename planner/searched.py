"""The space that a plan's bound speaks of, in words: which choices were varied over which values, and what was held.

    varied   data, microbatches, ring, ulysses, shard, zero, recompute, each with its values (`search/space.py`)
    held     everything else that a strategy has, and what the user fixed, each at its value

The bound holds wherever the ranks lie. It says nothing about other values of what was held: `plan price --strategy`
prices them, and `plan --fix` plans with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from cost_models.strategy import PINS, Strategy
from cost_models.workload import Mode
from planner.search.space import Space

VARIED = ("data", "microbatches", "ring", "ulysses", "shard", "zero", "recompute")
_ONLY_IN_TRAINING = ("microbatches", "recompute")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a bound covers; nothing where a layout was not searched for."""

    varied: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)


def varied_names(fixed: Collection[str], mode: Mode) -> tuple[str, ...]:
    """The choices that a search moves.

    >>> varied_names(["ulysses"], "prefill")
    ('data', 'ring', 'shard', 'zero')
    """
    skipped = () if mode == "train" else _ONLY_IN_TRAINING
    return tuple(name for name in VARIED if name not in fixed and name not in skipped)


def searched(space: Space, strategy: Strategy) -> Searched:
    """The space around a planned strategy."""
    families = space.families
    values = {name: getattr(strategy, name) for name in PINS if name != "recompute"}
    values["recompute"] = strategy.layers[0].recompute if strategy.layers else "none"
    words = {
        "data": ranges(one.data for one in families),
        "microbatches": ranges(one.microbatches for one in families),
        "ring": _between(min(one.first_ring for one in families), max(one.most_ring for one in families)),
        "ulysses": ranges(one.ulysses for one in families),
        "shard": "all ranks, a domain's, the context group's, 1",
        "zero": "2, 3 (0 for shard 1)",
        "recompute": f"by layer {', '.join(space.policies)}",
    }
    names = varied_names(space.pins, space.workload.mode)
    held = {name: "none" if value is None else str(value) for name, value in values.items() if name not in names}
    return Searched(varied={name: words[name] for name in names}, held=held)


def ranges(numbers: Iterable[int]) -> str:
    """
    >>> ranges([1, 2, 3, 8, 16, 17])
    '1-3, 8, 16-17'
    """
    runs = itertools.groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0])
    several = [[number for _, number in run] for _, run in runs]
    return ", ".join(_between(run[0], run[-1]) for run in several)


def _between(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


def varied_words(space: Searched) -> list[str]:
    """ "name values" of what was varied."""
    return [f"{name} {values}" for name, values in space.varied.items()]


def held_words(space: Searched, fixed: Collection[str]) -> list[str]:
    """ "name value" of what was held: what the user fixed, then what others plan with, then the rest."""
    first = [*fixed, "tensor", "pipeline", "expert"]
    names = sorted(space.held, key=lambda name: first.index(name) if name in first else len(first))
    return [f"{name} {space.held[name]}" for name in names]
