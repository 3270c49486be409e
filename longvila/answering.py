"""Several prompts answered at the same time: each is prefilled alone and joins; one step gives each its next token.

    begin(prompt) --sharded prefill--> last logits --choose, agree--> token --one decode call for all--> logits --…
    choose: temperature 0 -> the likeliest; else logits / temperature, the `top_k` largest, of these the fewest that
            hold `top_p` of the probability, and one of them by the prompt's own random state

A prompt's tokens do not depend on what is answered beside it, but for the last bits of a kernel's sums. The first
rank of the context group chooses and all take its tokens, so ranks agree on stops too. Every method is collective.
Several answers to one prompt share its prefill. Leaves out: beams, penalties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from longvila.job import JobError, require
from longvila.model import NextTokens
from longvila.sharding import Batch, Sharding


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How tokens are chosen; checked like settings."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.temperature <= 100, "temperature", self.temperature, "from 0 to 100")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(self.top_k >= 0, "top_k", self.top_k, "at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2**63 - 1")


def choose(logits_V: Tensor, sampler: Sampler, state: torch.Generator) -> int:
    """One token; draws on the CPU, so that a seed means the same on every device."""
    if sampler.temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V.double().cpu()
    scaled_V = (logits_V - logits_V.max()) / sampler.temperature  # the largest is 0 also where others overflow
    shares_V, tokens_V = scaled_V.softmax(0).sort(descending=True, stable=True)
    if sampler.top_k:
        shares_V = shares_V[: sampler.top_k] / shares_V[: sampler.top_k].sum()
    before_V = shares_V.cumsum(0) - shares_V
    shares_V = shares_V[before_V < sampler.top_p]
    return int(tokens_V[torch.multinomial(shares_V, 1, generator=state)])


@dataclass(frozen=True, kw_only=True)
class Event:
    """The next token of an answer; `end` is "stop" (the token is the model's stop, no text) or "length" (the last)."""

    key: int
    token: int
    end: str = ""


@dataclass(kw_only=True)
class _Answer:
    key: int
    cache: Any
    logits_V: Tensor
    sampler: Sampler
    state: torch.Generator
    position: int  # of the next token
    left: int
    token: int | None = field(default=None, init=False)  # None: the logits are the prefill's


class Answering:
    """The prompts that are being answered by one model."""

    def __init__(self, model: nn.Module, sharding: Sharding, stop_id: int) -> None:
        self._model, self._sharding, self._stop_id = model, sharding, stop_id
        self._answers: list[_Answer] = []

    def __len__(self) -> int:
        return len(self._answers)

    def begin(self, key: int, prompt: Batch, sampler: Sampler, most_tokens: int) -> None:
        """Compute a prompt (one document); its first token comes with the next step."""
        self.begin_group({key: sampler}, prompt, most_tokens)

    @torch.no_grad()  # not inference mode: sharded weights are gathered in place, which counts versions
    def begin_group(self, samplers: Mapping[int, Sampler], prompt: Batch, most_tokens: int) -> None:
        """Compute a prompt once, to be answered once for each key."""
        for taken in {answer.key for answer in self._answers} & samplers.keys():
            raise JobError(f"prompt {taken!r} is being answered already")
        cache = self._sharding.cache()
        logits_V = self._model(prompt, self._sharding, cache=cache)
        caches = [cache, *self._sharding.forked(cache, len(samplers) - 1)]
        length = prompt.input_ids_L.shape[0]
        self._answers += [
            _Answer(
                key=key, cache=one, logits_V=logits_V, sampler=sampler, position=length, left=most_tokens,
                state=torch.Generator().manual_seed(sampler.seed),
            )
            for (key, sampler), one in zip(samplers.items(), caches, strict=True)
        ]  # fmt: skip

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One more token of every prompt, in the order in which they began; those that end leave."""
        self._decode([answer for answer in self._answers if answer.token is not None])
        answers = self._answers
        tokens = self._sharding.agree([choose(one.logits_V, one.sampler, one.state) for one in answers])
        events = []
        for answer, token in zip(answers, tokens, strict=True):
            answer.token, answer.left = token, answer.left - 1
            end = "stop" if token == self._stop_id else "length" if answer.left == 0 else ""
            events.append(Event(key=answer.key, token=token, end=end))
        self.drop([event.key for event in events if event.end])
        return events

    def drop(self, keys: Sequence[int]) -> None:
        """End answers before their time; unknown keys have ended already."""
        self._answers = [answer for answer in self._answers if answer.key not in keys]

    def _decode(self, answers: Sequence[_Answer]) -> None:
        if not answers:
            return
        given = NextTokens(
            tokens=tuple(cast(int, answer.token) for answer in answers),
            positions=tuple(answer.position for answer in answers),
        )
        logits_PV = self._model(given, self._sharding, cache=[answer.cache for answer in answers])
        for answer, logits_V in zip(answers, logits_PV, strict=True):
            answer.logits_V, answer.position = logits_V, answer.position + 1
