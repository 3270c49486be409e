"""The `plan` command: reads the question, answers on the screen, writes plan.json.

    plan --gpus 256 --ctx 2M      plan price      plan simulate      plan show      plan check
    plan clusters                 plan devices                      plan frameworks

Heavy imports wait until a subcommand needs them. A user's mistake ends with one line and exit code 2.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cost_models.errors import InputError
from planner import console
from planner.backbones.command import asked_for_backbones
from planner.question import conflicts, options
from planner.question.pins import read_pins, strategy_of
from planner.reverse.command import asked_in_reverse

if TYPE_CHECKING:
    from planner.plan_file import Plan

EXAMPLES = """\b
Examples:
  plan --gpus 256 --ctx 2M
  plan --gpus 64 --ctx 512K --model longvila-7b --frames 2048 --batch 4
  plan --gpus 256 --ctx 2M --fix ulysses=8,recompute=full --explain
  plan --gpus 64 --ctx 8K --batch 64 --model llama-3-70b --for megatron
  plan --gpus 64 --ctx 8K --batch 64 --model llama-3-70b --for any
  plan --gpus 8 --mode decode --frames 1400 --for vllm
  plan --cluster my-cluster.yaml --ctx 1M --objective gpu-hours -o big.json
  plan --cluster local --gpus 4 --model longvila-tiny --ctx 2K --profile profile.json
  plan price --gpus 256 --ctx 2M --strategy ring=32,ulysses=8
  plan price --gpus 8 --strategy ulysses=8,recompute=full --longest
  plan price --gpus 64 --ctx 8K --batch 64 --strategy data=64 --for torchtitan
  plan simulate plan.json --trace trace.json --jitter 0.05
  plan compare plan.json rank0.pt.trace.json
  plan what-if --gpus 256 --ctx 2M --vary inter_node_gb_per_s=12.5..100
  plan --gpus 256 --longest
  plan --gpus 256 --ctx 128K --lengths lengths.csv
  plan --finish '3T tokens in 30 days' --cluster dgx-h100,dgx-b200 --ctx 8K --batch 2048
  plan --backbones --gpus 256 --days 30 --ctx 256K
  plan --keep-attention 4..24 --gpus 8 --ctx 256K --model llama-3-8b
  plan --gpus 256 --ctx 2M --goodput --mtbf-hours 8
  plan --recipe longvila-8b --gpus 256 --price-per-gpu-hour 2.5
  plan export plan.json --to slurm
  plan distill pack --gpus 8 --ctx 2K --batch 16
  plan explain plan.json
  plan clusters
  plan devices
  plan frameworks
