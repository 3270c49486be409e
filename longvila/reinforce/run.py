"""A step of reinforcement: encode, draw, judge, and update by the answers.

Gradients of the loss are summed over rows and ranks, as `policy.PolicyLoss` has each answer's share already. The step's
losses, metrics and gradients do not depend on the number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from longvila.ahead import Turn
from longvila.answering import Answering
from longvila.assemble import build_model, build_writer, precision
from longvila.config import LongVilaConfig
from longvila.data.listing import DataSet
from longvila.dataset import Cursor, Row, Rows, Sampling
from longvila.job import JobError
from longvila.model import Encode
from longvila.reinforce.policy import PolicyLoss
from longvila.reinforce.rollouts import Prompt, Prompts, Rollout, draw
from longvila.reinforce.settings import ReinforceSettings
from longvila.sharding import Batch
from longvila.tokens import Writer
from longvila.train import Run, TrainSettings


@dataclass(frozen=True, kw_only=True)
class ReinforceRun(Run):
    def __post_init__(self) -> None:
        prompts, replicas = self.taken_rows, self.job.sharding.data_count
        if prompts % replicas:
            raise JobError(
                f"settings: rows_per_step {self.settings.rows_per_step} with group {self.asked.group} are {prompts} "
                f"prompts a step, which do not divide over {replicas} data replicas"
            )

    @property
    def asked(self) -> ReinforceSettings:
        return cast(ReinforceSettings, self.settings)

    @classmethod
    def make_rows(cls, settings: TrainSettings, config: LongVilaConfig, data: DataSet) -> Rows:
        asked = cast(ReinforceSettings, settings)
        skip = settings.on_error == "skip"
        sampling = Sampling(frames=settings.frames, fps=settings.fps, max_frames=settings.max_frames)
        documents = Prompts(
            build_writer(config, settings.weights), sampling, most_tokens=settings.max_tokens,
            answer_tokens=asked.max_new_tokens, tried=skip,
        )  # fmt: skip
        return Rows(
            data.samples, documents, max_tokens=settings.max_tokens, pack=False, seed=settings.seed,
            shuffle=settings.shuffle, parts=data.parts, skip=skip,
        )  # fmt: skip

    @property
    def taken_rows(self) -> int:
        return self.asked.rows_per_step // self.asked.group

    @cached_property
    def writer(self) -> Writer:
        return build_writer(self.config, self.settings.weights)

    @cached_property
    def reference(self) -> nn.Module:
        """The model as the run began, from the same weights or seed."""
        settings = self.settings
        return build_model(
            self.config, self.job, dtype=precision(settings.precision), seed=settings.seed, weights=settings.weights,
            trained=(),
        ).eval()  # fmt: skip

    def step(self, step: int, coming: Iterator[Turn]) -> tuple[dict[str, Any], Cursor]:
        asked, sharding = self.asked, self.job.sharding
        began_s = time.perf_counter()
        rollouts, turn = self._roll_out(step, coming)
        rollout_s = time.perf_counter() - began_s
        rows = [rollout.row() for rollout in rollouts]
        references = [self._log_probs(self.reference, row) if asked.kl else None for row in rows]
        olds: list[Tensor | None] = [None] * len(rows)
        for _ in range(asked.updates):
            losses, passes = self._backward(step, rollouts, rows, olds, references)
            updated = self.update(step, losses)
            olds = [one.log_S if old is None else old for one, old in zip(passes, olds, strict=True)]
        tokens = self._sum(sum(len(rollout.tokens) for rollout in rollouts))
        count = asked.rows_per_step
        metrics = {
            "step": step, "loss": losses, "reward": self._sum(sum(one.reward for one in rollouts)) / count,
            "rules": {rule: self._sum(sum(one.rules[rule] for one in rollouts)) / count for rule in asked.rewards},
            "tokens": round(self._sum(sum(len(row.input_ids_L) for row in rows))), "answer_tokens": tokens / count,
            "divergence": sharding.total(float(sum(one.divergence for one in passes))) / tokens,
            "clipped": sharding.total(float(sum(one.clipped for one in passes))) / tokens, "rollout_s": rollout_s,
        }  # fmt: skip
        return {**metrics, **updated}, turn.cursor

    def said(self, metrics: dict[str, Any]) -> str:
        length, norm = metrics["answer_tokens"], metrics["grad_norm"]
        return f"reward {metrics['reward']:.3f}  {length:.1f} tokens an answer  gradient norm {norm:.3f}"

    def _roll_out(self, step: int, coming: Iterator[Turn]) -> tuple[list[Rollout], Turn]:
        """This replica's answers of the step, in the order of its prompts."""
        asked, sharding, found = self.asked, self.job.sharding, []
        self.model.eval()
        sharding.before_answers(self.model)
        answering = Answering(self.model, sharding, self.writer.stop_id)
        for number, turn in enumerate(islice(coming, self.taken_rows // sharding.data_count)):
            place = number * sharding.data_count + sharding.data_index
            found += draw(
                answering, self.writer, self._encoded(turn.batch), _wanted(turn.rows[place]),
                seeds=(asked.seed, step, place), group=asked.group, temperature=asked.temperature,
                most_tokens=asked.max_new_tokens, rules=asked.rewards,
            )  # fmt: skip
        sharding.after_answers(self.model)
        self.model.train()
        return found, turn

    @torch.no_grad()
    def _encoded(self, prompt: Batch) -> Batch:
        made_ND = self.model(Encode(batch=prompt), self.job.sharding)
        return replace(prompt, encoded_ND=made_ND, pixels_FCHW=prompt.pixels_FCHW[:0])

    @torch.no_grad()
    def _log_probs(self, model: nn.Module, row: Batch) -> Tensor:
        one = PolicyLoss()
        model(row, self.job.sharding, token_loss=one, temperature=self.asked.temperature)
        return one.log_S

    def _backward(
        self, step: int, rollouts: list[Rollout], rows: list[Batch], olds: list[Tensor | None],
        references: list[Tensor | None],
    ) -> tuple[float, list[PolicyLoss]]:  # fmt: skip
        """Gradients of all answers; the step's loss and what each pass saw."""
        asked, sharding, passes, losses = self.asked, self.job.sharding, [], []
        for number, (rollout, row) in enumerate(zip(rollouts, rows, strict=True)):
            one = PolicyLoss(
                advantage=rollout.advantage, share=1 / (len(rollout.tokens) * asked.rows_per_step),
                clip_ratio=asked.clip_ratio, kl=asked.kl, old_S=olds[number], reference_S=references[number],
            )  # fmt: skip
            sharding.before_microbatch(self.model, last=number == len(rows) - 1)
            loss = self.model(row, sharding, token_loss=one, temperature=asked.temperature)
            sharding.token_mean(loss, 1).backward()
            passes.append(one)
            losses.append(loss.detach().double())
        mean = sharding.total(float(torch.stack(losses).sum()))
        if not math.isfinite(mean):
            raise JobError(f"step {step}: the loss is {mean}; nothing was updated: lower lr, or look at the data")
        return mean, passes

    def _sum(self, value: float) -> float:
        """Over the data replicas, of a number that all ranks of a context group know."""
        sharding = self.job.sharding
        return sharding.total(value) * sharding.data_count / sharding.world


def _wanted(row: Row) -> str:
    (prompt,) = row.documents
    return cast(Prompt, prompt).wanted
