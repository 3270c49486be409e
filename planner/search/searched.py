"""The space that a plan's bound speaks of, in words: which choices were varied over which values, and what was held.

    varied   data, microbatches, ring, ulysses, shard, zero, recompute, and where the target has them tensor, pipeline
             and virtual, each with its values (`search/space.py`)
    held     everything else that a strategy has, and what the user fixed, each at its value

The bound holds wherever the ranks lie. It says nothing about other values of what was held: `plan price --strategy`
prices them, and `plan --fix` plans with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cost_models.errors import InputError
from cost_models.strategy import PINS, Strategy
from cost_models.workload import Mode, Workload
from planner.search.levers import FIELDS
from planner.search.space import Family, Policy, Space
from planner.targets.target import Target

VARIED = ("data", "microbatches", "ring", "ulysses", "shard", "zero", "recompute")
_OF_SSD = {"ssd", "ssd_pass"}  # held where a user holds them: few models have such layers
_HELD = ("tensor", "pipeline", "virtual", "cache_context")
"""Varied where a target has several spaces."""
HELD_FIRST = ("token_shares", "tensor", "pipeline", "expert")
"""What others plan with: named on the screen, where the rest is counted."""
_OVER = {"ranks": "all ranks", "domain": "a domain's", "context": "the context group's", "one": "1", "alone": "1"}
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


def searched(spaces: Sequence[Space], strategy: Strategy, fixed: Collection[str], any_shares: bool = False) -> Searched:
    """The space around a planned strategy; `spaces` differ in what is held in each. Where GPUs are unlike,
    equal shares of a row are among what was held, or any were varied."""
    families = [family for space in spaces for family in _families(space)]
    first = spaces[0]
    shown = set(PINS) - {"recompute"} - (_OF_SSD - set(fixed))
    values = {name: getattr(strategy, name) for name in PINS if name in shown}
    values["recompute"] = strategy.layers[0].recompute if strategy.layers else "none"
    stages = sorted({stage for _, stage in first.shardings})
    unsharded = " (0 for shard 1)" if stages[0] == 0 and len(stages) > 1 else ""
    among = dict.fromkeys(space.policies for space in spaces)
    largest = [one for one in among if not any({*one} < {*other} for other in among)]
    words = {
        "data": ranges(one.data for one in families),
        "microbatches": ranges(one.microbatches for one in families),
        "ring": _between(min(one.first_ring for one in families), max(one.most_ring for one in families)),
        "ulysses": ranges(one.ulysses for one in families),
        "shard": ", ".join(dict.fromkeys(_OVER[over] for over, _ in first.shardings)),
        "zero": ", ".join(str(stage) for stage in stages if stage or not unsharded) + unsharded,
        "recompute": "by layer " + "; or ".join(", ".join(map(_policy, several)) for several in largest),
    }
    moved = [name for name in _HELD if name not in fixed and len({getattr(one.base, name) for one in spaces}) > 1]
    words |= {name: ranges(getattr(one.base, name) for one in spaces) for name in moved}
    levers = [name for name in (*FIELDS, "ssd") if len({getattr(one.base, name) for one in spaces}) > 1]
    words |= {name: _values([getattr(one.base, name) for one in spaces]) for name in levers}
    moved += levers
    names = (*varied_names(fixed, first.workload.mode), *moved)
    held = {name: "none" if value is None else str(value) for name, value in values.items() if name not in names}
    devices = [run.node.device for run in first.cluster.runs if run.node.gpus]
    varied = {name: words[name] for name in names}
    if any_shares:
        varied["token_shares"] = "any"
    elif any(one != devices[0] for one in devices):
        held["token_shares"] = "equal"
    if "virtual" in moved:
        del held["schedule"]
    return Searched(varied=varied, held=held)


def why_equal(workload: Workload, objective: str, target: Target, ring_kind: object) -> str:
    """Why unlike GPUs have equal shares of a row; nothing where unequal ones are tried. `ring_kind`: the pinned one."""
    if not target.is_ours:
        return f"none are known of {target.name}"
    if workload.mode != "train":
        return f"for training alone, not {workload.mode}"
    if workload.lengths:
        return "rows are packed with documents"
    if workload.model.ssd is not None:
        return "state-space layers scan equal stretches"
    if objective == "memory":
        return "--objective memory asks for no time"
    return "" if ring_kind in ("zigzag", "balanced") else f"ring_kind={ring_kind} is held"


def _policy(policy: Policy) -> str:
    return policy if isinstance(policy, str) else f"{policy.recompute} + offload"


def _values(several: Sequence[object]) -> str:
    return ", ".join(dict.fromkeys("none" if value is None else str(value) for value in several))


def _families(space: Space) -> tuple[Family, ...]:
    try:
        return space.families
    except InputError:  # its degrees leave no room
        return ()


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
    first = [*fixed, *HELD_FIRST]
    names = sorted(space.held, key=lambda name: first.index(name) if name in first else len(first))
    return [f"{name} {space.held[name]}" for name in names]
