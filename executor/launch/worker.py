"""Start the ranks of this host; each meets the others, builds the plan's groups and sharding, calls the job's `main`.

    executor launch PLAN ── run(launch) ── agent ── run_rank(launch)                        this host's ranks
    torchrun … --module executor.launch.worker PLAN --host h1 --hosts h1,h2 ── run_rank(launch)      the same

A rank finds its seat by its host and local rank; the rank number of torchrun only tells its posts apart. Before
any group is made, every rank compares its plan, job and settings with those of rank 0: hosts that differ stop at once.
Under torchrun, processes post what their hosts have, and hosts are bound to slots of their class.
Importing this module imports no torch.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cost_models.errors import InputError
from cost_models.hardware.machine import Gpu, Host, discover
from executor.launch.hosts import Seat
from executor.launch.launch import GPU_ORDER, SILENCE_S, Launch, Request, prepare, rank_environment
from executor.launch.settings import check_job
from executor.launch.tracing import traced
from planner.plan_file import Plan

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

    from executor.launch.agent import Team
    from executor.sharding import ContextSharding


def make_sharding(plan: Plan, rank: int, device: torch.device, timeout: timedelta | None = None) -> ContextSharding:
    """Collective over all ranks: the plan's groups, and the job's view of them on this rank."""
    import torch

    from executor.groups import make_groups
    from executor.sharding import ContextSharding, Precision

    strategy, precision = plan.strategy, plan.workload.precision
    dtypes = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    mixed = precision.param != precision.master
    lists = {axis: groups.tolist() for axis, groups in plan.groups.items()}
    return ContextSharding(
        groups=make_groups(lists, rank, "nccl" if device.type == "cuda" else None, timeout),
        device=device,
        ring_layout=strategy.ring_kind,
        token_shares=strategy.token_shares,
        zero=strategy.zero,
        recompute=tuple((part.recompute, part.count, part.offload) for part in strategy.layers),
        precision=Precision(param=dtypes[precision.param], reduce=dtypes[precision.reduce]) if mixed else Precision(),
        grad_ring_dtype=dtypes[strategy.grad_ring_dtype],
        loss_chunk_tokens=strategy.loss_chunk_tokens or 2**40,  # more than any row has: all at once
        head_chunks=strategy.attention_head_chunks,
        attention_chunk_tokens=strategy.attention_chunk_tokens,
        mlp_chunk_tokens=strategy.mlp_chunk_tokens,
        states_on_host=strategy.offload_states == "all",
        ssd=strategy.ssd,
        ssd_pass=strategy.ssd_pass,
        optimizer_on_host=strategy.offload_states == "optimizer",
        frozen_in_param=plan.workload.lora_rank > 0,
        planned_layers=plan.workload.model.params_of_layers,
    )


def job_main(name: str) -> Callable[[Any], None]:
    """The `main` of a job module; a module without it, or no module, is an InputError."""
    check_job(name)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a job in the user's folder never shadows an installed module
    try:
        main = getattr(import_module(name), "main", None)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(f"--job {name}: there is no module {error.name}; legal: longvila.train, …") from None
        raise
    if not callable(main):
        raise InputError(f"--job {name}: the module has no function main(job)")
    return main


def run(launch: Launch) -> int:
    """Start this host's ranks, show the output of the first, and wait; the exit code."""
    os.environ |= rank_environment(launch.threads)  # before torch is imported, here and in the ranks
    hosts = launch.binding.hosts
    if len(hosts) == 1 or hosts[0].startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    seats = launch.seats
    assert launch.host is not None and seats, "only a launch that knows its host can run"
    print(f"starting {len(seats)} ranks", file=sys.stderr, flush=True)
    from executor.launch.agent import run_team

    job_main(launch.request.job)
    import executor.sharding  # noqa: F401  forked ranks share it: paid once instead of once per rank

    elastic = None
    if launch.request.elastic:
        from executor.launch.elastic import Continued

        elastic = Continued(launch, team_of)
    outcome = run_team(run_rank, launch, team_of(launch), elastic)
    if outcome.code:
        print(f"executor: {outcome.reason}", file=sys.stderr, flush=True)
    return outcome.code


def team_of(launch: Launch) -> Team:
    """This host's part of a launch."""
    from executor.launch.agent import Team

    hosts = launch.binding.hosts
    assert launch.host is not None
    logs = launch.run_dir / "logs"
    return Team(
        ranks=tuple(seat.rank for seat in launch.seats),
        logs=logs / f"round-{launch.round}" if launch.round else logs,
        forked=sys.platform == "linux" and launch.backend == "gloo",
        timeout_s=launch.request.timeout_s,
        node=hosts.index(launch.host),
        nodes=len(hosts),
        master=hosts[0] if len(hosts) > 1 else "127.0.0.1",
        port=launch.request.port,
        host=launch.host,
        silence_s=launch.request.silence_s,
        round=launch.round,
    )


