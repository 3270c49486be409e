"""The evaluating job: a needle in films of every length, multiple choice of public benchmarks,
captions, and questions with one answer.

    python -m longvila.evaluate settings.yaml [key=value …]     in one process
    executor launch plan.json --job longvila.evaluate --config settings.yaml

    films or questions --prompts, sharded prefill, decode--> answers --compare--> scores.json, heat map

Answers are generated, not read off teacher-forced logits, unless a choice is asked to be made `by: likelihood`.
Settings are `EvaluateSettings`. Leaves out judging answers by another model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvila.data.listing import ON_ERROR
from longvila.evaluate import captions, choice, needle, retrieval
from longvila.evaluate.benchmarks import BENCHMARKS
from longvila.evaluate.model import Evaluated
from longvila.files import write_whole
from longvila.generate import ModelSettings
from longvila.job import Job, JobError, require
from longvila.settings import read_settings

TASKS = ("needle", "choice", "captions", "retrieval")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ModelSettings):
    task: str  # needle | choice | captions | retrieval
    output: str = "runs/evaluate"  # folder for scores.json, and what else the task writes
    batch: int = 4  # prompts that are answered at the same time
    needle_frames: tuple[int, ...] = (8, 16, 32, 64)  # lengths of the films
    depths: int = 6  # places of the needle, from first to last frame
    films: int = 4  # of each length and depth
    seed: int = 1  # of the films; those of a corpus have another
    benchmark: str | None = None  # whose questions: videomme | longvideobench | egoschema | nextqa
    questions: str | None = None  # file of choices; of captions or questions in the training format
    answers: str | None = None  # EgoSchema's file of right options
    media: str | None = None  # folder of the videos; None means that of the questions
    on_error: str = "stop"  # at a choice that cannot be used; skip leaves it out
    by: str = "letters"  # a choice is the letter that is written, or the likeliest option (likelihood)
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.task in TASKS, "task", self.task, f"one of {', '.join(TASKS)}")
        for name in ("batch", "depths", "films", "max_new_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        frames = self.needle_frames
        legal = bool(frames) and all(1 <= count <= needle.MOST_FRAMES for count in frames)
        require(legal, "needle_frames", list(frames), f"lengths of 1 … {needle.MOST_FRAMES} frames")
        require(self.on_error in ON_ERROR, "on_error", self.on_error, f"one of {', '.join(ON_ERROR)}")
        require(self.by in choice.WAYS, "by", self.by, f"one of {', '.join(choice.WAYS)}")
        if self.task != "needle" and self.questions is None:
            raise JobError(f"settings: set questions to the file whose {self.task} are evaluated")
        if self.task == "choice":
            require(self.benchmark in BENCHMARKS, "benchmark", self.benchmark, f"one of {', '.join(BENCHMARKS)}")


def main(job: Job) -> None:
    """Run the task that is asked for and write its answers; collective."""
    settings = read_settings(EvaluateSettings, job.config, "settings")
    tasks: dict[str, Callable[[], Callable[[Evaluated], dict[str, Any]]]] = {
        "needle": lambda: needle.task(
            frames=settings.needle_frames, depths=settings.depths, films=settings.films, seed=settings.seed,
            output=Path(settings.output),
        ),
        "choice": lambda: choice.task(
            BENCHMARKS[settings.benchmark or ""], Path(settings.questions or ""), _path(settings.answers),
            _path(settings.media), likelihood=settings.by == "likelihood", skip=settings.on_error == "skip",
        ),
        "captions": lambda: captions.task(
            Path(settings.questions or ""), _path(settings.media), most_tokens=settings.max_new_tokens
        ),
        "retrieval": lambda: retrieval.task(
            Path(settings.questions or ""), _path(settings.media), most_tokens=settings.max_new_tokens
        ),
    }  # fmt: skip
    score = tasks[settings.task]()  # reads what it needs, so that its faults come before the model
    scores = score(Evaluated.load(settings, job, batch=settings.batch))
    if job.sharding.rank == 0:
        Path(settings.output).mkdir(parents=True, exist_ok=True)
        write_whole(Path(settings.output) / "scores.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
        print(scores["said"], flush=True)


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)
