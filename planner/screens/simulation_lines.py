"""A simulated step as lines for a person and as JSON: its parts, its memory over time, its busiest links."""

from __future__ import annotations

from typing import Any

from cost_models import strict
from cost_models.cost import PARTS
from cost_models.units import show_bytes, show_seconds
from planner.plan_file import Plan
from planner.screens.layout_lines import cluster_line
from planner.screens.lines import title, wrapped
from planner.screens.price_lines import averaged_lines
from planner.simulator.result import Simulation


def simulation_lines(plan: Plan, found: Simulation) -> list[str]:
    """The answer of `plan simulate`."""
    lines = [
        plan.workload.describe(),
        f"{plan.strategy.describe()} on {cluster_line(plan.cluster)}",
        title("Step      ") + f"{show_seconds(found.step_s)} simulated, {show_seconds(plan.cost.step_s)} priced",
        *wrapped([f"{_words(n)} {show_seconds(v)}" for n, v in found.seconds.items() if v > 0]),
        *averaged_lines(found.averaged),
        title("Memory    ") + memory_line(found),
    ]
    lines += [f"  {link.name.ljust(24)} busy {link.utilisation:.1%} of the step" for link in found.busiest_links[:8]]
    return lines


def _words(part: str) -> str:
    """Of a part of a step's seconds; a simulation also has the parts of a stream that waits."""
    return PARTS[part].words if part in PARTS else part


def memory_line(found: Simulation) -> str:
    """The curve in words: where it starts, its highest point and when."""
    begin, (when, most) = found.memory[0][1], max(found.memory, key=lambda point: point[1])
    return f"{show_bytes(begin)} at first, at most {show_bytes(most)} after {show_seconds(when)}"


def simulation_dict(found: Simulation) -> dict[str, Any]:
    """As plain data: seconds by part, busiest links, memory over time."""
    links = [strict.plain(link) for link in found.busiest_links]
    memory = [[start_s, round(held)] for start_s, held in found.memory]
    return {
        "step_s": found.step_s, "averaged": found.averaged, "seconds": dict(found.seconds), "busiest_links": links,
        "memory": memory,
    }  # fmt: skip
