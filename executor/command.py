"""The `executor` command: launch a plan, serve it, profile this machine, check a plan's memory.

    executor launch plan.json --config train.yaml       executor profile -o profile.json       executor check plan.json

A user's mistake is one line on standard error and exit code 2; nothing is half-written. Torch is imported by the
processes that need it, not here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cost_models.errors import InputError
from cost_models.hardware.readers import hostlist
from planner import console
from planner.files import write_whole

EXAMPLES = """\b
Examples:
  executor profile -o profile.json
  executor check plan.json
  executor launch plan.json --config examples/train.yaml
  executor launch plan.json --job longvila.generate --config examples/ask.yaml --set checkpoint=runs/example
  executor serve plan.json --set checkpoint=runs/example
  executor launch plan.json --hosts node1,node2 --dry-run
  executor launch plan.json --slurm job.sh
"""


@click.group(
    cls=console.NoEmptyGroup,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="mmsp", prog_name="executor")
def cli() -> None:
    """Make a plan real: launch it, serve it, measure this machine, or check a plan's memory."""


def _names(text: str | None) -> tuple[str, ...]:
    return hostlist.expand(text) if text else ()


def _node_rank(text: str | None) -> int | None:
    if text is None or text == "auto":
        return None if text is None else -1
    if not text.isdigit():
        raise InputError(f"--node-rank {text!r} is neither a number nor auto")
    return int(text)


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--job", default="longvila.train", show_default=True, help="Module with main(job), by dotted name.")
@click.option("--config", help="YAML file with the job's settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting; wins over --config.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder for logs.  [default: runs/launch]")
@click.option("--dry-run", is_flag=True, help="Show processes, groups, places and settings; start nothing.")
@click.option("--slurm", type=click.Path(path_type=Path), help="Write a batch script to this file; start nothing.")
@click.option("--hosts", help="Hosts in slot order: h1,h2,… or gpu[001-004].")
@click.option("--node-rank", help="Start the ranks of this host of --hosts: its number, or auto (by name).")
@click.option("--port", type=click.IntRange(1, 65535), help="Where the ranks meet.  [default: a free one, or 29400]")
@click.option("--backend", type=click.Choice(["gloo", "nccl"]), help="Refuse the plan if it needs the other one.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, type=click.FloatRange(5, 86400),
              help="Seconds for the ranks to meet, and for one collective.")  # fmt: skip
@click.option("--silence", "silence_s", default=20.0, show_default=True, type=click.FloatRange(1, 86400),
              help="A rank that is not heard of for so many seconds ends the job.")  # fmt: skip
@click.option("--elastic", default=0, metavar="N", type=click.IntRange(0, 1000),
              help="After up to N failures go on from the last checkpoint, on what is left.")  # fmt: skip
@click.option("--compile", is_flag=True, help="Run decoder layers under torch.compile while training.")
@click.option("--trace", type=click.Path(path_type=Path, file_okay=False),
              help="Profile a few steps of every rank into this folder, for `plan compare`.")  # fmt: skip
def launch(
    plan: Path, dry_run: bool, slurm: Path | None, hosts: str | None, node_rank: str | None, **rest: Any
) -> None:
    """Run PLAN: start its ranks here, or print how to start them on several hosts."""
    from executor.launch import dry_run as preview
    from executor.launch import launch as launching

    request = launching.Request(plan=plan, hosts=_names(hosts), node_rank=_node_rank(node_rank), **rest)
    prepared = launching.prepare(request)
    for note in prepared.settings.notes:
        click.echo(f"note: {note}", err=True)
    if slurm is not None:
        from planner.exports.slurm import script

        write_whole(slurm, script(prepared.plan, preview.batch_arguments(prepared)), "--slurm")
        click.echo(f"wrote {slurm}: submit it with `sbatch {slurm}`")
    elif dry_run:
        click.echo(preview.describe(prepared))
    elif prepared.host is None:
        click.echo(preview.start_lines(prepared))
    else:
        from executor.launch.worker import run

        sys.exit(run(prepared))


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--config", help="YAML file with the server's settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting; wins over --config.")
@click.option("--listen", metavar="HOST:PORT", help="Where to take requests.  [default: 127.0.0.1:8000]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder for logs.  [default: runs/launch]")
def serve(plan: Path, sets: tuple[str, ...], listen: str | None, **rest: Any) -> None:
    """Answer questions about videos over HTTP on PLAN's ranks, as OpenAI's chat completions."""
    from executor.launch import launch as launching
    from executor.launch.worker import run

    sets += (f"listen={json.dumps(listen)}",) if listen else ()
    prepared = launching.prepare(launching.Request(plan=plan, sets=sets, job="executor.serve.job", **rest))
    for note in prepared.settings.notes:
        click.echo(f"note: {note}", err=True)
    if prepared.host is None:
        raise InputError(
            "a plan of several hosts is served by `executor launch PLAN --job executor.serve.job --hosts …`"
        )
    sys.exit(run(prepared))


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--rank", default=0, show_default=True, help="Whose memory to count.")
@click.option("--json", "as_json", is_flag=True, help="Print the components as JSON.")
def check(plan: Path, rank: int, as_json: bool) -> None:
    """Count the memory of PLAN on its real step with fake tensors, component by component. Needs no GPU."""
    from planner.plan_file import Plan

    loaded = Plan.load(plan)
    from executor.check.check import report

    click.echo(report(loaded, rank, as_json))


@cli.command("profile")
@click.option("-o", "--output", default="profile.json", show_default=True, type=click.Path(path_type=Path))
@click.option("--ranks", type=int, help="Processes that measure.  [default: all GPUs, or twice the CPU cores]")
@click.option("--quick", is_flag=True, help="Shorter windows: under a minute on a laptop.")
def profile_command(output: Path, ranks: int | None, quick: bool) -> None:
    """Measure kernels, collectives and framework time here, and write a profile for `plan --profile`."""
    from executor.measure import profiling

    measured = profiling.profile(output, ranks, quick)
    click.echo(f"wrote {output}: {len(measured.samples)} samples of {measured.machine}")


def main() -> None:
    """The `executor` console script."""
    console.run(cli, "executor")


if __name__ == "__main__":
    main()
