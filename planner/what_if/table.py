"""The answers of a sweep as lines for the terminal, as CSV and as JSON: one row a scenario, then the cliffs.

Steps and memory stand with their 80% bands (`cost_models/bands.py`). Dollars only where a GPU-hour has a price.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cost_models.units import show_bytes, show_seconds
from planner.search.searched import varied_names
from planner.what_if.cliffs import Cliff
from planner.what_if.scenario import Outcome, Sweep, banded

MOST_LINES = 60


def rows(sweep: Sweep, now: Outcome, found: Sequence[Outcome], per_gpu_hour: float | None) -> list[dict[str, Any]]:
    """One plain row for each scenario, the question as it is now first."""
    return [_row(sweep, one, now, per_gpu_hour) for one in (now, *found)]


def _row(sweep: Sweep, one: Outcome, now: Outcome, per_gpu_hour: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {axis.name: text for axis, text in zip(sweep.axes, one.values, strict=True)}
    stated = asdict(one)
    del stated["values"], stated["traits"], stated["possible"]
    row |= stated | {"regret": one.regret, "tokens_per_s": one.tokens_per_s}
    same = now.tokens_per_s and one.tokens_per_s
    row["speed_of_now"] = (
        one.tokens_per_s / now.tokens_per_s if same and now.tokens_per_s and one.tokens_per_s else None
    )
    if per_gpu_hour is not None:
        row["dollars_per_million_tokens"] = one.dollars_per_mtok(per_gpu_hour)
    return row


def as_csv(table: list[dict[str, Any]]) -> str:
    """A line for each scenario, with a head."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def as_json(sweep: Sweep, table: list[dict[str, Any]], found: Sequence[Cliff]) -> str:
    """One row a line, so that files can be compared."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in table)
    steps = ",\n".join(f"  {json.dumps({'words': cliff.words(), **asdict(cliff)})}" for cliff in found)
    space = json.dumps(_varied(sweep))
    said = json.dumps(sweep.notes())
    return (
        f'{{\n "searched": {space},\n "notes": {said},\n "scenarios": [\n{lines}\n ],\n "cliffs": [\n{steps}\n ]\n}}\n'
    )


def lines(sweep: Sweep, table: list[dict[str, Any]], found: Sequence[Cliff]) -> list[str]:
    """For a terminal or a chat."""
    names = [axis.name for axis in sweep.axes]
    money = "dollars_per_million_tokens" in table[0]
    head = [*names, "step", "speed", "memory", "old plan kept", *(["$/M tokens"] if money else []), "plan"]
    body = [[*(str(row[name]) for name in names), *_cells(row, money)] for row in table[: MOST_LINES + 1]]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
             for line in [head, *body]]  # fmt: skip
    if len(table) > MOST_LINES + 1:
        shown.append(f"… {len(table) - MOST_LINES - 1} more: -o FILE.csv or FILE.json holds all")
    if found:
        shown += ["", "Where the plan changes, all else as now:", *(f"  {cliff.words()}" for cliff in found)]
    shown += ["", *notes] if (notes := sweep.notes()) else []
    return [*shown, "", f"Prices, not simulated. Searched for each plan: {', '.join(_varied(sweep))}; every placement"]


def _varied(sweep: Sweep) -> tuple[str, ...]:
    """The choices that each plan is the best of; everything else is held as in `plan`."""
    return varied_names(sweep.fixed, sweep.given["mode"])


def _more(regret: float) -> str:
    return f"{regret:+.1%}" if regret < 10 else f"{1 + regret:.3g}×"


def _cells(row: dict[str, Any], money: bool) -> list[str]:
    if row["problem"]:
        return ["-", "-", "-", "-", *(["-"] if money else []), row["problem"]]
    speed = row["speed_of_now"]
    kept = row["kept_problem"] or ("-" if row["kept_s"] is None else _more(row["regret"]))
    dollars = [f"{row['dollars_per_million_tokens']:.3g}"] if money else []
    return [
        banded(row["step_s"], row["step_band_s"], show_seconds),
        "-" if speed is None else f"{speed:.2f}×",
        banded(row["memory_bytes"], row["memory_band_bytes"], show_bytes),
        kept,
        *dollars,
        row["plan"],
    ]
