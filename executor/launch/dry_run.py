"""What a launch would do, as text: places, processes, groups, settings, and the lines that start several hosts.

    plan      longvila-tiny, train, 512 tokens …           rank 0   slot 0 on host-a   CPU process 0   frames 0 … 3
    ulysses   [0 1] [2 3]                                  torchrun --nnodes 2 --node-rank 0 …

Every value that came from a user or a file is quoted for the shell where a line is meant to be run. Long lists are
cut in the middle, and say so.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cost_models.units import show_bytes, show_seconds
from planner.exports import torchrun

if TYPE_CHECKING:
    from executor.launch.launch import Launch

_MOST_LINES = 64
_AXES = ("ulysses", "ring", "context", "data", "shard", "replicate")


def describe(launch: Launch) -> str:
    """The text that `--dry-run` shows."""
    plan, cost, seats = launch.plan, launch.plan.cost, launch.binding.seats
    kind = "CPU process" if launch.backend == "gloo" else "GPU"
    where = f"{len(launch.binding.host_of_slot)} host(s), {launch.backend}"
    lines = [
        f"plan       {plan.workload.describe()}",
        f"layout     {plan.strategy.describe()}, {where}",
        f"predicted  {show_seconds(cost.step_s)} a step, {show_bytes(cost.memory_bytes)} on the fullest rank",
        f"here       {launch.here.describe()}",
        f"job        {launch.request.job}",
        f"settings   {json.dumps(dict(launch.settings.values), default=str)}",
        f"run dir    {launch.run_dir}",
    ]
    lines += [f"note       {note}" for note in launch.settings.notes]
    lines.append(f"each rank  OMP_NUM_THREADS={launch.threads}, log {launch.run_dir / 'logs/rank-N.log'}")
    lines += [f"{axis:<10} {_lists(plan.groups[axis].tolist())}" for axis in _AXES]
    places = [
        f"rank {seat.rank:<5} slot {seat.slot} on {seat.host}, {kind} {seat.gpu}"
        + (f", frames {first} … {after - 1}" if after > first else "")
        for seat, (first, after) in ((seat, plan.frames[seat.rank]) for seat in seats)
    ]
    lines += _cut(places)
    if launch.host is None:
        lines.append(start_lines(launch))
    return "\n".join(lines)


def start_lines(launch: Launch) -> str:
    """One torchrun line per host, and the same without torchrun."""
    hosts = launch.binding.hosts
    several = f"{len(hosts)} hosts. On each host run its line" if len(hosts) > 1 else f"{hosts[0]}. Run there"
    lines = [f"This plan runs on {several}:"]
    if any(name.startswith("HOST") for name in hosts) and not (launch.request.hosts or launch.plan.cluster.hosts):
        lines.append("(HOST0, … stand for host names: give them with --hosts h1,h2,…)")
    ranks_on = {host: len(launch.binding.on(host)) for host in hosts}
    shown = torchrun.lines(ranks_on, job_arguments(launch), launch.request.port or torchrun.PORT)
    lines += _cut([f"{host}:  {line}" for host, line in shown.items()])
    mine = ["executor", "launch", *job_arguments(launch), f"--hosts={','.join(hosts)}", "--node-rank=auto"]
    lines.append(f"or, the same line on every host:  {shlex.join(mine)}")
    return "\n".join(lines)


def job_arguments(launch: Launch) -> list[str]:
    """The arguments of the launch, as its command line had them."""
    request = launch.request
    arguments = [str(request.plan), f"--job={request.job}"]
    arguments += [f"--config={request.config}"] if request.config else []
    arguments += [f"--set={text}" for text in request.sets]
    arguments += [f"--trace={request.trace}"] if request.trace else []
    arguments += ["--compile"] if request.compile else []
    return [*arguments, f"--timeout={request.timeout_s:g}", f"--silence={request.silence_s:g}"]


def batch_arguments(launch: Launch) -> list[str]:
    """Those of `executor launch` in a batch script."""
    run_dir = [] if launch.request.run_dir is None else [f"--run-dir={launch.run_dir}"]
    return [*job_arguments(launch), *run_dir, f"--port={launch.request.port or torchrun.PORT}"]


def _lists(groups: Sequence[Sequence[int]]) -> str:
    def show(ranks: Sequence[int]) -> str:
        shown = [str(rank) for rank in (ranks if len(ranks) <= 12 else [*ranks[:6], "…", *ranks[-3:]])]
        return "[" + " ".join(shown) + "]"

    more = f" … {len(groups)} groups in all" if len(groups) > 8 else ""
    return " ".join(show(ranks) for ranks in groups[:8]) + more


def _cut(lines: Sequence[str]) -> list[str]:
    if len(lines) <= _MOST_LINES:
        return list(lines)
    half = _MOST_LINES // 2
    return [*lines[:half], f"… {len(lines) - 2 * half} more …", *lines[-half:]]
