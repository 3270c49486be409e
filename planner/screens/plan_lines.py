"""A plan as lines that fit a terminal and can be pasted in a chat: layout, price, runners-up, bound, serving.

How a layout and a price read is in `layout_lines.py` and `price_lines.py`; here is what only a plan has: why its layout
was chosen, which others lost and why, and how far from the optimum it can be.
"""

from __future__ import annotations

from cost_models.strategy import Strategy
from cost_models.units import show_bytes, show_seconds
from planner.choosing import ALIKE, ROOM
from planner.plan_file import Alternative, Plan, Regret
from planner.screens.layout_lines import cluster_line, hosts_lines, layers_line, placement_line, states_line
from planner.screens.lines import title, wrapped
from planner.screens.price_lines import cost_lines, dummy_lines, estimate_lines, explanation
from planner.screens.target_lines import elsewhere_lines, kernel_lines, target_lines
from planner.search.levers import FIELDS, WORTH, choices
from planner.search.objective import show_value, value_of
from planner.search.reasons import beside, loses
from planner.search.searched import HELD_FIRST, held_words, varied_words, why_equal

SHOWN = 6
"""Alternatives on the screen; --explain and plan.json have all."""


def plan_lines(plan: Plan, explain: bool = False) -> list[str]:
    """The answer of `plan`."""
    lines = [
        plan.workload.describe(),
        cluster_line(plan.cluster),
        "",
        title("Plan      ") + f"{plan.strategy.describe()}",
        *target_lines(plan),
        f"          {placement_line(plan.cluster, plan.strategy, plan.placement)}",
        *hosts_lines(plan.cluster, plan.placement),
        *(
            [f"          {layers_line(plan.strategy, plan.workload.model.layers)}"]
            if plan.workload.mode == "train"
            else []
        ),
        *([f"          {states_line(plan.strategy)}"] if plan.workload.model.ssd is not None else []),
        *cost_lines(plan.cost, plan.simulated, room=plan.room),
        *dummy_lines(plan.cost, plan.workload),
        *_serving(plan),
        "",
        *_alternatives(plan, everything=explain),
        *_bound(plan, explain),
        *elsewhere_lines(plan),
        *kernel_lines(plan),
        *estimate_lines(plan.cost, brief=not explain),
    ]
    return lines + (explanation(plan.cost, plan.simulated) if explain else [])


def _alternatives(plan: Plan, everything: bool) -> list[str]:
    shown = plan.alternatives if everything else _few(plan)
    if not shown:
        alike = "All others that were priced have these degrees, and differ in sharding or recompute (--explain)."
        none = "No other layout was priced: all have bounds above this one, or there are none."
        return [alike if plan.alternatives else none if plan.reproducible else "No other layout was priced in time."]
    rows: list[tuple[str, ...]] = [("Runners-up", "priced", "simulated", "memory", "why it lost")]
    for other in shown:
        simulated = show_seconds(other.simulated_s, 4) if other.simulated_s is not None else "-"
        name = _name(plan, other, everything)
        rows.append((name, show_seconds(other.step_s, 4), simulated, show_bytes(other.memory_bytes), other.reason))
    if all(other.simulated_s is None for other in shown):
        rows = [(name, priced, *row) for name, priced, _, *row in rows]
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
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


def _name(plan: Plan, other: Alternative, explain: bool = False) -> str:
    """A runner-up; where it is called as the plan is, that its layers differ, or how."""
    name = other.strategy.describe()
    if name != plan.strategy.describe():
        return name
    if explain:
        return f"{name}, {layers_line(other.strategy, plan.workload.model.layers)}"
    return "this layout with other recompute"


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
    if plan.chosen_by == "simulator":
        there = sorted(other.simulated_s for other in plan.alternatives if other.simulated_s is not None)
        others = " and ".join(show_seconds(seconds, 4) for seconds in there)
        mine = show_seconds(plan.simulated.step_s, 4)
        return [
            f"Chosen by the simulator among {regret.tied} tied layouts: {mine} in it, others that it played {others}"
        ]
    tied = [other for other in plan.alternatives if other.regret is not None]
    surer = [other for other in tied if (other.regret or 0.0) < regret.most]
    if surer and plan.chosen_by == "regret":
        said.append(f"losses within {ALIKE:.0%} are alike: {_decides(plan, tied, surer)}")
    if best is not None:
        faster = beside(_value(plan, best), value_of(plan.objective, plan.cost), plan.objective)
        said.append(f"{_name(plan, best)} is {faster} if all is as modelled")
    return said


