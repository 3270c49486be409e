"""Search, integer program, placement and simulator: from a cluster and a workload to a verified plan. No torch.

Each name is imported when it is first used, so that a command pays only for what it touches.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.plan_file import Plan as Plan
    from planner.planning import plan as plan
    from planner.search.remedies import NothingFits as NothingFits
    from planner.simulator.simulation import simulate as simulate

_HOMES = {
    "NothingFits": "search.remedies",
    "Plan": "plan_file",
    "plan": "planning",
    "simulate": "simulator.simulation",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(f"planner.{_HOMES[name]}"), name)
