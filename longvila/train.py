"""The training job: rows in, checkpoints and a line of metrics per step out, the same losses under any sharding.

    for each step: rows of the world -> this replica's, decoded `ahead` -> loss sum -> token_mean -> backward -> AdamW

The loss of a step is the mean over the label tokens of all its rows; every process counts them itself, since every
process knows all rows. Settings are `TrainSettings`. Files in the run folder: `metrics.jsonl` (step, loss, tokens,
seconds, this process's CPU seconds to read and decode, grad_norm, lr, peak memory in bytes), `checkpoints/`. Leaves out
evaluation while training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longvila import checkpoint, dataset, one_process
from longvila.ahead import Turn, ahead, turns
from longvila.assemble import PARTS, WHOLE, build_model, build_writer, model_config, precision
from longvila.config import LongVilaConfig
from longvila.data.listing import ON_ERROR, DataSet, data_files, read_data
from longvila.data.sources import name_of
from longvila.dataset import Cursor, Documents, Row, Rows, Sampling
from longvila.files import claimed
from longvila.job import Job, JobError, refuse_differences, require
from longvila.lora import ATTENTION, TARGETS, Adapters
from longvila.metrics import Report, forget_after, peak_memory_bytes
from longvila.optimizer import SCHEDULES, Optimizer, learning_rate
from longvila.processor import FrameCache
from longvila.settings import read_settings
from longvila.sharding import Batch
from longvila.weights import plain_parameters, save_weights

_ADVICE = "nothing was updated: lower lr, or look at the data"
FREE = frozenset({"data", "media", "run", "weights", "model", "checkpoint_every", "keep_checkpoints", "resume",
                  "export", "frame_cache_bytes"})  # fmt: skip
"""Settings that may change over a resume; the model and the content of the data are compared by themselves."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What a settings file of `longvila.train` may say."""

    data: tuple[str | dict[str, Any], ...]  # files, or {file, weight, media}
    media: str | None = None  # folder of the clips; None means that of each data file
    on_error: str = "stop"  # at a sample that cannot be used; skip leaves it out
    model: str = "tiny"  # preset or YAML file; not read when weights are given
    weights: str | None = None  # released folder to start from
    run: str = "runs/train"
    steps: int = 100  # optimizer steps of the run, over all resumes
    rows_per_step: int = 1  # rows of the world per step, over all replicas and accumulation
    max_tokens: int = 4096  # of a row
    pack: bool = True  # several samples in a row
    shuffle: bool = True
    seed: int = 0
    frames: int | None = None  # per video, spread evenly; None means the model's own number
    fps: float | None = None  # instead of frames
    max_frames: int | None = None  # cap for fps
    frame_cache_bytes: int = 64 * 2**20  # decoded frames kept for the next epoch
    lr: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.0  # fraction of the steps
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float | None = 1.0  # largest gradient norm
    precision: str = "fp32"
    trained: tuple[str, ...] = WHOLE
    lora_rank: int | None = None  # of adapters on the language model; trained must name lora
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ATTENTION  # some of lora.TARGETS
    rope_theta: float | None = None
    checkpoint_every: int | None = None  # steps; one is also written at the end
    keep_checkpoints: int = 2
    resume: str | None = None  # latest | intact (the newest that can be read) | a checkpoint folder
    export: str | None = None  # new folder for the weights at the end

    def __post_init__(self) -> None:
        require(bool(self.data), "data", list(self.data), "one JSON or JSONL file or more")
        require(self.on_error in ON_ERROR, "on_error", self.on_error, f"one of {', '.join(ON_ERROR)}")
        for name in ("steps", "rows_per_step", "max_tokens", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 … 2^63 - 1")
        require(self.frame_cache_bytes >= 0, "frame_cache_bytes", self.frame_cache_bytes, "at least 0")
        for name in ("frames", "max_frames", "checkpoint_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        for name in ("lr", "eps", "clip", "fps", "lora_alpha"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "positive")
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "a fraction of the steps, 0 … 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two in 0 … 1")
        require(bool(self.trained), "trained", self.trained, f"some of {', '.join(PARTS)}")
        adapted = "lora" in self.trained
        require((self.lora_rank is not None) == adapted, "lora_rank", self.lora_rank, "given where trained names lora")
        require(self.lora_rank is None or self.lora_rank >= 1, "lora_rank", self.lora_rank, "at least 1")
        legal = bool(self.lora_targets) and {*self.lora_targets} <= {*TARGETS}
        require(legal, "lora_targets", list(self.lora_targets), f"some of {', '.join(TARGETS)}")
        require(self.max_frames is None or self.fps is not None, "max_frames", self.max_frames, "used with fps only")

    def lasting(self) -> dict[str, Any]:
        """The settings that must not change over a resume, for the losses to go on as they would have."""
        free = FREE if self.schedule == "cosine" else FREE | {"steps"}
        return _plain({name: value for name, value in dataclasses.asdict(self).items() if name not in free})


def main(job: Job) -> None:
    """Train to the last step, from a checkpoint where one is asked for; collective."""
    run_job(job, read_settings(TrainSettings, job.config, "settings"), Run)


def run_job(job: Job, settings: TrainSettings, kind: type[Run]) -> None:
    """Read the data, build or resume the model, take the steps of a `kind` of run, export."""
    data = read_data(data_files(settings.data), settings.media, skip=settings.on_error == "skip")
    points, shown = _resume_from(settings), job.sharding.rank == 0
    if settings.export is not None and Path(settings.export).exists():
        raise JobError(f"settings: export {settings.export} exists already; name a new folder")
    config = model_config(settings.model, settings.weights, settings.rope_theta)
    if data.faults and shown:
        print(f"data: {_left_out(data)}; the first: {data.faults[0]}", file=sys.stderr, flush=True)
    rows = kind.make_rows(settings, config, data)
    lasting = {**settings.lasting(), "data": data_fingerprint(data)}
    here, points = points, _first(points, checkpoint.read_marker, shown)
    marker = _matching_marker(points[0], config, settings, lasting) if points else None
    begun = None if marker is None else dataclasses.asdict(marker)
    refuse_differences(job.sharding, data=lasting["data"], checkpoint=begun)
    model, optimizer = _build(job, settings, config, filled=not points)
    run = kind(job=job, settings=settings, lasting=lasting, config=config, rows=rows, model=model, optimizer=optimizer)
    if points:
        points = _first(points, lambda point: checkpoint.load(point, model, optimizer), shown)
        marker = _matching_marker(points[0], config, settings, lasting)
    with claimed(Path(settings.run)) if shown else nullcontext():
        if shown and _resume_from(settings) != here:
            raise JobError(f"settings: another job has written to run {settings.run} meanwhile; start again")
        run.go(0 if marker is None else marker.step, Cursor() if marker is None else marker.cursor)
    if settings.export is not None:
        source = Path(settings.weights) if settings.weights else None
        save_weights(model, Path(settings.export), job.sharding, source)  # type: ignore[arg-type]


def _left_out(data: DataSet) -> str:
    return f"{len(data.faults)} faults; {len(data.samples)} samples are left"


def make_rows(settings: TrainSettings, config: LongVilaConfig, data: DataSet | None = None) -> Rows:
    """The rows that a run passes, of its settings' data files unless their samples are given."""
    skip = settings.on_error == "skip"
    data = data or read_data(data_files(settings.data), settings.media, skip=skip)
    sampling = Sampling(frames=settings.frames, fps=settings.fps, max_frames=settings.max_frames)
    documents = Documents(build_writer(config, settings.weights), sampling, tried=skip)
    return Rows(
        data.samples, documents, max_tokens=settings.max_tokens, pack=settings.pack, seed=settings.seed,
        shuffle=settings.shuffle, parts=data.parts, skip=skip,
    )  # fmt: skip


def _build(job: Job, settings: TrainSettings, config: LongVilaConfig, *, filled: bool) -> tuple[nn.Module, Optimizer]:
    adapters = Adapters.asked(settings.lora_rank, settings.lora_alpha, settings.lora_targets)
    model = build_model(
        config, job, dtype=precision(settings.precision), seed=settings.seed, weights=settings.weights,
        trained=settings.trained, adapters=adapters, filled=filled,
    )  # fmt: skip
    first, second = settings.betas
    decay = settings.weight_decay
    optimizer = Optimizer(
        plain_parameters(model), betas=(first, second), eps=settings.eps, weight_decay=decay,
        host=job.sharding.optimizer_device,
    )  # fmt: skip
    return model, optimizer


def _resume_from(settings: TrainSettings) -> list[Path]:
    """The checkpoints to try, in turn; none to begin from the beginning."""
    folder = Path(settings.run) / "checkpoints"
    if settings.resume is None:
        if checkpoint.complete(folder):
            raise JobError(f"settings: {settings.run} holds checkpoints: set resume to latest, or run to a new folder")
        return []
    if settings.resume == "intact" and (complete := checkpoint.complete(folder)):
        return complete[::-1]
    return [checkpoint.latest(folder if settings.resume in ("latest", "intact") else Path(settings.resume))]


def _first(points: list[Path], read: Callable[[Path], object], shown: bool) -> list[Path]:
    """The checkpoints from the first that can be read; why one cannot be is said, and raised for the last."""
    for number, point in enumerate(points[:-1]):
        try:
            read(point)
        except JobError as fault:
            if shown:
                print(f"{fault}; {points[number + 1].name} is taken instead", file=sys.stderr, flush=True)
        else:
            return points[number:]
    for point in points[-1:]:
        read(point)
    return points[-1:]


def _matching_marker(
    path: Path, config: LongVilaConfig, settings: TrainSettings, lasting: dict[str, Any]
) -> checkpoint.Marker:
    """The checkpoint's marker, if a run with these settings may go on from it.

    A key that an earlier version did not have counts as its default, which is what that version did.
    """
    marker = checkpoint.read_marker(path)
    for what, kind, old, now in (
        ("model", type(config), marker.model, model_fingerprint(config)),
        ("setting", type(settings), marker.settings, lasting),
    ):
        then = {**{name: value for name, value in _defaults(kind).items() if name in now}, **old}
        if odd := sorted({*then} - {*now}):
            raise JobError(
                f"resume: {path} was written with {what} {odd[0]}, which this version does not know: export it with "
                "the version that wrote it, and set weights to that folder"
            )
        if then != now:
            name, before, after = _first_difference("", then, now)
            if (what, name) == ("setting", "data"):
                raise JobError(
                    f"resume: the data are not those of {path}: names, turns, names of media or weights differ"
                )
            raise JobError(f"resume: {what} {name} is {after!r}, {path} was trained with {before!r}")
    if marker.step >= settings.steps and settings.export is None:  # an export that was cut off is made again
        raise JobError(f"resume: {path} has done {marker.step} steps, steps is {settings.steps}: raise steps")
    return marker


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """What the fields of a dataclass are where nothing is said, as plain JSON values."""
    fields = dataclasses.fields(kind)
    return _plain({field.name: field.default for field in fields if field.default is not dataclasses.MISSING})


def _first_difference(name: str, then: Any, now: Any) -> tuple[str, Any, Any]:
    """The value that differs, by its dotted name, where `then` and `now` hold others."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key):
                return _first_difference(f"{name}.{key}".lstrip("."), then.get(key), now.get(key))
    return name, then, now


def model_fingerprint(config: LongVilaConfig) -> dict[str, Any]:
    """The model as plain JSON values."""
    return _plain(dataclasses.asdict(config))


def data_fingerprint(data: DataSet) -> str:
    """A hash of the samples: names, turns, media names and weights, in order. The content of media is not read."""
    told: list[object] = [
        (sample.name, [(turn.role, turn.text) for turn in sample.turns], [name_of(file) for file in sample.media])
        for sample in data.samples
    ]
    told += [(part.count, part.weight) for part in data.parts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


@dataclass(frozen=True, kw_only=True)
class Run:
    """Steps over rows; a subclass takes other steps over other rows."""

    job: Job
    settings: TrainSettings
    lasting: dict[str, Any]  # what a resumed run must share
    config: LongVilaConfig
    rows: Rows
    model: nn.Module
    optimizer: Optimizer

    @classmethod
    def make_rows(cls, settings: TrainSettings, config: LongVilaConfig, data: DataSet) -> Rows:
        return make_rows(settings, config, data)

    @property
    def taken_rows(self) -> int:
        """Rows that a step takes from the data, over all replicas."""
        return self.settings.rows_per_step

    def go(self, step: int, cursor: Cursor) -> None:
        settings, rank = self.settings, self.job.sharding.rank
        folder = Path(settings.run)
        if rank == 0:
            forget_after(folder / "metrics.jsonl", step)
        self.model.train()
        coming = ahead(self._turns(cursor, settings.steps - step))
        with closing(coming), Report(folder / "metrics.jsonl", step, settings.steps, shown=rank == 0) as report:
            for done in range(step + 1, settings.steps + 1):
                began_s = time.perf_counter()
                metrics, cursor = self.step(done, coming)
                self.job.step_done()
                metrics["seconds"] = time.perf_counter() - began_s
                if settings.on_error == "skip":
                    metrics["left_out"] = cursor.left_out
                report.show(metrics, self.said(metrics))
                if (settings.checkpoint_every and done % settings.checkpoint_every == 0) or done == settings.steps:
                    self._save(folder / "checkpoints", done, cursor)

    def said(self, metrics: dict[str, Any]) -> str:
        """A step in one line."""
        rate = metrics["tokens"] / metrics["seconds"]
        return f"loss {metrics['loss']:.4f}  {rate:,.0f} tokens/s  gradient norm {metrics['grad_norm']:.3f}"

    def step(self, step: int, coming: Iterator[Turn]) -> tuple[dict[str, Any], Cursor]:
        settings, sharding = self.settings, self.job.sharding
        # On the device: reading each row's loss would hold the host until the row is done.
        losses: list[torch.Tensor] = []
        host_s = 0.0
        microbatches = -(-settings.rows_per_step // sharding.data_count)
        for number, turn in enumerate(islice(coming, microbatches), start=1):
            sharding.before_microbatch(self.model, last=number == microbatches)
            loss = self.model(turn.batch, sharding)
            sharding.token_mean(loss, turn.labels).backward()
            losses.append(loss.detach().double())
            host_s += turn.host_s
        rows, labels = turn.rows, turn.labels
        loss_mean = sharding.total(float(torch.stack(losses).sum())) / labels
        if not math.isfinite(loss_mean):
            raise JobError(f"step {step}: the loss is {loss_mean} {self._where(rows, losses)}; {_ADVICE}")
        metrics = {
            "step": step, "loss": loss_mean, "tokens": sum(row.tokens for row in rows), "label_tokens": labels,
            "host_seconds": host_s,
        }  # fmt: skip
        return {**metrics, **self.update(step, loss_mean)}, turn.cursor

    def update(self, step: int, loss: float) -> dict[str, Any]:
        """Update the model by its gradients; what the metrics say of it."""
        settings = self.settings
        warmup_steps, schedule = round(settings.warmup * settings.steps), settings.schedule
        lr = learning_rate(
            step - 1, steps=settings.steps, peak=settings.lr, schedule=schedule, warmup_steps=warmup_steps
        )
        norm = self.optimizer.step(lr, settings.clip)
        if not math.isfinite(norm):
            raise JobError(f"step {step}: the gradient norm is {norm}, of a loss of {loss}; {_ADVICE}")
        return {"grad_norm": norm, "lr": lr, "peak_memory_bytes": peak_memory_bytes(self.job.device)}

    def _where(self, rows: Sequence[Row], losses: Sequence[torch.Tensor]) -> str:
        """Collective: the first rank whose share of the loss is not finite, found by halves, and its first such row."""
        sharding = self.job.sharding
        bad = next((number for number, loss in enumerate(losses) if not torch.isfinite(loss)), None)
        first, after = 0, sharding.world
        while after - first > 1:
            middle = (first + after) // 2
            if sharding.total(float(bad is not None and first <= sharding.rank < middle)):
                after = middle
            else:
                first = middle
        mine = bad is not None and sharding.rank == first
        row = round(sharding.total(float((bad or 0) * sharding.data_count + sharding.data_index if mine else 0)))
        names = ", ".join(document.name for document in rows[row].documents)
        return f"on rank {first}, in row {row} of the step's {len(rows)} (samples {names[:200]})"

    def _turns(self, cursor: Cursor, steps: int) -> Iterator[Turn]:
        sharding, device, dtype = self.job.sharding, self.job.device, precision(self.settings.precision)
        frames, size = FrameCache(self.settings.frame_cache_bytes), self.config.image_size

        def make(row: Row, most: int) -> Batch:
            return dataset.row_batch(row, sharding, size, device, dtype, frames, most)

        return turns(self.rows, cursor, steps, self.taken_rows, sharding, make)

    def _save(self, folder: Path, step: int, cursor: Cursor) -> None:
        model, rank, keep = model_fingerprint(self.config), self.job.sharding.rank, self.settings.keep_checkpoints
        marker = checkpoint.Marker(step=step, cursor=cursor, model=model, settings=self.lasting)
        checkpoint.save(folder, self.model, self.optimizer, marker, rank=rank, keep=keep)


if __name__ == "__main__":
    one_process.run("longvila.train", main, sys.argv[1:])
