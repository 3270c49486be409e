"""`python -m longvila.stages run`: the stages of a recipe, one after another, each from the weights of the one before.

    stage file + corpus -> settings.yaml --plan--> plan.json --executor launch--> train/ -> weights/ -> the next stage

A recipe is a folder of stage files, `1-alignment.yaml` … `5-long.yaml`: settings of `longvila.train`, with the data
files' names in the corpus. A stage whose weights are there is done; one with checkpoints goes on from the last. With
`--ranks` this machine is measured once, each stage is planned on it, launched as planned, and the measured step stands
beside the prediction; without, it runs in this process. `plan` and `executor` are called as commands: nothing of them
is imported here.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import click
import yaml

from longvila import checkpoint, train
from longvila.assemble import WHOLE, model_config
from longvila.config import presets
from longvila.files import read_text, write_whole
from longvila.job import Job, JobError
from longvila.lengths import first_rows, write_lengths
from longvila.one_process import run_command
from longvila.settings import read_settings, read_yaml

WARM_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the five stages: its settings, its folder, and where its weights go."""

    name: str
    settings: Mapping[str, Any]
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "weights"


def recipe_files(recipe: str) -> list[Path]:
    """The stage files of a recipe that comes with the package, or of a folder, in their order."""
    shipped = Path(str(resources.files("longvila.stages"))) / recipe
    folder = Path(recipe) if Path(recipe).is_dir() else shipped
    files = sorted(folder.glob("[0-9]*.yaml"))
    if not files:
        names = sorted(path.name for path in shipped.parent.iterdir() if list(path.glob("[0-9]*.yaml")))
        raise JobError(f"--recipe {recipe!r} is neither a folder of stage files nor one of {', '.join(names)}")
    return files


def make_stages(recipe: str, corpus: Path, run: Path, first: int, last: int, without: Sequence[int]) -> list[Stage]:
    """The stages from `first` to `last` that are not left out; each begins with the weights of the one before."""
    stages: list[Stage] = []
    before: Path | None = None
    for file in recipe_files(recipe):
        number = int(file.name.split("-")[0])
        folder = run / file.stem
        if number in without:
            continue
        given = read_yaml(read_text(file, ""), str(file))
        given["data"] = [
            {**one, "file": str(corpus / one["file"])} if isinstance(one, dict) else str(corpus / one)
            for one in given.get("data", [])
        ]
        given |= {"run": str(folder / "train"), "export": str(folder / "weights")}
        if before is not None:
            given["weights"] = str(before)
        if checkpoint.complete(folder / "train" / "checkpoints"):
            given["resume"] = "latest"
        read_settings(train.TrainSettings, given, str(file))
        if first <= number <= last:
            stages.append(Stage(name=file.stem, settings=given, folder=folder))
        before = folder / "weights"
    if not stages:
        raise JobError(f"--from {first} --to {last}: {recipe} has no such stage")
    return stages


def measured(ranks: int, folder: Path) -> str:
    """The profile of this machine under so many processes, measured where the folder has none yet."""
    file = folder / f"profile-{ranks}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores / 2:
            click.echo(f"others use this machine (load {load:.1f} on {cores} cores): predictions will be of it as busy")
        _call(f"executor profile --quick --ranks {ranks} -o {shlex.quote(str(file))}")
    return str(file)