def _decides(plan: Plan, tied: list[Alternative], surer: list[Alternative]) -> str:
    """What speaks for the plan against those of less regret: memory, or of those within ROOM of the least the bytes."""
    least_regret = min(other.regret or 0.0 for other in surer)
    alike = [other for other in tied if (other.regret or 0.0) <= least_regret + ALIKE]
    least = min([plan.cost.memory_bytes, *(other.memory_bytes for other in alike)])
    if any(other.memory_bytes <= least + ROOM for other in surer):
        return "fewer bytes between nodes decide"
    saved = min(other.memory_bytes for other in surer) - plan.cost.memory_bytes
    return f"{show_bytes(saved)} less memory decides" if saved >= 0 else "memory decides"


def _loses(regret: Regret) -> str:
    if not regret.most:
        return "is the best whatever is slower or faster"
    return f"{loses(regret.most)}, with {regret.scenario}"


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
    if plan.equal_shares_bound:
        below = f"{1 - value / plan.bound:.1%} below that"
        return f"No layout of {space} {words} with equal shares of a row; this one is {below}{stopped}:"
    return f"No layout of {space} {words} (gap {plan.gap:.2%}){stopped}:"


def _bound(plan: Plan, explain: bool) -> list[str]:
    varied = wrapped(varied_words(plan.searched), joined="; ")
    held = held_words(plan.searched, plan.fixed or {})
    if not explain:
        shown = len({*(plan.fixed or {}), *HELD_FIRST} & {*plan.searched.held})
        held = [*held[:shown], f"{len(held) - shown} more at their defaults (--explain)"]
    held = wrapped(held, joined=", ")
    return [
        *_sentence(choice_words(plan)),
        bound_words(plan),
        title("Searched  ") + varied[0].lstrip(),
        *varied[1:],
        title("Held      ") + held[0].lstrip(),
        *held[1:],
        *(
            title("Untried   ") + line if not place else f"          {line}"
            for place, line in enumerate([*_untried(plan, explain), *_equal_shares(plan)])
        ),
    ]


def _equal_shares(plan: Plan) -> list[str]:
    """Why unlike GPUs have equal shares of a row, where no others were tried."""
    kind = (plan.fixed or {}).get("ring_kind", "zigzag")
    why = why_equal(plan.workload, plan.objective, plan.target, kind)
    return [f"unequal shares of a row for unlike GPUs: {why}"] if why and "token_shares" in plan.searched.held else []


def _untried(plan: Plan, explain: bool) -> list[str]:
    """The levers of memory that the bound does not speak of, and why none was tried; nothing where some were."""
    names = [name for name in choices(plan.target.levers, plan.fixed or {}) if name != "recompute"]
    if plan.workload.mode != "train" or not names or set(FIELDS) & set(plan.searched.varied):
        return []
    names = ["inputs on the host" if name == "inputs" else name for name in names]
    lines = [line.strip() for line in wrapped(names, joined=", ")] if explain else []
    levers = f"{len(names)} levers of memory (docs/memory.md)"
    if plan.objective == "memory":
        return [f"{levers}: --fix holds one, and may need less than this bound", *lines]
    spent = plan.cost.seconds.get("recompute", 0.0) / plan.cost.step_s
    late = "" if plan.reproducible else ", in time"
    why = f"tried where recompute costs over {WORTH:.0%} of the step, here {spent:.1%}{late}"
    return [f"{levers}: {why}", *lines]


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
