"""How long the rows of a training run will be: what to plan for, and whether every sample can be read.

    python -m longvila.lengths train.yaml [lengths.csv]    settings of `longvila.train`; no frame is decoded

    every sample -> document (its clips' indices are read) -> the rows of the first epoch -> tokens, frames

Writes how many samples have each length, for `plan --lengths lengths.csv`. Prints the samples, the rows, and the
arguments of `plan` that fit them: --ctx is `max_tokens`, which no row exceeds,
--frames those of the row that has most. A sample that cannot be read, or is longer than a row, is one line and exit
code 2, as in training. Left out: later epochs, which pack the same samples in another order.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from longvila.assemble import model_config
from longvila.config import LongVilaConfig
from longvila.dataset import Cursor, Row
from longvila.files import read_text
from longvila.job import JobError
from longvila.one_process import one_line
from longvila.settings import read_settings, read_yaml
from longvila.train import TrainSettings, make_rows


def describe(rows: Sequence[Row], settings: TrainSettings, config: LongVilaConfig) -> str:
    """The lines that are printed; of pooled frames a plan wants the frames, a row counts their means."""
    samples = [len(document.text.input_ids) for row in rows for document in row.documents]
    tokens, frames = [row.tokens for row in rows], [row.frames for row in rows]
    full, pool = sum(tokens) / len(rows) / settings.max_tokens, config.video_pool
    return (
        f"samples  {len(samples)}: {min(samples)} to {max(samples)} tokens, {sum(samples)} in all; "
        f"{sum(frames)} {'means' if pool > 1 else 'frames'} of {config.tokens_per_frame} tokens\n"
        f"rows     {len(rows)} a pass: {min(tokens)} to {max(tokens)} tokens, {full:.0%} of max_tokens; "
        f"{min(frames) * pool} to {max(frames) * pool} frames\n"
        f"plan     --ctx {settings.max_tokens} --frames {max(frames) * pool} --batch {settings.rows_per_step}"
    )


def first_epoch(given: Mapping[str, Any], where: str, counts: Path | None = None) -> str:
    """`describe` for the settings of a run; `counts`: a file to write how many samples have each length."""
    settings = read_settings(TrainSettings, given, where)
    config = model_config(settings.model, settings.weights, settings.rope_theta)
    rows = first_rows(settings, config)
    if counts is not None:
        write_lengths(rows, counts)
    return describe(rows, settings, config)


def write_lengths(rows: Sequence[Row], file: Path) -> None:
    """How many samples have each length, as `plan --documents` and `--lengths` read it."""
    several = Counter(len(document.text.input_ids) for row in rows for document in row.documents)
    lines = [f"{tokens},{count}" for tokens, count in sorted(several.items())]
    try:
        file.write_text("\n".join(["tokens,count", *lines, ""]), encoding="utf-8")
    except OSError as fault:
        raise JobError(f"{file} cannot be written: {fault.strerror}") from fault


def first_rows(settings: TrainSettings, config: LongVilaConfig) -> list[Row]:
    """The rows of a run's first epoch."""
    rows, passed, cursor = make_rows(settings, config), [], Cursor()
    columns = (TextColumn("reading"), MofNCompleteColumn(), BarColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("samples", total=len(rows.order(0)))
        while cursor.epoch == 0:
            (row,), cursor = rows.step(cursor, 1)
            passed.append(row)
            bar.update(task, advance=len(row.documents))
    return passed


@one_line()
def main(arguments: Sequence[str]) -> None:
    """Print and write what a run's first epoch holds."""
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        raise JobError("usage: python -m longvila.lengths train.yaml [lengths.csv]")
    text, counts = read_text(Path(arguments[0]), ""), Path(arguments[1]) if len(arguments) == 2 else None
    print(first_epoch(read_yaml(text, arguments[0]), arguments[0], counts))


if __name__ == "__main__":
    main(sys.argv[1:])
