"""What the setting `data` names: files with weights and media folders, read into one list of samples.

    data: [a.jsonl, {file: b.parquet, weight: 0.5, media: folder}]   --read_data-->   samples, parts, faults

A file's media lie in its own `media`, else in the run's, else beside the file. With `skip`, samples with faults are
left out; otherwise the first fault stops, with the number of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvila.data.mixture import Part
from longvila.data.samples import Sample, first_fault, read_files
from longvila.job import JobError
from longvila.settings import read_settings

ON_ERROR = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class DataFile:
    file: str  # .json, .jsonl, .tar, .parquet, or a folder of shards
    weight: float = 1.0  # passes an epoch
    media: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise JobError(f"settings: data: weight {self.weight} of {self.file} must be positive")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """All samples of a run, by file, and the faults of those that are left out."""

    samples: tuple[Sample, ...]
    parts: tuple[Part, ...]  # one per file that gave samples
    faults: tuple[str, ...]  # of the samples that are left out


def data_files(given: Sequence[str | Mapping[str, Any]]) -> list[DataFile]:
    """The entries of the setting `data`."""
    return [
        DataFile(file=entry) if isinstance(entry, str) else read_settings(DataFile, entry, "settings: data")
        for entry in given
    ]


def read_data(files: Sequence[DataFile], media: str | None, *, skip: bool) -> DataSet:
    """All files' samples."""
    samples: list[Sample] = []
    faults: list[str] = []
    parts = []
    for entry in files:
        file = Path(entry.file)
        own = entry.media or media
        reading = read_files([file], Path(own) if own else file.parent)
        samples += reading.samples
        faults += reading.faults
        if reading.samples:
            parts.append(Part(len(reading.samples), entry.weight))
    paths = [Path(entry.file) for entry in files]
    if faults and (not skip or not samples):
        raise JobError(first_fault(faults, paths))
    if not samples:
        raise JobError(f"data: {', '.join(map(str, paths))} holds no samples")
    return DataSet(samples=tuple(samples), parts=tuple(parts), faults=tuple(faults))
