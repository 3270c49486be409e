"""`plan what-if`: the options of the subcommand, its files and its Slurm script."""

from __future__ import annotations

import itertools
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from cost_models.errors import InputError
from planner import console
from planner.files import check_target, write_whole
from planner.question import options
from planner.question.pins import read_pins
from planner.screens.lines import show

EXAMPLES = """\b
Examples:
  plan what-if --gpus 256 --ctx 2M --vary inter_node_gb_per_s=12.5..100
  plan what-if --gpus 256 --ctx 2M --lose node:1,2,4 --degrade link:0.5@0.1
  plan what-if --gpus 64 --ctx 512K --gpu h200,b200 --vary ctx=256K..4M --points 9 -o sweep.csv
  plan what-if --gpus 1024 --ctx 2M --batch 4 --oversubscribe 2:1..8:1 --price-per-gpu-hour 2.5 --json
  plan what-if --gpus 256 --ctx 2M --vary ctx=64K..4M --points 500 -o big.json --slurm 16 > sweep.sh
"""
_EVENTS = ("lose", "degrade", "slow")


@click.command(name="what-if", cls=console.NoEmpty, epilog=EXAMPLES)
@options.shared_but("model")
@click.option("--vary", multiple=True, metavar="NAME=A..B|A,B,…",
              help="A number or word of the question: ctx, gpus, frames, batch, model, cluster, mode, "
              "inter_node_gb_per_s, intra_node_gb_per_s, memory_gib, host_link_gb_per_s, nic_latency_us, "
              "nodes_per_leaf, oversubscription.")  # fmt: skip
@click.option(
    "--lose",
    multiple=True,
    metavar="node|nic|gpu|leaf|uplink:N",
    help="Gone: a count, or a share below 1; by name link:slot3.nic2, link:slot3.gpu0-1, link:leaf1.",
)
@click.option("--degrade", multiple=True, metavar="link|nvlink:F[@N]",
              help="Rates times F, on N nodes (or a share), or @slot3, @slot3.nic2.")  # fmt: skip
@click.option("--slow", multiple=True, metavar="node:S[@N]",
              help="The clock of N nodes (1 unless given), or @slot3, lower by S.")  # fmt: skip
@click.option("--gpu", metavar="NAME,…", help="Other devices in every node, such as h200,b200.")
@click.option("--model", default="longvila-8b", show_default=True, metavar="NAME|PATH,…",
              help="Presets or configs, as in `plan`; the first is the one of now.")  # fmt: skip
@click.option("--oversubscribe", metavar="A:1..B:1", help="Downlinks over uplinks of the leaves.")
@click.option("--points", default="5", show_default=True, metavar="N", help="Values of a range.")
@click.option("--price-per-gpu-hour", "dollars", metavar="DOLLARS", help="Also show dollars per million tokens.")
@click.option("--fix", metavar="NAME=VALUE,…", help="Pin choices, as in `plan --fix`.")
@click.option("--objective", default="time", show_default=True, metavar="time|memory|gpu-hours",
              help="What each plan minimises.")  # fmt: skip
