"""A Slurm batch script: one task for each host, which starts its ranks; hosts are bound to slots by name.

    #SBATCH --nodes --ntasks-per-node=1 --gpus-per-node      srun executor launch plan.json --hosts … --node-rank=auto

Nothing of the plan or the command line is ever interpreted by the shell: every value is quoted, and a value with a
line break or control character is refused. The node order of Slurm is not read; hosts that the
plan names are asked for. Leaves out site settings (account,
partition, time): pass them to `sbatch`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np

from cost_models.errors import InputError
from cost_models.hardware.readers.hostlist import compress
from planner.exports.export import Export, hosts
from planner.exports.torchrun import PORT
from planner.plan_file import Plan


def script(plan: Plan, arguments: Sequence[str]) -> str:
    """The text of the batch script; `arguments` are those of `executor launch`."""
    slots, gpus = np.unique(plan.placement.slot_of_rank), int(plan.placement.gpu_of_rank.max()) + 1
    on_gpus = plan.cluster.node(int(slots[0])).device.architecture != "cpu"
    directives = [
        "--job-name=mmsp",
        f"--nodes={len(slots)}",
        "--ntasks-per-node=1",
        *([f"--nodelist={compress(list(hosts(plan)))}"] if plan.cluster.hosts else []),
        *([f"--gpus-per-node={gpus}"] if on_gpus else []),
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
            f"  {shlex.join(_printable(text, 'the command line') for text in arguments)}",
            "",
        ]
    )


def files(plan: Plan, plan_file: str) -> Export:
    """A batch script that launches the plan on its hosts."""
    return Export({"job.sh": script(plan, [plan_file, f"--port={PORT}"])})


def _printable(text: str, where: str) -> str:
    if not text.isprintable():
        raise InputError(f"{where} holds a line break or control character, which a batch script cannot: {text!r}")
    return text
