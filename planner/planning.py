"""From a cluster and a workload to a plan: solve, choose among ties, simulate, and say why.

    solve (prune, integer program, price)  ->  ties  ->  least regret  ->  simulate it  ->  the plan

Of several targets (`--for any`) each is solved, and the one with the best price goes on.

    chosen_by  model      the best price: no other layout is tied with it, or the model is trusted
               regret     of the tied layouts the one that loses least (`choosing.py`)
               simulator  another one, because in the simulator these take longer than priced

Of unlike GPUs the plan is a layout with unequal shares of the row (`shares.py`), where that is priced below all others.

One simulation is enough where no other layout is priced below it by more than `ALIKE`: a price seldom exceeds its
simulation. Else such layouts are simulated, too, and the choice is made again with what the simulator adds to each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, structs

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.profile import Profile
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.timing.cluster_costs import ClusterCosts, cluster_costs
from cost_models.workload import Workload
from planner.choosing import ALIKE, Ties, only, ties, weighed
from planner.clusters.kinds import by_kind
from planner.plan_file import Alternative, ChosenBy, Plan, Regret, Simulated
from planner.search.objective import Objective, paid_ranks, value_of
from planner.search.reasons import reason, tied_reason
from planner.search.searched import searched
from planner.serving import serving
from planner.shares import with_any_shares, with_shares
from planner.simulator.result import Simulation
from planner.simulator.simulation import simulate
from planner.solve import Choice, Solution, solve
from planner.targets.target import MMSP, Target

SIMULATED = 3
"""At most so many layouts are simulated."""
Play = Callable[[Choice], Simulation]


def plan(
    cluster: Cluster,
    workload: Workload,
    *,
    fixed: Mapping[str, object] | None = None,
    objective: Objective = "time",
    room: Room = DEFAULT_ROOM,
    trust_model: bool = False,
    profile: Profile | None = None,
    time_limit_s: float | None = None,
    targets: Sequence[Target] = (MMSP,),
    on_step: Callable[[str], None] = lambda what: None,
) -> Plan:
    """The plan, with a proven bound; NothingFits (an InputError) says what would fit instead.

    `targets`: the programs that may run it; the plan is for the one with the best price. `room`: what counts as
    fitting. `trust_model`: the best price, whatever is tied with it. The time limit is that of all: from it on
    nothing begins but the simulation of the best layout so far; `reproducible` is then false.
    """
    clock = _Limit(time_limit_s)
    asked, cluster = cluster, by_kind(cluster)
    doubted = objective != "memory" and not trust_model

    def solved(target: Target) -> Solution:
        whose = [] if target == MMSP else [f"for {target.name}"]
        on_step("; ".join([" ".join(["searching layouts", *whose]), *cluster.notes[len(asked.notes) :]]))
        return solve(
            cluster, workload, fixed=fixed, objective=objective, profile=profile, room=room, near=doubted,
            time_limit_s=None if time_limit_s is None else time_limit_s / len(targets), target=target,
        )  # fmt: skip

    running = [target for target in targets if target.runs(workload)]
    solution, values, bound = _of_targets(running or targets, solved)
    late = clock.is_over()

    def play(choice: Choice) -> Simulation:
        on_step(f"simulating {choice.strategy.describe()}")
        layout = (cluster, solution.workload, choice.strategy, choice.placement)
        return simulate(*layout, profile=profile, framework=solution.target.code)

    costs = cluster_costs(cluster, profile)
    unequal = None if late else with_shares(solution, objective, profile, room)
    if unequal:
        chosen = _Chosen(choice=unequal, by="model", ties=only(unequal), played=[(unequal, play(unequal))])
    else:
        chosen = _chosen(costs, solution, objective, play, doubted=doubted and not late, late=clock.is_over)
    choice, value = chosen.choice, value_of(objective, chosen.choice.cost)
    any_shares = None if unequal is None or clock.is_over() else with_any_shares(solution, costs, value)
    bound = _bound(bound, any_shares, several=len(values) > 1)

    def alone(other: Workload) -> Solution:
        on_step("searching layouts for prefill alone")
        return solve(cluster, other, fixed=fixed, objective="time", profile=profile, room=room, keep=1,
                     target=solution.target, time_limit_s=clock.left_s())  # fmt: skip

    return Plan(
        cluster=cluster,
        target=solution.target,
        targets=values,
        workload=solution.workload,
        strategy=choice.strategy,
        placement=choice.placement,
        cost=choice.cost,
        simulated=summary(chosen.simulation),
        serving=serving(cluster, solution, choice, room, profile, alone),
        objective=objective,
        chosen_by=chosen.by,
        regret=chosen.regret,
        alternatives=tuple(_alternatives(solution, chosen, objective, room)),
        searched=searched(
            solution.spaces, (solution.best[0] if unequal else choice).strategy, fixed or {}, any_shares is not None
        ),
        bound=bound,
        gap=1 - bound / value if unequal else max(0.0, 1 - bound / value),
        reproducible=solution.reproducible and not clock.is_over(),
        profile_digest=profile.digest if profile else None,
        trust_model=trust_model,
        room=room,
        fixed={name: "none" if value is None else str(value) for name, value in (fixed or {}).items()},
    )


def _bound(equal: float, any_shares: float | None, *, several: bool) -> float:
    """Of all targets, one of which has unequal shares; the others' bounds are in that of equal ones."""
    if any_shares is None:
        return equal
    return min(any_shares, equal) if several else any_shares


