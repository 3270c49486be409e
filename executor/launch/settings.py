"""A job's settings: the config file, then `--set key=value`, then what the plan decides; conflicts are refused.

    rows_per_step = global batch        precision = the stored dtype       trained = trainable parts, or adapters
    max_tokens    = context tokens (shorter rows are allowed, longer ones are not)        model = the plan's
    lora_rank, lora_targets = the plan's adapters

A setting that says otherwise than the plan is an error that names both, because a run that is not the planned one
makes every prediction worthless; the one exception is precision=fp64, where the plan computes in what it stores: that
runs wider than planned and says so.
Recompute, degrees, loss chunks and frames per rank come from the plan alone and are no settings. Which settings a job
of the user has is not checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.workload import Dtype, Workload
from planner.plan_file import Plan

TRAINING = ("longvila.train", "longvila.reinforce")
"""Jobs whose steps are what a plan for training predicts."""
ANSWERING = ("longvila.generate", "longvila.evaluate")
JOB = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the job is given, and what a user should know about it."""

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def check_job(name: str) -> str:
    """A dotted module name, never a path or an expression."""
    if len(name) > 200 or not JOB.fullmatch(name):
        raise InputError(f"--job {name!r} is not a dotted module name such as longvila.train")
    return name


def merge(plan: Plan, job: str, config: str | None, sets: Sequence[str]) -> Settings:
    """The settings of one launch."""
    given = {**(_config(config) if config else {}), **dict(_assignment(text) for text in sets)}
    if job in TRAINING:
        return _train(plan, job, given)
    if job in ANSWERING:
        return _precision(plan, given)
    if job == "executor.serve.job":
        name, most = preset_of(plan), plan.workload.context_tokens
        return _precision(plan, {"name": name, "max_prompt_tokens": most, **given})
    return Settings(values=given)


def _train(plan: Plan, job: str, given: Mapping[str, Any]) -> Settings:
    work = plan.workload
    if work.mode != "train":
        raise InputError(f"the plan is for mode={work.mode}; {job} needs one for train")
    if "weights" not in given:
        given = {"model": preset_of(plan), **given}
    settings = _precision(plan, given)
    values, notes = dict(settings.values), list(settings.notes)
    _decided(values, "rows_per_step", work.global_batch, f"the plan's global batch is {work.global_batch}")
    parts = trained_parts(work)
    trained = values.setdefault("trained", parts)
    if not isinstance(trained, list) or sorted(map(str, trained)) != sorted(parts):
        raise InputError(
            f"trained={trained} conflicts with the plan, which trains {', '.join(parts)}; --train plans others"
        )
    if work.lora_rank:
        targets = list(work.lora_targets)
        _decided(values, "lora_rank", work.lora_rank, f"its adapters are of rank {work.lora_rank}")
        _decided(values, "lora_targets", targets, f"its adapters are on {', '.join(targets)}")
    tokens = values.setdefault("max_tokens", work.context_tokens)
    if isinstance(tokens, int) and tokens > work.context_tokens:
        raise InputError(
            f"max_tokens={tokens} conflicts with the plan's context of {work.context_tokens}; plan with --ctx {tokens}"
        )
    if tokens != work.context_tokens:
        notes.append(f"rows of at most {tokens} tokens; the plan's prediction is for {work.context_tokens}")
    planned, rows = plan.strategy.microbatches, work.global_batch // plan.strategy.data
    if rows > planned:
        notes.append(f"rows run one by one: {rows} microbatches a step where the plan has {planned}")
    return Settings(values=values, notes=tuple(notes))


def _precision(plan: Plan, given: Mapping[str, Any]) -> Settings:
    planned, stored = plan.workload.precision, stored_dtype(plan)
    if given.get("precision") == "fp64" and stored != "fp64" and planned.param == stored:
        note = f"computes in fp64, wider than the plan's {stored}: twice the memory, other times"
        return Settings(values=dict(given), notes=(note,))
    values = dict(given)
    _decided(values, "precision", stored, f"the plan stores parameters in {stored}")
    return Settings(values=values)


def stored_dtype(plan: Plan) -> Dtype:
    """What weights are stored in on the device: the master's, unless masters are in host memory or nobody trains."""
    precision = plan.workload.precision
    on_host = plan.strategy.offload_states == "optimizer"
    return precision.master if plan.workload.mode == "train" and not on_host else precision.param


def trained_parts(work: Workload) -> list[str]:
    """What is trained, in longvila's words: adapters, and what is beside them, in place of the language model."""
    if not work.lora_rank:
        return list(work.trainable)
    return ["lora", *work.lora_beside, *(part for part in work.trainable if part != "llm")]


def _decided(values: dict[str, Any], key: str, planned: Any, why: str) -> None:
    if values.setdefault(key, planned) != planned:
        raise InputError(f"{key}={values[key]} conflicts with the plan: {why}; drop the setting or plan again")


def preset_of(plan: Plan) -> str:
    """What longvila calls the plan's model."""
    name = plan.workload.model.name
    return "tiny" if name == "longvila-tiny" else name


def _config(path: str) -> dict[str, Any]:
    text = strict.read_text(path, "--config")
    values = strict.parse_yaml(text, f"--config {path!r}")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"--config {path!r} must hold settings as `key: value` lines")
    return values


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise InputError(f"--set {text!r} is not key=value")
    return key, strict.parse_yaml(value, f"--set {key}")
