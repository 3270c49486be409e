"""The answering job: a video (or pictures, or text alone) and a question in, a greedy answer out.

    prompt --sharded prefill, cache--> last logits --argmax, agree--> token --decode step--> logits --…--> end token

The prompt runs through the same sharded path as training; then one token at a time over the cache. Settings are
`GenerateSettings`; several questions come from a JSONL file of the training format without the last answer. Answers
go to standard output and, if asked, to a JSONL file. Leaves out sampling, beams and batches of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from longvila import checkpoint
from longvila.assemble import build_model, build_writer, model_config, precision
from longvila.config import LongVilaConfig
from longvila.dataset import Documents, Row, Sample, Sampling, read_samples, row_batch
from longvila.files import write_whole
from longvila.job import Job, JobError, require
from longvila.model import NextToken
from longvila.settings import read_settings
from longvila.sharding import Batch, Sharding
from longvila.tokens import Turn


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    checkpoint: str | None = None  # of a training run, or its run folder
    weights: str | None = None  # a released folder; with a checkpoint: the tokenizer's
    video: str | None = None
    image: str | None = None
    question: str | None = None
    questions: str | None = None  # JSON or JSONL instead of video and question
    media: str | None = None  # folder of its clips; None means that of the file
    answers: str | None = None  # JSONL file to write
    frames: int = 8
    fps: float | None = None
    max_frames: int | None = None
    max_new_tokens: int = 256
    precision: str = "fp32"
    rope_theta: float | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.weights is None:
            raise JobError("settings: set checkpoint to a run or weights to a released folder")
        if (self.question is None) == (self.questions is None):
            raise JobError("settings: set question, or questions to a JSONL file, but not both")
        if self.questions is not None and (self.video or self.image):
            raise JobError("settings: video and image go with question; questions names its own")
        for name in ("frames", "max_new_tokens", "max_frames"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        require(self.max_frames is None or self.fps is not None, "max_frames", self.max_frames, "used with fps only")


def main(job: Job) -> None:
    settings = read_settings(GenerateSettings, job.config, "settings")
    samples = _samples(settings)
    config, trained = _model_config(settings)
    writer = build_writer(config, settings.weights)
    dtype = precision(settings.precision)
    model = build_model(config, job, dtype=dtype, seed=0, weights=settings.weights, trained=(), filled=trained is None)
    if trained is not None:
        checkpoint.load(trained, model, optimizer=None)
    model.eval()
    job.sharding.before_answers(model)
    sampling = Sampling(frames=settings.frames, fps=settings.fps, max_frames=settings.max_frames)
    documents = Documents(writer, sampling)
    lines = []
    for sample in samples:
        row = Row(documents=(documents.make(sample, prompt=True),))
        batch = row_batch(row, job.sharding, config.image_size, job.device, dtype)
        ids = list(greedy(model, batch, job.sharding, stop_id=writer.stop_id, max_new_tokens=settings.max_new_tokens))
        answer = writer.tokenizer.decode(ids)
        lines.append(json.dumps({"id": sample.name, "answer": answer}, ensure_ascii=False))
        if job.sharding.rank == 0:
            print(answer, flush=True)
    if settings.answers is not None and job.sharding.rank == 0:
        write_whole(Path(settings.answers), "\n".join(lines) + "\n")


@torch.no_grad()  # not inference mode: sharded weights are gathered in place, which counts versions
def greedy(model: nn.Module, prompt: Batch, sharding: Sharding, *, stop_id: int, max_new_tokens: int) -> Iterator[int]:
    """The likeliest token, again and again, until `stop_id` (not given out) or the limit; the same on every rank."""
    cache = sharding.cache()
    logits = model(prompt, sharding, cache=cache)
    length = prompt.input_ids_L.shape[0]
    for count in range(max_new_tokens):
        token = sharding.agree(int(logits.argmax()))
        if token == stop_id:
            return
        yield token
        if count + 1 < max_new_tokens:
            logits = model(NextToken(token=token, position=length + count), sharding, cache=cache)


def _model_config(settings: GenerateSettings) -> tuple[LongVilaConfig, Path | None]:
    """The model's configuration and, unless its weights are a released folder, the checkpoint to read."""
    if settings.checkpoint is None:
        return model_config(None, settings.weights, settings.rope_theta), None
    path = checkpoint.latest(Path(settings.checkpoint))
    given = checkpoint.read_marker(path).model
    return read_settings(LongVilaConfig, given, f"checkpoint {path}"), path


def _samples(settings: GenerateSettings) -> tuple[Sample, ...]:
    if settings.questions is not None:
        file = Path(settings.questions)
        return read_samples([file], Path(settings.media) if settings.media else file.parent, prompts=True)
    images, videos = (() if path is None else (_file(path),) for path in (settings.image, settings.video))
    turn = Turn(role="human", text=settings.question or "")
    return (Sample(where="settings", name="question", images=images, videos=videos, turns=(turn,)),)


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise JobError(f"{path}: no such file")
    return Path(path)
