"""One module learning: its optimizer, its checkpoints, its line of metrics a step; goes on from the last checkpoint.

    folder/metrics.jsonl     step, loss, tokens, grad_norm, lr
    folder/checkpoints/      written by `longvila.checkpoint`; the one of the last step is the stage's result

What is lost between two checkpoints is done again with the same rows, so an interrupted run ends with the same weights.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from longvila import checkpoint
from longvila.dataset import Cursor
from longvila.distill.settings import DistillSettings
from longvila.files import write_whole
from longvila.job import JobError
from longvila.optimizer import Optimizer, learning_rate
from longvila.weights import plain_parameters


class Fit:
    """`learn` from each part of a step's rows, then `update`; `module` holds the stage's result after the last step."""

    def __init__(self, module: nn.Module, folder: Path, settings: DistillSettings, stage: str) -> None:
        self.module, self._folder, self._settings = module, folder, settings
        self._stage, self._lasting = settings.stage(stage), settings.lasting(stage)
        self.steps = self._stage.steps
        first, second = settings.betas
        self._optimizer = Optimizer(
            plain_parameters(module), betas=(first, second), eps=1e-8, weight_decay=settings.weight_decay
        )
        self.step = self._resumed()
        self._metrics: list[str] = self._earlier_metrics()
        self._loss = 0.0

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def learn(self, loss: Tensor, share: float) -> None:
        """Add a part's mean loss, which counts for `share` of the step's."""
        (loss * share).backward()
        self._loss += float(loss.detach()) * share

    def update(self, tokens: int) -> float:
        """One step down the loss, which is returned; writes a checkpoint when it is time."""
        value, self._loss = self._loss, 0.0
        if not math.isfinite(value):
            raise JobError(
                f"{self._folder}: the loss of step {self.step + 1} is {value}; lower lr, or look at the data"
            )
        stage = self._stage
        lr = learning_rate(
            self.step, steps=stage.steps, peak=stage.lr, schedule=stage.schedule,
            warmup_steps=round(stage.warmup * stage.steps),
        )  # fmt: skip
        norm = self._optimizer.step(lr, self._settings.clip)
        if not math.isfinite(norm):
            raise JobError(f"{self._folder}: the gradient norm of step {self.step + 1} is {norm}; lower lr")
        self.step += 1
        metrics = {"step": self.step, "loss": value, "tokens": tokens, "grad_norm": norm, "lr": lr}
        self._metrics.append(json.dumps(metrics))
        if self.done or self.step % self._settings.checkpoint_every == 0:
            self._save()
        return value

    def _resumed(self) -> int:
        """The steps that an earlier run has done; its weights and optimizer are read."""
        if not checkpoint.complete(self._folder / "checkpoints"):
            return 0
        path = checkpoint.latest(self._folder)
        marker = checkpoint.read_marker(path)
        if marker.settings != self._lasting:
            name = next(key for key, value in self._lasting.items() if marker.settings.get(key) != value)
            raise JobError(
                f"settings: {name} {self._lasting[name]!r} is not that of {path}, {marker.settings.get(name)!r}; "
                f"set run to a new folder"
            )
        checkpoint.load(path, self.module, None if marker.step >= self.steps else self._optimizer)
        return marker.step

    def _earlier_metrics(self) -> list[str]:
        path = self._folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if self.step and path.is_file() else []
        return [line for line in lines if json.loads(line)["step"] <= self.step]

    def _save(self) -> None:
        marker = checkpoint.Marker(step=self.step, cursor=Cursor(), model={}, settings=self._lasting)
        checkpoint.save(self._folder / "checkpoints", self.module, self._optimizer, marker, rank=0, keep=1)
        write_whole(self._folder / "metrics.jsonl", "\n".join(self._metrics) + "\n")


class Report:
    """A progress bar, or a line now and then where there is no terminal."""

    def __init__(self, what: str, steps: int, step: int) -> None:
        columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[state]}"))
        hidden = not sys.stderr.isatty()
        self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=hidden)
        self._task = self._bar.add_task(what, total=steps, completed=step, state="")
        self._what, self._steps, self._every = what, steps, max(1, steps // 20)

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, step: int, losses: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        self._bar.update(self._task, completed=step, state=shown[:80])
        if self._bar.disable and (step % self._every == 0 or step == self._steps):
            print(f"{self._what} {step}/{self._steps}  {shown}", file=sys.stderr, flush=True)


def result_of(module: nn.Module, folder: Path, steps: int) -> None:
    """Fill a module with a stage's result; one that is missing or unfinished is a JobError."""
    path = checkpoint.latest(folder)
    if (done := checkpoint.read_marker(path).step) < steps:
        raise JobError(f"{folder}: {done} of {steps} steps are done; run `layers` to the end first")
    checkpoint.load(path, module, None)


def plain(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
