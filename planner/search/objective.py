"""What a plan minimises, and its value: of a price, and of seconds on so many ranks.

time       seconds of a step
gpu-hours  seconds x ranks / 3600
memory     bytes of the fullest GPU, then seconds
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cost_models.cost import StepCost
from cost_models.units import show_bytes, show_seconds

Objective = Literal["time", "memory", "gpu-hours"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def value_of(objective: Objective, cost: StepCost) -> float:
    """What is minimised, of one price."""
    return {"time": cost.step_s, "memory": float(cost.memory_bytes), "gpu-hours": cost.gpu_hours}[objective]


def weight(objective: Objective, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """From seconds on so many ranks to the objective's unit; seconds stay what they are where memory is minimised."""
    return ranks / 3600.0 if objective == "gpu-hours" else np.ones(ranks.shape)


def paid_ranks(objective: Objective, ranks: int) -> int:
    """What a second of a step counts: once, or for every GPU in use."""
    return ranks if objective == "gpu-hours" else 1


def show_value(objective: Objective, value: float, digits: int = 3) -> str:
    """A value with its unit.

    >>> show_value("gpu-hours", 1.25), show_value("time", 26.04)
    ('1.25 GPU-hours', '26 s')
    """
    if objective == "memory":
        return show_bytes(value)
    return f"{value:.4g} GPU-hours" if objective == "gpu-hours" else show_seconds(value, digits)
