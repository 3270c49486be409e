"""What a report says: of a plan, with its simulation, and of a what-if.

    plan_page(plan, simulation)      topology with groups, tokens, timeline, memory, alternatives
    what_if_page(sweep, …)           curves and thresholds, scenarios as a table

Clusters of more than MOST_NODES nodes show their first ones, and say so. Steps and memory stand with their 80% bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cost_models.bands import memory_band, step_band
from cost_models.profile import Profile
from cost_models.token_layout import Layout
from cost_models.units import show_bytes, show_seconds, show_tokens
from planner.files import write_whole
from planner.page import pictures
from planner.page.page import Page, Section, Table
from planner.plan_file import Plan
from planner.screens import plan_lines
from planner.screens.layout_lines import cluster_line, layers_line
from planner.screens.price_lines import band_words, fit_words
from planner.screens.target_lines import target_lines
from planner.search.searched import held_words, varied_words
from planner.simulator.result import Simulation
from planner.simulator.simulation import simulate
from planner.what_if.cliffs import Cliff
from planner.what_if.scenario import Outcome, Sweep, banded

MOST_NODES = 128
MOST_SPANS = 2000
COLOURS = ("ulysses group", "ring position", "data replica", "leaf")


def save_plan_page(path: str, plan: Plan, profile: Profile | None) -> None:
    """The plan's step is simulated once more, with its trace."""
    layout = (plan.cluster, plan.workload, plan.strategy, plan.placement)
    found = simulate(*layout, profile=profile, framework=plan.target.code, trace=True)
    write_whole(path, plan_page(plan, found).html(), "--report")


def save_what_if_page(path: str, sweep: Sweep, now: Outcome, found: Sequence[Outcome], cliffs: Sequence[Cliff]) -> None:
    """Write the page of a sweep. InputError: a file that cannot be written."""
    asked = sweep.question(sweep.now())
    lines = [asked.workload.describe(), cluster_line(asked.cluster)]
    write_whole(path, what_if_page(sweep, now, found, cliffs, lines).html(), "--report")


def plan_page(plan: Plan, simulation: Simulation | None) -> Page:
    """The page of a plan: numbers, topology, time, memory, alternatives, bound."""
    cost = plan.cost
    numbers = [
        (band_words(step_band(cost), show_seconds), "a step, priced"),
        (show_seconds(plan.simulated.step_s), "a step, simulated"),
        (
            f"{band_words(memory_band(cost), show_bytes)} of {show_bytes(cost.capacity_bytes)}",
            f"memory of the fullest GPU; {fit_words(cost, plan.room)}",
        ),
        (f"{cost.mfu:.1%}", "MFU"),
        (f"{cost.tokens_per_s_per_gpu:,.0f}", "tokens/s/GPU"),
        (f"{plan.gap:.2%}", "gap to the bound" + " of equal shares of a row" * plan.equal_shares_bound),
    ]
    sections = [
        _topology(plan, simulation),
        _tokens(plan),
        *_timeline(simulation),
        _memory(plan, simulation),
        _choices(plan),
    ]
    lines = [
        plan.workload.describe(),
        cluster_line(plan.cluster),
        plan.strategy.describe() + "; " + layers_line(plan.strategy, plan.workload.model.layers),
        *(line.strip() for line in (*target_lines(plan), *plan_lines.serving_lines(plan))),
    ]
    return Page(title=f"Plan: {plan.strategy.describe()}", lines=lines, numbers=numbers, sections=sections)


def _topology(plan: Plan, simulation: Simulation | None) -> Section:
    cluster = plan.cluster
    ranks = {place: rank for rank, place in enumerate(zip(
        plan.placement.slot_of_rank.tolist(), plan.placement.gpu_of_rank.tolist(), strict=True))}  # fmt: skip
    groups = {axis: _index(plan.groups[axis].tolist()) for axis in ("ulysses", "ring", "context")}
    slots = min(cluster.slots, MOST_NODES)
    per_row = max(1, min(slots, math.ceil(math.sqrt(slots * 2))))
    loads = simulation.trace.card_loads if simulation and simulation.trace else {}
    gpus: list[dict[str, Any]] = []
    cards: list[dict[str, Any]] = []
    most = max(run.node.gpus for run in cluster.runs) or 1
    wide = max(1, math.ceil(most / 2))
    for slot in range(slots):
        left, top = slot % per_row * (wide + 0.8), slot // per_row * 3.6
        node = cluster.node(slot)
        for gpu in range(node.gpus):
            x, y = left + gpu % wide, top + gpu // wide
            rank = ranks.get((slot, gpu))
            words = _words(rank, groups, int(cluster.leaf_of_slot[slot]))
            gpus.append({"x": x, "x2": x + 0.9, "y": y, "y2": y + 0.9, "slot": slot, "gpu": gpu, **words})
        for card in range(node.nics.count):
            ways = {way: loads.get(f"slot {slot} nic {card} {way}", 0.0) for way in ("out", "in")}
            x = left + (card + 0.5) * wide / node.nics.count
            shown = ", ".join(f"{way} {share:.1%} of the step" for way, share in ways.items())
            cards.append({"x": x, "y": top + 2.4, "card": f"slot {slot}, card {card}", "load": max(ways.values()),
                          "shown": "missing" if card in node.missing_nics else shown})  # fmt: skip
    across, down = per_row * (wide + 0.8), math.ceil(slots / per_row) * 3.6
    cut = f" The first {slots} of {cluster.slots} nodes." if slots < cluster.slots else ""
    return Section(
        heading="Where the ranks lie",
        words="Each square is a GPU in its node, each circle a network card. Pick what the colours mean; "
        "free GPUs are pale." + cut,
        pictures={"topology": pictures.topology(gpus, cards, COLOURS, across, down)},
    )


