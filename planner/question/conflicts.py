"""Which question the options of `plan` ask, and which options that question reads: any other is refused by name.

    plan        a layout: what all options are for but those of the questions below
    longest, lengths                     make a plan, too
    finish, goodput, recipe, keep_attention, backbones    answer with numbers: no plan to write, prove or explain

A default that nobody typed is no option given. InputError: one line with the flag and where it is legal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cost_models.errors import InputError

QUESTIONS = ("longest", "finish", "goodput", "lengths", "backbones", "recipe", "keep_attention")
_OF_A_PLAN = ("objective", "trust_model", "time_limit", "proof", "output", "page", "explain")
_OF_A_MODEL = (
    "model",
    "mode",
    "documents",
    "frames",
    "frame_pixels",
    "trained",
    "lora_rank",
    "lora_targets",
    "lora_beside",
)
_PASSED_OVER: Mapping[str, tuple[str, ...]] = {
    "finish": (*_OF_A_PLAN, "profile", "fabric", "hosts", "device"),
    "goodput": _OF_A_PLAN,
    "recipe": (*_OF_A_PLAN, *_OF_A_MODEL, "batch"),
    "keep_attention": _OF_A_PLAN,
    "backbones": (*_OF_A_PLAN, *_OF_A_MODEL, "fix", "target"),
}
"""What a question would ignore."""
_READ_BY: Mapping[str, tuple[str, ...]] = {
    "mtbf_hours": ("goodput",), "checkpoint_gb_per_s": ("goodput",), "restart_minutes": ("goodput",),
    "repair_hours": ("goodput",), "window": ("keep_attention",), "days": ("backbones",), "shapes": ("backbones",),
    "dollars": ("finish", "recipe", "backbones"),
}  # fmt: skip
"""Options that only these questions read."""


def typed(context: click.Context, name: str) -> bool:
    """Whether the user gave the option."""
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def check(context: click.Context, given: Mapping[str, Any]) -> None:
    """Refuse two questions at once, and options that the question does not read."""
    flags = {option.name: option.opts[-1] for option in context.command.params}
    asked = [name for name in QUESTIONS if given[name]]
    if len(asked) > 1:
        raise InputError(f"{', '.join(flags[name] for name in QUESTIONS)} are a question each; ask one at a time")
    question = asked[0] if asked else "plan"
    for name, readers in _READ_BY.items():
        if typed(context, name) and question not in readers:
            raise InputError(f"{flags[name]} without {' or '.join(flags[one] for one in readers)}; legal with it")
    for name in _PASSED_OVER.get(question, ()):
        if typed(context, name) and not (name == "target" and given[name] == "mmsp"):
            raise InputError(f"{flags[name]} with {flags[question]} would be ignored; leave it out")
    if question in _PASSED_OVER and given["target"] != "mmsp":
        raise InputError(f"--for {given['target']} with {flags[question]}; legal: mmsp")
    if given["explain"] and given["as_json"]:
        raise InputError("--explain with --json, which has every number; leave one out")
    if given["trust_model"] and given["objective"] == "memory":
        raise InputError("--trust-model with --objective memory, which has no ties; leave one out")
    for name, has in (("longest", "asks for"), ("recipe", "has for every stage")):
        if given[name] and given["ctx"] is not None:
            raise InputError(f"--ctx is what --{name} {has}; leave it out")
