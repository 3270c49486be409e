"""What a person reads: plans and prices as plain lines that fit a terminal and can be pasted in a chat.

Every total stands above the parts that it is the sum of; what no measurement backs is listed as an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from cost_models import strict
from cost_models.bands import Band, memory_band, step_band
from cost_models.certificate import Certificate
from cost_models.cost import PARTS, StepCost
from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import Wiring
from cost_models.number import distinct
from cost_models.room import DEFAULT_ROOM, Room, sureness
from cost_models.strategy import Strategy, rank_groups
from cost_models.units import show_bytes, show_rate, show_seconds
from cost_models.workload import Workload
from planner.choosing import ALIKE, ROOM
from planner.lines import title, wrapped
from planner.search.levers import FIELDS, WORTH, choices
from planner.search.objective import show_value, value_of
from planner.searched import held_words, varied_words

if TYPE_CHECKING:
    from planner.plan_file import Alternative, Plan, Regret, Simulated


SHOWN = 6
"""Alternatives on the screen; --explain and plan.json have all."""


MOST_HOSTS_SHOWN = 100
"""Characters of a list of hosts."""


def show(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def plan_lines(plan: Plan, explain: bool = False) -> list[str]:
    """The answer of `plan`."""
    from planner.targets.report import elsewhere_lines, kernel_lines, target_lines

    lines = [
        plan.workload.describe(),
        cluster_line(plan.cluster),
        "",
        title("Plan      ") + f"{plan.strategy.describe()}",
        *target_lines(plan),
        f"          {placement_line(plan.cluster, plan.strategy, plan.placement)}",
        *hosts_lines(plan.cluster, plan.placement),
        f"          {layers_line(plan.strategy, plan.workload.model.layers)}",
        *([f"          {states_line(plan.strategy)}"] if plan.workload.model.ssd is not None else []),
        *cost_lines(plan.cost, plan.simulated, room=plan.room),
        *dummy_lines(plan.cost, plan.workload),
        *_serving(plan),
        "",
        *_alternatives(plan, everything=explain),
        *_bound(plan),
        *elsewhere_lines(plan),
        *kernel_lines(plan),
        *_estimates(plan.cost, brief=not explain),
    ]
    return lines + (explanation(plan.cost, plan.simulated) if explain else [])


def cluster_line(cluster: Cluster) -> str:
    """
    >>> cluster_line(Cluster.load("dgx-h100", nodes=2))
    'dgx-h100: 2 nodes × 8 h100-sxm-80gb, switch 450 GB/s, 8 NICs of 50 GB/s; 16 GPUs'
    >>> from dataclasses import replace
    >>> node = Cluster.load("dgx-h100", nodes=9).node(0)
    >>> broken = Cluster.load("dgx-h100", nodes=9).override({slot: replace(node, gpus=5) for slot in (1, 4, 7)})
    >>> [words[:14] for words in cluster_line(broken).split(": ")[1].split(" + ")]
    ['6 nodes × 8 h1', '3 nodes × 5 h1']
    """
    counts: dict[str, int] = {}
    for run in cluster.runs:
        node = run.node
        missing = f" ({len(node.missing_nics)} missing)" if node.missing_nics else ""
        kind = (
            f"{node.gpus} {node.device.name}, {node.scale_up.kind} {show_rate(node.scale_up.bytes_per_s)}, "
            f"{node.nics.count} NIC{'s' if node.nics.count != 1 else ''} of {show_rate(node.nics.bytes_per_s)}{missing}"
        )
        counts[kind] = counts.get(kind, 0) + run.count
    kinds = [f"{count} node{'s' if count > 1 else ''} × {kind}" for kind, count in counts.items()]
    more = f" + {len(kinds) - 4} more kinds of node" if len(kinds) > 4 else ""
    return f"{cluster.name}: {' + '.join(kinds[:4])}{more}; {cluster.gpus} GPUs"


def hosts_lines(cluster: Cluster, placement: Placement) -> list[str]:
    """Which hosts the ranks are on, where the cluster names its hosts."""
    if not cluster.hosts:
        return []
    from cost_models.hardware.readers.hostlist import compress

    used = compress([cluster.hosts[slot] for slot in distinct(placement.slot_of_rank).tolist()])
    return [f"          on {used if len(used) <= MOST_HOSTS_SHOWN else used[:MOST_HOSTS_SHOWN] + '…'}"]


def placement_line(cluster: Cluster, strategy: Strategy, placement: Placement) -> str:
    """How each axis lies: inside a scale-up domain, or across how many."""
    domain = Wiring(cluster).seats(placement.slot_of_rank, placement.gpu_of_rank).domain
    place = "node" if cluster.nodes_per_domain == 1 else "NVLink domain"
    words = []
    for axis in ("tensor", "ulysses", "ring", "data", "pipeline"):
        if getattr(strategy, axis) == 1:
            continue
        spans = np.sort(domain[rank_groups(strategy, axis)], axis=1)
        most = int((1 + (np.diff(spans, axis=1) != 0).sum(axis=1)).max())
        words.append(f"{axis} inside one {place}" if most == 1 else f"{axis} across {most} {place}s")
    used, free = len(distinct(placement.slot_of_rank)), cluster.gpus - strategy.ranks
    tail = f"{strategy.ranks} GPUs on {used} node{'s' if used > 1 else ''}"
    return "; ".join([*words, tail + (f", {free} left free" if free else "")])


def states_line(strategy: Strategy) -> str:
    """How state-space layers are split."""
    way = {"gather": "gathered", "chain": "passed rank to rank", "tree": "passed by a tree"}[strategy.ssd_pass]
    return {
        "states": f"state-space layers: each rank scans its own tokens, states are {way} over the context group",
        "mixed": f"state-space layers: heads dealt out over ulysses, states {way} over the ring",
        "heads": "state-space layers: heads dealt out over the context group",
    }[strategy.ssd]


def layers_line(strategy: Strategy, layers: int) -> str:
    parts = []
    for part in strategy.layer_ranges(layers):
        offload = " + offload" if part.offload != "none" else ""
        parts.append(f"{part.count} × {part.recompute.replace('_', '-')}{offload}")
    plain = parts == [f"{layers} × none"]
    return "no recompute" if plain else f"recompute by layer: {', '.join(parts)}"


def framework_lines(framework: Framework, strategy: Strategy) -> list[str]:
    """Whose code runs the step, where it is not this project's; what its ZeRO-1 is."""
    lines = [] if framework == OURS else [f"as {framework.title} runs it"]
    if strategy.zero == 1 and framework.zero_1_as_2:
        lines.append(f"zero=1 runs as zero=2: {framework.reasons['zero_1_as_2']}")
    return lines


