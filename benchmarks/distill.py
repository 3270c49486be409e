"""A tiny teacher that finds the needle, and hybrids of it: which layers keep attention, and what each stage brings.

    python -m benchmarks.distill --folder runs/distill-demo [--svg docs/distill.svg]

A Llama of 8 layers learns `longvila.distill.needles`. All its layers learn alone; the program of `plan distill keep`
chooses those that keep attention by each measure; students with a quarter and a half of them go through all three
stages. Beside them students of stage 3 alone on as many tokens, from the attention's weights and from random ones, and
stages 1-3 from random ones. MLPs stay as the teacher has them. Everything is scored by what it writes. Writes
results.json; a rerun goes on from what is in the folder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.distill_picture import picture
from longvila import hybrid
from longvila.distill.answers import evaluate
from longvila.distill.documents import Rows, read_documents
from longvila.distill.layers import train_layers
from longvila.distill.needles import Needles, write
from longvila.distill.settings import DistillSettings
from longvila.distill.student import train_student
from longvila.files import write_whole
from planner.distill.keep import MEASURES, Limits, choose_layers, even, read_distances

LAYERS, TEACHER_STEPS, TEACHER_ROWS = 8, 500, 32
STEPS = {"orient": 20, "align": 40, "transfer": 90}
RATES = {"orient": 3e-3, "align": 3e-3, "transfer": 1e-3}
ROWS, ASKED_EVERY = 4, 15


def make_teacher(folder: Path, needles: Needles) -> None:
    """Next tokens of documents that grow longer, the answers' letters counted four times besides."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=needles.vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, rope_theta=500.0, initializer_range=0.1,
        tie_word_embeddings=False,
    )  # fmt: skip
    model, random = LlamaForCausalLM(config), np.random.default_rng(5)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(TEACHER_STEPS):
        for group in adam.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / TEACHER_STEPS)) / 2
        cards = max(2, round(needles.cards * min(1, (step + 1) / (0.4 * TEACHER_STEPS))))
        rows = []
        for _ in range(TEACHER_ROWS):
            text, questions = needles.document(random, cards, needles.haystack * cards // needles.cards)
            rows.append(text + [token for place in random.permutation(cards) for token in questions[place]])
        tokens = torch.tensor(rows)
        logits = model(tokens).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(rows), -1)
        letters = each[:, -4 * cards :].unflatten(1, (cards, 4))[..., 2]
        (each.mean() + 4 * letters.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"teacher {step + 1}/{TEACHER_STEPS}  loss {each.mean().item():.3f}", file=sys.stderr, flush=True)
    hybrid.save(model, folder)


class Demo:
    """The folder of all runs; what is done there is not done again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.teacher, self.asked = folder, folder / "teacher", folder / "asked.jsonl"
        needles = Needles()
        if not self.asked.is_file():
            write(folder, needles, documents=2000, asked=128)
        if not self.teacher.is_dir():
            make_teacher(self.teacher, needles)
        stages = {name: self._stage(name, count) for name, count in STEPS.items()}
        self.settings = DistillSettings(
            teacher=str(self.teacher), data=(str(folder / "train.jsonl"),), run=str(folder / "run"), max_tokens=128,
            asked=str(self.asked), asked_every=ASKED_EVERY, mlps=False, **stages,
        )  # fmt: skip
        documents = read_documents(self.settings.data, self.teacher, needles.vocabulary)
        self.rows = Rows.cut(documents, max_tokens=128, measured=32, seed=0)
        self.row_tokens = sum(len(row) for row in self.rows.rows) / len(self.rows.rows)

    @staticmethod
    def _stage(name: str, steps: int) -> dict[str, Any]:
        return {"steps": steps, "lr": RATES[name], "rows_per_step": ROWS}

    def layers(self, settings: DistillSettings) -> Path:
        distances = Path(settings.run) / "distances.json"
        if not distances.is_file():
            train_layers(settings, self.rows, None)
        return distances

    def student(self, settings: DistillSettings, keep: Sequence[int]) -> dict[str, Any]:
        """A student's last score, and its scores by tokens read in all stages."""
        name = "keep-" + "-".join(map(str, keep))
        settings = replace(settings, keep=tuple(keep), student=name)
        weights = Path(settings.run) / name / "weights"
        if not weights.is_dir():
            train_student(settings, self.rows)
        lines = (weights.parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        scores = [json.loads(line) for line in lines]
        curve = [
            {
                "tokens": settings.first_row("transfer", one["step"]) * self.row_tokens,
                "right": one["right"],
                "loss": one["loss"],
            }
            for one in scores
        ]
        return {"keep": list(keep), "right": scores[-1]["right"], "loss": scores[-1]["loss"], "curve": curve}

    def alone(self, start: str, keep: Sequence[int]) -> dict[str, Any]:
        """Stage 3 alone, on the tokens of all three."""
        settings = replace(
            self.settings, run=str(self.folder / f"alone-{start}"), start=start, orient={}, align={},
            transfer=self._stage("transfer", sum(STEPS.values())),
        )  # fmt: skip
        return self.student(settings, keep)

    def results(self) -> dict[str, Any]:
        distances = self.layers(self.settings)
        by = {measure: read_distances(str(distances), LAYERS, measure) for measure in MEASURES}
        quarter, half = LAYERS // 4, LAYERS // 2
        chosen = {f"quarter by {name}": choose_layers(far, Limits(count=quarter)) for name, far in by.items()}
        chosen |= {"quarter evenly": even(LAYERS, quarter), "half evenly": even(LAYERS, half)}
        chosen |= {"half by divergence": choose_layers(by["divergence"], Limits(count=half))}
        random = replace(self.settings, run=str(self.folder / "random"), start="random")
        self.layers(random)
        best = chosen["quarter by divergence"]
        teacher = evaluate(self.teacher, str(self.asked))
        return {
            "teacher": {"right": teacher.right, "loss": teacher.loss},
            "distances": by,
            "students": {name: self.student(self.settings, keep) for name, keep in chosen.items()},
            "stages": {
                "1-3, from attention": self.student(self.settings, best),
                "3 alone, from attention": self.alone("attention", best),
                "1-3, from random": self.student(random, best),
                "3 alone, from random": self.alone("random", best),
            },
        }


def table(results: dict[str, Any]) -> str:
    lines = ["| student | layers that keep attention | answers right | loss a token |", "|---|---|--:|--:|"]
    teacher = results["teacher"]
    lines.append(f"| teacher | all | {teacher['right']:.1%} | {teacher['loss']:.3f} |")
    for group in ("students", "stages"):
        for name, one in results[group].items():
            lines.append(f"| {name} | {', '.join(map(str, one['keep']))} | {one['right']:.1%} | {one['loss']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/distill-demo"))
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    results = Demo(given.folder).results()
    write_whole(given.folder / "results.json", json.dumps(results, indent=2) + "\n")
    print(table(results))
    if given.svg is not None:
        write_whole(given.svg, picture(results))


if __name__ == "__main__":
    main()
