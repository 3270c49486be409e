"""The longest context that a cluster holds under any layout: bisection on whether anything fits.

    largest multiple of 1,024 tokens for which the planner has a layout; frames stay, text fills the row
    space by space, those with most levers first; one is bisected where it holds more than the best so far

Levers of memory that the target has are at their strongest, as far as they help.
Memory never falls with tokens, so bisection is exact to its step. Left out: time (the plan of that row shows it),
unequal shares of a row, with which unlike GPUs may hold a longer one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from msgspec import structs

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.longest import most_tokens
from cost_models.profile import Profile
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.workload import Workload
from planner.search.space import Space, check_plannable, spaces
from planner.search.with_levers import holds, strongest_of
from planner.targets.target import MMSP, Target

STEP_TOKENS = 1024


def longest_context(
    cluster: Cluster,
    workload: Workload,
    fixed: Mapping[str, object] | None = None,
    profile: Profile | None = None,
    room: Room = DEFAULT_ROOM,
    target: Target = MMSP,
) -> Workload:
    """The workload at its longest row; an InputError where not even the shortest row fits."""

    def of(tokens: int) -> Workload:
        return replace(workload, context_tokens=tokens, text_tokens=None, lengths=())

    check_plannable(workload.model)
    costs, tokens = cluster_costs(cluster, profile), 0
    fewest = max(1, -(-workload.vision_tokens // STEP_TOKENS))
    several = spaces(cluster, target.asked(of(fewest * STEP_TOKENS)), dict(fixed or {}), room, target)
    for space in reversed([*several, *strongest_of(several)]):

        def fits(tokens: int, space: Space = space) -> bool:
            return holds(structs.replace(space, workload=target.asked(of(tokens))), costs)

        tokens = max(tokens, most_tokens(fits, STEP_TOKENS, max(fewest, tokens // STEP_TOKENS + 1)))
    if not tokens:
        raise InputError(f"--longest: not even a row of {fewest * STEP_TOKENS} tokens fits; give more GPUs")
    return of(tokens)


def longest_words(cluster: Cluster, workload: Workload) -> str:
    """What a screen says of the longest row on unlike GPUs; nothing where all are alike."""
    devices = [run.node.device for run in cluster.runs if run.node.gpus]
    if all(one == devices[0] for one in devices):
        return ""
    return f"{workload.context_tokens:,} tokens, with equal shares of a row; unequal ones of unlike GPUs were not tried"


def longest_of(
    cluster: Cluster,
    workload: Workload,
    fixed: Mapping[str, object] | None,
    profile: Profile | None,
    room: Room,
    targets: Sequence[Target],
) -> tuple[Workload, Target]:
    """The longest row of several targets, and whose it is; an InputError where none has a row."""
    found: list[tuple[Workload, Target]] = []
    faults: list[InputError] = []
    for target in targets:
        try:
            found.append((longest_context(cluster, workload, fixed, profile, room, target), target))
        except InputError as fault:
            faults.append(fault)
    if not found:
        raise faults[0]
    return max(found, key=lambda one: one[0].context_tokens)
