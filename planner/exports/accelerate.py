"""An accelerate config (1.15): FSDP2 with `cp_size` (ring or all-gather), or DeepSpeed with `sp_size` (ulysses).

Its two kinds of context parallelism do not cross, so ring and ulysses together are refused.
"""

from __future__ import annotations

import json
from typing import Any

from planner.exports import deepspeed
from planner.exports.export import Export, as_json, equal_hosts, no_levers, one_context, only, recomputed, unsaid
from planner.plan_file import Plan


def settings(plan: Plan, target: str = "accelerate") -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """(the config's keys, further files, notes)."""
    only(plan, target, "train", pipeline=1)
    kind, degree = one_context(plan, target)
    one, (nodes, _) = plan.strategy, equal_hosts(plan, target)
    policy, notes = recomputed(plan, ("none", "full"))
    common: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "mixed_precision": "bf16",
        "num_machines": nodes,
        "num_processes": one.ranks,
        "main_training_function": "main",
    }
    if kind == "ulysses":
        no_levers(plan, target, "offload_states")
        further = {"ds_config.json": as_json(deepspeed.config(plan))}
        common["distributed_type"] = "DEEPSPEED"
        common["deepspeed_config"] = {"deepspeed_config_file": "ds_config.json"}
        common["parallelism_config"] = {
            "parallelism_config_sp_size": degree,
            "parallelism_config_sp_backend": "deepspeed",
            "parallelism_config_sp_seq_length_is_variable": True,
        }
        return common, further, (*notes, *deepspeed.shard_notes(plan))
    no_levers(plan, target)
    sharded = max(1, one.shard // degree)
    common["distributed_type"] = "FSDP"
    common["fsdp_config"] = {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": one.zero == 3,
        "fsdp_activation_checkpointing": policy == "full",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }
    common["parallelism_config"] = {
        "parallelism_config_dp_replicate_size": one.data // sharded,
        "parallelism_config_dp_shard_size": sharded,
        "parallelism_config_tp_size": one.tensor,
        "parallelism_config_cp_size": degree,
        "parallelism_config_cp_comm_strategy": "allgather" if one.ring_kind == "all_gather" else "alltoall",
    }
    return common, {}, notes


def files(plan: Plan, plan_file: str) -> Export:
    """accelerate's config, FSDP2's or DeepSpeed's. InputError: what it cannot hold."""
    found, further, notes = settings(plan)
    return Export({"accelerate.yaml": as_yaml(found), **further}, (*notes, *unsaid(plan)))


def as_yaml(values: dict[str, Any]) -> str:
    """YAML of nested mappings of plain values."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {json.dumps(inner)}" for key, inner in value.items())]
        else:
            lines.append(f"{name}: {json.dumps(value)}")
    return "\n".join([*lines, ""])
