"""ms-swift's `swift sft` (4.6): one `--sequence_parallel_size`, which it splits itself.

ulysses = greatest common divisor of the size and the KV heads, ring = the rest
"""

from __future__ import annotations

import math

from cost_models.errors import InputError
from planner.exports import deepspeed
from planner.exports.export import Export, as_json, batch_of_rank, no_levers, only, recomputed, unsaid
from planner.plan_file import Plan


def files(plan: Plan, plan_file: str) -> Export:
    """ms-swift's flags. InputError: other ulysses degrees than it makes of the sequence-parallel size."""
    only(plan, "ms-swift", "train", tensor=1, pipeline=1)
    no_levers(plan, "ms-swift", "offload_states")
    one = plan.strategy
    ulysses = math.gcd(one.context, plan.workload.model.kv_heads)
    if ulysses != one.ulysses:
        raise InputError(
            f"--to ms-swift cannot hold ring={one.ring} with ulysses={one.ulysses}: of {one.context} ranks it makes "
            f"ulysses={ulysses}; plan with --fix ulysses={ulysses}"
        )
    policy, notes = recomputed(plan, ("none", "full"))
    flags: dict[str, object] = {
        "max_length": plan.workload.context_tokens,
        "sequence_parallel_size": one.context,
        "per_device_train_batch_size": batch_of_rank(plan),
        "gradient_accumulation_steps": one.microbatches,
        "gradient_checkpointing": str(policy == "full").lower(),
        "torch_dtype": "bfloat16",
        "padding_free": "true",
        "attn_impl": "flash_attn",
    }
    texts = {}
    if one.zero:
        flags["deepspeed"] = "ds_config.json"
        config = {**deepspeed.config(plan), "train_batch_size": "auto", "sequence_parallel_size": 1}
        texts["ds_config.json"] = as_json(config)
    text = "".join(f"--{name} {value}\n" for name, value in flags.items())
    return Export({"swift.args": text, **texts}, (*notes, *deepspeed.shard_notes(plan), *unsaid(plan)))
