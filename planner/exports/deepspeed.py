"""A DeepSpeed config (0.19): ZeRO by its stage, ulysses as `sequence_parallel_size`; it has no ring, no pipeline here.

Recompute is the model's own switch (`gradient_checkpointing_enable`), which no key of the config turns on.
"""

from __future__ import annotations

from typing import Any

from planner.exports.export import Export, as_json, batch_of_rank, no_levers, only, recomputed, unsaid
from planner.plan_file import Plan


def config(plan: Plan) -> dict[str, Any]:
    """The config as a dict: what `deepspeed.initialize(config=…)` takes."""
    one, work = plan.strategy, plan.workload
    zero: dict[str, Any] = {"stage": one.zero}
    if one.offload_states != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if one.offload_states == "all" and one.zero == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": work.global_batch,
        "train_micro_batch_size_per_gpu": batch_of_rank(plan),
        "gradient_accumulation_steps": one.microbatches,
        "sequence_parallel_size": one.ulysses,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        **({"tensor_parallel": {"autotp_size": one.tensor}} if one.tensor > 1 else {}),
    }


def files(plan: Plan, plan_file: str) -> Export:
    """DeepSpeed's config. InputError: a ring, a pipeline, levers that it lacks."""
    only(plan, "deepspeed", "train", ring=1, pipeline=1)
    no_levers(plan, "deepspeed", "offload_states")
    policy, notes = recomputed(plan, ("none", "full"))
    if policy == "full":
        notes = (*notes, "recompute=full: call model.gradient_checkpointing_enable()")
    return Export({"ds_config.json": as_json(config(plan))}, (*notes, *shard_notes(plan), *unsaid(plan)))


def shard_notes(plan: Plan) -> tuple[str, ...]:
    """That DeepSpeed shards over all ranks, where the plan does not."""
    one = plan.strategy
    over_all = one.shard in (1, one.data * one.context)
    return () if over_all else (f"shard={one.shard}: DeepSpeed shards over all of data x context",)
