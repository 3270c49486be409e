"""`python -m validation`: predicted against measured for every published row that may judge.

Prints, per file, median, 90th percentile, worst and bias of the step time (memory where it was measured), the order
within sweeps, the worst rows, and what knowing each framework is worth; `--markdown`, `--json` and `--plot` write
files. Reads `measurements/` of a checkout; nothing is fitted here. A `train_*.csv` of your own, in the standard columns
of `measurements/README.md`, is judged like the others: `--measurements FOLDER`.
"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from cost_models.errors import InputError
from validation.plot import svg
from validation.report import as_json, markdown, tables
from validation.rows import FOLDER, files
from validation.score import score
from validation.tables import display, write


@click.command(help=__doc__)
@click.option("--file", "chosen", multiple=True, help="Only these files (without .csv); again for more.")
@click.option("--measurements", "folder", type=click.Path(path_type=Path), default=FOLDER, help="Folder of the files.")
@click.option("--markdown", "page", type=click.Path(path_type=Path), help="Write the report here, as Markdown.")
@click.option("--json", "data", type=click.Path(path_type=Path), help="Write all rows here, as JSON ('-': print).")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw predicted over measured here, as SVG.")
def main(chosen: tuple[str, ...], folder: Path, page: Path | None, data: Path | None, picture: Path | None) -> None:
    try:
        for target in (page, picture, None if str(data) == "-" else data):
            if target is not None and (target.is_dir() or not target.parent.is_dir()):
                raise InputError(f"{str(target)!r} cannot be written: a folder, or in a folder that is not there")
        names, console = chosen or files(folder), Console(stderr=True)
        reports = [*chain(*(score([name], folder) for name in track(names, "files", console=console, transient=True)))]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if str(data) == "-":
        print(as_json(reports))
        return
    display(tables(reports))
    if page:
        write(page, markdown(reports, "measurements" if folder == FOLDER else folder.as_posix().rstrip("/")))
    if picture:
        write(picture, svg(reports))
    if data:
        write(data, as_json(reports) + "\n")


if __name__ == "__main__":
    main()
