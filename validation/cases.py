"""A row as what can be priced: cluster, workload, strategy, framework and the measured seconds.

A row that the model has no words for becomes `Refused` with the reason, so that it is counted and never lost.

Rows are read by `standard.py` (training) and `operators.py` (one operator alone).
"""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.cost import StepCost
from cost_models.framework import Framework
from cost_models.hardware.cluster import Cluster
from cost_models.pricing import price
from cost_models.strategy import Strategy
from cost_models.workload import Workload
from validation.rows import Row

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row, ready to be priced."""

    row: Row
    cluster: Cluster
    workload: Workload
    strategy: Strategy
    framework: Framework
    measured_s: float  # nan: memory alone is asked
    sweep: str = ""  # rows of one sweep differ in degrees only

    @property
    def label(self) -> str:
        return f"{self.workload.model.name}, {self.workload.context_tokens} tokens, {self.strategy.describe()}"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row that is not predicted, and why."""

    row: Row
    reason: str


def price_of(case: Case, framework: Framework | None = None) -> StepCost:
    """The row's step; `framework` replaces its own. InputError for what cannot exist."""
    return price(case.cluster, case.workload, case.strategy, framework=framework or case.framework)
