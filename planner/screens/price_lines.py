"""A price as lines: time and memory, each total above the parts that it is the sum of, with the band of its errors.

What no measurement backs is listed as an estimate; `explanation` is what the totals rest on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cost_models import strict
from cost_models.bands import LEVEL, OFFLOADED, Band, domain_of, memory_band, quantile, step_band
from cost_models.certificate import Certificate, certificate
from cost_models.cost import PARTS, StepCost
from cost_models.framework import OURS, Framework
from cost_models.room import DEFAULT_ROOM, Room, sureness
from cost_models.strategy import Strategy
from cost_models.units import show_bytes, show_seconds
from cost_models.workload import Workload
from planner.plan_file import Simulated
from planner.screens.lines import title, wrapped


def cost_lines(
    cost: StepCost,
    simulated: Simulated | None,
    longest: int | None = None,
    room: Room = DEFAULT_ROOM,
    known: Certificate | None = None,
) -> list[str]:
    """Time and memory, each with its parts; the longest row that fits, where it was asked for."""
    played = f", simulated {show_seconds(simulated.step_s, 4)}" if simulated else ""
    rate = f"{paid_words(cost)} · {cost.tokens_per_s_per_gpu:,.0f} tokens/s/GPU · MFU {cost.mfu:.1%}"
    shown = {"compute", *(name for name, value in cost.hidden_s.items() if value > 0)}
    seconds = {PARTS[name].words: value for name, value in cost.seconds.items() if value > 0 or name in shown}
    memory = {name: value for name, value in cost.memory.items() if value > 0}
    most = [] if longest is None else [title("Longest   ") + f"{longest:,} tokens in a row fit in memory"]
    step, used = show_seconds(cost.step_s, 4), show_bytes(cost.memory_bytes)
    if cost.basis is not None:
        step, used = (
            band_words(step_band(cost, known=known), show_seconds, step),
            band_words(memory_band(cost, known=known), show_bytes),
        )
    return [
        title("Step      ") + f"{step} priced{played} · {rate}",
        *wrapped([f"{name} {show_seconds(value)}" for name, value in seconds.items()]),
        *averaged_lines(simulated is not None and simulated.averaged),
        *(f"          {one}" for one in _doubts(cost, simulated, known or certificate())),
        title("Memory    ") + f"{used} of {show_bytes(cost.capacity_bytes)} per GPU; {fit_words(cost, room)}",
        *wrapped([f"{name} {show_bytes(value)}" for name, value in memory.items()]),
        *_host_lines(cost),
        *most,
    ]


def paid_words(cost: StepCost) -> str:
    """What a step costs who pays by the hour and GPU."""
    return f"{cost.gpu_hours:.4g} GPU-hours" if cost.gpu_hours >= 0.01 else f"{cost.gpu_hours * 3600:.3g} GPU-seconds"


def averaged_lines(averaged: bool) -> list[str]:
    """That a simulation is of classes of ranks which are alike only nearly, where it is."""
    return ["          simulated by averages: ranks that are nearly alike are played as one"] if averaged else []


def _doubts(cost: StepCost, simulated: Simulated | None, known: Certificate) -> Iterator[str]:
    """Why the band lies to one side of the price or is wide, and why the simulation lies outside it."""
    if cost.basis is None:
        return
    band, name = step_band(cost, known=known), domain_of(cost.basis)
    where = known.domain(name)
    if name == OFFLOADED and cost.basis.shares["update"]:
        errors = known.domain("offload")
        low, high = (math.exp(quantile(errors.quantiles, one)) for one in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        took = "measured ones took" if errors.rows else "no measured one judges it; the band holds"
        yield f"the CPU's update is an estimate: {took} {low:.1f} to {high:.1f} times its price"
    elif band.middle in band.ends:
        more, few = ("longer", "less") if band.low == band.middle else ("less", "longer")
        yield f"few published steps of this kind took {few} than priced, in the median {abs(where.bias):.0%} {more}"
    if simulated is not None and not band.low <= simulated.step_s <= band.high:
        parts = {part: simulated.seconds.get(part, 0.0) for part in {**cost.seconds, **simulated.seconds}}
        most = max(parts, key=lambda part: abs(parts[part] - cost.seconds.get(part, 0.0)))
        priced = show_seconds(cost.seconds.get(most, 0.0))
        yield f"simulated outside the band: {PARTS[most].words} {priced} priced, {show_seconds(parts[most])} simulated"
        yield "a collective is priced by the curve measured for its ranks, and simulated by what else its links carry"


def fit_words(cost: StepCost, room: Room) -> str:
    """How sure it is that a step fits its GPUs, and what it leaves free if memory is as priced."""
    free = cost.capacity_bytes - cost.memory_bytes
    if free < 0:
        return f"DOES NOT FIT: {show_bytes(-free)} too many"
    within = cost.memory_bytes <= room.limit_bytes(cost.capacity_bytes)
    asked = "" if within else f", LESS THAN the {room.words} asked for"
    return f"fits at {sureness(cost.memory_bytes, cost.capacity_bytes):.0%}: {show_bytes(free)} free as priced{asked}"


def _host_lines(cost: StepCost) -> list[str]:
    """What offloading puts on a node's host, where it puts something there."""
    if not cost.host_bytes:
        return []
    has = f"{show_bytes(cost.host_capacity_bytes)} per node" if cost.host_capacity_bytes else "an unknown size"
    return [title("Host      ") + f"{show_bytes(cost.host_bytes)} of {has}{'' if cost.fits_host else '  DOES NOT FIT'}"]


