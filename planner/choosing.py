"""Which of the layouts that the model cannot tell apart becomes the plan: what loses least over what is uncertain.

    tied      the best price, and every layout whose order against it is not sure by the certificate (`bands.odds`)
    regret    of a layout: the most, over the scenarios, that it takes above the best of the tied ones there
    chosen    regret within ALIKE of the least; of these memory within ROOM of the least; of these the fewest bytes
              between nodes; of these the best price

The optimum by price stays what the search proved; this is a further step, and what it gives away is in the plan's gap.
A simulation joins as a factor: what a layout takes in the simulator above its price, it takes in every scenario.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from cost_models.bands import odds
from cost_models.framework import OURS, Framework
from cost_models.number import Number
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.workload import Workload
from planner.search.objective import Objective, paid_ranks
from planner.search.uncertainty import AS_MODELLED, Floats, Scenario, scenarios, seconds_in
from planner.solve import Choice, Solution

SURE = 0.8
"""Odds from which on one layout is told from another: those of the bands on the screen."""
ALIKE = 0.01
"""Regrets closer than this are alike: of layouts priced less than 1% apart about as many were measured in either order
(`pairs.apart` of the certificate)."""
ROOM = 2**30
"""Bytes per GPU by which two layouts may differ and need the same memory."""


class Ties(Struct, frozen=True, kw_only=True, eq=False):
    """Layouts to choose among, the best price first, and what each takes in each scenario."""

    tied: tuple[Choice, ...]
    scenarios: tuple[Scenario, ...]
    values: Floats  # of the objective, (tied, scenarios)
    between_bytes: tuple[float, ...]  # that a rank sends to other nodes in a step

    @property
    def regrets(self) -> Floats:
        """Shape (tied, scenarios)."""
        regrets: Floats = self.values / self.values.min(axis=0) - 1
        return regrets

    def worst(self, index: int) -> tuple[float, str]:
        """(regret, the scenario where it is that large) of one layout."""
        regrets = self.regrets[index]
        return float(regrets.max()), self.scenarios[int(regrets.argmax())].words

    def pick(self) -> int:
        """The one to take."""
        worst = self.regrets.max(axis=1)
        alike = np.flatnonzero(worst <= worst.min() + ALIKE).tolist()
        memory = {i: self.tied[i].cost.memory_bytes for i in alike}
        roomy = [i for i in alike if memory[i] <= min(memory.values()) + ROOM]
        return int(min(roomy, key=lambda i: (float(f"{self.between_bytes[i]:.9e}"), i)))


def ties(costs: ClusterCosts, solution: Solution) -> Ties:
    """What a solution with its near layouts leaves open; its best layout alone where the model is sure."""
    best, *others = solution.candidates
    tied = [best, *(one for one in others if _odds(best, one, solution.objective) < SURE)]
    if len(tied) == 1:
        return only(best)
    return weighed(solution.workload, costs, tied, solution.objective, framework=solution.target.code)


def _odds(best: Choice, other: Choice, objective: Objective) -> float:
    """Probability that `best` is the better one."""
    paid = paid_ranks(objective, other.strategy.ranks) / paid_ranks(objective, best.strategy.ranks)
    return odds(best.cost, other.cost, paid)


def only(best: Choice) -> Ties:
    """No choice."""
    return Ties(tied=(best,), scenarios=(AS_MODELLED,), values=np.ones((1, 1)), between_bytes=(0.0,))


def weighed(
    workload: Workload,
    costs: ClusterCosts,
    choices: Sequence[Choice],
    objective: Objective,
    played_s: Sequence[float] | None = None,
    framework: Framework = OURS,
) -> Ties:
    """Layouts priced in every scenario; `played_s`: what each takes in the simulator."""
    runs, basis = costs.runs(choices[0].strategy.ranks, choices[0].placement), choices[0].cost.basis
    assert basis is not None
    several = scenarios(basis.board, costs.links(runs))
    layouts = [(one.strategy, one.placement) for one in choices]
    seconds = seconds_in(workload, costs, layouts, several, framework)
    factor = np.array([paid_ranks(objective, one.strategy.ranks) for one in choices])
    if played_s is not None:
        factor = factor * np.array(played_s) / [one.cost.step_s for one in choices]
    return Ties(
        tied=tuple(choices),
        scenarios=several,
        values=seconds * factor[:, None],
        between_bytes=tuple(between_nodes(costs, one) for one in choices),
    )


def between_nodes(costs: ClusterCosts, one: Choice) -> float:
    """Bytes that a rank sends to other nodes in a step, as a mean over the ranks of a group.

    Of an all-to-all the share of a group's members that are elsewhere; of a ring, a gather or a reduction (rings, too)
    the hops that leave a node.
    """
    paths = costs.paths(one.strategy, one.placement)
    total: Number = 0.0
    for name, sent in one.cost.sent_bytes.items():
        axis, _, op = name.partition(" ")
        path = next((path for other, path in paths.axes.items() if other == axis), None)
        if path is None or not path.hops_out:
            continue
        share = (path.ranks - path.local) / (path.ranks - 1) if op == "all_to_all" else path.hops_out / path.ranks
        total = total + sent * share
    return float(total)
