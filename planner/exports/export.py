"""What an export is, and what all of them ask of a plan.

    export(plan, "torchtitan") -> Export(files={"torchtitan.sh": "…"}, notes=("… cannot say …",))

launchers    torchrun, slurm, skypilot, kubeflow: start this project's executor, which builds exactly the plan
frameworks   torchtitan, megatron, deepspeed, accelerate, trl, ms-swift, vllm: their own code with the plan's degrees

A degree that a framework does not have is an InputError: another layout would run. What it has no word for (placement,
dtypes, chunks) is a note. Recompute becomes the framework's nearest that keeps no more than the plan does.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from cost_models.errors import InputError
from cost_models.workload import Part
from planner.plan_file import Plan
from planner.targets.target import Target

TARGETS = {
    "torchrun": "torchrun", "slurm": "slurm", "skypilot": "skypilot", "kubeflow": "kubeflow",
    "torchtitan": "torchtitan", "megatron": "megatron", "deepspeed": "deepspeed", "accelerate": "accelerate",
    "trl": "trl", "ms-swift": "ms_swift", "vllm": "vllm",
}  # fmt: skip
"""The module of each target."""
LAUNCHERS = ("torchrun", "slurm", "skypilot", "kubeflow")
"""Start this project's executor."""


class Export(NamedTuple):
    """Files of another program, and what they leave out of the plan."""

    files: dict[str, str]  # name -> text
    notes: tuple[str, ...] = ()  # what of the plan they do not say


def export(plan: Plan, target: str, plan_file: str = "plan.json") -> Export:
    """The files of a target; InputError for a plan that it cannot hold. `plan_file`: where launchers find the plan."""
    if target not in TARGETS:
        raise InputError(f"--to {target!r} is unknown; legal: {', '.join(TARGETS)}")
    if target in LAUNCHERS and not plan.target.is_ours:
        its = f"{plan.target.name}, or plan" if plan.target.name in TARGETS else "plan"
        raise InputError(
            f"--to {target} starts this executor, and the plan is for {plan.target.name}; legal: {its} with --for mmsp"
        )
    if target not in LAUNCHERS:
        _check_work(plan, target)
    made: Export = importlib.import_module(f"planner.exports.{TARGETS[target]}").files(plan, plan_file)
    if target in LAUNCHERS or target == plan.target.name:
        return made
    notes = _stage_notes(plan, Target.load(target))
    _check_heads(plan, Target.load(target))
    return Export(
        made.files, (*made.notes, *notes, f"times: the plan was priced for {plan.target.name}, not for {target}")
    )


def _check_work(plan: Plan, target: str) -> None:
    """InputError where another framework would train other work: its files say bf16, and no program but this one's
    executor scans states over ranks or deals out unequal shares."""
    precision = plan.workload.precision.param
    if precision != "bf16":
        raise InputError(f"--to {target} says bf16; this plan has precision={precision} (plan with --precision bf16)")
    if plan.workload.model.ssd is not None:
        raise InputError(f"--to {target} does not run state-space layers; legal: {', '.join(LAUNCHERS)}")
    if plan.strategy.token_shares:
        raise InputError(
            f"--to {target} has no word for unequal token_shares, and equal ones may not fit; legal: "
            f"{', '.join(LAUNCHERS)}"
        )


def _check_heads(plan: Plan, target: Target) -> None:
    """InputError where the target's ulysses ranks cannot share the heads as the plan's do."""
    one, model = plan.strategy, plan.workload.model
    heads, keys = model.heads // one.tensor, max(1, model.kv_heads // one.tensor)
    if not target.splits(one.ulysses, heads, keys):
        legal = [degree for degree in range(1, heads + 1) if target.splits(degree, heads, keys)]
        raise InputError(
            f"--to {target.name} cannot hold ulysses={one.ulysses} of {heads} query and {keys} KV heads; "
            f"legal: {', '.join(map(str, legal))} (plan with --fix ulysses={max(legal)})"
        )


def _stage_notes(plan: Plan, target: Target) -> tuple[str, ...]:
    """A ZeRO stage that the target has no word for runs as the next."""
    zero, stages = plan.strategy.zero, {stage for _, stage in target.shardings}
    later = min((stage for stage in stages if stage > zero > 0), default=0)
    return (f"zero={zero}: it runs as ZeRO-{later}",) if zero not in stages and later else ()


def hosts(plan: Plan) -> dict[str, int]:
    """Ranks of each host in slot order, by the plan's names; HOST and the slot's number where it has none."""
    slots, ranks = np.unique(plan.placement.slot_of_rank, return_counts=True)
    names = plan.cluster.hosts or [f"HOST{slot}" for slot in range(plan.cluster.slots)]
    return {names[slot]: count for slot, count in zip(slots.tolist(), ranks.tolist(), strict=True)}


