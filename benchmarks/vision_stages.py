"""`python -m benchmarks.vision_stages`: video split by frames, then by tokens (two stages), or by tokens alone (one).

    one stage    a rank encodes the frames whose tokens it holds: text holders encode none, frames on a border are
                 encoded twice
    two stages   frames are dealt evenly, embeddings go to the tokens' ranks: `executor.mmsp.embeddings`

One row, a video and then text, forward and backward over a ring of gloo ranks, parameters sharded (ZeRO 3). Printed,
the most of any rank: frames encoded, bytes kept for the backward pass (each storage once), processor seconds, and the
seconds of a step. Losses of both agree, or the command fails. Leaves out the paper's models: the tiny preset, wider by
`--tower`.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gloo_ranks import run_ranks
from executor.groups import make_groups
from executor.mmsp.embeddings import vision_of
from executor.sharding import ContextSharding
from longvila.config import load_config
from longvila.model import LongVilaForConditionalGeneration
from longvila.sharding import IGNORE, Batch


@dataclass(kw_only=True)
class OneStage(ContextSharding):
    """Frames are encoded where their tokens are; nothing is exchanged."""

    def numbers(self, batch: Batch) -> np.ndarray:
        """The vision tokens of this rank, by their number in the row."""
        index_S = self.layout(batch).index(*self.groups.places[self.groups.context.index])
        return vision_of(index_S, batch.vision_at_V.numpy())[1]

    def frames_here(self, batch: Batch) -> np.ndarray:
        return np.unique(self.numbers(batch) // (len(batch.vision_at_V) // batch.frames))

    def exchange_embeddings(self, made_ND: Tensor, batch: Batch) -> Tensor:
        numbers, per_frame = self.numbers(batch), len(batch.vision_at_V) // batch.frames
        frames = np.searchsorted(self.frames_here(batch), numbers // per_frame)
        return made_ND[torch.from_numpy(frames * per_frame + numbers % per_frame)]


class Kept:
    """Bytes of the storages that autograd keeps."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if type(tensor) is Tensor:
            storage = tensor.untyped_storage()
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())


def measure(kind: str, frames: int, text: int, tower: int, steps: int) -> dict[str, tuple[float, ...]]:
    """(loss, frames, bytes, processor seconds, seconds) of both ways, on this rank."""
    world = dist.get_world_size()
    ranks = list(range(world))
    alone = [[rank] for rank in ranks]
    lists = {"ulysses": alone, "ring": [ranks], "context": [ranks], "data": alone, "shard": [ranks], "replicate": alone}
    found = {}
    for name, sharded in (("one stage", OneStage), ("two stages", ContextSharding)):
        groups = make_groups(lists, dist.get_rank())
        sharding = sharded(groups=groups, device=torch.device("cpu"), ring_layout=kind)
        config = load_config("tiny")
        vision = {**config.vision, "hidden_size": tower, "intermediate_size": 2 * tower}
        torch.manual_seed(0)
        model = LongVilaForConditionalGeneration(replace(config, vision=vision), sharding.attention)
        found[name] = _steps(sharding.wrap(model), sharding, _row(frames, text, config.tokens_per_frame), steps)
    return found


def _row(frames: int, text: int, per_frame: int) -> tuple[Batch, Tensor]:
    random = torch.Generator().manual_seed(1)
    tokens = frames * per_frame + text
    ids = torch.randint(0, 256, (tokens,), generator=random)
    labels = ids.roll(-1)
    labels[: frames * per_frame] = labels[-1] = IGNORE
    pixels = torch.randn(frames, 3, 48, 48, generator=random)
    batch = Batch(
        input_ids_L=ids, labels_L=labels, positions_L=torch.arange(tokens),
        document_L=torch.zeros(tokens, dtype=torch.int64), vision_at_V=torch.arange(frames * per_frame), frames=frames,
        pixels_FCHW=pixels[:0],
    )  # fmt: skip
    return batch, pixels


def _steps(model: Any, sharding: ContextSharding, row: tuple[Batch, Tensor], steps: int) -> tuple[float, ...]:
    batch, pixels = row
    here = sharding.frames_here(batch) if isinstance(sharding, OneStage) else list(sharding.own_frames(batch.frames))
    given, walls, busy = replace(batch, pixels_FCHW=pixels[here]), [], []
    for _ in range(steps + 1):
        dist.barrier()
        began_s, began_busy_s, kept = time.perf_counter(), time.process_time(), Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            loss = model(given, sharding)
        sharding.token_mean(loss, 1).backward()
        model.zero_grad()
        walls.append(time.perf_counter() - began_s)
        busy.append(time.process_time() - began_busy_s)
    loss_sum = sharding.total(float(loss.detach()))
    return loss_sum, float(len(here)), float(kept.bytes), statistics.median(busy[1:]), statistics.median(walls[1:])


@click.command(context_settings={"show_default": True})
@click.option("--ranks", default=4, type=click.IntRange(2, 64))
@click.option("--frames", default=128, type=click.IntRange(1))
@click.option("--text", default=1152, type=click.IntRange(2), help="Tokens after the video.")
@click.option("--kind", default="contiguous", type=click.Choice(["contiguous", "zigzag", "balanced"]))
@click.option("--tower", default=128, type=click.IntRange(16), help="Width of the vision tower.")
@click.option("--steps", default=5, type=click.IntRange(1))
def main(ranks: int, frames: int, text: int, kind: str, tower: int, steps: int) -> None:
    """One-stage against two-stage sharding of a video and its text."""
    found = run_ranks(measure, (kind, frames, text, tower, steps), [None] * ranks)
    print(f"{frames} frames and {text:,} tokens of text, ring of {ranks} ({kind}), tower {tower} wide")
    print(f"{'the most of a rank':<20}{'frames':>8}{'kept':>12}{'processor':>13}{'step':>11}")
    losses = {name: found[0][name][0] for name in found[0]}
    for name in losses:
        most = [max(rank[name][place] for rank in found) for place in range(1, 5)]
        print(f"{name:<20}{most[0]:>8.0f}{most[1] / 2**20:>8.1f} MiB{most[2] * 1e3:>10.0f} ms{most[3] * 1e3:>8.0f} ms")
    one, two = losses.values()
    if abs(one - two) > 1e-4 * abs(one):
        sys.exit(f"the losses differ: {losses}")


if __name__ == "__main__":
    main()