class _Limit:
    """Seconds from now on, or no limit: no clock is read then."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds

    def left_s(self) -> float | None:
        return None if self.end is None else max(0.0, self.end - time.monotonic())

    def is_over(self) -> bool:
        return self.left_s() == 0


def _of_targets(
    targets: Sequence[Target], solved: Callable[[Target], Solution]
) -> tuple[Solution, dict[str, float | None], float]:
    """(the best solution, the best value of each target if there are several, the bound of all)."""
    if len(targets) == 1:
        only_one = solved(targets[0])
        return only_one, {}, only_one.bound
    found: dict[str, Solution | InputError] = {}
    for target in targets:
        try:
            found[target.name] = solved(target)
        except InputError as error:  # does not fit, or has no such layout
            found[target.name] = error
    solutions = [one for one in found.values() if isinstance(one, Solution)]
    if not solutions:
        raise next(one for one in found.values() if isinstance(one, InputError))
    best = min(solutions, key=lambda one: value_of(one.objective, one.best[0].cost))
    values = {
        name: value_of(one.objective, one.best[0].cost) if isinstance(one, Solution) else None
        for name, one in found.items()
    }
    whole = all(one.reproducible for one in solutions)
    best = structs.replace(best, reproducible=whole)
    return best, values, min(one.bound for one in solutions)


class _Chosen(Struct, frozen=True, kw_only=True):
    """The layout of the plan, what was tied, and what was simulated."""

    choice: Choice
    by: ChosenBy
    ties: Ties
    played: Sequence[tuple[Choice, Simulation]]

    @property
    def simulation(self) -> Simulation:
        return next(played for choice, played in self.played if choice is self.choice)

    @property
    def regret(self) -> Regret | None:
        """`None`: nothing was tied, or the simulator chose a layout that was not."""
        place = [one is self.choice for one in self.ties.tied]
        if len(place) == 1 or not any(place):
            return None
        most, scenario = self.ties.worst(place.index(True))
        return Regret(most=most, scenario=scenario, tied=len(place))


def _chosen(
    costs: ClusterCosts,
    solution: Solution,
    objective: Objective,
    play: Play,
    *,
    doubted: bool,
    late: Callable[[], bool],
) -> _Chosen:
    """`doubted`: ties count, and a second layout may be simulated where it is not `late`."""
    open_ = ties(costs, solution) if doubted else only(solution.best[0])
    first = open_.tied[open_.pick()]
    by: ChosenBy = "regret" if len(open_.tied) > 1 else "model"
    played = [(first, play(first))]
    limit = value_of(objective, first.cost) * played[0][1].step_s / first.cost.step_s / (1 + ALIKE)
    rivals = [one for one in solution.candidates if one is not first and value_of(objective, one.cost) < limit]
    if not doubted or not rivals or late():
        return _Chosen(choice=first, by=by, ties=open_, played=played)
    for one in rivals[: SIMULATED - 1]:
        if not late():
            played.append((one, play(one)))
    played.sort(key=lambda one: value_of(objective, one[0].cost))
    again = weighed(
        solution.workload, costs, [one for one, _ in played], objective, [found.step_s for _, found in played],
        solution.target.code,
    )  # fmt: skip
    last = again.tied[again.pick()]
    return _Chosen(choice=last, by=by if last is first else "simulator", ties=open_, played=played)


def _alternatives(solution: Solution, chosen: _Chosen, objective: Objective, room: Room) -> list[Alternative]:
    """The tied layouts, then the best of other degrees, then what people would try by hand."""
    mine = chosen.choice
    own = paid_ranks(objective, mine.strategy.ranks) * chosen.simulation.step_s
    found = []

    def add(one: Choice, regret: float | None) -> None:
        step_s = next((found.step_s for choice, found in chosen.played if choice is one), None)
        played = None if step_s is None else (step_s * paid_ranks(objective, one.strategy.ranks), own)
        if regret is not None:
            why = tied_reason(one.cost, mine.cost, objective, regret, played)
        else:
            why = reason(one.cost, mine.cost, objective, played, room)
        found.append(
            Alternative(
                strategy=one.strategy,
                step_s=one.cost.step_s,
                memory_bytes=one.cost.memory_bytes,
                simulated_s=step_s,
                regret=regret,
                reason=why,
            )
        )

    tied = chosen.ties.tied
    for place, one in enumerate(tied):
        if one is not mine:
            add(one, chosen.ties.worst(place)[0])
    for one in (*solution.best, *solution.lost):
        if one is not mine and not any(one is other for other in tied):
            add(one, None)
    return found


def summary(simulation: Simulation) -> Simulated:
    """What a plan keeps of a simulation."""
    links = tuple((link.name, round(link.utilisation, 6)) for link in simulation.busiest_links[:5])
    return Simulated(
        step_s=simulation.step_s,
        seconds=dict(simulation.seconds),
        busiest_links=links,
        averaged=simulation.averaged,
    )
