"""Stages 1 and 2: layers that learn alone, each from the teacher's hidden states, in one process or in many.

    rows -> teacher, as deep as the deepest of these layers -> for each layer: orientation, then alignment

A layer's weights, rows, optimizer and checkpoints are its own, so they do not depend on which layers a process has: a
packing can change between two runs. Three distances say what a layer's attention is missed for, on rows that no layer
has learned from: `distance`, the alignment loss; `relative`, that over the mean norm of the attention's output; and
`divergence`, the mean KL divergence of next tokens between the teacher and the teacher with this one layer replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from longvila import hybrid
from longvila.distill import losses
from longvila.distill.documents import Rows, padded
from longvila.distill.fitting import Fit, Report, plain, result_of
from longvila.distill.settings import PRECISIONS, DistillSettings
from longvila.distill.teacher import Seen, load_teacher, watch
from longvila.files import claimed, read_text, write_whole
from longvila.job import JobError, require
from longvila.ssd import DiscreteMamba2

MEASURED_AT_A_TIME = 8


@dataclass(frozen=True, kw_only=True)
class Distance:
    layer: int
    distance: float
    relative: float
    divergence: float


def train_layers(settings: DistillSettings, rows: Rows, layers: Sequence[int] | None) -> None:
    """Both stages for some layers (all of them: None), and their distances."""
    teacher = load_teacher(settings)
    mixers = new_mixers(settings, teacher)
    chosen = sorted(mixers) if layers is None else sorted(set(layers))
    for layer in chosen:
        require(layer in mixers, "layers", layer, f"layers of the teacher, 0 to {len(mixers) - 1}")
    if not (mine := {layer: mixers[layer] for layer in chosen}):
        return
    with ExitStack() as held:
        for layer in mine:
            held.enter_context(claimed(settings.layer_folder(layer, "")))
        for stage in ("orient", "align"):
            _train(settings, rows, mine, stage, teacher)
        for one in measure(settings, rows, teacher, mine):
            write_whole(settings.layer_folder(one.layer, "distance.json"), plain(vars(one)))
    gather(settings, len(mixers))


def new_mixers(settings: DistillSettings, teacher: PreTrainedModel) -> dict[int, DiscreteMamba2]:
    """A new layer for each of the teacher's, from a seed of its own, on the teacher's device."""
    shape, heads = settings.shape(), teacher.config.num_attention_heads
    if shape is not None and settings.stage("orient").steps:
        told = f"{heads}, the attention's, which `orient` compares head by head; any without its steps"
        require(shape.heads == heads, "ssd heads", shape.heads, told)
    student = hybrid.load(Path(settings.teacher), dtype=PRECISIONS[settings.precision])
    torch.manual_seed(settings.seed)
    hybrid.convert(student, (), shape, copied=settings.start == "attention")
    return {layer: block.self_attn.to(settings.device) for layer, block in enumerate(student.model.layers)}


def _train(
    settings: DistillSettings, rows: Rows, mixers: dict[int, DiscreteMamba2], stage: str, teacher: PreTrainedModel
) -> None:
    """One stage of these layers; a layer that is ahead of the others waits."""
    plan = settings.stage(stage)
    if plan.steps == 0:
        return
    fits = {layer: Fit(mixer, settings.layer_folder(layer, stage), settings, stage) for layer, mixer in mixers.items()}
    begin = min(fit.step for fit in fits.values())
    teacher.set_attn_implementation("eager" if stage == "orient" else "sdpa")
    with Report(stage, plan.steps, begin) as report:
        for step in range(begin, plan.steps):
            learning = {layer: fit for layer, fit in fits.items() if fit.step == step}
            parts = [*rows.parts(settings.first_row(stage, step), plan.rows_per_step, plan.rows_at_a_time)]
            tokens = sum(int(kept_BL.sum()) for _, kept_BL in parts)
            for tokens_BL, kept_BL in parts:
                seen = watch(teacher, tokens_BL, learning)
                share = len(tokens_BL) / plan.rows_per_step if stage == "orient" else int(kept_BL.sum()) / tokens
                for layer, fit in learning.items():
                    fit.learn(_loss(stage, mixers[layer], seen.pop(layer), kept_BL), share)
            report.show(step + 1, {f"layer {layer}": fit.update(tokens) for layer, fit in learning.items()})


def _loss(stage: str, mixer: DiscreteMamba2, seen: Seen, kept_BL: Tensor) -> Tensor:
    if stage == "align":
        return losses.alignment(mixer(seen.hidden_BLD)[0], seen.output_BLD, kept_BL)
    assert seen.matrix_BHLL is not None, "attention is written out in this stage"
    return losses.orientation(mixer.matrix(seen.hidden_BLD), seen.matrix_BHLL, kept_BL)


@torch.no_grad()
def measure(
    settings: DistillSettings, rows: Rows, teacher: PreTrainedModel, mixers: dict[int, DiscreteMamba2]
) -> list[Distance]:
    """How much each layer's attention is missed, on the rows kept for this."""
    sums = {layer: [0.0, 0.0, 0.0] for layer in mixers}
    tokens = 0
    for start in range(0, len(rows.measured), MEASURED_AT_A_TIME):
        tokens_BL, kept_BL = padded(rows.measured[start : start + MEASURED_AT_A_TIME], settings.device)
        count = int(kept_BL.sum())
        tokens += count
        known = F.log_softmax(teacher(tokens_BL, use_cache=False).logits[kept_BL].float(), -1)
        for layer, seen in watch(teacher, tokens_BL, mixers).items():
            output = mixers[layer](seen.hidden_BLD)[0]
            with replaced(teacher, layer, mixers[layer]):
                told = F.log_softmax(teacher(tokens_BL, use_cache=False).logits[kept_BL].float(), -1)
            for place, value in enumerate((
                losses.alignment(output, seen.output_BLD, kept_BL),
                losses.alignment(torch.zeros_like(output), seen.output_BLD, kept_BL),
                F.kl_div(told, known, log_target=True, reduction="batchmean"),
            )):  # fmt: skip
                sums[layer][place] += float(value) * count
    return [
        Distance(layer=layer, distance=apart / tokens, relative=apart / max(size, 1e-30), divergence=lost / tokens)
        for layer, (apart, size, lost) in sums.items()
    ]


@contextmanager
def replaced(model: PreTrainedModel, layer: int, mixer: DiscreteMamba2) -> Iterator[None]:
    """The model with one layer's attention replaced, for a while."""
    block = model.model.layers[layer]
    attention, block.self_attn = block.self_attn, mixer
    try:
        yield
    finally:
        block.self_attn = attention


def gather(settings: DistillSettings, layers: int) -> None:
    """Write `distances.json` once every layer has its distance."""
    files = [settings.layer_folder(layer, "distance.json") for layer in range(layers)]
    if not all(file.is_file() for file in files):
        return
    every = [json.loads(read_text(file, "")) for file in files]
    write_whole(Path(settings.run) / "distances.json", plain({"teacher": settings.teacher, "layers": every}))


def aligned(settings: DistillSettings, mixers: dict[int, DiscreteMamba2]) -> None:
    """Fill layers with what the first two stages made of them."""
    stage = next((name for name in ("align", "orient") if settings.stage(name).steps), None)
    for layer, mixer in mixers.items():
        if stage is None:
            return
        folder = settings.layer_folder(layer, stage)
        if not folder.is_dir():
            raise JobError(f"{folder} is missing: run `layers` first, or set orient and align to 0 steps")
        result_of(mixer, folder, settings.stage(stage).steps)
