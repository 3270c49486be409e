"""The space that a plan's bound speaks of, in words: which choices were varied, and which were held at one value.

    varied   data, microbatches, ring, ulysses, shard, zero, recompute (see `search/space.py` for the values of each)
    held     everything else that a strategy has, and what the user fixed, each at its value

The bound holds wherever the ranks lie. It says nothing about other values of what was held: `plan price --strategy`
prices them, and `plan --fix` plans with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cost_models.strategy import PINS, Strategy
from cost_models.workload import Mode

VARIED = ("data", "microbatches", "ring", "ulysses", "shard", "zero", "recompute")
_ONLY_IN_TRAINING = ("microbatches", "recompute")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a bound covers."""

    varied: tuple[str, ...]
    held: Mapping[str, str]


def searched(strategy: Strategy, fixed: Collection[str], mode: Mode) -> Searched:
    """The space around a planned strategy.

    >>> searched(Strategy(ulysses=8, shard=8), ["ulysses"], "prefill").varied
    ('data', 'ring', 'shard', 'zero')
    """
    skipped = () if mode == "train" else _ONLY_IN_TRAINING
    varied = tuple(name for name in VARIED if name not in fixed and name not in skipped)
    values = {name: getattr(strategy, name) for name in PINS if name != "recompute"}
    values["recompute"] = strategy.layers[0].recompute if strategy.layers else "none"
    held = {name: "none" if value is None else str(value) for name, value in values.items() if name not in varied}
    return Searched(varied=varied, held=held)


def held_words(space: Searched, fixed: Collection[str]) -> list[str]:
    """ "name value" of what was held: what the user fixed, then what others plan with, then the rest."""
    first = [*fixed, "tensor", "pipeline", "expert"]
    names = sorted(space.held, key=lambda name: first.index(name) if name in first else len(first))
    return [f"{name} {space.held[name]}" for name in names]