def cost_lines(
    cost: StepCost,
    simulated: Simulated | None,
    longest: int | None = None,
    room: Room = DEFAULT_ROOM,
    known: Certificate | None = None,
) -> list[str]:
    """Time and memory, each with its parts; the longest row that fits, where it was asked for."""
    played = f", simulated {show_seconds(simulated.step_s, 4)}" if simulated else ""
    rate = f"{cost.tokens_per_s_per_gpu:,.0f} tokens/s/GPU"
    mfu = f"MFU {cost.mfu:.1%} (6 × weights + causal attention, no recompute, over the dense peak)"
    seconds = {
        PARTS[name].words: value for name, value in cost.seconds.items() if value > 0 or name in ("compute", "ring")
    }
    memory = {name: value for name, value in cost.memory.items() if value > 0}
    most = [] if longest is None else [title("Longest   ") + f"{longest:,} tokens in a row fit in memory"]
    step, used = show_seconds(cost.step_s), show_bytes(cost.memory_bytes)
    if cost.basis is not None:
        step, used = (
            banded(step_band(cost, known=known), show_seconds),
            banded(memory_band(cost, known=known), show_bytes),
        )
    return [
        title("Step      ") + f"{step} priced{played} · {rate} · {mfu}",
        *wrapped([f"{name} {show_seconds(value)}" for name, value in seconds.items()]),
        *averaged_lines(simulated is not None and simulated.averaged),
        title("Memory    ") + f"{used} of {show_bytes(cost.capacity_bytes)} per GPU; {fit_words(cost, room)}",
        *wrapped([f"{name} {show_bytes(value)}" for name, value in memory.items()]),
        *_host_lines(cost),
        *most,
    ]


def averaged_lines(averaged: bool) -> list[str]:
    """That a simulation is of classes of ranks which are alike only nearly, where it is."""
    return ["          simulated by averages: ranks that are nearly alike are played as one"] if averaged else []


def fit_words(cost: StepCost, room: Room) -> str:
    """How sure it is that a step fits, and what it leaves free if memory is as priced."""
    free = cost.capacity_bytes - cost.memory_bytes
    if free < 0:
        return f"DOES NOT FIT: {show_bytes(-free)} too many"
    asked = "" if room.holds(cost) else f", LESS THAN the {room.words} asked for"
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
    return ["          vision: no frames, so each rank runs an empty one; all ranks join a sharded tower's gathers"]


