"""The choice among priced columns as one mixed-integer program (PuLP, solved by HiGHS).

    minimise    sum over columns c of  weight_c (other_c x_c + sum over choices p of layer_cp n_cp)
    subject to  sum x_c = 1                              x binary: one layout on one placement
                sum_p of kind k  n_cp = layers_k x_c     n integer: layers of kind k that recompute by choice p
                n_cp <= layers_k u_cp,  t_cs >= again_csp u_cp      u binary: the choice is in use
                base_cs x_c + sum_p kept_csp n_cp + t_cs <= capacity_c x_c      s: the first and the last pipeline stage
                host_c x_c + sum_p host_cp n_cp <= host limit_c x_c             what waits in host memory

Seconds and GiB. `memory` as objective: the left side of the last rows first, then seconds at that memory. Gap 0, one
thread, fixed seed: the same columns give the same answer. Left out: what the columns leave out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pulp
from msgspec import Struct
from numpy.typing import NDArray

from planner.search.policy_prices import PolicyPrices

GIB = 2.0**30
ROUNDING_BYTES = 6.0
"""`price` rounds each of 11 memory parts to bytes: their sum may be this much above the exact one."""
HAIR = 1e-9
"""Relative slack of the second stage of the memory objective."""


class Answer(Struct, frozen=True, kw_only=True):
    """The program's optimum: a column, and how many layers have each choice."""

    column: int
    layers: tuple[int, ...]  # by choice of the columns
    value: float  # weighted seconds, or bytes
    bound: float  # no feasible answer among the columns is below it
    optimal: bool  # proven; false at the time limit


