"""The choice among priced columns as one mixed-integer program (PuLP, solved by HiGHS).

    minimise    sum over columns c of  weight_c (other_c x_c + sum over choices p of layer_cp n_cp)
    subject to  sum x_c = 1                              x binary: one layout on one placement
                sum_p of kind k  n_cp = layers_k x_c     n integer: layers of kind k that recompute by choice p
                base_cs x_c + sum_p kept_csp n_cp <= capacity_c x_c      s: the first and the last pipeline stage
                host_c x_c + sum_p host_cp n_cp <= host limit_c x_c      what waits in host memory

A column stands there once for each level of its transients: with the level in its base, and without the choices whose
transient is above it. So layers in fractions are as good a bound as there is of a level, and levels that it puts above
the best value known are left out. Seconds and GiB. `memory` as objective: the left side of the memory rows first, then
seconds at that memory. Gap 0, one thread, fixed seed: the same columns give the same answer. Left out: what the columns
leave out.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pulp
from msgspec import Struct, structs
from numpy.typing import NDArray

from planner.search.policy_prices import PolicyPrices

GIB = 2.0**30
ROUNDING_BYTES = 6.0
"""`price` rounds each of 11 memory parts to bytes: their sum may be this much above the exact one."""
HAIR = 1e-9
"""Relative slack of the second stage of the memory objective."""
NEVER = 2.0**80
"""Bytes of a layer by a choice that a level does not have."""
AT_MOST = 1e-9
"""Relative slack of a value that is computed twice."""


class Answer(Struct, frozen=True, kw_only=True):
    """The program's optimum: a column, and how many layers have each choice."""

    column: int
    layers: tuple[int, ...]  # by choice of the columns
    value: float  # weighted seconds, or bytes
    bound: float  # no feasible answer among the columns is below it
    optimal: bool  # proven; false at the time limit


