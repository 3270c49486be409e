"""`plan simulate` and `plan compare`: a plan's step played, under jitter too, and measured traces next to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cost_models.errors import InputError
from cost_models.units import show_seconds
from planner import console
from planner.question import options

if TYPE_CHECKING:
    from planner.plan_file import Plan
    from planner.simulator.compare import Row

MOST_SEEDS = 1000


@click.command(cls=console.NoEmpty)
@click.argument("plan_file", metavar="PLAN")
@click.option("--trace", metavar="FILE", help="Write a trace that Perfetto (ui.perfetto.dev) opens.")
@click.option("--goal", metavar="FILE", help="Write a GOAL schedule for LogGOPSim or ATLAHS.")
@click.option("--jitter", metavar="S", help="Also draw each GPU's speed: standard deviation, such as 0.05.")
@click.option("--seeds", metavar="N", help="Draws of --jitter [default: 20].")
@click.option("--profile", "profile", metavar="FILE", help="The profile that the plan was made with, if any.")
@options.report
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def simulate(
    plan_file: str,
    trace: str | None,
    goal: str | None,
    jitter: str | None,
    seeds: str | None,
    profile: str | None,
    page: str | None,
    as_json: bool,
) -> None:
    """Play a plan's step as discrete events on the cluster's topology."""
    from planner.files import check_target, write_whole
    from planner.plan_file import Plan
    from planner.screens.lines import show
    from planner.screens.simulation_lines import simulation_dict, simulation_lines
    from planner.simulator.simulation import simulate as play

    for path, flag in ((trace, "--trace"), (goal, "--goal"), (page, "--report")):
        if path is not None:
            check_target(path, flag)
    if seeds is not None and jitter is None:
        raise InputError(f"--seeds {seeds}: nothing is drawn without --jitter (such as --jitter 0.05)")
    deviation, draws = _deviation(jitter), options.whole(seeds or "20", "--seeds")
    if draws > MOST_SEEDS:
        raise InputError(f"--seeds {draws}: at most {MOST_SEEDS}")
    plan = Plan.load(plan_file)
    asked, code = (plan.cluster, plan.workload, plan.strategy, plan.placement), plan.target.code
    measured = options.profile_of(plan, profile)
    total = 1 + (draws if deviation else 0)
    with console.Progress(total if total > 1 else None) as progress:
        progress.show("simulating")
        found = play(*asked, profile=measured, framework=code, trace=trace is not None)
        steps = []
        for done in range(1, total):
            progress.advance(done, total)
            steps.append(play(*asked, profile=measured, framework=code, jitter=deviation, seed=done - 1).step_s)
    if trace is not None and found.trace is not None:
        found.trace.write(trace)
    if goal is not None:
        from planner.simulator.goal import goal as schedule
        from planner.simulator.played_program import played_program

        parts = schedule(*played_program(*asked, measured, code), plan.strategy)
        with console.Progress(plan.strategy.ranks) as progress:
            progress.show("writing the schedule")
            write_whole(goal, progress.each(parts, 1 + plan.strategy.ranks), "--goal")
    if page is not None:
        from planner.page.report_page import save_plan_page

        save_plan_page(page, plan, measured)
    if as_json:
        drawn = {"jitter": {"deviation": deviation, "step_s": steps}} if steps else {}
        click.echo(json.dumps({**simulation_dict(found), **drawn}, indent=1))
        return
    show(simulation_lines(plan, found))
    show(jitter_lines(deviation, steps) if steps else [])
    show([f"Wrote {path}" for path in (trace, goal, page) if path])


def _deviation(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise InputError(f"--jitter {text!r} is not a standard deviation above 0 and at most 1, such as 0.05")
    return value


def jitter_lines(deviation: float, steps: Sequence[float]) -> list[str]:
    """The band of the step's time over the draws."""
    order = sorted(steps)
    middle = order[len(order) // 2] if len(order) % 2 else (order[len(order) // 2 - 1] + order[len(order) // 2]) / 2
    band = f"{show_seconds(order[0])} to {show_seconds(order[-1])}"
    drawn = f"{show_seconds(middle)} in the median of {len(order)} draws, {band}"
    return [f"Jitter    {drawn}, where the speeds of GPUs deviate by {deviation:.1%}"]


@click.command(cls=console.NoEmpty)
@click.argument("plan_file", metavar="PLAN")
@click.argument("traces", metavar="TRACE…", nargs=-1, required=True)
@click.option("--profile", "profile", metavar="FILE", help="The profile that the plan was made with, if any.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def compare(plan_file: str, traces: tuple[str, ...], profile: str | None, as_json: bool) -> None:
    """Compare a plan's simulated step with traces of torch.profiler (.json or .json.gz, one a rank; or folders)."""
    from planner.plan_file import Plan
    from planner.screens.lines import show
    from planner.simulator.compare import compare as compare_traces
    from planner.simulator.compare import trace_files
    from planner.simulator.simulation import simulate as play

    plan, files = Plan.load(plan_file), [file for path in traces for file in trace_files(path)]
    measured = options.profile_of(plan, profile)
    with console.Progress() as progress:
        progress.show("simulating")
        layout, code = (plan.cluster, plan.workload, plan.strategy, plan.placement), plan.target.code
        found = play(*layout, profile=measured, framework=code, trace=True)
        progress.show("reading traces")
        rows = compare_traces(found, plan.strategy, files, plan.digest)
    if as_json:
        click.echo(json.dumps(_rows_dict(rows), indent=1))
    else:
        show(_rows_lines(plan, rows, len(files)))


def _rows_dict(rows: Sequence[Row]) -> dict[str, Any]:
    from planner.simulator.compare import largest

    return {
        "seconds": {row.kernels: {"simulated": row.simulated_s, "measured": row.measured_s} for row in rows},
        "largest_differences": [row.kernels for row in largest(rows)],
    }


def _rows_lines(plan: Plan, rows: Sequence[Row], traces: int) -> list[str]:
    from planner.simulator.compare import largest

    table: list[tuple[str, ...]] = [("Seconds of a step", "simulated", "measured", "difference")]
    for row in rows:
        more = row.measured_s - row.simulated_s
        cells = [show_seconds(value) if value else "-" for value in (row.simulated_s, row.measured_s)]
        table.append((row.kernels, *cells, f"{'+' if more >= 0 else '-'}{show_seconds(abs(more))}"))
    widths = [max(len(line[i]) for line in table) for i in range(4)]
    lines = [f"{plan.strategy.describe()}; {traces} trace{'s' * (traces > 1)}, mean over ranks"]
    lines += ["  ".join((line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in (1, 2, 3)))) for line in table]
    named = [
        f"{row.kernels} {show_seconds(abs(row.measured_s - row.simulated_s))} "
        f"{'more' if row.measured_s > row.simulated_s else 'less'} than simulated"
        for row in largest(rows)
    ]
    return [*lines, "Largest differences: " + "; ".join(named)]