def run_stage(stage: Stage, ranks: int | None, profile: str | None) -> None:
    """Train a stage, in this process or planned and launched over ranks."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    if ranks is None:
        train.main(Job(config=stage.settings))
        return
    config, plan = stage.folder / "settings.yaml", stage.folder / "plan.json"
    write_whole(config, yaml.safe_dump(dict(stage.settings)))
    settings = read_settings(train.TrainSettings, stage.settings, stage.name)
    model = model_config(settings.model, settings.weights, settings.rope_theta)
    rows, documents = first_rows(settings, model), stage.folder / "documents.csv"
    frames = [row.frames * model.video_pool for row in rows]
    write_lengths(rows, documents)
    asked = (
        f"--cluster local --gpus {ranks} --model {planned_model(settings)} --ctx {settings.max_tokens} "
        f"--documents {shlex.quote(str(documents))} --batch {settings.rows_per_step} "
        f"{' '.join(planned_parts(settings))} "
        f"--profile {shlex.quote(profile or measured(ranks, stage.folder.parent))}"
    )
    _call(f"plan {asked} --frames {max(frames)} -o {shlex.quote(str(plan))}")
    folder = shlex.quote(str(stage.folder / "launch"))
    _call(f"executor launch {shlex.quote(str(plan))} --config {shlex.quote(str(config))} --run-dir {folder}")
    priced_s = [
        float(json.loads(_told(f"plan price {asked} --frames {one} --json --strategy {layout(plan)}"))["step_s"])
        for one in typical(frames)
    ]
    click.echo(compared(statistics.fmean(priced_s), stage.folder / "train" / "metrics.jsonl"))


def planned_model(settings: train.TrainSettings) -> str:
    """The model in the words of `plan`, which reads folders of weights and presets."""
    if settings.weights is None and settings.model not in presets():
        raise JobError(f"model: {settings.model} cannot be planned: set weights, or one of {', '.join(presets())}")
    return shlex.quote(settings.weights) if settings.weights else f"longvila-{settings.model.removeprefix('longvila-')}"


def planned_parts(settings: train.TrainSettings) -> list[str]:
    """What is trained, in the words of `plan`."""
    whole = [part for part in WHOLE if part in settings.trained]
    if settings.lora_rank is None:
        return [f"--train {','.join(whole)}"]
    beside = [part for part in settings.trained if part not in (*WHOLE, "lora")]
    adapters = f"--lora-rank {settings.lora_rank} --lora-targets {','.join(settings.lora_targets)}"
    return [f"--train {','.join(['llm', *whole])}", adapters, f"--lora-beside {','.join(beside)}" if beside else ""]


def typical(frames: Sequence[int]) -> list[int]:
    """Frames of the rows that stand in the middle of each third, as they are sorted.

    >>> typical([0, 0, 0]), typical([9, 1, 5, 3, 7, 2])
    ([0], [2, 5, 9])
    """
    ordered = sorted(frames)
    return sorted({ordered[len(ordered) * part // 6] for part in (1, 3, 5)})


def layout(plan: Path) -> str:
    """A plan's layout as `plan price --strategy` reads it, which knows one policy of recomputing for all layers."""
    strategy = json.loads(plan.read_text())["strategy"]
    strategy["recompute"] = max(strategy.pop("layers"), key=lambda layer: layer["count"])["recompute"]
    return ",".join(f"{name}={value}" for name, value in strategy.items() if value is not None)


def compared(priced_s: float, metrics: Path) -> str:
    """Predicted against measured; reading and decoding take the cores that the ranks compute on."""
    steps = [json.loads(line) for line in metrics.read_text().splitlines()][WARM_STEPS:]
    if not steps:
        return "too few steps to compare with the plan"
    measured_s, host_s = (statistics.median(step[name] for step in steps) for name in ("seconds", "host_seconds"))
    difference = priced_s / measured_s - 1
    return (
        f"step predicted {priced_s * 1e3:.0f} ms, measured {measured_s * 1e3:.0f} ms ({difference:+.0%}); "
        f"each process reads and decodes {host_s * 1e3:.0f} ms of CPU time meanwhile, which no plan counts"
    )


def _call(command: str) -> None:
    """Show a command and run it, of this interpreter's environment; its failure ends this one with its exit code."""
    click.echo(f"$ {command}")
    _told(command, shown=True)


def _told(command: str, *, shown: bool = False) -> str:
    """What a command prints; nothing where it is `shown`."""
    name, *arguments = shlex.split(command)
    output = None if shown else subprocess.PIPE
    done = subprocess.run(
        [str(Path(sys.executable).parent / name), *arguments], check=False, stdout=output, encoding="utf-8"
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


@click.group()
def main() -> None:
    """The five stages of LongVILA."""


@main.command(context_settings={"show_default": True})
@click.option("--corpus", required=True, type=click.Path(path_type=Path), help="What `longvila.synthetic` wrote.")
@click.option("--recipe", default="tiny", help="A recipe that comes with the package, or a folder of stage files.")
@click.option("--run", "folder", default="runs/stages", type=click.Path(path_type=Path), help="Folder for all stages.")
@click.option("--from", "first", default=1, help="First stage.")
@click.option("--to", "last", default=5, help="Last stage.")
@click.option("--without", multiple=True, type=int, help="A stage to leave out: an ablation.")
@click.option("--ranks", type=click.IntRange(1), help="Plan each stage for so many ranks here, and launch it.")
@click.option("--profile", help="With --ranks: an `executor profile` of this machine.  [default: measured once]")
def run(
    corpus: Path, recipe: str, folder: Path, first: int, last: int, without: tuple[int, ...], ranks: int | None,
    profile: str | None,
) -> None:  # fmt: skip
    """Run stages; those that are done are passed over.

    \b
        python -m longvila.stages run --corpus corpus
        python -m longvila.stages run --corpus corpus --from 4 --to 4 --ranks 2
        python -m longvila.stages run --corpus corpus --run runs/ablation --without 4
    """
    stages = make_stages(recipe, corpus, folder, first, last, without)
    for stage in stages:
        if stage.weights.exists():
            click.echo(f"{stage.name}: done, its weights are in {stage.weights}")
            continue
        done = checkpoint.complete(stage.folder / "train" / "checkpoints")
        after = f", goes on after {checkpoint.read_marker(done[-1]).step}" if done else ""
        click.echo(f"{stage.name}: {stage.settings['steps']} steps{after}")
        run_stage(stage, ranks, profile)


if __name__ == "__main__":
    run_command(main)
