"""Against the simulator that measured the rows: its own predictions stand beside them in `metric_other`.

    simumax_pred_ms = milliseconds of the step        simumax_pred_alloc_gib = peak of the allocator

SimuMax reads the time of each product and attention from a table of exactly these shapes, measured on the same machine;
here both come from curves that other sources shaped, and only the board's power limit and the gap of an eager operator
from its tables. Errors of both are over the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from validation.rows import Row
from validation.statistics import Errors

GIB = 2**30


class Judged(Protocol):
    """What is read of a verdict."""

    @property
    def measured_s(self) -> float: ...
    @property
    def error(self) -> float: ...
    @property
    def peer_s(self) -> float | None: ...
    @property
    def measured_bytes(self) -> float | None: ...
    @property
    def memory_error(self) -> float | None: ...
    @property
    def peer_bytes(self) -> float | None: ...


def peer_of(row: Row) -> tuple[float | None, float | None]:
    """(seconds, bytes) that another simulator predicted for the row.

    >>> peer_of(Row(file="", number="", score="yes", cells={"metric_other": "a=1;simumax_pred_ms=828.5"}))
    (0.8285, None)
    """
    text = row.cells.get("metric_other", "")
    seconds, size = (re.search(rf"{name}=([\d.]+)", text) for name in ("simumax_pred_ms", "simumax_pred_alloc_gib"))
    return (float(seconds[1]) / 1e3 if seconds else None, float(size[1]) * GIB if size else None)


def reserved_of(row: Row) -> float | None:
    """Bytes that PyTorch's allocator held at most (`max_memory_reserved`): without the CUDA context.

    >>> reserved_of(Row(file="", number="", score="yes", cells={"metric_other": "reserved_gib=70.5;a=1"})) / GIB
    70.5
    """
    found = re.search(r"\breserved_gib=([\d.]+)", row.cells.get("metric_other", ""))
    return float(found[1]) * GIB if found else None


def beside(verdicts: Sequence[Judged]) -> list[tuple[str, Errors, Errors]]:
    """(what, errors here, errors of the peer) over the rows that have both."""
    found = []
    timed = [one for one in verdicts if one.peer_s is not None]
    if timed:
        theirs = [one.peer_s / one.measured_s - 1 for one in timed if one.peer_s is not None]
        found.append(("step time", Errors.of([one.error for one in timed]), Errors.of(theirs)))
    held = [
        (one.memory_error, one.peer_bytes / one.measured_bytes - 1)
        for one in verdicts
        if one.memory_error is not None and one.peer_bytes is not None and one.measured_bytes is not None
    ]
    if held:
        ours, peers = zip(*held, strict=True)
        found.append(("peak memory", Errors.of(list(ours)), Errors.of(list(peers))))
    return found
