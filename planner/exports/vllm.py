"""`vllm serve` flags for a decode or prefill plan: tensor, pipeline and data degrees, the context's length.

A cache that tensor ranks with the same KV heads cut by tokens is `--decode-context-parallel-size`. Ring and ulysses
ranks beside the tensor ranks have no word there. Hosts are vLLM's to find (Ray, or `--nnodes` and `--node-rank`).
"""

from __future__ import annotations

import math

from cost_models.errors import InputError
from planner.exports.export import Export
from planner.plan_file import Plan

DEFAULT_USED, MOST_USED = 0.9, 0.98


def _used(plan: Plan) -> float:
    """Share of a GPU that vLLM may take: its default, or more where the plan's cache needs more."""
    first = plan.cluster.node(int(plan.placement.slot_of_rank[0])).device.memory_bytes
    return min(MOST_USED, max(DEFAULT_USED, math.ceil(100 * plan.cost.memory_bytes / first) / 100))


def files(plan: Plan, plan_file: str) -> Export:
    """Flags of `vllm serve`. InputError: a plan for training, or ring and ulysses ranks."""
    one, work = plan.strategy, plan.workload
    if work.mode == "train":
        raise InputError("--to vllm takes plans with mode=decode or prefill; this one has mode=train")
    if one.context > 1:
        raise InputError(
            f"--to vllm cannot hold ring={one.ring}, ulysses={one.ulysses} beside the tensor ranks; legal: 1 and 1 "
            "(plan with --fix ring=1,ulysses=1)"
        )
    flags: dict[str, object] = {
        "tensor-parallel-size": one.tensor,
        "pipeline-parallel-size": one.pipeline,
        "data-parallel-size": one.data,
        "max-model-len": work.context_tokens,
        "max-num-seqs": -(-work.global_batch // one.data),
        "gpu-memory-utilization": _used(plan),
        "dtype": "bfloat16",
    }
    if one.cache_context > 1:
        flags["decode-context-parallel-size"] = one.cache_context
    if work.frames:
        flags["limit-mm-per-prompt.video"] = 1
    text = "".join(f"--{name} {value}\n" for name, value in flags.items())
    return Export({"vllm.args": f"# append to: vllm serve MODEL\n{text}"})
