"""`plan export`: a plan as the files of another launcher or framework."""

from __future__ import annotations

from pathlib import Path

import click

from planner import console

EXAMPLES = """\b
Examples:
  plan export plan.json --to slurm > job.sh
  plan export plan.json --to accelerate -o configs
  plan export plan.json --to megatron
"""


@click.command(cls=console.NoEmpty, epilog=EXAMPLES)
@click.argument("plan_file", metavar="PLAN")
@click.option("--to", "target", required=True, metavar="NAME",
              help="torchrun, slurm, skypilot, kubeflow (they start this executor); torchtitan, megatron, deepspeed, "
                   "accelerate, trl, ms-swift, vllm (their own code).")  # fmt: skip
@click.option("-o", "--output", metavar="FOLDER", help="Write the files there [default: print them].")
def export(plan_file: str, target: str, output: str | None) -> None:
    """Write PLAN as the flags or files of another program; what it cannot say is said on standard error."""
    from planner.exports.export import export as make
    from planner.files import check_target, write_whole
    from planner.plan_file import Plan

    made = make(Plan.load(plan_file), target, plan_file)
    if output is None:
        for name, text in made.files.items():
            click.echo(f"# {name}\n{text}" if len(made.files) > 1 else text, nl=False)
    else:
        paths = {Path(output) / name: text for name, text in made.files.items()}
        for path in paths:
            check_target(str(path), "-o")
        for path, text in paths.items():
            write_whole(path, text, "-o")
            click.echo(f"Wrote {path}")
    for note in made.notes:
        click.echo(f"not said: {note}", err=True)
