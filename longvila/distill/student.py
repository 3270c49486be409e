"""Stage 3: the hybrid as a whole learns the teacher's next tokens; everything but the new layers starts as the teacher.

    rows -> teacher (no gradient) -> last hidden states ┐
    rows -> student ------------------------------------┴ cross entropy against the teacher's distribution

`mlps: false` freezes the MLPs, which halves what is trained and costs a little quality (MOHAWK). The result is a folder
that `longvila.hybrid.load` reads. One process; leaves out sharding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from longvila import hybrid
from longvila.distill import losses
from longvila.distill.answers import score
from longvila.distill.documents import Document, Rows, read_documents
from longvila.distill.fitting import Fit, Report
from longvila.distill.layers import aligned
from longvila.distill.settings import DistillSettings
from longvila.distill.teacher import load_teacher
from longvila.files import write_whole
from longvila.ssd import DiscreteMamba2


def make_student(settings: DistillSettings) -> PreTrainedModel:
    """The teacher with new layers as stages 1 and 2 left them, or new ones where these have no steps."""
    student = load_teacher(settings)
    torch.manual_seed(settings.seed)
    hybrid.convert(student, settings.keep, settings.shape(), copied=settings.start == "attention")
    new = {
        layer: block.self_attn
        for layer, block in enumerate(student.model.layers)
        if isinstance(block.self_attn, DiscreteMamba2)
    }
    aligned(settings, new)
    student.requires_grad_(True)
    for block in student.model.layers:
        block.mlp.requires_grad_(settings.mlps)
    return student.train()


def train_student(settings: DistillSettings, rows: Rows) -> Path:
    """Stage 3; returns the folder of the student's weights. `answers.jsonl` has a score for every so many steps."""
    folder, plan = Path(settings.run) / settings.student, settings.stage("transfer")
    teacher, student = load_teacher(settings), make_student(settings)
    asked = (
        read_documents([settings.asked], Path(settings.teacher), teacher.config.vocab_size) if settings.asked else []
    )
    fit = Fit(student, folder / "transfer", settings, "transfer")
    scores = _Scores(folder / "answers.jsonl", fit.step)
    with Report("transfer", plan.steps, fit.step) as report:
        while not fit.done:
            if asked and fit.step % settings.asked_every == 0:
                scores.add(fit.step, student, asked)
            parts = [*rows.parts(settings.first_row("transfer", fit.step), plan.rows_per_step, plan.rows_at_a_time)]
            tokens = sum(int(kept_BL.sum()) for _, kept_BL in parts)
            for tokens_BL, kept_BL in parts:
                with torch.no_grad():
                    its = teacher.model(tokens_BL, use_cache=False).last_hidden_state
                mine = student.model(tokens_BL, use_cache=False).last_hidden_state
                loss = losses.transfer(mine, its, student.lm_head, teacher.lm_head, kept_BL)
                fit.learn(loss, int(kept_BL.sum()) / tokens)
            value = fit.update(tokens)
            report.show(fit.step, {"loss": value, **scores.last})
    if asked:
        scores.add(fit.step, student, asked)
    if not (weights := folder / "weights").exists():
        _write(student, weights, Path(settings.teacher))
    return weights


def _write(student: PreTrainedModel, weights: Path, teacher: Path) -> None:
    """The student's folder, with the tokenizer's files of the teacher's; complete or absent."""
    made = weights.with_name("weights.made")
    shutil.rmtree(made, ignore_errors=True)
    hybrid.save(student, made)
    for file in teacher.iterdir():
        weights_too = file.name == "config.json" or file.name.endswith(".index.json")
        if file.suffix in (".json", ".txt", ".model", ".jinja") and not weights_too:
            shutil.copy(file, made)
    made.rename(weights)


class _Scores:
    """What the student writes, as it learns: a line for every score, those of steps that are done again dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path, self.last = path, dict[str, float]()
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._lines = [line for line in lines if json.loads(line)["step"] < step]

    def add(self, step: int, student: PreTrainedModel, asked: Sequence[Document]) -> None:
        now = score(student.eval(), asked)
        student.train()
        self.last = {"right": now.right}
        self._lines.append(json.dumps({"step": step, "right": now.right, "loss": now.loss}))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, "\n".join(self._lines) + "\n")
