"""`plan distill pack` and `plan distill keep`: options, and answers as lines or JSON."""

from __future__ import annotations

import json
from typing import Any

import click

from cost_models.errors import InputError
from cost_models.units import parse_bytes, show_bytes, show_seconds
from planner import console
from planner.question import options
from planner.question.conflicts import typed
from planner.screens.lines import show

_JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
_OF_A_STEP = ("mode", "documents", "frames", "frame_pixels", "trained", "lora_rank", "lora_targets", "lora_beside")
"""Options of a step of the whole model, which `pack` does not plan."""
ESTIMATE = "seconds of the scans of `ssd` layers are an estimate"


@click.group(cls=console.NoEmptyGroup)
def distill() -> None:
    """Plan a distillation (longvila.distill): layers onto GPUs, and which of them keep attention."""


@distill.command(cls=console.NoEmpty)
@options.shared
@click.option("--keep", metavar="0,4,…", default="", help="Layers that keep attention, and so learn nothing.")
@click.option("--orient-steps", default="1000", show_default=True, metavar="N", help="Steps of stage 1.")
@click.option("--align-steps", default="2000", show_default=True, metavar="N", help="Steps of stage 2.")
@_JSON
def pack(keep: str, orient_steps: str, align_steps: str, as_json: bool, **given: Any) -> None:
    """Deal layers out to GPUs for stages 1 and 2 (rows of --ctx tokens, --batch of them a step)."""
    from planner.distill.costs import layer_costs, room_bytes
    from planner.distill.packing import pack as packed

    context = click.get_current_context()
    for one in context.command.params:
        if one.name in _OF_A_STEP and typed(context, one.name):
            raise InputError(f"{one.opts[-1]} with distill pack would be ignored; leave it out")
    asked = options.question(given)
    kept = _layers(keep, asked.workload.model.layers)
    steps = [
        options.whole(text, flag, least=0)
        for text, flag in ((orient_steps, "--orient-steps"), (align_steps, "--align-steps"))
    ]
    if not sum(steps):
        raise InputError(
            "--orient-steps 0 with --align-steps 0 leaves nothing to deal out; give one of them at least 1"
        )
    costs = layer_costs(asked, kept, *steps)
    found = packed(costs, asked.cluster.gpus, room_bytes(asked))
    workers = [
        {"worker": worker, "layers": list(group), "seconds": seconds}
        for worker, (group, seconds) in enumerate(zip(found.groups, found.seconds, strict=True))
    ]
    if as_json:
        click.echo(json.dumps({"seconds": found.slowest_s, "bound_s": found.bound_s, "workers": workers}))
        return
    whole = sum(one.teacher_s + (one.layer_s or 0.0) for one in costs)
    learning = sum(len(group) for group in found.groups)
    gap = found.slowest_s / found.bound_s - 1
    lines = [
        f"{learning} layers on {asked.cluster.gpus} GPUs: {_hours(found.slowest_s)}, on one {_hours(whole)}",
        f"No packing is faster by more than {gap:.1g} of that; memory is counted with rows_at_a_time: 1",
    ]
    for group, seconds in zip(found.groups, found.seconds, strict=True):
        names = ",".join(map(str, group))
        lines.append(f"{_hours(seconds):>8}  python -m longvila.distill layers settings.yaml --layers {names}")
    if idle := asked.cluster.gpus - len(found.groups):
        lines.append(f"{idle} of the GPUs are left free: they would bring no earlier end")
    show([*lines, ESTIMATE])


@distill.command(cls=console.NoEmpty)
@click.argument("distances", metavar="DISTANCES.json")
@options.shared
@click.option("--attention", "count", metavar="N", help="So many layers keep attention.")
@click.option("--step-seconds", metavar="S", help="A step may take so long.")
@click.option("--memory", metavar="BYTES", help="A GPU may hold so much, such as 60GiB.")
@click.option("--spacing", metavar="N", help="Of N layers in a row, at least one keeps attention.")
@click.option("--by", "measure", default="divergence", show_default=True, metavar="divergence|distance|relative",
              help="Which of the measured distances.")  # fmt: skip
@_JSON
def keep(
    distances: str, count: str | None, step_seconds: str | None, memory: str | None, spacing: str | None,
    measure: str, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Choose the layers that keep attention, by what longvila.distill measured, under a budget."""
    from planner.distill.budget import Wanted, chosen
    from planner.distill.keep import MEASURES, even, left, read_distances

    if measure not in MEASURES:
        raise InputError(f"--by {measure!r} is unknown; legal: {', '.join(MEASURES)}")
    if count is None and step_seconds is None and memory is None:
        raise InputError("give a budget: --attention N, --step-seconds S or --memory BYTES")
    asked = options.question(given)
    layers = asked.workload.model.layers
    far = read_distances(distances, layers, measure)
    wanted = Wanted(
        count=None if count is None else options.whole(count, "--attention", least=0, most=layers),
        step_s=None if step_seconds is None else options.positive(step_seconds, "--step-seconds"),
        held_bytes=None if memory is None else parse_bytes(memory, "--memory"),
        spacing=None if spacing is None else options.whole(spacing, "--spacing", most=layers),
    )
    with console.Progress() as progress:
        kept, budget = chosen(asked, wanted, far, progress.show)
    spaced = even(layers, len(kept))
    cost, before = budget.price(kept), budget.price(range(layers))
    if as_json:
        click.echo(json.dumps({
            "keep": kept, "left": left(far, kept), "even": spaced, "left_even": left(far, spaced),
            "step_s": cost.step_s, "memory_bytes": cost.memory_bytes, "all_attention_step_s": before.step_s,
        }))  # fmt: skip
        return
    names = ", ".join(map(str, kept))
    now, then = (f"{show_seconds(one.step_s)}, {show_bytes(one.memory_bytes)}" for one in (cost, before))
    lines = [
        f"keep: [{names}]    {len(kept)} of {layers} layers",
        f"{measure} of the others: {left(far, kept):.4g} summed; evenly spaced {list(spaced)}: {left(far, spaced):.4g}",
        f"a step {now}; with attention everywhere, laid out alike, {then}; {budget.described}",
        ESTIMATE,
    ]
    show(lines)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h"


def _layers(text: str, layers: int) -> tuple[int, ...]:
    """`0,4` as layers of the model."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    kept = tuple(options.whole(name, "--keep", least=0, most=layers - 1) for name in names)
    if len(set(kept)) < len(kept):
        raise InputError(f"--keep {text!r} names a layer twice")
    return kept
