"""What every rank of `executor profile` measures, so that kernels are timed under a real load.

    for each load r = 1, 2, 4, …:  ranks 0 … r-1 run the same call at once, cores / r threads each; the others wait

Collectives run over as many groups of their size as the load has. The last part are real steps of the tiny model with
few tokens (`framework_steps.py`); how a call is timed is in `bench.py`. Leaves out: links between hosts.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from cost_models.curves.samples import Sample
from executor.launch.agent import open_store, variable
from executor.measure.bench import Bench, Order, tiles
from executor.measure.framework_steps import context_groups, framework_samples


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
            bench.gemms()
            bench.attention()
            bench.scans()
            bench.memory_bound()
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
