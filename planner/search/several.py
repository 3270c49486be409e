"""One search for each tensor degree, pipeline and set of policies, with one incumbent: its floor cuts most of them.

    floor of every space -> the least first -> search until the floors left are above the best value

A space that was not searched counts with its floor into the bound, also where the deadline left it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from cost_models.errors import InputError
from cost_models.timing.cluster_costs import ClusterCosts
from planner.search.best_first import NEAR, Search, SearchResult
from planner.search.objective import Objective
from planner.search.policy_prices import EQUAL
from planner.search.space import Space


class SeveralResults(Struct, frozen=True, kw_only=True, eq=False):
    """Searches that found something, the best first, and what is known of all others."""

    found: list[tuple[Space, SearchResult]]
    bound: float  # of the spaces that were not searched; infinite if none is left
    considered: int
    stopped: bool

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
) -> SeveralResults:
    """Search the spaces, with the `runners` of the first and what is `near` the best; InputError: none has a layout."""
    searches, nothing = [], []
    for space in spaces:
        try:
            search = Search(space, objective, costs, deadline)
            searches.append((search.floor, search))
        except InputError as error:
            nothing.append(error)
    if not searches:
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
    return SeveralResults(found=found, bound=float(bound), considered=considered, stopped=stopped)
