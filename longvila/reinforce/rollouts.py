"""Answers drawn from the model that is trained, each with its reward and its advantage over the others of its prompt.

    sample --without its last turn--> prompt --one prefill--> `group` answers, drawn side by side --rules--> rewards
    prompt + the tokens that were drawn -> the row that is trained on, labels on the drawn tokens alone

An answer is trained on by the tokens that were drawn, never written anew from its text. An answer's draws follow from
(seed, step, prompt, its number in the group), so they are the same under any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from longvila.answering import Answering, Sampler
from longvila.data.samples import Sample
from longvila.dataset import Document, Documents, Sampling
from longvila.job import JobError
from longvila.reinforce.policy import advantages
from longvila.reinforce.rewards import judge
from longvila.sharding import IGNORE, Batch
from longvila.tokens import Writer


@dataclass(frozen=True, kw_only=True)
class Prompt(Document):
    wanted: str  # the answer in the data


class Prompts(Documents):
    """Samples made into prompts: all turns but the last, which is what an answer is compared with."""

    def __init__(
        self, writer: Writer, sampling: Sampling, *, most_tokens: int, answer_tokens: int, tried: bool
    ) -> None:
        super().__init__(writer, sampling, tried=tried)
        self._most_tokens, self._answer_tokens = most_tokens, answer_tokens

    def make(self, sample: Sample, *, prompt: bool = True) -> Prompt:
        document = super().make(replace(sample, turns=sample.turns[:-1]), prompt=True)
        length = len(document.text.input_ids)
        if length + self._answer_tokens > self._most_tokens:
            raise JobError(
                f"{sample.where}: sample {sample.name!r} asks in {length} tokens; with an answer of "
                f"{self._answer_tokens} more than max_tokens {self._most_tokens}: raise it or take fewer frames"
            )
        return Prompt(
            text=document.text, media=document.media, name=document.name, where=document.where,
            wanted=sample.turns[-1].text,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rollout:
    prompt: Batch
    tokens: tuple[int, ...]  # with the stop token, where the model has written it
    text: str
    rules: Mapping[str, float]  # what each says
    reward: float
    advantage: float

    def row(self) -> Batch:
        """Prompt and answer as one document; the labels are the answer's tokens."""
        ids_L = self.prompt.input_ids_L
        answer_T = torch.tensor(self.tokens, device=ids_L.device)
        after, length = len(ids_L) - 1, len(ids_L) + len(self.tokens)
        labels_L = torch.full((length,), IGNORE, device=ids_L.device)
        labels_L[after:-1] = answer_T
        return replace(
            self.prompt,
            input_ids_L=torch.cat((ids_L, answer_T)),
            labels_L=labels_L,
            positions_L=torch.arange(length, device=ids_L.device),
            document_L=torch.zeros(length, dtype=torch.int64),
        )


def draw(
    answering: Answering, writer: Writer, prompt: Batch, wanted: str, *, seeds: tuple[int, ...], group: int,
    temperature: float, most_tokens: int, rules: Mapping[str, float],
) -> list[Rollout]:  # fmt: skip
    """Collective over the context group: `group` answers to one prompt; `seeds` are those of run, step and prompt."""
    samplers = {number: Sampler(temperature=temperature, seed=_seed(*seeds, number)) for number in range(group)}
    tokens: list[list[int]] = [[] for _ in range(group)]
    texts = [""] * group
    answering.begin_group(samplers, prompt, most_tokens)
    while len(answering):
        for event in answering.step():
            tokens[event.key].append(event.token)
            if event.end:
                texts[event.key] = writer.tokenizer.decode(tokens[event.key][: -1 if event.end == "stop" else None])
    said = [judge(text, wanted, rules) for text in texts]
    rewards = [sum(rules[rule] * value for rule, value in one.items()) for one in said]
    return [
        Rollout(prompt=prompt, tokens=tuple(own), text=text, rules=one, reward=reward, advantage=advantage)
        for own, text, one, reward, advantage in zip(tokens, texts, said, rewards, advantages(rewards), strict=True)
    ]


def _seed(*numbers: int) -> int:
    """One seed of several numbers, below 2^63."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
