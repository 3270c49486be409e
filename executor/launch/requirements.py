"""Whether a plan can run here: what this host has, every difference named (`planner/targets/executed.py`: what can run
at all).

    device kind · GPU model · number of GPUs or cores · free memory for the ranks of the host · library versions

Each function lists all that it finds, so that a user sees every difference at once. Speeds are not compared (`executor
profile` measures them). Memory: the plan's peak of the worst rank, times ranks on a CPU host.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from cost_models import price
from cost_models.cost import Memory
from cost_models.framework import Framework
from cost_models.hardware.device_names import same_card
from cost_models.hardware.machine import Host
from cost_models.pricing import fullest_position
from cost_models.step.unequal import positions
from cost_models.strategy import AXES, rank_grid
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.units import show_bytes
from executor.launch.hosts import gpus_needed
from planner.plan_file import Plan

LEAST_TORCH = (2, 13)


def planned_memory(plan: Plan, ranks: Sequence[int], code: Framework | None = None) -> Memory[int]:
    """The plan's memory of the fullest rank; where a ring's blocks are unequal, of the fullest of these. `code`: other
    code than the plan's."""
    layout = (plan.workload, plan.strategy, plan.placement)
    if not plan.strategy.token_shares:
        return plan.cost.memory if code is None else price(plan.cluster, *layout, framework=code).memory
    rings = np.argwhere(np.isin(rank_grid(plan.strategy), ranks))[:, AXES.index("ring")].tolist()
    several = [
        one
        for one in positions(cluster_costs(plan.cluster), *layout, code or plan.target.code)
        if {*rings} & {*one.rings}
    ]
    return Memory((name, round(float(size))) for name, size in fullest_position(several)[1].parts.items())


def differences(plan: Plan, host: Host, slot: int, ranks: int) -> list[str]:
    """One text for each thing that the plan's slot has and this host lacks."""
    node = plan.cluster.node(slot)
    problems = _versions(host)
    of_each = planned_memory(plan, np.flatnonzero(plan.placement.slot_of_rank == slot).tolist()).device_bytes
    if node.device.architecture == "cpu":
        if host.cores != node.cpus:
            problems.append(f"cores: the plan was made for {node.cpus}, {host.cores} are here; plan again here")
        need = of_each * ranks
        if need > host.free_bytes:
            problems.append(
                f"memory: {ranks} ranks need {show_bytes(need)}, {show_bytes(host.free_bytes)} are free; "
                "plan fewer ranks or a shorter context"
            )
        return problems
    if not host.gpus:
        problems.append(
            f"device: the plan was made for {node.device.name}, no GPU is here; "
            "for CPU processes plan with --cluster local"
        )
        return problems
    need = gpus_needed(plan, slot)
    if len(host.gpus) < need:
        problems.append(f"GPUs: the plan needs {need} on this host, {len(host.gpus)} are here")
    other = {gpu.name for gpu in host.gpus if not same_card(node.device, gpu.name, gpu.memory_bytes / 1e9)}
    if other:
        problems.append(f"device: the plan was made for {node.device.name}, here is {', '.join(sorted(other))}")
    for index, gpu in enumerate(host.gpus[:need]):
        if gpu.free_bytes < of_each:
            free, planned = show_bytes(gpu.free_bytes), show_bytes(of_each)
            problems.append(f"memory: GPU {index} has {free} free, the plan needs {planned}")
    return problems


def no_compiler(plan: Plan, slot: int) -> list[str]:
    """What torch.compile lacks here to make kernels of its graphs."""
    if os.environ.get("TORCHDYNAMO_DISABLE", "0") not in ("", "0"):
        return ["--compile with TORCHDYNAMO_DISABLE set, under which nothing is compiled; unset one of them"]
    if plan.cluster.node(slot).device.architecture != "cpu":
        return [] if find_spec("triton") else ["--compile needs triton for GPUs, which is not installed"]
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return [] if shutil.which(name) else [f"--compile needs a C++ compiler, {name} is not here; CXX names another"]


def _versions(host: Host) -> list[str]:
    installed = host.versions.get("torch")
    least = ".".join(map(str, LEAST_TORCH))
    if installed is None:
        return [f"torch is not installed; at least {least} is needed: pip install 'mmsp[executor]'"]
    if tuple(int(part) for part in installed.split(".")[:2]) < LEAST_TORCH:
        return [f"torch {installed} is too old; at least {least} is needed"]
    if "transformers" not in host.versions:
        return ["transformers is not installed: pip install 'mmsp[executor]'"]
    return []