def _index(groups: Sequence[Sequence[int]]) -> dict[int, tuple[int, int]]:
    """(group, place in it) of each rank."""
    return {rank: (number, place) for number, ranks in enumerate(groups) for place, rank in enumerate(ranks)}


def _words(rank: int | None, groups: Mapping[str, Mapping[int, tuple[int, int]]], leaf: int) -> dict[str, Any]:
    if rank is None:
        return {"rank": "free", **dict.fromkeys(COLOURS, "free"), "leaf": f"leaf {leaf}"}
    return {
        "rank": rank,
        "ulysses group": f"ulysses group {groups['ulysses'][rank][0]}",
        "ring position": f"ring position {groups['ring'][rank][1]}",
        "data replica": f"replica {groups['context'][rank][0]}",
        "leaf": f"leaf {leaf}",
    }


def _tokens(plan: Plan) -> Section:
    strategy, workload = plan.strategy, plan.workload
    layout = Layout(
        tokens=workload.context_tokens, ulysses=strategy.ulysses, ring=strategy.ring, kind=strategy.ring_kind,
        shares=strategy.token_shares,
    )  # fmt: skip
    spans = layout.blocks
    pieces = [
        {"ring": ring, "start": span.start, "stop": span.stop, "text": f"{span.start:,} to {span.stop:,}"}
        for ring, several in enumerate(spans)
        for span in several
    ]
    rows = [
        (str(ring), ", ".join(f"{span.start:,} to {span.stop:,}" for span in several),
         f"{strategy.ulysses} × {layout.held[ring] // strategy.ulysses:,}")
        for ring, several in enumerate(spans)
    ]  # fmt: skip
    return Section(
        heading="Who holds which tokens",
        words=f"A row of {show_tokens(workload.context_tokens)} tokens, {strategy.ring_kind}. In a ring position the "
        f"{strategy.ulysses} ulysses ranks hold equal slices, one after the other; in attention each sees all of them.",
        pictures={"tokens": pictures.tokens(pieces, strategy.ring)},
        table=Table(head=("ring position", "tokens of the padded row", "tokens of a rank"), rows=rows),
    )


def _timeline(simulation: Simulation | None) -> list[Section]:
    if simulation is None or simulation.trace is None:
        return []
    trace = simulation.trace
    shown = next((i for i, place in enumerate(trace.places) if place.rank == simulation.slowest_rank), 0)
    spans = merged([(s.stream, s.name, s.start_s, s.end_s) for s in trace.spans if s.rank_class == shown])
    rows = [
        {"stream": stream, "what": what, "start": start, "stop": stop, "text": show_seconds(stop - start)}
        for stream, what, start, stop in spans
    ]
    return [
        Section(
            heading="One step over time",
            words=f"Rank {trace.places[shown].rank}, simulated. Equal work in a row is one bar. The wheel zooms, "
            "dragging moves along.",
            pictures={"timeline": pictures.timeline(rows)},
        )
    ]


def merged(spans: list[tuple[str, str, float, float]]) -> list[tuple[str, str, float, float]]:
    """At most about MOST_SPANS bars: neighbours of one name joined, over gaps that grow until there are few enough."""
    end = max((span[3] for span in spans), default=0.0)
    gap = 0.0
    while True:
        joined: dict[str, list[tuple[str, str, float, float]]] = {}
        for stream, what, start, stop in sorted(spans, key=lambda span: (span[0], span[2])):
            done = joined.setdefault(stream, [])
            if done and done[-1][1] == what and start - done[-1][3] <= gap:
                done[-1] = (stream, what, done[-1][2], stop)
            elif done and stop - start < gap and start - done[-1][3] <= gap:
                continue  # too short to be seen
            else:
                done.append((stream, what, start, stop))
        bars = [bar for several in joined.values() for bar in several]
        if len(bars) <= MOST_SPANS or gap > end:
            return bars
        gap = max(2 * gap, end / 10_000)


def _memory(plan: Plan, simulation: Simulation | None) -> Section:
    parts = [
        {"part": name, "gib": size / 2**30, "text": show_bytes(size)} for name, size in plan.cost.memory.items() if size
    ]
    capacity = plan.cost.capacity_bytes / 2**30
    curve = simulation.memory if simulation else ()
    levels = [{"at": at, "gib": held / 2**30, "text": show_bytes(held)} for at, held in thinned(curve)]
    over_time = {"memory-over-time": pictures.over_time(levels, capacity)} if levels else {}
    return Section(
        heading="Memory",
        words=f"{band_words(memory_band(plan.cost), show_bytes)} of {show_bytes(plan.cost.capacity_bytes)} "
        f"(the red line); {fit_words(plan.cost, plan.room)}.",
        pictures={"memory": pictures.memory(parts, capacity), **over_time},
    )


