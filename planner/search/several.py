"""One search for each tensor degree, pipeline and set of policies, with one incumbent: its floor cuts most of them.

    floor of every space -> the least first -> search until the floors left are above the best value

A space that was not searched counts with its floor into the bound, also where the deadline left it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct, field

from cost_models.errors import InputError
from cost_models.timing.cluster_costs import ClusterCosts
from planner.search.best_first import NEAR, Search, SearchResult
from planner.search.branch import Branches
from planner.search.objective import Objective
from planner.search.policy_prices import EQUAL
from planner.search.space import Key, Space


class SeveralResults(Struct, frozen=True, kw_only=True, eq=False):
    """Searches that found something, the best first, and what is known of all others."""

    found: list[tuple[Space, SearchResult]]
    bound: float  # of the spaces that were not searched; infinite if none is left
    considered: int
    stopped: bool
    branches: dict[Key, Branches] = field(default_factory=dict)  # of each space, as far as it was split
    floors: dict[Key, float] = field(default_factory=dict)  # of each space with levers that is known

    @property
    def priced(self) -> int:
        return sum(result.considered - result.pruned for _, result in self.found)


def search_several(
    spaces: Sequence[Space],
    objective: Objective,
    costs: ClusterCosts,
    deadline: float | None,
    runners: int,
    near: bool,
    within: Mapping[Key, Sequence[tuple[int, int, int]]] | None = None,
) -> SeveralResults:
    """Search the spaces, with the `runners` of the first and what is `near` the best; InputError: none has a layout.
    `within`: these ranges of each space alone."""
    searches, nothing = [], []
    for space in spaces:
        if within is not None and not within.get(space.key):
            continue
        try:
            search = Search(space, objective, costs, deadline, only=None if within is None else within[space.key])
            searches.append((search.floor, search))
        except InputError as error:
            nothing.append(error)
    if nothing and not searches:
        raise nothing[0]
    searches.sort(key=lambda pair: pair[0])
    found: list[tuple[Space, SearchResult]] = []
    incumbent, bound, stopped = np.inf, np.inf, False
    for floor, search in searches:
        late = bool(found) and search.out_of_time()
        worth = floor <= incumbent * (NEAR if near else 1 + EQUAL)
        if late or (len(searches) > 1 and not worth):
            bound, stopped = min(bound, floor), stopped or late
            continue
        search.incumbent = incumbent
        result = search.run(runners=runners if not found else 0, near=near)
        bound, stopped = min(bound, result.open_bound), stopped or result.stopped
        found += [(search.space, result)] if np.isfinite(result.incumbent) else []
        incumbent = min(incumbent, result.incumbent)
    found.sort(key=lambda pair: pair[1].incumbent)
    considered = sum(search.layouts for _, search in searches)
    return SeveralResults(
        found=found, bound=float(bound), considered=considered, stopped=stopped,
        branches={search.space.key: search.branches or search.start for _, search in searches},
    )  # fmt: skip