"""


ELSEWHERE = {
    "what-if": "what_if.command:what_if",
    "topology": "clusters.command:topology",
    "discover": "clusters.command:discover",
    "simulate": "simulator.command:simulate",
    "compare": "simulator.command:compare",
    "export": "exports.command:export",
    "prove": "prove.command:prove",
    "explain": "explain.command:explain",
    "distill": "distill.command:distill",
}
"""Subcommands of other modules, which are imported when they are asked for."""


class _Commands(console.NoEmptyGroup):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*self.commands, *ELSEWHERE})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in ELSEWHERE:
            return super().get_command(context, name)
        module, _, function = ELSEWHERE[name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"planner.{module}"), function)
        return command


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="mmsp", prog_name="plan")
@options.shared
@options.target
@click.option("--fix", metavar="NAME=VALUE,…", help="Pin choices: data, ring, ulysses, shard, zero, recompute, …")
@click.option("--lengths", metavar="FILE.csv",
              help="A histogram of documents to pack: one layout for all, or groups for each batch?")  # fmt: skip
@click.option("--objective", default="time", show_default=True, metavar="time|memory|gpu-hours",
              help="What to minimise.")  # fmt: skip
@click.option("--trust-model", is_flag=True, help="Take the best price, also where other layouts are tied with it.")
@asked_in_reverse
@asked_for_backbones
@click.option("--time-limit", metavar="SECONDS",
              help="Stop search, choice and simulation then, with the best layout so far and its gap.")  # fmt: skip
@click.option("--proof", is_flag=True, help="Write a proof of the space into the plan, for `plan prove`.")
@click.option("-o", "--output", metavar="FILE", help="Where to write the plan [default: plan.json; none with --json].")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON and nothing else.")
@click.option("--explain", is_flag=True, help="Show every number as a sum of its parts, and where it comes from.")
@options.report
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """Choose the parallel layout of a long-context step: degrees, placement, sharding, recompute.

    Answers without GPUs: a cost model prices layouts, branch and bound with an integer program proves that no layout of
    the space that the answer names is priced below a bound. Of the layouts tied with the best price the plan is the one
    that loses least over what is uncertain, and a discrete-event simulation on the cluster's topology verifies it. With
    --ctx alone all tokens are text.
    """
    if context.invoked_subcommand is None:
        _plan(context, given)
    elif any(conflicts.typed(context, name) for name in given):
        raise InputError(f"options before {context.invoked_subcommand!r} would be ignored; put them after it")


def _plan(context: click.Context, given: dict[str, Any]) -> None:
    from planner.files import check_target
    from planner.reverse import command as reverse

    conflicts.check(context, given)
    if given["backbones"]:
        from planner.backbones.command import backbones

        with console.Progress() as progress:
            backbones(context, given, progress.show)
        return
    objective = options.objective(given["objective"])
    limit_s = options.seconds(given["time_limit"], "--time-limit")
    fixed = read_pins(given["fix"])
    output = given["output"] or (None if given["as_json"] else "plan.json")
    for path, flag in ((output, "-o"), (given["page"], "--report")):
        if path is not None:
            check_target(path, flag)
    if given["finish"]:
        with console.Progress() as progress:
            reverse.finish(given, progress.show)
        return
    several = options.targets(given["target"], given["precision"])
    asked = options.question(given, any_length=given["longest"] or given["lengths"] or given["recipe"])
    for name in ("goodput", "recipe", "keep_attention"):
        if given[name]:
            with console.Progress() as progress:
                getattr(reverse, name)(given, asked, progress.show)
            return
    from planner.planning import plan

    lengths, longest = None, ""
    with console.Progress() as progress:
        if given["lengths"]:
            from planner.lengths.command import answer

            lengths = answer(given, asked, fixed, conflicts.typed(context, "batch"), progress.show)
            asked, fixed = lengths.asked, lengths.fixed
        if given["longest"]:
            from planner.reverse.longest import longest_of, longest_words

            progress.show("searching the longest row")
            most, target = longest_of(asked.cluster, asked.workload, fixed, asked.profile, asked.room, several)
            asked, several = replace(asked, workload=most), [target]
            longest = longest_words(asked.cluster, most)
        found = plan(
            asked.cluster, asked.workload, fixed=fixed, objective=objective, trust_model=given["trust_model"],
            room=asked.room, profile=asked.profile, time_limit_s=limit_s, targets=several, on_step=progress.show,
        )  # fmt: skip
        if given["proof"]:
            from planner.prove.proof import proven

            progress.show("proving")
            found = proven(found)
    if output is not None:
        found.save(output)
    if given["page"]:
        from planner.page.report_page import save_plan_page

        save_plan_page(given["page"], found, asked.profile)
    if given["as_json"]:
        told = found.to_json()
        if lengths is not None:
            told = json.dumps({"lengths": lengths.as_dict, "plan": json.loads(told)}, indent=1) + "\n"
        click.echo(told, nl=False)
        return
    from planner.screens import plan_lines
    from planner.screens.lines import show, title

    held = [title("Longest   ") + longest] if longest else []
    lines = [*plan_lines.plan_lines(found, explain=given["explain"]), *held]
    show([*(lengths.lines if lengths is not None else ()), *lines])
    if output is not None:
        show([f"Wrote {output}. {_next_step(found, output)}"])


def _next_step(found: Plan, output: str) -> str:
    """What runs a plan that was written, or why nothing does."""
    if found.target.is_ours:
        from planner.targets.executed import unsupported

        if problems := unsupported(found):
            return f"For comparison; executor launch refuses it: {'; '.join(problems)}"
        return f"Next: executor {'launch' if found.workload.mode == 'train' else 'serve'} {output}"
    from planner.exports.export import TARGETS

    name = found.target.name
    then = f"plan export {output} --to {name}" if name in TARGETS else f"give {name}'s own scripts these degrees"
    return f"Next: {then}"


@cli.command()
@options.shared
@click.option("--strategy", required=True, metavar="NAME=VALUE,…",
              help="The layout: data, ring, ulysses, shard, zero, recompute, tensor, pipeline, …")  # fmt: skip
@click.option("--longest", is_flag=True,
              help="Also the longest row whose memory fits; without --ctx that row is priced.")  # fmt: skip
@click.option("--for", "name", default="ours", show_default=True, metavar="FRAMEWORK",
              help="Whose code runs the step, or a target; `plan frameworks` lists them.")  # fmt: skip
@click.option("--certificate", "certified", metavar="FILE",
              help="Bands from this certificate, of your own rows [default: this release's].")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def price(strategy: str, longest: bool, name: str, certified: str | None, as_json: bool, **given: Any) -> None:
    """Price one given layout, without search: time, memory and bytes by part."""
    asked = options.question(given, any_length=longest)
    from planner.search.together import check_together

    fixed = read_pins(strategy, "--strategy")
    check_together(fixed, asked.workload.model)
    layout = strategy_of(fixed, asked.workload.model.layers)
    framework, asked = options.framework_of(name, asked, given)
    most = options.longest_row(asked, layout, framework) if longest else None
    if most is not None and given["ctx"] is None:
        asked = options.of_length(asked, most)
    from cost_models.certificate import load
    from cost_models.pricing import price as price_layout
    from planner.screens.layout_lines import cluster_line, layers_line
    from planner.screens.lines import show
    from planner.screens.price_lines import cost_dict, cost_lines, dummy_lines, explanation, framework_lines

    known = load(Path(certified)) if certified else None
    cost = price_layout(asked.cluster, asked.workload, layout, profile=asked.profile, framework=framework)
    if as_json:
        found = {} if most is None else {"longest_tokens": most}
        click.echo(json.dumps({"framework": framework.name, **found, **cost_dict(cost, asked.room, known)}, indent=1))
        return
    show([asked.workload.describe(), cluster_line(asked.cluster), layout.describe()])
    if asked.workload.mode == "train":
        show([layers_line(layout, asked.workload.model.layers)])
    show(framework_lines(framework, layout))
    show(cost_lines(cost, simulated=None, longest=most, room=asked.room, known=known))
    show(dummy_lines(cost, asked.workload))
    show(explanation(cost))


@cli.command()
@click.argument("plan_file", metavar="PLAN")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--explain", is_flag=True, help="Show every number as a sum of its parts.")
def show(plan_file: str, as_json: bool, explain: bool) -> None:
    """Show a plan as when it was made."""
    from planner.plan_file import Plan
    from planner.screens import plan_lines
    from planner.screens.lines import show

    plan = Plan.load(plan_file)
    if as_json:
        click.echo(plan.to_json(), nl=False)
    else:
        show(plan_lines.plan_lines(plan, explain=explain))


@cli.command()
@click.argument("plan_file", metavar="PLAN")
@click.option("--profile", "profile", metavar="FILE", help="The profile that the plan was made with, if any.")
def check(plan_file: str, profile: str | None) -> None:
    """Check a plan file: every key, and that this release prices, simulates and searches it to the same end."""
    from planner.checking import check_plan
    from planner.plan_file import Plan

    plan = Plan.load(plan_file)
    measured = options.profile_of(plan, profile)
    with console.Progress() as progress:
        complete = check_plan(plan_file, plan, measured, progress.show)
    left = "" if complete else "; a time limit cut its search short: bound, choice and alternatives are not checked"
    click.echo(f"{plan_file}: consistent; {plan.strategy.describe()}, {plan.cost.step_s:.4g} s a step{left}")


@cli.command()
def clusters() -> None:
    """List the cluster presets, with the source of each."""
    from planner.screens import catalogue
    from planner.screens.lines import show

    show(catalogue.cluster_lines())


@cli.command()
def devices() -> None:
    """List the devices: memory, bandwidth, 16-bit peak, whether they were measured, and the data sheet."""
    from planner.screens import catalogue
    from planner.screens.lines import show

    show(catalogue.device_lines())


@cli.command()
@click.argument("name", required=False)
def frameworks(name: str | None) -> None:
    """List the frameworks that `plan price --for` knows; with NAME what is known of one, and why."""
    from planner.screens import catalogue
    from planner.screens.lines import show

    show(catalogue.framework_lines() if name is None else catalogue.fact_lines(name))


def main() -> None:
    """Run the command line; `planner.__main__` is the console script."""
    console.run(cli, "plan")