def run_rank(launch: Launch) -> None:
    """One rank of a launch, from the meeting to the end of the job."""
    import torch
    import torch.distributed as dist

    from executor.launch.agent import leave, open_store, variable
    from executor.launch.liveness import Liveness
    from executor.mmsp import kernel
    from longvila.job import Job

    request, plan = launch.request, launch.plan
    store = open_store(request.timeout_s, launch.round)
    assert launch.host is not None
    seat = launch.binding.seat(launch.host, int(variable("LOCAL_RANK")))
    _agree(launch, seat, store)
    liveness = Liveness(
        store, rank=seat.rank, world=plan.strategy.ranks, host=launch.host, silence_s=request.silence_s,
        leave=partial(leave, launch.host),
    )  # fmt: skip
    liveness.start()
    torch.set_num_threads(launch.threads)
    torch.manual_seed(0)
    device = torch.device("cpu")
    if launch.backend == "nccl":
        device = torch.device("cuda", seat.gpu)
        torch.cuda.set_device(device)
    # gloo for what checkpoints tell each other; the plan's groups are NCCL's alone.
    backend = "cpu:gloo,cuda:nccl" if launch.backend == "nccl" else "gloo"
    limit = timedelta(seconds=request.timeout_s)
    # With a device NCCL connects every group when it is made: a ring's first transfer need not be every rank's.
    dist.init_process_group(
        backend, store=store, rank=seat.rank, world_size=plan.strategy.ranks, timeout=limit,
        device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    sharding = make_sharding(plan, seat.rank, device, limit)
    sharding.compile = "inductor" if request.compile else None
    if device.type == "cuda" and seat.rank == 0:
        print(f"attention by {kernel.words(device)}; the plan: {priced_kernel(plan)}", file=sys.stderr, flush=True)
    job = Job(config=launch.settings.values, sharding=sharding, device=device)
    if request.trace is None:
        job_main(request.job)(job)
    else:
        with traced(request.trace, plan, seat.rank, device) as step_done:
            job_main(request.job)(replace(job, step_done=step_done))
    dist.barrier()
    liveness.done()
    dist.destroy_process_group()


def priced_kernel(plan: Plan) -> str:
    """The attention kernel that the plan's price assumes, in its words."""
    return next((text for text in plan.cost.estimates if text.startswith("attention by ")), "attention as measured")


def _agree(launch: Launch, seat: Seat, store: Store) -> None:
    """Refuse to start where hosts were given different plans, jobs or settings."""
    if store.add(f"claims/{seat.rank}", 1) > 1:
        raise RuntimeError(f"two processes claim rank {seat.rank}; is another launch using this port?")
    settings = {f"setting {name}": value for name, value in launch.settings.values.items()}
    asked = {"plan": launch.plan.digest, "job": launch.request.job, "compile": launch.request.compile}
    mine = json.loads(json.dumps({**asked, **settings}, default=str))
    if seat.rank == 0:
        store.set("asked", json.dumps(mine))
    first = json.loads(store.get("asked"))
    for name in sorted({*mine, *first}):
        if mine.get(name) != first.get(name):
            raise InputError(
                f"hosts disagree: {name} is {mine.get(name)!r} for rank {seat.rank} on {seat.host}, "
                f"{first.get(name)!r} for rank 0; start every host with the same plan and settings"
            )


def _hosts_here(store: Store, name: str, named: tuple[str, ...]) -> dict[str, Host]:
    """Post what this host has, and read what the others posted: every process sees the same hosts."""
    from executor.launch.agent import variable

    world = int(variable("WORLD_SIZE"))
    store.set(f"host/{variable('RANK')}", json.dumps({"as": name, **asdict(discover())}))
    known = {}
    for text in store.multi_get([f"host/{number}" for number in range(world)]):
        post = json.loads(text)
        posted_as, gpus = post.pop("as"), tuple(Gpu(**gpu) for gpu in post.pop("gpus"))
        known[posted_as] = Host(gpus=gpus, **post)
    strangers = sorted(set(known) - set(named or known))
    if strangers:
        raise InputError(f"{', '.join(strangers)} started processes, but --hosts names {', '.join(named)}")
    return known


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--job", default="longvila.train")
@click.option("--config")
@click.option("--set", "sets", multiple=True)
@click.option("--timeout", "timeout_s", default=600.0)
@click.option("--silence", "silence_s", default=SILENCE_S)
@click.option("--trace", type=click.Path(path_type=Path))
@click.option("--compile", is_flag=True)
@click.option("--host", help="This host's name, as in --hosts.  [default: its host name]")
@click.option("--hosts", help="All hosts, in slot order where they are alike.  [default: all that started processes]")
def main(host: str | None, hosts: str | None, timeout_s: float, **given: Any) -> None:
    """Run this process's rank of PLAN; started by torchrun."""
    from executor.launch.agent import is_mistake, one_line, open_store, variable, wait_for_cause
    from executor.launch.liveness import End, announce, in_time

    os.environ |= GPU_ORDER  # before CUDA is used
    name, store = host or discover().name, None
    try:
        named = tuple(hosts.split(",")) if hosts else ()
        store = open_store(timeout_s)
        known = _hosts_here(store, name, named)
        request = Request(hosts=named or tuple(sorted(known)), host=name, timeout_s=timeout_s, **given)
        world, launch = int(variable("WORLD_SIZE")), prepare(request, known)
        if world != launch.plan.strategy.ranks:
            raise InputError(f"torchrun starts {world} processes; the plan has {launch.plan.strategy.ranks} ranks")
        run_rank(launch)
    except BaseException as error:
        if not is_mistake(error):
            traceback.print_exc()
            wait_for_cause(error, given["silence_s"])
        local = f"{name}, local rank {os.environ.get('LOCAL_RANK', '?')}"
        end = End(reason=f"{local}: {one_line(error)}", code=2 if is_mistake(error) else 1)
        if store is not None:
            end = in_time(lambda: announce(store, end), end)
        click.echo(f"executor: {end.reason}", err=True)
        sys.stderr.flush()
        os._exit(end.code)


if __name__ == "__main__":
    main()
