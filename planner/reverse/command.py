"""`plan --longest`, `--finish`, `--recipe` and `--goodput`: their options, and their answers as lines or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, NodeRun
from cost_models.units import parse_tokens, show_bytes, show_seconds, show_tokens
from cost_models.workload import DTYPE_BYTES, Workload
from planner.question import options
from planner.question.pins import read_pins
from planner.screens.lines import show

if TYPE_CHECKING:
    from planner.reverse.goodput import Failures, Fleet

_FAILURES = ("mtbf_hours", "checkpoint_gb_per_s", "restart_minutes", "repair_hours")

asked_in_reverse = options.adding(
    click.option("--longest", is_flag=True, help="Plan the longest row that fits on this cluster; takes no --ctx."),
    click.option("--finish", metavar="'N tokens in T'",
                 help="Fewest nodes for '3T tokens in 30 days'; --cluster may name several presets by commas."),
    click.option("--goodput", is_flag=True, help="What failures leave: checkpoint interval, spares, planning again."),
    click.option("--mtbf-hours", metavar="H", help="With --goodput: hours between failures of the cluster."),
    click.option("--checkpoint-gb-per-s", metavar="R", default="2", show_default=True,
                 help="With --goodput: GB/s at which a node writes its part of a checkpoint."),
    click.option("--restart-minutes", metavar="M", default="10", show_default=True,
                 help="With --goodput: from a failure to the next step."),
    click.option("--repair-hours", metavar="H", default="24", show_default=True,
                 help="With --goodput: until a failed node is back."),
    click.option("--recipe", metavar="NAME",
                 help="Plan every stage of a training (longvila-8b): hours and GPU-hours; takes no --ctx."),
    click.option("--keep-attention", metavar="4..24",
                 help="Time, memory and longest row if so many layers keep attention and the others mix by a state."),
    click.option("--window", metavar="TOKENS", help="With --keep-attention: the others attend to so many tokens."),
    click.option("--price-per-gpu-hour", "dollars", metavar="DOLLARS",
                 help="With --finish, --recipe or --backbones: also show the cost."),
)  # fmt: skip
"""Adds the options of reverse questions."""


def finish(given: Mapping[str, Any], on_step: Callable[[str], None]) -> None:
    """Print the fewest GPUs of each cluster that reach the goal, cheapest first."""
    from planner.reverse.finish import Fewest, Goal, fewest

    goal = Goal.read(given["finish"])
    if given["gpus"] is not None:
        raise InputError("--gpus is what --finish asks for; leave it out")
    dollars = options.dollars(given)
    names = [name.strip() for name in given["cluster"].split(",")]
    asked = options.question({**given, "cluster": names[0], "gpus": "1"})
    workload = asked.workload
    pins = read_pins(given["fix"])
    found = [
        fewest(name, workload, goal, fixed=pins, dollars_per_gpu_hour=dollars, room=asked.room, on_step=on_step)
        for name in names
    ]
    found.sort(key=lambda one: (bool(one.problem), one.dollars or one.gpu_hours, one.gpus))
    if given["as_json"]:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    rate = f"{goal.tokens:.3g} tokens at {goal.tokens_per_s:,.0f} tokens/s"
    show([f"{workload.describe()}; {rate}, failures not counted"])

    def line(one: Fewest) -> str:
        if one.problem:
            return f"{one.cluster}: {one.problem}"
        cost = f", ${one.dollars:,.0f}" if one.dollars is not None else ""
        time = f"{one.seconds / 86400:.3g} days, {one.gpu_hours:,.0f} GPU-hours{cost}"
        free = f" ({one.gpus - one.used} of them free)" if one.used < one.gpus else ""
        nodes = f"{one.nodes} node{'s' if one.nodes != 1 else ''}"
        return f"{one.cluster}: {nodes}, {one.gpus} × {one.device}{free}, {time}; {one.plan}"

    show(line(one) for one in found)
    if not found[0].problem:
        click.echo(f"Next: plan --cluster {found[0].cluster} --gpus {found[0].gpus} …; --goodput counts failures")


def keep_attention(given: Mapping[str, Any], asked: options.Question, on_step: Callable[[str], None]) -> None:
    """Print a row for each number of attention layers."""
    from planner.reverse.keep_attention import kept, read_counts

    window = parse_tokens(given["window"], "--window") if given["window"] else 0
    counts = read_counts(given["keep_attention"], asked.workload.model.layers)
    found = kept(asked, counts, read_pins(given["fix"]), window, on_step)
    if given["as_json"]:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    others = f"attend to a window of {window} tokens" if window else "mix tokens by a state"
    show([f"{asked.workload.describe()}; layers that do not keep attention {others}"])
    show([f"{'attention':>9} {'weights':>8} {'step':>9} {'memory':>10} {'longest row':>12}  plan"])
    for one in found:
        step = "-" if one.step_s is None else show_seconds(one.step_s)
        memory = "-" if one.memory_bytes is None else show_bytes(one.memory_bytes)
        longest = "none" if one.longest_tokens is None else show_tokens(one.longest_tokens)
        plan = one.plan or "nothing fits"
        show([f"{one.attention_layers:>9} {one.params / 1e9:>7.2f}B {step:>9} {memory:>10} {longest:>12}  {plan}"])
    estimates = "" if window else "Estimates: seconds of the layers' scans. "
    click.echo(f"{estimates}What a model loses: python -m longvila.distill")


def recipe(given: Mapping[str, Any], asked: options.Question, on_step: Callable[[str], None]) -> None:
    """Print the plan of each stage, its hours, and the published GPU-hours beside them."""
    from planner.reverse.recipe import Planned, Recipe, plan_recipe

    whole = Recipe.load(given["recipe"])
    dollars = options.dollars(given)
    found = plan_recipe(
        whole, asked.cluster, like=asked.workload, fixed=read_pins(given["fix"]), dollars_per_gpu_hour=dollars,
        profile=asked.profile, room=asked.room, on_step=on_step,
    )  # fmt: skip
    if given["as_json"]:
        told = [asdict(one) for one in whole.published]
        click.echo(
            json.dumps({"recipe": whole.title, "stages": [asdict(one) for one in found], "published": told}, indent=1)
        )
        return

    def line(one: Planned) -> str:
        if one.problem:
            return f"{one.stage:22} {one.problem}"
        time = f"{one.hours:.3g} h, {one.gpu_hours:,.0f} GPU-hours" if one.hours else "steps not published"
        cost = f", ${one.dollars:,.0f}" if one.dollars and one.hours else ""
        told = f" (published: {one.published_gpu_hours:,.0f})" if one.published_gpu_hours else ""
        return f"{one.stage:22} {show_seconds(one.step_s):>8} a step, {time}{cost}{told}; {one.plan}"

    sums = [f"{one.stages + ', all':22} {one.beside(found)}" for one in whole.published]
    show([f"{whole.title} on {asked.cluster.gpus} GPUs", *map(line, found), *sums, whole.why])


def goodput(given: Mapping[str, Any], asked: options.Question, on_step: Callable[[str], None]) -> None:
    """Print the best checkpoint interval, and spares against planning again, for this cluster."""
    from planner.reverse.goodput import Failures, fleets, rates_of

    if given["mtbf_hours"] is None:
        raise InputError("--mtbf-hours is missing: hours between failures of the cluster (such as 8)")
    numbers = {name: options.positive(given[name], f"--{name.replace('_', '-')}") for name in _FAILURES}
    cluster, workload = asked.cluster, asked.workload
    size = state_bytes(workload)
    failures = Failures(
        between_s=numbers["mtbf_hours"] * 3600,
        checkpoint_s=size / (numbers["checkpoint_gb_per_s"] * 1e9 * cluster.slots),
        restart_s=numbers["restart_minutes"] * 60,
        repair_s=numbers["repair_hours"] * 3600,
    )

    def rate(nodes: int) -> float:
        on_step(f"planning {nodes} nodes")
        return rate_of(first_nodes(cluster, nodes), workload, asked, read_pins(given["fix"])) if nodes else 0.0

    rates = rates_of(rate, cluster.slots, failures)
    if not rates[0]:
        raise InputError("nothing fits on the cluster; `plan` says what would")
    found = fleets(failures, rates, cluster.slots)
    if given["as_json"]:
        answer = {"interval_s": failures.interval_s(), "checkpoint_s": failures.checkpoint_s, "rates": rates}
        click.echo(json.dumps({**answer, "fleets": [asdict(one) for one in found]}, indent=1))
        return
    show(_goodput_lines(failures, rates, found, size))


def _goodput_lines(failures: Failures, rates: list[float], found: list[Fleet], size: float) -> list[str]:
    interval = failures.interval_s()
    writing = f"a checkpoint of {show_bytes(size)} takes {show_seconds(failures.checkpoint_s)}"

    def words(one: Fleet) -> str:
        spares = f"{one.spares} spare node{'s' if one.spares != 1 else ''}"
        then = "then plan again on what is left" if one.replans else "then wait for repair"
        return f"{one.tokens_per_s:,.0f} tokens/s ({one.tokens_per_s / rates[0]:.1%}): {spares}, {then}"

    others = [one for one in found[1:] if one.tokens_per_s > 0][:4]
    return [
        f"Without failures {rates[0]:,.0f} tokens/s; {writing}",
        f"Checkpoint every {show_seconds(interval)}: {failures.goodput(interval):.1%} of the time is work",
        f"Best      {words(found[0])}",
        *(f"          {words(one)}" for one in others),
        "Estimates: failures at a constant rate, one node each; storage rate, restart and repair as given",
    ]


def state_bytes(workload: Workload) -> float:
    """Bytes of a checkpoint: the master copy and the optimizer's state of every weight."""
    precision = workload.precision
    moments = 2 if workload.optimizer == "adamw" else 1
    each = DTYPE_BYTES[precision.master] + moments * DTYPE_BYTES[precision.optimizer]
    return float(workload.model.params * each)


def first_nodes(cluster: Cluster, nodes: int) -> Cluster:
    """The cluster without its last nodes: GPUs of the others are 0, so that slots keep their places."""
    kept: list[NodeRun] = []
    left = nodes
    for run in cluster.runs:
        here = min(left, run.count)
        left -= here
        if here:
            kept.append(NodeRun(count=here, node=run.node))
        if here < run.count:
            kept.append(NodeRun(count=run.count - here, node=replace(run.node, gpus=0)))
    return replace(cluster, runs=tuple(kept))


def rate_of(cluster: Cluster, workload: Workload, asked: options.Question, fixed: Mapping[str, object]) -> float:
    """Tokens a second of the best plan; 0 where nothing fits."""
    from planner.solve import NothingFits, solve

    try:
        cost = solve(cluster, workload, fixed=fixed, profile=asked.profile, room=asked.room, keep=1).best[0].cost
    except NothingFits:
        return 0.0
    return cost.tokens / cost.step_s
