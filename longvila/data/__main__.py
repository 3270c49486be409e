"""Every fault of a data set, one a line, before anything is trained.

    python -m longvila.data check FILE [FILE …] [--media FOLDER] [--decode]

Reads all lines, looks up all media, and indexes each medium once (no frame is decoded unless `--decode`, which decodes
the first of each). Prints `file:line: fault` for all of them and what the set holds; exit code 2 where there are
faults. A sample that is too long for a row depends on the model: `python -m longvila.lengths` finds those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from longvila.data.samples import Sample, read_files
from longvila.data.sources import Source
from longvila.job import JobError
from longvila.one_process import one_line
from longvila.processor import choose_frames, decode, open_clip


def media_faults(samples: Sequence[Sample], *, decoding: bool) -> Iterator[str]:
    """A fault for every sample whose medium is none; each medium is looked at once."""
    known: dict[Source, str | None] = {}
    columns = (TextColumn("looking at samples"), MofNCompleteColumn(), BarColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        for sample in bar.track(samples):
            for medium in sample.media:
                if medium not in known:
                    known[medium] = _fault(medium, decoding)
                if known[medium] is not None:
                    yield f"{sample.where}: {known[medium]}"


def _fault(medium: Source, decoding: bool) -> str | None:
    try:
        clip = open_clip(medium)
        if decoding:
            decode(choose_frames(clip, frames=1), range(1), 16)
    except JobError as fault:
        return str(fault)
    return None


def check(files: Sequence[Path], media: Path | None, *, decoding: bool) -> tuple[list[str], str]:
    """All faults, and one line on what the files hold."""
    faults: list[str] = []
    samples: list[Sample] = []
    for file in files:
        reading = read_files([file], media or file.parent)
        faults += reading.faults
        samples += reading.samples
    faults += media_faults(samples, decoding=decoding)
    images, videos = (sum(len(getattr(sample, kind)) for sample in samples) for kind in ("images", "videos"))
    return faults, f"{len(samples)} samples can be read: {videos} videos, {images} pictures; {len(faults)} faults"


def main(arguments: Sequence[str]) -> int:
    """The exit code: 2 where there are faults."""
    parser = argparse.ArgumentParser(prog="python -m longvila.data", description="Look at a data set.")
    commands = parser.add_subparsers(required=True, metavar="check")
    command = commands.add_parser("check", help="list every fault of a data set")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".json, .jsonl, .tar, .parquet, a folder")
    command.add_argument("--media", type=Path, help="folder of the media (default: that of each file)")
    command.add_argument("--decode", action="store_true", help="decode the first frame of every medium")
    given = parser.parse_args(arguments)
    with one_line():
        faults, held = check(given.files, given.media, decoding=given.decode)
    print("\n".join((*faults, held)))
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
