"""`python -m validation.certify`: write `cost_models/certificate.json`, how wrong prices are on rows not fitted.

What it holds is in `certificate.py`. Rows of your own (`--measurements FOLDER -o FILE`) make a certificate for
`plan price --certificate FILE`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cost_models.certificate import (
    PATH,
)
from cost_models.errors import InputError
from validation import parts
from validation.certificate import HELD_OUT, certify, data_digest, text_of
from validation.certificate_page import Page
from validation.rows import FOLDER, files
from validation.score import score
from validation.tables import display, write


@click.command(help=__doc__)
@click.option("--measurements", "folder", type=click.Path(path_type=Path), default=HELD_OUT,
              help="Folder of the held-out rows.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), default=PATH, help="Where to write it.")
@click.option("--markdown", "page", type=click.Path(path_type=Path), help="Write the page of the certificate here.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw its calibration here, as SVG.")
def main(folder: Path, output: Path, page: Path | None, picture: Path | None) -> None:
    try:
        reports = score(files(folder), folder)
        found = certify(parts.domains(FOLDER), reports, data_digest(folder))
        write(output, text_of(found))
        shown = Page.of(found, reports)
        if page is not None:
            write(page, shown.markdown())
        if picture is not None:
            write(picture, shown.svg())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    display(shown.tables())


if __name__ == "__main__":
    main()
