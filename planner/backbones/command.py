"""`plan --backbones`: its options, and its answer as a table or JSON; each row shown is priced alone once more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from cost_models.errors import InputError
from cost_models.units import show_tokens
from planner.question import options
from planner.question.conflicts import typed
from planner.screens.lines import show

if TYPE_CHECKING:
    from cost_models.quality import Estimate
    from planner.backbones.front import Backbone
    from planner.backbones.widths import Shapes

SHOWN = 12
"""Rows on the screen; --json has all of the front."""
STEP_TOKENS = 2**24
"""Tokens of a step where no --batch is given."""

asked_for_backbones = options.adding(
    click.option("--backbones", is_flag=True,
                 help="Which dense language model to train here in --days: predicted quality against time and cost."),
    click.option("--days", metavar="D", help="With --backbones: days of training."),
    click.option("--shapes", metavar="LxHxF,…",
                 help="With --backbones: these layers x hidden x MLP alone [default: some 3,000]."),
)  # fmt: skip
"""Adds the options of `--backbones`."""


def backbones(context: click.Context, given: Mapping[str, Any], on_step: Callable[[str], None]) -> None:
    """Print the Pareto front of quality, days and longest row."""
    from cost_models.quality import words
    from planner.backbones.front import front, grid, named, shown, trained
    from planner.backbones.widths import Shapes

    if given["days"] is None:
        raise InputError("--days is missing: days of training for --backbones (such as 30)")
    days = options.positive(given["days"], "--days")
    dollars = options.dollars(given)
    widths = named(given["shapes"]) if given["shapes"] else grid()
    asked = options.question(given)
    work = asked.workload
    if not typed(context, "batch"):
        work = replace(work, global_batch=max(1, STEP_TOKENS // work.context_tokens))
    shapes = Shapes(cluster=asked.cluster, workload=work, profile=asked.profile, room=asked.room)
    found = trained(shapes, widths, days, on_step)
    best = front(found)
    if given["as_json"]:
        click.echo(
            json.dumps({"note": words(), "candidates": len(found), "front": [_dict(one, dollars) for one in best]})
        )
        return
    count = sum(len(layers) for layers in widths.values())
    show(_lines(shapes, count, len(found), best, shown(best, SHOWN), days, dollars))


def _dict(one: Backbone, dollars: float | None) -> dict[str, object]:
    numbers = {name: getattr(one, name) for name in one.__struct_fields__ if name not in ("quality", "strategy")}
    judged = {name: getattr(one.quality, name) for name in one.quality.__struct_fields__}
    again = {name: {end: getattr(score, end) for end in score.__struct_fields__} for name, score in _refit(one).items()}
    cost = {} if dollars is None else {"dollars": one.gpu_hours * dollars}
    layout = {"layout": one.strategy.describe(), "recompute": _recompute(one), "at_depth_bound": one.at_depth_bound}
    return {**numbers, **cost, **judged, "refit": again, **layout}


def _refit(one: Backbone) -> dict[str, Estimate]:
    from cost_models.quality import backbone, refitted

    return refitted(backbone(one.layers, one.hidden, one.ffn), one.tokens)


def _band(value: float, low: float, high: float) -> str:
    return f"{value:.1f} ({low:.0f}-{high:.0f})"


def _recompute(one: Backbone) -> str:
    return ", ".join(f"{part.recompute} {part.count}" for part in one.strategy.layers)


def _lines(
    shapes: Shapes, count: int, trials: int, best: list[Backbone], rows: list[Backbone], days: float,
    dollars: float | None,
) -> list[str]:  # fmt: skip
    from cost_models.bands import step_band
    from cost_models.pricing import price
    from cost_models.quality import DEEPEST, backbone, measured, words

    work = shapes.workload
    deep = sum(one.at_depth_bound for one in best)
    head = f"{'MMLU (80%)':>12}{'refit (80%)':>13}{'u':>5}{'layers x hidden x MLP':>22}{'weights':>8}"
    head += f"{'tokens':>7}{'days (80%)':>17}{'MFU':>6}{'longest':>8}"
    lines = [
        f"{count:,} shapes, {trials:,} shapes x tokens within {days:g} days on {shapes.cluster.gpus} GPUs",
        f"Rows of {show_tokens(work.context_tokens)} tokens, {work.global_batch} a step",
        f"MMLU is {words()}",
        f"refit: the same terms fitted to these {measured().models} models, good and bad data (docs/quality.md)",
        "",
        head,
        "  GPU-hours, layout and recompute",
    ]
    for one in rows:
        priced = replace(work, model=backbone(one.layers, one.hidden, one.ffn))
        cost = price(shapes.cluster, priced, one.strategy, profile=shapes.profile)
        low, high = (one.days * end / cost.step_s for end in step_band(cost).ends)
        spent = "" if dollars is None else f", {one.gpu_hours * dollars:,.0f} dollars"
        again = _refit(one)["MMLU"]
        shape = f"{one.layers} x {one.hidden} x {one.ffn}"
        lines += [
            (
                f"{_band(one.quality.mmlu, one.quality.low, one.quality.high):>12}"
                f"{_band(again.value, again.low, again.high):>13}{one.quality.instability:5.2f}{shape:>22}"
                f"{one.params / 1e9:7.1f}B{one.tokens / 1e12:6.2f}T{f'{one.days:.1f} ({low:.1f}-{high:.1f})':>17}"
                f"{cost.mfu:6.1%}{show_tokens(one.longest_tokens):>8}"
            ),
            f"  {one.gpu_hours:,.0f} GPU-hours{spent}; {one.strategy.describe()}; {_recompute(one)}",
        ]
    lines += [
        "",
        f"{len(rows)} of the {len(best)} that no other beats in quality, days and longest row"
        + ("" if len(rows) == len(best) else " (--json has all)"),
        f"Depth is bounded at hidden / layers >= {DEEPEST}, and {deep} of {len(best)} lie at that bound: in the law",
        "depth counts by far the most, and only its discount u for unstable training holds it back",
        "Days are priced without failures; longest row: on all GPUs, everything recomputed, without levers of memory",
    ]
    return lines