def _alternatives(plan: Plan, everything: bool) -> list[str]:
    shown = plan.alternatives if everything else _few(plan)
    if not shown:
        return ["No other layout was in reach."]
    rows = [("Runners-up", "priced", "simulated", "memory", "why it lost")]
    for other in shown:
        simulated = show_seconds(other.simulated_s, 4) if other.simulated_s is not None else "-"
        name = other.strategy.describe()
        rows.append((name, show_seconds(other.step_s, 4), simulated, show_bytes(other.memory_bytes), other.reason))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
    return [title(lines[0]), *lines[1:]]


def _few(plan: Plan) -> list[Alternative]:
    """The best price if it is not the plan's, then one of each other degrees."""
    best = modelled(plan)

    def kind(one: Strategy) -> tuple[int, ...]:
        return one.data, one.ulysses, one.tensor, one.pipeline

    kinds = {kind(plan.strategy)}
    shown = [] if best is None else [best]
    for other in plan.alternatives:
        if kind(other.strategy) not in kinds:
            kinds.add(kind(other.strategy))
            shown += [] if other is best else [other]
    return shown[:SHOWN]


def modelled(plan: Plan) -> Alternative | None:
    """The tied layout that is better if all is as modelled; `None` if the plan's is the best."""
    tied = [other for other in plan.alternatives if other.regret is not None]
    best = min(tied, key=lambda other: _value(plan, other), default=None)
    return None if best is None or _value(plan, best) >= value_of(plan.objective, plan.cost) else best


def _value(plan: Plan, other: Alternative) -> float:
    return other.step_s * (other.strategy.ranks / 3600 if plan.objective == "gpu-hours" else 1)


def choice_words(plan: Plan) -> list[str]:
    """Why this layout, as clauses of one sentence."""
    regret, best = plan.regret, modelled(plan)
    by = "regret" if plan.chosen_by == "regret" else f"the {plan.chosen_by}"
    if regret is None:
        return [f"Chosen by {by}"]
    said = [f"Chosen by {by}: of {regret.tied} tied layouts this one {_loses(regret)}"]
    surer = [other for other in plan.alternatives if other.regret is not None and other.regret < regret.most]
    if surer and plan.chosen_by == "regret":
        saved = min(other.memory_bytes for other in surer) - plan.cost.memory_bytes
        decides = f"{show_bytes(saved)} less memory decides" if saved > ROOM else "fewer bytes between nodes decide"
        said.append(f"losses within {ALIKE:.0%} are alike: {decides}")
    if best is not None:
        share = value_of(plan.objective, plan.cost) / _value(plan, best) - 1
        more = "fewer GPU-hours" if plan.objective == "gpu-hours" else "faster"
        said.append(f"{best.strategy.describe()} is {share:.1%} {more} if all is as modelled")
    return said


def _loses(regret: Regret) -> str:
    if not regret.most:
        return "is the best whatever is slower or faster"
    return f"loses at most {regret.most:.1%}, with {regret.scenario}"


def _sentence(clauses: list[str]) -> list[str]:
    """On one line, or a clause a line."""
    line = f"{'; '.join(clauses)}."
    return [line] if len(line) <= 120 else [*(f"{clause};" for clause in clauses[:-1]), f"{clauses[-1]}."]


def bound_words(plan: Plan) -> str:
    """How far from the optimum the plan can be, and of which space."""
    least = show_value(plan.objective, plan.bound, digits=4)
    stopped = "" if plan.reproducible else "; stopped at the time limit: not reproducible"
    others = [name for name in plan.targets if name != plan.target.name]
    space = f"this space, nor of those of {', '.join(others)}," if others else "this space"
    words, value = f"is priced below {least} on any placement", value_of(plan.objective, plan.cost)
    if plan.strategy.token_shares and value < plan.bound:
        below = f"{1 - value / plan.bound:.1%} below that"
        return f"No layout of {space} {words} with equal shares of a row; this one is {below}{stopped}:"
    return f"No layout of {space} {words} (gap {plan.gap:.2%}){stopped}:"