@click.option("--seed", default="0", show_default=True, metavar="N", help="Draws the nodes that are hit.")
@click.option("--no-cliffs", is_flag=True, help="Leave out the search for thresholds.")
@click.option("--jobs", metavar="N", help="Processes [default: the cores of this machine].")
@click.option("-o", "--output", metavar="FILE", help="Write all rows: .csv or .json. A stopped sweep goes on from it.")
@options.report
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--slurm", metavar="N", help="Print a batch script that answers in N array tasks, then merges; needs -o.")
@click.option("--part", metavar="K/N", help="Answer only part K of N (what the array tasks do).")
def what_if(**given: Any) -> None:
    """What happens to the plan if the network, the machines or the question change.

    Every scenario is planned again, and priced with the old plan kept. Options that change something combine: every
    value of each with every value of the others. Bisection gives the thresholds at which the plan changes.
    """
    from planner.what_if import table
    from planner.what_if.cliffs import cliffs
    from planner.what_if.scenario import outcome
    from planner.what_if.sweep import WHOLE, Part, Store, run

    sweep = _sweep(given)
    sweep.check()
    output = _output(given["output"])
    if given["page"]:
        check_target(given["page"], "--report")
    dollars = options.dollars(given)
    if given["slurm"] is not None:
        click.echo(_slurm(options.whole(given["slurm"], "--slurm"), output), nl=False)
        return
    part = Part.read(given["part"]) if given["part"] else WHOLE
    if part != WHOLE and output is None:
        raise InputError("--part needs -o FILE: where shall its answers go?")
    jobs = options.whole(given["jobs"], "--jobs") if given["jobs"] else None
    now = outcome(sweep, sweep.now(), None)
    if now.problem:
        raise InputError(f"the question as it is now: {now.problem}")
    store = Store(output, sweep, part)
    try:
        with console.Progress(sweep.scenarios) as progress:
            run(sweep, store, part, jobs, progress.advance)
            if part != WHOLE:
                store.close()
                click.echo(f"answered part {part.number} of {part.of}")
                return
            found = [] if given["no_cliffs"] else cliffs(sweep, progress.show)
    except KeyboardInterrupt:
        store.close()
        held = f"; {store.path} holds them: the same command goes on" if output else ""
        click.echo(f"plan: stopped after {len(store.known)} of {sweep.scenarios} scenarios{held}", err=True)
        sys.exit(130)
    answers = table.rows(sweep, now, [store.known[i] for i in range(sweep.scenarios)], dollars)
    if output is not None:
        write_whole(output, table.as_csv(answers) if output.suffix == ".csv" else table.as_json(sweep, answers, found))
    if given["page"]:
        from planner.page.report_page import save_what_if_page

        save_what_if_page(given["page"], sweep, now, [store.known[i] for i in range(sweep.scenarios)], found)
    store.close(remove=True)
    if given["as_json"]:
        click.echo(table.as_json(sweep, answers, found), nl=False)
    else:
        show([*table.lines(sweep, answers, found), *([f"Wrote {output}"] if output else [])])


def _sweep(given: dict[str, Any]) -> Any:
    """The axes in the order in which the help names their options."""
    from planner.what_if import axes
    from planner.what_if.events import event
    from planner.what_if.scenario import Sweep

    points = options.whole(given["points"], "--points", least=2)
    objective = options.objective(given["objective"])
    changes = [axes.vary(text, points) for text in given["vary"]]
    changes += [event(flag, text) for flag in _EVENTS for text in given[flag]]
    changes += [axes.gpu(given["gpu"])] if given["gpu"] else []
    changes += [axes.vary(f"oversubscription={given['oversubscribe']}", points)] if given["oversubscribe"] else []
    asked = {name: given[name] for name in options.NAMES}
    asked["model"], _, others = given["model"].partition(",")
    changes += [axes.vary(f"model={given['model']}", points)] if others else []
    return Sweep(
        given=asked,
        axes=tuple(changes),
        fixed=read_pins(given["fix"]),
        objective=objective,
        seed=options.whole(given["seed"], "--seed", least=0),
    )


def _output(path: str | None) -> Path | None:
    if path is None:
        return None
    if Path(path).suffix not in (".csv", ".json"):
        raise InputError(f"-o {path!r} is neither a .csv nor a .json file")
    return check_target(path, "-o")


def _slurm(parts: int, output: Path | None) -> str:
    """A batch script: an array of parts, then one task that merges them."""
    if output is None:
        raise InputError("--slurm needs -o FILE on a file system that all nodes see")
    asked = [word for before, word in itertools.pairwise(["", *sys.argv[1:]])
             if "--slurm" not in (before, word) and not word.startswith("--slurm=")]  # fmt: skip
    command = shlex.join(["plan", *asked])
    return f"""#!/bin/sh
# sbatch this file: {parts} array tasks answer a part each; the last line merges when all have ended.
#SBATCH --job-name=plan-what-if --array=0-{parts - 1} --cpus-per-task=2
{command} --part "$SLURM_ARRAY_TASK_ID/{parts}" --jobs "$SLURM_CPUS_PER_TASK"
# then, once: {command}
"""
