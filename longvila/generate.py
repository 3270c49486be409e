"""The answering job: a video (or pictures, or text alone) and a question in, an answer out.

    questions --`batch` of them at a time--> sharded prefill --> one token a step for each (`answering`) --> answers

The prompt runs through the same sharded path as training; then one token at a time over the cache. Settings are
`GenerateSettings`; several questions come from a JSONL file of the training format without the last answer. Answers
go to standard output in the order of the questions and, if asked, to a JSONL file. Question number i of the file
draws from seed + i. Leaves out beams.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from longvila import checkpoint, one_process
from longvila.answering import Answering, Sampler
from longvila.assemble import build_model, build_writer, model_config, precision
from longvila.config import LongVilaConfig
from longvila.dataset import Documents, Row, Sample, Sampling, read_samples, row_batch
from longvila.files import write_whole
from longvila.job import Job, JobError, refuse_differences, require
from longvila.lora import ATTENTION, Adapters
from longvila.settings import read_settings
from longvila.sharding import Batch
from longvila.tokens import Turn, Writer


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model answers, and how it sees a video."""

    checkpoint: str | None = None  # of a training run, or its run folder
    weights: str | None = None  # a released folder; with a checkpoint: the tokenizer's
    precision: str = "fp32"
    rope_theta: float | None = None
    frames: int | None = None  # None means the model's own number
    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.weights is None:
            raise JobError("settings: set checkpoint to a run or weights to a released folder")
        for name in ("frames", "max_frames"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        require(self.max_frames is None or self.fps is not None, "max_frames", self.max_frames, "used with fps only")

    @property
    def sampling(self) -> Sampling:
        return Sampling(frames=self.frames, fps=self.fps, max_frames=self.max_frames)


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(ModelSettings):
    """What a settings file of `longvila.generate` may say."""

    video: str | None = None
    image: str | None = None
    question: str | None = None
    questions: str | None = None  # JSON or JSONL instead of video and question
    media: str | None = None  # folder of its clips; None means that of the file
    answers: str | None = None  # JSONL file to write
    max_new_tokens: int = 256
    batch: int = 1  # questions that are answered at the same time
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.question is None) == (self.questions is None):
            raise JobError("settings: set question, or questions to a JSONL file, but not both")
        if self.questions is not None and (self.video or self.image):
            raise JobError("settings: video and image go with question; questions names its own")
        for name in ("max_new_tokens", "batch"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        self.sampler(0)

    def sampler(self, question: int) -> Sampler:
        """How the answer to a question is drawn, by its number."""
        return Sampler(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=self.seed + question)


def main(job: Job) -> None:
    """Answer the questions and write the answers; collective."""
    settings = read_settings(GenerateSettings, job.config, "settings")
    samples = _samples(settings)
    refuse_differences(job.sharding, questions=[(sample.name, sample.turns) for sample in samples])
    model, writer, config = open_model(settings, job)
    documents = Documents(writer, settings.sampling)
    dtype = precision(settings.precision)

    def prompt(sample: Sample) -> Batch:
        row = Row(documents=(documents.make(sample, prompt=True),))
        return row_batch(row, job.sharding, config.image_size, job.device, dtype)

    prompts, lines = [partial(prompt, sample) for sample in samples], []
    answers = answer_all(
        model, prompts, job, writer, batch=settings.batch, most_tokens=settings.max_new_tokens, sampler=settings.sampler
    )
    for sample, answer in zip(samples, answers, strict=True):
        lines.append(json.dumps({"id": sample.name, "answer": answer}, ensure_ascii=False))
        if job.sharding.rank == 0:
            print(answer, flush=True)
    if settings.answers is not None and job.sharding.rank == 0:
        write_whole(Path(settings.answers), "\n".join(lines) + "\n")


def open_model(settings: ModelSettings, job: Job) -> tuple[nn.Module, Writer, LongVilaConfig]:
    """The model of a checkpoint or a released folder, ready to answer, and the writer of its prompts."""
    config, trained, adapters = _model_config(settings)
    writer = build_writer(config, settings.weights)
    dtype = precision(settings.precision)
    model = build_model(
        config, job, dtype=dtype, seed=0, weights=settings.weights, trained=(), adapters=adapters,
        filled=trained is None,
    )  # fmt: skip
    if trained is not None:
        refuse_differences(job.sharding, checkpoint=checkpoint.read_marker(trained).files)
        checkpoint.load(trained, model, optimizer=None)
    model.eval()
    job.sharding.before_answers(model)
    return model, writer, config


def answer_all(
    model: nn.Module, prompts: Sequence[Callable[[], Batch]], job: Job, writer: Writer, *, batch: int, most_tokens: int,
    sampler: Callable[[int], Sampler],
) -> Iterator[str]:  # fmt: skip
    """Texts in the order of the prompts, `batch` of them at work at a time; `sampler` takes a prompt's number."""
    answering = Answering(model, job.sharding, writer.stop_id)
    ids: list[list[int]] = [[] for _ in prompts]
    ended: set[int] = set()
    begun = given = 0
    while given < len(prompts):
        while begun < len(prompts) and len(answering) < batch:
            answering.begin(begun, prompts[begun](), sampler(begun), most_tokens)
            begun += 1
        for event in answering.step():
            if event.end != "stop":
                ids[event.key].append(event.token)
            if event.end:
                ended.add(event.key)
        while given in ended:
            yield writer.tokenizer.decode(ids[given])
            given += 1


def _model_config(settings: ModelSettings) -> tuple[LongVilaConfig, Path | None, Adapters | None]:
    """The model's configuration and, unless its weights are a released folder, the checkpoint and its adapters."""
    if settings.checkpoint is None:
        return model_config(None, settings.weights, settings.rope_theta), None, None
    path = checkpoint.latest(Path(settings.checkpoint))
    marker = checkpoint.read_marker(path)
    config = read_settings(LongVilaConfig, marker.model, f"checkpoint {path}")
    asked = marker.settings
    targets = asked.get("lora_targets", ATTENTION)
    return config, path, Adapters.asked(asked.get("lora_rank"), asked.get("lora_alpha", 1.0), targets)


def _samples(settings: GenerateSettings) -> tuple[Sample, ...]:
    if settings.questions is not None:
        file = Path(settings.questions)
        return read_samples([file], Path(settings.media) if settings.media else file.parent, prompts=True)
    images, videos = (() if path is None else (_file(path),) for path in (settings.image, settings.video))
    turn = Turn(role="human", text=settings.question or "")
    return (Sample(where="settings", name="question", images=images, videos=videos, turns=(turn,)),)


def _file(path: str) -> Path:
    if not Path(path).exists():
        raise JobError(f"{path}: no such file")
    return Path(path)


if __name__ == "__main__":
    one_process.run("longvila.generate", main, sys.argv[1:])
