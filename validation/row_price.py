"""The price of a published row: `cost_models.price` itself, under the framework that ran.

allocated  what a framework's allocator counts: without CUDA context, libraries' buffers and fragmentation
reserved   the same with what fragmentation holds
"""

from __future__ import annotations

from cost_models.cost import StepCost
from cost_models.framework import Framework
from cost_models.hardware.device import Device
from cost_models.memory.components import context_bytes
from cost_models.pricing import price
from validation.cases import Case


def price_of(case: Case, framework: Framework | None = None) -> StepCost:
    """The row's step; `framework` replaces its own. InputError for what cannot exist."""
    return price(case.cluster, case.workload, case.strategy, framework=framework or case.framework)


def allocated_bytes(cost: StepCost) -> int:
    return cost.memory_bytes - cost.memory["communication"] - cost.memory["reserve"]


def reserved_bytes(cost: StepCost, device: Device) -> int:
    return cost.memory_bytes - cost.memory["communication"] - context_bytes(device)
