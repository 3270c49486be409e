"""What `executor check` prints: planned against counted bytes by component, as a table or JSON.

    component      planned      counted      difference
    activations    51.03 GiB    51.03 GiB    +0.0%            difference = planned / counted - 1

Below it the parts that no tensor shows (estimates of the plan). A bar on standard error tells how far the count is.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cost_models.units import show_bytes
from executor.check.check import Checked, check
from planner.plan_file import Plan

_PHASES = ("model", "forward", "backward", "optimizer")


def run(plan: Plan, rank: int, as_json: bool) -> str:
    """Count and report."""
    columns = (TextColumn("counting"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(_PHASES[0], total=len(_PHASES))
        found = check(plan, rank, lambda phase: progress.update(task, description=phase, advance=1))
        progress.update(task, completed=len(_PHASES))
    return to_json(found) if as_json else table(plan, found)


def to_json(found: Checked) -> str:
    """Components with their difference, and the parts that were not counted."""
    rows = [{**asdict(part), "difference": _number(part.difference)} for part in found.components]
    return json.dumps({"rank": found.rank, "components": rows, "not_counted": dict(found.not_counted)}, indent=1)


def table(plan: Plan, found: Checked) -> str:
    """The table of this module's docstring."""
    lines = [
        f"{plan.workload.describe()}; {plan.strategy.describe()}",
        f"rank {found.rank} of {plan.strategy.ranks}: fake tensors, fake process group, shapes of the CPU attention",
        f"{'component':<28}{'planned':>12}{'counted':>12}{'difference':>12}",
    ]
    for part in found.components:
        share = f"{part.difference:+.1%}" if math.isfinite(part.difference) else "not planned"
        planned, counted = show_bytes(part.planned_bytes), show_bytes(part.counted_bytes)
        lines.append(f"{part.name:<28}{planned:>12}{counted:>12}{share:>12}")
    estimates = ", ".join(f"{name} {show_bytes(size)}" for name, size in found.not_counted)
    lines.append(f"estimates of the plan that no tensor shows: {estimates}")
    return "\n".join(lines)


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