class _Levels(NamedTuple):
    """Columns with a level of transients each: none of their choices' is above it."""

    of: NDArray[np.int64]  # the column
    columns: PolicyPrices  # with the level in the base, and no transients beside it
    allowed: NDArray[np.bool_]  # (levels, choices)

    @classmethod
    def every(cls, columns: PolicyPrices) -> _Levels:
        several = [_levels(again) for again in columns.again_bytes]
        of = np.repeat(np.arange(len(several)), [len(one) for one in several])
        level, each = np.concatenate(several), columns.take(of)
        allowed = np.all(each.again_bytes <= level[..., None], axis=1)
        base, none = each.base_bytes + level, np.zeros_like(each.again_bytes)
        return cls(of, structs.replace(each, base_bytes=base, again_bytes=none), allowed)

    def take(self, where: Any) -> _Levels:
        return _Levels(self.of[where], self.columns.take(where), self.allowed[where])

    def least_s(self, capacity_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds that no layers of a level are below: in fractions, by its choices."""
        kept = np.where(self.allowed[:, None], self.columns.kept_bytes, NEVER)
        least: NDArray[np.float64] = structs.replace(self.columns, kept_bytes=kept).relaxed_s(capacity_bytes[self.of])
        return least


def _levels(again: NDArray[np.float64]) -> NDArray[np.float64]:
    """The most transients, by stage, that some set of choices has; `again` is (stages, choices)."""
    found = set()
    for level in itertools.product(*(np.unique(stage).tolist() for stage in again)):
        within = (again <= np.array(level)[:, None]).all(axis=0)
        if within.any():
            found.add(tuple(again[:, within].max(axis=1).tolist()))
    return np.array(sorted(found))


class _Model:
    """The program and its variables."""

    def __init__(self, levels: _Levels, capacity_bytes: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        columns = levels.columns
        self.levels, self.columns, self.count = levels, columns, len(columns.other_s)
        self.problem = pulp.LpProblem("layout", pulp.LpMinimize)
        most = [many for those, many in columns.choices_of for _ in those]
        self.x = [pulp.LpVariable(f"x_{c}", cat=pulp.LpBinary) for c in range(self.count)]
        self.n = [
            {p: pulp.LpVariable(f"n_{c}_{p}", 0, most[p], cat=pulp.LpInteger) for p in np.flatnonzero(allowed).tolist()}
            for c, allowed in enumerate(levels.allowed)
        ]
        self.seconds: list[tuple[Any, float]] = []
        self.gib: list[tuple[Any, float]] = []
        self.problem += pulp.lpSum(self.x) == 1, "one_column"
        for c, of in enumerate(levels.of):
            self._column(c, float(capacity_bytes[of]))
            self.seconds.append((self.x[c], float(columns.other_s[c] * weight[of])))
            self.seconds += [(n, float(columns.layer_s[c, p] * weight[of])) for p, n in self.n[c].items()]

    def _column(self, c: int, capacity_bytes: float) -> None:
        columns, problem, x, n = self.columns, self.problem, self.x[c], self.n[c]
        for k, (those, many) in enumerate(columns.choices_of):
            problem += pulp.lpSum(n[p] for p in those if p in n) == many * x, f"layers_{c}_{k}"
        base, kept = columns.base_bytes[c] / GIB, columns.kept_bytes[c] / GIB
        stages = [[(x, float(base[s])), *((n[p], float(kept[s, p])) for p in n)] for s in range(len(base))]
        room = (capacity_bytes - ROUNDING_BYTES) / GIB
        for s, terms in enumerate(stages):
            problem += pulp.LpAffineExpression([(x, terms[0][1] - room), *terms[1:]]) <= 0, f"memory_{c}_{s}"
        if columns.uses_host and np.isfinite(columns.host_limit[c]):
            left = float(columns.host_base[c] - columns.host_limit[c]) / GIB
            held = [(n[p], float(columns.host_kept[c, p]) / GIB) for p in n]
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
        """(the column, its layers by choice)."""
        c = max(range(self.count), key=lambda c: self.x[c].value() or 0.0)
        layers = np.zeros(len(self.columns.choices), dtype=np.int64)
        for p, many in self.n[c].items():
            layers[p] = round(many.value() or 0.0)
        return int(self.levels.of[c]), layers


def choose(
    columns: PolicyPrices,
    capacity_bytes: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    memory_first: bool = False,
    time_limit_s: float = 10.0,
    at_most: float = np.inf,
) -> Answer | None:
    """The best column with its layers by choice; `None` means that no column fits, or that the time ran out.
    `at_most`: weighted seconds that some answer has."""
    levels = _Levels.every(columns)
    least = levels.least_s(capacity_bytes) * weight[levels.of]
    open_ = np.isfinite(least) & (memory_first | (least <= at_most * (1 + AT_MOST)))
    if not open_.any():
        return None
    model, scale = _Model(levels.take(open_), capacity_bytes, weight), max(1e-30, float(least.min()))
    seconds = [(variable, value / scale) for variable, value in model.seconds]
    solved = model.minimise(model.gib if memory_first else seconds, time_limit_s)
    if solved is None:
        return None
    bound, proven = solved
    column, layers = model.chosen()
    if memory_first and _holds(columns, capacity_bytes, column, layers):
        used = float(columns.take(np.array([column])).bytes_of(layers[None])[0])
        model.problem += pulp.LpAffineExpression(model.gib) <= used / GIB * (1 + HAIR), "least_memory"
        second = model.minimise(seconds, time_limit_s)
        proven = proven and second is not None and second[1]
        again = model.chosen()
        if second is not None and _holds(columns, capacity_bytes, *again):
            column, layers = again
    if not _holds(columns, capacity_bytes, column, layers):
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


def _holds(columns: PolicyPrices, capacity_bytes: NDArray[np.float64], column: int, layers: NDArray[np.int64]) -> bool:
    """Whether an answer obeys its rows exactly; what a time limit leaves in the variables may not."""
    one = columns.take(np.array([column]))
    used = float(one.bytes_of(layers[None])[0])
    counted = all(layers[those.start : those.stop].sum() == many for those, many in columns.choices_of)
    return counted and used <= capacity_bytes[column] and bool(one.fits_host(layers[None])[0])
