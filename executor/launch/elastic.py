"""The ranks of a plan under `torchrun`: which rank a process is comes from its host and local rank alone.

    torchrun … --module executor.launch.elastic plan.json --host h1 --hosts h1,h2

`executor launch` prints these lines.

torchrun gives the meeting store (MASTER_ADDR, MASTER_PORT) and LOCAL_RANK; its global RANK is only used to post what
this host has. All processes read all posts, bind hosts to slots of their class the same way, and so agree. Without
`--host` a host is known by its name. A user's mistake is one line, without a traceback.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from cost_models.errors import InputError
from cost_models.hardware.machine import Gpu, Host, discover
from executor.launch import requirements
from executor.launch.hosts import Binding, Seat, bind
from executor.launch.run_folder import Spec
from executor.launch.settings import merge
from executor.launch.worker import compute, kind_of, one_line
from planner.plan_file import Plan


@click.command()
@click.argument("plan_path", type=click.Path(path_type=Path))
@click.option("--job", default="longvila.train")
@click.option("--config")
@click.option("--set", "sets", multiple=True)
@click.option("--timeout", "timeout_s", default=600.0)
@click.option("--host", help="This host's name, as in --hosts.")
@click.option("--hosts", help="All hosts, in slot order where they are alike.")
def main(plan_path: Path, job: str, host: str | None, hosts: str | None, timeout_s: float, **given: Any) -> None:
    """Run this process's rank of PLAN_PATH; started by torchrun."""
    try:
        _run(plan_path, job, host, hosts, timeout_s, given["config"], given["sets"])
    except BaseException as error:
        if kind_of(error) != "user":
            traceback.print_exc()
        where = f"{host or discover().name}, local rank {os.environ.get('LOCAL_RANK', '?')}"
        click.echo(f"executor: {where}: {one_line(error)}", err=True)
        sys.stderr.flush()
        os._exit(2 if kind_of(error) == "user" else 1)


def _run(
    plan_path: Path,
    job: str,
    host: str | None,
    hosts: str | None,
    timeout_s: float,
    config: str | None,
    sets: tuple[str, ...],
) -> None:
    plan = Plan.load(plan_path)
    settings = merge(plan, job, config, sets)
    local_rank = int(_variable("LOCAL_RANK"))
    store = _store(timeout_s)
    here = discover()
    binding = _agreed(plan, store, here, host or here.name, hosts)
    seat = own_seat(binding, host or here.name, local_rank)
    problems = [
        *requirements.unsupported(plan),
        *requirements.differences(plan, here, seat.slot, len(binding.on(seat.host))),
    ]
    if problems:
        raise InputError(f"{plan_path} does not run on {seat.host}: " + "; ".join(problems))
    backend = "gloo" if plan.cluster.node(seat.slot).device.architecture == "cpu" else "nccl"
    spec = Spec(
        job=job,
        settings=settings.values,
        backend=backend,
        master=_variable("MASTER_ADDR"),
        port=int(_variable("MASTER_PORT")),
        threads=max(1, here.cores // len(binding.on(seat.host))),
        timeout_s=timeout_s,
    )
    compute(plan, spec, seat.rank, seat.gpu, store)


def own_seat(binding: Binding, host: str, local_rank: int) -> Seat:
    """The plan's rank of local process `local_rank` on `host`."""
    seats = binding.on(host)
    if local_rank >= len(seats):
        raise InputError(
            f"torchrun starts more processes on {host} than the plan has ranks there; use --nproc-per-node={len(seats)}"
        )
    return seats[local_rank]


def _agreed(plan: Plan, store: Any, here: Host, host: str, hosts: str | None) -> Binding:
    """Post what is here, read what is elsewhere, bind: every process comes to the same binding."""
    world = int(_variable("WORLD_SIZE"))
    if world != plan.strategy.ranks:
        raise InputError(f"torchrun starts {world} processes; the plan has {plan.strategy.ranks} ranks")
    store.set(f"host/{_variable('RANK')}", json.dumps({"as": host, **asdict(here)}))
    posts = [json.loads(post) for post in store.multi_get([f"host/{number}" for number in range(world)])]
    known = {}
    for post in posts:
        gpus = tuple(Gpu(**gpu) for gpu in post.pop("gpus"))
        name = post.pop("as")
        known[name] = Host(gpus=gpus, **post)
    named = tuple(hosts.split(",")) if hosts else tuple(sorted(known))
    strangers = sorted(set(known) - set(named))
    if strangers:
        raise InputError(f"{', '.join(strangers)} started processes, but --hosts names {', '.join(named)}")
    return bind(plan, named, known)


def _store(timeout_s: float) -> Any:
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    limit = timedelta(seconds=timeout_s)
    rank, world = int(_variable("RANK")), int(_variable("WORLD_SIZE"))
    store, _, _ = next(rendezvous("env://", rank, world, timeout=limit))
    store.set_timeout(limit)
    return PrefixStore("mmsp", store)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise InputError(f"{name} is not set: start this module by torchrun, as `executor launch PLAN` prints it")
    return value


if __name__ == "__main__":
    main()
