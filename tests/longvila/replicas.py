"""Data replicas on real ranks: the smallest `Sharding` over processes, and the runs that each rank makes."""

import dataclasses
import math
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard

from longvila import train
from longvila.job import Job, JobError
from longvila.model import LongVilaForConditionalGeneration
from longvila.sharding import OneProcess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replicas(OneProcess):
    """Every rank is a replica of its own; parameters are sharded over all of them, gradients summed."""

    def total(self, value):
        result = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(result)
        return result.item()

    def wrap(self, model):
        for layer in model.layers():
            fully_shard(layer)
        fully_shard(model)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model


def train_replicas(jobs):
    """Each job's settings in turn, on every rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sharding = Replicas(rank=rank, world=world, data_index=rank, data_count=world)
    for config in jobs:
        train.main(Job(config=config, sharding=sharding))
        dist.barrier()
    return sorted(path.name for path in (Path(jobs[0]["run"]) / "checkpoints").iterdir())


def train_spoilt(config):
    """What every rank says where the loss of rank 1's second row is no number."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sharding = Replicas(rank=rank, world=world, data_index=rank, data_count=world)
    calls, forward = [], LongVilaForConditionalGeneration.forward

    def spoilt(*given):
        calls.append(given)
        return forward(*given) * (math.nan if (rank, len(calls)) == (1, 2) else 1.0)

    with mock.patch.object(LongVilaForConditionalGeneration, "forward", spoilt):
        try:
            train.main(Job(config=config, sharding=sharding))
        except JobError as error:
            return str(error)
