"""`python -m longvila.distill`: layers, student, run, evaluate, needles.

python -m longvila.distill run settings.yaml [key=value …]          all three stages
python -m longvila.distill layers settings.yaml --layers 0,3,5      stages 1 and 2 of some layers
python -m longvila.distill student settings.yaml keep=[3,7]         stage 3, from finished layers
python -m longvila.distill evaluate FOLDER asked.jsonl              what a model writes
python -m longvila.distill needles FOLDER                           a corpus for a tiny model
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from longvila.distill import needles as corpus
from longvila.distill.answers import evaluate as evaluate_model
from longvila.distill.documents import Rows, read_documents
from longvila.distill.layers import train_layers
from longvila.distill.settings import DistillSettings
from longvila.distill.student import train_student
from longvila.distill.teacher import load_teacher
from longvila.files import claimed
from longvila.job import JobError
from longvila.one_process import run_command
from longvila.settings import read_changed, read_settings


def read(file: str, changes: Sequence[str]) -> DistillSettings:
    """The settings of a YAML file with some of them changed, as key=value."""
    return read_settings(DistillSettings, read_changed(file, changes), file)


def rows_of(settings: DistillSettings) -> Rows:
    words = load_teacher(settings).config.vocab_size
    documents = read_documents(settings.data, Path(settings.teacher), words)
    return Rows.cut(
        documents,
        max_tokens=settings.max_tokens,
        measured=settings.measured_rows,
        seed=settings.seed,
        device=settings.device,
    )


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Make a hybrid of a Llama or Qwen2 folder in three stages."""


_FILE = click.argument("file", metavar="SETTINGS.yaml")
_CHANGES = click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")


@main.command()
@_FILE
@_CHANGES
@click.option("--layers", "names", metavar="0,3,5", help="These layers alone; others may be at work elsewhere.")
def layers(file: str, changes: tuple[str, ...], names: str | None) -> None:
    """Stages 1 and 2; writes distances.json once all layers are done."""
    settings = read(file, changes)
    if names is not None and not all(name.strip().isdecimal() for name in names.split(",")):
        raise JobError(f"--layers {names!r} must be layers by number, such as 0,3,5")
    chosen = None if names is None else [int(name) for name in names.split(",")]
    train_layers(settings, rows_of(settings), chosen)


@main.command()
@_FILE
@_CHANGES
def student(file: str, changes: tuple[str, ...]) -> None:
    """Stage 3; writes the student's folder."""
    settings = read(file, changes)
    with claimed(Path(settings.run) / settings.student):
        click.echo(train_student(settings, rows_of(settings)))


@main.command()
@_FILE
@_CHANGES
def run(file: str, changes: tuple[str, ...]) -> None:
    """All three stages; layers that keep attention are passed over in the first two."""
    settings = read(file, changes)
    rows, layers = rows_of(settings), load_teacher(settings).config.num_hidden_layers
    with claimed(Path(settings.run) / settings.student):
        train_layers(settings, rows, [layer for layer in range(layers) if layer not in settings.keep])
        click.echo(train_student(settings, rows))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("asked", metavar="ASKED.jsonl")
@click.option("--device", default="cpu", help="Where it computes.")
def evaluate(folder: Path, asked: str, device: str) -> None:
    """The share of prompts that a model answers rightly, word for word, as JSON."""
    click.echo(json.dumps(asdict(evaluate_model(folder, asked, device))))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--documents", default=4000, type=click.IntRange(1), help="That ask for every card.")
@click.option("--asked", default=256, type=click.IntRange(1), help="That ask for one card.")
@click.option("--seed", default=0, type=click.IntRange(0))
def needles(folder: Path, documents: int, asked: int, seed: int) -> None:
    """Write train.jsonl and asked.jsonl of cards among words."""
    corpus.write(folder, corpus.Needles(), documents=documents, asked=asked, seed=seed)


if __name__ == "__main__":
    run_command(main)