def thinned(curve: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about MOST_SPANS levels: of neighbours the highest stands, so that no peak is lost."""
    size = max(1, -(-len(curve) // MOST_SPANS))
    groups = (curve[i : i + size] for i in range(0, len(curve), size))
    return [(group[0][0], max(held for _, held in group)) for group in groups]


def _choices(plan: Plan) -> Section:
    mine = {"layout": plan.strategy.describe(), "step": plan.cost.step_s, "gib": plan.cost.memory_bytes / 2**30,
            "role": "chosen", "why": plan_lines.choice_words(plan)[0]}  # fmt: skip
    lost = [
        {
            "layout": o.strategy.describe(),
            "step": o.step_s,
            "gib": o.memory_bytes / 2**30,
            "role": "lost" if o.regret is None else "tied",
            "why": o.reason,
        }
        for o in plan.alternatives
    ]
    rows = [(plan.strategy.describe(), show_seconds(plan.cost.step_s), show_seconds(plan.simulated.step_s),
             show_bytes(plan.cost.memory_bytes), plan_lines.choice_words(plan)[0])]  # fmt: skip
    rows += [
        (o.strategy.describe(), show_seconds(o.step_s), show_seconds(o.simulated_s) if o.simulated_s else "-",
         show_bytes(o.memory_bytes), o.reason)
        for o in plan.alternatives
    ]  # fmt: skip
    return Section(
        heading="What else was possible",
        words=f"{'; '.join(plan_lines.choice_words(plan))}. {plan_lines.bound_words(plan)} "
        f"{'; '.join([*varied_words(plan.searched), *held_words(plan.searched, plan.fixed or {})])}.",
        pictures={"choices": pictures.choices([mine, *lost])},
        table=Table(head=("layout", "priced", "simulated", "memory", "why"), rows=rows),
    )


def what_if_page(
    sweep: Sweep, now: Outcome, found: Sequence[Outcome], cliffs: Sequence[Cliff], lines: Sequence[str]
) -> Page:
    """`lines`: what is asked."""
    sections = [
        Section(
            heading=f"Along {axis.name}",
            words=" · ".join(cliff.words() for cliff in cliffs if cliff.axis == axis.name),
            pictures={f"curve{index}": _curve(sweep, index, found, cliffs)},
        )
        for index, axis in enumerate(sweep.axes)
        if axis.numeric and len(axis.values) > 1
    ]
    sections.append(_scenarios(sweep, now, found))
    numbers = [(show_seconds(now.step_s or 0.0), "a step now"), (str(len(found)), "scenarios"),
               (str(sum(bool(one.problem) for one in found)), "of them do not run")]  # fmt: skip
    return Page(
        title="What happens to the plan if", lines=[*lines, f"Now: {now.plan}"], numbers=numbers, sections=sections
    )


def _curve(sweep: Sweep, index: int, found: Sequence[Outcome], cliffs: Sequence[Cliff]) -> dict[str, Any]:
    axis = sweep.axes[index]
    numbers = {value.text: value.number for value in axis.values}
    rows: list[dict[str, Any]] = []
    for one in found:
        text = one.values[index]
        rest = [f"{a.name} {v}" for i, (a, v) in enumerate(zip(sweep.axes, one.values, strict=True)) if i != index]
        common = {"at": numbers[text], "text": text, "scenario": ", ".join(rest) or "as now", "plan": one.plan}
        if one.step_s is not None:
            low, high = one.step_band_s or (one.step_s, one.step_s)
            rows.append({**common, "step": one.step_s, "low": low, "high": high, "which": "planned again"})
        if one.kept_s is not None:
            rows.append({**common, "step": one.kept_s, "which": "old plan kept"})
    others = list(dict.fromkeys(row["scenario"] for row in rows)) or ["as now"]
    marks = [{"at": cliff.high.number, "words": cliff.words()} for cliff in cliffs if cliff.axis == axis.name]
    return pictures.curves(rows, axis.name, others, marks)


def _scenarios(sweep: Sweep, now: Outcome, found: Sequence[Outcome]) -> Section:
    head = (*(axis.name for axis in sweep.axes), "step", "memory", "old plan kept", "plan")
    rows = []
    for one in (now, *found):
        kept = one.kept_problem or ("-" if one.regret is None else f"{one.regret:+.1%}")
        told = ("-", "-", "-", one.problem)
        if one.step_s and one.memory_bytes:
            step = banded(one.step_s, one.step_band_s, show_seconds)
            told = (step, banded(one.memory_bytes, one.memory_band_bytes, show_bytes), kept, one.plan)
        rows.append((*one.values, *told))
    return Section(heading="All scenarios", table=Table(head=head, rows=rows))
