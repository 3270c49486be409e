"""No strategy that is priced by hand, with ranks in order, beats the plan of its target by more than 0.1%."""

from dataclasses import replace

import pytest

from benchmarks.hand_priced import WORSE, best_by_hand
from cost_models import Cluster, Model, Workload
from planner.solve import solve
from planner.targets.target import Target

BASE = Model.load("llama-3-8b")
SMALL = replace(BASE, layers=2, layer_kinds=("attention",) * 2)


@pytest.mark.parametrize(
    ("name", "preset"),
    [("mmsp", "l40s-pcie"), ("megatron", "l40s-pcie"), ("megatron", "hgx-h100-1nic"), ("torchtitan", "l40s-pcie"),
     ("ms-swift", "hgx-h100-1nic")],
)  # fmt: skip
def test_no_strategy_by_hand_beats_the_plan(name: str, preset: str) -> None:
    target, cluster = Target.load(name), Cluster.load(preset, gpus=16)
    work = target.asked(Workload(SMALL, context_tokens=2**15, global_batch=4))
    tried, fitting, least, _ = best_by_hand(cluster, work, target)
    assert fitting and tried > 40
    assert solve(cluster, work, target=target, keep=1).best[0].cost.step_s <= least * (1 + WORSE)


def test_a_cache_of_a_server_is_planned_as_well_as_by_hand() -> None:
    target, cluster = Target.load("vllm"), Cluster.load("dgx-h100", gpus=8)
    work = Workload(Model.load("longvila-1.5b"), context_tokens=2**19, mode="decode", global_batch=4)
    *_, least, _ = best_by_hand(cluster, work, target)
    assert solve(cluster, work, target=target, keep=1).best[0].cost.step_s <= least * (1 + WORSE)