def _bound(plan: Plan) -> list[str]:
    varied = wrapped(varied_words(plan.searched), joined="; ")
    held = wrapped(held_words(plan.searched, plan.fixed or {}), joined=", ")
    return [
        *_sentence(choice_words(plan)),
        bound_words(plan),
        title("Searched  ") + varied[0].lstrip(),
        *varied[1:],
        title("Held      ") + held[0].lstrip(),
        *held[1:],
        *(
            title("Untried   ") + line if not place else f"          {line}"
            for place, line in enumerate(_untried(plan))
        ),
    ]


def _untried(plan: Plan) -> list[str]:
    """The levers of memory that the bound does not speak of, and why none was tried; nothing where some were."""
    names = [name for name in choices(plan.target.levers, plan.fixed or {}) if name != "recompute"]
    if plan.workload.mode != "train" or not names or set(FIELDS) & set(plan.searched.varied):
        return []
    named = ", ".join("inputs on the host" if name == "inputs" else name for name in names)
    if plan.objective == "memory":
        return [
            f"{named}: levers of memory; with them, by --fix, there may be",
            "layouts that need less than this bound",
        ]
    spent = plan.cost.seconds.get("recompute", 0.0) / plan.cost.step_s
    return [
        f"{named}: levers of memory,",
        f"tried where nothing fits or recompute costs over {WORTH:.0%} of the step (here {spent:.1%}); --fix holds one",
    ]


def _serving(plan: Plan) -> list[str]:
    lines = serving_lines(plan)
    return [title("Serving   ") + lines[0].lstrip(), *lines[1:]] if lines else []


def serving_lines(plan: Plan) -> list[str]:
    """What a decode or prefill plan means to those who ask."""
    one = plan.serving
    if one is None:
        return []
    first = "does not fit" if one.first_token_s is None else show_seconds(one.first_token_s, 3)
    token = "does not fit" if one.token_s is None else show_seconds(one.token_s, 3)
    words = [f"first token after {first}", f"then {token} each"]
    if one.longest_tokens:
        words.append(f"rows of at most {one.longest_tokens:,} tokens")
    if one.most_rows and one.most_token_s:
        rate = f"{one.most_tokens_per_s:,.0f} tokens/s, {show_seconds(one.most_token_s, 3)} each"
        words.append(f"{one.most_rows:,} of this length at once: {rate}")
    lines = wrapped(words, joined="; ")
    if one.apart is not None:
        handed = f"{show_bytes(one.apart.cache_bytes)} of cache to hand over"
        apart = f"{one.apart.strategy.describe()}, first token after {show_seconds(one.apart.first_token_s, 3)}"
        lines.append(f"          prefill apart, on as many GPUs: {apart}, {handed}")
    return lines


def _estimates(cost: StepCost, brief: bool) -> list[str]:
    if not cost.estimates:
        return []
    if brief:
        essences = "; ".join(text.split(": ")[0] for text in cost.estimates)
        return [f"Estimates, not measured: {essences} (--explain)"]
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
        f"  model                    {cost.model_flops:.4g}   MFU = model / (step x {cost.ranks} x {peak:.4g} FLOP/s)",
        f"  executed                 {cost.executed_flops:.4g}   {reached:.1%} of peak",
    ]
    if simulated is not None:
        lines += [title("Simulated, along the slowest rank")]
        lines += [f"  {n.ljust(24)} {show_seconds(v)}" for n, v in simulated.seconds.items() if v > 0]
        lines += [title("Busiest links")]
        lines += [f"  {name.ljust(24)} busy {share:.1%} of the step" for name, share in simulated.busiest_links]
    return lines


def cost_dict(cost: StepCost, room: Room, known: Certificate | None = None) -> Mapping[str, Any]:
    derived = {"step_s": cost.step_s, "memory_bytes": cost.memory_bytes, "fits": room.holds(cost), "mfu": cost.mfu}
    derived["fits_at"] = sureness(cost.memory_bytes, cost.capacity_bytes)
    bands = {
        "step_band_s": strict.plain(step_band(cost, known=known)),
        "memory_band_bytes": strict.plain(memory_band(cost, known=known)),
    }
    return {**derived, **bands, "tokens_per_s_per_gpu": cost.tokens_per_s_per_gpu, **strict.plain(cost)}


def banded(band: Band, show: Callable[[float], str]) -> str:
    """What is expected, and how far off it may be.

    >>> banded(Band(low=24.6, middle=26.2, high=28.9, level=0.8), show_seconds)
    '26.2 s (24.6–28.9, 80%)'
    """
    middle, low, high = (show(value) for value in (band.middle, band.low, band.high))
    unit = middle[middle.index(" ") :]
    if low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{middle} ({low}–{high}, {band.level:.0%})"
