"""trl's `sft` script (1.16): an accelerate config, and SFTConfig's keys as a YAML that TrlParser reads."""

from __future__ import annotations

from planner.exports import accelerate
from planner.exports.export import Export, batch_of_rank, recomputed, unsaid
from planner.plan_file import Plan


def files(plan: Plan, plan_file: str) -> Export:
    """trl's script settings beside accelerate's config. InputError: what accelerate cannot hold."""
    found, further, notes = accelerate.settings(plan, "trl")
    policy, _ = recomputed(plan, ("none", "full"))
    under_fsdp = "fsdp_config" in found  # where FSDP recomputes, the trainer's own switch would do it twice
    script = {
        "max_length": plan.workload.context_tokens,
        "per_device_train_batch_size": batch_of_rank(plan),
        "gradient_accumulation_steps": plan.strategy.microbatches,
        "gradient_checkpointing": policy == "full" and not under_fsdp,
        "pad_to_multiple_of": 2 * plan.strategy.context,
        "bf16": True,
    }
    texts = {"accelerate.yaml": accelerate.as_yaml(found), "sft.yaml": accelerate.as_yaml(script), **further}
    return Export(texts, (*notes, *unsaid(plan)))
