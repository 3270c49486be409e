"""One torchrun line for each host; the executor's worker finds each rank's seat by its host and local rank."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from planner.exports.export import Export, hosts
from planner.plan_file import Plan

PORT = 29400
WORKER = "executor.launch.worker"


def lines(ranks_on: Mapping[str, int], arguments: Sequence[str], port: int = PORT) -> dict[str, str]:
    """The line of each host. `arguments`: those of the worker, the plan first."""
    names = list(ranks_on)
    return {
        host: shlex.join(
            [
                "torchrun", f"--nnodes={len(names)}", f"--node-rank={number}", f"--nproc-per-node={ranks_on[host]}",
                f"--master-addr={names[0]}", f"--master-port={port}", "--module", WORKER, *arguments,
                f"--host={host}", f"--hosts={','.join(names)}",
            ]
        )
        for number, host in enumerate(names)
    }  # fmt: skip


def files(plan: Plan, plan_file: str) -> Export:
    """The torchrun line of every host."""
    shown = [f"# on {host}\n{line}" for host, line in lines(hosts(plan), [plan_file]).items()]
    head = [] if plan.cluster.hosts else ["# HOST0, … stand for host names in slot order"]
    return Export({"torchrun.txt": "\n".join([*head, *shown, ""])})
