"""The model under evaluation: documents in, generated texts or likelihoods of answers out. Collective over ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from longvila.answering import Sampler
from longvila.assemble import precision
from longvila.config import LongVilaConfig
from longvila.data.samples import Sample
from longvila.dataset import Documents, Row, Sampling, row_batch
from longvila.generate import ModelSettings, answer_all, open_model
from longvila.job import Job
from longvila.sharding import Batch
from longvila.tokens import Turn, Writer


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    model: nn.Module
    writer: Writer
    config: LongVilaConfig
    job: Job
    sampling: Sampling
    dtype: torch.dtype
    batch: int

    @classmethod
    def load(cls, settings: ModelSettings, job: Job, *, batch: int) -> Evaluated:
        model, writer, config = open_model(settings, job)
        return cls(
            model=model, writer=writer, config=config, job=job, sampling=settings.sampling,
            dtype=precision(settings.precision), batch=batch,
        )  # fmt: skip

    def at_rate(self, frames_per_s: float) -> Evaluated:
        """The same model, shown so many frames of each second of a video."""
        return replace(self, sampling=Sampling(fps=frames_per_s))

    def texts(self, samples: Sequence[Sample], most_tokens: int) -> Iterator[str]:
        """The likeliest answer to each sample, in order."""
        documents = Documents(self.writer, self.sampling)
        prompts = [partial(self._batch, documents, sample, prompt=True) for sample in samples]
        answers = answer_all(
            self.model, prompts, self.job, self.writer, batch=self.batch, most_tokens=most_tokens,
            sampler=lambda _: Sampler(),
        )  # fmt: skip
        yield from self._watched(answers, len(samples))

    @torch.no_grad()
    def log_likelihoods(self, sample: Sample, answers: Sequence[str]) -> list[float]:
        """The logarithm of the probability of each answer to the sample's last question, its end included."""
        documents, found = Documents(self.writer, self.sampling), []
        for answer in answers:
            asked = replace(sample, turns=(*sample.turns, Turn(role="gpt", text=answer)))
            loss = self.model(self._batch(documents, asked, prompt=False), self.job.sharding)
            found.append(-self.job.sharding.total(float(loss)) / self.job.sharding.data_count)
        return found

    def _batch(self, documents: Documents, sample: Sample, *, prompt: bool) -> Batch:
        row = Row(documents=(documents.make(sample, prompt=prompt),))
        return row_batch(row, self.job.sharding, self.config.image_size, self.job.device, self.dtype)

    def _watched(self, answers: Iterator[str], count: int) -> Iterator[str]:
        shown = self.job.sharding.rank == 0 and sys.stderr.isatty()
        yield from track(answers, "answers", total=count, console=Console(stderr=True), disable=not shown)
