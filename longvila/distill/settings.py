"""What a distillation is told: one YAML file for all three stages, read strictly.

    teacher: weights/llm    data: [books.jsonl]    keep: [3, 7]
    orient: {steps: 400, lr: 5e-4}    align: {steps: 800, lr: 2e-3}    transfer: {steps: 4000, lr: 5e-4}

The run folder has `layers/NN/{orient,align}/` for each layer, `distances.json`, and `student/{transfer,weights}/`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from longvila.hybrid import SsdShape
from longvila.job import JobError, require
from longvila.optimizer import SCHEDULES
from longvila.settings import read_settings

STARTS = ("attention", "random")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage learns; 0 steps leave it out."""

    steps: int = 0
    lr: float = 1e-3
    rows_per_step: int = 8
    rows_at_a_time: int = 8  # whose activations, and in `orient` matrices, are in memory together
    schedule: str = "cosine"
    warmup: float = 0.1  # fraction of the steps

    def __post_init__(self) -> None:
        require(self.steps >= 0, "steps", self.steps, "at least 0")
        require(0 < self.lr < math.inf, "lr", self.lr, "positive")
        for name in ("rows_per_step", "rows_at_a_time"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "a fraction of the steps, 0 … 1")


STAGES = ("orient", "align", "transfer")


def require_device(name: str) -> None:
    """JobError: a device that this machine does not have."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise JobError(f"settings: device {name!r} is not a device of this machine; legal: cpu, cuda") from None


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """What a settings file of `longvila.distill` may say."""

    teacher: str  # folder of a Llama or Qwen2 model
    data: tuple[str, ...]  # JSONL files of documents
    keep: tuple[int, ...] = ()  # layers whose attention stays; of no matter before `transfer`
    run: str = "runs/distill"
    student: str = "student"  # folder in the run's for stage 3, so that one run can have several students
    orient: dict[str, Any] = field(default_factory=dict)
    align: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    ssd: dict[str, Any] = field(default_factory=dict)  # heads, head_size, state, …; empty means the attention's sizes
    start: str = "attention"  # a new layer's first weights: attention's where the sizes are its, or random
    mlps: bool = True  # they learn in `transfer`
    max_tokens: int = 2048  # of a row; longer documents are cut
    measured_rows: int = 32  # kept from training, on which distances are measured
    seed: int = 0
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm, of each layer where layers learn alone
    precision: str = "fp32"
    device: str = "cpu"
    checkpoint_every: int = 200  # steps
    asked: str | None = None  # JSONL of prompts and answers that the student is scored by in `transfer`
    asked_every: int = 100  # steps

    def __post_init__(self) -> None:
        require(bool(self.data), "data", list(self.data), "one JSONL file or more")
        for name in ("max_tokens", "measured_rows", "checkpoint_every", "asked_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.start in STARTS, "start", self.start, f"one of {', '.join(STARTS)}")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 … 2^63 - 1")
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two in 0 … 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        require(0 < self.clip < math.inf, "clip", self.clip, "positive")
        require(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        require(bool(re.fullmatch(r"\.*[\w-][\w.-]*", self.student)), "student", self.student, "a name, of one folder")
        require(len(set(self.keep)) == len(self.keep), "keep", list(self.keep), "a list of different layers")
        require_device(self.device)
        for name in STAGES:
            self.stage(name)
        if self.ssd:
            self.shape()

    def stage(self, name: str) -> Stage:
        return read_settings(Stage, getattr(self, name), f"settings: {name}")

    def first_row(self, stage: str, step: int) -> int:
        """The row that a step begins with; a stage goes on where the one before ended."""
        before = (self.stage(name) for name in STAGES[: STAGES.index(stage)])
        return sum(one.steps * one.rows_per_step for one in before) + step * self.stage(stage).rows_per_step

    def shape(self) -> SsdShape | None:
        return read_settings(SsdShape, self.ssd, "settings: ssd") if self.ssd else None

    def layer_folder(self, layer: int, stage: str) -> Path:
        return Path(self.run) / "layers" / f"{layer:02d}" / stage

    def lasting(self, stage: str) -> dict[str, Any]:
        """What a resumed run of this stage must share."""
        names = ["teacher", "data", "ssd", "start", "max_tokens", "measured_rows", "seed", "betas", "weight_decay",
                 "clip", "precision"]  # fmt: skip
        names += ["keep", "mlps"] if stage == "transfer" else []
        known = {name: getattr(self, name) for name in names}
        known |= {name: dataclasses.asdict(self.stage(name)) for name in STAGES[: STAGES.index(stage) + 1]}
        plain: dict[str, Any] = json.loads(json.dumps(known))
        return plain