def dummy_lines(cost: StepCost, workload: Workload) -> list[str]:
    """Why a row without frames takes time and memory for vision."""
    if workload.frames or not cost.seconds.get("vision"):
        return []
    return ["          vision: no frames, so each rank runs an empty one, as a sharded tower needs"]


def framework_lines(framework: Framework, strategy: Strategy) -> list[str]:
    """Whose code runs the step, where it is not this project's; what its ZeRO-1 is."""
    lines = [] if framework == OURS else [f"as {framework.title} runs it"]
    if strategy.zero == 1 and framework.zero_1_as_2:
        lines.append(f"zero=1 runs as zero=2: {framework.reasons['zero_1_as_2']}")
    return lines


def estimate_lines(cost: StepCost, brief: bool) -> list[str]:
    """What of the price no measurement backs; `brief`: in a word each."""
    if not cost.estimates:
        return []
    if brief:
        essences = [re.sub(r" \(.*?\)", "", text.split(": ")[0]).replace("_", " ") for text in cost.estimates]
        lines = wrapped([*essences[:-1], f"{essences[-1]} (--explain)"], joined="; ")
        return [title("Estimates ") + lines[0].lstrip(), *lines[1:]]
    return ["Estimates, not measured:", *(f"  - {text}" for text in cost.estimates)]


def explanation(cost: StepCost, simulated: Simulated | None = None) -> list[str]:
    """Hidden communication, bytes, FLOP, links: what the totals rest on."""
    gib = {name: f"{show_bytes(value)}" for name, value in cost.sent_bytes.items()}
    lines = [title("Sent by a rank in one step"), *(f"  {name.ljust(24)} {value}" for name, value in gib.items())]
    lines += [title("Hidden behind compute")]
    lines += [f"  {name.ljust(24)} {show_seconds(value)}" for name, value in cost.hidden_s.items() if value > 0]
    peak, reached = cost.peak_flops / cost.ranks, cost.executed_flops / cost.peak_flops / cost.step_s
    lines += [
        title("FLOP of a step"),
        f"  model                    {cost.model_flops:.4g}   6 × weights + causal attention, without recompute",
        f"  MFU                      {cost.mfu:.1%}   model / (step × {cost.ranks} × dense peak of {peak:.4g} FLOP/s)",
        f"  executed                 {cost.executed_flops:.4g}   {reached:.1%} of peak",
    ]
    if simulated is not None:
        lines += [title("Simulated, along the slowest rank")]
        lines += [f"  {n.ljust(24)} {show_seconds(v)}" for n, v in simulated.seconds.items() if v > 0]
        lines += [title("Busiest links")]
        lines += [f"  {name.ljust(24)} busy {share:.1%} of the step" for name, share in simulated.busiest_links]
    return lines


def cost_dict(cost: StepCost, room: Room, known: Certificate | None = None) -> Mapping[str, Any]:
    """The same as plain data, with what follows from it; seconds and bytes."""
    derived = {"step_s": cost.step_s, "memory_bytes": cost.memory_bytes, "fits": room.holds(cost), "mfu": cost.mfu}
    derived["fits_at"] = sureness(cost.memory_bytes, cost.capacity_bytes)
    bands = {
        "step_band_s": strict.plain(step_band(cost, known=known)),
        "memory_band_bytes": strict.plain(memory_band(cost, known=known)),
    }
    return {**derived, **bands, "tokens_per_s_per_gpu": cost.tokens_per_s_per_gpu, **strict.plain(cost)}


def band_words(band: Band, show: Callable[[float], str], middle: str = "") -> str:
    """What is expected, also in words of its own, and how far off it may be.

    >>> band_words(Band(low=24.6, middle=26.2, high=28.9, level=0.8), show_seconds)
    '26.2 s (24.6–28.9, 80%)'
    """
    low, high = (show(value) for value in band.ends)
    middle = middle or show(band.middle)
    unit = middle[middle.index(" ") :]
    if low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{middle} ({low}–{high}, {band.level:.0%})"
