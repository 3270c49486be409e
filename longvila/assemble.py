"""A model ready to run, from a preset, a YAML file, or a released folder; and the writer of its text.

    config --build--> (random from the seed | empty) --sharding.wrap--> --(weights: each process its shard)--> model

Random parameters are the same on every process, since all draw from one seed before they are sharded. Weights are
read after sharding, into memory that is only then taken. Precisions: fp32, bf16 (parameters and computation; the
optimizer keeps float32 masters), fp64 for exact comparisons (`wide`). Buffers (rotary frequencies) always keep theirs.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from longvila.config import LongVilaConfig, load_config, with_rope_theta
from longvila.job import Job, JobError, refuse_differences
from longvila.lora import NAMES, Adapters, adapt, reset
from longvila.model import LongVilaForConditionalGeneration
from longvila.released import read_config, tokenizer_folder, unknown
from longvila.tokens import ByteTokenizer, FolderTokenizer, Tokenizer, Writer
from longvila.weights import empty_model, fingerprint, load_weights, materialise
from longvila.wide import keep_float64

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
WHOLE = ("projector", "llm", "tower")
PARTS = (*WHOLE, "embeddings", "norms", "lora")
"""What may be trained; the last three are of the language model, for context extension."""


def model_config(model: str | None, weights: str | None, rope_theta: float | None) -> LongVilaConfig:
    """The configuration that the weights folder describes, else the named preset's."""
    if weights is not None:
        return with_rope_theta(read_config(Path(weights)), rope_theta)
    return load_config(model or "tiny", rope_theta)


def precision(name: str) -> torch.dtype:
    """The dtype of a name in the settings."""
    if name not in PRECISIONS:
        raise JobError(f"settings: precision {name!r} is none of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def build_model(
    config: LongVilaConfig,
    job: Job,
    *,
    dtype: torch.dtype,
    seed: int,
    weights: str | None,
    trained: Sequence[str],
    adapters: Adapters | None = None,
    filled: bool = True,
) -> nn.Module:
    """The wrapped model on the job's device, with only the `trained` parts (some of `PARTS`) taking gradients.

    Without `filled`, parameters have memory but no values: a checkpoint is read into them.
    """
    for part in trained:
        if part not in PARTS:
            raise JobError(f"settings: trained part {part!r} is none of {', '.join(PARTS)}")
    files = fingerprint(Path(weights)) if weights is not None else []
    refuse_differences(job.sharding, model=dataclasses.asdict(config), weights=files)
    random = filled and weights is None
    if random:
        torch.manual_seed(seed)
        model = LongVilaForConditionalGeneration(config, job.sharding.attention)
    else:
        model = empty_model(config, job.sharding.attention)
    if adapters is not None:
        adapt(model.llm, adapters)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if dtype == torch.float64:
        keep_float64(model)
    train_only(model, trained)
    if random:
        reset(model, seed)
        return job.sharding.wrap(model.to(job.device))
    wrapped = job.sharding.wrap(model)
    materialise(model, job.device, job.sharding.states_device)
    model.llm.tie_weights()
    if filled and weights is not None:
        if job.sharding.rank == 0 and (odd := unknown(Path(weights))):
            print(f"weights: {weights}/config.json: keys not known, left alone: {', '.join(odd)}", file=sys.stderr)
        load_weights(model, Path(weights))
        reset(model, seed)
    return wrapped


def train_only(model: LongVilaForConditionalGeneration, trained: Sequence[str]) -> None:
    """Let these of `PARTS` take gradients, and nothing else."""
    model.requires_grad_(False)
    for part in trained:
        for parameter in _of_part(model, part):
            parameter.requires_grad_(True)


def _of_part(model: LongVilaForConditionalGeneration, part: str) -> list[nn.Parameter]:
    if part in WHOLE:
        return list(getattr(model, part).parameters())
    if part == "embeddings":
        return list(model.llm.get_input_embeddings().parameters())
    wanted = NAMES if part == "lora" else ("norm.weight", "norm.bias")
    return [value for name, value in model.llm.named_parameters() if name.endswith(wanted)]


def build_writer(config: LongVilaConfig, weights: str | None) -> Writer:
    """The text side of the model; a preset that wants a tokenizer folder has one only with weights."""
    tokenizer: Tokenizer
    if config.tokenizer == "byte":
        tokenizer = ByteTokenizer()
    elif weights is None:
        raise JobError("settings: this model's tokenizer comes with its weights: set weights to a released folder")
    else:
        tokenizer = FolderTokenizer(tokenizer_folder(Path(weights)))
    return Writer(
        tokenizer=tokenizer,
        chat=config.chat,
        tokens_per_frame=config.tokens_per_frame,
        frame_separator=config.frame_separator,
        frame_opening=config.frame_opening,
        view=config.view(),
    )
