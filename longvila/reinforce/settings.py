"""What a run of reinforcement may be told, beside what training may: answers, rewards and the loss.

Read by the strict reader (`settings.py`); a value outside its range is refused with its legal ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from longvila.assemble import PARTS
from longvila.job import require
from longvila.reinforce.rewards import NAMES
from longvila.train import TrainSettings

_ENCODING = {"tower", "projector"}


@dataclass(frozen=True, kw_only=True)
class ReinforceSettings(TrainSettings):
    """Those of training; `rows_per_step` counts answers, so rows_per_step / group prompts are asked in a step."""

    run: str = "runs/reinforce"
    rows_per_step: int = 16
    trained: tuple[str, ...] = ("llm",)
    pack: bool = False
    lr: float = 1e-5
    group: int = 8  # answers to each prompt
    max_new_tokens: int = 256  # of an answer
    temperature: float = 1.0  # of the draws and of the log-probabilities
    rewards: Mapping[str, float] = field(default_factory=lambda: {"exact": 1.0})  # rule: weight
    updates: int = 1  # optimizer steps on the same answers
    clip_ratio: float = 0.2  # of new to old probability, about 1
    kl: float = 0.0  # weight of the divergence from the model at the start, which is then kept beside

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.pack, "pack", self.pack, "false: an answer is a row")
        require(self.group >= 2, "group", self.group, "at least 2: advantages are relative to the others")
        legal = f"a multiple of group {self.group}"
        require(self.rows_per_step % self.group == 0, "rows_per_step", self.rows_per_step, legal)
        for name in ("max_new_tokens", "updates"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(0 < self.temperature <= 100, "temperature", self.temperature, "above 0 and at most 100")
        require(0 < self.clip_ratio < 1, "clip_ratio", self.clip_ratio, "between 0 and 1")
        require(0 <= self.kl < math.inf, "kl", self.kl, "at least 0")
        known = bool(self.rewards) and self.rewards.keys() <= set(NAMES)
        require(known, "rewards", dict(self.rewards), f"weights of some of {', '.join(NAMES)}")
        weighed = all(math.isfinite(weight) for weight in self.rewards.values())
        require(weighed, "rewards", dict(self.rewards), "finite weights")
        legal = f"some of {', '.join(sorted(set(PARTS) - _ENCODING))}: frames are encoded once a step"
        require(not _ENCODING & set(self.trained), "trained", list(self.trained), legal)
