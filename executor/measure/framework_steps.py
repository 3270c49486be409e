"""The time of a step that no kernel explains, from real steps with few tokens: what Python, autograd and FSDP2 cost.

    measured - priced from the kernels' samples = step + microbatches (microbatch + layers layer)
                                                  + blocks (calls tower + moved tower_byte)

Steps of LongVILA-tiny with few tokens give the unknowns, each at least 1 us: 2 layers; 6 layers; 3 microbatches; frames
in several calls of the tower, which runs them again; many frames in one call, less the same tokens without frames. Runs
over `ulysses` ranks like any plan, so groups, exchanges and sharding are in it. Seconds; `tower_byte`: seconds a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from cost_models.curves.samples import FORWARD_SHARE, Sample
from cost_models.hardware.cluster import Cluster
from cost_models.models.model import Model, Vision
from cost_models.pricing import price
from cost_models.profile import VERSION, Profile
from cost_models.step.vision import block_bytes
from cost_models.strategy import Strategy
from cost_models.workload import DTYPE_BYTES, Precision, Workload
from executor.groups import Groups, make_groups
from executor.measure.bench import Bench
from executor.sharding import ContextSharding
from longvila.config import load_config
from longvila.model import LongVilaForConditionalGeneration
from longvila.optimizer import Optimizer
from longvila.sharding import Batch
from longvila.weights import plain_parameters

TOKENS = 32  # of a rank: the kernels' share is small, and priced
LEAST_S, LEAST_S_PER_BYTE = 1e-6, 1e-14
CALLS, FRAMES = 4, 40  # of the tower; in one call


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step to measure; tokens and frames are a rank's."""

    layers: int = 2
    microbatches: int = 1
    tokens: int = TOKENS
    frames: int = 0
    frames_per_call: int = FRAMES


def cases(tokens_per_frame: int) -> dict[str, Case]:
    """The steps, by what each has more than `base`; `frames` is against `tokens`."""
    shown = TOKENS + FRAMES * tokens_per_frame
    return {
        "base": Case(),
        "layers": Case(layers=6),
        "microbatches": Case(microbatches=3),
        "calls": Case(tokens=TOKENS + CALLS * tokens_per_frame, frames=CALLS, frames_per_call=1),
        "tokens": Case(tokens=shown),
        "frames": Case(tokens=shown, frames=FRAMES),
    }


def context_groups(world: int, ranks: int, rank: int) -> Groups:
    """Collective over the world: independent jobs of `ranks` neighbours, one ulysses group each."""
    tiles = [list(range(start, start + ranks)) for start in range(0, world, ranks)]
    alone = [[one] for one in range(world)]
    lists = {"ulysses": tiles, "context": tiles, "shard": tiles, "ring": alone, "data": alone, "replicate": alone}
    return make_groups(lists, rank)


def framework_samples(bench: Bench, groups: Groups) -> list[Sample]:
    """The samples of this load; every rank of it calls this. Steps are timed in turns, so that what passes slows all
    alike, and each round gives every unknown."""
    several = cases(vision().tokens_per_frame)
    steps = {name: _step(groups, bench.device, case) for name, case in several.items()}
    for step in (*steps.values(), *steps.values()):
        step()
    rounds = [{name: bench.window_s(step, 2) for name, step in steps.items()} for _ in range(bench.order.windows)]
    left_s = {
        name: np.array([one[name] for one in rounds]) - _priced_s(bench, case) for name, case in several.items()
    }  # fmt: skip
    layer_s = (left_s["layers"] - left_s["base"]) / (several["layers"].layers - several["base"].layers)
    two_s = several["base"].layers * layer_s
    microbatch_s = (left_s["microbatches"] - left_s["base"]) / (several["microbatches"].microbatches - 1) - two_s
    parts_s = {
        "framework_layer": layer_s,
        "framework_microbatch": microbatch_s,
        "framework_step": left_s["base"] - microbatch_s - two_s,
        "framework_tower": (left_s["calls"] - left_s["base"]) / more_calls() / vision().layers,
        "framework_tower_byte": (left_s["frames"] - left_s["tokens"]) / moved_bytes(),
    }
    least_s = {"framework_tower_byte": LEAST_S_PER_BYTE}
    samples = []
    for op, seconds in parts_s.items():
        low, middle, high = np.percentile(seconds, [25, 50, 75])
        median_s = max(float(middle), least_s.get(op, LEAST_S))
        samples.append(Sample(op=op, median_s=median_s, iqr_s=float(high - low), dtype="fp32", ranks=bench.ranks))
    return samples


def vision() -> Vision:
    """The tower of the model that is measured."""
    tower = Model.load("longvila-tiny").vision
    assert tower is not None
    return tower


def more_calls() -> float:
    """Calls of `calls` beyond the one of `base`, forward and backward; it runs all of its own again."""
    return CALLS * (1 + FORWARD_SHARE) - 1


def moved_bytes() -> float:
    """What the tower's blocks move of `frames`, forward and twice as much backward."""
    tower = vision()
    return float(tower.layers * 3 * block_bytes(tower, FRAMES, DTYPE_BYTES["fp32"]))


def _priced_s(bench: Bench, case: Case) -> float:
    """Price the step from the kernels and collectives measured so far."""
    model = replace(Model.load("longvila-tiny"), layers=case.layers, layer_kinds=())
    precision = Precision(param="fp32")
    ranks = bench.ranks
    work = Workload(
        model, context_tokens=case.tokens * ranks, frames=case.frames * ranks, global_batch=case.microbatches,
        precision=precision,
    )  # fmt: skip
    profile = Profile(version=VERSION, device="cpu", machine="", samples=tuple(bench.samples))
    strategy = Strategy(ulysses=ranks, shard=ranks, microbatches=case.microbatches)
    return price(Cluster.load("local", gpus=ranks), work, strategy, profile=profile).step_s


def _step(groups: Groups, device: torch.device, case: Case) -> Callable[[], None]:
    sharding = ContextSharding(groups=groups, device=device)
    tiny = load_config("tiny")
    config = replace(
        tiny, llm={**tiny.llm, "num_hidden_layers": case.layers}, frames_per_chunk=case.frames_per_call
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = sharding.wrap(LongVilaForConditionalGeneration(config, sharding.attention).to(device))
    model.train()
    optimizer = Optimizer(plain_parameters(model), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    ranks, per_frame, microbatches = groups.context.size, vision().tokens_per_frame, case.microbatches
    tokens, frames = case.tokens * ranks, case.frames * ranks
    row = torch.arange(tokens, device=device)
    batch = Batch(
        input_ids_L=row % 256,
        labels_L=row % 256,
        positions_L=row,
        document_L=torch.zeros(tokens, dtype=torch.int64),
        vision_at_V=torch.arange(frames * per_frame, dtype=torch.int64),
        frames=frames,
        pixels_FCHW=torch.zeros(case.frames, 3, config.image_size, config.image_size, device=device),
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
