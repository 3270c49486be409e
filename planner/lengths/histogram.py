"""How long the documents of a data set are: a CSV file, read strictly, and batches drawn from it.

    tokens,count                                          one line for each length (`python -m longvila.lengths --csv`)
    bucket_from,bucket_to_exclusive,count|share           one line for each bucket of a published histogram

A column `source` is passed over. In a bucket lengths are taken as spread evenly over the logarithm, as most
documents of a wide bucket are short. Documents longer than a row are cut into rows and a rest, as trainers do.
Units: tokens; weights are documents or shares, and only their ratios count. Left out: correlations between documents.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.longest import MOST_TOKENS
from cost_models.strict import nearest, read_text

Ints = NDArray[np.int64]
EXACT, BUCKET, WEIGHT = ("tokens",), ("bucket_from", "bucket_to_exclusive"), ("count", "share")
LEGAL = (*EXACT, *BUCKET, *WEIGHT, "source")
MOST_WEIGHT = 1e15
"""More documents than were ever written."""
MOST_LINES = 2**18
"""Of one file, several seconds of reading beyond that: buckets of a few tokens hold as much."""
MOST_DOCUMENTS = 8_000_000
"""Of one step: as many take a second to draw."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Buckets of lengths [low, high), ascending as in the file, each with a weight."""

    low: Ints
    high: Ints
    weight: NDArray[np.float64]

    @classmethod
    def load(cls, path: str | Path, flag: str = "--lengths") -> Histogram:
        """Read a CSV file; every fault is an InputError that names line, column, value and what is legal."""
        where = f"{flag} {str(path)!r}"
        rows = list(_rows(read_text(path, flag), where))
        if not rows:
            raise InputError(f"{where} has no line below its header; give a line for each length or bucket")
        low, high, weight = zip(*rows, strict=True)
        if not sum(weight) > 0:
            raise InputError(f"{where}: all counts are 0; give at least one above")
        return cls(np.array(low), np.array(high), np.array(weight))

    @cached_property
    def longest(self) -> int:
        return int(self.high[self.weight > 0].max()) - 1

    def draw(self, tokens: int, limit: int, seed: int) -> Ints:
        """Lengths of a batch of `tokens` tokens, in the order of the data; none is longer than `limit`. InputError for
        one of more than MOST_DOCUMENTS."""
        random, found, have = np.random.default_rng(seed), list[Ints](), 0
        chances = self.weight / self.weight.sum()
        while have < tokens:
            if len(found) * 4096 > MOST_DOCUMENTS:
                raise InputError(
                    f"a step of {tokens} tokens is more than {MOST_DOCUMENTS:,} documents of these lengths; legal: at "
                    "most so many (give a smaller --batch)"
                )
            bucket = random.choice(len(self.low), size=4096, p=chances)
            first, last = np.log(self.low[bucket]), np.log(self.high[bucket])
            lengths = np.exp(first + (last - first) * random.random(4096)).astype(np.int64)
            found.append(_cut(np.clip(lengths, self.low[bucket], self.high[bucket] - 1), limit))
            have += int(found[-1].sum())
        lengths = np.concatenate(found)
        enough = int(np.searchsorted(np.cumsum(lengths), tokens))
        lengths = lengths[: enough + 1]
        lengths[-1] -= int(lengths.sum()) - tokens
        return lengths[lengths > 0]


def _cut(lengths: Ints, limit: int) -> Ints:
    """Documents cut into pieces of `limit` tokens and a rest.

    >>> _cut(np.array([3, 25, 10]), 10).tolist()
    [3, 10, 10, 5, 10]
    """
    pieces = -(-lengths // limit)
    cut = np.full(int(pieces.sum()), limit, dtype=np.int64)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * limit
    return cut


def _rows(text: str, where: str) -> Iterator[tuple[int, int, float]]:
    """(low, high, weight) of every line."""
    try:
        told = text.splitlines()
        if len(told) > MOST_LINES:
            raise InputError(
                f"{where} has {len(told):,} lines; at most {MOST_LINES:,} are read: join lengths in buckets"
            )
        lines = csv.reader(told, strict=True)
        header = [name.strip() for name in next(lines, [])]
        _check_header(header, where)
        for number, cells in enumerate(lines, start=2):
            if cells:
                if len(cells) != len(header):
                    raise InputError(f"{where}, line {number}: {len(cells)} cells for {len(header)} columns")
                yield _row(dict(zip(header, cells, strict=True)), f"{where}, line {number}")
    except csv.Error as error:
        raise InputError(f"{where} is no CSV file: {error}") from error


def _check_header(header: list[str], where: str) -> None:
    for name in header:
        if name not in LEGAL:
            raise InputError(f"{where}: column {name[:40]!r} is unknown; {nearest(name, LEGAL)}")
        if header.count(name) > 1:
            raise InputError(f"{where}: column {name!r} is there twice")
    exact, bucket = (all(name in header for name in names) for names in (EXACT, BUCKET))
    if exact == bucket or not any(name in header for name in WEIGHT):
        legal = "tokens,count or bucket_from,bucket_to_exclusive,count (or share)"
        raise InputError(f"{where}: its columns must be {legal}")


def _row(cells: Mapping[str, str], where: str) -> tuple[int, int, float]:
    given = [(name, cells[name]) for name in WEIGHT if cells.get(name, "").strip()]
    if not given:
        raise InputError(f"{where}: neither count nor share is given; one of them is needed")
    weight = _number(given[0][1], f"{where}: {given[0][0]}")
    if "tokens" in cells:
        tokens = _tokens(cells["tokens"], f"{where}: tokens", least=1)
        return tokens, tokens + 1, weight
    low = max(1, _tokens(cells["bucket_from"], f"{where}: bucket_from", least=0))
    high = _tokens(cells["bucket_to_exclusive"], f"{where}: bucket_to_exclusive", least=1)
    if high <= low:
        raise InputError(f"{where}: bucket_to_exclusive={high} must be above bucket_from={low}")
    return low, high, weight


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST_WEIGHT:
        raise InputError(f"{where}={text.strip()[:40]!r} must be a number from 0 to {MOST_WEIGHT:.0e}")
    return value


def _tokens(text: str, where: str, least: int) -> int:
    written = text.strip()
    value = int(written) if written.isascii() and written.isdigit() and len(written) < 20 else -1
    if not least <= value <= MOST_TOKENS:
        raise InputError(f"{where}={written[:40]!r} must be a whole number from {least} to {MOST_TOKENS}")
    return value