def equal_hosts(plan: Plan, target: str) -> tuple[int, int]:
    """(hosts, ranks on each); InputError where hosts differ, which the target has no word for."""
    counts = set(hosts(plan).values())
    if len(counts) > 1:
        shown = ", ".join(map(str, sorted(counts)))
        raise InputError(f"--to {target} starts as many ranks on every host; this plan has {shown}: use --to torchrun")
    return len(hosts(plan)), counts.pop()


def only(plan: Plan, target: str, mode: str, **most: int) -> None:
    """InputError unless the plan has this mode, and each named degree is at most the given one."""
    if plan.workload.mode != mode:
        raise InputError(f"--to {target} takes plans with mode={mode}; this one has mode={plan.workload.mode}")
    for name, limit in most.items():
        value = getattr(plan.strategy, name)
        if value > limit:
            raise InputError(
                f"--to {target} cannot hold {name}={value}; legal: {limit} (plan with --fix {name}={limit})"
            )


def one_context(plan: Plan, target: str) -> tuple[str, int]:
    """("ring" or "ulysses", its degree) where a framework has both but not together."""
    ring, ulysses = plan.strategy.ring, plan.strategy.ulysses
    if ring > 1 and ulysses > 1:
        raise InputError(
            f"--to {target} cannot hold ring={ring} with ulysses={ulysses}; legal: one of them 1 "
            "(plan with --fix ring=1 or --fix ulysses=1)"
        )
    return ("ulysses", ulysses) if ulysses > 1 else ("ring", ring)


def no_levers(plan: Plan, target: str, *but: str) -> None:
    """InputError for ways to save memory that the target has no word for and the plan cannot do without."""
    strategy = plan.strategy
    used = {
        "offload_states": strategy.offload_states if strategy.offload_states != "none" else None,
        "attention_chunk_tokens": strategy.attention_chunk_tokens,
        "mlp_chunk_tokens": strategy.mlp_chunk_tokens,
        "attention_head_chunks": strategy.attention_head_chunks if strategy.attention_head_chunks > 1 else None,
        "offload": next((part.offload for part in strategy.layers if part.offload != "none"), None),
        "lora_rank": plan.workload.lora_rank or None,
    }
    for name, value in used.items():
        if value is not None and name not in but:
            raise InputError(f"--to {target} has no word for {name}={value}, without which the plan does not hold")


def recomputed(plan: Plan, known: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(the policy of `known` for all layers that keeps no more than any layer of the plan does, notes)."""
    order = ("none", "mlp", "all_but_attention", "full")  # each keeps no more than the one before
    planned = [part.recompute for part in plan.strategy.layer_ranges(plan.workload.model.layers)]
    deepest = max(planned, key=lambda policy: order.index(policy) if policy in order else len(order) - 1)
    chosen = next(policy for policy in order[order.index(deepest) :] if policy in known)
    if set(planned) == {chosen}:
        return chosen, ()
    return chosen, (f"recompute: {' and '.join(sorted(set(planned)))} becomes {chosen} in every layer: slower",)


def unsaid(plan: Plan, *, ring_kind: str = "zigzag") -> tuple[str, ...]:
    """Notes on what no other framework's words can say: places, dtypes of the ring, loss chunks, tokens' order."""
    strategy, placement = plan.strategy, plan.placement
    notes = ["the ranks' places: the launcher numbers them host by host"]
    places = np.stack([placement.slot_of_rank, placement.gpu_of_rank], axis=1)
    if (places[np.lexsort((places[:, 1], places[:, 0]))] == places).all():
        notes = []
    if strategy.ring > 1 and strategy.ring_kind != ring_kind:
        notes.append(f"ring_kind={strategy.ring_kind}: it lays tokens out as {ring_kind}")
    if strategy.loss_chunk_tokens is not None and plan.workload.mode == "train":
        notes.append(f"loss_chunk_tokens={strategy.loss_chunk_tokens}: set it where the loss is made")
    work = plan.workload
    if work.frames:
        notes.append("frames over ranks: its own tower sharding, if it has any, runs")
    if work.lengths:
        notes.append(
            "documents: rows of one document unless its own packing is switched on; then attention takes longer"
        )
    frozen = [part for part in get_args(Part) if part not in work.trainable and (part == "llm" or work.model.vision)]
    if frozen and work.mode == "train":
        notes.append(f"--train {','.join(work.trainable)}: freeze {' and '.join(frozen)} in its own script")
    if work.kernel:
        notes.append(f"kernel={work.kernel}: choose it in its own settings")
    return tuple(notes)


def as_json(value: Any) -> str:
    """Indented JSON with a line break at its end."""
    return json.dumps(value, indent=1) + "\n"


def batch_of_rank(plan: Plan) -> int:
    """Rows of one microbatch on one data replica."""
    return plan.workload.global_batch // plan.strategy.data // plan.strategy.microbatches
