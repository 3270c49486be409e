"""The time of a step that no kernel explains, from real steps with few tokens: what Python, autograd and FSDP2 cost.

    measured(layers, microbatches) - priced from the kernels' samples = step + microbatches (microbatch + layers layer)

Three steps of LongVILA-tiny (2 layers; 6 layers; 2 layers and 3 microbatches) give the three unknowns, each at least
1 us. Runs over `ulysses` ranks like any plan, so groups, exchanges and sharding are in it. Seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from cost_models.curves.samples import Sample
from cost_models.hardware.cluster import Cluster
from cost_models.models.model import Model
from cost_models.pricing import price
from cost_models.profile import VERSION, Profile
from cost_models.strategy import Strategy
from cost_models.workload import Precision, Workload
from executor.groups import Groups, make_groups
from executor.measure.bench import Bench
from executor.sharding import ContextSharding
from longvila.config import load_config
from longvila.model import LongVilaForConditionalGeneration
from longvila.optimizer import Optimizer
from longvila.sharding import Batch
from longvila.weights import plain_parameters

TOKENS = 32  # of a rank: the kernels' share is small, and priced
LEAST_S = 1e-6
CASES = ((2, 1), (6, 1), (2, 3))
"""(decoder layers, microbatches)"""


def context_groups(world: int, ranks: int, rank: int) -> Groups:
    """Collective over the world: independent jobs of `ranks` neighbours, one ulysses group each."""
    tiles = [list(range(start, start + ranks)) for start in range(0, world, ranks)]
    alone = [[one] for one in range(world)]
    lists = {"ulysses": tiles, "context": tiles, "shard": tiles, "ring": alone, "data": alone, "replicate": alone}
    return make_groups(lists, rank)


def framework_samples(bench: Bench, groups: Groups) -> list[Sample]:
    """The three samples of this load; every rank of it calls this."""
    left_s = []
    for layers, microbatches in CASES:
        step = _step(groups, bench.device, layers, microbatches)
        step()
        step()
        windows = [bench.window_s(step, 2) for _ in range(bench.order.windows)]
        left_s.append(float(np.median(windows)) - _priced_s(bench, layers, microbatches))
    layer_s = (left_s[1] - left_s[0]) / (CASES[1][0] - CASES[0][0])
    microbatch_s = (left_s[2] - left_s[0]) / (CASES[2][1] - CASES[0][1]) - CASES[0][0] * layer_s
    step_s = left_s[0] - microbatch_s - CASES[0][0] * layer_s
    parts_s = {"framework_layer": layer_s, "framework_microbatch": microbatch_s, "framework_step": step_s}
    return [Sample(op=op, median_s=max(s, LEAST_S), dtype="fp32", ranks=bench.ranks) for op, s in parts_s.items()]


def _priced_s(bench: Bench, layers: int, microbatches: int) -> float:
    """Price the step from the kernels and collectives measured so far."""
    model = replace(Model.load("longvila-tiny"), layers=layers, layer_kinds=())
    precision = Precision(param="fp32", master="fp32", grad="fp32", reduce="fp32", optimizer="fp32")
    ranks = bench.ranks
    work = Workload(model, context_tokens=TOKENS * ranks, global_batch=microbatches, precision=precision)
    profile = Profile(version=VERSION, device="cpu", machine="", samples=tuple(bench.samples))
    strategy = Strategy(ulysses=ranks, shard=ranks, microbatches=microbatches)
    return price(Cluster.load("local", gpus=ranks), work, strategy, profile=profile).step_s


def _step(groups: Groups, device: torch.device, layers: int, microbatches: int) -> Callable[[], None]:
    sharding = ContextSharding(groups=groups, device=device)
    tiny = load_config("tiny")
    config = replace(tiny, llm={**tiny.llm, "num_hidden_layers": layers})
    torch.manual_seed(0)
    model: nn.Module = sharding.wrap(LongVilaForConditionalGeneration(config, sharding.attention).to(device))
    model.train()
    optimizer = Optimizer(plain_parameters(model), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    tokens = TOKENS * groups.context.size
    row = torch.arange(tokens, device=device)
    batch = Batch(
        input_ids_L=row % 256,
        labels_L=row % 256,
        positions_L=row,
        document_L=torch.zeros(tokens, dtype=torch.int64),
        vision_at_V=torch.zeros(0, dtype=torch.int64),
        frames=0,
        pixels_FCHW=torch.zeros(0, 3, config.image_size, config.image_size, device=device),
    )

    def step() -> None:
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        for number in range(microbatches):
            sharding.before_microbatch(model, last=number + 1 == microbatches)
            loss = model(batch, sharding)
            sharding.token_mean(loss, float(tokens * microbatches)).backward()
            loss_sum += loss.detach()
        sharding.total(float(loss_sum))
        optimizer.step(1e-4, 1.0)

    return step
