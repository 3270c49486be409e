"""torchtitan 0.3's flags (`--section.key value`, after `--module` and `--config`).

Its context parallelism gathers or rings keys and values; heads are not exchanged. Of its activation checkpointing full
recomputes a layer, selective saves products and attention, which no policy of a plan does: it keeps more than `mlp`.
"""

from __future__ import annotations

import shlex

from planner.exports.export import Export, batch_of_rank, no_levers, only, recomputed, unsaid
from planner.plan_file import Plan

SCHEDULES = {"1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B"}


def files(plan: Plan, plan_file: str) -> Export:
    """torchtitan's flags. InputError: ulysses above 1, serving, levers that it lacks."""
    only(plan, "torchtitan", "train", ulysses=1)
    no_levers(plan, "torchtitan")
    one, work = plan.strategy, plan.workload
    policy, notes = recomputed(plan, ("none", "full"))
    sharded = one.shard // one.context if one.shard >= one.context else 1
    if one.shard not in (1, one.context, one.data * one.context) and one.shard % one.context:
        notes = (*notes, f"shard={one.shard}: torchtitan shards over data x context in whole context groups")
    flags = {
        "training.seq_len": work.context_tokens,
        "training.local_batch_size": batch_of_rank(plan) * (one.microbatches if one.pipeline > 1 else 1),
        "training.global_batch_size": work.global_batch,
        "parallelism.data_parallel_replicate_degree": one.data // sharded,
        "parallelism.data_parallel_shard_degree": sharded,
        "parallelism.fsdp_reshard_after_forward": "always" if one.zero == 3 else "never",
        "parallelism.context_parallel_degree": one.ring,
        "parallelism.tensor_parallel_degree": one.tensor,
        "parallelism.pipeline_parallel_degree": one.pipeline,
    }
    if one.pipeline > 1:
        flags["parallelism.pipeline_parallel_schedule"] = SCHEDULES[one.schedule]
        flags["parallelism.pipeline_parallel_microbatch_size"] = batch_of_rank(plan)
        flags["parallelism.pipeline_parallel_layers_per_stage"] = work.model.layers // (one.pipeline * one.virtual)
        flags["parallelism.pipeline_parallel_first_stage_less_layers"] = 0
        flags["parallelism.pipeline_parallel_last_stage_less_layers"] = 0
    said = [f"--{name} {shlex.quote(str(value))}" for name, value in flags.items()]
    said += ["activation_checkpoint:full-ac"] if policy == "full" else []
    head = "# append to: torchrun … -m torchtitan.train --module MODULE --config CONFIG"
    return Export({"torchtitan.args": "\n".join([head, *said, ""])}, (*notes, *unsaid(plan)))