class _Model:
    """The program and its variables."""

    def __init__(self, columns: PolicyPrices, capacity_bytes: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        self.columns, self.count, self.capacity_bytes = columns, len(columns.other_s), capacity_bytes
        self.problem = pulp.LpProblem("layout", pulp.LpMinimize)
        choices = range(len(columns.choices))
        self.most = [many for those, many in columns.choices_of for _ in those]
        self.x = [pulp.LpVariable(f"x_{c}", cat=pulp.LpBinary) for c in range(self.count)]
        self.n = [
            [pulp.LpVariable(f"n_{c}_{p}", 0, self.most[p], cat=pulp.LpInteger) for p in choices]
            for c in range(self.count)
        ]
        self.seconds: list[tuple[Any, float]] = []
        self.gib: list[tuple[Any, float]] = []
        self.problem += pulp.lpSum(self.x) == 1, "one_column"
        for c in range(self.count):
            self._column(c, float(capacity_bytes[c]))
            terms = [(self.x[c], float(columns.other_s[c] * weight[c]))]
            terms += [(self.n[c][p], float(columns.layer_s[c, p] * weight[c])) for p in choices]
            self.seconds += terms

    def _column(self, c: int, capacity_bytes: float) -> None:
        columns, problem, x, n = self.columns, self.problem, self.x[c], self.n[c]
        choices = range(len(columns.choices))
        for k, (those, many) in enumerate(columns.choices_of):
            problem += pulp.lpSum(n[p] for p in those) == many * x, f"layers_{c}_{k}"
        base, kept, again = (array[c] / GIB for array in (columns.base_bytes, columns.kept_bytes, columns.again_bytes))
        stages = [[(x, float(base[s])), *((n[p], float(kept[s, p])) for p in choices)] for s in range(len(base))]
        transients = {s: pulp.LpVariable(f"t_{c}_{s}", 0) for s in range(len(base)) if again[s].max() > 0}
        for p in (p for p in choices if again[:, p].max() > 0):
            used = pulp.LpVariable(f"u_{c}_{p}", cat=pulp.LpBinary)
            problem += n[p] <= self.most[p] * used, f"used_{c}_{p}"
            for s in (s for s in transients if again[s, p] > 0):
                problem += transients[s] >= float(again[s, p]) * used, f"transient_{c}_{s}_{p}"
        room = (capacity_bytes - ROUNDING_BYTES) / GIB
        for s, terms in enumerate(stages):
            terms += [(transients[s], 1.0)] if s in transients else []
            problem += pulp.LpAffineExpression([(x, terms[0][1] - room), *terms[1:]]) <= 0, f"memory_{c}_{s}"
        if columns.uses_host and np.isfinite(columns.host_limit[c]):
            left = float(columns.host_base[c] - columns.host_limit[c]) / GIB
            held = [(n[p], float(columns.host_kept[c, p]) / GIB) for p in choices]
            problem += pulp.LpAffineExpression([(x, left), *held]) <= 0, f"host_{c}"
        if len(stages) == 1:
            self.gib += stages[0]
            return
        fullest = pulp.LpVariable(f"g_{c}", 0)
        for s, terms in enumerate(stages):
            problem += pulp.LpAffineExpression([*terms, (fullest, -1.0)]) <= 0, f"fullest_{c}_{s}"
        self.gib.append((fullest, 1.0))

    def minimise(self, objective: list[tuple[Any, float]], time_limit_s: float) -> tuple[float, bool] | None:
        """(bound, proven); `None` means that nothing is feasible."""
        self.problem.setObjective(pulp.LpAffineExpression(objective))
        solver = pulp.HiGHS(
            msg=False,
            threads=1,
            gapRel=0.0,
            timeLimit=time_limit_s,
            random_seed=0,
            mip_abs_gap=0.0,
            mip_feasibility_tolerance=1e-9,
            primal_feasibility_tolerance=1e-9,
        )
        self.problem.solve(solver)
        if self.problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return None
        info = self.problem.solverModel.getInfo()
        proven = self.problem.sol_status == pulp.LpSolutionOptimal
        return float(info.mip_dual_bound), proven

    def chosen(self) -> tuple[int, NDArray[np.int64]]:
        column = max(range(self.count), key=lambda c: self.x[c].value() or 0.0)
        return column, np.array([round(layers.value() or 0.0) for layers in self.n[column]], dtype=np.int64)

    def holds(self, column: int, layers: NDArray[np.int64]) -> bool:
        """Whether the answer obeys its rows exactly; what a time limit leaves in the variables may not."""
        one = self.columns.take(np.array([column]))
        used = float(one.bytes_of(layers[None])[0])
        counted = all(layers[those.start : those.stop].sum() == many for those, many in self.columns.choices_of)
        return counted and used <= self.capacity_bytes[column] and bool(one.fits_host(layers[None])[0])


def choose(
    columns: PolicyPrices,
    capacity_bytes: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    memory_first: bool = False,
    time_limit_s: float = 10.0,
) -> Answer | None:
    """The best column with its layers by choice; `None` means that no column fits, or that the time ran out."""
    model = _Model(columns, capacity_bytes, weight)
    least = sum(many * columns.layer_s[:, those.start : those.stop].min(axis=1) for those, many in columns.choices_of)
    scale = max(1e-30, float(np.min((columns.other_s + least) * weight)))
    seconds = [(variable, value / scale) for variable, value in model.seconds]
    solved = model.minimise(model.gib if memory_first else seconds, time_limit_s)
    if solved is None:
        return None
    bound, proven = solved
    column, layers = model.chosen()
    if memory_first and model.holds(column, layers):
        least = float(columns.take(np.array([column])).bytes_of(layers[None])[0])
        model.problem += pulp.LpAffineExpression(model.gib) <= least / GIB * (1 + HAIR), "least_memory"
        second = model.minimise(seconds, time_limit_s)
        proven = proven and second is not None and second[1]
        again = model.chosen()
        if second is not None and model.holds(*again):
            column, layers = again
    if not model.holds(column, layers):
        if proven:
            raise AssertionError(f"the program's answer {layers} of column {column} breaks its rows")
        return None
    bound *= GIB if memory_first else scale
    one = columns.take(np.array([column]))
    used = float(one.bytes_of(layers[None])[0])
    value = used if memory_first else float(one.seconds_of(layers[None])[0] * weight[column])
    return Answer(
        column=column,
        layers=tuple(int(count) for count in layers),
        value=value,
        bound=min(bound, value),
        optimal=proven,
    )
