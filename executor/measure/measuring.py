"""What every rank of `executor profile` measures, so that kernels are timed under a real load.

    for each load r = 1, 2, 4, …:  ranks 0 … r-1 run the same call at once, cores / r threads each; the others wait

Collectives run over as many groups of their size as the load has. The last part are real steps of the tiny model with
few tokens (`framework_steps.py`); how a call is timed is in `bench.py`. Ranks that do not fill the cores should never
wait for one: if they do, something else runs, and that is said. Leaves out: links between hosts.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from cost_models.curves.samples import Sample
from executor.launch.agent import open_store, variable
from executor.measure.bench import Bench, Order, tiles
from executor.measure.framework_steps import context_groups, framework_samples

BUSY = 0.1
"""Share of a rank's time spent waiting for a core, from which on the machine is called busy. Estimate."""


def measure(order: Order) -> list[Sample]:
    """One rank, started by torch's agent: everything that this host measures; samples are rank 0's."""
    rank, world = int(variable("RANK")), int(variable("WORLD_SIZE"))
    device = torch.device("cuda", rank) if order.cuda else torch.device("cpu")
    if order.cuda:
        torch.cuda.set_device(device)
    limit = timedelta(seconds=order.timeout_s)
    backend = "cpu:gloo,cuda:nccl" if order.cuda else "gloo"
    dist.init_process_group(backend, store=open_store(order.timeout_s), rank=rank, world_size=world, timeout=limit)
    groups = {
        size: tiles([tuple(range(start, start + size)) for start in range(0, world, size)]) for size in order.loads
    }
    contexts = {size: context_groups(world, size, rank) for size in order.loads}
    samples: list[Sample] = []
    for load in order.loads:
        if rank < load:
            torch.set_num_threads(max(1, order.cores // load))
            group = next(tile.group for tile in groups[load] if rank in tile.ranks)
            bench = Bench(order, load, group, device)
            ran_s, waited_s = on_cores()
            bench.gemms()
            bench.attention()
            bench.scans()
            bench.memory_bound()
            if rank == 0 and load == order.loads[0]:
                _say_if_busy(*(now - before for now, before in zip(on_cores(), (ran_s, waited_s), strict=True)))
            for size in order.loads:
                if 1 < size <= load and load % size == 0:
                    bench.collectives(groups[size], rank)
            if device.type == "cpu":
                bench.samples += framework_samples(bench, contexts[load])
            samples += bench.samples
        dist.barrier()
        if rank == 0:
            print(f"measured with {load} of {world} ranks at once", file=sys.stderr, flush=True)
    dist.destroy_process_group()
    return samples


def on_cores() -> tuple[float, float]:
    """Seconds that this process's threads ran, and that they waited for a core; 0 where the kernel does not say."""
    ran_s, waited_s = 0.0, 0.0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            ran, waited, _ = thread.read_text().split()
            ran_s, waited_s = ran_s + int(ran) / 1e9, waited_s + int(waited) / 1e9
    return ran_s, waited_s


def _say_if_busy(ran_s: float, waited_s: float) -> None:
    share = waited_s / max(ran_s + waited_s, 1e-9)
    if share > BUSY:
        print(
            f"this machine is busy: a rank alone waited for a core {share:.0%} of its time, and its kernels are "
            "measured as much slower; profile again when nothing else runs",
            file=sys.stderr,
        )
