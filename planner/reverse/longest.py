"""The longest context that a cluster holds under any layout: bisection on whether anything fits.

    largest multiple of 1,024 tokens for which the planner has a layout; frames stay, text fills the row

Memory never falls with tokens, so bisection is exact to its step. Left out: time (the plan of that row shows it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.longest import most_tokens
from cost_models.profile import Profile
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.workload import Workload
from planner.solve import NothingFits, solve
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

    def fits(tokens: int) -> bool:
        try:
            solve(
                cluster, of(tokens), fixed=fixed, objective="memory", profile=profile, room=room, keep=1, target=target
            )  # fmt: skip
        except NothingFits:
            return False
        return True

    fewest = max(1, -(-workload.vision_tokens // STEP_TOKENS))
    tokens = most_tokens(fits, STEP_TOKENS, fewest)
    if not tokens:
        raise InputError(f"--longest: not even a row of {fewest * STEP_TOKENS} tokens fits; give more GPUs")
    return of(tokens)
