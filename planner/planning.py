"""From a cluster and a workload to a plan: solve, simulate the best few, choose, and say why.

    solve (prune, integer program, price)  ->  best few layouts  ->  simulate each  ->  the plan

The closed form ranks; the simulator decides between the best few when time is what counts. Where it reverses the
order, the plan says `chosen_by: simulator` and keeps both numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from cost_models.hardware.cluster import Cluster
from cost_models.profile import Profile
from cost_models.workload import Workload
from planner.kinds import by_kind
from planner.plan_file import Alternative, Plan, Simulated
from planner.search.objective import Objective, value_of
from planner.search.reasons import reason
from planner.simulator.simulation import Simulation, simulate
from planner.solve import Choice, roomier, solve, weights_may_be_sharded

SIMULATED = 3
"""How many of the best priced layouts are simulated."""
CLOSE = 1.25
"""A layout priced above this multiple of the best is not simulated; closed form and events seldom differ so much."""


def plan(
    cluster: Cluster,
    workload: Workload,
    *,
    fixed: Mapping[str, object] | None = None,
    objective: Objective = "time",
    profile: Profile | None = None,
    time_limit_s: float | None = None,
    on_step: Callable[[str], None] = lambda what: None,
) -> Plan:
    """The best plan found, with a proven bound; NothingFits (an InputError) says what would fit instead.

    At the time limit the search stops and the best layout so far is simulated alone; `reproducible` is then false.
    """
    began_s = time.monotonic()
    cluster, merged = by_kind(cluster)
    on_step(f"searching layouts{'; ' + merged if merged else ''}")
    solution = solve(
        cluster, workload, fixed=fixed or {}, objective=objective, profile=profile, time_limit_s=time_limit_s
    )
    best = solution.best
    if weights_may_be_sharded(fixed or {}, objective):
        best = tuple(roomier(cluster, workload, choice, profile) for choice in best)
    most = best[0].cost.step_s * CLOSE
    late = time_limit_s is not None and time.monotonic() - began_s > time_limit_s
    near = [i for i, choice in enumerate(best[:SIMULATED]) if i == 0 or choice.cost.step_s < most]
    simulated: dict[int, Simulation] = {}
    for i in near[:1] if late or objective == "memory" else near:
        on_step(f"simulating {best[i].strategy.describe()}")
        simulated[i] = simulate(cluster, workload, best[i].strategy, best[i].placement, profile=profile)
    paid = [choice.strategy.ranks if objective == "gpu-hours" else 1 for choice in best]
    values = {i: simulation.step_s * paid[i] for i, simulation in simulated.items()}
    winner = min(values, key=lambda i: (values[i], i))
    chosen = best[winner]
    alternatives = []
    for i, choice in enumerate(best):
        if choice is not chosen:
            pair = (values[i], values[winner]) if i in values else None
            why = reason(choice.cost, chosen.cost, objective, pair)
            alternatives.append(_alternative(choice, simulated.get(i), why))
    alternatives += [_alternative(lost, None, reason(lost.cost, chosen.cost, objective)) for lost in solution.lost]
    return Plan(
        cluster=cluster,
        workload=workload,
        strategy=chosen.strategy,
        placement=chosen.placement,
        cost=chosen.cost,
        simulated=summary(simulated[winner]),
        objective=objective,
        chosen_by="model" if winner == 0 else "simulator",
        alternatives=tuple(alternatives),
        bound=solution.bound,
        gap=max(0.0, 1 - solution.bound / value_of(objective, chosen.cost)),
        reproducible=solution.reproducible and not late,
        profile_digest=profile.digest if profile else None,
        fixed={name: "none" if value is None else str(value) for name, value in (fixed or {}).items()},
    )


def summary(simulation: Simulation) -> Simulated:
    """What a plan keeps of a simulation."""
    links = tuple((link.name, round(link.utilisation, 6)) for link in simulation.busiest_links[:5])
    return Simulated(step_s=simulation.step_s, seconds=dict(simulation.seconds), busiest_links=links)


def _alternative(choice: Choice, simulation: Simulation | None, why: str) -> Alternative:
    return Alternative(
        strategy=choice.strategy,
        step_s=choice.cost.step_s,
        memory_bytes=choice.cost.memory_bytes,
        simulated_s=simulation.step_s if simulation else None,
        reason=why,
    )
