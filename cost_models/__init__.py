"""Hardware, model, workload and strategy as data, and what a piece of work costs on them. No torch.

Each name is imported when it is first used, so that a command pays only for what it touches.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cost_models.batch import BatchCost as BatchCost
    from cost_models.batch import price_batch as price_batch
    from cost_models.cost import StepCost as StepCost
    from cost_models.errors import InputError as InputError
    from cost_models.hardware.cluster import Cluster as Cluster
    from cost_models.hardware.placement import Placement as Placement
    from cost_models.models.model import Model as Model
    from cost_models.pricing import price as price
    from cost_models.profile import Profile as Profile
    from cost_models.strategy import LayerRange as LayerRange
    from cost_models.strategy import Strategy as Strategy
    from cost_models.workload import Workload as Workload

_HOMES = {
    "BatchCost": "batch",
    "Cluster": "hardware.cluster",
    "InputError": "errors",
    "LayerRange": "strategy",
    "Model": "models.model",
    "Placement": "hardware.placement",
    "Profile": "profile",
    "StepCost": "cost",
    "Strategy": "strategy",
    "Workload": "workload",
    "price": "pricing",
    "price_batch": "batch",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cost_models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cost_models.{_HOMES[name]}"), name)
