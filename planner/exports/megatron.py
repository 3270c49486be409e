"""Megatron-LM's flags (core 0.16): hierarchical context parallelism is ulysses inside, a ring outside.

    --context-parallel-size R·U  --hierarchical-context-parallel-sizes U R  --cp-comm-type a2a+p2p

ZeRO-1 is its distributed optimizer; higher stages become its FSDP (`--use-megatron-fsdp`). Layers that recompute beside
layers that do not are so many of each chunk of a stage (`--recompute-method block`, transformer_block.py). A plan made
for it has the overlaps that its price assumes; what describes the model beyond its sizes (SwiGLU, RMSNorm, rotary
embedding, vocabulary) is the reader's.
"""

from __future__ import annotations

from planner.exports.export import Export, batch_of_rank, no_levers, only, recomputed, unsaid
from planner.plan_file import Plan

SHARDED = {1: "optim", 2: "optim_grads", 3: "optim_grads_params"}

Flags = list[tuple[str, object]]
RECOMPUTED: dict[str, Flags] = {
    "none": [],
    "mlp": [("recompute-granularity", "selective"), ("recompute-modules", "mlp")],
    "full": [("recompute-granularity", "full"), ("recompute-method", "uniform"), ("recompute-num-layers", 1)],
}


def _recomputed(plan: Plan) -> tuple[Flags, tuple[str, ...]]:
    """(flags, notes): of none and full together each chunk of a stage recomputes its share, rounded up."""
    one, layers = plan.strategy, plan.workload.model.layers
    counts: dict[str, int] = {}
    for part in one.layer_ranges(layers):
        counts[part.recompute] = counts.get(part.recompute, 0) + part.count
    if set(counts) != {"none", "full"}:
        policy, notes = recomputed(plan, ("none", "mlp", "full"))
        return RECOMPUTED[policy], notes
    chunks = one.pipeline * one.virtual
    each = -(-counts["full"] // chunks)
    block: Flags = [("recompute-granularity", "full"), ("recompute-method", "block"), ("recompute-num-layers", each)]
    more = each * chunks - counts["full"]
    return block, (f"recompute: {more} layers more than planned, as many in every chunk",) if more else ()


def files(plan: Plan, plan_file: str) -> Export:
    """Megatron-LM's flags. InputError: serving, or levers that it lacks."""
    only(plan, "megatron", "train")
    no_levers(plan, "megatron")
    one, work, model = plan.strategy, plan.workload, plan.workload.model
    again, notes = _recomputed(plan)
    flags: Flags = [
        ("tensor-model-parallel-size", one.tensor),
        ("pipeline-model-parallel-size", one.pipeline),
        ("context-parallel-size", one.context),
        ("micro-batch-size", batch_of_rank(plan)),
        ("global-batch-size", work.global_batch),
        ("seq-length", work.context_tokens),
        ("max-position-embeddings", work.context_tokens),
        ("num-layers", model.layers),
        ("hidden-size", model.hidden),
        ("ffn-hidden-size", model.ffn),
        ("num-attention-heads", model.heads),
        ("group-query-attention", ""),
        ("num-query-groups", model.kv_heads),
        ("kv-channels", model.head_dim),
    ]
    if one.context > 1:
        both = one.ring > 1 and one.ulysses > 1
        flags += [("hierarchical-context-parallel-sizes", f"{one.ulysses} {one.ring}")] if both else []
        flags.append(("cp-comm-type", "a2a+p2p" if both else "a2a" if one.ulysses > 1 else "p2p"))
    flags += [("sequence-parallel", "")] if one.tensor > 1 else []
    flags += [("expert-model-parallel-size", one.expert)] if one.expert > 1 else []
    if one.virtual > 1:
        flags.append(("num-virtual-stages-per-pipeline-rank", one.virtual))
    if one.zero == 1:
        flags.append(("use-distributed-optimizer", ""))
    elif one.zero > 1:
        flags += [("use-megatron-fsdp", ""), ("data-parallel-sharding-strategy", SHARDED[one.zero])]
        flags.append(("use-distributed-optimizer", ""))
    flags += again
    flags.append(("bf16", ""))
    if plan.target.name == "megatron":
        flags += [("overlap-grad-reduce", ""), ("grad-reduce-in-bf16", "")]
        flags += [("overlap-param-gather", "")] if one.zero == 1 else []
        flags += [("tp-comm-overlap", "")] if one.tensor > 1 else []
    if one.shard not in (1, one.data * one.context):
        notes = (*notes, f"shard={one.shard}: Megatron shards over all of data x context")
    text = "".join(f"--{name} {value}".rstrip() + "\n" for name, value in flags)
    return Export({"megatron.args": text}, (*notes, *unsaid(plan)))
