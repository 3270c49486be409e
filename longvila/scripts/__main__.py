"""`python -m longvila.scripts`: shooting scripts to training lines, their lengths for a plan, and synthetic dramas.

    lines     scripts (+ films) -> VILA lines that `longvila.train` reads
    lengths   scripts -> a histogram that `plan --lengths` reads: how many samples have so many tokens
    dramas    a seed -> films of moving shapes and their scripts, as episodes and as whole dramas

A sample's tokens are frames a second x seconds x tokens a frame, and of the text one for some bytes: an estimate, which
`python -m longvila.lengths` replaces by a model's own count. A mistake is one line and exit code 2.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from longvila.files import write_whole
from longvila.job import JobError, require
from longvila.one_process import run_command
from longvila.scripts.asking import TASKS, lines, questions
from longvila.scripts.dramas import Wanted, write
from longvila.scripts.reading import read_scripts
from longvila.scripts.shots import Script

F = TypeVar("F", bound=Callable[..., None])
_FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
_OUTPUT = click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False))


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Shooting scripts as long-video data."""


@main.command("lines")
@_FILES
@_OUTPUT
@click.option("--tasks", default=",".join(TASKS), help="Some of these.")
@click.option("--questions", "most", default=8, type=click.IntRange(1), help="The most in a line.")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of films named as their scripts, NAME.mp4.")
@click.option("--judgements", is_flag=True, help="Keep what scripts say of age, gender and attractiveness.")
@click.option("--seed", default=0, type=click.IntRange(0))
def write_lines(
    files: Sequence[Path], output: Path, tasks: str, most: int, videos: Path | None, judgements: bool, seed: int
) -> None:
    """Write VILA lines about the scripts in FILES.

    \b
        python -m longvila.scripts lines dramas/episodes.jsonl -o dramas/train.jsonl --tasks says,find
        python -m longvila.scripts lines episode-7.json --videos films -o lines.jsonl
    """
    wanted = _tasks(tasks)
    scripts = [_filmed(script, videos, output.parent) for script in read_scripts(files, judged=judgements)]
    made = list(lines(scripts, wanted, most, seed))
    if not made:
        raise JobError(
            f"--tasks {tasks}: {len(scripts)} scripts leave nothing to ask; legal: some of {_legal()} (script asks for "
            "a film, find for two shots, place for lines in two places, says for two who speak)"
        )
    _write(output, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made))
    kinds = Counter(str(one["id"]).rsplit("/", 1)[1] for one in made)
    click.echo(
        f"{len(made)} lines about {len(scripts)} scripts: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    )


@main.command("lengths")
@_FILES
@_OUTPUT
@click.option("--task", default="script", type=click.Choice(list(TASKS)), help="Whose text is counted.")
@click.option("--fps", default=1.0, help="Frames of each second.")
@click.option("--tokens-per-frame", default=196, type=click.IntRange(1), help="196: LongVILA's.")
@click.option("--bytes-per-token", default=4.0, help="Of text: an estimate.")
def write_lengths(
    files: Sequence[Path], output: Path, task: str, fps: float, tokens_per_frame: int, bytes_per_token: float
) -> None:
    """Write how many scripts in FILES have so many tokens as samples, as CSV for `plan --lengths`.

    \b
        python -m longvila.scripts lengths dramas/dramas.jsonl -o dramas.csv
    """
    for name, value in (("fps", fps), ("bytes-per-token", bytes_per_token)):
        require(0 < value < 1e6, name, value, "above 0 and below 1,000,000")
    scripts = read_scripts(files)
    tokens = [_tokens(script, task, fps, tokens_per_frame, bytes_per_token) for script in scripts]
    several = sorted(Counter(tokens).items())
    _write(output, "".join(["tokens,count\n", *(f"{length},{count}\n" for length, count in several)]))
    mean = sum(tokens) / len(tokens)
    click.echo(f"{len(tokens)} samples of {min(tokens):,} to {max(tokens):,} tokens, {mean:,.0f} in the mean")


@main.command("dramas")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dramas", default=Wanted.dramas)
@click.option("--episodes", default=Wanted.episodes, help="Of a drama, in the mean.")
@click.option("--seconds", default=Wanted.seconds, help="Of an episode, in the mean.")
@click.option("--shot-seconds", default=Wanted.shot_seconds, help="Of a shot, in the mean.")
@click.option("--lines", default=Wanted.lines, help="The most of a drama.")
@click.option("--side", default=Wanted.side, help="Width and height in pixels.")
@click.option("--seed", default=Wanted.seed)
@click.option("--films/--no-films", default=True, help="Render the films, or write their scripts alone.")
def write_dramas(folder: Path, films: bool, **wanted: Any) -> None:
    """Write synthetic short dramas to a new FOLDER.

    \b
        python -m longvila.scripts dramas dramas --dramas 660 --no-films
        python -m longvila.scripts dramas dramas --episodes 4 --seconds 2 --shot-seconds 1
    """
    write(folder, Wanted(**wanted), films=films)


def _legal() -> str:
    return ", ".join(TASKS)


def _tasks(given: str) -> list[str]:
    wanted = [task.strip() for task in given.split(",") if task.strip()]
    for task in wanted:
        if task not in TASKS:
            raise JobError(f"--tasks {task!r} is none; legal: some of {_legal()}")
    if not wanted:
        raise JobError(f"--tasks names none; legal: some of {_legal()}")
    return wanted


def _filmed(script: Script, videos: Path | None, folder: Path) -> Script:
    """The script with its film as a path from the folder of the lines, where media are looked for."""
    if videos is None and script.video is None:
        return script
    film = Path(script.video or "") if videos is None else videos / f"{Path(script.name).name}.mp4"
    if not film.is_file():
        raise JobError(f"the script {script.name!r} has no film {film}; legal: --videos FOLDER with {film.name}")
    return replace(script, video=os.path.relpath(film, folder))


def _tokens(script: Script, task: str, fps: float, per_frame: int, bytes_per_token: float) -> int:
    if script.seconds is None:
        raise JobError(f"the script {script.name!r} does not say how long its film is; legal: seconds, meta.duration")
    filmed = script if script.video is not None else replace(script, video="")
    text = sum(len((question + answer).encode()) for question, answer in questions(filmed, task, 8, 0))
    return math.ceil(script.seconds * fps) * per_frame + math.ceil(text / bytes_per_token)


def _write(output: Path, text: str) -> None:
    try:
        write_whole(output, text)
    except OSError as fault:
        raise JobError(f"{output} cannot be written: {fault.strerror}") from None


if __name__ == "__main__":
    run_command(main)
