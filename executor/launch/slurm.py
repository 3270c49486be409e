"""A Slurm batch script for a plan: one task per host, which starts its ranks; hosts are bound to slots by name.

    #SBATCH --nodes --ntasks-per-node=1 --gpus-per-node      srun executor launch plan.json --hosts … --node-rank=auto

Nothing of the plan or the command line is ever interpreted by the shell: every value is quoted, and a value with a
line break or control character is refused. The node order of Slurm is not read. Leaves out site
settings (account, partition, time): pass them to `sbatch`.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cost_models.errors import InputError
from executor.launch.dry_run import DEFAULT_PORT, job_arguments
from executor.launch.hosts import gpus_needed, used_slots

if TYPE_CHECKING:
    from executor.launch.launch import Launch


def script(launch: Launch) -> str:
    """The text of the batch script."""
    plan, slots = launch.plan, used_slots(launch.plan)
    gpus = max(gpus_needed(plan, slot) for slot in slots)
    run_dir = _printable(str(launch.run_dir), "--run-dir")
    arguments = [_printable(text, "the command line") for text in job_arguments(launch)]
    if launch.request.run_dir is not None:
        arguments.append(f"--run-dir={run_dir}")
    arguments.append(f"--port={launch.request.port or DEFAULT_PORT}")
    directives = [
        "--job-name=mmsp",
        f"--nodes={len(slots)}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={gpus}"] if launch.backend == "nccl" else []),
        "--exclusive",
        "--output=slurm-%j.log",
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {directive}" for directive in directives),
            f"# {_printable(plan.workload.describe(), 'the plan')}: {plan.strategy.describe()}",
            "set -euo pipefail",
            'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)',
            "# One task per host; the first that fails ends all.",
            'srun --kill-on-bad-exit=1 executor launch --hosts="$hosts" --node-rank=auto \\',
            f"  {shlex.join(arguments)}",
            "",
        ]
    )


def _printable(text: str, where: str) -> str:
    if not text.isprintable():
        raise InputError(f"{where} holds a line break or control character, which a batch script cannot: {text!r}")
    return text
